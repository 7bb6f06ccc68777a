"""Address sets as ipsets: their names, sizes and lines.

A set of the IR becomes two ipsets, one for each family, since an ipset holds one.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING

from pvefw_nft.backends.iptables import syntax
from pvefw_nft.ir.nodes import Family

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pvefw_nft.ir.nodes import AddressSet, SetKey

MIN_SIZE = 64
"""Smallest hash size and entry limit of an ipset."""

FAMILIES = ((Family.V4, 4), (Family.V6, 6))
"""The families of an ipset, each with its IP version."""

_LONGEST_PLAIN_NAME = 20
_FNV_OFFSET_BASIS = 0x811C9DC5
_FNV_PRIME = 0x01000193


def set_name(key: SetKey, family: Family) -> str:
    """Return the name of an ipset in a ruleset in which no other set has the same.

    Names of ipsets have at most 31 bytes (IPSET_MAXNAMELEN in linux/netfilter/ipset/ip_set.h), and ``_swap`` has to
    fit behind; so a long name is replaced by its 31-bit FNV-1a hash.
    """
    return _name(key, family, "")


@lru_cache(maxsize=65536)
def _name(key: SetKey, family: Family, salt: str) -> str:
    name = f"{key.scope}-{key.name}-v{4 if family is Family.V4 else 6}"
    return f"PVEFW-{name}" if len(name) <= _LONGEST_PLAIN_NAME else f"PVEFW-{fnv1a31(name + salt):X}"


class SetNames:
    """The names of a ruleset's ipsets; no two are the same.

    An attacker can find long names with the same hash, and rules must use the right set. So all sets whose names
    collide get a hash of more than the name. None of them keeps the common name: in the kernel, the old set has this
    name while the rules that use it are replaced.
    """

    def __init__(self, sets: Iterable[AddressSet]) -> None:
        """Name the sets."""
        self.collisions: dict[SetKey, tuple[SetKey, ...]] = {}
        """By set: the other sets whose names collide with its name."""
        self._others: dict[tuple[SetKey, Family], str] = {}
        by_name: dict[str, list[tuple[SetKey, Family]]] = {}
        for made in sets:
            for family, _ in FAMILIES:
                by_name.setdefault(set_name(made.key, family), []).append((made.key, family))
        for colliding in [named for named in by_name.values() if len(named) > 1]:
            for key, family in colliding:
                others = tuple(dict.fromkeys(other for other, _ in colliding if other != key))
                self.collisions[key] = tuple(dict.fromkeys((*self.collisions.get(key, ()), *others)))
                salted = (_name(key, family, f"#{number}") for number in count(1))
                name = self._others[key, family] = next(name for name in salted if name not in by_name)
                by_name[name] = [(key, family)]

    def name(self, key: SetKey, family: Family) -> str:
        """Return the name of an ipset."""
        return self._others.get((key, family)) or set_name(key, family)

    @property
    def identity(self) -> object:
        """The part that distinguishes these names from names without collisions."""
        return tuple(self._others.items())


def fnv1a31(text: str) -> int:
    """Return the low 31 bits of the FNV-1a hash (draft-eastlake-fnv, 32 bits)."""
    value = _FNV_OFFSET_BASIS
    for byte in text.encode():
        value = (value ^ byte) * _FNV_PRIME & 0xFFFFFFFF
    return value & 0x7FFFFFFF


def set_lines(made: AddressSet, names: SetNames) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each ipset of a set, and the lines that create and fill it."""
    # the next power of two, as the reference computes it
    size = max(MIN_SIZE, 1 << (max(made.counted, 1) - 1).bit_length())
    for family, version in FAMILIES:
        name = names.name(made.key, family)
        entries = sorted(
            (entry.prefix.canonical, entry.nomatch) for entry in made.entries if entry.prefix.version == version
        )
        lines = [syntax.create_set(name, version, size)]
        lines += [syntax.add_entry(name, network, nomatch=nomatch) for network, nomatch in entries]
        yield name, lines
