"""Conditions: tests of fields, and their logic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, final

from pvefw_nft.verify.model.fields import CT_MARK, MARK, Field, counter_field, rate_field
from pvefw_nft.verify.model.intervals import IntervalSet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@final
class Test:
    """``field in values``, false where the packet lacks the field. Interned: equal tests are one object."""

    __slots__ = ("__weakref__", "field", "values")
    __test__ = False  # no test class for pytest
    _known: dict[tuple[Field, IntervalSet], Test] = {}  # noqa: RUF012  the registry of all tests

    field: Field
    values: IntervalSet

    def __new__(cls, on: Field, values: IntervalSet) -> Test:
        """Return the one test of this field and set."""
        key = (on, values)
        known = cls._known.get(key)
        if known is None:
            known = object.__new__(cls)
            known.field, known.values = on, values
            cls._known[key] = known
        return known

    def __reduce__(self) -> tuple[type[Test], tuple[Field, IntervalSet]]:
        return Test, (self.field, self.values)

    def __repr__(self) -> str:
        return f"{self.field} in {self.values!r}"


@dataclass(frozen=True, slots=True)
class All:
    """All of them hold; of none: true."""

    of: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Any:
    """At least one of them holds; of none: false."""

    of: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The condition does not hold (true also where it is false for want of a field)."""

    of: Condition


Condition: TypeAlias = Test | All | Any | Not
TRUE = All(())
FALSE = Any(())


HAS_CONNECTION = Test(CT_MARK[0], IntervalSet.of((0, 1)))
"""The packet has a connection, and so a mark of it."""


def equals(on: Field, value: int) -> Test:
    """Return the test that a field has this value."""
    return Test(on, IntervalSet.single(value))


def within(on: Field, *ranges: tuple[int, int]) -> Test:
    """Return the test that a field lies in one of these ranges (first and last value)."""
    return Test(on, IntervalSet.of(*ranges))


def negate(condition: Condition) -> Condition:
    """Return the inverted match: of a test, the test of the complement; of anything else, its Boolean not."""
    if isinstance(condition, Test):
        return Test(condition.field, condition.values.complement(condition.field.size))
    if isinstance(condition, Not):
        return condition.of
    if condition == TRUE:
        return FALSE
    return TRUE if condition == FALSE else Not(condition)


def mark_condition(bits: tuple[Field, ...], mask: int, value: int) -> Condition:
    """Return ``mark & mask == value`` for :data:`MARK` or :data:`CT_MARK`: a test of each bit in the mask."""
    if value & ~mask:
        return FALSE
    tests = tuple(equals(bits[n], value >> n & 1) for n in range(32) if mask >> n & 1)
    return tests[0] if len(tests) == 1 else All(tests)


def mark_test(bits: tuple[Field, ...], mask: int, value: int, *, inverted: bool = False) -> Condition:
    """Return ``mark & mask == value``, or that it is not; a connection's mark matches neither where there is none.

    Sources: connmark_mt (net/netfilter/xt_connmark.c), nft_ct_get_eval (net/netfilter/nft_ct.c).
    """
    condition = mark_condition(bits, mask, value)
    if bits is MARK:
        return negate(condition) if inverted else condition
    if not inverted:
        return All((HAS_CONNECTION,)) if condition == TRUE else condition
    return All((HAS_CONNECTION, negate(condition)))


def holds(condition: Condition, packet: Mapping[Field, int]) -> bool:
    """Return whether a condition holds for a packet. This defines the meaning of conditions."""
    if isinstance(condition, Test):
        value = packet.get(condition.field)
        return value is not None and value in condition.values
    if isinstance(condition, All):
        return all(holds(part, packet) for part in condition.of)
    if isinstance(condition, Any):
        return any(holds(part, packet) for part in condition.of)
    return not holds(condition.of, packet)


def tests_of(condition: Condition) -> Iterator[Test]:
    """Yield the tests a condition is made of."""
    if isinstance(condition, Test):
        yield condition
    elif isinstance(condition, Not):
        yield from tests_of(condition.of)
    else:
        for part in condition.of:
            yield from tests_of(part)


def rate_test(description: str, *, over: bool, counter: str | None = None) -> Test:
    """Return the test that a packet exceeds a rate, or is within it; rules with the same ``counter`` share it."""
    on = rate_field(description)
    return equals(on if counter is None else counter_field(on, counter), int(over))
