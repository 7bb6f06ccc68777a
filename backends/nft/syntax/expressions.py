"""Expressions: fields of a packet, and the values they are compared with.

Each is a ``TypedDict`` of the very shape libnftables reads, so that encoding it is all there is to do. They are
shared between rules: never change one.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, TypedDict

MetaKey: TypeAlias = Literal[
    "protocol", "nfproto", "l4proto", "iifname", "oifname", "ibrname", "obrname", "pkttype", "mark"
]


class _MetaKey(TypedDict):
    key: MetaKey


class Meta(TypedDict):
    """A property of the packet that is not in the packet itself."""

    meta: _MetaKey


CtKey: TypeAlias = Literal["state", "mark", "zone", "status", "direction", "label"]


class _CtKey(TypedDict):
    key: CtKey


class Ct(TypedDict):
    """A property of the packet's connection."""

    ct: _CtKey


class _PayloadField(TypedDict):
    protocol: str
    field: str


class Payload(TypedDict):
    """A field of a header, which also asks that the packet has that header."""

    payload: _PayloadField


class _RawBody(TypedDict):
    base: Literal["ll", "nh", "th"]
    offset: int
    len: int


class Raw(TypedDict):
    """Bits of a packet that nft has no name for."""

    payload: _RawBody


class _ExtensionBody(TypedDict):
    name: str


class ExtensionHeader(TypedDict):
    """Whether an IPv6 packet has an extension header."""

    exthdr: _ExtensionBody


class _FibBody(TypedDict):
    result: Literal["type"]
    flags: list[str]


class Fib(TypedDict):
    """The routing table's type of an address."""

    fib: _FibBody


class _PrefixBody(TypedDict):
    addr: str
    len: int


class Prefix(TypedDict):
    """A network."""

    prefix: _PrefixBody


class Range(TypedDict):
    """The values from the first to the last, both included."""

    range: list[Constant]


Constant: TypeAlias = int | str
Single: TypeAlias = Constant | Prefix | Range


class Values(TypedDict):
    """A value for each part of a :class:`Concatenation`."""

    concat: list[Single]


Value: TypeAlias = Single | Values


class AnonymousSet(TypedDict):
    """Alternative values; no two overlap."""

    set: list[Value]


class _MapBody(TypedDict):
    key: Selector
    data: MapData


class MapData(TypedDict):
    """Pairs of a key and its value; no two keys overlap."""

    set: list[tuple[Value, Constant]]


class Map(TypedDict):
    """The value that an anonymous map has for the key; none: the rule ends."""

    map: _MapBody


BitAnd = TypedDict("BitAnd", {"&": "list[Selector | Constant]"})
"""Bits of a value."""

BitOr = TypedDict("BitOr", {"|": "list[Selector | Constant]"})
"""Values with bits set."""


class Concatenation(TypedDict):
    """Several selectors that are looked up as one."""

    concat: list[Selector]


Selector: TypeAlias = Meta | Ct | Payload | Raw | ExtensionHeader | Fib | BitAnd | Concatenation
Right: TypeAlias = Value | AnonymousSet | list[Constant]


def meta(key: MetaKey) -> Meta:
    """Return the expression for a property of the packet, such as ``meta iifname``."""
    return {"meta": {"key": key}}


def ct(key: CtKey) -> Ct:
    """Return the expression for a property of the connection, such as ``ct state``."""
    return {"ct": {"key": key}}


def payload(protocol: str, field: str) -> Payload:
    """Return the expression for a header's field, such as ``tcp dport``."""
    return {"payload": {"protocol": protocol, "field": field}}


def raw(base: Literal["ll", "nh", "th"], offset: int, length: int) -> Raw:
    """Return the expression for bits behind the start of a layer's header; offset and length in bits."""
    return {"payload": {"base": base, "offset": offset, "len": length}}


def extension_header(name: str) -> ExtensionHeader:
    """Return the expression that is true for packets with an IPv6 extension header."""
    return {"exthdr": {"name": name}}


def fib_type(side: Literal["saddr", "daddr"]) -> Fib:
    """Return the expression for the type of an address, as the routing table has it."""
    return {"fib": {"result": "type", "flags": [side]}}


def bits(value: Selector, mask: Constant) -> BitAnd:
    """Return the expression for the bits of a value that are in the mask."""
    return {"&": [value, mask]}


def with_bits(value: Selector, mask: Constant) -> BitOr:
    """Return the expression for a value with the bits of the mask set."""
    return {"|": [value, mask]}


def prefix(address: str, length: int) -> Prefix:
    """Return the value for a network."""
    return {"prefix": {"addr": address, "len": length}}


def interval(first: Constant, last: Constant) -> Range:
    """Return the value for an interval."""
    return {"range": [first, last]}


def concatenation(selectors: list[Selector]) -> Concatenation:
    """Return the expression that joins selectors."""
    return {"concat": selectors}


def joined(values: list[Single]) -> Values:
    """Return the value of a concatenation."""
    return {"concat": values}


def anonymous_set(values: list[Value]) -> AnonymousSet:
    """Return the value for a set. nft refuses overlapping members, and an empty set (nft 1.0.6)."""
    return {"set": values}


def value_map(key: Selector, pairs: list[tuple[Value, Constant]]) -> Map:
    """Return the expression that looks a key up."""
    return {"map": {"key": key, "data": {"set": pairs}}}


def named_set(name: str) -> str:
    """Return the value that refers to a set of the table by its name."""
    return f"@{name}"
