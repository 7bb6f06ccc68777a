"""Waiting for a condition that another process, a thread or the kernel brings about."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def wait_until(condition: Callable[[], object], seconds: float = 20.0, every: float = 0.02) -> bool:
    """Wait until a condition holds, for so many seconds at most. Tell whether it does."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= end:
            return bool(condition())
        time.sleep(every)
    return True
