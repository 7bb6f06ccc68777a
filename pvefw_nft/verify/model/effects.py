"""Effects: what a rule does before its verdict."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

from pvefw_nft.verify.model.conditions import TRUE, Condition, Test
from pvefw_nft.verify.model.fields import CT_MARK, MARK, Field

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True, slots=True)
class Log:
    """A log line with this prefix: to the system log at ``level`` (0 to 7), or to a ``group`` of NFLOG."""

    prefix: str
    level: int | None = None
    group: int | None = None


class MarkTarget(Enum):
    """Whose mark."""

    PACKET = "mark"
    CONNECTION = "ct mark"

    @property
    def bits(self) -> tuple[Field, ...]:
        """The fields of its bits, lowest first."""
        return MARK if self is MarkTarget.PACKET else CT_MARK


@dataclass(frozen=True, slots=True)
class SetMark:
    """``mark = (mark & keep) ^ flip``: any of set, and, or, xor with masks (net/netfilter/xt_mark.c)."""

    target: MarkTarget
    keep: int
    flip: int


@dataclass(frozen=True, slots=True)
class CopyMark:
    """``target = (target & keep) ^ (other & take)``: the other mark copied (net/netfilter/xt_connmark.c)."""

    target: MarkTarget
    keep: int
    take: int


@dataclass(frozen=True, slots=True)
class SetHelper:
    """A conntrack helper reads this connection. ``name`` is its type: ``ftp``, ``tftp`` …

    As a ``template`` (iptables' CT target) it is given before the lookup, else (nft's ``ct helper set``) after it; in
    either case only to a connection's first packet.
    """

    name: str
    template: bool = False


@dataclass(frozen=True, slots=True)
class NoTrack:
    """The packet is not tracked: its state is untracked from here on. Only before the lookup; later it does nothing."""


@dataclass(frozen=True)
class SetZone:
    """The packet is looked up in a zone: the zone of the one entry whose condition holds. Only before the lookup.

    ``original`` and ``reply`` say for which of a connection's two directions (``ct original zone set``: only the
    first); the other one stays in zone 0. The first zone a packet is given counts.
    """

    entries: tuple[tuple[Condition, int], ...]
    original: bool = True
    reply: bool = True

    def choices(self, known: Mapping[Field, int]) -> Iterable[tuple[Condition, int]]:
        """Return the entries that may hold for a packet with these known fields."""
        index = self.index
        if index is None or index[0] not in known:
            return self.entries
        zone = index[1].get(known[index[0]])
        return () if zone is None else ((TRUE, zone),)

    @property
    def index(self) -> tuple[Field, Mapping[int, int]] | None:
        """The field and the zones by its value, where all entries are tests of single values of one field."""
        known: tuple[Field, Mapping[int, int]] | bool | None = self.__dict__.get("_index", False)
        if known is False:
            tests = [condition for condition, _ in self.entries if isinstance(condition, Test)]
            plain = len(tests) == len(self.entries) and len({test.field for test in tests}) == 1
            known = None
            if plain and all(test.values.count() == 1 for test in tests):
                values = [test.values.smallest() for test in tests]
                known = tests[0].field, {v: zone for v, (_, zone) in zip(values, self.entries, strict=True)}
            self.__dict__["_index"] = known
        return known if isinstance(known, tuple) else None


@dataclass(frozen=True, slots=True)
class SetField:
    """A field that the packet has is changed: to ``value``, or to a table's value for the old one."""

    field: Field
    value: int | tuple[int, ...]

    def result(self, old: int) -> int:
        """Return the new value of an old one."""
        return self.value if isinstance(self.value, int) else self.value[old]


@dataclass(frozen=True, slots=True)
class UpdateSet:
    """A set gets an element made of the packet, or loses it: which packets it has later depends on that.

    ``set`` names the set (``ipset bad``, ``nft inet t bad``), ``text`` the update, with its timeout.
    """

    set: str
    text: str


@dataclass(frozen=True, slots=True)
class Alter:
    """Something else is changed or recorded that no modelled field shows (MSS, priority, a counter)."""

    text: str


@dataclass(frozen=True, slots=True)
class Guard:
    """The rest of the rule applies only where the condition holds (an nft match after a statement)."""

    condition: Condition


Effect: TypeAlias = Log | SetMark | CopyMark | SetHelper | NoTrack | SetZone | SetField | UpdateSet | Alter | Guard
