"""Summaries of chains: what questions about a whole ruleset ask of each chain, small enough to be kept on disk.

A question such as "which fields does some rule test?" has its answer in few of many chains: guests' chains repeat one
another. :func:`telling_chains` yields chains whose summaries together say what those of all chains say, so that the
other chains need not be read.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING

from pvefw_nft.verify.model.conditions import Test, tests_of
from pvefw_nft.verify.model.effects import CopyMark, Guard, SetField, SetHelper, SetMark, SetZone
from pvefw_nft.verify.model.fields import DECLARED, FieldKind
from pvefw_nft.verify.model.ruleset import Summary
from pvefw_nft.verify.model.verdicts import Goto, Jump, VerdictMap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pvefw_nft.verify.model.conditions import Condition
    from pvefw_nft.verify.model.effects import Effect
    from pvefw_nft.verify.model.fields import Field
    from pvefw_nft.verify.model.intervals import IntervalSet
    from pvefw_nft.verify.model.ruleset import Chain, Rule, Table


def summary_of(chain: Chain) -> Summary:
    """Return the summary of a chain, of its rules if it has none yet. Raises RulesetError where one cannot be read."""
    if chain.summary is None:
        chain.summary = _made(chain)
    return chain.summary


def telling_chains(table: Table) -> Iterator[Chain]:
    """Yield chains of a table, in order, that together have every item of :class:`Summary` of all of them.

    Each item is in the first chain of all that has it. A chain without a summary is always among them.
    """
    seen: set[str] = set()
    for chain in table.chains.values():
        if chain.summary is None:
            yield chain
        elif not chain.summary.items <= seen:
            seen |= chain.summary.items
            yield chain


def _made(chain: Chain) -> Summary:
    items: set[str] = set()
    targets: dict[str, None] = {}
    asks_interface = False
    plain = dict.fromkeys([condition for rule in chain.rules for condition in rule.conditions])
    more = [rule for rule in chain.rules if rule.effects or isinstance(rule.verdict, VerdictMap)]
    others = (found for rule in more for found in _other_conditions(rule))
    for part, condition in (*(("", condition) for condition in plain), *others):
        for test in (condition,) if isinstance(condition, Test) else tests_of(condition):
            items.add(_item_of_test(part, test))
            asks_interface = asks_interface or test.field.kind is FieldKind.INTERFACE
    for rule in chain.rules:
        if rule.effects:
            items.update([_item(_effect_text(effect)) for effect in rule.effects])
        if isinstance(rule.verdict, Jump | Goto):
            targets[rule.verdict.chain] = None
        elif isinstance(rule.verdict, VerdictMap):
            targets |= {end.chain: None for _, end in rule.verdict.entries if isinstance(end, Jump | Goto)}
    return Summary(frozenset(items), tuple(targets), asks_interface)


def _other_conditions(rule: Rule) -> Iterator[tuple[str, Condition]]:
    """Yield the conditions of a rule's guards, and those that choose a zone or an entry of a map, with this part."""
    for effect in rule.effects:
        if isinstance(effect, Guard):
            yield "guard", effect.condition
        elif isinstance(effect, SetZone):
            yield from (("zone", condition) for condition, _ in effect.entries)
    if isinstance(rule.verdict, VerdictMap):
        yield from (("map", condition) for condition, _ in rule.verdict.entries)


def _item_of_test(part: str, test: Test) -> str:
    declared = DECLARED.get(test.field)
    renamed = declared is not None and declared.renamed
    return _item_of_values(part, test.field, None if renamed else test.values)


@cache
def _item_of_values(part: str, on: Field, values: IntervalSet | None) -> str:
    bounds = None if values is None else values.bounds
    return _item(f"{part} test {on.name!r} {on.size} {on.kind.value} {on.names} {bounds}")


def _effect_text(effect: Effect) -> str:
    kind = type(effect).__name__
    match effect:
        case SetMark(target):
            return f"{kind} {target.value}"
        case CopyMark(target, keep, take):
            return f"{kind} {target.value} {keep} {take}"
        case SetHelper(_, template):
            return f"{kind} {template}"
        case SetField(on):
            return f"{kind} {on.name!r} {on.size} {on.kind.value}"
        case _:
            return kind


@cache
def _item(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=24).hexdigest()
