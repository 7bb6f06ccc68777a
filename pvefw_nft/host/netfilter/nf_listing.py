"""How the kernel lists a chain, set or object now, as a digest by which a later change of it is seen.

Everything counts that decides what happens to packets, and nothing that changes by itself: counters, the elements that
packets add, and numbers that the kernel gives. Constants come from include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

from pvefw_nft.errors import HostError

from .nf_tables import DUMP, EXPRESSION_DATA, EXPRESSION_NAME, REQUEST, SUBSYSTEM, attributes, pack, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .nf_tables import Questions

_GET_CHAIN, _GET_RULE, _GET_SET, _GET_ELEMENTS, _GET_OBJECT = (SUBSYSTEM | number for number in (4, 7, 10, 13, 19))
_NEW_OF = {get: get - 1 for get in (_GET_CHAIN, _GET_RULE, _GET_SET, _GET_ELEMENTS, _GET_OBJECT)}
"""The kind of the answers to each kind of question."""

_CHAIN_TABLE, _CHAIN_NAME = 1, 3
_CHAIN_KEPT = (4, 5, 7, 10, 12)  # hook, policy, type, flags, user data; not how many rules lead to it
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4
_RULE_KEPT = (5, 7)  # compat, user data
_SET_TABLE, _SET_NAME, _SET_FLAGS, _SET_EXPRESSION, _SET_EXPRESSIONS = 1, 2, 3, 17, 18
_SET_KEPT = (3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15)  # flags to descriptor, timeout, interval, user data, kind of object
_ANONYMOUS, _MAP, _TIMEOUT, _EVAL, _OBJECTS = 0x1, 0x8, 0x10, 0x20, 0x40
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_ELEMENT_EXPRESSION, _ELEMENT_EXPRESSIONS = 7, 11
_ELEMENT_KEPT = (1, 2, 3, 4, 6, 9, 10)  # key, data, flags, timeout, user data, object, end of the key
_OBJECT_TABLE, _OBJECT_NAME, _OBJECT_KEPT = 1, 2, (3, 4)  # kind, data
_OBJECT_KIND, _HELPER = 3, 3
_SET_NAMES = {"lookup": 1, "dynset": 1, "objref": 4}
"""The expressions that name a set, and the attribute that does."""

_MAX_CACHED = 10_000
"""So many different expressions are kept with what is made of them: most rules are made of the same ones."""


class Listing:
    """The digests of a table's objects, by kind and name."""

    def __init__(self, questions: Questions, family: str, table: str) -> None:
        """Ask nothing yet. The methods raise :class:`HostError`."""
        self._questions = questions
        self._family = family
        self._table = table
        self._definitions: dict[str, bytes] = {}
        self._framed_expressions: dict[bytes, bytes] = {}
        self.rule_counts: dict[str, int] = {}
        """The number of rules of each chain that was listed."""

    def of_all(self) -> dict[tuple[str, str], str]:
        """Return the digests of all chains, sets, maps and conntrack helpers of the table."""
        chains = list(self._chains(None))
        sets = list(self._sets(None))
        self._definitions = {name: body for name, _, body in sets}
        # chain by chain: for each part of a dump of all rules, the kernel counts up to it from the first one
        # (__nf_tables_dump_rules), so that the time grows with the square of their number
        found = {("chain", name): self._chain(name, body) for name, body in chains}
        named = (made for made in sets if not made[1] & _ANONYMOUS)
        found |= {(_kind(flags), name): self._set(name, flags, body) for name, flags, body in named}
        return found | {("ct helper", name): _digest([body]) for name, body in self._helpers()}

    def of(self, kind: str, name: str) -> str | None:
        """Return the digest of a chain, set or map; None: there is none of that kind and name."""
        if kind == "chain":
            for _, body in self._chains(name):
                return self._chain(name, body)
        elif kind in ("set", "map"):
            for _, flags, body in self._sets(name):
                if _kind(flags) == kind:
                    return self._set(name, flags, body)
        else:
            raise HostError(f"cannot list a {kind}")
        return None

    # --- what the kernel tells ---

    def _chains(self, name: str | None) -> Iterator[tuple[str, bytes]]:
        for parts in self._ask(_GET_CHAIN, _CHAIN_TABLE, _CHAIN_NAME, name):
            yield text(parts[_CHAIN_NAME]), _framed(parts.get(kind, b"") for kind in _CHAIN_KEPT)

    def _chain(self, name: str, body: bytes) -> str:
        rules = list(self._rules(name))
        self.rule_counts[name] = len(rules)
        return _digest([body, *rules])

    def _rules(self, chain: str) -> Iterator[bytes]:
        for parts in self._ask(_GET_RULE, _RULE_TABLE, _RULE_CHAIN, chain, dump=True):
            expressions = self._expressions(parts.get(_RULE_EXPRESSIONS, b""))
            yield _framed([expressions, *(parts.get(kind, b"") for kind in _RULE_KEPT)])

    def _sets(self, name: str | None) -> Iterator[tuple[str, int, bytes]]:
        for parts in self._ask(_GET_SET, _SET_TABLE, _SET_NAME, name):
            expressions = [self._expression(parts[_SET_EXPRESSION])] if _SET_EXPRESSION in parts else []
            expressions.append(self._expressions(parts.get(_SET_EXPRESSIONS, b"")))
            flags = int.from_bytes(parts.get(_SET_FLAGS, b""), "big")
            yield text(parts[_SET_NAME]), flags, _framed([*expressions, *(parts.get(kind, b"") for kind in _SET_KEPT)])

    def _helpers(self) -> Iterator[tuple[str, bytes]]:
        for parts in self._ask(_GET_OBJECT, _OBJECT_TABLE, _OBJECT_NAME, None):
            if int.from_bytes(parts[_OBJECT_KIND], "big") == _HELPER:
                yield text(parts[_OBJECT_NAME]), _framed(parts.get(kind, b"") for kind in _OBJECT_KEPT)

    def _ask(
        self, get: int, table: int, named: int, name: str | None, *, dump: bool = False
    ) -> Iterator[dict[int, bytes]]:
        """Yield the attributes of the table's objects of a kind, or only of those with this name.

        ``table`` and ``named`` are the attributes that say so; ``dump``: there may be several of that name.
        """
        about = pack(table, self._table) + (b"" if name is None else pack(named, name))
        flags = REQUEST | DUMP if dump or name is None else REQUEST
        for kind, body in self._questions.ask(get, flags, self._family, about):
            parts = dict(attributes(body, 4)) if kind == _NEW_OF[get] else {}
            # older kernels ignore the filter and dump all objects
            if parts and text(parts[table]) == self._table and name in (None, text(parts[named])):
                yield parts

    # --- sets and expressions ---

    def _set(self, name: str, flags: int, body: bytes) -> str:
        """Return the digest of a set; its elements do not count where packets add and time removes them."""
        return _digest([body] if flags & (_TIMEOUT | _EVAL) else [body, *self._elements(name)])

    def _elements(self, name: str) -> list[bytes]:
        """Return the elements of a set, sorted: the order of a hash is by chance."""
        about = pack(_LIST_TABLE, self._table) + pack(_LIST_SET, name)
        return sorted(
            self._element(element)
            for kind, body in self._questions.ask(_GET_ELEMENTS, REQUEST | DUMP, self._family, about)
            if kind == _NEW_OF[_GET_ELEMENTS]
            for part, elements in attributes(body, 4)
            if part == _LIST_ELEMENTS
            for _, element in attributes(elements, 0)
        )

    def _element(self, element: bytes) -> bytes:
        parts = dict(attributes(element, 0))
        kept = [parts.get(kind, b"") for kind in _ELEMENT_KEPT]
        if _ELEMENT_EXPRESSION in parts:
            kept.append(self._expression(parts[_ELEMENT_EXPRESSION]))
        return _framed([*kept, self._expressions(parts.get(_ELEMENT_EXPRESSIONS, b""))])

    def _expressions(self, listed: bytes) -> bytes:
        return _framed(self._expression(expression) for _, expression in attributes(listed, 0))

    def _expression(self, expression: bytes) -> bytes:
        """Return an expression without its counts, and with the content of a set that has no name of its own."""
        known = self._framed_expressions.get(expression)
        if known is not None:
            return known
        framed = self._read_expression(expression)
        if b"__" not in expression and len(self._framed_expressions) < _MAX_CACHED:  # nft's own names begin so
            self._framed_expressions[expression] = framed
        return framed

    def _read_expression(self, expression: bytes) -> bytes:
        parts = dict(attributes(expression, 0))
        name, data = text(parts.get(EXPRESSION_NAME, b"")), parts.get(EXPRESSION_DATA, b"")
        if name == "counter":
            return b"counter"
        if name in _SET_NAMES:
            values = dict(attributes(data, 0))
            set_name = text(values.get(_SET_NAMES[name], b""))
            if set_name.startswith("__"):
                values[_SET_NAMES[name]] = self._anonymous(set_name).encode()
                data = _framed(part for kind in sorted(values) for part in (bytes([kind]), values[kind]))
        return _framed([name.encode(), data])

    def _anonymous(self, name: str) -> str:
        """Return the digest of a set that nft made for one rule. It cannot change while the rule is there."""
        body = self._definitions.get(name)
        if body is None:
            body = next((body for _, _, body in self._sets(name)), b"")
        return _digest([body, *self._elements(name)])


def _kind(flags: int) -> str:
    return "map" if flags & (_MAP | _OBJECTS) else "set"


def _framed(parts: Iterable[bytes]) -> bytes:
    """Return parts as one, so that other parts are never the same."""
    return b"".join([len(part).to_bytes(4, "big") + part for part in parts])


def _digest(parts: Iterable[bytes]) -> str:
    return base64.b64encode(hashlib.sha256(_framed(parts)).digest()[:12]).decode()
