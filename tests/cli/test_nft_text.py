"""nft's own syntax on the command line: printed, read back, and told apart from other formats."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.cli import main
from tests.support import NODE, VM

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import MakeRoot

ON = "[OPTIONS]\nenable: 1\n"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["pvefw", *arguments])
    with pytest.raises(SystemExit) as raised:
        main()
    return raised.value.code


@pytest.fixture
def written(make_root: MakeRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Path]:
    """Return the options of a configuration, and a file with its ruleset in nft's syntax."""
    root = make_root({"100.conf": VM, "100.fw": ON + "[RULES]\nIN SSH(ACCEPT)\n"})
    options = ["--root", str(root), "--node", NODE, "--local-network", "10.0.0.0/24"]
    file = tmp_path / "ruleset.nft"
    assert run(monkeypatch, "compile", "--backend", "nft", "--format", "text", *options, "-o", str(file)) == 0
    return options, file


def test_compare_reads_the_text_back(
    written: tuple[list[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options, file = written
    assert run(monkeypatch, "compare", *options, f"nft:{options[1]}", f"save:{file}") == 0
    text = file.read_text()
    assert "tcp dport 22 accept" in text
    file.write_text(text.replace("tcp dport 22 accept", "tcp dport 23 accept"))
    assert run(monkeypatch, "compare", *options, f"nft:{options[1]}", f"save:{file}") == 1
    capsys.readouterr()


def test_simulate_walks_the_text(
    written: tuple[list[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options, file = written
    packet = ["--from", "outside", "--to", "vm100", "-p", "tcp", "--dport", "22"]
    assert run(monkeypatch, "simulate", *options, "--ruleset", f"save:{file}", *packet) == 0
    assert "100.fw:4 (SSH)" in capsys.readouterr().out


def test_a_text_that_cannot_be_read_names_file_and_line(
    written: tuple[list[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options, file = written
    file.write_text(file.read_text().replace("tcp dport 22 accept", "tcp dport 22 acept"))
    line = next(number for number, text in enumerate(file.read_text().splitlines(), 1) if " acept " in text)
    assert run(monkeypatch, "compare", *options, f"nft:{options[1]}", f"save:{file}") == 3
    assert f"{file}:{line}: expected a statement or match that is known, found `acept`" in capsys.readouterr().err
