"""nft's expressions and values in JSON form: which field an expression reads, and which values a side means.

Source: libnftables-json(5), nft(8), and the listings of nftables 1.0.6 to 1.1. In JSON, nft leaves out the
matches that an expression depends on (``tcp dport`` implies ``meta l4proto tcp``); :func:`selector` gives
them back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from pvefw_nft.verify.model import (
    ADDRESS_TYPES,
    ARP,
    ARP_HLEN,
    ARP_HTYPE,
    ARP_OP,
    ARP_PLEN,
    ARP_PTYPE,
    ARP_SHA,
    ARP_SPA,
    ARP_THA,
    ARP_TPA,
    CT_DIRECTION,
    CT_STATE,
    DADDR4,
    DADDR6,
    DADDR_TYPE,
    DPORT,
    DSCP,
    ETHER_DST,
    ETHER_SRC,
    ETHER_TYPE,
    IBR,
    ICMP,
    ICMP6,
    IIF,
    IPV4,
    IPV6,
    L4PROTO,
    LENGTH,
    ND_TARGET,
    OBR,
    OIF,
    PKTTYPE,
    PORT_PROTOCOLS,
    PROTOCOL,
    SADDR4,
    SADDR6,
    SADDR_TYPE,
    SKGID,
    SKUID,
    SPORT,
    TCP_FLAGS,
    TTL,
    VLAN,
    VLAN_ID,
    Family,
    Field,
    FieldKind,
    Test,
    equals,
    interface_set,
    names,
)
from pvefw_nft.verify.model.intervals import IntervalSet

if TYPE_CHECKING:
    from collections.abc import Callable

Json: TypeAlias = "bool | int | str | list[Json] | dict[str, Json] | None"


class UnknownExpressionError(Exception):
    """An expression, value or statement that is not modelled; its argument is the text."""


@dataclass(frozen=True, slots=True)
class Selector:
    """The field that an expression reads, the conversion of values to its ranges, and the tests that it depends on.

    ``widen`` turns a range of the expression's own values into ranges of the field (an ICMP type into ranges of type
    and code); ``symbols`` are additional names, beyond the names of the field's kind. ``of_any_protocol``: in packets
    of other transport protocols the expression reads other fields.
    """

    field: Field
    depends: tuple[Test, ...] = ()
    symbols: dict[str, int] | None = None
    widen: Callable[[int, int], list[tuple[int, int]]] | None = None
    protocol: str | None = None
    size: int = 0
    of_any_protocol: bool = False

    @property
    def domain(self) -> int:
        """How many values the expression itself has."""
        return self.size or self.field.size


def _type_ranges(first: int, last: int) -> list[tuple[int, int]]:
    return [(first << 8, last << 8 | 0xFF)]


def _code_ranges(first: int, last: int) -> list[tuple[int, int]]:
    return [(kind << 8 | first, kind << 8 | last) for kind in range(256)]


_ICMP_CODES = {
    "net-unreachable": 0, "host-unreachable": 1, "prot-unreachable": 2, "port-unreachable": 3,
    "frag-needed": 4, "net-prohibited": 9, "host-prohibited": 10, "admin-prohibited": 13,
}  # fmt: skip
_ICMP6_CODES = {
    "no-route": 0, "admin-prohibited": 1, "addr-unreachable": 3, "port-unreachable": 4, "policy-fail": 5,
    "reject-route": 6,
}  # fmt: skip
_ARP_OPS = {"request": 1, "reply": 2, "rrequest": 3, "rreply": 4, "inrequest": 8, "inreply": 9, "nak": 10}
DSCP_CLASSES = {
    **{f"cs{n}": n * 8 for n in range(8)},
    **{f"af{x}{y}": x * 8 + y * 2 for x in range(1, 5) for y in range(1, 4)},
    "ef": 46, "be": 0, "df": 0, "lephb": 1, "va": 44,
}  # fmt: skip
_PKTTYPES = {"unicast": 0, "host": 0, "broadcast": 1, "multicast": 2, "other": 3}
_TYPES = {name: number for number, name in enumerate(ADDRESS_TYPES)}

_IP, _IP6, _ARP = equals(PROTOCOL, IPV4), equals(PROTOCOL, IPV6), equals(PROTOCOL, ARP)
_TAGGED = equals(ETHER_TYPE, VLAN)
ND_TYPES = IntervalSet.of((135 << 8, 136 << 8 | 0xFF))
"""Neighbour solicitations and advertisements, of any code."""
PORTED = Test(L4PROTO, IntervalSet.from_ranges((n, n) for n in PORT_PROTOCOLS))


def _icmp_symbols(types: dict[str, tuple[int, int, int]]) -> dict[str, int]:
    return {name: kind for name, (kind, first, last) in types.items() if (first, last) == (0, 0xFF)}


ND_TARGET_SELECTOR = Selector(ND_TARGET, (_IP6, equals(L4PROTO, 58), Test(ICMP6, ND_TYPES)))

_PAYLOADS: dict[tuple[str, str], Selector] = {
    ("ether", "saddr"): Selector(ETHER_SRC),
    ("ether", "daddr"): Selector(ETHER_DST),
    ("ether", "type"): Selector(ETHER_TYPE),
    ("vlan", "id"): Selector(VLAN_ID, (_TAGGED,)),
    ("vlan", "type"): Selector(PROTOCOL, (_TAGGED,)),
    ("arp", "htype"): Selector(ARP_HTYPE, (_ARP,), {"ether": 1}),
    ("arp", "ptype"): Selector(ARP_PTYPE, (_ARP,)),
    ("arp", "hlen"): Selector(ARP_HLEN, (_ARP,)),
    ("arp", "plen"): Selector(ARP_PLEN, (_ARP,)),
    ("arp", "operation"): Selector(ARP_OP, (_ARP,), _ARP_OPS),
    ("arp", "saddr ip"): Selector(ARP_SPA, (_ARP,)),
    ("arp", "daddr ip"): Selector(ARP_TPA, (_ARP,)),
    ("arp", "saddr ether"): Selector(ARP_SHA, (_ARP,)),
    ("arp", "daddr ether"): Selector(ARP_THA, (_ARP,)),
    ("ip", "saddr"): Selector(SADDR4, (_IP,)),
    ("ip", "daddr"): Selector(DADDR4, (_IP,)),
    ("ip", "protocol"): Selector(L4PROTO, (_IP,)),
    ("ip", "ttl"): Selector(TTL, (_IP,)),
    ("ip", "length"): Selector(LENGTH, (_IP,)),
    ("ip", "dscp"): Selector(DSCP, (_IP,), DSCP_CLASSES),
    ("ip6", "saddr"): Selector(SADDR6, (_IP6,)),
    ("ip6", "daddr"): Selector(DADDR6, (_IP6,)),
    ("ip6", "nexthdr"): Selector(L4PROTO, (_IP6,)),
    ("ip6", "hoplimit"): Selector(TTL, (_IP6,)),
    ("ip6", "dscp"): Selector(DSCP, (_IP6,), DSCP_CLASSES),
    ("th", "sport"): Selector(SPORT, of_any_protocol=True),
    ("th", "dport"): Selector(DPORT, of_any_protocol=True),
    **{
        (name, field): Selector(on, (equals(L4PROTO, number),), protocol=name)
        for name, number in (("tcp", 6), ("udp", 17), ("udplite", 136), ("sctp", 132), ("dccp", 33))
        for field, on in (("sport", SPORT), ("dport", DPORT))
    },
    ("tcp", "flags"): Selector(TCP_FLAGS, (equals(L4PROTO, 6),), names.TCP_FLAG_BITS),
    ("icmp", "type"): Selector(
        ICMP, (_IP, equals(L4PROTO, 1)), _icmp_symbols(names.ICMP_TYPES), _type_ranges, size=256
    ),
    ("icmp", "code"): Selector(ICMP, (_IP, equals(L4PROTO, 1)), _ICMP_CODES, _code_ranges, size=256),
    ("icmpv6", "type"): Selector(
        ICMP6, (_IP6, equals(L4PROTO, 58)), _icmp_symbols(names.ICMP6_TYPES), _type_ranges, size=256
    ),
    ("icmpv6", "taddr"): ND_TARGET_SELECTOR,
    ("icmpv6", "code"): Selector(ICMP6, (_IP6, equals(L4PROTO, 58)), _ICMP6_CODES, _code_ranges, size=256),
}

_META: dict[str, Selector] = {
    "protocol": Selector(PROTOCOL),
    "l4proto": Selector(L4PROTO),
    "iifname": Selector(IIF),
    "oifname": Selector(OIF),
    "iif": Selector(IIF),
    "oif": Selector(OIF),
    "ibrname": Selector(IBR),
    "ibridgename": Selector(IBR),
    "obrname": Selector(OBR),
    "obridgename": Selector(OBR),
    "pkttype": Selector(PKTTYPE, symbols=_PKTTYPES),
    "skuid": Selector(SKUID),
    "skgid": Selector(SKGID),
    "length": Selector(LENGTH),
}

_NFPROTO = Selector(
    PROTOCOL,
    symbols={"ipv4": 2, "ipv6": 10},
    widen=lambda first, last: [(p, p) for n, p in ((2, IPV4), (10, IPV6)) if first <= n <= last],
    size=256,
)
_CT: dict[str, Selector] = {
    "direction": Selector(CT_DIRECTION, symbols={"original": 0, "reply": 1}),
    "state": Selector(CT_STATE),
}


def selector(expression: Json, family: Family) -> Selector:
    """Return the field of an expression in a table of this family; raises UnknownExpressionError."""
    if isinstance(expression, dict) and len(expression) == 1:
        (kind, body), = expression.items()  # fmt: skip
        if isinstance(body, dict):
            known = _select(kind, body, family)
            if known is not None:
                return known
    raise UnknownExpressionError(text_of(expression))


def _select(kind: str, body: dict[str, Json], family: Family) -> Selector | None:
    if kind == "payload":
        return _PAYLOADS.get((str(body.get("protocol")), str(body.get("field"))))
    if kind == "meta":
        key = str(body.get("key"))
        if key == "nfproto" and family is not Family.BRIDGE:
            return _NFPROTO
        return _META.get(key)
    if kind == "ct" and "dir" not in body:
        return _CT.get(str(body.get("key")))
    if kind == "fib" and body.get("result") == "type":
        return _fib(body.get("flags"))
    return None


def _fib(flags: Json) -> Selector | None:
    given = flags if isinstance(flags, list) else [flags]
    for flag, on in (("saddr", SADDR_TYPE), ("daddr", DADDR_TYPE)):
        if given == [flag]:
            return Selector(on, symbols=_TYPES)
        if flag in given and set(map(str, given)) <= {flag, "iif", "oif"}:
            here = Field(f"{on} here", len(ADDRESS_TYPES), FieldKind.ENUM, ADDRESS_TYPES)
            return Selector(here, symbols=_TYPES)
    return None


def as_list(value: Json) -> list[Json]:
    """Return a value that must be a list; raises UnknownExpressionError."""
    if isinstance(value, list):
        return value
    raise UnknownExpressionError(text_of(value))


def as_object(value: Json) -> dict[str, Json]:
    """Return a value that must be an object; raises UnknownExpressionError."""
    if isinstance(value, dict):
        return value
    raise UnknownExpressionError(text_of(value))


def as_pair(value: Json) -> tuple[Json, Json]:
    """Return a value that must be a list of two; raises UnknownExpressionError."""
    if isinstance(value, list) and len(value) == 2:
        return value[0], value[1]
    raise UnknownExpressionError(text_of(value))


def text_of(expression: Json) -> str:
    """Return a short text of an expression or statement, for errors; much like nft's own syntax."""
    if isinstance(expression, dict):
        if len(expression) == 1:
            (kind, body), = expression.items()  # fmt: skip
            if isinstance(body, dict) and kind in ("payload", "meta", "ct"):
                words = [str(body[key]) for key in ("protocol", "field", "key") if key in body]
                return " ".join(words if kind == "payload" else [kind, *words])
            if body is None:
                return kind
            if kind == "match":
                return text_of(body)
            return f"{kind} {text_of(body)}"
        if "left" in expression:
            return f"{text_of(expression['left'])} {expression.get('op')} {text_of(expression.get('right'))}"
        return " ".join(f"{key} {text_of(value)}" for key, value in expression.items())
    if isinstance(expression, list):
        return "{ " + ", ".join(text_of(part) for part in expression) + " }"
    return str(expression)


# --- values -------------------------------------------------------------------------------------------------


def ranges_of(on: Selector, value: Json) -> list[tuple[int, int]]:
    """Return the ranges of the expression's own values that a value, range, prefix or set means.

    Sets by name are resolved before; raises UnknownExpressionError for an expression that is not modelled, ValueError
    for an invalid one.
    """
    if isinstance(value, (int, str)) and not isinstance(value, bool):
        return [_within(on, *_scalar(on, value))]
    if isinstance(value, list):
        return [pair for part in value for pair in ranges_of(on, part)]
    if isinstance(value, dict) and len(value) == 1:
        (kind, body), = value.items()  # fmt: skip
        if kind == "range":
            first, last = as_pair(body)
            return [_within(on, _scalar(on, first)[0], _scalar(on, last)[1])]
        if kind == "prefix" and isinstance(body, dict):
            return [_within(on, *_prefix(on, body))]
        if kind == "set":
            return ranges_of(on, body)
        if kind == "elem" and isinstance(body, dict):
            return ranges_of(on, body["val"])
    raise UnknownExpressionError(text_of(value))


def _within(on: Selector, first: int, last: int) -> tuple[int, int]:
    """Return a range. Raises ValueError if the expression has no such values: a damaged listing."""
    if not 0 <= first <= last < on.domain:
        raise ValueError(f"{on.field} has no values {first} to {last}")
    return first, last


def _prefix(on: Selector, body: dict[str, Json]) -> tuple[int, int]:
    address, length = body.get("addr"), body.get("len")
    if not isinstance(length, int):
        raise UnknownExpressionError(text_of(body))
    bits = (on.domain - 1).bit_length()
    first, _ = _scalar(on, address)
    low = (1 << (bits - length)) - 1
    return first & ~low, first | low


def values_of(on: Selector, value: Json) -> IntervalSet:
    """Return the values of the selector's field that a side of a match means."""
    if isinstance(value, str) and _is_plain_interface(on):
        return interface_set(value.replace("\\*", "\0"), "*")
    ranges = ranges_of(on, value)
    if on.widen is not None:
        widen = on.widen
        ranges = [pair for first, last in ranges for pair in widen(first, last)]
    return IntervalSet.from_ranges(ranges)


def _is_plain_interface(on: Selector) -> bool:
    """Tell whether an expression reads an interface's name as it is: the members of pvefw's maps, by the thousand."""
    return on.field.kind is FieldKind.INTERFACE and on.symbols is None and on.widen is None and not on.size


def _scalar(on: Selector, value: Json) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if not isinstance(value, str):
        raise UnknownExpressionError(text_of(value))
    if on.symbols is not None and value in on.symbols:
        return on.symbols[value], on.symbols[value]
    kind = on.field.kind
    if kind is FieldKind.INTERFACE:
        first, last = next(iter(interface_set(value.replace("\\*", "\0"), "*")))
        return first, last
    number = _SCALARS.get(kind, _plain_number)(on, value)
    return number, number


def _plain_number(on: Selector, value: str) -> int:
    if on.field in (SPORT, DPORT):
        return names.port_number(value, on.protocol)
    if value in on.field.names:
        return on.field.names.index(value)
    try:
        return int(value, 0)
    except ValueError:
        raise UnknownExpressionError(f"{on.field} {value}") from None


def _ipv6_number(value: str) -> int:
    """Return an address; one that is compared with bits nft has no name for is written as a number."""
    return int(value, 16) if value.startswith("0x") else names.address_number(value, 6)


_SCALARS: dict[FieldKind, Callable[[Selector, str], int]] = {
    FieldKind.IPV4: lambda _on, value: names.address_number(value, 4),
    FieldKind.IPV6: lambda _on, value: _ipv6_number(value),
    FieldKind.MAC: lambda _on, value: names.mac_number(value),
    FieldKind.PROTOCOL: lambda _on, value: names.protocol_number(value),
    FieldKind.ETHERTYPE: lambda _on, value: names.ether_type(value),
}
