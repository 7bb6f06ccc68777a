"""Scopes: the chains of a layer at a place, in their simplest form there.

Rules that can never match at a place, or have no effect there, are left out. Nothing else changes: a packet
gets the same verdict, mark and log lines. :class:`Scope` says, rule by rule, which are left out and why they may be.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from pvefw_nft.backends.base import kept
from pvefw_nft.backends.nft.address_sets import VERSIONS
from pvefw_nft.backends.nft.place import Place
from pvefw_nft.errors import InternalError
from pvefw_nft.ir.nodes import (
    Accept,
    AcceptMark,
    Address,
    AddressKind,
    AddressType,
    AdvertisedOutside,
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
    Rule,
    SetAcceptMark,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pvefw_nft.backends.base import LineStore
    from pvefw_nft.backends.nft.address_sets import AddressSets
    from pvefw_nft.ir.nodes import Action, Chain, Match, Nic, SetKey

_T = TypeVar("_T")
_OWN_CHAINS: Mapping[Layer, Callable[[Nic], str | None]] = {
    Layer.LINK: lambda nic: nic.link_chain,
    Layer.STATELESS: lambda nic: nic.stateless_chain,
    Layer.LIMIT: lambda nic: nic.limit_chain,
}
"""The chain of a NIC in the layers where only some NICs have one for the packets that they send."""
_CALLS = (Jump, Goto, Dispatch)
_MULTICAST = {
    Family.V4: (Prefix(4, 0xE0000000, 4, "224.0.0.0/4"),),
    Family.V6: (Prefix(6, 0xFF << 120, 8, "ff00::/8"),),
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What a caller may assume about a callee chain, in the callee's simplest form unless a field says otherwise."""

    empty: bool
    drops_all: bool
    """all packets, and logs none; of the IR's rules"""
    only_dispatches: Direction | None
    """it has the one rule, for all packets, that dispatches this way"""
    only_clears: bool
    """all rules do nothing but clear the accept mark"""
    clears_first: bool
    """its first rule clears the mark of all packets"""
    only_sets: bool
    """its one rule sets the mark of all packets; of the IR's rules"""
    may_set: bool
    """a packet may come back from it with the mark set by it"""


@dataclass(frozen=True, slots=True)
class Simple:
    """A chain in its simplest form: its rules, where they lead, and the sets that they look into, by IP version."""

    rules: tuple[Rule, ...]
    calls: tuple[Jump | Goto | Dispatch, ...]
    sets: tuple[tuple[SetKey, int], ...]


@dataclass(frozen=True, slots=True)
class _Names:
    """The names in the rules of a chain, each once: chains, sets, sets whose members a rule lists, and guests' NICs."""

    chains: tuple[str, ...]
    sets: tuple[SetKey, ...]
    spelled_out: tuple[SetKey, ...]
    nics: tuple[str, ...]


class Scope:
    """The chains of one layer at one place.

    A simplified chain depends only on its own rules in the IR and on :meth:`rests_on`, so it can be cached across
    compiles.
    """

    def __init__(
        self,
        place: Place,
        layer: Layer,
        chains: Mapping[str, Chain],
        nics: tuple[Nic, ...],
        sets: AddressSets,
        store: LineStore | None = None,
    ) -> None:
        """Analyse nothing yet. Chains in ``store`` are not simplified again."""
        self.place = place
        self.layer = layer
        self.nics = nics
        self.sets = sets
        self._where = f"{place.value} {layer.value}"  # enumerations are slow as keys
        self.links = {nic.interface: nic.link for nic in nics}
        self._chains = chains
        self._store = store
        self._made: dict[str, Simple] = {}
        self._facts: dict[str, Facts] = {}
        self._rests_on: dict[str, object] = {}
        self._simple: dict[int, Rule | None] = {}
        self._tails: set[str] = set()

    def rules(self, name: str) -> tuple[Rule, ...]:
        """Return the rules of a chain that can match here and then do something, in their simplest form."""
        return self.simple(name).rules

    def simple(self, name: str) -> Simple:
        """Return a chain in its simplest form."""
        known = self._made.get(name)
        if known is None:
            known = self._made[name] = self.kept("simple", name, lambda: self._make(name))
        return known

    def kept(self, kind: str, name: str, make: Callable[[], _T]) -> _T:
        """Return a simplified chain, from the cache while its entry is valid."""
        if self._store is None:
            return make()
        return self._store.get((kind, self._where), name, self._chains[name], make, self.rests_on(name))

    def rests_on(self, name: str) -> object:
        """Return the dependencies of a simplified chain beside its rules, the place and the layer.

        That is what is asked of the chains its rules lead to, which families its sets have members of, the members
        of sets that its rules list, the links of the NICs it names, whether there are NICs, and whether it is the end
        of a hook's way.
        """
        known = self._rests_on.get(name)
        if known is None:
            chain = self._chains[name]
            names = kept(self._store, ("names", self.layer.value), name, chain, lambda: _names(chain))
            known = self._rests_on[name] = (
                bool(self.nics),
                name in self._tails,
                tuple([self.facts(other) for other in names.chains]),
                tuple([self.sets.families(key) for key in names.sets]),
                tuple([tuple(self.sets.intervals(key, 6)) for key in names.spelled_out]),
                tuple([self.links.get(nic) for nic in names.nics]),
            )
        return known

    def facts(self, name: str) -> Facts:
        """Return the facts that callers of a chain may assume."""
        known = self._facts.get(name)
        if known is None:
            known = self._facts[name] = self._make_facts(self._chains[name], self.simple(name))
        return known

    def reachable(self, start: str) -> list[str]:
        """Return a chain's name and those of all that it can lead to, callers first."""
        found: dict[str, None] = {}
        due = [start]
        while due:
            name = due.pop()
            if name not in found:
                found[name] = None
                due += reversed([target for call in self.simple(name).calls for target in self._targets(call)])
        return list(found)

    def dispatched(self, direction: Direction) -> Iterator[tuple[str, str]]:
        """Yield, for each NIC, the port by which packets of that direction enter its firewall bridge, and the chain."""
        for nic in self.nics:
            own = _OWN_CHAINS.get(self.layer)
            if own is not None:
                chain = own(nic)
                if chain is not None:
                    yield nic.interface, chain
            elif direction is Direction.IN:
                yield nic.link, nic.in_chain
            else:
                yield nic.interface, nic.out_chain

    def end_with(self, chain: str) -> None:
        """Note that this chain is a hook's own, with nothing behind it in its base chain.

        If its last rule is a dispatch, a packet that falls off a NIC's chain has passed. So an accept at the end of
        such a chain says nothing. Raises InternalError where one of these chains was looked at before.
        """
        rules = self.rules(chain)
        if rules and isinstance(rules[-1].action, Dispatch):
            self._tails.update(target for _, target in self.dispatched(rules[-1].action.direction))
            if not self._tails.isdisjoint(self._rests_on) or not self._tails.isdisjoint(self._made):
                raise InternalError(f"a chain of {self.layer.value} that ends a hook's way was lowered before")

    def _targets(self, call: Jump | Goto | Dispatch) -> list[str]:
        match call:
            case Jump(name) | Goto(name):
                return [name]
            case Dispatch(direction):
                return [name for _, name in self.dispatched(direction)]

    def _make(self, name: str) -> Simple:
        simple = [made for rule in self._chains[name].rules if (made := self._simplest(rule)) is not None]
        if name in self._tails:
            _drop_last_accept(simple)
        rules = tuple(self._without_idle_marks(self._cleared_early(simple)))
        sets: dict[tuple[SetKey, int], None] = {}
        for rule in rules:
            for match in rule.matches:
                if isinstance(match, InSet):
                    filled = self.sets.families(match.key) & rule.families
                    sets.update({(match.key, version): None for version, family in VERSIONS if filled & family})
        calls = tuple([rule.action for rule in rules if isinstance(rule.action, _CALLS)])
        return Simple(rules, calls, tuple(sets))

    def _make_facts(self, chain: Chain, simple: Simple) -> Facts:
        rules = simple.rules
        only_dispatches: Direction | None = None
        match rules:
            case (Rule(matches=(), action=Dispatch(direction)),):
                only_dispatches = direction
        return Facts(
            empty=not rules,
            drops_all=self._always_drops(chain),
            only_dispatches=only_dispatches,
            only_clears=all(rule.action == SetAcceptMark(on=False) for rule in rules),
            clears_first=bool(rules) and _clears_for_all(rules[0]),
            only_sets=_only_sets(chain.rules),
            may_set=any(self._sets(rule.action) for rule in rules),
        )

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
            case Goto(name) if self.facts(name).drops_all:
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
        """Return a jump, or its replacement where its chain is empty, only drops, or only dispatches.

        Before: ``bridged out -> jump PVEFW-FWBR-OUT``, and in that chain only ``dispatch out``. After: ``dispatch
        out``, whose map has the very ports that a packet that is bridged out of a guest comes from.
        """
        target = self.facts(name)
        if target.empty:
            return None
        if target.drops_all:
            return replace(rule, action=Drop())
        if target.only_dispatches is not None:
            matches = tuple(match for match in rule.matches if match != Bridged(target.only_dispatches))
            return replace(rule, matches=matches, action=Dispatch(target.only_dispatches))
        return rule

    def _always_drops(self, chain: Chain) -> bool:
        """Tell whether a chain drops all packets here: in the bridge's forward hook, a rejection is a drop too."""
        if self.place is not Place.BRIDGE:
            return False
        drops = all(isinstance(rule.action, Drop | Reject) and rule.log is None for rule in chain.rules)
        return drops and any(not rule.matches and rule.families == Family.BOTH for rule in chain.rules)

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
                return self.facts(name).only_sets
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
                    if self.facts(name).may_set:
                        clear = False
                    elif every_packet and self.facts(name).clears_first:
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
                return self.facts(name).only_clears
            case _:
                return False

    def _sets(self, action: Action) -> bool:
        match action:
            case SetAcceptMark(on):
                return on
            case Jump(name) | Goto(name):
                return self.facts(name).may_set
            case Dispatch():
                return True
            case _:
                return False


def _names(chain: Chain) -> _Names:
    chains: dict[str, None] = {}
    sets: dict[SetKey, None] = {}
    spelled_out: dict[SetKey, None] = {}
    nics: dict[str, None] = {}
    for rule in chain.rules:
        if isinstance(rule.action, Jump | Goto):
            chains[rule.action.chain] = None
        for match in rule.matches:
            if isinstance(match, InSet):
                sets[match.key] = None
            elif isinstance(match, AdvertisedOutside):
                spelled_out[match.key] = None
            elif isinstance(match, NicPort):
                nics[match.name] = None
    return _Names(tuple(chains), tuple(sets), tuple(spelled_out), tuple(nics))


def _only_sets(rules: tuple[Rule, ...]) -> bool:
    return len(rules) == 1 and rules[0].action == SetAcceptMark(on=True) and not rules[0].matches


def _clears_for_all(rule: Rule) -> bool:
    action = rule.action
    return isinstance(action, SetAcceptMark) and not action.on and not rule.matches and rule.families == Family.BOTH


def _tests_mark(rule: Rule) -> bool:
    return any(isinstance(match, AcceptMark) for match in rule.matches)


def _drop_last_accept(rules: list[Rule]) -> None:
    if rules and rules[-1].action == Accept() and not rules[-1].matches and rules[-1].log is None:
        del rules[-1]
