"""The lines by which two rulesets of one backend differ, chain by chain, for people who look before they apply."""

from __future__ import annotations

import json
from dataclasses import replace
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from pvefw_nft.errors import PvefwError
from pvefw_nft.verify.model.text import rule_text
from pvefw_nft.verify.readers.files import read_compiled

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pvefw_nft.host.records.changes import Change
    from pvefw_nft.host.records.record import Desired
    from pvefw_nft.verify.model import Rule, RulesetModel, TableKey

    _Lines = Mapping[tuple[str, str], list[str]]


def with_lines(changes: Sequence[Change], before: Desired | None, after: Desired) -> tuple[Change, ...]:
    """Return the changes; the details of a chain's change are the rules that come (``+``) and go (``-``).

    ``before`` is the ruleset that runs. If it is unknown, or of the other backend, all rules come. Changes of sets keep
    their details. If a ruleset cannot be read, the changes have no lines.
    """
    if all(change.detail for change in changes):
        return (*changes,)
    try:
        old = _lines(before) if before is not None and before.backend == after.backend else {}
        new = _lines(after)
    except PvefwError:
        return (*changes,)
    return tuple(
        change if change.detail else replace(change, detail=tuple(_detail(change, old, new))) for change in changes
    )


def _detail(change: Change, old: _Lines, new: _Lines) -> Iterator[str]:
    """Yield the lines of one change."""
    if change.name.startswith("table "):  # of nft: all its chains
        table = f"nft {change.name.split()[1]}"
        for where, chain in sorted({key for key in (*old, *new) if key[0] == table}):
            for line in line_difference(old.get((where, chain), []), new.get((where, chain), [])):
                yield f"{line[:2]}{chain}: {line[2:]}"
        return
    key = (change.where, change.name.removeprefix("chain "))
    yield from line_difference(old.get(key, []), new.get(key, []))


def line_difference(old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    """Yield the lines that go (``- ``) and come (``+ ``), in the order of the texts; equal lines are left out."""
    for kind, first, last, new_first, new_last in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind != "equal":
            yield from (f"- {line}" for line in old[first:last])
            yield from (f"+ {line}" for line in new[new_first:new_last])


def _lines(ruleset: Desired) -> dict[tuple[str, str], list[str]]:
    """Return the rules of each chain as text, by the place and the name that changes have."""
    return {
        (_place(table.key), chain.name): [*_texts(chain.rules, chain.name)]
        for table in _model(ruleset).tables
        for chain in table.chains.values()
    }


def _model(ruleset: Desired) -> RulesetModel:
    if ruleset.backend == "iptables":
        return read_compiled(json.loads("".join(ruleset.pieces)), ruleset.backend)
    return read_compiled({"nftables": json.loads(f"[{','.join(ruleset.pieces)}]")}, ruleset.backend)


def _place(table: TableKey) -> str:
    return f"nft {table.family.value}" if table.tool == "nft" else str(table)


def _texts(rules: Iterable[Rule], chain: str) -> Iterator[str]:
    for rule in rules:
        place = f"  ({rule.origin})" if rule.origin else ""
        yield rule_text(rule).removeprefix(f"-A {chain} ") + place
