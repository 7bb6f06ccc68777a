from __future__ import annotations

import pickle

import pytest

from pvefw_nft.verify.model.intervals import IntervalSet


def test_equal_sets_are_one_object() -> None:
    assert IntervalSet.of((1, 3), (4, 6)) is IntervalSet.of((1, 6))
    assert IntervalSet.of((5, 9), (1, 6)) is IntervalSet.of((1, 9))


def test_membership_at_the_edges() -> None:
    ports = IntervalSet.of((22, 22), (80, 90))
    assert [value for value in (21, 22, 23, 79, 80, 90, 91) if value in ports] == [22, 80, 90]


def test_complement_within_a_domain() -> None:
    assert list(IntervalSet.of((0, 4), (8, 9)).complement(10)) == [(5, 7)]
    assert list(IntervalSet().complement(4)) == [(0, 3)]
    assert not IntervalSet.of((0, 3)).complement(4)


def test_mask_with_holes() -> None:
    syn_of_four = IntervalSet.masked(0x17, 0x02, 8)
    assert syn_of_four.count() == 16
    assert all((value & 0x17 == 2) == (value in syn_of_four) for value in range(256))


def test_mask_that_wants_a_bit_it_hides_is_empty() -> None:
    assert not IntervalSet.masked(0x0F, 0x10, 8)


def test_empty_range_is_refused() -> None:
    with pytest.raises(ValueError, match="not a range"):
        IntervalSet.of((3, 2))


def test_a_pickled_set_is_the_same_object() -> None:
    values = IntervalSet.of((7, 9))
    assert pickle.loads(pickle.dumps(values)) is values
