"""A clock that tests set forward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.host.clock import Clock

if TYPE_CHECKING:
    from collections.abc import Callable


class FastClock(Clock):
    """The host's clock, on which a sleep is over at once. ``during`` is called in each sleep."""

    def __init__(self, during: Callable[[], object] = lambda: None) -> None:
        self._ahead = 0.0
        self.during = during

    def since_boot(self) -> float:
        return super().since_boot() + self._ahead

    def sleep(self, seconds: float) -> None:
        self._ahead += seconds
        self.during()
