"""Tests and sets that nothing uses are forgotten; the others stay the same objects."""

from __future__ import annotations

import gc
import weakref

from pvefw_nft.verify import model as m
from pvefw_nft.verify.model.interned import forget_unused
from pvefw_nft.verify.model.intervals import IntervalSet


def test_forget_unused_removes_what_nothing_refers_to() -> None:
    test = m.Test(m.DPORT, IntervalSet.of((60_001, 60_007)))
    of_test, of_set = weakref.ref(test), weakref.ref(test.values)
    del test
    gc.collect()
    forget_unused()
    assert of_test() is None
    assert of_set() is None


def test_forget_unused_keeps_what_is_used() -> None:
    test = m.Test(m.DPORT, IntervalSet.of((60_011, 60_017)))
    alone = IntervalSet.single(60_019)
    forget_unused()
    assert m.Test(m.DPORT, IntervalSet.of((60_011, 60_017))) is test
    assert IntervalSet.of((60_011, 60_017)) is test.values
    assert IntervalSet.single(60_019) is alone


def test_a_worker_does_not_grow_with_its_jobs() -> None:
    forget_unused()
    before = len(IntervalSet._known)
    for number in range(5_000):
        m.Test(m.SADDR4, IntervalSet.single(3_000_000 + number))
        if number % 100 == 0:
            forget_unused()
    forget_unused()
    assert len(IntervalSet._known) <= before
