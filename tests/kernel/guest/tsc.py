"""The frequency of this machine's time stamp counter, which a guest under QEMU's TCG counts its time with."""

from __future__ import annotations

import ctypes
import mmap
import platform
import time

# rdtsc; shl $32, %rdx; or %rdx, %rax; ret
_READ = bytes.fromhex("0f31 48c1e220 4809d0 c3")
_SECONDS = 0.05


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
    begun, first = time.monotonic_ns(), read()
    time.sleep(_SECONDS)
    ended, last = time.monotonic_ns(), read()
    counted: int = last - first
    return round(counted * 1_000_000 / (ended - begun))
