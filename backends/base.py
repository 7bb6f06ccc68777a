"""What a backend is: a way to spell the IR in the language of one tool.

A backend decides nothing about what is filtered. What it cannot express it says in :meth:`Backend.limits`, before
it lowers anything; nothing is ever left out silently.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pvefw_nft.errors import Diagnostic
    from pvefw_nft.ir.nodes import Origin, Ruleset

_T = TypeVar("_T")


class LineStore:
    """What chains and sets became when they were lowered last, for a service that lowers rulesets again and again.

    A source is known by being the same object (see :meth:`known`). Whatever else a result follows from is its
    ``rests_on``; a result is taken again only where that is equal, so that what is kept is what would be made.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self._before: dict[tuple[object, object], tuple[object, object, object]] = {}
        self._now: dict[tuple[object, object], tuple[object, object, object]] = {}

    def begin(self) -> None:
        """Keep what the last ruleset had, and forget what is older."""
        self._before, self._now = self._now, {}

    def get(self, kind: object, name: object, source: object, make: Callable[[], _T], rests_on: object = ()) -> _T:
        """Return what a source became; ``make`` makes what is not known.

        ``kind`` and ``name`` say what it is, for example the lines of a table, and the chain's name.
        """
        key = (kind, name)
        known = self._now.get(key) or self._before.get(key)
        if known is None or known[0] is not source or known[1] != rests_on:
            known = (source, rests_on, make())
        self._now[key] = known
        return cast("_T", known[2])

    def known(self, ruleset: Ruleset) -> Ruleset:
        """Return a ruleset with the objects of the last one for all chains and sets that are equal to those.

        A build makes some of them anew each time, mostly as they were.
        """
        chains = {
            layer: {name: self._same(layer, name, chain) for name, chain in made.items()}
            for layer, made in ruleset.chains.items()
        }
        sets = tuple([self._same("set", made.key, made) for made in ruleset.sets])
        return replace(ruleset, chains=chains, sets=sets)

    def _same(self, kind: object, name: object, source: _T) -> _T:
        key = ("same", kind), name
        known = self._before.get(key)
        if known is None or (known[0] is not source and known[0] != source):
            known = (source, (), source)
        self._now[key] = known
        return cast("_T", known[2])


def kept(
    store: LineStore | None, kind: object, name: object, source: object, make: Callable[[], _T], rests_on: object = ()
) -> _T:
    """Return what :meth:`LineStore.get` returns, or where there is no store what ``make`` does."""
    return make() if store is None else store.get(kind, name, source, make, rests_on)


class Artefact(Protocol):
    """A lowered ruleset. It is written in pieces, since that of a large node does not fit well into one string."""

    def text(self) -> Iterator[str]:
        """Yield the ruleset as text, in pieces that join to whole lines."""

    def json(self) -> Iterator[str]:
        """Yield the ruleset as one JSON document, in pieces."""

    def origins(self) -> Iterator[tuple[tuple[str, str, str, int], Origin]]:
        """Yield tool, table, chain and number (from 1) of rules, each with its origin.

        Only of rules that cannot say it themselves, as those of nft do in their comments.
        """

    def loadable(self) -> Iterator[str]:
        """Yield what an apply takes, in pieces of JSON text of which each changes as little as possible.

        Where the documented spelling is one that a tool refuses, it has another one. For iptables these are the pieces
        of the one document of :meth:`json`, for nft blocks of commands.
        """


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
