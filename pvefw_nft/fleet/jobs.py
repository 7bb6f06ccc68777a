"""Jobs, their outcomes, and the interface of their runners."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from pvefw_nft.errors import PvefwError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping
    from pathlib import Path

    from pvefw_nft.config.files import Files

MAX_ATTEMPTS = 3
"""How often a job is started before it is given up, if its worker dies each time."""

MAX_RESULT = 256 * 2**20
"""Largest result of a job that is taken, in bytes of JSON."""


@dataclass(frozen=True, slots=True)
class Job:
    """One node's share of a command.

    ``name`` is unique among the jobs of a run. ``files`` answers for the file system below ``root``. ``node`` empty:
    the share that belongs to the cluster as a whole. ``options`` must fit into JSON.
    """

    name: str
    command: str
    root: Path
    node: str
    files: Files
    options: Mapping[str, Any] = field(default_factory=dict)


Work: TypeAlias = "Callable[[Job], dict[str, Any]]"
"""Does a job and returns its result, which JSON can hold. A function of a module, so that a worker can import it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a job, or why there is none: its worker died each time, or ran out of time.

    ``seconds`` is the time that the work itself took, of the last attempt.
    """

    job: Job
    result: dict[str, Any] | None
    failure: str = ""
    attempts: int = 1
    seconds: float = 0.0


class Executor(Protocol):
    """Runs jobs."""

    def run(self, jobs: Iterable[Job], work: Work) -> Generator[Outcome, None, None]:
        """Yield the outcome of each job as it is done, in any order.

        Jobs are taken from the iterable only when there is room for them, so memory does not grow with their number.
        Closing the iterator ends all work at once.
        """
        ...


def do(job: Job, work: Work) -> dict[str, Any]:
    """Do a job. A failure of it is a result as well: it would fail again.

    The result of a failure has only ``error``, with its message, hint and exit code.
    """
    try:
        return work(job)
    except PvefwError as error:
        return failed(error.message, error.hint, error.exit_code)
    except Exception as error:  # a bug that one node triggers must not hide the results of the rest
        return failed(f"pvefw failed: {type(error).__name__}: {error}", "this is a bug of pvefw; please report it", 3)


def failed(message: str, hint: str | None, exit_code: int) -> dict[str, Any]:
    """Return the result of a job that could not be done."""
    return {"error": {"message": message, "hint": hint, "exit": exit_code}}


def encode(result: dict[str, Any], seconds: float) -> bytes:
    """Return a result as bytes for another process."""
    return json.dumps({"result": result, "seconds": seconds}).encode()


def decode(data: bytes) -> tuple[dict[str, Any], float]:
    """Return the value that :func:`encode` was given."""
    read = json.loads(data)
    return read["result"], float(read["seconds"])
