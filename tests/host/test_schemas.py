"""JSON answers of commands on a host have the form that their published schemas say."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests import schemas

from .test_commands_as_processes import options, pvefw, write

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Namespace


def answered(name: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run a command, check its answer, and return its exit code and the answer."""
    done = pvefw(name, *arguments, "--format", "json")
    schemas.check(name, done.stdout)
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer.get("exit_code", done.returncode) == done.returncode
    return done.returncode, answer


@pytest.fixture
def configuration(tmp_path: Path) -> list[str]:
    """A configuration, as options."""
    (tmp_path / "etc/pve/firewall").mkdir(parents=True)
    write(tmp_path, 80)
    return options(tmp_path)


def test_applies_and_status(real: Namespace, configuration: list[str], tmp_path: Path) -> None:
    code, answer = answered("start", *configuration, "--dry-run")
    assert (code, answer["dry_run"]) == (0, True)
    code, answer = answered("start", *configuration)
    assert (code, answer["backend"], answer["error"]) == (0, "iptables", None)
    write(tmp_path, 81)
    code, answer = answered("status", *configuration, "--diff")
    assert (code, len(answer["pending_because"])) == (1, 1)
    assert answered("update", *configuration)[0] == 0
    write(tmp_path, 82, "IN NONSENSE\n")
    code, answer = answered("update", *configuration)
    assert code == 1
    assert "error" in [one["level"] for one in answer["messages"]]
    assert answered("restart", *configuration, "--skip-invalid")[0] == 1
    assert answered("rollback")[0] == 0
    code, answer = answered("confirm")
    assert (code, answer["error"]) != (0, None)
    assert answered("stop")[1]["was_running"] is True
    assert answered("status", *configuration)[0] == 3


def test_plugging(real: Namespace, configuration: list[str]) -> None:
    assert answered("plumb", *configuration)[1]["nics"] == []
    code, answer = answered("plug", "tap999i0", *configuration)
    assert (code, answer.keys() & {"nics"}) == (3, set())
    assert answered("unplug", "tap999i0")[0] == 0


def test_steps_of_a_take_over(real: Namespace, configuration: list[str]) -> None:
    code, answer = answered("take-over", *configuration, "--dry-run")
    assert (code == 0, answer["dry_run"]) == (answer["error"] is None, True)  # it needs systemd, which may be missing
    answered("hand-back", *configuration, "--dry-run")
