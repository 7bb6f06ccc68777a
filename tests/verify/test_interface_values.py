"""Names of interfaces in nft's sets and maps: the short way to their values gives what the long way gives."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pvefw_nft.verify.model import IIF, OBR
from pvefw_nft.verify.model.intervals import IntervalSet
from pvefw_nft.verify.readers.nft.values import Selector, ranges_of, values_of


def by_ranges(on: Selector, name: str) -> object:
    """Return the values by way of the expression's ranges, or the error."""
    try:
        return IntervalSet.from_ranges(ranges_of(on, name))
    except ValueError as error:
        return str(error)


def at_once(on: Selector, name: str) -> object:
    """Return the values as a set or map has them, or the error."""
    try:
        return values_of(on, name)
    except ValueError as error:
        return str(error)


@settings(max_examples=500)
@given(st.text(alphabet="tap10i*\\\0é", max_size=18))
@example("")
@example("*")
@example("tap100i0")
@example("fwbr*")
@example("a\\*")
@example("fifteen-letters*")
@example("more-than-fifteen-letters")
def test_same_values_as_by_ranges(name: str) -> None:
    for on in (Selector(IIF), Selector(OBR), Selector(IIF, symbols={"tap1": 5}), Selector(IIF, size=1 << 64)):
        assert at_once(on, name) == by_ranges(on, name)
