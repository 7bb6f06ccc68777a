"""Rules of nft's own syntax: their statements, and the elements of sets and maps, which may have statements too."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pvefw_nft.verify.readers.nft.text_expressions import PAYLOADS, Expressions, is_field, scalar
from pvefw_nft.verify.readers.nft.text_tokens import NUMBER, integer

if TYPE_CHECKING:
    from collections.abc import Callable

    from pvefw_nft.verify.readers.nft.values import Json

_DURATION = re.compile(
    r"(?:([0-9]{1,9})d)?(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m(?!s))?(?:([0-9]{1,9})s)?(?:[0-9]{1,9}ms)?|[0-9]{1,9}"
)
_REJECT_FAMILIES = ("icmp", "icmpv6", "icmpx")


class Rules(Expressions):
    """Reads rules, each to the end of its line."""

    def _rule(self) -> dict[str, Json]:
        statements: list[Json] = []
        comment = ""
        while not self._is("\n", ";", "}", ""):
            if self._skip("comment"):
                comment = self._name()
                break
            statements.append(self._statement())
        return {"expr": statements, "comment": comment} if comment else {"expr": statements}

    def _statement(self) -> Json:
        word = "" if self._next.quoted else self._next.text
        handler = _STATEMENTS.get(word)
        if handler is not None:
            self._take()
            return handler(self, word)
        if word == "ct" and self._tokens[self._at + 1].text == "count":
            return self._count()
        if word in ("meta", "ct"):
            assignment = self._assignment()
            if assignment is not None:
                return assignment
        return self._match()

    def _plain(self, word: str) -> Json:
        return {word: None}

    def _go(self, word: str) -> Json:
        return {word: {"target": self._name()}}

    def _counter(self, _word: str) -> Json:
        if self._skip("packets"):
            self._number()
            self._expect("bytes")
            self._number()
        elif self._skip("name"):
            self._name()
        return {"counter": None}

    def _reject(self, _word: str) -> Json:
        if not self._skip("with"):
            return {"reject": None}
        if self._skip("tcp"):
            self._expect("reset")
            return {"reject": {"type": "tcp reset"}}
        kind = self._word()
        if kind not in _REJECT_FAMILIES:
            raise self._error("expected tcp reset, icmp, icmpv6 or icmpx before this")
        self._skip("type")
        return {"reject": {"type": kind, "expr": self._word()}}

    def _limit(self, _word: str) -> Json:
        self._expect("rate")
        over = self._skip("over")
        number, slash, unit = self._word().partition("/")
        if not NUMBER.fullmatch(number) or not slash:
            raise self._error("expected a rate of packets before this")
        body: dict[str, Json] = {"rate": integer(number), "per": unit, "burst": 5}
        if self._skip("burst"):
            body["burst"] = self._number()
            self._expect("packets")
        return {"limit": {**body, "inv": True} if over else body}

    def _count(self) -> Json:
        self._expect("ct")
        self._expect("count")
        over = self._skip("over")
        number = self._number()
        return {"ct count": {"val": number, "inv": True} if over else {"val": number}}

    def _log(self, _word: str) -> Json:
        body: dict[str, Json] = {}
        while True:
            if self._skip("prefix"):
                body["prefix"] = self._name()
            elif self._skip("group"):
                body["group"] = self._number()
            elif self._skip("level"):
                body["level"] = self._word()
            elif self._skip("snaplen", "queue-threshold"):
                self._number()
            elif self._skip("flags"):
                self._list()
            else:
                return {"log": body or None}

    def _queue(self, _word: str) -> Json:
        body: dict[str, Json] = {}
        flags: list[Json] = []
        while True:
            if self._skip("flags"):
                flags += self._list()
            elif self._skip("num", "to"):
                body["num"] = self._value()
            elif self._is("bypass", "fanout"):
                flags += self._list()
            else:
                return {"queue": {**body, "flags": flags} if flags else body}

    def _update(self, word: str) -> Json:
        reference = self._word()
        self._expect("{")
        body: dict[str, Json] = {"op": word, "elem": self._selector(), "set": reference}
        if self._skip("timeout"):
            self._duration()
        statements: list[Json] = []
        while not self._skip("}"):
            statements.append(self._statement())
        return {"set": {**body, "stmt": statements} if statements else body}

    def _translate(self, word: str) -> Json:
        body: dict[str, Json] = {}
        if self._is("ip", "ip6"):
            body["family"] = self._word()
        if self._skip("to"):
            if self._is(*PAYLOADS, "meta", "ct"):
                body["addr"] = self._selector()
            elif not self._is("\n", ";"):
                body |= self._target()
        return {word: body or None}

    def _target(self) -> dict[str, Json]:
        """Read where a connection is translated to: an address, or a range, each with a port or without."""
        word = self._word()
        found = re.fullmatch(r"\[?([^\]]*?)\]?(?::([0-9]+(?:-[0-9]+)?))?", word if word.count(":") < 2 else f"[{word}]")
        if "[" in word:
            found = re.fullmatch(r"\[([^\]]*)\](?::([0-9]+(?:-[0-9]+)?))?", word)
        if found is None:
            raise self._error("expected an address before this")
        body = {"addr": scalar(found[1])} if found[1] else {}
        return {**body, "port": scalar(found[2])} if found[2] else body

    def _assignment(self) -> Json | None:
        """Read ``meta KEY set VALUE`` and the like; None, with nothing read, where it is a match."""
        start = self._at
        kind, key = self._word(), self._word()
        if not self._skip("set"):
            self._at = start
            return None
        if (kind, key) == ("ct", "helper"):
            return {"ct helper": self._name()}
        return {"mangle": {"key": {kind: {"key": key}}, "value": self._new_value()}}

    def _new_value(self) -> Json:
        if not self._starts_selector():
            return self._value()
        selector = self._selector()
        if self._skip("map"):
            return {"map": {"key": selector, "data": self._members()}}
        if self._skip("|"):
            return {"|": [selector, self._value()]}
        return selector

    def _match(self) -> Json:
        if not self._starts_selector():
            raise self._error("expected a statement or match that is known")
        selector = self._selector()
        if self._skip("vmap"):
            return {"vmap": {"key": selector, "data": self._members()}}
        is_exthdr = isinstance(selector, dict) and "exthdr" in selector
        if is_exthdr and self._is("exists", "missing"):
            return _matching("==", selector, self._take().text == "exists")
        operator = self._take().text if self._is("==", "!=", "<", "<=", ">", ">=") else ""
        if is_field(selector, "payload", "tcp", "flags") or is_field(_masked(selector), "payload", "tcp", "flags"):
            return self._flags(operator, selector)
        if self._is("{"):
            return _matching(operator or "==", selector, {"set": self._elements()})
        right = self._values()
        if not operator and is_field(selector, "ct", None, "label"):
            return _matching("in", selector, right)
        if not operator and (is_field(selector, "ct", None, "state") or isinstance(right, list)):
            return _matching("in", selector, right if isinstance(right, list) else [right])
        if not operator and is_field(selector, "meta", None, "mark") and isinstance(right, dict) and "prefix" in right:
            return self._masked_mark(selector, right["prefix"])
        return _matching(operator or "==", selector, right)

    def _masked_mark(self, selector: Json, prefix: Json) -> Json:
        """Return the match of a mark's highest bits, which nft 1.0.6 lists as ``meta mark 0x80000000/1``."""
        length = prefix["len"] if isinstance(prefix, dict) else None
        if not isinstance(prefix, dict) or not isinstance(length, int) or length > 32:
            raise self._error("expected a mark of 32 bits before this")
        mask = (1 << 32) - (1 << (32 - length))
        return _matching("==", {"&": [selector, mask]}, prefix["addr"])

    def _flags(self, operator: str, selector: Json) -> Json:
        """Read the operand of TCP flags: a few, or some of a mask (``syn / syn,ack``)."""
        if not operator and self._skip("!"):
            return _matching("!", selector, self._bits())
        bits = self._bits()
        if self._skip("/"):
            return _matching(operator or "==", {"&": [selector, self._bits()]}, bits)
        return _matching(operator or "in", selector, bits)

    def _members(self) -> Json:
        return {"set": self._elements()} if self._is("{") else self._word()

    def _elements(self) -> list[Json]:
        """Read the elements of a set or map, over several lines."""
        self._expect("{")
        found: list[Json] = []
        while True:
            while self._skip("\n"):
                pass
            if self._skip("}"):
                return found
            found.append(self._element())
            while self._skip("\n"):
                pass
            if not self._is("}"):
                self._expect(",")

    def _element(self) -> Json:
        key: Json = self._value()
        while self._is("timeout", "expires", "counter", "comment", "limit"):
            if self._skip("timeout", "expires"):
                self._duration()
            elif self._skip("comment"):
                self._name()
            else:
                self._statement()
        if not self._skip(":"):
            return key
        if self._is("accept", "drop", "return", "continue", "jump", "goto"):
            return [key, self._statement()]
        return [key, self._value()]

    def _duration(self) -> int:
        found = _DURATION.fullmatch(word := self._word())
        if found is None:
            self._at -= 1
            raise self._error("expected a time")
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return int(word) if word.isdigit() else ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _matching(operator: str, left: Json, right: Json) -> Json:
    return {"match": {"op": operator, "left": left, "right": right}}


def _masked(expression: Json) -> Json:
    """Return the operand of an expression that masks, or None."""
    masked = expression.get("&") if isinstance(expression, dict) else None
    return masked[0] if isinstance(masked, list) else None


_STATEMENTS: dict[str, Callable[[Rules, str], Json]] = {
    **dict.fromkeys(("accept", "drop", "return", "continue", "notrack", "masquerade", "redirect"), Rules._plain),
    **dict.fromkeys(("jump", "goto"), Rules._go),
    **dict.fromkeys(("add", "update", "delete"), Rules._update),
    **dict.fromkeys(("dnat", "snat"), Rules._translate),
    "counter": Rules._counter,
    "reject": Rules._reject,
    "limit": Rules._limit,
    "log": Rules._log,
    "queue": Rules._queue,
}
"""Readers of statements, by first word. Statements without an entry begin with the expression they match."""
