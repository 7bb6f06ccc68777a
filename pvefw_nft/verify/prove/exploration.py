"""The paths of packets through two rulesets, and the chains that packets meet on them.

The proof (:mod:`.segments`) and the explanation of differences (:mod:`.differences`) explore two rulesets, whose hops
may differ. Questions about one ruleset (:mod:`.dead_rules`, :mod:`.reach`) explore a pair of it with itself.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from pvefw_nft.errors import UsageError
from pvefw_nft.verify import model as m
from pvefw_nft.verify.network.path import HostEnd, NicEnd, PortEnd
from pvefw_nft.verify.prove.counters import Counters
from pvefw_nft.verify.prove.flows import Flows, Segment, Tested, find_both_ways, find_way, shared_counters
from pvefw_nft.verify.prove.network import make_network
from pvefw_nft.verify.prove.specialise import Residuals
from pvefw_nft.verify.prove.transition import without_transition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pvefw_nft.verify.network.path import End, Nic, Stage
    from pvefw_nft.verify.prove.budget import Budget
    from pvefw_nft.verify.prove.evaluate import Flow
    from pvefw_nft.verify.prove.flows import PathPair
    from pvefw_nft.verify.prove.network import Network, Side
    from pvefw_nft.verify.prove.program import Case
    from pvefw_nft.verify.simulate.tracking import Track


class Facts(NamedTuple):
    """The values that rulesets test, and the networks to walk: all explorations of the same rulesets share them."""

    tested: Tested
    network: Network

    @classmethod
    def of(cls, before: Side, after: Side) -> Facts:
        """Collect them."""
        return cls(Tested.of(before.model, after.model), make_network(before, after))

    @classmethod
    def of_one(cls, side: Side) -> Facts:
        """Collect those of explorations of one ruleset."""
        side, _ = without_transition(side)
        return cls.of(side, side)


class Exploration:
    """The ends, ways, kinds of frames and specialised chains of two rulesets, which may be one and the same.

    ``strict``: rules that only log, or only set a mark, have an effect. ``kind``: see
    :class:`~pvefw_nft.verify.prove.specialise.Residuals`.
    """

    def __init__(
        self,
        before: Side,
        after: Side,
        budget: Budget,
        *,
        strict: bool,
        kind: Callable[[m.Test, int], m.Condition] | None = None,
        facts: Facts | None = None,
    ) -> None:
        """``facts`` are those of these rulesets, if they are known. Raises HostError if one cannot be evaluated."""
        self.before, self.after = before, after
        self.budget = budget
        self.tested, self.network = facts or Facts.of(before, after)
        tested = self.tested
        self.cases = tested.cases()
        self.ends = self.network.ends
        self.marks = frozenset((*m.MARK, *m.CT_MARK) if strict else tested.marks)
        self.residuals = Residuals(self.marks, strict=strict, exempts=tested.exempts, later=tested.later, kind=kind)
        naming = Counters(shared_counters(before.model, after.model))
        self.flows_before = Flows(before, self.residuals, naming)
        self.flows_after = self.flows_before if after is before else Flows(after, self.residuals, naming)

    @classmethod
    def of_one(cls, side: Side, budget: Budget, *, strict: bool, facts: Facts | None = None) -> Exploration:
        """Explore one ruleset; ``facts`` are its, if they are known. Raises HostError if it cannot be evaluated."""
        side, _ = without_transition(side)
        return cls(side, side, budget, strict=strict, facts=facts)

    # --- ways ---

    def general_pairs(self) -> list[tuple[End, End]]:
        """Return all pairs of ends that are no NIC of a guest, and last the host with itself."""
        general = self.ends.general
        return [*((s, d) for s in general for d in general if s != d), (HostEnd(), HostEnd())]

    def nic_ways(self, nic: Nic) -> tuple[PathPair, PathPair] | None:
        """Return the ways of a NIC to and from its peer; None if there are none."""
        try:
            return find_both_ways(self.network, NicEnd(nic), self.peer(nic), zones=self.tested.zones)
        except UsageError:
            return None

    def peer(self, nic: Nic) -> End:
        """Return a peer on a NIC's bridge: a port to the outside, or else the host."""
        ports = (end for end in self.ends.general if isinstance(end, PortEnd) and end.bridge == nic.bridge)
        return next(ports, HostEnd())

    def way(self, source: End, destination: End) -> PathPair | None:
        """Return the way between two ends; None if there is none, as between two VLANs of a bridge."""
        try:
            return find_way(self.network, source, destination, zones=self.tested.zones)
        except UsageError:
            return None

    # --- rules on a way ---

    def track(self, way: PathPair, case: Case) -> tuple[Track, Track]:
        """Return the part of each stage of a way in connection tracking, on either side."""
        one = self.flows_before.track(way.before, way.back_before, case)
        same = self.flows_after is self.flows_before and way.is_same
        return one, one if same else self.flows_after.track(way.after, way.back_after, case)

    @staticmethod
    def segments(way: PathPair, tracked: tuple[Track, Track]) -> Iterator[tuple[Segment, tuple[Track, Track]]]:
        """Yield the segments of a way (the whole way where the sides' hops differ), with their part in tracking."""
        parts = [iter(side) for side in tracked]
        for segment in way.segments or (Segment("", way.before, way.after),):
            before, after = (
                tuple(islice(side, len(stages)))
                for side, stages in zip(parts, (segment.before, segment.after), strict=True)
            )
            yield segment, (before, after)

    def flows(
        self, stages: tuple[tuple[Stage, ...], tuple[Stage, ...]], case: Case, tracked: tuple[Track, Track]
    ) -> tuple[Flow, Flow, Case]:
        """Return the flows of both sides, and the case: of fragments, where rules of a side look into those."""
        sides = (self.flows_before, self.flows_after)
        for seen in (case, case._replace(fragments=True)):
            before, after = (side.flow(of, seen, parts) for side, of, parts in zip(sides, stages, tracked, strict=True))
            if not any(side.fragments for side in sides):
                break
        return before, after, seen
