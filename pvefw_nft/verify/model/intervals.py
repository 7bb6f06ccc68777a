"""Sets of integers as sorted intervals, canonical and interned: the values a match accepts.

Two sets are equal just if they are the same object, so the prover compares and hashes them in constant time.
A domain of any width works alike: a port, an IPv6 address, an interface name read as a 16 byte number.

Example::

    ports = IntervalSet.of((80, 80), (443, 443))
    80 in ports                       # True
    ports.complement(1 << 16)         # [0-79, 81-442, 444-65535]
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, ClassVar, final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@final
class IntervalSet:
    """A finite union of intervals of non-negative integers.

    ``bounds`` holds, ascending, where membership changes: the first value inside, the first value outside
    again, and so on; its length is even. Make one with :meth:`of`, :meth:`from_ranges` or the operations.
    """

    __slots__ = ("__weakref__", "bounds")
    bounds: tuple[int, ...]
    _known: ClassVar[dict[tuple[int, ...], IntervalSet]] = {}

    def __new__(cls, bounds: tuple[int, ...] = ()) -> IntervalSet:
        """Return the one set with these (canonical) bounds."""
        known = cls._known.get(bounds)
        if known is None:
            known = object.__new__(cls)
            object.__setattr__(known, "bounds", bounds)
            cls._known[bounds] = known
        return known

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"an IntervalSet does not change ({name})")

    def __reduce__(self) -> tuple[type[IntervalSet], tuple[tuple[int, ...]]]:
        return IntervalSet, (self.bounds,)

    @classmethod
    def of(cls, *ranges: tuple[int, int]) -> IntervalSet:
        """Return the set of all values in these ranges, each given by its first and last value."""
        return cls.from_ranges(ranges)

    @classmethod
    def from_ranges(cls, ranges: Iterable[tuple[int, int]]) -> IntervalSet:
        """As :meth:`of`. Ranges may overlap and come in any order; raises ValueError if one is empty."""
        bounds: list[int] = []
        for first, last in sorted(ranges):
            if first > last or first < 0:
                raise ValueError(f"not a range: {first}-{last}")
            if bounds and first <= bounds[-1]:
                if last >= bounds[-1]:
                    bounds[-1] = last + 1
            else:
                bounds += (first, last + 1)
        return cls(tuple(bounds))

    @classmethod
    def single(cls, value: int) -> IntervalSet:
        """Return the set of one value."""
        return cls((value, value + 1))

    @classmethod
    def masked(cls, mask: int, value: int, bits: int) -> IntervalSet:
        """Return all ``bits`` wide values v with ``v & mask == value``; the sets stay small only for small
        fields.

        A mask of leading ones gives one interval; each free bit above the lowest bit of the mask doubles
        them.
        """
        full = (1 << bits) - 1
        mask &= full
        if value & ~mask:
            return cls(())
        low = (mask & -mask).bit_length() - 1 if mask else bits
        free = [bit for bit in range(low, bits) if not mask >> bit & 1]
        if len(free) > 16:
            raise ValueError(f"mask {mask:#x} has too many holes")
        starts = [value]
        for bit in free:
            starts += [start | 1 << bit for start in starts]
        return cls.from_ranges((start, start | ((1 << low) - 1)) for start in starts)

    def __contains__(self, value: int) -> bool:
        return bool(bisect_right(self.bounds, value) & 1)

    def __bool__(self) -> bool:
        return bool(self.bounds)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield the intervals, ascending, as (first, last)."""
        bounds = self.bounds
        for index in range(0, len(bounds), 2):
            yield bounds[index], bounds[index + 1] - 1

    def __len__(self) -> int:
        """Return how many intervals there are (not how many values; see :meth:`count`)."""
        return len(self.bounds) // 2

    def count(self) -> int:
        """Return how many values the set holds."""
        return sum(last - first + 1 for first, last in self)

    def smallest(self) -> int:
        """Return the smallest value; raises IndexError if the set is empty."""
        return self.bounds[0]

    def complement(self, size: int) -> IntervalSet:
        """Return the values from 0 up to, not including, ``size`` that are not in this set."""
        bounds = self.bounds
        bounds = bounds[1:] if bounds and bounds[0] == 0 else (0, *bounds)
        bounds = bounds[:-1] if bounds and bounds[-1] == size else (*bounds, size)
        return IntervalSet(bounds)

    def __or__(self, other: IntervalSet) -> IntervalSet:
        if self is other or not other.bounds:
            return self
        return IntervalSet.from_ranges([*self, *other])

    def __and__(self, other: IntervalSet) -> IntervalSet:
        if self is other:
            return self
        left, right = list(self), list(other)
        out: list[int] = []
        i = j = 0
        while i < len(left) and j < len(right):
            first = max(left[i][0], right[j][0])
            last = min(left[i][1], right[j][1])
            if first <= last:
                out += (first, last + 1)
            if left[i][1] < right[j][1]:
                i += 1
            else:
                j += 1
        return IntervalSet(tuple(out))

    def __sub__(self, other: IntervalSet) -> IntervalSet:
        size = max(self.bounds[-1] if self.bounds else 0, other.bounds[-1] if other.bounds else 0)
        return self & other.complement(size)

    def __repr__(self) -> str:
        return "[" + ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in self) + "]"
