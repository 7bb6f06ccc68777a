"""Diagnostics for people, in the manner of rustc and ruff::

error[unknown-macro]: unknown macro `SHH`
 --> etc/pve/firewall/100.fw:5:4
  |
5 | IN SHH(ACCEPT) -source 10.0.0.0/8
  |    ^^^
  = help: did you mean `SSH`?
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

import click

from pvefw_nft.cli import console
from pvefw_nft.errors import Severity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pvefw_nft.errors import Diagnostic, Span

_WIDTH = 100
_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


def show(diagnostics: Sequence[Diagnostic], *, err: bool = True) -> None:
    """Print diagnostics, by default on standard error, and how many there are. Colour only on a terminal.

    With -q there are only errors, and no count. Nothing of a JSON answer is printed: it holds them as data.
    """
    if console.current().form == "json":
        return
    if console.is_quiet():
        diagnostics = [diagnostic for diagnostic in diagnostics if diagnostic.severity is Severity.ERROR]
    for diagnostic in diagnostics:
        click.echo(_text(diagnostic), err=err)
    if diagnostics and not console.is_quiet():
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
    if text.isprintable():
        return text
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
