"""Both backends' rulesets of one configuration are proved equal, and mutations of either are found."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pvefw_nft.cli.rulesets import configuration_rulesets
from pvefw_nft.pipeline import Source
from pvefw_nft.verify import model as m
from pvefw_nft.verify.packet import PacketSpec, Probe, make_probe
from pvefw_nft.verify.prove.compare import compare
from pvefw_nft.verify.prove.flows import Side
from pvefw_nft.verify.prove.render import report_text
from pvefw_nft.verify.simulate import simulate

ROOT = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(path.parent.parent.parent for path in ROOT.glob("*/etc/pve/firewall"))


def sides(root: Path) -> list[Side]:
    nodes = sorted((root / "etc/pve/nodes").glob("*"))
    node = nodes[0].name if nodes else "node"
    found = configuration_rulesets(Source(root, node, lambda: "192.168.1.0/24"), "both")
    return [Side(one.name, one.model, one.topology) for one in found]


@pytest.mark.parametrize("root", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_the_same_through_both_backends(root: Path) -> None:
    before, after = sides(root)
    report = compare(before, after)
    assert report.equal, report_text(report)
    assert report.counts.diagrams > 0


# --- mutations ----------------------------------------------------------------------------------------------


def mutated(model: m.RulesetModel, choice: random.Random) -> tuple[m.RulesetModel, list[m.Rule]]:
    """Change one rule; returns the rules that were and are at that place, too."""
    number = choice.choice([n for n, t in enumerate(model.tables) if any(c.rules for c in t.chains.values())])
    table = model.tables[number]
    chain = choice.choice([chain for chain in table.chains.values() if chain.rules])
    rules = list(chain.rules)
    at = choice.randrange(len(rules))
    touched = [rules[at]]
    match choice.randrange(4):
        case 0:
            del rules[at]
        case 1:
            other = (at + 1) % len(rules)
            touched.append(rules[other])
            rules[at], rules[other] = rules[other], rules[at]
        case 2:
            verdicts: list[m.Verdict] = [m.ACCEPT, m.DROP, m.RETURN, m.Reject("tcp-reset", "tcp-reset")]
            rules[at] = rules[at]._replace(verdict=choice.choice(verdicts))
        case _:
            kept = list(rules[at].conditions)
            if kept:
                del kept[choice.randrange(len(kept))]
            rules[at] = rules[at]._replace(conditions=tuple(kept))
    chains = {**table.chains, chain.name: m.Chain(chain.name, rules, chain.policy, chain.hook)}
    tables = list(model.tables)
    tables[number] = m.Table(table.key, chains, table.sets)
    return m.RulesetModel(tuple(tables)), touched


def probes(side: Side, touched: list[m.Rule], choice: random.Random, count: int) -> list[Probe]:
    """Packets that meet the conditions of a rule, or just do not, on ways between a few zones."""
    zones = ["host", "outside", *dict.fromkeys(nic.zone for nic in side.topology.nics)]
    tests = [test for rule in touched for condition in rule.conditions for test in m.tests_of(condition)]
    found: list[Probe] = []
    while len(found) < count:
        source, destination = choice.sample(zones, 2)
        spec = PacketSpec(source, destination, choice.choice(["tcp", "udp", "icmp"]), family=choice.choice([4, 6]))
        probe = make_probe(spec, side.topology)
        fields = dict(probe.fields)
        for test in tests:
            if test.field in fields and test.field is not m.PROTOCOL and test.values:
                edges = [edge for first, last in test.values for edge in (first, last, last + 1)]
                value = choice.choice(edges)
                if value < test.field.size and test.field.name != "l4proto":
                    fields[test.field] = value
        found.append(Probe(fields, probe.path))
    return found


@pytest.mark.parametrize("number", [0, 1], ids=["iptables", "nft"])
def test_mutations_of_an_artefact_are_found(number: int) -> None:
    """A mutant called equal treats packets at the edges of the changed rule alike; the prover itself checks, for
    every difference it shows, that the simulator has the verdicts it says.
    """
    side = sides(ROOT / "homelab")[number]
    choice = random.Random(7)
    equal = 0
    for _ in range(100):
        mutant, touched = mutated(side.model, choice)
        report = compare(side, Side("mutant", mutant, side.topology))
        if report.equal:
            equal += 1
            for probe in probes(side, touched, choice, 20):
                one, two = simulate(side.model, probe), simulate(mutant, probe)
                assert (one.verdict, one.kind) == (two.verdict, two.kind), touched
    assert 20 < equal < 90
