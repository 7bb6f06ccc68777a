"""Probes lie just inside and just outside of a rule's conditions."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from tests.kernel.artefact import parse_iptables
from tests.kernel.cases import CASES
from tests.kernel.generate import SPOOFED_MAC, generate
from tests.kernel.network.plan import Plan, make_plan
from tests.kernel.packets import Packet, Proto
from tests.kernel.restore import AddressSet, RestoreError, read


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(CASES / "guest-rules", "pve1", "10.0.0.0/24")


def made(rule: str, plan: Plan, family: int = 4, sets: str = "", chain: str = "tap100i0-IN") -> list[Packet]:
    """Return the packets made for one rule in a chain."""
    tool = "iptables-restore" if family == 4 else "ip6tables-restore"
    text = f"### ipset restore\n{sets}\n### {tool} -T filter -n\n*filter\n-A {chain} {rule} -j ACCEPT\nCOMMIT\n"
    rulesets = read(parse_iptables(text))
    return [probe.judged for probe in generate(rulesets, plan, extra=0)]


def test_a_port_and_its_neighbours(plan: Plan) -> None:
    assert {p.dport for p in made("-p tcp --dport 22", plan) if p.protocol == Proto.TCP} == {21, 22, 23}


def test_a_list_of_ports_and_ranges(plan: Plan) -> None:
    packets = made("-p tcp --match multiport --dports 22,80:90", plan)
    ports = {p.dport for p in packets if p.protocol != Proto.ICMP}
    assert ports <= {21, 22, 23, 79, 80, 90, 91}
    assert ports & {22, 80, 90}
    assert ports & {21, 23, 79, 91}


def test_another_protocol(plan: Plan) -> None:
    assert {p.protocol for p in made("-p tcp --dport 22", plan)} == {Proto.TCP, Proto.UDP, Proto.ICMP}


@pytest.mark.parametrize(
    ("condition", "family", "expected"),
    [
        ("-s 10.1.0.0/16", 4, {"10.0.255.255", "10.1.0.0", "10.1.255.255", "10.2.0.0"}),
        ("-s 10.1.2.3/32", 4, {"10.1.2.2", "10.1.2.3", "10.1.2.4"}),
        ("-m iprange --src-range 10.0.0.5-10.0.0.7", 4, {"10.0.0.4", "10.0.0.5", "10.0.0.7", "10.0.0.8"}),
        ("-s fd00:1::/64", 6, {"fd00::ffff:ffff:ffff:ffff:ffff", "fd00:1::", "fd00:1:0:1::"}),
    ],
)
def test_the_edges_of_addresses(condition: str, family: int, expected: set[str], plan: Plan) -> None:
    sources = {str(p.source) for p in made(condition, plan, family)}
    assert expected <= sources or (family == 6 and len(expected & sources) >= 2)


def test_a_set_with_a_hole(plan: Plan) -> None:
    sets = "create S hash:net family inet\nadd S 10.1.0.0/16\nadd S 10.1.2.0/24 nomatch"
    sources = {str(p.source) for p in made("-m set --match-set S src", plan, sets=sets)}
    assert sources & {"10.1.2.0", "10.1.2.255", "10.0.255.255", "10.2.0.0"}
    assert sources & {"10.1.0.0", "10.1.255.255", "10.1.1.255", "10.1.3.0"}


def test_the_most_specific_entry_of_a_set_counts() -> None:
    entries = (("10.1.0.0/16", False), ("10.1.2.0/24", True), ("10.1.2.3/32", False))
    named = AddressSet(tuple((ip_network(net), hole) for net, hole in entries))
    held = {text: named.holds(ip_address(text)) for text in ("10.1.0.1", "10.1.2.1", "10.1.2.3", "10.2.0.0")}
    assert held == {"10.1.0.1": True, "10.1.2.1": False, "10.1.2.3": True, "10.2.0.0": False}


def test_icmp_types_and_codes(plan: Plan) -> None:
    kinds = {(p.icmp_type, p.icmp_code) for p in made("-p icmp -m icmp --icmp-type host-unreachable", plan)}
    assert {(3, 1), (3, 2), (4, 1), (2, 1)} <= kinds


def test_a_wrong_mac_address(plan: Plan) -> None:
    packets = made("-m mac ! --mac-source BC:24:11:00:01:00", plan, chain="tap100i0-OUT")
    assert {p.source_mac for p in packets} == {None, SPOOFED_MAC}


def test_each_tcp_flag(plan: Plan) -> None:
    flags = {p.flags for p in made("-p tcp -m tcp --tcp-flags SYN,RST SYN,RST", plan)}
    assert {0x06, 0x02, 0x04} <= flags


def test_a_rule_of_the_host_for_an_interface() -> None:
    two = make_plan(CASES / "host", "pve1", "10.0.0.0/24")
    senders = {p.sender for p in made("-i vmbr1 -p tcp --dport 22", two, chain="PVEFW-HOST-IN")}
    assert {"outside@vmbr1", "outside@vmbr0"} <= senders


def test_a_seed_gives_the_same_probes_again(plan: Plan) -> None:
    text = "### iptables-restore -T filter -n\n*filter\n-A tap100i0-IN -p tcp --dport 22 -j ACCEPT\nCOMMIT\n"
    rulesets = read(parse_iptables(text))
    assert generate(rulesets, plan, seed=5) == generate(rulesets, plan, seed=5)
    assert generate(rulesets, plan, seed=5) != generate(rulesets, plan, seed=6)


def test_an_unknown_match_is_an_error(plan: Plan) -> None:
    with pytest.raises(RestoreError, match="--length"):
        made("-m length --length 100", plan)
