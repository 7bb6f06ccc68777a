"""The meaning of ebtables' matches and targets."""

from __future__ import annotations

from typing import Any

import pytest

from pvefw_nft.verify.model import ACCEPT, DROP, RETURN, Jump, Log, MarkTarget, Rule, SetMark
from pvefw_nft.verify.readers.files import Text, read_compiled, read_ruleset
from pvefw_nft.verify.readers.shared import RulesetError
from tests.verify.probes import matches, packet, rule_of


def ebtables_rule(body: str) -> Rule:
    text = f"### ebtables-restore\n*filter\n:x ACCEPT\n:y RETURN\n-A x {body}\n"
    return rule_of(read_ruleset([Text("rules", text)]), "x")


MATCHES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("-p IPv4", {"ether_type": 0x0800}, {"ether_type": 0x8100}),
    ("-p ! ARP", {"ether_type": 0x0800}, {"ether_type": 0x0806}),
    ("-p 802_1Q --vlan-id 5", {"ether_type": 0x8100, "vlan_id": 5}, {"ether_type": 0x8100, "vlan_id": 6}),
    ("-i tap100i0", {"iif": "tap100i0"}, {"iif": "tap100i1"}),
    ("-o fwln+", {"oif": "fwln100i0"}, {"oif": "fwpr100p0"}),
    ("--logical-in vmbr0", {"ibrname": "vmbr0"}, {"ibrname": "vmbr1"}),
    ("-s ! bc:24:11:a:0:1", {"ether_saddr": "bc:24:11:0a:00:02"}, {"ether_saddr": "bc:24:11:0a:00:01"}),
    ("! -s bc:24:11:a:0:1", {"ether_saddr": "bc:24:11:0a:00:02"}, {"ether_saddr": "bc:24:11:0a:00:01"}),
    ("-d Multicast", {"ether_daddr": "01:00:5e:00:00:01"}, {"ether_daddr": "02:00:5e:00:00:01"}),
    (
        "-p ARP --arp-ip-src 10.0.0.0/24",
        {"ether_type": 0x806, "arp_plen": 4, "arp_ptype": "ip", "arp_saddr_ip": "10.0.0.9"},
        {"ether_type": 0x806, "arp_plen": 4, "arp_ptype": "ip", "arp_saddr_ip": "10.0.1.9"},
    ),
    (
        "-p ARP --arp-ip-src ! 10.0.0.9",
        {"ether_type": 0x806, "arp_plen": 4, "arp_ptype": "ip", "arp_saddr_ip": "10.0.1.9"},
        {"ether_type": 0x806, "arp_plen": 6, "arp_ptype": "ip", "arp_saddr_ip": "10.0.1.9"},
    ),
    ("-p ARP --arp-op Request", {"ether_type": 0x806, "arp_operation": 1}, {"ether_type": 0x806, "arp_operation": 2}),
    (
        "-p IPv4 --ip-proto udp --ip-dport 67:68",
        {"ether_type": 0x800, "l4proto": 17, "dport": 68},
        {"ether_type": 0x800, "l4proto": 17, "dport": 69},
    ),
    ("--pkttype-type broadcast", {"pkttype": "broadcast"}, {"pkttype": "host"}),
]


@pytest.mark.parametrize(("text", "hit", "miss"), MATCHES, ids=[row[0] for row in MATCHES])
def test_match(text: str, hit: dict[str, Any], miss: dict[str, Any]) -> None:
    rule = ebtables_rule(f"{text} -j DROP")
    assert matches(rule, packet(**hit))
    assert not matches(rule, packet(**miss))


def test_targets() -> None:
    assert ebtables_rule("-j ACCEPT").verdict == ACCEPT
    assert ebtables_rule("-j CONTINUE").verdict is None
    assert ebtables_rule("-j RETURN").verdict == RETURN
    assert ebtables_rule("-j y").verdict == Jump("y")
    marked = ebtables_rule("-j mark --mark-or 0x1 --mark-target CONTINUE")
    assert (marked.effects, marked.verdict) == ((SetMark(MarkTarget.PACKET, 0xFFFFFFFE, 1),), None)
    assert ebtables_rule("-j mark --mark-set 0x5").verdict == ACCEPT
    logged = ebtables_rule('--nflog-group 1 --nflog-prefix "a b" -j DROP')
    assert (logged.effects, logged.verdict) == ((Log("a b", None, 1),), DROP)


def test_packets_at_the_end_of_a_user_chain_get_its_policy() -> None:
    model = read_ruleset([Text("rules", "### ebtables-restore\n*filter\n:x ACCEPT\n:y RETURN\n:z DROP\n")])
    chains = model.tables[0].chains
    assert [chains[name].policy for name in "xyz"] == [ACCEPT, RETURN, DROP]


def test_our_json_is_entered_from_forward() -> None:
    document: Any = {"iptables": {}, "ebtables": {"PVEFW-FORWARD": ["-A PVEFW-FORWARD -p IPv4 -j ACCEPT"]}}
    model = read_compiled(document, "json")
    assert rule_of(model, "FORWARD").verdict == Jump("PVEFW-FORWARD")


def test_unknown_matches_and_lines_are_errors() -> None:
    with pytest.raises(RulesetError, match=r"table ebtables filter, chain x, rule 1: '--among-src a'"):
        ebtables_rule("--among-src a -j DROP")
    with pytest.raises(RulesetError, match="goes to chain 'nowhere'"):
        ebtables_rule("-j nowhere")
    with pytest.raises(RulesetError, match="line 3"):
        read_ruleset([Text("rules", "### ebtables-restore\n*filter\n-A nochain -j DROP\n")])
