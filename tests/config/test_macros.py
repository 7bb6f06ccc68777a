"""The table of macros."""

from __future__ import annotations

import pytest

from pvefw_nft.config import macros, netdb
from pvefw_nft.config.macros import MacroRule


def test_there_are_86_macros_in_alphabetical_order() -> None:
    names = macros.names()
    assert len(names) == len(set(names)) == 86
    assert list(names) == sorted(names, key=str.lower)


@pytest.mark.parametrize("name", ["SSH", "ssh", "sSh"])
def test_letter_case_does_not_matter(name: str) -> None:
    macro = macros.get(name)
    assert macro is not None
    assert macro.name == "SSH"
    assert macro.rules_v4 == macro.rules_v6 == (MacroRule("tcp", "22"),)


def test_an_unknown_name_is_none() -> None:
    assert macros.get("SSHD") is None
    assert macros.get("") is None
    assert macros.get("#") is None


def test_ports_on_both_sides() -> None:
    macro = macros.get("DHCPfwd")
    assert macro is not None
    assert macro.rules_v4 == (MacroRule("udp", dport="67:68", sport="67:68"),)


def test_several_rules_keep_their_order() -> None:
    macro = macros.get("SMB")
    assert macro is not None
    assert macro.rules_v4 == (
        MacroRule("udp", "135,445"),
        MacroRule("udp", "137:139"),
        MacroRule("udp", "1024:65535", "137"),
        MacroRule("tcp", "135,139,445"),
    )


def test_a_macro_with_rules_of_its_own_for_ipv6() -> None:
    macro = macros.get("Ping")
    assert macro is not None
    assert macro.rules_v4 == (MacroRule("icmp", "echo-request"),)
    assert macro.rules_v6 == (MacroRule("icmpv6", "echo-request"),)


@pytest.mark.parametrize("name", ["DHCPv6", "NeighborDiscovery"])
def test_macros_of_ipv6_only(name: str) -> None:
    macro = macros.get(name)
    assert macro is not None
    assert macro.rules_v4 == ()
    assert macro.rules_v6 != ()


def test_every_rule_can_be_spelled_by_the_tools() -> None:
    for name in macros.names():
        macro = macros.get(name)
        assert macro is not None
        for version, rules in ((4, macro.rules_v4), (6, macro.rules_v6)):
            for rule in rules:
                assert rule.proto.isdigit() or netdb.protocol(rule.proto), (name, rule)
                if rule.proto in ("icmp", "icmpv6"):
                    assert rule.proto == ("icmp" if version == 4 else "icmpv6"), (name, rule)
                    assert rule.dport is not None, name
                    assert netdb.icmp_type(version, rule.dport), (name, rule)
                elif rule.dport is not None:
                    assert rule.proto in ("tcp", "udp"), (name, rule)
                    assert set(rule.dport) <= set("0123456789:,"), (name, rule)
