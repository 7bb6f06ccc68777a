"""Reads iptables and ip6tables rulesets: save and restore text, and the JSON form of ``pvefw compile``.

Sources: iptables(8), iptables-extensions(8), iptables-restore(8). Restore text is read as if fed to a kernel
that has only the built-in chains, accepting all.

Example: ``-A tap100i0-IN -p tcp --dport 22 -j ACCEPT`` becomes a rule of chain ``tap100i0-IN`` with the tests
``l4proto in [6]`` and ``dport in [22]`` and the verdict Accept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from pvefw_nft.verify.model import (
    ACCEPT,
    DROP,
    Chain,
    Family,
    Goto,
    Hook,
    Jump,
    Point,
    Rule,
    Table,
    TableKey,
    UnreadChain,
)
from pvefw_nft.verify.readers.shared import check_jumps_of, next_place, with_plain_ends
from pvefw_nft.verify.readers.xtables.digests import SetDigests
from pvefw_nft.verify.readers.xtables.rule import RuleParser

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pvefw_nft.verify.readers.ipset import IpSets
    from pvefw_nft.verify.readers.shared import Reading

P = Point
BUILTIN_CHAINS: dict[str, dict[str, tuple[Point, int]]] = {
    "raw": {"PREROUTING": (P.PREROUTING, -300), "OUTPUT": (P.OUTPUT, -300)},
    "mangle": {
        "PREROUTING": (P.PREROUTING, -150),
        "INPUT": (P.INPUT, -150),
        "FORWARD": (P.FORWARD, -150),
        "OUTPUT": (P.OUTPUT, -150),
        "POSTROUTING": (P.POSTROUTING, -150),
    },
    "nat": {
        "PREROUTING": (P.PREROUTING, -100),
        "INPUT": (P.INPUT, 100),
        "OUTPUT": (P.OUTPUT, -100),
        "POSTROUTING": (P.POSTROUTING, 100),
    },
    "filter": {"INPUT": (P.INPUT, 0), "FORWARD": (P.FORWARD, 0), "OUTPUT": (P.OUTPUT, 0)},
    "security": {"INPUT": (P.INPUT, 50), "FORWARD": (P.FORWARD, 50), "OUTPUT": (P.OUTPUT, 50)},
}
"""The built-in chains with their hook and priority (include/uapi/linux/netfilter_ipv4.h)."""

OUR_HOOKS = {
    "filter": {"INPUT": "PVEFW-INPUT", "FORWARD": "PVEFW-FORWARD", "OUTPUT": "PVEFW-OUTPUT"},
    "raw": {"PREROUTING": "PVEFW-PREROUTING"},
}
"""The jumps into pvefw's chains. The JSON form of its rulesets holds only the chains themselves."""

_COUNTERS = re.compile(r"\[\d+:\d+\]\s*")
_APPENDED = re.compile(r"-A (\S+) .*(?:\n-A \1 .*)*")
"""Lines in a row that append rules to one chain."""
_DECLARED = re.compile(r"(?::\S+ - \[\d+:\d+\]\n)+")
"""Lines in a row that declare chains without a policy."""
_FLUSHED = re.compile(r"(?:-F \S+\n)+")
"""Lines in a row that flush one chain each."""


_Unread: TypeAlias = tuple[str, int, str]
"""A rule as text: its line, the line's number, and the rule without ``-A CHAIN``."""


class _UnreadLines(NamedTuple):
    """Rules as text: lines in a row of one chain, each with ``-A CHAIN``, and the number of the first."""

    lines: str
    number: int


def _each(unread: Iterable[_Unread | _UnreadLines]) -> list[_Unread]:
    """Return rules as text, each by itself."""
    found: list[_Unread] = []
    for one in unread:
        if isinstance(one, _UnreadLines):
            start = one.lines.index(" ", len("-A ")) + 1
            lines = enumerate(one.lines.split("\n"), one.number)
            found += [(line.strip(), number, line[start:].strip()) for number, line in lines]
        else:
            found.append(one)
    return found


@dataclass(slots=True)
class XtablesReader:
    """Reads rulesets of one IP version (4: iptables, 6: ip6tables).

    ``legacy`` rulesets, of iptables-legacy, are separate from rulesets of iptables-nft: a packet passes both.
    ``origins`` gives the place in the configuration by table, chain and number of the rule in its chain. ``on_demand``:
    parse the rules of a chain at its first use; ``digests``: and chains have a digest, with which a proof knows them
    again. Whether these go in a circle is left to the proof.
    """

    version: int
    reading: Reading
    sets: IpSets
    origins: Mapping[tuple[str, str, int], str] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    legacy: bool = False
    on_demand: bool = False
    digests: bool = False
    _parser: RuleParser = field(init=False)
    _unread: dict[str, dict[str, list[_Unread | _UnreadLines]]] = field(default_factory=dict)
    _counted: set[tuple[str, str]] = field(default_factory=set)
    """The chains, by table and name, whose unread rules are taken one by one, since rules were put at places."""

    def __post_init__(self) -> None:
        self._parser = RuleParser(self.version, self.reading, self.sets)

    @property
    def tool(self) -> str:
        """The tool's name, as in table keys."""
        return ("iptables" if self.version == 4 else "ip6tables") + ("-legacy" if self.legacy else "")

    def read_text(self, text: str, first_line: int = 1) -> None:
        """Read save or restore text. Raises RulesetError, with line (from ``first_line``), table and chain.

        iptables-restore wants each table to end with ``COMMIT``; without it the text was cut off.
        """
        text = with_plain_ends(text)
        table: Table | None = None
        place, number = 0, first_line - 1
        while place < len(text):
            number += 1
            # nearly all lines are rules in a row of one chain
            rules = None if table is None else _APPENDED.match(text, place)
            chain = None if table is None or rules is None else table.chains.get(rules[1])
            if table is None or rules is None or chain is None:
                if table is not None and (end := self._prepare(table, text, place)) > place:
                    number += text.count("\n", place, end) - 1
                    place = end
                    continue
                end = next_place(text, "\n", place)
                table = self._line(table, text[place:end].strip(), number)
                place = end + 1
                continue
            lines = _UnreadLines(rules[0], number)
            if self.on_demand:
                is_counted = (table.key.name, chain.name) in self._counted
                self._unread_of(table, chain.name).extend(_each([lines]) if is_counted else [lines])
            else:
                self._append_lines(table, chain, lines)
            number += rules[0].count("\n")
            place = rules.end() + 1
        self._expect_commit(table, max(number, first_line))

    def _prepare(self, table: Table, text: str, place: int) -> int:
        """Read lines in a row that declare chains, or that flush empty ones; return their end.

        Return ``place`` for other lines: these are read one by one. Restore text has thousands of each in a row.
        """
        if (found := _DECLARED.match(text, place)) is not None:
            for word in found[0].split()[::3]:
                if (name := word[1:]) not in table.chains:
                    table.chains[name] = Chain(name, [])
            return found.end()
        if (found := _FLUSHED.match(text, place)) is not None:
            unread = self._unread.get(table.key.name, {})
            chains = [table.chains.get(name) for name in found[0].split()[1::2]]
            if all(chain is not None and not chain.rules and chain.name not in unread for chain in chains):
                return found.end()
        return place

    def _line(self, table: Table | None, line: str, number: int) -> Table | None:
        """Read a line within a table (None: outside of any); return the table that the next one is in."""
        if not line or line.startswith("#"):
            return table
        if line.startswith("*"):
            self._expect_commit(table, number)
            return self.table(line[1:].strip(), number)
        if line == "COMMIT":
            return None
        if table is None:
            raise self.reading.error(f"line {number}", f"outside of any table: {line}")
        if line.startswith(":"):
            self._declare(table, line, number)
        else:
            self._command(table, line, number)
        return table

    def _unread_of(self, table: Table, chain: str) -> list[_Unread | _UnreadLines]:
        """Return the rules of a chain that were not read."""
        return self._unread.setdefault(table.key.name, {}).setdefault(chain, [])

    def _append_lines(self, table: Table, chain: Chain, lines: _UnreadLines) -> None:
        """Read rules of a chain. Raises RulesetError."""
        known, origins = self._parser.known, self.origins
        name, place = chain.name, table.key.name
        for index, (line, number, body) in enumerate(_each([lines]), len(chain.rules) + 1):
            parsed = known.get(body)
            if parsed is None or isinstance(parsed[2], (Jump, Goto)):  # the table may have no such chain
                parsed = self._parser.parse(table, name, index, body)
            origin = origins.get((place, name, index), "") if origins else ""
            chain.rules.append(Rule(*parsed, line, origin, number))

    def _expect_commit(self, table: Table | None, number: int) -> None:
        if table is not None:
            raise self.reading.error(f"line {number}", f"table {table.key.name} has no COMMIT: the text was cut off")

    def read_json(self, tables: Mapping[str, Mapping[str, Iterable[str]]]) -> list[Table]:
        """Return the tables of the JSON form: ``{"filter": {CHAIN: [RULE…]}}``, entered from the hooks."""
        for name, chains in tables.items():
            table = self.table(name, 0)
            for chain in chains:
                table.chains.setdefault(chain, Chain(chain, []))
            for builtin, ours in OUR_HOOKS.get(name, {}).items():
                if ours in chains:
                    self._append(table, builtin, f"-j {ours}", f"-A {builtin} -j {ours}", 0)
            for rules in chains.values():
                for line in rules:
                    self._command(table, line, 0)
        return self.finish()

    def finish(self) -> list[Table]:
        """Return the tables read, after checking that targets were chains where they were no extension."""
        self._parser.check_targets(self.tables.values())
        digests = SetDigests(self.sets) if self.digests else None
        texts = {
            (table, name): "\n".join([one.lines if isinstance(one, _UnreadLines) else one[0] for one in unread])
            for table, chains in self._unread.items()
            for name, unread in chains.items()
        }
        if digests is not None:
            self.sets.lookups.update(name for text in texts.values() for name in digests.looked_up(text))
        for table in self.tables.values():
            table.lookups = {f"ipset {name}" for name in self.sets.lookups}
        for (table_name, name), text in texts.items():
            table = self.tables[table_name]
            read = partial(self._read, table, name, self._unread[table_name][name])
            table.chains[name] = made = UnreadChain(
                table.chains[name], read, may_set_zone="zone" in text or "\\" in text
            )
            if digests is not None:
                made.digest = digests.of((self.tool, table_name), text)
        return list(self.tables.values())

    def _read(self, table: Table, chain: str, unread: Iterable[_Unread | _UnreadLines]) -> list[Rule]:
        """Return the rules of a chain. Raises RulesetError where one cannot be read, or goes to no chain."""
        rules = []
        known = self._parser.known
        for index, (line, number, body) in enumerate(_each(unread), 1):
            parsed = known.get(body) or self._parser.parse(table, chain, index, body)
            rules.append(Rule(*parsed, line, self._origin(table, chain, index), number))
            if isinstance(verdict := parsed[2], Jump | Goto) and verdict.chain not in table.chains:
                self.reading.unknown(f"table {table.key}, chain {chain}, rule {index}", body)
        if not self.digests:
            check_jumps_of(self.reading, table, chain, rules)
        del self._unread[table.key.name][chain]  # nothing asks for its text any more
        return rules

    def table(self, name: str, line: int) -> Table:
        """Return a table, with its built-in chains when new."""
        known = self.tables.get(name)
        if known is None:
            builtin = BUILTIN_CHAINS.get(name)
            if builtin is None:
                raise self.reading.error(f"line {line}", f"there is no table '{name}' in {self.tool}")
            family = Family.IP if self.version == 4 else Family.IP6
            known = Table(TableKey(self.tool, family, name))
            kind = "nat" if name == "nat" else "filter"
            for chain, (point, priority) in builtin.items():
                known.chains[chain] = Chain(chain, [], ACCEPT, Hook(family, point, priority, kind))
            self.tables[name] = known
        return known

    def _declare(self, table: Table, line: str, number: int) -> None:
        words = line[1:].split()
        if len(words) < 2:
            raise self.reading.error(f"line {number}", f"not a chain: {line}")
        name, policy = words[0], words[1]
        chain = table.chains.get(name)
        if chain is None:
            table.chains[name] = Chain(name, [])
        elif chain.hook is not None and policy in ("ACCEPT", "DROP"):
            chain.policy = ACCEPT if policy == "ACCEPT" else DROP
        elif policy != "-":
            raise self.reading.error(f"line {number}", f"unknown policy {policy}")

    def _command(self, table: Table, line: str, number: int) -> None:
        if line.startswith("["):
            line = _COUNTERS.sub("", line, count=1)
        command, _, rest = line.partition(" ")
        chain, _, body = rest.strip().partition(" ")
        if command in ("-A", "--append"):
            self._append(table, chain, body.strip(), line, number)
            return
        where = f"line {number}: table {table.key}"
        if command in ("-I", "--insert"):
            first, _, other = body.strip().partition(" ")
            place = int(first) if first.isdecimal() else 1
            self._append(table, chain, other.strip() if first.isdecimal() else body.strip(), line, number, place)
        elif command in ("-N", "--new-chain"):
            table.chains.setdefault(chain, Chain(chain, []))
        elif command in ("-F", "--flush"):
            for name in [chain] if chain else list(table.chains):
                self._existing(table, name, where).rules.clear()
                self._forget(table, name, where)
        elif command in ("-P", "--policy"):
            if body.strip() not in ("ACCEPT", "DROP"):
                raise self.reading.error(where, f"unknown policy: {line}")
            self._existing(table, chain, where).policy = ACCEPT if body.strip() == "ACCEPT" else DROP
        elif command in ("-X", "--delete-chain"):
            for name in [chain] if chain else [c.name for c in table.chains.values() if c.hook is None]:
                self._existing(table, name, where)
                del table.chains[name]
                self._forget(table, name, where)
        else:
            raise self.reading.error(where, f"unknown command: {line}")

    def _forget(self, table: Table, name: str, where: str) -> None:
        """Forget a chain's rules that were not read. Raises RulesetError if these might still name a set."""
        unread = self._unread.get(table.key.name, {}).pop(name, None)
        if unread and self.digests:
            raise self.reading.error(where, f"removes rules of chain {name} that were not read")

    def _existing(self, table: Table, name: str, where: str) -> Chain:
        chain = table.chains.get(name)
        if chain is None:
            raise self.reading.error(where, f"there is no chain '{name}'")
        return chain

    def _append(self, table: Table, name: str, body: str, line: str, number: int, place: int | None = None) -> None:
        chain = table.chains.get(name)
        if chain is None:
            raise self.reading.error(f"line {number}: table {table.key}", f"there is no chain '{name}' for: {line}")
        if self.on_demand:
            unread = self._unread_of(table, name)
            if place is not None and (table.key.name, name) not in self._counted:
                unread[:] = _each(unread)
                self._counted.add((table.key.name, name))
            unread.insert(len(unread) if place is None else place - 1, (line, number, body))
            return
        rule = self._rule(table, name, len(chain.rules) + 1 if place is None else place, body, line, number)
        if place is None:
            chain.rules.append(rule)
        else:
            chain.rules.insert(place - 1, rule)

    def _rule(self, table: Table, name: str, index: int, body: str, line: str, number: int) -> Rule:
        return Rule(*self._parser.parse(table, name, index, body), line, self._origin(table, name, index), number)

    def _origin(self, table: Table, chain: str, index: int) -> str:
        """Return the place of a rule in the configuration, if it is known."""
        return self.origins.get((table.key.name, chain, index), "") if self.origins else ""
