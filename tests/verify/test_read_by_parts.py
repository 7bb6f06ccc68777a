"""Rules put together from parts that were read before are those that are read as a whole."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.pipeline import Source, compile_root
from pvefw_nft.verify.model import Family, Table, TableKey
from pvefw_nft.verify.readers.files import Text, read_ruleset
from pvefw_nft.verify.readers.ipset import IpSets, read_ipsets
from pvefw_nft.verify.readers.nft import rule
from pvefw_nft.verify.readers.shared import Assume, Reading, RulesetError
from pvefw_nft.verify.readers.xtables.rule import RuleParser
from tests.kernel import cases

if TYPE_CHECKING:
    from collections.abc import Sequence

MUTANTS = 150
REFUSED = "refused"
NAMES = cases.names()
BEGIN, END = '{"nftables":[\n', "\n]}\n"
_TOKEN = re.compile(r'"[^"]*"|[\w.:/-]+|\S')


@cache
def compiled(name: str, backend: str) -> str:
    case = cases.load(name)
    artefact = compile_root(Source(case.root, case.node, lambda: case.local_network), backend).artefact
    return "".join(artefact.json() if backend == "nft" else artefact.text())


def mutant(text: str, others: Sequence[str], chance: random.Random) -> str:
    """Return a text with a few of its words replaced by words of others, repeated, exchanged or left out."""
    for _ in range(chance.randint(1, 3)):
        places = [found.span() for found in _TOKEN.finditer(text)]
        first, last = chance.choice(places)
        kind = chance.randrange(5)
        if kind == 0:
            words = _TOKEN.findall(chance.choice(others))
            text = text[:first] + chance.choice(words) + text[last:]
        elif kind == 1:
            _, last = chance.choice(places[places.index((first, last)) :])
            text = f"{text[:last]}{chance.choice(('', ' ', ','))}{text[first:last]}{text[last:]}"
        elif kind == 2:
            text = text[:first] + text[last:].lstrip(" ")
        elif kind == 3:
            text = text[:first] + chance.choice(("!", "-j", '"', ",", " ", "{", "}", "-s", "\\")) + " " + text[first:]
        else:
            begin, end = sorted(chance.choices(places, k=2))
            text = text[: begin[0]] + text[slice(*end)] + text[begin[1] : end[0]] + text[slice(*begin)] + text[end[1] :]
        if not _TOKEN.search(text):
            return text
    return text


# --- nft ----------------------------------------------------------------------------------------------------------


def nft_result(lines: Sequence[str], *, at_once: bool, assume: Assume | None = None) -> object:
    """Return the model that reading a ruleset makes, or that it is refused (in whatever words).

    ``at_once``: as one document, of which each rule is read for itself.
    """
    text = BEGIN + ",\n".join(lines) + END
    try:
        if not at_once:
            return read_ruleset([Text("ruleset", text)], assume=assume)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rule, "_plain_match", lambda *_: None)
            return read_ruleset([Text("ruleset", json.dumps(json.loads(text), indent=1))], assume=assume)
    except (RulesetError, json.JSONDecodeError):
        return REFUSED


def statements(line: str) -> list[object]:
    found: list[object] = json.loads(line)["add"]["rule"]["expr"]
    return found


def nft_mutant(line: str, rules: Sequence[str], chance: random.Random) -> str:
    """Return a rule with statements of others among its own, and values exchanged; now and then no sound text."""
    if chance.random() < 0.1:
        return mutant(line, rules, chance)
    command = json.loads(line)
    expressions = command["add"]["rule"]["expr"]
    for _ in range(chance.randint(1, 3)):
        expressions.insert(chance.randint(0, len(expressions)), chance.choice(statements(chance.choice(rules))))
        if chance.random() < 0.5:
            del expressions[chance.randrange(len(expressions))]
    text = json.dumps(command, separators=(",", ":"))
    values = re.findall(r'"right":("[^"]*"|\d+|\{[^{}]*\}|\{"prefix":\{[^{}]*\}\})', chance.choice(rules))
    if values and chance.random() < 0.3:
        text = re.sub(r'"right":("[^"]*"|\d+)', lambda _: f'"right":{chance.choice(values)}', text, count=1)
    return re.sub('"op":"=="', chance.choice(('"op":"=="', '"op":"!="', '"op":"in"')), text, count=chance.randint(1, 3))


def check_nft(name: str, chance: random.Random) -> bool:
    """Check a mutant of a ruleset, read in both ways; return whether it is read at all."""
    lines = compiled(name, "nft")[len(BEGIN) : -len(END)].split(",\n")
    rules = [number for number, line in enumerate(lines) if line.startswith('{"add":{"rule"')]
    texts = [lines[number] for number in rules]
    for number in chance.sample(rules, min(4, len(rules))):
        lines[number] = nft_mutant(lines[number], texts, chance)
    for _ in range(3):  # a mutant that is met again, and between others
        lines.insert(chance.choice(rules), lines[chance.choice(rules)])
    assume = chance.choice((None, None, None, Assume.BOTH))
    by_parts, whole = (nft_result(lines, at_once=at_once, assume=assume) for at_once in (False, True))
    assert by_parts == whole, lines
    return by_parts != REFUSED


@pytest.mark.parametrize("seed", range(3))
def test_mutants_of_nft_rules_are_read_alike(seed: int) -> None:
    chance = random.Random(seed)
    read = [check_nft(chance.choice(NAMES), chance) for _ in range(MUTANTS // 3)]
    assert any(read)
    assert not all(read)


def nft_rule(expressions: str) -> list[str]:
    line = f'{{"add":{{"rule":{{"family":"inet","table":"t","chain":"c","expr":[{expressions}],"comment":"x"}}}}}}'
    return [
        '{"add":{"table":{"family":"inet","name":"t"}}}',
        '{"add":{"chain":{"family":"inet","table":"t","name":"c"}}}',
        '{"add":{"set":{"family":"inet","table":"t","name":"s","type":"ipv4_addr","elem":["10.0.0.1"]}}}',
        line,
        line,
    ]


DPORT = '{"match":{"op":"==","left":{"payload":{"protocol":"th","field":"dport"}},"right":80}}'
TCP = '{"match":{"op":"==","left":{"meta":{"key":"l4proto"}},"right":"tcp"}}'
LEFT = '"left":{"meta":{"key":"l4proto"}}'
FLAGS = '{"match":{"op":"==","left":{"payload":{"protocol":"tcp","field":"flags"}},"right":%s}}'
NEXT = '{"match":{"op":"==","left":{"payload":{"protocol":"ip6","field":"nexthdr"}},"right":%s}}'
UPDATE = '{"set":{"op":"add","elem":{"payload":{"protocol":"ip","field":"saddr"}},"set":"@s"}}'
LOOKUP = '{"match":{"op":"==","left":{"payload":{"protocol":"ip","field":"saddr"}},"right":"@s"}}'


@pytest.mark.parametrize(
    "expressions",
    [
        f'{DPORT},{{"accept":null}}',  # what it says depends on what is before it
        f'{TCP},{DPORT},{{"accept":null}}',
        f'{UPDATE},{LOOKUP},{{"accept":null}}',
        '{"log":{"prefix":"},{\\"accept\\":null},{"}},{"drop":null}',
        '{"accept":null}],"expr":[{"drop":null}',  # the last of two names counts
        '{"accept":null,"drop":null}',
        '{"accept":null},{"drop":null},',
        "",
        "{}",
        '{"accept":null},[{"drop":null}]',
        f'{NEXT % 6},{NEXT % 17},{{"drop":null}}',
        f'{FLAGS % 2},{{"drop":null}}',
        '{"match":{"op":"==","left":{"ct":{"key":"state"}},"right":["established","related"]}},{"drop":null}',
        f'{{"match":{{"op":"==",{LEFT},"right":6,"right":17}}}},{{"drop":null}}',
        f'{{"match":{{"op":"==",{LEFT},"right":true}}}},{{"drop":null}}',
        f'{{"match":{{"op":"==",{LEFT},"right":06}}}},{{"drop":null}}',  # no number of JSON
        f'{{"match":{{"op":"!=",{LEFT},"right":{{"set":[6,"udp"]}}}}}},{{"drop":null}}',
        f'{{"match":{{"op":"==",{LEFT},"right":6}},"match":{{"op":"==",{LEFT},"right":17}}}},{{"drop":null}}',
        f'{{"match":{{"op":"==",{LEFT[:-1]},"right":6}},"right":17}}}},{{"drop":null}}',
        f'{{"match":{{"op":"==",{LEFT},"right":6}}}}}},{{"drop":null}}',
    ],
)
def test_odd_nft_rules_are_read_alike(expressions: str) -> None:
    lines = nft_rule(expressions) + nft_rule(f'{DPORT},{{"drop":null}}')[3:] + nft_rule(f"{TCP},{DPORT}")[3:]
    assert nft_result(lines, at_once=False) == nft_result(lines, at_once=True)


# --- iptables -----------------------------------------------------------------------------------------------------

ODD = [
    "-s 10.0.0.1 -d ! 10.0.0.2 -j ACCEPT",
    "-s ! 10.0.0.1 -j ACCEPT",
    "! -s 10.0.0.1 -j ACCEPT",
    "-s -d 10.0.0.1 -j ACCEPT",
    "-s 10.0.0.1",
    "-i eth0 -o eth+ -s 10.0.0.0/8 -m addrtype --dst-type LOCAL --limit-iface-in -j DROP",
    '-j DROP -j NFLOG --nflog-prefix "x"',
    '-j MARK --set-mark 1 -j NFLOG --nflog-prefix "x"',
    '-g OTHER -j NFLOG --nflog-prefix "x"',
    '-m comment --comment -j NFLOG --nflog-prefix "x"',
    '-m comment --comment " -j NFLOG --nflog-prefix "x"',
    '-m comment --comment "a -j b" -j NFLOG --nflog-prefix "x"',
    '-s 10.0.0.1 -j NFLOG --nflog-prefix "x"',
    '-m limit --limit 1/sec -j NFLOG --nflog-prefix "x"',
    '-m limit --limit 1/sec ! -j NFLOG --nflog-prefix "x"',
    '-m limit --limit -j NFLOG --nflog-prefix "x"',
    '-j NFLOG --nflog-prefix ""',
    '-m comment --comment "x"',
    '-m comment --comment "x" "y"',
    "-m physdev --physdev-is-bridged --physdev-out tap1i0 -j ACCEPT",
    "-m physdev --physdev-in tap1+ -g OTHER",
    "-m physdev --physdev-in + -j DROP",
    "-m physdev --physdev-in tap1i0 -j CONNMARK",
    "-m physdev --physdev-in tap1i0 -j MARK",
    "-i vmbr0 -m physdev --physdev-in tap1i0 -j RETURN",
    "-m physdev ! --physdev-in tap1i0 -j DROP",
    "-m physdev --physdev-in -j -j DROP",
    "-p tcp --dport http -j ACCEPT",
    "-p udp --dport exec -j DROP",
    "-p tcp --dport biff -j DROP",
    "-p udp --sport 1:70000 -j ACCEPT",
    "-p udp --sport 5: -m limit --limit 1/sec -j DROP",
    "-p tcp --dport 22 -m limit --limit 1/sec",
    "-p tcp --dport 22 -m limit --limit -j -j DROP",
    "-p tcp --dport 22 -g OTHER",
    "-p tcp --dport 22 -j CONNMARK",
    "-p tcp --dport 22 -j REJECT",
    "-p tcp --dport -j -j REJECT",
    "-p tcp --dport 22",
    "-p udp --dport 22 -j NFLOG",
    "-s 10.0.0.1 -j CONNMARK --set-mark 1",
    "-s 10.0.0.1 -j NOWHERE --such",
    "-s 10.0.0.1 -p tcp --dport ssh -j ACCEPT",
    '-s 10.0.0.1 -m comment --comment "x" -j ACCEPT',
]


def xtables_result(parser: RuleParser, body: str) -> object:
    try:
        return parser.parse(Table(TableKey("iptables", Family.IP, "filter")), "CHAIN", 1, body)
    except RulesetError as error:
        return str(error)


def bodies(name: str) -> list[str]:
    return [line.split(" ", 2)[2].strip() for line in compiled(name, "iptables").splitlines() if line[:3] == "-A "]


def sets(name: str) -> IpSets:
    lines = [line for line in compiled(name, "iptables").splitlines() if line.startswith(("create ", "add "))]
    return read_ipsets("\n".join(lines), Reading("ipset"))


def check_xtables(name: str, chance: random.Random, monkeypatch: pytest.MonkeyPatch) -> int:
    """Check mutants of a ruleset's rules, put together and read as a whole; return how many are read at all."""
    rules = [*bodies(name), *ODD]
    mutants = [*ODD, *(mutant(chance.choice(rules), rules, chance) for _ in range(MUTANTS))]
    chance.shuffle(mutants)
    known = sets(name)
    parsers = [RuleParser(version, Reading("x"), known) for version in (4, 6) for _ in range(2)]
    read = 0
    for body in [*rules[:50], *mutants, *mutants[:20]]:
        for number in (0, 2):
            by_parts = xtables_result(parsers[number], body.strip())
            with monkeypatch.context() as patch:
                patch.setattr(RuleParser, "_parse_known_parts", lambda *_: None)
                assert by_parts == xtables_result(parsers[number + 1], body.strip()), body
            read += not isinstance(by_parts, str)
    return read


@pytest.mark.parametrize("name", ["groups", "ipsets", "guest-rules"])
def test_mutants_of_iptables_rules_are_read_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_xtables(name, random.Random(name), monkeypatch) > MUTANTS // 4
