"""The partition of a field's values by the sets that rules ask for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pvefw_nft.verify.model.atoms import Atoms, distinct
from pvefw_nft.verify.model.intervals import IntervalSet

SIZE = 64
RANGES = st.tuples(st.integers(0, SIZE - 1), st.integers(0, SIZE - 1)).map(lambda ends: (min(ends), max(ends)))
SETS = st.lists(st.lists(RANGES, max_size=3).map(IntervalSet.from_ranges), max_size=12).map(distinct)


@given(SETS, st.booleans())
def test_each_set_is_the_union_of_its_atoms(sets: tuple[IntervalSet, ...], absent: bool) -> None:
    atoms = Atoms(SIZE, sets, absent=absent)
    for values in sets:
        assert atoms.values(atoms.masks[values]) == values
        assert atoms.mask_of(values) == atoms.masks[values]


@given(SETS)
def test_each_value_is_in_one_atom_which_no_set_divides(sets: tuple[IntervalSet, ...]) -> None:
    atoms = Atoms(SIZE, sets, absent=False)
    for value in range(SIZE):
        holding = [atom for atom in range(atoms.width) if value in atoms.values(1 << atom)]
        assert holding == [atoms.atom(value)]
        sample = atoms.samples[holding[0]]
        assert sample is not None
        assert [value in values for values in sets] == [sample in values for values in sets]


def test_sets_of_one_address_each_get_an_atom_each() -> None:
    sets = [IntervalSet.from_ranges([(2 * number, 2 * number)]) for number in range(3000)]
    atoms = Atoms(1 << 32, sets, absent=False)
    assert atoms.width == 3001
    assert all(atoms.masks[values].bit_count() == 1 for values in sets)
    assert len({*atoms.masks.values()}) == 3000
