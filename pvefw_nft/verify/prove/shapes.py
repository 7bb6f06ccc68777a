"""Prove pairs of flows once that differ only in the addresses and ports of their rules.

Guests often differ only in their numbers. The *shape* of a flow has the place of first appearance instead of each test
of an address or port; everything else is unchanged: other fields, actions, verdicts, and calls between chains. The
result of a proof depends only on the shapes of the two flows and on the overlaps of the values at these places
(:func:`overlaps`). Two pairs with the same key have the same result, for this reason:

- A diagram depends only on the atoms of a field, that is, on the combinations of its sets that have a value in common
  (:class:`~pvefw_nft.verify.model.atoms.Atoms`). If these combinations are the same, each atom of one pair corresponds
  to one of the other.
- Replacing one pair's atoms by the other's turns one pair of flows into the other, step by step, since their shapes are
  equal. So a packet that one pair treats differently has a counterpart in the other pair.
- Sets that a proof needs beside the sets of the rules, such as the multicast addresses, are part of the key: the
  combinations include them.
- If an action sets one of these fields (address translation), the value would have to be part of the key. Such flows
  have no key, and are proved one by one.

Example: ``dport 80: accept; dport 22: drop`` has the shape of ``dport 8080: accept; dport 443: drop``, but not the
shape of ``dport 80: accept; dport 80: drop``, which has one place. With ``dport 22-80: drop`` as the second step it
has the same shape and other combinations.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from pvefw_nft.verify import model as m
from pvefw_nft.verify.prove.program import (
    Action,
    Call,
    Choice,
    Copy,
    FlipBits,
    Program,
    Remap,
    Restrict,
    Set,
    Step,
    Trace,
    Where,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pvefw_nft.verify.model.intervals import IntervalSet
    from pvefw_nft.verify.prove.evaluate import Flow

RENAMED = frozenset(on for on, known in m.DECLARED.items() if known.renamed)
"""Fields whose values a shape leaves out: those in which guests of one kind differ."""

Key: TypeAlias = "tuple[object, ...]"
_Constants: TypeAlias = "Callable[[frozenset[m.Field]], Iterable[m.Test]]"


class Shape(NamedTuple):
    """``number`` is the same for equal shapes, ``tests`` are the tests at its places, ``fields`` all tested fields."""

    number: int
    tests: tuple[m.Test, ...]
    fields: frozenset[m.Field]


class Shapes:
    """Gives flows their keys, and remembers the shapes of programs."""

    def __init__(self) -> None:
        self._numbers: dict[Key, int] = {}
        self._shapes: dict[Program, Shape | None] = {}

    def key(self, flows: Sequence[Flow], constants: _Constants = lambda _fields: ()) -> Key | None:
        """Return a key that is equal for flows that differ in addresses and ports alone; None: these flows have none.

        ``constants`` gives, for the fields that the flows test, other tests that count.
        """
        places: dict[m.Test, int] = {}
        parts: list[object] = []
        fields: frozenset[m.Field] = frozenset()
        for flow in flows:
            for base in flow:
                shape = self._shape(base.program)
                if shape is None:
                    return None
                fields |= shape.fields
                at = tuple([places.setdefault(test, len(places)) for test in shape.tests])
                parts.append((shape.number, base.accepts, at))
            parts.append("next flow")
        others = [test for test in constants(fields) if test.field in RENAMED]
        parts += [(test.field, places.setdefault(test, len(places))) for test in others]
        return tuple(parts), overlaps(places)

    def _shape(self, program: Program) -> Shape | None:
        """Return the shape of a program, with all that it calls; None where it has none."""
        if program not in self._shapes:
            try:
                self._shapes[program] = self._made(program)
            except NoShapeError:
                self._shapes[program] = None
        return self._shapes[program]

    def _made(self, program: Program) -> Shape:
        writer = Writer(self._called)
        steps = tuple([writer.step(step) for step in program.steps])
        number = self._numbers.setdefault(steps, len(self._numbers))
        return Shape(number, tuple(writer.places), frozenset(writer.fields))

    def _called(self, program: Program) -> Shape:
        shape = self._shape(program)
        if shape is None:
            raise NoShapeError
        return shape


class NoShapeError(Exception):
    """An action gives a renamed field a value."""


class Writer:
    """Write the steps of a program as nested tuples, with places instead of the tests of renamed fields."""

    def __init__(self, shape_of: Callable[[Program], Shape]) -> None:
        self.shape_of = shape_of
        self.places: dict[m.Test, int] = {}
        self.fields: set[m.Field] = set()

    def test(self, test: m.Test) -> object:
        """Return a test; of a renamed field its place."""
        self.fields.add(test.field)
        if test.field in RENAMED:
            return test.field, self.places.setdefault(test, len(self.places))
        return test

    def step(self, step: Step) -> Key:
        """Return a step."""
        return (*self.conditions(step.tests, step.conditions), self.actions(step.actions), self.end(step))

    def conditions(self, tests: Sequence[m.Test], conditions: Sequence[m.Condition]) -> tuple[Key, Key]:
        """Return tests and other conditions."""
        return (
            tuple([self.test(test) for test in tests]),
            tuple([self.condition(condition) for condition in conditions]),
        )

    def condition(self, condition: m.Condition) -> object:
        """Return a condition, with all its parts."""
        match condition:
            case m.Test():
                return self.test(condition)
            case m.Not(of):
                return "not", self.condition(of)
            case m.All(of) | m.Any(of):
                return type(condition).__name__, tuple([self.condition(part) for part in of])

    def end(self, step: Step) -> object:
        """Return the end of a step; for a call its shape, and the values at its places."""
        match step.end:
            case Call(program, back):
                shape = self.shape_of(program)
                self.fields |= shape.fields
                at = tuple([self.places.setdefault(test, len(self.places)) for test in shape.tests])
                return "call", shape.number, back, at
            case Choice(branches):
                return "choice", tuple([self.step(branch) for branch in branches])
            case _:
                return "end", step.end

    def actions(self, actions: Sequence[Action]) -> Key:
        """Return actions in their order. Raises NoShapeError."""
        return tuple([self.action(action) for action in actions])

    def action(self, action: Action) -> Key:
        """Return an action. Raises NoShapeError where it gives a renamed field a value."""
        name = type(action).__name__
        match action:
            case Restrict(tests, conditions):
                return (name, *self.conditions(tests, conditions))
            case Where(tests, conditions, inner):
                return (name, *self.conditions(tests, conditions), self.actions(inner))
            case Trace(text):
                return name, text
            case Set(pairs):
                self.changes(on for on, _ in pairs)
            case Remap(on):
                self.changes((on,))
            case FlipBits(bits):
                self.changes(bits)
            case Copy(pairs):
                self.changes(on for pair in pairs for on in pair)
        return name, tuple(action)

    def changes(self, fields: Iterable[m.Field]) -> None:
        """Note that an action sets these fields: their values stay in the shape unchanged."""
        for on in fields:
            if on in RENAMED:
                raise NoShapeError
            self.fields.add(on)


def overlaps(places: Mapping[m.Test, int]) -> tuple[tuple[m.Field, frozenset[int]], ...]:
    """Return, for each field of these tests, the combinations of tests that some value fulfils exactly.

    A combination is a number with the bits of the tests' places. Example: of ``dport 22`` and ``dport 1-1023``, at the
    places 0 and 1, the combinations are 0 (neither), 2 and 3.
    """
    by_field: dict[m.Field, dict[IntervalSet, int]] = {}
    for test, place in places.items():
        by_field.setdefault(test.field, {})[test.values] = 1 << place
    found: list[tuple[m.Field, frozenset[int]]] = []
    for on, sets in by_field.items():
        if len(sets) == 1:
            # most fields are bits that one rule sets, or are tested once
            ((values, bit),) = sets.items()
            found.append((on, _alone(values, bit, on.size)))
            continue
        flips: dict[int, int] = {0: 0}
        for values, bit in sets.items():
            for bound in values.bounds:
                flips[bound] = flips.get(bound, 0) ^ bit
        combination = 0
        met: set[int] = set()
        for bound in sorted(flips):
            if bound >= on.size:
                break
            combination ^= flips[bound]
            met.add(combination)
        found.append((on, frozenset(met)))
    return tuple(found)


@lru_cache(maxsize=1 << 12)
def _alone(values: IntervalSet, bit: int, size: int) -> frozenset[int]:
    """Return what :func:`overlaps` finds for the one test of a field."""
    return frozenset({bit} if values.bounds == (0, size) else {0, bit} if values else {0})
