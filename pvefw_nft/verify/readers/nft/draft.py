"""One nft rule as far as it is read, and the sets and maps of its table that it may refer to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pvefw_nft.verify.model import PROTOCOL, Condition, Effect, Family, Field, Guard, Test, Verdict
from pvefw_nft.verify.readers.nft.values import Selector, selector

if TYPE_CHECKING:
    from pvefw_nft.verify.model.intervals import IntervalSet
    from pvefw_nft.verify.readers.nft.values import Json
    from pvefw_nft.verify.readers.shared import Reading


@dataclass(slots=True)
class NftTable:
    """The objects of a table that rules refer to by name: the members of sets and maps, and the types of helpers.

    ``counting`` are references of sets that rules fill with rates. Their members are unknown.
    """

    family: Family
    name: str
    elements: dict[str, list[Json]] = field(default_factory=dict)
    helpers: dict[str, str] = field(default_factory=dict)
    values: dict[tuple[str, Field], IntervalSet] = field(default_factory=dict)
    counting: set[str] = field(default_factory=set)
    timeouts: dict[str, str] = field(default_factory=dict)
    lookups: set[str] = field(default_factory=set)

    def set_name(self, reference: str) -> str:
        """Return the name of a set by its reference, unique among all tables."""
        return f"nft {self.family.value} {self.name} {reference[1:]}"

    def members(self, reference: str) -> list[Json]:
        """Return the elements of a set or map by its reference, ``@name``; raises ValueError."""
        self.lookups.add(self.set_name(reference))
        known = self.elements.get(reference[1:])
        if known is None:
            raise ValueError(f"there is no set or map '{reference[1:]}'")
        return known


class RuleDraft:
    """A rule as far as its statements have been read. ``where`` names it in messages."""

    __slots__ = ("conditions", "effects", "reading", "table", "verdict", "where")

    def __init__(self, table: NftTable, reading: Reading, where: str) -> None:
        self.table = table
        self.reading = reading
        self.where = where
        self.conditions: list[Condition] = []
        self.effects: list[Effect] = []
        self.verdict: Verdict | None = None

    def require(self, condition: Condition) -> None:
        """Add a condition that the rest of the rule depends on."""
        if self.effects:
            # statements run in order: those before this condition take effect even if it does not hold
            self.effects.append(Guard(condition))
        elif condition not in self.conditions:
            self.conditions.append(condition)

    def selector(self, expression: Json) -> Selector:
        """Return the field of an expression, after requiring the conditions that it depends on."""
        on = selector(expression, self.table.family)
        self.depend(self.needs(on))
        return on

    def needs(self, on: Selector) -> tuple[Test, ...]:
        """Return the tests that a field depends on."""
        if self.table.family in (Family.IP, Family.IP6, Family.ARP):
            # hooks of these families see packets of one network protocol only
            return tuple(test for test in on.depends if test.field is not PROTOCOL)
        return on.depends

    def depend(self, tests: tuple[Test, ...]) -> None:
        """Require the conditions that a field depends on."""
        for test in tests:
            if not self.has(test):
                self.require(test)

    def has(self, test: Test) -> bool:
        """Return whether the rule already has a condition as strict as this test."""
        for condition in self.conditions:
            if condition is test:
                return True
            if isinstance(condition, Test) and condition.field is test.field:
                both = condition.values & test.values
                if both is condition.values:
                    return True
        return False
