"""Whether some packet from outside reaches the host at all: the question of an administrator who may be locked out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.verify import model as m
from pvefw_nft.verify.network.path import HostEnd, PortEnd, RoutedEnd
from pvefw_nft.verify.prove.compare import Comparison, Options, without_gc
from pvefw_nft.verify.prove.evaluate import Evaluation
from pvefw_nft.verify.prove.program import Outcome, rank

if TYPE_CHECKING:
    from pvefw_nft.verify.model.intervals import IntervalSet
    from pvefw_nft.verify.prove.flows import PathPair, Side
    from pvefw_nft.verify.prove.program import Case

TCP = 6


def host_is_reachable(side: Side, ports: IntervalSet) -> bool:
    """Return whether the host accepts a new TCP connection to one of ``ports`` from anywhere outside.

    Raises BudgetExceededError where that takes more than a comparison may.
    """
    with without_gc():
        comparison = Comparison(side, side, Options(), None)
        for source in comparison.ends.general:
            way = comparison.way(source, HostEnd()) if isinstance(source, (PortEnd, RoutedEnd)) else None
            if way is None:
                continue
            for case in comparison.cases:
                if case.is_ip and not case.tagged and _is_accepted(comparison, way, case, ports):
                    return True
    return False


def _is_accepted(comparison: Comparison, way: PathPair, case: Case, ports: IntervalSet) -> bool:
    flows = comparison.flows_before
    flow = flows.flow(way.before, case, flows.track(way.before, way.back_before, case))
    tests = sorted(
        (
            m.equals(m.L4PROTO, TCP),
            m.Test(m.DPORT, ports),
            m.equals(m.CT_STATE, m.CT_STATES.index("new")),
        ),
        key=lambda test: rank(test.field),
    )
    evaluation = Evaluation([flow], lambda _fields: tests, comparison.budget)
    space = evaluation.space
    node = space.rule(evaluation.cube(tuple(tests)), evaluation.flow(flow), evaluation.false)
    verdicts = (space.values[number] for number in space.terminals(node))
    return any(isinstance(verdict, Outcome) and verdict.verdict == "accept" for verdict in verdicts)
