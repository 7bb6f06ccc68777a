"""The systemd unit that ``run --print-unit`` prints, and when the service says that it is ready."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

pytest.importorskip("pyroute2")

from pvefw_nft.cli import cli

from .commands import service
from .conftest import need
from .network import configure

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Namespace


def printed(*options: str) -> str:
    done = CliRunner().invoke(cli, ["run", "--print-unit", *options])
    assert done.exit_code == 0, done.output
    return done.output


def test_unit_keeps_the_options_it_was_given() -> None:
    given = ("--backend", "nft", "--root", "/srv/x", "--node", "n", "--poll", "3.0", "--settle", "7.0", "--stop-at-end")
    (line,) = [line for line in printed(*given).splitlines() if line.startswith("ExecStart=")]
    words = line.split(" run ", 1)[1].split()
    assert sorted(words) == sorted(given)


def test_unit_without_options_has_none() -> None:
    (line,) = [line for line in printed().splitlines() if line.startswith("ExecStart=")]
    assert line.endswith(" run")
    assert "RequiredBy" not in printed()


def test_fail_closed_unit_is_required_by_what_starts_guests() -> None:
    assert "RequiredBy=pve-guests.service libvirt-guests.service\n" in printed("--fail-closed")


@pytest.mark.parametrize("fail_closed", [False, True])
def test_ready_before_rules_are_in_place_only_without_fail_closed(
    host: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail_closed: bool
) -> None:
    need("iptables -L; ip6tables -L; ipset list; ebtables -L")
    (tmp_path / "said").mkdir()
    (tmp_path / "c").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(0.1)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        messages: list[bytes] = []

        def heard(text: bytes) -> bool:
            with contextlib.suppress(TimeoutError):
                while True:
                    messages.append(manager.recv(4096))
            return any(text in message for message in messages)

        options = ["--root", str(tmp_path / "c"), "--node", "n", "--local-network", "192.0.2.0/24"]
        more = ["--fail-closed"] if fail_closed else []
        with service(tmp_path / "said", *options, "--backend", "iptables", "--poll", "0.2", *more) as command:
            command.waits_for(lambda: "nothing is there" in command.said())
            command.waits_for(lambda: heard(b"EXTEND_TIMEOUT_USEC=" if fail_closed else b"READY=1"))
            assert heard(b"READY=1") is not fail_closed
            if fail_closed:
                configure(tmp_path / "c")
                command.waits_for(lambda: heard(b"READY=1"))
                assert "changes in" in command.said()
