"""Reads the matches of nft rules, and the members of sets and maps that a packet is looked up in.

Example: ``{"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 22}`` becomes the test
``dport in [22]``, behind ``l4proto in [6]``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pvefw_nft.verify.model import (
    DPORT,
    EXTENSION,
    EXTENSIONS,
    FRAGMENT,
    ICMP,
    ICMP6,
    INNER_TYPE,
    INNER_VLAN_ID,
    IPV4,
    IPV6,
    L4PROTO,
    NO_EXTENSION,
    PROTOCOL,
    SPORT,
    TAGS,
    TCP_FLAGS,
    TH_DESTINATION,
    TH_SOURCE,
    VLAN_ID,
    All,
    Any,
    Condition,
    Family,
    Field,
    FieldKind,
    Not,
    Test,
    equals,
    expiry_field,
    negate,
    rate_test,
)
from pvefw_nft.verify.model.intervals import IntervalSet
from pvefw_nft.verify.readers.nft.parts import (
    flag_bits,
    helper_match,
    is_expression,
    label_match,
    mark_bits,
    mark_match,
    member_condition,
    route_match,
    state_match,
    status_match,
)
from pvefw_nft.verify.readers.nft.values import (
    ND_TARGET_SELECTOR,
    ND_TYPES,
    PORTED,
    Json,
    Selector,
    UnknownExpressionError,
    as_list,
    as_object,
    as_pair,
    ranges_of,
    selector,
    text_of,
    values_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pvefw_nft.verify.readers.nft.draft import RuleDraft

TAG_TYPES = IntervalSet.from_ranges((tag, tag) for tag in TAGS)
_TAG_FIELDS: dict[tuple[tuple[object, ...], int | None], Field] = {
    (("ll", 112, 16), 0x0FFF): VLAN_ID,
    (("ll", 144, 16), 0x0FFF): INNER_VLAN_ID,
    (("ll", 160, 16), None): INNER_TYPE,
}
"""Bits of a frame with two VLAN tags (IEEE 802.1Q, section 9.6): their place in the frame, mask, and field."""
_CONNECTION: dict[str, Callable[[str, Json], Condition | None]] = {
    "state": state_match,
    "label": label_match,
    "helper": helper_match,
}
"""The readers of matches on a property of the connection, by key."""
_BITWISE = (FieldKind.NUMBER, FieldKind.IPV4, FieldKind.IPV6, FieldKind.MAC)
"""Kinds of fields whose values are nft's own numbers, so that a mask means the same for both."""


def is_plain(left: dict[str, Json]) -> bool:
    """Return whether an expression reads a named field unchanged, by a cheap test: nearly all do."""
    payload, meta = left.get("payload"), left.get("meta")
    if len(left) != 1:
        return False
    if isinstance(payload, dict):
        return "protocol" in payload and "base" not in payload and payload.get("field") not in ("flags", "frag-off")
    return isinstance(meta, dict) and meta.get("key") != "mark"


def match_condition(rule: RuleDraft, left: Json, operator: str, right: Json) -> tuple[Condition, Selector | None]:
    """Return the condition of a match, after requiring what the fields that it reads depend on.

    And the field that the match compares, if the condition is the same in any rule of the table that meets what this
    field depends on; else None. Raises UnknownExpressionError.
    """
    if isinstance(right, str) and right in rule.table.counting:
        # rules fill this set as packets come: its members are as open as the state of a rate
        return rate_test(f"of who is in {right}", over=operator in ("==", "in")), None
    if isinstance(left, dict):
        if "concat" in left:
            condition = _concat(rule, left["concat"], right)
            return Not(condition) if operator == "!=" else condition, None
        special = None if is_plain(left) else _special(rule, left, operator, right)
        if special is not None:
            return special, None
    on = rule.selector(left)
    return _everywhere(rule, left, on, operator, right), None if on.of_any_protocol else on


def _everywhere(rule: RuleDraft, left: Json, on: Selector, operator: str, right: Json) -> Condition:
    """Return the condition of a match, also where its operand is in another field of the model.

    ``ip6 nexthdr`` is the number of the first header, which may be one of an extension; ``th dport`` are bytes of
    whatever follows the network header (nft_payload_eval and nft_meta_get_eval of net/netfilter).
    """
    if is_expression(left, "payload", "ip6", "nexthdr"):
        first = compare(rule, on, operator, right)
        assert isinstance(first, Test)
        extended = Test(EXTENSION, first.values & EXTENSIONS)
        return Any((All((equals(EXTENSION, NO_EXTENSION), first)), extended))
    if on.of_any_protocol and not rule.has(PORTED):
        others = (SPORT, ICMP, ICMP6, TH_SOURCE) if on.field is SPORT else (DPORT, TH_DESTINATION)
        return Any(tuple(compare(rule, replace(on, field=other), operator, right) for other in others))
    return compare(rule, on, operator, right)


def compare(rule: RuleDraft, on: Selector, operator: str, right: Json) -> Condition:
    """Return the condition that a field compares so with a value, or with a set by name."""
    timed = _timed(rule, right)
    if timed:
        return _expiring(rule, on, operator, right, timed)
    values = _values(rule, on, right)
    if operator in ("==", "in"):
        return Test(on.field, values)
    if operator in ("!=", "!"):
        return negate(Test(on.field, values))
    ranges = ranges_of(on, right)
    first, last = ranges[0][0], ranges[-1][1]
    wanted = {
        "<": (0, first - 1),
        "<=": (0, last),
        ">": (last + 1, on.domain - 1),
        ">=": (first, on.domain - 1),
    }[operator]
    if wanted[0] > wanted[1]:
        return Test(on.field, IntervalSet())
    pairs = on.widen(*wanted) if on.widen is not None else [wanted]
    return Test(on.field, IntervalSet.from_ranges(pairs))


def _values(rule: RuleDraft, on: Selector, right: Json) -> IntervalSet:
    if isinstance(right, str) and right.startswith("@"):
        key = (right, on.field)
        known = rule.table.values.get(key)
        if known is None or on.widen is not None:
            known = values_of(on, rule.table.members(right))
            rule.table.values[key] = known
        return known
    return values_of(on, right)


def _timed(rule: RuleDraft, right: Json) -> dict[str, list[Json]]:
    """Return the elements of a set that expire, by their timeout."""
    found: dict[str, list[Json]] = {}
    if isinstance(right, str) and right.startswith("@"):
        for element in rule.table.members(right):
            inner = element.get("elem") if isinstance(element, dict) else None
            if isinstance(inner, dict) and {"timeout", "expires"} & inner.keys():
                timeout = inner.get("timeout", rule.table.timeouts.get(right[1:], "a timeout"))
                found.setdefault(f"{timeout} s", []).append(inner["val"])
    return found


def _expiring(rule: RuleDraft, on: Selector, operator: str, right: Json, timed: dict[str, list[Json]]) -> Condition:
    """Return the condition of a set with elements that expire: each matches until then."""
    if operator not in ("==", "in", "!=", "!"):
        raise UnknownExpressionError(f"{on.field} {operator} {right}")
    expiring = [value for values in timed.values() for value in values]
    lasting = [
        element
        for element in rule.table.members(str(right))
        if not (isinstance(element, dict) and "elem" in element and as_object(element["elem"])["val"] in expiring)
    ]
    parts: list[Condition] = [Test(on.field, values_of(on, lasting))]
    parts += [
        All((Test(on.field, values_of(on, values)), equals(expiry_field(timeout), 0)))
        for timeout, values in timed.items()
    ]
    return Any(tuple(parts)) if operator in ("==", "in") else Not(Any(tuple(parts)))


def _concat(rule: RuleDraft, parts: Json, right: Json) -> Condition:
    """Return the condition of a concatenation in a set: one of the members, part by part."""
    selectors = [rule.selector(part) for part in as_list(parts)]
    if isinstance(right, str) and right.startswith("@"):
        members = rule.table.members(right)
    elif isinstance(right, dict) and "set" in right:
        members = as_list(right["set"])
    else:
        members = [right]
    return Any(tuple(of_member(rule, selectors, member) for member in members))


def of_member(rule: RuleDraft, selectors: list[Selector], element: Json) -> Condition:
    """Return the condition of one member of a set or map. Raises UnknownExpressionError.

    ``th dport`` is read there only beside a protocol that has ports, or behind a match of such.
    """
    condition = member_condition(selectors, element)
    if any(on.of_any_protocol for on in selectors) and not rule.has(PORTED):
        tests = condition.of if isinstance(condition, All) else (condition,)
        if not any(isinstance(t, Test) and t.field is L4PROTO and not t.values - PORTED.values for t in tests):
            raise UnknownExpressionError("th ports without a protocol")
    return condition


def map_entries(rule: RuleDraft, body: dict[str, Json]) -> list[tuple[Condition, Json]]:
    """Return the entries of a map that is looked up: what a packet must be for one, and its value."""
    key, data = body.get("key"), body.get("data")
    if isinstance(data, str) and data.startswith("@"):
        members: Json = rule.table.members(data)
    else:
        members = data.get("set") if isinstance(data, dict) else data
    concat = key.get("concat") if isinstance(key, dict) else None
    selectors = [rule.selector(part) for part in (concat if isinstance(concat, list) else [key])]
    return [
        (of_member(rule, selectors, element), value)
        for element, value in (as_pair(member) for member in as_list(members))
    ]


def _special(rule: RuleDraft, left: dict[str, Json], operator: str, right: Json) -> Condition | None:
    """Return the condition of a match on marks, flags, fragments or with a mask; None: a plain match."""
    mask: Json = None
    inner: Json = left
    if "&" in left:
        inner, mask = as_pair(left["&"])
    bits = mark_bits(inner)
    if bits is not None:
        return mark_match(bits, mask, operator, right)
    if is_expression(inner, "payload", "tcp", "flags"):
        return _tcp_flags(rule, inner, mask, operator, right)
    if is_expression(inner, "payload", "ip", "frag-off"):
        return _fragment(rule, mask, operator, right)
    if inner == {"exthdr": {"name": "frag"}} and mask is None:
        return _has_fragment_header(rule, operator, right)
    unnamed = _unnamed(rule, inner, mask, operator, right)
    if unnamed is not None:
        return unnamed
    if is_expression(inner, "ct", None, "status"):
        return status_match(mask, operator, right)
    for key, matching in _CONNECTION.items():
        if mask is None and is_expression(inner, "ct", None, key):
            return matching(operator, right)
    if mask is None and isinstance(fib := inner.get("fib") if isinstance(inner, dict) else None, dict):
        return route_match(fib, operator, right)
    if mask is not None:
        return _masked(rule, inner, mask, operator, right)
    return None


def _tcp_flags(rule: RuleDraft, inner: Json, mask: Json, operator: str, right: Json) -> Condition:
    rule.selector(inner)
    value = flag_bits(right)
    # nft(8), bitmask types: `in` matches if any of these flags is set, `!` if none is
    if operator in ("in", "!"):
        none_set = Test(TCP_FLAGS, IntervalSet.masked(value, 0, 8))
        return none_set if operator == "!" else negate(none_set)
    if mask is None and isinstance(right, dict):
        return compare(rule, selector(inner, rule.table.family), operator, right)
    test = Test(TCP_FLAGS, IntervalSet.masked(0xFF if mask is None else flag_bits(mask), value, 8))
    if operator not in ("==", "!="):
        raise UnknownExpressionError(f"tcp flags {operator}")
    return negate(test) if operator == "!=" else test


def _fragment(rule: RuleDraft, mask: Json, operator: str, right: Json) -> Condition:
    """``ip frag-off & 0x1fff`` is zero for whole packets and first fragments, & 0x3fff for whole ones."""
    if not rule.has(equals(PROTOCOL, IPV4)) and rule.table.family not in (Family.IP, Family.IP6):
        rule.require(equals(PROTOCOL, IPV4))
    whole = {0x1FFF: (0, 1), 0x3FFF: (0, 0)}.get(mask if isinstance(mask, int) else -1)
    if whole is None or right != 0 or operator not in ("==", "!="):
        raise UnknownExpressionError(f"ip frag-off & {mask} {operator} {right}")
    test = Test(FRAGMENT, IntervalSet.of(whole))
    return negate(test) if operator == "!=" else test


def _has_fragment_header(rule: RuleDraft, operator: str, right: Json) -> Condition:
    """``exthdr frag exists`` holds for the fragments of IPv6 packets."""
    if operator not in ("==", "!=") or not isinstance(right, bool):
        raise UnknownExpressionError(f"exthdr frag {operator} {right}")
    if not rule.has(equals(PROTOCOL, IPV6)):
        rule.require(equals(PROTOCOL, IPV6))
    fragments = Test(FRAGMENT, IntervalSet.of((1, 2)))
    return fragments if right == (operator == "==") else negate(fragments)


def _unnamed(rule: RuleDraft, inner: Json, mask: Json, operator: str, right: Json) -> Condition | None:
    """Return the condition of a match on bits without a name in nft, if they are known here.

    Behind the transport header of neighbour discovery, the target address; in a frame with two VLAN tags, the ids
    of both and what is behind them.
    """
    body = inner.get("payload") if isinstance(inner, dict) else None
    if not isinstance(body, dict) or not isinstance(mask, int | None):
        return None
    place = tuple(body.get(key) for key in ("base", "offset", "len"))
    if place == ("th", 64, 128) and mask is None and rule.has(Test(ICMP6, ND_TYPES)):
        return compare(rule, ND_TARGET_SELECTOR, operator, right)
    on = _TAG_FIELDS.get((place, mask))
    if on is not None and rule.has(Test(PROTOCOL, TAG_TYPES)):
        return compare(rule, Selector(on), operator, right)
    return None


def _masked(rule: RuleDraft, inner: Json, mask: Json, operator: str, right: Json) -> Condition:
    on = rule.selector(inner)
    if (
        (on.of_any_protocol and not rule.has(PORTED))
        or on.widen is not None
        or on.field.kind not in _BITWISE
        or operator not in ("==", "!=")
    ):
        raise UnknownExpressionError(f"{on.field} & {text_of(mask)} {operator}")
    bits = (on.domain - 1).bit_length()
    number = ranges_of(on, mask)[0][0]
    values = IntervalSet()
    for first, last in ranges_of(on, right):
        if first != last:
            raise UnknownExpressionError(f"{on.field} & {text_of(mask)} {text_of(right)}")
        values |= IntervalSet.masked(number, first, bits)
    test = Test(on.field, values)
    return negate(test) if operator == "!=" else test
