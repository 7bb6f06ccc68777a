"""What the front end collects while it reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pvefw_nft.errors import Diagnostic, Severity

if TYPE_CHECKING:
    from pvefw_nft.errors import Span


@dataclass(slots=True)
class Findings:
    """The diagnostics of a run, in the order in which they were found."""

    diagnostics: list[Diagnostic] = field(default_factory=list)

    def add(self, severity: Severity, code: str, span: Span, message: str, hint: str | None = None) -> None:
        """Add one diagnostic."""
        self.diagnostics.append(Diagnostic(severity, code, span, message, hint))

    def error(self, code: str, span: Span, message: str, hint: str | None = None) -> None:
        """Add an error."""
        self.add(Severity.ERROR, code, span, message, hint)

    def warning(self, code: str, span: Span, message: str, hint: str | None = None) -> None:
        """Add a warning."""
        self.add(Severity.WARNING, code, span, message, hint)
