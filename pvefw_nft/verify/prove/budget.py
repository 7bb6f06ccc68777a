"""Bounds on the cost of a comparison: the memory of decision diagrams, and time.

Decision diagrams of rules that overlap in several fields at once can grow with the product of the rules. A pair of
rule lists that exceeds a bound is *not decided*; the other pairs are compared all the same.
"""

from __future__ import annotations

import gc
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_MEMORY = 512
"""Default bound on the memory of one diagram, in MiB. The process takes up to twice as much."""
MAX_SECONDS = 600.0
"""Default bound on the time of one comparison."""
STEPS_BETWEEN_CHECKS = 1 << 14
"""How many diagram operations run between two looks at the clock: about 0.05 s."""


class BudgetExceededError(Exception):
    """A diagram is too large, or the time is up. The message says which, as a reason for people."""


@dataclass(frozen=True, slots=True)
class Budget:
    """``memory`` bounds one diagram (bytes), ``deadline`` is a monotonic time (seconds). None: no bound."""

    memory: int | None = None
    deadline: float | None = None

    @classmethod
    def starting_now(cls, mebibytes: int | None, seconds: float | None) -> Budget:
        """Return the budget of a comparison that starts now."""
        return cls(
            None if mebibytes is None else mebibytes << 20, None if seconds is None else time.monotonic() + seconds
        )

    def check_time(self) -> None:
        """Raise BudgetExceededError if the time is up."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise BudgetExceededError("the time limit was reached (--max-time)")

    def check_memory(self, used: int) -> None:
        """Raise BudgetExceededError if a diagram of that many bytes is larger than allowed."""
        if self.memory is not None and used > self.memory:
            raise BudgetExceededError(f"a decision diagram exceeded {self.memory >> 20} MiB (--max-memory)")


UNBOUNDED = Budget()


@contextmanager
def without_gc() -> Iterator[None]:
    """Diagrams are many small tuples without cycles: looking for cycles among them takes most of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
