"""What the front end collects while it reads."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pvefw_nft.errors import Diagnostic, Severity

if TYPE_CHECKING:
    from pvefw_nft.errors import Span


_LONG_WORD = re.compile(r"(\S{60})\S{20,}")


def _shortened(text: str) -> str:
    return _LONG_WORD.sub(r"\1…", text)


@dataclass(slots=True)
class Findings:
    """The diagnostics of a run, in the order in which they were found.

    Each code is declared, with its severity, in :mod:`pvefw_nft.config.codes`.

    ``cautious``: an ``enable`` that cannot be read counts as 1, not as the default that it has where it is left out.
    """

    diagnostics: list[Diagnostic] = field(default_factory=list)
    cautious: bool = False

    def add(self, severity: Severity, code: str, span: Span, message: str, hint: str | None = None) -> None:
        """Add one diagnostic; a very long word of the file is quoted in part."""
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
