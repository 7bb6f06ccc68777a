"""A compile records its inputs; the record tells later whether one of them has changed."""

from __future__ import annotations

import socket
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.config import source
from pvefw_nft.config.source import Observations, Source
from pvefw_nft.pipeline import compile_root
from tests.support import CONTAINER, VM

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support import MakeRoot

FILES: dict[str, str | bytes] = {
    "cluster": "[OPTIONS]\nenable: 1\n[RULES]\nIN ACCEPT -i lan0 -p tcp -dport ssh\n",
    "host": "[OPTIONS]\nenable: 1\n",
    "100.fw": "[OPTIONS]\nenable: 1\n[RULES]\nIN ACCEPT -p tcp -dport 80\n",
    "100.conf": VM,
    "200.ct": CONTAINER,
    "x.vnet": "[OPTIONS]\nenable: 1\n",
    "corosync": "nodelist {\n  node {\n    name: n1\n    ring0_addr: 10.0.0.1\n  }\n}\n",
}


pytestmark = pytest.mark.usefixtures("names_unread")


def made(root: Path, node: str | None = "n1") -> tuple[Source, Observations]:
    """Compile a configuration. Return its source and the recorded observations."""
    asked = Source(root, node, lambda: "10.0.0.0/24", lambda name: "eth0" if name == "lan0" else None)
    notes = Observations()
    compile_root(notes.observed(asked), "iptables")
    notes.finish()
    return asked, notes


def test_nothing_changed(make_root: MakeRoot) -> None:
    asked, notes = made(make_root(FILES))
    assert notes.still_hold(asked)


def test_nothing_noted(make_root: MakeRoot) -> None:
    assert not Observations().still_hold(Source(make_root(FILES), "n1", lambda: None))


def write(name: str, text: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / "etc/pve" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return change


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(write("firewall/cluster.fw", "[OPTIONS]\nenable: 0\n"), id="cluster"),
        pytest.param(write("local/host.fw", "[OPTIONS]\nenable: 0\n"), id="host"),
        pytest.param(write("firewall/100.fw", ""), id="guest"),
        pytest.param(write("qemu-server/100.conf", ""), id="guest-config"),
        pytest.param(write("sdn/firewall/x.fw", ""), id="vnet"),
        pytest.param(write("corosync.conf", ""), id="corosync"),
        pytest.param(write("firewall/200.fw", "[OPTIONS]\nenable: 1\n"), id="firewall-of-a-guest-without"),
        pytest.param(write("qemu-server/101.conf", VM), id="new-guest"),
        pytest.param(write("sdn/firewall/y.fw", ""), id="new-vnet"),
        pytest.param(write("nodes/n1/lxc/300.conf", CONTAINER), id="new-folder"),
        pytest.param(lambda root: (root / "etc/pve/firewall/100.fw").unlink(), id="file-gone"),
        pytest.param(lambda root: (root / "etc/pve/lxc/200.conf").unlink(), id="guest-gone"),
        pytest.param(lambda root: (root / "etc/pve/firewall/100.fw").write_bytes(b"\0"), id="no-text"),
        pytest.param(lambda root: (root / "etc/pve").rename(root / "elsewhere"), id="all-gone"),
    ],
)
def test_changed_file(make_root: MakeRoot, change: Callable[[Path], object]) -> None:
    root = make_root(FILES)
    asked, notes = made(root)
    change(root)
    assert not notes.still_hold(asked)


def test_other_local_network(make_root: MakeRoot) -> None:
    asked, notes = made(make_root(FILES))
    assert not notes.still_hold(replace(asked, local_network=lambda: "10.1.0.0/24"))
    assert not notes.still_hold(replace(asked, local_network=lambda: None))


def test_local_network_is_not_asked_for_where_the_cluster_names_it(make_root: MakeRoot) -> None:
    asked, notes = made(make_root({"cluster": "[OPTIONS]\nenable: 1\n[ALIASES]\nlocal_network 10.9.0.0/24\n"}))
    assert notes.still_hold(replace(asked, local_network=lambda: "10.1.0.0/24"))


def test_link_got_another_name(make_root: MakeRoot) -> None:
    asked, notes = made(make_root(FILES))
    assert not notes.still_hold(replace(asked, real_interface=lambda _: None))


def test_names_of_services_changed(make_root: MakeRoot, tmp_path: Path, use_etc: Callable[[Path], None]) -> None:
    asked, notes = made(make_root(FILES))
    use_etc(tmp_path)
    assert not notes.still_hold(asked)


def test_other_program(make_root: MakeRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, notes = made(make_root(FILES))
    monkeypatch.setattr(source, "program_digest", lambda: "another version")
    assert not notes.still_hold(asked)


def test_other_node(make_root: MakeRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_root({"cluster": "[OPTIONS]\nenable: 1\n"})
    (root / "etc/pve/nodes" / "n1").mkdir(parents=True)
    (root / "etc/pve/nodes" / "n2").mkdir()
    (root / "etc/pve/local").symlink_to("nodes/n1")
    asked, notes = made(root, None)
    (root / "etc/pve/local").unlink()
    (root / "etc/pve/local").symlink_to("nodes/n2")
    assert not notes.still_hold(asked)
    (root / "etc/pve/local").unlink()
    monkeypatch.setattr(socket, "gethostname", lambda: "n1.example.com")
    asked, notes = made(root, None)
    monkeypatch.setattr(socket, "gethostname", lambda: "n2")
    assert not notes.still_hold(asked)


def test_file_that_changed_while_it_was_read(make_root: MakeRoot) -> None:
    root = make_root(FILES)
    notes = Observations()
    files = notes.observed(Source(root, "n1", lambda: None)).files
    path = root / "etc/pve/firewall/100.fw"
    files.text(path)
    path.write_text("[RULES]\n")
    files.text(path)
    assert not notes.still_hold(Source(root, "n1", lambda: None))


def test_every_file_that_a_compile_opens_is_noted(make_root: MakeRoot) -> None:
    root = make_root({**FILES, "100.fw": "[OPTIONS]\nnonsense\n", "y.vnet": "[RULES]\nFORWARD REJECT\n"})
    opened: set[str] = set()
    watching = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith(f"{root}/"):
            opened.add(str(arguments[0]))

    sys.addaudithook(watch)
    try:
        _, notes = made(root)
    finally:
        watching = False
    assert len(opened) > 8
    noted = {name for kind, name in notes.answers if kind in ("text", "folder", "is folder")}
    assert opened <= noted


def test_enable_as_epoch_time_is_looked_at_again(make_root: MakeRoot) -> None:
    asked, notes = made(make_root({**FILES, "cluster": "[OPTIONS]\nenable: 1700000000\n"}))
    assert not notes.still_hold(asked)


def test_the_program_counts_with_its_linked_folders_and_without_compiled_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package, linked = tmp_path / "a_package", tmp_path / "linked"
    (linked / "__pycache__").mkdir(parents=True)
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "inner").symlink_to(linked)
    (package / ".#unsaved").symlink_to("nowhere")

    def digest() -> str:
        source.program_digest.cache_clear()
        return source.program_digest(("a_package",))

    try:
        before = digest()
        (linked / "__pycache__" / "a.pyc").touch()
        assert digest() == before
        (linked / "a.py").write_text("1")
        changed = digest()
        assert changed != before
        (linked / "a.py").write_text("2")
        assert digest() not in (before, changed)
    finally:
        source.program_digest.cache_clear()
