"""Keys: the one property of a packet that a match compares with values, and those values.

Most matches are of this kind: the key of ``Ports(DESTINATION, 22)`` in a rule for tcp is ``tcp dport``, and its value
is 22. Rules whose matches have the same key can be merged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pvefw_nft.backends.nft.syntax.expressions import ct, meta, payload
from pvefw_nft.backends.nft.syntax.statements import match as compare
from pvefw_nft.errors import InternalError
from pvefw_nft.ir.nodes import (
    Address,
    AddressRange,
    ArpSender,
    ConnState,
    Direction,
    Drop,
    EtherType,
    Family,
    IcmpType,
    Interface,
    Jump,
    NicPort,
    Ports,
    ProtocolMatch,
    Side,
    TcpFlags,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pvefw_nft.backends.nft.intervals import Interval
    from pvefw_nft.backends.nft.syntax.expressions import Selector
    from pvefw_nft.backends.nft.syntax.statements import Statement
    from pvefw_nft.ir.nodes import Match, Rule

_TRANSPORT = {6: "tcp", 17: "udp", 33: "dccp", 132: "sctp", 136: "udplite"}

ADDRESS_FIELDS = {
    (4, Side.SOURCE): payload("ip", "saddr"),
    (4, Side.DESTINATION): payload("ip", "daddr"),
    (6, Side.SOURCE): payload("ip6", "saddr"),
    (6, Side.DESTINATION): payload("ip6", "daddr"),
}
"""The field of an IP header for an address, by IP version and side."""


@dataclass(frozen=True, slots=True)
class Key:
    """The operand of a match: its families, the tests that come first, and the selector."""

    left: Selector
    families: int = Family.BOTH
    first: tuple[Statement, ...] = ()


_ADDRESS_KEYS = {
    (version, side): Key(field, Family.V4 if version == 4 else Family.V6)
    for (version, side), field in ADDRESS_FIELDS.items()
}
_PORT_KEYS = {
    (protocol, side): Key(payload(protocol, field))
    for protocol in (*_TRANSPORT.values(), "th")
    for side, field in ((Side.SOURCE, "sport"), (Side.DESTINATION, "dport"))
}
_ICMP_KEYS = {
    4: Key(payload("icmp", "type"), Family.V4),
    6: Key(payload("icmpv6", "type"), Family.V6),
}
_INTERFACE_KEYS = {Direction.IN: Key(meta("iifname")), Direction.OUT: Key(meta("oifname"))}
_PROTOCOL_KEY = Key(meta("l4proto"))
_STATE_KEY = Key(ct("state"))
_OUTER_TYPE_KEY = Key(payload("ether", "type"))
_INNER_TYPE_KEY = Key(meta("protocol"))
_ARP_SENDER_KEY = Key(
    payload("arp", "saddr ip"),
    first=(
        compare(payload("arp", "hlen"), 6),
        compare(payload("arp", "plen"), 4),
        compare(payload("arp", "ptype"), 0x0800),  # as ebtables does (ebt_arp.c)
    ),
)


def key_of(match: Match, rule: Rule, *, any_transport: bool = False) -> Key | None:
    """Return the operand of a match, or None for matches that are not of this kind.

    ``any_transport``: the protocol of the rule is one of several, so its ports are read from any header.
    """
    match match:
        case Address(side, prefixes):
            return _ADDRESS_KEYS[prefixes[0].version, side]
        case ProtocolMatch():
            return None if not any_transport and _implied(match, rule) else _PROTOCOL_KEY
        case Ports(side):
            return _PORT_KEYS["th" if any_transport else _transport(rule), side]
        case IcmpType(version, int(), None):
            # a code would need a second test, so a type with a code is no key
            return _ICMP_KEYS[version]
        case AddressRange(side, version):
            return _ADDRESS_KEYS[version, side]
        case Interface(direction):
            return _INTERFACE_KEYS[direction]
        case NicPort():
            return _INTERFACE_KEYS[Direction.IN]
        case ConnState():
            return _STATE_KEY
        case EtherType():
            # A permission tests the outer type, so that a tag never opens anything; a restriction looks behind the tag,
            # so that a tag never evades it.
            restricts = isinstance(rule.action, Jump | Drop) or any(isinstance(m, ArpSender) for m in rule.matches)
            return _INNER_TYPE_KEY if restricts else _OUTER_TYPE_KEY
        case ArpSender():
            return _ARP_SENDER_KEY
        case _:
            return None


def _implied(match: ProtocolMatch, rule: Rule) -> bool:
    """Tell whether another match of the rule asks for a header of this protocol, so that nft asks for it too."""
    return any(
        (isinstance(other, Ports) and match.protocol.number in _TRANSPORT) or isinstance(other, IcmpType | TcpFlags)
        for other in rule.matches
    )


def _transport(rule: Rule) -> str:
    for match in rule.matches:
        if isinstance(match, ProtocolMatch) and match.protocol.number in _TRANSPORT:
            return _TRANSPORT[match.protocol.number]
    raise InternalError("ports without a protocol that has them")


def version_of(match: Match) -> int:
    """Return the IP version of a match of addresses."""
    match match:
        case Address(_, prefixes):
            return prefixes[0].version
        case AddressRange(_, version):
            return version
        case ArpSender():
            return 4
        case _:
            raise InternalError(f"{type(match).__name__} has no IP version")


def prefix_lengths(matches: Sequence[Match]) -> list[int]:
    """Return the prefix lengths of the networks that some matches name."""
    return [prefix.length for match in matches if isinstance(match, Address) for prefix in match.prefixes]


def names_of(match: Match) -> tuple[str, ...]:
    """Return the names that a match of names asks for; none for any other match."""
    match match:
        case Interface(_, name):
            return (interface_name(name),)
        case NicPort(_, name):
            return (name,)
        case ConnState(states):
            return tuple(state.value.lower() for state in states)
        case _:
            return ()


def intervals_of(match: Match) -> list[Interval]:
    """Return the numbers that a match of numbers or addresses asks for; none for any other match."""
    match match:
        case Ports(_, ranges):
            return [(ports.first, ports.last) for ports in ranges]
        case Address(_, prefixes):
            return [(prefix.address, prefix.last) for prefix in prefixes]
        case AddressRange(_, _, first, last):
            return [(first, last)]
        case ProtocolMatch(protocol):
            return [(protocol.number, protocol.number)]
        case IcmpType(_, int(number), None):
            return [(number, number)]
        case EtherType(number):
            return [(number, number)]
        case ArpSender(prefix):
            return [(prefix.address, prefix.last)]
        case _:
            return []


def interface_name(name: str) -> str:
    """Return an interface name in nft's spelling: iptables ends a pattern with ``+``, nft with ``*``."""
    return f"{name[:-1]}*" if name.endswith("+") else name
