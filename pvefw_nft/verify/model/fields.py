"""Fields: what a rule can look at in a packet, and at each hook."""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, final

from pvefw_nft.verify.model.intervals import IntervalSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


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
    """A property of a packet that a rule can test: values from 0 to ``size`` - 1. Interned by ``name``.

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


class Declaration(NamedTuple):
    """The facts about a field, beside its values. See :func:`declare`."""

    requires: tuple[tuple[Field, IntervalSet], ...] = ()
    level: int | None = None
    default: int | None = None
    option: str | None = None
    renamed: bool = False
    optional: bool = False


DECLARED: dict[Field, Declaration] = {}
"""All declarations, in the order in which counterexamples get their fields."""


def declare(
    on: Field,
    *,
    requires: tuple[tuple[Field, IntervalSet], ...] = (),
    level: int | None = None,
    default: int | None = None,
    option: str | None = None,
    renamed: bool = False,
    optional: bool = False,
) -> Field:
    """Record the facts about a field, and return it. All tables of fields are derived from these facts.

    Modules derive them when they are imported. So fields are declared here, or, if only proofs have them, in
    ``prove/program.py``.

    - ``requires``: the values that a packet must have of other fields, declared before, to have this one. Empty: the
      hook alone decides.
    - ``level``: its place among the levels of decision diagrams, in steps of ten, so that another one fits in between.
      None: its value is known wherever a chain starts.
    - ``default``: its value in an ordinary packet, where that does not depend on the rest of the packet.
    - ``option``: the option of ``pvefw simulate`` that gives its value. None: ``--field NAME=VALUE`` does.
    - ``renamed``: guests of one kind differ in its values, so a shape leaves them out
      (:mod:`pvefw_nft.verify.prove.shapes`).
    - ``optional``: packets may lack it for a reason that no other field tells.
    """
    DECLARED[on] = Declaration(requires, level, default, option, renamed, optional)
    return on


def _enum(name: str, *names: str) -> Field:
    return Field(name, len(names), FieldKind.ENUM, names)


def _one_of(*numbers: int) -> IntervalSet:
    return IntervalSet.from_ranges((number, number) for number in numbers)


IPV4, IPV6, ARP, VLAN = 0x0800, 0x86DD, 0x0806, 0x8100
TAGS = (VLAN, 0x88A8)
"""The ether types of VLAN tags (IEEE 802.1Q): as ``PROTOCOL``, the type of a second tag."""
PORT_PROTOCOLS = (6, 17, 33, 132, 136)
"""The protocols with ports: TCP, UDP, DCCP, SCTP and UDP-Lite."""

# Of six orders of the levels tried on both backends' rulesets of 100 guests, those with the protocol first or second
# made 62,000 to 68,000 nodes, with the protocol last 94,000. Fields that only the standard chains test come below.

# --- frames -------------------------------------------------------------------------------------------------

PROTOCOL = declare(Field("protocol", 1 << 16, FieldKind.ETHERTYPE))
"""The network protocol of the frame behind at most one VLAN tag (nft: ``meta protocol``): 0x0800 is IPv4."""
ETHER_TYPE = declare(Field("ether type", 1 << 16, FieldKind.ETHERTYPE))
"""The ether type as the frame's header has it: 0x8100 for a tagged frame."""

_IS_ARP = ((PROTOCOL, _one_of(ARP)),)
_IS_IPV4 = ((PROTOCOL, _one_of(IPV4)),)
_IS_IPV6 = ((PROTOCOL, _one_of(IPV6)),)
_IS_IP = ((PROTOCOL, _one_of(IPV4, IPV6)),)
_HAS_SECOND_TAG = ((PROTOCOL, _one_of(*TAGS)),)

VLAN_ID = declare(Field("vlan id", 1 << 12), requires=((ETHER_TYPE, _one_of(VLAN)),), level=120, option="--vlan")
INNER_VLAN_ID = declare(Field("inner vlan id", 1 << 12), requires=_HAS_SECOND_TAG, level=130, default=0)
"""The VLAN id of the second tag, in frames with two; ``INNER_TYPE`` is the ether type behind it."""
INNER_TYPE = declare(
    Field("inner ether type", 1 << 16, FieldKind.ETHERTYPE), requires=_HAS_SECOND_TAG, level=140, default=IPV4
)
ETHER_SRC = declare(Field("ether saddr", 1 << 48, FieldKind.MAC), level=0, option="--mac", renamed=True)
ETHER_DST = declare(Field("ether daddr", 1 << 48, FieldKind.MAC), level=10, option="--dest-mac", renamed=True)
PKTTYPE = declare(_enum("pkttype", "host", "broadcast", "multicast", "otherhost", "outgoing", "loopback"), default=0)
"""The addressee of the frame (include/uapi/linux/if_packet.h); unicast to another host: otherhost."""
ARP_OP = declare(Field("arp operation", 1 << 16), requires=_IS_ARP, level=150, default=1)
"""RFC 826: 1 is a request."""
ARP_HTYPE = declare(Field("arp htype", 1 << 16), requires=_IS_ARP, level=160, default=1)
ARP_PTYPE = declare(Field("arp ptype", 1 << 16, FieldKind.ETHERTYPE), requires=_IS_ARP, level=170, default=IPV4)
ARP_HLEN = declare(Field("arp hlen", 256), requires=_IS_ARP, level=180, default=6)
"""Length of a hardware address, 6 for Ethernet; ``ARP_PLEN`` is the length of a protocol address, 4 for IPv4."""
ARP_PLEN = declare(Field("arp plen", 256), requires=_IS_ARP, level=190, default=4)
ARP_SPA = declare(
    Field("arp saddr ip", 1 << 32, FieldKind.IPV4), requires=_IS_ARP, level=200, option="--arp-sender", renamed=True
)
ARP_TPA = declare(Field("arp daddr ip", 1 << 32, FieldKind.IPV4), requires=_IS_ARP, level=210, renamed=True)
ARP_SHA = declare(Field("arp saddr ether", 1 << 48, FieldKind.MAC), requires=_IS_ARP, level=220, renamed=True)
ARP_THA = declare(
    Field("arp daddr ether", 1 << 48, FieldKind.MAC), requires=_IS_ARP, level=230, default=0, renamed=True
)

# --- IP -----------------------------------------------------------------------------------------------------

SADDR4 = declare(
    Field("ip saddr", 1 << 32, FieldKind.IPV4), requires=_IS_IPV4, level=250, option="--source", renamed=True
)
DADDR4 = declare(
    Field("ip daddr", 1 << 32, FieldKind.IPV4), requires=_IS_IPV4, level=280, option="--dest", renamed=True
)
SADDR6 = declare(
    Field("ip6 saddr", 1 << 128, FieldKind.IPV6), requires=_IS_IPV6, level=260, option="--source", renamed=True
)
DADDR6 = declare(
    Field("ip6 daddr", 1 << 128, FieldKind.IPV6), requires=_IS_IPV6, level=290, option="--dest", renamed=True
)
NO_EXTENSION = 256
EXTENSION = declare(Field("ip6 extension", 257), requires=_IS_IPV6, level=380, default=NO_EXTENSION)
"""The extension header that an IPv6 packet begins with, by its number; :data:`NO_EXTENSION` where it has none."""
EXTENSIONS = _one_of(0, 43, 51, 60, 135, 139, 140)
"""Hop-by-hop, routing, authentication, destination, mobility, HIP and Shim6 (IANA's list). Fragments are apart."""
L4PROTO = declare(Field("l4proto", 256, FieldKind.PROTOCOL), requires=_IS_IP, level=240, default=6)
"""The transport protocol (the last next-header of IPv6 that is no extension)."""
FRAGMENT = declare(
    _enum("fragment", "whole", "first", "later"), requires=_IS_IP, level=350, default=0, option="--fragment"
)
"""Unfragmented, the first fragment, or a later one, which has no transport header."""
TTL = declare(Field("ttl", 256), requires=_IS_IP, level=420, default=64)
LENGTH = declare(Field("length", 1 << 16), requires=_IS_IP, level=430, default=60)
DSCP = declare(Field("dscp", 64), requires=_IS_IP, level=440, default=0)
ADDRESS_TYPES = (
    "unspec", "unicast", "local", "broadcast", "anycast", "multicast",
    "blackhole", "unreachable", "prohibit", "throw", "nat", "xresolve",
)  # fmt: skip
SADDR_TYPE = declare(_enum("saddr type", *ADDRESS_TYPES), requires=_IS_IP, level=390)
"""The kind of the source address in the host's routing tables (RTN_* of include/uapi/linux/rtnetlink.h)."""
DADDR_TYPE = declare(_enum("daddr type", *ADDRESS_TYPES), requires=_IS_IP, level=400)

# --- transport ----------------------------------------------------------------------------------------------

_HAS_HEADER = (FRAGMENT, IntervalSet.of((0, 1)))
"""The transport header is in whole packets and in first fragments."""
_HAS_PORTS = ((L4PROTO, _one_of(*PORT_PROTOCOLS)), _HAS_HEADER)
_IS_ICMP6 = (*_IS_IPV6, (L4PROTO, _one_of(58)), _HAS_HEADER)

SPORT = declare(Field("sport", 1 << 16), requires=_HAS_PORTS, level=300, option="--sport", renamed=True)
DPORT = declare(Field("dport", 1 << 16), requires=_HAS_PORTS, level=270, option="--dport", renamed=True)
TH_SOURCE = declare(
    Field("th sport bytes", 1 << 16),
    requires=((L4PROTO, L4PROTO.everything - _one_of(1, 58, *PORT_PROTOCOLS)), _HAS_HEADER),
    level=360,
)
"""The first two bytes behind the network header, of protocols without ports and other than ICMP; the next two are
:data:`TH_DESTINATION`, also for ICMP (its checksum).
"""
TH_DESTINATION = declare(
    Field("th dport bytes", 1 << 16),
    requires=((L4PROTO, L4PROTO.everything - _one_of(*PORT_PROTOCOLS)), _HAS_HEADER),
    level=370,
)
TCP_FLAGS = declare(
    Field("tcp flags", 256, FieldKind.TCP_FLAGS), requires=((L4PROTO, _one_of(6)), _HAS_HEADER), level=340
)
ICMP = declare(
    Field("icmp", 1 << 16, FieldKind.ICMP),
    requires=(*_IS_IPV4, (L4PROTO, _one_of(1)), _HAS_HEADER),
    level=310,
    option="--icmp-type",
)
"""ICMP type and code: ``type << 8 | code``."""
ICMP6 = declare(Field("icmpv6", 1 << 16, FieldKind.ICMP), requires=_IS_ICMP6, level=320, option="--icmp-type")
ND_TARGET = declare(
    Field("nd target", 1 << 128, FieldKind.IPV6),
    requires=(*_IS_ICMP6, (ICMP6, IntervalSet.of((135 << 8, 136 << 8 | 0xFF)))),
    level=330,
    renamed=True,
)
"""The address that a neighbour solicitation or advertisement is about (RFC 4861, sections 4.3 and 4.4)."""

# --- connections --------------------------------------------------------------------------------------------

CT_STATES = ("invalid", "established", "related", "new", "untracked")
CT_STATE = declare(_enum("ct state", *CT_STATES), level=20)
"""The state that connection tracking gives to the packet. A packet's own value is the result of a lookup that knows
every connection. The state that a rule sees depends on its hook: :mod:`~pvefw_nft.verify.simulate.tracking`.
"""
TRACKING = declare(_enum("tracking", "on", "off", "template"), level=30)
"""The effect of rules before the lookup: none, ``notrack``, or a zone or helper."""
CT_DIRECTION = declare(_enum("ct direction", "original", "reply"), level=40, default=0)
CT_STATUS = {
    name: declare(Field(f"ct status {name}", 2, FieldKind.BIT), level=50 + place)
    for place, name in enumerate(("expected", "seen-reply", "assured", "confirmed", "snat", "dnat", "dying"))
}

# --- the host -----------------------------------------------------------------------------------------------

IIF = declare(Field("iif", 1 << 128, FieldKind.INTERFACE))
"""Input interface. IP hooks of a bridged packet: the bridge; bridge hooks: the port. :data:`NO_INTERFACE` in a hook
that has none; likewise ``OIF``, ``PHYSIN`` and ``PHYSOUT``.
"""
NO_INTERFACE = 0
"""The name that a hook without such an interface shows rules: an empty one, so that only a negated match holds
(ip_packet_match, xt_physdev.c, nft_meta_store_ifname, ebt_dev_check).
"""
OIF = declare(Field("oif", 1 << 128, FieldKind.INTERFACE))
PHYSIN = declare(Field("physdev in", 1 << 128, FieldKind.INTERFACE))
"""The bridge port by which a packet came, in IP hooks (br_netfilter)."""
PHYSOUT = declare(Field("physdev out", 1 << 128, FieldKind.INTERFACE))
IBR = declare(Field("ibrname", 1 << 128, FieldKind.INTERFACE))
"""The bridge of the input port, in bridge hooks."""
OBR = declare(Field("obrname", 1 << 128, FieldKind.INTERFACE))
IS_BRIDGED = declare(Field("physdev is bridged", 2, FieldKind.BIT))
"""1 where an IP hook sees a packet that is bridged, not routed. Always present in IP hooks."""
SKUID = declare(Field("skuid", 1 << 32), level=450, optional=True)
"""The user of the socket that sends the packet; ``SKGID`` is the group. Packets from other hosts have neither."""
SKGID = declare(Field("skgid", 1 << 32), level=460, optional=True)

ON_DEMAND = 999
"""The level of fields made on demand: between all others and the marks."""
MARK = tuple(declare(Field(f"mark bit {bit}", 2, FieldKind.BIT), level=ON_DEMAND + 1 + bit) for bit in range(32))
"""The bits of the packet mark, lowest first."""
CT_MARK = tuple(declare(Field(f"ct mark bit {bit}", 2, FieldKind.BIT), level=ON_DEMAND + 33 + bit) for bit in range(32))
"""The bits of the connection mark, lowest first."""

# --- tables -------------------------------------------------------------------------------------------------

PRESENCE: Mapping[Field, tuple[tuple[Field, IntervalSet], ...]] = {
    on: known.requires for on, known in DECLARED.items() if known.requires
}
"""Which values of other fields a packet must have to have this one; fields not listed depend on the hook
alone.
"""
DEFAULTS: Mapping[Field, int] = {on: known.default for on, known in DECLARED.items() if known.default is not None}
"""The values of fields in an ordinary packet. Those that depend on the rest of the packet are not listed."""


def has_field(packet: Mapping[Field, int], on: Field) -> bool:
    """Whether a packet with these fields has this one, as far as they tell."""
    return all(needed in packet and packet[needed] in values for needed, values in PRESENCE.get(on, ()))


def protocols_of(on: Field) -> IntervalSet:
    """Return the network protocols (``PROTOCOL``) of the packets that can have this field."""
    found = PROTOCOL.everything
    for needed, values in PRESENCE.get(on, ()):
        found &= values if needed is PROTOCOL else protocols_of(needed)
    return found


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


@lru_cache(maxsize=1 << 15)
def interface_number(name: str) -> int:
    """Return the value of an interface field for this name.

    Raises ValueError where it is no interface name (IFNAMSIZ, include/uapi/linux/if.h: at most 15 bytes).
    """
    raw = name.encode()
    if len(raw) > 15 or b"\0" in raw:
        raise ValueError(f"not an interface name: {name!r}")
    return int.from_bytes(raw.ljust(16, b"\0"), "big")


def interface_name(number: int) -> str:
    """Return the interface name of this value of an interface field."""
    return number.to_bytes(16, "big").rstrip(b"\0").decode(errors="replace")


@lru_cache(maxsize=1 << 15)
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
