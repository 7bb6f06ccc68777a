"""Proving guests in several processes at once.

Each process is forked from the one that has read both rulesets, and proves its share of the guests' NICs. It tells
which of them are *settled*, that is, both sides treat all packets alike in their segments; that is nearly always so for
nearly all of them. The rest is proved again by the process that makes the report and needs to explain differences.
So the report is the one that a single process makes, whatever happens to a process: NICs it said nothing about count as
not settled.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkProcess

MIN_SHARE = 32
"""NICs for which a process is worth it: forking one takes as long as proving a few."""
BETWEEN_REPORTS = 16
"""How many NICs a process proves before it tells how far it is."""


class Finding(NamedTuple):
    """The result of a process: the numbers of the ``settled`` NICs, and the count of all NICs that it has ``proved``.

    ``summary``: what the report counts besides, in the last message of a process; else None.
    """

    settled: tuple[int, ...]
    proved: int
    summary: object = None


@dataclass(slots=True)
class _Running:
    process: ForkProcess
    proved: int = 0


def shares(count: int, jobs: int) -> list[range]:
    """Divide the numbers below ``count`` among at most so many processes; one share: not worth dividing.

    Neighbours go to different processes: guests of one kind often have neighbouring numbers.
    """
    processes = max(1, min(jobs, count // MIN_SHARE))
    return [range(first, count, processes) for first in range(processes)]


def prove(
    dealt: Sequence[Sequence[int]],
    work: Callable[[Iterable[int]], Iterator[Finding]],
    progress: Callable[[int], None],
) -> Iterator[Finding]:
    """Yield the findings of one process for each share. ``work`` runs there, and its findings must be picklable.

    ``progress`` is called with the number of NICs proved by all processes. A process that fails just ends.
    """
    context = multiprocessing.get_context("fork")
    running: dict[Connection, _Running] = {}
    done = 0
    try:
        for share in dealt:
            with _uninterrupted():  # or a process might be left that nothing knows of
                reading, writing = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(share, work, writing), daemon=True)
                process.start()
                writing.close()
                running[reading] = _Running(process)
        while running:
            for one in [one for one in wait(list(running)) if one in running]:
                finding = _received(one)
                if finding is None:
                    running.pop(one).process.join()
                    one.close()
                    continue
                done += finding.proved - running[one].proved
                running[one].proved = finding.proved
                progress(done)
                yield finding
    finally:
        with _uninterrupted():
            for left in running.values():
                left.process.kill()
            for connection, left in running.items():
                left.process.join()
                connection.close()


def _received(connection: Connection) -> Finding | None:
    """Return the next finding; None if the process has ended, or died while it wrote."""
    try:
        finding = connection.recv()
    except (EOFError, OSError, pickle.UnpicklingError):
        return None
    return finding if isinstance(finding, Finding) else None


def _child(share: Sequence[int], work: Callable[[Iterable[int]], Iterator[Finding]], findings: Connection) -> None:
    """Prove a share and send the findings. An error here occurs again in the process that makes the report."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent ends its children
    code = 1
    try:
        with contextlib.suppress(BrokenPipeError):  # the parent is gone
            for finding in work(share):
                findings.send(finding)
            code = 0
    except Exception:
        code = 1
    os._exit(code)  # what the parent had open must not be flushed or removed here


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Have Ctrl-C wait until the end of a block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
