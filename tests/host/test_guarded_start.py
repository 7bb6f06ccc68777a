"""``start`` and ``update`` where a session of the operator exists: a real connection to port 22 of a made host."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from .network import ADDRESSES, configure, has_bridge_conntrack
from .test_commands import pvefw

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from .conftest import Namespace

pytest.importorskip("pyroute2")


@pytest.fixture
def session(host: Namespace) -> Iterator[socket.socket]:
    """A session of ssh from the outside to this host, as the kernel sees it; the network is up."""
    from .network import Network

    network = Network()
    with network.socket_of("host", socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind((ADDRESSES["host"][0], 22))
        server.listen()
        with network.socket_of("outside", socket.AF_INET, socket.SOCK_STREAM) as client:
            client.settimeout(10)
            client.connect((ADDRESSES["host"][0], 22))
            accepted, _ = server.accept()
            with accepted:
                yield client
    network.close()


def run(verb: str, root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return pvefw(verb, "--root", str(root), "--node", "n", "--local-network", "192.0.2.0/24", *options)


def deny_ssh(root: Path) -> None:
    configure(root)
    (root / "etc/pve/nodes/n/host.fw").write_text("[RULES]\nIN ACCEPT -p icmp\nIN DROP -p tcp -dport 22\n")


@pytest.mark.parametrize("backend", ["iptables", "nft"])
def test_a_ruleset_that_cuts_the_session_is_refused(session: socket.socket, tmp_path: Path, backend: str) -> None:
    deny_ssh(tmp_path)
    done = run("start", tmp_path, "--backend", backend)
    assert done.returncode == 3
    name = "{}:{} → 10.0.0.1:22".format(*session.getsockname())
    assert f"warning: ssh {name} (an established connection) would be cut by host.fw:3\n" in done.stderr
    assert (
        "  help: add `IN ACCEPT -source 10.0.0.254 -dest 10.0.0.1 -p tcp -dport 22` in [RULES] of host.fw, above line 3"
        in done.stderr
    )
    assert "stopped" in run("status", tmp_path).stdout  # nothing was loaded


@pytest.mark.parametrize("backend", ["iptables", "nft"])
def test_force_applies_it(session: socket.socket, tmp_path: Path, backend: str) -> None:
    if backend == "nft" and not has_bridge_conntrack():
        pytest.skip("this kernel does not take compiled nft rulesets")
    deny_ssh(tmp_path)
    done = run("start", tmp_path, "--backend", backend, "--force")
    assert done.returncode == 0, done.stderr
    assert "would be cut by host.fw:3" in done.stderr
    assert "running" in run("status", tmp_path, "--backend", backend).stdout


def test_update_is_refused_where_the_session_could_not_be_opened_again(session: socket.socket, tmp_path: Path) -> None:
    configure(tmp_path)
    host = tmp_path / "etc/pve/nodes/n/host.fw"
    host.write_text("[RULES]\nIN ACCEPT -p tcp -dport 22\n")
    assert run("start", tmp_path).returncode == 0
    session.sendall(b"tracked from here on")
    host.write_text("[RULES]\nIN REJECT -p tcp -dport 22\n")
    done = run("update", tmp_path)
    assert done.returncode == 3
    assert "could not be opened again by host.fw:2" in done.stderr
    done = run("update", tmp_path, "--confirm", "2")
    assert "could not be opened again by host.fw:2" in done.stderr
    assert done.returncode == 3  # applied, and undone without a confirmation
    assert "not confirmed" in done.stderr
