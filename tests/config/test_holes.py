"""The holes of the reference: each test shows a hole, and that pvefw closes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pvefw_nft.ir.nodes import (
    ArpSender,
    Drop,
    InSet,
    Jump,
    Layer,
    PortRange,
    Ports,
    Return,
    Rule,
    SetKey,
    Side,
    SourceMac,
)
from tests.support import CONTAINER, VM, check

if TYPE_CHECKING:
    from tests.support import MakeRoot

ON = "[OPTIONS]\nenable: 1\n"


def rules(
    make_root: MakeRoot, files: dict[str, str | bytes], chain: str, layer: Layer = Layer.FILTER
) -> tuple[Rule, ...]:
    return check(make_root(files)).ruleset.chains[layer][chain].rules


def test_a_bad_rule_in_a_group_leaves_the_guests_their_chains(make_root: MakeRoot) -> None:
    files: dict[str, str | bytes] = {
        "cluster": ON + "[group web]\nIN ACCEPT -source +nosuch\nIN HTTP(ACCEPT)\n",
        "100.conf": VM,
        "100.fw": ON + "[RULES]\nGROUP web\nIN DROP\n",
    }
    guest = rules(make_root, files, "tap100i0-IN")
    assert any(rule.action == Jump("GROUP-web-IN") for rule in guest)
    assert guest[-1].action == Drop()


def test_a_guest_that_uses_an_unknown_group_keeps_its_chains(make_root: MakeRoot) -> None:
    files: dict[str, str | bytes] = {"100.conf": VM, "100.fw": ON + "[RULES]\nGROUP nosuch\n"}
    assert rules(make_root, files, "tap100i0-IN")[-1].action == Drop()


@pytest.mark.parametrize(("option", "side"), [("-dport", Side.DESTINATION), ("-sport", Side.SOURCE)])
def test_port_0_is_port_0(make_root: MakeRoot, option: str, side: Side) -> None:
    files: dict[str, str | bytes] = {"100.conf": VM, "100.fw": f"{ON}[RULES]\nIN ACCEPT -p tcp {option} 0\n"}
    user = [rule for rule in rules(make_root, files, "tap100i0-IN") if rule.origin.line]
    assert [rule.matches[1] for rule in user] == [Ports(side, (PortRange(0, 0, "0"),))]


def test_protocol_0_is_refused(make_root: MakeRoot) -> None:
    files: dict[str, str | bytes] = {"100.conf": VM, "100.fw": ON + "[RULES]\nIN ACCEPT -p 0\n"}
    checked = check(make_root(files))
    assert [problem.code for problem in checked.diagnostics] == ["bad-protocol"]
    assert not any(rule.origin.line for rule in checked.ruleset.chains[Layer.FILTER]["tap100i0-IN"].rules)


def test_an_unknown_section_ends_the_one_above(make_root: MakeRoot) -> None:
    checked = check(make_root({"cluster": ON + "[RULES]\nIN DROP\n[RULEZ]\nIN ACCEPT\n"}))
    assert [problem.code for problem in checked.diagnostics] == ["unknown-section"]
    assert len(checked.node.cluster.rules) == 1


@pytest.mark.parametrize("mac", ["BC:24:11:00:00", "BC-24-11-00-00-01", "zz:24:11:00:00:01", ""])
def test_a_nic_with_a_bad_mac_is_an_error_and_sends_nothing(make_root: MakeRoot, mac: str) -> None:
    checked = check(make_root({"100.conf": f"net0: virtio={mac},bridge=vmbr0,firewall=1\n", "100.fw": ON}))
    assert [problem.code for problem in checked.diagnostics] == ["bad-mac"]
    out = checked.ruleset.chains[Layer.FILTER]["tap100i0-OUT"].rules
    assert not any(isinstance(match, SourceMac) for rule in out for match in rule.matches)
    assert any(rule.matches == () and rule.action == Drop() for rule in out)
    assert checked.ruleset.chains[Layer.LINK]["tap100i0-OUT"].rules[0].action == Drop()


def test_a_nic_that_is_neither_filtered_nor_not_is_filtered(make_root: MakeRoot) -> None:
    checked = check(make_root({"100.conf": VM.replace("firewall=1", "firewall=maybe"), "100.fw": ON}))
    assert [problem.code for problem in checked.diagnostics] == ["bad-nic"]
    assert [nic.interface for nic in checked.ruleset.nics] == ["tap100i0"]


def test_an_alias_in_an_ipfilter_set_counts_for_arp(make_root: MakeRoot) -> None:
    files: dict[str, str | bytes] = {
        "100.conf": VM,
        "100.fw": ON + "[ALIASES]\nme 10.0.0.7\n[IPSET ipfilter-net0]\nme\n",
    }
    arp = rules(make_root, files, "tap100i0-OUT-ARP", Layer.LINK)
    (_, sender) = arp[0].matches
    assert isinstance(sender, ArpSender)
    assert (sender.prefix.canonical, arp[0].action) == ("10.0.0.7", Return())
    assert (arp[-1].matches, arp[-1].action) == ((), Drop())


def test_an_exclamation_mark_in_an_ipfilter_set_never_allows(make_root: MakeRoot) -> None:
    files: dict[str, str | bytes] = {
        "100.conf": VM,
        "100.fw": ON + "[IPSET ipfilter-net0]\n10.0.0.0/24\n!10.0.0.9\n",
    }
    arp = rules(make_root, files, "tap100i0-OUT-ARP", Layer.LINK)
    seen = [
        (match.prefix.canonical, rule.action) for rule in arp for match in rule.matches if isinstance(match, ArpSender)
    ]
    assert seen == [("10.0.0.9", Drop()), ("10.0.0.0/24", Return())]


def test_an_empty_ipfilter_set_allows_no_ip(make_root: MakeRoot) -> None:
    files: dict[str, str | bytes] = {"200.ct": CONTAINER, "200.fw": ON + "[IPSET ipfilter-net0]\n"}
    out = rules(make_root, files, "veth200i0-OUT")
    drop = InSet(Side.SOURCE, SetKey(200, "ipfilter-net0"), negated=True)
    assert any(rule.matches == (drop,) and rule.action == Drop() for rule in out)
