"""The meaning of configurations: the chains of the IR that a feature makes, as text in golden files.

``pytest tests/ir --regenerate`` writes the files again; read the difference before committing it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pvefw_nft.ir.nodes import Layer
from pvefw_nft.ir.pretty import pretty
from tests.support import CONTAINER, VM, check

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support import MakeRoot

ON = "[OPTIONS]\nenable: 1\n"
NAMES = "[ALIASES]\nlan 10.0.0.0/8\nlan6 2001:db8::/32\n[IPSET office]\n10.1.0.0/16\n!10.1.66.0/24\n2001:db8:1::/48\n"
COROSYNC = (
    "totem {\n  transport: udp\n}\nnodelist {\n"
    "  node {\n    name: n1\n    ring0_addr: 10.0.0.1\n  }\n  node {\n    name: n2\n    ring0_addr: 10.0.0.2\n  }\n}\n"
)

# Name of the case: the configuration, and which chains (by the beginning of their names) and lines are shown.
CASES: dict[str, tuple[dict[str, str | bytes], tuple[str, ...]]] = {
    "standard-chains": ({}, ("filter PVEFW-",)),
    "guest-defaults": ({"100.conf": VM, "100.fw": ON}, ("filter tap", "link", "nic", "filter PVEFW-F")),
    "guest-options": (
        {
            "100.conf": VM,
            "100.fw": ON + "dhcp: 0\nndp: 0\nmacfilter: 0\nradv: 1\npolicy_in: REJECT\npolicy_out: DROP\n"
            "log_level_in: info\nlog_level_out: debug\n",
        },
        ("filter tap", "link tap"),
    ),
    "rules": (
        {
            "cluster": ON + NAMES,
            "100.conf": VM,
            "100.fw": ON + "[RULES]\nIN SSH(ACCEPT) -source lan\nIN DNS(DROP) -source +office -log info\n"
            "IN Ping(ACCEPT)\nIN ACCEPT -source 10.0.0.1-10.0.0.9 -p tcp -dport 80,443 -sport 1024:65535\n"
            "OUT REJECT -dest lan6 -p icmpv6 -icmp-type echo-request\nIN ACCEPT -i net1\nIN ACCEPT -p icmp -dport 8\n",
        },
        ("filter tap", "set"),
    ),
    "positional": (
        {
            "cluster": ON + NAMES + "[group web]\nIN ACCEPT - - tcp 80 -\n",
            "100.conf": VM,
            "100.fw": ON + "[RULES]\nIN SSH(ACCEPT) net0 lan\nIN ACCEPT - - - udp - 53\nGROUP web net0\n",
        },
        ("filter tap100i0-IN", "filter GROUP"),
    ),
    "groups": (
        {
            "cluster": ON
            + "[group web]\nIN HTTP(ACCEPT)\nOUT REJECT -p udp\n[group none]\n[RULES]\nGROUP web -i vmbr0\n",
            "100.conf": VM,
            "100.fw": ON + "[RULES]\nGROUP web\nGROUP none\n",
        },
        ("filter tap", "filter GROUP", "filter PVEFW-HOST"),
    ),
    "ipfilter": (
        {"200.ct": CONTAINER, "200.fw": ON + "ipfilter: 1\n[IPSET ipfilter-net0]\n10.0.0.7\n2001:db8::7\n"},
        ("filter veth200i0-OUT", "link veth", "set"),
    ),
    "ips": (
        {"100.conf": VM, "100.fw": ON + "ips: 1\nips_queues: 1:3\npolicy_in: ACCEPT\n[RULES]\nIN SSH(ACCEPT)\n"},
        ("filter tap100i0-IN", "filter PVEFW-IPS", "filter PVEFW-FORWARD"),
    ),
    "layer2": ({"100.conf": VM, "100.fw": ON + "layer2_protocols: ARP,802_1Q\n"}, ("link",)),
    "host": (
        {
            "cluster": ON + "policy_out: REJECT\n[IPSET blacklist]\n203.0.113.0/24\n[RULES]\nIN SSH(ACCEPT) -i vmbr0\n",
            "host": "[OPTIONS]\ntcpflags: 1\nlog_level_in: info\nlog_level_out: err\n"
            "[RULES]\nOUT DROP -i eth0 -p tcp\n",
            "corosync": COROSYNC,
        },
        ("filter PVEFW-HOST", "filter PVEFW-INPUT", "filter PVEFW-OUTPUT", "filter PVEFW-blacklist", "set", "hook"),
    ),
    "raw": (
        {"host": "[OPTIONS]\nprotection_synflood: 1\nnf_conntrack_helpers: ftp irc\n"},
        ("raw", "hook raw"),
    ),
    "forward": (
        {
            "cluster": ON
            + "policy_forward: DROP\n[group transit]\nFORWARD ACCEPT -p tcp\n[RULES]\nGROUP transit -i vmbr0\n",
            "host": "[OPTIONS]\nlog_level_forward: info\n[RULES]\nFORWARD REJECT -p udp\n",
            "vnet1.vnet": ON + "policy_forward: DROP\n[RULES]\nFORWARD ACCEPT -p tcp -dport 22\n",
        },
        ("forward", "host forward", "vnet"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_build(make_root: MakeRoot, golden: Callable[[str], None], case: str) -> None:
    files, shown = CASES[case]
    checked = check(make_root(files))
    assert checked.diagnostics == ()
    keep = False
    lines = []
    for line in pretty(checked.ruleset):
        if not line.startswith("  "):
            keep = line.startswith(shown)
        if keep:
            lines.append(line)
    golden("\n".join(lines) + "\n")


def test_disabled(make_root: MakeRoot) -> None:
    assert list(pretty(check(make_root({"cluster": ""})).ruleset)) == ["disabled"]


def test_the_longest_name_of_a_group_fits_into_the_names_of_its_chains(make_root: MakeRoot) -> None:
    name = "g" * 18
    cluster = f"{ON}[group {name}]\nIN ACCEPT\nOUT ACCEPT\nFORWARD ACCEPT\n[RULES]\nGROUP {name}\n"
    chains = check(make_root({"cluster": cluster})).ruleset.chains
    assert len([chain for layer in chains.values() for chain in layer if name in chain]) == 3


def test_rules_that_all_guests_share_are_one_object(make_root: MakeRoot) -> None:
    files: dict[str, str | bytes] = {"100.conf": VM, "100.fw": ON, "101.conf": VM, "101.fw": ON}
    chains = check(make_root(files)).ruleset.chains[Layer.FILTER]
    first, second = chains["tap100i0-IN"], chains["tap101i0-IN"]
    same = [a is b for a, b in zip(first.rules, second.rules, strict=True)]
    assert same.count(True) == len(first.rules) - 3  # all but the connmark and the policy
