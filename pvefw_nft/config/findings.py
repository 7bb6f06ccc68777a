"""The diagnostics that the front end collects while it reads."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pvefw_nft.config.budget import MAX_PROBLEMS
from pvefw_nft.config.hints import hint_for
from pvefw_nft.errors import Diagnostic, Severity, Span

_LONG_WORD = re.compile(r"(\S{60})\S{20,}")


def _shortened(text: str) -> str:
    return _LONG_WORD.sub(r"\1…", text)


@dataclass(slots=True)
class Findings:
    """The diagnostics of a run, in the order in which they were found.

    Each code is declared, with its severity, in :mod:`pvefw_nft.config.codes`.

    ``section`` is the kind of section that is being read; hints depend on it. ``cautious``: an ``enable`` that
    cannot be read counts as 1, not as the default that it has if it is left out.
    """

    diagnostics: list[Diagnostic] = field(default_factory=list)
    cautious: bool = False
    section: str | None = None
    _found: dict[tuple[str, Severity], int] = field(default_factory=dict)

    def add(self, severity: Severity, code: str, span: Span, message: str, hint: str | None = None) -> None:
        """Add one diagnostic; a very long word of the file is quoted in part, and of one file only so many are kept."""
        found = self._found[span.file, severity] = self._found.get((span.file, severity), 0) + 1
        if found > MAX_PROBLEMS and not code.endswith("-closed"):
            if found == MAX_PROBLEMS + 1:
                message = f"more than {MAX_PROBLEMS:,} problems of this kind in the file; the rest is not shown"
                self.diagnostics.append(
                    Diagnostic(
                        severity,  # so that errors are never hidden behind warnings
                        "too-many-problems",
                        Span(span.file, span.line),
                        message,
                        "mend the first ones, and look again",
                    )
                )
            return
        if severity is not Severity.NOTE and span.text:
            hint = hint_for(code, span, self.section) or hint
        self.diagnostics.append(Diagnostic(severity, code, span, _shortened(message), hint and _shortened(hint)))

    def error(self, code: str, span: Span, message: str, hint: str | None = None) -> None:
        """Add an error."""
        self.add(Severity.ERROR, code, span, message, hint)

    def warning(self, code: str, span: Span, message: str, hint: str | None = None) -> None:
        """Add a warning."""
        self.add(Severity.WARNING, code, span, message, hint)

    def note(self, code: str, span: Span, message: str, hint: str | None = None) -> None:
        """Add a note."""
        self.add(Severity.NOTE, code, span, message, hint)
