"""Fields: what a rule can look at in a packet, and at each hook."""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, final

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
"""Length of a hardware address, 6 for Ethernet; ``ARP_PLEN`` is the length of a protocol address, 4 for IPv4."""
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
:data:`TH_DESTINATION`, also for ICMP (its checksum).
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
"""The state that connection tracking gives to the packet. A packet's own value is the result of a lookup that knows
every connection. The state that a rule sees depends on its hook: :mod:`~pvefw_nft.verify.simulate.tracking`.
"""
TRACKING = _enum("tracking", "on", "off", "template")
"""The effect of rules before the lookup: none, ``notrack``, or a zone or helper."""
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
"""The ether types of VLAN tags (IEEE 802.1Q): as ``PROTOCOL``, the type of a second tag."""
PORT_PROTOCOLS = (6, 17, 33, 132, 136)
"""The protocols with ports: TCP, UDP, DCCP, SCTP and UDP-Lite."""

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
