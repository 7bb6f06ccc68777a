"""JSON answers have the form of their published schemas; tests/host tests the commands of a host."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import jsonschema
import pytest

from pvefw_nft.cli import main
from tests import schemas
from tests.shown import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

TUTORIAL = REPOSITORY / "examples" / "tutorial"
PACKETS = """[[packet]]
from = "outside"
to = "vm111:5432"
expect = "DROP"
"""
ANSWERS = {
    "check": ("check", "--root", f"{TUTORIAL}/wrong"),
    "explain": ("explain",),
    "simulate": ("simulate", "--root", f"{TUTORIAL}/half", "--from", "vm110", "--to", "vm111:5432", "-v"),
    "simulate-tests": ("simulate", "--root", f"{TUTORIAL}/half", "--tests", "packets.toml", "--backend", "both"),
    "compare": ("compare", f"{TUTORIAL}/half", f"{TUTORIAL}/right", "-v"),
    "compile-iptables": ("compile", "--root", f"{TUTORIAL}/right", "--backend", "iptables"),
    "localnet": ("localnet", "--root", f"{REPOSITORY}/examples/provider"),
    "doctor": ("doctor", "--root", f"{TUTORIAL}/right"),
    "all-nodes": ("check", "--all-nodes", "--root", f"{REPOSITORY}/examples/provider", "--no-analysis"),
}
GROUPS = {"status", "start", "update", "restart", "stop", "confirm", "rollback", "take-over", "hand-back", "plug"}
GROUPS |= {"unplug", "plumb", "cluster-status", "cluster-apply"}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_as_published(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "packets.toml").write_text(PACKETS)
    with pytest.raises(SystemExit):
        main([*ANSWERS[name], "--format", "json"])
    schemas.check(name, capsys.readouterr().out)


def test_each_schema_is_checked_by_a_test_and_in_the_manual() -> None:
    published = {path.name for path in schemas.FOLDER.iterdir()}
    assert published == {f"{name}-1.json" for name in {*ANSWERS, *GROUPS}}
    page = (schemas.FOLDER.parent / "json.md").read_text("utf-8")
    assert [name for name in published if f"(schemas/{name})" not in page] == []


def test_an_undescribed_key_is_found() -> None:
    answer = {"id": "x", "severity": "error", "title": "", "why": "", "proxmox": ""}
    schemas.check("explain", json.dumps([answer]))
    with pytest.raises(jsonschema.ValidationError, match="more"):
        schemas.check("explain", json.dumps([{**answer, "more": 1}]))


def test_the_schema_that_an_answer_names_is_its_own() -> None:
    for name in ("start", "take-over", "localnet"):
        assert schemas.load(name)["properties"]["schema"] == {"const": f"pvefw-{name}/1"}
        assert schemas.load(name)["$id"] == f"pvefw-{name}-1"
