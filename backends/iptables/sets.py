"""Address sets as ipsets: their names, sizes and lines.

A set of the IR becomes two ipsets, one for each family, since an ipset holds one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from backends.iptables import syntax
from pvefw_nft.ir.nodes import Family

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pvefw_nft.ir.nodes import AddressSet, SetKey

MIN_SIZE = 64
"""Smallest hash size and entry limit of an ipset."""

_LONGEST_PLAIN_NAME = 20
_FNV_OFFSET_BASIS = 0x811C9DC5
_FNV_PRIME = 0x01000193


@lru_cache(maxsize=65536)
def set_name(key: SetKey, family: Family) -> str:
    """Return the name of an ipset.

    Names of ipsets have at most 31 bytes (IPSET_MAXNAMELEN in linux/netfilter/ipset/ip_set.h), and ``_swap`` has to
    fit behind; so a long name is replaced by its 31-bit FNV-1a hash.
    """
    name = f"{key.scope}-{key.name}-v{4 if family is Family.V4 else 6}"
    return f"PVEFW-{name}" if len(name) <= _LONGEST_PLAIN_NAME else f"PVEFW-{_fnv1a31(name):X}"


def _fnv1a31(text: str) -> int:
    """Return the low 31 bits of the FNV-1a hash (draft-eastlake-fnv, 32 bits)."""
    value = _FNV_OFFSET_BASIS
    for byte in text.encode():
        value = (value ^ byte) * _FNV_PRIME & 0xFFFFFFFF
    return value & 0x7FFFFFFF


def set_lines(made: AddressSet) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each ipset of a set, and the lines that create and fill it."""
    size = max(MIN_SIZE, 1 << (max(made.counted, 1) - 1).bit_length())
    for family, version in ((Family.V4, 4), (Family.V6, 6)):
        name = set_name(made.key, family)
        entries = sorted(
            (entry.prefix.canonical, entry.nomatch) for entry in made.entries if entry.prefix.version == version
        )
        lines = [syntax.create_set(name, version, size)]
        lines += [syntax.add_entry(name, network, nomatch=nomatch) for network, nomatch in entries]
        yield name, lines
