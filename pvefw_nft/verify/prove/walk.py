"""Follow packets through base chains, to find the rules that they match and the rules that make a difference.

Packets go forwards through the chains: a rule is alive if some packet that reaches it fulfils its conditions. Then,
from the last rule to the first, the outcome of packets is compared with and without each line: if both are equal for
all packets that reach the line, it is not needed there. Setting a mark is followed, too: behind it packets have the
mark, with any mark before.

The result of a walk is a list of events, which :meth:`Walk.note` adds to the judgement of the rules. Walks of one shape
(:mod:`~pvefw_nft.verify.prove.walk_shapes`) have the same events, of rules at the same places.

Example: of ``-p tcp --dport 22 -j ACCEPT``, ``-s 10.0.0.1 -j DROP``, ``-j DROP``, the second is alive and not needed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from pvefw_nft.verify import model as m
from pvefw_nft.verify.prove.budget import BudgetExceededError
from pvefw_nft.verify.prove.counterexamples import USUAL
from pvefw_nft.verify.prove.evaluate import Evaluation
from pvefw_nft.verify.prove.program import Action, Copy, FlipBits, Outcome, Remap, Restrict, Set, Trace, Where
from pvefw_nft.verify.prove.specialise import Specialiser, find_chain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pvefw_nft.verify.prove.diagram import Cube
    from pvefw_nft.verify.prove.exploration import Exploration
    from pvefw_nft.verify.prove.facts import Context

MAX_PREPARED = 1 << 16
"""Number of chains that are cached in their specialised form: enough for 1,000 guests, which are walked twice."""
LONG_CHAIN = 100
"""Chains of more rules than this, such as those that lead to each guest, have their rules numbered once."""
MAX_SHADOWS = 16
"""How many rules are noted that take the packets of one that never matches."""

RuleKey: TypeAlias = tuple[int, int, int]
"""Table and chain by identity, and the rule's number from 1."""

Line: TypeAlias = "str | RuleKey"
"""The identity under which a rule is judged: its origin, or the rule itself where that is unknown."""

_LINE = re.compile(r"[\0:]\d+$")


def is_line(origin: str) -> bool:
    """Return whether an origin names file and line, which says more than a standard chain's origin."""
    return bool(_LINE.search(origin))


_MARKS = frozenset(m.MARK)


@dataclass(slots=True)
class Judged:
    """The findings about a rule so far."""

    table: m.Table
    chain: m.Chain
    rule: m.Rule
    alive: bool = False
    needed: bool = False
    shadows: tuple[RuleKey, ...] = ()
    successors: tuple[RuleKey, ...] = ()
    """The rules that take its packets where it is not there."""

    def note_takers(self, kind: Found, *groups: Iterable[RuleKey]) -> None:
        """Add the rules that take its packets, of the first group with any, to those noted before."""
        if kind is Found.SHADOWED and self.alive:
            return
        takers = self.shadows if kind is Found.SHADOWED else self.successors
        for rules in groups:
            if len(takers) < MAX_SHADOWS:
                takers = tuple(dict.fromkeys((*takers, *rules)))
            if takers:
                break
        if kind is Found.SHADOWED:
            self.shadows = takers
        else:
            self.successors = takers


class Rules:
    """The rules that some walk came near, by key and by line."""

    def __init__(self) -> None:
        self._rules: dict[RuleKey, Judged] = {}
        self._lines: dict[Line, list[RuleKey]] = {}
        self.unfinished: dict[tuple[str, str], str] = {}
        """Why some rules were not judged: by file and reason, the first line at which that was so."""
        self.prepared: dict[tuple[object, ...], list[Prepared]] = {}
        self._numbers: dict[int, dict[int, int]] = {}

    def __getitem__(self, key: RuleKey) -> Judged:
        return self._rules[key]

    def judged(self, table: m.Table, chain: m.Chain, number: int, rule: m.Rule) -> Judged:
        """Return the findings about a rule, empty ones at its first visit."""
        key = (id(table), id(chain), number)
        found = self._rules.get(key)
        if found is None:
            found = self._rules[key] = Judged(table, chain, rule)
            self._lines.setdefault(rule.origin or key, []).append(key)
        return found

    def note(
        self,
        table: m.Table,
        chain: m.Chain,
        numbers: tuple[int, ...] | None,
        findings: Iterable[tuple[int, bool, bool]],
    ) -> None:
        """Note findings about rules of a chain: their positions, and whether they are alive and needed.

        A position is a place in ``numbers``; None: in the whole chain.
        """
        rules, lines, known = chain.rules, self._lines, self._rules
        table_id, chain_id = id(table), id(chain)
        for position, alive, needed in findings:
            number = position + 1 if numbers is None else numbers[position]
            key = table_id, chain_id, number
            found = known.get(key)
            if found is None:
                rule = rules[number - 1]
                known[key] = Judged(table, chain, rule, alive, needed)
                lines.setdefault(rule.origin or key, []).append(key)
            else:
                found.alive = found.alive or alive
                found.needed = found.needed or needed

    def numbers(self, chain: m.Chain) -> dict[int, int]:
        """Return the number of each rule of a chain, by the rule's identity."""
        found = self._numbers.get(id(chain))
        if found is None:
            found = {id(rule): number for number, rule in enumerate(chain.rules, 1)}
            # numbering a short chain again costs less than keeping its numbers
            if len(chain.rules) > LONG_CHAIN:
                self._numbers[id(chain)] = found
        return found

    def was(self, kind: Found, key: RuleKey) -> bool:
        """Return whether walks so far found a rule alive or needed: ``kind`` is WAS_ALIVE or WAS_NEEDED."""
        judged = self._rules.get(key)
        return judged is not None and (judged.alive if kind is Found.WAS_ALIVE else judged.needed)

    def lines(self) -> Iterator[Line]:
        """Yield every line."""
        yield from self._lines

    def keys(self, line: Line) -> list[RuleKey]:
        """Return the rules of a line."""
        return self._lines[line]

    def is_alive(self, line: Line) -> bool:
        """Return whether packets match one of the line's rules."""
        return any(self._rules[key].alive for key in self._lines[line])

    def is_needed(self, line: Line) -> bool:
        """Return whether one of the line's rules makes a difference."""
        return any(self._rules[key].needed for key in self._lines[line])


class Found(Enum):
    """The findings of a walk about a rule."""

    MET = "met"
    ALIVE = "alive"
    NEEDED = "needed"
    SHADOWED = "shadowed"
    SUCCEEDED = "succeeded"
    WAS_ALIVE = "was alive"
    """Some walk before found it alive, so that nothing takes its packets from it."""
    WAS_NEEDED = "was needed"


class Event(NamedTuple):
    """Something found about the rule at a place of a walk. Of rules that take its packets: those that take ordinary
    ones (``usual``) and, where there are none, ``others``.
    """

    kind: Found
    place: int
    usual: tuple[int, ...] = ()
    others: tuple[int, ...] = ()


class Choice(NamedTuple):
    """A verdict of a rule, and the packets it is for (``None``: all that match)."""

    tests: tuple[m.Test, ...]
    conditions: tuple[m.Condition, ...]
    verdict: m.PlainVerdict | None


class Prepared(NamedTuple):
    """A rule as it looks in one context; ``number`` is its number in the chain."""

    number: int
    rule: m.Rule
    tests: tuple[m.Test, ...]
    conditions: tuple[m.Condition, ...]
    actions: tuple[Action, ...]
    choices: tuple[Choice, ...]


class Walk:
    """Follows packets through base chains, one after the other."""

    def __init__(
        self,
        explored: Exploration,
        rules: Rules,
        entries: list[tuple[m.Table, m.Chain, Context]],
        removed: frozenset[Line],
    ) -> None:
        """Prepare a walk through ``entries``, base chains in order; findings go to ``rules``.

        Rules of the lines ``removed`` are judged, too, but have no effect on other rules.
        """
        self.explored = explored
        self.rules = rules
        self.entries = entries
        self.removed = removed
        self.prepared: dict[tuple[int, int, int], list[Prepared]] = {}
        self.taken: list[tuple[RuleKey, int]] = []
        self.wholes: dict[tuple[int, int, int], int] = {}
        self.passed: list[tuple[int, int, int]] = []
        self.events: list[Event] = []
        self.alive: set[int] = set()
        self.needed: set[int] = set()
        self.places: dict[RuleKey, int] = {}
        self.met: list[tuple[m.Table, m.Chain, int, m.Rule]] = []
        self.accepted = 0
        self.reached = ""
        for place, (table, chain, context) in enumerate(entries):
            self.prepare(table, chain, context, place)

    @property
    def key(self) -> tuple[object, ...]:
        """The inputs of the walk: walks with equal keys are equal."""
        return tuple(
            (key[:2], tuple((p.number, p.tests, p.conditions, p.choices) for p in prepared))
            for key, prepared in self.prepared.items()
        )

    def lines(self) -> set[Line]:
        """Return the lines of the rules on the way."""
        return {
            one.rule.origin or (table, chain, one.number)
            for (table, chain, _), prepared in self.prepared.items()
            for one in prepared
        }

    # --- preparing ---

    def prepare(self, table: m.Table, chain: m.Chain, context: Context, place: int) -> None:
        """Look at the rules of a chain, and of those it leads to, in a context."""
        key = (id(table), id(chain), place)
        if key in self.prepared:
            return
        found = self.rules.prepared.get(self.explored.residuals.key(table, chain, context))
        if found is None:
            found = self.rules_of(table, chain, context)
        self.prepared[key] = found
        for prepared in found:
            if self.places.setdefault((*key[:2], prepared.number), len(self.met)) == len(self.met):
                self.met.append((table, chain, prepared.number, prepared.rule))
            for choice in prepared.choices:
                if isinstance(choice.verdict, (m.Jump, m.Goto)):
                    self.prepare(table, find_chain(table, choice.verdict.chain), context, place)

    def rules_of(self, table: m.Table, chain: m.Chain, context: Context) -> list[Prepared]:
        """Return the rules of a chain as they look in a context."""
        found = []
        special = Specialiser(self.explored.residuals, table, context, 0)
        numbers = self.rules.numbers(chain)
        for rule in self.explored.residuals.rules(chain, context.known):
            special.rule_at = rule
            tests, conditions, possible = special.conditions(rule.conditions)
            if possible and (rule.verdict is not None or rule.effects):  # else not for this context, or just a comment
                found.append(self.one(special, rule, numbers[id(rule)], tests, conditions))
        if len(self.rules.prepared) >= MAX_PREPARED:
            self.rules.prepared.clear()
        self.rules.prepared[self.explored.residuals.key(table, chain, context)] = found
        return found

    def one(
        self,
        special: Specialiser,
        rule: m.Rule,
        number: int,
        tests: tuple[m.Test, ...],
        conditions: tuple[m.Condition, ...],
    ) -> Prepared:
        """Return a rule as it looks in a context."""
        actions: list[Action] = []
        for effect in rule.effects:
            if isinstance(effect, m.Guard):
                more, others, possible = special.conditions((effect.condition,))
                actions.append(Restrict(more, others if possible else (m.FALSE,)))
            else:
                actions += special.effect(effect)
        choices = [Choice((), (), rule.verdict)] if not isinstance(rule.verdict, m.VerdictMap) else []
        if isinstance(rule.verdict, m.VerdictMap):
            for condition, verdict in rule.verdict.entries:
                more, others, possible = special.conditions((condition,))
                if possible:
                    choices.append(Choice(more, others, verdict))
        return Prepared(number, rule, tests, conditions, tuple(actions), tuple(choices))

    def tests(self) -> Iterator[m.Test]:
        """Yield every test of the rules on the way, and every value that they set."""
        for prepared in (one for several in self.prepared.values() for one in several):
            parts = [(prepared.tests, prepared.conditions)]
            parts += [(choice.tests, choice.conditions) for choice in prepared.choices]
            for action in prepared.actions:
                yield from tests_of_action(action)
            for tests, conditions in parts:
                yield from tests
                for condition in conditions:
                    yield from m.tests_of(condition)

    # --- walking ---

    def run(self) -> tuple[Event, ...] | None:
        """Follow the packets; return the events. None: the budget is exceeded, and all rules count as needed."""
        try:
            self.explored.budget.check_time()
            self.follow()
        except BudgetExceededError as error:
            file, _, line = self.reached.rpartition("\0")
            self.rules.unfinished.setdefault((file, str(error)), line)
            for rule in self.met:
                judged = self.rules.judged(*rule)
                judged.alive = judged.needed = True
            return None
        return tuple(self.events)

    def fits(self, events: Iterable[Event]) -> bool:
        """Return whether events of a walk of this shape depend on the findings about this walk's rules, too."""
        return all(
            self.was(event.kind, event.place)
            for event in events
            if event.kind is Found.WAS_ALIVE or event.kind is Found.WAS_NEEDED
        )

    def was(self, kind: Found, place: int) -> bool:
        """Return whether walks before found the rule at a place alive or needed."""
        table, chain, number, _ = self.met[place]
        return self.rules.was(kind, (id(table), id(chain), number))

    def note(self, events: Iterable[Event]) -> None:
        """Merge the events of this walk, or of one of its shape, into the findings about the rules."""
        for event in events:
            judged = self.rules.judged(*self.met[event.place])
            match event.kind:
                case Found.ALIVE:
                    judged.alive = True
                case Found.NEEDED:
                    judged.needed = True
                case Found.SHADOWED | Found.SUCCEEDED:
                    judged.note_takers(event.kind, self.keys(event.usual), self.keys(event.others))
                case _:
                    pass

    def keys(self, places: Iterable[int]) -> list[RuleKey]:
        """Return the rules at places."""
        rules = [self.met[place] for place in places]
        return [(id(table), id(chain), number) for table, chain, number, _ in rules]

    def follow(self) -> None:
        """Follow the packets from one base chain to the next."""
        tests = list(self.tests())
        self.evaluation = Evaluation([], lambda _fields: tests, self.explored.budget)
        here = self.evaluation.true
        for place, (table, chain, _) in enumerate(self.entries):
            self.accepted = self.evaluation.false
            returned = self.chain(table, chain, place, here)
            if not isinstance(chain.policy, m.Drop):
                self.accepted = self.union(self.accepted, returned)
            here = self.accepted
        for at, hit, start in self.passed:
            # only rules behind the removed one can take its packets
            takers = self.takers(hit, self.taken[start:])
            self.events.append(Event(Found.SUCCEEDED, at, *takers))

    def union(self, one: int, two: int) -> int:
        """Return the packets of both."""
        false = self.evaluation.false
        if one == two or false in (one, two):
            return two if one == false else one
        return self.evaluation.space.select(one, self.evaluation.true, two, self.evaluation.true)

    def within(self, here: int, tests: tuple[m.Test, ...], conditions: tuple[m.Condition, ...]) -> int:
        """Return the packets that fulfil all of these."""
        return self.evaluation.where(tests, conditions, here, self.evaluation.false)

    def beyond(self, here: int, tests: tuple[m.Test, ...], conditions: tuple[m.Condition, ...]) -> int:
        """Return the packets that do not fulfil all of these."""
        if not conditions:
            return self.evaluation.where(tests, (), self.evaluation.false, here)
        inside = self.evaluation.where(tests, conditions, self.evaluation.true, self.evaluation.false)
        return self.evaluation.space.select(inside, self.evaluation.false, here, self.evaluation.true)

    def chain(self, table: m.Table, chain: m.Chain, place: int, here: int) -> int:
        """Put the packets ``here`` through a chain; returns which of them, with new marks, it returns."""
        false = self.evaluation.false
        returned = false
        coming: list[int] = []
        for one in self.prepared[id(table), id(chain), place]:
            coming.append(here)
            self.reached = one.rule.origin or self.reached
            key = (id(table), id(chain), one.number)
            at = self.places[key]
            self.events.append(Event(Found.MET, at))
            hit = self.within(here, one.tests, one.conditions)
            if hit == false:
                self.find_shadows(at, one)
                continue
            # its packets go on with the next rule; the rules that take them are found at the end of the walk
            if (one.rule.origin or key) in self.removed:
                self.passed.append((at, hit, len(self.taken)))
                continue
            self.alive.add(at)
            self.events.append(Event(Found.ALIVE, at))
            here = self.beyond(here, one.tests, one.conditions)
            hit, failed = self.act(one.actions, hit)
            here = self.union(here, failed)
            # entries of a verdict map are tried in order: each leaves the rest to those behind it
            for choice in one.choices:
                chosen = self.within(hit, choice.tests, choice.conditions)
                hit = self.beyond(hit, choice.tests, choice.conditions)
                on, back = self.end(table, place, key, choice.verdict, chosen)
                here, returned = self.union(here, on), self.union(returned, back)
            here = self.union(here, hit)
        self.note_needed(table, chain, place, coming)
        # a base chain's policy is applied by its caller; only ebtables gives other chains a policy
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
                if isinstance(verdict, m.Goto):
                    self.taken.append((key, hit))  # such as an acceptance by way of the accept mark
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
                case Restrict(tests, conditions):
                    failed = self.union(failed, self.beyond(hit, tests, conditions))
                    hit = self.within(hit, tests, conditions)
                case Where(tests, conditions, inner):
                    rest, hit = self.beyond(hit, tests, conditions), self.within(hit, tests, conditions)
                    hit, _ = self.act(inner, hit)
                    hit = self.union(hit, rest)
                case Set() | Remap() | FlipBits() | Copy():
                    hit = self.changed(action, hit)
                case Trace():
                    pass
        return hit, failed

    def changed(self, action: Set | Remap | FlipBits | Copy, hit: int) -> int:
        """Return the packets after some of their fields were changed."""
        match action:
            case Set(pairs):
                # fields on which this set of packets does not depend are set all at once, by one cube
                tested = self.evaluation.space.support(hit)
                number = self.evaluation.number
                for on, value in pairs:
                    if number[on] in tested:
                        hit = self.given(hit, on, value)
                hit = self.also(hit, [pair for pair in pairs if number[pair[0]] not in tested])
            case Remap(on):
                # the new values are of the packets before: none is translated twice
                before, hit = hit, self.evaluation.false
                for new, test in action.groups().items():
                    hit = self.union(hit, self.given(self.within(before, (test,), ()), on, new))
            case FlipBits(bits):
                for bit in bits:
                    hit = self.split(hit, bit, partial(self.flipped, bit))
            case Copy(pairs, flip):
                for bit, source in pairs:
                    hit = self.split(hit, source, partial(self.flipped_by if flip else self.copied, bit))
        return hit

    def flipped(self, bit: m.Field, here: int, was: int) -> int:
        """Return the packets with a bit, which was ``was``, inverted."""
        return self.given(here, bit, 1 - was)

    def copied(self, bit: m.Field, here: int, source: int) -> int:
        """Return the packets with a bit set to ``source``."""
        return self.given(here, bit, source)

    def flipped_by(self, bit: m.Field, here: int, source: int) -> int:
        """Return the packets with a bit inverted where ``source`` is 1."""
        return self.split(here, bit, partial(self.flipped, bit)) if source else here

    def split(self, here: int, bit: m.Field, change: Callable[[int, int], int]) -> int:
        """Return the packets with a change that depends on a bit."""
        parts = [change(self.within(here, (m.equals(bit, value),), ()), value) for value in (0, 1)]
        return self.union(*parts)

    def given(self, here: int, on: m.Field, value: int) -> int:
        """Return the packets after one of their fields was set."""
        evaluation = self.evaluation
        number = evaluation.number[on]
        # forget the value before: a packet with any value may now have this one
        free = evaluation.false
        for atom in range(evaluation.levels[number].atoms.width):
            free = self.union(free, evaluation.space.replace(here, {number: atom}, lambda node: node, {}))
        return self.also(free, [(on, value)])

    def also(self, here: int, pairs: Iterable[tuple[m.Field, int]]) -> int:
        """Return the packets of ``here``, which tells nothing of these fields, that have these values in them."""
        evaluation = self.evaluation
        atoms = {evaluation.number[on]: evaluation.levels[evaluation.number[on]].atoms.atom(v) for on, v in pairs}
        cube = tuple(sorted((number, 1 << atom) for number, atom in atoms.items()))
        return evaluation.space.rule(cube, here, evaluation.false)

    # --- judging ---

    def find_shadows(self, at: int, one: Prepared) -> None:
        """Find out which rules took packets that a dead rule would have matched: lines first, each for the rest."""
        if at in self.alive:
            return
        if self.was(Found.WAS_ALIVE, at):
            self.events.append(Event(Found.WAS_ALIVE, at))
            return
        table = id(self.met[at][0])
        everything = self.within(self.evaluation.true, one.tests, one.conditions)
        lines = [taken for taken in self.taken if taken[0][0] == table and self.is_of_line(taken[0])]
        others = [taken for taken in self.taken if taken[0][0] == table and not self.is_of_line(taken[0])]
        self.events.append(Event(Found.SHADOWED, at, *self.takers(everything, [*lines, *others])))

    def takers(self, hit: int, taken: list[tuple[RuleKey, int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the rules that took packets of ``hit``, each for the remaining ones: ordinary ones, or else any."""
        false = self.evaluation.false
        found: list[tuple[int, ...]] = []
        for usual in (self.usual, ()):
            left = self.evaluation.space.rule(usual, hit, false)
            takers: dict[int, None] = {}
            for key, packets in taken:
                rest = self.evaluation.space.select(packets, false, left, self.evaluation.true)
                if rest != left:
                    takers[self.places[key]] = None
                    left = rest
            found.append(tuple(takers))
            if takers:
                break
        return found[0], found[-1]

    def is_of_line(self, key: RuleKey) -> bool:
        """Return whether a rule's origin is a line."""
        return is_line(self.met[self.places[key]][3].origin or "")

    @property
    def usual(self) -> Cube:
        """The first packets of ordinary connections: rules that took them are worth naming."""
        cube = []
        for number, level in enumerate(self.evaluation.levels):
            if level.field in _MARKS:
                cube.append((number, 1 << level.atoms.atom(0)))  # who set a mark took the packet, not who tests it
                continue
            values = USUAL.get(level.field)
            # a field with several usual values restricts nothing
            if values is not None and len(values) == 1 and values.count() == 1:
                cube.append((number, 1 << level.atoms.atom(values.smallest()) | int(level.atoms.absent)))
        return tuple(cube)

    def note_needed(self, table: m.Table, chain: m.Chain, place: int, coming: list[int]) -> None:
        """Find out, from the last line to the first, which ones make a difference to the packets that come there.

        ``coming`` are these packets, for each rule that was prepared. Neighbours of one line are judged as one.
        """
        evaluation = self.evaluation
        rest = evaluation.outcome(_outcome(chain.policy if chain.hook is None else m.RETURN))
        for line, block in self.lines_of(table, chain, place):
            first = coming[block[0][0]]
            with_line = rest
            for _, one in reversed(block):
                with_line = self.before(table, place, one, with_line)
            block_places = [self.places[id(table), id(chain), one.number] for _, one in block]
            known = [at for at in block_places if at not in self.needed]
            # found needed before, here or in another walk: spare the comparison
            if all(self.was(Found.WAS_NEEDED, at) for at in known):
                self.events += [Event(Found.WAS_NEEDED, at) for at in known]
            elif any(
                at in self.alive and any(map(shows, one.rule.effects))
                for at, (_, one) in zip(block_places, block, strict=True)
            ) or evaluation.space.differ(first, with_line, rest, evaluation.true):
                self.events += [Event(Found.NEEDED, at) for at in block_places]
                self.needed.update(block_places)
            # a removed line has no effect on the lines before it
            if line not in self.removed:
                rest = with_line

    def lines_of(self, table: m.Table, chain: m.Chain, place: int) -> list[tuple[Line, list[tuple[int, Prepared]]]]:
        """Return the lines of a chain from the last to the first, each with its rules in order and their places."""
        prepared = list(enumerate(self.prepared[id(table), id(chain), place]))

        def line(numbered: tuple[int, Prepared]) -> Line:
            return numbered[1].rule.origin or (id(table), id(chain), numbered[1].number)

        return [(name, list(block)) for name, block in groupby(prepared, line)][::-1]

    def before(self, table: m.Table, place: int, one: Prepared, rest: int) -> int:
        """Return the outcomes of packets that reach a rule, given the outcomes of those that go on."""
        return self.evaluation.where(one.tests, one.conditions, self.outcome(table, place, one, rest), rest)

    def outcome(self, table: m.Table, place: int, one: Prepared, rest: int) -> int:
        """Return the outcomes of packets that match a rule, given the outcomes of those that go on."""
        evaluation = self.evaluation
        then = rest
        for choice in reversed(one.choices):
            match choice.verdict:
                case None:
                    end = rest
                case m.Jump(name) | m.Goto(name):
                    end = self.whole(table, find_chain(table, name), place)
                    # packets that a jump returns go on behind it; behind a goto they return to its caller
                    if isinstance(choice.verdict, m.Jump):
                        end = evaluation.follow(end, ("return",), rest)
                case _:
                    end = evaluation.outcome(_outcome(choice.verdict))
            then = evaluation.where(choice.tests, choice.conditions, end, then)
        for action in reversed(one.actions):
            then = evaluation.action(action, then, rest)
        return then

    def whole(self, table: m.Table, chain: m.Chain, place: int) -> int:
        """Return the outcomes of all packets that enter a chain."""
        key = (id(table), id(chain), place)
        found = self.wholes.get(key)
        if found is None:
            found = self.evaluation.outcome(_outcome(chain.policy if chain.hook is None else m.RETURN))
            for line, block in self.lines_of(table, chain, place):
                if line not in self.removed:
                    for _, one in reversed(block):
                        found = self.before(table, place, one, found)
            self.wholes[key] = found
        return found


def tests_of_action(action: Action) -> Iterator[m.Test]:
    """Yield every test that an action makes, and of each value that it gives."""
    match action:
        case Restrict(tests, conditions):
            yield from tests
            yield from (test for condition in conditions for test in m.tests_of(condition))
        case Where(tests, conditions, actions):
            yield from tests
            yield from (test for condition in conditions for test in m.tests_of(condition))
            yield from (test for inner in actions for test in tests_of_action(inner))
        case Set(pairs):
            yield from (m.equals(on, value) for on, value in pairs)
        case Remap(on):
            for new, test in action.groups().items():
                yield test
                yield m.equals(on, new)
        case FlipBits(bits):
            yield from (m.equals(bit, 1) for bit in bits)
        case Copy(pairs):
            yield from (m.equals(bit, 1) for pair in pairs for bit in pair)
        case Trace():
            pass


def shows(effect: m.Effect) -> bool:
    """Whether an effect is visible even if the packet is dropped."""
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
