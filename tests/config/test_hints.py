"""Words of other firewalls in .fw files, and the hint that each gets."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.config.codes import declared
from pvefw_nft.config.hints import TABLE
from tests.support import VM, check

if TYPE_CHECKING:
    from pvefw_nft.errors import Diagnostic
    from tests.support import MakeRoot

ON = "[OPTIONS]\nenable: 1\n"
SPELLED = {
    "unknown-macro": "IN {}(ACCEPT)",
    "bad-action": "IN {}",
    "unknown-rule-option": "IN ACCEPT {} x",
    "unknown-alias": "IN ACCEPT -source {}",
    "bad-address": "IN ACCEPT -source {}",
    "bad-protocol": "IN ACCEPT -p {}",
    "bad-port": "IN ACCEPT -p tcp -dport {}",
    "bad-interface": "IN ACCEPT -i {}",
}
"""A rule for each code of the table, with a place for the word."""


def problems(make_root: MakeRoot, text: str) -> list[Diagnostic]:
    return list(check(make_root({"cluster": ON + text, "100.conf": VM, "100.fw": ON})).diagnostics)


def test_each_word_of_the_table_gets_its_hint(make_root: MakeRoot) -> None:
    entries = tomllib.loads(TABLE.read_text("utf-8"))["word"]
    words = [(entry["code"], word, entry["hint"]) for entry in entries for word in entry["words"]]
    assert {code for code, _, _ in words} <= declared().keys()
    assert len({(code, word) for code, word, _ in words}) == len(words)
    guest = ON + "[RULES]\n" + "".join(SPELLED[code].format(word) + "\n" for code, word, _ in words)
    found = check(make_root({"100.conf": VM, "100.fw": guest})).diagnostics
    hints = {one.span.line: one.hint for one in found}
    for number, (_, word, hint) in enumerate(words, 4):
        assert hints.get(number) == hint.format(action="ACCEPT", word=word), word


# A line of a section of cluster.fw, and a part of the hint.
LINES = [
    ("RULES", "iptables -A INPUT -s ::1 -p tcp --dport 22 -j ACCEPT", "IN ACCEPT -source ::1 -p tcp -dport 22"),
    ("RULES", "-A FORWARD -d 192.0.2.1 -j DROP", "FORWARD DROP -dest 192.0.2.1"),
    ("RULES", "ip6tables -I OUTPUT -p udp --dport 53 -j LOG", "OUT ACCEPT -p udp -dport 53"),
    ("RULES", "ufw allow from 192.0.2.0/24 to any port 22", "ufw"),
    ("RULES", "sudo ufw allow 22/tcp", "ufw"),
    ("RULES", "firewall-cmd --add-service=ssh", "firewalld"),
    ("RULES", "nft add rule inet filter input tcp dport 22 accept", "nft"),
    ("RULES", "add rule inet filter input tcp dport 22 accept", "nft"),
    ("RULES", "ip saddr 192.0.2.1 tcp dport 22 accept", "nft"),
    ("RULES", "tcp dport 22 accept", "nft"),
    ("RULES", "table inet filter {", "nft"),
    ("RULES", "allow ssh from 192.0.2.1", "IN ACCEPT"),
    ("RULES", "ACCEPT tcp 22", "IN ACCEPT"),
    ("RULES", "DROP from 10.0.0.0/8 to 10.1.0.0/16 proto tcp dport 22", "lines begin with IN, OUT, FORWARD or GROUP"),
    ("RULES", "block all", "IN DROP"),
    ("RULES", "INPUT ACCEPT -p tcp -dport 22", "write IN"),
    ("RULES", "please let me in", "lines begin with IN, OUT, FORWARD or GROUP"),
    ("RULES", "policy_in: DROP", "[OPTIONS]"),
    ("RULES", "enable: 1", "[OPTIONS]"),
    ("RULES", "192.0.2.0/24", "[IPSET name]"),
    ("RULES", "IN SHS(ACCEPT)", "`SSH`"),
    ("RULES", "IN 8006(ACCEPT)", "ACCEPT -p tcp -dport 8006"),
    ("RULES", "IN 80,443(DROP)", "DROP -p tcp -dport 80,443"),
    ("RULES", "IN ACCEPT -p sctp -dport domain", "listed for"),
    ("group web", "iptables -A INPUT -j DROP", "IN DROP"),
    ("OPTIONS", "IN SSH(ACCEPT)", "[RULES]"),
    ("OPTIONS", "policy_in = DROP", "policy_in: DROP"),
    ("OPTIONS", "iptables -P INPUT DROP", "iptables"),
    ("IPSET office", "IN SSH(ACCEPT)", "[RULES]"),
    ("IPSET office", "policy_in: DROP", "[OPTIONS]"),
    ("ALIASES", "IN SSH(ACCEPT) -source 192.0.2.1", "[RULES]"),
    ("ALIASES", "office: 192.0.2.1", "office 192.0.2.1"),
    ("ALIASES", "office = 192.0.2.1", "office 192.0.2.1"),
    ("ALIASES", "policy_in: DROP", "[OPTIONS]"),
]  # fmt: skip


@pytest.mark.parametrize(("section", "line", "hint"), LINES, ids=[f"{case[0]}: {case[1][:40]}" for case in LINES])
def test_lines(make_root: MakeRoot, section: str, line: str, hint: str) -> None:
    (problem,) = problems(make_root, f"[{section}]\n{line}\n")
    assert problem.hint is not None
    assert hint in problem.hint


def test_a_name_that_is_defined_below_its_use(make_root: MakeRoot) -> None:
    rules = "[RULES]\nIN ACCEPT -source +office\nIN ACCEPT -source lan\n"
    found = problems(make_root, f"{rules}[IPSET office]\n192.0.2.1\n[ALIASES]\nlan 192.0.2.1\n")
    assert [(one.code, one.hint) for one in found] == [
        ("unknown-ipset", "it is defined below, in line 6: move that section above this line"),
        ("unknown-alias", "it is defined below, in line 9: move that section above this line"),
    ]


def test_an_alias_written_as_an_ipset_and_the_other_way_round(make_root: MakeRoot) -> None:
    names = "[ALIASES]\nlan 192.0.2.1\n[IPSET office]\n192.0.2.1\n[IPSET all]\noffice\n"
    found = problems(make_root, f"{names}[RULES]\nIN ACCEPT -source +lan\nIN ACCEPT -dest dc/office\n")
    assert [one.hint for one in found] == [
        "`office` is an ipset, and ipsets hold addresses and aliases only",
        "`lan` is an alias: write `lan`",
        "`office` is an ipset: write `+dc/office`",
    ]


def test_hints_do_not_take_a_name_for_another_language(make_root: MakeRoot) -> None:
    found = problems(make_root, "[ALIASES]\nin 192.0.2.300\nenable 192.0.2.300\n")
    assert [one.hint for one in found] == ["each part of an IPv4 address lies between 0 and 255"] * 2


def test_braces_and_patterns_of_a_file_are_only_text(make_root: MakeRoot) -> None:
    found = problems(make_root, "[RULES]\niptables -A INPUT -s {0} -s {action.__class__} -j ACCEPT\nIN {0}(ACCEPT)\n")
    assert "-source {0} -source {action.__class__}" in (found[0].hint or "")
    assert len(found) == 2
