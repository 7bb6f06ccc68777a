"""Digests of chains with all that they lead to, made of the digests of the chains alone: no rule is read.

Two chains of equal digests here have the same rules, and lead to chains of the same names with the same rules. A chain
that asks for an interface has none, nor has one that leads to such: which of its rules count depends on the NIC.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from pvefw_nft.verify import model as m
from pvefw_nft.verify.prove.chain_memo import digest_of
from pvefw_nft.verify.prove.key_parts import MAX_SINGLES, NoKeyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from pvefw_nft.verify.prove.key_parts import Chain, Chains, Part, Verbatim


class Closures:
    """The digests of the chains of one table, which go in no circle."""

    def __init__(self, chains: Chains, verbatim: Verbatim) -> None:
        self._chains = chains
        self._table = chains.table
        self._verbatim = verbatim
        self._known: dict[str, str | None] = {}
        self._shared: dict[str, _Shared] = {}
        self._parts: dict[int, str] = {}
        self._common: dict[tuple[str, ...], _Common] = {}

    def own(self, name: str) -> tuple[str, tuple[str, ...]] | None:
        """Return a digest of a chain's own rules, and its targets; None where that is not all that a NIC needs.

        Raises NoKeyError where there is no such chain.
        """
        chain = self._table.chains.get(name)
        if chain is None:
            raise NoKeyError
        digest = digest_of(chain)
        if digest is None or chain.summary is None or chain.summary.asks_interface:
            return None
        return f"{digest} {self._verbatim.text((chain.policy, chain.hook))}", chain.summary.targets

    def whole(self, name: str) -> str | None:
        """Return the digest of a chain with all that it leads to; None: it has none. Raises NoKeyError."""
        if name in self._known:
            return self._known[name]
        todo = [name]
        while todo:
            top = todo[-1]
            own = self.own(top)
            if own is None:
                self._known[top] = None
            elif due := [target for target in own[1] if target not in self._known]:
                todo += due
                continue
            elif top not in self._known:
                below = [self._known[target] for target in own[1]]
                self._known[top] = None if None in below else _digest((own, below))
            todo.pop()
        return self._known[name]

    def all_met(self, roots: Sequence[str], interfaces: Sequence[int], common: int) -> list[object]:
        """Return digests of all rules that a NIC with these interfaces may meet from base chains on.

        The last ``common`` interfaces are the same for all NICs. Raises NoKeyError.
        """
        key = tuple(roots)
        shared = self._common.get(key)
        if shared is None:
            shared = self._common[key] = self._common_of(roots, interfaces[len(interfaces) - common :])
        if not shared.asking and not shared.always:
            return [shared.digest]
        asking = [name for one in interfaces[: len(interfaces) - common] for name in shared.asking.get(one, ())]
        found: list[object] = [shared.digest]
        todo: list[str] = []
        for name in dict.fromkeys((*shared.always, *asking)):
            more, targets = self.met(name, interfaces, common)
            found += (name, more)
            todo += [target for target in targets if target not in shared.chains]
        more, _ = self._walk(todo, lambda name: self.met(name, interfaces, common), shared.chains)
        return found + more

    def _common_of(self, roots: Sequence[str], common: Sequence[int]) -> _Common:
        """Return the chains that all NICs meet from base chains on; ``common`` are the interfaces that all of them
        have.
        """
        found, met = self._walk(roots, lambda name: self._shared_by_all(name, common)[:2])
        asking: dict[int, list[str]] = {}
        always = []
        for name in met:
            shared = self._shared.get(name)
            if shared is not None and shared.asked is None:
                always.append(name)
            for one in () if shared is None else shared.asked or ():
                asking.setdefault(one, []).append(name)
        return _Common(_digest(found), frozenset(met), asking, tuple(always))

    def _walk(
        self,
        roots: Sequence[str],
        met: Callable[[str], tuple[object, Iterable[str]]],
        known: AbstractSet[str] = frozenset(),
    ) -> tuple[list[object], list[str]]:
        """Return digests of all chains from some on, but for those in ``known``, and the names of these chains.

        Chains behind one that has a digest as a whole are not named. ``met`` returns the digest of the rules that count
        of a chain that asks for interfaces, and their targets. Raises NoKeyError.
        """
        found: list[object] = []
        names = []
        todo = [*roots]
        seen = set(todo)
        while todo:
            name = todo.pop()
            names.append(name)
            found += (name, self.whole(name))
            if found[-1] is not None:
                continue
            digest, targets = self.own(name) or met(name)
            found.append(digest)
            due = [target for target in targets if target not in seen and target not in known]
            seen.update(due)
            todo += due
        return found, names

    def met(self, name: str, interfaces: Sequence[int], common: int) -> tuple[list[object], Iterable[str]]:
        """Return digests of all of a chain's rules that a NIC with these interfaces may meet, and their targets.

        The last ``common`` interfaces are the same for all NICs. Raises NoKeyError.
        """
        own = len(interfaces) - common
        shared = self._shared_by_all(name, interfaces[own:])
        asked = shared.asked
        seen = [(place, one) for place, one in enumerate(interfaces[:own]) if asked is None or one in asked]
        if not seen:
            return [shared.digest], shared.targets
        found: list[object] = [shared.digest, seen]
        targets = dict.fromkeys(shared.targets)
        chain = self._chains.chain(name)
        of_own = {number: part for _, one in seen for number, part in chain.by_interface.get(one, _NONE).items()}
        for number in sorted(of_own):
            part = of_own[number]
            found += (number, self._part(part))
            targets |= dict.fromkeys(part.targets)
            for lookup in part.lookups:
                self._entries(lookup, [*interfaces], found, targets)
        for lookup in shared.lookups:
            self._entries(lookup, [one for _, one in seen], found, targets)
        return found, targets

    def _shared_by_all(self, name: str, common: Sequence[int]) -> _Shared:
        shared = self._shared.get(name)
        if shared is None:
            shared = self._shared[name] = self._shared_of(name, common)
        return shared

    def _shared_of(self, name: str, common: Sequence[int]) -> _Shared:
        """Return what is the same of a chain for all NICs; ``common`` are the interfaces that all of them have."""
        chain = self._chains.chain(name)
        of_common = {number: part for one in common for number, part in chain.by_interface.get(one, _NONE).items()}
        parts = dict(chain.others) | of_common
        found: list[object] = []
        targets: dict[str, None] = {}
        lookups = []
        for number in sorted(parts):
            found += (number, self._part(parts[number]))
            targets |= dict.fromkeys(parts[number].targets)
            for lookup in parts[number].lookups:
                lookups.append(lookup)
                self._entries(lookup, common, found, targets)
        return _Shared(_digest(found), tuple(targets), tuple(lookups), _asked(chain, lookups))

    def _entries(
        self, lookup: m.VerdictMap | m.SetZone, interfaces: Iterable[int], found: list[object], targets: dict[str, None]
    ) -> None:
        """Add what a map over an interface has for each of these."""
        index = lookup.index
        assert index is not None
        for one in interfaces:
            known = {index[0]: one}
            entry = tuple(lookup.choices(known)) if isinstance(lookup, m.SetZone) else lookup.lookup(known)
            found.append(self._verbatim.text(entry))
            if isinstance(entry, m.Jump | m.Goto):
                targets[entry.chain] = None

    def _part(self, part: Part) -> str:
        """Return a digest of all that a part says, but for its maps over an interface."""
        known = self._parts.get(id(part))  # the chains keep all parts
        if known is None:
            text = self._verbatim.text
            tests = [[text(test) for test in tests] for tests in (part.tests, part.interfaces)]
            value = part.digest, tests, part.targets, part.zones, len(part.lookups)
            known = self._parts[id(part)] = _digest(value)
        return known


class _Common(NamedTuple):
    """The ``chains`` that all NICs meet from some base chains on, and a ``digest`` of what all NICs meet there.

    A NIC meets more of the chains in ``asking`` for one of its interfaces, and maybe of those in ``always``.
    """

    digest: str
    chains: frozenset[str]
    asking: Mapping[int, Sequence[str]]
    always: tuple[str, ...]


class _Shared(NamedTuple):
    """A chain that asks for interfaces: what is the same for all NICs.

    ``digest`` is one of the rules that all NICs meet, ``lookups`` are their maps over an interface. ``asked`` are the
    interfaces for which there is anything else; None: there may be for any.
    """

    digest: str
    targets: tuple[str, ...]
    lookups: tuple[m.VerdictMap | m.SetZone, ...]
    asked: frozenset[int] | None


_NONE: Mapping[int, Part] = {}


def _asked(chain: Chain, lookups: Iterable[m.VerdictMap | m.SetZone]) -> frozenset[int] | None:
    """Return the interfaces that decide which rules of a chain a NIC meets, and which entries of its maps."""
    asked = set(chain.by_interface)
    for lookup in lookups:
        for test, _ in lookup.entries:
            if not isinstance(test, m.Test) or test.values.count() > MAX_SINGLES:
                return None
            asked.update(number for first, last in test.values for number in range(first, last + 1))
    return frozenset(asked)


def _digest(value: object) -> str:
    return hashlib.blake2b(repr(value).encode(errors="surrogatepass"), digest_size=24).hexdigest()
