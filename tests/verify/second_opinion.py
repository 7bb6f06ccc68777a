"""Rulesets as z3 expressions: a second opinion on whether two of them treat every packet of a way alike.

Written from the definition of the model (:mod:`pvefw_nft.verify.model`), forwards and rule by rule; it shares nothing
with the prover.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import z3

from pvefw_nft.verify import model as m
from pvefw_nft.verify.packet import HOST_MAC

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pvefw_nft.verify.intervals import IntervalSet
    from pvefw_nft.verify.path import Path, Stage

CAST = z3.BitVec("cast", 2)
"""Whom a frame is sent to: 0 somebody, 1 everybody, 2 a group."""
ALL_ONES = (1 << 48) - 1
GOES_ON, QUEUED, DROPPED = 0, 1, 2
KINDS: dict[str, int] = {}
"""The numbers of the rejections met, from 3 on."""


class Way:
    """What two encodings of one way share: the packet's fields as variables, and the tests of them.

    ``ether_type`` is that of the frame, ``protocol`` that behind its tag, if it has one. ``marked`` says whether
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
        """Yield what holds of every packet: values in range, and what goes together."""
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

    def __init__(self, way: Way) -> None:
        self.way = way
        self.state: dict[m.Field, z3.BitVecRef] = {}
        if not way.marked:
            self.state = {bit: z3.BitVecVal(0, 1) for bit in m.MARK}
        self.known: dict[m.Field, int | None] = {}
        self.verdict: z3.BitVecRef = z3.BitVecVal(GOES_ON, 8)
        self.queued: z3.BoolRef = z3.BoolVal(False)
        self.accepted: z3.BoolRef = z3.BoolVal(False)

    def run(self, model: m.RulesetModel, path: Path) -> z3.BitVecRef:
        """Return the verdict at the end of a path, as a number."""
        alive: z3.BoolRef = z3.BoolVal(True)
        for stage in path.stages:
            self._see(stage)
            if not m.holds(stage.when, {on: value for on, value in self.known.items() if value is not None}):
                continue
            for table, chain in stage.chains(model, self.way.protocol):
                self.accepted = z3.BoolVal(False)
                returned = self.chain(table, chain, alive)
                if isinstance(chain.policy, m.Drop):
                    self.verdict = z3.If(returned, DROPPED, self.verdict)
                    returned = z3.BoolVal(False)
                alive = z3.Or(self.accepted, returned)
        return z3.If(z3.And(self.verdict == GOES_ON, self.queued), QUEUED, self.verdict)

    def _see(self, stage: Stage) -> None:
        """Take up what a stage's hooks see: interfaces, and frames of the host's own that have no link header yet."""
        self.known = {m.PROTOCOL: self.way.protocol, m.ETHER_TYPE: self.way.ether_type}
        self.known |= dict.fromkeys((m.IIF, m.OIF, m.IBR, m.OBR, m.PHYSIN, m.PHYSOUT))
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
        if on in self.known:
            known = self.known[on]
            return z3.BoolVal(known is not None and known in values)
        if on in self.state:
            return self._inside(on, values)
        if (on, values) not in self.way.tests:
            self.way.tests[on, values] = self._inside(on, values)
        return self.way.tests[on, values]

    def _inside(self, on: m.Field, values: IntervalSet) -> z3.BoolRef:
        at = self.value(on)
        ranges = [
            at == first if first == last else z3.And(z3.UGE(at, first), z3.ULE(at, last)) for first, last in values
        ]
        present = [self.inside(need, allowed) for need, allowed in m.PRESENCE.get(on, ())]
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
            case m.NoTrack():
                untracked = m.CT_STATES.index("untracked")
                self.state[m.CT_STATE] = z3.If(hit, z3.BitVecVal(untracked, 3), self.value(m.CT_STATE))
            case m.SetMark(target, keep, flip):
                for place, bit in enumerate(target.bits):
                    kept = self.value(bit) if keep >> place & 1 else z3.BitVecVal(0, 1)
                    if flip >> place & 1 or not keep >> place & 1:
                        self.state[bit] = z3.If(hit, kept ^ (flip >> place & 1), self.value(bit))
            case m.CopyMark(target, keep, take):
                others = m.CT_MARK if target is m.MarkTarget.PACKET else m.MARK
                before = [self.value(bit) for bit in others]
                for place, bit in enumerate(target.bits):
                    kept = self.value(bit) if keep >> place & 1 else z3.BitVecVal(0, 1)
                    taken = before[place] if take >> place & 1 else z3.BitVecVal(0, 1)
                    self.state[bit] = z3.If(hit, kept ^ taken, self.value(bit))


def differing_packet(
    one: m.RulesetModel, two: m.RulesetModel, paths: tuple[Path, Path], way: Way
) -> z3.ModelRef | None:
    """Return a packet that two rulesets treat differently on their paths of one way, None where there is none."""
    ends = [Encoder(way).run(model, path) for model, path in zip((one, two), paths, strict=True)]
    if ends[0].eq(ends[1]):
        return None
    solver = z3.SolverFor("QF_BV")
    solver.add(*way.possible(), ends[0] != ends[1])
    answer = solver.check()
    assert answer != z3.unknown
    return solver.model() if answer == z3.sat else None
