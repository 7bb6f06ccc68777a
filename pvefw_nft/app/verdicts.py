"""Verdicts of a ruleset for many packets: equal ones are walked once.

Between two neighbouring bounds of all the sets that a ruleset tests a field against, every value of that field is
treated alike. So the key of a packet is its way and, for each field, the number of such bounds below its value.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from pvefw_nft.verify.model import DADDR4, DADDR6, DPORT, SADDR4, SADDR6, SPORT, Guard, VerdictMap, tests_of
from pvefw_nft.verify.model.shortcuts import Shortcuts
from pvefw_nft.verify.simulate.packet import make_probe
from pvefw_nft.verify.simulate.walk import simulate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pvefw_nft.verify.model import Condition, Field, Rule, RulesetModel
    from pvefw_nft.verify.network.path import Topology
    from pvefw_nft.verify.simulate.spec import PacketSpec
    from pvefw_nft.verify.simulate.walk import Outcome

_ADDRESSES = {4: (SADDR4, DADDR4), 6: (SADDR6, DADDR6)}


class Verdicts:
    """The verdicts of a ruleset on packets of a host with this topology."""

    def __init__(self, model: RulesetModel, topology: Topology) -> None:
        """Find the bounds of all sets that the ruleset tests addresses and ports against."""
        self.model = model
        self.topology = topology
        self._bounds = _bounds_of(model)
        self._known: dict[object, Outcome] = {}
        self._shortcuts = Shortcuts()

    def outcome(self, spec: PacketSpec, source: tuple[int, int], destination: tuple[int, int]) -> Outcome:
        """Return the verdict on the packet ``spec`` between its two addresses (IP version, number).

        The outcome may come from another packet that is treated alike. Raises UsageError if there is no way.
        """
        on_source, on_destination = _ADDRESSES[source[0]]
        key = (
            *(spec.source, spec.destination, spec.protocol, spec.ctstate, spec.tcp_flags, source[0]),
            self._number(on_source, source[1]),
            self._number(on_destination, destination[1]),
            self._number(SPORT, int(spec.sport or 0)),
            self._number(DPORT, int(spec.dport or 0)),
        )
        found = self._known.get(key)
        if found is None:
            probe = make_probe(spec, self.topology)
            found = self._known[key] = simulate(self.model, probe, shortcuts=self._shortcuts)
        return found

    def _number(self, on: Field, value: int) -> int:
        return bisect_right(self._bounds.get(on, ()), value)


def _bounds_of(model: RulesetModel) -> dict[Field, list[int]]:
    fields = {SADDR4, DADDR4, SADDR6, DADDR6, SPORT, DPORT}
    found: dict[Field, set[int]] = {on: set() for on in fields}
    for table in model.tables:
        for chain in table.chains.values():
            for rule in chain.rules:
                for condition in _conditions(rule):
                    for test in tests_of(condition):
                        if test.field in fields:
                            found[test.field].update(test.values.bounds)
    return {on: sorted(bounds) for on, bounds in found.items()}


def _conditions(rule: Rule) -> Iterator[Condition]:
    yield from rule.conditions
    yield from (effect.condition for effect in rule.effects if isinstance(effect, Guard))
    if isinstance(rule.verdict, VerdictMap):
        yield from (condition for condition, _ in rule.verdict.entries)
