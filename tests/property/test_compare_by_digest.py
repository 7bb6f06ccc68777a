"""Comparisons that know chains by digest have the report of those that read every chain, edit after edit.

Each seed takes the two rulesets of a configuration, edits them again and again, and compares after each edit by both
ways, which share proofs. What is known of chains is carried from edit to edit.
"""

from __future__ import annotations

import os
import random
import re
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.app.chain_cache import ChainFile
from pvefw_nft.cli.compare import name_sets
from pvefw_nft.cli.rulesets import Named
from pvefw_nft.errors import HostError
from pvefw_nft.pipeline import Source
from pvefw_nft.pipeline.topology import topology
from pvefw_nft.verify.model import summary
from pvefw_nft.verify.prove import closures, nic_keys
from pvefw_nft.verify.prove.chain_memo import ChainMemo
from pvefw_nft.verify.prove.compare import Options, compare
from pvefw_nft.verify.prove.network import Side
from pvefw_nft.verify.prove.render import report_data, report_text
from pvefw_nft.verify.readers import ebtables as ebtables_reader
from pvefw_nft.verify.readers.files import Text, read_ruleset
from pvefw_nft.verify.readers.nft.digests import TableDigests
from pvefw_nft.verify.readers.shared import RulesetError
from pvefw_nft.verify.readers.xtables.digests import SetDigests
from tests.kernel import cases
from tests.verify.test_prove_proofs import Memory
from tests.verify.test_read_by_parts import compiled, mutant

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pvefw_nft.verify.model import Chain, Table
    from pvefw_nft.verify.network.path import Topology

EDITS = max(2, int(os.environ.get("PVEFW_RANDOM_RULESETS", "60")) // 20)
NAMES = cases.names()
IPTABLES, NFT = "iptables", "nft"
BACKENDS = [(IPTABLES, NFT), (NFT, NFT), (IPTABLES, IPTABLES), (NFT, IPTABLES)]


@cache
def host_of(name: str) -> Topology:
    case = cases.load(name)
    return topology(Source(case.root, case.node, lambda: case.local_network))


def edited(text: str, chance: random.Random) -> str:
    """Return a ruleset's text with one line more, less, at another place, or changed."""
    lines = text.splitlines()
    rules = [n for n, line in enumerate(lines) if line.startswith(("-A ", "add ", '{"add":{"rule"', '{"add":{"set"'))]
    one, other = chance.choice(rules), chance.choice(rules)
    kind = chance.randrange(6)
    if kind == 0:
        del lines[one]
    elif kind == 1:
        lines.insert(one, lines[one])
    elif kind == 2:
        lines[one], lines[other] = lines[other], lines[one]
    elif kind == 3:
        swaps = {"ACCEPT": "DROP", "DROP": "ACCEPT", "accept": "drop", "drop": "accept"}
        lines[one] = re.sub(r"\b(ACCEPT|DROP|accept|drop)\b", lambda word: swaps[word[0]], lines[one])
    elif kind == 4:
        lines[one] = re.sub(r"\b(22|80|443|10|100|101)\b", chance.choice(("23", "81", "1")), lines[one])
    else:
        body = lines[one]
        lines[one] = body[:3] + mutant(body[3:], [lines[other]], chance)
    return "\n".join(lines).replace(",\n]}", "\n]}") + "\n"


class Comparer:
    """Compares rulesets by both ways. ``refused`` are those that have to be read as a whole."""

    def __init__(self, folder: Path, host: Topology, strict: bool = False) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self.file = ChainFile(folder)
        self.proofs = Memory()
        self.host = host
        self.options = Options(strict=strict)
        self.by_digest = self.refused = self.differing = self.unreadable = 0

    def sides(self, texts: tuple[str, str], *, digests: bool) -> list[Named]:
        found = []
        for name, text in zip(("one", "two"), texts, strict=True):
            model = read_ruleset([Text(name, text)], digests=digests)
            host = replace(self.host, call_iptables=not text.startswith("{"))
            found.append(Named(name, model, host))
        return found

    def report(self, sides: list[Named], options: Options) -> object:
        before, after = (Side(one.name, one.model, one.topology) for one in sides)
        report = compare(before, after, options)
        if report.differences and options.memo.remembers:
            name_sets(sides, self.sides(self.texts, digests=False))
        self.differing += bool(report.differences)
        return report_data(report), report_text(report, verbose=True)

    def check(self, before: str, after: str) -> None:
        texts = self.texts = before, after
        known = Memory()
        known.known = dict(self.proofs.known)
        memo = ChainMemo(self.file.load())
        try:
            whole = self.report(self.sides(texts, digests=False), replace(self.options, proofs=self.proofs))
        except (RulesetError, HostError):
            self.unreadable += 1
            whole = None
        try:
            options = replace(self.options, proofs=known, memo=memo)
            found = self.report(self.sides(texts, digests=True), options)
        except (RulesetError, HostError):
            self.refused += whole is not None
            return
        assert found == whole
        assert known.known == self.proofs.known
        self.by_digest += 1
        self.file.save(memo.known, memo.used)


def edits(name: str, backends: tuple[str, str], comparer: Comparer, count: int = EDITS) -> None:
    chance = random.Random(f"{name} {backends}")
    texts = [compiled(name, backend) for backend in backends]
    comparer.check(*texts)
    for _ in range(count):
        side = chance.randrange(2)
        before, unreadable = list(texts), comparer.unreadable
        texts[side] = edited(texts[side], chance)
        if backends[0] == backends[1] and chance.random() < 0.5:
            texts[1 - side] = texts[side]
        comparer.check(*texts)
        if comparer.unreadable > unreadable or chance.random() < 0.3:
            texts = before


@pytest.mark.parametrize("backends", BACKENDS, ids="-".join)
@pytest.mark.parametrize("name", NAMES)
def test_edited_rulesets_are_judged_alike(name: str, backends: tuple[str, str], tmp_path: Path) -> None:
    if (NAMES.index(name) + BACKENDS.index(backends)) % len(BACKENDS) and EDITS < 10:
        pytest.skip("PVEFW_RANDOM_RULESETS=100 tries this")
    comparer = Comparer(tmp_path / "cache", host_of(name), strict=name == "groups")
    edits(name, backends, comparer)
    assert comparer.by_digest


# --- what a wrong digest does -------------------------------------------------------------------------------------

SAME = "0" * 48
SETS = ("create s hash:net family inet", "add s 10.0.0.0/8")
GUEST = "-A FORWARD -m physdev --physdev-is-bridged --physdev-out {} -j G"
RULES = ("*filter", ":INPUT ACCEPT [0:0]", ":FORWARD ACCEPT [0:0]", ":G - [0:0]", ":H - [0:0]")


def xtables(*own: str, members: tuple[str, ...] = SETS, caller: str = "-j LOG") -> str:
    """Return rules of a guest, of which its own chain has some."""
    callers = (GUEST.format("tap100i0"), f"-A G {caller}", "-A G -j H")
    lines = ["# ipset save", *members, "# iptables-save", *RULES, *callers]
    return "\n".join([*lines, *(f"-A H {rule}" for rule in own), "COMMIT", ""])


def nft(member: str = "10.0.0.0", verdict: str = "drop", other: str = "") -> str:
    """Return rules of a guest in JSON, by lines."""
    of = '"family":"bridge","table":"t"'
    saddr = '{"match":{"op":"==","left":{"payload":{"protocol":"ip","field":"saddr"}},"right":"@s"}}'
    oif = '{"match":{"op":"==","left":{"meta":{"key":"oifname"}},"right":"tap100i0"}}'
    hook = '"type":"filter","hook":"forward","prio":0,"policy":"accept"'
    lines = [
        '{"add":{"table":{"family":"bridge","name":"t"}}}',
        f'{{"add":{{"set":{{{of},"name":"s","type":"ipv4_addr","elem":["{member}"]}}}}}}',
        f'{{"add":{{"chain":{{{of},"name":"G"}}}}}}',
        f'{{"add":{{"chain":{{{of},"name":"f",{hook}}}}}}}',
        f'{{"add":{{"rule":{{{of},"chain":"G","expr":[{saddr},{{"{verdict}":null}}]}}}}}}',
        f'{{"add":{{"rule":{{{of},"chain":"f","expr":[{oif},{{"jump":{{"target":"G"}}}}]}}}}}}',
    ]  # fmt: skip
    return '{"nftables":[\n' + ",\n".join([*lines, *([other] if other else [])]) + "\n]}\n"


def ebtables(source: str, verdict: str = "DROP", port: str = "tap100i0") -> str:
    """Return rules of a guest, of which the chain of ebtables asks for its hardware address."""
    lines = ["*filter", ":FORWARD ACCEPT", ":G ACCEPT", f"-A FORWARD -i {port} -j G", f"-A G -s {source} -j {verdict}"]
    return xtables("-p tcp -j DROP") + "\n".join(["# Generated by ebtables-save", *lines, ""])


def ebtables_edits() -> list[tuple[str, str]]:
    one, other = "02:00:00:00:00:01", "02:00:00:00:00:02"
    plain = ebtables(one)
    others = (ebtables(other), ebtables(f"! {one}"), ebtables(one, "ACCEPT"), ebtables(one, port="tap101i0"))
    return [(plain, plain), *((plain, changed) for changed in others)]


def xtables_edits() -> list[tuple[str, str]]:
    drop, port = "-m set --match-set s src -j DROP", "-p tcp --dport 22 -j DROP"
    other = xtables(drop, port, members=(SETS[0], "add s 10.0.0.0/9"))
    marks = xtables("-j CONNMARK --set-mark 5", caller="-j MARK --set-xmark 0x1/0x1")
    untracked = xtables("-j CT --notrack")
    return [
        (marks, marks),
        (untracked, untracked),
        (xtables(drop, port), xtables(drop, port)),
        (xtables(drop, port), other),
        (xtables(drop, port), xtables(drop, port.replace("22", "23"))),
        (xtables(drop, port), xtables(drop, "-m state --state NEW -j DROP")),
        (xtables(drop, port), xtables(drop, "-m mark --mark 0x1/0x1 -j DROP", "-j MARK --set-xmark 0x1/0x1")),
        (xtables(drop, port), xtables(drop, port).replace("tap100i0", "tap101i0")),
        (xtables(drop, port), xtables(drop, port).replace("tap100i0 -j G", "tap100i0 -p tcp -j G")),
        (xtables(drop, port), xtables(drop, port).replace("tap100i0 -j G", "tap100i0 -j H")),
        (xtables(drop, port), xtables(drop, port).replace(":FORWARD ACCEPT", ":FORWARD DROP")),
    ]


def nft_edits() -> list[tuple[str, str]]:
    return [(nft(), nft()), (nft(), nft("10.0.0.1")), (nft(), nft(verdict="accept"))]


COMMON = closures._Common
WITH_DIGEST = ebtables_reader._with_digest


def with_same_digest(table: Table, chain: Chain) -> Chain:
    """Return a chain of ebtables with the digest that all of that name have."""
    made = WITH_DIGEST(table, chain)
    made.digest = f"{chain.name.encode().hex():0<48}"[:48]
    return made


def broken(owner: object, name: str, made: object) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(owner, name, made)


BROKEN = {
    "text of iptables": broken(SetDigests, "of", lambda *_: SAME),
    "text of ebtables": broken(ebtables_reader, "_with_digest", with_same_digest),
    "text of nft": broken(TableDigests, "of", lambda *_: SAME),
    "members of ipsets": broken(SetDigests, "_members", lambda *_: b""),
    "members of nft's sets": broken(TableDigests, "_members", lambda *_: b""),
    "all that a NIC meets": broken(nic_keys._Side, "contents", lambda *_: []),
    "chains below": broken(closures.Closures, "whole", lambda *_: b""),
    "rules by interface": broken(closures.Closures, "met", lambda _, name, *__: ([], ("G",) if name != "G" else ())),
    "chains that all NICs meet": broken(closures, "_Common", lambda _, *others: COMMON(SAME, *others)),
    "items of tests": broken(summary, "_item_of_test", lambda *_: SAME),
    "items of effects": broken(summary, "_effect_text", lambda _: ""),
}


def battery(tmp_path: Path) -> None:
    comparer = Comparer(tmp_path / "cache", host_of("groups"))
    for _ in range(2):
        for pair in [*xtables_edits(), *ebtables_edits(), *nft_edits()]:
            comparer.check(*pair)
            comparer.check(*reversed(pair))
    assert not comparer.refused
    assert comparer.differing


def test_the_cases_below_are_judged_alike(tmp_path: Path) -> None:
    battery(tmp_path)


@pytest.mark.parametrize("what", BROKEN)
def test_a_digest_that_leaves_something_out_is_noticed(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    BROKEN[what](monkeypatch)
    with pytest.raises((AssertionError, KeyError)):
        battery(tmp_path)


@pytest.mark.parametrize("strict", [False, True])
def test_another_host_has_keys_of_its_own(strict: bool, tmp_path: Path) -> None:
    texts = compiled("ipfilter", IPTABLES), compiled("ipfilter", NFT)
    host = host_of("ipfilter")
    first, *others = host.nics
    hosts = [
        host,
        replace(host, nics=(replace(first, mac=0x020000000001), *others)),
        replace(host, nics=(replace(first, tag=5), *others)),
        replace(host, nics=(replace(first, bridge="vmbr9"), *others)),
        replace(host, nics=tuple(others)),
        replace(host, filter_vlan_tagged=True),
        host,
    ]
    comparer = Comparer(tmp_path / "cache", host, strict=strict)
    for one in hosts:
        comparer.host = one
        comparer.check(*texts)
    assert comparer.by_digest == len(hosts)
