"""The frequency of this machine's time stamp counter, which a guest under QEMU's TCG counts its time with."""

from __future__ import annotations

import ctypes
import mmap
import platform
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# rdtsc; shl $32, %rdx; or %rdx, %rax; ret
_READ = bytes.fromhex("0f31 48c1e220 4809d0 c3")
_SECONDS = 0.05
_TRIES = 20


def kilohertz() -> int | None:
    """Return how often the counter counts in a millisecond; None: this machine has none, or runs no code made here."""
    if platform.machine() != "x86_64":
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    page.write(_READ)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    begun, first = _moment(read)
    time.sleep(_SECONDS)
    ended, last = _moment(read)
    return round((last - first) * 1_000_000 / (ended - begun))


def _moment(read: Callable[[], int]) -> tuple[float, int]:
    """Return the time in nanoseconds, and the counter at that time.

    Another process may run between the two readings, so the closest of some pairs counts.
    """
    moments = []
    for _ in range(_TRIES):
        before, counter, after = time.monotonic_ns(), read(), time.monotonic_ns()
        moments.append((after - before, (before + after) / 2, counter))
    _, now, counter = min(moments)
    return now, counter
