"""Packets that the host's routing drops before any rule: their addresses cannot belong to a host.

Sources: ip_route_input_slow and fib_validate_source (net/ipv4/route.c, fib_frontend.c), ip6_rcv_core
and ip6_forward (net/ipv6/ip6_input.c, ip6_output.c) of Linux 6.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.verify.model import (
    DADDR4,
    DADDR6,
    IIF,
    IS_BRIDGED,
    SADDR4,
    SADDR6,
    SADDR_TYPE,
    Family,
    Point,
    interface_number,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pvefw_nft.verify.model import Field
    from pvefw_nft.verify.network.path import Stage

_NOBODYS = ("multicast", "local")
_EVERYBODY = 0xFFFFFFFF


def martian(stage: Stage, packet: Mapping[Field, int]) -> str | None:
    """Return why routing drops a packet before this stage, or None if it does not.

    Only packets that are routed or delivered to the host are checked. The broadcast address of one of the host's
    networks is not, since that depends on rp_filter: without it fib_validate_source takes any sender that is not the
    host itself.
    """
    if stage.family is Family.BRIDGE or stage.point not in (Point.INPUT, Point.FORWARD):
        return None
    if packet.get(IS_BRIDGED) or packet.get(IIF) == interface_number("lo") or SADDR_TYPE not in packet:
        return None
    kind = SADDR_TYPE.names[packet[SADDR_TYPE]]
    return _martian6(stage, packet, kind) if SADDR6 in packet else _martian4(packet, kind)


def _martian4(packet: Mapping[Field, int], kind: str) -> str | None:
    """IPv4: nothing comes from 0.0.0.0 but to everybody, as DHCP clients ask, nor from groups or the host itself."""
    source = packet[SADDR4]
    if source == 0 and packet[DADDR4] != _EVERYBODY:
        return "the host's routing takes no packets from 0.0.0.0"
    if source == _EVERYBODY or kind in _NOBODYS:
        return f"the host's routing takes no packets from a {kind} address"
    return None


def _martian6(stage: Stage, packet: Mapping[Field, int], kind: str) -> str | None:
    """IPv6: nothing comes from a multicast address or goes to one of no scope, and link-local ones stay on the link."""
    if kind == "multicast":
        return "the host's IPv6 takes no packets from a multicast address"
    if packet[DADDR6] >> 120 == 0xFF and packet[DADDR6] >> 112 & 0xF in (0, 1):
        return "the host's IPv6 takes no packets to multicast addresses without a scope beyond an interface"
    if stage.point is Point.FORWARD and (packet[SADDR6] >> 118 == 0xFE80 >> 6 or packet[SADDR6] < 2):
        return "the host's IPv6 forwards nothing from a link-local address"
    return None
