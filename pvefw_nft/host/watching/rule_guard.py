"""Limit how often changed rules are repaired: at once at first, then ever more seldom while the changes go on."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .rule_events import name_of_maker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .rule_events import Transaction

_AT_ONCE = 3  # repairs in a row without a wait
_LONGEST = 60.0  # seconds between repairs
_LONGEST_BESIDE_PROXMOX = 5.0  # seconds, less than pve-firewall's loop, which may remove all chains each time
_QUIET = 120.0  # seconds without a repair, after which the next one is the first again
_SHARE = 4  # after a look, so many times as long as it took until the next one
_MOST = 30.0  # seconds between looks


class RuleGuard:
    """Count repairs and the time that looks take, and limit how soon the next one comes.

    A program that changes its own rules all the time must not keep pvefw busy looking. A program that keeps changing
    pvefw's rules must not make it repair them as often.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start without repairs. ``clock`` is in seconds."""
        self._clock = clock
        self._repairs = 0
        self._mended = -_QUIET
        self._next_look = 0.0
        self.beside_proxmox = False
        """Whether a firewall of Proxmox VE runs."""
        self.maker = ""
        """The program of the last transaction since the last repair; empty if the kernel announced none."""
        self._repaired = ""

    @property
    def fights(self) -> bool:
        """Whether repairs are so frequent that the next ones wait."""
        return self._repairs >= _AT_ONCE and self._clock() - self._mended < _QUIET

    @property
    def opponent(self) -> str:
        """The program that changes pvefw's rules. The kernel does not announce changes of ipset and legacy tools."""
        return self.maker or self._repaired or "another program"

    def wait(self, made: Sequence[Transaction]) -> float:
        """Return the seconds until the next look at the rules; ``made`` are other programs' transactions."""
        if made:
            self.maker = name_of_maker(made[-1])
        due = self._next_look
        if self.fights:
            longest = _LONGEST_BESIDE_PROXMOX if self.beside_proxmox else _LONGEST
            due = max(due, self._mended + min(2.0 ** (self._repairs - _AT_ONCE + 1), longest))
        return max(0.0, due - self._clock())

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Measure how long a look takes, unless it leads to a repair, which is counted separately."""
        begun = self._clock()
        try:
            yield
        finally:
            ended = self._clock()
            if self._mended < begun:
                self._next_look = ended + min(_SHARE * (ended - begun), _MOST)

    def mended(self) -> None:
        """Count a repair."""
        now = self._clock()
        self._repaired, self.maker = self.maker, ""
        self._repairs = self._repairs + 1 if now - self._mended < _QUIET else 1
        self._mended = now
