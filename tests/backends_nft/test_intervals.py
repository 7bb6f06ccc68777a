"""Arithmetic on intervals, against the same on sets of single numbers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pvefw_nft.backends.nft.intervals import address_values, members, merged, number_values, without
from pvefw_nft.ir.nodes import Prefix, SetEntry

numbers = st.integers(0, 40)
intervals = st.lists(st.tuples(numbers, numbers).map(lambda pair: (min(pair), max(pair))), max_size=6)


def single(of: list[tuple[int, int]]) -> set[int]:
    return {number for first, last in of for number in range(first, last + 1)}


def apart(of: list[tuple[int, int]]) -> bool:
    return all(one[1] + 1 < other[0] for one, other in pairwise(of))


@given(intervals)
def test_merged_intervals_hold_the_same_and_do_not_touch(given_intervals: list[tuple[int, int]]) -> None:
    result = merged(given_intervals)
    assert single(result) == single(given_intervals)
    assert apart(result)


@given(intervals, intervals)
def test_holes_are_cut_out(whole: list[tuple[int, int]], holes: list[tuple[int, int]]) -> None:
    result = without(whole, holes)
    assert single(result) == single(whole) - single(holes)
    assert all(one[1] < other[0] for one, other in pairwise(result))


@st.composite
def entries(draw: st.DrawFn) -> list[SetEntry]:
    """Return entries of different networks within 10.0.0.0/26, some of them holes."""
    made: dict[tuple[int, int], SetEntry] = {}
    for _ in range(draw(st.integers(0, 8))):
        length = draw(st.integers(26, 32))
        address = 0x0A000000 | draw(st.integers(0, 63)) >> (32 - length) << (32 - length)
        made[address, length] = SetEntry(Prefix(4, address, length, ""), draw(st.booleans()))
    return list(made.values())


@given(entries())
def test_the_longest_entry_with_an_address_counts(made: list[SetEntry]) -> None:
    expected = set()
    for address in range(0x0A000000, 0x0A000040):
        having = [entry for entry in made if entry.prefix.address <= address <= entry.prefix.last]
        if having and not max(having, key=lambda entry: entry.prefix.length).nomatch:
            expected.add(address)
    assert single(members(made, 4)) == expected


def test_sets_hold_the_addresses_of_their_version_only() -> None:
    made = [SetEntry(Prefix(4, 0x0A000000, 8, "")), SetEntry(Prefix(6, 1, 128, ""))]
    assert members(made, 6) == [(1, 1)]


def test_a_network_is_written_as_one() -> None:
    assert address_values([(0x0A000000, 0x0AFFFFFF)], 4) == [{"prefix": {"addr": "10.0.0.0", "len": 8}}]


def test_a_single_address_has_no_length() -> None:
    assert address_values([(1, 1)], 6) == ["::1"]


def test_intervals_that_are_no_network_become_ranges() -> None:
    assert address_values([(0x0A000001, 0x0A000002)], 4) == [{"range": ["10.0.0.1", "10.0.0.2"]}]


def test_numbers_are_single_or_ranges() -> None:
    assert number_values([(22, 22), (80, 90)]) == [22, {"range": [80, 90]}]
