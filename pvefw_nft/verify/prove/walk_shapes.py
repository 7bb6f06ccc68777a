"""Reuse the events of a walk for walks that differ only in the addresses and ports of rules.

The shape of a walk is the shape of its chains (:mod:`~pvefw_nft.verify.prove.shapes`, with the reasons), and every
other input of a walk: the rules of one line, the lines with names, the removed lines, and the equality of chains and
tables. Of log texts only their equality counts. Bits of a connection's mark are renamed like addresses, since a walk
asks for each value that it sets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pvefw_nft.verify import model as m
from pvefw_nft.verify.prove.program import Copy, FlipBits, Set, Trace
from pvefw_nft.verify.prove.shapes import NoShapeError, Writer, overlaps
from pvefw_nft.verify.prove.specialise import find_chain
from pvefw_nft.verify.prove.walk import is_line, shows

if TYPE_CHECKING:
    from pvefw_nft.verify.prove.program import Action, Program
    from pvefw_nft.verify.prove.shapes import Key, Shape
    from pvefw_nft.verify.prove.walk import Line, Prepared, Walk

_LOG = "log "
_CT_MARKS = frozenset(m.CT_MARK)
"""Fields in whose values guests differ, too: each sets a number of its own. A walk asks for each value that it sets."""


def shape_of(walk: Walk, shapes: ChainShapes) -> Key | None:
    """Return a key that is equal for walks with the same events, by places; None: this walk has none."""
    writer = _WalkWriter(walk, shapes)
    try:
        chains = tuple([writer.chain(*key) for key in walk.prepared])
    except NoShapeError:
        return None
    entries = tuple([writer.number(id(table), id(chain), at) for at, (table, chain, _) in enumerate(walk.entries)])
    return chains, entries, overlaps(writer.places)


class _WalkWriter:
    """Number the tests, logs and chains that a walk meets, in the order of their first use."""

    def __init__(self, walk: Walk, shapes: ChainShapes) -> None:
        self.walk = walk
        self.shapes = shapes
        self.chains = {(id(chain), at): (table, chain) for at, (table, chain, _) in enumerate(walk.entries)}
        self.numbers = {key: number for number, key in enumerate(walk.prepared)}
        self.places: dict[m.Test, int] = {}
        self.tables: dict[int, int] = {}
        self.lines: dict[Line, int] = {}
        self.logs: dict[str, int] = {}

    def number(self, table: int, chain: int, at: int) -> int:
        return self.numbers[table, chain, at]

    def chain(self, table_id: int, chain_id: int, at: int) -> Key:
        """Return a chain as specialised at the place where the walk meets it. Callers come before callees."""
        table, chain = self.chains[chain_id, at]
        shape = self.shapes.of(self.walk.prepared[table_id, chain_id, at])
        keys = [(table_id, chain_id, number) for number in shape.numbers]
        lines = [origin or key for origin, key in zip(shape.origins, keys, strict=True)]
        policy = type(chain.policy).__name__ if chain.hook is None else ("hook", type(chain.policy).__name__)
        return (
            self.tables.setdefault(table_id, len(self.tables)),
            policy,
            shape.number,
            tuple([self.walk.places[key] for key in keys]),
            tuple([self.lines.setdefault(line, len(self.lines)) for line in lines]),
            tuple([line in self.walk.removed for line in lines]),
            tuple([self.places.setdefault(test, len(self.places)) for test in shape.tests]),
            tuple([self.logs.setdefault(text, len(self.logs)) for text in shape.logs]),
            tuple([self.called(table, name, at) for name in shape.called]),
        )

    def called(self, table: m.Table, name: str, at: int) -> int:
        called = find_chain(table, name)
        self.chains[id(called), at] = (table, called)
        return self.number(id(table), id(called), at)


class ChainShape(NamedTuple):
    """The rules of a chain in one context, without what other walks may have otherwise.

    ``number`` is the same for equal shapes. The rest is what stands at the places of a shape, in order: the rules'
    ``numbers`` in the chain and their ``origins``, ``tests``, ``logs``, and the names of chains ``called``.
    """

    number: int
    numbers: tuple[int, ...]
    origins: tuple[str, ...]
    tests: tuple[m.Test, ...]
    logs: tuple[str, ...]
    called: tuple[str, ...]


class ChainShapes:
    """Cache the shapes of prepared chains by the identity of the list: most chains occur in several walks."""

    def __init__(self) -> None:
        """Start with none."""
        self._numbers: dict[Key, int] = {}
        self._shapes: dict[int, tuple[list[Prepared], ChainShape | None]] = {}

    def of(self, prepared: list[Prepared]) -> ChainShape:
        """Return the shape of a chain. Raises NoShapeError if it has none."""
        known = self._shapes.get(id(prepared))
        if known is None:
            known = self._shapes[id(prepared)] = (prepared, self._made(prepared))
        if known[1] is None:
            raise NoShapeError
        return known[1]

    def _made(self, prepared: list[Prepared]) -> ChainShape | None:
        writer = _ChainWriter()
        try:
            rules = tuple([writer.rule(one) for one in prepared])
        except NoShapeError:
            return None
        return ChainShape(
            self._numbers.setdefault(rules, len(self._numbers)),
            tuple([one.number for one in prepared]),
            tuple([one.rule.origin for one in prepared]),
            tuple(writer.places),
            tuple(writer.logs),
            tuple(writer.called),
        )


class _ChainWriter(Writer):
    """Write the rules of a chain as nested tuples, with numbers instead of tests, logs and called chains."""

    def __init__(self) -> None:
        super().__init__(_calls_nothing)
        self.logs: dict[str, int] = {}
        self.called: dict[str, int] = {}

    def rule(self, one: Prepared) -> Key:
        return (
            is_line(one.rule.origin or ""),
            any(map(shows, one.rule.effects)),
            self.conditions(one.tests, one.conditions),
            self.actions(one.actions),
            tuple(
                [
                    (self.conditions(choice.tests, choice.conditions), self.verdict(choice.verdict))
                    for choice in one.choices
                ]
            ),
        )

    def verdict(self, verdict: m.PlainVerdict | None) -> object:
        if not isinstance(verdict, (m.Jump, m.Goto)):
            return verdict
        return type(verdict).__name__, self.called.setdefault(verdict.chain, len(self.called))

    def test(self, test: m.Test) -> object:
        return self.of_mark(test) if test.field in _CT_MARKS else super().test(test)

    def of_mark(self, test: m.Test) -> object:
        return test.field, self.places.setdefault(test, len(self.places))

    def action(self, action: Action) -> Key:
        match action:
            case Trace(text) if text.startswith(_LOG):
                return _LOG, self.logs.setdefault(text, len(self.logs))
            case Set(pairs):
                self.changes(on for on, _ in pairs)
                given = [self.of_mark(m.equals(on, v)) if on in _CT_MARKS else (on, "is", v) for on, v in pairs]
                return "Set", tuple(given)
            case FlipBits(bits):
                asked = bits
            case Copy(pairs):
                asked = tuple(bit for pair in pairs for bit in pair)
            case _:
                asked = ()
        # what these ask is the number 1, for every walk
        ones = [self.of_mark(m.equals(bit, 1)) for bit in asked if bit in _CT_MARKS]
        return (*super().action(action), tuple(ones))


def _calls_nothing(_program: Program) -> Shape:
    raise AssertionError("a walk calls chains, not programs")
