"""Multi-terminal decision diagrams whose edges are sets of atoms.

A node represents a function from packets to a *terminal*. It tests one level (a field); each edge carries a
bit mask of the field's atoms (classes of values that nothing tells apart), so the width of a field costs
nothing. Levels ascend from the root. Nodes are numbers, and equal functions have equal numbers: nodes without a
choice are not made, edges to the same child are one edge.

Example, with level 0 the protocol (atom 0: tcp, 1: the rest) and level 1 the port (0: port 22, 1: the rest)::

    space = Diagrams([2, 2])
    accept, drop = space.terminal("accept"), space.terminal("drop")
    ssh = space.rule(((0, 0b01), (1, 0b01)), accept, drop)     # tcp and port 22: accept, else drop

The technique combines MTBDDs (Bryant 1986; Fujita, McGeer, Yang 1997) with the multi-valued edges of interval and
firewall decision diagrams (Gouda and Liu 2004).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from pvefw_nft.verify.prove.budget import STEPS_BETWEEN_CHECKS, UNBOUNDED

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

    from pvefw_nft.verify.prove.budget import Budget

TERMINAL = 1 << 30
"""The level of terminals: below every field."""
_NODE_COST, _EDGE_COST = 300, 64
"""Bytes that a node and each of its edges take, a mask of atoms aside (measured with CPython 3.11)."""

Cube: TypeAlias = tuple[tuple[int, int], ...]
"""A conjunction of tests: (level, mask of atoms), levels ascending, each at most once."""
Edges: TypeAlias = tuple[tuple[int, int], ...]
"""(child, mask), children ascending."""


class Diagrams:
    """All nodes of one proof. ``widths`` gives the number of atoms of each level.

    ``marks`` are bits that a node inherits from the nodes below it: :meth:`terminal` sets the marks of terminals,
    ``level_marks`` the marks of levels, so that substitution can skip nodes with nothing to substitute. ``memory`` is
    the approximate size of the nodes, in bytes. Operations raise BudgetExceededError if they exceed ``budget``.
    """

    __slots__ = (
        "_budget", "_edge_cost", "_level_marks", "_steps", "_terminals", "_unique", "edges", "full", "levels", "marks",
        "memory", "values",
    )  # fmt: skip

    def __init__(
        self, widths: Sequence[int], level_marks: Sequence[int] | None = None, budget: Budget = UNBOUNDED
    ) -> None:
        self._budget = budget
        self._steps = 0
        self._edge_cost = [_EDGE_COST + width // 7 for width in widths]
        self.memory = 0
        self._level_marks = [0] * len(widths) if level_marks is None else level_marks
        self.full = [(1 << width) - 1 for width in widths]
        self.levels: list[int] = []
        self.edges: list[Edges] = []
        self.marks: list[int] = []
        self.values: dict[int, Hashable] = {}
        self._unique: dict[tuple[int, Edges], int] = {}
        self._terminals: dict[Hashable, int] = {}

    def terminal(self, value: Hashable, marks: int = 0) -> int:
        """Return the node that is this value everywhere."""
        found = self._terminals.get(value)
        if found is None:
            found = self._terminals[value] = self._add(TERMINAL, (), marks)
            self.values[found] = value
        return found

    def node(self, level: int, parts: Mapping[int, int]) -> int:
        """Return the node with these children (child → mask); the masks together are all atoms, each once."""
        self._count_step()
        # all atoms lead to one child: the function does not depend on this level
        if len(parts) == 1:
            return next(iter(parts))
        edges = tuple(sorted(parts.items()))
        found = self._unique.get((level, edges))
        if found is None:
            marks = self._level_marks[level]
            for child, _ in edges:
                marks |= self.marks[child]
            self.memory += _NODE_COST + len(edges) * self._edge_cost[level]
            found = self._unique[level, edges] = self._add(level, edges, marks)
        return found

    def _count_step(self) -> None:
        self._steps += 1
        if self._steps == STEPS_BETWEEN_CHECKS:
            self._steps = 0
            self._budget.check_time()
            self._budget.check_memory(self.memory)

    def _add(self, level: int, edges: Edges, marks: int) -> int:
        self.levels.append(level)
        self.edges.append(edges)
        self.marks.append(marks)
        return len(self.levels) - 1

    # --- operations ---

    def rule(self, cube: Cube, then: int, other: int) -> int:
        """Return ``then`` where the cube holds, else ``other``."""
        return self._rule(cube, 0, then, other, {})

    def _rule(self, cube: Cube, at: int, then: int, other: int, memo: dict[tuple[int, int, int], int]) -> int:
        if at == len(cube) or then == other:
            return then
        key = (at, then, other)
        found = memo.get(key)
        if found is not None:
            return found
        levels = self.levels
        level, mask = cube[at]
        top = min(level, levels[then], levels[other])
        # then or other test a field that the cube leaves free; the field of the cube comes further below
        if top < level:
            level, mask, step = top, self.full[top], at
        else:
            step = at + 1
        parts: dict[int, int] = {}
        then_edges = self.edges[then] if levels[then] == level else ((then, mask),)
        other_edges = self.edges[other] if levels[other] == level else ((other, self.full[level]),)
        for child, atoms in other_edges:
            # atoms outside of the cube keep the other function
            outside = atoms & ~mask
            if outside:
                parts[child] = parts.get(child, 0) | outside
            atoms &= mask
            if not atoms:
                continue
            for branch, branch_atoms in then_edges:
                both = atoms & branch_atoms
                if both:
                    result = self._rule(cube, step, branch, child, memo)
                    parts[result] = parts.get(result, 0) | both
        found = memo[key] = self.node(level, parts)
        return found

    def select(self, condition: int, then: int, other: int, true: int) -> int:
        """Return ``then`` where ``condition`` is the terminal ``true``, else ``other``."""
        return self._select(condition, then, other, true, {})

    def _select(self, condition: int, then: int, other: int, true: int, memo: dict[tuple[int, int, int], int]) -> int:
        if then == other or condition == true:
            return then
        levels = self.levels
        # a terminal other than true: the condition holds nowhere below
        if levels[condition] == TERMINAL:
            return other
        key = (condition, then, other)
        found = memo.get(key)
        if found is not None:
            return found
        top = min(levels[condition], levels[then], levels[other])
        parts: dict[int, int] = {}
        for c, c_atoms in self._split(condition, top):
            for t, t_atoms in self._split(then, top):
                shared = c_atoms & t_atoms
                if not shared:
                    continue
                for o, o_atoms in self._split(other, top):
                    all_three = shared & o_atoms
                    if all_three:
                        result = self._select(c, t, o, true, memo)
                        parts[result] = parts.get(result, 0) | all_three
        found = memo[key] = self.node(top, parts)
        return found

    def _split(self, node: int, level: int) -> Edges:
        return self.edges[node] if self.levels[node] == level else ((node, self.full[level]),)

    def apply(self, combine: Callable[[int, int], int | None], left: int, right: int) -> int:
        """Return the function that combines both: ``combine(left, right)`` gives the node where it can tell.

        It must tell for two terminals; it may tell earlier, for any two nodes.
        """
        return self._apply(combine, left, right, {})

    def _apply(
        self,
        combine: Callable[[int, int], int | None],
        left: int,
        right: int,
        memo: dict[tuple[int, int], int],
    ) -> int:
        key = (left, right)
        found = memo.get(key)
        if found is not None:
            return found
        found = combine(left, right)
        if found is None:
            levels = self.levels
            top = min(levels[left], levels[right])
            parts: dict[int, int] = {}
            right_edges = self._split(right, top)
            for one, one_atoms in self._split(left, top):
                for two, two_atoms in right_edges:
                    both = one_atoms & two_atoms
                    if both:
                        result = self._apply(combine, one, two, memo)
                        parts[result] = parts.get(result, 0) | both
            found = self.node(top, parts)
        memo[key] = found
        return found

    def join(self, node: int, rests: Mapping[int, int], mark: int) -> int:
        """Return ``node`` with each terminal of ``rests`` replaced by the function given for it.

        ``mark`` is set in exactly these terminals below ``node``: a node without it is skipped.
        """
        if len(rests) == 1:
            return self._join(node, next(iter(rests.values())), mark, {})
        places = {terminal: place for place, terminal in enumerate(rests)}
        return self._join_several(node, tuple(rests.values()), places, mark, {})

    def _join(self, node: int, rest: int, mark: int, memo: dict[tuple[int, int], int]) -> int:
        if not self.marks[node] & mark:
            return node
        levels = self.levels
        if levels[node] == TERMINAL:
            return rest
        key = (node, rest)
        found = memo.get(key)
        if found is not None:
            return found
        parts: dict[int, int] = {}
        # rest tests nothing at this level: only the edges of the node count
        if levels[rest] > levels[node]:
            level = levels[node]
            for child, atoms in self.edges[node]:
                result = self._join(child, rest, mark, memo)
                parts[result] = parts.get(result, 0) | atoms
        else:
            level = levels[rest]
            edges = self._split(node, level)
            for branch, branch_atoms in self.edges[rest]:
                for child, atoms in edges:
                    both = atoms & branch_atoms
                    if both:
                        result = self._join(child, branch, mark, memo)
                        parts[result] = parts.get(result, 0) | both
        found = memo[key] = self.node(level, parts)
        return found

    def _join_several(
        self,
        node: int,
        rests: tuple[int, ...],
        places: Mapping[int, int],
        mark: int,
        memo: dict[tuple[int, tuple[int, ...]], int],
    ) -> int:
        if not self.marks[node] & mark:
            return node
        if node in places:
            return rests[places[node]]
        key = (node, rests)
        found = memo.get(key)
        if found is not None:
            return found
        levels = self.levels
        top = min(levels[node], *[levels[rest] for rest in rests])
        parts: dict[int, int] = {}
        for child, atoms in self._split(node, top):
            for branches, both in self._split_all(rests, top, atoms):
                result = self._join_several(child, branches, places, mark, memo)
                parts[result] = parts.get(result, 0) | both
        found = memo[key] = self.node(top, parts)
        return found

    def _split_all(self, nodes: tuple[int, ...], level: int, atoms: int) -> Iterator[tuple[tuple[int, ...], int]]:
        """Yield the nodes at a level, for each part of the atoms with the same nodes."""
        if not nodes:
            yield (), atoms
            return
        for child, mask in self._split(nodes[0], level):
            both = atoms & mask
            if both:
                for rest, rest_atoms in self._split_all(nodes[1:], level, both):
                    yield (child, *rest), rest_atoms

    def replace(self, node: int, fixed: Mapping[int, int], change: Callable[[int], int], memo: dict[int, int]) -> int:
        """Return the function with levels of ``fixed`` set to an atom and terminals put through ``change``.

        ``memo`` may be kept for further calls with the same ``fixed`` and ``change``.
        """
        found = memo.get(node)
        if found is not None:
            return found
        level = self.levels[node]
        if level == TERMINAL:
            found = change(node)
        elif level in fixed:
            atom = fixed[level]
            # the level disappears: exactly one child has this atom
            child = next(child for child, mask in self.edges[node] if mask >> atom & 1)
            found = self.replace(child, fixed, change, memo)
        else:
            parts: dict[int, int] = {}
            for child, mask in self.edges[node]:
                result = self.replace(child, fixed, change, memo)
                parts[result] = parts.get(result, 0) | mask
            found = self.node(level, parts)
        memo[node] = found
        return found

    # --- looking at a function ---

    def differ(self, condition: int, one: int, other: int, true: int) -> bool:
        """Return whether the functions differ for a packet for which ``condition`` is the terminal ``true``.

        As comparing two :meth:`select`, but no node is made, and the first difference ends it.
        """
        return self._differ(condition, one, other, true, set())

    def _differ(self, condition: int, one: int, other: int, true: int, alike: set[tuple[int, int, int]]) -> bool:
        if one == other:
            return False
        if condition == true:
            return True  # equal functions are one node
        levels = self.levels
        if levels[condition] == TERMINAL:
            return False
        key = (condition, one, other)
        if key in alike:
            return False
        top = min(levels[condition], levels[one], levels[other])
        for c, c_atoms in self._split(condition, top):
            for left, left_atoms in self._split(one, top):
                shared = c_atoms & left_atoms
                if not shared:
                    continue
                for right, right_atoms in self._split(other, top):
                    if shared & right_atoms and self._differ(c, left, right, true, alike):
                        return True
        # no difference below these three, whichever way leads to them
        alike.add(key)
        self._count_step()
        return False

    def support(self, node: int) -> set[int]:
        """Return the levels that a function tests."""
        seen = {node}
        todo = [node]
        found: set[int] = set()
        while todo:
            here = todo.pop()
            if self.levels[here] != TERMINAL:
                found.add(self.levels[here])
            new = [child for child, _ in self.edges[here] if child not in seen]
            seen.update(new)
            todo += new
        return found

    def paths(self, node: int, wanted: int) -> Iterator[Cube]:
        """Yield the cubes of packets with terminal ``wanted``, which exclude one another."""
        if node == wanted:
            yield ()
        elif self.levels[node] != TERMINAL:
            level = self.levels[node]
            for child, mask in self.edges[node]:
                for rest in self.paths(child, wanted):
                    yield ((level, mask), *rest)

    def terminals(self, node: int) -> set[int]:
        """Return the terminals that some packet has."""
        seen = {node}
        todo = [node]
        found = set()
        while todo:
            here = todo.pop()
            if self.levels[here] == TERMINAL:
                found.add(here)
            for child, _ in self.edges[here]:
                if child not in seen:
                    seen.add(child)
                    todo.append(child)
        return found

    def restrict(self, node: int, cube: Mapping[int, int], terminal: int) -> bool:
        """Return whether every packet of the cube (level → mask; other levels are free) has this terminal."""
        return self._restrict(node, cube, terminal, {})

    def _restrict(self, node: int, cube: Mapping[int, int], terminal: int, memo: dict[int, bool]) -> bool:
        if node == terminal:
            return True
        if self.levels[node] == TERMINAL:
            return False
        known = memo.get(node)
        if known is None:
            # -1 has every bit set: a level outside of the cube is free
            mask = cube.get(self.levels[node], -1)
            known = memo[node] = all(
                self._restrict(child, cube, terminal, memo) for child, atoms in self.edges[node] if atoms & mask
            )
        return known
