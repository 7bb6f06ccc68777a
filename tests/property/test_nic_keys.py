"""Random rulesets are judged alike with one proof for all NICs of a key, and with a proof for each NIC.

The guests' rules come from a few templates with a few numbers, so that many guests have one key, others overlap in
another way, and some differ in what only one of them has: a rule, an address with a meaning, a zone, a chain.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.verify.network.path import Link, Nic, Topology
from pvefw_nft.verify.prove.compare import Options, compare
from pvefw_nft.verify.prove.network import Side
from pvefw_nft.verify.prove.nic_keys import Keys
from pvefw_nft.verify.prove.render import report_data
from pvefw_nft.verify.prove.segments import SegmentProver
from pvefw_nft.verify.readers.files import Text, read_ruleset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pvefw_nft.verify.prove.report import Report

RULESETS = max(6, int(os.environ.get("PVEFW_RANDOM_RULESETS", "60")) // 4)
GUESTS = range(100, 105)
TOPOLOGY = Topology(
    nics=tuple(
        Nic(f"vm{vmid}", vmid, 0, f"tap{vmid}i0", "vmbr1" if vmid == 104 else "vmbr0", filtered=True) for vmid in GUESTS
    ),
    links=(
        Link("vmbr0", is_bridge=True, ports=("eth0",)),
        Link("vmbr1", is_bridge=True, ports=("eth1",)),
    ),
)
XTABLES = (
    "-p tcp --dport {port} -s {net} -j {end}",
    "-p tcp --dport {port} -j {end}",
    "-p udp --sport {port} -d {net} -j {end}",
    "-s {net} -j {end}",
    "-m addrtype --dst-type MULTICAST -d {net} -j {end}",
    "-m addrtype --src-type BROADCAST -j {end}",
    "-m pkttype --pkt-type broadcast -d {net} -j {end}",
    "-m mac --mac-source {mac} -j {end}",
    "-m conntrack --ctstate ESTABLISHED -p tcp --dport {port} -j {end}",
    "-p tcp --dport {port} -m physdev --physdev-in {interface} -j {end}",
    "-m physdev --physdev-is-bridged ! --physdev-out {interface} -s {net} -j {end}",
    "-p tcp --dport {port} -j MARK --set-xmark {mark}",
    "-m mark --mark 0x1/0x1 -p tcp --dport {port} -j {end}",
    "-j CONNMARK --set-mark {vmid}",
    "-m connmark --mark {vmid} -p udp --dport {port} -j {end}",
    "-p tcp --dport {port} -m limit --limit 1/sec -j {end}",
    "-p tcp --dport {port} -m limit --limit 1/sec -j LOG --log-prefix {vmid}",
    "-p udp --dport {port} -g {chain}",
)
NFT = (
    "ip saddr {net} tcp dport {port} {end}",
    "tcp dport {{ {port}, 8080 }} {end}",
    "tcp dport != {port} ip daddr {net} {end}",
    "udp sport {port} {end}",
    "ether saddr {mac} {end}",
    "ether saddr != {mac} {end}",
    "ether daddr {mac} ip daddr {net} {end}",
    "fib daddr type multicast ip daddr {net} {end}",
    "meta pkttype broadcast ip daddr {net} {end}",
    "ct state established tcp dport {port} {end}",
    'iifname "{interface}" tcp dport {port} {end}',
    'oifname != "{interface}" ip saddr {net} {end}',
    "ip saddr {net} meta mark set meta mark | 0x1",
    "meta mark & 0x1 == 0x1 tcp dport {port} {end}",
    "ct mark set {vmid}",
    "ct mark {vmid} udp dport {port} {end}",
    "tcp dport {port} limit rate 1/second {end}",
    "tcp dport vmap {{ {port} : accept, 5000 : drop }}",
    "ip saddr vmap {{ {net} : jump {chain} }}",
    "ether type arp arp saddr ip {address} {end}",
    "udp dport {port} goto {chain}",
)


class Maker:
    """Makes a pair of rulesets: guests with the rules of a few templates, on one side in another order or changed."""

    def __init__(self, seed: int, templates: tuple[str, ...]) -> None:
        self.chance = random.Random(seed)
        self.templates = templates
        self.shapes = [self.chance.sample(templates, self.chance.randint(1, 4)) for _ in range(2)]

    def numbers(self, vmid: int) -> dict[str, object]:
        """Return a guest's numbers; those of most guests are like those of the others."""
        choice = self.chance.choice
        rare = self.chance.random() < 0.25
        return {
            "vmid": vmid,
            "port": choice(("80", "22", "1-1023")) if rare else str(vmid),
            "net": choice(("224.0.0.0/4", "255.255.255.255", "10.0.0.0/8")) if rare else f"10.0.{vmid}.0/24",
            "address": choice(("10.0.100.1", "0.0.0.0")) if rare else f"10.0.{vmid}.1",
            "mac": choice(("ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01")) if rare else f"bc:24:11:00:00:{vmid - 90:02x}",
            "interface": choice(("tap100i0", f"fwln{vmid}i0", "eth0")) if rare else f"tap{vmid}i0",
            "mark": choice(("0x2/0x2", "0x1/0x1")) if rare else "0x1/0x1",
            "chain": choice(("X", "Y")) if rare else f"X{vmid}",
        }

    def rules(self) -> Iterator[tuple[int, list[str], list[str]]]:
        """Yield each guest's rules on both sides."""
        for vmid in GUESTS:
            numbers = self.numbers(vmid)
            ends = [self.chance.choice(("ACCEPT", "DROP")) for _ in range(4)] if vmid == 102 else ["ACCEPT", "DROP"] * 2
            shape = self.chance.choice(self.shapes)
            rules = [one.format(**numbers, end=end) for one, end in zip(shape, ends, strict=False)]
            after = list(rules)
            if self.chance.random() < 0.6:
                after.reverse()
            if self.chance.random() < 0.2:
                self.change(after)
            yield vmid, rules, after

    def change(self, rules: list[str]) -> None:
        """Change one rule."""
        at = self.chance.randrange(len(rules))
        old, new = self.chance.choice((("ACCEPT", "DROP"), ("10.0.", "10.1."), ("tcp", "udp"), ("0x1", "0x3")))
        rules[at] = rules[at].replace(old, new) if old in rules[at] else rules[at].replace("DROP", "ACCEPT")


def xtables(maker: Maker) -> tuple[Side, Side]:
    """Return two rulesets of iptables."""
    own = {vmid: (before, after) for vmid, before, after in maker.rules()}
    zones = {vmid: maker.chance.choice((0, 1, vmid, vmid)) for vmid in GUESTS} if maker.chance.random() < 0.3 else {}
    sides = []
    for side, name in enumerate(("old", "new")):
        lines = ["# Generated by iptables-save", "*filter", ":FORWARD ACCEPT [0:0]", ":X - [0:0]", ":Y - [0:0]"]
        lines += [f":{kind}{vmid} - [0:0]" for vmid in GUESTS for kind in ("G", "X")]
        lines += ["-A X -p udp -j ACCEPT", "-A Y -s 10.0.0.0/8 -j DROP"]
        for vmid, of in own.items():
            lines.append(f"-A FORWARD -m physdev --physdev-is-bridged --physdev-out tap{vmid}i0 -j G{vmid}")
            lines.append(f"-A X{vmid} -p udp --dport {vmid} -j DROP")
            lines += [f"-A G{vmid} {rule.replace('1-1023', '1:1023')}" for rule in of[side]]
        lines += ["-A FORWARD -m mark --mark 0x1/0x1 -j DROP", "COMMIT"]
        if zones:
            raw = [f"-A PREROUTING -i fwbr{vmid}i0 -j CT --zone {zone}" for vmid, zone in zones.items()]
            lines += [
                "*raw",
                ":PREROUTING ACCEPT [0:0]",
                *(raw[side:] if maker.chance.random() < 0.5 else raw),
                "COMMIT",
            ]
        sides.append(Side(name, read_ruleset([Text(name, "\n".join([*lines, ""]))]), TOPOLOGY))
    return sides[0], sides[1]


def chain(name: str, *lines: str) -> str:
    """Return a chain of nft."""
    return "\n".join([f"chain {name} {{", *lines, "}"])


def nft(maker: Maker) -> tuple[Side, Side]:
    """Return two rulesets of nft."""
    own = {vmid: (before, after) for vmid, before, after in maker.rules()}
    zones = {vmid: maker.chance.choice((0, 1, vmid, vmid)) for vmid in GUESTS} if maker.chance.random() < 0.3 else {}
    sides = []
    for side, name in enumerate(("old", "new")):
        chains = [chain("X", "meta l4proto udp accept"), chain("Y", "ip saddr 10.0.0.0/8 drop")]
        for vmid, of in own.items():
            rules = [rule.replace("ACCEPT", "accept").replace("DROP", "drop") for rule in of[side]]
            chains += [chain(f"X{vmid}", f"udp dport {vmid} drop"), chain(f"G{vmid}", *rules)]
        entries = ", ".join(f'"tap{vmid}i0" : jump G{vmid}' for vmid in GUESTS)
        hook = "type filter hook {} priority {}; policy accept;".format
        chains.append(chain("f", hook("forward", 0), f"oifname vmap {{ {entries} }}", "meta mark & 0x1 == 0x1 drop"))
        if zones:
            entries = ", ".join(
                f'"{port}{vmid}i0" : {zone}' for vmid, zone in zones.items() for port in ("tap", "fwln")
            )
            chains.append(chain("z", hook("prerouting", -300), f"ct zone set iifname map {{ {entries} }}"))
        text = "\n".join(["table bridge t {", *chains, "}", ""])
        sides.append(Side(name, read_ruleset([Text(name, text)]), TOPOLOGY))
    return sides[0], sides[1]


def answer(report: Report) -> dict[str, object]:
    """Return a report but for what the proof took."""
    data = report_data(report)
    del data["proof"]
    return data


@pytest.mark.parametrize(("make", "templates"), [(xtables, XTABLES), (nft, NFT)], ids=["iptables", "nft"])
@pytest.mark.parametrize("strict", [False, True])
def test_answers_are_those_of_a_proof_for_each_nic(
    make: Callable[[Maker], tuple[Side, Side]],
    templates: tuple[str, ...],
    strict: bool,
    spy: Callable[[object, str], list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proved: Counter[bool] = Counter()
    calls = spy(SegmentProver, "prove_nic")
    equal: Counter[bool] = Counter()
    for seed in range(RULESETS):
        sides = make(Maker(seed, templates))
        calls.clear()
        found = compare(*sides, Options(strict=strict))
        proved[True] += len(calls)
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Keys, "key", lambda *_: None)
            each = compare(*sides, Options(strict=strict))
        proved[False] += len(calls)
        assert answer(found) == answer(each), seed
        assert found.counts.ways == each.counts.ways, seed
        equal[found.equal] += 1
    assert proved[True] < proved[False]
    assert len(equal) == 2
