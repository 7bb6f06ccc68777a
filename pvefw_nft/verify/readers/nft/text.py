"""Read nft rulesets in nft's own syntax: files for ``nft -f``, and the output of ``nft list ruleset``.

Source: nft(8), and the listings of nftables 1.0.6 to 1.1. The text becomes the JSON that libnftables has for it, which
:mod:`.nft` reads; so the meaning of a rule is decided in one place. It reads the part of the language that
filters use: tables with sets, maps, conntrack helpers and chains. Variables, included files and single commands but
``add``, ``delete``, ``destroy`` and ``flush`` of tables are not; they, and statements that are not known, are errors
that name the line. ``nft -j list ruleset`` gives the whole.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pvefw_nft.verify.readers.nft.text_rules import Rules
from pvefw_nft.verify.readers.nft.text_tokens import tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pvefw_nft.verify.readers.nft.values import Json

_FAMILIES = ("ip", "ip6", "inet", "bridge", "arp", "netdev")
_CHAIN_TYPES = ("filter", "nat", "route")


def parse_nft_text(text: str, source: str) -> dict[str, Json]:
    """Return the commands of a text as libnftables' JSON. Raises RulesetError, naming ``source`` and the line."""
    return {"nftables": [*_Tables(source, tokens(text, source)).commands()]}


class _Tables(Rules):
    """Reads the commands of a text."""

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
