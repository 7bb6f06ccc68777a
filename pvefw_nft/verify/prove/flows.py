"""The base chains that a packet meets on its way, specialised for it.

A :class:`PathPair` is a path through the host for both sides of a comparison. Its *segments* are the hops of the path
(one bridge crossed, or the host's own stack). Most paths share their segments, so each segment is proved once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from pvefw_nft.verify import model as m
from pvefw_nft.verify.model.atoms import Atoms, distinct
from pvefw_nft.verify.model.intervals import IntervalSet
from pvefw_nft.verify.network.path import (
    End,
    HostEnd,
    NicEnd,
    PortEnd,
    RoutedEnd,
    Stage,
    find_stages,
)
from pvefw_nft.verify.prove.evaluate import Base, Flow, programs_of, tests_of_programs
from pvefw_nft.verify.prove.facts import ALL_STATES, Context, Later, ether_type, known_fields
from pvefw_nft.verify.prove.program import (
    ACCEPT,
    INTERFACES,
    RETURN,
    SOMETIMES_ABSENT,
    TOGETHER,
    Call,
    Case,
    Outcome,
    Program,
    Set,
    Step,
)
from pvefw_nft.verify.prove.specialise import Residuals, Specialiser
from pvefw_nft.verify.simulate.tracking import LOOKUP, Tracking, enters

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pvefw_nft.verify.prove.counters import Counters
    from pvefw_nft.verify.prove.facts import Known
    from pvefw_nft.verify.prove.network import Network, Side
    from pvefw_nft.verify.simulate.tracking import Track

LLDP = 0x88CC
"""An ether type that represents all those that no rule names."""

NEW = m.within(m.CT_STATE, (m.CT_STATES.index("new"),) * 2)


def _asks_early(model: m.RulesetModel) -> bool:
    """Whether rules may look at connections before the lookup: any rule of a table with a base chain there."""
    return any(
        test.field is m.CT_STATE
        for table in model.tables
        if any(chain.hook is not None and chain.hook.priority < LOOKUP for chain in table.chains.values())
        for chain in m.telling_chains(table)
        for test in chain.tests
    )


def shared_counters(before: m.RulesetModel, after: m.RulesetModel) -> frozenset[m.Field]:
    """Return the rates that both rulesets count by a counter of the same name."""
    found = [
        {on for on in fields_of(model) if on.kind is m.FieldKind.BIT and m.rate_of(on) not in (None, on)}
        for model in ((before,) if after is before else (before, after))
    ]
    return frozenset(found[0] & found[-1])


def fields_of(model: m.RulesetModel) -> set[m.Field]:
    """Return the fields that rules test."""
    return {test.field for chain in chains_of(model) for test in chain.tests}


def chains_of(model: m.RulesetModel) -> Iterator[m.Chain]:
    """Yield chains of a ruleset that together have every test and every sort of effect of all of them."""
    for table in model.tables:
        yield from m.telling_chains(table)


@dataclass(slots=True)
class Tested:
    """The values that two rulesets test: all sets by field, and the mark bits that a rule tests or copies."""

    sets: dict[m.Field, dict[IntervalSet, None]] = field(default_factory=dict)
    marks: set[m.Field] = field(default_factory=set)
    exempts: bool = False
    untracks: bool = False
    zones: bool = False
    sets_ct_mark: bool = False
    later: Later = field(default_factory=Later)

    @classmethod
    def of(cls, *models: m.RulesetModel) -> Tested:
        """Collect the values from these rulesets."""
        self = cls()
        every_mark = {*m.MARK, *m.CT_MARK}
        sets = self.sets
        models = tuple({id(model): model for model in models}.values())
        for model in models:
            for chain in chains_of(model):
                for test in chain.tests:
                    known = sets.get(test.field)
                    if known is None:
                        known = sets[test.field] = {}
                    known[test.values] = None
        self.marks = {bit for bit in every_mark & set(sets) if any(v is not bit.everything for v in sets[bit])}
        effects = [
            effect for model in models for chain in chains_of(model) for rule in chain.rules for effect in rule.effects
        ]
        self.untracks = any(isinstance(effect, m.NoTrack) for effect in effects)
        # a zone or a helper shows only in the state before the lookup, which few rules test
        self.exempts = self.untracks or (
            any(
                isinstance(effect, m.SetZone) or (isinstance(effect, m.SetHelper) and effect.template)
                for effect in effects
            )
            and any(_asks_early(model) for model in models)
        )
        self.zones = any(isinstance(effect, m.SetZone) for effect in effects)
        self.sets_ct_mark = any(
            isinstance(effect, (m.SetMark, m.CopyMark)) and effect.target is m.MarkTarget.CONNECTION
            for effect in effects
        )
        # sets that hold one of related and new, and not the other, tell them apart
        related = [
            m.CT_STATES.index(name) in values for name in ("related", "new") for values in sets.get(m.CT_STATE, ())
        ]
        half = len(related) // 2
        self.later = Later(
            frozenset(name for model in models for table in model.tables for name in table.lookups),
            frozenset(effect.field for effect in effects if isinstance(effect, m.SetField)) & sets.keys(),
            related[:half] != related[half:] or any(on.name.startswith("ct helper ") for on in sets),
        )
        self._follow_copies([effect for effect in effects if isinstance(effect, m.CopyMark)])
        return self

    def _follow_copies(self, copies: Sequence[m.CopyMark]) -> None:
        """Add the bits that rules copy to a bit that matters: they matter, too."""
        # a copied bit may be copied on: repeat until no bit is added
        before = -1
        while before != len(self.marks):
            before = len(self.marks)
            for copy in copies:
                other = m.CT_MARK if copy.target is m.MarkTarget.PACKET else m.MARK
                self.marks |= {
                    other[place]
                    for place, bit in enumerate(copy.target.bits)
                    if copy.take >> place & 1 and bit in self.marks
                }

    def protocols(self) -> dict[int, IntervalSet]:
        """Return the classes of network protocols that the rules tell apart, each by one of it."""
        special = [IntervalSet.single(value) for value in (m.IPV4, m.IPV6, m.ARP, m.VLAN)]
        tested = [*self.sets.get(m.PROTOCOL, {}), *self.sets.get(m.ETHER_TYPE, {})]
        atoms = Atoms(m.PROTOCOL.size, distinct([*special, *tested]), absent=False)
        classes = [atoms.values(1 << atom) for atom in range(atoms.width)]
        found = {(LLDP if LLDP in values else values.smallest()): values for values in classes}
        # a VLAN tag is no protocol of its own: tagged frames are cases beside the untagged ones
        del found[m.VLAN]
        return found

    def cases(self) -> list[Case]:
        """Return the kinds of frames: a protocol of each class, untagged and tagged."""
        return [Case(protocol, tagged) for tagged in (False, True) for protocol in sorted(self.protocols())]

    def interface_sets(self) -> list[IntervalSet]:
        """Return every set of interfaces that a rule tests."""
        return list(distinct(values for on in INTERFACES for values in self.sets.get(on, {})))


class Segment(NamedTuple):
    """One hop of a way: its name, and its stages on each side."""

    hop: str
    before: tuple[Stage, ...]
    after: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class PathPair:
    """From one end to another; ``segments`` is None where the sides' hops differ.

    ``back_before`` and ``back_after`` are the stages of the way back, where they matter: where rules set zones.
    """

    source: End
    destination: End
    before: tuple[Stage, ...]
    after: tuple[Stage, ...]
    segments: tuple[Segment, ...] | None
    back_before: tuple[Stage, ...] = ()
    back_after: tuple[Stage, ...] = ()

    @property
    def is_same(self) -> bool:
        """Whether both sides are known to have the same stages."""
        return self.after is self.before and self.back_after is self.back_before

    @property
    def routed(self) -> bool:
        """Whether only IP packets go this way."""
        return bridge_of(self.source) is None or bridge_of(self.source) != bridge_of(self.destination)


def bridge_of(end: End) -> str | None:
    """Return the bridge that an end is on, if it is on one."""
    match end:
        case NicEnd(nic):
            return nic.bridge
        case PortEnd(bridge, _):
            return bridge
        case HostEnd() | RoutedEnd():
            return None


def find_way(network: Network, source: End, destination: End, *, zones: bool = False) -> PathPair:
    """Return the way between two ends on both sides; with the ways back where rules set ``zones``.

    Raises UsageError where there is none on one of them.
    """
    one, two = _find_stages(network, source, destination)
    back_before, back_after = _find_stages(network, destination, source) if zones else ((), ())
    return _make_way(source, destination, (one, two), (back_before, back_after))


def find_both_ways(network: Network, one: End, other: End, *, zones: bool = False) -> tuple[PathPair, PathPair]:
    """Return the ways between two ends, there and back. Raises as :func:`find_way`."""
    there, back = _find_stages(network, one, other), _find_stages(network, other, one)
    return (
        _make_way(one, other, there, back if zones else ((), ())),
        _make_way(other, one, back, there if zones else ((), ())),
    )


def _find_stages(network: Network, source: End, destination: End) -> tuple[tuple[Stage, ...], tuple[Stage, ...]]:
    """Return the stages between two ends on both sides; the same object, where both are known to have the same."""
    before, after = network.before, network.after
    others = network.counterparts.get(source, source), network.counterparts.get(destination, destination)
    one = find_stages(before, source, destination)
    same = after is before and others == (source, destination)
    return one, one if same else find_stages(after, *others)


def _make_way(
    source: End,
    destination: End,
    stages: tuple[tuple[Stage, ...], tuple[Stage, ...]],
    back: tuple[tuple[Stage, ...], tuple[Stage, ...]],
) -> PathPair:
    one, two = stages
    hops = [[(hop, tuple(stages)) for hop, stages in groupby(path, key=lambda stage: stage.hop)] for path in (one, two)]
    segments: tuple[Segment, ...] | None = None
    if [hop for hop, _ in hops[0]] == [hop for hop, _ in hops[1]]:
        segments = tuple(Segment(hop, left, right) for (hop, left), (_, right) in zip(*hops, strict=True))
    return PathPair(source, destination, one, two, segments, *back)


# --- flows --------------------------------------------------------------------------------------------------


def _passing(program: Program, states: IntervalSet) -> IntervalSet:
    """Return the states whose packets a base chain does not always stop at once.

    A packet that an earlier step accepts is not stopped by a later one.
    """
    passed = IntervalSet()
    for step in program.steps:
        # behind a step that looks at anything else, nothing is certain about a state
        if len(step.tests) != 1 or step.tests[0].field is not m.CT_STATE or step.conditions or step.actions:
            break
        if not isinstance(step.end, Outcome):
            break
        if step.end in (ACCEPT, RETURN):
            passed |= states & step.tests[0].values
        states = states - step.tests[0].values
    return states | passed


def _looks_into(program: Program) -> bool:
    """Whether a program tests a field that packets in fragments may lack."""
    return any(
        test.field is m.FRAGMENT or test.field in SOMETIMES_ABSENT
        for test in tests_of_programs(programs_of(((Base(program, accepts=True),),)))
    )


def _runs(stage: Stage, case: Case) -> bool:
    """Whether packets of a case run a stage."""
    when = stage.when
    if isinstance(when, m.Test) and when.field is m.ETHER_TYPE:
        return ether_type(case, from_host=stage.from_host) in when.values
    return when is m.TRUE or m.holds(stage.when, _present(known_fields(stage, case)))


_TOGETHER = Base(Program((Step((m.equals(m.FRAGMENT, 2),), (), (), TOGETHER),)), accepts=True)
"""Where fragments are put together, later ones are no packets any more."""
_TRACKED_AGAIN = Base(Program((Step((), (), (Set(((m.TRACKING, 0),)),), None),)), accepts=True)
"""Where a packet crosses to the next bridge, earlier effects of rules on its tracking are forgotten."""


def _present(known: Known) -> dict[m.Field, int]:
    return {on: value for on, value in known.items() if value is not None}


class Flows:
    """Make the flows of one side: for a case, the specialised base chains along stages.

    Of the flow made last, ``fragments`` says whether rules look into packets before fragments are put together, and
    ``counters`` the names of the counters of its rates.
    """

    def __init__(self, side: Side, residuals: Residuals, naming: Counters) -> None:
        self.side = side
        self.naming = naming
        self.counters: dict[m.Field, m.Field] = {}
        self.residuals = residuals
        self.tracking = Tracking(side.model)
        self.fragments = False
        self._chains: dict[tuple[object, ...], list[tuple[m.Table, m.Chain]]] = {}

    def track(self, stages: Sequence[Stage], back: Sequence[Stage], case: Case) -> Track:
        """Return the part that each stage of a way has in connection tracking."""
        return self.tracking.track(case.protocol, stages, back, lambda stage: _runs(stage, case))

    def flow(self, stages: Sequence[Stage], case: Case, tracked: Track) -> Flow:
        """Return the base chains whose program is not empty, in order. ``tracked`` says what each stage tracks.

        With a case of fragments, also where they are put together.
        """
        found: list[Base] = []
        states = ALL_STATES
        self.fragments = False
        for stage, part in zip(stages, tracked, strict=True):
            if self.residuals.exempts and enters(stage):
                found.append(_TRACKED_AGAIN)
            for table, chain, context in self.contexts((stage,), case, (part,)):
                if case.fragments and m.FRAGMENT in context.known and _TOGETHER not in found:
                    found.append(_TOGETHER)
                base = self.base(table, chain, Context(case, context.known, states, context.unicast, context.view))
                self.fragments |= m.FRAGMENT not in context.known and _looks_into(base.program)
                states = _passing(base.program, states)
                if base.accepts and all(
                    step.end in (ACCEPT, RETURN) and not step.actions for step in base.program.steps
                ):
                    continue  # every packet passes it
                found.append(base)
        flow, self.counters = self.naming.name(tuple(found))
        return flow

    def contexts(
        self, stages: Sequence[Stage], case: Case, tracked: Track
    ) -> Iterator[tuple[m.Table, m.Chain, Context]]:
        """Yield the base chains along stages, in order, with the facts known where each starts."""
        for stage, part in zip(stages, tracked, strict=True):
            chains = self.chains(stage, case.protocol)
            if not chains:
                continue
            if not _runs(stage, case):
                continue
            known = known_fields(stage, case)
            for table, chain in chains:
                priority = chain.hook.priority if chain.hook is not None else 0
                here = {**known, m.FRAGMENT: 0} if priority >= part.whole and case.is_ip else known
                yield table, chain, Context(case, here, ALL_STATES, stage.unicast, part.view(priority))

    def base(self, table: m.Table, chain: m.Chain, context: Context) -> Base:
        """Return a base chain as it runs in that context."""
        program = self.residuals.program(table, chain, context)
        accepts = not isinstance(chain.policy, m.Drop)
        if chain.hook is not None and chain.hook.kind == "nat" and program.steps:
            # Only the first packet of a connection meets nat chains; later ones are translated as it was.
            tests, conditions, possible = Specialiser(self.residuals, table, context, 0).conditions((NEW,))
            steps = (Step(tests, conditions, (), Call(program, back=True)),) if possible else ()
            program = Program(steps)
        return Base(program, accepts)

    def chains(self, stage: Stage, protocol: int) -> list[tuple[m.Table, m.Chain]]:
        """As :meth:`Stage.chains`, cached."""
        kind = protocol if protocol in (m.IPV4, m.IPV6, m.ARP) else 0
        key = (stage.family is m.Family.BRIDGE, int(stage.point), stage.first, stage.last, kind)
        found = self._chains.get(key)
        if found is None:
            found = self._chains[key] = stage.chains(self.side.model, protocol)
        return found
