"""Proves two rulesets equal, or finds the packets that they treat differently.

The claim: on every way through the host (between outside, host, guests and other interfaces), the hooks have the same
effect, end to end, on every packet in every kind of frame on both sides. The ways come from
:class:`~pvefw_nft.verify.prove.exploration.Exploration`; :mod:`.segments` proves the proof's parts, by :mod:`.pairs`,
and :mod:`.differences` explains what differs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pvefw_nft.verify.prove.backend_differences import kind_condition
from pvefw_nft.verify.prove.budget import Budget, without_gc
from pvefw_nft.verify.prove.differences import Differences
from pvefw_nft.verify.prove.exploration import Exploration
from pvefw_nft.verify.prove.hardening import compared
from pvefw_nft.verify.prove.network import unplaced_text
from pvefw_nft.verify.prove.options import Options
from pvefw_nft.verify.prove.pairs import PairProver
from pvefw_nft.verify.prove.report import Counts, Report
from pvefw_nft.verify.prove.segments import SegmentProver
from pvefw_nft.verify.prove.transition import without_transition
from pvefw_nft.verify.prove.zones import UNKNOWN as UNKNOWN_ZONES
from pvefw_nft.verify.prove.zones import Zones

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pvefw_nft.verify.prove.network import Side

__all__ = ["Comparison", "Options", "compare"]


def compare(
    before: Side, after: Side, options: Options | None = None, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Return how the rulesets of two sides differ. ``progress`` is called with the work done, and all of it.

    Raises HostError if a ruleset cannot be evaluated.
    """
    with without_gc():
        return Comparison(before, after, options or Options()).report(progress or (lambda _done, _all: None))


class Comparison:
    """One comparison; see :func:`compare`."""

    def __init__(self, before: Side, after: Side, options: Options) -> None:
        self.options = options
        for side in (before, after):
            options.memo.adopt(side.model)
        budget = Budget.starting_now(options.max_memory, options.max_seconds)
        (before, of_before), (after, of_after) = without_transition(before), without_transition(after)
        before, after, exceptions = compared(before, after, options.memo)
        self.exceptions = replace(exceptions, texts=(*exceptions.texts, *of_before, *of_after))
        kind = kind_condition if exceptions.across else None
        self.explored = Exploration(before, after, budget, strict=options.strict, kind=kind)
        self.zones = Zones.of(before, after)
        self.pairs = PairProver(self.explored, self.exceptions, strict=options.strict)
        self.segments = SegmentProver(self.explored, self.pairs, self.zones, options)

    def report(self, progress: Callable[[int, int], None]) -> Report:
        """Carry the comparison out."""
        explored = self.explored
        self.segments.prove_ways(progress)
        kept = len(self.segments.kept)
        found = Differences(explored, self.pairs, self.segments, self.options.known)
        differences = found.find()
        models = explored.before.model, explored.after.model
        pairs = len(self.pairs.results) + self.segments.pairs_elsewhere
        return Report(
            explored.before.name,
            explored.after.name,
            self.options.strict,
            differences,
            tuple(dict.fromkeys((*models[0].assumptions, *models[1].assumptions))),
            found.omitted,
            Counts(self.segments.ways, len(explored.cases), pairs, self.pairs.diagrams, kept),
            models,
            explored.tested.protocols(),
            self.left_out(),
            (*found.undecided, *self.undecided(), *self.segments.unfinished.texts()),
            explored.network.host_differences,
            untagged_only=self.exceptions.untagged_only,
        )

    def undecided(self) -> Iterator[str]:
        """Yield what was not compared because the rulesets say too little."""
        if self.explored.network.unplaced:
            yield unplaced_text(self.explored.network.unplaced)
        if self.zones.undecided:
            yield UNKNOWN_ZONES

    def left_out(self) -> tuple[str, ...]:
        """Return which packets were not compared, a line each."""
        zones = self.zones.difference()
        return self.exceptions.texts if zones is None else (*self.exceptions.texts, zones)
