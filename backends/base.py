"""What a backend is: a way to spell the IR in the language of one tool.

A backend decides nothing about what is filtered. What it cannot express it says in :meth:`Backend.limits`, before
it lowers anything; nothing is ever left out silently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from pvefw_nft.ir.nodes import Dispatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pvefw_nft.errors import Diagnostic
    from pvefw_nft.ir.nodes import Chain, Ruleset

_T = TypeVar("_T")


class LineStore:
    """The lines of chains as they were lowered last, for a service that lowers rulesets again and again.

    A chain is known by being the same object. Only chains whose lines follow from nothing but themselves are kept.
    """

    def __init__(self) -> None:
        """Start with none."""
        self._before: dict[tuple[object, str], tuple[Chain, object]] = {}
        self._now: dict[tuple[object, str], tuple[Chain, object]] = {}

    def begin(self) -> None:
        """Keep what the last ruleset had, and forget what is older."""
        self._before, self._now = self._now, {}

    def get(self, place: object, chain: Chain, lower: Callable[[], _T]) -> _T:
        """Return the lines of a chain at a place, for example a table; ``lower`` makes those that are not known."""
        known = self._before.get((place, chain.name))
        if known is not None and known[0] is chain:
            self._now[place, chain.name] = known
            return cast("_T", known[1])
        made = lower()
        if not any(isinstance(rule.action, Dispatch) for rule in chain.rules):
            self._now[place, chain.name] = (chain, made)
        return made


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

    def lower(self, ruleset: Ruleset, store: LineStore | None = None) -> Artefact:
        """Return the ruleset in the backend's language, with the help of ``store`` where there is one.

        Raises InternalError for what it cannot express.
        """
