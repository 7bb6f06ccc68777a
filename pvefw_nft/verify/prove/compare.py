"""Proves two rulesets equal, or finds the packets that they treat differently.

The claim: for every way through the host (between outside, host, guests and other interfaces), every kind of
frame and every packet, what the hooks on the way do to it, end to end, is the same on both sides. The proof is made by
segments (one bridge crossed, or the host's own stack), most of which many ways share: where every segment
treats every packet alike, with any mark, so does every way made of them. Only ways with a segment that
differs are looked at as a whole.
"""

from __future__ import annotations

import gc
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from pvefw_nft.errors import InternalError, UsageError
from pvefw_nft.verify import model as m
from pvefw_nft.verify.model.text import packet_text, value_text
from pvefw_nft.verify.network.path import HostEnd, NicEnd, Path, PortEnd, RoutedEnd
from pvefw_nft.verify.prove import processes
from pvefw_nft.verify.prove.backend_differences import kind_condition
from pvefw_nft.verify.prove.budget import MAX_MEMORY, MAX_SECONDS, Budget, BudgetExceededError
from pvefw_nft.verify.prove.cause import find_cause, place_of
from pvefw_nft.verify.prove.counterexamples import Class, Explainer, differing, tests_of_possible
from pvefw_nft.verify.prove.counters import Counters
from pvefw_nft.verify.prove.evaluate import TESTS_MARK, Evaluation, Flow, programs_of, tests_of_programs
from pvefw_nft.verify.prove.flows import Flows, PathPair, Segment, Side, Tested, bridge_of, find_way, shared_counters
from pvefw_nft.verify.prove.hardening import compared
from pvefw_nft.verify.prove.network import make_network, unplaced_text
from pvefw_nft.verify.prove.program import TOGETHER
from pvefw_nft.verify.prove.proofs import NO_PROOFS, Keys, Proof, Proofs
from pvefw_nft.verify.prove.replay import zone_text
from pvefw_nft.verify.prove.report import ANYWHERE, Counterexample, Counts, Difference, Place, Report
from pvefw_nft.verify.prove.shapes import Shapes
from pvefw_nft.verify.prove.specialise import Residuals
from pvefw_nft.verify.prove.structural import Congruence
from pvefw_nft.verify.prove.transition import without_transition
from pvefw_nft.verify.prove.zones import UNKNOWN as UNKNOWN_ZONES
from pvefw_nft.verify.prove.zones import Zones, ZonesMet
from pvefw_nft.verify.simulate.packet import Probe
from pvefw_nft.verify.simulate.walk import simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pvefw_nft.verify.network.path import End, Nic, Stage
    from pvefw_nft.verify.prove.expected_differences import Known
    from pvefw_nft.verify.prove.program import Case, Outcome
    from pvefw_nft.verify.prove.shapes import Key
    from pvefw_nft.verify.simulate.tracking import Track
    from pvefw_nft.verify.simulate.walk import Outcome as Simulated


class Result(Enum):
    """The result of the proof of two flows."""

    SAME = "same"
    MARKS = "marks"
    """The verdicts are the same, the marks that packets leave with are not."""
    DIFFERENT = "different"
    UNDECIDED = "undecided"
    """A bound was reached before the proof was done."""


class SegmentDifference(NamedTuple):
    """A segment that is not the same on both sides, for one kind of frame."""

    before: Flow
    after: Flow
    result: Result


class Occurrence(NamedTuple):
    """Where a trouble was met: the way, the kind of frame, and the segment's number on the way.

    ``first`` and ``last`` tell whether the segment is the way's first or last.
    """

    way: PathPair
    case: Case
    first: bool
    last: bool

    @property
    def sort_key(self) -> tuple[bool, bool, bool, int]:
        """The lower, the better the way shows the trouble: from or to outside, with few hooks."""
        ends = (self.way.source, self.way.destination)
        host = any(isinstance(end, HostEnd) for end in ends) and not (self.first and self.last)
        return self.case.tagged, any(isinstance(end, RoutedEnd) for end in ends), host, len(self.way.before)


Troubles: TypeAlias = "dict[tuple[SegmentDifference, int], list[Occurrence]]"
"""Where segments differ; the number is the IP version's protocol, 0 for other frames."""


class NicResult(NamedTuple):
    """What the proof of a NIC found, and whether it was ``finished``; ``proof`` by its key, where it may be kept."""

    troubles: Troubles
    finished: bool
    proof: Mapping[str, Proof] = {}

    @property
    def is_settled(self) -> bool:
        """Whether every packet is treated alike, as far as no later segment looks at marks that differ."""
        return self.finished and all(trouble.result is Result.MARKS for trouble, _ in self.troubles)


@dataclass(frozen=True, slots=True)
class Options:
    """How to compare: ``strict`` also compares logs, marks, queue numbers and helpers; ``known`` are differences
    to expect. ``max_memory`` bounds each decision diagram (MiB), ``max_seconds`` the whole comparison (None: no bound).
    ``jobs``: prove guests in up to so many processes. ``proofs`` are those of earlier comparisons.
    """

    strict: bool = False
    known: tuple[Known, ...] = ()
    max_memory: int | None = MAX_MEMORY
    max_seconds: float | None = MAX_SECONDS
    jobs: int = 1
    proofs: Proofs = NO_PROOFS


class _Summary(NamedTuple):
    """What a process of :mod:`.processes` knows besides: of ``marked`` NICs, the marks of packets alone differ.

    ``marks_matter``: some segment that it proved looks at the mark that a packet comes with. ``ways`` are the numbers
    of ways by NIC, ``proofs`` what may be kept.
    """

    marked: tuple[int, ...]
    marks_matter: bool
    ways: dict[int, int]
    pairs: int
    diagrams: int
    zones: ZonesMet
    proofs: dict[str, Proof]


def compare(
    before: Side, after: Side, options: Options | None = None, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Return how the rulesets of two sides differ. ``progress`` is called with the work done, and all of it.

    Raises HostError where a ruleset cannot be evaluated.
    """
    with without_gc():
        return Comparison(before, after, options or Options(), progress).report()


@contextmanager
def without_gc() -> Iterator[None]:
    """Diagrams are many small tuples without cycles: looking for cycles among them takes most of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(slots=True)
class _Found:
    """Differences on the way to a report."""

    merged: dict[tuple[object, ...], Difference] = field(default_factory=dict)
    omitted: int = 0


class Comparison:
    """One comparison; see :func:`compare`."""

    def __init__(
        self, before: Side, after: Side, options: Options, progress: Callable[[int, int], None] | None
    ) -> None:
        self.options = options
        self.budget = Budget.starting_now(options.max_memory, options.max_seconds)
        self.unfinished: dict[str, dict[str, None]] = {}
        self.undecided: list[str] = []
        self.progress = progress or (lambda _done, _all: None)
        (before, of_before), (after, of_after) = without_transition(before), without_transition(after)
        before, after, self.exceptions = compared(before, after)
        self.exceptions = replace(self.exceptions, texts=(*self.exceptions.texts, *of_before, *of_after))
        self.tested = Tested.of(before.model, after.model)
        self.network = make_network(before, after)
        self.ends = self.network.ends
        tracked = frozenset((*m.MARK, *m.CT_MARK) if options.strict else self.tested.marks)
        self.packet_marks = tuple((bit, 0) for bit in m.MARK if bit in tracked)
        self.connection_marks = tuple(bit for bit in m.CT_MARK if bit in tracked) if self.tested.sets_ct_mark else ()
        self.carried = frozenset((*m.MARK, m.TRACKING, *self.connection_marks, *self.tested.later.fields))
        self.untouched = ((m.TRACKING, 0),) if self.tested.exempts else ()
        self.packet_marks += self.untouched
        self.residuals = residuals = Residuals(
            tracked,
            strict=options.strict,
            exempts=self.tested.exempts,
            later=self.tested.later,
            kind=kind_condition if self.exceptions.across else None,
        )
        self.before, self.after = before, after
        naming = Counters(shared_counters(before.model, after.model))
        self.flows_before = Flows(before, residuals, naming)
        self.flows_after = self.flows_before if after is before else Flows(after, residuals, naming)
        self.cases = self.tested.cases()
        self.results: dict[tuple[Flow, Flow, bool, Case | None], Result] = {}
        self.reasons: dict[tuple[Flow, Flow, bool], str] = {}
        self.later: dict[tuple[Flow, Flow], bool] = {}
        self.asked: dict[tuple[Flow, Flow], bool] = {}
        self.asked_shapes: dict[Key, bool] = {}
        self.troubles: Troubles = defaultdict(list)
        self.congruence = Congruence()
        self.shapes = Shapes()
        self.results_of_shapes: dict[tuple[Key, Case, bool], tuple[Result, bool]] = {}
        self.constants: dict[tuple[Case, frozenset[m.Field]], tuple[m.Test, ...]] = {}
        self.zones_met = Zones.of(before, after)
        self.evaluations: dict[int, Evaluation] = {}
        self.keys: dict[int, str] = {}
        self.used: dict[str, Proof] = {}
        self.kept: set[int] = set()
        self.ways = 0
        self.gaps = 0
        self.diagrams = 0
        self.pairs_elsewhere = 0
        self.marks_matter_elsewhere = False
        self.assumptions: list[str] = list(dict.fromkeys((*before.model.assumptions, *after.model.assumptions)))

    def report(self) -> Report:
        """Carry the comparison out."""
        self.prove_ways()
        kept = len(self.kept)
        found = _Found()
        self.explain(found)
        if self.network.unplaced:
            self.undecided.append(unplaced_text(self.network.unplaced))
        if self.zones_met.undecided:
            self.undecided.append(UNKNOWN_ZONES)
        return Report(
            self.before.name,
            self.after.name,
            self.options.strict,
            merge(found.merged.values()),
            tuple(self.assumptions),
            found.omitted,
            Counts(self.ways, len(self.cases), len(self.results) + self.pairs_elsewhere, self.diagrams, kept),
            (self.before.model, self.after.model),
            self.tested.protocols(),
            self.left_out(),
            (*self.undecided, *(_unfinished_text(reason, ways) for reason, ways in self.unfinished.items())),
            self.network.host_differences,
            untagged_only=self.exceptions.untagged_only,
        )

    def left_out(self) -> tuple[str, ...]:
        """Return which packets were not compared, a line each."""
        zones = self.zones_met.difference()
        return self.exceptions.texts if zones is None else (*self.exceptions.texts, zones)

    # --- proving ---

    def prove_ways(self) -> None:
        """Prove every segment; what does not hold goes to ``troubles``."""
        general = [(s, d) for s in self.ends.general for d in self.ends.general if s != d]
        general += [(HostEnd(), HostEnd())]
        nics = self.ends.nics
        total = len(general) + len(nics)
        for done, (source, destination) in enumerate(general):
            way = self.way(source, destination)
            if way is not None:
                self.prove_way(way, None)
            self.progress(done, total)
        with self.proofs_kept() as marked:
            left = [number for number in range(len(nics)) if number not in self.kept]
            before = total - len(left)
            dealt = [[left[place] for place in share] for share in processes.shares(len(left), self.options.jobs)]
            settled: set[int] = set()
            if len(dealt) > 1:
                settled = self.prove_elsewhere(dealt, marked, lambda done: self.progress(before + done, total))
            troubles = {}
            for done, number in enumerate(left):
                if number not in settled and number not in marked:
                    result = self.prove_nic(number)
                    if not result.is_settled:
                        troubles[number] = result.troubles
                    elif result.troubles:
                        marked.add(number)  # most NICs across backends; the ways of their troubles take much memory
                    self.progress(before + done, total)
        if marked and (self.marks_matter_elsewhere or self.marks_matter(self.later)):
            ways = self.ways
            troubles |= {number: self.prove_nic(number).troubles for number in marked}
            self.ways = ways
        for number in sorted(troubles):
            for trouble, places in troubles[number].items():
                self.troubles[trouble] += places
        self.progress(total, total)

    @contextmanager
    def proofs_kept(self) -> Iterator[set[int]]:
        """Take NICs as proved whose proof was kept; at the end keep the proofs of all that have one.

        Yield a set with those of them with which marks alone differ.
        """
        proofs = self.options.proofs
        marked: set[int] = set()
        if proofs is NO_PROOFS:
            yield marked
            return
        known, make_key = proofs.load(), self.proof_keys.key
        self.keys = {number: make_key(nic, self.peer(NicEnd(nic))) for number, nic in enumerate(self.ends.nics)}
        for number, key in self.keys.items():
            proof = known.get(key)
            if proof is not None:
                self.kept.add(number)
                if proof.marked:
                    marked.add(number)
                self.used[key] = proof
                self.ways += proof.ways
                self.pairs_elsewhere += proof.pairs
                self.marks_matter_elsewhere |= proof.looks
                self.zones_met.merge(ZonesMet(proof.zones, undecided=False))
        yield marked
        proofs.save(self.used)

    @cached_property
    def proof_keys(self) -> Keys:
        """Return what makes the keys of NICs, from all that their proofs depend on."""
        tested, later = self.tested, self.tested.later
        trackings = (self.flows_before.tracking, self.flows_after.tracking)
        settings = (
            (self.options.strict, self.options.max_memory, tuple(self.cases), self.exceptions),
            (frozenset(tested.marks), tested.exempts, tested.untracks, tested.zones, tested.sets_ct_mark),
            (
                later.sets,
                frozenset(later.fields),
                later.helpers,
                self.zones_met.same_rules,
                *(one.facts for one in trackings),
            ),
            shared_counters(self.before.model, self.after.model),
        )
        return Keys((self.before, self.after), self.network, settings)

    def prove_elsewhere(
        self, dealt: Sequence[Sequence[int]], marked: set[int], progress: Callable[[int], None]
    ) -> set[int]:
        """Prove NICs in processes, one for each share of their numbers; return those that are settled.

        Those with which marks alone differ go to ``marked``: they are settled where no segment at all looks at a mark.
        """
        settled: set[int] = set()
        ways: dict[int, int] = {}
        for finding in processes.prove(dealt, self.prove_share, progress):
            if isinstance(finding.summary, _Summary):
                settled |= set(finding.settled)
                marked |= set(finding.summary.marked)
                ways |= finding.summary.ways
                self.marks_matter_elsewhere |= finding.summary.marks_matter
                self.pairs_elsewhere += finding.summary.pairs
                self.diagrams += finding.summary.diagrams
                self.zones_met.merge(finding.summary.zones)
                self.used |= finding.summary.proofs
        self.ways += sum(ways[number] for number in (settled | marked) - self.kept)
        return settled

    def prove_share(self, numbers: Iterable[int]) -> Iterator[processes.Finding]:
        """Prove NICs in a process of its own; a NIC is settled where no packet is treated otherwise."""
        pairs, diagrams = len(self.results), self.diagrams
        settled: list[int] = []
        marked: list[int] = []
        ways: dict[int, int] = {}
        proofs: dict[str, Proof] = {}
        proved = 0
        for proved, number in enumerate(numbers, 1):
            before = self.ways
            result = self.prove_nic(number)
            proofs |= result.proof
            ways[number] = self.ways - before
            if result.is_settled:
                (marked if result.troubles else settled).append(number)
            if proved % processes.BETWEEN_REPORTS == 0:
                yield processes.Finding((), proved)
        counts = len(self.results) - pairs, self.diagrams - diagrams
        summary = _Summary(tuple(marked), self.marks_matter(self.later), ways, *counts, self.zones_met.met, proofs)
        yield processes.Finding(tuple(settled), proved, summary)

    def prove_nic(self, number: int) -> NicResult:
        """Prove the segments of a guest: its firewall bridge, in both directions."""
        end = NicEnd(self.ends.nics[number])
        peer = self.peer(end)
        ways = [way for way in (self.way(end, peer), self.way(peer, end)) if way is not None]
        if len(ways) < 2:
            return NicResult({}, finished=True)
        before = self.troubles, self.later, self.zones_met
        gaps, pairs = self.gaps, len(self.results)
        self.troubles, self.later, self.zones_met = defaultdict(list), {}, self.zones_met.fresh()
        self.prove_way(ways[0], 0)
        self.prove_way(ways[1], -1)
        result = NicResult(self.troubles, finished=self.gaps == gaps)
        later, zones = self.later, self.zones_met
        self.troubles, self.later, self.zones_met = before
        self.later |= later
        self.zones_met.merge(zones.met)
        key = self.keys.get(number)
        sound = result.is_settled and not zones.undecided
        if key is not None and sound and self.proof_keys.covers(end.nic, peer, ways):
            marks = bool(result.troubles), self.marks_matter(later)
            proof = self.used[key] = Proof(len(ways), len(self.results) - pairs, *marks, zones.met.pairs)
            result = result._replace(proof={key: proof})
        return result

    def peer(self, end: NicEnd) -> End:
        """Return a peer on the guest's bridge: the outside, or else the host."""
        return next(
            (e for e in self.ends.general if isinstance(e, PortEnd) and e.bridge == end.nic.bridge),
            HostEnd(),
        )

    def way(self, source: End, destination: End) -> PathPair | None:
        """Return the way between two ends; None where there is none (different VLANs of one bridge)."""
        try:
            return find_way(self.network, source, destination, zones=self.tested.zones)
        except UsageError:
            return None

    def prove_way(self, way: PathPair, only: int | None) -> None:
        """Prove a way's segments, or ``only`` one of them."""
        self.ways += 1
        for case in self.cases:
            if way.routed and not case.is_ip:
                continue
            segments = list(self.segments(way, case))
            for number, (segment, parts) in enumerate(segments):
                if only is not None and number != only % len(segments):
                    continue
                first, last = number == 0, number == len(segments) - 1
                left, right, seen = self.flows((segment.before, segment.after), case, parts)
                fixed = first and not isinstance(way.source, HostEnd)
                result = self.prove(left, right, seen, fixed=fixed)
                if result is Result.UNDECIDED:
                    self.gaps += 1
                    self.unfinished_way(self.reasons[left, right, fixed], way, case)
                elif result is not Result.SAME:
                    version = case.protocol if case.is_ip else 0
                    self.troubles[SegmentDifference(left, right, result), version].append(
                        Occurrence(way, case, first, last)
                    )

    def prove(self, before: Flow, after: Flow, case: Case, *, fixed: bool) -> Result:
        """Compare two flows for all packets; ``fixed``: for all that carry no mark."""
        if not fixed:
            self.later[before, after] = True
        if before == after:
            return Result.SAME
        if self.exceptions.lets_through(case, (before, after)) or self.congruence.flows(before, after):
            return Result.SAME
        flows = (before, after, fixed)
        found = self.results.get((*flows, None)) or self.results.get((*flows, case))
        if found is None:
            found, always = self.proved(before, after, case, fixed=fixed)
            self.results[*flows, None if always or not self.exceptions.across else case] = found
        return found

    def proved(self, before: Flow, after: Flow, case: Case, *, fixed: bool) -> tuple[Result, bool]:
        """As :meth:`_prove`, once for all flows that are the same but for addresses and ports."""
        key = self.shapes.key((before, after), partial(self.constants_of, case))
        if key is not None and (known := self.results_of_shapes.get((key, case, fixed))) is not None:
            return known
        self.diagrams += 1
        try:
            self.budget.check_time()
            found = self._prove(before, after, case, fixed=fixed)
        except BudgetExceededError as error:
            self.reasons[before, after, fixed] = str(error)
            self.evaluations.clear()
            return Result.UNDECIDED, False
        if key is not None:
            self.results_of_shapes[key, case, fixed] = found
        return found

    def constants_of(self, case: Case, fields: frozenset[m.Field]) -> tuple[m.Test, ...]:
        """Return the tests that a proof of flows with these fields needs besides those of the rules."""
        found = self.constants.get((case, fields))
        if found is None:
            found = self.constants[case, fields] = tuple(self.tests(case, set(fields), usual=False))
        return found

    def tracked(self, way: PathPair, case: Case) -> tuple[Track, Track]:
        """Return what connection tracking does on a way, on either side; notes where that is not known, or differs."""
        one = self.flows_before.track(way.before, way.back_before, case)
        same = self.flows_after is self.flows_before and way.is_same
        found = one, one if same else self.flows_after.track(way.after, way.back_after, case)
        if self.tested.zones:
            self.zones_met.add(way, found)
        return found

    def segments(self, way: PathPair, case: Case) -> Iterator[tuple[Segment, tuple[Track, Track]]]:
        """Yield the segments of a way (the whole way where the sides' hops differ), with their part in tracking."""
        tracked = [iter(side) for side in self.tracked(way, case)]
        for segment in way.segments or (Segment("", way.before, way.after),):
            before, after = (
                tuple(islice(side, len(stages)))
                for side, stages in zip(tracked, (segment.before, segment.after), strict=True)
            )
            yield segment, (before, after)

    def unfinished_way(self, reason: str, way: PathPair, case: Case) -> None:
        """Note that the packets of a case were not compared on a way, or not to the end."""
        kind = {m.IPV4: "IPv4", m.IPV6: "IPv6"}.get(case.protocol, value_text(m.PROTOCOL, case.protocol))
        text = f"{'VLAN-tagged ' if case.tagged else ''}{kind} from {way.source} to {way.destination}"
        self.unfinished.setdefault(reason, {})[text] = None

    def _prove(self, before: Flow, after: Flow, case: Case, *, fixed: bool) -> tuple[Result, bool]:
        """Return the result, and whether it holds for every kind of frames with these flows."""
        evaluation = self.evaluation(before, after, case)
        one, two = self.starting(evaluation, before, fixed=fixed), self.starting(evaluation, after, fixed=fixed)
        if one == two:
            return Result.SAME, True
        excusing = bool(self.exceptions.across or self.connection_marks or case.fragments)
        if excusing and not differing(evaluation, one, two, self.exceptions, case):
            return Result.SAME, False
        if self.exceptions.across:
            evaluation = Evaluation([before, after], partial(self.tests, case, usual=False), self.budget)
            one = self.starting(evaluation, before, fixed=fixed)
            two = self.starting(evaluation, after, fixed=fixed)
        if self.alike(evaluation, one, two, case):
            return Result.SAME, False
        if not self.options.strict and self.alike(evaluation, evaluation.strip(one), evaluation.strip(two), case):
            return Result.MARKS, False
        return Result.DIFFERENT, False

    def evaluation(self, before: Flow, after: Flow, case: Case) -> Evaluation:
        """Return an evaluation of these flows: the last one for their protocol where it has all that they test.

        A guest's tagged frames run into the chains of its untagged ones, which have been evaluated just before.
        """
        tests = tests_of_programs(programs_of((before, after)))
        last = self.evaluations.get(case.protocol)
        limit = self.budget.memory
        if last is not None and last.covers(tests) and (limit is None or 2 * last.space.memory < limit):
            return last
        made = self.evaluations[case.protocol] = Evaluation([before, after], None, self.budget)
        return made

    def starting(self, evaluation: Evaluation, flow: Flow, *, fixed: bool) -> int:
        """Return what becomes of packets in a flow; ``fixed``: of those that come without a mark."""
        node = evaluation.flow(flow)
        return evaluation.assign(node, self.packet_marks) if fixed and self.packet_marks else node

    def tests(self, case: Case, fields: set[m.Field], *, usual: bool) -> Iterator[m.Test]:
        """Yield the tests that a proof needs besides those of the rules."""
        if usual or self.exceptions.across:
            yield from tests_of_possible(fields, case, self.exceptions, usual=usual)

    def alike(self, evaluation: Evaluation, one: int, two: int, case: Case) -> bool:
        """Whether two diagrams are the same for all packets that are compared."""
        if one == two:
            return True
        if not self.exceptions.across:
            excusing = self.connection_marks or case.fragments
            return bool(excusing) and not differing(evaluation, one, two, self.exceptions, case)
        explainer = Explainer(evaluation, one, two, case, self.exceptions, from_host=False)
        return explainer.differing == evaluation.false

    def marks_matter(self, segments: Iterable[tuple[Flow, Flow]]) -> bool:
        """Whether some of these segments, which packets come to with a mark, looks at it."""
        return any(self.looks_at_mark(flows) for flows in segments)

    def looks_at_mark(self, flows: tuple[Flow, Flow]) -> bool:
        """Whether either flow of a segment looks at the mark that a packet comes with."""
        found = self.asked.get(flows)
        if found is not None:
            return found
        key = self.shapes.key(flows)
        found = self.asked_shapes.get(key) if key is not None else None
        if found is None:
            # what a zone or a helper leaves behind lasts until the lookup, which is in the same segment
            unseen = () if self.tested.untracks or not self.tested.exempts else ((m.TRACKING, 0),)
            try:
                evaluation = Evaluation(flows, None, self.budget, self.carried)
                nodes = [evaluation.assign(evaluation.flow(flow), unseen) for flow in flows]
                found = any(evaluation.space.marks[node] & TESTS_MARK for node in nodes)
            except BudgetExceededError:
                found = True
        if key is not None:
            self.asked_shapes[key] = found
        self.asked[flows] = found
        return found

    # --- explaining ---

    def explain(self, found: _Found) -> None:
        """Follow each trouble end to end."""
        if not self.troubles:
            return
        marks_matter: bool | None = None
        unexplained: dict[Nic, None] = {}
        looked_at: dict[tuple[PathPair, Case], list[Difference]] = {}
        for (trouble, _), places in self.troubles.items():
            if trouble.result is Result.MARKS:
                if marks_matter is None:
                    marks_matter = self.marks_matter_elsewhere or self.marks_matter(self.later)
                if not marks_matter:
                    continue
            for place in sorted(places, key=lambda place: place.sort_key):
                key = (place.way, place.case)
                if key not in looked_at:
                    looked_at[key] = self.differences(place.way, place.case, found)
                if looked_at[key] and trouble.result is Result.DIFFERENT:
                    self.add(found, place, places, looked_at[key])
                    break
                if looked_at[key]:  # what a mark does shows on this way and need not on others
                    self.add(found, place, [place._replace(first=True, last=True)], looked_at[key])
            else:
                ends = [end for place in places for end in (place.way.source, place.way.destination)]
                unexplained |= {end.nic: None for end in ends if isinstance(end, NicEnd)}
        self.between_guests(list(unexplained), looked_at, found)

    def between_guests(
        self, nics: Sequence[Nic], looked_at: Mapping[tuple[PathPair, Case], object], found: _Found
    ) -> None:
        """Look at the ways between guests whose own segments differ, though not seen from outside or host."""
        pairs = [(a, b) for a in nics for b in self.ends.nics if a is not b]
        if len(pairs) > MAX_PAIRS:
            self.undecided.append(
                f"{len(pairs) - MAX_PAIRS} of {len(pairs)} pairs of guests whose marks may differ were not compared"
            )
        for source, destination in pairs[:MAX_PAIRS]:
            way = self.way(NicEnd(source), NicEnd(destination))
            for case in self.cases:
                if way is not None and (way, case) not in looked_at and not (way.routed and not case.is_ip):
                    place = Occurrence(way, case, first=True, last=True)
                    self.add(found, place, [place], self.differences(way, case, found))

    def differences(self, way: PathPair, case: Case, found: _Found) -> list[Difference]:
        """Return how the sides differ on a whole way."""
        tracked = self.tracked(way, case)
        before, after, case = self.flows((way.before, way.after), case, tracked)
        if before == after:
            return []
        try:
            self.budget.check_time()
            return self.explained(before, after, way, case, found)
        except BudgetExceededError as error:
            self.unfinished_way(str(error), way, case)
            return []

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

    def explained(self, before: Flow, after: Flow, way: PathPair, case: Case, found: _Found) -> list[Difference]:
        """Return how two flows of a way differ. Raises BudgetExceededError."""
        result = []
        explainer = self.explainer(before, after, way, case)
        for known in self.options.known:
            if not known.concerns(way, case):
                continue
            condition = known.condition(case)
            everything = explainer.differing
            if explainer.where(condition, holds=True):
                result += [self.difference(one, way, case, known.reason) for one in explainer.classes()[:1]]
            explainer.differing = everything
            explainer.where(condition, holds=False)
        result += [self.difference(one, way, case, None) for one in explainer.classes()]
        found.omitted += explainer.omitted
        return result

    def explainer(self, before: Flow, after: Flow, way: PathPair, case: Case) -> Explainer:
        """Evaluate two flows so that their difference can be explained."""
        known = [t for one in self.options.known for t in m.tests_of(one.condition(case))]

        def more(fields: set[m.Field]) -> Iterator[m.Test]:
            yield from known
            yield from self.tests(case, fields | {test.field for test in known}, usual=True)

        evaluation = Evaluation([before, after], more, self.budget)
        nodes = [evaluation.flow(flow) for flow in (before, after)]
        # what the host itself sends may have a mark already, but no rule has touched its tracking
        marks = self.packet_marks if not isinstance(way.source, HostEnd) else self.untouched
        if marks:
            nodes = [evaluation.assign(node, marks) for node in nodes]
        if not self.options.strict:
            nodes = [evaluation.strip(node) for node in nodes]
        from_host = isinstance(way.source, HostEnd)
        return Explainer(evaluation, nodes[0], nodes[1], case, self.exceptions, from_host=from_host)

    def difference(self, one: Class, way: PathPair, case: Case, known: str | None) -> Difference:
        """Make a class of packets a difference, with the rules that decide about its packet."""
        other = self.network.counterparts
        source, destination = (other.get(end, end) for end in (way.source, way.destination))
        paths = [
            Path(way.source, way.destination, way.before, way.back_before),
            Path(source, destination, way.after, way.back_after),
        ]
        zones = [
            (zone_text(side.topology, path.source), zone_text(side.topology, path.destination))
            for side, path in zip((self.before, self.after), paths, strict=True)
        ]
        runs = []
        flows = (self.flows_before, self.flows_after)
        for side, made, path, outcome in zip(
            (self.before, self.after), flows, paths, (one.before, one.after), strict=True
        ):
            rates = {counter: one.packet.get(name, 0) for counter, name in made.counters.items()}
            run = simulate(side.model, Probe({**one.packet, **rates}, path))
            verdict = f"reject {run.kind}" if run.verdict == "REJECT" else run.verdict.lower()
            if run.put_together:
                verdict = TOGETHER.verdict
            if verdict != outcome.verdict and not outcome.verdict.startswith("unknown"):
                raise InternalError(
                    f"the proof says {outcome.verdict} where the simulator says {verdict}, from {way.source}"
                    f" to {way.destination}: {packet_text(one.packet)}",
                    hint="please report this, with both rulesets",
                )
            runs.append(run)
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
            find_cause(runs[0], runs[1], (self.before.model, self.after.model)),
            known,
        )

    def add(
        self, found: _Found, place: Occurrence, places: list[Occurrence], differences: Iterable[Difference]
    ) -> None:
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
            found.merged.setdefault(key, one)

    def zones(self, ends: list[End], *, own: bool) -> tuple[str, ...]:
        """Return the zones of ends that packets differ from or to; ``own``: nothing but them matters there."""
        distinct = dict.fromkeys(ends)
        bridges = {bridge_of(end) for end in distinct}
        if not own or len(distinct) >= len(self.ends.general) - 1 > 1:
            return (ANYWHERE,)
        if len(distinct) > 4:
            bridge = bridges.pop()
            return (ANYWHERE,) if bridges or bridge is None else (bridge,)
        return tuple(dict.fromkeys(self.zone(end) for end in distinct))

    def zone(self, end: End) -> str:
        """Return the name of an end for people: a guest with one NIC by its own name."""
        match end:
            case NicEnd(nic):
                alone = sum(other.zone == nic.zone for other in self.network.before.nics) == 1
                return nic.zone if alone else nic.name
            case PortEnd():
                outside = [e for e in self.ends.general if isinstance(e, (PortEnd, RoutedEnd))]
                return "outside" if sum(isinstance(e, PortEnd) for e in outside) == 1 else str(end)
            case HostEnd() | RoutedEnd():
                return str(end)


def _unfinished_text(reason: str, ways: Iterable[str]) -> str:
    """Return the comparisons left out for one reason, the first few ways by name."""
    named = list(ways)
    more = f" and {len(named) - _NAMED_WAYS} more" if len(named) > _NAMED_WAYS else ""
    return f"{reason}: not compared to the end: {'; '.join(named[:_NAMED_WAYS])}{more}"


def deciding(run: Simulated) -> tuple[Place, ...]:
    """Return the rule that decides about a simulated packet, or the policy; nothing where none does."""
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


MAX_PAIRS = 2000
"""Ways between guests looked at one by one, where their segments differ in marks alone."""
_NAMED_WAYS = 3
"""How many ways that were not compared a reason names."""


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
