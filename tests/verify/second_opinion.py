"""Rulesets as z3 expressions: a second opinion on whether two of them treat every packet of a way alike.

Written from the definition of the model (:mod:`pvefw_nft.verify.model`), forwards and rule by rule. With the prover it
shares the readers, the paths, and at which hooks connection tracking looks packets up in which zone
(:mod:`pvefw_nft.verify.simulate.tracking`); what a rule sees of that, it works out itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import z3

from pvefw_nft.verify import model as m
from pvefw_nft.verify.model.intervals import IntervalSet
from pvefw_nft.verify.simulate.conntrack import first_state
from pvefw_nft.verify.simulate.packet import HOST_MAC
from pvefw_nft.verify.simulate.tracking import Tracking

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pvefw_nft.verify.network.path import Path, Stage

CAST = z3.BitVec("cast", 2)
"""The destination of a frame: 0 one host, 1 broadcast, 2 a group."""
ALL_ONES = (1 << 48) - 1
CONNECTION = (*m.CT_MARK, *m.CT_STATUS.values(), m.CT_DIRECTION)
GOES_ON, QUEUED, DROPPED, PUT_TOGETHER = 0, 1, 2, 255
TRANSLATED = "translated"
"""The key under which translations are recorded; the new addresses are not followed."""
KINDS: dict[str, int] = {}
"""The numbers of the rejections met, from 3 on."""


class PathPair:
    """The shared part of two encodings of one way: the packet's fields as variables, and tests of them.

    ``ether_type`` is the frame's type, ``protocol`` the type behind its tag, if it has one. ``marked`` says whether
    packets may come with a mark.
    """

    def __init__(self, protocol: int, *, marked: bool, ether_type: int | None = None) -> None:
        self.protocol = protocol
        self.ether_type = protocol if ether_type is None else ether_type
        self.marked = marked
        self.variables: dict[m.Field, z3.BitVecRef] = {}
        self.tests: dict[tuple[m.Field, IntervalSet], z3.BoolRef] = {}

    def variable(self, on: m.Field) -> z3.BitVecRef:
        """Return the variable that is a field of the packet as it was sent."""
        if on not in self.variables:
            self.variables[on] = z3.BitVec(on.name, max(1, (on.size - 1).bit_length()))
        return self.variables[on]

    def possible(self) -> Iterator[z3.BoolRef]:
        """Yield the constraints of every packet: values in range, and fields that fit together."""
        for on in (m.SADDR4, m.DADDR4, m.SADDR6, m.DADDR6):
            self.variable(on)
        yield z3.ULE(CAST, 2)
        if self.protocol not in (m.IPV4, m.IPV6):
            yield self.variable(m.CT_STATE) == m.CT_STATES.index("untracked")
        if m.ETHER_DST in self.variables:
            to = self.variables[m.ETHER_DST]
            yield (CAST == 1) == (to == ALL_ONES)
            yield (CAST == 2) == z3.And(z3.Extract(40, 40, to) == 1, to != ALL_ONES)
        for kind, v4, v6 in ((m.SADDR_TYPE, m.SADDR4, m.SADDR6), (m.DADDR_TYPE, m.DADDR4, m.DADDR6)):
            if kind in self.variables:
                yield from self._kinds(self.variables[kind], self.variables[v4], self.variables[v6])
        for on, variable in self.variables.items():
            if on.size & (on.size - 1):
                yield z3.ULT(variable, on.size)

    def _kinds(self, kind: z3.BitVecRef, v4: z3.BitVecRef, v6: z3.BitVecRef) -> Iterator[z3.BoolRef]:
        """Addresses of groups and of everybody are known as such (inet_addr_type, ipv6_addr_type)."""
        multicast, broadcast = m.ADDRESS_TYPES.index("multicast"), m.ADDRESS_TYPES.index("broadcast")
        if self.protocol == m.IPV4:
            yield (kind == multicast) == (z3.Extract(31, 28, v4) == 0xE)
            yield z3.Implies(z3.Or(v4 == 0, v4 == 0xFFFFFFFF), kind == broadcast)
        elif self.protocol == m.IPV6:
            yield (kind == multicast) == (z3.Extract(127, 120, v6) == 0xFF)
            yield kind != broadcast


class Encoder:
    """A ruleset as z3 expressions, for the packets of a way: which of them are where, and how they are by then.

    ``verdict`` is what became of packets: 0 for those that go on.
    """

    def __init__(self, way: PathPair) -> None:
        self.way = way
        self.state: dict[m.Field, z3.BitVecRef] = {}
        if not way.marked:
            self.state = {bit: z3.BitVecVal(0, 1) for bit in m.MARK}
        self.state[m.TRACKING] = z3.BitVecVal(0, 3)
        self.known: dict[m.Field, int | None] = {}
        self.looked_up = self.found = self.whole = True
        self.updates: dict[m.UpdateSet, z3.BoolRef] = {}
        self.verdict: z3.BitVecRef = z3.BitVecVal(GOES_ON, 8)
        self.queued: z3.BoolRef = z3.BoolVal(False)
        self.accepted: z3.BoolRef = z3.BoolVal(False)

    def run(self, model: m.RulesetModel, path: Path) -> z3.BitVecRef:
        """Return the verdict at the end of a path, as a number."""
        alive: z3.BoolRef = z3.BoolVal(True)
        tracked = Tracking(model).track(self.way.protocol, path.stages, path.back, self._runs)
        for stage, part in zip(path.stages, tracked, strict=True):
            if stage.point is m.Point.PREROUTING and stage.family is m.Family.BRIDGE and stage.first is None:
                self.state[m.TRACKING] = z3.BitVecVal(0, 3)
            if not self._runs(stage):
                continue
            for table, chain in stage.chains(model, self.way.protocol):
                assert chain.hook is not None
                self.looked_up, self.found = chain.hook.priority >= part.since, part.known
                self.whole = chain.hook.priority >= part.whole
                if self.whole and self.way.protocol in (m.IPV4, m.IPV6):
                    later = z3.And(alive, self.way.variable(m.FRAGMENT) == 2)
                    self.verdict = z3.If(later, PUT_TOGETHER, self.verdict)
                    alive = z3.And(alive, z3.Not(later))
                # only a connection's first packet meets nat chains
                met = self._state() == m.CT_STATES.index("new") if chain.hook.kind == "nat" else z3.BoolVal(True)
                self.accepted = z3.And(alive, z3.Not(met))
                returned = self.chain(table, chain, z3.And(alive, met))
                if isinstance(chain.policy, m.Drop):
                    self.verdict = z3.If(returned, DROPPED, self.verdict)
                    returned = z3.BoolVal(False)
                alive = z3.Or(self.accepted, returned)
        verdict = z3.If(self.verdict == PUT_TOGETHER, GOES_ON, self.verdict)
        return z3.If(z3.And(verdict == GOES_ON, self.queued), QUEUED, verdict)

    def _runs(self, stage: Stage) -> bool:
        """Take up the fields that a stage's hooks see, and return whether packets run it."""
        self._see(stage)
        return m.holds(stage.when, {on: value for on, value in self.known.items() if value is not None})

    def _see(self, stage: Stage) -> None:
        """Take up the fields that a stage's hooks see: interfaces, and the host's own frames without a link header
        yet."""
        self.known = {m.PROTOCOL: self.way.protocol, m.ETHER_TYPE: self.way.ether_type}
        self.known |= dict.fromkeys((m.IBR, m.OBR)) | dict.fromkeys((m.IIF, m.OIF, m.PHYSIN, m.PHYSOUT), 0)
        self.known |= dict(stage.fields)
        self.state[m.PKTTYPE] = z3.If(CAST == 0, z3.BitVecVal(stage.unicast, 3), z3.ZeroExt(1, CAST))
        if stage.from_host:
            bare = stage.family is not m.Family.BRIDGE and stage.point in (m.Point.OUTPUT, m.Point.POSTROUTING)
            self.known |= {m.ETHER_TYPE: self.way.protocol, m.VLAN_ID: None, m.ETHER_SRC: None if bare else HOST_MAC}
            if bare:
                self.known[m.ETHER_DST] = None

    # --- conditions ---

    def value(self, on: m.Field) -> z3.BitVecRef:
        """Return a field as it is by now."""
        return self.state[on] if on in self.state else self.way.variable(on)

    def inside(self, on: m.Field, values: IntervalSet) -> z3.BoolRef:
        """Return that a field is there, and one of these values."""
        if on is m.CT_STATE:
            state = self._state()
            return z3.Or([state == value for value in range(on.size) if value in values])
        if on in CONNECTION:
            return self._connection(on, values)
        if on is m.FRAGMENT and self.whole:
            return z3.BoolVal(0 in values and self.way.protocol in (m.IPV4, m.IPV6))
        if on in self.known:
            known = self.known[on]
            return z3.BoolVal(known is not None and known in values)
        if on in self.state:
            return self._inside(on, values)
        if (on, values) not in self.way.tests:
            self.way.tests[on, values] = self._inside(on, values)
        return self.way.tests[on, values]

    def _state(self) -> z3.BitVecRef:
        """Return the state that a rule sees: *invalid* before the lookup, and elsewhere the true one or a first one."""
        tracking, true = self.value(m.TRACKING), self.value(m.CT_STATE)
        invalid, new, off = (z3.BitVecVal(m.CT_STATES.index(name), 3) for name in ("invalid", "new", "untracked"))
        seen = true
        if not self.looked_up:
            seen = z3.If(tracking == 2, new, invalid)
        elif not self.found:
            later = z3.Or([true == m.CT_STATES.index(name) for name in ("established", "related")])
            seen = z3.If(later, z3.If(self._opens(), new, invalid), true)
        return z3.If(tracking == 1, off, seen)

    def _opens(self) -> z3.BoolRef:
        """Return that a packet is new to a lookup that knows no connection of it."""
        kinds = {m.TCP_FLAGS: 6, m.ICMP: 1} if self.way.protocol == m.IPV4 else {m.TCP_FLAGS: 6, m.ICMP6: 58}
        opening = [z3.BoolVal(True)]
        for on, transport in kinds.items():
            samples = range(256) if on is m.TCP_FLAGS else range(0, 1 << 16, 256)
            packet = {m.PROTOCOL: self.way.protocol, m.L4PROTO: transport}
            new = [value for value in samples if first_state({**packet, on: value}) == "new"]
            step = 1 if on is m.TCP_FLAGS else 256
            allowed = IntervalSet.from_ranges((value, value + step - 1) for value in new)
            opening.append(z3.Or(z3.Not(self._inside(on, on.everything)), self._inside(on, allowed)))
        return z3.And(opening)

    def _connection(self, on: m.Field, values: IntervalSet) -> z3.BoolRef:
        """Return a test of a connection's mark, status or direction: of the packet's, or of a fresh one."""
        state = self._state()
        connected = z3.Or([state == m.CT_STATES.index(name) for name in ("established", "related", "new")])
        if not self.looked_up:
            return z3.BoolVal(False)
        if self.found:
            return z3.And(connected, self._inside(on, values))
        fresh = z3.Or([self.value(m.CT_STATE) == m.CT_STATES.index(name) for name in ("established", "related")])
        return z3.And(connected, z3.If(fresh, z3.BoolVal(0 in values), self._inside(on, values)))

    def _inside(self, on: m.Field, values: IntervalSet) -> z3.BoolRef:
        at = self.value(on)
        ranges = [
            at == first if first == last else z3.And(z3.UGE(at, first), z3.ULE(at, last)) for first, last in values
        ]
        needs = m.PRESENCE.get(on, ())
        present = [
            self._inside(need, allowed) if need is m.FRAGMENT else self.inside(need, allowed) for need, allowed in needs
        ]
        return z3.And(z3.Or(False, *ranges), *present)

    def condition(self, condition: m.Condition) -> z3.BoolRef:
        """Return a condition of the model as one of z3."""
        if isinstance(condition, m.Test):
            return self.inside(condition.field, condition.values)
        if isinstance(condition, m.Not):
            return z3.Not(self.condition(condition.of))
        parts = [self.condition(part) for part in condition.of]
        return z3.And(True, *parts) if isinstance(condition, m.All) else z3.Or(False, *parts)

    # --- rules ---

    def chain(self, table: m.Table, chain: m.Chain, here: z3.BoolRef) -> z3.BoolRef:
        """Put the packets ``here`` through a chain; returns which of them it returns."""
        returned = z3.BoolVal(False)
        for rule in chain.rules:
            hit = z3.And(here, self.condition(m.All(rule.conditions)))
            if z3.is_false(z3.simplify(hit)):
                continue
            for effect in rule.effects:
                if isinstance(effect, m.Guard):
                    hit = z3.And(hit, self.condition(effect.condition))
                else:
                    self.act(effect, hit)
            choices = [(hit, rule.verdict)]
            if isinstance(rule.verdict, m.VerdictMap):
                choices = [(z3.And(hit, self.condition(c)), v) for c, v in rule.verdict.entries]
            for chosen, verdict in choices:
                here, back = self.end(table, verdict, here, chosen)
                returned = z3.Or(returned, back)
        return z3.Or(returned, here)

    def end(
        self, table: m.Table, verdict: m.Verdict | None, here: z3.BoolRef, hit: z3.BoolRef
    ) -> tuple[z3.BoolRef, z3.BoolRef]:
        """Return which packets go on with the next rule, and which return."""
        left, none = z3.And(here, z3.Not(hit)), z3.BoolVal(False)
        match verdict:
            case None:
                return here, none
            case m.Accept() | m.Queue():
                self.accepted = z3.Or(self.accepted, hit)
                if isinstance(verdict, m.Queue):
                    self.queued = z3.Or(self.queued, hit)
                return left, none
            case m.Nat():
                self.accepted = z3.Or(self.accepted, hit)
                self.record(m.UpdateSet(TRANSLATED, repr(verdict)), hit)
                return left, none
            case m.Drop():
                self.verdict = z3.If(hit, DROPPED, self.verdict)
                return left, none
            case m.Reject():
                number = KINDS.setdefault(verdict.kind(self.way.protocol), 3 + len(KINDS))
                self.verdict = z3.If(hit, number, self.verdict)
                return left, none
            case m.Return():
                return left, hit
            case m.Jump(name):
                return z3.Or(left, self.chain(table, table.chains[name], hit)), none
            case m.Goto(name):
                return left, self.chain(table, table.chains[name], hit)
        raise AssertionError(verdict)

    def act(self, effect: m.Effect, hit: z3.BoolRef) -> None:
        """Change the fields that an effect changes, of the packets that it hits."""
        match effect:
            case m.UpdateSet() | m.SetField():
                self.record(effect, hit)
            case m.NoTrack() | m.SetZone() | m.SetHelper():
                if self.looked_up or (isinstance(effect, m.SetHelper) and not effect.template):
                    return
                before = self.value(m.TRACKING)
                now = z3.BitVecVal(1 if isinstance(effect, m.NoTrack) else 2, 3)
                self.state[m.TRACKING] = z3.If(z3.And(hit, before == 0), now, before)
            case m.SetMark(target) | m.CopyMark(target) if not self.looked_up and (
                target is m.MarkTarget.CONNECTION or isinstance(effect, m.CopyMark)
            ):
                return
            case m.SetMark(target, keep, flip):
                if target is m.MarkTarget.CONNECTION:
                    hit = z3.And(hit, self.inside(m.CT_MARK[0], m.CT_MARK[0].everything))
                for place, bit in enumerate(target.bits):
                    kept = self.value(bit) if keep >> place & 1 else z3.BitVecVal(0, 1)
                    if flip >> place & 1 or not keep >> place & 1:
                        self.state[bit] = z3.If(hit, kept ^ (flip >> place & 1), self.value(bit))
            case m.CopyMark(target, keep, take):
                hit = z3.And(hit, self.inside(m.CT_MARK[0], m.CT_MARK[0].everything))
                others = m.CT_MARK if target is m.MarkTarget.PACKET else m.MARK
                before = [self.value(bit) for bit in others]
                for place, bit in enumerate(target.bits):
                    kept = self.value(bit) if keep >> place & 1 else z3.BitVecVal(0, 1)
                    taken = before[place] if take >> place & 1 else z3.BitVecVal(0, 1)
                    self.state[bit] = z3.If(hit, kept ^ taken, self.value(bit))

    def record(self, effect: m.UpdateSet | m.SetField, hit: z3.BoolRef) -> None:
        """Note an update of a set, or give the packets that an effect hits another value of a field."""
        if isinstance(effect, m.UpdateSet):
            self.updates[effect] = z3.Or(self.updates.get(effect, z3.BoolVal(False)), hit)
            return
        before = self.value(effect.field)
        after = before
        for old in range(effect.field.size):
            after = z3.If(before == old, z3.BitVecVal(effect.result(old), before.size()), after)
        self.state[effect.field] = z3.If(hit, after, before)


def marks_in_use(*models: m.RulesetModel) -> set[m.Field]:
    """Return the bits of marks that some rule tests, or copies to one that is tested."""
    chains = [chain for model in models for table in model.tables for chain in table.chains.values()]
    rules = [rule for chain in chains for rule in chain.rules]
    conditions = [condition for rule in rules for condition in rule.conditions]
    conditions += [effect.condition for rule in rules for effect in rule.effects if isinstance(effect, m.Guard)]
    maps = [rule.verdict for rule in rules if isinstance(rule.verdict, m.VerdictMap)]
    conditions += [condition for one in maps for condition, _ in one.entries]
    tests = [test for condition in conditions for test in m.tests_of(condition)]
    tested = {test.field for test in tests if test.values is not test.field.everything} & {*m.MARK, *m.CT_MARK}
    for _ in range(2):  # from one mark to the other, and back
        for copy in (effect for rule in rules for effect in rule.effects if isinstance(effect, m.CopyMark)):
            others = m.CT_MARK if copy.target is m.MarkTarget.PACKET else m.MARK
            pairs = zip(copy.target.bits, others, range(32), strict=True)
            tested |= {other for bit, other, place in pairs if bit in tested and copy.take >> place & 1}
    return tested


def lasting(sides: list[Encoder], *models: m.RulesetModel) -> Iterator[z3.BoolRef]:
    """Yield the different effects of the sides on later packets: marks of connections, and elements of sets."""
    tested = marks_in_use(*models)
    for bit in m.CT_MARK:
        if bit in tested and any(bit in side.state for side in sides):
            yield sides[0].value(bit) != sides[1].value(bit)
    looked_at = {name for model in models for table in model.tables for name in table.lookups}
    none = z3.BoolVal(False)
    for update in dict.fromkeys(update for side in sides for update in side.updates):
        if update.set in looked_at or update.set == TRANSLATED:
            yield sides[0].updates.get(update, none) != sides[1].updates.get(update, none)


def differing_packet(
    one: m.RulesetModel, two: m.RulesetModel, paths: tuple[Path, Path], way: PathPair
) -> z3.ModelRef | None:
    """Return a packet that two rulesets treat differently on their paths of one way, None if there is none."""
    sides = [Encoder(way) for _ in paths]
    ends = [side.run(model, path) for side, model, path in zip(sides, (one, two), paths, strict=True)]
    different = [] if ends[0].eq(ends[1]) else [ends[0] != ends[1]]
    different += lasting(sides, one, two)
    if not different:
        return None
    solver = z3.SolverFor("QF_BV")
    solver.add(*way.possible(), z3.Or(different))
    answer = solver.check()
    assert answer != z3.unknown
    return solver.model() if answer == z3.sat else None
