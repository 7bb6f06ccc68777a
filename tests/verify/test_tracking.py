"""Connection tracking as a stage of the path: states before its lookup, and zones."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeAlias

import pytest

from pvefw_nft.verify.network.path import Link, Nic, Topology
from pvefw_nft.verify.prove.compare import compare
from pvefw_nft.verify.prove.network import Side
from pvefw_nft.verify.prove.render import SetNames, class_text
from pvefw_nft.verify.prove.report import Answer
from pvefw_nft.verify.readers.files import Text, read_ruleset
from pvefw_nft.verify.simulate.packet import make_probe
from pvefw_nft.verify.simulate.spec import PacketSpec
from pvefw_nft.verify.simulate.walk import simulate

if TYPE_CHECKING:
    from pvefw_nft.verify.model import RulesetModel
    from pvefw_nft.verify.prove.report import Report

NICS = tuple(Nic(f"vm{n}", n, 0, f"tap{n}i0", "vmbr0", filtered=True) for n in (100, 101))
TOPOLOGY = Topology(NICS, (Link("vmbr0", is_bridge=True, ports=("eth0",)),), call_iptables=False)

ESTABLISHED = {"match": {"left": {"ct": {"key": "state"}}, "op": "in", "right": "established"}}
INVALID = {"match": {"left": {"ct": {"key": "state"}}, "op": "in", "right": "invalid"}}
UNTRACKED = {"match": {"left": {"ct": {"key": "state"}}, "op": "in", "right": "untracked"}}
BOTH = {"match": {**INVALID["match"], "right": ["established", "invalid"]}}
ACCEPT, DROP, NOTRACK = {"accept": None}, {"drop": None}, {"notrack": None}


def on(key: str, name: str, op: str = "==") -> object:
    return {"match": {"left": {"meta": {"key": key}}, "op": op, "right": name}}


def zone(value: object, direction: str | None = None) -> object:
    key = {"key": "zone"} if direction is None else {"key": "zone", "dir": direction}
    return {"mangle": {"key": {"ct": key}, "value": value}}


def by_interface(zones: dict[str, int]) -> object:
    return {"map": {"key": {"meta": {"key": "iifname"}}, "data": {"set": [[name, n] for name, n in zones.items()]}}}


Base: TypeAlias = tuple[str, int, list[list[object]]]
"""A base chain: its hook, its priority and its rules."""


def ruleset(family: str, *chains: Base, policy: str = "accept") -> RulesetModel:
    """Return an nft ruleset of base chains: hook, priority and rules; the last one has the policy."""
    table = {"family": family, "table": "t"}
    items: list[object] = [{"table": {"family": family, "name": "t"}}]
    for number, (hook, priority, rules) in enumerate(chains):
        name = f"c{number}"
        chain = {**table, "name": name, "type": "filter", "hook": hook, "prio": priority}
        items.append({"chain": {**chain, "policy": policy if number == len(chains) - 1 else "accept"}})
        items += [{"rule": {**table, "chain": name, "expr": expression}} for expression in rules]
    return read_ruleset([Text("rules", json.dumps({"nftables": items}))])


def proof(one: RulesetModel, two: RulesetModel) -> Report:
    return compare(Side("one", one, TOPOLOGY), Side("two", two, TOPOLOGY))


def lines(report: Report) -> list[str]:
    return [class_text(difference, SetNames(report)) for difference in report.unexpected]


def verdict(model: RulesetModel, source: str, destination: str, state: str | None = None, flags: str = "ack") -> str:
    spec = PacketSpec(source, destination, protocol="tcp", dport=22, tcp_flags=flags, ctstate=state)
    return simulate(model, make_probe(spec, TOPOLOGY)).verdict


@pytest.mark.parametrize(("priority", "before"), [(-300, True), (-201, True), (-199, False), (0, False)])
def test_before_the_lookup_every_packet_is_invalid(priority: int, before: bool) -> None:
    model = ruleset("inet", ("prerouting", priority, [[INVALID, DROP]]))
    assert verdict(model, "outside", "host", "new") == ("DROP" if before else "ACCEPT")
    assert verdict(model, "outside", "host", "invalid") == "DROP"


def test_a_bridge_looks_packets_up_where_one_of_its_rules_asks() -> None:
    bridge = ruleset("bridge", ("prerouting", -250, [[INVALID, DROP]]))
    assert verdict(bridge, "vm100", "outside", "new") == "DROP"
    assert verdict(ruleset("bridge", ("prerouting", -150, [[INVALID, DROP]])), "vm100", "outside", "new") == "ACCEPT"
    both = ruleset("inet", ("prerouting", -300, [[INVALID, DROP]])).merged(
        ruleset("bridge", ("prerouting", -150, [[ESTABLISHED, ACCEPT]]))
    )
    assert verdict(both, "outside", "host", "new") == "ACCEPT"  # the bridge has looked it up already


@pytest.mark.parametrize(("priority", "seen"), [(-300, "DROP"), (-150, "ACCEPT")])
def test_notrack_counts_before_the_lookup_only(priority: int, seen: str) -> None:
    model = ruleset("inet", ("prerouting", priority, [[NOTRACK]]), ("input", 0, [[UNTRACKED, DROP]]))
    assert verdict(model, "outside", "host", "new") == seen


def test_notrack_is_seen_at_once_and_ends_with_the_bridge() -> None:
    raw: list[list[object]] = [[on("iifname", "tap100i0"), NOTRACK], [UNTRACKED, ACCEPT], [INVALID, DROP]]
    model = ruleset("bridge", ("prerouting", -300, raw))
    assert verdict(model, "vm100", "outside", "new") == "DROP"  # at vmbr0 nothing exempted it
    only_here = [*raw[:2], [on("iifname", "tap100i0"), INVALID, DROP]]
    assert verdict(ruleset("bridge", ("prerouting", -300, only_here)), "vm100", "outside", "new") == "ACCEPT"


def test_a_zone_makes_packets_new_before_their_lookup() -> None:
    new = {"match": {"left": {"ct": {"key": "state"}}, "op": "in", "right": "new"}}
    model = ruleset("inet", ("prerouting", -300, [[zone(7)], [new, DROP]]))
    assert verdict(model, "outside", "host", "established") == "DROP"


def test_a_packet_is_established_only_in_a_zone_that_the_way_back_uses() -> None:
    """The host's connections are tracked in zone 0; answers that are looked up in zone 5 find no connection."""
    host = ("input", 0, [[ESTABLISHED, ACCEPT]])
    one = ruleset("inet", ("prerouting", -300, [[on("iifname", "vmbr0"), zone(5)]]), host, policy="drop")
    two = ruleset("inet", ("prerouting", -300, []), host, policy="drop")
    assert verdict(one, "outside", "host", "established") == "DROP"
    assert verdict(two, "outside", "host", "established") == "ACCEPT"
    report = proof(one, two)
    assert report.answer is Answer.DIFFERENT
    assert any("established" in line for line in lines(report))


def test_a_zone_that_both_directions_use_changes_nothing() -> None:
    host = ("input", 0, [[ESTABLISHED, ACCEPT]])
    both = [("prerouting", -300, [[zone(5)]]), ("output", -300, [[zone(5)]])]
    report = proof(ruleset("inet", *both, host, policy="drop"), ruleset("inet", host, policy="drop"))
    assert report.answer is Answer.EQUAL, lines(report)


def test_a_zone_for_each_nic_equals_one_zone_except_for_connections_of_other_bridges() -> None:
    guests = ("prerouting", -150, [[ESTABLISHED, ACCEPT], [on("iifname", "fwln100i0"), DROP]])
    zones = by_interface({"tap100i0": 1, "fwln100i0": 1, "tap101i0": 2, "fwln101i0": 2})
    split = ruleset("bridge", ("prerouting", -300, [[zone(zones)]]), guests)
    report = proof(ruleset("bridge", guests), split)
    assert report.answer is Answer.EQUAL, lines(report)
    assert ["two keeps the connections of each zone apart" in text for text in report.left_out] == [True]
    assert proof(split, split).left_out == ()


def test_a_zone_at_one_port_of_a_bridge_is_distinguished() -> None:
    """No answer comes to the zone of the guest's packets: they stay new there."""
    guests = ("prerouting", -150, [[ESTABLISHED, ACCEPT], [on("iifname", "tap100i0"), DROP]])
    half = ruleset("bridge", ("prerouting", -300, [[zone(by_interface({"tap100i0": 1}))]]), guests)
    assert proof(ruleset("bridge", guests), half).answer is Answer.DIFFERENT


@pytest.mark.parametrize(("direction", "verdict_"), [("original", "ACCEPT"), ("reply", "DROP")])
def test_a_zone_of_one_direction(direction: str, verdict_: str) -> None:
    """Answers to the host's connections are looked up in the zone of replies, requests in the zone of originals."""
    host = ("input", 0, [[ESTABLISHED, ACCEPT]])
    model = ruleset("inet", ("output", -300, [[zone(5, direction)]]), host, policy="drop")
    assert verdict(model, "outside", "host", "established") == verdict_


def test_zones_by_address_are_not_decided() -> None:
    address = {"match": {"left": {"payload": {"protocol": "ip", "field": "saddr"}}, "op": "==", "right": "10.0.0.1"}}
    host = ("input", 0, [[ESTABLISHED, ACCEPT]])
    one = ruleset("inet", ("prerouting", -300, [[address, zone(5)]]), host)
    assert proof(one, ruleset("inet", ("prerouting", -300, []), host)).answer is Answer.UNDECIDED
    assert proof(one, one).answer is Answer.EQUAL


def test_iptables_zones_are_read() -> None:
    text = "# iptables-save\n*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -i fwbr+ -j CT --zone 1\nCOMMIT\n"
    raw = read_ruleset([Text("rules.v4", text)])
    assert verdict(raw, "vm100", "outside") == "ACCEPT"


def test_states_accepted_by_an_earlier_base_chain_come_to_the_next() -> None:
    first: Base = ("input", 0, [[ESTABLISHED, ACCEPT], [BOTH, DROP]])
    one = ruleset("inet", first, ("input", 10, [[ESTABLISHED, DROP]]))
    assert any("established" in line for line in lines(proof(one, ruleset("inet", first, ("input", 10, [])))))


def test_states_accepted_by_a_verdict_map_come_to_the_next_base_chain() -> None:
    pairs = [["established", ACCEPT], ["invalid", DROP]]
    vmap = {"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": pairs}}}
    first: Base = ("input", 0, [[vmap], [BOTH, DROP]])
    one = ruleset("inet", first, ("input", 10, [[ESTABLISHED, DROP]]))
    assert any("established" in line for line in lines(proof(one, ruleset("inet", first, ("input", 10, [])))))


@pytest.mark.parametrize("op", ["==", "!="])
def test_a_packet_without_a_connection_has_no_connection_mark(op: str) -> None:
    mark = {"match": {"left": {"ct": {"key": "mark"}}, "op": op, "right": 1}}
    model = ruleset("inet", ("input", 0, [[mark, DROP]]))
    assert verdict(model, "outside", "host", "invalid") == "ACCEPT"
    assert verdict(model, "outside", "host", "new") == ("DROP" if op == "!=" else "ACCEPT")
