"""Rates: each rule with a limit counts for itself, so two with the same limit need not exceed it together.

Two rulesets have their own rules, so a proof must pair the counters of both sides. Along a flow, the first counter with
a limit is paired with the first one with that limit on the other side, the second with the second, and so on. A counter
with a name of its own (hashlimit's, an nft set) that both rulesets have is paired with itself.

Example: of ``limit rate 10/second accept; limit rate 10/second accept; drop`` the second rule accepts packets beyond
the first one's rate; without it, they are dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.verify import model as m
from pvefw_nft.verify.prove.evaluate import Base, Flow, steps_of
from pvefw_nft.verify.prove.program import Action, Call, Choice, Program, Restrict, Step, Where, rank

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


class Counters:
    """Give the counters of flows names that are the same on both sides. ``shared`` counters keep their names."""

    def __init__(self, shared: frozenset[m.Field]) -> None:
        self._shared = shared
        self._fields: dict[Program, tuple[m.Field, ...]] = {}
        self._renamed: dict[tuple[Program, tuple[tuple[m.Field, m.Field], ...]], Program] = {}

    def name(self, flow: Flow) -> tuple[Flow, dict[m.Field, m.Field]]:
        """Return a flow with its counters by number, and that number's field for each counter."""
        met = dict.fromkeys(on for base in flow for on in self._met(base.program))
        if not met:
            return flow, {}
        numbers: dict[m.Field, int] = {}
        names: dict[m.Field, m.Field] = {}
        for on in met:
            rate = m.rate_of(on)
            if rate is None or on in self._shared:
                continue
            numbers[rate] = numbers.get(rate, 0) + 1
            names[on] = rate if numbers[rate] == 1 else m.counter_field(rate, str(numbers[rate]))
        return tuple(Base(self._rename(base.program, names), base.accepts) for base in flow), names

    def _met(self, program: Program) -> tuple[m.Field, ...]:
        """Return the counters that a program's steps ask, in their order."""
        found = self._fields.get(program)
        if found is None:
            met: dict[m.Field, None] = {}
            for step in (inner for outer in program.steps for inner in steps_of(outer)):
                met |= dict.fromkeys(test.field for test in _tests(step) if m.rate_of(test.field) is not None)
                if isinstance(step.end, Call):
                    met |= dict.fromkeys(self._met(step.end.program))
            found = self._fields[program] = tuple(met)
        return found

    def _rename(self, program: Program, names: Mapping[m.Field, m.Field]) -> Program:
        own = tuple((on, names[on]) for on in self._met(program) if on in names)
        if not own:
            return program
        found = self._renamed.get((program, own))
        if found is None:
            found = Program(tuple(self._step(step, names) for step in program.steps))
            self._renamed[program, own] = found
        return found

    def _step(self, step: Step, names: Mapping[m.Field, m.Field]) -> Step:
        end = step.end
        if isinstance(end, Call):
            end = end._replace(program=self._rename(end.program, names))
        elif isinstance(end, Choice):
            end = Choice(tuple(self._step(branch, names) for branch in end.branches))
        return Step(
            tuple(sorted((_test(test, names) for test in step.tests), key=lambda test: rank(test.field))),
            tuple(_condition(condition, names) for condition in step.conditions),
            tuple(_action(action, names) for action in step.actions),
            end,
        )


def _tests(step: Step) -> Iterator[m.Test]:
    """Yield the tests of a step that may test rates, also those that apply only to some of its packets."""
    parts: list[tuple[Iterable[m.Test], Iterable[m.Condition]]] = [(step.tests, step.conditions)]
    parts += [(a.tests, a.conditions) for a in step.actions if isinstance(a, (Restrict, Where))]
    for tests, conditions in parts:
        yield from tests
        for condition in conditions:
            yield from m.tests_of(condition)


def _test(test: m.Test, names: Mapping[m.Field, m.Field]) -> m.Test:
    return m.Test(names[test.field], test.values) if test.field in names else test


def _condition(condition: m.Condition, names: Mapping[m.Field, m.Field]) -> m.Condition:
    match condition:
        case m.Test():
            return _test(condition, names)
        case m.Not(of):
            return m.Not(_condition(of, names))
        case m.All(of):
            return m.All(tuple(_condition(part, names) for part in of))
        case m.Any(of):
            return m.Any(tuple(_condition(part, names) for part in of))


def _action(action: Action, names: Mapping[m.Field, m.Field]) -> Action:
    if not isinstance(action, (Restrict, Where)):
        return action
    return action._replace(
        tests=tuple(sorted((_test(test, names) for test in action.tests), key=lambda test: rank(test.field))),
        conditions=tuple(_condition(condition, names) for condition in action.conditions),
    )
