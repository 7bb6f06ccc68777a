"""Names of protocols and services where the host has no /etc/protocols and /etc/services, as in containers."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.verify.model import names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def bare_host(tmp_path: Path, use_etc: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def unknown(*_: object) -> int:
        raise OSError("not found")

    use_etc(tmp_path)
    monkeypatch.setattr(socket, "getprotobyname", unknown)
    monkeypatch.setattr(socket, "getservbyname", unknown)
    cached = (names.protocol_number, names.port_number, names._debian_names)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.mark.usefixtures("bare_host")
def test_names_are_known_without_files_of_the_host() -> None:
    assert [names.protocol_number(name) for name in ("icmp", "TCP", "sctp")] == [1, 6, 132]
    assert [names.port_number("ssh", "tcp"), names.port_number("domain")] == [22, 53]


@pytest.mark.usefixtures("bare_host")
def test_other_names_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown protocol"):
        names.protocol_number("no-such-one")
    with pytest.raises(ValueError, match="unknown service"):
        names.port_number("no-such-one")


@pytest.mark.usefixtures("bare_host")
def test_a_host_with_files_is_believed(tmp_path: Path) -> None:
    for file in ("protocols", "services"):
        (tmp_path / file).write_text("")
    with pytest.raises(ValueError, match="unknown protocol"):
        names.protocol_number("icmp")
