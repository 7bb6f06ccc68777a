"""The completion scripts and their offers; a mistyped command; ``--version``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pvefw_nft.cli import main

REPOSITORY = Path(__file__).resolve().parents[2]


def offered(*words: str) -> list[str]:
    """Return bash's offers for the last word of a command line."""
    line = " ".join(word or "''" for word in ("pvefw", *words))
    env = {**os.environ, "_PVEFW_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words))}
    script = "from pvefw_nft.cli import run; run()"
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["completion", shell])
    assert end.value.code == 0
    assert "_PVEFW_COMPLETE" in capsys.readouterr().out


def test_commands_are_offered() -> None:
    assert offered("sta") == ["start", "status"]


def test_codes_are_offered() -> None:
    assert offered("explain", "unknown-ma") == ["unknown-macro"]


def test_zones_of_the_configuration_are_offered() -> None:
    assert offered("simulate", "--root", "examples/homelab", "--from", "ct") == ["ct200", "ct200i0"]


def test_nodes_are_offered() -> None:
    assert offered("check", "--root", "examples/provider", "--node", "pve") == ["pve1"]


def test_interfaces_are_offered() -> None:
    assert "tap101i0" in offered("plug", "--root", "examples/homelab", "tap")


def test_completion_without_a_configuration_offers_the_fixed_names() -> None:
    assert offered("simulate", "--root", "/nowhere", "--from", "h") == ["host"]


@pytest.mark.parametrize(("typed", "answer"), [("stauts", "did you mean `status`?"), ("xyzzy", "no command `xyzzy`")])
def test_a_mistyped_command_is_answered(typed: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([typed])
    assert end.value.code == 2
    assert answer in capsys.readouterr().err


def test_version_names_libraries_and_tools(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("pvefw ")
    assert "click " in lines[2]
    assert "iptables " in lines[3]
    assert "nft " in lines[3]
