"""Connection tracking zones: which firewall bridge has which number."""

from __future__ import annotations

import doctest
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from pvefw_nft.ir import zones
from pvefw_nft.ir.zones import FIRST_ZONE, LAST_ZONE, SHARED_ZONE, allocate, first_choice, nic_of
from tests.support import VM, check

if TYPE_CHECKING:
    from tests.support import MakeRoot

ON = "[OPTIONS]\nenable: 1\n"
KEYS = st.tuples(st.integers(100, 999_999_999), st.integers(0, 31))
# few numbers for many NICs, so that they collide
COLLIDING = st.tuples(st.sampled_from([100 + 61439 * n for n in range(6)]), st.integers(0, 3))
VMIDS = COLLIDING.map(lambda key: key[0])
Zones = dict[tuple[int, int], int]
ANY_ZONE = st.integers(-1, 70_000)


def test_examples_of_the_documentation() -> None:
    assert doctest.testmod(zones).failed == 0


@given(st.sets(KEYS | COLLIDING, max_size=30), st.dictionaries(KEYS | COLLIDING, ANY_ZONE, max_size=30))
def test_zones_never_collide_and_leave_room_for_other_programs(
    nics: set[tuple[int, int]], held: dict[tuple[int, int], int]
) -> None:
    made = allocate(nics, held)
    assert set(made) == nics
    assert len(set(made.values())) == len(nics)
    assert all(FIRST_ZONE <= zone <= LAST_ZONE for zone in made.values())


@given(st.sets(COLLIDING, max_size=20), st.sets(COLLIDING, max_size=20))
def test_a_nic_that_stays_keeps_its_zone(before: set[tuple[int, int]], after: set[tuple[int, int]]) -> None:
    held = allocate(before)
    made = allocate(after, held)
    assert {key: made[key] for key in before & after} == {key: held[key] for key in before & after}
    assert allocate(after, made) == made


def test_a_zone_follows_from_the_nic_alone_where_none_collide() -> None:
    nics = [(vmid, index) for vmid in range(100, 400) for index in (0, 31)]
    assert allocate(nics) == {key: first_choice(*key) for key in nics}


def test_nics_that_no_number_is_left_for_share_one() -> None:
    nics = [(vmid, index) for vmid in range(100, 2100) for index in range(31)]
    made = allocate(nics)
    assert len(nics) > LAST_ZONE - FIRST_ZONE + 1
    assert {zone for zone in made.values() if zone != SHARED_ZONE} == set(range(FIRST_ZONE, LAST_ZONE + 1))


@given(st.sets(COLLIDING, max_size=20), st.dictionaries(COLLIDING, ANY_ZONE, max_size=20), st.sets(VMIDS))
def test_only_nics_of_one_guest_share_a_zone(nics: set[tuple[int, int]], held: Zones, together: set[int]) -> None:
    made = allocate(nics, held, together)
    assert set(made) == nics
    owners: dict[int, object] = {zone: key[0] if key[0] in together else key for key, zone in made.items()}
    assert all(owners[zone] == (key[0] if key[0] in together else key) for key, zone in made.items())
    assert len({made[key] for key in nics if key[0] in together}) == len({vmid for vmid, _ in nics} & together)
    assert allocate(nics, made, together) == made
    apart = allocate(nics, made)  # the option is taken back
    assert len(set(apart.values())) == len(nics)


def test_the_option_one_zone(make_root: MakeRoot) -> None:
    two = f"{VM}{VM.replace('net0', 'net1')}"
    root = make_root({"cluster": ON, "100.conf": two, "100.fw": ON, "101.conf": two, "101.fw": ON})
    (root / "etc/pve/firewall/100.pvefw").write_text("[OPTIONS]\none_zone: 1\n")
    zones_of_bridges = check(root).ruleset.zones
    assert zones_of_bridges == {
        "fwbr100i0": first_choice(100, 0),
        "fwbr100i1": first_choice(100, 0),
        "fwbr101i0": first_choice(101, 0),
        "fwbr101i1": first_choice(101, 1),
    }


def test_names_of_firewall_bridges() -> None:
    assert nic_of("fwbr100i0") == (100, 0)
    assert [nic_of(name) for name in ("fwbr100", "fwbr0100i0", "vmbr0", "fwbr100i0x", "xfwbr100i0")] == [None] * 5


def test_every_nic_with_a_firewall_bridge_has_a_zone(make_root: MakeRoot) -> None:
    """A guest whose firewall is off is behind one too, and one whose firewall is switched on keeps its connections."""
    ruleset = check(make_root({"cluster": ON, "100.conf": VM, "100.fw": ON, "101.conf": VM})).ruleset
    assert ruleset.zones == {"fwbr100i0": first_choice(100, 0), "fwbr101i0": first_choice(101, 0)}
