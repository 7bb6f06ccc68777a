"""Diagnostics for programs: JSON, SARIF, and formats that GitHub, GitLab and JUnit readers show beside the lines."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from xml.etree import ElementTree as ET

from pvefw_nft.cli.render import printable
from pvefw_nft.errors import Severity
from pvefw_nft.pipeline.codes import find_code

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pvefw_nft.errors import Diagnostic

_MANUAL = Path(__file__).resolve().parents[2] / "docs" / "diagnostics.md"
"""The manual's page of diagnostics; it exists in a checkout only."""

_SARIF_LINK = re.compile(r"[\[\]\\]")

_GITHUB = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}
_GITLAB = {Severity.ERROR: "major", Severity.WARNING: "minor", Severity.NOTE: "info"}


def diagnostic_data(diagnostic: Diagnostic) -> dict[str, Any]:
    """Return a diagnostic as data; lines and columns count from 1, line 0 is the file as a whole."""
    span = diagnostic.span
    return {
        "severity": diagnostic.severity.value,
        "code": diagnostic.code,
        "message": diagnostic.message,
        "hint": diagnostic.hint,
        "file": span.file,
        "line": span.line,
        "column": span.column,
        "end_column": span.end_column,
    }


def as_json(diagnostics: Sequence[Diagnostic]) -> str:
    """Return diagnostics as a JSON array; lines and columns count from 1, line 0 is the file as a whole."""
    return json.dumps([diagnostic_data(diagnostic) for diagnostic in diagnostics], indent=1)


def as_sarif(diagnostics: Sequence[Diagnostic]) -> str:
    """Return diagnostics as a SARIF 2.1.0 log (OASIS standard)."""
    return json.dumps({**_SARIF, "runs": [sarif_run(diagnostics)]}, indent=1)


_SARIF = {
    "$schema": "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json",
    "version": "2.1.0",
}


def sarif_log() -> tuple[str, str]:
    """Return how a SARIF log with several runs begins and ends."""
    start = json.dumps({**_SARIF, "runs": []}, indent=1)
    return start.removesuffix("]\n}"), "]\n}"


def sarif_run(diagnostics: Sequence[Diagnostic]) -> dict[str, Any]:
    """Return diagnostics as a run of a SARIF log."""
    from importlib import metadata  # deferred: it takes longer to import than most runs take to print

    codes = sorted({diagnostic.code for diagnostic in diagnostics})
    driver = {
        "name": "pvefw",
        "version": metadata.version("pvefw"),
        "rules": [_sarif_rule(code) for code in codes],
    }
    return {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [_sarif_result(diagnostic, codes) for diagnostic in diagnostics],
    }


def _sarif_rule(name: str) -> dict[str, Any]:
    """Return a reporting descriptor: the declaration of a code (SARIF 2.1.0, 3.49)."""
    from pvefw_nft.cli import manual

    code = find_code(name)
    rule: dict[str, Any] = {
        "id": name,
        "shortDescription": {"text": code.title},
        "fullDescription": {"text": code.why},
        "defaultConfiguration": {"level": code.severity.value},
        "help": {"text": manual.text(code), "markdown": manual.section(code)},
    }
    if _MANUAL.is_file():
        rule["helpUri"] = f"{_MANUAL.as_uri()}#{name}"
    return rule


def _sarif_result(diagnostic: Diagnostic, codes: list[str]) -> dict[str, Any]:
    span = diagnostic.span
    # brackets make links (SARIF 2.1.0, 3.11.6)
    message = _SARIF_LINK.sub(r"\\\g<0>", printable(_sentence(diagnostic)))
    place: dict[str, Any] = {"artifactLocation": {"uri": quote(span.file, errors="surrogateescape")}}
    if span.line:
        place["region"] = {"startLine": span.line, "startColumn": span.column, "endColumn": span.end_column}
    return {
        "ruleId": diagnostic.code,
        "ruleIndex": codes.index(diagnostic.code),
        "level": diagnostic.severity.value,
        "message": {"text": message},
        "locations": [{"physicalLocation": place}],
    }


def as_github(diagnostics: Sequence[Diagnostic]) -> str:
    """Return workflow commands, a line each, which GitHub Actions shows as annotations of the lines.

    Source: GitHub's manual, "Workflow commands for GitHub Actions".
    """
    return "\n".join(_github_line(diagnostic) for diagnostic in diagnostics)


def _github_line(diagnostic: Diagnostic) -> str:
    span = diagnostic.span
    properties = {"file": span.file, "title": diagnostic.code}
    if span.line:
        properties |= {"line": str(span.line), "col": str(span.column), "endColumn": str(span.end_column)}
    written = ",".join(f"{name}={_github_escaped(value, ':,')}" for name, value in properties.items())
    return f"::{_GITHUB[diagnostic.severity]} {written}::{_github_escaped(_sentence(diagnostic))}"


def _github_escaped(text: str, more: str = "") -> str:
    """Percent-encode characters that would end a property or the command; control characters are replaced before."""
    return "".join(f"%{ord(char):02X}" if char in f"%{more}" else char for char in printable(text))


def as_gitlab(diagnostics: Sequence[Diagnostic]) -> str:
    """Return a report of GitLab's Code Quality, a JSON array.

    A fingerprint depends on file, code and text of the line, so that a finding stays the same when lines move. Equal
    lines are told apart by their order. Source: GitLab's manual, "Code Quality", "Code Quality report format".
    """
    seen: dict[str, int] = {}
    issues = []
    for diagnostic in diagnostics:
        span = diagnostic.span
        identity = "\0".join((span.file, diagnostic.code, span.text, diagnostic.message))
        number = seen[identity] = seen.get(identity, 0) + 1
        issues.append(
            {
                "description": printable(_sentence(diagnostic)),
                "check_name": diagnostic.code,
                "fingerprint": hashlib.sha256(f"{identity}\0{number}".encode("utf-8", "surrogatepass")).hexdigest(),
                "severity": _GITLAB[diagnostic.severity],
                "location": {"path": span.file, "lines": {"begin": max(span.line, 1)}},
            }
        )
    return json.dumps(issues, indent=1)


def as_junit(diagnostics: Sequence[Diagnostic]) -> str:
    """Return a JUnit report: a suite, with a failed case for each error and a passed one for any other finding.

    Without diagnostics it has one case that passed, since readers take an empty report for a run that failed.
    """
    errors = sum(diagnostic.severity is Severity.ERROR for diagnostic in diagnostics)
    suite = ET.Element(
        "testsuite", name="pvefw check", tests=str(max(len(diagnostics), 1)), failures=str(errors), errors="0"
    )
    for diagnostic in diagnostics:
        place = printable(str(diagnostic.span))
        case = ET.SubElement(suite, "testcase", name=f"{place} {diagnostic.code}", classname=diagnostic.code)
        text = printable(_sentence(diagnostic))
        if diagnostic.severity is Severity.ERROR:
            ET.SubElement(case, "failure", message=text, type=diagnostic.code).text = f"{place}: {text}"
        else:
            ET.SubElement(case, "system-out").text = f"{diagnostic.severity.value}: {place}: {text}"
    if not diagnostics:
        ET.SubElement(suite, "testcase", name="no problems", classname="pvefw")
    suites = ET.Element("testsuites")
    suites.append(suite)
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=True)


def _sentence(diagnostic: Diagnostic) -> str:
    return diagnostic.message if diagnostic.hint is None else f"{diagnostic.message}; {diagnostic.hint}"


FORMATS: Mapping[str, Callable[[Sequence[Diagnostic]], str]] = {
    "json": as_json,
    "sarif": as_sarif,
    "github": as_github,
    "gitlab": as_gitlab,
    "junit": as_junit,
}
"""The formats of ``check --format`` besides text, by name."""
