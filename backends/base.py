"""The interface of a backend, which spells the IR in the language of one tool.

A backend decides no policy. It reports rules that it cannot express in :meth:`Backend.limits`, before
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
    """Cache of lowered chains and sets, for a service that lowers rulesets again and again.

    The key is the identity of the source (see :meth:`known`) and the equality of its dependencies, ``rests_on``. A hit
    always equals a recompute.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self._before: dict[tuple[object, object], tuple[object, object, object]] = {}
        self._now: dict[tuple[object, object], tuple[object, object, object]] = {}

    def begin(self) -> None:
        """Keep the entries of the last ruleset, and forget older ones."""
        self._before, self._now = self._now, {}

    def get(self, kind: object, name: object, source: object, make: Callable[[], _T], rests_on: object = ()) -> _T:
        """Return the cached result of a source; ``make`` computes a missing one.

        ``kind`` and ``name`` identify the result, for example the lines of a table, and the chain's name.
        """
        key = (kind, name)
        known = self._now.get(key) or self._before.get(key)
        if known is None or known[0] is not source or known[1] != rests_on:
            known = (source, rests_on, make())
        self._now[key] = known
        return cast("_T", known[2])

    def known(self, ruleset: Ruleset) -> Ruleset:
        """Return a ruleset with the objects of the last one for all chains and sets that are equal to those.

        A build makes some of them again each time, mostly with equal content.
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
    """Return the result of :meth:`LineStore.get`, or of ``make`` without a store."""
    return make() if store is None else store.get(kind, name, source, make, rests_on)


class Artefact(Protocol):
    """A lowered ruleset. It is written in pieces, since that of a large node does not fit well into one string."""

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

        Where the documented spelling is one that a tool refuses, it has another one. For iptables these are the pieces
        of the one document of :meth:`json`, for nft blocks of commands.
        """


class Backend(Protocol):
    """A backend by its name on the command line."""

    name: str
    default_format: str

    def limits(self, ruleset: Ruleset) -> Iterator[Diagnostic]:
        """Yield a diagnostic for each part of the ruleset that this backend does not apply, with its place."""

    def lower(self, ruleset: Ruleset, store: LineStore | None = None) -> Artefact:
        """Return the ruleset in the backend's language, with the help of ``store`` where there is one.

        Raises InternalError for a part that it cannot express.
        """
