"""The manual pages: that they are complete, and that man and mandoc find no mistake in them."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import click
import pytest

from pvefw_nft.cli import cli
from pvefw_nft.config.options import OPTIONS, FileKind
from scripts import manpages

if TYPE_CHECKING:
    from pathlib import Path

PAGES = dict(manpages.pages())


def test_each_command_has_a_page_with_its_options() -> None:
    context = click.Context(cli, info_name="pvefw")
    for name in cli.list_commands(context):
        page = PAGES[f"pvefw-{name}.8"]
        assert f"\\fBpvefw\\-{manpages.escaped(name)}\\fR(8)" in PAGES["pvefw.8"]
        command = cli.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            for option in parameter.opts if isinstance(parameter, click.Option) and not parameter.hidden else ():
                assert manpages.escaped(option) in page, (name, option)


@pytest.mark.parametrize("kind", FileKind)
def test_each_option_is_explained(kind: FileKind) -> None:
    for name, made in OPTIONS[kind].items():
        assert made.default_text, name
        assert f"\\fB{manpages.escaped(name)}\\fR" in PAGES["pvefw.fw.5"]


def test_defaults_equal_the_model() -> None:
    host = {made.name: made.default_text for made in OPTIONS[FileKind.HOST].values()}
    assert host["nosmurfs"] == "1"
    assert host["log_level_in"] == "nolog"
    assert host["nf_conntrack_tcp_timeout_established"] == "432000"
    assert OPTIONS[FileKind.CLUSTER]["policy_in"].default_text == "DROP"
    assert OPTIONS[FileKind.GUEST_HARDENING]["l2"].default_text == "as cluster.pvefw"


def test_the_manual_has_the_tables_of_the_pages() -> None:
    page = (manpages.DOCS / "reference" / "fw-files.md").read_text("utf-8")
    assert page == manpages.renewed(page), "run scripts/manpages.py --options"
    assert [name for _, name, _ in manpages.PART.findall(page)] == list(manpages.rule_parts())


def test_text_of_the_manual_is_not_a_troff_request() -> None:
    made = "\n".join(manpages.rendered("## .so /etc/passwd\n\n.so `a\\b`\n\n'so x\n\n```text\n.so y\n```\n"))
    assert not re.search(r"(?m)^[.']so", made)
    assert "a\\eb" in made


def test_each_code_is_on_the_page_of_diagnostics() -> None:
    for code in ("host-bits", "never-matches"):
        assert manpages.escaped(code) in PAGES["pvefw-diagnostics.7"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("man")
    for name, text in PAGES.items():
        (made / name).write_text(text, "utf-8")
    return made


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed: apt-get install mandoc")
def test_mandoc_finds_no_mistake(folder: Path) -> None:
    command = ["mandoc", "-T", "lint", "-W", "warning", *sorted(PAGES)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(shutil.which("man") is None, reason="man is not installed: apt-get install man-db")
@pytest.mark.parametrize(
    "name", ["pvefw.8", "pvefw-simulate.8", "pvefw.fw.5", "pvefw-differences.7", "pvefw-diagnostics.7"]
)
def test_man_shows_pages_in_80_columns_without_a_warning(folder: Path, name: str) -> None:
    done = subprocess.run(
        ["man", "--warnings", "--local-file", folder / name], capture_output=True, text=True, check=True,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "80", "MANPAGER": "cat"},
    )  # fmt: skip
    assert done.stderr == ""
    assert "SYNOPSIS" in done.stdout or "DESCRIPTION" in done.stdout
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []


def test_text_behind_a_short_tag_keeps_its_distance() -> None:
    assert list(manpages.table(["| a | b |", "| - | - |", "| `ACTION` | `ACCEPT` |"])) == [
        ".TP", "\\fBACTION\\fR", ".br", "\\fBACCEPT\\fR"
    ]  # fmt: skip


def test_a_link_to_a_page_that_man_has_names_it() -> None:
    assert manpages.inline("See [the files](../reference/fw-files.md).") == "See \\fBpvefw.fw\\fR(5)."
    assert manpages.inline("See [a part](nft.md#part).") == "See a part."
