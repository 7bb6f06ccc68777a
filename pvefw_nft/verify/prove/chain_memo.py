"""Results about chains that are known by digest, so that their rules need not be read: of this and earlier comparisons.

A chain that was read on demand with a digest (:class:`~pvefw_nft.verify.model.UnreadChain`) has the rules of every
other chain with that digest. So three things are kept, each a pure function of what its digest is made of:

===========  ==============================================================================  ======================
kept         the digest is made of                                                           the value
===========  ==============================================================================  ======================
summaries    the chain                                                                       its :class:`.Summary`
keys         all rules that a NIC can meet, the NIC, and the facts that keys depend on       its :class:`.NicKey`
checks       some chains and a NIC                                                           nothing: a check held
===========  ==============================================================================  ======================

A value that is kept equals the one that would be made: with and without them a comparison has the same result. What
is kept belongs to one version of the prover (:func:`.proofs.prover_digest`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pvefw_nft.errors import HostError
from pvefw_nft.verify import model as m

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pvefw_nft.verify.simulate.tracking import Zone


class NicKey(NamedTuple):
    """The key of a NIC: ``digest`` identifies it, ``zones`` are both sides' zones, by their places."""

    digest: str
    zones: tuple[tuple[int, ...], tuple[int, ...]]

    def by_place(self, pairs: Iterable[tuple[Zone, Zone]]) -> frozenset[tuple[Zone, Zone]] | None:
        """Return pairs of zones with each zone's place instead; None where a zone has none."""
        places = [{zone: place for place, zone in enumerate(zones)} for zones in self.zones]
        try:
            return frozenset(((places[0][a], places[0][b]), (places[1][c], places[1][d])) for (a, b), (c, d) in pairs)
        except KeyError:
            return None

    def by_number(self, pairs: Iterable[tuple[Zone, Zone]]) -> frozenset[tuple[Zone, Zone]] | None:
        """Return pairs of places of zones as the zones of this NIC; None where a place is none of its."""
        before, after = self.zones
        try:
            return frozenset(((before[a], before[b]), (after[c], after[d])) for (a, b), (c, d) in pairs)
        except IndexError:
            return None


@dataclass(slots=True)
class Kept:
    """Values by digest; see the module."""

    summaries: dict[str, m.Summary] = field(default_factory=dict)
    keys: dict[str, NicKey] = field(default_factory=dict)
    checks: dict[str, None] = field(default_factory=dict)


class ChainMemo:
    """What is known by digest in one comparison: ``known`` from earlier ones, ``used`` in this one.

    ``remembers``: it keeps anything at all.
    """

    remembers = True

    def __init__(self, known: Kept) -> None:
        self.known = known
        self.used = Kept()

    def adopt(self, model: m.RulesetModel) -> None:
        """Give all chains of a ruleset their summaries; those that are not known are read.

        Raises RulesetError where a chain cannot be read, HostError where one leads to a chain that is not there, or
        chains go in a circle. Reading the whole ruleset says more of both.
        """
        for table in model.tables:
            targets = {name: self.summary(chain).targets for name, chain in table.chains.items()}
            if _is_unsound(targets):
                raise HostError(f"the chains of {table.key} lead to one that is not there, or in a circle")

    def summary(self, chain: m.Chain) -> m.Summary:
        """Return the summary of a chain, which has it from now on. Raises RulesetError."""
        digest = digest_of(chain)
        if digest is None:
            return m.summary_of(chain)
        if chain.summary is None:
            chain.summary = self.known.summaries.get(digest)
        found = self.used.summaries[digest] = m.summary_of(chain)
        return found

    def key(self, digest: str) -> NicKey | None:
        """Return the key of a NIC, if it is known."""
        found = self.used.keys.get(digest) or self.known.keys.get(digest)
        if found is not None:
            self.used.keys[digest] = found
        return found

    def keep_key(self, digest: str, key: NicKey) -> None:
        """Keep the key of a NIC."""
        self.used.keys[digest] = key

    def holds(self, what: str, chains: Sequence[m.Chain | None], fact: object, check: Check) -> bool:
        """Return whether a check of chains holds (None: there is no such chain).

        ``what`` names the check. Besides the rules of ``chains`` it depends on nothing but ``fact``, as its ``repr``
        has it.
        """
        digests = ["" if chain is None else digest_of(chain) for chain in chains]
        if None in digests:
            return check()
        text = repr((what, digests, fact))
        digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=24).hexdigest()
        if digest not in self.known.checks and digest not in self.used.checks and not check():
            return False
        self.used.checks[digest] = None
        return True


def _is_unsound(targets: Mapping[str, Sequence[str]]) -> bool:
    """Whether chains, each with those that it leads to, lead to one that is not there, or go in a circle."""
    left = {name: len(found) for name, found in targets.items()}
    callers: dict[str, list[str]] = {name: [] for name in targets}
    for name, found in targets.items():
        for target in found:
            if target not in callers:
                return True
            callers[target].append(name)
    # take chains away that lead to none that is left: in a circle none can go first
    due = [name for name, number in left.items() if not number]
    while due:
        name = due.pop()
        del left[name]
        for caller in callers[name]:
            left[caller] -= 1
            if not left[caller]:
                due.append(caller)
    return bool(left)


class Check(Protocol):
    """A question about some chains."""

    def __call__(self) -> bool:
        """Return whether it holds."""


class NoMemo(ChainMemo):
    """Knows and keeps nothing."""

    remembers = False

    def __init__(self) -> None:
        super().__init__(Kept())

    def adopt(self, model: m.RulesetModel) -> None:
        """Leave a ruleset as it is."""

    def holds(self, _what: str, _chains: Sequence[m.Chain | None], _fact: object, check: Check) -> bool:
        """Return what the check returns."""
        return check()


NO_MEMO = NoMemo()


def digest_of(chain: m.Chain) -> str | None:
    """Return the digest of a chain's rules, where it has one."""
    return chain.digest if isinstance(chain, m.UnreadChain) else None
