"""The prover against other means, on many small random rulesets: trying every packet, and z3.

The rulesets draw their conditions from small pools, so that a few hundred packets stand for all there are.
"""

from __future__ import annotations

import random
from itertools import product
from typing import TYPE_CHECKING

import pytest
import z3

from pvefw_nft.verify import model as m
from pvefw_nft.verify.intervals import IntervalSet
from pvefw_nft.verify.packet import Probe
from pvefw_nft.verify.path import HostEnd, Link, Path, PortEnd, RoutedEnd, Topology, find_path
from pvefw_nft.verify.prove.compare import Options, compare
from pvefw_nft.verify.prove.flows import Side
from pvefw_nft.verify.simulate import simulate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TOPOLOGY = Topology(
    links=(Link("vmbr0", is_bridge=True, ports=("eth0",)), Link("eth5", is_bridge=False)), call_iptables=False
)
WAYS = (
    (PortEnd("vmbr0", "eth0"), HostEnd()),
    (RoutedEnd("eth5"), HostEnd()),
    (HostEnd(), RoutedEnd("eth5")),
    (HostEnd(), HostEnd()),
)
KEY = m.TableKey("nft", m.Family.INET, "t")
ACCEPT_MARK = m.MARK[31]
RATE = m.rate_field("over 10/second burst 5")


def address(version: int, host: int) -> int:
    return (10 << 24 if version == 4 else 0x20010DB8 << 96) + host


SAMPLES: Mapping[m.Field, tuple[int, ...]] = {
    m.SADDR4: tuple(address(4, host) for host in (1, 2, 3, 256)),
    m.SADDR6: tuple(address(6, host) for host in (1, 2, 3, 256)),
    m.DPORT: (22, 25, 80),
    m.TCP_FLAGS: (0x02, 0x10, 0x12),
    m.ICMP: (8 << 8, 3 << 8),
    m.ICMP6: (128 << 8, 1 << 8),
    m.CT_STATE: (0, 1, 3, 4),
    ACCEPT_MARK: (0, 1),
    RATE: (0, 1),
    m.PKTTYPE: (0, 1, 2),
}
"""A value of each field for every class that the pools below tell apart."""


class Maker:
    """Makes random rulesets; conditions come from a few fields, so that they meet."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.fields = self.random.sample(sorted(SAMPLES, key=str), 4)

    def condition(self, depth: int = 0) -> m.Condition:
        if depth < 2 and self.random.random() < 0.15:
            parts = tuple(self.condition(depth + 1) for _ in range(self.random.randint(1, 3)))
            return self.random.choice([m.All(parts), m.Any(parts), m.Not(parts[0])])
        if self.random.random() < 0.35:
            return self.random.choice(
                [
                    m.equals(m.L4PROTO, 6),
                    m.within(m.L4PROTO, (6, 6), (17, 17)),
                    m.equals(m.PROTOCOL, m.IPV4),
                    m.Test(m.IIF, m.interface_set("eth*", "*")),
                    m.equals(m.IIF, m.interface_number("lo")),
                    m.equals(m.FRAGMENT, 0),
                ]
            )
        on = self.random.choice(self.fields)
        test: m.Condition = m.Test(on, self.values(on))
        return m.negate(test) if self.random.random() < 0.25 else test

    def values(self, on: m.Field) -> IntervalSet:
        if on in (m.SADDR4, m.SADDR6):
            version = 4 if on is m.SADDR4 else 6
            ranges = [(1, 1), (2, 2), (0, 255), (1, 2)]
            first, last = self.random.choice(ranges)
            return IntervalSet.of((address(version, first), address(version, last)))
        if on is m.DPORT:
            return IntervalSet.of(self.random.choice([(22, 22), (20, 30), (80, 80)]))
        if on is m.TCP_FLAGS:
            return IntervalSet.masked(*self.random.choice([(0x12, 0x02), (0x10, 0x10)]), 8)
        if on in (m.ICMP, m.ICMP6):
            kind = SAMPLES[on][0]
            return IntervalSet.of((kind, kind | 0xFF))
        return IntervalSet.single(self.random.choice(SAMPLES[on]))

    def effect(self) -> m.Effect:
        bit = 1 << 31
        return self.random.choice(
            [
                m.SetMark(m.MarkTarget.PACKET, ~bit & 0xFFFFFFFF, bit),
                m.SetMark(m.MarkTarget.PACKET, ~bit & 0xFFFFFFFF, 0),
                m.SetMark(m.MarkTarget.PACKET, 0xFFFFFFFF, bit),
                m.SetMark(m.MarkTarget.CONNECTION, 0, bit),
                m.CopyMark(m.MarkTarget.PACKET, 0, 0xFFFFFFFF),
                m.CopyMark(m.MarkTarget.CONNECTION, 0xFFFFFFFF, bit),
                m.Log("x", 4),
                m.NoTrack(),
                m.Guard(self.condition()),
            ]
        )

    def verdict(self, chains: list[str]) -> m.PlainVerdict:
        plain: list[m.PlainVerdict] = [
            m.ACCEPT, m.DROP, m.DROP, m.RETURN, m.Reject("tcp-reset", "tcp-reset"), m.Queue(0, 0, bypass=True),
        ]  # fmt: skip
        calls: list[m.PlainVerdict] = [m.Jump(name) for name in chains * 2] + [m.Goto(name) for name in chains]
        return self.random.choice(plain + calls)

    def rule(self, chains: list[str]) -> m.Rule:
        conditions = tuple(self.condition() for _ in range(self.random.choice([0, 1, 1, 2, 2, 3])))
        effects = tuple(self.effect() for _ in range(self.random.choice([0, 0, 0, 1, 2])))
        verdict: m.Verdict | None = self.verdict(chains) if self.random.random() < 0.8 else None
        if self.random.random() < 0.1:
            ports = (m.equals(m.DPORT, 22), m.equals(m.DPORT, 80))
            verdict = m.VerdictMap(tuple((port, self.verdict(chains)) for port in ports))
        return m.Rule(conditions, effects, verdict)

    def model(self) -> m.RulesetModel:
        names = ["a", "b", "c"]
        chains: dict[str, m.Chain] = {}
        for place, name in enumerate(names):
            rules = [self.rule(names[place + 1 :]) for _ in range(self.random.randint(1, 3))]
            chains[name] = m.Chain(name, rules)
        for name, point, priority in (("pre", m.Point.PREROUTING, -150), ("in", m.Point.INPUT, 0)):
            rules = [self.rule(names) for _ in range(self.random.randint(2, 4))]
            policy = self.random.choice([m.ACCEPT, m.DROP]) if name == "in" else m.ACCEPT
            chains[name] = m.Chain(name, rules, policy, m.Hook(m.Family.INET, point, priority))
        rules = [self.rule(["c"]) for _ in range(2)]
        hook = m.Hook(m.Family.INET, m.Point.OUTPUT, 0)
        chains["out"] = m.Chain("out", rules, m.ACCEPT, hook)
        return m.RulesetModel((m.Table(KEY, chains),))

    def mutated(self, model: m.RulesetModel) -> m.RulesetModel:
        """Change one rule."""
        chains = dict(model.tables[0].chains)
        name = self.random.choice(sorted(chains))
        old = chains[name]
        rules = list(old.rules)
        at = self.random.randrange(len(rules))
        later = {"a": ["b", "c"], "b": ["c"], "c": []}.get(name, ["c"])
        match self.random.randrange(5):
            case 0:
                del rules[at]
            case 1:
                other = self.random.randrange(len(rules))
                rules[at], rules[other] = rules[other], rules[at]
            case 2:
                rules[at] = rules[at]._replace(conditions=rules[at].conditions[1:])
            case 3:
                rules[at] = rules[at]._replace(verdict=self.verdict(later))
            case _:
                rules.insert(at, self.rule(later))
        chains[name] = m.Chain(name, rules, old.policy, old.hook)
        return m.RulesetModel((m.Table(KEY, chains),))


# --- every packet -------------------------------------------------------------------------------------------


def packets(fields: set[m.Field], *, from_host: bool) -> Iterator[dict[m.Field, int]]:
    """Every packet that conditions on these fields, protocol, state and fragments tell apart."""
    for protocol, transport in product((m.IPV4, m.IPV6), (6, 17, 1)):
        number = 58 if protocol == m.IPV6 and transport == 1 else transport
        source = m.SADDR4 if protocol == m.IPV4 else m.SADDR6
        for fragment in (0, 2):
            base = dict.fromkeys((*m.MARK, *m.CT_MARK, *m.CT_STATUS.values()), 0)
            base |= {m.PROTOCOL: protocol, m.ETHER_TYPE: protocol, m.L4PROTO: number, m.FRAGMENT: fragment}
            base |= {m.TTL: 64, m.LENGTH: 60, m.DSCP: 0, m.CT_DIRECTION: 0, m.PKTTYPE: 0, RATE: 0}
            base |= {m.SADDR_TYPE: 1, m.DADDR_TYPE: 2, m.ETHER_SRC: 1, m.ETHER_DST: 2}
            present = [source, m.CT_STATE, m.PKTTYPE, RATE, m.CT_MARK[31]]
            present += [ACCEPT_MARK] if from_host else []
            if fragment == 0:
                present += {6: [m.SPORT, m.DPORT, m.TCP_FLAGS], 17: [m.SPORT, m.DPORT]}.get(number, [])
                present += {1: [m.ICMP], 58: [m.ICMP6]}.get(number, [])
            samples = {**SAMPLES, m.SPORT: (1000,), m.CT_MARK[31]: (0, 1)}
            pools = [samples[on] if on in fields else samples[on][:1] for on in present]
            for values in product(*pools):
                yield base | dict(zip(present, values, strict=True))


def fields_of(*models: m.RulesetModel) -> set[m.Field]:
    found: set[m.Field] = set()
    for model in models:
        for chain in model.tables[0].chains.values():
            for rule in chain.rules:
                conditions = [*rule.conditions]
                conditions += [e.condition for e in rule.effects if isinstance(e, m.Guard)]
                if any(isinstance(e, m.CopyMark) for e in rule.effects):
                    found |= {m.CT_MARK[31], ACCEPT_MARK}
                if isinstance(rule.verdict, m.VerdictMap):
                    found.add(m.DPORT)
                found |= {test.field for c in conditions for test in m.tests_of(c)}
    return found


def fate(model: m.RulesetModel, packet: dict[m.Field, int], path: Path) -> tuple[str, str | None, bool]:
    run = simulate(model, Probe(packet, path))
    queued = any("queue" in note for note in run.notes)
    return run.verdict, run.kind, queued and run.verdict == "ACCEPT"


def differ_somewhere(one: m.RulesetModel, two: m.RulesetModel) -> bool:
    fields = fields_of(one, two)
    for source, destination in WAYS:
        path = find_path(TOPOLOGY, source, destination)
        for packet in packets(fields, from_host=isinstance(source, HostEnd)):
            if fate(one, packet, path) != fate(two, packet, path):
                return True
    return False


def proved_equal(one: m.RulesetModel, two: m.RulesetModel, *, strict: bool = False) -> bool:
    report = compare(Side("one", one, TOPOLOGY), Side("two", two, TOPOLOGY), Options(strict=strict))
    for difference in report.differences:
        assert difference.before != difference.after
        for model, path, verdict in (
            (one, difference.witness.before, difference.before),
            (two, difference.witness.after, difference.after),
        ):
            run = simulate(model, Probe(difference.witness.packet, path))
            assert run.verdict == verdict.split()[0].upper()
    return report.equal


@pytest.mark.parametrize("seed", range(25))
def test_mutations_are_found_just_if_some_packet_differs(seed: int) -> None:
    results = set()
    for step in range(10):
        maker = Maker(seed * 100 + step)
        model = maker.model()
        mutant = maker.mutated(model)
        equal = proved_equal(model, mutant)
        assert equal is not differ_somewhere(model, mutant), (seed, step)
        results.add(equal)
    assert results == {True, False}


def test_a_ruleset_is_equal_to_itself_also_strictly() -> None:
    for seed in range(50):
        assert proved_equal(Maker(seed).model(), Maker(seed).model(), strict=True)


# --- z3 -----------------------------------------------------------------------------------------------------


class Encoder:
    """A ruleset as z3 expressions, written from the definition of the model, forwards."""

    VERDICTS = ("accept", "drop", "reject", "queued")

    def __init__(self, protocol: int) -> None:
        self.protocol = protocol
        self.variables: dict[m.Field, z3.BitVecRef] = {}
        self.state: dict[m.Field, z3.BitVecRef] = {}
        self.known: dict[m.Field, int | None] = {}

    def variable(self, on: m.Field) -> z3.BitVecRef:
        width = max(1, (on.size - 1).bit_length())
        return self.variables.setdefault(on, z3.BitVec(on.name, width))

    def present(self, on: m.Field) -> z3.BoolRef:
        needs = m.PRESENCE.get(on, ())
        return z3.And(True, *[self.inside(need, values) for need, values in needs])

    def inside(self, on: m.Field, values: IntervalSet) -> z3.BoolRef:
        if on in self.known:
            value = self.known[on]
            return z3.BoolVal(value is not None and value in values)
        at = self.state.get(on, self.variable(on))
        parts = [
            z3.And(z3.UGE(at, first), z3.ULE(at, last)) for first, last in values if first < on.size
        ]
        return z3.And(z3.Or(False, *parts), self.present(on))

    def condition(self, condition: m.Condition) -> z3.BoolRef:
        if isinstance(condition, m.Test):
            return self.inside(condition.field, condition.values)
        if isinstance(condition, m.Not):
            return z3.Not(self.condition(condition.of))
        parts = [self.condition(part) for part in condition.of]
        return z3.And(True, *parts) if isinstance(condition, m.All) else z3.Or(False, *parts)

    def path(self, model: m.RulesetModel, path: Path) -> z3.ArithRef:
        """The verdict at the end of a path, as a number."""
        return self.stages(model, [(s, t, c) for s in path.stages for t, c in s.chains(model, self.protocol)], False)

    def stages(self, model: m.RulesetModel, todo: list, queued: bool) -> z3.ArithRef:  # type: ignore[type-arg]  # noqa: FBT001, E501  stage, table and chain
        if not todo:
            return z3.IntVal(3 if queued else 0)
        (stage, table, chain), rest = todo[0], todo[1:]
        outer = self.known
        self.known = {m.PROTOCOL: self.protocol, m.ETHER_TYPE: self.protocol}
        self.known |= dict.fromkeys((m.IIF, m.OIF, m.IBR, m.OBR, m.PHYSIN, m.PHYSOUT)) | dict(stage.fields)
        self.unicast = stage.unicast

        def after(queue: bool) -> z3.ArithRef:  # noqa: FBT001
            return self.stages(model, rest, queue or queued)

        def policy() -> z3.ArithRef:
            return z3.IntVal(1) if isinstance(chain.policy, m.Drop) else after(False)

        result = self.rules(table, chain, 0, policy, after)
        self.known = outer
        return result

    def rules(self, table, chain, at, back, accept):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201  z3 has no types
        """What becomes of a packet at a rule; ``back`` says what a return does."""
        if at == len(chain.rules):
            return back()
        rule = chain.rules[at]

        def onward():  # type: ignore[no-untyped-def]  # noqa: ANN202
            return self.rules(table, chain, at + 1, back, accept)

        def end(verdict):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            match verdict:
                case None:
                    return onward()
                case m.Accept():
                    return accept(False)
                case m.Queue():
                    return accept(True)
                case m.Drop():
                    return z3.IntVal(1)
                case m.Reject():
                    return z3.IntVal(2)
                case m.Return():
                    return back()
                case m.Jump(name):
                    return self.rules(table, table.chains[name], 0, onward, accept)
                case m.Goto(name):
                    return self.rules(table, table.chains[name], 0, back, accept)
                case m.VerdictMap(entries):
                    result = onward()
                    for condition, entry in entries:
                        result = z3.If(self.condition(condition), end(entry), result)
                    return result
            raise AssertionError(verdict)

        def effects(left):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            if not left:
                return end(rule.verdict)
            first, rest = left[0], left[1:]
            before = dict(self.state)
            if isinstance(first, m.Guard):
                holds = self.condition(first.condition)
                then = effects(rest)
                self.state = dict(before)
                result = z3.If(holds, then, onward())
            else:
                self.act(first)
                result = effects(rest)
            self.state = before
            return result

        holds = self.condition(m.All(rule.conditions))
        before, unicast = dict(self.state), self.unicast
        then = effects(rule.effects)
        self.state, self.unicast = dict(before), unicast
        return z3.If(holds, then, onward())

    def act(self, effect: m.Effect) -> None:
        match effect:
            case m.NoTrack():
                self.state[m.CT_STATE] = z3.BitVecVal(4, 3)
            case m.SetMark(target, keep, flip):
                for place, bit in enumerate(target.bits):
                    old = self.value(bit)
                    self.state[bit] = (old if keep >> place & 1 else z3.BitVecVal(0, 1)) ^ (flip >> place & 1)
            case m.CopyMark(target, keep, take):
                other = m.CT_MARK if target is m.MarkTarget.PACKET else m.MARK
                for place, bit in enumerate(target.bits):
                    kept = self.value(bit) if keep >> place & 1 else z3.BitVecVal(0, 1)
                    self.state[bit] = kept ^ (self.value(other[place]) if take >> place & 1 else 0)

    def value(self, bit: m.Field) -> z3.BitVecRef:
        return self.state.get(bit, self.variable(bit))


def z3_says_equal(one: m.RulesetModel, two: m.RulesetModel) -> bool:
    for source, destination in WAYS:
        path = find_path(TOPOLOGY, source, destination)
        for protocol in (m.IPV4, m.IPV6):
            encoder = Encoder(protocol)
            ends = []
            for model in (one, two):
                encoder.state = {} if isinstance(source, HostEnd) else {b: z3.BitVecVal(0, 1) for b in m.MARK}
                ends.append(encoder.path(model, path))
            solver = z3.Solver()
            solver.set("timeout", 60_000)
            for on in (m.L4PROTO, m.FRAGMENT, m.CT_STATE):
                solver.add(z3.ULT(encoder.variable(on), on.size) if on.size & (on.size - 1) else True)
            solver.add(ends[0] != ends[1])
            answer = solver.check()
            assert answer != z3.unknown
            if answer == z3.sat:
                return False
    return True


@pytest.mark.parametrize("seed", range(20))
def test_z3_agrees(seed: int) -> None:
    for step in range(10):
        maker = Maker(10_000 + seed * 100 + step)
        maker.fields = [on for on in maker.fields if on is not m.PKTTYPE] or [m.DPORT]
        model = maker.model()
        mutant = maker.mutated(model)
        assert proved_equal(model, mutant) is z3_says_equal(model, mutant), (seed, step)
