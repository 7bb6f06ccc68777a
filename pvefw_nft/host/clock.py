"""The time of this host, handed to each part that waits, so that tests need not."""

from __future__ import annotations

import time


class Clock:
    """The kernel's clock. All times are in seconds."""

    def since_boot(self) -> float:
        """Return the time since boot, which goes on while the host sleeps and never jumps."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def sleep(self, seconds: float) -> None:
        """Return after so many seconds."""
        time.sleep(seconds)


CLOCK = Clock()
"""It has no state: one is enough."""
