"""Reads nft rulesets in JSON form: ``nft -j list ruleset``, and command lists as ``nft -j -f`` takes them.

Source: libnftables-json(5). A command list is carried out in order on an empty ruleset, so that "add, delete,
add" of a table gives the new table. An element of the list without a command is one of a listing.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from pvefw_nft.verify.model import (
    ACCEPT,
    DROP,
    Chain,
    Family,
    Hook,
    Point,
    Rule,
    Table,
    TableKey,
    UnreadChain,
)
from pvefw_nft.verify.readers.nft.digests import TableDigests
from pvefw_nft.verify.readers.nft.draft import NftTable
from pvefw_nft.verify.readers.nft.rule import NftRuleParser
from pvefw_nft.verify.readers.nft.values import text_of
from pvefw_nft.verify.readers.shared import check_jumps_of, next_place

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from pvefw_nft.verify.readers.nft.values import Json
    from pvefw_nft.verify.readers.shared import Reading

_PRIORITIES = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100}
_BRIDGE_PRIORITIES = {"dstnat": -300, "filter": -200, "out": 100, "srcnat": 300}
XTABLES = frozenset(
    product(
        (Family.IP, Family.IP6, Family.BRIDGE, Family.ARP), ("raw", "mangle", "nat", "filter", "security", "broute")
    )
)
"""The tables that iptables-nft and its kin make, by family and name."""
_COMMANDS = ("add", "create", "insert", "replace", "delete", "destroy", "flush")
_SIGNATURE = re.compile(r" ?sig:\S+$")
"""The digest of one of pvefw's chains, at the end of its first rule's comment. It does not describe the rule."""
_FAMILIES = frozenset(family.value for family in Family)
_REFERENCE = re.compile(r'"(@[^"]*)"(?!:)')
"""A string, and no key, that refers to a set."""
_MARK = {"ct": {"key": "mark"}}
_RULE_KEYS = {"family", "table", "chain", "expr", "comment"}
_IGNORED = ("metainfo", "counter", "quota", "limit", "ct timeout", "ct expectation", "secmark", "synproxy")


class UnreadRule(NamedTuple):
    """The command that adds a rule, still as text, and the chain that it names.

    Either the whole command (``whole``) is kept or, of the form that ``pvefw compile`` prints, only what seem to be the
    rule's ``expressions``, between the brackets of their list, and the rule's ``comment``, if any.
    """

    family: str
    table: str
    chain: str
    whole: str | None
    expressions: str = ""
    comment: str | None = None

    @property
    def kept(self) -> str:
        """The text that is kept, in which every name of the rule's expressions stands."""
        return self.expressions if self.whole is None else self.whole

    def command(self) -> str:
        """Return the whole command."""
        if self.whole is not None:
            return self.whole
        start = f'{{"add":{{"rule":{{"family":"{self.family}","table":"{self.table}","chain":"{self.chain}",'
        comment = "" if self.comment is None else f',"comment":"{self.comment}"'
        return f'{start}"expr":[{self.expressions}]{comment}}}}}}}'

    def body(self) -> dict[str, Json]:
        """Return the rule. Raises ValueError where the text is not that command."""
        command = json.loads(self.command())
        if not isinstance(command, dict) or list(command) != ["add"]:
            raise ValueError("is not one command")
        body = command["add"]["rule"]
        if not isinstance(body, dict) or len(command["add"]) != 1:
            raise ValueError("is not one rule")
        if (body.get("family"), body.get("table"), body.get("chain")) != self[:3] or not body.keys() <= _RULE_KEYS:
            raise ValueError("has more in it than a rule's names, expressions and comment")
        return body


class UnreadRules(NamedTuple):
    """Commands in a row that add rules to one chain, still as text of the form that ``pvefw compile`` prints.

    ``kept`` has of each of the ``number`` rules its expressions, without the brackets of their list, behind a null
    character. Every name of the rules' expressions stands in it, and nothing is spelled with an escape.
    """

    family: str
    table: str
    chain: str
    lines: str
    kept: str
    number: int

    def rules(self) -> Iterator[UnreadRule]:
        """Yield the commands one by one."""
        return map(_unread_rule, self.lines.split(",\n"))


class Commands(NamedTuple):
    """The commands of a document, in order."""

    items: list[Json | UnreadRule | UnreadRules]


def commands_by_line(text: str) -> Commands | None:
    """Return the commands of ``pvefw compile --format json``, one on a line, without parsing the rules.

    None where the text is not of that form. Raises ValueError where a line is not JSON.
    """
    if not (text.startswith(_BEGIN) and text.endswith(_END)):
        return None
    body = text[len(_BEGIN) : -len(_END)]
    commands: list[Json | UnreadRule | UnreadRules] = []
    place = 0
    while place <= len(body):
        found = _RULES.match(body, place)
        end = next_place(body, ",\n", place) if found is None else found.end()
        rules = None if found is None else _unread_rules(found)
        if rules is None:
            commands += map(_command_of, body[place:end].split(",\n"))
        else:
            commands.append(rules)
        place = end + len(",\n")
    return Commands(commands)


def _command_of(line: str) -> Json | UnreadRule:
    """Return a command: a rule unread, if it is of the usual form. Raises ValueError where the line is not JSON."""
    # of a name given twice the last value counts, and some names give the rule another place: read as a whole
    if _RULE.match(line) is None or _is_unusual(line):
        command: Json = json.loads(line)
        return command
    return _unread_rule(line)


def _unread_rule(line: str) -> UnreadRule:
    """Return the command that adds a rule, of a line that begins so."""
    found = _RULE.match(line)
    assert found is not None
    family, table, chain, expressions, comment = found.groups()
    if expressions is None:
        return UnreadRule(family, table, chain, line)
    return UnreadRule(family, table, chain, None, expressions, comment)


def _is_unusual(line: str) -> bool:
    """Tell whether a rule may name its chain twice, or its place in the chain, or have a name with escapes."""
    return (
        not line.count('"family":') == line.count('"table":') == line.count('"chain":') == 1
        or "\\" in line
        or any(name in line for name in _PLACES)
    )


def _unread_rules(found: re.Match[str]) -> UnreadRules | None:
    """Return rules of one chain by what :data:`_RULES` found; None where one is unusual, or ends in another way."""
    lines, start, family, table, chain = found.group(0, 1, 2, 3, 4)
    number = lines.count(",\n") + 1
    kept, ends = _RULE_ENDS.subn("", lines.replace(start, "\0"))
    # a null character inside of a rule, or a second start, makes the count differ
    if not number == ends == kept.count("\0") or "\\" in lines or any(name in kept for name in _NAMES_OF_RULES):
        return None
    return UnreadRules(family, table, chain, lines, kept, number)


_PLACES = ('"index"', '"handle"', '"position"')
_NAMES_OF_RULES = ('"family":', '"table":', '"chain":', *_PLACES)
_BEGIN, _END = '{"nftables":[\n', "\n]}\n"
_RULE = re.compile(
    r'\{"add":\{"rule":\{"family":"([a-z0-9]+)","table":"([\w.-]+)","chain":"([\w./-]+)",'
    r'(?:"expr":\[(.*)\](?:,"comment":"([^"\\\x00-\x1f]*)")?\}\}\}\Z)?'
)
_RULES = re.compile(
    r'(\{"add":\{"rule":\{"family":"([a-z0-9]+)","table":"([\w.-]+)","chain":"([\w./-]+)","expr":\[).*\}'
    r"(?:,\n\1.*\})*(?=,\n|\Z)"
)
"""As many lines as add rules to one chain, without the comma behind the last."""
_RULE_ENDS = re.compile(r'\](?:,"comment":"[^"\\\x00-\x1f]*")?\}\}\}(?:,\n|\Z)')


_Rule: TypeAlias = "dict[str, Json] | UnreadRule"


@dataclass(slots=True)
class _RawChain:
    """A chain with its rules still as JSON, with their handles and comments.

    ``is_split``: each rule is by itself, since some command counts them.
    """

    name: str
    definition: dict[str, Json]
    rules: list[_Rule | UnreadRules] = field(default_factory=list)
    is_split: bool = False

    def append(self, rule: UnreadRule | UnreadRules) -> None:
        """Add rules at the end."""
        if self.is_split and isinstance(rule, UnreadRules):
            self.rules += rule.rules()
        else:
            self.rules.append(rule)

    def split(self) -> None:
        """Take each rule by itself, also those that are added from now on."""
        if not self.is_split:
            self.rules[:] = _each(self.rules)
            self.is_split = True


@dataclass(slots=True)
class _RawTable:
    family: Family
    name: str
    definition: dict[str, Json]
    chains: dict[str, _RawChain] = field(default_factory=dict)
    objects: NftTable = field(init=False)

    def __post_init__(self) -> None:
        self.objects = NftTable(self.family, self.name)


class NftReader:
    """Reads one ruleset. Tables in ``without``, by family and name, are left out if iptables-nft made them (read them
    by iptables-save, which understands all of their extensions). ``on_demand``: the rules of a chain are read at its
    first use; ``digests``: and chains have a digest, with which a proof knows them again. Whether these go in a circle,
    or lead to no chain, is left to the proof.
    """

    def __init__(
        self,
        reading: Reading,
        *,
        without: Collection[tuple[Family, str]] = (),
        on_demand: bool = False,
        digests: bool = False,
    ) -> None:
        self.reading = reading
        self.without = without
        self.on_demand = on_demand
        self.digests = digests
        self._tables: dict[tuple[Family, str], _RawTable] = {}

    def read_text(self, text: str) -> list[Table]:
        """Return the tables of JSON text. Raises RulesetError, naming table, chain and rule."""
        try:
            document = json.loads(text)
        except ValueError as error:
            raise self.reading.error("not JSON", error) from None
        return self.read(document)

    def read(self, document: Json) -> list[Table]:
        """Return the tables of a parsed document, ``{"nftables": […]}``."""
        items = document.get("nftables") if isinstance(document, dict) else None
        if not isinstance(items, list):
            raise self.reading.error("JSON", "is not an nft ruleset: it has no list 'nftables'")
        return self.read_commands(Commands([*items]))

    def read_commands(self, commands: Commands) -> list[Table]:
        """Return the tables that commands make."""
        chain: tuple[str, str, str] | None = None
        raw: _RawChain | None = None
        number = 0
        for item in commands.items:
            number += item.number if isinstance(item, UnreadRules) else 1
            if isinstance(item, UnreadRule | UnreadRules):
                if raw is None or chain != item[:3]:  # mostly the chain of the rule before
                    raw, chain = self._chain_of(item), item[:3]
                raw.append(item)
                continue
            chain = None
            if not isinstance(item, dict) or len(item) != 1:
                raise self.reading.error(f"object {number}", f"is not one command: {text_of(item)}")
            (kind, body), = item.items()  # fmt: skip
            try:
                if kind in _COMMANDS and isinstance(body, dict) and len(body) == 1:
                    (what, inner), = body.items()  # fmt: skip
                    self._command(kind, what, inner)
                else:
                    self._command("add", kind, body)
            except (KeyError, ValueError, TypeError, IndexError) as error:
                message = f"cannot be carried out ({type(error).__name__}: {error}): {text_of(item)[:200]}"
                raise self.reading.error(f"object {number}", message) from None
        return [self._table(raw) for raw in self._tables.values() if not self._left_out(raw)]

    def _chain_of(self, rule: UnreadRule | UnreadRules) -> _RawChain:
        """Return the chain that a rule names. Raises RulesetError where there is none."""
        table = self._tables.get((Family(rule.family), rule.table)) if rule.family in _FAMILIES else None
        chain = None if table is None else table.chains.get(rule.chain)
        if chain is None:
            first = next(rule.rules()) if isinstance(rule, UnreadRules) else rule
            message = f"there is no chain '{rule.chain}' for: {first.command()[:200]}"
            raise self.reading.error(f"table {rule.family} {rule.table}", message)
        return chain

    def _left_out(self, raw: _RawTable) -> bool:
        if (raw.family, raw.name) not in self.without:
            return False
        hooked = [chain.name for chain in raw.chains.values() if "hook" in chain.definition]
        return bool(hooked) and all(name.isupper() for name in hooked)

    # --- commands -------------------------------------------------------------------------------------------

    def _command(self, command: str, what: str, body: Json) -> None:
        if what in _IGNORED:
            return
        if what == "ruleset" and command == "flush":
            self._tables.clear()
            return
        if not isinstance(body, dict):
            raise ValueError(f"unknown object {what}")
        if what == "table":
            self._table_command(command, body)
            return
        table = self._tables[Family(str(body["family"])), str(body["table"])]
        if what == "chain":
            self._chain_command(command, table, body)
        elif what == "rule":
            self._rule_command(command, table.chains[str(body["chain"])], body)
        elif what in ("set", "map", "element"):
            self._set_command(command, what, table, body)
        elif what == "ct helper":
            table.objects.helpers[str(body["name"])] = str(body["type"])
        elif what != "flowtable":
            raise ValueError(f"unknown object {what}")

    def _table_command(self, command: str, body: dict[str, Json]) -> None:
        key = (Family(str(body["family"])), str(body["name"]))
        if command in ("add", "create"):
            self._tables.setdefault(key, _RawTable(*key, body))
        elif command in ("delete", "destroy"):
            if self._tables.pop(key, None) is None and command == "delete":
                raise ValueError("no such table")
        elif command == "flush":
            for chain in self._tables[key].chains.values():
                chain.rules.clear()
        else:
            raise ValueError(f"{command} of a table")

    def _chain_command(self, command: str, table: _RawTable, body: dict[str, Json]) -> None:
        name = str(body["name"])
        if command in ("add", "create"):
            known = table.chains.setdefault(name, _RawChain(name, body))
            if "policy" in body:
                known.definition = {**known.definition, "policy": body["policy"]}
        elif command in ("delete", "destroy"):
            if table.chains.pop(name, None) is None and command == "delete":
                raise ValueError("no such chain")
        elif command == "flush":
            table.chains[name].rules.clear()
        else:
            raise ValueError(f"{command} of a chain")

    def _rule_command(self, command: str, chain: _RawChain, body: dict[str, Json]) -> None:
        place = body.get("index")
        if command != "add" or place is not None:
            chain.split()  # places count rules
        if "handle" in body and command != "add":
            place = next(n for n, rule in enumerate(_each(chain.rules)) if _body(rule).get("handle") == body["handle"])
        if command in ("add", "create"):
            at = place + 1 if isinstance(place, int) else len(chain.rules)
            chain.rules.insert(at, body)
        elif command == "insert":
            chain.rules.insert(place if isinstance(place, int) else 0, body)
        elif command == "replace" and isinstance(place, int):
            chain.rules[place] = body
        elif command in ("delete", "destroy") and isinstance(place, int):
            del chain.rules[place]
        else:
            raise ValueError(f"{command} of a rule")

    def _set_command(self, command: str, what: str, table: _RawTable, body: dict[str, Json]) -> None:
        name = str(body["name"])
        elements = body.get("elem", [])
        if not isinstance(elements, list):
            elements = [elements]
        known = table.objects.elements
        if "timeout" in body and what != "element":
            table.objects.timeouts[name] = str(body["timeout"])
        if command in ("add", "create"):
            if what == "element" and name not in known:
                raise ValueError("no such set")
            known.setdefault(name, []).extend(elements)
        elif command == "flush":
            known[name].clear()
        elif command in ("delete", "destroy") and what == "element":
            for element in elements:
                known[name].remove(element)
        elif command in ("delete", "destroy"):
            if known.pop(name, None) is None and command == "delete":
                raise ValueError("no such set")
        else:
            raise ValueError(f"{command} of a {what}")

    # --- the model ------------------------------------------------------------------------------------------

    def _table(self, raw: _RawTable) -> Table:
        table = Table(TableKey("nft", raw.family, raw.name))
        flags = raw.definition.get("flags", [])
        dormant = flags == "dormant" or (isinstance(flags, list) and "dormant" in flags)
        rules = [rule for chain in raw.chains.values() for rule in chain.rules]
        raw.objects.counting |= _counting_sets(rules)
        if not self.on_demand or self.digests:  # only a proof asks for them
            looked_up = set().union(*map(_looked_up_by, rules)) - raw.objects.counting
            raw.objects.lookups |= set(map(raw.objects.set_name, looked_up))
        parser = NftRuleParser(raw.objects, self.reading)
        digest = TableDigests(raw.objects, self.reading) if self.digests else None
        for chain in raw.chains.values():
            made = Chain(chain.name, [])
            if "hook" in chain.definition:
                made.policy = DROP if chain.definition.get("policy") == "drop" else ACCEPT
                if not dormant:
                    made.hook = self._hook(table, chain)
            if self.on_demand:
                read = partial(self._read_met, parser, table, chain)
                made = unread = UnreadChain(made, read, may_set_zone=any(map(_names_zone, chain.rules)))
                if digest is not None and (text := _text_of(chain.rules)) is not None:
                    unread.digest = digest.of(text)
            else:
                made.rules = self._rules(parser, table, chain)
            table.chains[chain.name] = made
        for (reference, _), values in raw.objects.values.items():
            table.sets.setdefault(reference[1:], values)
        table.lookups = raw.objects.lookups
        return table

    def _rules(self, parser: NftRuleParser, table: Table, chain: _RawChain) -> list[Rule]:
        """Return the rules of a chain. Raises RulesetError where one cannot be read."""
        rules = []
        before = f"table {table.key}, chain {chain.name}, rule "
        for number, rule in enumerate(_each(chain.rules), 1):
            where = f"{before}{number}"
            if isinstance(rule, UnreadRule) and rule.whole is None:
                parsed = parser.parse_text(rule.expressions, where)
                if parsed is not None:
                    rules.append(Rule(*parsed, "", _SIGNATURE.sub("", rule.comment or "")))
                    continue
            try:
                body = _body(rule)
            except (ValueError, KeyError, TypeError) as error:
                raise self.reading.error(where, f"is not JSON, or not one command: {error}") from None
            statements = body.get("expr")
            if not isinstance(statements, list):
                raise self.reading.error(where, "has no expressions")
            origin = _SIGNATURE.sub("", str(body.get("comment", "")))
            rules.append(Rule(*parser.parse(statements, where), "", origin))
        return rules

    def _read_met(self, parser: NftRuleParser, table: Table, chain: _RawChain) -> list[Rule]:
        """As :meth:`_rules`. Raises RulesetError also where a rule goes to no chain, or back to this one."""
        rules = self._rules(parser, table, chain)
        if not self.digests:
            check_jumps_of(self.reading, table, chain.name, rules)
        chain.rules.clear()  # their texts, which nothing asks for any more, are as large as the rules
        return rules

    def _hook(self, table: Table, chain: _RawChain) -> Hook | None:
        definition = chain.definition
        name = str(definition["hook"])
        where = f"table {table.key}, chain {chain.name}"
        if name in ("ingress", "egress"):
            self.reading.unknown(where, f"hook {name}")
            return None
        try:
            point = Point[name.upper()]
        except KeyError:
            raise self.reading.error(where, f"unknown hook {name}") from None
        priority = definition.get("prio", 0)
        if not isinstance(priority, int):
            known = _BRIDGE_PRIORITIES if table.key.family is Family.BRIDGE else _PRIORITIES
            if str(priority) not in known:
                raise self.reading.error(where, f"unknown priority {priority}")
            offset = definition.get("offset", 0)
            priority = known[str(priority)] + (offset if isinstance(offset, int) else 0)
        return Hook(table.key.family, point, priority, str(definition.get("type", "filter")))


def _each(rules: Iterable[_Rule | UnreadRules]) -> list[_Rule]:
    """Return rules, each by itself."""
    found: list[_Rule] = []
    for rule in rules:
        if isinstance(rule, UnreadRules):
            found += rule.rules()
        else:
            found.append(rule)
    return found


def _body(rule: _Rule) -> dict[str, Json]:
    return rule.body() if isinstance(rule, UnreadRule) else rule


def _text_of(rules: Iterable[_Rule | UnreadRules]) -> str | None:
    """Return the texts of rules, each behind a null character; None where one was read.

    Rules that can be read have no null character, so that texts of other rules are other ones.
    """
    found = []
    for rule in rules:
        if isinstance(rule, UnreadRules):
            found.append(rule.kept)
        elif isinstance(rule, UnreadRule):
            found.append("\0" + rule.kept)
        else:
            return None
    return "".join(found)


def _counting_sets(rules: Iterable[_Rule | UnreadRules]) -> set[str]:
    """Return the references of sets that rules fill with rates, which change with each packet."""
    found = set()
    for rule in _each(rule for rule in rules if isinstance(rule, dict) or '"stmt"' in rule.kept or "\\" in rule.kept):
        statements = _expressions(rule)
        for statement in statements if isinstance(statements, list) else ():
            body = statement.get("set") if isinstance(statement, dict) else None
            if isinstance(body, dict) and body.get("stmt"):
                found.add(str(body.get("set")))
    return found


def _names_zone(rule: _Rule | UnreadRules) -> bool:
    """Tell whether a rule may give packets a connection tracking zone: by a statement that sets something of ``ct``."""
    if isinstance(rule, UnreadRule | UnreadRules):
        return '"zone"' in rule.kept or "\\" in rule.kept
    statements = rule.get("expr")
    for statement in statements if isinstance(statements, list) else ():
        body = statement.get("mangle") if isinstance(statement, dict) else None
        key = body.get("key") if isinstance(body, dict) else None
        if isinstance(key, dict) and "ct" in key and key != _MARK:
            return True
    return False


def _looked_up_by(rule: _Rule | UnreadRules) -> set[str]:
    """As :func:`_looked_up`; rules that are still text are read only where their text may name a set."""
    if not isinstance(rule, dict) and "\\" not in rule.kept:
        if '"@' not in rule.kept:
            return set()
        if '"set":{' not in rule.kept and '"comment":"@' not in rule.kept:
            return set(_REFERENCE.findall(rule.kept))
    if isinstance(rule, UnreadRules):
        return set().union(*map(_looked_up_by, rule.rules()))
    return _looked_up(_expressions(rule))


def _expressions(rule: _Rule) -> Json:
    """Return a rule's expressions; None where it cannot be read, which :meth:`NftReader._rules` refuses."""
    try:
        return _body(rule).get("expr")
    except (ValueError, KeyError, TypeError):
        return None


def _looked_up(expressions: Json) -> set[str]:
    """Return the references of sets and maps in a rule's expressions, without references of sets that it updates."""
    found = set()
    todo = [expressions]
    while todo:
        node = todo.pop()
        if isinstance(node, str):
            if node.startswith("@"):
                found.add(node)
        elif isinstance(node, list):
            todo += node
        elif isinstance(node, dict):
            todo += [
                part for key, part in node.items() if not (key == "set" and isinstance(part, dict) and "op" in part)
            ]
    return found
