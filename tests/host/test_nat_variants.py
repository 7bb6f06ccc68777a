"""NAT in other forms: by rules of nft, of IPv6, on a VLAN-aware bridge, to the guest itself; the host as a server."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.host.tracking import nat_zone

from .nat_network import ADDRESSES, ADDRESSES6, BRIDGES, BRIDGES6, WAN, WAN6, NatNetwork, configure, run
from .network import has_bridge_conntrack, recompiled, start
from .test_nat import HAIRPINS, WAYS, call_iptables, outcomes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .conftest import Namespace

pytest.importorskip("pyroute2")

LONG = "PVEFW_TEST_NAT" in os.environ
INTERNET6, VM100_6, VM101_6, VM103_6 = (ADDRESSES6[name] for name in ("internet", "vm100", "vm101", "vm103"))
BRIDGE = BRIDGES["vmbr1"]
SILENT = "no answer"

MORE: dict[str, tuple[Callable[[NatNetwork], str], str]] = {
    "the host as DNS server": (lambda net: net.udp("vm100", BRIDGE), ADDRESSES["vm100"]),
    "the host by its outer address": (lambda net: net.tcp("vm103", WAN, 80), ADDRESSES["vm103"]),
    "the host, tcp": (lambda net: net.tcp("vm100", BRIDGE, 80), ADDRESSES["vm100"]),
    "port forward from another bridge": (lambda net: net.tcp("vm103", WAN, 8080), ADDRESSES["vm103"]),
    "a denied one": (lambda net: net.tcp("vm103", WAN, 8023), SILENT),
}
IP6: dict[str, tuple[Callable[[NatNetwork], str], str]] = {
    "masquerade": (lambda net: net.tcp("vm100", INTERNET6, 80), WAN6),
    "masquerade udp": (lambda net: net.udp("vm100", INTERNET6), WAN6),
    "port forward": (lambda net: net.tcp("internet", WAN6, 8080), INTERNET6),
    "port forward from another bridge": (lambda net: net.tcp("vm103", WAN6, 8080), VM103_6),
    "routed in": (lambda net: net.tcp("internet", VM103_6, 22), INTERNET6),
    "routed in, denied": (lambda net: net.tcp("internet", VM103_6, 23), SILENT),
    "routed out": (lambda net: net.tcp("vm103", INTERNET6, 80), VM103_6),
    "guest to guest": (lambda net: net.tcp("vm100", VM101_6, 80), VM100_6),
    "guest to guest, routed": (lambda net: net.tcp("vm103", VM100_6, 80), VM103_6),
    "the host as DNS server": (lambda net: net.udp("vm100", BRIDGES6["vmbr1"]), VM100_6),
}
CASES = [("nft", "0")] + ([("iptables", "1"), ("nft", "1")] if LONG else [])
"""Backend, and bridge-nf-call-iptables."""


@pytest.fixture(params=[None, 20] if LONG else [20], ids=lambda tag: "plain" if tag is None else "vlan")
def network(host: Namespace, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[NatNetwork]:
    if "nft-" in request.node.name and not has_bridge_conntrack():
        pytest.skip("this kernel does not track connections on bridges")
    configure(tmp_path, tag=request.param)
    for module in ("br_netfilter", "nf_nat_ftp"):
        with contextlib.suppress(subprocess.CalledProcessError):  # this kernel may have it built in
            run("modprobe", module)
    with NatNetwork(request.param) as network:
        yield network


@pytest.mark.parametrize(("backend", "bridge_call"), CASES)
def test_nat_in_other_forms(network: NatNetwork, tmp_path: Path, backend: str, bridge_call: str) -> None:
    network.translate_by_nft()
    network.have_ip6()
    nat_zone.want(wanted=backend == "iptables")
    start(recompiled(tmp_path, backend))
    call_iptables(bridge_call)
    for ways in (WAYS | MORE, IP6):
        assert outcomes(network, ways) == {name: expected for name, (_, expected) in ways.items()}
    hairpins = {place: network.tcp(place, WAN, 8080) for place in ("vm100", *HAIRPINS)}
    print(backend, bridge_call, hairpins)
    if bridge_call == "0":
        assert hairpins == dict.fromkeys(hairpins, BRIDGE)
        assert network.tcp("vm101", WAN6, 8080) == BRIDGES6["vmbr1"]
    else:
        assert SILENT not in [hairpins[place] for place in HAIRPINS]
