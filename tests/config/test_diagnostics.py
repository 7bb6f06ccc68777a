"""Mistakes in a configuration: the kind of problem, the underlined place, and the hint."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.errors import Severity
from pvefw_nft.pipeline import Source, check_root
from tests.support import NODE, VM, check

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pvefw_nft.errors import Diagnostic
    from tests.support import MakeRoot

ON = "[OPTIONS]\nenable: 1\n"
NAMES = "[ALIASES]\nlan 10.0.0.0/8\nlan6 2001:db8::/32\n[IPSET office]\n10.1.0.0/16\n[group web]\nIN HTTP(ACCEPT)\n"


def problems(make_root: MakeRoot, files: dict[str, str | bytes]) -> list[Diagnostic]:
    return list(check(make_root(files)).diagnostics)


def marked(diagnostic: Diagnostic) -> str:
    span = diagnostic.span
    return span.text[span.column - 1 : span.end_column - 1]


# A rule of 100.fw, the code of the problem, the underlined part of the line, a part of the hint.
RULES = [
    ("IN SSSH(ACCEPT)", "unknown-macro", "SSSH", "`SSH`"),
    ("IN accept", "bad-action", "accept", "write ACCEPT"),
    ("IN SSH", "bad-action", "SSH", "SSH(ACCEPT)"),
    ("IN SSH(ALLOW)", "bad-action", "SSH(ALLOW)", "macro"),
    ("INN ACCEPT", "bad-rule-type", "INN", "`IN`"),
    ("FORWARD ACCEPT", "bad-rule-type", "FORWARD", "IN, OUT, GROUP"),
    ("IN ACCEPT -i eth0", "bad-interface", "eth0", "net0 to net31"),
    ("IN ACCEPT -i net32", "bad-interface", "net32", "net0 to net31"),
    ("IN ACCEPT -sourc 10.0.0.1", "unknown-rule-option", "-sourc", "`-source`"),
    ("IN ACCEPT -source", "syntax", "#", None),
    ("IN ACCEPT -source -p tcp", "syntax", "-p", None),
    ("IN ACCEPT -source -", "syntax", "-", None),
    ("IN ACCEPT -p tcp -dport -22", "syntax", "-22", None),
    ("IN Ping (ACCEPT)", "bad-action", "Ping", "Ping(ACCEPT)"),
    ("IN ACCEPT -p tcp dport 22", "syntax", "dport", None),
    ("IN ACCEPT net0 10.0.0.1 - tcp 22 -", None, "", None),
    ("IN ACCEPT net0 10.0.0.1 - tcp 22 - 5", "syntax", "5", "IFACE SOURCE DEST PROTO D-PORT S-PORT"),
    ("IN ACCEPT net0 -p tcp", "syntax", "-p", "columns"),
    ("GROUP web net0 10.0.0.1", "syntax", "10.0.0.1", "IFACE"),
    ("IN ACCEPT -source 192.168.1.5/24", "host-bits", "192.168.1.5/24", "192.168.1.0/24"),
    ("IN ACCEPT -source 2001:db8::5/64", "host-bits", "2001:db8::5/64", "2001:db8::/64"),
    ("IN ACCEPT -source 10.0.0.256", "bad-address", "10.0.0.256", "0 and 255"),
    ("IN ACCEPT -source 010.0.0.1", "bad-address", "010.0.0.1", "10.0.0.1"),
    ("IN ACCEPT -source 10.0.0.0/33", "bad-address", "33", "32 bits"),
    ("IN ACCEPT -source 10.0.0.0/08", "bad-address", "08", "number from 0 to 32"),
    ("IN ACCEPT -source 10.0.0.9-10.0.0.1", "bad-address", "10.0.0.9-10.0.0.1", "10.0.0.1-10.0.0.9"),
    ("IN ACCEPT -source 10.0.0.1-2001:db8::1", "mixed-families", "10.0.0.1-2001:db8::1", None),
    ("IN ACCEPT -source 10.0.0.1-10", "bad-address", "10", "two whole addresses"),
    ("IN ACCEPT -source 10.0.0.1,10.0.0.3-10.0.0.4", "bad-address", "10.0.0.3-10.0.0.4", "rule of their own"),
    ("IN ACCEPT -source 10.0.0.1,2001:db8::1", "mixed-families", "2001:db8::1", "ipset"),
    ("IN ACCEPT -source 10.0.0.1,,10.0.0.2", "bad-address", ",,", "comma"),
    ("IN ACCEPT -source 10.0.0.1,lan", "bad-address", "lan", "list"),
    ("IN ACCEPT -source lan,10.0.0.1", "bad-address", "lan,10.0.0.1", "alias"),
    ("IN ACCEPT -source 10.0.0.1 -dest 2001:db8::1", "mixed-families", "2001:db8::1", "each family"),
    ("IN ACCEPT -source lan -dest lan6", "mixed-families", "lan6", "each family"),
    ("IN ACCEPT -source lan6 -p icmp", "mixed-families", "icmp", None),
    ("IN ACCEPT -source lann", "unknown-alias", "lann", "`lan`"),
    ("IN ACCEPT -source guest/lan", "unknown-alias", "guest/lan", "leave out `guest/`"),
    ("IN ACCEPT -source +offic", "unknown-ipset", "+offic", "`office`"),
    ("IN ACCEPT -source +Office", "unknown-ipset", "+Office", "lower case"),
    ("IN ACCEPT -source +guest/office", "unknown-ipset", "+guest/office", "leave out `guest/`"),
    ("IN ACCEPT -source +sdn/zone", "unknown-ipset", "+sdn/zone", "vnet-all"),
    ("IN ACCEPT -source +sdn/web-all", "unknown-ipset", "+sdn/web-all", ".running-config does not exist"),
    ("IN ACCEPT -source +guest-ipam-7", "unknown-ipset", "+guest-ipam-7", "pve-ipam-state.json does not exist"),
    ("IN ACCEPT -source +management", "unknown-ipset", "+management", None),
    ("IN ACCEPT -source local_network", "unknown-alias", "local_network", None),
    ("IN ACCEPT -dport 22", "port-without-protocol", "22", "-p tcp"),
    ("IN ACCEPT -p gre -dport 22", "port-without-protocol", "22", "tcp"),
    ("IN ACCEPT -p tcpp", "bad-protocol", "tcpp", "`tcp`"),
    ("IN ACCEPT -p 0", "bad-protocol", "0", "leave the protocol out"),
    ("IN ACCEPT -p ip", "bad-protocol", "ip", "leave the protocol out"),
    ("IN ACCEPT -p 256", "bad-protocol", "256", "255"),
    ("IN ACCEPT -p 06", "bad-protocol", "06", None),
    ("IN ACCEPT -p tcp -dport 65536", "bad-port", "65536", "65535"),
    ("IN ACCEPT -p tcp -dport 022", "bad-port", "022", "22"),
    ("IN ACCEPT -p tcp -dport 90:80", "bad-port", "90:80", "80:90"),
    ("IN ACCEPT -p tcp -dport 80:http", "bad-port", "http", "two numbers"),
    ("IN ACCEPT -p tcp -dport htp", "bad-port", "htp", "`http`"),
    ("IN ACCEPT -p tcp -dport 80,", "bad-port", ",", "comma"),
    ("IN ACCEPT -p tcp -dport 1:2,3:4,5:6,7:8,9:10,11:12,13:14,15:16", "too-many-ports", None, "15"),
    ("IN ACCEPT -p tcp -icmp-type any", "bad-icmp-type", "any", "-p icmp"),
    ("IN ACCEPT -icmp-type any", "bad-icmp-type", "any", "-p icmp"),
    ("IN ACCEPT -p icmp -icmp-type 8", "bad-icmp-type", "8", "write echo-request"),
    ("IN ACCEPT -p icmp -icmp-type 3/4", "bad-icmp-type", "3/4", "write fragmentation-needed"),
    ("IN ACCEPT -p icmp -icmp-type 40", "bad-icmp-type", "40", "-dport 40"),
    ("IN ACCEPT -p icmpv6 -icmp-type 128", "bad-icmp-type", "128", "write echo-request"),
    ("IN ACCEPT -p icmpv6 -icmp-type nd-router-advert", "bad-icmp-type", "nd-router-advert", "router-advertisement"),
    ("IN ACCEPT -p icmp -icmp-type admin-prohibited", "bad-icmp-type", None, "communication-prohibited"),
    ("IN ACCEPT -p icmpv6 -icmp-type any", "bad-icmp-type", "any", "leave out"),
    ("IN PBS(ACCEPT)", "unknown-macro", "PBS", "write ACCEPT -p tcp -dport 8007"),
    ("IN Ping(ACCEPT) -p icmp -icmp-type echo-request", None, None, None),
    ("IN Ping(ACCEPT) -icmp-type echo-request", None, None, None),
    ("IN SSH(ACCEPT) -icmp-type echo-request", "macro-conflict", "echo-request", "without the macro"),
    ("IN ACCEPT -p icmp -icmp-type no-route", "bad-icmp-type", "no-route", "ICMPv6"),
    ("IN ACCEPT -p icmp -dport 256", "bad-icmp-type", "256", "255"),
    ("IN ACCEPT -p icmp -sport 5", "port-without-protocol", "5", None),
    ("IN SSH(ACCEPT) -p udp", "macro-conflict", "udp", "without the macro"),
    ("IN HTTP(ACCEPT) -dport 8080", "macro-conflict", "8080", "without the macro"),
    ("IN Ping(ACCEPT) -icmp-type any", "macro-conflict", "any", "-icmp-type"),
    ("IN GRE(ACCEPT) -dport 5", "port-without-protocol", "5", None),
    ("IN ACCEPT -log loud", "bad-log-level", "loud", "emerg"),
    ("GROUP Web", "unknown-group", "Web", "`web`"),
    ("GROUP nosuch", "unknown-group", "nosuch", "[group nosuch]"),
    ("GROUP web -p tcp", "group-condition", "tcp", "rules of the group"),
    ("IN ACCEPT -source " + ",".join(["10.0.0.1"] * 1000), "too-long", None, "ipset"),
    ("IN ACCEPT -source 1.1.1.1" + ",1.1.1.1" * 127 + "1", "too-long", None, "ipset"),
    ("IN ACCEPT -source 1.1.1.1" + ",1.1.1.1" * 127, None, None, None),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "code", "underlined", "hint"), RULES, ids=[case[0][:50] for case in RULES])
def test_rule(make_root: MakeRoot, rule: str, code: str | None, underlined: str | None, hint: str | None) -> None:
    found = problems(make_root, {"cluster": ON + NAMES, "100.conf": VM, "100.fw": f"{ON}[RULES]\n  {rule} # why\n"})
    if code is None:
        assert found == []
        return
    (problem,) = found
    assert (problem.code, problem.severity, problem.span.line) == (code, Severity.ERROR, 4)
    if underlined is not None:
        assert marked(problem) == underlined
    if hint is not None:
        assert problem.hint is not None
        assert hint in problem.hint


# Text of cluster.fw below [OPTIONS] enable: 1, the problem, the underlined part, a part of the hint.
CLUSTER = [
    ("policy_in: drp", "bad-option-value", "drp", "`DROP`"),
    ("policy_in: DROP   # default", "option-comment-same", "# default", "a line of its own"),
    ("policy_forward: REJECT", "bad-option-value", "REJECT", "ACCEPT, DROP"),
    ("polcy_in: DROP", "unknown-option", "polcy_in", "`policy_in`"),
    ("nosmurfs: 1", "unknown-option", "nosmurfs", "host.fw"),
    ("optimize: 1", "old-option", "optimize", "remove"),
    ("enable: yes", "bad-option-value", "yes", "write 1"),
    ("log_ratelimit: enable=1,rate=1/week", "bad-option-value", "1/week", "second"),
    ("log_ratelimit: rate=10001/second", "unusual-value", "rate=10001/second", "rate=10000/second"),
    ("log_ratelimit: enable=1, rate=864000001/day", "unusual-value", None, "rate=864000000/day"),
    ("log_ratelimit: rate=1/second,burst=0", "unusual-value", "rate=1/second,burst=0", "burst=1"),
    ("log_ratelimit: rate=1/day", "unusual-value", "rate=1/day", "burst=1"),
    ("log_ratelimit: burst=x", "bad-option-value", "x", "packets"),
    ("log_ratelimit: enable=1,,", "bad-option-value", "enable=1,,", "burst=5"),
    ("just words", "syntax", "just words", "policy_in"),
    ("[RULLES]\nIN ACCEPT", "unknown-section", "[RULLES]", "`RULES`"),
    ("[RULES] IN ACCEPT", "unknown-section", "[RULES] IN ACCEPT", "write [RULES] alone"),
    ("[RULES vm]\nIN ACCEPT", "unknown-section", "[RULES vm]", "write [RULES] alone"),
    ("[IPSET a b]\n10.0.0.1", "unknown-section", "[IPSET a b]", "write [IPSET name] alone"),
    ("[]", "unknown-section", "[]", "sections here"),
    ("[ALIASES]\nx", "syntax", "x", "gateway"),
    ("[ALIASES]\n1x 10.0.0.1", "bad-name", "1x", "begin with a letter"),
    ("[ALIASES]\nab 10.0.0.300", "bad-address", "10.0.0.300", "255"),
    ("[ALIASES]\nab 10.0.0.1\nAB 10.0.0.2", "redefined", "AB", None),
    ("[IPSET]\n10.0.0.1", "bad-name", "[IPSET]", "[ipset name]"),
    ("[IPSET a/b]\n10.0.0.1", "bad-name", "a/b", "letters"),
    ("[IPSET ab]\n10.0.0.1\n10.0.0.1/32", "duplicate-entry", "10.0.0.1/32", "remove"),
    ("[IPSET ab]\n2001:DB8:0::1\n2001:db8::1", "duplicate-entry", "2001:db8::1", "remove"),
    ("[IPSET ab]\n0.0.0.0/0", "whole-space", "0.0.0.0/0", "0.0.0.0/1 and 128.0.0.0/1"),
    ("[ALIASES]\nab 10.0.0.1-10.0.0.9", "bad-address", "10.0.0.1-10.0.0.9", "ipset"),
    ("[ALIASES]\nab 10.0.0.0/24,10.0.1.0/24", "bad-address", "10.0.0.0/24,10.0.1.0/24", "ipset"),
    ("[IPSET ab]\n+other", "bad-address", "+other", "one address, one network"),
    ("[IPSET ab]\n!!10.0.0.1", "bad-address", "!10.0.0.1", "one address, one network"),
    ("[IPSET ab]\n10.0.0.1-10.0.0.9", "bad-address", "10.0.0.1-10.0.0.9", "one address, one network"),
    ("[IPSET ab]\n10.0.0.1,10.0.0.9", "bad-address", "10.0.0.1,10.0.0.9", "one address, one network"),
    ("[IPSET ab]\nnobody", "unknown-alias", "nobody", None),
    ("[IPSET ab]\n10.0.0.1 10.0.0.2", "syntax", "10.0.0.1 10.0.0.2", "one entry a line"),
    ("[IPSET ab]\n10.0.0.1\n[ipset AB]\n10.0.0.2", "redefined", "AB", "another name"),
    ("[group ab]\n[group ab]", "redefined", "ab", "another name"),
    ("[group averyveryverylongname]", "bad-name", "averyveryverylongname", "18"),
    ("[group ab]\nIN ACCEPT -i vmbr0", "misplaced-interface", "vmbr0", "GROUP rule"),
    ("[group ab]\nGROUP cd", "bad-rule-type", "GROUP", "IN, OUT, FORWARD"),
    ("[RULES]\nIN ACCEPT -source later\n[ALIASES]\nlater 10.0.0.1", "unknown-alias", "later", None),
    ("[RULES]\nIN ACCEPT -i a/b", "bad-interface", "a/b", "15"),
    ("[RULES]\nIN ACCEPT -p tcp\x07", "control-character", "\x07", "remove"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "code", "underlined", "hint"), CLUSTER, ids=[case[0][:40] for case in CLUSTER])
def test_cluster(make_root: MakeRoot, text: str, code: str, underlined: str | None, hint: str | None) -> None:
    (problem,) = problems(make_root, {"cluster": ON + text + "\n"})
    assert problem.code == code
    if underlined is not None:
        assert marked(problem) == underlined
    if hint is not None:
        assert problem.hint is not None
        assert hint in problem.hint


@pytest.mark.parametrize(
    ("line", "underlined"),
    [
        ("nf_conntrack_helpers: tftp,ft", "ft"),
        ("nf_conntrack_helpers: ,", ","),
        ("nf_conntrack_helpers:", ""),
    ],
)
def test_list_of_helpers(make_root: MakeRoot, line: str, underlined: str) -> None:
    (problem,) = problems(make_root, {"host": f"[OPTIONS]\n{line}\n"})
    assert (problem.code, marked(problem)) == ("bad-option-value", underlined)
    assert problem.span.column == len(line) - len(underlined) + 1


def test_layer_2_protocols(make_root: MakeRoot) -> None:
    (problem,) = problems(make_root, {"100.conf": VM, "100.fw": ON + "layer2_protocols: ARP,AR\n"})
    assert (problem.code, problem.span.column, marked(problem)) == ("bad-option-value", 23, "AR")


def test_many_mistakes_take_time_in_proportion(make_root: MakeRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0

    def close_matches(word: str, names: Iterable[str], **_: object) -> list[str]:
        nonlocal compared
        compared += len(list(names))
        return []

    monkeypatch.setattr(difflib, "get_close_matches", close_matches)
    aliases = "".join(f"n{number} 10.0.0.1\n" for number in range(2000))
    rules = "".join(f"IN ACCEPT -source n{number}x\n" for number in range(50))
    assert len(problems(make_root, {"cluster": f"{ON}[ALIASES]\n{aliases}[RULES]\n{rules}"})) == 50
    assert compared <= 50 * 400


def test_a_name_is_found_among_many(make_root: MakeRoot) -> None:
    aliases = "".join(f"host{number} 10.0.0.1\n" for number in range(1000))
    (problem,) = problems(
        make_root, {"cluster": f"{ON}[ALIASES]\n{aliases}office 10.0.0.1\n[RULES]\nIN ACCEPT -source ofice\n"}
    )
    assert problem.hint == "did you mean `office`?"


def test_a_range_of_all_queues_is_one_too_large(make_root: MakeRoot) -> None:
    (problem,) = problems(make_root, {"100.conf": VM, "100.fw": ON + "ips_queues: 0:65535\n"})
    assert (problem.code, marked(problem)) == ("bad-option-value", "0:65535")


def test_option_in_the_wrong_file_names_the_right_one(make_root: MakeRoot) -> None:
    (problem,) = problems(make_root, {"host": "[OPTIONS]\npolicy_in: ACCEPT\n"})
    assert (problem.code, problem.span.line, problem.span.column) == ("unknown-option", 2, 1)
    assert "cluster.fw" in (problem.hint or "")


def test_section_in_the_wrong_file(make_root: MakeRoot) -> None:
    (problem,) = problems(make_root, {"host": "[ALIASES]\nab 10.0.0.1\n"})
    assert (problem.code, marked(problem)) == ("misplaced-section", "[ALIASES]")


def test_text_before_the_first_section(make_root: MakeRoot) -> None:
    (problem,) = problems(make_root, {"host": "enable: 0\n"})
    assert problem.code == "no-section"


def test_problems_of_disabled_rules_are_warnings(make_root: MakeRoot) -> None:
    found = problems(make_root, {"cluster": ON + "[RULES]\n|IN SHH(ACCEPT)\n|IN ACCEPT -source\n|GROUP nosuch\n"})
    assert [(p.code, p.severity) for p in found] == [
        ("unknown-macro", Severity.WARNING),
        ("syntax", Severity.WARNING),
    ]


def test_all_problems_of_a_run_in_file_order(make_root: MakeRoot) -> None:
    found = problems(
        make_root,
        {
            "cluster": ON + "[RULES]\nGROUP nosuch\nIN ACCEPT -dport 1\n",
            "host": "[RULES]\nIN NOPE\n",
            "100.conf": VM,
            "100.fw": "[RULES]\nIN ACCEPT -p 0\n",
        },
    )
    assert [(p.span.file.rsplit("/", 1)[-1], p.span.line) for p in found] == [
        ("cluster.fw", 4),
        ("cluster.fw", 5),
        ("host.fw", 2),
        ("100.fw", 2),
    ]


def test_tabs_and_other_characters_keep_columns(make_root: MakeRoot) -> None:
    (problem,) = problems(make_root, {"cluster": f"{ON}[RULES]\n\tIN\tACCEPT\t-p\ttcpp # ünïcödé\n".encode()})
    assert (problem.span.column, marked(problem)) == (15, "tcpp")


def test_comment_that_is_not_utf8_keeps_the_rule(make_root: MakeRoot) -> None:
    root = make_root({"cluster": ON.encode() + b"[RULES]\nIN DROP -p tcp -dport 25 # caf\xe9\n"})
    checked = check(root)
    assert [p.code for p in checked.diagnostics] == ["comment-not-utf8"]
    assert len(checked.node.cluster.rules) == 1


@pytest.mark.parametrize(
    "text", ["\ufeff" + ON, ON.replace("\n", "\r\n"), ON.rstrip("\n"), " [options] \n enable : 1 "]
)
def test_accepted_spellings_of_a_file(make_root: MakeRoot, text: str) -> None:
    checked = check(make_root({"cluster": text}))
    assert checked.diagnostics == ()
    assert checked.node.cluster.options.enable


def test_alternative_name_of_an_interface(make_root: MakeRoot) -> None:
    root = make_root(
        {"cluster": f"{ON}[RULES]\nIN ACCEPT -i the-name-on-the-label\nIN ACCEPT -i nosuch-but-long-name\n"}
    )
    source = Source(root, NODE, lambda: None, {"the-name-on-the-label": "eno1"}.get)
    checked = check_root(source)
    assert [rule.iface for rule in checked.node.cluster.rules] == ["eno1"]
    assert [(problem.code, problem.span.line) for problem in checked.diagnostics] == [("bad-interface", 5)]


def test_host_bits_in_aliases_and_ipsets_stand_for_the_network(make_root: MakeRoot) -> None:
    text = "[ALIASES]\nlan 192.168.1.5/24\n[IPSET office]\n10.1.2.3/16\n10.1.0.0/16\n[RULES]\nIN ACCEPT -source lan\n"
    checked = check(make_root({"cluster": ON + text}))
    assert [(problem.code, problem.severity, problem.span.line) for problem in checked.diagnostics] == [
        ("host-bits-cleared", Severity.WARNING, 4),
        ("host-bits-cleared", Severity.WARNING, 6),
        ("duplicate-entry", Severity.WARNING, 7),
    ]
    cluster = checked.node.cluster
    assert cluster.aliases["lan"].prefix.canonical == "192.168.1.0/24"
    assert [entry.prefix.canonical for entry in cluster.ipsets["office"].entries] == ["10.1.0.0/16"]


def test_an_ipset_is_sized_by_its_entries_before_one_network_is_merged(make_root: MakeRoot) -> None:
    lines = [*(f"10.0.0.{number}" for number in range(64)), "10.0.0.1", "10.0.0.1/32"]
    checked = check(make_root({"cluster": ON + "[IPSET many]\n" + "\n".join(lines) + "\n"}))
    assert [problem.code for problem in checked.diagnostics] == ["duplicate-entry", "duplicate-entry"]
    (many,) = (made for made in checked.ruleset.sets if made.key.name == "many")
    assert (len(many.entries), many.counted) == (64, 65)
