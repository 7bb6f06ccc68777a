"""Reads nft rulesets in nft's own syntax: files for ``nft -f``, and what ``nft list ruleset`` prints.

Source: nft(8), and the listings of nftables 1.0.6 to 1.1. The text becomes the JSON that libnftables has for it, which
:mod:`.nft` reads; so the meaning of a rule is decided in one place. What is read is the part of the language that
filters use: tables with sets, maps, conntrack helpers and chains. Variables, included files and single commands but
``add``, ``delete``, ``destroy`` and ``flush`` of tables are not; they, and statements that are not known, are errors
that name the line. ``nft -j list ruleset`` gives the whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pvefw_nft.verify import names
from pvefw_nft.verify.reading import RulesetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pvefw_nft.verify.nft_values import Json

_TOKEN = re.compile(
    r"""(?P<blank>[ \t]+|\\\n|\#[^\n]*)
      | (?P<raw>@(?:ll|nh|th|ih),[0-9]+,[0-9]+)
      | "(?P<quoted>[^"\n]*)"
      | (?P<mark>\n|==|!=|<=|>=|[{};,=()&|!<>])
      | (?P<word>[^\s{};,=()&|!<>"\#]+)""",
    re.VERBOSE,
)
_START = re.compile(r"(?:\s|\#[^\n]*\n)*(?:(?:add|delete|destroy|create)[ \t]+table|table|flush[ \t]+ruleset)[ \t\n]")
_NUMBER = re.compile(r"[0-9]{1,40}|0x[0-9a-fA-F]{1,32}")
_DURATION = re.compile(
    r"(?:([0-9]{1,9})d)?(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m(?!s))?(?:([0-9]{1,9})s)?(?:[0-9]{1,9}ms)?|[0-9]{1,9}"
)
_FAMILIES = ("ip", "ip6", "inet", "bridge", "arp", "netdev")
_PAYLOADS = frozenset(
    [
        "ether",
        "vlan",
        "arp",
        "ip",
        "ip6",
        "icmp",
        "icmpv6",
        "igmp",
        "tcp",
        "udp",
        "udplite",
        "sctp",
        "dccp",
        "th",
        "esp",
        "ah",
        "comp",
    ]
)
_UNQUALIFIED = frozenset(
    ("iif", "oif", "iifname", "oifname", "iiftype", "oiftype", "skuid", "skgid", "rtclassid", "mark", "pkttype")
)
_CHAIN_TYPES = ("filter", "nat", "route")
_REJECT_FAMILIES = ("icmp", "icmpv6", "icmpx")


def is_nft_text(text: str) -> bool:
    """Tell whether a text is meant for ``nft -f``: its first command is one about a table, or flushes the ruleset."""
    return _START.match(text) is not None


def parse_nft_text(text: str, source: str) -> dict[str, Json]:
    """Return the commands of a text as libnftables' JSON. Raises RulesetError, naming ``source`` and the line."""
    return {"nftables": [*_Parser(source, _tokens(text, source)).commands()]}


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    line: int
    quoted: bool = False


def _tokens(text: str, source: str) -> list[_Token]:
    found = []
    line, at = 1, 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            raise RulesetError(f"{source}:{line}: nft's text cannot be read from here on: {text[at : at + 20]!r}")
        at = token.end()
        if token["quoted"] is not None:
            found.append(_Token(token["quoted"], line, quoted=True))
        elif token["blank"] is None:
            found.append(_Token(token[0], line))
        line += token[0].count("\n")
    found.append(_Token("", line))
    return found


class _Parser:
    """Reads tokens from left to right; each method reads what it is named after."""

    def __init__(self, source: str, tokens: list[_Token]) -> None:
        self._source = source
        self._tokens = tokens
        self._at = 0

    # --- tokens ---

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _is(self, *texts: str) -> bool:
        return not self._next.quoted and self._next.text in texts

    def _take(self) -> _Token:
        token = self._next
        self._at += 1
        return token

    def _skip(self, *texts: str) -> bool:
        """Take the next token if it is one of these."""
        if self._is(*texts):
            self._at += 1
            return True
        return False

    def _expect(self, text: str) -> None:
        if not self._skip(text):
            raise self._error(f"expected `{text}`")

    def _word(self) -> str:
        token = self._take()
        if token.quoted or not token.text or token.text in "\n{};,=()&|!<>":
            self._at -= 1
            raise self._error("expected a word")
        return token.text

    def _name(self) -> str:
        """Take a word or a text in quotes."""
        return self._take().text if self._next.quoted else self._word()

    def _number(self) -> int:
        word = self._word()
        if not _NUMBER.fullmatch(word):
            self._at -= 1
            raise self._error("expected a number")
        return _integer(word)

    def _error(self, message: str) -> RulesetError:
        token = self._next
        found = {"": "the end of the text", "\n": "the end of the line"}.get(token.text, f"`{token.text[:40]}`")
        return RulesetError(
            f"{self._source}:{token.line}: {message}, found {found}",
            "`nft -j list ruleset` gives a form that is read as a whole",
        )

    def _ends(self) -> None:
        """Go to the next line, over blank ones."""
        if not self._is("\n", ";", "}", ""):
            raise self._error("expected the end of the line")
        while self._skip("\n", ";"):
            pass

    def _braces(self, item: Callable[[], None]) -> None:
        """Read items between braces, each with its own end of line."""
        self._expect("{")
        self._ends()
        while not self._skip("}"):
            if not self._next.text:
                raise self._error("expected `}`")
            item()
            self._ends()

    # --- tables ---

    def commands(self) -> Iterator[Json]:
        while self._skip("\n", ";"):
            pass
        while self._next.text:
            yield from self._command()
            self._ends()

    def _command(self) -> Iterator[Json]:
        if self._skip("flush"):
            self._expect("ruleset")
            yield {"flush": {"ruleset": None}}
            return
        verb = self._word() if self._is("add", "create", "delete", "destroy") else "add"
        self._expect("table")
        family = self._word() if self._is(*_FAMILIES) else "ip"
        table: dict[str, Json] = {"family": family, "name": self._name()}
        if not self._is("{"):
            yield {verb: {"table": table}}
            return
        objects: list[Json] = []
        rules: list[Json] = []
        flags: list[Json] = []

        def item() -> None:
            of: dict[str, Json] = {"family": family, "table": table["name"]}
            if self._skip("set"):
                objects.append({"add": {"set": {**of, "name": self._name(), **self._set()}}})
            elif self._skip("map"):
                objects.append({"add": {"map": {**of, "name": self._name(), **self._set()}}})
            elif self._skip("ct"):
                self._expect("helper")
                objects.append({"add": {"ct helper": {**of, "name": self._name(), **self._helper()}}})
            elif self._skip("chain"):
                name = self._name()
                definition, lines = self._chain()
                objects.append({"add": {"chain": {**of, "name": name, **definition}}})
                rules.extend({"add": {"rule": {**of, "chain": name, **rule}}} for rule in lines)
            elif self._skip("flags"):
                flags.extend(self._list())
            elif self._skip("comment"):
                self._name()
            else:
                raise self._error("expected a set, map, ct helper or chain")

        self._braces(item)
        yield {"add": {"table": {**table, "flags": flags} if flags else table}}
        yield from objects
        yield from rules

    def _list(self) -> list[str]:
        found = [self._word()]
        while self._skip(","):
            found.append(self._word())
        return found

    def _helper(self) -> dict[str, Json]:
        body: dict[str, Json] = {}

        def item() -> None:
            if self._skip("type"):
                body["type"] = self._name()
                self._expect("protocol")
                body["protocol"] = self._word()
            elif self._skip("l3proto"):
                body["l3proto"] = self._word()
            elif self._skip("comment"):
                self._name()
            else:
                raise self._error("expected type or l3proto")

        self._braces(item)
        return body

    def _set(self) -> dict[str, Json]:
        body: dict[str, Json] = {}

        self._braces(lambda: self._set_part(body))
        return body

    def _set_part(self, body: dict[str, Json]) -> None:
        """Read a line of a set or map; it goes into ``body``."""
        word = self._word()
        match word:
            case "type" | "typeof":
                read = self._type if word == "type" else self._selector
                body["type"] = read()
                if self._skip(":"):
                    body["map"] = read()
            case "flags":
                body["flags"] = [*self._list()]
            case "size":
                body["size"] = self._number()
            case "timeout":
                body["timeout"] = self._duration()
            case "gc-interval":
                self._duration()
            case "policy" | "comment":
                self._name()
            case "elements":
                self._expect("=")
                body["elem"] = self._elements()
            case "auto-merge" | "counter":
                pass
            case _:
                self._at -= 1
                raise self._error("expected the type, flags or elements of a set")

    def _type(self) -> Json:
        parts: list[Json] = [self._word()]
        while self._skip("."):
            parts.append(self._word())
        return parts[0] if len(parts) == 1 else parts

    def _duration(self) -> int:
        found = _DURATION.fullmatch(word := self._word())
        if found is None:
            self._at -= 1
            raise self._error("expected a time")
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return int(word) if word.isdigit() else ((days * 24 + hours) * 60 + minutes) * 60 + seconds

    # --- chains ---

    def _chain(self) -> tuple[dict[str, Json], list[dict[str, Json]]]:
        definition: dict[str, Json] = {}
        rules: list[dict[str, Json]] = []

        def item() -> None:
            if self._is("type") and not rules and "hook" not in definition:
                definition.update(self._hook())
            elif self._is("policy") and not rules:
                self._take()
                definition["policy"] = self._word()
            elif self._is("comment") and not rules:
                self._take()
                self._name()
            else:
                rules.append(self._rule())

        self._braces(item)
        return definition, rules

    def _hook(self) -> dict[str, Json]:
        self._expect("type")
        kind = self._word()
        if kind not in _CHAIN_TYPES:
            raise self._error("expected the type of a base chain before this")
        self._expect("hook")
        body: dict[str, Json] = {"type": kind, "hook": self._word()}
        if self._is("device", "devices"):
            raise self._error("expected the priority of a chain without devices")
        self._expect("priority")
        body |= self._priority()
        return body

    def _priority(self) -> dict[str, Json]:
        """Read a priority: a number, or one of the names of :mod:`.nft`, with a number added or taken off."""
        word = self._word()
        if re.fullmatch(r"-?[0-9]+", word):
            return {"prio": int(word)}
        if self._is("+", "-"):
            sign = -1 if self._take().text == "-" else 1
            return {"prio": word, "offset": sign * self._number()}  # nft's JSON has names with offsets nowhere
        return {"prio": word}

    def _rule(self) -> dict[str, Json]:
        statements: list[Json] = []
        comment = ""
        while not self._is("\n", ";", "}", ""):
            if self._skip("comment"):
                comment = self._name()
                break
            statements.append(self._statement())
        return {"expr": statements, "comment": comment} if comment else {"expr": statements}

    # --- statements ---

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
        if not _NUMBER.fullmatch(number) or not slash:
            raise self._error("expected a rate of packets before this")
        body: dict[str, Json] = {"rate": _integer(number), "per": unit, "burst": 5}
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
            if self._is(*_PAYLOADS, "meta", "ct"):
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
        body = {"addr": _scalar(found[1])} if found[1] else {}
        return {**body, "port": _scalar(found[2])} if found[2] else body

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

    # --- matches ---

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
        if _is(selector, "payload", "tcp", "flags") or _is(_masked(selector), "payload", "tcp", "flags"):
            return self._flags(operator, selector)
        if self._is("{"):
            return _matching(operator or "==", selector, {"set": self._elements()})
        right = self._values()
        if not operator and (_is(selector, "ct", None, "state") or isinstance(right, list)):
            return _matching("in", selector, right if isinstance(right, list) else [right])
        if not operator and _is(selector, "meta", None, "mark") and isinstance(right, dict) and "prefix" in right:
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
        """Read what TCP flags are compared with: a few, or some of a mask (``syn / syn,ack``)."""
        if not operator and self._skip("!"):
            return _matching("!", selector, self._bits())
        bits = self._bits()
        if self._skip("/"):
            return _matching(operator or "==", {"&": [selector, self._bits()]}, bits)
        return _matching(operator or "in", selector, bits)

    def _bits(self) -> int:
        """Read flags of TCP as a number: ``syn``, ``syn,ack``, ``syn | ack`` or ``0x12``."""
        closing = self._skip("(")
        bits = self._bit()
        while self._skip(",", "|"):
            bits |= self._bit()
        if closing:
            self._expect(")")
        return bits

    def _bit(self) -> int:
        word = self._word()
        if word in names.TCP_FLAG_BITS:
            return names.TCP_FLAG_BITS[word]
        if _NUMBER.fullmatch(word):
            return _integer(word)
        self._at -= 1
        raise self._error("expected a flag of TCP")

    def _values(self) -> Json:
        """Read one value, or several with commas between them."""
        first = self._value()
        if not self._is(","):
            return first
        found: list[Json] = [first]
        while self._skip(","):
            found.append(self._value())
        return found

    def _value(self) -> Json:
        """Read a value, or those of a concatenation."""
        parts = [self._one()]
        while self._skip("."):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else {"concat": parts}

    def _one(self) -> Json:
        if self._next.quoted:
            return self._take().text
        return _scalar(self._word())

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

    # --- selectors ---

    def _starts_selector(self) -> bool:
        token = self._next
        if token.quoted:
            return False
        words = ("meta", "ct", "fib", "exthdr", *_UNQUALIFIED, *_PAYLOADS)
        return token.text in words or (
            _TOKEN.fullmatch(token.text) is not None and token.text.startswith("@") and ("," in token.text)
        )

    def _selector(self) -> Json:
        parts = [self._one_selector()]
        while self._skip("."):
            parts.append(self._one_selector())
        return parts[0] if len(parts) == 1 else {"concat": parts}

    def _one_selector(self) -> Json:
        selector = self._field()
        if not self._skip("&"):
            return selector
        mask: Json = self._bits() if _is(selector, "payload", "tcp", "flags") else self._value()
        return {"&": [selector, mask]}

    def _field(self) -> Json:
        word = self._word()
        if word.startswith("@") and "," in word:
            base, offset, length = word[1:].split(",")
            return {"payload": {"base": base, "offset": int(offset), "len": int(length)}}
        if word in _UNQUALIFIED:
            return {"meta": {"key": word}}
        if word == "meta":
            return {"meta": {"key": self._word()}}
        if word == "ct":
            if self._is("original", "reply"):
                raise self._error("expected a property of a connection without a direction")
            return {"ct": {"key": self._word()}}
        if word == "exthdr":
            return {"exthdr": {"name": self._word()}}
        if word == "fib":
            flags: list[Json] = [self._word()]
            while self._skip("."):
                flags.append(self._word())
            return {"fib": {"result": self._word(), "flags": flags}}
        if word in _PAYLOADS:
            field = self._word()
            if word == "arp" and field in ("saddr", "daddr"):
                field += f" {self._word()}"
            return {"payload": {"protocol": word, "field": field}}
        self._at -= 1
        raise self._error("expected a property of packets that is known")


def _matching(operator: str, left: Json, right: Json) -> Json:
    return {"match": {"op": operator, "left": left, "right": right}}


def _masked(expression: Json) -> Json:
    """Return what an expression masks, or None."""
    masked = expression.get("&") if isinstance(expression, dict) else None
    return masked[0] if isinstance(masked, list) else None


def _is(expression: Json, kind: str, protocol: str | None, key: str) -> bool:
    """Tell whether an expression is this field of a header, or this property."""
    body = expression.get(kind) if isinstance(expression, dict) else None
    if not isinstance(body, dict):
        return False
    return body.get("field" if protocol else "key") == key and (protocol is None or body.get("protocol") == protocol)


_ADDRESS = r"[0-9]+(?:\.[0-9]+){3}|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*|[0-9]+|0x[0-9a-fA-F]+"
_RANGE = re.compile(rf"({_ADDRESS})-({_ADDRESS})")
_PREFIX = re.compile(rf"({_ADDRESS})/([0-9]{{1,3}})")


def _integer(word: str) -> int:
    return int(word, 16 if word.startswith("0x") else 10)


def _scalar(word: str) -> Json:
    """Return a value of one word: a number, a network, a range, a reference ``@set``, or a name or address."""
    if _NUMBER.fullmatch(word):
        return _integer(word)
    if (prefix := _PREFIX.fullmatch(word)) is not None:
        return {"prefix": {"addr": _scalar(prefix[1]), "len": int(prefix[2])}}
    if (ends := _RANGE.fullmatch(word)) is not None:
        return {"range": [_scalar(ends[1]), _scalar(ends[2])]}
    return word


_STATEMENTS: dict[str, Callable[[_Parser, str], Json]] = {
    **dict.fromkeys(("accept", "drop", "return", "continue", "notrack", "masquerade", "redirect"), _Parser._plain),
    **dict.fromkeys(("jump", "goto"), _Parser._go),
    **dict.fromkeys(("add", "update", "delete"), _Parser._update),
    **dict.fromkeys(("dnat", "snat"), _Parser._translate),
    "counter": _Parser._counter,
    "reject": _Parser._reject,
    "limit": _Parser._limit,
    "log": _Parser._log,
    "queue": _Parser._queue,
}
"""What reads a statement, by its first word. Statements without an entry begin with what they match."""
