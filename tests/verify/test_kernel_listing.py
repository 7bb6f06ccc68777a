"""Rulesets loaded into a kernel and listed again mean what they meant: two spellings, one model.

Runs in a network namespace of its own, on this machine's kernel.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from pvefw_nft.pipeline import Source, compile_root
from pvefw_nft.verify.model import All, Condition, Rule, RulesetModel, Table
from pvefw_nft.verify.readers.files import Text, read_ruleset

Json: TypeAlias = Any
REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(
    str(path.parent.parent.relative_to(REPOSITORY / "examples"))
    for path in (REPOSITORY / "examples").glob("**/etc/pve")
)
XTABLES = ("ipset", "iptables-restore", "ip6tables-restore", "ebtables-restore")


def needs(*tools: str) -> None:
    missing = [tool for tool in ("unshare", *tools) if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if os.geteuid():
        pytest.skip("needs root, for a network namespace")


def run(script: str, folder: Path) -> str:
    done = subprocess.run(
        ["unshare", "-n", "sh", "-ec", script], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def listed_in_namespace(script: str) -> str:
    """Return the output of shell commands in a network namespace of their own."""
    return run(script, Path("/"))


def expanded(text: str) -> str:
    """Return restore text as the kernel gets it: a rule for each source of a list (iptables(8), ``--source``)."""
    lines = []
    for line in text.splitlines():
        found = re.match(r"(-A .*-[sd] )(\S+,\S+)(.*)", line)
        lines += [f"{found[1]}{part}{found[3]}" for part in found[2].split(",")] if found else [line]
    return "\n".join(lines)


def meaning(rule: Rule) -> object:
    """Return the meaning of a rule, for any order of its matches."""

    def flat(condition: Condition) -> frozenset[object]:
        if isinstance(condition, All):
            return frozenset(part for inner in condition.of for part in flat(inner))
        return frozenset([condition])

    return frozenset(part for condition in rule.conditions for part in flat(condition)), rule.effects, rule.verdict


def assert_same(loaded: RulesetModel, listed: RulesetModel) -> int:
    """Compare the loaded rules with the listed ones; return their number."""
    count = 0
    for table in loaded.tables:
        other = next((t for t in listed.tables if t.key == table.key), Table(table.key))
        for name, chain in table.chains.items():
            count += len(chain.rules)
            assert [meaning(rule) for rule in chain.rules] == [meaning(rule) for rule in rules_of(other, name)]
            assert chain.policy == other.chains[name].policy if name in other.chains else not chain.rules
    return count


def rules_of(table: Table, chain: str) -> list[Rule]:
    return table.chains[chain].rules if chain in table.chains else []


@pytest.mark.parametrize("example", EXAMPLES)
def test_iptables_and_its_kin(example: str, tmp_path: Path) -> None:
    needs(*XTABLES)
    root = REPOSITORY / "examples" / example
    nodes = sorted(path.name for path in (root / "etc" / "pve" / "nodes").glob("*"))
    compiled = compile_root(Source(root, nodes[0] if nodes else None, lambda: "10.7.0.0/24"), "iptables")
    text = "".join(compiled.artefact.text())
    script = []
    for number, part in enumerate(text.split("### ")[1:]):
        head, _, body = part.partition("\n")
        (tmp_path / str(number)).write_text(body)
        tool, *options = head.split()
        options = ["--noflush"] if tool == "ebtables-restore" else options
        script.append(f"{tool} {' '.join(options)} < {number}")
    listing = run("\n".join([*script, "echo '### ipset'; ipset save; iptables-save; ip6tables-save"]), tmp_path)
    listing += "### ebtables\n" + run("\n".join([*script, "ebtables-save"]), tmp_path)
    tables = read_ruleset([Text("compiled", expanded(text))])
    assert assert_same(tables, read_ruleset([Text("listed", listing)])) > 50


FOREIGN = """*filter
:x - [0:0]
-A x -p tcp -m multiport ! --dports 80,443:445 -j REJECT --reject-with tcp-reset
-A x -s 10.0.0.0/9 ! -d 10.0.0.1 -i eth+ ! -o eth1 -p udp --sport :1023 -j RETURN
-A x -p tcp --tcp-flags ALL SYN,ACK -m ttl --ttl-eq 1 -j DROP
-A x -p icmp --icmp-type 3/4 -j ACCEPT
-A x -m mark ! --mark 0x1/0x3 -j MARK --or-mark 0x10
-A x -m conntrack --ctstate NEW,UNTRACKED --ctdir REPLY -j LOG --log-prefix "a \\"b\\" " --log-level debug
-A x -m connmark --mark 5 -j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff
-A x -m iprange --src-range 10.0.0.1-10.0.0.9 -m length --length 100:200 -j NFQUEUE --queue-balance 1:3
-A x -m addrtype ! --dst-type LOCAL -m limit --limit 5/min --limit-burst 7 -j NFLOG --nflog-group 2
-A x -p tcp -m owner --uid-owner 1000 -m comment --comment "-j DROP" -g x2
-A x -f -j DROP
COMMIT
"""


def test_foreign_iptables_rules(tmp_path: Path) -> None:
    needs("iptables-restore")
    text = FOREIGN.replace(":x - [0:0]", ":x - [0:0]\n:x2 - [0:0]")
    (tmp_path / "rules").write_text(text)
    listed = run("iptables-restore < rules && iptables-save -t filter", tmp_path)
    models = [read_ruleset([Text(name, part)]) for name, part in (("iptables", text), ("listed", listed))]
    assert assert_same(*models) == 11


def expression(kind: str, **body: Json) -> Json:
    return {kind: body}


def match(left: Json, right: Json, op: str = "==") -> Json:
    return expression("match", op=op, left=left, right=right)


def payload(protocol: str, field: str) -> Json:
    return {"payload": {"protocol": protocol, "field": field}}


NFT_RULES: list[list[Json]] = [
    [match(payload("ip", "saddr"), "@admins"), match(payload("tcp", "dport"), {"set": [22, {"range": [80, 90]}]})],
    [match(payload("ip6", "saddr"), {"prefix": {"addr": "fe80::", "len": 10}}, "!="), {"drop": None}],
    [match({"&": [{"meta": {"key": "mark"}}, 0x80000000]}, 0x80000000), {"return": None}],
    [match({"&": [{"meta": {"key": "mark"}}, 0x3]}, 0x1, "!="), {"drop": None}],
    [expression("mangle", key={"meta": {"key": "mark"}}, value={"|": [{"meta": {"key": "mark"}}, 0x80000000]})],
    [expression("mangle", key={"ct": {"key": "mark"}}, value=100)],
    [match({"&": [payload("tcp", "flags"), ["fin", "syn", "rst", "ack"]]}, "syn", "!="), {"drop": None}],
    [match({"&": [payload("tcp", "flags"), 0x3F]}, 0), {"drop": None}],
    [match(payload("icmp", "type"), "echo-request"), {"accept": None}],
    [match(payload("icmp", "type"), 3), match(payload("icmp", "code"), 4), {"accept": None}],
    [match(payload("icmpv6", "type"), {"set": [133, 135]}), {"accept": None}],
    [match({"ct": {"key": "state"}}, ["established", "related"], "in"), {"accept": None}],
    [match({"ct": {"key": "state"}}, {"set": ["invalid", "new"]}), {"drop": None}],
    [match({"meta": {"key": "l4proto"}}, "tcp"), match(payload("th", "dport"), {"range": [1, 9]}), {"drop": None}],
    [match(payload("ip", "ttl"), 1), {"jump": {"target": "other"}}],
    [match({"meta": {"key": "iifname"}}, {"set": ["tap1", "fwln*"]}), {"goto": {"target": "other"}}],
    [expression("limit", rate=1, per="second", burst=5), expression("log", prefix=":0:6:x: ", group=0)],
    [match({"concat": [payload("ip", "saddr"), payload("tcp", "dport")]}, {"set": [{"concat": ["10.0.0.1", 80]}]})],
    [match(payload("tcp", "dport"), 1024, ">"), expression("reject", type="icmpx", expr="admin-prohibited")],
    [{"reject": {"type": "icmp", "expr": "host-unreachable"}}],
    [{"reject": {"type": "tcp reset"}}],
    [expression("vmap", key=payload("udp", "dport"), data={"set": [[53, {"accept": None}], [67, {"drop": None}]]})],
    [expression("vmap", key={"meta": {"key": "iifname"}}, data="@nics")],
    [match({"fib": {"result": "type", "flags": ["daddr"]}}, "broadcast"), {"drop": None}],
    [match(payload("ip", "daddr"), {"range": ["10.0.0.1", "10.0.0.9"]}), {"counter": None}, {"drop": None}],
]  # fmt: skip


def test_nft(tmp_path: Path) -> None:
    needs("nft")
    place = {"family": "inet", "table": "t"}
    admins = [{"prefix": {"addr": "10.0.0.0", "len": 8}}, "192.168.1.1"]
    commands: list[Json] = [
        {"add": {"table": {"family": "inet", "name": "t"}}},
        {"add": {"set": {**place, "name": "admins", "type": "ipv4_addr", "flags": ["interval"], "elem": admins}}},
        {"add": {"map": {**place, "name": "nics", "type": "ifname", "map": "verdict"}}},
        {"add": {"chain": {**place, "name": "other"}}},
        {"add": {"chain": {**place, "name": "x", "type": "filter", "hook": "forward", "prio": -150, "policy": "drop"}}},
        {"add": {"element": {**place, "name": "nics", "elem": [["tap100i0", {"goto": {"target": "other"}}]]}}},
        *[{"add": {"rule": {**place, "chain": "x", "expr": rule}}} for rule in NFT_RULES],
    ]
    text = json.dumps({"nftables": commands})
    (tmp_path / "rules.json").write_text(text)
    listed = run("nft -j -f rules.json && nft -j list ruleset", tmp_path)
    models = [read_ruleset([Text(name, part)]) for name, part in (("loaded", text), ("listed", listed))]
    assert assert_same(*models) == len(NFT_RULES)
