"""Reading which connections the kernel has, from made-up files of /proc and from the kernel."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.host.tracking import connections
from pvefw_nft.host.tracking.connections import Flow, Session, spelled

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Namespace

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
HERE, CLIENT = (4, 0xC0000201), (4, 0xC633640A)  # 192.0.2.1, 198.51.100.10


def row(local: str, remote: str, state: str, inode: int = 0) -> str:
    return f"   0: {local} {remote} {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1\n"


def proc(folder: Path, tcp: str = "", tcp6: str = "", conntrack: str | None = None) -> Path:
    (folder / "net").mkdir()
    (folder / "net/tcp").write_text(HEAD + tcp)
    (folder / "net/tcp6").write_text(HEAD + tcp6)
    if conntrack is not None:
        (folder / "net/nf_conntrack").write_text(conntrack)
    return folder


def test_sessions_of_ssh_and_the_web_interface(tmp_path: Path) -> None:
    found = connections.sessions(
        proc(
            tmp_path,
            row("010200C0:0016", "00000000:0000", "0A")
            + row("010200C0:0016", "0A6433C6:C350", "01")
            + row("010200C0:1F46", "0A6433C6:C351", "01")
            + row("010200C0:1F47", "0A6433C6:C352", "01")  # port 8007
            + row("010200C0:0016", "0A6433C6:C353", "06")  # TIME_WAIT
            + row("010200C0:0016", "010200C0:C354", "01"),  # from the host itself
        ),
        {},
        frozenset({HERE}),
    )
    assert found == [
        Session("ssh", Flow(6, CLIENT, 50000, HERE, 22), "an established connection"),
        Session("web interface", Flow(6, CLIENT, 50001, HERE, 8006), "an established connection"),
    ]


def test_sshd_on_another_port_is_known_by_its_process(tmp_path: Path) -> None:
    root = proc(tmp_path, row("010200C0:08AE", "00000000:0000", "0A", 77) + row("010200C0:08AE", "0A6433C6:C350", "01"))
    for pid, name, inode in ((10, "sshd", 77), (11, "nginx", 78)):
        (root / f"{pid}/fd").mkdir(parents=True)
        (root / f"{pid}/comm").write_text(f"{name}\n")
        (root / f"{pid}/fd/3").symlink_to(f"socket:[{inode}]")
    assert [session.flow.dport for session in connections.sessions(root, {}, frozenset({HERE}))] == [2222]


def test_an_ipv4_client_of_an_ipv6_socket_has_its_ipv4_address(tmp_path: Path) -> None:
    mapped = "0000000000000000FFFF0000"
    root = proc(tmp_path, tcp6=row(f"{mapped}010200C0:1F46", f"{mapped}0A6433C6:C350", "01"))
    (session,) = connections.sessions(root, {}, frozenset({HERE}))
    assert (session.flow.source, session.flow.destination) == (CLIENT, HERE)


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("198.51.100.10 50000 192.0.2.1 2222", [2222]),
        ("198.51.100.10 50000 192.0.2.99 2222", []),  # not an address of this host: another machine's, or a container's
        ("198.51.100.10 50000 192.0.2.1", []),
        ("$(id) x y z", []),
        ("", []),
    ],
)
def test_ssh_connection_counts_where_it_is_to_this_host(tmp_path: Path, text: str, ports: list[int]) -> None:
    found = connections.sessions(proc(tmp_path), {"SSH_CONNECTION": text}, frozenset({HERE}))
    assert [session.flow.dport for session in found] == ports


def test_tracked_connections(tmp_path: Path) -> None:
    tcp = (
        "ipv4     2 tcp      6 431999 ESTABLISHED src=198.51.100.10 dst=192.0.2.1 sport=50000 dport=80 "
        "src=10.0.0.5 dst=198.51.100.10 sport=8080 dport=50000 [ASSURED] mark=0 zone=0 use=2\n"
    )
    closing = tcp.replace("ESTABLISHED", "TIME_WAIT").replace("50000", "50001")
    udp = (
        "ipv6     10 udp      17 20 src=fd00::1 dst=fd00::2 sport=5 dport=53 src=fd00::2 dst=fd00::1 sport=53 dport=5 "
    )
    unanswered = udp.replace("sport=5 ", "sport=6 ")
    other = (
        "ipv4     2 unknown  47 100 src=192.0.2.1 dst=192.0.2.2 src=192.0.2.2 dst=192.0.2.1 [ASSURED] mark=0 use=2\n"
    )
    zones = tcp.replace("zone=0", "zone=7")
    text = tcp + zones + closing + udp + "[ASSURED] mark=0 use=2\n" + unanswered + "[UNREPLIED] mark=0\n" + other
    assert connections.tracked(proc(tmp_path, conntrack=text)) == [
        Flow(6, CLIENT, 50000, HERE, 80, (4, 0x0A000005)),
        Flow(17, (6, 0xFD00 << 112 | 1), 5, (6, 0xFD00 << 112 | 2), 53),
        Flow(47, HERE, 0, (4, 0xC0000202), 0),
    ]


def test_a_kernel_that_lists_nothing(tmp_path: Path) -> None:
    assert connections.tracked(proc(tmp_path)) == []  # nf_conntrack is not loaded
    count = tmp_path / "sys/net/netfilter/nf_conntrack_count"
    count.parent.mkdir(parents=True)
    count.write_text("5\n")
    assert connections.tracked(tmp_path) is None
    assert connections.sessions(tmp_path / "nothing", {}) == []


def test_addresses_of_the_kernel_are_read_right(host: Namespace) -> None:
    os.system("ip link set lo up; ip addr add 192.0.2.1/32 dev lo; ip addr add fd00::7/128 dev lo nodad")
    for family, ours, client in ((socket.AF_INET, "192.0.2.1", "192.0.2.1"), (socket.AF_INET6, "fd00::7", "fd00::7")):
        with socket.socket(family) as server, socket.socket(family) as peer:
            server.bind((ours, 22))
            server.listen()
            peer.bind((client, 0))
            peer.connect((ours, 22))
            found = connections.sessions(environment={})
            assert [(spelled(one.flow.source), one.flow.sport, spelled(one.flow.destination)) for one in found] == [
                (client, peer.getsockname()[1], ours)
            ]
