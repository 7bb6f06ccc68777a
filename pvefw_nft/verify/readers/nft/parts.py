"""Parts of nft rules in JSON form: members of sets, marks, flags, rates, rejections and translations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.verify.model import (
    CT_MARK,
    CT_STATE,
    CT_STATES,
    CT_STATUS,
    FALSE,
    HAS_CONNECTION,
    ICMP,
    ICMP6,
    MARK,
    All,
    Any,
    Condition,
    CopyMark,
    Field,
    MarkTarget,
    SetMark,
    Test,
    equals,
    helper_field,
    label_field,
    mark_test,
    names,
    negate,
    route_field,
)
from pvefw_nft.verify.model.intervals import IntervalSet
from pvefw_nft.verify.readers.nft.values import (
    Json,
    Selector,
    UnknownExpressionError,
    as_list,
    as_object,
    as_pair,
    text_of,
    values_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FULL = 0xFFFFFFFF
"""All bits of a mark."""

REJECTIONS: dict[str, dict[str, tuple[str | None, str | None]]] = {
    "icmp": {
        **{
            name: (name, None)
            for name in (
                "net-unreachable", "host-unreachable", "port-unreachable", "net-prohibited",
                "host-prohibited", "admin-prohibited",
            )
        },
        "prot-unreachable": ("proto-unreachable", None),
    },
    "icmpv6": {
        name: (None, name)
        for name in (
            "no-route", "admin-prohibited", "addr-unreachable", "port-unreachable", "policy-fail",
            "reject-route",
        )
    },
    "icmpx": {
        "no-route": ("net-unreachable", "no-route"),
        "port-unreachable": ("port-unreachable", "port-unreachable"),
        "host-unreachable": ("host-unreachable", "addr-unreachable"),
        "admin-prohibited": ("admin-prohibited", "admin-prohibited"),
    },
}  # fmt: skip
"""The answer of each family (net/netfilter/nft_reject.c for icmpx)."""


def member_condition(selectors: list[Selector], element: Json) -> Condition:
    """Return the condition of one member of a set, of one part or several."""
    if isinstance(element, dict) and "elem" in element:
        element = as_object(element["elem"])["val"]
    if len(selectors) == 1 and not (isinstance(element, dict) and "concat" in element):
        return Test(selectors[0].field, values_of(selectors[0], element))
    parts = element.get("concat") if isinstance(element, dict) else element
    if not isinstance(parts, list) or len(parts) != len(selectors):
        raise UnknownExpressionError(text_of(element))
    tests = [Test(on.field, values_of(on, part)) for on, part in zip(selectors, parts, strict=True)]
    return All(merged(tests))


def any_of(conditions: Sequence[Condition]) -> Condition:
    """Return that one of the conditions holds; of tests of one field: a test of all their values."""
    tests = [condition for condition in conditions if isinstance(condition, Test)]
    if tests and len(tests) == len(conditions) and len({test.field for test in tests}) == 1:
        return Test(tests[0].field, IntervalSet.from_ranges(pair for test in tests for pair in test.values))
    return Any(tuple(conditions))


def merged(conditions: Sequence[Condition]) -> tuple[Condition, ...]:
    """Return the conditions with tests of ICMP type and of ICMP code joined into one of both."""
    tested = [condition.field for condition in conditions if type(condition) is Test]
    for on in (ICMP, ICMP6):
        if tested.count(on) < 2:
            continue
        tests = [test for test in conditions if isinstance(test, Test) and test.field is on]
        values = tests[0].values
        for test in tests[1:]:
            values &= test.values
        conditions = [*(test for test in conditions if test not in tests), Test(on, values)]
    return tuple(conditions)


def is_expression(expression: Json, kind: str, protocol: str | None, name: str) -> bool:
    """Return whether an expression is this one, such as ``payload tcp flags`` or (no protocol) ``ct status``."""
    if not isinstance(expression, dict):
        return False
    body = expression.get(kind)
    if not isinstance(body, dict):
        return False
    return body.get("key" if protocol is None else "field") == name and body.get("protocol") == protocol


def mark_bits(expression: Json) -> tuple[Field, ...] | None:
    """Return the bits of the mark that an expression reads, or None if it reads something else."""
    if is_expression(expression, "meta", None, "mark"):
        return MARK
    return CT_MARK if is_expression(expression, "ct", None, "mark") else None


def mark_match(bits: tuple[Field, ...], mask: Json, operator: str, right: Json) -> Condition:
    """Return the condition of a match on a mark, under a mask (None: all bits), with a value or several."""
    number = FULL if mask is None else as_integer(mask)
    members = as_list(right["set"]) if isinstance(right, dict) and "set" in right else [right]
    found = []
    for member in members:
        if isinstance(member, dict) and "prefix" in member:
            body = as_object(member["prefix"])
            prefix = FULL & ~((1 << (32 - as_integer(body.get("len")))) - 1)
            found.append(mark_test(bits, prefix & number, as_integer(body.get("addr"))))
        else:
            found.append(mark_test(bits, number, as_integer(member)))
    condition = found[0] if len(found) == 1 else Any(tuple(found))
    if operator == "==":
        return condition
    if operator == "!=":
        return negate(condition) if bits is MARK else All((HAS_CONNECTION, negate(condition)))
    if operator == "in" and len(found) == 1:
        return mark_test(bits, as_integer(right) & number, 0, inverted=True)
    raise UnknownExpressionError(f"mark {operator} {text_of(right)}")


TEMPLATE = 1 << 11
"""``IPS_TEMPLATE``: what gave a packet a zone, and stays at packets that connection tracking refuses as malformed."""


def label_number(value: Json) -> int | None:
    """Return the number of the label that an expression names, as a number or as text; None if it is no number."""
    try:
        number = as_integer(value)
    except UnknownExpressionError:
        return None
    return number if 0 <= number < 128 else None


def label_match(operator: str, right: Json) -> Condition:
    """Return the condition of ``ct label 5``, or ``ct label ! 5``: the connection has the label, or has it not."""
    number = label_number(right)
    if number is None or operator not in ("in", "!"):
        raise UnknownExpressionError(f"ct label {operator} {text_of(right)}")
    has = equals(label_field(number), 1)
    return All((HAS_CONNECTION, negate(has) if operator == "!" else has))


def status_match(mask: Json, operator: str, right: Json) -> Condition:
    """``ct status dnat``: one of the named bits is set; ``ct status & dnat == dnat``: all of them are.

    No packet of the model is malformed, and none has a template after the lookup.
    """
    if operator == "==" and mask in (TEMPLATE, str(TEMPLATE)) and right == mask:
        return FALSE
    names_ = right if isinstance(right, list) else [right]
    bits = [CT_STATUS[str(name)] for name in names_ if str(name) in CT_STATUS]
    if len(bits) != len(names_):
        raise UnknownExpressionError(f"ct status {text_of(right)}")
    if mask is None and operator == "in":
        tests = tuple(equals(bit, 1) for bit in bits)
        return tests[0] if len(tests) == 1 else Any(tests)
    if mask is not None and mask == right and operator in ("==", "!="):
        condition: Condition = All(tuple(equals(bit, 1) for bit in bits))
        return condition if operator == "==" else negate(condition)
    raise UnknownExpressionError(f"ct status {operator} {text_of(right)}")


def state_match(operator: str, right: Json) -> Condition | None:
    """Return the condition of ``ct state == established | related``; None: a match of another form.

    With ``==`` and ``!=`` the kernel compares the state's bit with all of the named bits together. A packet has one
    state, so two or more never equal it. Seen with ``nft --debug=netlink`` of nft 1.0.6: ``[ cmp eq reg 1 0x6 ]``;
    ``ct state established,related`` has the operator ``in`` and is a test for any of them.
    """
    names_ = _joined(right)
    if operator not in ("==", "!=") or names_ is None:
        return None
    states = {CT_STATES.index(name) for name in names_}
    test = Test(CT_STATE, IntervalSet.from_ranges((state, state) for state in states if len(states) == 1))
    return negate(test) if operator == "!=" else test


def _joined(value: Json) -> list[str] | None:
    """Return the names joined by ``|``, or in a list, which means the same; None for anything else."""
    if isinstance(value, dict) and "|" in value:
        value = value["|"]
    elif not isinstance(value, list):
        return None
    found: list[str] = []
    for part in as_list(value):
        inner = _joined(part)
        found += inner if inner is not None else [str(part)]
    return found


def helper_match(operator: str, right: Json) -> Condition:
    """Return the condition of ``ct helper "ftp"``, also with ``!=`` and with a set of names."""
    members = as_list(right["set"]) if isinstance(right, dict) and "set" in right else [right]
    if operator not in ("==", "!=", "in") or not all(isinstance(name, str) for name in members):
        raise UnknownExpressionError(f"ct helper {operator} {text_of(right)}")
    tests = tuple(equals(helper_field(str(name)), 1) for name in members)
    condition: Condition = tests[0] if len(tests) == 1 else Any(tests)
    return negate(condition) if operator == "!=" else condition


def route_match(body: dict[str, Json], operator: str, right: Json) -> Condition | None:
    """Return the condition of ``fib saddr . mark . iif oif missing`` (or ``exists``); None: it asks something else.

    Which route the host has is not known: the field is free to the prover, and simulate takes it to exist.
    """
    keys = body.get("flags")
    if body.get("result") not in ("oif", "oifname") or operator not in ("==", "!="):
        return None
    found = (
        right if isinstance(right, bool) else {"0": False, 0: False}.get(right if isinstance(right, str | int) else -1)
    )
    if found is None:
        return None
    on = route_field(str(key) for key in (keys if isinstance(keys, list) else [keys]))
    return equals(on, int(found is (operator == "==")))


def flag_bits(value: Json) -> int:
    """Return the bits that TCP flags mean, as a number, a name, a list or joined by ``|``."""
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        return names.TCP_FLAG_BITS[value]
    if isinstance(value, list):
        number = 0
        for part in value:
            number |= flag_bits(part)
        return number
    if isinstance(value, dict) and "|" in value:
        return flag_bits(value["|"])
    if isinstance(value, dict) and "set" in value:
        return 0
    raise UnknownExpressionError(f"tcp flags {text_of(value)}")


def as_integer(value: Json) -> int:
    """Return a number, also one written as text; raises UnknownExpressionError."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise UnknownExpressionError(text_of(value))
    try:
        return value if isinstance(value, int) else int(value, 0)
    except ValueError:
        raise UnknownExpressionError(text_of(value)) from None


def mark_change(target: MarkTarget, value: Json) -> SetMark | CopyMark:
    """Return the change that setting a mark to this expression means: of constants and one mark."""
    source, keep, flip = linear(value)
    if source is None:
        return SetMark(target, 0, flip)
    same = MARK if target is MarkTarget.PACKET else CT_MARK
    if source is same:
        return SetMark(target, keep, flip)
    if flip:
        raise UnknownExpressionError(text_of(value))
    return CopyMark(target, 0, keep)


def linear(value: Json) -> tuple[tuple[Field, ...] | None, int, int]:
    """Return an expression as ``(mark & keep) ^ flip``: the mark's bits (None: a constant), keep, flip."""
    bits = mark_bits(value)
    if bits is not None:
        return bits, FULL, 0
    if isinstance(value, dict) and len(value) == 1:
        (operator, operands), = value.items()  # fmt: skip
        if operator in ("&", "|", "^") and isinstance(operands, list) and len(operands) == 2:
            source, keep, flip = linear(operands[0])
            number = as_integer(operands[1])
            if operator == "&":
                return source, keep & number, flip & number
            if operator == "|":
                return source, keep & ~number & FULL, (flip & ~number) | number
            return source, keep, flip ^ number
    return None, 0, as_integer(value)


def harmless(key: dict[str, Json]) -> bool:
    """Return whether setting this changes nothing that a modelled field shows."""
    if "tcp option" in key:
        return True
    for kind, allowed in (("meta", ("priority", "nftrace")), ("ct", ("event", "label", "timeout"))):
        body = key.get(kind)
        if isinstance(body, dict) and body.get("key") in allowed:
            return True
    return False


def is_over(limit: Json) -> bool:
    """Return whether a limit matches the packets that exceed it."""
    return isinstance(limit, dict) and bool(limit.get("inv"))


def limit_text(body: Json) -> str:
    """Return a limit's rate in canonical form, as :func:`~.model.rate_field` wants it."""
    if not isinstance(body, dict):
        raise UnknownExpressionError(text_of(body))
    if body.get("rate_unit", "packets") != "packets":
        raise UnknownExpressionError(f"limit {text_of(body)}")
    burst = 5 if body.get("burst") is None else as_integer(body.get("burst"))
    return f"{as_integer(body.get('rate'))}/{body.get('per')} burst {burst}"


def nat_range(value: Json, convert: Callable[[str], tuple[int, int]]) -> tuple[int, int] | None:
    """Return the first and last value of an address or port to translate to; None if it does not change."""
    if value is None:
        return None
    if isinstance(value, (int, str)) and not isinstance(value, bool):
        return convert(str(value))
    if isinstance(value, dict) and "range" in value:
        first, last = as_pair(value["range"])
        return convert(str(first))[0], convert(str(last))[1]
    raise UnknownExpressionError(text_of(value))
