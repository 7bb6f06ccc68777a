"""Runs: consecutive rules that differ in one key only become one rule, with a set or a verdict map.

Before, three rules of one chain::

    proto tcp dport {22} -> accept ; 100.fw:4
    proto tcp dport {80} -> accept ; 100.fw:5
    proto tcp dport {25} -> drop   ; 100.fw:6

After, a run whose key is the destination port, and what becomes of it::

    tcp dport vmap { 22 : accept, 80 : accept, 25 : drop } comment "100.fw:4,5,6"

Why the order allows it: all other conditions are the same, and a packet has one value of the key. So of a run of
rules at most those that list this value match. Where several do, the first one decides if it ends the packet's way
through the chain; the later ones then never saw that value. A jump may come back, so a rule is not put behind a
jump that lists one of its values. Rules that log or set something keep their own rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backends.nft.intervals import merged, without
from backends.nft.lower_matches import intervals_of, states_of
from pvefw_nft.ir.nodes import (
    Accept,
    Address,
    AddressRange,
    ArpSender,
    ConnState,
    Drop,
    EtherType,
    Goto,
    IcmpType,
    Interface,
    Jump,
    NicPort,
    Ports,
    ProtocolMatch,
    Queue,
    Reject,
    Return,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pvefw_nft.ir.nodes import Match, Rule

_IN_MAPS = (Accept, Drop, Return, Jump, Goto)


@dataclass(frozen=True, slots=True)
class Run:
    """Rules that become one: a single rule (``key`` None), or several that differ in the match at index ``key``."""

    rules: tuple[Rule, ...]
    key: int | None = None

    @property
    def is_map(self) -> bool:
        """Tell whether the rules do different things."""
        return any(rule.action != self.rules[0].action for rule in self.rules)

    @property
    def keys(self) -> list[Match]:
        """The matches in which the rules differ."""
        return [] if self.key is None else [rule.matches[self.key] for rule in self.rules]


def runs(rules: Iterable[Rule]) -> Iterator[Run]:
    """Yield the rules of a chain, in order, as runs."""
    run: Run | None = None
    for rule in rules:
        longer = None if run is None else _with(run, rule)
        if longer is None and run is not None:
            yield run
        run = longer or Run((rule,))
    if run is not None:
        yield run


def _with(run: Run, rule: Rule) -> Run | None:
    """Return the run with one more rule, or None where it does not fit in."""
    first = run.rules[0]
    if (
        rule.log is not None
        or first.log is not None
        or len(rule.matches) != len(first.matches)
        or rule.families != first.families
    ):
        return None
    key = _difference(first, rule)
    if key is None or (run.key is not None and run.key != key):
        return None
    same_action = rule.action == first.action and not run.is_map
    if same_action:
        if not isinstance(rule.action, (*_IN_MAPS, Queue, Reject)):
            return None
    elif isinstance(rule.matches[key], EtherType):
        return None  # what an Ethernet type is compared with depends on what the rule does
    elif not all(isinstance(member.action, _IN_MAPS) for member in (rule, *run.rules)):
        return None
    ends = not any(isinstance(member.action, Jump) for member in run.rules)
    if not ends and _overlap(rule.matches[key], [member.matches[key] for member in run.rules]):
        return None
    return Run((*run.rules, rule), key)


def _difference(first: Rule, second: Rule) -> int | None:
    """Return the index of the only match in which two rules differ, where that match can be a key."""
    found = None
    for index, (one, other) in enumerate(zip(first.matches, second.matches, strict=True)):
        if one is other or one == other:
            continue
        if found is not None or not _comparable(one, other):
            return None
        found = index
    if found is not None and isinstance(first.matches[found], ProtocolMatch):
        # The ports of several protocols are one key (`th dport`); nothing else above IP is the same in two protocols.
        above = [match for match in first.matches if isinstance(match, ProtocolMatch | Ports | IcmpType)]
        has_ports = all(
            isinstance(rule.matches[found], ProtocolMatch) and _protocol(rule, found) in _WITH_PORTS
            for rule in (first, second)
        )
        if len(above) > 1 and not (has_ports and not any(isinstance(m, IcmpType) for m in above)):
            return None
    return found


_WITH_PORTS = frozenset((6, 17, 33, 132, 136))


def _protocol(rule: Rule, index: int) -> int:
    match = rule.matches[index]
    return match.protocol.number if isinstance(match, ProtocolMatch) else 0


def _comparable(one: Match, other: Match) -> bool:
    """Tell whether two matches ask for values of the same key."""
    match one, other:
        case (Ports(side), Ports(other_side)):
            return side is other_side
        case ((Address() | AddressRange()), (Address() | AddressRange())):
            # Both rules have the same families, so both matches have the same IP version.
            return one.side is other.side
        case (IcmpType(version, int(), None), IcmpType(other_version, int(), None)):
            return version == other_version
        case (Interface(direction), Interface(other_direction)):
            return direction is other_direction and not one.name.endswith("+") and not other.name.endswith("+")
        case (NicPort(direction), NicPort(other_direction)):
            return direction is other_direction
        case (
            (ProtocolMatch(), ProtocolMatch())
            | (ConnState(), ConnState())
            | (EtherType(), EtherType())
            | (ArpSender(), ArpSender())
        ):
            return True
        case _:
            return False


def _overlap(match: Match, others: list[Match]) -> bool:
    """Tell whether a match has a value in common with one of others of the same key."""
    intervals = intervals_of(match)
    if intervals:
        taken = merged(i for other in others for i in intervals_of(other))
        return without(intervals, taken) != merged(intervals)
    return bool(_names(match) & {name for other in others for name in _names(other)})


def _names(match: Match) -> set[str]:
    match match:
        case Interface(_, name) | NicPort(_, name):
            return {name}
        case _:
            return {state.value for state in states_of(match)}


__all__ = ["Run", "runs"]
