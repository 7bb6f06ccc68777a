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
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from pvefw_nft.verify.model.text import rule_text
from pvefw_nft.verify.prove.budget import Budget, without_gc
from pvefw_nft.verify.prove.exploration import Exploration
from pvefw_nft.verify.prove.options import Options
from pvefw_nft.verify.prove.place import Place
from pvefw_nft.verify.prove.walk import Rules, Walk, is_line
from pvefw_nft.verify.prove.walk_groups import ALL_LINES, Group, Walked, record_of
from pvefw_nft.verify.prove.walk_keys import WalkKeys
from pvefw_nft.verify.prove.walk_shapes import ChainShapes, shape_of
from pvefw_nft.verify.simulate.walk import STANDARD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pvefw_nft.verify.network.path import Nic, Stage
    from pvefw_nft.verify.prove.exploration import Facts
    from pvefw_nft.verify.prove.flows import PathPair
    from pvefw_nft.verify.prove.network import Side
    from pvefw_nft.verify.prove.program import Case
    from pvefw_nft.verify.prove.shapes import Key
    from pvefw_nft.verify.prove.walk import Event, Line, RuleKey
    from pvefw_nft.verify.prove.walk_keys import NicRules
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


def analyse(
    side: Side,
    options: Options | None = None,
    progress: Callable[[int, int], None] | None = None,
    facts: Facts | None = None,
) -> Advice:
    """Find rules without effect, in the order of the ruleset's tables, chains and rules.

    Rules of chains that no path through the host reaches are not judged. ``options`` bound memory and time; rules
    that would exceed them are not judged. ``progress`` gets the work done and the total. ``facts`` are those of
    explorations of the side, if they are known. Raises HostError if the ruleset cannot be evaluated.
    """
    options = options or Options()
    budget = Budget.starting_now(options.max_memory, options.max_seconds)
    with without_gc():
        return _Analysis(side, budget, progress or (lambda _done, _all: None), facts).findings()


Walks: TypeAlias = "dict[Key, tuple[Event, ...] | None]"
"""The events of the walks so far, by their keys."""


class _Alone(NamedTuple):
    """A segment that is walked for itself, and the lines that it meets."""

    chosen: _Chosen
    lines: frozenset[Line]


class _Member(NamedTuple):
    """A NIC whose walks are those of a group."""

    nic: Nic
    rules: NicRules
    group: Group


class _Analysis:
    def __init__(
        self, side: Side, budget: Budget, progress: Callable[[int, int], None], facts: Facts | None = None
    ) -> None:
        self.side = side
        self.progress = progress
        # strict: a rule that keeps packets from a log, or from a mark, has an effect
        self.explored = Exploration.of_one(side, budget, strict=True, facts=facts)
        self.rules = Rules()
        self.shapes = ChainShapes()
        self.keys = WalkKeys(self.explored)
        self.groups: dict[Key, Group | None] = {}
        self.todo: list[_Alone | _Member] = []
        """The segments and NICs of the first walk, in order."""
        self.events: dict[Key, tuple[Event, ...]] = {}

    def findings(self) -> Advice:
        self.walk_first()
        found = frozenset(line for line in self.rules.lines() if self.is_found(line))
        while any(self.rules.is_alive(line) for line in found):
            # A line that is useless only as long as another one of these is there is not reported.
            self.walk_without(found)
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

    # --- all segments ---

    def walk_first(self) -> None:
        """Judge the rules along every segment.

        Segments with the same rules as an earlier one have them in each walk: the first one tells which these are.
        """
        walked: Walks = {}
        general = list(self.general_segments())
        nics = self.explored.ends.nics
        total = len(general) + len(nics)
        for done, chosen in enumerate(general, 1):
            self.walk_alone([chosen], walked)
            self.progress(done, total)
        for done, nic in enumerate(nics, len(general) + 1):
            self.walk_nic(nic, walked)
            self.progress(done, total)

    def walk_alone(self, segments: Iterable[_Chosen], walked: Walks) -> None:
        """Walk segments for themselves."""
        for chosen in segments:
            made = self.walk_segment(chosen, frozenset(), walked)
            if made is not None and made.is_first:
                self.todo.append(_Alone(chosen, frozenset(made.walk.lines())))

    def walk_nic(self, nic: Nic, walked: Walks) -> None:
        """Judge the rules along the segments of a NIC: by the walks of its group, if it has one."""
        keyed = self.keys.of(nic, lambda: [(one.stages, one.tracked, one.case) for one in self.segments_of(nic)])
        if keyed is None:
            self.walk_alone(self.segments_of(nic), walked)
            return
        key, rules = keyed
        if key not in self.groups:
            self.groups[key] = self.found_group(nic, rules, walked)
            return
        group = self.groups[key]
        if group is None or not group.records[ALL_LINES].fits(rules, self.rules):
            self.walk_alone(self.segments_of(nic), walked)
            return
        group.records[ALL_LINES].note(rules, self.rules)
        self.todo.append(_Member(nic, rules, group))

    def found_group(self, nic: Nic, rules: NicRules, walked: Walks) -> Group | None:
        """Walk the first NIC of a group; return the group. None: others cannot share the walks."""
        segments = list(self.segments_of(nic))
        walks = {number: self.walk_segment(chosen, frozenset(), walked) for number, chosen in enumerate(segments)}
        made = {number: one for number, one in walks.items() if one is not None}
        record = record_of(rules, made.values())
        if record is None:
            self.todo += [
                _Alone(segments[number], frozenset(one.walk.lines())) for number, one in made.items() if one.is_first
            ]
            return None
        group = Group(record)
        places = {line: place for place, line in enumerate(rules.lines)}
        group.segments += [
            (number, frozenset([places[line] for line in one.walk.lines()])) for number, one in made.items()
        ]
        self.todo.append(_Member(nic, rules, group))
        return group

    # --- without some lines ---

    def walk_without(self, removed: frozenset[Line]) -> None:
        """Judge the rules along every segment that meets one of these lines, as if they were not there.

        Without them, all other segments are as before.
        """
        walked: Walks = {}
        for done, one in enumerate(self.todo, 1):
            if isinstance(one, _Member):
                self.walk_member(one, removed, walked)
            elif not one.lines.isdisjoint(removed):
                self.walk_segment(one.chosen, removed, walked)
            self.progress(done, len(self.todo))

    def walk_member(self, member: _Member, removed: frozenset[Line], walked: Walks) -> None:
        nic, rules, group = member
        places = frozenset([place for place, line in enumerate(rules.lines) if line in removed])
        if not places:
            return
        record = group.records.get(places)
        if record is not None and record.fits(rules, self.rules):
            record.note(rules, self.rules)
            return
        segments = list(self.segments_of(nic))
        walks = [self.walk_segment(segments[number], removed, walked) for number in group.meeting(places)]
        record = record_of(rules, [one for one in walks if one is not None], group.records[ALL_LINES])
        if record is not None:
            group.records[places] = record

    # --- segments ---

    def general_segments(self) -> Iterator[_Chosen]:
        """Yield the segments between ends that are no NIC, each with each kind of untagged frame that comes there."""
        chosen: dict[_Chosen, None] = {}  # a dict keeps the order
        for source, destination in self.explored.general_pairs():
            chosen |= dict.fromkeys(self.segments_of_way(self.explored.way(source, destination), None))
        yield from chosen

    def segments_of(self, nic: Nic) -> Iterator[_Chosen]:
        """Yield a NIC's own segments: the hop at its firewall bridge, of the way from it and of the way to it."""
        ways = self.explored.nic_ways(nic)
        if ways is not None:
            yield from self.segments_of_way(ways[0], 0)
            yield from self.segments_of_way(ways[1], -1)

    def segments_of_way(self, way: PathPair | None, only: int | None) -> Iterator[_Chosen]:
        """Yield the segments of a way, or ``only`` the one of this number."""
        if way is None:
            return
        for case in self.explored.cases:
            if case.tagged or (way.routed and not case.is_ip):
                continue
            segments = list(self.explored.segments(way, self.explored.track(way, case)))
            for segment, (tracked, _) in segments if only is None else (segments[only],):
                yield _Chosen(segment.before, tracked, case)

    def walk_segment(self, chosen: _Chosen, removed: frozenset[Line], walked: Walks) -> Walked | None:
        """Follow all packets of a case through a segment, unless a walk like that was ``walked``. None: no rules."""
        entries = list(self.explored.flows_before.contexts(chosen.stages, chosen.case, chosen.tracked))
        if not entries:
            return None
        walk = Walk(self.explored, self.rules, entries, removed)
        key = walk.key
        if key in walked:
            return Walked(walk, key, walked[key], is_first=False)
        shape = shape_of(walk, self.shapes)
        events = None if shape is None else self.events.get(shape)
        if events is None or not walk.fits(events):
            events = walk.run()
        if events is not None:
            walk.note(events)
            if shape is not None:
                self.events[shape] = events
        walked[key] = events
        return Walked(walk, key, events, is_first=True)

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
