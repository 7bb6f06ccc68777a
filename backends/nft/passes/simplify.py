"""Leave out rules that never match at a place or do nothing there, and write the rest in its simplest form."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pvefw_nft.backends.nft.place import Place
from pvefw_nft.ir.nodes import (
    Address,
    AddressKind,
    AddressType,
    Bridged,
    Dispatch,
    Drop,
    Family,
    Goto,
    InSet,
    Jump,
    NicPort,
    Prefix,
    Provenance,
)

if TYPE_CHECKING:
    from pvefw_nft.backends.nft.scope import Scope
    from pvefw_nft.ir.nodes import Match, Rule

_MULTICAST = {
    Family.V4: (Prefix(4, 0xE0000000, 4, "224.0.0.0/4"),),
    Family.V6: (Prefix(6, 0xFF << 120, 8, "ff00::/8"),),
}


def simplify_rules(rules: list[Rule], _chain: str, scope: Scope) -> list[Rule]:
    """Return the rules that can match at the scope's place and then do something, each in its simplest form.

    Before: ``-src +empty -> drop; jump CHAIN-THAT-DROPS-ALL``. After: ``drop``.
    """
    return [simple for rule in rules if (simple := _cached(rule, scope)) is not None]


def _cached(rule: Rule, scope: Scope) -> Rule | None:
    if rule.origin.provenance in (Provenance.USER, Provenance.POLICY):
        return _simplify(rule, scope)
    # chains share the rules that are not a user's own; most of these are in their simplest form
    known = scope.simplified
    if id(rule) in known:
        return known[id(rule)]
    simple = _simplify(rule, scope)
    if simple is not rule:
        known[id(rule)] = simple
    return simple


def _simplify(rule: Rule, scope: Scope) -> Rule | None:
    """Return a rule in its simplest form; None if it never matches or does nothing."""
    for match in rule.matches:
        if _never_holds(match, rule, scope):
            return None
        # multicast addresses have a prefix, so this needs no `fib`, which the bridge family lacks
        if isinstance(match, AddressType) and match.kind is AddressKind.MULTICAST and rule.families in _MULTICAST:
            simple = Address(match.side, _MULTICAST[rule.families])
            rule = replace(rule, matches=tuple(simple if m is match else m for m in rule.matches))
    match rule.action:
        case Jump(name):
            return _simplify_jump(rule, name, scope)
        case Goto(name) if scope.facts(name).drops_all:
            return replace(rule, action=Drop())
        # elsewhere no packet enters by the port of a guest
        case Dispatch() if not scope.place.knows_guests or not scope.nics:
            return None
        case _:
            return rule


def _never_holds(match: Match, rule: Rule, scope: Scope) -> bool:
    """Tell whether a match holds for no packet at the scope's place."""
    match match:
        case Bridged() | NicPort():
            return not scope.place.knows_guests
        case AddressType(_, AddressKind.ANYCAST):
            # only the routing table knows anycast addresses, and the bridge family does not ask it
            return scope.place is not Place.HOST
        case InSet(_, key, negated):
            # no address is in an empty set
            return not negated and not scope.sets.families(key) & rule.families
        case _:
            return False


def _simplify_jump(rule: Rule, name: str, scope: Scope) -> Rule | None:
    """Return a jump, or its replacement if its chain is empty, only drops, or only dispatches.

    Before: ``bridged out -> jump PVEFW-FWBR-OUT``, and in that chain only ``dispatch out``. After: ``dispatch out``.
    The map of the dispatch has exactly the ports by which bridged packets leave guests.
    """
    target = scope.facts(name)
    if target.empty:
        return None
    if target.drops_all:
        return replace(rule, action=Drop())
    if target.only_dispatches is not None:
        matches = tuple(match for match in rule.matches if match != Bridged(target.only_dispatches))
        return replace(rule, matches=matches, action=Dispatch(target.only_dispatches))
    return rule
