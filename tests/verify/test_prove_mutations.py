"""Single changes of real rulesets: a second opinion confirms each answer of compare, equal or different.

Some of the changes are made to the artefacts' text, such as the kernel lab makes them (dropped, swapped and widened
rules, set elements and verdicts), some to rulesets as read, in any table, layer 2 included; the rest are of kinds that
no rule by itself shows: priorities of hooks, negated and unknown interfaces, states that another base chain accepts,
zones, marks of connections, updates of sets, changed headers, and the guests' bridges.

The second opinion (:mod:`tests.verify.second_opinion`) is z3's, on another encoding of the rules. It shares with the
prover what is before that: the readers, the paths, and where connection tracking looks packets up.
``PVEFW_MUTANTS`` is how many changes of each sort are made to each ruleset; by default few, for a short run.
"""

from __future__ import annotations

import itertools
import os
import random
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import pytest

from pvefw_nft.errors import UsageError
from pvefw_nft.verify import model as m
from pvefw_nft.verify.model.intervals import IntervalSet
from pvefw_nft.verify.network.path import HostEnd, NicEnd, Path, find_ends_outside, find_path
from pvefw_nft.verify.prove.compare import compare
from pvefw_nft.verify.prove.network import Side
from pvefw_nft.verify.prove.report import Answer
from pvefw_nft.verify.readers.files import Text, read_ruleset
from pvefw_nft.verify.simulate.packet import Probe
from pvefw_nft.verify.simulate.tracking import Tracking
from pvefw_nft.verify.simulate.walk import simulate
from tests.drawn import drawn
from tests.kernel import configurations
from tests.kernel.artefact import BACKENDS, IPTABLES
from tests.kernel.mutate import mutations
from tests.verify.changes import changes_of_meaning
from tests.verify.lab import topology_of
from tests.verify.second_opinion import PathPair, differing_packet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pvefw_nft.verify.network.path import End
    from pvefw_nft.verify.prove.report import Difference, Report

NAMES = (
    "examples/homelab", "examples/positional", "blacklist", "groups", "host", "icmp", "ipfilter", "ipsets", "layer2",
    "reject",
)  # fmt: skip
"""Configurations with address sets, host rules, both families, macros, groups and rules of layer 2."""
EACH = int(os.environ.get("PVEFW_MUTANTS", "1"))
"""So many changes of each sort are made to each of them, for each backend; of the third sort twice as many."""
MAX_WAYS = 10
"""On so many ways that a change may show on the second opinion is asked for, of more on a sample."""


class Mutant(NamedTuple):
    """A change: its description, and the ruleset before and after it."""

    what: str
    before: Side
    side: Side


@cache
def original(name: str, backend: str) -> Side:
    configuration = next(one for one in configurations.surveyed() if one.name == name)
    artefact = configurations.compiled(configuration, backend)
    topology = topology_of(configuration.plan, call_iptables=backend == IPTABLES)
    return Side(backend, read_ruleset([Text(backend, artefact.text)]), topology)


def mutants(name: str, backend: str) -> Iterator[Mutant]:
    side = original(name, backend)
    configuration = next(one for one in configurations.surveyed() if one.name == name)
    for mutation in itertools.islice(mutations(configurations.compiled(configuration, backend), seed=len(name)), EACH):
        model = read_ruleset([Text(backend, mutation.artefact.text)])
        yield Mutant(mutation.what, side, Side("mutant", model, side.topology))
    choice = random.Random(name)
    changes = (changed(side.model, choice) for _ in itertools.count())
    for what, model in itertools.islice((one for one in changes if one is not None), EACH):
        yield Mutant(what, side, Side("mutant", model, side.topology))
    for change in itertools.islice(changes_of_meaning(side, random.Random(f"{name} {backend}")), 2 * EACH):
        yield Mutant(change.what, change.before, change.after)


def changed(model: m.RulesetModel, choice: random.Random) -> tuple[str, m.RulesetModel] | None:
    """Change one rule of a table, whatever its size; None if the change drawn changes nothing of it."""
    number = choice.choice([n for n, t in enumerate(model.tables) if any(c.rules for c in t.chains.values())])
    table = model.tables[number]
    chain = choice.choice([chain for chain in table.chains.values() if chain.rules])
    rules = list(chain.rules)
    at = choice.randrange(len(rules))
    what = choice.choice(("drop", "swap", "verdict", "loosen", "widen"))
    match what:
        case "drop":
            del rules[at]
        case "swap":
            other = (at + 1) % len(rules)
            rules[at], rules[other] = rules[other], rules[at]
        case "verdict":
            verdicts: list[m.Verdict] = [m.ACCEPT, m.DROP, m.RETURN, m.Reject("tcp-reset", "tcp-reset")]
            rules[at] = rules[at]._replace(verdict=choice.choice(verdicts))
        case "loosen":
            kept = list(rules[at].conditions)
            if kept:
                del kept[choice.randrange(len(kept))]
            rules[at] = rules[at]._replace(conditions=tuple(kept))
        case _:
            conditions = tuple(widened(condition, choice) for condition in rules[at].conditions)
            rules[at] = rules[at]._replace(conditions=conditions)
    if meaning(rules) == meaning(chain.rules):
        return None
    chains = {**table.chains, chain.name: m.Chain(chain.name, rules, chain.policy, chain.hook)}
    tables = list(model.tables)
    tables[number] = m.Table(table.key, chains, table.sets, table.lookups)
    return f"{what} {chain.name} rule {at + 1}", m.RulesetModel(tuple(tables))


def meaning(rules: Sequence[m.Rule]) -> tuple[object, ...]:
    return tuple((rule.conditions, rule.effects, rule.verdict) for rule in rules)


def widened(condition: m.Condition, choice: random.Random) -> m.Condition:
    """Return a test with one of its ranges one longer."""
    if not isinstance(condition, m.Test) or not condition.values:
        return condition
    first, last = choice.choice(list(condition.values))
    longer = IntervalSet.of((first, min(last + 1, condition.field.size - 1)))
    return m.Test(condition.field, condition.values | longer)


# --- the second opinion -------------------------------------------------------------------------------------


def ends(side: Side) -> list[End]:
    return [HostEnd(), *find_ends_outside(side.topology), *(NicEnd(nic) for nic in side.topology.nics)]


class Kind(NamedTuple):
    """A kind of frames on a path: of a network protocol, and an ether type that is another where they are tagged."""

    path: Path
    protocol: int
    ether_type: int


def ways_through_change(one: Side, two: Side) -> Iterator[Kind]:
    """Yield where packets may meet a rule that the rulesets do not share."""
    for source, destination in itertools.product(ends(one), repeat=2):
        if source == destination and not isinstance(source, HostEnd):
            continue
        try:
            path = find_path(one.topology, source, destination)
        except UsageError:
            continue  # two VLANs of one bridge
        routed = any(stage.family is not m.Family.BRIDGE and stage.from_host for stage in path.stages)
        for protocol, ether_type in KINDS:
            ip = protocol in (m.IPV4, m.IPV6)
            if (ip and ether_type == protocol) or not (routed or HostEnd() in (source, destination)):
                kind = Kind(path, protocol, ether_type)
                zones = Tracking(one.model).has_zones or Tracking(two.model).has_zones
                if zones or reached(one.model, kind) != reached(two.model, kind):
                    yield kind


KINDS = ((m.IPV4, m.IPV4), (m.IPV6, m.IPV6), (m.ARP, m.ARP), (0x88CC, 0x88CC), (m.IPV4, m.VLAN), (m.ARP, m.VLAN))


def reached(model: m.RulesetModel, kind: Kind) -> dict[tuple[int, str, str], tuple[object, ...]]:
    """Return the chains that such frames may come to, by stage, and what their rules are."""
    found: dict[tuple[int, str, str], tuple[object, ...]] = {}
    for number, stage in enumerate(kind.path.stages):
        known = {**dict(stage.fields), m.PROTOCOL: kind.protocol, m.ETHER_TYPE: kind.ether_type}
        if not m.holds(stage.when, known):
            continue
        for table, base in stage.chains(model, kind.protocol):
            todo = [base.name]
            while todo:
                name = todo.pop()
                if (number, str(table.key), name) in found:
                    continue
                chain = table.chains[name]
                rules = [rule for rule in chain.rules if may_hold(m.All(rule.conditions), known)]
                found[number, str(table.key), name] = (chain.policy, chain.hook, *meaning(rules))
                todo += [target for rule in rules for target in targets(rule.verdict, known)]
    return found


def may_hold(condition: m.Condition, known: dict[m.Field, int]) -> bool:
    """Whether a condition may hold, as far as tests of known fields go that must."""
    match condition:
        case m.Test():
            return condition.field not in known or known[condition.field] in condition.values
        case m.All(of):
            return all(may_hold(part, known) for part in of)
        case _:
            return True


def targets(verdict: m.Verdict | None, known: dict[m.Field, int]) -> Iterator[str]:
    entries = verdict.entries if isinstance(verdict, m.VerdictMap) else ((m.TRUE, verdict),)
    for condition, entry in entries:
        if may_hold(condition, known):
            yield from m.targets(entry)


def differs(one: Side, two: Side, kinds: Sequence[Kind]) -> str | None:
    """Return a packet that z3 finds to be treated differently; None if there is none."""
    for kind in kinds:
        way = PathPair(kind.protocol, marked=isinstance(kind.path.source, HostEnd), ether_type=kind.ether_type)
        packet = differing_packet(one.model, two.model, (kind.path, kind.path), way)
        if packet is not None:
            return f"{kind.path} {kind.protocol:04x} in {kind.ether_type:04x}: {packet}"
    return None


@cache
def reports(name: str, backend: str) -> list[tuple[Mutant, Report]]:
    return [(mutant, compare(mutant.before, mutant.side)) for mutant in mutants(name, backend)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", drawn(NAMES, 5, "rulesets that are changed"))
def test_changes_are_found_just_if_they_matter(name: str, backend: str) -> None:
    choice = random.Random(name)
    for mutant, report in reports(name, backend):
        for difference in report.differences:
            fates = fates_of(difference, mutant.before, mutant.side)
            assert fates == [verdict.partition(" (")[0] for verdict in (difference.before, difference.after)], (
                mutant.what
            )
            assert fates[0] != fates[1] or difference.before != difference.after, mutant.what
        if mutant.before.topology != mutant.side.topology:
            assert report.host_differences, mutant.what
            continue
        if report.answer is Answer.UNDECIDED:
            continue  # nothing is claimed
        kinds = list(ways_through_change(mutant.before, mutant.side))
        if report.equal:
            kinds = choice.sample(kinds, min(MAX_WAYS, len(kinds)))
        else:
            packet, path = report.differences[0].counterexample.packet, report.differences[0].counterexample.before
            kinds = [Kind(path, packet[m.PROTOCOL], packet[m.ETHER_TYPE])]
        found = differs(mutant.before, mutant.side, kinds)
        assert (found is None) is report.equal, f"{mutant.what}: {found}"


def test_many_changes_matter_and_many_do_not() -> None:
    answers = [report.answer for name in NAMES for backend in BACKENDS for _, report in reports(name, backend)]
    assert len(answers) == 4 * EACH * len(NAMES) * len(BACKENDS)
    assert answers.count(Answer.EQUAL) > len(answers) // 10
    assert answers.count(Answer.DIFFERENT) > len(answers) // 4
    assert answers.count(Answer.UNDECIDED) < len(answers) // 20


def fates_of(difference: Difference, *sides: Side) -> list[str]:
    """Return simulate's verdicts on the example of a difference, before and after, in compare's words."""
    counterexample = difference.counterexample
    runs = [
        simulate(side.model, Probe(counterexample.packet, path))
        for side, path in zip(sides, (counterexample.before, counterexample.after), strict=True)
    ]
    return ["put together" if run.put_together else f"{run.verdict} {run.kind or ''}".lower().strip() for run in runs]
