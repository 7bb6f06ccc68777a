"""Lowering of matches: the IR's tests of a packet in the expressions of nft.

A match becomes one or more alternatives: each is the IP families it speaks of and the statements that test it. No
two alternatives of a match hold for the same packet, so a rule may be written once for each.

Example, of ``InSet(SOURCE, 0/management)`` in a rule for both families::

    (V4, ip saddr @PVEFW-0-management-v4)
    (V6, ip6 saddr @PVEFW-0-management-v6)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias, assert_never

from pvefw_nft.backends.nft.address_sets import VERSIONS, set_name
from pvefw_nft.backends.nft.intervals import address_values, merged, number_values, one_of
from pvefw_nft.backends.nft.keys import ADDRESS_FIELDS, Key, intervals_of, key_of, names_of, prefix_lengths, version_of
from pvefw_nft.backends.nft.place import Place
from pvefw_nft.backends.nft.syntax.expressions import (
    anonymous_set,
    bits,
    extension_header,
    fib_type,
    interval,
    meta,
    named_set,
    payload,
    prefix,
    raw,
)
from pvefw_nft.backends.nft.syntax.statements import connections_over, limit
from pvefw_nft.backends.nft.syntax.statements import match as compare
from pvefw_nft.errors import InternalError
from pvefw_nft.ir.nodes import (
    ACCEPT_MARK,
    AcceptMark,
    Address,
    AddressKind,
    AddressRange,
    AddressType,
    AdvertisedOutside,
    ArpSender,
    ArpSenderMac,
    Bridged,
    ConnectionsOver,
    ConnState,
    Direction,
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
    TcpFlags,
    ThirdTag,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pvefw_nft.backends.nft.intervals import Interval
    from pvefw_nft.backends.nft.scope import Scope
    from pvefw_nft.backends.nft.syntax.expressions import Constant, Meta, Value
    from pvefw_nft.backends.nft.syntax.statements import Statement
    from pvefw_nft.ir.nodes import Match, Rule, SetKey


Alternative: TypeAlias = tuple[int, tuple["Statement", ...]]
"""The families (bits of :class:`Family`) that an alternative speaks of, and its statements."""

LINK_PORTS: Final = "fwln*"
"""The ports of firewall bridges towards the guests' bridges."""

GUESTS: Final = "guests"
"""The set of the interfaces of guests' NICs."""

PORTS: Final = "ports"
"""The set of both ports of the firewall bridges of guests' NICs."""

QINQ_PORTS: Final = "qinq-ports"
"""The same of NICs whose frames may have two VLAN tags."""

_TAG_CONTROL = {1: raw("ll", 112, 16), 2: raw("ll", 144, 16)}
"""The tag control information of the first and second tag of a frame (IEEE 802.1Q, section 9.6)."""

_BEHIND_TWO_TAGS = raw("ll", 160, 16)
"""The Ethernet type behind the second tag."""

Stateless: TypeAlias = (
    ArpSenderMac
    | AdvertisedOutside
    | Fragment
    | FilteredPort
    | TagOfVlanZero
    | ThirdTag
    | OtherEtherType
    | NicRateOver
    | ConnectionsOver
)
"""The matches that only stateless chains and chains of limits have."""

_TARGET = raw("th", 64, 128)
"""The target address of a neighbour advertisement or solicitation, behind 8 bytes of ICMPv6 header."""

_ICMP = {4: "icmp", 6: "icmpv6"}
_ICMP_NUMBER = {4: 1, 6: 58}

_V4_GUARD = {"bridge": compare(meta("protocol"), "ip"), "inet": compare(meta("nfproto"), "ipv4")}
_V6_GUARD = {"bridge": compare(meta("protocol"), "ip6"), "inet": compare(meta("nfproto"), "ipv6")}

_MULTICAST = {4: prefix("224.0.0.0", 4), 6: prefix("ff00::", 8)}
_BROADCAST = anonymous_set(["0.0.0.0", "255.255.255.255"])  # noqa: S104 - no socket binds here


_FRAGMENT: Sequence[Alternative] = (
    # offset and "more fragments" of RFC 791, section 3.1; the fragment header of RFC 8200, section 4.5
    (Family.V4, (compare(bits(payload("ip", "frag-off"), 0x3FFF), 0, "!="),)),
    (Family.V6, (compare(extension_header("frag"), True),)),  # noqa: FBT003 - nft's own word for "exists"
)


def family_guard(families: int, place: Place) -> tuple[Statement, ...]:
    """Return the statements that ask for an IP family; none if both are meant.

    In the bridge family the protocol must be asked for by ``meta protocol``, which looks behind a VLAN tag: left to
    itself, nft compares the outer Ethernet type, and tagged frames would slip by (nft 1.0.6).
    """
    match families:
        case Family.V4:
            return (_V4_GUARD[place.family],)
        case Family.V6:
            return (_V6_GUARD[place.family],)
        case _:
            return ()


def family_key(place: Place) -> Meta:
    """Return the selector for the IP family."""
    return meta("nfproto") if place is Place.HOST else meta("protocol")


def family_value(families: int, place: Place) -> str:
    """Return the value of :func:`family_key` for one family."""
    version = "4" if families == Family.V4 else "6"
    return f"ipv{version}" if place is Place.HOST else "ip" if version == "4" else "ip6"


class MatchLowering:
    """Lowers the matches of rules in one scope."""

    def __init__(self, scope: Scope) -> None:
        """Lower for the place of that scope."""
        self._scope = scope
        self._place = scope.place

    def alternatives(self, match: Match, rule: Rule, *, any_transport: bool = False) -> Sequence[Alternative]:
        """Return the alternatives of one match of a rule.

        ``any_transport``: the protocol of the rule is one of several, so its ports are read from any header.
        """
        key = key_of(match, rule, any_transport=any_transport)
        if key is not None:
            return (self.comparison(key, [match]),)
        return self._special(match, rule)

    def _special(self, match: Match, rule: Rule) -> Sequence[Alternative]:
        match match:
            case ProtocolMatch():
                return _both()  # implied by the selector that follows
            case InSet():
                return self._in_set(match, rule)
            case AddressType(side, kind):
                return self._address_type(side, kind)
            case IcmpType(version, number, code):
                return (_icmp(version, number, code),)
            case TcpFlags(mask, flags, negated):
                left = bits(payload("tcp", "flags"), int(mask))
                return _both(compare(left, int(flags), "!=" if negated else "=="))
            case AcceptMark():
                return _both(compare(bits(meta("mark"), ACCEPT_MARK), ACCEPT_MARK))
            case SourceMac(mac, _, negated):
                return _both(compare(payload("ether", "saddr"), _mac(mac), "!=" if negated else "=="))
            case Bridged(direction):
                ports = LINK_PORTS if direction is Direction.IN else named_set(GUESTS)
                return _both(compare(meta("iifname"), ports))
            case (
                ArpSenderMac()
                | AdvertisedOutside()
                | Fragment()
                | FilteredPort()
                | TagOfVlanZero()
                | ThirdTag()
                | OtherEtherType()
                | NicRateOver()
                | ConnectionsOver()
            ):
                return self._stateless(match)
            case RateOver():
                raise InternalError("a rate is tested by a chain of its own")
            case (
                Interface() | NicPort() | Address() | AddressRange() | Ports() | ConnState() | EtherType() | ArpSender()
            ):
                raise InternalError(f"{type(match).__name__} has no selector here")
            case _:
                assert_never(match)

    # --- matches that compare one selector with values ---

    def comparison(self, key: Key, matches: Sequence[Match]) -> Alternative:
        """Return the test for any of the values of some matches that have this key."""
        if isinstance(matches[0], ConnState):
            # states are bits, and the operator `in` tests several bits at once
            states: list[Constant] = [str(value) for value in self.values(matches)]
            return key.families, (*key.first, compare(key.left, states, "in"))
        # a /0 holds for every packet of its family, so the family test is enough
        if isinstance(matches[0], Address | AddressRange) and any(length == 0 for length in prefix_lengths(matches)):
            return key.families, key.first
        return key.families, (*key.first, compare(key.left, one_of(self.values(matches))))

    def values(self, matches: Sequence[Match]) -> list[Value]:
        """Return the values of some matches that have the same key, each once."""
        match matches[0]:
            case NicPort():
                return list(dict.fromkeys(self._port(m) for m in matches if isinstance(m, NicPort)))
            case Interface() | ConnState():
                return list(dict.fromkeys(name for m in matches for name in names_of(m)))
            case sample if len(matches) == 1:
                return self.interval_values(merged(intervals_of(sample)), sample)
            case sample:
                return self.interval_values(merged(i for m in matches for i in intervals_of(m)), sample)

    def interval_values(self, intervals: Sequence[Interval], match: Match) -> list[Value]:
        """Return intervals as values of the kind that this match asks for."""
        if isinstance(match, Address | AddressRange | ArpSender):
            return address_values(intervals, version_of(match))
        return number_values(intervals)

    def _port(self, match: NicPort) -> str:
        # The direction is known before the forwarding decision: what enters a firewall bridge by its port to the
        # guest's bridge can only be going to the guest.
        return self._scope.links[match.name] if match.direction is Direction.IN else match.name

    # --- matches with an expression of their own ---

    def _in_set(self, match: InSet, rule: Rule) -> Sequence[Alternative]:
        filled = self._scope.sets.families(match.key)
        result: list[Alternative] = []
        for version, family in VERSIONS:
            left = ADDRESS_FIELDS[version, match.side]
            right = named_set(set_name(match.key, version))
            if filled & family:
                result.append((family, (compare(left, right, "!=" if match.negated else "=="),)))
            elif match.negated:
                # no address is in an empty set, so the negated test always holds
                result.append((family, ()))
        if len(result) > 1 and not any(statements for _, statements in result):
            return _both()
        return [made for made in result if made[0] & rule.families]

    def _stateless(self, match: Stateless) -> Sequence[Alternative]:
        match match:
            case ArpSenderMac(mac):
                return _both(compare(payload("arp", "saddr ether"), _mac(mac), "!="))
            case AdvertisedOutside(key):
                return self._advertised_outside(key)
            case Fragment():
                return _FRAGMENT
            case FilteredPort(qinq):
                return _both(compare(meta("iifname"), named_set(QINQ_PORTS if qinq else PORTS)))
            case TagOfVlanZero(number):
                return _both(compare(bits(_TAG_CONTROL[number], 0x0FFF), 0))
            case ThirdTag():
                return _both(compare(_BEHIND_TWO_TAGS, anonymous_set([0x8100, 0x88A8])))
            case OtherEtherType(numbers):
                return _both(compare(meta("protocol"), anonymous_set(list(numbers)), "!="))
            case NicRateOver(rate):
                return _both(limit(rate, "second", rate, over=True))
            case ConnectionsOver(number):
                return _both(connections_over(number))

    def _advertised_outside(self, key: SetKey) -> Sequence[Alternative]:
        """Return the test for the target of a neighbour advertisement (RFC 4861, section 4.4).

        nft 1.0.6 has no name for the field, and compares an unnamed one with numbers only, not with a named set.
        """
        intervals = self._scope.sets.intervals(key, 6)
        if not intervals:
            # every target is outside of an empty set
            return ((Family.V6, ()),)
        values: list[Value] = [
            f"{first:#034x}" if first == last else interval(f"{first:#034x}", f"{last:#034x}")
            for first, last in intervals
        ]
        return ((Family.V6, (compare(_TARGET, one_of(values), "!="),)),)

    def _address_type(self, side: Side, kind: AddressKind) -> Sequence[Alternative]:
        """Return the test for a kind of address; without ``fib``, which the bridge family has not.

        The routing table takes 0.0.0.0 and 255.255.255.255 for broadcast addresses, and the last address of each
        of the host's networks (net/ipv4/fib_frontend.c). The latter are not known here, but packets to them are
        broadcast frames; packets from them are not recognised.
        """
        if kind is AddressKind.MULTICAST:
            return [(family, (compare(ADDRESS_FIELDS[v, side], _MULTICAST[v]),)) for v, family in VERSIONS]
        if self._place is Place.HOST:
            return _both(compare(fib_type("saddr" if side is Side.SOURCE else "daddr"), kind.value.lower()))
        if kind is not AddressKind.BROADCAST:
            raise InternalError(f"the bridge family cannot tell {kind.value.lower()} addresses")
        address = (Family.V4, (compare(ADDRESS_FIELDS[4, side], _BROADCAST),))
        if side is Side.SOURCE:
            return (address,)
        # alternatives must not overlap: a broadcast frame to 255.255.255.255 counts as the first one only
        unlike = compare(meta("pkttype"), "broadcast", "!=")
        return ((Family.BOTH, (compare(meta("pkttype"), "broadcast"),)), (Family.V4, (unlike, *address[1])))


def _mac(mac: int) -> str:
    return ":".join(f"{mac >> shift & 0xFF:02x}" for shift in range(40, -1, -8))


def _both(*statements: Statement) -> Sequence[Alternative]:
    return ((Family.BOTH, statements),)


def _family(version: int) -> Family:
    return Family.V4 if version == 4 else Family.V6


def _icmp(version: int, number: int | None, code: int | None) -> Alternative:
    if number is None:
        # any type: the protocol is enough
        return _family(version), (compare(meta("l4proto"), _ICMP_NUMBER[version]),)
    statements = [compare(payload(_ICMP[version], "type"), number)]
    if code is not None:
        statements.append(compare(payload(_ICMP[version], "code"), code))
    return _family(version), tuple(statements)
