"""Put diagnostics in file order, and complete them with the text of their lines."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pvefw_nft.errors import ConfigurationError, Diagnostic, Span

if TYPE_CHECKING:
    from pvefw_nft.config.files import Files


def in_file_order(diagnostics: list[Diagnostic]) -> tuple[Diagnostic, ...]:
    """Sort diagnostics by line and column. Files keep the order of their first diagnostic."""
    order: dict[str, int] = {}
    for diagnostic in diagnostics:
        order.setdefault(diagnostic.span.file, len(order))
    return tuple(sorted(diagnostics, key=lambda d: (order[d.span.file], d.span.line, d.span.column)))


def with_text(diagnostics: list[Diagnostic], files: Files) -> list[Diagnostic]:
    """Complete the spans that have only a line number with the text of that line, read from the file again."""
    texts: dict[str, list[str]] = {}
    complete = []
    for diagnostic in diagnostics:
        span = diagnostic.span
        if span.line and not span.text:
            if span.file not in texts:
                texts[span.file] = _lines(span.file, files)
            text = texts[span.file][span.line - 1].rstrip("\r") if span.line <= len(texts[span.file]) else ""
            start = len(text) - len(text.lstrip()) + 1
            span = Span(span.file, span.line, start, max(len(text.rstrip()) + 1, start + 1), text)
        complete.append(replace(diagnostic, span=span))
    return complete


def _lines(file: str, files: Files) -> list[str]:
    try:
        return (files.text(file) or "").split("\n")
    except ConfigurationError:
        return []
