"""The meaning of iptables' matches and targets, one small case each."""

from __future__ import annotations

from typing import Any

import pytest

from pvefw_nft.verify.model import (
    ACCEPT,
    DROP,
    Alter,
    CopyMark,
    Goto,
    Jump,
    Log,
    MarkTarget,
    Nat,
    NoTrack,
    Queue,
    Reject,
    SetHelper,
    SetMark,
)
from pvefw_nft.verify.readers.files import Text, read_ruleset
from pvefw_nft.verify.readers.shared import Assume, RulesetError
from tests.verify.probes import matches, packet, rule_of, xtables_rule

TCP = {"l4proto": 6}
UDP = {"l4proto": 17}

MATCHES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("-p tcp", TCP, UDP),
    ("! -p tcp", UDP, TCP),
    ("-p 47", {"l4proto": 47}, TCP),
    ("-s 10.0.0.0/8", {"ip_saddr": "10.255.255.255"}, {"ip_saddr": "11.0.0.0"}),
    ("! -s 10.0.0.1", {"ip_saddr": "10.0.0.2"}, {"ip_saddr": "10.0.0.1"}),
    ("-d 10.0.0.0/255.255.255.252", {"ip_daddr": "10.0.0.3"}, {"ip_daddr": "10.0.0.4"}),
    ("-i eth+", {"iif": "eth12"}, {"iif": "et"}),
    ("! -i eth0", {"iif": "eth1"}, {"iif": "eth0"}),
    ("! -i eth0", {"iif": "eth00"}, {}),
    ("-o vmbr0", {"oif": "vmbr0"}, {"oif": "vmbr01"}),
    ("-p tcp --dport 22", {**TCP, "dport": 22}, {**TCP, "dport": 23}),
    ("-p tcp -m tcp --dport ssh", {**TCP, "dport": 22}, {**UDP, "dport": 22}),
    ("-p tcp ! --dport 22", {**TCP, "dport": 23}, {**TCP, "dport": 22}),
    ("-p tcp ! --dport 22", {**TCP, "dport": 23}, TCP),  # a later fragment has no port
    ("-p udp --sport 137:139", {**UDP, "sport": 139}, {**UDP, "sport": 140}),
    ("-p udp --sport :1023", {**UDP, "sport": 0}, {**UDP, "sport": 1024}),
    ("-p tcp --match multiport --dports 80,443,8000:8010", {**TCP, "dport": 8010}, {**TCP, "dport": 444}),
    ("-p tcp -m multiport ! --dports 80,443", {**TCP, "dport": 81}, {**TCP, "dport": 443}),
    ("-p tcp -m multiport --ports 22", {**TCP, "dport": 5, "sport": 22}, {**TCP, "dport": 5, "sport": 6}),
    ("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN", {**TCP, "tcp_flags": 0x42}, {**TCP, "tcp_flags": 0x12}),
    ("-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN", {**TCP, "tcp_flags": 0x10}, {**TCP, "tcp_flags": 2}),
    ("-p tcp -m tcp --tcp-flags ALL NONE", {**TCP, "tcp_flags": 0xC0}, {**TCP, "tcp_flags": 1}),
    ("-p tcp --syn", {**TCP, "tcp_flags": 2}, {**TCP, "tcp_flags": 0x12}),
    ("-p icmp -m icmp --icmp-type echo-request", {"l4proto": 1, "icmp": 0x0800}, {"l4proto": 1, "icmp": 0}),
    ("-p icmp -m icmp --icmp-type fragmentation-needed", {"l4proto": 1, "icmp": 0x304}, {"l4proto": 1, "icmp": 0x303}),
    ("-p icmp -m icmp --icmp-type 3/1", {"l4proto": 1, "icmp": 0x301}, {"l4proto": 1, "icmp": 0x302}),
    ("-p icmp -m icmp --icmp-type any", {"l4proto": 1, "icmp": 0x1234}, {"l4proto": 1}),
    ("-m conntrack --ctstate RELATED,ESTABLISHED", {"ct_state": "related"}, {"ct_state": "new"}),
    ("-m state --state NEW", {"ct_state": "new"}, {"ct_state": "untracked"}),
    ("-m conntrack ! --ctstate INVALID", {"ct_state": "new"}, {"ct_state": "invalid"}),
    (
        "-m conntrack --ctstate DNAT",
        {"ct_state": "new", "ct_status_dnat": 1},
        {"ct_state": "new", "ct_status_dnat": 0},
    ),
    ("-m conntrack --ctdir REPLY", {"ct_direction": "reply"}, {"ct_direction": "original"}),
    ("-m mark --mark 0x80000000/0x80000000", {"mark": 0x80000001}, {"mark": 0x7FFFFFFF}),
    ("-m mark --mark 5", {"mark": 5}, {"mark": 0x80000005}),
    ("-m mark ! --mark 0x1/0x3", {"mark": 3}, {"mark": 5}),
    ("-m connmark --mark 100", {"ct_mark": 100}, {"ct_mark": 101}),
    ("-m mac --mac-source BC:24:11:00:00:01", {"ether_saddr": "bc:24:11:0:0:1"}, {"ether_saddr": "bc:24:11:0:0:2"}),
    ("-m mac ! --mac-source BC:24:11:00:00:01", {"ether_saddr": "bc:24:11:0:0:2"}, {}),
    ("-m addrtype --dst-type BROADCAST", {"daddr_type": "broadcast"}, {"daddr_type": "unicast"}),
    ("-m addrtype --src-type MULTICAST,BROADCAST", {"saddr_type": "multicast"}, {"saddr_type": "local"}),
    ("-m addrtype ! --dst-type LOCAL", {"daddr_type": "unicast"}, {"daddr_type": "local"}),
    ("-m iprange --src-range 10.0.0.1-10.0.0.10", {"ip_saddr": "10.0.0.10"}, {"ip_saddr": "10.0.0.11"}),
    ("-m iprange ! --dst-range 10.0.0.1-10.0.0.10", {"ip_daddr": "10.0.0.0"}, {"ip_daddr": "10.0.0.5"}),
    (
        "-m physdev --physdev-is-bridged --physdev-in fwln+",
        {"physdev_in": "fwln100i0", "physdev_is_bridged": 1},
        {"physdev_in": "fwln100i0", "physdev_is_bridged": 0},
    ),
    ("-m physdev --physdev-out tap100i0", {"physdev_out": "tap100i0"}, {"physdev_out": "tap100i01"}),
    ("-m physdev ! --physdev-is-in", {"physdev_in": 0}, {"physdev_in": "eth0"}),
    ("-m pkttype --pkt-type broadcast", {"pkttype": "broadcast"}, {"pkttype": "host"}),
    ("-m length --length 100:200", {"length": 200}, {"length": 201}),
    ("-m ttl --ttl-eq 1", {"ttl": 1}, {"ttl": 2}),
    ("-m owner --uid-owner 1000", {"skuid": 1000}, {}),
    ("-f", {"fragment": "later"}, {"fragment": "first"}),
    ("! -f", {"fragment": "first"}, {"fragment": "later"}),
    ('-m comment --comment "-j DROP"', {"l4proto": 6}, {}),
]


@pytest.mark.parametrize(("text", "hit", "miss"), MATCHES, ids=[row[0] for row in MATCHES])
def test_match(text: str, hit: dict[str, Any], miss: dict[str, Any]) -> None:
    rule = xtables_rule(f"{text} -j ACCEPT")
    assert matches(rule, packet(**hit))
    if miss or "comment" not in text:
        assert not matches(rule, packet(**miss))


def test_ipv6_addresses_and_types() -> None:
    rule = xtables_rule("-s fe80::/10 -p icmpv6 --icmpv6-type neighbor-solicitation -j ACCEPT", version=6)
    solicit = packet(ip6_saddr="fe80::1", l4proto=58, icmpv6=135 << 8)
    assert matches(rule, solicit)
    assert not matches(rule, solicit | packet(ip6_saddr="fec0::1"))
    assert not matches(rule, solicit | packet(icmpv6=136 << 8))


def test_two_matches_must_both_hold() -> None:
    rule = xtables_rule("-s 10.0.0.1 -p udp --dport 53 -j ACCEPT")
    assert matches(rule, packet(ip_saddr="10.0.0.1", l4proto=17, dport=53))
    assert not matches(rule, packet(ip_saddr="10.0.0.2", l4proto=17, dport=53))


def test_rates_have_one_name_in_all_spellings() -> None:
    short = xtables_rule("-m limit --limit 1/sec -j LOG")
    long = xtables_rule("-m limit --limit 1/second --limit-burst 5 -j LOG")
    assert short.conditions == long.conditions
    assert short.conditions != xtables_rule("-m limit --limit 1/second --limit-burst 6 -j LOG").conditions


def test_hashlimit_counts_by_source() -> None:
    text = (
        "-m hashlimit --hashlimit-above 200/sec --hashlimit-burst 1000 --hashlimit-mode srcip --hashlimit-name syn "
        "--hashlimit-htable-size 2097152 --hashlimit-srcmask 64 --hashlimit-htable-expire 30000 -j DROP"
    )
    (condition,) = xtables_rule(text, version=6).conditions
    assert repr(condition) == "rate 200/second burst 1000 per ip6 saddr/64 of counter syn in [1]"


TARGETS: list[tuple[str, object, object]] = [
    ("-j ACCEPT", (), ACCEPT),
    ("-j DROP", (), DROP),
    ("-j y", (), Jump("y")),
    ("-g y", (), Goto("y")),
    ("", (), None),
    ("-p tcp -j REJECT --reject-with tcp-reset", (), Reject("tcp-reset", None)),
    ("-j REJECT", (), Reject("port-unreachable", None)),
    ("-j REJECT --reject-with icmp-host-prohibited", (), Reject("host-prohibited", None)),
    ('-j NFLOG --nflog-prefix ":0:6:x: DROP: "', (Log(":0:6:x: DROP: ", None, 0),), None),
    ("-j LOG --log-prefix in --log-level debug --log-uid", (Log("in", 7),), None),
    ("-j MARK --set-mark 0x80000000/0x80000000", (SetMark(MarkTarget.PACKET, 0x7FFFFFFF, 0x80000000),), None),
    ("-j MARK --set-mark 0x00000000/0x80000000", (SetMark(MarkTarget.PACKET, 0x7FFFFFFF, 0),), None),
    ("-j MARK --set-xmark 0x3/0x1", (SetMark(MarkTarget.PACKET, 0xFFFFFFFE, 3),), None),
    ("-j MARK --or-mark 4", (SetMark(MarkTarget.PACKET, 0xFFFFFFFB, 4),), None),
    ("-j CONNMARK --set-mark 100", (SetMark(MarkTarget.CONNECTION, 0, 100),), None),
    ("-j CONNMARK --restore-mark --mask 0xff", (CopyMark(MarkTarget.PACKET, 0xFFFFFF00, 0xFF),), None),
    ("-j CONNMARK --save-mark", (CopyMark(MarkTarget.CONNECTION, 0, 0xFFFFFFFF),), None),
    ("-j CT --helper ftp", (SetHelper("ftp", template=True),), None),
    ("-j CT --notrack", (NoTrack(),), None),
    ("-j NFQUEUE --queue-balance 0:3 --queue-bypass", (), Queue(0, 3, bypass=True)),
    ("-j NFQUEUE --queue-num 2", (), Queue(2, 2, bypass=False)),
    ("-j DNAT --to-destination 10.0.0.5:8080", (), Nat("dnat", None, (0x0A000005, 0x0A000005), (8080, 8080))),
    ("-j MASQUERADE --random", (), Nat("masquerade")),
    ("-j TCPMSS --clamp-mss-to-pmtu", (Alter("TCPMSS --clamp-mss-to-pmtu"),), None),
]


@pytest.mark.parametrize(("text", "effects", "verdict"), TARGETS, ids=[row[0] for row in TARGETS])
def test_target(text: str, effects: object, verdict: object) -> None:
    rule = xtables_rule(text)
    assert rule.effects == effects
    assert rule.verdict == verdict


def test_ip6tables_rejects_with_icmpv6() -> None:
    assert xtables_rule("-j REJECT --reject-with icmp6-adm-prohibited", version=6).verdict == Reject(
        None, "admin-prohibited"
    )


def test_an_unknown_match_is_an_error_that_names_it() -> None:
    with pytest.raises(RulesetError) as caught:
        xtables_rule("-p tcp -m recent --name x --rcheck -j DROP")
    assert "'-m recent --name x --rcheck'" in caught.value.message
    assert "table iptables filter, chain x, rule 1" in caught.value.message


def test_an_unknown_option_of_a_known_match_is_an_error() -> None:
    with pytest.raises(RulesetError, match="--tcp-option"):
        xtables_rule("-p tcp -m tcp --tcp-option 5 -j DROP")


@pytest.mark.parametrize(("assume", "expected"), [(Assume.MATCH, True), (Assume.NOMATCH, False)])
def test_an_unknown_match_under_an_assumption(assume: Assume, expected: bool) -> None:
    rule = xtables_rule("-m recent --name x --rcheck -p tcp -j DROP", assume=assume)
    assert matches(rule, packet(l4proto=6)) is expected
    assert not matches(rule, packet(l4proto=17))


def test_an_unknown_target_is_an_error_that_names_it() -> None:
    with pytest.raises(RulesetError, match="-j TARPIT"):
        xtables_rule("-p tcp -j TARPIT")
    with pytest.raises(RulesetError, match="-j TEE --gateway"):
        xtables_rule("-j TEE --gateway 10.0.0.1")


def test_a_bad_value_is_an_error_with_its_place() -> None:
    with pytest.raises(RulesetError, match=r"chain x, rule 1: cannot read '-s 10.0.0.0/33"):
        xtables_rule("-s 10.0.0.0/33 -j ACCEPT")


def test_counters_insertions_and_policies() -> None:
    text = (
        "*filter\n:INPUT DROP [5:6]\n:x - [0:0]\n[1:2] -A x -j DROP\n-I x -j ACCEPT\n-I x 2 -p tcp -j RETURN\n"
        "-P FORWARD DROP\n-N z\nCOMMIT\n"
    )
    model = read_ruleset([Text("iptables.save", text)])
    (table,) = model.tables
    assert [str(rule.verdict) for rule in table.chains["x"].rules] == ["Accept()", "Return()", "Drop()"]
    assert table.chains["INPUT"].policy == table.chains["FORWARD"].policy == DROP
    assert table.chains["OUTPUT"].policy == ACCEPT
    assert "z" in table.chains


def test_a_jump_to_nowhere_is_an_error() -> None:
    with pytest.raises(RulesetError, match="nowhere"):
        read_ruleset([Text("iptables.save", "*filter\n:x - [0:0]\n-A x -g nowhere\nCOMMIT\n")])


def test_chains_in_a_circle_are_an_error() -> None:
    text = "*filter\n:x - [0:0]\n:y - [0:0]\n-A x -j y\n-A y -j x\nCOMMIT\n"
    with pytest.raises(RulesetError, match=r"x → y → x|y → x → y"):
        read_ruleset([Text("iptables.save", text)])


def test_origins_come_by_table_chain_and_number() -> None:
    text = "*filter\n:x - [0:0]\n-A x -j DROP\n-A x -j ACCEPT\nCOMMIT\n"
    model = read_ruleset([Text("iptables.save", text)], origins={("iptables", "filter", "x", 2): "100.fw:3"})
    assert rule_of(model, "x", 1).origin == ""
    assert rule_of(model, "x", 2).origin == "100.fw:3"
