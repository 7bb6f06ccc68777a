"""Sets and maps of rules by name, so that equal ones are one object of the table.

nf_tables walks all sets of a table for each new one, and names those without a name by a scan (net/netfilter/
nf_tables_api.c, ``nf_tables_set_alloc_name``): the time of a load grows with the square of their number. So a set in a
rule gets a name that follows from its content, and rules of other chains with the same set share it.

Before, in the chain of each guest's NIC::

    meta l4proto { 6, 17 } th dport 53 accept

After::

    set protocols-6_17 { type inet_proto; size 2; elements = { 6, 17 } }
    meta l4proto @protocols-6_17 th dport 53 accept

A map must have a name for another reason, too. A transaction that replaces a rule takes the elements of its unnamed map
out of the new generation (nf_tables_api.c, ``nft_map_deactivate``). A packet that is still in the old rules then finds
nothing and continues behind the rule: it bypasses a `drop`. A named map can stay until no packet is in the old rules.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, cast

from pvefw_nft.backends.nft.syntax.expressions import named_set
from pvefw_nft.backends.nft.syntax.objects import ConstantSet

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pvefw_nft.backends.nft.syntax.expressions import Selector
    from pvefw_nft.backends.nft.syntax.objects import KeyType
    from pvefw_nft.backends.nft.syntax.statements import Statement

_META: dict[str, KeyType] = {
    "protocol": "ether_type",
    "l4proto": "inet_proto",
    "iifname": "ifname",
    "oifname": "ifname",
    "ibrname": "ifname",
    "obrname": "ifname",
}
_FIELDS: dict[tuple[str, str], KeyType] = {
    **{
        (protocol, field): "inet_service"
        for protocol in ("tcp", "udp", "dccp", "sctp", "udplite", "th")
        for field in ("sport", "dport")
    },
    **{("ip", field): "ipv4_addr" for field in ("saddr", "daddr")},
    **{("ip6", field): "ipv6_addr" for field in ("saddr", "daddr")},
    ("arp", "saddr ip"): "ipv4_addr",
    ("icmp", "type"): "icmp_type",
    ("icmpv6", "type"): "icmpv6_type",
}
"""The types of keys that rules look up in sets (nft(8), "DATA TYPES"); a set of another type stays in its rule."""

_KINDS: dict[KeyType, str] = {
    "inet_service": "ports",
    "inet_proto": "protocols",
    "icmp_type": "icmp",
    "icmpv6_type": "icmpv6",
}
_MAX_SPELLED = 48
"""Longest name, in characters, that lists the numbers of its set."""


def with_shared_sets(
    statements: Iterable[Statement], *, maps_only: bool = False
) -> tuple[tuple[Statement, ...], tuple[ConstantSet, ...]]:
    """Return statements that look into named sets and maps instead of their own, and those sets and maps.

    ``maps_only``: sets stay in their rules.
    """
    result: list[Statement] = []
    sets: list[ConstantSet] = []
    for statement in statements:
        made = None if maps_only and "vmap" not in statement else _shared(cast("dict[str, Any]", statement))
        if made is None:
            result.append(statement)
        else:
            result.append(made[0])
            sets.append(made[1])
    return tuple(result), tuple(sets)


def _shared(statement: dict[str, Any]) -> tuple[Statement, ConstantSet] | None:
    match statement:
        case {"match": {"op": op, "left": left, "right": {"set": values}}}:
            made = _constant_set(left, values, verdicts=False)
            if made is not None:
                return {"match": {"op": op, "left": left, "right": named_set(made.name)}}, made
        case {"vmap": {"key": key, "data": {"set": pairs}}}:
            made = _constant_set(key, pairs, verdicts=True)
            if made is not None:
                return {"vmap": {"key": key, "data": named_set(made.name)}}, made
    return None


def _constant_set(selector: Selector, elements: list[Any], *, verdicts: bool) -> ConstantSet | None:
    types = _types(selector)
    if types is None:
        return None
    keys = [element[0] for element in elements] if verdicts else elements
    name = _name(types, keys, elements, verdicts=verdicts)
    return ConstantSet(name, types, tuple(elements), verdicts=verdicts, intervals=any(map(_is_interval, keys)))


def _types(selector: Selector) -> tuple[KeyType, ...] | None:
    """Return the types of the parts of a selector; None if a part has none."""
    node = cast("dict[str, Any]", selector)
    parts = [_type(part) for part in node.get("concat", (node,))]
    known = tuple([kind for kind in parts if kind is not None])
    return known if len(known) == len(parts) else None


def _type(selector: dict[str, Any]) -> KeyType | None:
    match selector:
        case {"meta": {"key": key}}:
            return _META.get(key)
        case {"ct": {"key": "state"}}:
            return "ct_state"
        case {"payload": {"protocol": protocol, "field": field}}:
            return _FIELDS.get((protocol, field))
        case _:
            return None


def _is_interval(value: object) -> bool:
    return isinstance(value, dict) and ("prefix" in value or "range" in value)


def _name(types: tuple[KeyType, ...], keys: list[Any], elements: list[Any], *, verdicts: bool) -> str:
    """Return a name that tells a short set of numbers or states, else a digest: no two sets may have one name."""
    if verdicts and types == ("ct_state",):
        spelled = "_".join(f"{state}-{next(iter(verdict))}" for state, verdict in elements)
        if len(spelled) <= _MAX_SPELLED and all(None in verdict.values() for _, verdict in elements):
            return f"verdicts-{spelled}"
    kind = "verdicts" if verdicts else _KINDS.get(types[0], "values") if len(types) == 1 else "tuples"
    if kind in _KINDS.values():
        spelled = "_".join(map(_spelled_number, keys))
        if len(spelled) <= _MAX_SPELLED:
            return f"{kind}-{spelled}"
    text = json.dumps([types, elements], separators=(",", ":"))
    return f"{kind}-{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


def _spelled_number(value: Any) -> str:  # noqa: ANN401 - a number or a range of them
    return f"{value['range'][0]}-{value['range'][1]}" if isinstance(value, dict) else str(value)
