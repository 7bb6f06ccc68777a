"""The prover against other means, on many small random rulesets: trying every packet, and z3.

The rulesets draw their conditions from small pools, so that a few hundred packets stand for all there are.
"""

from __future__ import annotations

import os
import random
from itertools import product
from typing import TYPE_CHECKING

from pvefw_nft.verify import model as m
from pvefw_nft.verify.model.intervals import IntervalSet
from pvefw_nft.verify.network.path import End, HostEnd, Link, Path, PortEnd, RoutedEnd, Topology, find_path
from pvefw_nft.verify.prove.compare import Options, compare
from pvefw_nft.verify.prove.network import Side
from pvefw_nft.verify.simulate.packet import Probe
from pvefw_nft.verify.simulate.walk import simulate
from tests.verify.second_opinion import PathPair, differing_packet, marks_in_use

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TOPOLOGY = Topology(
    links=(Link("vmbr0", is_bridge=True, ports=("eth0",)), Link("eth5", is_bridge=False)), call_iptables=False
)
WAYS: tuple[tuple[End, End], ...] = (
    (PortEnd("vmbr0", "eth0"), HostEnd()),
    (RoutedEnd("eth5"), HostEnd()),
    (RoutedEnd("eth5"), PortEnd("vmbr0", "eth0")),
    (PortEnd("vmbr0", "eth0"), RoutedEnd("eth5")),
    (HostEnd(), RoutedEnd("eth5")),
    (HostEnd(), HostEnd()),
)
RULESETS = int(os.environ.get("PVEFW_RANDOM_RULESETS", "60"))
KEY = m.TableKey("nft", m.Family.INET, "t")
ACCEPT_MARK = m.MARK[31]
RATE = m.counter_field(m.rate_field("10/second burst 5"), "all rules together")


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
        self.rules = 0

    def condition(self, depth: int = 0) -> m.Condition:
        if depth < 2 and self.random.random() < 0.15:
            parts = tuple(self.condition(depth + 1) for _ in range(self.random.randint(1, 3)))
            joined: list[m.Condition] = [m.All(parts), m.Any(parts), m.Not(parts[0])]
            return self.random.choice(joined)
        if self.random.random() < 0.35:
            common: list[m.Condition] = [
                m.equals(m.L4PROTO, 6),
                m.within(m.L4PROTO, (6, 6), (17, 17)),
                m.equals(m.PROTOCOL, m.IPV4),
                m.Test(m.IIF, m.interface_set("eth*", "*")),
                m.equals(m.IIF, m.interface_number("lo")),
                m.equals(m.FRAGMENT, 0),
            ]
            return self.random.choice(common)
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
        effects: list[m.Effect] = [
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
        return self.random.choice(effects)

    def verdict(self, chains: list[str]) -> m.PlainVerdict:
        plain: list[m.PlainVerdict] = [
            m.ACCEPT, m.DROP, m.DROP, m.RETURN, m.Reject("tcp-reset", "tcp-reset"), m.Queue(0, 0, bypass=True),
        ]  # fmt: skip
        calls: list[m.PlainVerdict] = [*map(m.Jump, chains * 2), *map(m.Goto, chains)]
        return self.random.choice(plain + calls)

    def rule(self, chains: list[str]) -> m.Rule:
        conditions = tuple(self.condition() for _ in range(self.random.choice([0, 1, 1, 2, 2, 3])))
        effects = tuple(self.effect() for _ in range(self.random.choice([0, 0, 0, 1, 2])))
        verdict: m.Verdict | None = self.verdict(chains) if self.random.random() < 0.8 else None
        if self.random.random() < 0.1:
            ports = (m.equals(m.DPORT, 22), m.equals(m.DPORT, 80))
            verdict = m.VerdictMap(tuple((port, self.verdict(chains)) for port in ports))
        self.rules += 1
        return m.Rule(conditions, effects, verdict, f"rule {self.rules}")

    def model(self, most: int = 3) -> m.RulesetModel:
        """Return a ruleset; ``most`` is how many rules a chain has."""
        names = ["a", "b", "c"]
        chains: dict[str, m.Chain] = {}
        for place, name in enumerate(names):
            rules = [self.rule(names[place + 1 :]) for _ in range(self.random.randint(1, most))]
            chains[name] = m.Chain(name, rules)
        for name, point, priority in (("pre", m.Point.PREROUTING, -150), ("in", m.Point.INPUT, 0)):
            rules = [self.rule(names) for _ in range(self.random.randint(most - 1, most + 1))]
            policies: list[m.Accept | m.Drop] = [m.ACCEPT, m.DROP]
            policy = self.random.choice(policies) if name == "in" else m.ACCEPT
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
    for protocol, transport in product((m.IPV4, m.IPV6), (6, 17, 33, 1)):
        number = 58 if protocol == m.IPV6 and transport == 1 else transport
        source = m.SADDR4 if protocol == m.IPV4 else m.SADDR6
        for fragment in (0, 1, 2) if m.FRAGMENT in fields else (0, 2):
            base = dict.fromkeys((*m.MARK, *m.CT_MARK, *m.CT_STATUS.values()), 0)
            base |= {m.PROTOCOL: protocol, m.ETHER_TYPE: protocol, m.L4PROTO: number, m.FRAGMENT: fragment}
            base |= {m.TTL: 64, m.LENGTH: 60, m.DSCP: 0, m.CT_DIRECTION: 0, m.PKTTYPE: 0, RATE: 0}
            base |= {m.SADDR_TYPE: 1, m.DADDR_TYPE: 2, m.ETHER_SRC: 1, m.ETHER_DST: 2}
            present = [source, m.CT_STATE, m.PKTTYPE, RATE, m.CT_MARK[31]]
            present += [ACCEPT_MARK] if from_host else []
            if fragment < 2:
                present += {6: [m.SPORT, m.DPORT, m.TCP_FLAGS], 17: [m.SPORT, m.DPORT], 33: [m.SPORT, m.DPORT]}.get(
                    number, []
                )
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


def fate(
    model: m.RulesetModel, packet: dict[m.Field, int], path: Path, *, marks: bool
) -> tuple[str, str | None, bool, int]:
    """Return the outcome of a packet, and (``marks``) the mark of its connection after it."""
    run = simulate(model, Probe(packet, path))
    queued = any("queue" in note for note in run.notes)
    return run.verdict, run.kind, queued and run.verdict == "ACCEPT", run.fields[m.CT_MARK[31]] if marks else 0


def meets_change(one: m.RulesetModel, two: m.RulesetModel, path: Path) -> bool:
    """Whether a path leads through a chain that the rulesets do not share."""
    chains, others = one.tables[0].chains, two.tables[0].chains
    todo = {chain.name for stage in path.stages for _, chain in stage.chains(one, m.IPV4)}
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        seen.add(name)
        targets = [t for side in (chains, others) for rule in side[name].rules for t in m.targets(rule.verdict)]
        todo |= set(targets) - seen
    return any(chains[name] is not others[name] for name in seen)


def differ_somewhere(one: m.RulesetModel, two: m.RulesetModel) -> bool:
    fields = fields_of(one, two)
    marks = m.CT_MARK[31] in marks_in_use(one, two)
    fields |= {m.CT_STATE} if marks else set()  # only a packet with a connection can mark it
    for source, destination in WAYS:
        path = find_path(TOPOLOGY, source, destination)
        if not meets_change(one, two, path):
            continue
        for packet in packets(fields, from_host=isinstance(source, HostEnd)):
            if fate(one, packet, path, marks=marks) != fate(two, packet, path, marks=marks):
                return True
    return False


def proved_equal(one: m.RulesetModel, two: m.RulesetModel, *, strict: bool = False) -> bool:
    report = compare(Side("one", one, TOPOLOGY), Side("two", two, TOPOLOGY), Options(strict=strict))
    for difference in report.differences:
        assert difference.before != difference.after
        for model, path, verdict in (
            (one, difference.counterexample.before, difference.before),
            (two, difference.counterexample.after, difference.after),
        ):
            run = simulate(model, Probe(difference.counterexample.packet, path))
            assert verdict.startswith("put together") if run.put_together else verdict.split()[0].upper() == run.verdict
    return report.equal


def test_mutations_are_found_just_if_some_packet_differs() -> None:
    results = {True: 0, False: 0}
    for seed in range(RULESETS):
        maker = Maker(seed)
        model = maker.model()
        mutant = maker.mutated(model)
        equal = proved_equal(model, mutant)
        assert equal is not differ_somewhere(model, mutant), seed
        results[equal] += 1
    assert min(results.values()) > RULESETS * 0.15


def test_a_ruleset_is_equal_to_itself_also_strictly() -> None:
    for seed in range(50):
        assert proved_equal(Maker(seed).model(), Maker(seed).model(), strict=True)


# --- z3 -----------------------------------------------------------------------------------------------------


def z3_says_equal(one: m.RulesetModel, two: m.RulesetModel) -> bool:
    telling = {m.PROTOCOL, m.SADDR4, m.SADDR6, m.ICMP, m.ICMP6}
    protocols = (m.IPV4, m.IPV6) if fields_of(one, two) & telling else (m.IPV4,)
    for (source, destination), protocol in product(WAYS, protocols):
        path = find_path(TOPOLOGY, source, destination)
        way = PathPair(protocol, marked=isinstance(source, HostEnd))
        if differing_packet(one, two, (path, path), way) is not None:
            return False
    return True


def test_z3_agrees() -> None:
    for seed in range(10_000, 10_000 + RULESETS):
        maker = Maker(seed)
        model = maker.model()
        mutant = maker.mutated(model)
        assert proved_equal(model, mutant) is z3_says_equal(model, mutant), seed
