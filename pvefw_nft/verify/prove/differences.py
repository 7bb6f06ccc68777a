"""Explain how two rulesets differ: follow the segments that differ on whole ways, into classes of packets.

Example: a firewall bridge drops port 22 with one ruleset alone. On the way from outside to that guest, packets to port
22 are accepted before and dropped after, unless another hook drops them anyway: then nothing is reported.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pvefw_nft.errors import InternalError
from pvefw_nft.verify import model as m
from pvefw_nft.verify.model.text import packet_text
from pvefw_nft.verify.network.path import HostEnd, NicEnd, Path, PortEnd, RoutedEnd
from pvefw_nft.verify.prove.budget import BudgetExceededError
from pvefw_nft.verify.prove.cause import find_cause
from pvefw_nft.verify.prove.counterexamples import Class, Explainer
from pvefw_nft.verify.prove.evaluate import Evaluation, Flow
from pvefw_nft.verify.prove.flows import bridge_of
from pvefw_nft.verify.prove.pairs import Result
from pvefw_nft.verify.prove.place import Place, place_of
from pvefw_nft.verify.prove.program import TOGETHER
from pvefw_nft.verify.prove.replay import zone_text
from pvefw_nft.verify.prove.report import ANYWHERE, Counterexample, Difference
from pvefw_nft.verify.prove.segments import Occurrence
from pvefw_nft.verify.simulate.packet import Probe
from pvefw_nft.verify.simulate.walk import simulate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pvefw_nft.verify.network.path import End, Nic
    from pvefw_nft.verify.prove.expected_differences import Known
    from pvefw_nft.verify.prove.exploration import Exploration
    from pvefw_nft.verify.prove.flows import PathPair
    from pvefw_nft.verify.prove.pairs import PairProver
    from pvefw_nft.verify.prove.program import Case, Outcome
    from pvefw_nft.verify.prove.segments import SegmentProver
    from pvefw_nft.verify.simulate.walk import Outcome as Simulated

MAX_PAIRS = 2000
"""Ways between guests looked at one by one, where their segments differ in marks alone."""


class Differences:
    """The differences of two rulesets whose segments were proved. ``known`` are differences to expect.

    ``omitted`` is the number of classes beyond those that are listed, ``undecided`` are reasons why some ways were not
    looked at.
    """

    def __init__(
        self, explored: Exploration, pairs: PairProver, segments: SegmentProver, known: Sequence[Known]
    ) -> None:
        self.explored = explored
        self.pairs = pairs
        self.segments = segments
        self.known = known
        self.omitted = 0
        self.undecided: list[str] = []
        self._merged: dict[tuple[object, ...], Difference] = {}

    def find(self) -> tuple[Difference, ...]:
        """Follow each trouble end to end; return the differences."""
        self.explain()
        return merge(self._merged.values())

    def explain(self) -> None:
        """Follow each trouble end to end."""
        marks_matter: bool | None = None
        unexplained: dict[Nic, None] = {}
        looked_at: dict[tuple[PathPair, Case], list[Difference]] = {}
        for (trouble, _), places in self.segments.found.troubles.items():
            if trouble.result is Result.MARKS:
                if marks_matter is None:
                    marks_matter = self.segments.marks_matter
                if not marks_matter:
                    continue
            for place in sorted(places, key=lambda place: place.sort_key):
                key = (place.way, place.case)
                if key not in looked_at:
                    looked_at[key] = self.differences(place.way, place.case)
                if looked_at[key] and trouble.result is Result.DIFFERENT:
                    # one way explains the trouble: its other places get the same explanation
                    self.add(place, places, looked_at[key])
                    break
                if looked_at[key]:  # what a mark does shows on this way and need not on others
                    self.add(place, [place._replace(first=True, last=True)], looked_at[key])
            else:
                # it shows on no way from or to the outside: perhaps on one between guests
                ends = [end for place in places for end in (place.way.source, place.way.destination)]
                unexplained |= {end.nic: None for end in ends if isinstance(end, NicEnd)}
        self.between_guests(list(unexplained), looked_at)

    def between_guests(self, nics: Sequence[Nic], looked_at: Mapping[tuple[PathPair, Case], object]) -> None:
        """Look at the ways between guests whose own segments differ, though not seen from outside or host."""
        pairs = [(a, b) for a in nics for b in self.explored.ends.nics if a is not b]
        if len(pairs) > MAX_PAIRS:
            self.undecided.append(
                f"{len(pairs) - MAX_PAIRS} of {len(pairs)} pairs of guests whose marks may differ were not compared"
            )
        for source, destination in pairs[:MAX_PAIRS]:
            way = self.explored.way(NicEnd(source), NicEnd(destination))
            for case in self.explored.cases:
                if way is not None and (way, case) not in looked_at and not (way.routed and not case.is_ip):
                    place = Occurrence(way, case, first=True, last=True)
                    self.add(place, [place], self.differences(way, case))

    def differences(self, way: PathPair, case: Case) -> list[Difference]:
        """Return how the sides differ on a whole way."""
        tracked = self.explored.track(way, case)
        if self.explored.tested.zones:
            self.segments.found.zones.add(way, tracked)
        before, after, case = self.explored.flows((way.before, way.after), case, tracked)
        if before == after:
            return []
        try:
            self.explored.budget.check_time()
            return self.explained(before, after, way, case)
        except BudgetExceededError as error:
            self.segments.unfinished.add(str(error), way, case)
            return []

    def explained(self, before: Flow, after: Flow, way: PathPair, case: Case) -> list[Difference]:
        """Return how two flows of a way differ. Raises BudgetExceededError."""
        result = []
        explainer = self.explainer(before, after, way, case)
        for known in self.known:
            if not known.concerns(way, case):
                continue
            condition = known.condition(case)
            everything = explainer.differing
            if explainer.where(condition, holds=True):
                result += [self.difference(one, way, case, known.reason) for one in explainer.classes()[:1]]
            explainer.differing = everything
            explainer.where(condition, holds=False)
        result += [self.difference(one, way, case, None) for one in explainer.classes()]
        self.omitted += explainer.omitted
        return result

    def explainer(self, before: Flow, after: Flow, way: PathPair, case: Case) -> Explainer:
        """Evaluate two flows so that their difference can be explained."""
        known = [t for one in self.known for t in m.tests_of(one.condition(case))]

        def more(fields: set[m.Field]) -> Iterator[m.Test]:
            yield from known
            yield from self.pairs.tests(case, fields | {test.field for test in known}, usual=True)

        evaluation = Evaluation([before, after], more, self.explored.budget)
        nodes = [evaluation.flow(flow) for flow in (before, after)]
        # what the host itself sends may have a mark already, but no rule has touched its tracking
        marks = self.pairs.packet_marks if not isinstance(way.source, HostEnd) else self.pairs.untouched
        if marks:
            nodes = [evaluation.assign(node, marks) for node in nodes]
        if not self.pairs.strict:
            nodes = [evaluation.strip(node) for node in nodes]
        from_host = isinstance(way.source, HostEnd)
        return Explainer(evaluation, nodes[0], nodes[1], case, self.pairs.exceptions, from_host=from_host)

    def difference(self, one: Class, way: PathPair, case: Case, known: str | None) -> Difference:
        """Make a class of packets a difference, with the rules that decide about its packet."""
        other = self.explored.network.counterparts
        source, destination = (other.get(end, end) for end in (way.source, way.destination))
        paths = [
            Path(way.source, way.destination, way.before, way.back_before),
            Path(source, destination, way.after, way.back_after),
        ]
        zones = [
            (zone_text(side.topology, path.source), zone_text(side.topology, path.destination))
            for side, path in zip((self.explored.before, self.explored.after), paths, strict=True)
        ]
        runs = self.simulated(one, (paths[0], paths[1]))
        return Difference(
            (str(way.source),),
            (str(way.destination),),
            (case.protocol,),
            case.tagged,
            one.usual,
            one.fields,
            verdict_text(one.before),
            verdict_text(one.after),
            deciding(runs[0]),
            deciding(runs[1]),
            Counterexample(paths[0], paths[1], one.packet, (zones[0], zones[1])),
            find_cause(runs[0], runs[1], (self.explored.before.model, self.explored.after.model)),
            known,
        )

    def simulated(self, one: Class, paths: tuple[Path, Path]) -> list[Simulated]:
        """Return what the simulator says of a class's packet on both sides.

        Raises InternalError if the proof said something else.
        """
        runs = []
        explored = self.explored
        for side, made, path, outcome in zip(
            (explored.before, explored.after),
            (explored.flows_before, explored.flows_after),
            paths,
            (one.before, one.after),
            strict=True,
        ):
            rates = {counter: one.packet.get(name, 0) for counter, name in made.counters.items()}
            run = simulate(side.model, Probe({**one.packet, **rates}, path))
            verdict = f"reject {run.kind}" if run.verdict == "REJECT" else run.verdict.lower()
            if run.put_together:
                verdict = TOGETHER.verdict
            if verdict != outcome.verdict and not outcome.verdict.startswith("unknown"):
                raise InternalError(
                    f"the proof says {outcome.verdict} where the simulator says {verdict}, from {path.source}"
                    f" to {path.destination}: {packet_text(one.packet)}",
                    hint="please report this, with both rulesets",
                )
            runs.append(run)
        return runs

    def add(self, place: Occurrence, places: list[Occurrence], differences: Iterable[Difference]) -> None:
        """Take differences into the report. They hold for every way through the troubled segment."""
        sources = self.zones([p.way.source for p in places], own=any(p.first for p in places))
        destinations = self.zones([p.way.destination for p in places], own=any(p.last for p in places))
        others = {p.case.protocol for p in places if not p.case.is_ip and p.case.tagged == place.case.tagged}
        for difference in differences:
            protocols = difference.protocols if place.case.is_ip else tuple(sorted(others))
            one = replace(difference, sources=sources, destinations=destinations, protocols=protocols)
            key = (
                one.fields, one.before, one.after, one.usual, one.known, protocols, sources, destinations,
            )  # fmt: skip
            self._merged.setdefault(key, one)

    def zones(self, ends: list[End], *, own: bool) -> tuple[str, ...]:
        """Return the zones of ends that packets differ from or to; ``own``: nothing but them matters there."""
        distinct = dict.fromkeys(ends)
        bridges = {bridge_of(end) for end in distinct}
        if not own or len(distinct) >= len(self.explored.ends.general) - 1 > 1:
            return (ANYWHERE,)
        if len(distinct) > 4:
            bridge = bridges.pop()
            return (ANYWHERE,) if bridges or bridge is None else (bridge,)
        return tuple(dict.fromkeys(self.zone(end) for end in distinct))

    def zone(self, end: End) -> str:
        """Return the name of an end for people: a guest with one NIC by its own name."""
        match end:
            case NicEnd(nic):
                alone = sum(other.zone == nic.zone for other in self.explored.network.before.nics) == 1
                return nic.zone if alone else nic.name
            case PortEnd():
                outside = [e for e in self.explored.ends.general if isinstance(e, (PortEnd, RoutedEnd))]
                return "outside" if sum(isinstance(e, PortEnd) for e in outside) == 1 else str(end)
            case HostEnd() | RoutedEnd():
                return str(end)


def deciding(run: Simulated) -> tuple[Place, ...]:
    """Return the rule that decides about a simulated packet, or the policy; nothing if none does."""
    step = run.decider
    if step is not None:
        return (place_of(step),)
    if run.verdict == "ACCEPT":
        return ()
    walk = run.deciding[-1][1]
    return (Place(str(walk.table.key), walk.chain.name, 0, f"policy {run.verdict.lower()}"),)


def merge(differences: Iterable[Difference]) -> tuple[Difference, ...]:
    """Make one of differences that say the same of several sources, destinations or protocols."""
    merged = list(differences)
    for part in ("sources", "destinations", "protocols"):
        groups: dict[tuple[object, ...], Difference] = {}
        for one in merged:
            key = (
                () if part == "sources" else one.sources,
                () if part == "destinations" else one.destinations,
                () if part == "protocols" else one.protocols,
                one.fields, one.before, one.after, one.usual, one.known,
            )  # fmt: skip
            groups[key] = _joined(groups[key], one) if key in groups else one
        merged = list(groups.values())
    return tuple(merged)


def _joined(one: Difference, other: Difference) -> Difference:
    return replace(
        one,
        sources=tuple(dict.fromkeys((*one.sources, *other.sources))),
        destinations=tuple(dict.fromkeys((*one.destinations, *other.destinations))),
        protocols=tuple(dict.fromkeys((*one.protocols, *other.protocols))),
        tagged=one.tagged and other.tagged,
    )


def verdict_text(outcome: Outcome) -> str:
    """Return a verdict with its other effects: ``accept (queue bypass)``."""
    extra = [*outcome.trace]
    marks = [(name, value) for name, value in outcome.assigned if name.startswith(("mark", "ct mark"))]
    for prefix in ("mark bit ", "ct mark bit "):
        bits = [(int(name[len(prefix) :]), value) for name, value in marks if name.startswith(prefix)]
        if bits:
            number = sum(value << bit for bit, value in bits)
            extra.append(f"{prefix.removesuffix(' bit ')} {number:#x}")
    return f"{outcome.verdict} ({', '.join(extra)})" if extra else outcome.verdict
