"""The examples compile without a diagnostic, show what their READMEs say, and load with the real tools."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.shown import Session, assert_shown, sessions_of
from tests.support import complaints

if TYPE_CHECKING:
    from collections.abc import Iterable

REPOSITORY = Path(__file__).resolve().parent.parent
EXAMPLES = sorted(folder.parent.name for folder in (REPOSITORY / "examples").glob("*/etc"))
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

each_example = pytest.mark.parametrize("name", EXAMPLES)


def pvefw(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pvefw in the checkout's folder, as the READMEs do."""
    command = [sys.executable, "-c", "from pvefw_nft.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)


def shown(name: str) -> list[Session]:
    """Return the commands of an example's README."""
    return [session for session in sessions_of(REPOSITORY / "examples" / name / "README.md") if session.is_run]


def compile_command(name: str) -> list[str]:
    """Return the arguments of the first ``compile`` in an example's README, which gives restore text."""
    return next(list(session.arguments) for session in shown(name) if session.arguments[0] == "compile")


def test_there_are_four_examples() -> None:
    assert EXAMPLES == ["homelab", "minimal", "positional", "provider"]


@each_example
def test_a_readme_shows_the_output_of_its_command(name: str) -> None:
    assert shown(name)
    for session in shown(name):
        assert_shown(session)


@each_example
def test_the_checker_finds_nothing(name: str) -> None:
    _, *options = compile_command(name)
    run = pvefw("check", *options)
    assert (run.returncode, run.stderr) == (0, "")


@each_example
def test_the_compiled_ruleset_does_not_depend_on_the_machine(name: str) -> None:
    command = compile_command(name)
    assert pvefw(*command).stdout == pvefw(*command, "--local-network", "198.51.100.0/24").stdout


def test_the_provider_has_twenty_guests() -> None:
    ruleset = json.loads(pvefw(*compile_command("provider"), "--format", "json").stdout)
    nics = {chain for chain in ruleset["iptables"]["filter"] if re.fullmatch(r"(tap|veth)\d+i\d+-IN", chain)}
    assert len({re.sub(r"\D*(\d+)i.*", r"\1", chain) for chain in nics}) == 20


# --- with the real tools ------------------------------------------------------------------------------------

TOOLS = ("ipset", "iptables-restore", "ip6tables-restore", "ebtables-restore", "unshare")
SAVES = {"iptables": "iptables-save", "ip6tables": "ip6tables-save", "ebtables": "ebtables-save"}


@each_example
def test_the_restore_text_loads(name: str, tmp_path: Path) -> None:
    needs_root_and_tools()
    parts = parts_of(pvefw(*compile_command(name)).stdout)
    script = ["set -e"]
    for number, (command, body) in enumerate(parts):
        (tmp_path / f"{number}").write_text(body)
        script.append(f"{command} < {number}")
    script += [f"{save} > {save}" for save in SAVES.values()] + ["ipset list -n > ipset-list"]
    run = subprocess.run(
        ["unshare", "-n", "sh", "-c", "\n".join(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PATH": SYSTEM_PATH},
        check=False,
    )
    assert (run.returncode, complaints(run.stderr)) == (0, [])
    for tool, save in SAVES.items():
        sent = rules_by_chain(body for command, body in parts if command.startswith(tool))
        assert sent, f"nothing for {tool}"
        loaded = rules_by_chain([(tmp_path / save).read_text()])
        assert {chain: loaded.get(chain) for chain in sent} == sent, tool
    created = re.findall(r"^create (\S+)", "".join(body for _, body in parts), re.MULTILINE)
    assert sorted((tmp_path / "ipset-list").read_text().split()) == sorted(created)


def needs_root_and_tools() -> None:
    missing = [tool for tool in TOOLS if shutil.which(tool, path=SYSTEM_PATH) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if os.geteuid():
        pytest.skip("a network namespace needs root")


def parts_of(text: str) -> list[tuple[str, str]]:
    """Split restore text at its headings into commands and their inputs."""
    _, *parts = re.split(r"^### (.*)\n", text, flags=re.MULTILINE)
    return list(zip(parts[::2], parts[1::2], strict=True))


def rules_by_chain(texts: Iterable[str]) -> dict[tuple[str, str], int]:
    """Count the rules of each chain by table and name, in restore or save text; a chain may have none.

    iptables makes of a rule with a list of addresses one rule for each.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for text in texts:
        table = ""
        for line in text.splitlines():
            match line.split():
                case [word, *_] if word.startswith("*"):
                    table = word
                case [word, *_] if word.startswith(":"):
                    counts[table, word[1:]] += 0
                case ["-A", chain, *_] as words:
                    lists = [list_ for option, list_ in pairwise(words) if option in ("-s", "-d")]
                    counts[table, chain] += prod(len(list_.split(",")) for list_ in lists)
    return dict(counts)
