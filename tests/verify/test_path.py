"""The way of a packet: which hooks see it, and with which interfaces."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pvefw_nft.errors import UsageError
from pvefw_nft.verify.model import (
    ETHER_TYPE,
    IIF,
    IPV4,
    IS_BRIDGED,
    OIF,
    PHYSIN,
    PHYSOUT,
    VLAN,
    Family,
    Point,
    holds,
    interface_name,
)
from pvefw_nft.verify.network.interfaces import read_interfaces
from pvefw_nft.verify.network.path import (
    HostEnd,
    Link,
    Network,
    Nic,
    Path,
    PortEnd,
    RoutedEnd,
    Stage,
    Topology,
    choose_ends,
    find_ends,
    find_path,
)

TOPOLOGY = Topology(
    nics=(
        Nic("vm100", 100, 0, "tap100i0", "vmbr0", filtered=True),
        Nic("vm100", 100, 1, "tap100i1", "vmbr1", filtered=True),
        Nic("vm101", 101, 0, "tap101i0", "vmbr0", filtered=False),
        Nic("ct200", 200, 0, "veth200i0", "vmbr0", filtered=True, tag=5),
        Nic("ct201", 201, 0, "veth201i0", "vmbr0", filtered=True, tag=6),
    ),
    links=(
        Link("vmbr0", is_bridge=True, ports=("eno1",), networks=(Network(4, 0x0A000001, 24),)),
        Link("wg0", is_bridge=False, networks=(Network(4, 0x0A090001, 24),)),
    ),
).with_bridges()


def path(source: str, destination: str, topology: Topology = TOPOLOGY, *, tagged: bool = False) -> Path:
    """Return the path of untagged frames, or of VLAN-tagged ones."""
    found = find_path(topology, *choose_ends(find_ends(topology, source), find_ends(topology, destination)))
    frame = {ETHER_TYPE: VLAN if tagged else IPV4}
    return replace(found, stages=tuple(stage for stage in found.stages if holds(stage.when, frame)))


def seen(stage: Stage) -> str:
    """Return a stage in short: ``bridge prerouting iif=tap100i0``."""
    names = {IIF: "iif", OIF: "oif", PHYSIN: "in", PHYSOUT: "out"}
    fields = [f"{names[on]}={interface_name(value)}" for on, value in stage.fields if on in names]
    return " ".join([str(stage), *fields])


def test_a_filtered_guest_goes_over_its_firewall_bridge_first() -> None:
    hops = list(dict.fromkeys(stage.hop for stage in path("vm100", "outside").stages))
    assert hops == ["fwbr100i0: tap100i0 → fwln100i0", "vmbr0: fwpr100p0 → eno1"]


def test_an_unfiltered_guest_is_a_port_of_its_bridge() -> None:
    hops = list(dict.fromkeys(stage.hop for stage in path("vm101", "vm100").stages))
    assert hops == ["vmbr0: tap101i0 → fwpr100p0", "fwbr100i0: fwln100i0 → tap100i0"]


def test_hooks_of_one_bridge_in_the_order_of_the_kernel() -> None:
    stages = [seen(stage) for stage in path("vm101", "outside").stages]
    assert stages == [
        "bridge prerouting iif=tap101i0",
        "ip prerouting iif=vmbr0 in=tap101i0",
        "bridge prerouting iif=tap101i0",
        "bridge forward iif=tap101i0 oif=eno1",
        "ip forward iif=vmbr0 oif=vmbr0 in=tap101i0 out=eno1",
        "bridge forward iif=tap101i0 oif=eno1",
        "bridge postrouting oif=eno1",
        "ip postrouting oif=vmbr0 in=tap101i0 out=eno1",
    ]


def test_without_br_netfilter_ip_hooks_see_only_the_hosts_own_packets() -> None:
    topology = Topology(TOPOLOGY.nics, TOPOLOGY.links, call_iptables=False)
    assert all(stage.family is Family.BRIDGE for stage in path("vm101", "outside", topology).stages)
    stages = [seen(stage) for stage in path("vm101", "host", topology).stages]
    assert stages == [
        "bridge prerouting iif=tap101i0",
        "bridge input iif=tap101i0",
        "ip prerouting iif=vmbr0",
        "ip input iif=vmbr0",
    ]


def test_a_packet_for_the_host_has_its_port_but_is_not_bridged() -> None:
    last = path("vm100", "host").stages[-1]
    assert seen(last) == "ip input iif=vmbr0 in=fwpr100p0"
    assert dict(last.fields)[IS_BRIDGED] == 0


def test_ip_prerouting_runs_once_for_a_packet_to_the_host() -> None:
    stages = [s for s in path("outside", "host").stages if (s.family, s.point) == (Family.IP, Point.PREROUTING)]
    assert len(stages) == 1


def test_the_host_sees_tagged_frames_only_in_its_own_hooks() -> None:
    ip = [seen(stage) for stage in path("vm101", "host", tagged=True).stages if stage.family is Family.IP]
    assert ip == ["ip prerouting iif=vmbr0", "ip input iif=vmbr0"]


def test_a_forwarded_packet_has_its_input_interface_until_it_leaves() -> None:
    (leaving, *_) = [s for s in path("wg0", "outside").stages if s.point is Point.POSTROUTING]
    assert seen(leaving) == "ip postrouting iif=wg0 oif=vmbr0"


def test_the_host_sends_through_the_bridge() -> None:
    stages = [seen(stage) for stage in path("host", "outside").stages]
    assert stages == [
        "ip output oif=vmbr0",
        "ip postrouting oif=vmbr0",
        "bridge output oif=eno1",
        "bridge postrouting oif=eno1",
    ]
    assert all(stage.from_host for stage in path("host", "outside").stages)


def test_between_two_bridges_the_host_routes() -> None:
    forward = [s for s in path("vm101", "vm100i1").stages if (s.family, s.point) == (Family.IP, Point.FORWARD)]
    assert seen(forward[0]) == "ip forward iif=vmbr0 oif=vmbr1 in=tap101i0"
    assert seen(forward[1]) == "ip forward iif=fwbr100i1 oif=fwbr100i1 in=fwln100i1 out=tap100i1"


def test_loopback() -> None:
    assert [seen(stage) for stage in path("host", "host").stages] == [
        "ip output oif=lo",
        "ip postrouting oif=lo",
        "ip prerouting iif=lo",
        "ip input iif=lo",
    ]


def test_priorities_around_br_netfilter_split_the_bridges_hook() -> None:
    first, _, second = path("vm101", "outside").stages[:3]
    assert (first.last, second.first) == (0, 0)


def test_a_guest_name_means_its_nic_on_the_same_bridge() -> None:
    assert str(path("vm100", "vm101").source) == "vm100i0"
    assert str(path("vm100", "vmbr1/eth0").source) == "vm100i1"


def test_zones() -> None:
    assert find_ends(TOPOLOGY, "host") == [HostEnd()]
    assert find_ends(TOPOLOGY, "vmbr0/eno1") == [PortEnd("vmbr0", "eno1")]
    assert find_ends(TOPOLOGY, "wg0") == [RoutedEnd("wg0")]
    assert [str(end) for end in find_ends(TOPOLOGY, "vm100")] == ["vm100i0", "vm100i1"]
    assert [str(end) for end in find_ends(TOPOLOGY, "veth200i0")] == ["ct200i0"]
    with pytest.raises(UsageError, match="no zone 'vm999'") as caught:
        find_ends(TOPOLOGY, "vm999")
    assert caught.value.hint is not None
    assert "vm100" in caught.value.hint


def test_no_way_between_vlans_or_to_oneself() -> None:
    with pytest.raises(UsageError, match="VLAN 5"):
        path("ct200", "ct201")
    with pytest.raises(UsageError, match="to itself"):
        path("vm101", "vm101")


def test_bridges_that_no_file_names_get_an_uplink() -> None:
    assert TOPOLOGY.link("vmbr1") == Link("vmbr1", is_bridge=True, ports=("eth0",))


def test_interfaces_file() -> None:
    text = """
auto lo
iface lo inet loopback

iface eno1 inet manual

auto vmbr0
iface vmbr0 inet static
        address 192.168.1.2/24
        gateway 192.168.1.1
        bridge-ports eno1 eno3
        bridge-stp off
iface vmbr0 inet6 static
        address fd00::2/64

iface vmbr1 inet manual
        bridge_ports none
iface eno2 inet static
        address 10.9.0.1
        netmask 255.255.255.0
"""
    assert read_interfaces(text) == (
        Link("vmbr0", True, ("eno1", "eno3"), (Network(4, 0xC0A80102, 24), Network(6, (0xFD00 << 112) | 2, 64))),
        Link("vmbr1", True),
        Link("eno2", False, (), (Network(4, 0x0A090001, 24),)),
    )
