"""Selectors and values in nft's text (nft(8), "EXPRESSIONS" and "DATA TYPES")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from pvefw_nft.backends.nft.syntax.expressions import CtKey, MetaKey
from pvefw_nft.backends.nft.syntax.text.names import NAMES, TCP_FLAGS
from pvefw_nft.backends.nft.syntax.text.words import (
    address,
    constant,
    fields,
    integer,
    interface,
    number_or_address,
    one_of,
    reference,
    some,
    whole,
)
from pvefw_nft.errors import InternalError

if TYPE_CHECKING:
    from pvefw_nft.backends.nft.syntax.text.words import Node

_META_KEYS, _CT_KEYS = get_args(MetaKey), get_args(CtKey)

_PORTS = frozenset({"sport", "dport"})

_FIELDS = {
    "ether": {"saddr", "daddr", "type"},
    "arp": {"ptype", "htype", "hlen", "plen", "operation", "saddr ip", "saddr ether", "daddr ip", "daddr ether"},
    "ip": {"saddr", "daddr", "protocol", "frag-off"},
    "ip6": {"saddr", "daddr", "nexthdr"},
    "icmp": {"type", "code"},
    "icmpv6": {"type", "code"},
    "tcp": _PORTS | {"flags"},
    **dict.fromkeys(("udp", "udplite", "sctp", "dccp", "th"), _PORTS),
}
"""The fields of headers by protocol."""

_EXTENSION_HEADERS = ("hbh", "rt", "frag", "dst", "mh")

_INTERFACES = ("iifname", "oifname", "ibrname", "obrname")

_MASKS = ("mark",)


def selector_text(node: Node) -> str:
    """Return the text of what a match compares: one operand, several in a concatenation, or one under a mask."""
    ((kind, body),) = node.items()
    if kind == "concat":
        return " . ".join(map(simple_selector_text, some(body)))
    if kind == "&":
        left, mask = body
        key = simple_selector_text(left)
        return f"{key} & {_mask(key, mask)}"
    return simple_selector_text(node)


def simple_selector_text(node: Node) -> str:
    """Return the text of a selector that is one operand, whatever stands beside it."""
    ((kind, body),) = node.items()
    match kind:
        case "meta":
            key = one_of(fields(body, {"key"})["key"], _META_KEYS)
            return key if key in ("iifname", "oifname") else f"meta {key}"
        case "ct":
            return f"ct {one_of(fields(body, {'key'})['key'], _CT_KEYS)}"
        case "payload" if "base" in body:
            fields(body, {"base", "offset", "len"})
            return f"@{one_of(body['base'], ('ll', 'nh', 'th'))},{integer(body['offset'])},{integer(body['len'])}"
        case "payload":
            fields(body, {"protocol", "field"})
            protocol = one_of(body["protocol"], _FIELDS)
            return f"{protocol} {one_of(body['field'], _FIELDS[protocol])}"
        case "exthdr":
            return f"exthdr {one_of(fields(body, {'name'})['name'], _EXTENSION_HEADERS)}"
        case "fib":
            fields(body, {"flags", "result"})
            sides = [one_of(side, ("saddr", "daddr")) for side in some(body["flags"])]
            return f"fib {' . '.join(sides)} {one_of(body['result'], ('type',))}"
    raise InternalError(f"nft's text has no place for the expression {kind!r}")


def right_side(left: str, right: Any) -> str:  # noqa: ANN401 - a value, a set of them, or names of bits
    """Return the text of what a match compares the selector with, which is spelled ``left``."""
    selector, masked, _ = left.partition(" & ")
    if selector == "tcp flags" and masked:
        return _flags(right)
    if selector == "ct status" and masked:
        return hex(whole(right))
    if isinstance(right, list):
        return ",".join(map(constant, some(right)))
    if isinstance(right, dict) and "set" in right:
        return f"{{ {', '.join(value_text(selector, value) for value in some(fields(right, {'set'})['set']))} }}"
    if isinstance(right, str) and right.startswith("@"):
        return reference(right)
    return value_text(selector, right)


def _flags(bits: int) -> str:
    """Spell flags of TCP: ``fin``, ``(fin | syn)``, or ``0x0`` for none."""
    if whole(bits) >= 1 << len(TCP_FLAGS):
        raise InternalError(f"nft's text has no place for the flags {bits!r}")
    names = [name for bit, name in enumerate(TCP_FLAGS) if bits >> bit & 1]
    if not names:
        return "0x0"
    return names[0] if len(names) == 1 else f"({' | '.join(names)})"


def _mask(key: str, mask: Any) -> str:  # noqa: ANN401 - a number or an address
    if key == "tcp flags":
        return _flags(mask)
    return hex(whole(mask)) if isinstance(mask, int) and key.split(" ")[-1] not in _MASKS else value_text(key, mask)


def value_text(of: str, value: Any) -> str:  # noqa: ANN401 - a constant, network, range or concatenation
    """Spell a value that is compared with the selector spelled ``of``, or is of that type of a set's elements."""
    if isinstance(value, dict):
        ((kind, body),) = value.items()
        match kind:
            case "prefix":
                fields(body, {"addr", "len"})
                return f"{address(body['addr'])}/{integer(body['len'], 128)}"
            case "range":
                first, last = body
                return f"{_plain(first)}-{_plain(last)}"
            case "concat":
                return " . ".join(value_text(part, one) for part, one in zip(of.split(" . "), body, strict=True))
        raise InternalError(f"nft's text has no place for the value {kind!r}")
    name = of.rpartition(" ")[2]
    if name in _INTERFACES:
        return interface(value)
    if isinstance(value, int):
        if name in _MASKS:
            return f"0x{whole(value):08x}"
        return NAMES.get(of, {}).get(whole(value)) or str(value)
    return constant(value)


def _plain(value: Any) -> str:  # noqa: ANN401 - a number or an address
    return integer(value) if isinstance(value, int) else number_or_address(value)
