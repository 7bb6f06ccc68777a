"""The content of an ipset, and the packets that a rule with it matches."""

from __future__ import annotations

import pytest

from pvefw_nft.verify.readers.shared import RulesetError
from tests.verify.probes import matches, packet, xtables_rule

NETS = """create x hash:net family inet hashsize 64 maxelem 64 bucketsize 12
add x 10.0.0.0/8
add x 10.1.0.0/16 nomatch
add x 10.1.2.0/24
add x 10.1.2.3 nomatch
add x 192.168.1.1
"""


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("10.0.0.1", True),
        ("10.1.0.1", False),
        ("10.1.2.1", True),
        ("10.1.2.3", False),
        ("10.1.2.4", True),
        ("10.2.0.0", True),
        ("11.0.0.0", False),
        ("192.168.1.1", True),
        ("192.168.1.2", False),
    ],
)
def test_the_most_specific_entry_decides(address: str, inside: bool) -> None:
    member = xtables_rule("-m set --match-set x src -j ACCEPT", sets=NETS)
    other = xtables_rule("-m set ! --match-set x dst -j ACCEPT", sets=NETS)
    assert matches(member, packet(ip_saddr=address)) is inside
    assert matches(other, packet(ip_daddr=address)) is not inside


def test_a_set_of_the_other_family_matches_nothing() -> None:
    sets = "create x hash:net family inet6\nadd x fe80::/10\n"
    rule = xtables_rule("-m set --match-set x src -j ACCEPT", sets=sets)
    assert not matches(rule, packet(ip_saddr="10.0.0.1"))
    rule = xtables_rule("-m set --match-set x src -j ACCEPT", sets=sets, version=6)
    assert matches(rule, packet(ip6_saddr="fe80::1"))


def test_addresses_with_ports() -> None:
    sets = "create x hash:ip,port family inet\nadd x 10.0.0.1,tcp:80\nadd x 10.0.0.2,udp:53-54\n"
    rule = xtables_rule("-m set --match-set x dst,dst -j ACCEPT", sets=sets)
    assert matches(rule, packet(ip_daddr="10.0.0.1", l4proto=6, dport=80))
    assert matches(rule, packet(ip_daddr="10.0.0.2", l4proto=17, dport=54))
    assert not matches(rule, packet(ip_daddr="10.0.0.1", l4proto=17, dport=80))


def test_holes_in_a_set_of_two_dimensions() -> None:
    sets = "create x hash:net,port family inet\nadd x 10.0.0.0/8,tcp:80\nadd x 10.1.0.0/16,tcp:80 nomatch\n"
    rule = xtables_rule("-m set --match-set x src,dst -j ACCEPT", sets=sets)
    assert matches(rule, packet(ip_saddr="10.0.0.1", l4proto=6, dport=80))
    assert not matches(rule, packet(ip_saddr="10.1.0.1", l4proto=6, dport=80))


def test_a_list_of_sets_is_their_union() -> None:
    sets = "create a hash:ip\nadd a 10.0.0.1\ncreate b hash:ip\nadd b 10.0.0.2\ncreate x list:set\nadd x a\nadd x b\n"
    rule = xtables_rule("-m set --match-set x src -j ACCEPT", sets=sets)
    assert [n for n in range(4) if matches(rule, packet(ip_saddr=f"10.0.0.{n}"))] == [1, 2]


def test_swap_and_destroy_as_an_update_does_them() -> None:
    sets = (
        "create x hash:net\nadd x 10.0.0.1\ncreate x_swap hash:net\nadd x_swap 10.0.0.2\nswap x_swap x\n"
        "flush x_swap\ndestroy x_swap\n"
    )
    rule = xtables_rule("-m set --match-set x src -j ACCEPT", sets=sets)
    assert [n for n in range(4) if matches(rule, packet(ip_saddr=f"10.0.0.{n}"))] == [2]


def test_entries_with_timeouts_and_comments() -> None:
    sets = 'create x hash:ip timeout 600 counters comment\nadd x 10.0.0.1 timeout 30 packets 5 comment "a; b"\n'
    rule = xtables_rule("-m set --match-set x src -j DROP", sets=sets)
    assert matches(rule, packet(ip_saddr="10.0.0.1", expired_after_a_timeout=0))
    assert not matches(rule, packet(ip_saddr="10.0.0.1", expired_after_a_timeout=1))


def test_a_set_that_is_not_there_is_an_error() -> None:
    with pytest.raises(RulesetError, match="no ipset 'y'"):
        xtables_rule("-m set --match-set y src -j ACCEPT", sets=NETS)


def test_a_bad_line_is_an_error_with_its_number() -> None:
    with pytest.raises(RulesetError, match="line 3"):
        xtables_rule("-j ACCEPT", sets="create x hash:net\nremove x 10.0.0.1\n")
