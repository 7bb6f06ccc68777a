"""Findings of ``pvefw check`` by proof in a configuration without mistakes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.cli import main
from tests.support import NODE, VM

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import MakeRoot

ON = "[OPTIONS]\nenable: 1\n"
NAMES = (
    "[ALIASES]\nold 10.9.9.9\nlan 10.0.0.0/8\n[IPSET spare]\n10.0.0.1\n[IPSET blacklist]\n192.0.2.1\n"
    "[group web]\nIN HTTP(ACCEPT)\n[group idle]\nIN HTTPS(ACCEPT)\n"
)
RULES = (
    "[RULES]\n"
    "IN ACCEPT -source lan\n"
    "IN DROP -source 10.1.0.0/16 -p tcp -dport 22\n"
    "GROUP web\n"
    "IN DROP -p tcp -dport 99\n"
    "IN ACCEPT -p tcp -dport 443\n"
)


def check(root: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[dict[str, Any]]:
    with pytest.raises(SystemExit) as end:
        main(
            [
                "check",
                "--root",
                str(root),
                "--node",
                NODE,
                "--local-network",
                "10.0.0.0/24",
                "--format",
                "json",
                *options,
            ]
        )
    assert end.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, list)
    return found


def test_rules_and_names_without_effect(make_root: MakeRoot, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_root({"cluster": ON + NAMES, "100.conf": VM, "100.fw": ON + RULES})
    found = check(root, capsys)
    assert [(each["code"], each["file"].rsplit("/", 1)[-1], each["line"]) for each in found] == [
        ("unused-alias", "cluster.fw", 4),
        ("unused-ipset", "cluster.fw", 6),
        ("unused-group", "cluster.fw", 12),
        ("never-matches", "100.fw", 5),
        ("no-effect", "100.fw", 7),
    ]
    assert [each["severity"] for each in found] == ["note", "note", "note", "warning", "note"]
    assert "by 100.fw:4" in found[3]["hint"]
    assert check(root, capsys, "--no-analysis") == []


def test_names_that_another_nodes_files_use_are_in_use(make_root: MakeRoot, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_root(
        {"cluster": ON + NAMES, "900.fw": "[RULES]\n|IN ACCEPT -source old -dest +dc/spare\nGROUP idle\nGROUP web\n"}
    )
    names = {each["code"] for each in check(root, capsys)}
    assert names == {"unread-file", "unused-alias"}  # no guest 900, and lan


def test_a_rule_that_one_of_two_guests_needs_is_not_a_finding(
    make_root: MakeRoot, capsys: pytest.CaptureFixture[str]
) -> None:
    group = ON + "[group web]\nIN HTTP(ACCEPT)\n"
    second = VM.replace("00:01", "00:02")
    files: dict[str, str | bytes] = {"cluster": group, "100.conf": VM, "101.conf": second}
    root = make_root({**files, "100.fw": ON + "[RULES]\nGROUP web\n", "101.fw": ON + "[RULES]\nIN ACCEPT\nGROUP web\n"})
    assert [(each["code"], each["line"]) for each in check(root, capsys)] == [("no-effect", 5)]


def test_a_host_without_a_way_to_log_in(make_root: MakeRoot, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_root({"host": "[RULES]\nIN SMTP(ACCEPT)\nIN DROP\n"})
    (one,) = check(root, capsys)
    assert (one["code"], one["file"].rsplit("/", 1)[-1], one["line"]) == ("lock-out", "host.fw", 3)
    for rules in ("IN DROP -p udp\n", "IN ACCEPT -p tcp -dport 8006 -source 192.0.2.1\nIN DROP\n"):
        found = check(make_root({"host": f"[RULES]\n{rules}"}), capsys)
        assert "lock-out" not in {each["code"] for each in found}


def test_an_error_in_a_file_of_another_node_is_an_error(
    make_root: MakeRoot, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_root({"100.fw": "garbage\n"})
    with pytest.raises(SystemExit) as end:
        main(["check", "--root", str(root), "--node", NODE, "--local-network", "10.0.0.0/24"])
    assert end.value.code == 1
    assert "100.fw:1:1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rule", "hint"),
    [
        ("IN DROP -p udp -dport 137", "(PVEFW-DropBroadcast, PVEFW-Drop)"),
        ("IN DROP -p tcp -dport 445", "PVEFW-Drop)"),
        ("IN DROP -p tcp -dport 99", "the policy"),
        ("IN ACCEPT -p tcp -dport 22 -source 192.0.2.1", "100.fw:5"),
    ],
)
def test_a_rule_without_effect_names_the_rule_that_replaces_it(
    make_root: MakeRoot, capsys: pytest.CaptureFixture[str], rule: str, hint: str
) -> None:
    root = make_root({"100.conf": VM, "100.fw": f"{ON}[RULES]\n{rule}\nIN SSH(ACCEPT)\n"})
    (one,) = check(root, capsys)
    assert one["code"] == "no-effect"
    assert f"{hint} would do the same" in one["hint"] or f"{hint} (" in one["hint"]
