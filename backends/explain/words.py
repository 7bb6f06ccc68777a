"""Matches, verdicts and sets of the IR in English words."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, assert_never

from pvefw_nft.ir.nodes import (
    AcceptMark,
    Address,
    AddressRange,
    AddressType,
    AdvertisedOutside,
    ArpSender,
    ArpSenderMac,
    Bridged,
    ConnectionsOver,
    ConnState,
    EtherType,
    Family,
    FilteredPort,
    Fragment,
    IcmpType,
    InSet,
    Interface,
    NicPort,
    NicRateOver,
    OtherEtherType,
    Ports,
    ProtocolMatch,
    RateOver,
    Side,
    SourceMac,
    TagOfVlanZero,
    TcpFlag,
    TcpFlags,
    ThirdTag,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pvefw_nft.ir.nodes import AddressSet, Match, Rule, SetKey

_SIDES = {Side.SOURCE: "from", Side.DESTINATION: "to"}
_PROTOCOLS = {"tcp": "TCP", "udp": "UDP", "sctp": "SCTP", "icmp": "ICMP", "icmpv6": "ICMPv6", "igmp": "IGMP"}
_FAMILIES = {Family.V4: "IPv4", Family.V6: "IPv6"}


def packets(rule: Rule) -> str:
    """Return the packets that a rule matches: ``TCP from the set admins to port 22``, or ``everything``."""
    words = [_match(match) for match in _in_order(rule.matches)]
    if not any(isinstance(match, ProtocolMatch | EtherType | OtherEtherType) for match in rule.matches):
        # addresses and types of one family name it already
        family = _FAMILIES.get(rule.families)
        named = any(isinstance(match, Address | AddressRange | IcmpType) for match in rule.matches)
        words.insert(0, family if family is not None and not named else "everything" if not words else "packets")
    return " ".join(words)


def _in_order(matches: Sequence[Match]) -> list[Match]:
    """Return matches in the order of a sentence: packets, source, destination."""
    return sorted(
        matches, key=lambda match: (not isinstance(match, ProtocolMatch), getattr(match, "side", None) is None)
    )


_FrameMatch: TypeAlias = (
    "EtherType | OtherEtherType | ArpSender | ArpSenderMac | FilteredPort | TagOfVlanZero | ThirdTag"
)
_Excess: TypeAlias = "RateOver | NicRateOver | ConnectionsOver"


def _match(match: Match) -> str:  # noqa: C901 - one case for each kind of match
    match match:
        case Interface(direction, name):
            return f"{'arriving' if direction.value == 'IN' else 'leaving'} on {name}"
        case Bridged(direction):
            return f"{'to' if direction.value == 'IN' else 'from'} a guest"
        case NicPort(direction, name):
            return f"{'to' if direction.value == 'IN' else 'from'} the NIC {name}"
        case Address(side, prefixes):
            return f"{_SIDES[side]} {either([prefix.canonical for prefix in prefixes])}"
        case AddressRange(side, _, _, _, spelling):
            return f"{_SIDES[side]} {spelling}"
        case InSet(side, key, negated):
            return f"{_SIDES[side]} {'any address outside ' if negated else ''}the set {set_name(key)}"
        case AddressType(side, kind):
            return f"{_SIDES[side]} a {kind.value.lower()} address"
        case ProtocolMatch(protocol):
            return _PROTOCOLS.get(protocol.spelling, f"protocol {protocol.spelling}")
        case IcmpType(_, _, _, spelling):
            return f"of type {spelling}"
        case Ports(side, ranges):
            texts = [ports.spelling.replace(":", "-") for ports in ranges]
            many = len(texts) > 1 or "-" in texts[0]
            return f"{_SIDES[side]} port{'s' if many else ''} {either(texts)}"
        case TcpFlags(mask, flags, negated):
            return f"with {'other than ' if negated else ''}{_flags(flags)} set of {_flags(mask)}"
        case ConnState(states):
            return f"in state {either([state.value.lower() for state in states])}"
        case AcceptMark():
            return "that were accepted before"
        case SourceMac(_, spelling, negated):
            return f"sent {'by any MAC address but' if negated else 'by'} {spelling}"
        case AdvertisedOutside(key):
            return f"that advertise an address outside the set {set_name(key)}"
        case Fragment():
            return "that are fragments"
        case RateOver() | NicRateOver() | ConnectionsOver():
            return _excess(match)
        case _:
            return _frame_match(match)


def _excess(match: _Excess) -> str:
    """Return the words for a match of packets beyond a limit."""
    match match:
        case RateOver(rate, burst, _, _):
            return f"beyond {rate} a second and a burst of {burst} from one source"
        case NicRateOver(rate):
            return f"beyond {rate} a second"
        case ConnectionsOver(number):
            return f"beyond {number} open connections"
        case _:
            assert_never(match)


def _frame_match(match: _FrameMatch) -> str:
    """Return the words for a match of the link layer."""
    match match:
        case EtherType(_, spelling):
            return f"{spelling} frames"
        case OtherEtherType(numbers):
            return f"frames that are none of {', '.join(f'0x{number:04x}' for number in numbers)}"
        case ArpSender(prefix):
            return f"from {prefix.canonical}"
        case ArpSenderMac(_, spelling):
            return f"that name a sender other than {spelling}"
        case FilteredPort(qinq):
            return f"at firewall bridges{' of guests with QinQ' if qinq else ''}"
        case TagOfVlanZero(number):
            return f"whose VLAN tag {number} names VLAN 0"
        case ThirdTag():
            return "with a third VLAN tag"
        case _:
            assert_never(match)


def _flags(flags: TcpFlag) -> str:
    return ",".join(flag.name for flag in TcpFlag if flag in flags and flag.name) or "none"


def set_name(key: SetKey) -> str:
    """Return a set's name, with the guest it belongs to, unless it is the cluster's."""
    return key.name if key.scope == 0 else f"{key.name} of {key.scope}"


def set_line(made: AddressSet) -> str:
    """Return a set with its members: ``admins: 10.8.0.0/24, 10.9.0.1, but not 10.8.0.9``."""
    members = ", ".join(entry.prefix.canonical for entry in made.entries if not entry.nomatch)
    holes = ", ".join(entry.prefix.canonical for entry in made.entries if entry.nomatch)
    return f"{set_name(made.key)}: {members or 'empty'}{f', but not {holes}' if holes else ''}"


def either(texts: Iterable[str]) -> str:
    """Join texts: ``a``, ``a or b``, ``a, b or c``."""
    *first, last = texts
    return f"{', '.join(first)} or {last}" if first else last
