"""A comparison leaves out the rules that keep connections from before a switch to nft, and nothing else."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.host.tracking import zone_change
from pvefw_nft.pipeline import Source, compile_root
from pvefw_nft.pipeline.topology import topology
from pvefw_nft.verify.prove.compare import compare
from pvefw_nft.verify.prove.network import Side
from pvefw_nft.verify.readers.files import Text, read_ruleset
from tests.support import NODE, VM

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pvefw_nft.verify.prove.report import Report
    from tests.support import MakeRoot

FILES: dict[str, str | bytes] = {
    "cluster": "[OPTIONS]\nenable: 1\n",
    "100.conf": VM,
    "100.fw": "[OPTIONS]\nenable: 1\n[RULES]\nIN ACCEPT -p tcp -dport 80\n",
}
CONNECTIONS = {
    socket.AF_INET: [["192.0.2.1", "192.0.2.2", 6, 40000, 80], ["192.0.2.2", "192.0.2.1", 6, 80, 40000]],
    socket.AF_INET6: [["2001:db8::1", "2001:db8::2", 6, 40000, 80]],
}
Commands = list[dict[str, Any]]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Commands:
    """The commands that make the table, with some connections, as a listing has them."""
    monkeypatch.setattr("pvefw_nft.host.netfilter.nf_tables.rules", lambda *_: [])
    body = {"family": "bridge", "table": zone_change.TRANSITION_TABLE}
    hook = {"type": "filter", "hook": "prerouting", "prio": -301, "policy": "accept"}
    made: Commands = [
        {"add": {"table": {"family": "bridge", "name": zone_change.TRANSITION_TABLE}}},
        {"add": {"chain": {**body, "name": zone_change.ZONES, **hook}}},
    ]
    for family, connections in CONNECTIONS.items():
        made_set, rule = zone_change._set_commands(family, 0)
        made_set["add"]["set"]["elem"] = [{"elem": {"val": {"concat": one}, "timeout": 60}} for one in connections]
        made += [made_set, rule]
    return made


def compared(root: Path, table: Commands, *, against: str = "nft") -> Report:
    """Compare the configuration's nft ruleset beside a table with the configuration's ruleset."""
    source = Source(root, NODE, lambda: None)
    listing = json.loads("".join(compile_root(source, "nft").artefact.json()))
    listing["nftables"] += table
    artefact = compile_root(source, against).artefact
    compiled = "".join(artefact.json() if against == "nft" else artefact.text())
    texts = (Text("live", json.dumps(listing)), Text("files", compiled))
    before, after = (Side(text.name, read_ruleset([text]), topology(source)) for text in texts)
    return compare(before, after)


def rules_of(table: Commands) -> list[dict[str, Any]]:
    return [command["add"]["rule"] for command in table if "rule" in command["add"]]


@pytest.mark.parametrize("against", ["nft", "iptables"])
def test_connections_from_before_are_named_and_no_difference(
    make_root: MakeRoot, table: Commands, against: str
) -> None:
    report = compared(make_root(FILES), table, against=against)
    assert not report.differences
    assert [text for text in report.left_out if text.startswith("transition: ")]


def test_an_absent_table_is_not_mentioned(make_root: MakeRoot) -> None:
    assert compared(make_root(FILES), []).left_out == ()


def accept_too(rule: dict[str, Any]) -> None:
    rule["expr"].append({"accept": None})


def forget_the_connections(rule: dict[str, Any]) -> None:
    rule["expr"] = [one for one in rule["expr"] if "match" not in one or "concat" not in one["match"]["left"]]


def mark_too(rule: dict[str, Any]) -> None:
    rule["expr"].append({"mangle": {"key": {"meta": {"key": "mark"}}, "value": 1}})


@pytest.mark.parametrize("change", [accept_too, forget_the_connections, mark_too])
def test_a_table_that_does_more_is_compared(
    make_root: MakeRoot, table: Commands, change: Callable[[dict[str, Any]], None]
) -> None:
    change(rules_of(table)[0])
    report = compared(make_root(FILES), table)
    assert not [text for text in report.left_out if text.startswith("transition: ")]


def test_a_range_of_connections_is_compared(make_root: MakeRoot, table: Commands) -> None:
    """Only connections that existed are named one by one."""
    (made,) = [command["add"]["set"] for command in table if command["add"].get("set", {}).get("name") == "v4-zone-0"]
    made["flags"] = ["interval", "timeout"]
    made["elem"] = [{"concat": [{"prefix": {"addr": "192.0.2.0", "len": 24}}, "192.0.2.2", 6, 40000, 80]}]
    report = compared(make_root(FILES), table)
    assert report.differences
