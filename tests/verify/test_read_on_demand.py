"""Rulesets read chain by chain: a packet meets the rules that it meets in one read as a whole."""

from __future__ import annotations

import json

import pytest

from pvefw_nft.pipeline import Source, compile_root
from pvefw_nft.verify.model import Point, RulesetModel, UnreadChain
from pvefw_nft.verify.model.ruleset import Family
from pvefw_nft.verify.readers.files import Text, read_ruleset
from pvefw_nft.verify.readers.shared import Assume, RulesetError
from pvefw_nft.verify.simulate.report import outcome_data
from tests.kernel import cases, configurations
from tests.kernel.artefact import IPTABLES
from tests.kernel.packets import describe
from tests.verify.lab import lost_before_rules, outcome_of, topology_of


def unread(model: RulesetModel) -> set[str]:
    chains = (chain for table in model.tables for chain in table.chains.values())
    return {chain.name for chain in chains if isinstance(chain, UnreadChain) and not chain.is_read}


def at_once(text: str) -> str:
    """Return JSON in a form that is read as one document, not command by command; other text as it is."""
    return json.dumps(json.loads(text), indent=1) if text.startswith("{") else text


def read_both_ways(text: str) -> tuple[RulesetModel, RulesetModel]:
    return read_ruleset([Text("ruleset", at_once(text))]), read_ruleset([Text("ruleset", text)], on_demand=True)


@pytest.mark.parametrize("backend", configurations.backends())
@pytest.mark.parametrize("name", cases.names())
def test_packets_meet_the_same_rules(name: str, backend: str) -> None:
    case = cases.load(name)
    plan = configurations.of_case(name).plan
    topology = topology_of(plan, call_iptables=backend == IPTABLES)
    artefact = compile_root(Source(case.root, case.node, lambda: case.local_network), backend).artefact
    whole, on_demand = read_both_ways("".join(artefact.text() if backend == IPTABLES else artefact.json()))
    assert unread(on_demand)
    for probe, _ in case.expected:
        if not lost_before_rules(probe.judged, topology):
            data = [
                outcome_data(outcome_of(probe, plan, topology, model), verbose=True) for model in (whole, on_demand)
            ]
            assert data[0] == data[1], describe(probe)


@pytest.mark.parametrize("name", ["groups", "ipsets", "blacklist"])
def test_a_listing_read_command_by_command_is_that_read_at_once(name: str) -> None:
    case = cases.load(name)
    source = Source(case.root, case.node, lambda: case.local_network)
    text = "".join(compile_root(source, "nft").artefact.json())
    by_command, whole = (read_ruleset([Text("ruleset", form)]) for form in (text, at_once(text)))
    assert by_command == whole
    assert any(table.lookups for table in whole.tables)


def nft(*rules: dict[str, object], jump: str = "a") -> str:
    """Return a document as pvefw compile prints it: a base chain that goes to ``jump``, and chain ``a`` with rules."""
    own = {"family": "inet", "table": "t"}
    hook = {"type": "filter", "hook": "input", "prio": 0, "policy": "accept"}
    commands: list[object] = [
        {"table": {"family": "inet", "name": "t"}},
        *({"chain": {**own, "name": name, **more}} for name, more in (("in", hook), ("a", {}), ("b", {}))),
        {"rule": {**own, "chain": "in", "expr": [{"jump": {"target": jump}}]}},
        *({"rule": {**own, "chain": "a", **rule}} for rule in rules),
    ]
    lines = ",\n".join(json.dumps({"add": command}, separators=(",", ":")) for command in commands)
    return f'{{"nftables":[\n{lines}\n]}}\n'


def save(*lines: str) -> str:
    return "\n".join(["*filter", ":INPUT ACCEPT [0:0]", ":a - [0:0]", ":b - [0:0]", *lines, "COMMIT", ""])


def rules_of(text: str, chain: str) -> object:
    model = read_ruleset([Text("ruleset", text)], on_demand=True)
    return next(table.chains[chain].rules for table in model.tables)


def test_an_unknown_rule_is_an_error_only_in_a_chain_that_is_read() -> None:
    for text in (nft({"expr": [{"osf": {}}]}), save("-A INPUT -j ACCEPT", "-A a -m unheard-of -j DROP")):
        chain = "in" if text.startswith("{") else "INPUT"
        assert rules_of(text, chain)
        with pytest.raises(RulesetError, match="not modelled"):
            rules_of(text, "a")
        with pytest.raises(RulesetError, match="not modelled"):
            read_ruleset([Text("ruleset", text)])


def test_all_rules_are_read_to_report_assumptions() -> None:
    text = Text("ruleset", save("-A a -m unheard-of -j DROP"))
    model = read_ruleset([text], assume=Assume.MATCH, on_demand=True)
    assert model.assumptions
    assert not unread(model)


def test_chains_that_are_not_there_and_circles_are_refused() -> None:
    for text in (nft(jump="c"), save("-A INPUT -j c")):
        with pytest.raises(RulesetError):
            rules_of(text, "in" if text.startswith("{") else "INPUT")
    for text in (nft({"expr": [{"goto": {"target": "a"}}]}), save("-A a -j b", "-A b -g a")):
        model = read_ruleset([Text("ruleset", text)], on_demand=True)
        with pytest.raises(RulesetError, match="circle"):
            [chain.rules for table in model.tables for chain in table.chains.values()]


def test_commands_on_text_that_is_not_read_yet() -> None:
    commands = (
        "-A a -j DROP",
        "-I a -j ACCEPT",
        "-I a 2 -s 10.0.0.1/32 -j ACCEPT",
        "-A b -j DROP",
        "-F b",
        "-A b -j a",
    )
    whole, on_demand = read_both_ways(save(*commands))
    for chain in ("a", "b"):
        assert on_demand.tables[0].chains[chain].rules == whole.tables[0].chains[chain].rules


def test_a_name_given_twice_counts_as_json_has_it() -> None:
    twice = nft().replace(',"expr":[{"jump"', ',"chain":"b","expr":[{"jump"')
    whole, on_demand = read_both_ways(twice)
    assert [len(chain.rules) for chain in on_demand.tables[0].chains.values()] == [0, 0, 1]
    assert [chain.rules for chain in on_demand.tables[0].chains.values()] == [
        chain.rules for chain in whole.tables[0].chains.values()
    ]


def test_a_line_that_is_no_command_is_refused() -> None:
    damaged = nft({"expr": [{"drop": None}]}).replace('[{"drop":null}]', "[{]")
    with pytest.raises(RulesetError, match="not JSON"):
        rules_of(damaged, "a")
    assert read_ruleset([Text("r", damaged)], on_demand=True).base_chains(Point.INPUT, Family.INET)


@pytest.mark.parametrize("damage", ["[{]", '[{"x":"@set"]', '[{"x":"\\u0040set"]', '[{"set":{"stmt"]', "[]}},{"])
def test_a_damaged_rule_is_refused_if_all_rules_are_read(damage: str) -> None:
    damaged = nft({"expr": [{"drop": None}]}).replace('[{"drop":null}]', damage)
    with pytest.raises(RulesetError, match="not JSON"):
        read_ruleset([Text("r", damaged)])


def test_sets_count_as_looked_up_however_they_are_spelled() -> None:
    text = nft(
        {"expr": [{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "@names"}}, {"drop": None}]}
    )
    declared = '{"add":{"set":{"family":"inet","table":"t","name":"names","type":"ifname","elem":["eth0"]}}},\n'
    text = text.replace('{"add":{"rule"', declared + '{"add":{"rule"', 1)
    for spelled in (text, text.replace('"@names"', '"\\u0040names"')):
        assert read_ruleset([Text("r", spelled)]).tables[0].lookups == {"nft inet t names"}


def test_a_rule_of_a_chain_that_is_not_declared_is_refused() -> None:
    with pytest.raises(RulesetError, match="no chain"):
        read_ruleset([Text("r", nft().replace('"chain":"in"', '"chain":"nowhere"'))], on_demand=True)


@pytest.mark.parametrize("digests", [False, True])
def test_a_rule_without_a_body_stays_in_its_chain(digests: bool) -> None:
    lines = [
        "*filter",
        ":G1 - [0:0]",
        ":G10 - [0:0]",
        "-A G1 -j DROP",
        "-A G10 -j ACCEPT",
        "-A G10",
        "-A G1",
        "COMMIT",
        "",
    ]
    whole = read_ruleset([Text("rules.v4", "\n".join(lines))])
    found = read_ruleset([Text("rules.v4", "\n".join(lines))], on_demand=True, digests=digests)
    chains = [model.tables[0].chains for model in (whole, found)]
    assert [len(chains[1][name].rules) for name in ("G1", "G10")] == [2, 2]
    assert all(chains[0][name].rules == chains[1][name].rules for name in chains[0])
