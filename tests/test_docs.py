"""Every page: its links lead somewhere, its commands exist and print the shown output, and no example risks a host."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
import unicodedata
from typing import TYPE_CHECKING
from urllib.parse import unquote

import click
import pytest

from pvefw_nft.cli import cli
from scripts import terminal_picture
from tests.shown import REPOSITORY, Session, assert_shown, sessions_of

if TYPE_CHECKING:
    from pathlib import Path


def tracked_pages() -> list[str]:
    """Return all Markdown files of the project, by their path from its root."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        capture_output=True, text=True, check=True, cwd=REPOSITORY,
    )  # fmt: skip
    return sorted(name for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file())


PAGES = tracked_pages()
SHOWN = [
    pytest.param(session, id=f"{page}-{number}")
    for page in PAGES
    if not page.startswith("examples/")  # tests/test_examples.py has these
    for number, session in enumerate(sessions_of(REPOSITORY / page), start=1)
    if session.is_run
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^ *(```|~~~).*?^ *\1 *$", re.MULTILINE | re.DOTALL)

each_page = pytest.mark.parametrize("page", PAGES)

# these change the firewall of a host, and could lock its administrator out
RISKY = ("start", "update", "restart", "take-over", "hand-back")
HARMLESS = {"--confirm", "--dry-run", "--help", "--print-unit"}


@pytest.mark.parametrize("session", SHOWN)
def test_a_command_prints_the_output_on_its_page(session: Session) -> None:
    assert_shown(session)


@each_page
def test_links_lead_to_files_and_headings(page: str) -> None:
    here = REPOSITORY / page
    broken = []
    for link in LINK.findall(without_code(here.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (here.parent / path).resolve() if path else here
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@each_page
def test_a_page_can_be_found(page: str) -> None:
    """Each page of the manual is in the site's navigation; forges show some others; pages link to the rest."""
    if page.startswith("docs/"):
        assert page.removeprefix("docs/") in (REPOSITORY / "mkdocs.yml").read_text("utf-8")
    elif not page.startswith((".github/", ".gitlab/")) and page != "README.md":
        others = [(REPOSITORY / other).read_text("utf-8") for other in PAGES if other != page]
        assert any(page in text or page.rpartition("/")[0] + "/README.md" in text for text in others)


def test_the_site_is_built_without_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=REPOSITORY, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "how-to" / "migrate.html").exists()
    assert (tmp_path / "reference" / "schemas" / "status-1.json").exists()


@each_page
def test_commands_and_options_exist(page: str) -> None:
    for session in sessions_of(REPOSITORY / page):
        if session.words[0] not in ("pvefw", "./pvefw"):
            continue
        name, *arguments = session.arguments or ("--help",)
        if name.startswith("-"):
            continue
        command = cli.get_command(click.Context(cli), name)
        if isinstance(command, click.Group) and arguments:
            command = command.get_command(click.Context(command), arguments.pop(0))
        assert command is not None, session
        # values are not looked at (files need not exist), options are
        known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
        given = {word.partition("=")[0] for word in arguments if re.match(r"-[-a-z]", word)}
        assert given <= {*known, "-h", "--help"}, session


@each_page
def test_a_command_that_changes_a_host_is_shown_with_a_way_back(page: str) -> None:
    for session in sessions_of(REPOSITORY / page):
        if session.words[0] in ("pvefw", "./pvefw") and session.arguments and session.arguments[0] in RISKY:
            assert {*session.arguments} & HARMLESS, f"{page}: {' '.join(session.words)}: without --confirm"


@pytest.mark.parametrize("page", [page for page in PAGES if "```pycon" in (REPOSITORY / page).read_text("utf-8")])
def test_python_examples_hold(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert doctest.testfile(str(REPOSITORY / page), module_relative=False, encoding="utf-8").failed == 0


@pytest.mark.parametrize("name", sorted(terminal_picture.PICTURES))
def test_a_picture_shows_the_output_of_its_commands(name: str) -> None:
    drawn = (REPOSITORY / f"docs/images/{name}.svg").read_text("utf-8")
    assert drawn == terminal_picture.picture(terminal_picture.PICTURES[name]), "run scripts/terminal_picture.py"


def without_code(text: str) -> str:
    """Return a page without fenced blocks and code spans, in which brackets are no links."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def anchors(page: Path) -> set[str]:
    """Return the names of a page's headings, as forges and mkdocs make them of their text."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.*?) *$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE):
        plain = re.sub(r"\]\([^)]*\)|[`*\[\]]", "", heading)
        text = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode().lower()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip()))
    return found


def test_anchors_are_made_as_forges_make_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Connection tracking zones, and NAT\n## `check` in CI\n```\n# no heading\n```\n")
    assert anchors(page) == {"connection-tracking-zones-and-nat", "check-in-ci"}


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One\n[there](page.md#one) [gone](gone.md) [no heading](page.md#two) `[code](no.md)`\n")
    with pytest.raises(AssertionError, match=r"gone\.md"):
        test_links_lead_to_files_and_headings(str(page))
