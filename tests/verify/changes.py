"""Changes of rulesets that lie in more than a rule: in hooks, interfaces, connections, sets, headers and guests.

Where a change only shows together with a rule that looks at it, both rulesets get that rule.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from pvefw_nft.verify import model as m
from pvefw_nft.verify.model.intervals import IntervalSet
from pvefw_nft.verify.prove.network import Side

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

    from pvefw_nft.verify.network.path import Topology

INTERFACES = (m.IIF, m.OIF, m.PHYSIN, m.PHYSOUT)
UNKNOWN = ("tap999i0", "fwln998i0", "enp9s0", "eth9", "vmbr9")
SET = "ipset looked-at"
ADDRESS = m.equals(m.SADDR4, 0x0A000009)


class Change(NamedTuple):
    """A ruleset before and after a change."""

    what: str
    before: Side
    after: Side


def changes_of_meaning(side: Side, choice: random.Random) -> Iterator[Change]:
    """Yield random changes without end, one of each kind in turn; those that fit the ruleset."""
    while True:
        kinds = list(KINDS)
        choice.shuffle(kinds)
        for kind in kinds:
            change = KINDS[kind](side, choice)
            if change is not None:
                yield change._replace(what=f"{kind}: {change.what}")


# --- parts of rulesets --------------------------------------------------------------------------------------


def with_chain(model: m.RulesetModel, table: m.Table, chain: m.Chain) -> m.RulesetModel:
    """Return the ruleset with a chain of a table added or replaced."""
    made = m.Table(table.key, {**table.chains, chain.name: chain}, table.sets, set(table.lookups))
    return m.RulesetModel(tuple(made if one is table else one for one in model.tables), model.assumptions)


def with_table(
    model: m.RulesetModel, *chains: m.Chain, family: m.Family, lookups: tuple[str, ...] = ()
) -> m.RulesetModel:
    """Return the ruleset with a table of its own beside it."""
    key = m.TableKey("nft", family, f"added {len(model.tables)}")
    table = m.Table(key, {chain.name: chain for chain in chains}, {}, set(lookups))
    return m.RulesetModel((*model.tables, table), model.assumptions)


def base(name: str, point: m.Point, priority: int, *rules: m.Rule, family: m.Family = m.Family.INET) -> m.Chain:
    """Return a base chain with the policy accept."""
    return m.Chain(name, list(rules), m.ACCEPT, m.Hook(family, point, priority))


def rule(*conditions: m.Condition, effect: m.Effect | None = None, verdict: m.Verdict | None = None) -> m.Rule:
    """Return a rule."""
    return m.Rule(conditions, () if effect is None else (effect,), verdict, "an added rule")


def chains_of(model: m.RulesetModel) -> list[tuple[m.Table, m.Chain]]:
    """Return the chains that have rules."""
    return [(table, chain) for table in model.tables for chain in table.chains.values() if chain.rules]


def pick(
    side: Side, choice: random.Random, fits: Callable[[m.Test], bool]
) -> tuple[m.Table, m.Chain, int, m.Test] | None:
    """Return a random test of a rule that fits, with where it is."""
    found = [
        (table, chain, number, condition)
        for table, chain in chains_of(side.model)
        for number, one in enumerate(chain.rules)
        for condition in one.conditions
        if isinstance(condition, m.Test) and fits(condition)
    ]
    return choice.choice(found) if found else None


def retested(side: Side, found: tuple[m.Table, m.Chain, int, m.Test], condition: m.Condition) -> Change:
    """Return the change of one test for another condition."""
    table, chain, number, old = found
    rules = list(chain.rules)
    kept = tuple(condition if one is old else one for one in rules[number].conditions)
    rules[number] = rules[number]._replace(conditions=kept)
    model = with_chain(side.model, table, m.Chain(chain.name, rules, chain.policy, chain.hook))
    return Change(f"{chain.name} rule {number + 1}: {old} → {condition}", side, Side("mutant", model, side.topology))


def somewhere(side: Side, choice: random.Random, model: m.RulesetModel, effect: m.Effect) -> m.RulesetModel | None:
    """Return a ruleset with an effect added to a random rule of a table of IP hooks."""
    places = [
        (table, chain, number)
        for table, chain in chains_of(model)
        for number in range(len(chain.rules))
        if table.key.family in (m.Family.IP, m.Family.IP6, m.Family.INET) and "added" not in table.key.name
    ]
    if not places:
        return None
    table, chain, number = choice.choice(places)
    rules = list(chain.rules)
    rules[number] = rules[number]._replace(effects=(*rules[number].effects, effect))
    return with_chain(model, table, m.Chain(chain.name, rules, chain.policy, chain.hook))


# --- kinds --------------------------------------------------------------------------------------------------


def priority(side: Side, choice: random.Random) -> Change | None:
    hooked = [(table, chain) for table, chain in chains_of(side.model) if chain.hook is not None]
    table, chain = choice.choice(hooked)
    assert chain.hook is not None
    at = choice.choice((-450, -300, -250, -190, -150, 0, 10))
    hook = replace(chain.hook, priority=at)
    model = with_chain(side.model, table, m.Chain(chain.name, chain.rules, chain.policy, hook))
    what = f"{table.key} {chain.name} from {chain.hook.priority} to {at}"
    return Change(what, side, Side("mutant", model, side.topology))


def negated_interface(side: Side, choice: random.Random) -> Change | None:
    found = pick(side, choice, lambda test: test.field in INTERFACES)
    return None if found is None else retested(side, found, m.negate(found[3]))


def unknown_interface(side: Side, choice: random.Random) -> Change | None:
    found = pick(side, choice, lambda test: test.field in INTERFACES)
    name = choice.choice(UNKNOWN)
    return None if found is None else retested(side, found, m.equals(found[3].field, m.interface_number(name)))


def state_list(side: Side, choice: random.Random) -> Change | None:
    found = pick(side, choice, lambda test: test.field is m.CT_STATE)
    states = choice.sample(range(5), choice.choice((1, 2, 3)))
    values = IntervalSet.from_ranges((state, state) for state in states)
    return None if found is None else retested(side, found, m.Test(m.CT_STATE, values))


def later_chain(side: Side, choice: random.Random) -> Change | None:
    """States that a base chain accepts come to the next one at the same hook."""
    states = choice.sample(range(5), choice.choice((1, 2)))
    values = IntervalSet.from_ranges((state, state) for state in states)
    point = choice.choice((m.Point.INPUT, m.Point.FORWARD, m.Point.OUTPUT))
    drop = rule(m.Test(m.CT_STATE, values), m.equals(m.L4PROTO, 6), verdict=m.DROP)
    model = with_table(side.model, base("later", point, 50, drop), family=m.Family.INET)
    return Change(f"states {states} dropped at {point.name}", side, Side("mutant", model, side.topology))


def zone(side: Side, choice: random.Random) -> Change | None:
    """One zone for some interfaces, beside a ruleset with or without rules that ask for states."""
    family = choice.choice((m.Family.INET, m.Family.BRIDGE))
    ports = [nic.interface for nic in side.topology.nics] + [nic.link for nic in side.topology.nics if nic.filtered]
    bridges = [link.name for link in side.topology.links]
    names = ports if family is m.Family.BRIDGE else bridges
    if not names:
        return None
    chosen = choice.sample(names, choice.randint(1, min(3, len(names))))
    effect = m.SetZone(((m.TRUE, 7),))
    rules = [rule(m.equals(m.IIF, m.interface_number(name)), effect=effect) for name in chosen]
    chains = [base("zones", m.Point.PREROUTING, -300, *rules, family=family)]
    if family is m.Family.INET and choice.random() < 0.5:
        chains.append(base("out", m.Point.OUTPUT, -300, rule(effect=effect)))
    model = with_table(side.model, *chains, family=family)
    return Change(f"of {', '.join(chosen)}", side, Side("mutant", model, side.topology))


def connection_mark(side: Side, choice: random.Random) -> Change | None:
    drop = base("marked", m.Point.INPUT, -1, rule(m.equals(m.CT_MARK[3], 1), verdict=m.DROP))
    looked = with_table(side.model, drop, family=m.Family.INET)
    model = somewhere(side, choice, looked, m.SetMark(m.MarkTarget.CONNECTION, 0xFFFFFFFF & ~8, 8))
    if model is None:
        return None
    return Change("set", Side("old", looked, side.topology), Side("mutant", model, side.topology))


def set_update(side: Side, choice: random.Random) -> Change | None:
    drop = base("listed", m.Point.INPUT, -1, rule(ADDRESS, verdict=m.DROP))
    looked = with_table(side.model, drop, family=m.Family.INET, lookups=(SET,))
    model = somewhere(side, choice, looked, m.UpdateSet(SET, "add src"))
    if model is None:
        return None
    return Change("add src", Side("old", looked, side.topology), Side("mutant", model, side.topology))


def header(side: Side, choice: random.Random) -> Change | None:
    drop = base("classes", m.Point.INPUT, 60, rule(m.equals(m.DSCP, 10), verdict=m.DROP))
    looked = with_table(side.model, drop, family=m.Family.INET)
    value: int | tuple[int, ...] = choice.choice((10, 11, tuple(old ^ 2 for old in range(64))))
    model = somewhere(side, choice, looked, m.SetField(m.DSCP, value))
    if model is None:
        return None
    return Change("dscp set", Side("old", looked, side.topology), Side("mutant", model, side.topology))


def plumbing(side: Side, choice: random.Random) -> Change | None:
    nics = list(side.topology.nics)
    if not nics:
        return None
    at = choice.randrange(len(nics))
    what = f"{nics[at].name} gone"
    if choice.random() < 0.5:
        nics[at] = replace(nics[at], filtered=not nics[at].filtered)
        what = f"{nics[at].name} filtered {nics[at].filtered}"
    else:
        del nics[at]
    topology: Topology = replace(side.topology, nics=tuple(nics))
    sides = [side, Side("mutant", side.model, topology)]
    if choice.random() < 0.5:
        sides.reverse()
    return Change(what, *sides)


KINDS: dict[str, Callable[[Side, random.Random], Change | None]] = {
    "priority": priority,
    "negated interface": negated_interface,
    "unknown interface": unknown_interface,
    "states": state_list,
    "later base chain": later_chain,
    "zone": zone,
    "connection's mark": connection_mark,
    "set": set_update,
    "header": header,
    "plumbing": plumbing,
}
