"""Tell whether a configuration locks its administrator out: no packet from outside reaches the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.verify import model as m
from pvefw_nft.verify.network.path import HostEnd, PortEnd, RoutedEnd
from pvefw_nft.verify.prove.budget import MAX_MEMORY, MAX_SECONDS, Budget, without_gc
from pvefw_nft.verify.prove.evaluate import Evaluation
from pvefw_nft.verify.prove.exploration import Exploration
from pvefw_nft.verify.prove.program import Outcome, rank

if TYPE_CHECKING:
    from pvefw_nft.verify.model.intervals import IntervalSet
    from pvefw_nft.verify.prove.exploration import Facts
    from pvefw_nft.verify.prove.flows import PathPair
    from pvefw_nft.verify.prove.network import Side
    from pvefw_nft.verify.prove.program import Case

TCP = 6


def host_is_reachable(side: Side, ports: IntervalSet, facts: Facts | None = None) -> bool:
    """Tell whether the host accepts a new TCP connection to one of ``ports`` from any address outside.

    ``facts`` are those of explorations of the side, if they are known. Raises BudgetExceededError if that takes more
    memory or time than a comparison may.
    """
    with without_gc():
        budget = Budget.starting_now(MAX_MEMORY, MAX_SECONDS)
        explored = Exploration.of_one(side, budget, strict=False, facts=facts)
        for source in explored.ends.general:
            way = explored.way(source, HostEnd()) if isinstance(source, (PortEnd, RoutedEnd)) else None
            if way is None:
                continue
            for case in explored.cases:
                if case.is_ip and not case.tagged and _is_accepted(explored, way, case, ports):
                    return True
    return False


def _is_accepted(explored: Exploration, way: PathPair, case: Case, ports: IntervalSet) -> bool:
    """Tell whether some new TCP connection to one of ``ports`` is accepted at all hooks of a way."""
    tracked, _ = explored.track(way, case)
    flow = explored.flows_before.flow(way.before, case, tracked)
    tests = sorted(
        (
            m.equals(m.L4PROTO, TCP),
            m.Test(m.DPORT, ports),
            m.equals(m.CT_STATE, m.CT_STATES.index("new")),
        ),
        key=lambda test: rank(test.field),
    )
    evaluation = Evaluation([flow], lambda _fields: tests, explored.budget)
    space = evaluation.space
    node = space.rule(evaluation.cube(tuple(tests)), evaluation.flow(flow), evaluation.false)
    verdicts = (space.values[number] for number in space.terminals(node))
    return any(isinstance(verdict, Outcome) and verdict.verdict == "accept" for verdict in verdicts)
