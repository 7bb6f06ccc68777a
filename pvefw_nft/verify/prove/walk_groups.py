"""Walks of NICs with one key: the first NIC is walked, and the findings about its rules hold for those of the others.

The result of a walk is a list of events of rules at places (:mod:`.walk`). A :class:`Record` has the events of all
walks of a NIC by slot (:mod:`.walk_keys`), so that they can be noted for each NIC of the key.
"""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from pvefw_nft.verify.prove.walk import Found

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pvefw_nft.verify.prove.shapes import Key
    from pvefw_nft.verify.prove.walk import Event, Rules, Walk
    from pvefw_nft.verify.prove.walk_keys import NicRules, Slot


class Walked(NamedTuple):
    """A walk, which may have been spared, and its events; None: it exceeded the budget, and its rules count as needed.

    Walks with the same ``key`` are equal; ``is_first``: there was none before.
    """

    walk: Walk
    key: Key
    events: tuple[Event, ...] | None
    is_first: bool


class _Takers(NamedTuple):
    """Rules that take the packets of one, as in :class:`~.walk.Event`."""

    kind: Found
    slot: Slot
    usual: tuple[Slot, ...]
    others: tuple[Slot, ...]


class _Run(NamedTuple):
    """Findings about rules of the chain at a place, met one after the other.

    A finding is the rule's position, and whether it is alive and needed.
    """

    place: int
    findings: list[tuple[int, bool, bool]]


class Record:
    """The findings of a NIC's walks about the rules at slots."""

    def __init__(self, rules: NicRules, before: Record | None = None) -> None:
        """Start with no findings about the rules of a NIC; ``before`` were noted for each NIC before."""
        self._rules = rules
        self._met: dict[Slot, None] = {}
        self._alive: set[Slot] = set()
        self._needed: set[Slot] = set()
        self._takers: list[_Takers] = []
        self._asked: dict[tuple[Found, Slot], None] = {}
        self._before = before
        self._runs: list[_Run] | None = None

    def add(self, walk: Walk, events: Iterable[Event]) -> None:
        """Add the events of a walk of the NIC."""
        slots = self._rules.slots(walk.met)
        for event in events:
            slot = slots[event.place]
            match event.kind:
                case Found.MET:
                    self._met[slot] = None
                case Found.ALIVE:
                    self._alive.add(slot)
                case Found.NEEDED:
                    self._needed.add(slot)
                case Found.SHADOWED | Found.SUCCEEDED:
                    usual, others = ([slots[place] for place in places] for places in (event.usual, event.others))
                    self._takers.append(_Takers(event.kind, slot, tuple(usual), tuple(others)))
                case Found.WAS_ALIVE | Found.WAS_NEEDED:
                    if not self._tells(event.kind, slot):
                        self._asked[event.kind, slot] = None

    def _tells(self, kind: Found, slot: Slot) -> bool:
        """Whether earlier walks of the same NIC found a rule alive or needed, and so of each NIC."""
        before = self._before is not None and self._before._tells(kind, slot)
        return before or slot in (self._alive if kind is Found.WAS_ALIVE else self._needed)

    def fits(self, rules: NicRules, judged: Rules) -> bool:
        """Return whether the walks of another NIC have these events, by what walks before found."""
        shared = rules.shared(self._rules)
        return all(shared[slot[0]] or judged.was(kind, rules.rule_key(slot)) for kind, slot in self._asked)

    def note(self, rules: NicRules, judged: Rules) -> None:
        """Add the findings to those about the rules of another NIC.

        The findings about rules that both NICs meet were noted for the first one.
        """
        if self._runs is None:
            self._seal()
        shared = rules.shared(self._rules)
        for run in self._runs or ():
            if not shared[run.place]:
                judged.note(*rules.chain(run.place), run.findings)
        for kind, slot, usual, others in self._takers:
            if not all(shared[place] for place, _ in (slot, *usual, *others)):
                takers = [map(rules.rule_key, slots) for slots in (usual, others)]
                judged.judged(*rules.rule(slot)).note_takers(kind, *takers)

    def _seal(self) -> None:
        """Prepare the findings for other NICs, once all walks are added."""
        self._runs = [
            _Run(place, [(slot[1], slot in self._alive, slot in self._needed) for slot in slots])
            for place, slots in groupby(self._met, itemgetter(0))
        ]
        # nothing asks which rules take the packets of one that is alive
        self._takers = [one for one in self._takers if one.kind is Found.SUCCEEDED or one.slot not in self._alive]


ALL_LINES: frozenset[int] = frozenset()
"""The places of removed lines, where all are there."""


class Group:
    """The NICs of a key: what the walks of each find.

    ``segments`` are the segments to walk without some lines, by number, with the places of the lines that they meet.
    ``records`` are the findings without the lines at some places; :data:`ALL_LINES`: those of the first walks.
    """

    def __init__(self, record: Record) -> None:
        """Take the findings of the first walks."""
        self.segments: list[tuple[int, frozenset[int]]] = []
        self.records = {ALL_LINES: record}

    def meeting(self, removed: frozenset[int]) -> list[int]:
        """Return the numbers of the segments that meet one of the lines at these places."""
        return [number for number, lines in self.segments if not lines.isdisjoint(removed)]


def record_of(rules: NicRules, walks: Iterable[Walked], before: Record | None = None) -> Record | None:
    """Return the findings of a NIC's walks; None: one of them exceeded the budget."""
    record = Record(rules, before)
    keys: set[Key] = set()
    for walked in walks:
        if walked.events is None:
            return None
        if walked.key not in keys:
            keys.add(walked.key)
            record.add(walked.walk, walked.events)
    return record
