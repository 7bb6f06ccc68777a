"""Inputs that once failed, from ``tests/fuzz``, and a few fresh ones; ``scripts/fuzz.py`` makes them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from scripts.fuzz import made, problem_of

FOUND = sorted((Path(__file__).parent / "fuzz").glob("*.json"))


@pytest.fixture(autouse=True)
def _directories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have those that the script sets put back."""
    for name in ("PVEFW_RUN_DIRECTORY", "PVEFW_STATE_DIRECTORY"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("file", FOUND, ids=lambda file: file.stem)
def test_input_that_once_failed(file: Path) -> None:
    assert problem_of(json.loads(file.read_text("utf-8"))) is None


@pytest.mark.parametrize("seed", range(40))
def test_damaged_input(seed: int) -> None:
    assert problem_of(made(random.Random(seed))) is None


def test_script_reports_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a script that finds nothing says nothing."""

    def failing(_: Path) -> None:
        raise KeyError("x")

    monkeypatch.setattr("pvefw_nft.host.records.record.load", failing)
    case = {"kind": "records", "files": {"running.ruleset": ""}}
    assert str(problem_of(case)).startswith("KeyError")
