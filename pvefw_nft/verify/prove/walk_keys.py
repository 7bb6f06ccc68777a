"""Keys of NICs for walks: NICs with one key have the same events in all their walks, of rules at corresponding slots.

A walk is prepared from the rules that packets of a NIC can meet (:mod:`.walk`). Preparing takes far longer than
walking, so the question whether two NICs differ only in names and numbers is asked of the rules as read. A key has all
rules that the walks of a NIC can meet, in order, and the facts of the stages. Written by *place*, the number of the
first appearance, are:

=============================  ========================================================================================
written by place               the key also has
=============================  ========================================================================================
interfaces of the stages       of each test of an interface, which of these fulfil it
chains                         their rules, in order
tests of addresses and ports   how the values overlap (:func:`~pvefw_nft.verify.prove.shapes.overlaps`)
marks set on connections       how their bits overlap with the tests of such bits, which are also written word for word
prefixes of logs               level and group
lines                          whether an origin names a line
=============================  ========================================================================================

All else is written word for word. Two NICs with one key have corresponding walks, for these reasons:

- *Interfaces* are known at each stage. So a test of one is decided by membership alone, and the key has the
  memberships. A rule that demands one of a few interfaces which no stage has is void, and is left out.
- *Chains.* A walk follows calls, and never reads the name of a chain. The tables are the same for all NICs.
- *Addresses and ports.* Preparing is Boolean, as :mod:`.nic_keys` says: it intersects and joins the values of tests,
  and asks whether one is empty or everything. Equal overlaps make each such expression of one NIC correspond to
  that of the other. A walk depends on atoms, and so on overlaps (:mod:`.shapes`), and compares with no other values.
- *Marks of connections.* A walk asks for each value that a rule sets, and for nothing else of it. A test of a mark may
  be read by its value (:func:`~pvefw_nft.verify.simulate.tracking.seen`), so it is written word for word, too.
- *Logs and lines* are compared for equality. That an origin names a line decides which rules are named first.
- *Counters.* The rate of a rule is a field of its own, and so is that of the corresponding rule.

A *slot* is the place of a rule: the place of its chain, and its position among the rules of the chain that the key has.

Example: guests 100 and 101 have ``-A tapNNNi0-IN -s 10.0.NNN.0/24 -p tcp --dport 80 -j ACCEPT``, each with its number:
the same key. If the two rules of a guest overlap, such as ports 80 and 1-1023, and the two rules of another do not, the
keys differ.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from pvefw_nft.verify import model as m
from pvefw_nft.verify.prove.key_parts import IS_INTERFACE, NoKeyError, interfaces_of
from pvefw_nft.verify.prove.shapes import RENAMED, overlaps
from pvefw_nft.verify.prove.walk import is_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pvefw_nft.verify.network.path import Nic, Stage
    from pvefw_nft.verify.prove.exploration import Exploration
    from pvefw_nft.verify.prove.program import Case
    from pvefw_nft.verify.prove.shapes import Key
    from pvefw_nft.verify.prove.walk import Line, RuleKey
    from pvefw_nft.verify.simulate.tracking import Track

Slot: TypeAlias = tuple[int, int]
"""A chain's place among the chains of a NIC, and a rule's position in it, from 0."""

_CT_MARKS = frozenset(m.CT_MARK)
_BITS = tuple((m.equals(bit, 0), m.equals(bit, 1)) for bit in m.CT_MARK)
"""The tests that each bit of a connection's mark is 0, and that it is 1."""


_OfChain: TypeAlias = "tuple[m.Table, m.Chain, tuple[int, ...] | None]"
"""A chain with the numbers of the rules that a NIC can meet; None: all of them."""


class NicRules:
    """The rules that the walks of a NIC can meet. ``lines`` are their lines, by place."""

    __slots__ = ("_chains", "lines")

    def __init__(self, lines: tuple[Line, ...], chains: tuple[_OfChain, ...]) -> None:
        """Take the lines and the chains, by place."""
        self.lines = lines
        self._chains = chains

    def rule(self, slot: Slot) -> tuple[m.Table, m.Chain, int, m.Rule]:
        """Return the rule at a slot: its table, its chain, and its number there."""
        table, chain, numbers = self._chains[slot[0]]
        number = slot[1] + 1 if numbers is None else numbers[slot[1]]
        return table, chain, number, chain.rules[number - 1]

    def chain(self, place: int) -> _OfChain:
        """Return the chain at a place, with the numbers of its rules; None: it has all of them."""
        return self._chains[place]

    def rule_key(self, slot: Slot) -> RuleKey:
        """Return the identity of the rule at a slot."""
        table, chain, numbers = self._chains[slot[0]]
        return id(table), id(chain), slot[1] + 1 if numbers is None else numbers[slot[1]]

    def shared(self, other: NicRules) -> list[bool]:
        """Return, for the chain at each place, whether all of its rules are the same for another NIC of the key."""
        return [
            one[1] is two[1] and one[2] is two[2] is None for one, two in zip(self._chains, other._chains, strict=True)
        ]

    def slots(self, rules: Iterable[tuple[m.Table, m.Chain, int, m.Rule]]) -> list[Slot]:
        """Return the slots of rules of this NIC's walks."""
        places = {(id(table), id(chain)): place for place, (table, chain, _) in enumerate(self._chains)}
        found = []
        for table, chain, number, _ in rules:
            place = places[id(table), id(chain)]
            numbers = self._chains[place][2]
            found.append((place, number - 1 if numbers is None else numbers.index(number)))
        return found


# --- rules with places --------------------------------------------------------------------------------------------


class _Written(NamedTuple):
    """Some rules of a chain. ``number`` is the same for rules that are equal but for what stands at their places.

    The rest is that, in order, and the ``origins`` of the rules. ``marks`` are sets of a connection's mark.
    """

    number: int
    tests: tuple[m.Test, ...]
    targets: tuple[str, ...]
    logs: tuple[str, ...]
    marks: tuple[m.SetMark, ...]
    interfaces: tuple[m.Test, ...]
    origins: tuple[str, ...]


class _InterfaceError(Exception):
    """A rule asks for an interface, so the chain's rules are written one by one."""


class _Pen:
    """Writes rules as nested tuples, with places instead of what guests of one kind differ in."""

    def __init__(self, *, of_chain: bool) -> None:
        """``of_chain``: raise _InterfaceError at a test of an interface."""
        self._of_chain = of_chain
        self._tests: dict[m.Test, int] = {}
        self._targets: dict[str, int] = {}
        self._logs: dict[str, int] = {}
        self._marks: dict[m.SetMark, int] = {}
        self._interfaces: list[m.Test] = []
        self._origins: list[str] = []

    def written(self, number: int) -> _Written:
        return _Written(
            number,
            tuple(self._tests),
            tuple(self._targets),
            tuple(self._logs),
            tuple(self._marks),
            tuple(self._interfaces),
            tuple(self._origins),
        )

    def rule(self, rule: m.Rule) -> object:
        """Return a rule; None for a mere comment, which no walk has. Raises NoKeyError, _InterfaceError."""
        self._origins.append(rule.origin)
        if rule.verdict is None and not rule.effects:
            return None
        tests = self._tests
        found: list[object] = [is_line(rule.origin), len(rule.conditions)]
        for condition in rule.conditions:
            if type(condition) is m.Test and condition.field in RENAMED:  # as in condition(): nearly all are
                place = tests.get(condition)
                if place is None:
                    place = tests[condition] = len(tests)
                found += (condition.field, place)
            else:
                found.append(self.condition(condition))
        if rule.effects:
            found.append(tuple([self.effect(effect) for effect in rule.effects]))
        found.append(self.verdict(rule.verdict))
        return tuple(found)

    def condition(self, condition: m.Condition) -> object:
        if isinstance(condition, m.Test):
            on = condition.field
            if on in RENAMED:
                return on, self._tests.setdefault(condition, len(self._tests))
            if on in IS_INTERFACE:
                if self._of_chain:
                    raise _InterfaceError
                self._interfaces.append(condition)
                return on
            if on in _CT_MARKS:  # how it relates to the marks that rules set counts, beside its values
                return condition, self._tests.setdefault(condition, len(self._tests))
            return condition
        if isinstance(condition, m.Not):
            return "not", self.condition(condition.of)
        return type(condition).__name__, tuple([self.condition(part) for part in condition.of])

    def effect(self, effect: m.Effect) -> object:
        match effect:
            case m.Log(prefix, level, group):
                return "log", self._logs.setdefault(prefix, len(self._logs)), level, group
            case m.SetMark(m.MarkTarget.CONNECTION, keep, flip):
                if keep & flip:
                    raise NoKeyError  # bits that change, instead of getting a value
                return "ct mark", keep, self._marks.setdefault(effect, len(self._marks))
            case m.CopyMark():
                raise NoKeyError
            case m.SetZone():
                return "zone"  # a walk asks no more than whether a rule gives one
            case m.SetField(on) if on in RENAMED:
                raise NoKeyError
            case m.Guard(condition):
                return "guard", self.condition(condition)
            case _:
                return effect

    def verdict(self, verdict: m.Verdict | None) -> object:
        if isinstance(verdict, (m.Jump, m.Goto)):
            return type(verdict).__name__, self._targets.setdefault(verdict.chain, len(self._targets))
        if isinstance(verdict, (m.VerdictMap, m.Nat)):
            raise NoKeyError
        return verdict


class _Chain:
    """A chain's rules: the ``whole`` of them, or each of ``others`` that all NICs meet, by number from 1, and by
    interface the numbers of those that ask for one of a few.
    """

    __slots__ = ("all", "by_interface", "chain", "lines", "others", "whole")

    def __init__(self, table: m.Table, chain: m.Chain) -> None:
        self.chain = chain
        self.all: _OfChain = (table, chain, None)
        self.whole: _Written | None = None
        self.lines: list[Line] = []
        self.others: dict[int, _Written] = {}
        self.by_interface: dict[int, list[int]] = {}


class _Chains:
    """Writes chains, and remembers those that more than one NIC meets."""

    def __init__(self) -> None:
        self._known: dict[int, _Chain | None] = {}
        self._numbers: dict[object, int] = {}

    def chain(self, table: m.Table, name: str) -> _Chain:
        """Return a chain. Raises NoKeyError."""
        chain = table.chains.get(name)
        if chain is None:
            raise NoKeyError
        found = self._known.get(id(chain))
        if found is None:
            found = self._made(table, chain)
            # most chains are of one NIC, and are met once
            self._known[id(chain)] = found if id(chain) in self._known or found.whole is None else None
        return found

    def rule(self, rule: m.Rule) -> _Written:
        """Return a rule by itself. Raises NoKeyError."""
        pen = _Pen(of_chain=False)
        written = pen.rule(rule)
        return pen.written(self._numbers.setdefault(written, len(self._numbers)))

    def _made(self, table: m.Table, chain: m.Chain) -> _Chain:
        found = _Chain(table, chain)
        pen = _Pen(of_chain=True)
        try:
            rules = [pen.rule(rule) for rule in chain.rules]
            whole = "chain", type(chain.policy).__name__, chain.hook is None, *rules
            found.whole = pen.written(self._numbers.setdefault(whole, len(self._numbers)))
            found.lines = _lines(table, chain, range(1, len(rules) + 1), found.whole.origins)
        except _InterfaceError:
            for number, rule in enumerate(chain.rules, 1):
                of = interfaces_of(rule)
                if of is None:
                    found.others[number] = self.rule(rule)
                for interface in of or ():
                    found.by_interface.setdefault(interface, []).append(number)
        return found


# --- NICs ---------------------------------------------------------------------------------------------------------


Segments: TypeAlias = "Sequence[tuple[tuple[Stage, ...], Track, Case]]"
"""The segments to walk: their stages, the stages' parts in connection tracking, and a kind of frame."""


class _Stages(NamedTuple):
    """The stages of a NIC's segments: ``facts`` with interfaces by role, the ``roots`` (base chains, by the place of
    their table and by name), and the ``interfaces`` by role.
    """

    facts: Key
    roots: tuple[tuple[int, str], ...]
    interfaces: tuple[int, ...]


class WalkKeys:
    """Gives NICs their keys."""

    def __init__(self, explored: Exploration) -> None:
        """``explored`` is an exploration of one ruleset."""
        self._flows = explored.flows_before
        self._zones = explored.tested.zones
        self._kinds = explored.residuals.kind is not None
        self._chains = _Chains()
        self._tables = explored.before.model.tables
        self._places = {id(table): place for place, table in enumerate(self._tables)}
        self._stages: dict[object, tuple[_Stages, tuple[int | None, ...]]] = {}

    def of(self, nic: Nic, segments: Callable[[], Segments]) -> tuple[Key, NicRules] | None:
        """Return the key of a NIC, and the rules that walks of its segments can meet; None: it has none.

        ``segments`` returns the segments at the NIC's firewall bridge.
        """
        if self._kinds:
            return None
        try:
            return self._rules(self.stages(nic, segments))
        except NoKeyError:
            return None

    def stages(self, nic: Nic, segments: Callable[[], Segments]) -> _Stages:
        """Return the stages of a NIC's segments. Raises NoKeyError.

        Without zones, these segments depend on the names of the NIC's interfaces, and on the bridge, by which frames of
        fewer kinds come if it has no port. So those of the first NIC of a bridge are known for the others.
        """
        own = tuple(map(m.interface_number, (nic.interface, nic.link, nic.firewall_bridge)))
        kind = nic.bridge, nic.filtered, nic.tag, nic.trunks
        known = self._stages.get(kind)
        if known is not None and len(set(own)) == len(own):
            stages, roles = known
            return stages._replace(interfaces=tuple([m.NO_INTERFACE if at is None else own[at] for at in roles]))
        found = self._made(segments())
        names = {number: at for at, number in enumerate(own)}
        others = found.interfaces[1:]
        if not self._zones and nic.filtered and len(names) == len(own) and names.keys() >= {*others}:
            self._stages[kind] = found, (None, *[names[number] for number in others])
        return found

    def _made(self, segments: Segments) -> _Stages:
        roles = {m.NO_INTERFACE: 0}
        facts: list[object] = []
        known: dict[int, Key] = {}
        roots: dict[tuple[int, str], None] = {}
        for stages, tracked, case in segments:
            written = known.get(id(stages))  # a way has the same stages for each case
            if written is None:
                written = known[id(stages)] = tuple([_stage(stage, roles) for stage in stages])
            facts += (case, written, tuple([(one.since, one.whole, one.known, one.fresh) for one in tracked]))
            for stage in stages:
                for table, chain in self._flows.chains(stage, case.protocol):
                    roots[self._places[id(table)], chain.name] = None
        return _Stages(tuple(facts), tuple(roots), tuple(roles))

    def _rules(self, stages: _Stages) -> tuple[Key, NicRules]:
        """Return all rules that packets can meet at these stages, and their key. Raises NoKeyError."""
        interfaces = stages.interfaces
        facts: list[object] = []
        tests: dict[m.Test, int] = _numbering()
        logs: dict[str, int] = _numbering()
        marks: dict[m.SetMark, int] = _numbering()
        lines: dict[Line, int] = _numbering()
        chains: list[_OfChain] = []
        places: dict[tuple[int, str], int] = _numbering(stages.roots)
        todo = [*stages.roots]
        for number, name in todo:
            table = self._tables[number]
            chain = self._chains.chain(table, name)
            parts, numbers = ([chain.whole], None) if chain.whole is not None else self._parts(chain, interfaces)
            if numbers is not None:
                facts += (len(parts), type(chain.chain.policy).__name__, chain.chain.hook is None)
            for written in parts:
                facts.append(written.number)
                facts += map(tests.__getitem__, written.tests)
                facts += map(logs.__getitem__, written.logs)
                facts += map(marks.__getitem__, written.marks)
                for test in written.interfaces:
                    facts.append(tuple([interface in test.values for interface in interfaces]))
                for target in written.targets:
                    place = places[number, target]
                    if place == len(todo):
                        todo.append((number, target))
                    facts.append(place)
            if numbers is None:
                facts += map(lines.__getitem__, chain.lines)
                chains.append(chain.all)
            else:
                origins = [written.origins[0] for written in parts]
                facts += map(lines.__getitem__, _lines(table, chain.chain, numbers, origins))
                chains.append((table, chain.chain, numbers))
        # the bits of a single mark overlap with nothing
        if len(marks) > 1 or not _CT_MARKS.isdisjoint([test.field for test in tests]):
            for mark in marks:
                facts += map(tests.__getitem__, _given(mark))
        return (stages.facts, stages.roots, tuple(facts), overlaps(tests)), NicRules(tuple(lines), tuple(chains))

    def _parts(self, chain: _Chain, interfaces: tuple[int, ...]) -> tuple[list[_Written], tuple[int, ...]]:
        """Return the rules of a chain that packets with these interfaces may meet, and their numbers."""
        parts = dict(chain.others)
        for interface in interfaces:
            for number in chain.by_interface.get(interface, ()):
                if number not in parts:
                    parts[number] = self._chains.rule(chain.chain.rules[number - 1])
        numbers = tuple(sorted(parts))
        return [parts[number] for number in numbers], numbers


def _numbering(first: Iterable[object] = ()) -> dict[Any, int]:
    """Return a mapping that gives each key, when it is asked for, the number of its first appearance."""
    found: defaultdict[object, int] = defaultdict(None, {key: number for number, key in enumerate(first)})
    found.default_factory = found.__len__
    return found


def _lines(table: m.Table, chain: m.Chain, numbers: Iterable[int], origins: Iterable[str]) -> list[Line]:
    """Return the lines of rules of a chain, by their numbers and origins."""
    return [origin or (id(table), id(chain), number) for number, origin in zip(numbers, origins, strict=True)]


def _given(mark: m.SetMark) -> list[m.Test]:
    """Return a test of each bit that gets a value."""
    return [test[mark.flip >> place & 1] for place, test in enumerate(_BITS) if not mark.keep >> place & 1]


def _stage(stage: Stage, roles: dict[int, int]) -> Key:
    """Return the facts of a stage, with interfaces by role. Raises NoKeyError."""
    when = stage.when
    if stage.from_host or not (when is m.TRUE or (isinstance(when, m.Test) and when.field is m.ETHER_TYPE)):
        raise NoKeyError  # the host's own MAC address would count, or other facts of the packet
    fields = []
    for on, value in stage.fields:
        fields.append((on, roles.setdefault(value, len(roles)) if on in IS_INTERFACE else value))
    return stage.family, stage.point, stage.unicast, stage.first, stage.last, stage.untagged, when, tuple(fields)
