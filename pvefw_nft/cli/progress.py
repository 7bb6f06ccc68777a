"""How far a command is, on a terminal."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from pvefw_nft.cli import console
from pvefw_nft.host.clock import CLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pvefw_nft.host.clock import Clock

_DELAY = 0.5  # seconds: shorter work shows no progress


@contextmanager
def progress(what: str, clock: Clock = CLOCK) -> Iterator[Callable[[int, int], None] | None]:
    """Yield a function that shows on standard error how much of all is done, after half a second; None in a pipe.

    Example of the line, which is written over and removed at the end: ``proving: 40 of 100 (40 %)``.
    """
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb" or console.is_quiet():
        yield None
        return
    shown, since = -1, clock.since_boot() + _DELAY

    def show(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // max(total, 1)
        if percent != shown and clock.since_boot() >= since:
            shown = percent
            click.echo(f"\r{what}: {done} of {total} ({percent} %)", nl=False, err=True)

    try:
        yield show
    finally:
        if shown >= 0:
            click.echo("\r\x1b[K", nl=False, err=True)
