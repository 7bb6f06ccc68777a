"""Connection tracking zones in a comparison: possible differences of rulesets with different zones.

A proof gives a packet the state of a lookup that knows every connection, if the packet's own way back leads through the
same zone (:mod:`~pvefw_nft.verify.simulate.tracking`). The remaining case is a packet of a connection that only *other*
paths have made. With one zone for all bridges it is established, with a zone for each it is not. The proof does not
compare such packets, and reports that.

Example: VM 100 opens a connection to the outside; VM 101 forges an answer in it. With one zone for all firewall bridges
the answer is established at VM 101's bridge, too; with a zone for each NIC it belongs to no connection there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pvefw_nft.verify.prove.chain_memo import digest_of
from pvefw_nft.verify.simulate.tracking import undecided_zones

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pvefw_nft.verify import model as m
    from pvefw_nft.verify.network.path import Stage
    from pvefw_nft.verify.prove.flows import PathPair
    from pvefw_nft.verify.prove.network import Side
    from pvefw_nft.verify.simulate.tracking import Tracked, Zone

UNKNOWN = (
    "the zone that connection tracking looks a packet up in depends on more than the packet's way (its addresses, say):"
    " whether its connection is known there is not"
)
FINER = (
    "zones: packets that belong only to a connection which another bridge has seen, such as a forged answer:"
    " {finer} keeps the connections of each zone apart and does not take them for established, {coarser} does"
)
OTHERWISE = (
    "zones: packets that belong only to a connection which another bridge has seen: the rulesets divide"
    " connections into zones differently, and each takes other ones for established"
)


class ZonesMet(NamedTuple):
    """The pairs of zones of both sides' lookups, and whether some lookup's zone is not known."""

    pairs: frozenset[tuple[Zone, Zone]]
    undecided: bool


class Zones:
    """Collects the zones of both sides' lookups, way by way."""

    def __init__(self, names: tuple[str, str], *, same_rules: bool) -> None:
        """``same_rules``: both sides have the same rules about zones."""
        self._names = names
        self.same_rules = same_rules
        self._pairs: set[tuple[Zone, Zone]] = set()
        self.undecided = False

    @classmethod
    def of(cls, before: Side, after: Side) -> Zones:
        """Start with nothing."""
        same = _same_zone_rules(_tables_with_zones(before.model), _tables_with_zones(after.model))
        return cls((before.name, after.name), same_rules=same)

    def fresh(self) -> Zones:
        """Start with nothing, of the same sides."""
        return Zones(self._names, same_rules=self.same_rules)

    def add(self, way: PathPair, tracked: tuple[Sequence[Tracked], Sequence[Tracked]]) -> None:
        """Take up the lookups on a way."""
        if not self.same_rules and any(True for side in tracked for _ in undecided_zones(side)):
            self.undecided = True
        before, after = (_by_hop(stages, side) for stages, side in zip((way.before, way.after), tracked, strict=True))
        self._pairs |= {(zone, after[hop]) for hop, zone in before.items() if hop in after}

    @property
    def met(self) -> ZonesMet:
        """The zones collected so far."""
        return ZonesMet(frozenset(self._pairs), self.undecided)

    def merge(self, met: ZonesMet) -> None:
        """Take up what another process collected."""
        self._pairs |= met.pairs
        self.undecided = self.undecided or met.undecided

    def difference(self) -> str | None:
        """Return which packets are not compared since the sides' zones differ; None: they do not."""
        befores = len({before for before, _ in self._pairs})
        afters = len({after for _, after in self._pairs})
        if befores == afters == len(self._pairs):
            return None
        if afters == len(self._pairs):
            return FINER.format(finer=self._names[1], coarser=self._names[0])
        if befores == len(self._pairs):
            return FINER.format(finer=self._names[0], coarser=self._names[1])
        return OTHERWISE


def _by_hop(stages: Sequence[Stage], tracked: Sequence[Tracked]) -> dict[str, Zone]:
    """Return the zone of each hop's lookup, where the way alone decides about it."""
    return {
        stage.hop: next(iter(part.zones))
        for stage, part in zip(stages, tracked, strict=True)
        if part.zones is not None and len(part.zones) == 1
    }


def _tables_with_zones(model: m.RulesetModel) -> list[m.Table]:
    return [table for table in model.tables if any(chain.sets_zone() for chain in table.chains.values())]


def _same_zone_rules(before: Sequence[m.Table], after: Sequence[m.Table]) -> bool:
    """Whether tables with rules about zones are the same, chain by chain."""
    tables = list(zip(before, after, strict=False))
    if len(before) != len(after) or any(
        one.key != two.key or list(one.chains) != list(two.chains) for one, two in tables
    ):
        return False
    return all(_same(chain, two.chains[name]) for one, two in tables for name, chain in one.chains.items())


def _same(one: m.Chain, two: m.Chain) -> bool:
    """Whether two chains have the same rules; those of equal digests have."""
    if one is two:
        return True
    if (one.hook, one.policy) != (two.hook, two.policy):
        return False
    digests = digest_of(one), digest_of(two)
    if digests[0] is not None and digests[0] == digests[1]:
        return True
    return [_meaning(rule) for rule in one.rules] == [_meaning(rule) for rule in two.rules]


def _meaning(rule: m.Rule) -> tuple[object, ...]:
    return rule.conditions, rule.effects, rule.verdict
