"""Rules of random rulesets are judged alike with the walks of one NIC for all of a key, and with the walks of each NIC.

The guests' rules come from a few shapes with a few numbers, so that many guests have one key, others overlap in another
way, and some differ in what only one of them has: a rule, an address with a meaning, a line, a prefix, a chain.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

from pvefw_nft.verify.network.path import Link, Nic, Topology
from pvefw_nft.verify.prove import dead_rules
from pvefw_nft.verify.prove.dead_rules import analyse
from pvefw_nft.verify.prove.network import Side
from pvefw_nft.verify.prove.walk import Walk
from pvefw_nft.verify.prove.walk_keys import WalkKeys
from pvefw_nft.verify.readers.files import Text, read_ruleset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

RULESETS = max(12, int(os.environ.get("PVEFW_RANDOM_RULESETS", "60")) // 2)
GUESTS = range(100, 110)
UNFILTERED, OTHER_BRIDGE = 103, 104
TOPOLOGY = Topology(
    nics=tuple(
        Nic(
            f"vm{vmid}",
            vmid,
            0,
            f"tap{vmid}i0",
            "vmbr1" if vmid == OTHER_BRIDGE else "vmbr0",
            filtered=vmid != UNFILTERED,
        )
        for vmid in GUESTS
    ),
    links=(
        Link("vmbr0", is_bridge=True, ports=("eth0",)),
        Link("vmbr1", is_bridge=True, ports=("eth1",)),
    ),
)
RULES = (
    "-p tcp --dport {ports} -s {net} -j {end}",
    "-p tcp --dport {port} -j {end}",
    "-p tcp --dport {ports} -j {end}",
    "-p udp --sport {port} -d {net} -j {end}",
    "-s {net} -j {end}",
    "! -s {net} -p tcp --dport {port} -j {end}",
    "-m addrtype --dst-type MULTICAST -d {net} -j {end}",
    "-m pkttype --pkt-type broadcast -d {net} -j {end}",
    "-m mac --mac-source {mac} -j {end}",
    "-m mac ! --mac-source {mac} -p tcp -j {end}",
    "-m conntrack --ctstate ESTABLISHED -p tcp --dport {port} -j {end}",
    "-p tcp --dport {port} -m physdev --physdev-out {interface} -j {end}",
    "-m physdev --physdev-is-bridged ! --physdev-out {interface} -s {net} -j {end}",
    "-p tcp --dport {port} -j MARK --set-xmark {mark}",
    "-m mark --mark 0x1/0x1 -p tcp --dport {port} -j {end}",
    "-j CONNMARK --set-mark {number}",
    "-p udp --dport {port} -j CONNMARK --set-xmark {number}/0xffff",
    "-m connmark --mark {number} -p udp --dport {port} -j {end}",
    "-m connmark ! --mark {number} -p udp -j {end}",
    "-p tcp --dport {ports} -m limit --limit 1/sec -j {end}",
    "-p tcp --dport {port} -m limit --limit 1/sec -j {end}",
    "-p tcp --dport {port} -m limit --limit 1/sec -j LOG --log-prefix {prefix}",
    "-p tcp --dport {ports} -j NFLOG --nflog-prefix {prefix}",
    "-p udp --dport {port} -g {chain}",
    "-p tcp --dport {port} -j {chain}",
    "-j {chain}",
    "-j Z",
)


class Maker:
    """Makes a ruleset of guests that have the rules of two shapes; some guests differ in a number, a line or a rule."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        shapes = [self.chance.choices(RULES, k=self.chance.randint(3, 6)) for _ in range(2)]
        self.shapes = [[(rule, self.chance.choice(("ACCEPT", "DROP"))) for rule in shape] for shape in shapes]
        self.same_line = [[self.chance.random() < 0.3 for _ in shape] for shape in shapes]
        self.has_lines = self.chance.random() < 0.7
        self.is_odd = False

    def seldom(self) -> bool:
        """Return whether something is other than with most guests."""
        return self.is_odd and self.chance.random() < 0.04

    def usual(self, number: object, *others: object) -> str:
        """Return the guest's number, or seldom one of the others."""
        return str(self.chance.choice(others) if self.seldom() else number)

    def numbers(self, vmid: int) -> dict[str, str]:
        """Return the numbers of a rule."""
        return {
            "port": self.usual(vmid, "80", "100", "1:1023", "0:65535", vmid + 1),
            "ports": self.usual(f"{vmid}:{vmid + 9}", "80", "1:1023", "0:65535", f"{vmid + 1}:{vmid + 9}"),
            "net": f"10.0.{self.usual(f'{vmid}.0/24', '100.0/24', '0.0/16', '0.0/8', f'{vmid}.1')}",
            "mac": self.usual(f"bc:24:11:00:00:{vmid - 90:02x}", "ff:ff:ff:ff:ff:ff"),
            "interface": f"tap{self.usual(vmid, 100, 101)}i0",
            "mark": self.usual("0x1/0x1", "0x2/0x2", "0x0/0x1"),
            "number": self.usual(vmid, 0, 1, 100),
            "prefix": self.usual(vmid, "a"),
            "chain": self.usual(f"X{vmid}", "X", "Y"),
        }

    def rules(self, vmid: int) -> Iterator[tuple[str, str]]:
        """Yield a guest's rules, each with its line; empty: it has none."""
        self.is_odd = self.chance.random() < 0.5
        shape = int(self.chance.random() < 0.3)
        line = 1
        for (rule, end), same in zip(self.shapes[shape], self.same_line[shape], strict=True):
            line += same is self.seldom()
            verdict = self.usual(end, "ACCEPT", "DROP")
            origin = self.usual(f"{vmid}.fw:{line}", "", "standard") if self.has_lines else ""
            yield rule.format(**self.numbers(vmid), end=verdict), origin


def ruleset(maker: Maker) -> Side:
    """Return a ruleset of iptables, and the lines of most of its rules."""
    lines = ["# Generated by iptables-save", "*filter", ":FORWARD ACCEPT [0:0]"]
    lines += [f":{name} - [0:0]" for name in (*"XYZ", *(f"{kind}{vmid}" for vmid in GUESTS for kind in "GX"))]
    lines += ["-A X -p udp -j ACCEPT", "-A Y -s 10.0.0.0/8 -j DROP"]
    lines += ["-A Z -p tcp --dport 100 -j ACCEPT", "-A Z -p tcp --dport 1:1023 -j RETURN"]
    lines += ["-A Z -s 10.0.100.0/24 -j DROP"]
    origins = {}
    for vmid in GUESTS:
        lines.append(f"-A FORWARD -m physdev --physdev-is-bridged --physdev-out tap{vmid}i0 -j G{vmid}")
        lines.append(f"-A X{vmid} -p udp --dport {vmid} -j DROP")
        for number, (rule, origin) in enumerate(maker.rules(vmid), 1):
            lines.append(f"-A G{vmid} {rule}")
            if origin:
                origins["iptables", "filter", f"G{vmid}", number] = origin
    lines += ["-A FORWARD -m mark --mark 0x1/0x1 -j DROP", "COMMIT", ""]
    return Side("random", read_ruleset([Text("random", "\n".join(lines))], origins=origins), TOPOLOGY)


def test_findings_are_those_of_walks_of_each_nic(
    spy: Callable[[object, str], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    walks: Counter[bool] = Counter()
    calls = spy(Walk, "run")
    found = 0
    for seed in range(RULESETS):
        side = ruleset(Maker(seed))
        calls.clear()
        shared = analyse(side)
        walks[True] += len(calls)
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(WalkKeys, "of", lambda *_: None)
            patch.setattr(dead_rules, "shape_of", lambda *_: None)
            each = analyse(side)
        walks[False] += len(calls)
        assert shared == each, seed
        found += len(shared.found)
    assert found > RULESETS
    assert walks[True] < walks[False] * 3 // 4
