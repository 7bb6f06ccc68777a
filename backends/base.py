"""The interface of a backend, which spells the IR in the language of one tool.

A backend decides no policy. It reports rules that it cannot express in :meth:`Backend.limits`, before
it lowers anything; nothing is ever left out silently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pvefw_nft.cache import NO_CACHE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pvefw_nft.cache import Cache
    from pvefw_nft.errors import Diagnostic
    from pvefw_nft.ir.nodes import Origin, Ruleset


class Artefact(Protocol):
    """A lowered ruleset. It is written in pieces, because a large node's ruleset does not fit well into one string."""

    def text(self) -> Iterator[str]:
        """Yield the ruleset as text, in pieces that join to whole lines."""

    def json(self) -> Iterator[str]:
        """Yield the ruleset as one JSON document, in pieces."""

    def origins(self) -> Iterator[tuple[tuple[str, str, str, int], Origin]]:
        """Yield tool, table, chain and number (from 1) of rules, each with its origin.

        Only for backends whose rules carry no comment that says it; nft's do.
        """

    def loadable(self) -> Iterator[str]:
        """Yield the artefact for an apply, in pieces of JSON text, each as stable as possible.

        If a tool refuses the documented spelling, the pieces have another one. For iptables they are the pieces of the
        one document of :meth:`json`, for nft blocks of commands.
        """


class Backend(Protocol):
    """A backend by its name on the command line."""

    name: str
    default_format: str

    def limits(self, ruleset: Ruleset) -> Iterator[Diagnostic]:
        """Yield a diagnostic for each part of the ruleset that this backend does not apply, with its place."""

    def lower(self, ruleset: Ruleset, cache: Cache = NO_CACHE) -> Artefact:
        """Return the ruleset in the backend's language. ``cache`` has chains and sets that were lowered before.

        Raises InternalError for a part that it cannot express.
        """
