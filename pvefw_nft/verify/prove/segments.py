"""Prove two rulesets alike, segment by segment.

A segment is one bridge crossed, or the host's own stack. Most ways through the host share their segments, so each is
proved by itself, for every kind of frame. If each segment treats every packet alike, with any mark, so does every way
made of them. The segments that differ are *troubles*; :mod:`.differences` follows them on whole ways.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from pvefw_nft.verify import model as m
from pvefw_nft.verify.model.text import value_text
from pvefw_nft.verify.network.path import HostEnd, RoutedEnd
from pvefw_nft.verify.prove import processes
from pvefw_nft.verify.prove.flows import shared_counters
from pvefw_nft.verify.prove.nic_keys import Keys
from pvefw_nft.verify.prove.pairs import Result
from pvefw_nft.verify.prove.proofs import NO_PROOFS, Proof, prover_digest
from pvefw_nft.verify.prove.zones import ZonesMet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pvefw_nft.verify.prove.chain_memo import NicKey
    from pvefw_nft.verify.prove.evaluate import Flow
    from pvefw_nft.verify.prove.exploration import Exploration
    from pvefw_nft.verify.prove.flows import PathPair
    from pvefw_nft.verify.prove.options import Options
    from pvefw_nft.verify.prove.pairs import PairProver
    from pvefw_nft.verify.prove.program import Case
    from pvefw_nft.verify.prove.zones import Zones


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
    """The findings of a NIC's proof, and whether it was ``finished``; ``proof`` by its key, where it may be kept."""

    troubles: Troubles
    finished: bool
    proof: Mapping[str, Proof] = {}

    @property
    def is_settled(self) -> bool:
        """Whether every packet is treated alike, as far as no later segment looks at marks that differ."""
        return self.finished and all(trouble.result is Result.MARKS for trouble, _ in self.troubles)


@dataclass(slots=True)
class Found:
    """The findings of the proofs of some ways: ``zones`` of lookups, ``troubles``, and the number of ``gaps``,
    undecided segments. ``later`` are the segments to which packets may come with a mark.
    """

    zones: Zones
    troubles: Troubles = field(default_factory=partial(defaultdict, list))
    later: dict[tuple[Flow, Flow], bool] = field(default_factory=dict)
    gaps: int = 0


class Unfinished:
    """The ways that were not compared, or not to the end, by the reason."""

    def __init__(self) -> None:
        """Start with none."""
        self._ways: dict[str, dict[str, None]] = {}

    def add(self, reason: str, way: PathPair, case: Case) -> None:
        """Note that the packets of a case were not compared on a way, or not to the end."""
        kind = {m.IPV4: "IPv4", m.IPV6: "IPv6"}.get(case.protocol, value_text(m.PROTOCOL, case.protocol))
        text = f"{'VLAN-tagged ' if case.tagged else ''}{kind} from {way.source} to {way.destination}"
        self._ways.setdefault(reason, {})[text] = None

    def texts(self) -> Iterator[str]:
        """Yield a line for each reason, with the first few ways by name."""
        for reason, ways in self._ways.items():
            named = list(ways)
            more = f" and {len(named) - _NAMED_WAYS} more" if len(named) > _NAMED_WAYS else ""
            yield f"{reason}: not compared to the end: {'; '.join(named[:_NAMED_WAYS])}{more}"


_NAMED_WAYS = 3
"""How many ways that were not compared a reason names."""


class _Summary(NamedTuple):
    """The further findings of a process of :mod:`.processes`: of ``marked`` NICs, the marks of packets alone differ.

    ``marks_matter``: some segment that it proved looks at the mark that a packet comes with. ``ways`` are the numbers
    of ways by NIC, ``proofs`` the proofs that may be kept.
    """

    marked: tuple[int, ...]
    marks_matter: bool
    ways: dict[int, int]
    pairs: int
    diagrams: int
    zones: ZonesMet
    proofs: dict[str, Proof]


class SegmentProver:
    """Prove all segments of two rulesets.

    ``found`` are the findings of the proofs, ``ways`` the number of ways, ``kept`` the NICs whose proof was kept from
    earlier, by number, and ``pairs_elsewhere`` the number of pairs proved earlier or in other processes.
    """

    def __init__(self, explored: Exploration, pairs: PairProver, zones: Zones, options: Options) -> None:
        self.explored = explored
        self.pairs = pairs
        self.options = options
        self.unfinished = Unfinished()
        self.found = Found(zones)
        self.kept: set[int] = set()
        self.ways = 0
        self.pairs_elsewhere = 0
        self._marks_matter_elsewhere = False
        self._keys: dict[int, NicKey] = {}
        self._used: dict[str, Proof] = {}

    @property
    def marks_matter(self) -> bool:
        """Whether some segment looks at the mark that packets come to it with."""
        return self._marks_matter_elsewhere or self.pairs.marks_matter(self.found.later)

    def prove_ways(self, progress: Callable[[int, int], None]) -> None:
        """Prove every segment. ``progress`` is called with the work done, and all of it."""
        general = self.explored.general_pairs()
        total = len(general) + len(self.explored.ends.nics)
        for done, (source, destination) in enumerate(general):
            way = self.explored.way(source, destination)
            if way is not None:
                self.prove_way(way, None, self.found)
            progress(done, total)
        marked: set[int] = set()
        troubles = self.prove_nics(marked, lambda left: progress(total - left, total))
        # marks that differ matter only where a later segment looks at them: now all segments are known
        if marked and self.marks_matter:
            ways = self.ways
            troubles |= {number: self.prove_nic(number).troubles for number in marked}
            # these NICs were counted at their first proof
            self.ways = ways
        for number in sorted(troubles):
            for trouble, places in troubles[number].items():
                self.found.troubles[trouble] += places
        progress(total, total)

    def prove_nics(self, marked: set[int], progress: Callable[[int], None]) -> dict[int, Troubles]:
        """Prove all NICs, of those with one key the first alone; return the troubles of NICs that are not settled.

        NICs with which marks alone differ go to ``marked``. ``progress`` is called with the number of NICs left.
        """
        proofs = self.options.proofs
        numbers = range(len(self.explored.ends.nics))
        known = proofs.load()
        self._keys = {number: key for number in numbers if (key := self.key(number)) is not None}
        self.kept = {number for number in numbers if self.is_proved(number, known, marked)}
        first: dict[str, int] = {}
        firsts: list[int] = []
        others: list[int] = []
        for number in numbers:
            key = self._keys.get(number)
            if number not in self.kept:
                # NICs with one key have one proof: the first stands for the others
                alone = key is None or first.setdefault(key.digest, number) == number
                (firsts if alone else others).append(number)
        left = len(firsts) + len(others)
        dealt = [[firsts[place] for place in share] for share in processes.shares(len(firsts), self.options.jobs)]
        settled: set[int] = set()
        # one share is not worth a process of its own
        if len(dealt) > 1:
            settled = self.prove_elsewhere(dealt, marked, lambda done: progress(left - done))
        troubles = {}
        for done, number in enumerate((*firsts, *others)):
            # others of the same key are settled by now, if its first NIC was
            if number in settled or number in marked or self.is_proved(number, self._used, marked):
                continue
            result = self.prove_nic(number)
            if not result.is_settled:
                troubles[number] = result.troubles
            elif result.troubles:
                marked.add(number)  # most NICs across backends; the ways of their troubles take much memory
            progress(left - done)
        proofs.save(self._used)
        return troubles

    def is_proved(self, number: int, proofs: Mapping[str, Proof], marked: set[int]) -> bool:
        """Take a NIC as proved if these proofs have its key; if marks alone differ, it goes to ``marked``."""
        key = self._keys.get(number)
        proof = None if key is None else proofs.get(key.digest)
        zones = None if key is None or proof is None else key.by_number(proof.zones)
        if key is None or proof is None or zones is None:
            return False
        if proof.marked:
            marked.add(number)
        self._used[key.digest] = proof
        self.ways += proof.ways
        self.pairs_elsewhere += proof.pairs
        self._marks_matter_elsewhere |= proof.looks
        self.found.zones.merge(ZonesMet(zones, undecided=False))
        return True

    def key(self, number: int) -> NicKey | None:
        """Return the key of a NIC; None: it is proved for itself."""
        nic, memo = self.explored.ends.nics[number], self.options.memo
        peer = self.explored.peer(nic)
        digest = self._nic_keys.known_by(nic, peer) if memo.remembers else None
        found = None if digest is None else memo.key(digest)
        if found is None:
            found = self._nic_keys.key(nic, peer, partial(self.explored.nic_ways, nic))
            if digest is not None and found is not None:
                memo.keep_key(digest, found)
        return found

    @cached_property
    def _nic_keys(self) -> Keys:
        """The maker of the keys of NICs, with all facts that their proofs depend on."""
        explored = self.explored
        tested, later = explored.tested, explored.tested.later
        trackings = (explored.flows_before.tracking, explored.flows_after.tracking)
        settings = (
            None if self.options.proofs is NO_PROOFS else prover_digest(),
            (self.options.strict, self.options.max_memory, tuple(explored.cases), self.pairs.exceptions),
            (frozenset(tested.marks), tested.exempts, tested.untracks, tested.zones, tested.sets_ct_mark),
            (
                later.sets,
                frozenset(later.fields),
                later.helpers,
                self.found.zones.same_rules,
                *(one.facts for one in trackings),
            ),
            shared_counters(explored.before.model, explored.after.model),
        )
        return Keys(explored, self.pairs.exceptions, settings)

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
                self._marks_matter_elsewhere |= finding.summary.marks_matter
                self.pairs_elsewhere += finding.summary.pairs
                self.pairs.diagrams += finding.summary.diagrams
                self.found.zones.merge(finding.summary.zones)
                self._used |= finding.summary.proofs
        self.ways += sum(ways[number] for number in (settled | marked) - self.kept)
        return settled

    def prove_share(self, numbers: Iterable[int]) -> Iterator[processes.Finding]:
        """Prove NICs in a process of its own; a NIC is settled where no packet is treated otherwise."""
        pairs, diagrams = len(self.pairs.results), self.pairs.diagrams
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
        counts = len(self.pairs.results) - pairs, self.pairs.diagrams - diagrams
        looks = self.pairs.marks_matter(self.found.later)
        summary = _Summary(tuple(marked), looks, ways, *counts, self.found.zones.met, proofs)
        yield processes.Finding(tuple(settled), proved, summary)

    def prove_nic(self, number: int) -> NicResult:
        """Prove the segments of a guest: its firewall bridge, in both directions."""
        nic = self.explored.ends.nics[number]
        ways = self.explored.nic_ways(nic)
        if ways is None:
            return NicResult({}, finished=True)
        pairs = len(self.pairs.results)
        found = Found(self.found.zones.fresh())
        # its firewall bridge is the first segment of the way out, and the last of the way in
        self.prove_way(ways[0], 0, found)
        self.prove_way(ways[1], -1, found)
        self.found.later |= found.later
        self.found.zones.merge(found.zones.met)
        result = NicResult(found.troubles, finished=not found.gaps)
        key = self._keys.get(number)
        zones = None if key is None else key.by_place(found.zones.met.pairs)
        # troubles name rules of this NIC: only a settled proof holds for others
        if key is not None and zones is not None and result.is_settled and not found.zones.undecided:
            marks = bool(result.troubles), self.pairs.marks_matter(found.later)
            proof = Proof(len(ways), len(self.pairs.results) - pairs, *marks, zones)
            self._used[key.digest] = proof
            result = result._replace(proof={key.digest: proof})
        return result

    def prove_way(self, way: PathPair, only: int | None, found: Found) -> None:
        """Prove a way's segments, or ``only`` one of them; add to ``found``."""
        self.ways += 1
        explored = self.explored
        for case in explored.cases:
            # the host routes nothing but IP
            if way.routed and not case.is_ip:
                continue
            tracked = explored.track(way, case)
            if explored.tested.zones:
                found.zones.add(way, tracked)
            segments = list(explored.segments(way, tracked))
            for number, (segment, parts) in enumerate(segments):
                if only is not None and number != only % len(segments):
                    continue
                flows = explored.flows((segment.before, segment.after), case, parts)
                self.prove_segment(flows, Occurrence(way, case, number == 0, number == len(segments) - 1), found)

    def prove_segment(self, flows: tuple[Flow, Flow, Case], place: Occurrence, found: Found) -> None:
        """Prove the flows of a segment, for a kind of frames; add to ``found``."""
        before, after, seen = flows
        # packets come from a device without a mark; the host's own may have any
        fixed = place.first and not isinstance(place.way.source, HostEnd)
        if not fixed:
            found.later[before, after] = True
        result = self.pairs.prove(before, after, seen, fixed=fixed)
        if result is Result.UNDECIDED:
            found.gaps += 1
            self.unfinished.add(self.pairs.reasons[before, after, fixed], place.way, place.case)
        elif result is not Result.SAME:
            version = place.case.protocol if place.case.is_ip else 0
            found.troubles[SegmentDifference(before, after, result), version].append(place)
