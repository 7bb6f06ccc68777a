"""Packets are put together as scapy puts them together."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.sctp import SCTP

from tests.kernel.cases import CASES
from tests.kernel.network.plan import make_plan
from tests.kernel.packets import (
    ACK,
    LARGE_FRAGMENT,
    SYN,
    Arp,
    Numbered,
    Packet,
    Probe,
    Proto,
    backwards,
    describe,
    encode,
    read_mark,
)

if TYPE_CHECKING:
    from tests.kernel.network.plan import Plan


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(CASES / "guest-rules", "pve1", "10.0.0.0/24")


def frame(packet: Packet, plan: Plan) -> Any:  # noqa: ANN401 - scapy's classes are made at run time
    return Ether(encode(packet, Numbered(plan, 7, 42)).sent[0].data)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("protocol", "layer"), [(Proto.TCP, TCP), (Proto.UDP, UDP), (Proto.SCTP, SCTP)], ids=["tcp", "udp", "sctp"]
)
def test_headers_and_checksums(family: int, protocol: int, layer: type, plan: Plan) -> None:
    packet = frame(Packet("outside", "vm100", family, protocol, sport=1234, dport=80), plan)
    assert (packet[layer].sport, packet[layer].dport) == (1234, 80)
    again = Ether(bytes(packet))
    for inner in (again[IP] if family == 4 else again[IPv6], again[layer]):
        if hasattr(inner, "chksum"):
            del inner.chksum
    assert bytes(again) == bytes(packet)


def test_icmp(plan: Plan) -> None:
    packet = frame(Packet("outside", "vm100", 4, Proto.ICMP, icmp_type=8), plan)
    assert (packet[ICMP].type, packet[ICMP].code) == (8, 0)
    whole = bytes(packet)
    del packet[ICMP].chksum
    assert bytes(packet) == whole


def test_icmpv6(plan: Plan) -> None:
    packet = frame(Packet("outside", "vm100", 6, Proto.ICMPV6, icmp_type=128), plan)
    whole = bytes(packet)
    del packet[ICMPv6EchoRequest].cksum
    assert bytes(packet) == whole


def test_neighbour_solicitation_asks_for_its_destination(plan: Plan) -> None:
    packet = frame(Packet("outside", "vm100", 6, Proto.ICMPV6, icmp_type=135), plan)
    assert packet[IPv6].hlim == 255
    assert packet[ICMPv6ND_NS].tgt == str(plan.endpoint("vm100").v6)


def test_arp(plan: Plan) -> None:
    packet = frame(Packet("vm100", "outside", arp=Arp(sender=IPv4Address("10.9.9.9"))), plan)
    assert (packet.dst, packet[ARP].op, packet[ARP].psrc) == ("ff:ff:ff:ff:ff:ff", 1, "10.9.9.9")
    assert packet[ARP].hwsrc == plan.endpoint("vm100").mac


def test_a_tag(plan: Plan) -> None:
    packet = frame(Packet("vm100", "outside", vlan=7), plan)
    assert packet[Dot1Q].vlan == 7
    assert packet[IP].src == str(plan.endpoint("vm100").v4)


def test_multicast_goes_to_its_mac_address(plan: Plan) -> None:
    four = frame(Packet("vm100", "outside", destination=IPv4Address("239.129.2.3")), plan)
    six = frame(Packet("vm100", "outside", 6, destination=IPv6Address("ff02::1:ff00:1")), plan)
    assert (four.dst, six.dst) == ("01:00:5e:01:02:03", "33:33:ff:00:00:01")


@pytest.mark.parametrize("family", [4, 6])
def test_fragments_belong_together(family: int, plan: Plan) -> None:
    first, second = (
        Ether(sent.data)
        for sent in encode(
            Packet("outside", "vm100", family, first_fragment=LARGE_FRAGMENT), Numbered(plan, 7, 42)
        ).sent
    )
    if family == 4:
        assert (first[IP].id, first[IP].flags.MF, first[IP].frag) == (second[IP].id, True, 0)
        assert (second[IP].flags.MF, second[IP].frag * 8) == (False, len(first[IP].payload))
    assert read_mark(bytes(first)) == read_mark(bytes(second)) == (7, 42, 0)


def test_a_wrong_checksum_is_wrong(plan: Plan) -> None:
    right, wrong = (frame(Packet("outside", "vm100", damage=damage), plan) for damage in (None, "l4"))
    assert right[TCP].chksum != wrong[TCP].chksum


def test_a_packet_from_the_host_is_not_a_frame(plan: Plan) -> None:
    (sent,) = encode(Packet("host", "vm100"), Numbered(plan, 7, 42)).sent
    assert sent.namespace is None
    assert IP(sent.data).dst == str(sent.destination) == str(plan.endpoint("vm100").v4)


def test_an_answer_belongs_to_the_connection(plan: Plan) -> None:
    first = Packet("outside", "vm100", dport=80, acknowledgement=0)
    answer = backwards(first, sequence=2048, acknowledgement=1)
    opened, answered = frame(first, plan)[TCP], frame(answer, plan)[TCP]
    assert (answered.sport, answered.dport) == (opened.dport, opened.sport)
    assert answered.ack == opened.seq + 1
    assert (int(opened.flags), int(answered.flags)) == (SYN, SYN | ACK)


def test_a_probe_is_described_by_its_unusual_fields() -> None:
    probe = Probe((Packet("outside", "vm100", dport=80, vlan=7),), "why")
    assert describe(probe) == "outside → vm100 IPv4 tcp dport=80 vlan=7  [why]"
