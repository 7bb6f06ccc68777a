"""From programs to diagrams: the outcome of each packet.

Chains are evaluated backwards: the diagram of a rule list is the last one's, overridden by the one before where
that matches, and so on. A call puts the rest of the caller in place of the callee's returns; a goto does not. An
action such as setting the accept mark fixes that field in everything behind it, and is kept in the terminals, so
that the caller goes on with the field changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from pvefw_nft.verify import model as m
from pvefw_nft.verify.model.atoms import Atoms
from pvefw_nft.verify.prove.budget import UNBOUNDED
from pvefw_nft.verify.prove.diagram import Cube, Diagrams
from pvefw_nft.verify.prove.program import (
    ACCEPT,
    DROP,
    RETURN,
    SOMETIMES_ABSENT,
    Action,
    Call,
    Choice,
    Copy,
    FlipBits,
    Outcome,
    Program,
    Remap,
    Restrict,
    Set,
    Step,
    Trace,
    Where,
    rank,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pvefw_nft.verify.model.intervals import IntervalSet
    from pvefw_nft.verify.prove.budget import Budget

SET_UPDATE = "set "
"""Prefix of notes about updates of sets, which last even if the packet is dropped."""
OPEN = {"accept": 1, "return": 2}
"""Verdicts after which something follows, as marks of diagrams."""
TESTS_MARK = 4
"""Mark of nodes that test fields which a packet carries from one segment to the next, such as its mark."""


class Base(NamedTuple):
    """A base chain, specialised; ``accepts`` is its policy."""

    program: Program
    accepts: bool


Flow = tuple[Base, ...]
"""The base chains that a packet meets one after the other."""


def programs_of(flows: Iterable[Flow]) -> list[Program]:
    """Return every program of the flows, also those called, each once."""
    found: dict[Program, None] = {}
    todo = [base.program for flow in flows for base in reversed(flow)]
    while todo:
        program = todo.pop()
        if program in found:
            continue
        found[program] = None
        steps = [inner for step in reversed(program.steps) for inner in steps_of(step)]
        todo += [step.end.program for step in steps if isinstance(step.end, Call)]
    return list(found)


def steps_of(step: Step) -> Iterator[Step]:
    """Yield a step and the branches it ends in."""
    yield step
    if isinstance(step.end, Choice):
        for branch in step.end.branches:
            yield from steps_of(branch)


def tests_of_programs(programs: Iterable[Program]) -> Iterator[m.Test]:
    """Yield the tests of these programs' own steps."""
    for program in programs:
        for step in (inner for outer in program.steps for inner in steps_of(outer)):
            yield from step.tests
            for condition in step.conditions:
                yield from m.tests_of(condition)
            for action in step.actions:
                yield from _tests_of_action(action)


def _tests_of_action(action: Action) -> Iterator[m.Test]:
    """Yield the tests that an action makes of a packet as it comes."""
    match action:
        case Restrict(tests, conditions) | Where(tests, conditions):
            yield from tests
            yield from (test for condition in conditions for test in m.tests_of(condition))
            if isinstance(action, Where):
                yield from (test for inner in action.actions for test in _tests_of_action(inner))
        case Copy(pairs, flip):
            yield from (m.equals(source, 1) for _, source in pairs)
            yield from (m.equals(bit, 1) for bit, _ in pairs if flip)
        case Remap():
            yield from action.groups().values()
        case FlipBits(bits):
            yield from (m.equals(bit, 1) for bit in bits)
        case Set() | Trace():
            pass


@dataclass(frozen=True, slots=True)
class Level:
    """A field of the proof and its atoms."""

    field: m.Field
    atoms: Atoms


class Evaluation:
    """The diagrams of one proof: all its flows share levels and nodes, so equal ones have equal numbers.

    ``more`` gives, for the fields that the flows test, further tests that the proof needs. Operations raise
    BudgetExceededError if they exceed ``budget``. ``carried`` are fields that packets carry from one segment to the
    next: nodes that test one have :data:`TESTS_MARK`.
    """

    def __init__(
        self,
        flows: Sequence[Flow],
        more: Callable[[set[m.Field]], Iterable[m.Test]] | None = None,
        budget: Budget = UNBOUNDED,
        carried: frozenset[m.Field] = frozenset(m.MARK),
    ) -> None:
        sets: dict[m.Field, dict[IntervalSet, None]] = {}
        for test in tests_of_programs(programs_of(flows)):
            sets.setdefault(test.field, {})[test.values] = None
        for test in more(set(sets)) if more is not None else ():
            sets.setdefault(test.field, {})[test.values] = None
        self.levels = [
            Level(on, Atoms(on.size, tuple(sets[on]), absent=on in SOMETIMES_ABSENT)) for on in sorted(sets, key=rank)
        ]
        self.number = {level.field: number for number, level in enumerate(self.levels)}
        self.space = Diagrams(
            [level.atoms.width for level in self.levels],
            [TESTS_MARK if level.field in carried else 0 for level in self.levels],
            budget,
        )
        self._nodes: dict[Program, int] = {}
        self._cubes: dict[m.Test, tuple[int, int]] = {}
        self.true = self.space.terminal(True)  # noqa: FBT003
        self.false = self.space.terminal(False)  # noqa: FBT003

    # --- tests ---

    def covers(self, tests: Iterable[m.Test]) -> bool:
        """Return whether the levels have atoms for all these tests."""
        return all(
            test.field in self.number and test.values in self.levels[self.number[test.field]].atoms.masks
            for test in tests
        )

    def test(self, test: m.Test) -> tuple[int, int]:
        """Return level and atoms of a test."""
        found = self._cubes.get(test)
        if found is None:
            number = self.number[test.field]
            found = self._cubes[test] = (number, self.levels[number].atoms.masks[test.values])
        return found

    def cube(self, tests: tuple[m.Test, ...]) -> Cube:
        """Return the cube of tests, which come in the order of the levels."""
        return tuple([self.test(test) for test in tests])

    def condition(self, condition: m.Condition) -> int:
        """Return a condition as a diagram with the terminals ``true`` and ``false``."""
        space, true, false = self.space, self.true, self.false
        match condition:
            case m.Test():
                return space.rule((self.test(condition),), true, false)
            case m.Not(of):
                return space.select(self.condition(of), false, true, true)
            case m.All(parts):
                result = true
                for part in parts:
                    result = space.select(self.condition(part), result, false, true)
                return result
            case m.Any(parts):
                result = false
                for part in parts:
                    result = space.select(self.condition(part), true, result, true)
                return result

    def where(self, tests: tuple[m.Test, ...], conditions: tuple[m.Condition, ...], then: int, other: int) -> int:
        """Return ``then`` where all of these hold, else ``other``."""
        for condition in conditions:
            then = self.space.select(self.condition(condition), then, other, self.true)
        return self.space.rule(self.cube(tests), then, other)

    # --- outcomes ---

    def outcome(self, outcome: Outcome) -> int:
        """Return the terminal of an outcome."""
        return self.space.terminal(outcome, OPEN.get(outcome.verdict, 0))

    def program(self, program: Program) -> int:
        """Return the outcomes of packets that enter a program."""
        found = self._nodes.get(program)
        if found is None:
            found = self.outcome(RETURN)
            for step in reversed(program.steps):
                found = self.step(step, found)
            self._nodes[program] = found
        return found

    def step(self, step: Step, rest: int) -> int:
        """Return the outcomes of packets that reach a step, given the outcomes of those that go on."""
        return self.where(step.tests, step.conditions, self.end(step, rest), rest)

    def end(self, step: Step, rest: int) -> int:
        """Return the outcomes of packets for which a step's conditions hold."""
        match step.end:
            case None:
                then = rest
            case Outcome():
                then = self.outcome(step.end)
            case Call(program, back):
                then = self.program(program)
                if back and rest != self.outcome(RETURN):
                    then = self.follow(then, ("return",), rest)
            case Choice(branches):
                then = rest
                for branch in reversed(branches):
                    then = self.where(branch.tests, branch.conditions, self.end(branch, rest), then)
        for action in reversed(step.actions):
            then = self.action(action, then, rest)
        return then

    def action(self, action: Action, then: int, rest: int) -> int:
        """Return the outcomes of packets before an action, given their outcomes after it."""
        match action:
            case Set(pairs):
                return self.assign(then, pairs)
            case Where(tests, conditions, actions):
                changed = then
                for inner in reversed(actions):
                    changed = self.action(inner, changed, rest)
                return self.where(tests, conditions, changed, then)
            case Remap():
                return self.remap(action, then)
            case Trace(text):
                return self.change(then, {}, partial(_noted, text))
            case Restrict(tests, conditions):
                return self.where(tests, conditions, then, rest)
            case FlipBits(bits):
                for bit in bits:
                    then = self.flip(bit, then)
                return then
            case Copy(pairs, flip):
                for bit, source in pairs:
                    on = self.flip(bit, then) if flip else self.assign(then, ((bit, 1),))
                    off = then if flip else self.assign(then, ((bit, 0),))
                    then = self.where((m.equals(source, 1),), (), on, off)
                return then

    def remap(self, action: Remap, then: int) -> int:
        """Return ``then`` for packets before a field gets another value, by its old one."""
        changed = then
        for new, test in action.groups().items():
            changed = self.where((test,), (), self.assign(then, ((action.field, new),)), changed)
        return changed

    def flip(self, bit: m.Field, then: int) -> int:
        """Return ``then`` with a bit seen inverted."""
        on, off = self.assign(then, ((bit, 0),)), self.assign(then, ((bit, 1),))
        return self.where((m.equals(bit, 1),), (), on, off)

    def assign(self, node: int, pairs: tuple[tuple[m.Field, int], ...]) -> int:
        """Return ``node`` for packets that were given these values before.

        A field that a packet may lack, such as a port, gets its value only in packets that have it.
        """
        for pair in pairs:
            if pair[0] in SOMETIMES_ABSENT and pair[0] in self.number and len(pairs) > 1:
                rest = tuple(other for other in pairs if other != pair)
                return self.assign(self.assign(node, rest), (pair,))
        if len(pairs) == 1 and pairs[0][0] in SOMETIMES_ABSENT and pairs[0][0] in self.number:
            number = self.number[pairs[0][0]]
            return self.space.rule(((number, self.space.full[number] & ~1),), self._assign(node, pairs), node)
        return self._assign(node, pairs)

    def _assign(self, node: int, pairs: tuple[tuple[m.Field, int], ...]) -> int:
        fixed = {
            self.number[on]: self.levels[self.number[on]].atoms.atom(value) for on, value in pairs if on in self.number
        }
        return self.change(node, fixed, partial(_assigned, tuple((on.name, value) for on, value in pairs)))

    def change(self, node: int, fixed: Mapping[int, int], function: partial[Outcome]) -> int:
        """Return ``node`` with levels fixed and the outcomes put through a function."""
        return self.space.replace(node, fixed, partial(self._terminal, function), {})

    def _terminal(self, function: partial[Outcome], node: int) -> int:
        outcome = self.space.values[node]
        return self.outcome(function(outcome)) if isinstance(outcome, Outcome) else node

    def follow(self, node: int, verdicts: tuple[str, ...], rest: int) -> int:
        """Return ``node`` with ``rest`` in place of these verdicts: packets that end there continue with it."""
        mark = 0
        for verdict in verdicts:
            mark |= OPEN[verdict]
        if not self.space.marks[node] & mark:
            return node
        # later steps test the assigned value, not the one that the packet started with
        rests = {}
        for number in self.space.terminals(node):
            outcome = self.space.values[number]
            if isinstance(outcome, Outcome) and outcome.verdict in verdicts:
                rests[number] = self._after(outcome, rest)
        return self.space.join(node, rests, mark)

    def _after(self, outcome: Outcome, rest: int) -> int:
        """The outcomes of packets that had an open outcome, and went on to ``rest``."""
        for text in reversed(outcome.trace):
            rest = self.change(rest, {}, partial(_noted, text))
        if outcome.assigned:
            rest = self.assign(rest, tuple((m.Field(name, 2), value) for name, value in outcome.assigned))
        return rest

    def flow(self, flow: Flow) -> int:
        """Return the outcomes of packets that meet these base chains in turn."""
        result = self.outcome(ACCEPT)
        for base in reversed(flow):
            node = self.program(base.program)
            if base.accepts and result == self.outcome(ACCEPT):
                result = self.follow(node, ("return",), result)
            elif base.accepts:
                result = self.follow(node, ("accept", "return"), result)
            else:
                node = self.follow(node, ("return",), self.outcome(DROP))
                result = self.follow(node, ("accept",), result)
        return result

    def strip(self, node: int) -> int:
        """Return ``node`` without values assigned to the packet on the way; its connection's mark stays."""
        return self.change(node, {}, partial(_stripped))


def _assigned(pairs: tuple[tuple[str, int], ...], outcome: Outcome) -> Outcome:
    if outcome.verdict not in OPEN:
        pairs = tuple(pair for pair in pairs if _lasts(pair))  # a dropped packet still leaves its connection's mark
    return outcome._replace(assigned=tuple(sorted((dict(pairs) | dict(outcome.assigned)).items())))


def _noted(text: str, outcome: Outcome) -> Outcome:
    if outcome.verdict not in OPEN and not text.startswith(("log ", SET_UPDATE)):
        return outcome
    if text in outcome.trace and (text in ("queue", "queue bypass") or text.startswith(("helper ", SET_UPDATE))):
        return outcome  # once more makes no difference
    return outcome._replace(trace=(text, *outcome.trace))


def _stripped(outcome: Outcome) -> Outcome:
    return outcome._replace(assigned=tuple(pair for pair in outcome.assigned if _lasts(pair)))


def _lasts(pair: tuple[str, int]) -> bool:
    """Whether later packets see an assignment: true for a connection's mark."""
    return pair[0].startswith("ct mark ")
