"""Arithmetic on sets of numbers, for ports, addresses and address sets.

nft refuses sets whose members overlap, and its sets know no exceptions. So members are merged, and the holes of an
address set (``nomatch``) are cut out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from pvefw_nft.backends.nft.syntax.expressions import anonymous_set, interval, prefix
from pvefw_nft.ir.nodes import Prefix

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pvefw_nft.backends.nft.syntax.expressions import AnonymousSet, Value
    from pvefw_nft.ir.nodes import SetEntry

Interval: TypeAlias = tuple[int, int]
"""The first and the last number, both included."""


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """Return the same numbers as sorted intervals that neither overlap nor touch.

    Example: ``[(22, 22), (80, 90), (85, 100), (101, 110)]`` becomes ``[(22, 22), (80, 110)]``.
    """
    ordered = sorted(intervals)
    if len(ordered) < 2:
        return ordered
    result: list[Interval] = []
    for first, last in ordered:
        if result and first <= result[-1][1] + 1:
            if last > result[-1][1]:
                result[-1] = (result[-1][0], last)
        else:
            result.append((first, last))
    return result


def without(intervals: Iterable[Interval], holes: Iterable[Interval]) -> list[Interval]:
    """Return the numbers that are in the intervals and in none of the holes, merged.

    Example: ``[(1, 10)]`` without ``[(4, 5), (9, 20)]`` is ``[(1, 3), (6, 8)]``.
    """
    cuts = merged(holes)
    result: list[Interval] = []
    position = 0
    for first, last in merged(intervals):
        start = first
        while position < len(cuts) and cuts[position][1] < start:
            position += 1
        index = position
        while index < len(cuts) and cuts[index][0] <= last:
            if cuts[index][0] > start:
                result.append((start, cuts[index][0] - 1))
            start = cuts[index][1] + 1
            index += 1
        if start <= last:
            result.append((start, last))
    return result


def members(entries: Iterable[SetEntry], version: int) -> list[Interval]:
    """Return the addresses of one IP version that are in a set: of all entries with an address, the longest counts.

    Example: ``10.0.0.0/8, !10.1.0.0/16, 10.1.1.0/24`` becomes ``10.0.0.0-10.0.255.255, 10.1.1.0-10.1.1.255,
    10.2.0.0-10.255.255.255``.
    """
    chosen = [entry for entry in entries if entry.prefix.version == version]
    if not any(entry.nomatch for entry in chosen):
        return merged((entry.prefix.address, entry.prefix.last) for entry in chosen)
    result: list[Interval] = []
    # from short to long prefixes, so that the longest one decides, as in the kernel's hash:net sets
    for length in sorted({entry.prefix.length for entry in chosen}):
        of_length = [entry for entry in chosen if entry.prefix.length == length]
        result = merged([*result, *((e.prefix.address, e.prefix.last) for e in of_length if not e.nomatch)])
        result = without(result, [(e.prefix.address, e.prefix.last) for e in of_length if e.nomatch])
    return result


def number_values(intervals: Iterable[Interval]) -> list[Value]:
    """Return intervals of numbers as nft's values."""
    return [first if first == last else interval(first, last) for first, last in intervals]


def address_values(intervals: Iterable[Interval], version: int) -> list[Value]:
    """Return intervals of addresses as nft's values: a single address, a network if it is one, or a range."""
    return [_address_value(first, last, version) for first, last in intervals]


def _address_value(first: int, last: int, version: int) -> Value:
    text = _text(version, first)
    if first == last:
        return text
    host_bits = (first ^ last).bit_length()
    mask = (1 << host_bits) - 1
    if first & mask == 0 and last & mask == mask:
        return prefix(text, (32 if version == 4 else 128) - host_bits)
    return interval(text, _text(version, last))


def _text(version: int, address: int) -> str:
    return Prefix(version, address, 32 if version == 4 else 128, "").canonical


def one_of(values: list[Value]) -> Value | AnonymousSet:
    """Return the operand of a selector: a single value itself, else a set of values."""
    return values[0] if len(values) == 1 else anonymous_set(values)
