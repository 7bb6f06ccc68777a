"""Each ruleset is compared on its own host's guests and bridges, and on interfaces that only rules name."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pvefw_nft.verify.network.path import Link, Nic, Topology
from pvefw_nft.verify.prove.compare import compare
from pvefw_nft.verify.prove.network import Side
from pvefw_nft.verify.prove.render import SetNames, class_text, report_text
from pvefw_nft.verify.prove.report import Answer, Report
from pvefw_nft.verify.readers.files import Text, read_ruleset

NICS = tuple(Nic(f"vm{n}", n, 0, f"tap{n}i0", "vmbr0", filtered=True) for n in (100, 101))
BRIDGE = Link("vmbr0", is_bridge=True, ports=("eth0",))
TOPOLOGY = Topology(NICS, (BRIDGE,))
FILTERED = """# iptables-save
*filter
:FORWARD ACCEPT [0:0]
-A FORWARD -m physdev --physdev-is-bridged --physdev-out tap101i0 -j DROP
COMMIT
"""


def rules(*lines: str) -> str:
    return "\n".join(
        ["# iptables-save", "*filter", ":INPUT ACCEPT [0:0]", ":FORWARD ACCEPT [0:0]", *lines, "COMMIT", ""]
    )


def ports(*names: object, op: str = "==") -> str:
    """Return an nft ruleset whose bridges drop what comes by these ports."""
    match = {"match": {"left": {"meta": {"key": "iifname"}}, "op": op, "right": {"set": list(names)}}}
    chain = {"family": "bridge", "table": "t", "name": "a", "type": "filter", "hook": "prerouting", "prio": -150}
    return json.dumps(
        {
            "nftables": [
                {"table": {"family": "bridge", "name": "t"}},
                {"chain": chain},
                {"rule": {"family": "bridge", "table": "t", "chain": "a", "expr": [match, {"drop": None}]}},
            ]
        }
    )


def prove(one: str, two: str, *topologies: Topology) -> Report:
    before, after = topologies or (TOPOLOGY, TOPOLOGY)
    sides = (
        Side("old", read_ruleset([Text("old", one)]), before),
        Side("new", read_ruleset([Text("new", two)]), after),
    )
    return compare(*sides)


def lines(report: Report) -> list[str]:
    return [class_text(one, SetNames(report)) for one in report.unexpected]


def unfiltered(number: int) -> Topology:
    return replace(TOPOLOGY, nics=tuple(replace(nic, filtered=nic.vmid != number) for nic in NICS))


@pytest.mark.parametrize("turned", [False, True])
def test_a_nic_without_its_firewall_bridge_differs_in_both_directions(turned: bool) -> None:
    topologies = [TOPOLOGY, unfiltered(101)]
    rule = FILTERED.replace("--physdev-out tap101i0", "--physdev-in fwln101i0")
    report = prove(rule, rule, *reversed(topologies) if turned else topologies)
    assert report.answer is Answer.DIFFERENT
    assert report.host_differences == (
        f"vm101i0 (tap101i0) has a firewall bridge in {'new' if turned else 'old'} only",
    )
    assert any("to vm101" in line for line in lines(report)), lines(report)


@pytest.mark.parametrize("turned", [False, True])
def test_a_guest_that_is_gone_differs_in_both_directions(turned: bool) -> None:
    topologies = [TOPOLOGY, replace(TOPOLOGY, nics=NICS[:1])]
    report = prove(rules(), rules(), *reversed(topologies) if turned else topologies)
    assert report.answer is Answer.DIFFERENT
    assert report.host_differences == (f"vm101i0 (tap101i0 on vmbr0) is there in {'new' if turned else 'old'} only",)
    assert "The hosts differ:" in report_text(report)


def test_a_guest_on_another_bridge_and_a_bridge_that_is_gone_differ() -> None:
    moved = replace(TOPOLOGY, nics=(replace(NICS[0], bridge="vmbr1"), NICS[1])).with_bridges()
    assert prove(rules(), rules(), TOPOLOGY, moved).host_differences == (
        "vm100i0 (tap100i0) is on bridge vmbr0 in old and on bridge vmbr1 in new",
        "bridge vmbr1 is there in new only",
    )


def test_uplinks_of_other_names_are_the_same_uplinks() -> None:
    other = replace(TOPOLOGY, links=(replace(BRIDGE, ports=("eno1",)),))
    assert prove(rules(), rules(), TOPOLOGY, other).answer is Answer.EQUAL
    rule = "-A FORWARD -m physdev --physdev-in eth0 -j DROP"
    assert prove(rules(rule), rules(rule), TOPOLOGY, other).answer is Answer.DIFFERENT


@pytest.mark.parametrize(
    "rule",
    [
        "-A FORWARD -m physdev --physdev-in enp3s0 -j DROP",
        "-A FORWARD -m physdev --physdev-in tap999i0 -j DROP",
        "-A FORWARD -m physdev --physdev-out fwln999i0 -j DROP",
        "-A FORWARD -m physdev --physdev-in tap9+ -j DROP",
        "-A FORWARD -m physdev --physdev-in bond+ -j DROP",
        "-A FORWARD -i fwbr999i0 -j DROP",
        "-A INPUT -i tap999i0 -j DROP",
        "-A INPUT -i eth7 -j DROP",
        "-A INPUT -i wg+ -j DROP",
        "-A INPUT -i vmbr7 -j DROP",
        "-A FORWARD -i vmbr7 -o vmbr7 -j DROP",
        "-A FORWARD -m physdev ! --physdev-in eth0 -m physdev --physdev-is-bridged -j DROP",
    ],
)
def test_interfaces_that_only_rules_name_are_compared(rule: str) -> None:
    assert prove(rules(rule), rules()).answer is Answer.DIFFERENT
    assert prove(rules(rule), rules(rule)).answer is Answer.EQUAL


@pytest.mark.parametrize("names", [("tap999i0",), ("tap9*",), ("veth998i1", "eth9"), ("fwpr999p0",), ("tap*", "eth1")])
def test_ports_that_only_an_nft_ruleset_names_are_compared(names: tuple[str, ...]) -> None:
    assert prove(ports(*names), ports("nobody")).answer is Answer.DIFFERENT
    assert prove(ports(*names), ports(*names)).answer is Answer.EQUAL


def test_names_without_a_place_leave_the_answer_open() -> None:
    many = [f"-A FORWARD -m physdev --physdev-in card{n} -j ACCEPT" for n in range(40)]
    report = prove(rules(*many), rules())
    assert report.answer is Answer.UNDECIDED
    assert any("card" in text for text in report.undecided), report.undecided


@pytest.mark.parametrize(
    ("text", "different"),
    [("! -i eth9 -p tcp --sport 80", True), ("-i + -p tcp --sport 80", True), ("-i eth+ -p tcp --sport 80", False)],
)
def test_a_hook_without_an_input_interface_shows_an_empty_name(text: str, different: bool) -> None:
    chain = "# iptables-save\n*filter\n:OUTPUT ACCEPT [0:0]\n:X - [0:0]\n-A OUTPUT -j X\n{}\nCOMMIT\n"
    report = prove(chain.format(f"-A X {text} -j DROP"), chain.format(""))
    assert (report.answer is Answer.DIFFERENT) is different


def test_a_packet_that_is_not_bridged_has_no_port() -> None:
    rule = "-A INPUT -i {} -m physdev {} -j DROP"
    for match, different in (("! --physdev-in eth9", True), ("--physdev-in +", False), ("--physdev-is-in", False)):
        report = prove(rules(rule.format("eth7", match)), rules())
        assert (report.answer is Answer.DIFFERENT) is different, match
