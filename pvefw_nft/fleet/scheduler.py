"""The executor of many machines: the workers of a Dask cluster (extra ``fleet``).

Dask sends a job again whose worker dies, and gives it up after as many deaths as its scheduler's setting
``distributed.scheduler.allowed-failures`` says (3). It counts a death for all jobs that the worker held. So
a job given up is sent once more at the end, alone: a job that kills its workers then costs no other job its result.

A job is sent with its bundle. Only twice as many are under way as there are threads, so that neither this process nor
the scheduler ever holds many.
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvefw_nft.config.source import program_files
from pvefw_nft.errors import HostError, PvefwError
from pvefw_nft.fleet.bundle import digest_of, pack, unpack
from pvefw_nft.fleet.jobs import Job, Outcome, decode, do, encode, failed

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from pvefw_nft.fleet.jobs import Work

CONNECT_SECONDS = 20.0
"""How long the scheduler, and then its first worker, may take to answer."""

IDLE_SECONDS = 60.0
"""Seconds without any worker before the remaining jobs are given up."""

_RESULT_SECONDS = 5.0

_ONE_AT_A_TIME = threading.Lock()
"""A compile uses one core, and keeps counts in its module: of a worker's threads one works."""


class Scheduler:
    """Runs jobs on the workers of a Dask scheduler."""

    def __init__(self, address: str, *, idle_seconds: float = IDLE_SECONDS) -> None:
        """Use the scheduler at an address, such as ``tcp://10.0.0.9:8786``; nothing is asked of it yet."""
        self._address = address
        self._idle_seconds = idle_seconds

    def run(self, jobs: Iterable[Job], work: Work) -> Generator[Outcome, None, None]:
        """Yield outcomes as the jobs are done. Raises HostError if there is no scheduler or no worker."""
        client = _connect(self._address)
        try:
            yield from _Run(client, iter(jobs), work, self._idle_seconds).outcomes()
        finally:
            client.close(timeout=CONNECT_SECONDS)


def _connect(address: str) -> Any:  # noqa: ANN401 - distributed has no types
    try:
        import distributed
    except ImportError:
        raise HostError(
            "--scheduler needs Dask's distributed, which is not installed",
            "in a checkout: PVEFW_EXTRAS='host nft fleet' ./pvefw --help",
        ) from None
    make: Any = distributed.Client  # mypy knows no types of it
    try:
        client = _within(
            2 * CONNECT_SECONDS, lambda: make(address, timeout=CONNECT_SECONDS, set_as_default=False, name="pvefw")
        )
    except (OSError, TimeoutError, ValueError) as error:
        raise HostError(f"no scheduler answers at {address}: {error}", "start one with `dask scheduler`") from None
    try:
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
    except TimeoutError:
        client.close()
        raise HostError(
            f"the scheduler at {address} has no workers", f"start some with `dask worker {address}`"
        ) from None
    return client


def _within(seconds: float, make: Callable[[], Any]) -> Any:  # noqa: ANN401
    """Return the result of a function; raise TimeoutError if that takes longer.

    Dask's own time limit does not count while a server accepts the connection and says nothing. The thread that waits
    for it ends with the process.
    """
    done: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()

    def attempt() -> None:
        try:
            done.put((make(), None))
        except Exception as error:
            done.put((None, error))

    threading.Thread(target=attempt, name="pvefw-scheduler", daemon=True).start()
    try:
        made, error = done.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError("it accepts connections but does not answer") from None
    if error is not None:
        raise error
    return made


class _Run:
    """The jobs under way."""

    def __init__(self, client: Any, jobs: Iterator[Job], work: Work, idle_seconds: float) -> None:  # noqa: ANN401
        self._client = client
        self._jobs = jobs
        self._work = work
        self._idle_seconds = idle_seconds
        self._under_way: dict[str, tuple[Any, list[Job]]] = {}
        self._done: queue.Queue[str] = queue.Queue()
        self._failed: list[Outcome] = []
        self._suspects: list[Job] = []
        self._alone = False

    def outcomes(self) -> Generator[Outcome, None, None]:
        self._fill()
        last_worker = time.monotonic()
        while self._under_way or self._failed or self._suspects:
            yield from self._take_failed()
            if not self._under_way:
                self._send_alone()
                continue
            if self._threads():
                last_worker = time.monotonic()
            elif time.monotonic() - last_worker > self._idle_seconds:
                yield from self._given_up()
                return
            try:
                yield from self._finished(self._done.get(timeout=1))
            except queue.Empty:
                continue

    def _finished(self, key: str) -> Iterator[Outcome]:
        """Yield the outcomes of a future that is done, unless its jobs are to be done again."""
        future, jobs = self._under_way[key]
        result, seconds, failure = None, 0.0, ""
        deaths = _deaths(future)
        if deaths:
            failure = f"Dask gave it up: {deaths} workers died while they ran only this job"
        else:
            try:
                result, seconds = decode(future.result(timeout=_RESULT_SECONDS))
            except TimeoutError:  # the worker that had the result died: Dask has another one make it
                self._done.put(key)
                return
            except Exception as error:  # any error of Dask: CancelledError, its own
                failure = f"it could not be done: {type(error).__name__}: {error}"
        del self._under_way[key]
        future.release()
        if deaths and not self._alone:
            self._suspects += jobs
        else:
            yield from (Outcome(job, result, failure, seconds=seconds) for job in jobs)
        self._fill()

    def _fill(self) -> None:
        """Send jobs until there are enough under way."""
        room = max(2, 2 * self._threads())
        while len(self._under_way) < room and (job := next(self._jobs, None)) is not None:
            self._send(job)

    def _send_alone(self) -> None:
        """Send a job that was given up again, alone; all other jobs are done."""
        if self._suspects:
            self._alone = True
            self._send(self._suspects.pop())

    def _send(self, job: Job) -> None:
        try:
            bundle = pack(job)
        except PvefwError as error:
            self._failed.append(Outcome(job, failed(error.message, error.hint, error.exit_code)))
            return
        header = json.dumps(
            {
                "command": job.command,
                "root": str(job.root),
                "node": job.node,
                "options": dict(job.options),
                "bundle": digest_of(bundle),
                "program": code_digest(),
                "alone": self._alone,
            },
            sort_keys=True,
        )
        key = f"pvefw-{hashlib.sha256(header.encode()).hexdigest()}"
        if key in self._under_way:  # the same work
            self._under_way[key][1].append(job)
            return
        future = self._client.submit(do_bundle, header, bundle, self._work, key=key, pure=True)
        self._under_way[key] = (future, [job])
        future.add_done_callback(lambda done: self._done.put(done.key))

    def _take_failed(self) -> Iterator[Outcome]:
        while self._failed:
            yield self._failed.pop()
            self._fill()

    def _threads(self) -> int:
        """Return how many threads the workers have; none if the scheduler is gone."""
        try:
            return sum(self._client.nthreads().values())
        except (OSError, TimeoutError, ValueError):
            return 0

    def _given_up(self) -> Iterator[Outcome]:
        reason = f"no worker was left for {self._idle_seconds:g} s"
        for _, jobs in self._under_way.values():
            yield from (Outcome(job, None, reason) for job in jobs)
        self._under_way.clear()
        yield from (Outcome(job, None, reason) for job in self._jobs)


def _deaths(future: Any) -> int:  # noqa: ANN401
    """Return how many workers died over a job before Dask gave it up; 0 if it did not."""
    from distributed import KilledWorker

    error = future.exception(timeout=CONNECT_SECONDS) if future.status == "error" else None
    return int(error.allowed_failures) + 1 if isinstance(error, KilledWorker) else 0


# --- on the worker ------------------------------------------------------------------------------------------------


def do_bundle(header: str, bundle: bytes, work: Work) -> bytes:
    """Do the job that a header and its bundle describe, and return the encoded result."""
    asked = json.loads(header)
    start = time.perf_counter()
    if digest_of(bundle) != asked["bundle"]:
        result = failed("the bundle was changed on its way", "try again", HostError.exit_code)
    elif asked["program"] != code_digest():
        result = failed("the worker runs another version of pvefw", "install the same one there", HostError.exit_code)
    else:
        with _ONE_AT_A_TIME:
            start = time.perf_counter()
            result = _do(asked, bundle, work)
    return encode(result, time.perf_counter() - start)


def _do(asked: dict[str, Any], bundle: bytes, work: Work) -> dict[str, Any]:
    root = Path(asked["root"])
    try:
        files = unpack(bundle, root)
    except PvefwError as error:
        return failed(error.message, error.hint, error.exit_code)
    return do(Job("", asked["command"], root, asked["node"], files, asked["options"]), work)


@cache
def code_digest() -> str:
    """Return a digest of this program's code, the same wherever it is installed."""
    digest = hashlib.sha256()
    package = Path(__file__).resolve().parents[1]
    for path in program_files(package):
        if path.suffix == ".py":
            digest.update(f"{path.relative_to(package)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
