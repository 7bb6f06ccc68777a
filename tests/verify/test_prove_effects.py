"""Effects of rules on later packets and later rules are compared: each kind differs, and equals itself."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.verify.network.path import Link, Nic, Topology
from pvefw_nft.verify.prove.compare import Options, compare
from pvefw_nft.verify.prove.network import Side
from pvefw_nft.verify.prove.render import SetNames, class_text
from pvefw_nft.verify.prove.report import Answer
from pvefw_nft.verify.readers.files import Text, read_ruleset

if TYPE_CHECKING:
    from pvefw_nft.verify.prove.report import Report

TOPOLOGY = Topology(
    (Nic("vm100", 100, 0, "tap100i0", "vmbr0", filtered=True),), (Link("vmbr0", is_bridge=True, ports=("eth0",)),)
)
SETS = "create bad hash:ip timeout 300\ncreate other hash:ip\n"


def rules(*filtered: str, mangle: tuple[str, ...] = (), raw: tuple[str, ...] = (), sets: str = SETS) -> str:
    parts = ["# ipset save", sets, "# iptables-save"]
    for table, chains, lines in (
        ("raw", "PREROUTING", raw),
        ("mangle", "PREROUTING", mangle),
        ("filter", "INPUT", filtered),
    ):
        parts += [f"*{table}", f":{chains} ACCEPT [0:0]", *(f"-A {chains} {line}" for line in lines), "COMMIT"]
    return "\n".join([*parts, ""])


def prove(one: str, two: str, *, strict: bool = False) -> Report:
    sides = [Side(name, read_ruleset([Text(name, text)]), TOPOLOGY) for name, text in (("old", one), ("new", two))]
    return compare(sides[0], sides[1], Options(strict=strict))


def lines(report: Report) -> list[str]:
    return [class_text(one, SetNames(report)) for one in report.unexpected]


CT_MARK = "-m connmark --mark 1 -j DROP"
LOOKUP = "-m set --match-set bad src -j DROP"
RELATED = "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
SET_MARK = "-s 10.0.0.1 -j CONNMARK --set-mark 1"
KINDS = {
    "a connection's mark": ((CT_MARK, SET_MARK), (CT_MARK,)),
    "another mark of a connection": ((CT_MARK, SET_MARK), (CT_MARK, SET_MARK.replace("set-mark 1", "set-mark 2"))),
    "a mark of what is dropped": ((CT_MARK, SET_MARK, "-p udp -j DROP"), (CT_MARK, "-p udp -j DROP", SET_MARK)),
    "an element of a set": ((LOOKUP, "-p tcp --dport 23 -j SET --add-set bad src"), (LOOKUP,)),
    "a set's element deleted": ((LOOKUP, "-p tcp --dport 22 -j SET --del-set bad src"), (LOOKUP,)),
    "another address in a set": (
        (LOOKUP, "-p tcp --dport 23 -j SET --add-set bad src"),
        (LOOKUP, "-p tcp --dport 23 -j SET --add-set bad dst"),
    ),
    "an element's timeout": (
        (LOOKUP, "-p tcp --dport 23 -j SET --add-set bad src --timeout 60"),
        (LOOKUP, "-p tcp --dport 23 -j SET --add-set bad src --timeout 600"),
    ),
    "two limits for one": (
        ("-m limit --limit 5/sec -j ACCEPT", "-m limit --limit 5/sec -j ACCEPT", "-j DROP"),
        ("-m limit --limit 5/sec -j ACCEPT", "-j DROP"),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_effects_on_later_packets_are_compared(kind: str) -> None:
    one, two = (rules(*each) for each in KINDS[kind])
    for before, after in ((one, two), (two, one)):
        assert prove(before, after).answer is Answer.DIFFERENT
    for ruleset in (one, two):
        report = prove(ruleset, ruleset)
        assert report.answer is Answer.EQUAL, lines(report)


def test_effects_that_no_rule_tests_change_nothing() -> None:
    for effect in (SET_MARK, "-p tcp -j SET --add-set other src", "-j DSCP --set-dscp 10", "-j TTL --ttl-set 9"):
        assert prove(rules(), rules(mangle=(effect,))).answer is Answer.EQUAL, effect


def test_setting_the_mark_of_a_connection_again_is_not_a_change() -> None:
    again = "-m connmark --mark 1 -j CONNMARK --set-mark 1"
    assert prove(rules(CT_MARK), rules(again, CT_MARK)).answer is Answer.EQUAL


def test_a_packet_without_a_connection_has_no_mark_to_set() -> None:
    invalid = f"-m conntrack --ctstate INVALID {SET_MARK}"
    assert prove(rules(CT_MARK), rules(CT_MARK, invalid)).answer is Answer.EQUAL


def test_a_helper_counts_where_related_does() -> None:
    helper = ("-p tcp --dport 21 -j CT --helper ftp",)
    assert prove(rules(RELATED, raw=helper), rules(RELATED)).answer is Answer.DIFFERENT
    assert prove(rules("-p tcp -j ACCEPT", raw=helper), rules("-p tcp -j ACCEPT")).answer is Answer.EQUAL


@pytest.mark.parametrize(
    ("change", "test"),
    [
        ("-j DSCP --set-dscp 0x0a", "-m dscp --dscp 10"),
        ("-j DSCP --set-dscp-class AF11", "-m dscp --dscp 10"),
        ("-j TOS --set-tos 0x28/0xff", "-m dscp --dscp 10"),
        ("-j TOS --or-tos 0x28", "-m dscp --dscp 10"),
        ("-j TTL --ttl-set 5", "-m ttl --ttl-eq 5"),
        ("-j TTL --ttl-inc 2", "-m ttl --ttl-eq 66"),
        ("-j TTL --ttl-dec 2", "-m ttl --ttl-eq 62"),
    ],
)
def test_a_changed_header_that_a_later_rule_tests(change: str, test: str) -> None:
    changed = rules(f"{test} -j DROP", mangle=(f"-p tcp --dport 80 {change}",))
    report = prove(changed, rules(f"{test} -j DROP"))
    assert report.answer is Answer.DIFFERENT
    assert any("port 80" in line and line.endswith("DROP → ACCEPT") for line in lines(report)), lines(report)
    assert prove(changed, changed).answer is Answer.EQUAL


def test_swapped_changes_are_equal_if_no_rule_tests_them_in_between() -> None:
    twice = ("-j TTL --ttl-inc 1", "-j TTL --ttl-inc 1")
    drop = "-m ttl --ttl-eq 9 -j DROP"
    assert prove(rules(drop, mangle=twice), rules(drop, mangle=("-j TTL --ttl-inc 2",))).equal


def test_expiring_elements_differ_from_permanent_ones() -> None:
    stays, expires = (f"{SETS}add bad 10.0.0.9 timeout {seconds}\n" for seconds in (0, 60))
    assert prove(rules(LOOKUP, sets=stays), rules(LOOKUP, sets=expires)).answer is Answer.DIFFERENT
    later = expires.replace("timeout 60", "timeout 51")
    assert prove(rules(LOOKUP, sets=expires), rules(LOOKUP, sets=later)).answer is Answer.EQUAL


def test_limits_that_only_log_count_strictly_at_most() -> None:
    log = "-m limit --limit 5/sec -j LOG"
    assert prove(rules(log, log), rules(log)).answer is Answer.EQUAL


def test_hashlimits_of_one_name_count_together() -> None:
    limit = "-p udp -m hashlimit --hashlimit-upto 5/sec --hashlimit-mode srcip --hashlimit-name {} -j ACCEPT"
    once, twice = rules(limit.format("a"), "-j DROP"), rules(limit.format("a"), limit.format("a"), "-j DROP")
    assert prove(once, twice).answer is Answer.EQUAL
    assert prove(once, rules(limit.format("a"), limit.format("b"), "-j DROP")).answer is Answer.DIFFERENT


LIMIT = "limit rate 5/second accept"
NFT = """
table inet t {{
 set s {{ type ipv4_addr; flags dynamic,timeout; timeout {timeout}; {elements} }}
 ct helper h {{ type "ftp" protocol tcp; }}
 chain a {{
  type filter hook input priority 0; policy accept
  ip saddr @s drop
  ct state related accept
  {rule}
 }}
}}
"""


def listed(rule: str = "", timeout: str = "1h", elements: str = "") -> str:
    """Return nft's listing of a ruleset, from a namespace of its own."""
    text = NFT.format(rule=rule, timeout=timeout, elements=elements)
    script = ["unshare", "-rn", "sh", "-c", "nft -f - && nft -j list ruleset"]
    found = subprocess.run(script, input=text, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        pytest.skip(f"nft cannot be run in a namespace here: {found.stderr}")
    assert json.loads(found.stdout)
    return found.stdout


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (listed_arguments, {})
        for listed_arguments in (
            {"rule": "tcp dport 23 add @s { ip saddr }"},
            {"rule": "tcp dport 23 update @s { ip saddr timeout 5m }"},
            {"rule": "tcp dport 23 add @s { ip saddr limit rate over 5/second } drop"},
            {"rule": "tcp dport 21 ct helper set \"h\""},
            {"elements": "elements = { 10.0.0.9 }"},
            {"elements": "elements = { 10.0.0.9 timeout 5m }"},
        )
    ]
    + [
        ({"rule": "tcp dport 23 add @s { ip saddr }"}, {"rule": "tcp dport 23 add @s { ip saddr }", "timeout": "2h"}),
        ({"elements": "elements = { 10.0.0.9 timeout 5m }"}, {"elements": "elements = { 10.0.0.9 timeout 9m }"}),
        ({"rule": f"{LIMIT}; {LIMIT}; drop"}, {"rule": f"{LIMIT}; drop"}),
    ],
)  # fmt: skip
def test_effects_of_an_nft_ruleset(one: dict[str, str], two: dict[str, str]) -> None:
    before, after = listed(**one), listed(**two)
    assert prove(before, after).answer is Answer.DIFFERENT
    assert prove(after, before).answer is Answer.DIFFERENT
    assert prove(before, before).answer is Answer.EQUAL


def test_a_packet_without_a_connection_has_no_label() -> None:
    text = "table inet t {{\n chain a {{\n  type filter hook input priority 0; policy accept\n  {rule}\n }}\n}}\n"
    labelled = text.format(rule="ct label 5 drop")
    connected = text.format(rule="ct state { new, related, established } ct label 5 drop")
    assert prove(labelled, connected).answer is Answer.EQUAL
    assert prove(labelled, text.format(rule="ct state new ct label 5 drop")).answer is Answer.DIFFERENT


def test_a_frame_without_ip_has_no_transport_header() -> None:
    text = "table bridge t {{\n chain f {{\n  type filter hook forward priority 0; policy accept\n  {rule}\n }}\n}}\n"
    empty = text.format(rule="")
    assert prove(text.format(rule="ether type arp th dport 80 drop"), empty).answer is Answer.EQUAL
    assert prove(text.format(rule="th dport 80 drop"), empty).answer is Answer.DIFFERENT
