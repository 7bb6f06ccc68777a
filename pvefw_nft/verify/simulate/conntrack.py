"""The state of a packet that belongs to no known connection.

Sources: nf_conntrack_proto_tcp.c (tcp_valid_flags, and the state table's row for "no connection", with
nf_conntrack_tcp_loose at its default of 1), nf_conntrack_proto_icmp.c and _icmpv6.c, and for frames without IP
nf_ct_bridge_pre (net/bridge/netfilter/nf_conntrack_bridge.c) of Linux 6.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.verify.model import ICMP, ICMP6, IPV4, IPV6, L4PROTO, PROTOCOL, TCP_FLAGS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pvefw_nft.verify.model import Field

_FIN, _SYN, _RST, _PSH, _ACK, _URG = 1, 2, 4, 8, 16, 32
_REAL_COMBINATIONS = frozenset(
    (_SYN, _SYN | _URG, _SYN | _ACK, _RST, _RST | _ACK, _FIN | _ACK, _FIN | _ACK | _URG, _ACK, _ACK | _URG)
)
"""The flags that a TCP packet may have, PSH and the congestion bits aside."""
ICMP_REQUESTS = frozenset((8, 13, 15, 17))
ICMP6_REQUESTS = frozenset((128, 139))
ICMP6_UNTRACKED = frozenset((130, 131, 132, 133, 134, 135, 136, 143))
"""Multicast listener and neighbour discovery messages, which are never tracked."""


def first_state(packet: Mapping[Field, int]) -> str:
    """Return the state of a packet without a connection: ``new``, ``invalid`` or ``untracked``."""
    protocol = packet.get(PROTOCOL)
    if protocol not in (IPV4, IPV6):
        return "untracked"
    transport = packet.get(L4PROTO)
    if transport == 6 and TCP_FLAGS in packet:
        return _tcp_state(packet[TCP_FLAGS])
    if transport == 1 and ICMP in packet:
        return "new" if packet[ICMP] >> 8 in ICMP_REQUESTS else "invalid"
    if transport == 58 and ICMP6 in packet:
        kind = packet[ICMP6] >> 8
        if kind in ICMP6_UNTRACKED:
            return "untracked"
        return "new" if kind in ICMP6_REQUESTS else "invalid"
    return "new"


def tcp_opens(flags: int) -> bool:
    """Whether a TCP packet opens a connection: a SYN."""
    relevant = flags & (_FIN | _SYN | _RST | _ACK | _URG)
    return relevant in _REAL_COMBINATIONS and bool(relevant & _SYN) and not relevant & _ACK


def tcp_picked_up(flags: int) -> bool:
    """Whether a TCP packet of no known connection is taken for one of a connection under way: an ACK."""
    relevant = flags & (_FIN | _SYN | _RST | _ACK | _URG)
    return relevant in _REAL_COMBINATIONS and not relevant & (_SYN | _RST | _FIN)


def _tcp_state(flags: int) -> str:
    """A SYN opens a connection, and an ACK is taken for one picked up in the middle; nothing else is."""
    return "new" if tcp_opens(flags) or tcp_picked_up(flags) else "invalid"
