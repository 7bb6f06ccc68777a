"""Address translation, routing and helpers for guests behind firewall bridges, and answers forged on these bridges."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.host import sysctl
from pvefw_nft.host.tracking import nat_zone

from .forgery import forge_answers
from .nat_network import ADDRESSES, BRIDGES, WAN, NatNetwork, configure, run
from .network import has_bridge_conntrack, recompiled, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .conftest import Namespace

pytest.importorskip("pyroute2")

INTERNET, VM100, VM101, VM102, VM103 = (ADDRESSES[name] for name in ("internet", "vm100", "vm101", "vm102", "vm103"))
REFUSED, SILENT = "Connection refused", "no answer"
ZONE_RULE = ("iptables", "-t", "raw", "-I", "PREROUTING", "-i", "fwbr+", "-j", "CT", "--zone", "1")
"""The rule that Proxmox's guide gives for NAT behind firewall bridges."""

WAYS: dict[str, tuple[Callable[[NatNetwork], str], str]] = {
    "masquerade tcp": (lambda net: net.tcp("vm100", INTERNET, 80), WAN),
    "masquerade udp": (lambda net: net.udp("vm100", INTERNET), WAN),
    "masquerade ping": (lambda net: net.ping("vm100", INTERNET), "pong"),
    "port forward": (lambda net: net.tcp("internet", WAN, 8080), INTERNET),
    "port forward, denied": (lambda net: net.tcp("internet", WAN, 8023), SILENT),
    "routed in": (lambda net: net.tcp("internet", VM103, 22), INTERNET),
    "routed in, denied": (lambda net: net.tcp("internet", VM103, 23), SILENT),
    "routed in, rejected": (lambda net: net.tcp("internet", VM103, 24), REFUSED),
    "routed out": (lambda net: net.tcp("vm103", INTERNET, 80), VM103),
    "guest to guest": (lambda net: net.tcp("vm100", VM101, 80), VM100),
    "guest to guest, denied": (lambda net: net.tcp("vm100", VM101, 23), SILENT),
    "guest to unfiltered guest": (lambda net: net.udp("vm100", VM102), VM100),
    "unfiltered guest to guest": (lambda net: net.tcp("vm102", VM101, 80), VM102),
    "guest to guest, routed": (lambda net: net.tcp("vm103", VM100, 80), VM103),
    "rejected by the sender": (lambda net: net.tcp("vm100", VM101, 25), REFUSED),
    "host to guest": (lambda net: net.tcp("host", VM100, 80), BRIDGES["vmbr1"]),
    "FTP from a masqueraded guest": (lambda net: net.ftp_active(), "some data"),
    "FTP to a forwarded port": (lambda net: net.ftp_passive(), "some data"),
}
"""Cases that work with either backend, with NAT and its zone rule: the client, and the result."""

NFT_ONLY: dict[str, tuple[Callable[[NatNetwork], str], str]] = {
    "rejected by the receiver": (lambda net: net.tcp("vm100", VM101, 24), REFUSED),
}
"""Cases that need a zone for each firewall bridge: in one zone for all, the second bridge takes the reset of a
rejection for a connection that is over."""

LONG = "PVEFW_TEST_NAT" in os.environ
SETTINGS = [("0", False), ("1", True)] + ([("0", True), ("1", False)] if LONG else [])
"""bridge-nf-call-iptables, and whether others have the zone rule: all of them with PVEFW_TEST_NAT."""
# with br_netfilter on, a forwarded packet stays on the guests' bridge and keeps its source
HAIRPINS = ("vm101", "vm102")


@pytest.fixture
def network(host: Namespace, tmp_path: Path) -> Iterator[NatNetwork]:
    if not has_bridge_conntrack():
        pytest.skip("this kernel does not track connections on bridges")
    configure(tmp_path)
    for module in ("br_netfilter", "nf_nat_ftp"):
        run("modprobe", module)
    with NatNetwork() as network:
        network.translate()
        yield network


def outcomes(network: NatNetwork, ways: dict[str, tuple[Callable[[NatNetwork], str], str]]) -> dict[str, str]:
    """Try all ways at once: each drop takes its time."""
    found: dict[str, str] = {}

    def go(name: str) -> None:
        try:
            found[name] = ways[name][0](network)
        except OSError as error:
            found[name] = repr(error)

    threads = [threading.Thread(target=go, args=(name,)) for name in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def call_iptables(value: str) -> None:
    for tool in ("iptables", "ip6tables"):
        sysctl.write(f"net/bridge/bridge-nf-call-{tool}", value)


@pytest.mark.parametrize(("bridge_call", "zone_rule"), SETTINGS)
def test_nft_ruleset_and_nat(network: NatNetwork, tmp_path: Path, bridge_call: str, zone_rule: bool) -> None:
    if zone_rule:
        run(*ZONE_RULE)
    start(recompiled(tmp_path, "nft"))
    call_iptables(bridge_call)
    ways = WAYS | NFT_ONLY
    assert outcomes(network, ways) == {name: expected for name, (_, expected) in ways.items()}
    hairpins = {place: network.tcp(place, WAN, 8080) for place in HAIRPINS}
    sources = {place: BRIDGES["vmbr1"] if bridge_call == "0" else ADDRESSES[place] for place in HAIRPINS}
    assert hairpins == sources


@pytest.mark.parametrize("others", [False, True] if LONG else [True])
def test_iptables_ruleset_and_nat_with_the_zone_rule(network: NatNetwork, tmp_path: Path, others: bool) -> None:
    if others:
        run(*ZONE_RULE)
    nat_zone.want(wanted=True)
    start(recompiled(tmp_path, "iptables"))
    assert outcomes(network, WAYS) == {name: expected for name, (_, expected) in WAYS.items()}
    hairpins = {place: network.tcp(place, WAN, 8080) for place in HAIRPINS}
    assert hairpins == dict.fromkeys(HAIRPINS, BRIDGES["vmbr1"])


@pytest.mark.parametrize("attacker", ["vm100", "vm102"])
def test_forged_answer_opens_nothing_under_nft(network: NatNetwork, tmp_path: Path, attacker: str) -> None:
    start(recompiled(tmp_path, "nft"))
    call_iptables("0")
    with forge_answers(network, attacker, VM101) as forged:
        assert network.tcp(attacker, VM101, 23, patience=4) == SILENT
    assert forged.count
    assert network.tcp(attacker, VM101, 22) == ADDRESSES[attacker]


def test_forged_answer_opens_a_port_where_bridges_share_a_zone(network: NatNetwork, tmp_path: Path) -> None:
    """The attack of the test above is one that works without zones."""
    start(recompiled(tmp_path, "nft"))
    call_iptables("0")
    run("nft", "flush", "chain", "bridge", "pvefw", "zones")
    with forge_answers(network, "vm102", VM101) as forged:
        assert network.tcp("vm102", VM101, 23, patience=40) == VM102
    assert forged.count


def test_denied_packet_leaves_no_connection_for_its_answer(network: NatNetwork, tmp_path: Path) -> None:
    """A packet dropped at a guest's firewall bridge has made a connection on the guest's bridge, but not there."""
    start(recompiled(tmp_path, "nft"))
    call_iptables("0")
    network.tcp("vm102", VM101, 23, patience=0.5)
    time.sleep(0.2)  # for the packet to arrive
    listed = run("conntrack", "-L", "-p", "tcp", "--dport", "23")
    assert "dport=23" in listed
    assert f"zone={4097 + 101 * 32}" not in listed


def connected(network: NatNetwork, place: str, address: str, count: int) -> int:
    """Return how many of so many connections that are opened at once come about before a SYN is sent again."""
    opening = [network.socket_of(place, socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
    for one in opening:
        one.setblocking(False)
        one.connect_ex((address, 80))
    time.sleep(0.8)  # a SYN is sent again after 1 s
    found = len(select.select([], opening, [], 0)[1])
    for one in opening:
        one.close()
    return found


if LONG:

    @pytest.mark.parametrize("backend", ["iptables", "nft"])
    def test_flood_protection_counts_by_source_also_where_bridges_have_zones(
        network: NatNetwork, tmp_path: Path, backend: str
    ) -> None:
        """The protection comes before tracking: neither zones nor NAT change whom it counts."""
        options = "protection_synflood: 1\nprotection_synflood_rate: 5\nprotection_synflood_burst: 40"
        configure(tmp_path, f"nf_conntrack_helpers: ftp\n{options}")
        nat_zone.want(wanted=backend == "iptables")
        start(recompiled(tmp_path, backend))
        call_iptables("1" if backend == "iptables" else "0")
        assert 1 <= connected(network, "vm102", VM101, 200) <= 60
        assert network.tcp("vm100", VM101, 80) == VM100
        assert network.tcp("vm100", INTERNET, 80) == WAN
        assert network.tcp("internet", WAN, 8080) == INTERNET
