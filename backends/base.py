"""What a backend is: a way to spell the IR in the language of one tool.

A backend decides nothing about what is filtered. What it cannot express it says in :meth:`Backend.limits`, before
it lowers anything; nothing is ever left out silently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pvefw_nft.errors import Diagnostic
    from pvefw_nft.ir.nodes import Ruleset


class Artefact(Protocol):
    """A lowered ruleset. It is written in pieces, since that of a large node does not fit well into one string."""

    def text(self) -> Iterator[str]:
        """Yield the ruleset as text, in pieces that join to whole lines."""

    def json(self) -> Iterator[str]:
        """Yield the ruleset as one JSON document, in pieces."""

    def loadable_json(self) -> Iterator[str]:
        """Yield the same document for an apply: where the documented spelling is one that a tool refuses, another."""


class Backend(Protocol):
    """A backend by its name on the command line."""

    name: str
    default_format: str

    def limits(self, ruleset: Ruleset) -> Iterator[Diagnostic]:
        """Yield what of the ruleset this backend does not carry out, with the place that asks for it."""

    def lower(self, ruleset: Ruleset) -> Artefact:
        """Return the ruleset in the backend's language. Raises InternalError for what it cannot express."""
