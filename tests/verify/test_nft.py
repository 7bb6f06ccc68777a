"""The meaning of nft's matches, statements and commands in JSON form."""

from __future__ import annotations

import json
from typing import Any, TypeAlias

import pytest

from pvefw_nft.verify.model import (
    ACCEPT,
    DROP,
    RETURN,
    Alter,
    CopyMark,
    Goto,
    Guard,
    Jump,
    Log,
    MarkTarget,
    Nat,
    NoTrack,
    Queue,
    Reject,
    Rule,
    RulesetModel,
    SetHelper,
    SetMark,
    Test,
    VerdictMap,
    helper_field,
    route_field,
)
from pvefw_nft.verify.model.text import rule_text
from pvefw_nft.verify.readers.files import Text, read_ruleset
from pvefw_nft.verify.readers.shared import Assume, RulesetError
from tests.verify.probes import matches, packet

Json: TypeAlias = Any
"""JSON of no particular shape."""


def payload(protocol: str, field: str) -> dict[str, Json]:
    return {"payload": {"protocol": protocol, "field": field}}


def meta(key: str) -> dict[str, Json]:
    return {"meta": {"key": key}}


def match(left: Json, right: Json, op: str = "==") -> dict[str, Json]:
    return {"match": {"op": op, "left": left, "right": right}}


def load(commands: list[Json], assume: Assume | None = None) -> RulesetModel:
    return read_ruleset([Text("nft.json", json.dumps({"nftables": commands}))], assume=assume)


def add(kind: str, **body: Json) -> dict[str, Json]:
    return {"add": {kind: body}}


def nft_rule(*expr: Json, family: str = "bridge", objects: tuple[Json, ...] = (), assume: Assume | None = None) -> Rule:
    """Return one rule of a table of that family, read from a command list."""
    place = {"family": family, "table": "t"}
    commands = [
        add("table", family=family, name="t"),
        add("chain", **place, name="y"),
        add("chain", **place, name="x"),
        *[{"add": {kind: {**place, **body}}} for kind, body in objects],
        add("rule", **place, chain="x", expr=list(expr)),
    ]
    return load(commands, assume).tables[0].chains["x"].rules[0]


IP = {"protocol": 0x0800}
NO_EXTENSION = {"protocol": 0x86DD, "ip6_extension": 256}
EXTENDED = {"protocol": 0x86DD, "ip6_extension": 60, "l4proto": 6}
TCP = {"l4proto": 6}

MATCHES: list[tuple[str, Json, dict[str, Json], dict[str, Json]]] = [
    ("ip", match(payload("ip", "saddr"), "10.0.0.1"), {**IP, "ip_saddr": "10.0.0.1"}, {**IP, "ip_saddr": "10.0.0.2"}),
    (
        "prefix",
        match(payload("ip", "daddr"), {"prefix": {"addr": "10.0.0.0", "len": 8}}),
        {**IP, "ip_daddr": "10.9.9.9"},
        {**IP, "ip_daddr": "11.0.0.0"},
    ),
    (
        "range",
        match(payload("ip", "daddr"), {"range": ["10.0.0.1", "10.0.0.9"]}, "!="),
        {**IP, "ip_daddr": "10.0.0.10"},
        {**IP, "ip_daddr": "10.0.0.9"},
    ),
    (
        "ipv6",
        match(payload("ip6", "saddr"), {"prefix": {"addr": "fe80::", "len": 10}}),
        {"protocol": 0x86DD, "ip6_saddr": "fe80::1"},
        {"protocol": 0x86DD, "ip6_saddr": "fd00::1"},
    ),
    ("port", match(payload("tcp", "dport"), 22), {**TCP, "dport": 22}, {"l4proto": 17, "dport": 22}),
    ("service", match(payload("tcp", "dport"), "ssh"), {**TCP, "dport": 22}, {**TCP, "dport": 23}),
    ("not port", match(payload("tcp", "dport"), 22, "!="), {**TCP, "dport": 23}, {"l4proto": 17, "dport": 23}),
    (
        "ports",
        match(payload("udp", "sport"), {"set": [53, {"range": [100, 200]}]}),
        {"l4proto": 17, "sport": 200},
        {"l4proto": 17, "sport": 201},
    ),
    ("above", match(payload("tcp", "dport"), 1024, ">"), {**TCP, "dport": 1025}, {**TCP, "dport": 1024}),
    ("at most", match(payload("tcp", "dport"), 1024, "<="), {**TCP, "dport": 1024}, {**TCP, "dport": 1025}),
    ("th", match(payload("th", "dport"), 53), {"l4proto": 17, "dport": 53}, {"l4proto": 17, "dport": 54}),
    ("th of another protocol", match(payload("th", "dport"), 53), {"th_dport_bytes": 53}, {"th_dport_bytes": 54}),
    ("th of ICMP", match(payload("th", "sport"), 0x0800), {"icmp": 0x0800}, {"icmp": 0x0801}),
    ("th not", match(payload("th", "dport"), 53, "!="), {"th_dport_bytes": 54}, {"dport": 53}),
    ("nexthdr", match(payload("ip6", "nexthdr"), "tcp"), {**NO_EXTENSION, "l4proto": 6}, {**EXTENDED, "l4proto": 6}),
    ("nexthdr of an extension", match(payload("ip6", "nexthdr"), 60), EXTENDED, {**NO_EXTENSION, "l4proto": 6}),
    ("nexthdr not", match(payload("ip6", "nexthdr"), "tcp", "!="), EXTENDED, {**NO_EXTENSION, "l4proto": 6}),
    ("l4proto", match(meta("l4proto"), {"set": ["tcp", "udp"]}), {"l4proto": 17}, {"l4proto": 1}),
    ("meta protocol", match(meta("protocol"), "arp"), {"protocol": 0x0806}, IP),
    (
        "ether type",
        match(payload("ether", "type"), {"set": ["ip", "arp"]}, "!="),
        {"ether_type": 5},
        {"ether_type": 0x806},
    ),
    (
        "arp",
        match(payload("arp", "saddr ip"), "10.0.0.5", "!="),
        {"protocol": 0x806, "arp_saddr_ip": "10.0.0.6"},
        {**IP, "arp_saddr_ip": "10.0.0.6"},
    ),
    (
        "vlan",
        match(payload("vlan", "id"), 5),
        {"ether_type": 0x8100, "vlan_id": 5},
        {"ether_type": 0x8100, "vlan_id": 6},
    ),
    (
        "mac",
        match(payload("ether", "saddr"), "bc:24:11:00:00:01", "!="),
        {"ether_saddr": "bc:24:11:00:00:02"},
        {"ether_saddr": "bc:24:11:00:00:01"},
    ),
    ("iifname", match(meta("iifname"), "tap100i0"), {"iif": "tap100i0"}, {"iif": "tap100i01"}),
    ("wildcard", match(meta("iifname"), {"set": ["tap1", "fwln*"]}), {"iif": "fwln100i0"}, {"iif": "tap10"}),
    ("ibrname", match(meta("ibrname"), "vmbr0"), {"ibrname": "vmbr0"}, {"ibrname": "vmbr1"}),
    ("pkttype", match(meta("pkttype"), {"set": ["broadcast", "multicast"]}), {"pkttype": "multicast"}, {"pkttype": 3}),
    ("any state", match({"ct": {"key": "state"}}, ["new", "invalid"], "in"), {"ct_state": 0}, {"ct_state": 1}),
    ("state set", match({"ct": {"key": "state"}}, {"set": ["new", "related"]}), {"ct_state": 2}, {"ct_state": 1}),
    ("not state", match({"ct": {"key": "state"}}, "new", "!="), {"ct_state": "invalid"}, {"ct_state": "new"}),
    ("status", match({"ct": {"key": "status"}}, "dnat", "in"), {"ct_status_dnat": 1}, {"ct_status_dnat": 0}),
    (
        "icmp",
        match(payload("icmp", "type"), "echo-request"),
        {**IP, "l4proto": 1, "icmp": 0x0805},
        {**IP, "l4proto": 1, "icmp": 0},
    ),
    (
        "icmpv6",
        match(payload("icmpv6", "type"), {"set": ["nd-router-solicit", 135]}),
        {"protocol": 0x86DD, "l4proto": 58, "icmpv6": 0x8700},
        {"protocol": 0x86DD, "l4proto": 58, "icmpv6": 0x8800},
    ),
    (
        "flags under a mask",
        match({"&": [payload("tcp", "flags"), ["fin", "syn", "rst", "ack"]]}, "syn", "!="),
        {**TCP, "tcp_flags": 0x10},
        {**TCP, "tcp_flags": 0x42},
    ),
    (
        "flags under a nested mask",
        match({"&": [payload("tcp", "flags"), {"|": [{"|": ["fin", "syn"]}, "rst"]}]}, {"|": ["fin", "syn"]}),
        {**TCP, "tcp_flags": 0x13},
        {**TCP, "tcp_flags": 0x12},
    ),
    ("any flag", match(payload("tcp", "flags"), "syn", "in"), {**TCP, "tcp_flags": 0x12}, {**TCP, "tcp_flags": 0x10}),
    (
        "none of the flags",
        match(payload("tcp", "flags"), ["syn", "fin"], "!"),
        {**TCP, "tcp_flags": 4},
        {**TCP, "tcp_flags": 6},
    ),
    ("no flags", match(payload("tcp", "flags"), 0), {**TCP, "tcp_flags": 0}, {**TCP, "tcp_flags": 1}),
    ("mark bit", match({"&": [meta("mark"), 0x80000000]}, 0x80000000), {"mark": 0x80000001}, {"mark": 1}),
    ("mark prefix", match(meta("mark"), {"prefix": {"addr": 0x80000000, "len": 1}}), {"mark": 0x80000001}, {"mark": 1}),
    ("mark not", match(meta("mark"), 0, "!="), {"mark": 4}, {"mark": 0}),
    ("ct mark", match({"ct": {"key": "mark"}}, 100), {"ct_mark": 100}, {"ct_mark": 101}),
    (
        "address under a mask",
        match({"&": [payload("ip", "saddr"), "255.0.0.255"]}, "10.0.0.1"),
        {**IP, "ip_saddr": "10.7.0.1"},
        {**IP, "ip_saddr": "10.7.0.2"},
    ),
    (
        "later fragments",
        match({"&": [payload("ip", "frag-off"), 0x1FFF]}, 0, "!="),
        {**IP, "fragment": "later"},
        {**IP, "fragment": "first"},
    ),
    (
        "concatenation",
        match({"concat": [payload("ip", "saddr"), payload("tcp", "dport")]}, {"set": [{"concat": ["10.0.0.1", 80]}]}),
        {**IP, **TCP, "ip_saddr": "10.0.0.1", "dport": 80},
        {**IP, **TCP, "ip_saddr": "10.0.0.1", "dport": 81},
    ),
]


@pytest.mark.parametrize(("name", "statement", "hit", "miss"), MATCHES, ids=[row[0] for row in MATCHES])
def test_match(name: str, statement: Json, hit: dict[str, Json], miss: dict[str, Json]) -> None:
    rule = nft_rule(statement, {"accept": None})
    assert matches(rule, packet(**hit))
    assert not matches(rule, packet(**miss))


def test_address_kinds_of_the_routing_table() -> None:
    rule = nft_rule(match({"fib": {"result": "type", "flags": ["daddr"]}}, "local"), {"drop": None}, family="inet")
    assert matches(rule, packet(daddr_type="local"))
    assert not matches(rule, packet(daddr_type="unicast"))


def test_icmp_code_belongs_to_its_type() -> None:
    rule = nft_rule(
        match(payload("icmp", "type"), "destination-unreachable"),
        match(payload("icmp", "code"), "frag-needed"),
        {"accept": None},
    )
    assert [test.values.bounds for test in rule.conditions if isinstance(test, Test)][-1] == (0x304, 0x305)


def test_dependencies_are_made_explicit_where_the_family_does_not_say() -> None:
    statement = match(payload("ip", "saddr"), "10.0.0.1")
    assert "protocol" in repr(nft_rule(statement, {"drop": None}, family="inet").conditions)
    assert "protocol" not in repr(nft_rule(statement, {"drop": None}, family="ip").conditions)


STATEMENTS: list[tuple[str, Json, object, object]] = [
    ("accept", {"accept": None}, (), ACCEPT),
    ("return", {"return": None}, (), RETURN),
    ("jump", {"jump": {"target": "y"}}, (), Jump("y")),
    ("goto", {"goto": {"target": "y"}}, (), Goto("y")),
    ("counter", {"counter": {"packets": 1, "bytes": 2}}, (), None),
    ("log group", {"log": {"prefix": ":0:6:x: ", "group": 0}}, (Log(":0:6:x: ", None, 0),), None),
    ("log", {"log": {"prefix": "a", "level": "debug"}}, (Log("a", 7),), None),
    ("log by default", {"log": None}, (Log("", 4),), None),
    ("mark", {"mangle": {"key": meta("mark"), "value": 5}}, (SetMark(MarkTarget.PACKET, 0, 5),), None),
    (
        "mark or",
        {"mangle": {"key": meta("mark"), "value": {"|": [meta("mark"), 0x80000000]}}},
        (SetMark(MarkTarget.PACKET, 0x7FFFFFFF, 0x80000000),),
        None,
    ),
    (
        "mark and or",
        {"mangle": {"key": meta("mark"), "value": {"|": [{"&": [meta("mark"), 0xFFFFFF00]}, 3]}}},
        (SetMark(MarkTarget.PACKET, 0xFFFFFF00, 3),),
        None,
    ),
    (
        "ct mark",
        {"mangle": {"key": {"ct": {"key": "mark"}}, "value": 100}},
        (SetMark(MarkTarget.CONNECTION, 0, 100),),
        None,
    ),
    (
        "mark from ct",
        {"mangle": {"key": meta("mark"), "value": {"ct": {"key": "mark"}}}},
        (CopyMark(MarkTarget.PACKET, 0, 0xFFFFFFFF),),
        None,
    ),
    ("notrack", {"notrack": None}, (NoTrack(),), None),
    ("queue", {"queue": {"num": {"range": [0, 3]}, "flags": ["bypass", "fanout"]}}, (), Queue(0, 3, bypass=True)),
    ("queue one", {"queue": {"num": 2}}, (), Queue(2, 2, bypass=False)),
    (
        "reject",
        {"reject": {"type": "icmpx", "expr": "admin-prohibited"}},
        (),
        Reject("admin-prohibited", "admin-prohibited"),
    ),
    (
        "reject x host",
        {"reject": {"type": "icmpx", "expr": "host-unreachable"}},
        (),
        Reject("host-unreachable", "addr-unreachable"),
    ),
    ("reject by default", {"reject": None}, (), Reject("port-unreachable", "port-unreachable")),
    ("reject icmp", {"reject": {"type": "icmp", "expr": "prot-unreachable"}}, (), Reject("proto-unreachable", None)),
    ("reset", {"reject": {"type": "tcp reset"}}, (), Reject("tcp-reset", "tcp-reset")),
    (
        "dnat",
        {"dnat": {"family": "ip", "addr": "10.0.0.5", "port": 80}},
        (),
        Nat("dnat", None, (0x0A000005,) * 2, (80, 80)),
    ),
    ("mss", {"mangle": {"key": {"tcp option": {"name": "maxseg", "field": "size"}}, "value": 1400}}, (Alter,), None),
]


@pytest.mark.parametrize(("name", "statement", "effects", "verdict"), STATEMENTS, ids=[row[0] for row in STATEMENTS])
def test_statement(name: str, statement: Json, effects: object, verdict: object) -> None:
    rule = nft_rule(statement)
    if effects == (Alter,):
        assert isinstance(rule.effects[0], Alter)
    else:
        assert rule.effects == effects
    assert rule.verdict == verdict


def test_a_rejection_requires_a_packet_that_it_can_answer() -> None:
    rule = nft_rule({"reject": {"type": "tcp reset"}})
    assert matches(rule, packet(l4proto=6))
    assert not matches(rule, packet(l4proto=17))
    rule = nft_rule({"reject": {"type": "icmpv6", "expr": "no-route"}}, family="inet")
    assert not matches(rule, packet(protocol=0x0800))


def test_a_match_after_a_statement_guards_the_rest() -> None:
    rule = nft_rule({"log": {"prefix": "a"}}, match(payload("tcp", "dport"), 5), {"drop": None})
    assert rule.conditions == ()
    assert [type(effect) for effect in rule.effects] == [Log, Guard, Guard]


def test_a_conntrack_helper_by_its_type() -> None:
    helper = ("ct helper", {"name": "files", "type": "ftp", "protocol": "tcp"})
    rule = nft_rule({"ct helper": "files"}, objects=(helper,), family="inet")
    assert rule.effects == (SetHelper("ftp"),)


def test_rates_are_named_as_iptables_rates_are() -> None:
    rule = nft_rule({"limit": {"rate": 1, "per": "second"}}, {"log": {"group": 0}})
    assert repr(rule.conditions[0]) == "rate 1/second burst 5 in [0]"


@pytest.mark.parametrize(
    ("element", "text"),
    [
        (payload("ip", "saddr"), "rate 200/second burst 1000 per ip saddr/32 of counter nft bridge t s in [1]"),
        (
            {"&": [payload("ip6", "saddr"), "ffff:ffff:ffff:ffff::"]},
            "rate 200/second burst 1000 per ip6 saddr/64 of counter nft bridge t s in [1]",
        ),
    ],
)
def test_a_dynamic_set_with_a_limit_counts_by_its_key(element: Json, text: str) -> None:
    limit = {"limit": {"rate": 200, "burst": 1000, "per": "second", "inv": True}}
    update = {"set": {"op": "update", "elem": element, "set": "@s", "stmt": [limit]}}
    rule = nft_rule(update, {"drop": None}, objects=(("set", {"name": "s", "type": "ipv4_addr"}),))
    assert repr(rule.conditions[-1]) == text


SET = ("set", {"name": "s", "type": "ipv4_addr", "elem": ["10.0.0.1", {"elem": {"val": "10.0.0.2", "timeout": 5}}]})


def test_a_named_set_and_elements_added_later() -> None:
    more = ("element", {"name": "s", "elem": [{"prefix": {"addr": "10.1.0.0", "len": 16}}]})
    rule = nft_rule(match(payload("ip", "saddr"), "@s"), {"drop": None}, objects=(SET, more), family="ip")
    addresses = ("10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.1.2.3")
    fresh, gone = ({"expired after 5 s": value} for value in (0, 1))
    assert [a for a in addresses if matches(rule, packet(ip_saddr=a, **fresh))] == ["10.0.0.1", "10.0.0.2", "10.1.2.3"]
    assert [a for a in addresses if matches(rule, packet(ip_saddr=a, **gone))] == ["10.0.0.1", "10.1.2.3"]


def test_a_verdict_map_on_interfaces() -> None:
    table = ("map", {
        "name": "nics", "type": "ifname", "map": "verdict",
        "elem": [["tap100i0", {"goto": {"target": "y"}}], ["fwln*", {"drop": None}]],
    })  # fmt: skip
    rule = nft_rule({"vmap": {"key": meta("iifname"), "data": "@nics"}}, objects=(table,))
    assert isinstance(rule.verdict, VerdictMap)
    assert rule.verdict.lookup(packet(iif="tap100i0")) == Goto("y")
    assert rule.verdict.lookup(packet(iif="fwln7i0")) == DROP
    assert rule.verdict.lookup(packet(iif="eth0")) is None


def test_a_verdict_map_on_a_concatenation_and_with_a_default() -> None:
    key = {"concat": [payload("ip", "saddr"), payload("udp", "dport")]}
    data = {"set": [[{"concat": ["10.0.0.1", 53]}, {"accept": None}], ["*", {"drop": None}]]}
    rule = nft_rule({"vmap": {"key": key, "data": data}}, family="ip")
    assert isinstance(rule.verdict, VerdictMap)
    hit = packet(ip_saddr="10.0.0.1", l4proto=17, dport=53)
    assert rule.verdict.lookup(hit) == ACCEPT
    assert rule.verdict.lookup(hit | packet(dport=54)) == DROP


UNKNOWN: list[tuple[Json, str]] = [
    (match(meta("cpu"), 1), "meta cpu == 1"),
    (match({"&": [{"ct": {"key": "state"}}, 6]}, 0, "!="), "ct state"),
    (match({"&": [meta("iifname"), 6]}, 0, "!="), "meta iifname"),
    (match({"socket": {"key": "transparent"}}, 1), "socket"),
    (match({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, "eth0"), "fib"),
    (match(payload("igmp", "type"), 22), "igmp type"),
    ({"mangle": {"key": payload("ip", "daddr"), "value": "10.0.0.1"}}, "ip daddr"),
    ({"tproxy": {"port": 80}}, "tproxy"),
    ({"xt": {"type": "match", "name": "recent"}}, "xt"),
]


@pytest.mark.parametrize(("statement", "text"), UNKNOWN, ids=[row[1] for row in UNKNOWN])
def test_unmodelled_expressions_are_errors_that_name_them(statement: Json, text: str) -> None:
    with pytest.raises(RulesetError) as caught:
        nft_rule(statement, {"accept": None})
    assert text in caught.value.message
    assert "table nft bridge t, chain x, rule 1" in caught.value.message
    assert not matches(nft_rule(statement, {"accept": None}, assume=Assume.NOMATCH), packet(l4proto=6))


CT_STATE = {"ct": {"key": "state"}}
BOTH_STATES = {"|": ["established", "related"]}
FIB = {"fib": {"result": "oif", "flags": ["saddr", "mark", "iif"]}}
NO_FIB = {"fib": {"result": "oif", "flags": ["saddr", "iif"]}}


@pytest.mark.parametrize("right", [BOTH_STATES, ["established", "related"]], ids=["joined", "list"])
def test_states_compared_as_one_value_are_no_packets_state(right: Json) -> None:
    """nft 1.0.6 prints proxmox-firewall's rule for helpers so; the kernel compares with both bits at once."""
    same = nft_rule(match(CT_STATE, right), {"accept": None})
    other = nft_rule(match(CT_STATE, right, "!="), {"accept": None})
    for state in range(5):
        assert not matches(same, packet(ct_state=state))
        assert matches(other, packet(ct_state=state))


def test_one_of_several_states() -> None:
    rule = nft_rule(match(CT_STATE, ["established", "related"], "in"), {"accept": None})
    alone = nft_rule(match(CT_STATE, {"|": ["established"]}), {"accept": None})
    assert [state for state in range(5) if matches(rule, packet(ct_state=state))] == [1, 2]
    assert [state for state in range(5) if matches(alone, packet(ct_state=state))] == [1]


def test_the_helper_of_a_connection() -> None:
    helper = {"ct": {"key": "helper"}}
    ftp, sip = helper_field("ftp"), helper_field("sip")
    rule = nft_rule(match(helper, "ftp"), {"accept": None})
    other = nft_rule(match(helper, "ftp", "!="), {"accept": None})
    several = nft_rule(match(helper, {"set": ["ftp", "sip"]}), {"accept": None})
    assert [matches(one, {ftp: 1, sip: 0}) for one in (rule, other, several)] == [True, False, True]
    assert [matches(one, {ftp: 0, sip: 1}) for one in (rule, other, several)] == [False, True, True]


@pytest.mark.parametrize(
    ("left", "op", "right", "exists"),
    [
        (FIB, "==", False, 0),
        (FIB, "==", True, 1),
        (FIB, "!=", False, 1),
        (NO_FIB, "==", "0", 0),
        (NO_FIB, "!=", 0, 1),
    ],
)
def test_whether_the_host_has_a_route(left: Json, op: str, right: Json, exists: int) -> None:
    on = route_field(left["fib"]["flags"])
    rule = nft_rule(match(left, right, op), {"drop": None}, family="inet")
    assert matches(rule, {on: exists})
    assert not matches(rule, {on: 1 - exists})


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ({"masquerade": None}, "masquerade"),
        ({"masquerade": {"port": {"range": [1000, 2000]}, "flags": "random"}}, "masquerade to port 1000-2000"),
        ({"redirect": {"port": 8080}}, "redirect to port 8080"),
        ({"dnat": {"addr": "10.0.0.5", "port": 80}}, "dnat to 10.0.0.5 port 80"),
        ({"snat": {"addr": {"range": ["10.0.0.5", "10.0.0.9"]}}}, "snat to 10.0.0.5-10.0.0.9"),
    ],
)
def test_translations_are_written_in_words(statement: Json, text: str) -> None:
    assert rule_text(nft_rule(statement, family="ip")) == text


def test_commands_are_carried_out_in_order() -> None:
    place = {"family": "inet", "table": "t"}
    model = load(
        [
            add("table", family="inet", name="t"),
            add("chain", **place, name="old", type="filter", hook="input", prio=0, policy="drop"),
            {"delete": {"table": {"family": "inet", "name": "t"}}},
            add("table", family="inet", name="t"),
            add("chain", **place, name="x", type="filter", hook="input", prio="filter", policy="accept"),
            add("rule", **place, chain="x", expr=[{"drop": None}]),
            {"insert": {"rule": {**place, "chain": "x", "expr": [{"accept": None}]}}},
        ]
    )
    (table,) = model.tables
    (chain,) = table.chains.values()
    assert [rule.verdict for rule in chain.rules] == [ACCEPT, DROP]
    assert chain.hook is not None
    assert (chain.hook.priority, chain.policy) == (0, ACCEPT)


def test_a_dormant_table_is_not_hooked_in() -> None:
    model = load(
        [
            add("table", family="inet", name="t", flags=["dormant"]),
            add("chain", family="inet", table="t", name="x", type="filter", hook="input", prio=0, policy="drop"),
        ]
    )
    assert model.tables[0].chains["x"].hook is None


def test_broken_documents_are_errors() -> None:
    for text in ("{", '{"nftables": 5}', '{"nftables": [{"add": {"rule": {"family": "inet", "table": "t"}}}]}'):
        with pytest.raises(RulesetError):
            read_ruleset([Text("nft.json", text)])
