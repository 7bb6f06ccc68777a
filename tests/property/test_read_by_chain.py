"""Rules in a row of one chain are taken as one text: the same rules are read as from one line after another."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.verify.readers.files import Text, read_ruleset
from pvefw_nft.verify.readers.nft import json_listing
from pvefw_nft.verify.readers.nft.json_listing import UnreadRules, commands_by_line
from pvefw_nft.verify.readers.shared import RulesetError
from pvefw_nft.verify.readers.xtables import rulesets
from tests.property.test_compare_by_digest import edited
from tests.verify.test_read_by_parts import compiled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ODD = (
    ('"expr":[', '"expr" :['),
    ('"expr":[', '"index":0,"expr":['),
    ('"expr":[', '"comment":"a","expr":['),
    ('"}}}', '","handle":5}}}'),
    ('"}}}', '","chain":"b"}}}'),
    ("}}},\n", "}}}\n,\n"),
    ("}}},\n", "}}} ,\n"),
    ("}}},\n", "}}},\n\n"),
    ("}}},\n", "}},\n"),
    ('"rule"', '"ru\\u006ce"'),
    ('[{"', '[{"\0'),
    ('[{"', '[{"\\u0000'),
    ("]", "],"),
    ("{", ""),
)


def odd(text: str, chance: random.Random) -> str:
    """Return text with one of its places spelled in another way."""
    old, new = chance.choice(ODD)
    places = [place for place in range(len(text)) if text.startswith(old, place)]
    place = chance.choice(places or [0])
    return text[:place] + text[place:].replace(old, new, 1)


def each_of(text: str) -> object:
    """Return the commands of a document as they are read; of rules in a row each."""
    try:
        commands = commands_by_line(text)
    except ValueError:
        return ValueError
    assert commands is not None
    found: list[object] = []
    for item in commands.items:
        if isinstance(item, UnreadRules):
            rules = list(item.rules())
            assert [rule[:3] for rule in rules] == [item[:3]] * item.number
            assert [rule.kept for rule in rules] == item.kept.split("\0")[1:]
            found += rules
        else:
            found.append(item)
    return found


def by_line(text: str) -> object:
    """Return the commands of a document, each line read by itself."""
    lines = text[len('{"nftables":[\n') : -len("\n]}\n")].split(",\n")
    try:
        return [json_listing._command_of(line) for line in lines]
    except ValueError:
        return ValueError


def try_edits(name: str, backend: str, check: Callable[[str], bool], count: int = 40) -> None:
    """Check edits of a ruleset; ``check`` tells whether a text can be read, so that it may be edited again."""
    chance = random.Random(f"{name} {backend}")
    text = compiled(name, backend)
    assert check(text)
    for _ in range(count):
        changed = edited(text, chance)
        if backend == "nft" and chance.random() < 0.5:
            changed = odd(changed, chance)
        if (changed.endswith("\n]}\n") or backend != "nft") and check(changed):
            text = changed


def check_nft(text: str) -> bool:
    found = by_line(text)
    assert each_of(text) == found
    return found is not ValueError


def check_rules(text: str) -> bool:
    """Check that a ruleset has the same rules read chain by chain; return whether it can be read."""

    def read(*, on_demand: bool) -> object:
        try:
            tables = read_ruleset([Text("ruleset", text)], on_demand=on_demand).tables
            return [(t.key, c.name, c.policy, c.hook, c.rules) for t in tables for c in t.chains.values()]
        except RulesetError:
            return RulesetError

    found = read(on_demand=False)
    assert read(on_demand=True) == found
    return found is not RulesetError


NAMES = ["groups", "ipsets", "blacklist", "ipfilter"]


@pytest.mark.parametrize("name", NAMES)
def test_edited_nft_commands_are_read_alike(name: str) -> None:
    try_edits(name, "nft", check_nft)


@pytest.mark.parametrize("name", NAMES)
def test_edited_iptables_rules_are_read_alike(name: str) -> None:
    try_edits(name, "iptables", check_rules)


class _NoEnds:
    """Takes any end of a rule for a usual one."""

    def subn(self, _new: str, text: str) -> tuple[str, int]:
        lines = text.split(",\n")
        return "".join([line.rpartition("]")[0] for line in lines]), len(lines)


BROKEN = [
    (json_listing, "_NAMES_OF_RULES", ()),
    (json_listing, "_RULE_ENDS", _NoEnds()),
    (rulesets, "_APPENDED", re.compile(r"-A (\S+) .*(?:\n-A \S+ .*)*")),
]


@pytest.mark.parametrize(("module", "name", "value"), BROKEN, ids=[name for _, name, _ in BROKEN])
def test_a_check_that_is_left_out_is_noticed(
    module: object, name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, value)
    with pytest.raises(AssertionError):
        try_all()


def try_all() -> None:
    for name in NAMES:
        try_edits(name, "nft", check_nft)
        try_edits(name, "iptables", check_rules)


ROWS = 200
XTABLES = "\n".join(
    [
        "# Generated by iptables-save", "*filter", ":FORWARD ACCEPT [0:0]",
        *["-A FORWARD -s 10.0.0.1 -j ACCEPT\n-A FORWARD -p tcp -j DROP\n-I FORWARD 2 -p udp -j DROP"] * ROWS,
        "COMMIT", "",
    ]
)  # fmt: skip
OF = '"family":"bridge","table":"t"'
IN_FRONT = f'{{"insert":{{"rule":{{{OF},"chain":"c","index":1,"expr":[{{"drop":null}}]}}}}}}'
NFT = ",\n".join(
    [
        f'{{"add":{{"table":{{{OF.replace("table", "name")}}}}}}}',
        f'{{"add":{{"chain":{{{OF},"name":"c"}}}}}}',
        *[f'{{"add":{{"rule":{{{OF},"chain":"c","expr":[{{"accept":null}}]}}}}}}', IN_FRONT] * ROWS,
    ]
)


@pytest.mark.parametrize(
    ("module", "check", "text"),
    [(rulesets, check_rules, XTABLES), (json_listing, check_rules, '{"nftables":[\n' + NFT + "\n]}\n")],
    ids=["iptables", "nft"],
)
def test_rules_are_taken_apart_once_for_those_at_places(
    module: object, check: Callable[[str], bool], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = 0
    each = vars(module)["_each"]

    def counted(rules: Iterable[object]) -> list[object]:
        nonlocal taken
        found: list[object] = each(rules)
        taken += len(found)
        return found

    monkeypatch.setattr(module, "_each", counted)
    assert check(text)
    assert taken < 20 * ROWS
