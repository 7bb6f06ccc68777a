"""Lowering of the IR to nft: small configurations, each with the chains that show its feature.

Each golden file holds the lines of the IR, then the lines of nft. ``pytest tests/backends_nft --regenerate`` writes
them again; read the difference before committing it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pvefw_nft.backends.nft import NftBackend
from pvefw_nft.ir.pretty import pretty
from tests.backends_nft.show import show
from tests.support import CONTAINER, VM, check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.support import MakeRoot

ON = "[OPTIONS]\nenable: 1\n"
RULES = "[RULES]\n"
NAMES = (
    "[ALIASES]\nlan 10.0.0.0/8\n"
    "[IPSET office]\n10.1.0.0/16\n!10.1.66.0/24\n10.1.66.7\n2001:db8:1::/48\n"
    "[IPSET v4only]\n192.0.2.0/25\n192.0.2.128/25\n"
    "[IPSET nobody]\n"
)
VNET = "[OPTIONS]\nenable: 1\npolicy_forward: DROP\nlog_level_forward: info\n"

Files = dict[str, str | bytes]


def guest(rules: str, options: str = "") -> Files:
    """Return the files of guest 100 with these rules, and a cluster with some names."""
    return {"cluster": ON + NAMES, "100.conf": VM, "100.fw": ON + options + RULES + rules}


# Name of the case: the configuration, the chains of the IR that are shown, and the objects of nft.
CASES: dict[str, tuple[Files, tuple[str, ...], tuple[str, ...]]] = {
    "layout": (
        {"100.conf": VM, "100.fw": ON, "200.ct": CONTAINER, "200.fw": ON},
        ("hook", "nic", "filter PVEFW-F", "filter PVEFW-INPUT", "link PVEFW"),
        (
            "bridge chain guests",
            "bridge chain forward",
            "bridge chain link:",
            "bridge chain PVEFW-F",
            "bridge map",
            "bridge set",
            "inet chain input",
            "inet chain output",
            "inet chain forward",
        ),
    ),
    "standard-chains": (
        {
            "host": "[OPTIONS]\ntcpflags: 1\ntcp_flags_log_level: info\nsmurf_log_level: debug\n",
            "100.conf": VM,
            "100.fw": ON,
        },
        ("filter PVEFW-",),
        (
            "bridge chain PVEFW-",
            "inet chain PVEFW-Drop",
            "inet chain PVEFW-reject",
            "inet chain PVEFW-smurfs",
        ),
    ),
    "guest-defaults": (
        {"100.conf": VM, "100.fw": ON},
        ("filter tap", "link tap"),
        ("bridge chain tap", "bridge chain link/tap"),
    ),
    "stateless": (
        {
            "100.conf": VM,
            "100.fw": ON + "ipfilter: 1\n[IPSET ipfilter-net0]\n10.0.0.1\n2001:db8::/64\n",
            "200.ct": CONTAINER,
            "200.fw": ON + "macfilter: 0\n",
        },
        ("hook stateless", "nic", "stateless"),
        ("bridge chain stateless", "bridge set ports", "bridge map guests-stateless"),
    ),
    "ports-and-addresses": (
        guest(
            "IN ACCEPT -p tcp -dport 80,443,8000:8100 -sport 1024:65535\n"
            "IN DROP -source 10.0.0.1,10.0.0.2,10.1.0.0/16\n"
            "IN DROP -source 10.0.0.1-10.0.0.9 -dest 10.9.0.0/16\nIN ACCEPT -p sctp -dport 36412\nIN ACCEPT -p gre\n"
            "IN DROP -source 2001:db8::1-2001:db8::9\nIN REJECT -dest lan\n"
        ),
        ("filter tap100i0-IN",),
        ("bridge chain tap100i0-IN",),
    ),
    "icmp": (
        guest(
            "IN ACCEPT -p icmp -icmp-type host-unreachable\nIN DROP -p icmp\n"
            "IN ACCEPT -p icmpv6 -icmp-type echo-request\n"
            "OUT DROP -p icmp -icmp-type any\nIN Ping(ACCEPT)\n"
        ),
        ("filter tap100i0-IN", "filter tap100i0-OUT"),
        ("bridge chain tap100i0-IN", "bridge chain tap100i0-OUT"),
    ),
    "sets": (
        guest(
            "IN ACCEPT -source +office -p tcp -dport 22\nIN ACCEPT -source +v4only -p tcp -dport 22\n"
            "IN DROP -source +nobody -p tcp -dport 22\n"
        ),
        ("set", "filter tap100i0-IN"),
        ("bridge set", "bridge chain tap100i0-IN"),
    ),
    "logging": (
        guest("IN DROP -p tcp -dport 23 -log info\n", "log_level_in: warning\npolicy_in: REJECT\n"),
        ("filter tap100i0-IN",),
        ("bridge chain tap100i0-IN",),
    ),
    "logging-without-limit": (
        {
            "cluster": ON + "log_ratelimit: enable=0\n",
            "100.conf": VM,
            "100.fw": ON + "log_level_in: warning\n" + RULES + "IN DROP -p tcp -dport 23 -log info\n",
        },
        ("filter tap100i0-IN",),
        ("bridge chain tap100i0-IN",),
    ),
    "groups": (
        {
            "cluster": ON
            + RULES
            + "GROUP admin -i vmbr0\n[group web]\nIN HTTP(ACCEPT)\n[group admin]\nIN SSH(ACCEPT)\nOUT DROP -p udp\n",
            "100.conf": VM,
            "100.fw": ON + RULES + "GROUP web -i net0\nGROUP admin\n",
        },
        ("filter GROUP", "filter tap", "filter PVEFW-HOST"),
        ("bridge chain GROUP", "inet chain GROUP", "bridge chain tap", "inet chain PVEFW-HOST"),
    ),
    "ipfilter": (
        {
            "cluster": ON,
            "200.ct": CONTAINER,
            "200.fw": ON + "ipfilter: 1\n[IPSET ipfilter-net0]\n10.0.0.0/29\n!10.0.0.4\n",
        },
        ("set 200", "filter veth200i0-OUT", "link veth"),
        ("bridge set PVEFW-200", "bridge chain veth200i0-OUT", "bridge chain link/veth"),
    ),
    "layer2": (
        {"100.conf": VM, "100.fw": ON + "layer2_protocols: ARP,802_1Q,IPX\n"},
        ("link",),
        ("bridge chain link", "bridge map guests-link"),
    ),
    "ips": (
        {
            "100.conf": VM,
            "100.fw": ON + "ips: 1\nips_queues: 2:4\npolicy_in: ACCEPT\n" + RULES + "IN ACCEPT -p tcp -dport 22\n",
            "101.conf": VM.replace("01,", "03,"),
            "101.fw": ON + "ips: 1\n",
            "102.conf": VM.replace("01,", "04,"),
            "102.fw": ON + "ips: 1\n",
        },
        ("filter PVEFW-FORWARD", "filter PVEFW-IPS", "filter tap100i0-IN"),
        ("bridge chain PVEFW-FORWARD", "bridge chain PVEFW-IPS", "bridge chain tap100i0-IN", "inet chain forward"),
    ),
    "zones": (
        {"100.conf": VM, "100.fw": ON, "101.conf": VM, "200.ct": CONTAINER, "200.fw": ON},
        ("zone",),
        ("bridge chain zones", "inet chain nat-"),
    ),
    "synflood": (
        {"host": "[OPTIONS]\nprotection_synflood: 1\n", "100.conf": VM, "100.fw": ON},
        ("raw",),
        ("bridge chain raw", "bridge set sources", "inet chain raw", "inet set sources"),
    ),
    "helpers": (
        {"host": "[OPTIONS]\nnf_conntrack_helpers: ftp,irc,tftp\n"},
        ("raw",),
        ("bridge helper", "bridge chain helpers", "inet helper", "inet chain helpers"),
    ),
    "blacklist": (
        {
            "cluster": ON + "[IPSET blacklist]\n192.0.2.0/24\n",
            "host": "[OPTIONS]\nlog_level_out: info\n",
            "100.conf": VM,
            "100.fw": ON,
        },
        ("filter PVEFW-FWBR-IN", "filter PVEFW-blacklist"),
        ("bridge chain PVEFW-FWBR-IN", "bridge chain PVEFW-blacklist", "inet chain PVEFW-blacklist"),
    ),
    "allow-invalid": (
        {"host": "[OPTIONS]\nnf_conntrack_allow_invalid: 1\n", "100.conf": VM, "100.fw": ON},
        ("filter PVEFW-FORWARD",),
        ("bridge chain PVEFW-FORWARD", "bridge chain forward", "inet chain forward"),
    ),
    "host-disabled": (
        {"host": "[OPTIONS]\nenable: 0\n"},
        ("filter PVEFW-INPUT", "filter PVEFW-OUTPUT"),
        ("inet chain input", "inet chain output", "inet chain forward"),
    ),
    "host-interfaces": (
        {"cluster": ON + RULES + "IN ACCEPT -i vmbr0 -p tcp -dport 22\nOUT DROP -i eth+ -p udp\n"},
        ("filter PVEFW-HOST",),
        ("inet chain PVEFW-HOST",),
    ),
    "forward": (
        {
            "cluster": "[OPTIONS]\nenable: 1\npolicy_forward: DROP\n"
            + RULES
            + "FORWARD ACCEPT -source 10.0.0.0/8 -i vmbr0\nFORWARD REJECT -p tcp -dport 25\nGROUP routed\n"
            + "[group routed]\nFORWARD SSH(ACCEPT)\n",
        },
        ("host forward", "forward"),
        ("inet chain forward", "bridge chain forward"),
    ),
    "vnets": (
        {"vnet1.vnet": VNET + RULES + "FORWARD ACCEPT -p tcp -dport 443\nFORWARD REJECT -source 10.6.6.0/24\n"},
        ("vnet", "forward"),
        ("bridge chain forward", "bridge chain vnets-", "inet chain forward"),
    ),
    "runs-of-one-key": (
        guest(
            "IN ACCEPT -p tcp -dport 22\nIN ACCEPT -p tcp -dport 80:90\nIN DROP -p tcp -dport 85:95\n"
            "IN REJECT -p tcp -dport 100\nIN ACCEPT -p tcp -dport 100\nIN ACCEPT -p tcp -dport 101\n"
            "IN DROP -p udp -dport 53 -log info\nIN DROP -p udp -dport 54\n"
        ),
        ("filter tap100i0-IN",),
        ("bridge chain tap100i0-IN",),
    ),
    "runs-of-several-keys": (
        guest(
            "IN ACCEPT -source 10.0.0.1 -p tcp -dport 22\nIN ACCEPT -source 10.0.0.2 -p tcp -dport 80\n"
            "IN ACCEPT -source 10.0.0.3 -p tcp -dport 80:90\nIN ACCEPT -p tcp -dport 53\nIN DROP -p udp -dport 5353\n"
        ),
        ("filter tap100i0-IN",),
        ("bridge chain tap100i0-IN",),
    ),
    "every-address": (
        guest("IN DROP -source 0.0.0.0/0 -p tcp -dport 25\nIN DROP -source 10.0.0.0/8 -p tcp -dport 25\n"),
        ("filter tap100i0-IN",),
        ("bridge chain tap100i0-IN",),
    ),
    "corosync": (
        {
            "corosync": "totem {\n  transport: udp\n}\nnodelist {\n"
            "  node {\n    name: n1\n    ring0_addr: 10.0.0.1\n  }\n"
            "  node {\n    name: n2\n    ring0_addr: 10.0.0.2\n  }\n}\n"
        },
        ("filter PVEFW-HOST",),
        ("inet chain PVEFW-HOST",),
    ),
    "disabled": ({"cluster": "[OPTIONS]\nenable: 0\n", "100.conf": VM, "100.fw": ON}, ("",), ("",)),
}


@pytest.mark.parametrize("name", CASES)
def test_feature(name: str, make_root: MakeRoot, golden: Callable[[str], None]) -> None:
    files, chains, objects = CASES[name]
    checked = check(make_root(files))
    assert [finding.message for finding in checked.diagnostics] == []
    before = list(shown(pretty(checked.ruleset), chains))
    after = list(show("".join(NftBackend().lower(checked.ruleset).json()), objects))
    golden("\n".join([*before, "", *after, ""]))


def shown(lines: Iterable[str], wanted: tuple[str, ...]) -> Iterator[str]:
    """Yield the lines that begin with a wanted word, and the rules below them."""
    showing = False
    for line in lines:
        if not line.startswith(" "):
            showing = line.startswith(wanted)
        if showing:
            yield line
