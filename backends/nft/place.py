"""Places: where in the kernel a chain of the IR runs, and what is known of a packet there.

The IR's filter chains stand for iptables' one FORWARD hook, which sees bridged and routed packets alike. nft has
hooks for each: what crosses a firewall bridge is filtered where it enters one of the bridge's two ports, the only
hook of the bridge family that knows the direction and may also reject; the rest of what is forwarded passes the
forward hooks of both families.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING

from pvefw_nft.ir.nodes import (
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
    Reject,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from backends.nft.address_sets import AddressSets
    from backends.nft.syntax.objects import Family as TableFamily
    from pvefw_nft.ir.nodes import Action, Chain, Match, Nic, Rule


class Place(Enum):
    """A place for chains."""

    GUEST = "guest"
    """bridge prerouting, IP packets at the ports of firewall bridges"""
    LINK = "link"
    """bridge prerouting, all frames"""
    BRIDGE = "bridge"
    """bridge forward, IP packets"""
    HOST = "host"
    """all hooks of family inet"""

    @property
    def family(self) -> TableFamily:
        """The family of the table that the place is in."""
        return "inet" if self is Place.HOST else "bridge"

    @property
    def knows_guests(self) -> bool:
        """Tell whether a packet's NIC is known here."""
        return self in (Place.GUEST, Place.LINK)


_PREFIXES = {Layer.FILTER: "", Layer.RAW: "raw/", Layer.FORWARD: "forward/", Layer.LINK: "link/"}


def chain_name(layer: Layer, name: str) -> str:
    """Return the name in its table of a chain of the IR: layers may use a name twice, a table may not."""
    return _PREFIXES[layer] + name


class Scope:
    """The chains of one layer at one place, and which of their rules can match there."""

    def __init__(
        self, place: Place, layer: Layer, chains: Mapping[str, Chain], nics: tuple[Nic, ...], sets: AddressSets
    ) -> None:
        """Look at nothing yet."""
        self.place = place
        self.layer = layer
        self.chains = chains
        self.nics = nics
        self.sets = sets
        self._live: dict[str, bool] = {}

    def live_rules(self, name: str) -> list[Rule]:
        """Return the rules of a chain that can match at this place and then do something, in their simplest form."""
        return [self._simplest(rule) for rule in self.chains[name].rules if self._is_live(rule)]

    def _simplest(self, rule: Rule) -> Rule:
        """Return a rule with a jump to nothing but a dispatch, or to nothing but drops, replaced by what is there.

        Before: ``bridged out -> jump PVEFW-FWBR-OUT``, and in that chain only ``dispatch out``. After: ``dispatch
        out``, since its map has the very ports that a packet that is bridged out of a guest comes from.
        """
        if not isinstance(rule.action, Jump | Goto):
            return rule
        if self._always_drops(rule.action.chain):
            return replace(rule, action=Drop())
        target = self.live_rules(rule.action.chain) if isinstance(rule.action, Jump) else []
        if len(target) == 1 and isinstance(target[0].action, Dispatch) and not target[0].matches:
            direction = target[0].action.direction
            matches = tuple(match for match in rule.matches if match != Bridged(direction))
            return replace(rule, matches=matches, action=target[0].action)
        return rule

    def _always_drops(self, name: str) -> bool:
        """Tell whether a chain drops all packets at this place; where nothing can be rejected, that is dropped too."""
        if self.place is not Place.BRIDGE:
            return False
        rules = self.chains[name].rules
        drops = all(isinstance(rule.action, Drop | Reject) and rule.log is None for rule in rules)
        return drops and any(not rule.matches and rule.families is Family.BOTH for rule in rules)

    def _is_live(self, rule: Rule) -> bool:
        if any(self._never(match, rule) for match in rule.matches):
            return False
        match rule.action:
            case Jump(name):
                return self._chain_is_live(name)
            case Dispatch():
                return self.place.knows_guests and bool(self.nics)
            case _:
                return True

    def _chain_is_live(self, name: str) -> bool:
        known = self._live.get(name)
        if known is None:
            known = self._live[name] = any(self._is_live(rule) for rule in self.chains[name].rules)
        return known

    def _never(self, match: Match, rule: Rule) -> bool:
        """Tell whether a match holds for no packet at this place."""
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

    def reachable(self, start: str) -> list[str]:
        """Return a chain's name and those of all that it can lead to at this place, callers first."""
        found: dict[str, None] = {}
        due = [start]
        while due:
            name = due.pop()
            if name in found:
                continue
            found[name] = None
            targets = [target for rule in self.live_rules(name) for target in self._targets(rule.action)]
            due += reversed(targets)
        return list(found)

    def _targets(self, action: Action) -> list[str]:
        match action:
            case Jump(name) | Goto(name):
                return [name]
            case Dispatch(direction):
                return [name for _, name in self.dispatched(direction)]
            case _:
                return []

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
