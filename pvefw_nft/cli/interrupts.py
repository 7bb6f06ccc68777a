"""Interrupts by Ctrl-C that come again where Python loses them."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_SOON = 0.01
"""Seconds after which an interrupt that was lost comes again: what lost it is over by then, or loses it again."""


@contextlib.contextmanager
def come_again() -> Iterator[None]:
    """Have interrupts that Python loses in a block come again.

    SIGINT raises KeyboardInterrupt wherever the program is. Where nobody can catch that, as in a generator that is
    dropped or in the callback of a weak reference, Python prints "Exception ignored in" and goes on
    (:data:`sys.unraisablehook`). Without this block a service would then run on.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGALRM) is not signal.SIG_DFL
    ):
        yield  # signals are not ours
        return
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, _SOON)
        else:
            before(unraisable)

    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
