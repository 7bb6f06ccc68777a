"""Why two rulesets treat a packet differently: the rules at which its two walks part.

Of two rulesets of the same tools, the same rules hold for a packet in both until one is not there, or not the same, in
the other: this rule is the cause, however far behind it the packet is decided. Between tools no two rules are the
same; there the cause is the pair of lines of the configuration that decide.

Example: ``-A x ! -s 10.0.0.1 -j DROP`` lost its ``!``. The packets that are newly accepted come to many different
rules behind it, and all have this one cause.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from pvefw_nft.verify.prove.place import Place, place_of
from pvefw_nft.verify.simulate.walk import Step

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping

    from pvefw_nft.verify.model import Rule, RulesetModel, Table, TableKey
    from pvefw_nft.verify.simulate.walk import Outcome

Tables: TypeAlias = "Mapping[TableKey, Table]"

UNTELLING = ("standard chain", "conntrack", "")
"""Origins that say nothing about the configuration."""


class Cause(NamedTuple):
    """The difference between the sides: at most one rule of each. ``table``: one side has not got this table."""

    before: Place | None = None
    after: Place | None = None
    table: str = ""

    @property
    def key(self) -> Hashable:
        """The key of equal causes: the lines of the configuration, or else the rules' texts."""
        return self.table or (_place_key(self.before), _place_key(self.after))

    @property
    def lines(self) -> tuple[str, ...]:
        """The places to look at: lines of the configuration where known, else rules by chain and number."""
        places = [place for place in (self.before, self.after) if place is not None]
        return tuple(dict.fromkeys(line_of(place) for place in places)) or (self.table,)


def line_of(place: Place) -> str:
    """Return where to look for a rule: its line of the configuration, or its chain and number there."""
    if place.origin not in UNTELLING:
        return place.origin
    return f"{place.chain} rule {place.number}" if place.number else f"{place.chain} policy"


def _place_key(place: Place | None) -> Hashable:
    """Return the identity of a rule: its line of the configuration, else its text, in any chain."""
    if place is None:
        return None
    if place.origin not in UNTELLING:
        return place.origin
    text = place.text.removeprefix(f"-A {place.chain} ").strip()
    matches_all = text.startswith(("-j ", "-g ")) or not (text.startswith("-") or "," in text)
    return (place.chain, text) if matches_all or not place.number else text


def find_cause(before: Outcome, after: Outcome, models: tuple[RulesetModel, RulesetModel]) -> Cause:
    """Return the cause of the difference between the walks of one packet in two rulesets."""
    tables = [{table.key: table for table in model.tables} for model in models]
    deciding = Cause(_decider(before), _decider(after))
    if not tables[0].keys() & tables[1].keys():
        return deciding
    walks = [list(_telling_steps(outcome)) for outcome in (before, after)]
    for one, two in zip_longest(*walks):
        if one is not None and two is not None and _same(one, two):
            continue
        if one is not None and not _has(tables[1], one):
            return _changed(one, tables[0], tables[1])
        if two is not None and not _has(tables[0], two):
            found = _changed(two, tables[1], tables[0])
            return found._replace(before=found.after, after=found.before)
        break
    return deciding


def _changed(step: Step, own: Tables, other: Tables) -> Cause:
    """Return the cause if a rule of one side, as ``before``, is missing on the other, or another rule replaces it.

    That is the rule of the same number in the same chain, if it is not on the first side either.
    """
    table = other.get(step.table.key)
    if table is None:
        return Cause(table=str(step.table.key))
    chain = table.chains.get(step.chain.name)
    if chain is None or step.number > len(chain.rules):
        return Cause(place_of(step))
    rule = chain.rules[step.number - 1]
    stands_for_it = Step(table, chain, step.number, rule)
    return Cause(place_of(step), None if _has(own, stands_for_it) else place_of(stands_for_it))


def _has(tables: Tables, step: Step) -> bool:
    """Return whether a ruleset has the rule of a step in the same chain."""
    table = tables.get(step.table.key)
    chain = table.chains.get(step.chain.name) if table is not None else None
    return chain is not None and any(_meaning(rule) == _meaning(step.rule) for rule in chain.rules)


def _meaning(rule: Rule) -> tuple[object, ...]:
    return rule.conditions, rule.effects, rule.verdict


def _same(one: Step, two: Step) -> bool:
    same_place = one.table.key == two.table.key and one.chain.name == two.chain.name
    return same_place and _meaning(one.rule) == _meaning(two.rule)


def _telling_steps(outcome: Outcome) -> Iterator[Step]:
    """Yield the rules that matched, without those that only carry a comment."""
    steps = (step for stage in outcome.stages for walk in stage.chains for step in walk.steps if step.matched)
    yield from (step for step in steps if step.rule.verdict is not None or step.rule.effects)


def _decider(outcome: Outcome) -> Place | None:
    step = outcome.decider
    return None if step is None else place_of(step)
