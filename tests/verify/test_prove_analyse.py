"""Rules that never match and rules that change nothing, on small rulesets."""

from __future__ import annotations

from pvefw_nft.verify.network.path import Link, Nic, Topology
from pvefw_nft.verify.prove.compare import Options
from pvefw_nft.verify.prove.dead_rules import Finding, Kind, analyse
from pvefw_nft.verify.prove.network import Side
from pvefw_nft.verify.readers.files import Text, read_ruleset

TOPOLOGY = Topology(
    nics=(
        Nic("vm100", 100, 0, "tap100i0", "vmbr0", filtered=True),
        Nic("vm101", 101, 0, "tap101i0", "vmbr0", filtered=True),
    ),
    links=(Link("vmbr0", is_bridge=True, ports=("eth0",)),),
)
FRAME = """# iptables-save
*filter
:FORWARD ACCEPT [0:0]
:group - [0:0]
:mark - [0:0]
:A - [0:0]
:B - [0:0]
-A mark -j MARK --set-mark 0x80000000/0x80000000
-A FORWARD -m physdev --physdev-is-bridged --physdev-out tap100i0 -j A
-A FORWARD -m physdev --physdev-is-bridged --physdev-out tap101i0 -j B
{rules}
COMMIT
"""


def analysed(*rules: str, origins: dict[tuple[str, int], str] | None = None) -> list[Finding]:
    named = {("iptables", "filter", chain, number): text for (chain, number), text in (origins or {}).items()}
    model = read_ruleset([Text("x", FRAME.format(rules="\n".join(rules)))], origins=named)
    return [
        found for found in analyse(Side("x", model, TOPOLOGY)).found if found.places[0].chain not in ("mark", "FORWARD")
    ]


def found(kind: Kind, findings: list[Finding]) -> dict[str, tuple[str, ...]]:
    return {one.origin.removeprefix("iptables filter "): one.by for one in findings if one.kind is kind}


def test_a_rule_behind_a_wider_one_never_matches() -> None:
    findings = analysed(
        "-A A -p tcp --dport 20:30 -j ACCEPT", "-A A -p tcp --dport 22 -j DROP", "-A A -j DROP", "-A B -j DROP"
    )
    assert found(Kind.NEVER_MATCHES, findings) == {"A rule 2": ("A rule 1",)}


def test_several_rules_together_shadow_one() -> None:
    findings = analysed(
        "-A A -s 10.0.0.0/9 -j ACCEPT",
        "-A A -s 10.128.0.0/9 -j ACCEPT",
        "-A A -s 10.0.0.0/8 -p tcp --dport 22 -j DROP",
        "-A A -j DROP",
    )
    assert found(Kind.NEVER_MATCHES, findings) == {"A rule 3": ("A rule 1", "A rule 2")}


def test_a_rule_with_contradictory_conditions_never_matches() -> None:
    findings = analysed("-A A -s 10.0.0.0/8 -m iprange --src-range 11.0.0.1-11.0.0.2 -j ACCEPT", "-A A -j DROP")
    assert not found(Kind.NO_EFFECT, findings)


def test_a_rule_of_a_shared_chain_is_dead_only_if_it_is_everywhere() -> None:
    group = ("-A group -p tcp --dport 22 -j ACCEPT", "-A group -p tcp --dport 80 -j ACCEPT")
    drop = ("-A A -p tcp --dport 22 -j DROP", "-A A -j group", "-A A -j DROP")
    once = analysed(*group, *drop, "-A B -j group", "-A B -j DROP")
    assert found(Kind.NEVER_MATCHES, once) == {}
    both = analysed(*group, *drop, "-A B -p tcp --dport 22 -j DROP", "-A B -j group", "-A B -j DROP")
    assert found(Kind.NEVER_MATCHES, both) == {"group rule 1": ("A rule 1", "B rule 1")}


def test_behind_a_rule_that_sets_a_mark_all_packets_have_it() -> None:
    findings = analysed(
        "-A A -j MARK --set-mark 0x0/0x80000000",
        "-A A -m mark --mark 0x80000000/0x80000000 -j ACCEPT",
        "-A A -p tcp --dport 22 -g mark",
        "-A A -j DROP",
    )
    assert found(Kind.NEVER_MATCHES, findings) == {"A rule 2": ()}


def test_a_mark_that_a_called_chain_sets_counts() -> None:
    findings = analysed(
        "-A group -j MARK --set-mark 0x0/0x80000000",
        "-A group -p tcp --dport 22 -g mark",
        "-A A -j group",
        "-A A -m mark --mark 0x80000000/0x80000000 -j ACCEPT",
        "-A A -p tcp --dport 22 -j DROP",
        "-A A -j DROP",
    )
    assert found(Kind.NEVER_MATCHES, findings) == {"A rule 3": ("group rule 2",)}


def test_a_rule_with_the_verdict_of_the_rules_below_has_no_effect() -> None:
    findings = analysed("-A A -p tcp --dport 23 -j DROP", "-A A -p tcp --dport 22 -j ACCEPT", "-A A -j DROP")
    assert found(Kind.NO_EFFECT, findings) == {"A rule 1": ("A rule 3",)}


def test_only_one_of_two_equal_rules_is_reported_as_useless() -> None:
    findings = analysed("-A A -p tcp --dport 22 -j ACCEPT", "-A A -p tcp --dport 22 -j ACCEPT", "-A A -j DROP")
    assert found(Kind.NEVER_MATCHES, findings) == {"A rule 2": ("A rule 1",)}
    assert found(Kind.NO_EFFECT, findings) == {}


def test_a_rule_that_logs_does_something() -> None:
    log = '-A A -p tcp --dport 23 -j NFLOG --nflog-prefix "telnet"'
    findings = analysed(log, "-A A -p tcp --dport 22 -j ACCEPT", "-A A -j DROP")
    assert found(Kind.NO_EFFECT, findings) == {}


def test_a_line_is_judged_by_all_its_rules() -> None:
    rules = ("-A A -p tcp --dport 22 -j ACCEPT", "-A A -p tcp --dport 22 -j DROP", "-A A -p udp --dport 22 -j DROP")
    origins = {("A", 1): "100.fw:3", ("A", 2): "100.fw:4", ("A", 3): "100.fw:4"}
    partly = analysed(*rules, "-A A -p udp --dport 22 -j ACCEPT", origins=origins)
    assert found(Kind.NEVER_MATCHES, partly).keys() == {"A rule 4"}
    wholly = analysed(rules[0], rules[1], origins=origins)
    assert found(Kind.NEVER_MATCHES, wholly) == {"100.fw:4": ("100.fw:3",)}


def test_a_clean_ruleset_has_no_findings() -> None:
    rules = ("-A A -p tcp --dport 22 -j ACCEPT", "-A A -j DROP", "-A B -p udp --dport 53 -j ACCEPT", "-A B -j DROP")
    assert analysed(*rules) == []


def test_rules_behind_a_rule_count_though_it_keeps_packets_from_them() -> None:
    findings = analysed("-A A -j ACCEPT", "-A A -j DROP", "-A B -j DROP")
    assert found(Kind.NO_EFFECT, findings) == {}
    assert found(Kind.NEVER_MATCHES, findings) == {"A rule 2": ("A rule 1",)}


def test_a_rule_that_keeps_packets_from_the_log_has_an_effect() -> None:
    log = '-A A -j NFLOG --nflog-prefix "drop"'
    findings = analysed("-A A -p udp --dport 137 -j DROP", log, "-A A -j DROP", "-A B -j DROP")
    assert found(Kind.NO_EFFECT, findings) == {}


def test_a_rule_before_an_equal_one_that_takes_more_changes_nothing() -> None:
    findings = analysed(
        "-A A -p tcp --dport 22 -s 10.0.0.1 -j ACCEPT", "-A A -p tcp --dport 22 -j ACCEPT", "-A A -j DROP"
    )
    assert found(Kind.NO_EFFECT, findings) == {"A rule 1": ("A rule 2",)}


def test_neighbouring_rules_of_one_line_are_judged_together() -> None:
    rules = (
        "-A A -p tcp --dport 22 -j ACCEPT",
        "-A A -p tcp --dport 20:30 -j ACCEPT",
        "-A A -j ACCEPT",
        "-A B -j DROP",
    )
    origins = {("A", 1): "100.fw:3", ("A", 2): "100.fw:3"}
    assert found(Kind.NO_EFFECT, analysed(*rules, origins=origins)) == {"100.fw:3": ("A rule 3",)}


def test_the_rule_that_set_a_mark_is_named_not_the_one_that_tests_it() -> None:
    findings = analysed(
        "-A group -p tcp --dport 22 -g mark",
        "-A A -j MARK --set-mark 0x0/0x80000000",
        "-A A -j group",
        "-A A -m mark --mark 0x80000000/0x80000000 -j ACCEPT",
        "-A A -p tcp --dport 22 -s 10.0.0.1 -j REJECT",
        "-A A -j DROP",
    )
    assert found(Kind.NEVER_MATCHES, findings) == {"A rule 4": ("group rule 1",)}


def test_rules_that_exceed_the_budget_are_not_judged() -> None:
    model = read_ruleset([Text("x", FRAME.format(rules="-A A -j ACCEPT\n-A A -j DROP"))])
    advice = analyse(Side("x", model, TOPOLOGY), Options(max_seconds=0))
    assert advice.found == ()
    assert advice.unfinished == ("the time limit was reached (--max-time)",)
