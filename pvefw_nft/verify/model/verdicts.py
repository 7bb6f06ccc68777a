"""Verdicts: what a rule decides."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from pvefw_nft.verify.model.conditions import Condition, Test, holds
from pvefw_nft.verify.model.fields import IPV6, Field

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Accept:
    """Done with this base chain; the packet goes on to the next one."""


@dataclass(frozen=True, slots=True)
class Drop:
    """The packet is gone."""


@dataclass(frozen=True, slots=True)
class Reject:
    """The packet is gone and the sender is told: with ``v4`` for an IPv4 packet, ``v6`` for an IPv6 one.

    Kinds are ``tcp-reset``, the ICMP codes ``net-unreachable``, ``host-unreachable``, ``proto-unreachable``,
    ``port-unreachable``, ``net-prohibited``, ``host-prohibited``, ``admin-prohibited``, and the ICMPv6 codes
    ``no-route``, ``admin-prohibited``, ``addr-unreachable``, ``port-unreachable``, ``policy-fail``,
    ``reject-route``. A rule that only one family reaches gives the other's kind as None.
    """

    v4: str | None
    v6: str | None

    def kind(self, protocol: int) -> str:
        """Return the kind of answer for a packet with this ``PROTOCOL`` (0x0800 or 0x86dd)."""
        return (self.v6 if protocol == IPV6 else self.v4) or "none"


@dataclass(frozen=True, slots=True)
class Return:
    """Back to the rule after the one that jumped here; from a base chain, its policy applies."""


@dataclass(frozen=True, slots=True)
class Jump:
    """On to another chain of the same table, and back here when it returns."""

    chain: str


@dataclass(frozen=True, slots=True)
class Goto:
    """On to another chain of the same table; when it returns, back to the chain that jumped to this one."""

    chain: str


@dataclass(frozen=True, slots=True)
class Queue:
    """To a program's queue ``first``, or those from ``first`` to ``last``; the program's decision is not known here.

    With ``bypass`` the packet is accepted where no program listens, without it dropped.
    """

    first: int
    last: int
    bypass: bool


@dataclass(frozen=True, slots=True)
class Nat:
    """Address translation (``dnat``, ``snat``, ``masquerade``, ``redirect``), which also accepts.

    ``addresses`` and ``ports`` are the first and last value to use, None if that part does not change.
    """

    kind: str
    protocol: int | None = None
    addresses: tuple[int, int] | None = None
    ports: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class UnknownVerdict:
    """A target unknown to the readers, accepted under an assumption of the user's: its effect is open."""

    text: str


@dataclass(frozen=True)
class VerdictMap:
    """The verdict of the one entry whose condition holds; where none holds, on to the next rule.

    Entries exclude one another. ``entries`` verdicts are never maps themselves.
    """

    entries: tuple[tuple[Condition, PlainVerdict], ...]

    def lookup(self, packet: Mapping[Field, int]) -> PlainVerdict | None:
        """Return the verdict for this packet; a map over one field is searched by bisection."""
        index = self.index
        if index is None:
            return next((verdict for condition, verdict in self.entries if holds(condition, packet)), None)
        on, starts, ends, verdicts = index
        value = packet.get(on)
        if value is None:
            return None
        place = bisect_right(starts, value) - 1
        return verdicts[place] if place >= 0 and value < ends[place] else None

    @property
    def index(self) -> tuple[Field, list[int], list[int], list[PlainVerdict]] | None:
        """The field of the map, and per interval its start, its end (excluded) and verdict, ascending.

        None if entries are not tests of one and the same field.
        """
        known: tuple[Field, list[int], list[int], list[PlainVerdict]] | bool | None
        known = self.__dict__.get("_index", False)
        if known is False:
            known = self._make_index()
            self.__dict__["_index"] = known
        return known if isinstance(known, tuple) else None

    def _make_index(self) -> tuple[Field, list[int], list[int], list[PlainVerdict]] | None:
        rows = []
        fields = set()
        for condition, verdict in self.entries:
            if not isinstance(condition, Test):
                return None
            fields.add(condition.field)
            rows += [(first, last + 1, verdict) for first, last in condition.values]
        if len(fields) != 1:
            return None
        rows.sort(key=lambda row: row[0])
        return fields.pop(), [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows]


PlainVerdict: TypeAlias = Accept | Drop | Reject | Return | Jump | Goto | Queue | Nat | UnknownVerdict
Verdict: TypeAlias = PlainVerdict | VerdictMap

ACCEPT, DROP, RETURN = Accept(), Drop(), Return()
