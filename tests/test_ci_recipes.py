"""The recipes of examples/ci: their commands run, and the comment tells packets and lines."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.shown import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

yaml = pytest.importorskip("yaml", reason="PyYAML comes with ansible-core")

CI = REPOSITORY / "examples" / "ci"
TUTORIAL = REPOSITORY / "examples" / "tutorial"
NODE = "pve1"


@pytest.fixture
def pvefw(tmp_path: Path) -> str:
    command = tmp_path / "pvefw"
    command.write_text(f'#!/bin/sh\nexport PYTHONPATH={REPOSITORY}\nexec {sys.executable} -m pvefw_nft.cli "$@"\n')
    command.chmod(0o755)
    return str(command)


def difference(pvefw: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CI / "firewall-diff"), *map(str, arguments)]
    environment = {**os.environ, "PVEFW": pvefw}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_the_comment_names_packets_and_lines(pvefw: str) -> None:
    done = difference(pvefw, TUTORIAL / "half", TUTORIAL / "right", NODE)
    assert done.returncode == 0, done.stderr
    assert (
        "| **newly accepted** | tcp from 10.0.0.110 to vm111 port 5432 | drop (111.fw:5) | accept (111.fw:5"
        in done.stdout
    )
    same = difference(pvefw, TUTORIAL / "half", TUTORIAL / "half", NODE)
    assert "No packet is treated differently." in same.stdout


def test_a_node_that_cannot_be_compared_is_named(pvefw: str, tmp_path: Path) -> None:
    done = difference(pvefw, tmp_path / "none", TUTORIAL / "right", NODE)
    assert done.returncode == 1
    assert "**Not compared:**" in done.stdout
    assert difference(pvefw).returncode == 2


def steps() -> dict[str, list[str]]:
    """Return the shell commands of each recipe, without those that fetch pvefw or talk to the forge."""
    github = yaml.safe_load((CI / "github.yml").read_text("utf-8"))["jobs"]["firewall"]["steps"]
    gitlab = yaml.safe_load((CI / "gitlab.yml").read_text("utf-8"))["firewall"]["script"]
    return {
        "github": [step["run"] for step in github if step.get("name") in ("check", "packets", "compare")],
        "gitlab": gitlab,
    }


@pytest.mark.parametrize("forge", ["github", "gitlab"])
def test_a_recipe_runs(forge: str, pvefw: str, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(TUTORIAL / "half", repository)
    shutil.copy(TUTORIAL / "packets.toml", repository)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    before = tmp_path / "before"
    for command in ("init -q -b main", "add .", "commit -qm x", "update-ref refs/remotes/origin/main HEAD"):
        subprocess.run([*git, *command.split()], cwd=repository, check=True)
    shutil.copytree(TUTORIAL / "right", repository, dirs_exist_ok=True)
    places = {"/tmp/before": str(before), "/tmp/pvefw/examples": str(REPOSITORY / "examples")}
    environment: dict[str, Any] = {**os.environ, "PVEFW": pvefw, "NODES": NODE, "GITHUB_BASE_REF": "main"}
    environment |= {"CI_MERGE_REQUEST_TARGET_BRANCH_NAME": "main", "GITHUB_STEP_SUMMARY": str(tmp_path / "summary")}
    commands = steps()[forge]
    assert len(commands) >= 3
    for text in commands:
        for place, here in places.items():
            text = text.replace(place, here)
        done = subprocess.run(
            ["bash", "-ec", text], cwd=repository, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
    assert "newly accepted" in (repository / "firewall.md").read_text("utf-8")


def test_the_manual_shows_the_recipes_as_they_are() -> None:
    page = (REPOSITORY / "docs/how-to/check-in-ci.md").read_text("utf-8")
    for name in ("github.yml", "gitlab.yml"):
        assert f"```yaml\n{(CI / name).read_text('utf-8')}```" in page, name
