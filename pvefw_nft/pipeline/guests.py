"""Keep the guests of a node as read, for the questions of one command."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pvefw_nft.cache import Cache
from pvefw_nft.config.load import GUEST

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

_T = TypeVar("_T")


class GuestCache(Cache):
    """A cache of guests as read, and of nothing else: a compile of one guest after the other needs no more."""

    def get(
        self,
        stage: str,
        key: Hashable,
        dependencies: Callable[[], object],
        make: Callable[[], _T],
        still_holds: Callable[[_T], bool] | None = None,
    ) -> _T:
        """Return the result of ``make``, or for a guest an equal one."""
        return super().get(stage, key, dependencies, make, still_holds) if stage == GUEST else make()
