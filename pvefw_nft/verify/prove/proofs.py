"""Proofs of NICs, which hold for all NICs of the same key (:mod:`.nic_keys`), in this comparison and in later ones.

Only proofs are kept by which no packet is treated otherwise, and which compared everything.

Example: a changed rule of VM 100 changes the key of VM 100. A changed rule of a security group changes the keys of the
guests that use it. A new set of the cluster changes no key until a rule names it.
"""

from __future__ import annotations

import hashlib
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pvefw_nft.verify.simulate.tracking import Zone


class Proof(NamedTuple):
    """The proof of a NIC: both sides treat every packet alike in its segments.

    ``marked``: packets may leave with different marks, which counts where some segment looks at earlier marks;
    ``looks``: one of these does. ``ways`` and ``pairs`` are numbers for the report, ``zones`` the pairs of zones of
    both sides' lookups, each zone by its place in the key.
    """

    ways: int
    pairs: int
    marked: bool
    looks: bool
    zones: frozenset[tuple[Zone, Zone]]


class Proofs(Protocol):
    """Where proofs are kept, by key."""

    def load(self) -> Mapping[str, Proof]:
        """Return what was proved before."""

    def save(self, used: Mapping[str, Proof]) -> None:
        """Keep what a comparison used: proofs found and proofs made."""


class NoProofs:
    """Keeps nothing."""

    def load(self) -> Mapping[str, Proof]:
        """Return nothing."""
        return {}

    def save(self, used: Mapping[str, Proof]) -> None:
        """Keep nothing."""


NO_PROOFS = NoProofs()


@cache
def prover_digest() -> str:
    """Return a digest of this prover: of Python's version and of the sources of :mod:`pvefw_nft.verify`.

    Raises OSError where they cannot be read.
    """
    found = hashlib.sha256(sys.version.encode())
    folder = Path(__file__).resolve().parent.parent
    sources = sorted(folder.rglob("*.py"))
    if not sources:
        raise FileNotFoundError(folder)
    for file in sources:
        content = file.read_bytes()
        found.update(f"\0{file.relative_to(folder)}\0{len(content)}\0".encode())
        found.update(content)
    return found.hexdigest()
