"""Results carried between compiles, so that a compile repeats only the work whose inputs changed.

A service compiles again after each change. Each stage asks the cache for each of its results, by name::

    cache.get("guest", 100, lambda: (texts, names), lambda: read(texts, names))

A result is a function of its dependencies alone, so a hit equals a recompute: a compile with a cache gives what one
without gives. Only the hints of diagnostics may differ, because guessing at misspelt names has a budget for the whole
compile, of which cached guests use nothing. A command compiles once, with :data:`NO_CACHE`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

_T = TypeVar("_T")


class Cache:
    """A cache keyed by stage and name, whose entries are valid while their dependencies are equal."""

    def __init__(self) -> None:
        """Start with no entries."""
        self._before: dict[tuple[str, Hashable], tuple[object, object]] = {}
        self._current: dict[tuple[str, Hashable], tuple[object, object]] = {}

    def begin(self) -> None:
        """Start a generation: entries that were not used since the last call are forgotten."""
        self._before, self._current = self._current, {}

    def get(
        self,
        stage: str,
        key: Hashable,
        dependencies: Callable[[], object],
        make: Callable[[], _T],
        still_holds: Callable[[_T], bool] | None = None,
    ) -> _T:
        """Return the result of ``make`` for this key of a stage, from the cache if its dependencies are equal.

        Objects are equal to themselves, so that comparing is quick where a dependency is the object of last time.
        Therefore a new result that equals the former one is replaced by it. ``still_holds`` judges a cached result
        where dependencies are known only once it is made, such as the names that a file turns out to use.
        """
        place = stage, key
        entry = self._current.get(place) or self._before.get(place)
        now = dependencies()
        if entry is None:
            entry = (now, make())
        elif entry[0] != now or (still_holds is not None and not still_holds(cast("_T", entry[1]))):
            result = make()
            entry = (now, entry[1] if entry[1] == result else result)
        self._current[place] = entry
        return cast("_T", entry[1])

    def results(self, *, of_this_generation: bool) -> Iterator[tuple[str, Hashable, object, object]]:
        """Yield stage, key, dependencies and result of each entry that was used since the last :meth:`begin`.

        Not ``of_this_generation``: of each that was used before it and not forgotten.
        """
        for (stage, key), entry in (self._current if of_this_generation else self._before).items():
            yield stage, key, *entry

    def same(self, stage: str, key: Hashable, result: _T) -> _T:
        """Return the object of last time if it equals this one, for a result that is made each time."""
        place = stage, key
        entry = self._current.get(place) or self._before.get(place)
        if entry is None or (entry[1] is not result and entry[1] != result):
            entry = (result, result)
        self._current[place] = entry
        return cast("_T", entry[1])


class _NoCache(Cache):
    """The cache of a process that compiles once. It has no entries, and asks for no dependencies."""

    def begin(self) -> None:
        """Do nothing."""

    def get(
        self,
        stage: str,  # noqa: ARG002 - as of any cache
        key: Hashable,  # noqa: ARG002
        dependencies: Callable[[], object],  # noqa: ARG002
        make: Callable[[], _T],
        still_holds: Callable[[_T], bool] | None = None,  # noqa: ARG002
    ) -> _T:
        """Return the result of ``make``."""
        return make()

    def same(self, stage: str, key: Hashable, result: _T) -> _T:  # noqa: ARG002 - as of any cache
        """Return the result."""
        return result


class Once(Generic[_T]):
    """A function without arguments that is called once. :func:`functools.cache` takes ten times as long to make."""

    __slots__ = ("_made", "_make")

    def __init__(self, make: Callable[[], _T]) -> None:
        """Call nothing yet."""
        self._make = make
        self._made: list[_T] = []

    def __call__(self) -> _T:
        """Return the result of the first call that raised nothing."""
        if not self._made:
            self._made.append(self._make())
        return self._made[0]


NO_CACHE: Final[Cache] = _NoCache()
"""A cache without entries."""
