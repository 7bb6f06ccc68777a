"""Packets that compare shows as examples, as probes of the lab."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from itertools import product
from typing import TYPE_CHECKING

from pvefw_nft.verify import model as m
from pvefw_nft.verify.network.path import HostEnd, NicEnd, PortEnd, RoutedEnd
from pvefw_nft.verify.simulate.conntrack import first_state

from .network.plan import HOST, OUTSIDE, ROUTER, WAN_PORT
from .packets import SYN, Arp, Packet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pvefw_nft.verify.network.path import End
    from pvefw_nft.verify.prove.report import Counterexample

    from .network.plan import Plan


def as_packets(counterexample: Counterexample, plan: Plan) -> Iterator[Packet]:
    """Yield the packets of the lab that are like an example, the most like it first; none if the lab has no such.

    An example leaves open what no rule asks for, and has something there that may not go together with the network: an
    address of the host's, a MAC address. The later packets have the endpoints' own.
    """
    fields = counterexample.packet
    sender, receiver = _name(counterexample.before.source, plan), _name(counterexample.before.destination, plan)
    if sender == receiver or sender is None or receiver is None or fields.get(m.FRAGMENT) or fields.get(m.VLAN_ID) == 0:
        return
    if fields.get(m.L4PROTO) == (58 if fields[m.PROTOCOL] == m.IPV4 else 1):
        return  # ICMP of the other family
    if fields[m.PROTOCOL] in (m.IPV4, m.IPV6) and fields[m.CT_STATE] != m.CT_STATES.index(first_state(fields)):
        return  # it needs a connection
    packet = Packet(sender, receiver, vlan=fields.get(m.VLAN_ID))
    match fields[m.PROTOCOL]:
        case m.IPV4 | m.IPV6:
            packet = _ip(packet, fields)
        case m.ARP:
            packet = replace(packet, arp=Arp(fields[m.ARP_OP], IPv4Address(fields[m.ARP_SPA])))
        case other:
            packet = replace(packet, ethertype=other)
    macs = (None, f"{fields[m.ETHER_SRC]:012x}") if sender != HOST else (None,)
    sources, destinations = (packet.source, None), (packet.destination, None)
    if HOST in (sender, receiver) or ROUTER in (sender, receiver):
        destinations = (None, None)  # the address decides about the way
    for destination, source, mac in dict.fromkeys(product(destinations, sources, macs)):
        written = ":".join(mac[at : at + 2] for at in range(0, 12, 2)) if mac is not None else None
        yield replace(packet, source=source, destination=destination, source_mac=written)


def _name(end: End, plan: Plan) -> str | None:
    """Return the lab's name of an end; None for an interface or bridge that only rules speak of."""
    match end:
        case HostEnd():
            return HOST
        case NicEnd(nic):
            return next((one.name for one in plan.endpoints if one.port == nic.interface), None)
        case PortEnd(bridge, _):
            return f"{OUTSIDE}@{bridge}" if any(one.name == bridge for one in plan.bridges) else None
        case RoutedEnd(interface):
            return ROUTER if interface == WAN_PORT else None


def _ip(packet: Packet, fields: Mapping[m.Field, int]) -> Packet:
    v4 = fields[m.PROTOCOL] == m.IPV4
    source, destination = (m.SADDR4, m.DADDR4) if v4 else (m.SADDR6, m.DADDR6)
    made: type[IPv4Address | IPv6Address] = IPv4Address if v4 else IPv6Address
    icmp = fields.get(m.ICMP if v4 else m.ICMP6)
    return replace(
        packet,
        family=4 if v4 else 6,
        protocol=fields[m.L4PROTO],
        source=made(fields[source]),
        destination=made(fields[destination]),
        sport=fields.get(m.SPORT),
        dport=fields.get(m.DPORT),
        flags=fields.get(m.TCP_FLAGS, SYN),
        icmp_type=icmp >> 8 if icmp is not None else None,
        icmp_code=icmp & 0xFF if icmp is not None else 0,
    )
