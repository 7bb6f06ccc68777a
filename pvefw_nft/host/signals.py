"""Signals that wait."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def deferred(*numbers: signal.Signals) -> Iterator[None]:
    """Have these signals wait until the end of a block. A process that is forked in the block keeps them waiting."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
