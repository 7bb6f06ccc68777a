"""The manner that all commands share: options, examples, quiet and JSON answers, colour, and wrapped lines."""

from __future__ import annotations

import io
import json
import shlex
from typing import TYPE_CHECKING, Any

import click
import pytest

from pvefw_nft.cli import cli, console, main
from pvefw_nft.cli.command import Command
from pvefw_nft.cli.examples import EXAMPLES
from tests.support import NODE, VM

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support import MakeRoot

ON = "[OPTIONS]\nenable: 1\n"
CHANGES_RULES = {"start", "update", "restart", "take-over", "hand-back"}


def commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(cli)
    for name in cli.list_commands(context):
        found = cli.get_command(context, name)
        assert found is not None
        if isinstance(found, click.Group):
            yield from ((f"{name} {inner}", command) for inner, command in found.commands.items())
        else:
            yield name, found


COMMANDS = dict(commands())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_the_options_and_examples_that_all_have(name: str) -> None:
    command = COMMANDS[name]
    assert isinstance(command, Command)
    options = {option for one in command.params for option in one.opts}
    assert options >= {"-q", "--quiet", "-v", "--verbose"}
    assert [one.opts for one in command.params if isinstance(one, click.Option) and not (one.hidden or one.help)] == []
    assert ("--format" in options) == (name not in ("run", "completion"))
    help_text = command.get_help(click.Context(command, info_name=name))
    for line, purpose in EXAMPLES[name]:
        assert f"  {line}\n" in help_text + "\n"
        assert purpose.split()[0] in help_text


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_name_options_that_exist_and_a_way_back(name: str) -> None:
    for line, _ in EXAMPLES[name]:
        words = shlex.split(line.partition(" >")[0])
        assert words[: 1 + len(name.split())] == ["pvefw", *name.split()]
        options = {word for word in words if word.startswith("-")}
        assert options <= {option for one in COMMANDS[name].params for option in (*one.opts, *one.secondary_opts)}
        assert name.split()[-1] not in CHANGES_RULES or options & {"--confirm", "--dry-run"}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int | str | None, str, str]:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return end.value.code, *capsys.readouterr()


def test_json_answers_hold_facts_and_messages(make_root: MakeRoot, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--root", str(make_root()), "--node", NODE]
    code, out, err = run(capsys, "localnet", *where, "--local-network", "10.0.0.0/24", "--format", "json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "schema": "pvefw-localnet/1",
        "exit_code": 0,
        "node": NODE,
        "local_network": "10.0.0.0/24",
        "source": "--local-network",
        "corosync": None,
        "peers": [],
        "messages": [],
        "error": None,
    }


def test_json_answers_hold_the_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PVEFW_RUN_DIRECTORY", str(tmp_path))
    code, out, err = run(capsys, "confirm", "--format", "json")
    answer: dict[str, Any] = json.loads(out)
    assert (code, err, answer["exit_code"]) == (3, "", 3)
    assert answer["error"] == {
        "message": "no change waits for its confirmation",
        "help": "it was confirmed, or its time is over",
    }


def test_quiet_leaves_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    token = console.use(console.Console(quiet=True))
    console.say("done")
    console.note("by the way")
    console.warn("look", "there")
    console.leave(token)
    assert capsys.readouterr() == ("", "warning: look\n  help: there\n")


def test_quiet_simulate_prints_only_the_answer(make_root: MakeRoot, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(make_root({"100.conf": VM, "100.fw": ON + "[RULES]\nIN SSH(DROP)\n"}))
    packet = ["--root", root, "--node", NODE, "--local-network", "10.0.0.0/24", "--from", "outside", "--to", "vm100:22"]
    code, out, _ = run(capsys, "simulate", "-q", *packet)
    assert (code, out) == (0, "DROP at vm100, 100.fw:4 (SSH)\n")
    _, out, _ = run(capsys, "simulate", *packet)
    assert out.splitlines()[-1] == "DROP at vm100, 100.fw:4 (SSH)"


@pytest.mark.parametrize(
    ("variables", "wanted"), [({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"TERM": "xterm"}, None)]
)
def test_the_environment_forbids_colour(
    variables: dict[str, str], wanted: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert console.colour() is wanted


def test_lines_wrap_at_the_terminal_with_a_hanging_indent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    line = "  decided by: tap111i0-IN rule 3 (111.fw:5): -p tcp -j DROP"
    assert console.wrapped(line, Terminal()) == ("  decided by: tap111i0-IN rule 3\n      (111.fw:5): -p tcp -j DROP")
    assert console.wrapped(line, io.StringIO()) == line
    styled = click.style("warning", fg="yellow", bold=True) + ": " + "word " * 10
    assert console.wrapped(styled, Terminal()).startswith(click.style("warning", fg="yellow", bold=True) + ": word")


def test_a_verdict_is_coloured_and_nothing_else() -> None:
    assert console.verdict_styled("DROP at vm1") == click.style("DROP", fg="red", bold=True) + " at vm1"
    assert console.verdict_styled("  log: DROP") == "  log: DROP"


def test_a_mistyped_command_and_option_are_answered(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean `status`?" in run(capsys, "stauts")[2]
    assert "--format" in run(capsys, "status", "--formt")[2]
