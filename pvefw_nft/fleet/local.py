"""Executors of this machine: one after the other in this process, or each job in a process of its own."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

from pvefw_nft.fleet.jobs import MAX_ATTEMPTS, MAX_RESULT, Outcome, decode, do, encode

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkProcess

    from pvefw_nft.fleet.jobs import Job, Work


class InProcess:
    """Runs jobs one after the other in this process. A job that kills its process ends all."""

    def run(self, jobs: Iterable[Job], work: Work) -> Generator[Outcome, None, None]:
        """Yield outcomes in the order of the jobs."""
        for job in jobs:
            start = time.perf_counter()
            result = json.loads(json.dumps(do(job, work)))  # the same types as from another process
            yield Outcome(job, result, seconds=time.perf_counter() - start)


@dataclass(frozen=True, slots=True)
class _Running:
    """A job in its process: the pipe of its result, its number of starts, and the time of the last one."""

    job: Job
    process: ForkProcess
    results: Connection
    attempt: int
    started: float


class Processes:
    """Runs each job in a forked process of its own, ``count`` at a time.

    A process that dies takes only its own job with it, so that it is known which job to repeat. Forking costs a few
    milliseconds, and the child has all modules loaded, and all that this process has read.
    """

    def __init__(self, count: int, *, max_seconds: float | None = None) -> None:
        """Run ``count`` jobs at a time, each for at most ``max_seconds`` (None: no limit)."""
        self._count = count
        self._max_seconds = max_seconds
        self._context = multiprocessing.get_context("fork")

    def run(self, jobs: Iterable[Job], work: Work) -> Generator[Outcome, None, None]:
        """Yield outcomes as the jobs are done."""
        waiting = iter(jobs)
        again: list[tuple[Job, int]] = []
        running: dict[Connection, _Running] = {}
        try:
            while True:
                while len(running) < self._count and (following := _next(waiting, again)) is not None:
                    with _uninterrupted():  # or a process might be left that nothing knows of
                        started = self._start(*following, work)
                        running[started.results] = started
                if not running:
                    return
                for ended, failure in self._ended(running):
                    del running[ended.results]
                    outcome = _collect(ended, failure)
                    if outcome.result is None and not failure and ended.attempt < MAX_ATTEMPTS:
                        again.append((ended.job, ended.attempt + 1))
                    else:
                        yield outcome
        finally:
            with _uninterrupted():
                for left in running.values():
                    left.process.kill()
                for left in running.values():
                    left.process.join()
                    left.results.close()

    def _start(self, job: Job, attempt: int, work: Work) -> _Running:
        reading, writing = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_child, args=(job, work, writing), daemon=True)
        process.start()
        writing.close()
        return _Running(job, process, reading, attempt, time.monotonic())

    def _ended(self, running: dict[Connection, _Running]) -> list[tuple[_Running, str]]:
        """Wait until a job is done, its process has died, or its time is over; the latter with a failure."""
        now = time.monotonic()
        limit = self._max_seconds
        patience = None if limit is None else max(0.0, min(one.started + limit - now for one in running.values()))
        # at the end of a process its pipe is readable too: end of file
        done = [running[one] for one in wait(list(running), patience) if one in running]
        if done or limit is None:
            return [(one, "") for one in done]
        now = time.monotonic()
        late = [one for one in running.values() if now >= one.started + limit]
        return [(one, f"it took longer than {limit:g} s and was ended") for one in late]


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Have Ctrl-C wait until the end of a block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _next(waiting: Iterator[Job], again: list[tuple[Job, int]]) -> tuple[Job, int] | None:
    """Return the job to start, and which attempt that is: those that were lost come first."""
    if again:
        return again.pop()
    job = next(waiting, None)
    return None if job is None else (job, 1)


def _child(job: Job, work: Work, results: Connection) -> None:
    """Do a job and send its result; discard its output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent ends its children
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    start = time.perf_counter()
    result = do(job, work)
    with contextlib.suppress(BrokenPipeError):  # the parent is gone
        results.send_bytes(encode(result, time.perf_counter() - start))
    results.close()


def _collect(ended: _Running, failure: str) -> Outcome:
    """Return the outcome of a process that is done, dead or late; it is gone afterwards."""
    result, seconds = None, time.monotonic() - ended.started
    try:
        if not failure:
            result, seconds = decode(ended.results.recv_bytes(MAX_RESULT))
    except (EOFError, ConnectionError):  # it died before, or while it wrote
        pass
    except (OSError, ValueError) as error:
        failure = f"its result could not be read: {error}"
    finally:
        ended.results.close()
        if result is None:
            ended.process.kill()
        ended.process.join()
    if result is None and not failure:
        failure = f"its process {_end(ended.process.exitcode)}{_times(ended.attempt)}"
    return Outcome(ended.job, result, failure, ended.attempt, seconds)


def _end(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
        return f"was killed by signal {-code}"
    return f"ended with exit code {code}"


def _times(attempts: int) -> str:
    return "" if attempts == 1 else f", {attempts} times"
