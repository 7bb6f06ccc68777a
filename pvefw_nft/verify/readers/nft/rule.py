"""Reads one nft rule in JSON form: matches, statements and verdict.

Example: ``{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 22}}``
becomes the tests ``l4proto in [6]`` and ``dport in [22]``.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, TypeAlias

from pvefw_nft.verify.model import Condition, Effect, Test, Verdict, negate, rate_test
from pvefw_nft.verify.readers.nft.draft import NftTable, RuleDraft
from pvefw_nft.verify.readers.nft.matches import is_plain, match_condition
from pvefw_nft.verify.readers.nft.parts import is_expression, is_over, limit_text, merged
from pvefw_nft.verify.readers.nft.statements import STATEMENTS, VERDICTS
from pvefw_nft.verify.readers.nft.values import (
    Json,
    Selector,
    UnknownExpressionError,
    as_object,
    selector,
    text_of,
    values_of,
)

if TYPE_CHECKING:
    from pvefw_nft.verify.readers.shared import Reading

Parsed: TypeAlias = tuple[tuple[Condition, ...], tuple[Effect, ...], Verdict | None]
Lasting: TypeAlias = tuple[tuple[Test, ...], Condition]
"""A match's meaning, and all that it depends on, in any rule of a table."""


def _plain_match(left: Json, operator: str, right: Json) -> tuple[str | int, ...] | None:
    """Return what a match of a named field with one value says; None for another match.

    A type is compared, since True equals 1 and is no value. The members of a set by name may change.
    """
    if operator != "==" or not isinstance(left, dict) or not is_plain(left):
        return None
    if type(right) is str:
        if right.startswith("@"):
            return None
    elif type(right) is not int:
        return None
    payload, meta = left.get("payload"), left.get("meta")
    if isinstance(payload, dict):
        protocol, name = payload.get("protocol"), payload.get("field")
        if len(payload) == 2 and isinstance(protocol, str) and isinstance(name, str):
            return protocol, name, right
    elif isinstance(meta, dict) and len(meta) == 1 and isinstance(key := meta.get("key"), str):
        return key, right
    return None


class NftRuleParser:
    """Read the rules of one table, whose sets and maps do not change meanwhile."""

    def __init__(self, table: NftTable, reading: Reading) -> None:
        self.table = table
        self.reading = reading
        self._matches: dict[tuple[str | int, ...], Lasting] = {}
        """The meaning of plain matches. Most rules repeat matches of others."""
        self._known: dict[str, Lasting | Verdict] = {}
        self._selectors: dict[str, tuple[tuple[Test, ...], Selector] | None] = {}
        """By the text of the left side of a match: see :meth:`_compared`."""
        self._parsed: dict[str, Parsed] = {}
        """By text: what matches say in any rule and plain verdicts, and whole rules."""

    def parse(self, statements: list[Json], where: str) -> Parsed:
        """Return the conditions, effects and verdict of a rule. Raises RulesetError, naming ``where``."""
        rule = RuleDraft(self.table, self.reading, where)
        for statement in statements:
            self._read(rule, statement)
        return _made(rule)

    def parse_text(self, text: str, where: str) -> Parsed | None:
        """As :meth:`parse`, of the text between the brackets of a JSON list; None: read it as JSON.

        The text is split at commas that seem to divide statements. If each piece is a JSON object, these are the
        list's elements, since a text has one meaning as JSON at most. Of pieces and whole rules that were met before,
        the meaning is known, but of rules that change a set: what these do depends on which sets were looked up before.
        Where something is assumed, that is told of each rule, so all are read.
        """
        if self.reading.assume is not None:
            return None
        known = self._parsed.get(text)
        if known is not None:
            return known
        pieces = _BETWEEN_STATEMENTS.split(text)
        statements = [self._known.get(piece) or self._plain(piece) or _decoded(piece) for piece in pieces]
        if None in statements:
            return None
        rule = RuleDraft(self.table, self.reading, where)
        for piece, statement in zip(pieces, statements, strict=True):
            if isinstance(statement, tuple):
                rule.depend(statement[0])
                rule.require(statement[1])
            elif isinstance(statement, dict):
                lasting = self._read(rule, statement)
                if lasting is not None:
                    self._known[piece] = lasting
                elif statement.keys() <= VERDICTS and rule.verdict is not None:
                    self._known[piece] = rule.verdict
            elif statement is not None:
                rule.verdict = statement
        made = self._parsed[text] = _made(rule)
        return made

    def _plain(self, piece: str) -> Lasting | None:
        """Return what a match says that compares a named field with a value; None: read it as JSON.

        The left side is read once for all matches that have it. A text is such a match if both sides are JSON values,
        since nothing else stands in it.
        """
        if not (piece.startswith(_COMPARED) and piece.endswith("}}")):
            return None
        left, _, right = piece[len(_COMPARED[0]) : -2].partition(',"right":')
        if left not in self._selectors:
            self._selectors[left] = self._compared(left)
        found = self._selectors[left]
        if found is None:
            return None
        needs, on = found
        try:
            value: Json = int(right) if _NUMBER.fullmatch(right) else json.loads(right)
            if isinstance(value, str) and (value.startswith("@") or value in self.table.counting):
                return None
            condition: Condition = Test(on.field, values_of(on, value))
        except (UnknownExpressionError, ValueError, KeyError, TypeError, IndexError, RecursionError):
            return None  # reading it as JSON says what is wrong with it
        lasting = needs, condition if piece.startswith(_COMPARED[0]) else negate(condition)
        self._known[piece] = lasting
        return lasting

    def _compared(self, left: str) -> tuple[tuple[Test, ...], Selector] | None:
        """Return what a field depends on, and the field, of the text of a match's left side.

        None where a match of it may say more than that the field has, or has not, one of the values.
        """
        try:
            expression: Json = json.loads(left)
            if not isinstance(expression, dict) or not is_plain(expression):
                return None
            if is_expression(expression, "payload", "ip6", "nexthdr"):
                return None
            on = selector(expression, self.table.family)
        except (UnknownExpressionError, ValueError, RecursionError):
            return None
        return None if on.of_any_protocol else (RuleDraft(self.table, self.reading, "").needs(on), on)

    def _read(self, rule: RuleDraft, statement: Json) -> Lasting | None:
        """Read a statement of the rule, as :meth:`_statement` does. Raises RulesetError."""
        try:
            return self._statement(rule, statement)
        except UnknownExpressionError as error:
            text = text_of(statement)
            detail = text if str(error) in text else f"{text} ({error})"
            rule.require(self.reading.unknown(rule.where, detail))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise self.reading.error(rule.where, f"cannot read '{text_of(statement)}': {error}") from None
        return None

    def _statement(self, rule: RuleDraft, statement: Json) -> Lasting | None:
        if not isinstance(statement, dict) or len(statement) != 1:
            raise UnknownExpressionError(text_of(statement))
        (kind, body), = statement.items()  # fmt: skip
        if kind == "match":
            return self._match(rule, body)
        if kind == "limit":
            rate = rate_test(limit_text(body), over=is_over(body))
            rule.require(rate)
            return (), rate
        handler = STATEMENTS.get(kind)
        if handler is None:
            raise UnknownExpressionError(text_of(statement))
        handler(rule, body)
        return None

    def _match(self, rule: RuleDraft, body: Json) -> Lasting | None:
        """Read a match. Return what it depends on and says, where that is the same in any rule of the table."""
        body = as_object(body)
        left, right, operator = body.get("left"), body.get("right"), str(body.get("op", "=="))
        key = _plain_match(left, operator, right)
        known = None if key is None else self._matches.get(key)
        if known is not None:
            rule.depend(known[0])
            rule.require(known[1])
            return known
        condition, on = match_condition(rule, left, operator, right)
        rule.require(condition)
        if on is None:
            return None
        lasting = rule.needs(on), condition  # whatever the rule's other conditions are
        if key is not None:
            self._matches[key] = lasting
        return lasting


def _made(rule: RuleDraft) -> Parsed:
    """Return a rule of which all statements have been read."""
    return merged(rule.conditions), tuple(rule.effects), rule.verdict


def _decoded(piece: str) -> dict[str, Json] | None:
    """Return the statement that a piece of a rule's text is; None where it is none, or one that changes a set."""
    try:
        found = json.loads(piece)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found and "set" not in found else None


_NUMBER = re.compile("0|[1-9][0-9]*")
"""A number as JSON has it: without zeros in front."""
_COMPARED = ('{"match":{"op":"==","left":', '{"match":{"op":"!=","left":')
_BETWEEN_STATEMENTS = re.compile(rf'(?<=\}}),(?=\{{"(?:{"|".join(["match", "limit", *STATEMENTS])})":)')
"""The commas between the statements of a rule; others may look so, too."""
