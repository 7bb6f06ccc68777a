"""Statements and rules in nft's text (nft(8), "STATEMENTS")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pvefw_nft.backends.nft.syntax.text.expressions import right_side, selector_text, simple_selector_text, value_text
from pvefw_nft.backends.nft.syntax.text.words import (
    fields,
    identifier,
    integer,
    is_set,
    listed,
    one_of,
    quoted,
    quoted_identifier,
    reference,
    some,
)
from pvefw_nft.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pvefw_nft.backends.nft.syntax.text.words import Node

_REJECT_CODES = frozenset(
    {"admin-prohibited", "port-unreachable", "host-unreachable", "host-prohibited", "net-unreachable"}
    | {"net-prohibited", "prot-unreachable", "no-route", "addr-unreachable"}
)

_PER = ("second", "minute", "hour", "day", "week")

_BITS = ("ct state", "ct status", "tcp flags")
"""Selectors of values that are bits, each with a meaning of its own."""


def rule_text(rule: Node) -> str:
    """Return the statements of a rule, and its comment."""
    text = " ".join(map(_statement, some(rule["expr"])))
    comment = quoted(rule.get("comment", ""))
    return text if comment == '""' else f"{text} comment {comment}"


def _statement(statement: Node) -> str:
    ((kind, body),) = statement.items()
    spell = _STATEMENTS.get(kind)
    if spell is None:
        raise InternalError(f"nft's text has no place for the statement {kind!r}")
    return spell(kind, body)


def verdict_text(statement: Node) -> str:
    """Return the text of a verdict."""
    ((kind, _),) = statement.items()
    if kind not in _VERDICTS:
        raise InternalError(f"nft's text has no place for the verdict {kind!r}")
    return _statement(statement)


def _plain_statement(kind: str, body: None) -> str:
    if body is not None:
        raise InternalError(f"nft's text has no place for what belongs to {kind!r}")
    return kind


def _go(kind: str, body: Node) -> str:
    return f"{kind} {identifier(fields(body, {'target'})['target'])}"


def _limit(_kind: str, body: Node) -> str:
    fields(body, {"rate", "per", "burst"}, {"inv"})
    burst = "" if body["burst"] == 5 else f" burst {integer(body['burst'])} packets"  # nft leaves out the default 5
    over = "over " if is_set(body, "inv") else ""
    return f"limit rate {over}{integer(body['rate'])}/{one_of(body['per'], _PER)}{burst}"


def _count(_kind: str, body: Node) -> str:
    fields(body, {"val"}, {"inv"})
    return f"ct count {'over ' if is_set(body, 'inv') else ''}{integer(body['val'])}"


def _log(_kind: str, body: Node) -> str:
    fields(body, {"prefix", "group"})
    return f"log prefix {quoted(body['prefix'])} group {integer(body['group'])}"


def _queue(_kind: str, body: Node) -> str:
    fields(body, {"num"}, {"flags"})
    given = [one_of(flag, ("bypass",)) for flag in listed(body.get("flags", []))]
    flags = f" flags {','.join(given)}" if given else ""
    number = body["num"]
    if isinstance(number, dict):
        first, last = fields(number, {"range"})["range"]
        return f"queue{flags} to {integer(first)}-{integer(last)}"
    return f"queue{flags} to {integer(number)}"


def _mangle(_kind: str, body: Node) -> str:
    fields(body, {"key", "value"})
    key = simple_selector_text(body["key"])
    return f"{key} set {_new_value(key, body['value'])}"


def _assign_helper(_kind: str, body: str) -> str:
    return f"ct helper set {quoted_identifier(body)}"


def _update(_kind: str, body: Node) -> str:
    fields(body, {"op", "elem", "set", "stmt"})
    (limit,) = body["stmt"]
    inner = _limit("limit", fields(limit, {"limit"})["limit"])
    return f"{one_of(body['op'], ('update',))} {reference(body['set'])} {{ {selector_text(body['elem'])} {inner} }}"


def _translate(kind: str, body: Node) -> str:
    fields(body, {"family", "addr"})
    return f"{kind} {one_of(body['family'], ('ip', 'ip6'))} to {simple_selector_text(body['addr'])}"


def _reject(_kind: str, body: Node) -> str:
    if body == {"type": "tcp reset"}:
        return "reject with tcp reset"
    fields(body, {"type", "expr"})
    kind = one_of(body["type"], ("icmp", "icmpv6", "icmpx"))
    return f"reject with {kind} type {one_of(body['expr'], _REJECT_CODES)}"


def _match(_kind: str, body: Node) -> str:
    fields(body, {"op", "left", "right"})
    operator, left, right = body["op"], selector_text(body["left"]), body["right"]
    if isinstance(right, bool):
        if operator not in ("==", "!=") or "exthdr" not in body["left"]:
            raise InternalError("nft's text has no place for a truth value there")
        return f"{left} {'exists' if right is (operator == '==') else 'missing'}"
    if isinstance(right, list) and operator != "in":
        raise InternalError(f"nft's text has no place for the operator {operator!r} before several bits")
    value = right_side(left, right)
    if operator == "!=":
        return f"{left} != {value}"
    if operator == "in" and isinstance(right, list | str):
        return f"{left} {value}"
    if operator == "==":
        # without the operator nft asks whether one of the bits is set
        return f"{left} == {value}" if "&" in body["left"] or left in _BITS else f"{left} {value}"
    raise InternalError(f"nft's text has no place for the operator {operator!r}")


def _lookup(kind: str, body: Node) -> str:
    """Return a look-up in a map: a named one, or one whose pairs are written in the rule."""
    fields(body, {"key", "data"})
    key, data = selector_text(body["key"]), body["data"]
    if isinstance(data, str):
        return f"{key} {kind} {reference(data)}"
    pairs = some(fields(data, {"set"})["set"])
    spelled = (
        (value_text(key, value), verdict_text(to) if kind == "vmap" else str(integer(to))) for value, to in pairs
    )
    return f"{key} {kind} {{ {', '.join(f'{value} : {to}' for value, to in spelled)} }}"


def _new_value(key: str, value: Any) -> str:  # noqa: ANN401 - a constant or an expression
    if not isinstance(value, dict):
        return value_text(key, value)
    ((operator, body),) = value.items()
    if operator == "map":
        return _lookup(operator, body)
    if operator not in ("&", "|"):
        raise InternalError(f"nft's text has no place for the expression {operator!r}")
    left, right = body
    return f"{simple_selector_text(left)} {operator} {value_text(key, right)}"


_VERDICTS = ("accept", "drop", "return", "jump", "goto")

_STATEMENTS: dict[str, Callable[[str, Any], str]] = {
    **dict.fromkeys(("accept", "drop", "return", "continue", "counter"), _plain_statement),
    **dict.fromkeys(("jump", "goto"), _go),
    "vmap": _lookup,
    **dict.fromkeys(("dnat", "snat"), _translate),
    "match": _match,
    "reject": _reject,
    "limit": _limit,
    "ct count": _count,
    "log": _log,
    "queue": _queue,
    "mangle": _mangle,
    "ct helper": _assign_helper,
    "set": _update,
}
