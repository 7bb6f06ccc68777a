"""The output of ``check`` for GitHub, GitLab and JUnit readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from pvefw_nft.cli.formats import as_github, as_gitlab, as_junit
from pvefw_nft.errors import Diagnostic, Severity, Span
from tests.cli.test_commands import BAD, run

if TYPE_CHECKING:
    from tests.support import MakeRoot

HOSTILE = "]]>&<b>\x1b[31m%0A\n::error::"


def found(severity: Severity = Severity.ERROR, message: str = "unknown macro `SHH`", line: int = 4) -> Diagnostic:
    span = Span("fw/100.fw", line, 4, 7, "IN SHH(ACCEPT)") if line else Span("fw/100.fw", 0)
    return Diagnostic(severity, "unknown-macro", span, message, "did you mean `SSH`?")


def test_github_annotates_the_line() -> None:
    assert as_github([found()]) == (
        "::error file=fw/100.fw,title=unknown-macro,line=4,col=4,endColumn=7::unknown macro `SHH`; did you mean `SSH`?"
    )


@pytest.mark.parametrize(
    ("severity", "word"), [(Severity.ERROR, "error"), (Severity.WARNING, "warning"), (Severity.NOTE, "notice")]
)
def test_github_knows_the_severity(severity: Severity, word: str) -> None:
    assert as_github([found(severity, line=0)]).startswith(f"::{word} file=fw/100.fw,title=unknown-macro::")


def test_github_text_cannot_start_another_command() -> None:
    printed = as_github([found(message=HOSTILE)])
    assert len(printed.splitlines()) == 1
    assert "\x1b" not in printed
    assert "%250A" in printed


def test_a_file_name_cannot_add_a_property_for_github() -> None:
    odd = Diagnostic(Severity.ERROR, "x", Span("a,line=1::b%", 0), "m")
    assert as_github([odd]) == "::error file=a%2Cline=1%3A%3Ab%25,title=x::m"


def test_gitlab_tells_equal_lines_apart_and_keeps_a_finding_that_moves() -> None:
    first, second = json.loads(as_gitlab([found(), found(line=9)]))
    (moved,) = json.loads(as_gitlab([found(line=12)]))
    assert first["fingerprint"] != second["fingerprint"]
    assert moved["fingerprint"] == first["fingerprint"]
    assert first["location"] == {"path": "fw/100.fw", "lines": {"begin": 4}}
    assert first["severity"] == "major"


def test_gitlab_has_a_line_for_a_whole_file() -> None:
    assert json.loads(as_gitlab([found(line=0)]))[0]["location"]["lines"]["begin"] == 1


def test_junit_fails_for_errors_only() -> None:
    root = ET.fromstring(as_junit([found(), found(Severity.WARNING)]))
    (suite,) = root
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert [case.find("failure") is not None for case in suite] == [True, False]


def test_junit_is_xml_for_any_file_content() -> None:
    (suite,) = ET.fromstring(as_junit([found(message=HOSTILE + "\ud800\x00")]))
    failure = suite[0].find("failure")
    assert failure is not None
    assert "]]>&<b>" in (failure.text or "")


def test_junit_without_findings_passes() -> None:
    (suite,) = ET.fromstring(as_junit([]))
    assert (suite.get("tests"), suite.get("failures"), len(suite)) == ("1", "0", 1)


@pytest.mark.parametrize("form", ["github", "gitlab", "junit"])
def test_check_prints_each_format(make_root: MakeRoot, capsys: pytest.CaptureFixture[str], form: str) -> None:
    assert run(make_root(BAD), "check", "--format", form) == 1
    assert "unknown-macro" in capsys.readouterr().out


def test_check_takes_the_folder_as_an_argument(make_root: MakeRoot, capsys: pytest.CaptureFixture[str]) -> None:
    from pvefw_nft.cli import main

    folder = str(make_root(BAD))
    with pytest.raises(SystemExit) as end:
        main(["check", folder, "--node", "pve1"])
    assert end.value.code == 1
    assert f"{Path(folder)}/etc/pve" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["check", folder, "--root", folder])
    assert end.value.code == 2
    assert "named twice" in capsys.readouterr().err
