"""Digests of chains with all that they lead to, made of the digests of the chains alone: no rule is read.

Two chains of equal digests here have the same rules, and lead to chains of the same names with the same rules. A chain
that asks for an interface has none, nor has one that leads to such: which of its rules count depends on the NIC.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from pvefw_nft.verify import model as m
from pvefw_nft.verify.prove.chain_memo import digest_of
from pvefw_nft.verify.prove.key_parts import MAX_SINGLES, NoKeyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pvefw_nft.verify.prove.key_parts import Chains, Part, Verbatim


class Closures:
    """The digests of the chains of one table, which go in no circle."""

    def __init__(self, chains: Chains, verbatim: Verbatim) -> None:
        self._chains = chains
        self._table = chains.table
        self._verbatim = verbatim
        self._known: dict[str, bytes | None] = {}
        self._asked: dict[str, frozenset[int] | None] = {}
        self._of_common: dict[str, tuple[tuple[int, int], ...]] = {}
        self._parts: dict[int, bytes] = {}
        self._met: dict[tuple[str, tuple[tuple[int, int], ...]], tuple[bytes, tuple[str, ...]]] = {}

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

    def whole(self, name: str) -> bytes | None:
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

    def met(self, name: str, interfaces: Sequence[int], common: int) -> tuple[bytes, tuple[str, ...]]:
        """Return a digest of all of a chain's rules that a NIC with these interfaces may meet, and their targets.

        The last ``common`` interfaces are the same for all NICs. Raises NoKeyError.
        """
        if name not in self._asked:
            self._asked[name] = self._asked_of(name)
        asked = self._asked[name]
        own = len(interfaces) - common
        known_common = self._of_common.get(name)
        if known_common is None:
            known_common = self._of_common[name] = _among(interfaces[own:], own, asked)
        seen = _among(interfaces[:own], 0, asked) + known_common
        found = self._met.get((name, seen))
        if found is None:
            found = self._met[name, seen] = self._made(name, seen)
        return found

    def _asked_of(self, name: str) -> frozenset[int] | None:
        """Return the interfaces that decide which parts of a chain a NIC meets, and which entries of its maps.

        None: any interface may.
        """
        chain = self._chains.chain(name)
        parts = [*chain.others.values(), *(part for found in chain.by_interface.values() for part in found.values())]
        asked = set(chain.by_interface)
        for lookup in (lookup for part in parts for lookup in part.lookups):
            for test, _ in lookup.entries:
                if not isinstance(test, m.Test) or test.values.count() > MAX_SINGLES:
                    return None
                asked.update(number for first, last in test.values for number in range(first, last + 1))
        return frozenset(asked)

    def _made(self, name: str, seen: tuple[tuple[int, int], ...]) -> tuple[bytes, tuple[str, ...]]:
        found: list[object] = [seen]
        targets: dict[str, None] = {}
        text = self._verbatim.text
        for part in self._chains.chain(name).parts([number for _, number in seen]):
            found.append(self._part(part))
            targets |= dict.fromkeys(part.targets)
            for lookup in part.lookups:
                entries = [_entry(lookup, number) for _, number in seen]
                found.append([text(entry) for entry in entries])
                targets |= {entry.chain: None for entry in entries if isinstance(entry, m.Jump | m.Goto)}
        return _digest(found), tuple(targets)

    def _part(self, part: Part) -> bytes:
        """Return a digest of all that a part says, but for its maps over an interface."""
        known = self._parts.get(id(part))  # the chains keep all parts
        if known is None:
            text = self._verbatim.text
            tests = [[text(test) for test in tests] for tests in (part.tests, part.interfaces)]
            value = part.digest, tests, part.targets, part.zones, len(part.lookups)
            known = self._parts[id(part)] = _digest(value)
        return known


def _among(interfaces: Sequence[int], first: int, asked: frozenset[int] | None) -> tuple[tuple[int, int], ...]:
    """Return those of some interfaces that are asked for (None: all), with their places, from ``first``."""
    return tuple([(place, one) for place, one in enumerate(interfaces, first) if asked is None or one in asked])


def _entry(lookup: m.VerdictMap | m.SetZone, interface: int) -> object:
    """Return what a map over an interface has for it."""
    index = lookup.index
    assert index is not None
    known = {index[0]: interface}
    return tuple(lookup.choices(known)) if isinstance(lookup, m.SetZone) else lookup.lookup(known)


def _digest(value: object) -> bytes:
    return hashlib.blake2b(repr(value).encode(errors="surrogatepass"), digest_size=24).digest()
