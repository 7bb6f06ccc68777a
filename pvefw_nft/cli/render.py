"""Diagnostics for people and for programs.

For people, in the manner of rustc and ruff::

    error[unknown-macro]: unknown macro `SHH`
     --> etc/pve/firewall/100.fw:5:4
      |
    5 | IN SHH(ACCEPT) -source 10.0.0.0/8
      |    ^^^
      = help: did you mean `SSH`?
"""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from pvefw_nft.errors import Severity
from pvefw_nft.pipeline import find_code

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pvefw_nft.errors import Diagnostic, Span

_MANUAL = Path(__file__).resolve().parents[2] / "docs" / "diagnostics.md"
"""The manual's page of diagnostics; it exists in a checkout only."""

_SARIF_LINK = re.compile(r"[\[\]\\]")
_WIDTH = 100
_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


def show(diagnostics: Sequence[Diagnostic], *, err: bool = True) -> None:
    """Print diagnostics, by default on standard error, and how many there are. Colour only on a terminal."""
    for diagnostic in diagnostics:
        click.echo(_text(diagnostic), err=err)
    if diagnostics:
        click.echo(_summary(diagnostics), err=err)


def _summary(diagnostics: Sequence[Diagnostic]) -> str:
    counts = []
    for severity in Severity:
        count = sum(diagnostic.severity is severity for diagnostic in diagnostics)
        if count:
            counts.append(f"{count} {severity.value}{'s' if count > 1 else ''}")
    return ", ".join(counts)


def _text(diagnostic: Diagnostic) -> str:
    span = diagnostic.span
    colour = _COLOURS[diagnostic.severity]
    head = click.style(f"{diagnostic.severity.value}[{diagnostic.code}]", fg=colour, bold=True)
    lines = [f"{head}: {click.style(printable(diagnostic.message), bold=True)}"]
    margin = " " * len(str(span.line))
    lines.append(f"{margin}--> {printable(str(span))}")
    if span.line and span.text:
        text, before, marked = _excerpt(span)
        marks = click.style("^" * max(marked, 1), fg=colour, bold=True)
        lines += [f"{margin} |", f"{span.line} | {text}", f"{margin} | {' ' * before}{marks}"]
    if diagnostic.hint:
        lines.append(f"{margin} = help: {printable(diagnostic.hint)}")
    return "\n".join([*lines, ""])


def printable(text: str) -> str:
    """Return text that is safe to print: control characters and lone surrogates become U+FFFD."""
    return "".join(
        char if char.isprintable() else " " if char == "\t" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def _excerpt(span: Span) -> tuple[str, int, int]:
    """Return the line, or a window of a long one, and the width before and of the marked part."""
    start, end = span.column - 1, span.end_column - 1
    first = max(0, start - _WIDTH // 2) if len(span.text) > _WIDTH else 0
    last = min(len(span.text), max(first + _WIDTH, 0))
    text = printable(span.text[first:last])
    lead = "…" if first else ""
    before = lead + text[: start - first]
    marked = text[start - first : min(end, last) - first]
    return f"{lead}{text.rstrip()}{'…' if last < len(span.text) else ''}", _cells(before), _cells(marked)


def _cells(text: str) -> int:
    """Return how many columns of a terminal a text takes (Unicode Standard Annex 11)."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def _as_dict(diagnostic: Diagnostic) -> dict[str, Any]:
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
    return json.dumps([_as_dict(diagnostic) for diagnostic in diagnostics], indent=1)


def as_sarif(diagnostics: Sequence[Diagnostic]) -> str:
    """Return diagnostics as a SARIF 2.1.0 log (OASIS standard)."""
    from importlib import metadata  # deferred: it takes longer to import than most runs take to print

    codes = sorted({diagnostic.code for diagnostic in diagnostics})
    driver = {
        "name": "pvefw",
        "version": metadata.version("pvefw"),
        "rules": [_sarif_rule(code) for code in codes],
    }
    log = {
        "$schema": "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": driver},
                "columnKind": "unicodeCodePoints",
                "results": [_sarif_result(diagnostic, codes) for diagnostic in diagnostics],
            }
        ],
    }
    return json.dumps(log, indent=1)


def _sarif_rule(name: str) -> dict[str, Any]:
    """Return what SARIF calls a reporting descriptor: the declaration of a code (SARIF 2.1.0, 3.49)."""
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
    message = diagnostic.message if diagnostic.hint is None else f"{diagnostic.message}; {diagnostic.hint}"
    message = _SARIF_LINK.sub(r"\\\g<0>", printable(message))  # brackets make links (SARIF 2.1.0, 3.11.6)
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
