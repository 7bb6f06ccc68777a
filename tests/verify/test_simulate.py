"""The walk of a packet: verdicts, the rules that decide, marks, logs and notes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from pvefw_nft.verify.network.path import Link, Network, Nic, Topology
from pvefw_nft.verify.readers.files import Text, read_ruleset
from pvefw_nft.verify.readers.shared import Assume
from pvefw_nft.verify.simulate.packet import make_probe
from pvefw_nft.verify.simulate.report import answer_line, outcome_data, outcome_lines
from pvefw_nft.verify.simulate.spec import PacketSpec
from pvefw_nft.verify.simulate.walk import Outcome, simulate

if TYPE_CHECKING:
    from pvefw_nft.verify.model import RulesetModel

SAMPLES = Path(__file__).parent / "samples"
Option: TypeAlias = Any
"""The value of an option of PacketSpec."""

TOPOLOGY = Topology(
    nics=(
        Nic("vm100", 100, 0, "tap100i0", "vmbr0", filtered=True, mac=0xBC2411000001, addresses=((4, 0x0A000064),)),
        Nic("vm101", 101, 0, "tap101i0", "vmbr0", filtered=True, mac=0xBC2411000002, addresses=((4, 0x0A000065),)),
        Nic("vm102", 102, 0, "tap102i0", "vmbr0", filtered=False, addresses=((4, 0x0A000066),)),
    ),
    links=(
        Link("vmbr0", True, ("eno1",), (Network(4, 0x0A000001, 24),)),
        Link("docker0", False, (), (Network(4, 0xAC110001, 16),)),
    ),
)

IPTABLES = """### ipset restore
create friends hash:net family inet
add friends 10.0.0.0/24
add friends 10.0.0.101 nomatch
### iptables-restore -T filter -n
*filter
:PVEFW-FORWARD - [0:0]
:PVEFW-FWBR-IN - [0:0]
:PVEFW-FWBR-OUT - [0:0]
:PVEFW-INPUT - [0:0]
:PVEFW-SET-ACCEPT-MARK - [0:0]
:PVEFW-reject - [0:0]
:GROUP-web-IN - [0:0]
:tap100i0-IN - [0:0]
:tap100i0-OUT - [0:0]
-A FORWARD -j PVEFW-FORWARD
-A INPUT -j PVEFW-INPUT
-A PVEFW-FORWARD -m conntrack --ctstate INVALID -j DROP
-A PVEFW-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A PVEFW-FORWARD -m physdev --physdev-is-bridged --physdev-in fwln+ -j PVEFW-FWBR-IN
-A PVEFW-FORWARD -m physdev --physdev-is-bridged --physdev-out fwln+ -j PVEFW-FWBR-OUT
-A PVEFW-FWBR-IN -m physdev --physdev-is-bridged --physdev-out tap100i0 -j tap100i0-IN
-A PVEFW-FWBR-OUT -m physdev --physdev-is-bridged --physdev-in tap100i0 -j tap100i0-OUT
-A PVEFW-INPUT -m mark --mark 0x80000000/0x80000000 -j ACCEPT
-A PVEFW-INPUT -p tcp --dport 8006 -j RETURN
-A PVEFW-INPUT -j DROP
-A PVEFW-SET-ACCEPT-MARK -j MARK --set-mark 0x80000000/0x80000000
-A PVEFW-reject -p tcp -j REJECT --reject-with tcp-reset
-A PVEFW-reject -p icmp -j DROP
-A PVEFW-reject -j REJECT --reject-with icmp-host-prohibited
-A GROUP-web-IN -j MARK --set-mark 0x00000000/0x80000000
-A GROUP-web-IN -p tcp --dport 80 -g PVEFW-SET-ACCEPT-MARK
-A tap100i0-IN -j GROUP-web-IN
-A tap100i0-IN -m mark --mark 0x80000000/0x80000000 -j ACCEPT
-A tap100i0-IN -m set --match-set friends src -p tcp --dport 22 -j ACCEPT
-A tap100i0-IN -m limit --limit 1/second -j NFLOG --nflog-prefix ":100:6:tap100i0-IN: policy DROP: "
-A tap100i0-IN -j DROP
-A tap100i0-OUT -m mac ! --mac-source BC:24:11:00:00:01 -j DROP
-A tap100i0-OUT -j MARK --set-mark 0x00000000/0x80000000
-A tap100i0-OUT -p tcp --dport 25 -g PVEFW-reject
-A tap100i0-OUT -p udp --dport 5000 -j NFQUEUE --queue-num 3 --queue-bypass
-A tap100i0-OUT -g PVEFW-SET-ACCEPT-MARK
COMMIT
### ebtables-restore
*filter
:PVEFW-FWBR-OUT ACCEPT
:tap100i0-OUT ACCEPT
:tap100i0-OUT-ARP ACCEPT
-A FORWARD -p IPv4 -j ACCEPT
-A FORWARD -o fwln+ -j PVEFW-FWBR-OUT
-A PVEFW-FWBR-OUT -i tap100i0 -j tap100i0-OUT
-A tap100i0-OUT -p ARP -j tap100i0-OUT-ARP
-A tap100i0-OUT -j ACCEPT
-A tap100i0-OUT-ARP -p ARP --arp-ip-src 10.0.0.100 -j RETURN
-A tap100i0-OUT-ARP -j DROP
"""
ORIGINS = {
    ("iptables", "filter", "GROUP-web-IN", 2): "cluster.fw:9",
    ("iptables", "filter", "tap100i0-IN", 3): "100.fw:5 (SSH)",
    ("iptables", "filter", "tap100i0-OUT", 3): "100.fw:7",
    ("iptables", "filter", "PVEFW-reject", 1): "standard chain",
}
MODEL = read_ruleset([Text("rules", IPTABLES)], origins=ORIGINS)


def run(source: str, destination: str, model: RulesetModel = MODEL, **options: Option) -> Outcome:
    return simulate(model, make_probe(PacketSpec(source, destination, **options), TOPOLOGY))


@pytest.mark.parametrize(
    ("source", "destination", "options", "verdict"),
    [
        ("outside", "vm100:80", {}, "ACCEPT"),
        ("outside", "vm100:22", {}, "DROP"),
        ("vm102", "vm100:22", {}, "ACCEPT"),
        ("vm101", "vm100:22", {}, "DROP"),
        ("outside", "vm100:81", {"ctstate": "established"}, "ACCEPT"),
        ("outside", "vm100:80", {"ctstate": "invalid"}, "DROP"),
        ("outside", "vm102:22", {"ctstate": "invalid"}, "DROP"),
        ("outside", "vm102:22", {}, "ACCEPT"),
        ("vm100", "outside:25", {}, "REJECT (tcp-reset)"),
        ("vm100", "outside:443", {}, "ACCEPT"),
        ("vm100", "outside:443", {"mac": "bc:24:11:00:00:09"}, "DROP"),
        ("outside", "host:22", {}, "DROP"),
        ("outside", "host:8006", {}, "ACCEPT"),
        ("vm100", "host:22", {}, "ACCEPT"),
        ("vm100", "outside", {"protocol": "arp"}, "ACCEPT"),
        ("vm100", "outside", {"protocol": "arp", "arp_sender": "10.0.0.1"}, "DROP"),
        ("vm102", "outside", {"protocol": "arp", "arp_sender": "10.0.0.1"}, "ACCEPT"),
        ("vm100", "outside:25", {"vlan": 7}, "ACCEPT"),
    ],
)
def test_verdicts(source: str, destination: str, options: dict[str, Option], verdict: str) -> None:
    assert run(source, destination, **options).text == verdict


def decider(outcome: Outcome) -> str:
    step = outcome.decider
    return f"{step.chain.name} {step.number} {step.origin}".rstrip() if step else "none"


def test_the_rule_that_had_the_mark_set_decides_not_the_one_that_tests_it() -> None:
    assert decider(run("outside", "vm100:80")) == "GROUP-web-IN 2 cluster.fw:9"


def test_the_users_rule_is_named_instead_of_its_standard_chain() -> None:
    assert decider(run("vm100", "outside:25")) == "PVEFW-reject 1 100.fw:7"


def test_the_policy_of_a_chain_decides() -> None:
    assert decider(run("outside", "vm100:81")) == "tap100i0-IN 5"


def test_no_rule_decides_without_a_filter() -> None:
    assert decider(run("host", "outside:22")) == "none"


def test_accepted_by_its_own_line() -> None:
    assert decider(run("vm102", "vm100:22")) == "tap100i0-IN 3 100.fw:5 (SSH)"


def test_the_accept_mark_stays_with_the_packet_to_the_next_bridge() -> None:
    outcome = run("vm100", "host:22")
    assert outcome.verdict == "ACCEPT"
    assert decider(outcome).startswith("PVEFW-INPUT 1")


def test_log_lines() -> None:
    assert [log.prefix for log in run("outside", "vm100:81").logs] == [":100:6:tap100i0-IN: policy DROP: "]
    assert run("outside", "vm100:80").logs == []


def test_a_queue_accepts_and_a_note_says_so() -> None:
    outcome = run("vm100", "outside:5000", protocol="udp")
    assert outcome.verdict == "ACCEPT"
    assert any("queue 3" in note for note in outcome.notes)


def test_docker_drops_bridged_packets_if_br_netfilter_shows_them() -> None:
    docker = read_ruleset([Text(n, (SAMPLES / n).read_text()) for n in ("docker.iptables-save",)])
    assert run("vm101", "vm102:80", docker).text == "DROP"
    closed = Topology(TOPOLOGY.nics, TOPOLOGY.links, call_iptables=False)
    assert simulate(docker, make_probe(PacketSpec("vm101", "vm102:80"), closed)).text == "ACCEPT"


def test_a_translation_is_executed_and_noted() -> None:
    docker = read_ruleset([Text(n, (SAMPLES / n).read_text()) for n in ("docker.iptables-save",)])
    outcome = run("outside", "host:80", docker)
    assert any("172.18.0.2 port 8080" in note for note in outcome.notes)


def test_nft_beside_foreign_tables() -> None:
    both = read_ruleset([Text(n, (SAMPLES / n).read_text()) for n in ("beside-foreign.nft.json",)])
    assert run("10.8.0.7", "vm100:22", both).text == "ACCEPT"
    assert decider(run("outside", "vm100:81", both)) == "tap100i0-IN 4 policy DROP"
    assert run("vm100", "outside:25", both).text == "REJECT (tcp-reset)"
    assert decider(run("vm100", "outside:25", both)) == "tap100i0-OUT 2 100.fw:7"
    assert run("203.0.113.7", "host:22", both).text == "REJECT (port-unreachable)"
    assert run("outside", "host:22", both).text == "ACCEPT"
    assert run("outside", "host:6005", both).text == "DROP"
    assert run("outside", "host:7000", both).text == "DROP"


def assumed(assume: Assume, rest: str = "") -> RulesetModel:
    text = f"*filter\n-A INPUT -m recent --name x --rcheck -j DROP\n{rest}COMMIT\n"
    return read_ruleset([Text("a.iptables-save", text)], assume=assume)


def test_an_unknown_match_under_each_assumption() -> None:
    assert run("outside", "host:22", assumed(Assume.MATCH)).text == "DROP"
    assert run("outside", "host:22", assumed(Assume.NOMATCH)).text == "ACCEPT"
    outcome = run("outside", "host:22", assumed(Assume.BOTH))
    assert outcome.text == "UNDECIDED"
    assert any("ACCEPT or DROP, depending on -m recent --name x --rcheck" in note for note in outcome.notes)


def test_an_unknown_match_that_makes_no_difference() -> None:
    outcome = run("outside", "host:22", assumed(Assume.BOTH, "-A INPUT -j DROP\n"))
    assert outcome.text == "DROP"
    assert any("is taken to match or not" in note for note in outcome.notes)


def test_the_policy_of_a_base_chain_that_drops() -> None:
    model = read_ruleset([Text("a.iptables-save", "*filter\n:INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n")])
    outcome = run("outside", "host:22", model)
    assert outcome.text == "DROP"
    assert "the policy of iptables filter INPUT" in "\n".join(outcome_lines(outcome))
    assert run("host", "host:22", model).text == "ACCEPT"


def test_a_return_after_a_goto_goes_to_the_chain_that_jumped() -> None:
    text = (
        "*filter\n:a - [0:0]\n:b - [0:0]\n:c - [0:0]\n-A INPUT -j a\n-A INPUT -j REJECT\n-A a -g b\n-A a -j DROP\n"
        "-A b -j c\n-A b -p udp -j DROP\n-A c -j RETURN\nCOMMIT\n"
    )
    model = read_ruleset([Text("a.iptables-save", text)])
    assert run("outside", "host:22", model).text == "REJECT (port-unreachable)"
    assert run("outside", "host:22", model, protocol="udp").text == "DROP"


def test_the_report_for_people() -> None:
    lines = list(outcome_lines(run("outside", "vm100:80")))
    assert lines[0] == "ACCEPT: tcp 198.51.100.1:40000 → 10.0.0.100:80 (vmbr0/eno1 → vm100i0)"
    assert lines[-1].startswith("  decided by: GROUP-web-IN rule 2 (cluster.fw:9): -p tcp --dport 80")
    verbose = list(outcome_lines(run("outside", "vm100:80"), verbose=True))
    assert any("· PVEFW-FORWARD rule 1" in line and "[ct state is new]" in line for line in verbose)


def test_the_answer_in_few_words() -> None:
    assert answer_line(run("outside", "vm100:80")) == "ACCEPT at vm100, cluster.fw:9"
    assert answer_line(run("vm100", "outside:25")) == "REJECT (tcp-reset) at vm100, 100.fw:7"


def test_the_report_for_programs_is_json() -> None:
    data = json.loads(json.dumps(outcome_data(run("vm100", "outside:25"), verbose=True)))
    assert (data["verdict"], data["kind"]) == ("REJECT", "tcp-reset")
    assert data["decided_by"]["origin"] == "100.fw:7"
    assert data["decided_by"]["by"][-1] == "tap100i0-OUT rule 3"
    assert data["hops"][-1]["rules"][-1]["matched"] is True


@pytest.mark.parametrize(
    ("source", "destination", "address", "verdict"),
    [
        ("outside", "host:8006", "255.255.255.255", "DROP"),
        ("outside", "host:8006", "224.0.0.5", "DROP"),
        ("outside", "host:8006", "10.0.0.1", "DROP"),
        ("outside", "host:8006", "0.0.0.0", "DROP"),
        ("outside", "host:8006", "127.0.0.9", "DROP"),
        ("vm102", "docker0:80", "10.0.0.255", "ACCEPT"),  # a network's address: only rp_filter refuses it
        ("outside", "vm102:80", "224.0.0.5", "ACCEPT"),  # bridged, so not routed
        ("outside", "host:8006", "198.51.100.9", "ACCEPT"),
        ("outside", "docker0:80", "fe80::1", "DROP"),
        ("outside", "vm102:80", "fe80::1", "ACCEPT"),
        ("outside", "host:80", "fe80::1", "ACCEPT"),
        ("outside", "host:80", "ff02::1", "DROP"),
    ],
)
def test_routing_takes_no_packets_from_unassigned_addresses(
    source: str, destination: str, address: str, verdict: str
) -> None:
    outcome = run(source, destination, source_address=address)
    assert outcome.verdict == verdict
    assert (outcome.stopped is not None) == (verdict == "DROP")
