"""Rules that can never match, and rules that change nothing.

Rules are judged by their origin: a line of the configuration that became several rules (a macro, both IP versions, a
group on several guests) is found only where that holds for all of them, on every path through the host
(:mod:`~pvefw_nft.verify.prove.walk`). A line changes nothing if every packet would have the same verdict and leave the
same log entries without it. All other rules count as written: policies, standard rules, and rules behind the line
that it keeps packets from.

All lines that are found may be removed together. Of two equal rules, each is useless as long as the other is there; the
second is found, since it never matches, and the first is then judged without it.

Example: in ``IN ACCEPT -p tcp -dport 22`` followed by ``IN DROP -p tcp -dport 22``, the second never matches, and
the first is named as what shadows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from pvefw_nft.verify.model.text import rule_text
from pvefw_nft.verify.prove.budget import Budget, without_gc
from pvefw_nft.verify.prove.exploration import Exploration
from pvefw_nft.verify.prove.options import Options
from pvefw_nft.verify.prove.place import Place
from pvefw_nft.verify.prove.walk import Rules, Walk, is_line
from pvefw_nft.verify.prove.walk_shapes import ChainShapes, shape_of
from pvefw_nft.verify.simulate.walk import STANDARD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pvefw_nft.verify.network.path import Stage
    from pvefw_nft.verify.prove.flows import PathPair
    from pvefw_nft.verify.prove.network import Side
    from pvefw_nft.verify.prove.program import Case
    from pvefw_nft.verify.prove.shapes import Key
    from pvefw_nft.verify.prove.walk import Event, Line, RuleKey
    from pvefw_nft.verify.simulate.tracking import Track

MAX_NAMED = 4
"""The number of shadowing rules that a finding names."""


class Kind(Enum):
    """A rule without effect, and why."""

    NEVER_MATCHES = "never-matches"
    NO_EFFECT = "no-effect"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about all rules of one ``origin`` (a line of the configuration, or one rule where that is not known).

    ``places`` are these rules; ``by`` the origins, chains or rules that take the packets: before them where they never
    match, in their stead where they have no effect.
    """

    kind: Kind
    origin: str
    places: tuple[Place, ...]
    by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Advice:
    """All findings about a ruleset. ``unfinished`` are reasons for which some rules were not judged."""

    found: tuple[Finding, ...]
    unfinished: tuple[str, ...] = ()


def _spelled(file: str, reason: str, line: str) -> str:
    """Return the reason why rules were not judged, with the line from which on, if the file is known."""
    return f"from {file}:{line} on: {reason}" if file else reason


class _Chosen(NamedTuple):
    """A segment to walk: its stages, their part in connection tracking, and a kind of frame."""

    stages: tuple[Stage, ...]
    tracked: Track
    case: Case


def analyse(side: Side, options: Options | None = None, progress: Callable[[int, int], None] | None = None) -> Advice:
    """Find rules without effect, in the order of the ruleset's tables, chains and rules.

    Rules of chains that no path through the host reaches are not judged. ``options`` bound memory and time; rules
    that would exceed them are not judged. ``progress`` gets the work done and the total. Raises HostError if the
    ruleset cannot be evaluated.
    """
    options = options or Options()
    budget = Budget.starting_now(options.max_memory, options.max_seconds)
    with without_gc():
        return _Analysis(side, budget, progress or (lambda _done, _all: None)).findings()


class _Analysis:
    def __init__(self, side: Side, budget: Budget, progress: Callable[[int, int], None]) -> None:
        self.side = side
        self.progress = progress
        # strict: a rule that keeps packets from a log, or from a mark, has an effect
        self.explored = Exploration.of_one(side, budget, strict=True)
        self.rules = Rules()
        self.shapes = ChainShapes()
        self.todo = list(self.segments())
        self.met: dict[Line, list[int]] = {}
        """The segments that meet a line, by their numbers in ``todo`` after the first walk."""
        self.events: dict[Key, tuple[Event, ...]] = {}

    def findings(self) -> Advice:
        self.walk(frozenset())
        found = frozenset(line for line in self.rules.lines() if self.is_found(line))
        while any(self.rules.is_alive(line) for line in found):
            # A line that is useless only as long as another one of these is there is not reported.
            self.walk(found)
            kept = frozenset(line for line in found if self.is_found(line))
            if kept == found:
                break
            found = kept
        return Advice(
            tuple(self.finding(line) for line in self.order(found)),
            tuple(_spelled(file, why, line) for (file, why), line in self.rules.unfinished.items()),
        )

    def is_found(self, line: Line) -> bool:
        return not self.rules.is_alive(line) or not self.rules.is_needed(line)

    def walk(self, removed: frozenset[Line]) -> None:
        """Judge the rules along every segment, as if the lines ``removed`` were not there.

        Segments with the same rules as an earlier one have them in each walk: the first one tells which these are.
        """
        walked: set[tuple[object, ...]] = set()
        distinct: list[_Chosen] = []
        todo = [self.todo[number] for number in self.meeting(removed)] if removed else self.todo
        for done, chosen in enumerate(todo, 1):
            walk = self.walk_segment(chosen, removed, walked)
            if walk is not None and not removed:
                for line in walk.lines():
                    self.met.setdefault(line, []).append(len(distinct))
                distinct.append(chosen)
            self.progress(done, len(todo))
        if not removed:
            self.todo = distinct

    def meeting(self, lines: frozenset[Line]) -> list[int]:
        """Return the numbers of the segments that meet one of these lines: without them, all others are as before."""
        return sorted({number for line in lines for number in self.met.get(line, ())})

    def segments(self) -> Iterator[_Chosen]:
        """Yield the segments to walk, each with each kind of untagged frame that comes there."""
        chosen: dict[_Chosen, None] = {}  # a dict keeps the order
        for source, destination in self.explored.general_pairs():
            self.add(chosen, self.explored.way(source, destination), None)
        # of a NIC's ways only the hop at its firewall bridge is its own: the first of one, the last of the other
        for nic in self.explored.ends.nics:
            ways = self.explored.nic_ways(nic)
            if ways is not None:
                self.add(chosen, ways[0], 0)
                self.add(chosen, ways[1], -1)
        yield from chosen

    def add(self, chosen: dict[_Chosen, None], way: PathPair | None, only: int | None) -> None:
        """Add the segments of a way, or ``only`` the one of this number."""
        if way is None:
            return
        for case in self.explored.cases:
            if case.tagged or (way.routed and not case.is_ip):
                continue
            segments = list(self.explored.segments(way, self.explored.track(way, case)))
            for segment, (tracked, _) in segments if only is None else (segments[only],):
                chosen[_Chosen(segment.before, tracked, case)] = None

    def walk_segment(self, chosen: _Chosen, removed: frozenset[Line], walked: set[tuple[object, ...]]) -> Walk | None:
        """Follow all packets of a case through a segment; return the walk. None: one like it was walked."""
        entries = list(self.explored.flows_before.contexts(chosen.stages, chosen.case, chosen.tracked))
        walk = Walk(self.explored, self.rules, entries, removed)
        key = walk.key
        if not entries or key in walked:
            return None
        walked.add(key)
        shape = shape_of(walk, self.shapes)
        events = None if shape is None else self.events.get(shape)
        if events is None or not walk.fits(events):
            events = walk.run()
        if events is not None:
            walk.note(events)
            if shape is not None:
                self.events[shape] = events
        return walk

    # --- result ---

    def order(self, lines: Iterable[Line]) -> list[Line]:
        """Return lines in the order of the ruleset."""
        tables = {id(table): number for number, table in enumerate(self.side.model.tables)}
        chains = {
            id(chain): number for table in self.side.model.tables for number, chain in enumerate(table.chains.values())
        }
        return sorted(
            lines,
            key=lambda line: min((tables[key[0]], chains[key[1]], key[2]) for key in self.rules.keys(line)),
        )

    def finding(self, line: Line) -> Finding:
        keys = self.rules.keys(line)
        places = tuple(self.place(key) for key in keys)
        name = line if isinstance(line, str) else f"{places[0].table} {places[0].chain} rule {places[0].number}"
        if self.rules.is_alive(line):
            takers = [taker for key in keys for taker in self.rules[key].successors]
            return Finding(Kind.NO_EFFECT, name, places, self.names(takers, name))
        takers = [taker for key in keys for taker in self.rules[key].shadows]
        return Finding(Kind.NEVER_MATCHES, name, places, self.names(takers, name))

    def names(self, takers: Iterable[RuleKey], name: str) -> tuple[str, ...]:
        """Return the takers of a rule's packets: lines of the configuration, else standard rules or their chain."""
        named: dict[str, None] = {}
        for taker in takers:
            place = self.place(taker)
            origin = place.chain if place.origin == STANDARD else place.origin
            named[origin or f"{place.chain} rule {place.number}"] = None
        named.pop(name, None)
        lines = [origin for origin in named if is_line(origin)]
        return tuple(lines or named)[:MAX_NAMED]

    def place(self, key: RuleKey) -> Place:
        seen = self.rules[key]
        rule = seen.rule
        return Place(str(seen.table.key), seen.chain.name, key[2], rule_text(rule), rule.origin, rule.line)
