"""Why changes are pending, which guests no rule filters, and by which lines rulesets differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.app.compiler import Compiler
from pvefw_nft.app.desired import compiled
from pvefw_nft.app.ruleset_diff import line_difference, with_lines
from pvefw_nft.app.unfiltered import Unfiltered
from pvefw_nft.config.source import Observations
from pvefw_nft.host.records.changes import Change
from pvefw_nft.pipeline import Source
from tests.support import NODE, VM

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import MakeRoot

ON = "[OPTIONS]\nenable: 1\n"


def source(root: Path) -> Source:
    return Source(root, NODE, lambda: "10.0.0.0/24")


def test_guests_that_no_rule_filters(make_root: MakeRoot) -> None:
    bare = VM.replace(",firewall=1", "")
    root = make_root(
        {"100.conf": VM, "100.fw": ON, "101.conf": VM, "102.conf": VM, "102.fw": "", "103.conf": bare, "103.fw": ON}
    )
    with Compiler(source(root), None, settle=0.0) as compiler:
        found = compiler.unfiltered()
    assert found == [
        Unfiltered("101", "net0", "there is no 101.fw"),
        Unfiltered("102", "net0", "`enable: 1` is missing in 102.fw"),
        Unfiltered("103", "net0", "firewall=1 is missing at the NIC"),
    ]


def test_a_changed_file_is_named(make_root: MakeRoot) -> None:
    root = make_root({"100.conf": VM, "100.fw": ON})
    here = source(root)
    observations = compiled(here, None).observations
    assert isinstance(observations, Observations)
    assert observations.changed(here) == []
    file = root / "etc/pve/firewall/100.fw"
    file.write_text(ON + "[RULES]\nIN SSH(ACCEPT)\n")
    with Compiler(here, None, settle=0.0) as compiler:
        assert compiler.changed(observations) == [("text", str(file))]


def test_differing_lines_in_order() -> None:
    assert [*line_difference(["a", "b", "c"], ["a", "x", "c", "d"])] == ["- b", "+ x", "+ d"]


def test_changes_have_the_rules_that_come_and_go(make_root: MakeRoot) -> None:
    root = make_root({"100.conf": VM, "100.fw": ON + "[RULES]\nIN SSH(ACCEPT)\n"})
    rulesets = {}
    for port in ("80", "81"):
        (root / "etc/pve/firewall/100.fw").write_text(f"{ON}[RULES]\nIN ACCEPT -p tcp -dport {port}\n")
        rulesets[port] = {name: compiled(source(root), name).desired for name in ("iptables", "nft")}
    change = Change("change", "iptables filter", "tap100i0-IN")
    (shown,) = with_lines([change], rulesets["80"]["iptables"], rulesets["81"]["iptables"])
    assert shown.detail == ("- -p tcp --dport 80 -j ACCEPT", "+ -p tcp --dport 81 -j ACCEPT")
    change = Change("change", "nft bridge", "chain tap100i0-IN")
    (shown,) = with_lines([change], rulesets["80"]["nft"], rulesets["81"]["nft"])
    assert [line[:2] for line in shown.detail] == ["- ", "+ "]
    assert "80" in shown.detail[0]
    assert "81" in shown.detail[1]
    (shown,) = with_lines([change], rulesets["80"]["iptables"], rulesets["81"]["nft"])
    assert {line[:2] for line in shown.detail} == {"+ "}
