"""Notice in the service that one of Proxmox VE's firewalls started or ended.

A package upgrade, a person or another program may start one long after ``pvefw run`` has begun. pvefw's rules stay
then: changes by that firewall are repaired like any other (:mod:`..watching.rule_guard`).
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final

from pvefw_nft.errors import HostError

from .services import running_firewalls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_INTERVAL: Final = 20.0  # seconds between looks; each look starts a process
_LONGEST: Final = 320.0  # seconds between looks while one goes on running


class FirewallWatch:
    """Look at Proxmox VE's firewalls, and report changes since the last look."""

    def __init__(
        self,
        look: Callable[[], list[str]] = running_firewalls,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with none that runs. ``clock`` is in seconds."""
        self._look = look
        self._clock = clock
        self._found: tuple[str, ...] = ()
        self._due = clock() + _INTERVAL
        self._interval = _INTERVAL

    @property
    def runs(self) -> bool:
        """Whether one ran at the last look."""
        return bool(self._found)

    def news(self) -> Iterator[str]:
        """Yield a line for each firewall that came to life or ended; none if it is not time to look."""
        if self._clock() < self._due:
            return
        found = self._found
        with contextlib.suppress(HostError):  # systemd does not answer: the next look may tell
            found = tuple(self._look())
        came = [line for line in found if line not in self._found]
        gone = [line for line in self._found if line not in found]
        self._interval = min(2 * self._interval, _LONGEST) if found and not came else _INTERVAL
        self._found = found
        for line in came:
            yield f"warning: {line}: its changes to pvefw's rules are repaired; `pvefw take-over` stops it"
        for line in gone:
            yield f"no more: {line}"
        self._due = self._clock() + self._interval
