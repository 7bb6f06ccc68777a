"""Scopes: the chains of a layer at a place, in their simplest form there.

The passes (:mod:`..passes`) leave out rules that never match at a place or have no effect there. A packet gets the same
verdict, mark and log lines. :class:`Scope` runs them, caches the results, and knows the facts that they use.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import is_
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from pvefw_nft.backends.nft.address_sets import VERSIONS
from pvefw_nft.backends.nft.passes.marks import clears_for_all
from pvefw_nft.backends.nft.place import Place
from pvefw_nft.cache import NO_CACHE
from pvefw_nft.errors import InternalError
from pvefw_nft.ir.nodes import (
    AdvertisedOutside,
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
    Rule,
    SetAcceptMark,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pvefw_nft.backends.nft.address_sets import AddressSets
    from pvefw_nft.cache import Cache
    from pvefw_nft.ir.nodes import Action, Chain, Nic, SetKey

_T = TypeVar("_T")

ChainPass: TypeAlias = "Callable[[list[Rule], str, Scope], list[Rule]]"
"""From rules, the name of their chain, and its scope, to rules."""

_OWN_CHAINS: Mapping[Layer, Callable[[Nic], str | None]] = {
    Layer.LINK: lambda nic: nic.link_chain,
    Layer.STATELESS: lambda nic: nic.stateless_chain,
    Layer.LIMIT: lambda nic: nic.limit_chain,
}
"""The chain of a NIC in the layers where only some NICs have one for the packets that they send."""
_CALLS = (Jump, Goto, Dispatch)


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

    A simplified chain depends only on its own rules in the IR and on :meth:`dependencies`, so it can be cached across
    compiles.
    """

    def __init__(
        self,
        place: Place,
        layer: Layer,
        chains: Mapping[str, Chain],
        nics: tuple[Nic, ...],
        sets: AddressSets,
        passes: Sequence[ChainPass],
        cache: Cache = NO_CACHE,
    ) -> None:
        """Analyse nothing yet. ``passes`` simplify a chain, in this order."""
        self.place = place
        self.layer = layer
        self.nics = nics
        self.sets = sets
        self._where = f"{place.value} {layer.value}"  # enumerations are slow as keys
        self.links = {nic.interface: nic.link for nic in nics}
        self._chains = chains
        self._passes = passes
        self._cache = cache
        self._made: dict[str, Simple] = {}
        self._facts: dict[str, Facts] = {}
        self._dependencies: dict[str, object] = {}
        self.simplified: dict[int, Rule | None] = {}
        """The simplest form here of rules that chains share and that are not in it, by identity; None: left out."""
        self._tails: set[str] = set()

    def rules(self, name: str) -> tuple[Rule, ...]:
        """Return the rules of a chain that can match here and then do something, in their simplest form."""
        return self.simple(name).rules

    def simple(self, name: str) -> Simple:
        """Return a chain in its simplest form."""
        known = self._made.get(name)
        if known is None:
            known = self._made[name] = self.cached("simple", name, lambda: self._make(name))
        return known

    def cached(self, kind: str, name: str, make: Callable[[], _T]) -> _T:
        """Return a simplified chain, from the cache while its entry is valid."""
        return self._cache.get(
            f"{kind} {self._where}", name, lambda: (self._chains[name], self.dependencies(name)), make
        )

    def dependencies(self, name: str) -> object:
        """Return the dependencies of a simplified chain beside its rules, the place and the layer.

        These are: the facts of called chains, the IP families of its sets' members, the members of sets that its rules
        list, the links of the NICs that it names, whether there are NICs, and whether it ends a hook's way.
        """
        known = self._dependencies.get(name)
        if known is None:
            chain = self._chains[name]
            names = self._cache.get(f"names {self.layer.value}", name, lambda: chain, lambda: _names(chain))
            known = self._dependencies[name] = (
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
        """Return the names of a chain and of all chains that it can lead to, callers first."""
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

    def ends_hook(self, chain: str) -> bool:
        """Tell whether a packet that falls off the end of a chain passes the hook, see :meth:`end_with`."""
        return chain in self._tails

    def end_with(self, chain: str) -> None:
        """Note that this chain is the last one that a base chain calls.

        If its last rule is a dispatch, a packet that falls off a NIC's chain has passed. So an accept at the end of
        such a chain is redundant. Raises InternalError if one of these chains was simplified before.
        """
        rules = self.rules(chain)
        if rules and isinstance(rules[-1].action, Dispatch):
            self._tails.update(target for _, target in self.dispatched(rules[-1].action.direction))
            if not self._tails.isdisjoint(self._dependencies) or not self._tails.isdisjoint(self._made):
                raise InternalError(f"a chain of {self.layer.value} that ends a hook's way was lowered before")

    def _targets(self, call: Jump | Goto | Dispatch) -> list[str]:
        match call:
            case Jump(name) | Goto(name):
                return [name]
            case Dispatch(direction):
                return [name for _, name in self.dispatched(direction)]

    def _make(self, name: str) -> Simple:
        own = self._chains[name].rules
        simplified = list(own)
        for run in self._passes:
            simplified = run(simplified, name, self)
        # most chains stay as they are: one tuple for both saves memory
        rules = own if len(own) == len(simplified) and all(map(is_, own, simplified)) else tuple(simplified)
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
            clears_first=bool(rules) and clears_for_all(rules[0]),
            only_sets=_only_sets(chain.rules),
            may_set=any(self._sets(rule.action) for rule in rules),
        )

    def _always_drops(self, chain: Chain) -> bool:
        """Tell whether a chain drops all packets here: in the bridge's forward hook, a rejection is a drop too."""
        if self.place is not Place.BRIDGE:
            return False
        drops = all(isinstance(rule.action, Drop | Reject) and rule.log is None for rule in chain.rules)
        return drops and any(not rule.matches and rule.families == Family.BOTH for rule in chain.rules)

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
