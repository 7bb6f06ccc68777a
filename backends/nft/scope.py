"""Scopes: the chains of a layer at a place, in their simplest form there.

What can never match at a place is left out, and so is what has no effect there. Nothing else is changed: a packet
gets the same verdict, mark and log lines. :class:`Scope` says, rule by rule, what is left out and why it may be.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backends.nft.place import Place
from pvefw_nft.ir.nodes import (
    Accept,
    AcceptMark,
    Address,
    AddressKind,
    AddressType,
    Bridged,
    Direction,
    Dispatch,
    Drop,
    Family,
    Goto,
    InSet,
    Jump,
    Layer,
    NicPort,
    Prefix,
    Provenance,
    Queue,
    Reject,
    Return,
    SetAcceptMark,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from backends.nft.address_sets import AddressSets
    from pvefw_nft.ir.nodes import Action, Chain, Match, Nic, Rule

_MULTICAST = {
    Family.V4: (Prefix(4, 0xE0000000, 4, "224.0.0.0/4"),),
    Family.V6: (Prefix(6, 0xFF << 120, 8, "ff00::/8"),),
}


class Scope:
    """The chains of one layer at one place."""

    def __init__(
        self, place: Place, layer: Layer, chains: Mapping[str, Chain], nics: tuple[Nic, ...], sets: AddressSets
    ) -> None:
        """Look at nothing yet."""
        self.place = place
        self.layer = layer
        self.nics = nics
        self.sets = sets
        self._chains = chains
        self._rules: dict[str, tuple[Rule, ...]] = {}
        self._simple: dict[int, Rule | None] = {}
        self._sets_mark: dict[str, bool] = {}
        self._tails: set[str] = set()

    def rules(self, name: str) -> tuple[Rule, ...]:
        """Return the rules of a chain that can match here and then do something, in their simplest form."""
        known = self._rules.get(name)
        if known is None:
            simple = [made for rule in self._chains[name].rules if (made := self._simplest(rule)) is not None]
            if name in self._tails:
                _drop_last_accept(simple)
            known = self._rules[name] = tuple(self._without_idle_marks(self._cleared_early(simple)))
        return known

    def reachable(self, start: str) -> list[str]:
        """Return a chain's name and those of all that it can lead to, callers first."""
        found: dict[str, None] = {}
        due = [start]
        while due:
            name = due.pop()
            if name not in found:
                found[name] = None
                due += reversed([target for rule in self.rules(name) for target in self._targets(rule.action)])
        return list(found)

    def dispatched(self, direction: Direction) -> Iterator[tuple[str, str]]:
        """Yield, for each NIC, the port by which packets of that direction enter its firewall bridge, and the chain."""
        for nic in self.nics:
            if self.layer is Layer.LINK:
                if nic.link_chain is not None:
                    yield nic.interface, nic.link_chain
            elif direction is Direction.IN:
                yield nic.link, nic.in_chain
            else:
                yield nic.interface, nic.out_chain

    def end_with(self, chain: str) -> None:
        """Note that this chain is a hook's own, with nothing behind it in its base chain.

        If its last rule is a dispatch, a packet that falls off a NIC's chain has passed. So an accept at the end of
        such a chain says nothing.
        """
        rules = self.rules(chain)
        if rules and isinstance(rules[-1].action, Dispatch):
            self._tails.update(target for _, target in self.dispatched(rules[-1].action.direction))
            self._rules = {name: made for name, made in self._rules.items() if name not in self._tails}

    def _targets(self, action: Action) -> list[str]:
        match action:
            case Jump(name) | Goto(name):
                return [name]
            case Dispatch(direction):
                return [name for _, name in self.dispatched(direction)]
            case _:
                return []

    # --- single rules ---

    def _simplest(self, rule: Rule) -> Rule | None:
        """Return a rule in its simplest form, None if it can never match or does nothing."""
        if rule.origin.provenance in (Provenance.USER, Provenance.POLICY):
            return self._simplify(rule)
        if id(rule) not in self._simple:  # chains share the rules that are not a user's own
            self._simple[id(rule)] = self._simplify(rule)
        return self._simple[id(rule)]

    def _simplify(self, rule: Rule) -> Rule | None:
        for match in rule.matches:
            if self._never(match, rule):
                return None
            if isinstance(match, AddressType) and match.kind is AddressKind.MULTICAST and rule.families in _MULTICAST:
                simple = Address(match.side, _MULTICAST[rule.families])
                rule = replace(rule, matches=tuple(simple if m is match else m for m in rule.matches))
        match rule.action:
            case Jump(name):
                return self._simplify_jump(rule, name)
            case Goto(name) if self._always_drops(name):
                return replace(rule, action=Drop())
            case Dispatch() if not self.place.knows_guests or not self.nics:
                return None
            case _:
                return rule

    def _never(self, match: Match, rule: Rule) -> bool:
        """Tell whether a match holds for no packet here."""
        match match:
            case Bridged() | NicPort():
                return not self.place.knows_guests
            case AddressType(_, AddressKind.ANYCAST):
                # Only the routing table knows these, and the bridge family does not ask it.
                return self.place is not Place.HOST
            case InSet(_, key, negated):
                return not negated and not self.sets.families(key) & rule.families
            case _:
                return False

    def _simplify_jump(self, rule: Rule, name: str) -> Rule | None:
        """Return a jump, or what it comes to where its chain is empty, only drops, or only dispatches.

        Before: ``bridged out -> jump PVEFW-FWBR-OUT``, and in that chain only ``dispatch out``. After: ``dispatch
        out``, whose map has the very ports that a packet that is bridged out of a guest comes from.
        """
        target = self.rules(name)
        if not target:
            return None
        if self._always_drops(name):
            return replace(rule, action=Drop())
        if len(target) == 1 and isinstance(target[0].action, Dispatch) and not target[0].matches:
            direction = target[0].action.direction
            matches = tuple(match for match in rule.matches if match != Bridged(direction))
            return replace(rule, matches=matches, action=target[0].action)
        return rule

    def _always_drops(self, name: str) -> bool:
        """Tell whether a chain drops all packets here: in the bridge's forward hook, a rejection is a drop too."""
        if self.place is not Place.BRIDGE:
            return False
        rules = self._chains[name].rules
        drops = all(isinstance(rule.action, Drop | Reject) and rule.log is None for rule in rules)
        return drops and any(not rule.matches and rule.families == Family.BOTH for rule in rules)

    # --- the accept mark ---

    def _cleared_early(self, rules: list[Rule]) -> list[Rule]:
        """Return rules with each clearing of the mark for all packets moved up as far as that changes nothing.

        It may pass a rule that drops, and one that sets the mark on its way out: such packets take no notice of it.
        Rules that were parted by it can then be merged.

        Before: ``icmpv6 134 -> drop; clear accept mark; icmpv6 133 -> goto PVEFW-SET-ACCEPT-MARK``. After: ``clear
        accept mark; icmpv6 134 -> drop; icmpv6 133 -> goto PVEFW-SET-ACCEPT-MARK``.
        """
        result: list[Rule] = []
        for rule in rules:
            position = len(result)
            if _clears_for_all(rule):
                while position and self._minds_no_mark(result[position - 1]):
                    position -= 1
            result.insert(position, rule)
        return result

    def _minds_no_mark(self, rule: Rule) -> bool:
        """Tell whether a rule neither tests nor logs the mark, and whether no packet it matches keeps the mark."""
        if rule.log is not None or _tests_mark(rule):
            return False
        match rule.action:
            case Drop():
                return True
            case Goto(name):
                target = self._chains[name].rules
                return len(target) == 1 and target[0].action == SetAcceptMark(on=True) and not target[0].matches
            case _:
                return False

    def _without_idle_marks(self, rules: list[Rule]) -> Iterator[Rule]:
        """Yield rules without those that test or clear an accept mark that is known to be clear.

        Before, where the group has rules for the other direction only::

            clear accept mark; jump GROUP-web-OUT; accept mark -> return

        After: ``clear accept mark``. The mark is known to be clear after a rule for all packets that clears it, and
        after a test for it that ends the way of those that have it, until a chain may have set it.
        """
        clear = False
        for rule in rules:
            if clear and (_tests_mark(rule) or self._only_clears(rule)):
                continue
            yield rule
            every_packet = not rule.matches and rule.families == Family.BOTH
            match rule.action:
                case SetAcceptMark(on):
                    clear = not on and (clear or every_packet)
                case Jump(name):
                    if self._may_set_mark(name):
                        clear = False
                    elif every_packet and self._clears_first(name):
                        clear = True
                case Dispatch():
                    clear = False
                case Accept() | Drop() | Return() | Reject() | Goto() | Queue():
                    if rule.matches == (AcceptMark(),) and rule.families == Family.BOTH:
                        clear = True
                case _:
                    pass

    def _only_clears(self, rule: Rule) -> bool:
        match rule.action:
            case SetAcceptMark(on):
                return not on
            case Jump(name):
                return all(member.action == SetAcceptMark(on=False) for member in self.rules(name))
            case _:
                return False

    def _clears_first(self, name: str) -> bool:
        return _clears_for_all(self.rules(name)[0])

    def _may_set_mark(self, name: str) -> bool:
        """Tell whether a packet may come back from a chain with its accept mark set by it."""
        known = self._sets_mark.get(name)
        if known is None:
            known = self._sets_mark[name] = any(self._sets(rule.action) for rule in self.rules(name))
        return known

    def _sets(self, action: Action) -> bool:
        match action:
            case SetAcceptMark(on):
                return on
            case Jump(name) | Goto(name):
                return self._may_set_mark(name)
            case Dispatch():
                return True
            case _:
                return False


def _clears_for_all(rule: Rule) -> bool:
    action = rule.action
    return isinstance(action, SetAcceptMark) and not action.on and not rule.matches and rule.families == Family.BOTH


def _tests_mark(rule: Rule) -> bool:
    return any(isinstance(match, AcceptMark) for match in rule.matches)


def _drop_last_accept(rules: list[Rule]) -> None:
    if rules and rules[-1].action == Accept() and not rules[-1].matches and rules[-1].log is None:
        del rules[-1]
