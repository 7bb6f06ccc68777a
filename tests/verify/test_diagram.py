"""Decision diagrams: whether two functions differ, checked with every packet."""

from __future__ import annotations

import random

from pvefw_nft.verify.prove.diagram import Diagrams

WIDTHS = (2, 3, 2, 4)


def build(space: Diagrams, chosen: random.Random, terminals: tuple[int, ...], rules: int) -> int:
    """Return a function of a few random rules."""
    node = chosen.choice(terminals)
    for _ in range(rules):
        levels = sorted(chosen.sample(range(len(WIDTHS)), chosen.randint(1, 3)))
        cube = tuple((level, chosen.randrange(1, 1 << WIDTHS[level])) for level in levels)
        node = space.rule(cube, chosen.choice(terminals), node)
    return node


def test_functions_differ_where_a_packet_of_the_condition_tells_them_apart() -> None:
    found = {True: 0, False: 0}
    for seed in range(400):
        chosen = random.Random(seed)
        space = Diagrams(WIDTHS)
        true, false = space.terminal(True), space.terminal(False)
        ends = tuple(space.terminal(name) for name in ("accept", "drop"))
        condition = build(space, chosen, (true, false), 2)
        one = build(space, chosen, ends, 4)
        other = space.rule(((chosen.randrange(4), 1),), chosen.choice(ends), one)
        expected = space.select(condition, one, false, true) != space.select(condition, other, false, true)
        assert space.differ(condition, one, other, true) is expected
        found[expected] += 1
    assert min(found.values()) > 50


def test_support_names_the_levels_that_a_function_tests() -> None:
    space = Diagrams(WIDTHS)
    accept, drop = space.terminal("accept"), space.terminal("drop")
    assert space.support(accept) == set()
    assert space.support(space.rule(((1, 1), (3, 2)), accept, drop)) == {1, 3}
