"""Escape sequences in arguments, names of files and texts never reach a terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from pvefw_nft.cli.clean_stream import clean
from tests.support import VM

if TYPE_CHECKING:
    from tests.support import MakeRoot

REPOSITORY = Path(__file__).resolve().parents[2]
EVIL = "\x1b]0;owned\x07\x1b[8mhidden\x1b[2J\r\x9b31m\u202eright to left"


def run(*arguments: str | bytes) -> bytes:
    """Run the command as its own process and return all that it prints."""
    command = [sys.executable, "-m", "pvefw_nft.cli", *arguments]
    done = subprocess.run(command, capture_output=True, cwd=REPOSITORY, check=False)
    assert b"Traceback" not in done.stderr
    return done.stdout + done.stderr


def assert_clean(printed: bytes) -> None:
    text = printed.decode()
    assert text
    assert not [char for char in text if not char.isprintable() and char not in "\n\t"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "--root", EVIL),
        ("check", "--node", EVIL),
        ("compile", "--root", "examples/minimal", "--local-network", EVIL),
        ("compile", "--root", "examples/minimal", "-o", f"/nonexistent/{EVIL}"),
        ("compare", f"save:{EVIL}", f"nft-json:{EVIL}"),
        ("compare", EVIL),
        ("simulate", "--root", "examples/minimal", "--from", EVIL, "--to", EVIL),
        ("simulate", "--tests", EVIL),
        (EVIL,),
        ("check", f"--{EVIL}"),
        ("explain", EVIL),
        ("check", "--root", b"/\xff\xfe\x1b[2J"),
    ],
    ids=[
        "root",
        "node",
        "network",
        "output",
        "files",
        "ruleset",
        "zones",
        "tests",
        "command",
        "option",
        "code",
        "bytes",
    ],
)
def test_arguments(arguments: tuple[str | bytes, ...]) -> None:
    assert_clean(run(*arguments))


@pytest.mark.parametrize("form", ["text", "json", "sarif"])
def test_configuration(make_root: MakeRoot, form: str) -> None:
    bad = f"[OPTIONS]\nenable: 1\n{EVIL}: 1\n[RULES]\nIN ACCEPT -source {EVIL}\n[{EVIL}\n[IPSET {EVIL}]\n{EVIL}\n"
    root = make_root({"cluster": bad, "host": bad, "100.conf": VM + f"net1: {EVIL}\n", "100.fw": bad})
    assert_clean(run("check", "--root", str(root), "--node", "n1", "--format", form))


def test_names_of_files_and_links(make_root: MakeRoot, tmp_path: Path) -> None:
    root = make_root({"100.conf": VM})
    (root / "etc/pve/nodes" / EVIL).mkdir(parents=True)
    assert_clean(run("check", "--root", str(root), "--node", "nobody"))
    moved = tmp_path / EVIL
    moved.mkdir()
    (root / "etc").rename(moved / "etc")
    (moved / "etc/pve/firewall/100.fw").write_bytes(b"\0")
    assert_clean(run("check", "--root", str(moved), "--node", EVIL))


def test_colours_and_progress_of_our_own_stay() -> None:
    styled = click.style("error", fg="red", bold=True) + ": text\n"
    assert clean(styled) == styled
    assert clean("\rproving: 1 of 2") == "\rproving: 1 of 2"
    assert clean("name\r\x1b[8m\x1b[Kerased") == "name\ufffd\ufffd[8m\ufffd[Kerased"


def test_links_in_sarif_texts_are_text(make_root: MakeRoot) -> None:
    rule = "IN [a](https://example.org)(ACCEPT)\n"
    root = make_root({"100.conf": VM, "100.fw": f"[OPTIONS]\nenable: 1\n[RULES]\n{rule}"})
    printed = run("check", "--root", str(root), "--node", "n1", "--format", "sarif").decode()
    assert "example" in printed
    assert "[a](https" not in printed
