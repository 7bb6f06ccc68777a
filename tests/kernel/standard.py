"""Probes that every configuration gets: the protocols, states and tricks that no single rule speaks of."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

from .generate import SPOOFED_MAC
from .network.plan import HOST, OUTSIDE, ROUTER, Endpoint, Plan
from .packets import (
    ACK,
    FIN,
    LARGE_FRAGMENT,
    PSH,
    RST,
    SMALL_FRAGMENT,
    SYN,
    URG,
    Arp,
    Packet,
    Probe,
    Proto,
    backwards,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

FAMILIES = (4, 6)
ETHERTYPES = (0x88CC, 0x8863, 0x8137, 0x0842, 0x86DE)
"""LLDP, PPPoE discovery, IPX, Wake-on-LAN, and one that is not assigned."""

FLAG_COMBINATIONS = (0, FIN, RST, ACK, SYN | RST, SYN | FIN, FIN | PSH | URG, SYN | ACK, FIN | ACK, SYN | PSH)


def standard(plan: Plan) -> list[Probe]:
    """Return the probes for a network, without repetitions."""
    probes: dict[tuple[Packet, ...], Probe] = {}
    for probe in _all(plan):
        probes.setdefault(probe.packets, probe)
    return list(probes.values())


def _all(plan: Plan) -> Iterator[Probe]:
    filtered = [one.name for one in plan.endpoints if one.filtered]
    unfiltered = [one.name for one in plan.endpoints if not one.filtered and one.name.startswith(("vm", "ct"))]
    for name in filtered:
        others = [OUTSIDE, HOST, ROUTER, *(one for one in (*filtered, *unfiltered) if one != name)][:6]
        for other in others:
            yield from basic(name, other)
            yield from basic(other, name)
        for sender, receiver in ((OUTSIDE, name), (name, OUTSIDE)):
            yield from protocols(sender, receiver)
            yield from states(sender, receiver)
            yield from neighbours(sender, receiver)
            yield from link(plan.endpoint(name), sender, receiver)
        yield from forged(plan.endpoint(name))
    for name in (*unfiltered[:1], OUTSIDE, ROUTER):
        for sender, receiver in ((name, HOST), (HOST, name)):
            yield from basic(sender, receiver)
        yield from states(name, HOST)
    yield from protocols(OUTSIDE, HOST)
    yield from neighbours(OUTSIDE, HOST)
    for name in unfiltered[:1]:
        for sender, receiver in ((OUTSIDE, name), (name, ROUTER), (ROUTER, name)):
            yield from basic(sender, receiver)
            yield from states(sender, receiver)


def basic(sender: str, receiver: str) -> Iterator[Probe]:
    """Yield the packets of everyday traffic."""
    for family in FAMILIES:
        for port in (22, 80, 4321):
            yield Probe((Packet(sender, receiver, family, Proto.TCP, dport=port),), "basic")
        for port in (53, 4321):
            yield Probe((Packet(sender, receiver, family, Proto.UDP, dport=port),), "basic")
        yield Probe((_icmp(sender, receiver, family, 8 if family == 4 else 128),), "basic")


def _icmp(sender: str, receiver: str, family: int, kind: int, code: int = 0) -> Packet:
    protocol = Proto.ICMP if family == 4 else Proto.ICMPV6
    return Packet(sender, receiver, family, protocol, icmp_type=kind, icmp_code=code)


def protocols(sender: str, receiver: str) -> Iterator[Probe]:
    """Yield packets of rarer protocols, of every ICMP type in use, odd TCP flags, fragments and DHCP."""
    for family in FAMILIES:
        for protocol in (Proto.IGMP, Proto.DCCP, Proto.GRE, Proto.SCTP, Proto.UDPLITE, 50, 112):
            yield Probe((Packet(sender, receiver, family, protocol, dport=22),), "protocol")
        kinds = (0, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 17, 18) if family == 4 else (1, 2, 3, 4, 128, 129, 144)
        for kind in kinds:
            yield Probe((_icmp(sender, receiver, family, kind),), "icmp type")
        for flags in FLAG_COMBINATIONS:
            yield Probe((Packet(sender, receiver, family, Proto.TCP, dport=22, flags=flags),), "tcp flags")
        for protocol in (Proto.TCP, Proto.UDP):
            for size in (LARGE_FRAGMENT, SMALL_FRAGMENT):
                yield Probe((Packet(sender, receiver, family, protocol, dport=22, first_fragment=size),), "fragments")
            yield Probe((Packet(sender, receiver, family, protocol, dport=22, damage="l4"),), "checksum")
    any4, all4 = IPv4Address("0.0.0.0"), IPv4Address("255.255.255.255")
    routers, link_local = IPv6Address("ff02::1:2"), IPv6Address("fe80::1234")
    for ports in ((68, 67), (67, 68)):
        ask = Packet(sender, receiver, 4, Proto.UDP, any4, all4, *ports)
        yield Probe((ask,), "dhcp")
        yield Probe((Packet(sender, receiver, 4, Proto.UDP, None, None, *ports),), "dhcp")
    for ports in ((546, 547), (547, 546)):
        yield Probe((Packet(sender, receiver, 6, Proto.UDP, link_local, routers, *ports),), "dhcpv6")
        yield Probe((Packet(sender, receiver, 6, Proto.UDP, None, None, *ports),), "dhcpv6")
    for group in ("224.0.0.251", "239.255.255.250", "255.255.255.255", "ff02::fb", "ff05::1:3"):
        to = ip_address(group)
        yield Probe((Packet(sender, receiver, to.version, Proto.UDP, None, to, dport=5353),), "multicast")
    yield Probe((Packet(sender, receiver, 4, Proto.IGMP, None, IPv4Address("224.0.0.22")),), "igmp")


def neighbours(sender: str, receiver: str) -> Iterator[Probe]:
    """Yield neighbour and router discovery (RFC 4861), to the node itself and to its multicast groups."""
    for kind in (133, 134, 135, 136, 137):
        packet = _icmp(sender, receiver, 6, kind)
        yield Probe((packet,), "ndp")
    for kind, group in ((133, "ff02::2"), (134, "ff02::1"), (135, "ff02::1:ff00:1"), (136, "ff02::1")):
        packet = Packet(sender, receiver, 6, Proto.ICMPV6, None, IPv6Address(group), icmp_type=kind)
        yield Probe((packet,), "ndp")


def states(sender: str, receiver: str) -> Iterator[Probe]:
    """Yield answers, later packets of a connection, errors about one, and packets of no connection.

    No rule accepts these packets for themselves: their verdict depends on the packet before.
    """
    for family in FAMILIES:
        for protocol, port in ((Proto.TCP, 22), (Proto.UDP, 53), (Proto.TCP, 4321), (Proto.UDP, 4321)):
            opened = Packet(receiver, sender, family, protocol, dport=port, acknowledgement=0)
            yield Probe((opened, _answer(opened)), "answer")
            first = Packet(sender, receiver, family, protocol, dport=port, acknowledgement=0)
            later = Packet(
                sender,
                receiver,
                family,
                protocol,
                dport=port,
                flags=ACK | PSH,
                sequence=1,
                acknowledgement=2049,
            )
            yield Probe((first, _answer(first), later), "established")
            kind, code = (3, 3) if family == 4 else (1, 4)
            about = Packet(
                sender,
                receiver,
                family,
                Proto.ICMP if family == 4 else Proto.ICMPV6,
                icmp_type=kind,
                icmp_code=code,
                quoted=opened,
            )
            yield Probe((opened, about), "related")
        echo = _icmp(receiver, sender, family, 8 if family == 4 else 128)
        yield Probe((echo, backwards(echo)), "answer")


def _answer(packet: Packet) -> Packet:
    """Return the answer to a connection's first packet, with the sequence numbers it needs."""
    return backwards(packet, sequence=2048, acknowledgement=1)


def link(nic: Endpoint, sender: str, receiver: str) -> Iterator[Probe]:
    """Yield frames without IP, tagged ones, and ARP with true and with borrowed sender addresses."""
    for ethertype in ETHERTYPES:
        yield Probe((Packet(sender, receiver, ethertype=ethertype),), "ethertype")
    for operation in (1, 2):
        yield Probe((Packet(sender, receiver, arp=Arp(operation)),), "arp")
        borrowed = Arp(operation, sender=IPv4Address(int(nic.v4) ^ 0x55))
        yield Probe((Packet(sender, receiver, arp=borrowed),), "arp, borrowed address")
        nobody = Arp(operation, sender=IPv4Address("0.0.0.0"))
        yield Probe((Packet(sender, receiver, arp=nobody),), "arp probe")
    if nic.bridge is not None and "." not in nic.bridge and not _tagged(nic):
        for family in FAMILIES:
            for port in (22, 4321):
                yield Probe((Packet(sender, receiver, family, Proto.TCP, dport=port, vlan=7),), "vlan")
        yield Probe((Packet(sender, receiver, arp=Arp(), vlan=7),), "vlan arp")
        yield Probe((Packet(sender, receiver, ethertype=0x88CC, vlan=7),), "vlan ethertype")


def _tagged(nic: Endpoint) -> bool:
    """Whether the NIC is on a VLAN of its bridge, where another tag would be the second one."""
    name, _, tag = (nic.bridge or "").rpartition("v")
    return bool(name) and tag.isdigit()


def forged(nic: Endpoint) -> Iterator[Probe]:
    """Yield packets that a guest must not send, and packets that must not reach it."""
    for family in FAMILIES:
        strange = ip_address("203.0.113.66" if family == 4 else "2001:db8:dead::66")
        for protocol in (Proto.TCP, Proto.UDP):
            yield Probe((Packet(nic.name, OUTSIDE, family, protocol, dport=80, source=strange),), "spoofed ip")
            yield Probe(
                (Packet(nic.name, OUTSIDE, family, protocol, dport=80, source_mac=SPOOFED_MAC),),
                "spoofed mac",
            )
            yield Probe((Packet(nic.name, HOST, family, protocol, dport=22, source=strange),), "spoofed ip")
            yield Probe(
                (Packet(OUTSIDE, nic.name, family, protocol, dport=22, source_mac=SPOOFED_MAC),),
                "spoofed mac",
            )
    yield Probe((Packet(nic.name, OUTSIDE, arp=Arp(), source_mac=SPOOFED_MAC),), "spoofed mac")
    yield Probe((Packet(nic.name, OUTSIDE, ethertype=0x88CC, source_mac=SPOOFED_MAC),), "spoofed mac")
    for source in ("255.255.255.255", "224.0.0.5", "0.0.0.0", "0.0.0.1"):
        smurf = Packet(OUTSIDE, nic.name, 4, Proto.UDP, IPv4Address(source), dport=22)
        yield Probe((smurf,), "smurf")
    yield Probe((Packet(nic.name, OUTSIDE, damage="ip", dport=80),), "ip checksum")
    link_local = IPv6Address("fe80::be24:11ff:fe00:66")
    yield Probe((Packet(nic.name, OUTSIDE, 6, Proto.UDP, link_local, dport=80),), "spoofed link-local")
