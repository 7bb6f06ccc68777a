"""Runs: consecutive rules that differ in values only become one rule, with a set or a verdict map.

Before, three rules of one chain::

    proto tcp dport {22} -> accept ; 100.fw:4
    proto tcp dport {80} -> accept ; 100.fw:5
    proto tcp dport {25} -> drop   ; 100.fw:6

After, a run whose key is the destination port, and the merged rule::

    tcp dport vmap { 22 : accept, 80 : accept, 25 : drop } comment "100.fw:4,5,6"

Rules that differ in several keys, the IP family among them, also become one if each asks for a single value of each
key: ``ip saddr . tcp dport { 10.0.0.1 . 22, 10.0.0.2 . 80 } accept``.

Why the order allows it: all other conditions are the same, and a packet has one value of each key. So only the rules of
a run that list this value can match. If several do, the first one decides if it ends the packet's way through the
chain; the later ones then never see that value. A jump may come back, so a rule is not put behind a jump that lists one
of its values. Rules that log or set something keep their own rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pvefw_nft.backends.nft.intervals import merged, without
from pvefw_nft.backends.nft.keys import intervals_of, names_of, prefix_lengths
from pvefw_nft.ir.nodes import (
    Accept,
    Address,
    AddressRange,
    ArpSender,
    ConnState,
    Drop,
    EtherType,
    Family,
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
    SetAcceptMark,
    SetConnmark,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pvefw_nft.ir.nodes import Match, Rule

_IN_MAPS = (Accept, Drop, Return, Jump, Goto)  # a verdict map holds verdicts only (nft(8))
_IN_SETS = (*_IN_MAPS, Queue, Reject)
_IN_CONCATENATIONS = (Ports, Address, ProtocolMatch, IcmpType, Interface, NicPort)
# tcp, udp, dccp, sctp, udplite: each header begins with the two ports
_WITH_PORTS = frozenset((6, 17, 33, 132, 136))

MAX_RUN = 64
"""Most rules that become one; the lines they come from have to fit into a comment."""


@dataclass(frozen=True, slots=True)
class Run:
    """Rules that become one: a single rule, or several that differ in the matches at the indices ``keys``.

    ``is_map``: their actions differ. ``differ_in_family``: they are for different IP families. ``in_turn``: they
    are for all packets, and each does something and goes on.
    """

    rules: tuple[Rule, ...]
    keys: tuple[int, ...] = ()
    is_map: bool = False
    differ_in_family: bool = False
    in_turn: bool = False

    @property
    def is_concatenation(self) -> bool:
        """Tell whether the rules differ in more than one key."""
        return len(self.keys) > 1 or self.differ_in_family


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
    """Return the run with one more rule, or None if it does not fit in."""
    first = run.rules[0]
    if len(rule.matches) != len(first.matches) or rule.log is not None or first.log is not None:
        return None
    if len(run.rules) == MAX_RUN:
        return None
    if _goes_on(first) and _goes_on(rule):
        return Run((*run.rules, rule), in_turn=True)
    keys = _differences(first, rule)
    if keys is None:
        return None
    longer = Run(
        (*run.rules, rule),
        tuple(sorted({*run.keys, *keys})),
        run.is_map or rule.action != first.action,
        run.differ_in_family or rule.families != first.families,
    )
    if not longer.keys and not longer.differ_in_family:
        return None
    fits = _fits_concatenation(longer) if longer.is_concatenation else _protocol_is_key(longer)
    return longer if fits and _may_follow(run, rule, longer) else None


def _goes_on(rule: Rule) -> bool:
    """Tell whether a rule does something to every packet of both families and lets it go on."""
    return not rule.matches and rule.families == Family.BOTH and isinstance(rule.action, SetAcceptMark | SetConnmark)


def _differences(first: Rule, second: Rule) -> list[int] | None:
    """Return the indices of the matches in which two rules differ, or None if such a match cannot be a key."""
    found = []
    for index, (one, other) in enumerate(zip(first.matches, second.matches, strict=True)):
        if one is other or one == other:
            continue
        if not _comparable(one, other):
            return None
        found.append(index)
    return found


def _comparable(one: Match, other: Match) -> bool:
    """Tell whether two matches ask for values of the same key."""
    match one, other:
        case (Ports(side), Ports(other_side)):
            return side is other_side
        case ((Address() | AddressRange()), (Address() | AddressRange())):
            same_field = one.side is other.side and _version(one) == _version(other)
            # a /0 is written without a test, so it has no value for a set
            return same_field and not prefix_lengths((one, other)).count(0)
        case (IcmpType(version, int(), None), IcmpType(other_version, int(), None)):
            return version == other_version
        case (Interface(direction), Interface(other_direction)):
            # a pattern such as eth+ is not a single name
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


def _version(match: Address | AddressRange) -> int:
    return match.version if isinstance(match, AddressRange) else match.prefixes[0].version


def _protocol_is_key(run: Run) -> bool:
    """Tell whether the protocol, if it is a key, can be one.

    The ports of several protocols are at the same place (``th dport``); nothing else above IP is the same in two.
    """
    first = run.rules[0]
    if not any(isinstance(first.matches[key], ProtocolMatch) for key in run.keys):
        return True
    numbers = {m.protocol.number for rule in run.rules for m in rule.matches if isinstance(m, ProtocolMatch)}
    above = [match for match in first.matches if isinstance(match, Ports | IcmpType)]
    return not above or (numbers <= _WITH_PORTS and not any(isinstance(match, IcmpType) for match in above))


def _fits_concatenation(run: Run) -> bool:
    """Tell whether each rule asks for a single value of each key, which a concatenation can look up at once."""
    # a rule for both families would need two values of this key
    if run.differ_in_family and any(rule.families == Family.BOTH for rule in run.rules):
        return False
    for rule in run.rules:
        for key in run.keys:
            match = rule.matches[key]
            if not isinstance(match, _IN_CONCATENATIONS) or len(_single_values(match)) != 1:
                return False
    return _protocol_is_key(run)


def _single_values(match: Match) -> list[int | str]:
    """Return the values of a match that asks for single values, an empty list for one that asks for intervals."""
    intervals = merged(intervals_of(match))
    if any(first != last for first, last in intervals):
        return []
    return [first for first, _ in intervals] or list(names_of(match))


def _may_follow(run: Run, rule: Rule, longer: Run) -> bool:
    """Tell whether the actions allow one rule for all, and the order does."""
    actions = [member.action for member in longer.rules]
    if longer.is_map:
        if not all(isinstance(action, _IN_MAPS) for action in actions):
            return False
        if any(isinstance(rule.matches[key], EtherType) for key in longer.keys):
            return False  # the field that an Ethernet type is compared with depends on the action
    elif not isinstance(rule.action, _IN_SETS):
        return False
    # after a jump the packet may come back, and must then meet the later rule
    if not any(isinstance(member.action, Jump) for member in run.rules):
        return True
    return not any(_overlap(rule, member, longer) for member in run.rules)


def _overlap(one: Rule, other: Rule, run: Run) -> bool:
    """Tell whether a packet could have the keys of both rules."""
    if not one.families & other.families:
        return False
    for key in run.keys:
        intervals, others = intervals_of(one.matches[key]), intervals_of(other.matches[key])
        if intervals:
            if without(intervals, others) == merged(intervals):
                return False
        elif not set(names_of(one.matches[key])) & set(names_of(other.matches[key])):
            return False
    return True
