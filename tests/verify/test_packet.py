"""From an administrator's words to a packet."""

from __future__ import annotations

import ipaddress
from typing import Any, TypeAlias

import pytest

from pvefw_nft.errors import UsageError
from pvefw_nft.verify.model import (
    ARP_SPA,
    CT_STATE,
    DADDR4,
    DADDR6,
    DADDR_TYPE,
    DPORT,
    ETHER_DST,
    ETHER_SRC,
    ETHER_TYPE,
    ICMP,
    L4PROTO,
    MARK,
    PKTTYPE,
    PROTOCOL,
    SADDR4,
    SADDR_TYPE,
    SPORT,
    TCP_FLAGS,
    VLAN_ID,
    Field,
)
from pvefw_nft.verify.model.text import packet_text, value_text
from pvefw_nft.verify.network.path import Link, Network, Nic, Topology
from pvefw_nft.verify.simulate.packet import Probe, make_probe
from pvefw_nft.verify.simulate.spec import PacketSpec


def v4(text: str) -> tuple[int, int]:
    return 4, int(ipaddress.IPv4Address(text))


Option: TypeAlias = Any
"""The value of an option of PacketSpec."""

TOPOLOGY = Topology(
    nics=(
        Nic("vm100", 100, 0, "tap100i0", "vmbr0", filtered=True, mac=0xBC2411000001, addresses=(v4("10.0.0.100"),)),
        Nic("vm101", 101, 0, "tap101i0", "vmbr0", filtered=True, mac=0xBC2411000002),
    ),
    links=(
        Link("vmbr0", True, ("eno1",), (Network(4, 0x0A000001, 24),)),
        Link("wg0", False, (), (Network(4, 0x0A090001, 24),)),
    ),
)


def probe(source: str, destination: str, **options: Option) -> Probe:
    return make_probe(PacketSpec(source, destination, **options), TOPOLOGY)


def shown(made: Probe, *fields: Field) -> list[str]:
    return [value_text(on, made.fields[on]) for on in fields]


def test_packet_with_a_port_is_a_tcp_syn() -> None:
    made = probe("outside", "vm100:22")
    assert shown(made, L4PROTO, SPORT, DPORT, TCP_FLAGS, CT_STATE) == ["tcp", "40000", "22", "syn", "new"]
    assert packet_text(made.fields) == "tcp 198.51.100.1:40000 → 10.0.0.100:22"


def test_packet_without_a_port_is_a_ping() -> None:
    made = probe("outside", "vm100")
    assert shown(made, L4PROTO, ICMP) == ["icmp", "echo-request/0"]


def test_addresses_mean_the_ends_that_have_them() -> None:
    assert str(probe("10.0.0.100", "10.0.0.7:80").path) == "vm100i0 → vmbr0/eno1"
    assert str(probe("10.0.0.7", "10.0.0.1:80").path) == "vmbr0/eno1 → host"
    assert str(probe("10.0.0.100", "10.9.0.5:80").path) == "vm100i0 → wg0"


def test_ipv6_by_address_and_by_protocol() -> None:
    made = probe("outside", "[fd00::7]:443")
    assert (made.fields[PROTOCOL], made.fields[DADDR6], made.fields[DPORT]) == (0x86DD, (0xFD00 << 112) | 7, 443)
    assert probe("outside", "vm100", protocol="icmpv6").fields[PROTOCOL] == 0x86DD
    assert probe("outside", "vm100", protocol="tcp", family=6).fields[PROTOCOL] == 0x86DD


def test_frames_have_the_nics_mac() -> None:
    made = probe("vm100", "vm101", protocol="udp", dport=53)
    assert shown(made, ETHER_SRC, ETHER_DST) == ["bc:24:11:00:00:01", "bc:24:11:00:00:02"]
    assert shown(probe("vm100", "vm101", mac="02:0:0:0:0:9"), ETHER_SRC) == ["02:00:00:00:00:09"]


@pytest.mark.parametrize(
    ("address", "kind", "frame", "mac"),
    [
        ("255.255.255.255", "broadcast", "broadcast", "ff:ff:ff:ff:ff:ff"),
        ("10.0.0.255", "broadcast", "broadcast", "ff:ff:ff:ff:ff:ff"),
        ("224.0.0.251", "multicast", "multicast", "01:00:5e:00:00:fb"),
        ("10.0.0.101", "unicast", "host", "bc:24:11:00:00:02"),
    ],
)
def test_kinds_of_destinations(address: str, kind: str, frame: str, mac: str) -> None:
    made = probe("vm100", "vm101", destination_address=address, protocol="udp", dport=5353)
    assert shown(made, DADDR_TYPE, PKTTYPE, ETHER_DST) == [kind, frame, mac]


def test_the_hosts_own_address_is_local_and_the_unspecified_one_broadcast() -> None:
    assert shown(probe("vm100", "host", protocol="udp", dport=53), DADDR_TYPE) == ["local"]
    made = probe("vm100", "outside", source_address="0.0.0.0", protocol="udp", dport=67)
    assert shown(made, SADDR4, SADDR_TYPE) == ["0.0.0.0", "broadcast"]


def test_an_established_packet_has_no_syn() -> None:
    made = probe("outside", "vm100:22", ctstate="established")
    assert shown(made, TCP_FLAGS, CT_STATE) == ["ack", "established"]


def test_marks_tags_and_fragments() -> None:
    made = probe("vm100", "outside", protocol="tcp", vlan=5, mark=0x80000000)
    assert (made.fields[ETHER_TYPE], made.fields[VLAN_ID], made.fields[PROTOCOL]) == (0x8100, 5, 0x0800)
    assert [made.fields[bit] for bit in MARK] == [0] * 31 + [1]
    assert DPORT not in probe("vm100", "outside", protocol="tcp", fragment="later").fields


def test_arp_is_not_tracked() -> None:
    made = probe("vm100", "outside", protocol="arp", arp_sender="10.0.0.66")
    assert shown(made, PROTOCOL, ARP_SPA, CT_STATE, PKTTYPE) == ["arp", "10.0.0.66", "untracked", "broadcast"]
    assert L4PROTO not in made.fields
    assert DADDR4 not in made.fields


@pytest.mark.parametrize(
    "options",
    [
        {"protocol": "udp", "icmp_type": "echo-request"},
        {"protocol": "gre", "dport": 5},
        {"protocol": "nonsense"},
        {"protocol": "tcp", "dport": 70000},
        {"protocol": "tcp", "dport": "nonsense"},
        {"protocol": "tcp", "ctstate": "old"},
        {"protocol": "tcp", "tcp_flags": "syn,nonsense"},
        {"protocol": "icmp", "icmp_type": "nonsense"},
        {"source_address": "10.0.0.1", "destination_address": "fd00::1"},
        {"vlan": 5000},
        {"fragment": "third"},
        {"mac": "bc:24"},
    ],
)
def test_an_impossible_packet_is_a_usage_error(options: dict[str, Option]) -> None:
    with pytest.raises(UsageError):
        probe("outside", "vm100", **options)


# --- what cannot be ----------------------------------------------------------------------------------------

CONTRADICTIONS: list[tuple[dict[str, Option], str]] = [
    ({"icmp_type": "echo-request", "dport": 22}, "ICMP has no ports"),
    ({"icmp_type": "8", "tcp_flags": "syn"}, "ICMP has no TCP flags"),
    ({"protocol": "udp", "tcp_flags": "syn"}, "udp has no TCP flags"),
    ({"protocol": "tcp", "icmp_type": "8"}, "tcp has no ICMP type"),
    ({"protocol": "icmp", "sport": 5}, "icmp has no ports"),
    ({"protocol": "tcp", "fragment": "later", "dport": 5}, "later fragment has no ports"),
    ({"fragment": "later", "icmp_type": "8"}, "later fragment has no ICMP type"),
    ({"protocol": "arp", "dport": 5}, "ARP is no IP"),
    ({"ether_type": "88cc", "protocol": "tcp"}, "no protocol tcp"),
    ({"ether_type": "88cc", "fragment": "first"}, "no IP: leave out --fragment"),
    ({"ether_type": "ip6", "family": 4}, "contradict"),
    ({"ether_type": "ip", "arp_sender": "10.0.0.1"}, "--arp-sender is for ARP"),
    ({"protocol": "arp", "family": 6}, "contradict"),
    ({"protocol": "arp", "source_address": "fd00::1"}, "ARP is of IPv4 only"),
    ({"ether_type": "arp", "destination_address": "fd00::1"}, "ARP is of IPv4 only:"),
    ({"arp_sender": "fd00::1"}, "ARP is of IPv4 only: for IPv6"),
    ({"mark": 1 << 32}, "32 bits"),
    ({"source_address": "10.0.0.300"}, "not an address: 10.0.0.300"),
    ({"overrides": (("no such", "1"),)}, "no field 'no such'"),
    ({"overrides": (("iif", "eth0"),)}, "'iif' is not set with --field"),
    ({"overrides": (("l4proto", "udp"),)}, "use --proto"),
    ({"protocol": "tcp", "overrides": (("icmp", "8/0"),)}, "has no 'icmp'"),
    ({"protocol": "icmp", "overrides": (("dport", "80"),)}, "has no 'dport'"),
]


@pytest.mark.parametrize(("options", "message"), CONTRADICTIONS, ids=[message for _, message in CONTRADICTIONS])
def test_a_packet_that_contradicts_itself_is_an_error(options: dict[str, Option], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace(".", r"\.")):
        probe("outside", "vm100", **options)


def test_two_ports_for_one_end_are_an_error() -> None:
    with pytest.raises(UsageError, match="--to names port 22, --dport 23"):
        probe("outside", "vm100:22", dport=23)
    assert shown(probe("outside", "vm100:22", dport=22), DPORT) == ["22"]


@pytest.mark.parametrize("address", [None, "10.9.9.9", "203.0.113.5"])
def test_packets_to_the_host_have_a_local_address(address: str | None) -> None:
    bare = Topology(TOPOLOGY.nics).with_bridges()
    for topology in (TOPOLOGY, bare):
        made = make_probe(PacketSpec("outside", "host", destination_address=address), topology)
        assert shown(made, DADDR_TYPE) == ["local"]


def test_the_host_has_the_address_of_the_interface_towards_the_other_end() -> None:
    assert shown(probe("vm100", "host"), DADDR4) == ["10.0.0.1"]
    assert shown(probe("wg0", "host"), DADDR4) == ["10.9.0.1"]
    assert shown(probe("host", "wg0"), SADDR4) == ["10.9.0.1"]
