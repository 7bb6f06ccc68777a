"""The commands as a user types them: output, error output and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.cli import main, rulesets
from pvefw_nft.host import localnet
from tests.support import NODE, VM

if TYPE_CHECKING:
    from tests.support import MakeRoot

ON = "[OPTIONS]\nenable: 1\n"
BAD: dict[str, str | bytes] = {"cluster": ON + "[RULES]\nIN SSSH(ACCEPT)\n|IN NOPE\n"}


def run(root: Path, *arguments: str) -> int:
    """Run a command in this process; returns its exit code."""
    command, *options = arguments
    with pytest.raises(SystemExit) as end:
        main([command, "--root", str(root), "--node", NODE, "--local-network", "10.0.0.0/24", *options])
    assert isinstance(end.value.code, int)
    return end.value.code


def test_compile(make_root: MakeRoot, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(make_root({"100.conf": VM, "100.fw": ON}), "compile") == 0
    out, err = capsys.readouterr()
    assert out.startswith("### ipset restore\n")
    assert ":tap100i0-IN - [0:0]" in out
    assert err == ""


def test_compile_json(make_root: MakeRoot, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(make_root(), "compile", "--format", "json") == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert list(document) == ["enabled", "iptables", "ip6tables", "ipset", "ebtables"]


def test_compile_of_a_disabled_firewall_is_empty(make_root: MakeRoot, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(make_root({"cluster": ""}), "compile", "--format", "json") == 0
    empty: dict[str, Any] = {"filter": {}, "raw": {}}
    document = json.loads(capsys.readouterr().out)
    assert document == {"enabled": False, "iptables": empty, "ip6tables": empty, "ipset": {}, "ebtables": {}}


def test_compile_with_problems_prints_both_and_exits_1(make_root: MakeRoot, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(make_root(BAD), "compile") == 1
    out, err = capsys.readouterr()
    assert "PVEFW-HOST-IN" in out
    assert err.splitlines()[0] == "error[unknown-macro]: unknown macro `SSSH`"
    assert "cluster.fw:4:4" in err
    assert "4 | IN SSSH(ACCEPT)\n  |    ^^^^\n" in err
    assert err.endswith("1 error, 1 warning\n")


def test_compile_to_a_file(make_root: MakeRoot, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "out.txt"
    assert run(make_root(), "compile", "-o", str(output)) == 0
    assert output.read_text().startswith("### ipset restore\n")
    assert capsys.readouterr().out == ""
    assert run(make_root(), "compile", "-o", str(tmp_path / "no" / "out.txt")) == 3
    assert "cannot be written" in capsys.readouterr().err


def test_compile_to_a_device_or_pipe_leaves_it_in_place(make_root: MakeRoot, tmp_path: Path) -> None:
    pipe, link, linked = tmp_path / "pipe", tmp_path / "link", tmp_path / "linked"
    os.mkfifo(pipe)
    link.symlink_to(linked)
    with os.fdopen(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), encoding="utf-8") as reader:
        assert run(make_root({"cluster": ""}), "compile", "-o", str(pipe)) == 0
        assert pipe.is_fifo()
        assert reader.read().startswith("### ipset restore\n")
    assert run(make_root(), "compile", "-o", str(link)) == 0
    assert link.is_symlink()
    assert linked.read_text().startswith("### ipset restore\n")


def test_check(make_root: MakeRoot, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(make_root(), "check") == 0
    assert capsys.readouterr().out == "no problems\n"


def test_check_json(make_root: MakeRoot, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_root(BAD)
    assert run(root, "check", "--format", "json") == 1
    first, second = json.loads(capsys.readouterr().out)
    assert first == {
        "severity": "error",
        "code": "unknown-macro",
        "message": "unknown macro `SSSH`",
        "hint": "did you mean `SSH`?",
        "file": str(root / "etc/pve/firewall/cluster.fw"),
        "line": 4,
        "column": 4,
        "end_column": 8,
    }
    assert second["severity"] == "warning"


def test_check_sarif(make_root: MakeRoot, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(make_root(BAD), "check", "--format", "sarif") == 1
    log = json.loads(capsys.readouterr().out)
    (sarif_run,) = log["runs"]
    assert log["version"] == "2.1.0"
    result = sarif_run["results"][0]
    assert sarif_run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"] == "unknown-macro"
    assert result["locations"][0]["physicalLocation"]["region"] == {"startLine": 4, "startColumn": 4, "endColumn": 8}


def test_warnings_exit_0(make_root: MakeRoot, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(make_root({"cluster": ON + "optimize: 1\n"}), "compile") == 0
    assert "old-option" in capsys.readouterr().err


def test_long_lines_are_shown_in_part(make_root: MakeRoot, capsys: pytest.CaptureFixture[str]) -> None:
    rule = "IN ACCEPT -source " + ",".join(f"10.0.0.{i}" for i in range(100)) + ",x -p tcp"
    assert run(make_root({"cluster": f"{ON}[RULES]\n{rule}\n"}), "check") == 1
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) < 130
    line, marks = shown[3], shown[4]
    assert line[marks.index("^")] == "x"


def test_control_characters_never_reach_the_terminal(make_root: MakeRoot, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(make_root({"cluster": f"{ON}[RULES]\nIN \x1b[31mX\n"}), "check") == 1
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("compile", "--backend", "pf"), 2),
        (("compile", "--root", "/nowhere"), 2),
        (("compile", "--node", "a/b"), 2),
        (("compile", "--local-network", "10.0.0.1/8"), 2),
        (("frobnicate",), 2),
    ],
)
def test_usage(make_root: MakeRoot, arguments: tuple[str, ...], code: int) -> None:
    assert run(make_root(), *arguments) == code


def test_reader_that_has_enough(make_root: MakeRoot) -> None:
    root = make_root({f"{vmid}.{kind}": text for vmid in range(100, 400) for kind, text in (("conf", VM), ("fw", ON))})
    command = [sys.executable, "-m", "pvefw_nft.cli", "compile", "--root", str(root), "--node", NODE]
    command += ["--local-network", "10.0.0.0/24"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


@pytest.mark.parametrize("command", ["compile", "check"])
def test_output_that_cannot_be_written(make_root: MakeRoot, command: str) -> None:
    arguments = [command, "--root", str(make_root()), "--node", NODE, "--local-network", "10.0.0.0/24"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pvefw_nft.cli", *arguments], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (3, b"error: cannot print: No space left on device\n")


def test_commands_are_imported_when_they_are_used() -> None:
    late = "('pyparsing', 'pvefw_nft.backends.')"
    script = f"import sys, pvefw_nft.cli; print([m for m in sys.modules if m.startswith({late})])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_process_ends_with_all_printed_and_the_exit_code(make_root: MakeRoot) -> None:
    command = [sys.executable, "-m", "pvefw_nft.cli", "compile", "--root", str(make_root(BAD)), "--node", NODE]
    command += ["--local-network", "10.0.0.0/24"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[0]) == (1, "### ipset restore")
    assert done.stdout.endswith("-A FORWARD -j PVEFW-FORWARD\n")
    assert done.stderr.endswith("1 error, 1 warning\n")


def test_facts_from_this_machine_for_another_host_are_reported(
    make_root: MakeRoot, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localnet, "detect", lambda: "203.0.113.0/24")
    root = str(make_root({"100.conf": VM, "100.fw": ON}))
    arguments = [
        ["check"],
        ["compile"],
        ["simulate", "--from", "outside", "--to", "vm100", "-p", "tcp", "--dport", "22"],
        ["compare"],
    ]
    for command in arguments:
        rulesets._show_borrowed_once.cache_clear()  # a process runs one command
        with pytest.raises(SystemExit) as end:
            main([*command, "--root", root, "--node", NODE])
        assert end.value.code == 0
        out, err = capsys.readouterr()
        assert (out + err).count("the local network 203.0.113.0/24 is that of this machine") == 1, command
        with pytest.raises(SystemExit):
            main([*command, "--root", root, "--node", NODE, "--local-network", "10.0.0.0/24"])
        out, err = capsys.readouterr()
        assert "of this machine" not in out + err, command
