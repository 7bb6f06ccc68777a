"""The paths of packets through one ruleset, for questions that need no second one.

:mod:`.dead_rules` and :mod:`.reach` use it. :mod:`.compare` explores two rulesets at once, whose hops may differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING

from pvefw_nft.errors import UsageError
from pvefw_nft.verify import model as m
from pvefw_nft.verify.network.path import HostEnd, NicEnd, PortEnd, find_stages
from pvefw_nft.verify.prove.counters import Counters
from pvefw_nft.verify.prove.flows import Flows, Tested, bridge_of, shared_counters
from pvefw_nft.verify.prove.network import make_network
from pvefw_nft.verify.prove.specialise import Residuals
from pvefw_nft.verify.prove.transition import without_transition

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pvefw_nft.verify.network.path import End, Nic, Stage
    from pvefw_nft.verify.prove.budget import Budget
    from pvefw_nft.verify.prove.flows import Side
    from pvefw_nft.verify.prove.program import Case
    from pvefw_nft.verify.simulate.tracking import Track


@dataclass(frozen=True, slots=True)
class Route:
    """The hooks on the way from one end to another, in order. ``back``: those of the way back, if rules set zones."""

    source: End
    destination: End
    stages: tuple[Stage, ...]
    back: tuple[Stage, ...] = ()

    @property
    def routed(self) -> bool:
        """Whether only IP packets can take this way: it leaves the bridge that it starts on."""
        return bridge_of(self.source) is None or bridge_of(self.source) != bridge_of(self.destination)


class Exploration:
    """The ends, routes, kinds of frames and specialised chains of one ruleset.

    ``strict``: rules that only log, or only set a mark, have an effect.
    """

    def __init__(self, side: Side, budget: Budget, *, strict: bool) -> None:
        """Raises HostError if the ruleset cannot be evaluated."""
        side, _ = without_transition(side)
        tested = Tested.of(side.model)
        marks = frozenset((*m.MARK, *m.CT_MARK) if strict else tested.marks)
        network = make_network(side, side)
        self.budget = budget
        self.cases = tested.cases()
        self.residuals = Residuals(marks, strict=strict, exempts=tested.exempts, later=tested.later)
        self.flows = Flows(side, self.residuals, Counters(shared_counters(side.model, side.model)))
        self._topology = network.before
        self._ends = network.ends
        self._sets_zones = tested.zones

    @property
    def general_ends(self) -> tuple[End, ...]:
        """The ends that are no NIC of a guest."""
        return tuple(self._ends.general)

    def routes(self) -> Iterator[Route]:
        """Yield the routes between all ends that are no NIC of a guest, and from the host to itself."""
        general = self.general_ends
        for source, destination in [(s, d) for s in general for d in general if s != d] + [(HostEnd(), HostEnd())]:
            route = self.route(source, destination)
            if route is not None:
                yield route

    def nic_routes(self) -> Iterator[tuple[Route | None, Route | None]]:
        """Yield for each NIC the routes to and from a peer on its bridge: a port to the outside, or else the host."""
        for nic in self._ends.nics:
            end, peer = NicEnd(nic), self._peer(nic)
            yield self.route(end, peer), self.route(peer, end)

    def route(self, source: End, destination: End) -> Route | None:
        """Return the route between two ends; None if there is none, as between two VLANs of a bridge."""
        try:
            stages = find_stages(self._topology, source, destination)
            back = find_stages(self._topology, destination, source) if self._sets_zones else ()
        except UsageError:
            return None
        return Route(source, destination, tuple(stages), tuple(back))

    def segments(self, route: Route, case: Case) -> Iterator[tuple[tuple[Stage, ...], Track]]:
        """Yield the hops of a route: the stages of each, and their part in connection tracking."""
        tracked = iter(self.track(route, case))
        for _, hop in groupby(route.stages, key=lambda stage: stage.hop):
            stages = tuple(hop)
            yield stages, tuple(islice(tracked, len(stages)))

    def track(self, route: Route, case: Case) -> Track:
        """Return the part of each stage of a route in connection tracking."""
        return self.flows.track(route.stages, route.back, case)

    def _peer(self, nic: Nic) -> End:
        ports = (end for end in self._ends.general if isinstance(end, PortEnd) and end.bridge == nic.bridge)
        return next(ports, HostEnd())
