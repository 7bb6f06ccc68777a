"""Address sets of the IR as named sets of nft, one for each IP version.

nft's sets know no exceptions and no overlaps, so their members are computed here; see :mod:`.intervals`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from pvefw_nft.backends.nft.intervals import address_values, members
from pvefw_nft.backends.nft.syntax.objects import Set
from pvefw_nft.cache import NO_CACHE
from pvefw_nft.ir.nodes import Family

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pvefw_nft.backends.nft.intervals import Interval
    from pvefw_nft.cache import Cache
    from pvefw_nft.ir.nodes import AddressSet, SetKey

VERSIONS = ((4, Family.V4), (6, Family.V6))
"""The IP versions, each with its family."""


@functools.lru_cache(maxsize=4096)  # a service may see many names, one after another
def set_name(key: SetKey, version: int) -> str:
    """Return the name of a set: the name of its ipset, if the ipset's name is not hashed."""
    return f"PVEFW-{key.scope}-{key.name}-v{version}"


class AddressSets:
    """The sets of a ruleset, with their members."""

    def __init__(self, sets: Iterable[AddressSet], cache: Cache = NO_CACHE) -> None:
        """Compute the members of all sets."""
        self._cache = cache
        self._sets: dict[SetKey, AddressSet] = {}
        self._members: dict[tuple[SetKey, int], list[Interval]] = {}
        self._families: dict[SetKey, int] = {}
        for made in sets:
            self._sets[made.key] = made
            filled = 0
            for version, family in VERSIONS:
                intervals = self._computed(made, version)
                self._members[made.key, version] = intervals
                if intervals:
                    filled |= family
            self._families[made.key] = filled

    def families(self, key: SetKey) -> int:
        """Return the families of the set's members, as bits of :class:`Family`; 0: it is empty."""
        return self._families[key]

    def intervals(self, key: SetKey, version: int) -> list[Interval]:
        """Return the members of the set that are addresses of a version: ascending, none next to another."""
        return self._members[key, version]

    def named(self, used: Iterable[tuple[SetKey, int]]) -> Iterator[Set]:
        """Yield the named sets for the sets and versions that rules use."""
        for key, version in used:
            yield self._named(key, version)

    def _computed(self, made: AddressSet, version: int) -> list[Interval]:
        stage = f"members {version}"
        return self._cache.get(stage, made.key, lambda: made, lambda: members(made.entries, version))

    def _named(self, key: SetKey, version: int) -> Set:
        def make() -> Set:
            values = address_values(self._members[key, version], version)
            return Set(set_name(key, version), "ipv4_addr" if version == 4 else "ipv6_addr", tuple(values))

        return self._cache.get(f"named set {version}", key, lambda: self._sets[key], make)
