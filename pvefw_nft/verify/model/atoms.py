"""Atoms: the values of a field, partitioned into classes that a proof's tests do not tell apart.

Two values are in one class just if they lie in the same of the sets tested. So an ipset of 10,000 addresses makes
two classes, not 10,000. Class 0 may be *absent*: the packet does not have the field, and every test of it is
false.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.verify.model.intervals import IntervalSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


class Atoms:
    """The partition of one field with ``size`` values by ``sets``; with ``absent``, atom 0 is "not there".

    ``width`` is the number of atoms; ``masks`` the atoms of each set. The numbering depends only on which sets
    overlap, not on the values: fields with the same structure are numbered alike.
    """

    __slots__ = ("_starts", "absent", "masks", "samples", "size", "width")

    def __init__(self, size: int, sets: Sequence[IntervalSet], *, absent: bool) -> None:
        flips: dict[int, int] = {}
        for index, values in enumerate(sets):
            bit = 1 << index
            for bound in values.bounds:
                flips[bound] = flips.get(bound, 0) ^ bit
        signature = 0
        first: dict[int, int] = {}
        starts: list[tuple[int, int]] = []
        for bound in sorted({0, *flips}):
            if bound >= size:
                break
            signature ^= flips.get(bound, 0)
            starts.append((bound, signature))
            first.setdefault(signature, bound)
        order = sorted(first)
        base = int(absent)
        number = {signature: base + place for place, signature in enumerate(order)}
        self.absent = absent
        self.size = size
        self.width = base + len(order)
        self.samples: list[int | None] = [None] * base + [first[signature] for signature in order]
        self.masks = dict.fromkeys(sets, 0)
        for signature in order:
            for index in _ones(signature):
                self.masks[sets[index]] |= 1 << number[signature]
        self._starts = [(bound, number[signature]) for bound, signature in starts]

    def atom(self, value: int) -> int:
        """Return the atom of a value."""
        return next(atom for bound, atom in reversed(self._starts) if bound <= value)

    def values(self, mask: int) -> IntervalSet:
        """Return the values of the atoms in a mask."""
        ends = [bound for bound, _ in self._starts[1:]] + [self.size]
        return IntervalSet.from_ranges(
            (bound, end - 1) for (bound, atom), end in zip(self._starts, ends, strict=True) if mask >> atom & 1
        )

    def mask_of(self, allowed: IntervalSet) -> int:
        """Return the atoms whose every value is allowed."""
        first = int(self.absent)
        return sum(1 << atom for atom in range(first, self.width) if not self.values(1 << atom) - allowed)


def _ones(number: int) -> Iterator[int]:
    """Yield the places of the bits that are set; to shift a number of 20,000 bits for each takes hours."""
    text = bin(number)[:1:-1]
    place = text.find("1")
    while place >= 0:
        yield place
        place = text.find("1", place + 1)


def distinct(sets: Iterable[IntervalSet]) -> tuple[IntervalSet, ...]:
    """Return each set once, in the order met."""
    return tuple(dict.fromkeys(sets))
