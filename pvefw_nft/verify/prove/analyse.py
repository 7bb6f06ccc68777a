"""Rules that can never match, and rules that change nothing.

The packets that come to each rule are followed forwards, on every way through the host: a rule never matches where
no packet that comes to it fulfils its conditions, wherever its chain is called from. A rule changes nothing
where all packets that match it would come to the same end without it. Setting a mark is followed, too: behind it
packets have the mark, whatever they came with.

Rules are judged by their origin: a line of the configuration that became several rules (a macro, both IP
versions, a group on several guests) is found only where that holds for all of them. Of several rules that change
nothing, all may be taken out together.

Example: in ``IN ACCEPT -p tcp -dport 22`` followed by ``IN DROP -p tcp -dport 22``, the second never matches, and
the first is named as what shadows it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from pvefw_nft.verify import model as m
from pvefw_nft.verify.describe import rule_text
from pvefw_nft.verify.path import NicEnd
from pvefw_nft.verify.prove.compare import Comparison, Options, without_gc
from pvefw_nft.verify.prove.evaluate import Evaluation
from pvefw_nft.verify.prove.explain import USUAL
from pvefw_nft.verify.prove.program import Action, Copy, Flip, Note, Only, Outcome, Set
from pvefw_nft.verify.prove.report import Place
from pvefw_nft.verify.prove.residual import ALL_STATES, Context, Specialiser, find_chain, known_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pvefw_nft.verify.path import Stage
    from pvefw_nft.verify.prove.diagram import Cube
    from pvefw_nft.verify.prove.flows import Side, Way
    from pvefw_nft.verify.prove.program import Case

MOST_NAMED = 4
"""How many shadowing rules a finding names."""


_LINE = re.compile(r"\S:\d+")
"""What an origin that names file and line looks like: worth more than that of a standard chain."""


class Kind(Enum):
    """What is wrong with a rule."""

    NEVER_MATCHES = "never-matches"
    NO_EFFECT = "no-effect"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about all rules of one ``origin`` (a line of the configuration, or one rule where that is not known).

    ``places`` are these rules; ``by`` the origins, or rules, that take the packets before them.
    """

    kind: Kind
    origin: str
    places: tuple[Place, ...]
    by: tuple[str, ...] = ()


class _Choice(NamedTuple):
    """A verdict of a rule, and the packets it is for (``None``: all that match)."""

    tests: tuple[m.Test, ...]
    conditions: tuple[m.Condition, ...]
    verdict: m.PlainVerdict | None


class _Prepared(NamedTuple):
    """A rule as it looks in one context; ``number`` is its number in the chain."""

    number: int
    rule: m.Rule
    tests: tuple[m.Test, ...]
    conditions: tuple[m.Condition, ...]
    actions: tuple[Action, ...]
    choices: tuple[_Choice, ...]


RuleKey = tuple[int, int, int]
"""Table and chain by identity, and the rule's number."""


@dataclass(slots=True)
class _Seen:
    """What is known of a rule so far."""

    table: m.Table
    chain: m.Chain
    rule: m.Rule
    alive: bool = False
    needed: bool = False
    shadows: dict[RuleKey, None] = field(default_factory=dict)


def analyse(side: Side, progress: Callable[[int, int], None] | None = None) -> tuple[Finding, ...]:
    """Return the findings about a ruleset, in the order of its tables, chains and rules.

    Only rules that some way through the host comes near are judged: rules of chains that nothing leads to are not.
    """
    with without_gc():
        return _Analysis(side, progress or (lambda _done, _all: None)).findings()


class _Analysis:
    def __init__(self, side: Side, progress: Callable[[int, int], None]) -> None:
        self.side = side
        self.progress = progress
        self.comparison = Comparison(side, side, Options(), None)
        self.seen: dict[RuleKey, _Seen] = {}
        self.walked: set[tuple[object, ...]] = set()

    def findings(self) -> tuple[Finding, ...]:
        todo = list(self.segments())
        for done, (stages, case) in enumerate(todo):
            self.walk_segment(stages, case)
            self.progress(done + 1, len(todo))
        return tuple(self.by_origin())

    def segments(self) -> Iterator[tuple[tuple[Stage, ...], Case]]:
        """Yield the segments to walk, each with each kind of untagged frame that comes there."""
        comparison = self.comparison
        general = comparison.ends.general
        ways = [comparison.way(s, d) for s in general for d in general if s != d]
        chosen: dict[tuple[tuple[Stage, ...], Case], None] = {}
        for way in ways:
            self.add(chosen, way, None)
        for nic in comparison.ends.nics:
            end = NicEnd(nic)
            peer = comparison.peer(end)
            self.add(chosen, comparison.way(end, peer), 0)
            self.add(chosen, comparison.way(peer, end), -1)
        yield from chosen

    def add(self, chosen: dict[tuple[tuple[Stage, ...], Case], None], way: Way | None, only: int | None) -> None:
        if way is None or way.segments is None:
            return
        for case in self.comparison.cases:
            if not case.tagged and not (way.routed and not case.is_ip):
                for segment in way.segments if only is None else (way.segments[only],):
                    chosen[segment.before, case] = None

    def walk_segment(self, stages: Sequence[Stage], case: Case) -> None:
        """Follow all packets of a case through a segment, unless one like it was walked."""
        flows = self.comparison.flows_before
        entries = []
        for stage in stages:
            known = known_fields(stage, case)
            if m.holds(stage.when, {on: value for on, value in known.items() if value is not None}):
                context = Context(case, known, ALL_STATES, stage.unicast)
                entries += [(table, chain, context) for table, chain in flows.chains(stage, case.protocol)]
        walk = _Walk(self, entries)
        if entries and walk.key not in self.walked:
            self.walked.add(walk.key)
            walk.run()

    # --- result ---

    def by_origin(self) -> Iterator[Finding]:
        groups: dict[object, list[RuleKey]] = {}
        for key in sorted(self.seen, key=self.order):
            origin = self.seen[key].rule.origin
            groups.setdefault(origin or key, []).append(key)
        for keys in groups.values():
            rules = [self.seen[key] for key in keys]
            places = tuple(self.place(key) for key in keys)
            name = rules[0].rule.origin or f"{places[0].table} {places[0].chain} rule {places[0].number}"
            if not any(seen.alive for seen in rules):
                yield Finding(Kind.NEVER_MATCHES, name, places, self.shadowing(keys, name))
            elif not any(seen.needed for seen in rules):
                yield Finding(Kind.NO_EFFECT, name, places)

    def shadowing(self, keys: Iterable[RuleKey], name: str) -> tuple[str, ...]:
        named: dict[str, None] = {}
        for key in keys:
            for shadow in self.seen[key].shadows:
                place = self.place(shadow)
                named[place.origin or f"{place.chain} rule {place.number}"] = None
        named.pop(name, None)
        lines = [origin for origin in named if _LINE.search(origin)]
        return tuple(lines or named)[:MOST_NAMED]

    def order(self, key: RuleKey) -> tuple[int, int, int]:
        seen = self.seen[key]
        tables = [id(table) for table in self.side.model.tables]
        chains = [id(chain) for chain in seen.table.chains.values()]
        return tables.index(key[0]), chains.index(key[1]), key[2]

    def place(self, key: RuleKey) -> Place:
        seen = self.seen[key]
        rule = seen.rule
        return Place(str(seen.table.key), seen.chain.name, key[2], rule_text(rule), rule.origin, rule.line)


class _Walk:
    """Follows packets through base chains, one after the other."""

    def __init__(self, analysis: _Analysis, entries: list[tuple[m.Table, m.Chain, Context]]) -> None:
        self.analysis = analysis
        self.entries = entries
        self.prepared: dict[tuple[int, int, int], list[_Prepared]] = {}
        self.taken: list[tuple[RuleKey, int]] = []
        self.wholes: dict[tuple[int, int, int], int] = {}
        self.accepted = 0
        for place, (table, chain, context) in enumerate(entries):
            self.prepare(table, chain, context, place)

    @property
    def key(self) -> tuple[object, ...]:
        """What the walk depends on: two with the same key are the same."""
        return tuple(
            (key[:2], tuple((p.number, p.tests, p.conditions, p.choices) for p in prepared))
            for key, prepared in self.prepared.items()
        )

    # --- preparing ---

    def prepare(self, table: m.Table, chain: m.Chain, context: Context, place: int) -> None:
        """Look at the rules of a chain, and of those it leads to, in a context."""
        key = (id(table), id(chain), place)
        if key in self.prepared:
            return
        found = self.prepared[key] = []
        special = Specialiser(self.analysis.comparison.residuals, table, context, 0)
        numbers = {id(rule): number for number, rule in enumerate(chain.rules, 1)}
        for rule in self.analysis.comparison.residuals.rules(chain, context.known):
            tests, conditions, possible = special.conditions(rule.conditions)
            if not possible or (rule.verdict is None and not rule.effects):
                continue  # it is not for this context, or just a comment
            prepared = self.one(special, rule, numbers[id(rule)], tests, conditions)
            found.append(prepared)
            for choice in prepared.choices:
                if isinstance(choice.verdict, (m.Jump, m.Goto)):
                    self.prepare(table, find_chain(table, choice.verdict.chain), context, place)

    def one(
        self,
        special: Specialiser,
        rule: m.Rule,
        number: int,
        tests: tuple[m.Test, ...],
        conditions: tuple[m.Condition, ...],
    ) -> _Prepared:
        actions: list[Action] = []
        for effect in rule.effects:
            if isinstance(effect, m.Guard):
                more, others, possible = special.conditions((effect.condition,))
                actions.append(Only(more, others if possible else (m.FALSE,)))
            else:
                actions += special.effect(effect)
        choices = [_Choice((), (), rule.verdict)] if not isinstance(rule.verdict, m.VerdictMap) else []
        if isinstance(rule.verdict, m.VerdictMap):
            for condition, verdict in rule.verdict.entries:
                more, others, possible = special.conditions((condition,))
                if possible:
                    choices.append(_Choice(more, others, verdict))
        return _Prepared(number, rule, tests, conditions, tuple(actions), tuple(choices))

    def tests(self) -> Iterator[m.Test]:
        for prepared in (one for several in self.prepared.values() for one in several):
            parts = [(prepared.tests, prepared.conditions)]
            parts += [(choice.tests, choice.conditions) for choice in prepared.choices]
            for action in prepared.actions:
                match action:
                    case Only(tests, conditions):
                        parts.append((tests, conditions))
                    case Set(pairs):
                        yield from (m.equals(on, value) for on, value in pairs)
                    case Flip(bits):
                        yield from (m.equals(bit, 1) for bit in bits)
                    case Copy(pairs):
                        yield from (m.equals(bit, 1) for pair in pairs for bit in pair)
                    case Note():
                        pass
            for tests, conditions in parts:
                yield from tests
                for condition in conditions:
                    yield from m.tests_of(condition)

    # --- walking ---

    def run(self) -> None:
        """Follow the packets."""
        tests = list(self.tests())
        self.evaluation = Evaluation([], lambda _fields: tests)
        here = self.evaluation.true
        for place, (table, chain, _) in enumerate(self.entries):
            self.accepted = self.evaluation.false
            returned = self.chain(table, chain, place, here)
            if not isinstance(chain.policy, m.Drop):
                self.accepted = self.union(self.accepted, returned)
            here = self.accepted

    def union(self, one: int, two: int) -> int:
        false = self.evaluation.false
        if one == two or false in (one, two):
            return two if one == false else one
        return self.evaluation.space.select(one, self.evaluation.true, two, self.evaluation.true)

    def within(self, here: int, tests: tuple[m.Test, ...], conditions: tuple[m.Condition, ...]) -> int:
        return self.evaluation.where(tests, conditions, here, self.evaluation.false)

    def beyond(self, here: int, tests: tuple[m.Test, ...], conditions: tuple[m.Condition, ...]) -> int:
        if not conditions:
            return self.evaluation.where(tests, (), self.evaluation.false, here)
        inside = self.evaluation.where(tests, conditions, self.evaluation.true, self.evaluation.false)
        return self.evaluation.space.select(inside, self.evaluation.false, here, self.evaluation.true)

    def chain(self, table: m.Table, chain: m.Chain, place: int, here: int) -> int:
        """Put the packets ``here`` through a chain; returns which of them, with new marks, it returns."""
        false = self.evaluation.false
        returned = false
        hits: list[tuple[_Prepared, int]] = []
        for one in self.prepared[id(table), id(chain), place]:
            key = (id(table), id(chain), one.number)
            seen = self.analysis.seen.setdefault(key, _Seen(table, chain, one.rule))
            hit = self.within(here, one.tests, one.conditions)
            if hit == false:
                self.note_shadows(seen, one)
                continue
            seen.alive = True
            seen.needed |= any(_shows(effect) for effect in one.rule.effects)
            hits.append((one, hit))
            here = self.beyond(here, one.tests, one.conditions)
            hit, failed = self.act(one.actions, hit)
            here = self.union(here, failed)
            for choice in one.choices:
                chosen = self.within(hit, choice.tests, choice.conditions)
                hit = self.beyond(hit, choice.tests, choice.conditions)
                on, back = self.end(table, place, key, choice.verdict, chosen)
                here, returned = self.union(here, on), self.union(returned, back)
            here = self.union(here, hit)
        self.note_needed(table, chain, place, hits)
        if isinstance(chain.policy, m.Return) or chain.hook is not None:
            return self.union(returned, here)
        if isinstance(chain.policy, m.Accept):
            self.accepted = self.union(self.accepted, here)
        return returned

    def end(
        self, table: m.Table, place: int, key: RuleKey, verdict: m.PlainVerdict | None, hit: int
    ) -> tuple[int, int]:
        """Return which packets go on with the next rule, and which return."""
        false = self.evaluation.false
        match verdict:
            case None:
                return hit, false
            case m.Jump(name) | m.Goto(name):
                back = self.chain(table, find_chain(table, name), place, hit)
                return (back, false) if isinstance(verdict, m.Jump) else (false, back)
        self.taken.append((key, hit))
        if isinstance(verdict, m.Return):
            return false, hit
        if isinstance(verdict, (m.Accept, m.Queue, m.Nat)):
            self.accepted = self.union(self.accepted, hit)
        return false, false

    def act(self, actions: Iterable[Action], hit: int) -> tuple[int, int]:
        """Return the packets after these actions, and those that a guard kept from the rest of the rule."""
        failed = self.evaluation.false
        for action in actions:
            match action:
                case Only(tests, conditions):
                    failed = self.union(failed, self.beyond(hit, tests, conditions))
                    hit = self.within(hit, tests, conditions)
                case Set(pairs):
                    for on, value in pairs:
                        hit = self.given(hit, on, value)
                case Flip(bits):
                    for bit in bits:
                        hit = self.split(hit, bit, partial(self.flipped, bit))
                case Copy(pairs, flip):
                    for bit, source in pairs:
                        hit = self.split(hit, source, partial(self.flipped_by if flip else self.copied, bit))
                case Note():
                    pass
        return hit, failed

    def flipped(self, bit: m.Field, here: int, was: int) -> int:
        return self.given(here, bit, 1 - was)

    def copied(self, bit: m.Field, here: int, source: int) -> int:
        return self.given(here, bit, source)

    def flipped_by(self, bit: m.Field, here: int, source: int) -> int:
        return self.split(here, bit, partial(self.flipped, bit)) if source else here

    def split(self, here: int, bit: m.Field, change: Callable[[int, int], int]) -> int:
        """Return the packets with a change that depends on a bit."""
        parts = [change(self.within(here, (m.equals(bit, value),), ()), value) for value in (0, 1)]
        return self.union(*parts)

    def given(self, here: int, on: m.Field, value: int) -> int:
        """Return the packets after a field of theirs is given a value, whatever it was."""
        evaluation = self.evaluation
        number = evaluation.number[on]
        atoms = evaluation.levels[number].atoms
        free = evaluation.false
        for atom in range(atoms.width):
            free = self.union(free, evaluation.space.replace(here, {number: atom}, lambda node: node, {}))
        return evaluation.space.rule(((number, 1 << atoms.atom(value)),), free, evaluation.false)

    # --- judging ---

    def note_shadows(self, seen: _Seen, one: _Prepared) -> None:
        """Note which rules took packets that a dead rule would have matched."""
        if seen.alive or len(seen.shadows) >= MOST_NAMED:
            return
        false = self.evaluation.false
        for usual in (self.usual, ()):
            found: dict[RuleKey, None] = {}
            for key, hit in self.taken:
                same_table = key[0] == id(seen.table)
                if same_table and self.evaluation.space.rule(usual, self.within(hit, *one[2:4]), false) != false:
                    found[key] = None
            if found:
                seen.shadows |= found
                return

    @property
    def usual(self) -> Cube:
        """The first packets of ordinary connections: what took them is worth naming."""
        cube = []
        for number, level in enumerate(self.evaluation.levels):
            values = USUAL.get(level.field)
            if values is not None and len(values) == 1 and values.count() == 1:
                cube.append((number, 1 << level.atoms.atom(values.smallest()) | int(level.atoms.absent)))
        return tuple(cube)

    def note_needed(self, table: m.Table, chain: m.Chain, place: int, hits: list[tuple[_Prepared, int]]) -> None:
        """Find out, from the last rule to the first, which ones make a difference to the packets they match."""
        evaluation = self.evaluation
        policy = chain.policy if chain.hook is None else m.RETURN
        rest = evaluation.outcome(_outcome(policy))
        for one, hit in reversed(hits):
            seen = self.analysis.seen[id(table), id(chain), one.number]
            then = self.outcome(table, place, one, rest)
            with_rule = evaluation.where(one.tests, one.conditions, then, rest)
            if with_rule == rest:
                continue
            if evaluation.space.select(hit, with_rule, evaluation.false, evaluation.true) != (
                evaluation.space.select(hit, rest, evaluation.false, evaluation.true)
            ):
                seen.needed = True
                rest = with_rule

    def outcome(self, table: m.Table, place: int, one: _Prepared, rest: int) -> int:
        """Return what becomes of packets that match a rule, given what becomes of those that go on."""
        evaluation = self.evaluation
        then = rest
        for choice in reversed(one.choices):
            match choice.verdict:
                case None:
                    end = rest
                case m.Jump(name) | m.Goto(name):
                    end = self.whole(table, find_chain(table, name), place)
                    if isinstance(choice.verdict, m.Jump):
                        end = evaluation.follow(end, ("return",), rest)
                case _:
                    end = evaluation.outcome(_outcome(choice.verdict))
            then = evaluation.where(choice.tests, choice.conditions, end, then)
        for action in reversed(one.actions):
            then = evaluation.action(action, then, rest)
        return then

    def whole(self, table: m.Table, chain: m.Chain, place: int) -> int:
        """Return what becomes of any packets that enter a chain."""
        key = (id(table), id(chain), place)
        found = self.wholes.get(key)
        if found is None:
            found = self.evaluation.outcome(_outcome(chain.policy if chain.hook is None else m.RETURN))
            for one in reversed(self.prepared[key]):
                then = self.outcome(table, place, one, found)
                found = self.evaluation.where(one.tests, one.conditions, then, found)
            self.wholes[key] = found
        return found


def _shows(effect: m.Effect) -> bool:
    """Whether an effect is seen, whatever becomes of the packet."""
    match effect:
        case m.SetMark(target):
            return target is m.MarkTarget.CONNECTION
        case m.Guard():
            return False
        case _:
            return True


def _outcome(verdict: m.PlainVerdict) -> Outcome:
    match verdict:
        case m.Accept() | m.Nat():
            return Outcome("accept")
        case m.Queue(first, last, bypass):
            return Outcome("accept", trace=(f"queue {first}-{last} {bypass}",))
        case m.Drop():
            return Outcome("drop")
        case m.Reject(v4, v6):
            return Outcome(f"reject {v4} {v6}")
        case m.Return():
            return Outcome("return")
        case m.UnknownVerdict(text):
            return Outcome(f"unknown {text}")
        case m.Jump() | m.Goto():
            raise AssertionError("calls are followed")
