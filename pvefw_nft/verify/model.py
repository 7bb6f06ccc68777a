"""The ruleset model: readers produce it, simulator and prover evaluate it.

A :class:`RulesetModel` is a set of tables of chains of rules, whichever tool they came from: iptables,
ip6tables, ebtables (ipsets resolved) and nftables. It holds only the parts that decide about packets.

**Fields.** A packet, at one hook, is a partial map from :class:`Field` to an integer from 0 up to the field's
``size``. Everything a rule can look at is such a field: addresses, ports, the interface (its name as a 16
byte big-endian number, so that ``fwln+`` is one interval), the TCP flags (8 bits), ICMP type and code (``type
<< 8 | code``), each bit of the packet mark and of the connection mark (fields of size 2), the kind of
address, connection state, and so on. Two kinds of fields are made on demand: :func:`rate_field`, 1 where the
stated rate is exceeded, and :func:`unknown_field`, for a match the readers do not know; both are of
size 2 and, to the prover, free. So are :func:`helper_field`, :func:`label_field` and :func:`route_field`.

**Conditions.** :class:`Test` says ``field in set``. *A test of a field that the packet lacks is false*,
whatever its set: that is how both kernels' matches behave (a port match fails for a packet without ports,
negated or not). So negating a match means the complement of its set (:func:`negate`), while :class:`Not` is
the plain Boolean not, used where a kernel inverts a whole lookup. :class:`All` and :class:`Any` complete the
logic; nearly every rule is just a list of tests. Readers make dependencies explicit: a test of ports comes
with a test of the protocol, a test of ``SADDR4`` in a table that also sees IPv6 with a test of ``PROTOCOL``.
Which fields exist for which packets: :data:`PRESENCE`. Tests, sets and fields are interned: compare them with
``is``.

**Rules.** A rule applies where all its conditions hold. Then its ``effects`` happen in order (a log line, a
mark set, or a :class:`Guard`, which ends the rule where its condition does not hold), and then its
``verdict`` decides; ``None`` means on to the next rule.

**Chains.** A packet that falls off the end of a chain gets its ``policy``: :class:`Return` for an ordinary
chain, the policy of a base chain, and what ``ebtables -P`` says for its user chains. Jump and goto name
chains of the same table. After a *goto* a return goes to the chain that last *jumped*. A return from a base
chain (also after a goto) applies the base chain's policy.

**Hooks.** A packet meets, at each point of its path, the base chains of that family and point in the order of
their priorities. *Accept* ends only the base chain, and the next one sees the packet; *drop* and *reject* are
final. A :class:`~pvefw_nft.verify.path.Path` lists the points a packet passes.

``inet`` chains see IPv4 and IPv6 packets at the IP hooks; a table of family ``ip`` sees IPv4 only.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, final

from pvefw_nft.verify.intervals import IntervalSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

# --- fields -------------------------------------------------------------------------------------------------


class FieldKind(Enum):
    """How the values of a field are written."""

    NUMBER = "number"
    IPV4 = "ipv4"
    IPV6 = "ipv6"
    MAC = "mac"
    INTERFACE = "interface"
    PROTOCOL = "protocol"
    ETHERTYPE = "ethertype"
    ICMP = "icmp"
    TCP_FLAGS = "tcp-flags"
    ENUM = "enum"
    BIT = "bit"


@final
class Field:
    """One thing a rule can look at: values from 0 up to, not including, ``size``. Interned by ``name``.

    ``names`` writes the values of an enumeration, by value.
    """

    __slots__ = ("kind", "name", "names", "size")
    _known: dict[str, Field] = {}  # noqa: RUF012  the registry of all fields

    name: str
    size: int
    kind: FieldKind
    names: tuple[str, ...]

    def __new__(cls, name: str, size: int, kind: FieldKind = FieldKind.NUMBER, names: tuple[str, ...] = ()) -> Field:
        """Return the field of this name, made on first use."""
        known = cls._known.get(name)
        if known is None:
            known = object.__new__(cls)
            known.name, known.size, known.kind, known.names = name, size, kind, names
            cls._known[name] = known
        return known

    def __reduce__(self) -> tuple[type[Field], tuple[str, int, FieldKind, tuple[str, ...]]]:
        return Field, (self.name, self.size, self.kind, self.names)

    def __repr__(self) -> str:
        return self.name

    @property
    def everything(self) -> IntervalSet:
        """All values of the field."""
        return IntervalSet((0, self.size))


def _enum(name: str, *names: str) -> Field:
    return Field(name, len(names), FieldKind.ENUM, names)


PROTOCOL = Field("protocol", 1 << 16, FieldKind.ETHERTYPE)
"""The network protocol of the frame behind at most one VLAN tag (nft: ``meta protocol``): 0x0800 is IPv4."""
ETHER_TYPE = Field("ether type", 1 << 16, FieldKind.ETHERTYPE)
"""The ether type as the frame's header has it: 0x8100 for a tagged frame."""
VLAN_ID = Field("vlan id", 1 << 12)
INNER_VLAN_ID = Field("inner vlan id", 1 << 12)
"""The VLAN id of the second tag, in frames with two; ``INNER_TYPE`` is the ether type behind it."""
INNER_TYPE = Field("inner ether type", 1 << 16, FieldKind.ETHERTYPE)
ETHER_SRC = Field("ether saddr", 1 << 48, FieldKind.MAC)
ETHER_DST = Field("ether daddr", 1 << 48, FieldKind.MAC)
PKTTYPE = _enum("pkttype", "host", "broadcast", "multicast", "otherhost", "outgoing", "loopback")
"""The addressee of the frame (include/uapi/linux/if_packet.h); unicast to another host: otherhost."""
ARP_OP = Field("arp operation", 1 << 16)
ARP_HTYPE = Field("arp htype", 1 << 16)
ARP_PTYPE = Field("arp ptype", 1 << 16, FieldKind.ETHERTYPE)
ARP_HLEN = Field("arp hlen", 256)
"""Length of a hardware address, 6 for Ethernet; ``ARP_PLEN`` that of a protocol address, 4 for IPv4."""
ARP_PLEN = Field("arp plen", 256)
ARP_SPA = Field("arp saddr ip", 1 << 32, FieldKind.IPV4)
ARP_TPA = Field("arp daddr ip", 1 << 32, FieldKind.IPV4)
ARP_SHA = Field("arp saddr ether", 1 << 48, FieldKind.MAC)
ARP_THA = Field("arp daddr ether", 1 << 48, FieldKind.MAC)

SADDR4 = Field("ip saddr", 1 << 32, FieldKind.IPV4)
DADDR4 = Field("ip daddr", 1 << 32, FieldKind.IPV4)
SADDR6 = Field("ip6 saddr", 1 << 128, FieldKind.IPV6)
DADDR6 = Field("ip6 daddr", 1 << 128, FieldKind.IPV6)
L4PROTO = Field("l4proto", 256, FieldKind.PROTOCOL)
"""The transport protocol (the last next-header of IPv6 that is no extension)."""
EXTENSION = Field("ip6 extension", 257)
"""The extension header that an IPv6 packet begins with, by its number; :data:`NO_EXTENSION` where it has none."""
NO_EXTENSION = 256
EXTENSIONS = IntervalSet.from_ranges((number, number) for number in (0, 43, 51, 60, 135, 139, 140))
"""Hop-by-hop, routing, authentication, destination, mobility, HIP and Shim6 (IANA's list). Fragments are apart."""
TH_SOURCE = Field("th sport bytes", 1 << 16)
"""The first two bytes behind the network header, of protocols without ports and other than ICMP; the next two are
:data:`TH_DESTINATION`, those of ICMP (its checksum) included.
"""
TH_DESTINATION = Field("th dport bytes", 1 << 16)
FRAGMENT = _enum("fragment", "whole", "first", "later")
"""Unfragmented, the first fragment, or a later one, which has no transport header."""
TTL = Field("ttl", 256)
LENGTH = Field("length", 1 << 16)
DSCP = Field("dscp", 64)
SPORT = Field("sport", 1 << 16)
DPORT = Field("dport", 1 << 16)
TCP_FLAGS = Field("tcp flags", 256, FieldKind.TCP_FLAGS)
ICMP = Field("icmp", 1 << 16, FieldKind.ICMP)
"""ICMP type and code: ``type << 8 | code``."""
ICMP6 = Field("icmpv6", 1 << 16, FieldKind.ICMP)
ND_TARGET = Field("nd target", 1 << 128, FieldKind.IPV6)
"""The address that a neighbour solicitation or advertisement is about (RFC 4861, sections 4.3 and 4.4)."""
ADDRESS_TYPES = (
    "unspec", "unicast", "local", "broadcast", "anycast", "multicast",
    "blackhole", "unreachable", "prohibit", "throw", "nat", "xresolve",
)  # fmt: skip
SADDR_TYPE = _enum("saddr type", *ADDRESS_TYPES)
"""The kind of the source address in the host's routing tables (RTN_* of include/uapi/linux/rtnetlink.h)."""
DADDR_TYPE = _enum("daddr type", *ADDRESS_TYPES)

CT_STATES = ("invalid", "established", "related", "new", "untracked")
CT_STATE = _enum("ct state", *CT_STATES)
"""What connection tracking makes of the packet. A packet's own value is that of a lookup that knows every connection;
what a rule sees of it depends on where it is hooked in: :mod:`~pvefw_nft.verify.tracking`.
"""
TRACKING = _enum("tracking", "on", "off", "template")
"""What rules did before the lookup: nothing, ``notrack``, or they gave a zone or a helper."""
CT_DIRECTION = _enum("ct direction", "original", "reply")
CT_STATUS = {
    name: Field(f"ct status {name}", 2, FieldKind.BIT)
    for name in ("expected", "seen-reply", "assured", "confirmed", "snat", "dnat", "dying")
}

IIF = Field("iif", 1 << 128, FieldKind.INTERFACE)
"""Input interface. IP hooks of a bridged packet: the bridge; bridge hooks: the port. :data:`NO_INTERFACE` in a hook
that has none; likewise ``OIF``, ``PHYSIN`` and ``PHYSOUT``.
"""
NO_INTERFACE = 0
"""The name that a hook without such an interface shows rules: an empty one, so that only a negated match holds
(ip_packet_match, xt_physdev.c, nft_meta_store_ifname, ebt_dev_check).
"""
OIF = Field("oif", 1 << 128, FieldKind.INTERFACE)
PHYSIN = Field("physdev in", 1 << 128, FieldKind.INTERFACE)
"""The bridge port by which a packet came, in IP hooks (br_netfilter)."""
PHYSOUT = Field("physdev out", 1 << 128, FieldKind.INTERFACE)
IBR = Field("ibrname", 1 << 128, FieldKind.INTERFACE)
"""The bridge of the input port, in bridge hooks."""
OBR = Field("obrname", 1 << 128, FieldKind.INTERFACE)
IS_BRIDGED = Field("physdev is bridged", 2, FieldKind.BIT)
"""1 where an IP hook sees a packet that is bridged, not routed. Always present in IP hooks."""
SKUID = Field("skuid", 1 << 32)
SKGID = Field("skgid", 1 << 32)

MARK = tuple(Field(f"mark bit {bit}", 2, FieldKind.BIT) for bit in range(32))
"""The bits of the packet mark, lowest first."""
CT_MARK = tuple(Field(f"ct mark bit {bit}", 2, FieldKind.BIT) for bit in range(32))
"""The bits of the connection mark, lowest first."""

IPV4, IPV6, ARP, VLAN = 0x0800, 0x86DD, 0x0806, 0x8100
TAGS = (VLAN, 0x88A8)
"""The ether types of VLAN tags (IEEE 802.1Q): as ``PROTOCOL``, that of a second tag."""
PORT_PROTOCOLS = (6, 17, 33, 132, 136)
"""TCP, UDP, DCCP, SCTP and UDP-Lite: what has ports."""

PRESENCE: Mapping[Field, tuple[tuple[Field, IntervalSet], ...]] = {
    VLAN_ID: ((ETHER_TYPE, IntervalSet.single(VLAN)),),
    **dict.fromkeys((INNER_VLAN_ID, INNER_TYPE), ((PROTOCOL, IntervalSet.from_ranges((t, t) for t in TAGS)),)),
    **dict.fromkeys(
        (ARP_OP, ARP_HTYPE, ARP_PTYPE, ARP_HLEN, ARP_PLEN, ARP_SPA, ARP_TPA, ARP_SHA, ARP_THA),
        ((PROTOCOL, IntervalSet.single(ARP)),),
    ),
    **dict.fromkeys((SADDR4, DADDR4), ((PROTOCOL, IntervalSet.single(IPV4)),)),
    **dict.fromkeys((SADDR6, DADDR6), ((PROTOCOL, IntervalSet.single(IPV6)),)),
    **dict.fromkeys(
        (L4PROTO, FRAGMENT, TTL, LENGTH, DSCP, SADDR_TYPE, DADDR_TYPE),
        ((PROTOCOL, IntervalSet.of((IPV4, IPV4), (IPV6, IPV6))),),
    ),
    **dict.fromkeys(
        (SPORT, DPORT),
        (
            (L4PROTO, IntervalSet.from_ranges((n, n) for n in PORT_PROTOCOLS)),
            (FRAGMENT, IntervalSet.of((0, 1))),
        ),
    ),
    EXTENSION: ((PROTOCOL, IntervalSet.single(IPV6)),),
    TH_SOURCE: (
        (L4PROTO, L4PROTO.everything - IntervalSet.from_ranges((n, n) for n in (1, 58, *PORT_PROTOCOLS))),
        (FRAGMENT, IntervalSet.of((0, 1))),
    ),
    TH_DESTINATION: (
        (L4PROTO, L4PROTO.everything - IntervalSet.from_ranges((n, n) for n in PORT_PROTOCOLS)),
        (FRAGMENT, IntervalSet.of((0, 1))),
    ),
    TCP_FLAGS: ((L4PROTO, IntervalSet.single(6)), (FRAGMENT, IntervalSet.of((0, 1)))),
    ICMP: (
        (PROTOCOL, IntervalSet.single(IPV4)),
        (L4PROTO, IntervalSet.single(1)),
        (FRAGMENT, IntervalSet.of((0, 1))),
    ),
    ICMP6: (
        (PROTOCOL, IntervalSet.single(IPV6)),
        (L4PROTO, IntervalSet.single(58)),
        (FRAGMENT, IntervalSet.of((0, 1))),
    ),
    ND_TARGET: (
        (PROTOCOL, IntervalSet.single(IPV6)),
        (L4PROTO, IntervalSet.single(58)),
        (FRAGMENT, IntervalSet.of((0, 1))),
        (ICMP6, IntervalSet.of((135 << 8, 136 << 8 | 0xFF))),
    ),
}
"""Which values of other fields a packet must have to have this one; fields not listed depend on the hook
alone.
"""


def field_named(name: str) -> Field:
    """Return the field of this name; raises ValueError where there is none."""
    known = Field._known.get(name)
    if known is None:
        raise ValueError(f"there is no field '{name}'")
    return known


def rate_field(description: str) -> Field:
    """Return the field that is 1 for a packet that exceeds a rate, 0 for one within it.

    Descriptions are canonical: ``200/second burst 1000 per ip saddr/32``. Equal text is the same field to a reader;
    that each rule counts for itself, or with those that name the same counter, is what :func:`counter_field` is for.
    """
    return Field(f"rate {description}", 2, FieldKind.BIT)


def counter_field(rate: Field, counter: str) -> Field:
    """Return the field of a rate as one counter has it: two rules with the same limit do not exceed it together."""
    return Field(f"{rate.name}{_COUNTER}{counter}", 2, FieldKind.BIT)


def rate_of(on: Field) -> Field | None:
    """Return the rate, whichever counter it is of; None for another field."""
    if not on.name.startswith("rate "):
        return None
    name = on.name.partition(_COUNTER)[0]
    return on if name == on.name else rate_field(name.removeprefix("rate "))


_COUNTER = " of counter "


def rate_test(description: str, *, over: bool, counter: str | None = None) -> Test:
    """Return the test that a packet exceeds a rate, or is within it; rules with the same ``counter`` share it."""
    on = rate_field(description)
    return equals(on if counter is None else counter_field(on, counter), int(over))


def expiry_field(timeout: str) -> Field:
    """Return the field that is 1 where elements of sets with this timeout have expired by the time of the packet."""
    return Field(f"expired after {timeout}", 2, FieldKind.BIT)


LABEL = "ct label "
"""How the names of the fields of labels begin."""


def unknown_field(text: str) -> Field:
    """Return the field that is 1 where the match with this text, unknown to the readers, would match."""
    return Field(f"unknown {text}", 2, FieldKind.BIT)


def helper_field(name: str) -> Field:
    """Return the field that is 1 for a packet of a connection that this conntrack helper reads (nft: ``ct helper``)."""
    return Field(f"ct helper {name}", 2, FieldKind.BIT)


def label_field(number: int) -> Field:
    """Return the field that is 1 for a packet of a connection that has this label (nft: ``ct label``)."""
    return Field(f"{LABEL}{number}", 2, FieldKind.BIT)


def route_field(keys: Iterable[str]) -> Field:
    """Return the field that is 1 where the host has a route for these parts of a packet (nft: ``fib KEYS oif``)."""
    return Field(f"fib {' . '.join(keys)} oif", 2, FieldKind.BIT)


@cache
def interface_number(name: str) -> int:
    """Return the value of an interface field for this name.

    Raises ValueError where it is no interface name (IFNAMSIZ, include/uapi/linux/if.h: at most 15 bytes).
    """
    raw = name.encode()
    if len(raw) > 15 or b"\0" in raw:
        raise ValueError(f"not an interface name: {name!r}")
    return int.from_bytes(raw.ljust(16, b"\0"), "big")


def interface_name(number: int) -> str:
    """Return the name that this value of an interface field stands for."""
    return number.to_bytes(16, "big").rstrip(b"\0").decode(errors="replace")


@cache
def interface_set(pattern: str, wildcard: str = "+") -> IntervalSet:
    """Return the interfaces a pattern means: a name, or a prefix and ``wildcard`` (nft writes ``*``)."""
    if not pattern.endswith(wildcard):
        return IntervalSet.single(interface_number(pattern))
    prefix = pattern[: -len(wildcard)].encode()
    if len(prefix) > 15:
        raise ValueError(f"not an interface name: {pattern!r}")
    return IntervalSet.of(
        (int.from_bytes(prefix.ljust(16, b"\0"), "big"), int.from_bytes(prefix.ljust(16, b"\xff"), "big"))
    )


# --- conditions ---------------------------------------------------------------------------------------------


@final
class Test:
    """``field in values``, false where the packet lacks the field. Interned: equal tests are one object."""

    __slots__ = ("field", "values")
    __test__ = False  # no test class for pytest
    _known: dict[tuple[Field, IntervalSet], Test] = {}  # noqa: RUF012  the registry of all tests

    field: Field
    values: IntervalSet

    def __new__(cls, on: Field, values: IntervalSet) -> Test:
        """Return the one test of this field and set."""
        key = (on, values)
        known = cls._known.get(key)
        if known is None:
            known = object.__new__(cls)
            known.field, known.values = on, values
            cls._known[key] = known
        return known

    def __reduce__(self) -> tuple[type[Test], tuple[Field, IntervalSet]]:
        return Test, (self.field, self.values)

    def __repr__(self) -> str:
        return f"{self.field} in {self.values!r}"


@dataclass(frozen=True, slots=True)
class All:
    """All of them hold; of none: true."""

    of: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Any:
    """At least one of them holds; of none: false."""

    of: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The condition does not hold (true also where it is false for want of a field)."""

    of: Condition


Condition: TypeAlias = Test | All | Any | Not
TRUE = All(())
FALSE = Any(())


HAS_CONNECTION = Test(CT_MARK[0], IntervalSet.of((0, 1)))
"""The packet has a connection, and so a mark of it."""


def equals(on: Field, value: int) -> Test:
    """Return the test that a field has this value."""
    return Test(on, IntervalSet.single(value))


def within(on: Field, *ranges: tuple[int, int]) -> Test:
    """Return the test that a field lies in one of these ranges (first and last value)."""
    return Test(on, IntervalSet.of(*ranges))


def negate(condition: Condition) -> Condition:
    """Return the inverted match: of a test, the test of the complement; of anything else, its Boolean not."""
    if isinstance(condition, Test):
        return Test(condition.field, condition.values.complement(condition.field.size))
    if isinstance(condition, Not):
        return condition.of
    if condition == TRUE:
        return FALSE
    return TRUE if condition == FALSE else Not(condition)


def mark_condition(bits: tuple[Field, ...], mask: int, value: int) -> Condition:
    """Return ``mark & mask == value`` for :data:`MARK` or :data:`CT_MARK`: a test of each bit in the mask."""
    if value & ~mask:
        return FALSE
    tests = tuple(equals(bits[n], value >> n & 1) for n in range(32) if mask >> n & 1)
    return tests[0] if len(tests) == 1 else All(tests)


def mark_test(bits: tuple[Field, ...], mask: int, value: int, *, inverted: bool = False) -> Condition:
    """Return ``mark & mask == value``, or that it is not; a connection's mark matches neither where there is none.

    Sources: connmark_mt (net/netfilter/xt_connmark.c), nft_ct_get_eval (net/netfilter/nft_ct.c).
    """
    condition = mark_condition(bits, mask, value)
    if bits is MARK:
        return negate(condition) if inverted else condition
    if not inverted:
        return All((HAS_CONNECTION,)) if condition == TRUE else condition
    return All((HAS_CONNECTION, negate(condition)))


def holds(condition: Condition, packet: Mapping[Field, int]) -> bool:
    """Return whether a condition holds for a packet. This defines the meaning of conditions."""
    if isinstance(condition, Test):
        value = packet.get(condition.field)
        return value is not None and value in condition.values
    if isinstance(condition, All):
        return all(holds(part, packet) for part in condition.of)
    if isinstance(condition, Any):
        return any(holds(part, packet) for part in condition.of)
    return not holds(condition.of, packet)


def tests_of(condition: Condition) -> Iterator[Test]:
    """Yield the tests a condition is made of."""
    if isinstance(condition, Test):
        yield condition
    elif isinstance(condition, Not):
        yield from tests_of(condition.of)
    else:
        for part in condition.of:
            yield from tests_of(part)


# --- verdicts -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accept:
    """Done with this base chain; the packet goes on to the next one."""


@dataclass(frozen=True, slots=True)
class Drop:
    """The packet is gone."""


@dataclass(frozen=True, slots=True)
class Reject:
    """The packet is gone and the sender is told: with ``v4`` for an IPv4 packet, ``v6`` for an IPv6 one.

    Kinds are ``tcp-reset``, the ICMP codes ``net-unreachable``, ``host-unreachable``, ``proto-unreachable``,
    ``port-unreachable``, ``net-prohibited``, ``host-prohibited``, ``admin-prohibited``, and the ICMPv6 codes
    ``no-route``, ``admin-prohibited``, ``addr-unreachable``, ``port-unreachable``, ``policy-fail``,
    ``reject-route``. A rule that only one family reaches gives the other's kind as None.
    """

    v4: str | None
    v6: str | None

    def kind(self, protocol: int) -> str:
        """Return the kind of answer for a packet with this ``PROTOCOL`` (0x0800 or 0x86dd)."""
        return (self.v6 if protocol == IPV6 else self.v4) or "none"


@dataclass(frozen=True, slots=True)
class Return:
    """Back to the rule after the one that jumped here; from a base chain, its policy applies."""


@dataclass(frozen=True, slots=True)
class Jump:
    """On to another chain of the same table, and back here when it returns."""

    chain: str


@dataclass(frozen=True, slots=True)
class Goto:
    """On to another chain of the same table; when it returns, back to the chain that jumped to this one."""

    chain: str


@dataclass(frozen=True, slots=True)
class Queue:
    """To a program's queue ``first``, or those from ``first`` to ``last``; the program's decision is not known here.

    With ``bypass`` the packet is accepted where no program listens, without it dropped.
    """

    first: int
    last: int
    bypass: bool


@dataclass(frozen=True, slots=True)
class Nat:
    """Address translation (``dnat``, ``snat``, ``masquerade``, ``redirect``), which also accepts.

    ``addresses`` and ``ports`` are the first and last value to use, None where that part does not change.
    """

    kind: str
    protocol: int | None = None
    addresses: tuple[int, int] | None = None
    ports: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class UnknownVerdict:
    """A target unknown to the readers, accepted under an assumption of the user's: its effect is open."""

    text: str


@dataclass(frozen=True)
class VerdictMap:
    """The verdict of the one entry whose condition holds; where none holds, on to the next rule.

    Entries exclude one another. ``entries`` verdicts are never maps themselves.
    """

    entries: tuple[tuple[Condition, PlainVerdict], ...]

    def lookup(self, packet: Mapping[Field, int]) -> PlainVerdict | None:
        """Return the verdict for this packet; a map over one field is searched by bisection."""
        index = self.index
        if index is None:
            return next((verdict for condition, verdict in self.entries if holds(condition, packet)), None)
        on, starts, ends, verdicts = index
        value = packet.get(on)
        if value is None:
            return None
        place = bisect_right(starts, value) - 1
        return verdicts[place] if place >= 0 and value < ends[place] else None

    @property
    def index(self) -> tuple[Field, list[int], list[int], list[PlainVerdict]] | None:
        """The field of the map, and per interval its start, its end (excluded) and verdict, ascending.

        None where entries are not tests of one and the same field.
        """
        known: tuple[Field, list[int], list[int], list[PlainVerdict]] | bool | None
        known = self.__dict__.get("_index", False)
        if known is False:
            known = self._make_index()
            self.__dict__["_index"] = known
        return known if isinstance(known, tuple) else None

    def _make_index(self) -> tuple[Field, list[int], list[int], list[PlainVerdict]] | None:
        rows = []
        fields = set()
        for condition, verdict in self.entries:
            if not isinstance(condition, Test):
                return None
            fields.add(condition.field)
            rows += [(first, last + 1, verdict) for first, last in condition.values]
        if len(fields) != 1:
            return None
        rows.sort(key=lambda row: row[0])
        return fields.pop(), [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows]


PlainVerdict: TypeAlias = Accept | Drop | Reject | Return | Jump | Goto | Queue | Nat | UnknownVerdict
Verdict: TypeAlias = PlainVerdict | VerdictMap

ACCEPT, DROP, RETURN = Accept(), Drop(), Return()


# --- effects ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Log:
    """A log line with this prefix: to the system log at ``level`` (0 to 7), or to a ``group`` of NFLOG."""

    prefix: str
    level: int | None = None
    group: int | None = None


class MarkTarget(Enum):
    """Whose mark."""

    PACKET = "mark"
    CONNECTION = "ct mark"

    @property
    def bits(self) -> tuple[Field, ...]:
        """The fields of its bits, lowest first."""
        return MARK if self is MarkTarget.PACKET else CT_MARK


@dataclass(frozen=True, slots=True)
class SetMark:
    """``mark = (mark & keep) ^ flip``: any of set, and, or, xor with masks (net/netfilter/xt_mark.c)."""

    target: MarkTarget
    keep: int
    flip: int


@dataclass(frozen=True, slots=True)
class CopyMark:
    """``target = (target & keep) ^ (other & take)``: the other mark copied (net/netfilter/xt_connmark.c)."""

    target: MarkTarget
    keep: int
    take: int


@dataclass(frozen=True, slots=True)
class SetHelper:
    """A conntrack helper reads this connection. ``name`` is its type: ``ftp``, ``tftp`` …

    As a ``template`` (iptables' CT target) it is given before the lookup, else (nft's ``ct helper set``) after it; in
    either case only to a connection's first packet.
    """

    name: str
    template: bool = False


@dataclass(frozen=True, slots=True)
class NoTrack:
    """The packet is not tracked: its state is untracked from here on. Only before the lookup; later it does nothing."""


@dataclass(frozen=True)
class SetZone:
    """The packet is looked up in a zone: that of the one entry whose condition holds. Only before the lookup.

    ``original`` and ``reply`` say for which of a connection's two directions (``ct original zone set``: only the
    first); the other one stays in zone 0. The first zone a packet is given counts.
    """

    entries: tuple[tuple[Condition, int], ...]
    original: bool = True
    reply: bool = True

    def choices(self, known: Mapping[Field, int]) -> Iterable[tuple[Condition, int]]:
        """Return the entries that may hold for a packet of which these fields are known."""
        index = self.index
        if index is None or index[0] not in known:
            return self.entries
        zone = index[1].get(known[index[0]])
        return () if zone is None else ((TRUE, zone),)

    @property
    def index(self) -> tuple[Field, Mapping[int, int]] | None:
        """The field and the zones by its value, where all entries are tests of single values of one field."""
        known: tuple[Field, Mapping[int, int]] | bool | None = self.__dict__.get("_index", False)
        if known is False:
            tests = [condition for condition, _ in self.entries if isinstance(condition, Test)]
            plain = len(tests) == len(self.entries) and len({test.field for test in tests}) == 1
            known = None
            if plain and all(test.values.count() == 1 for test in tests):
                values = [test.values.smallest() for test in tests]
                known = tests[0].field, {v: zone for v, (_, zone) in zip(values, self.entries, strict=True)}
            self.__dict__["_index"] = known
        return known if isinstance(known, tuple) else None


@dataclass(frozen=True, slots=True)
class SetField:
    """A field of the packet is changed, where it has it: to ``value``, or to that of a table by the old value."""

    field: Field
    value: int | tuple[int, ...]

    def result(self, old: int) -> int:
        """Return the new value of an old one."""
        return self.value if isinstance(self.value, int) else self.value[old]


@dataclass(frozen=True, slots=True)
class UpdateSet:
    """A set gets an element made of the packet, or loses it: which packets it has later depends on that.

    ``set`` names the set (``ipset bad``, ``nft inet t bad``), ``text`` the update, with its timeout.
    """

    set: str
    text: str


@dataclass(frozen=True, slots=True)
class Alter:
    """Something else is changed or recorded that no modelled field shows (MSS, priority, a counter)."""

    text: str


@dataclass(frozen=True, slots=True)
class Guard:
    """The rest of the rule applies only where the condition holds (an nft match after a statement)."""

    condition: Condition


Effect: TypeAlias = Log | SetMark | CopyMark | SetHelper | NoTrack | SetZone | SetField | UpdateSet | Alter | Guard


# --- structure ----------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """Where all ``conditions`` hold, ``effects`` happen and ``verdict`` decides.

    ``text`` is the rule as read (or, from JSON, empty), ``origin`` the place in the configuration it comes
    from (``100.fw:12``, where known), ``line`` its line in the file read (0: unknown). Rules are numbered
    from 1 in a chain.
    """

    conditions: tuple[Condition, ...]
    effects: tuple[Effect, ...]
    verdict: Verdict | None
    text: str = ""
    origin: str = ""
    line: int = 0


def own_counter(on: Field, rule: Rule) -> Field:
    """Return the field of a rate as a rule counts it, which has a counter of its own unless it names one.

    Rules that only log are taken to log together. Rates kept for each source, say, count for themselves where what is
    within them is accepted: where it is dropped beyond, a second one with the same rate finds nothing more to drop.
    """
    rate = rate_of(on)
    only_logs = rule.verdict is None and all(isinstance(effect, (Log, Guard, Alter)) for effect in rule.effects)
    if rate is None or only_logs:
        return on
    if not isinstance(rule.verdict, Accept) and " per " in rate.name.partition(" burst ")[2]:
        return rate
    return counter_field(on, f"rule {id(rule):x}") if rate is on else on


class Family(Enum):
    """The protocol family of a table (nft(8), ADDRESS FAMILIES)."""

    IP = "ip"
    IP6 = "ip6"
    INET = "inet"
    BRIDGE = "bridge"
    ARP = "arp"
    NETDEV = "netdev"

    def sees(self, protocol: int) -> bool:
        """Return whether chains of this family see packets of this network protocol."""
        match self:
            case Family.IP:
                return protocol == IPV4
            case Family.IP6:
                return protocol == IPV6
            case Family.INET:
                return protocol in (IPV4, IPV6)
            case Family.ARP:
                return protocol == ARP
            case Family.BRIDGE | Family.NETDEV:
                return True


class Point(IntEnum):
    """Where in the stack a base chain is hooked in."""

    INGRESS = 0
    PREROUTING = 1
    INPUT = 2
    FORWARD = 3
    OUTPUT = 4
    POSTROUTING = 5
    EGRESS = 6
    BROUTING = 7


@dataclass(frozen=True, slots=True)
class Hook:
    """What makes a chain a base chain. Lower priorities come first. ``kind`` is filter, nat or route."""

    family: Family
    point: Point
    priority: int
    kind: str = "filter"
    devices: tuple[str, ...] = ()


@dataclass(slots=True)
class Chain:
    """Rules in order; ``policy`` is what happens to a packet that falls off the end."""

    name: str
    rules: list[Rule]
    policy: Accept | Drop | Return = RETURN
    hook: Hook | None = None


@dataclass(frozen=True, slots=True)
class TableKey:
    """Names a table: ``tool`` is ``iptables``, ``ip6tables``, ``ebtables`` or ``nft``."""

    tool: str
    family: Family
    name: str

    def __str__(self) -> str:
        return f"{self.tool} {self.name}" if self.tool != "nft" else f"nft {self.family.value} {self.name}"


@dataclass(slots=True)
class Table:
    """Chains by name. ``sets`` keeps the named sets the rules refer to, to name them in reports; ``lookups`` the names
    of those that rules look packets up in, as :class:`UpdateSet` has them.
    """

    key: TableKey
    chains: dict[str, Chain] = field(default_factory=dict)
    sets: dict[str, IntervalSet] = field(default_factory=dict)
    lookups: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class RulesetModel:
    """All tables read. ``assumptions`` says, a line each, what unknown matches were taken for."""

    tables: tuple[Table, ...] = ()
    assumptions: tuple[str, ...] = ()
    _hooked: list[tuple[Hook, Table, Chain]] = field(default_factory=list, init=False, compare=False, repr=False)

    def base_chains(self, point: Point, *families: Family) -> list[tuple[Table, Chain]]:
        """Return the base chains at a point of these families, in the order packets meet them."""
        if not self._hooked:
            # few chains of many have a hook, and each packet asks for them at each hook
            hooked = [(c.hook, table, c) for table in self.tables for c in table.chains.values() if c.hook is not None]
            self._hooked.extend(sorted(hooked, key=lambda row: row[0].priority))
        return [(t, c) for hook, t, c in self._hooked if hook.point == point and hook.family in families]

    def merged(self, other: RulesetModel) -> RulesetModel:
        """Return the ruleset with the tables of both (both are loaded; a packet passes both)."""
        return RulesetModel(self.tables + other.tables, self.assumptions + other.assumptions)


def targets(verdict: Verdict | None) -> Iterable[str]:
    """Yield the chains a verdict may go to."""
    if isinstance(verdict, (Jump, Goto)):
        yield verdict.chain
    elif isinstance(verdict, VerdictMap):
        for _, entry in verdict.entries:
            yield from targets(entry)
