"""Executors of this machine: processes that die, that take too long, and that are too many."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.config.files import FILES
from pvefw_nft.errors import UsageError
from pvefw_nft.fleet.jobs import Job, do
from pvefw_nft.fleet.local import InProcess, Processes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pvefw_nft.fleet.jobs import Executor


def job(name: str, command: str = "ok", **options: Any) -> Job:  # noqa: ANN401 - JSON
    return Job(name, command, Path("/"), name, FILES, options)


def work(job: Job) -> dict[str, Any]:
    match job.command:
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "die once":
            place = Path(job.options["place"])
            if not place.exists():
                place.write_text("")
                os.kill(os.getpid(), signal.SIGKILL)
        case "leave":
            os._exit(7)
        case "sleep":
            time.sleep(60)
        case "usage":
            raise UsageError("no such thing", "take another")
        case "bug":
            raise ZeroDivisionError("oops")
        case "large":
            return {"exit": 0, "text": "x" * 3_000_000}
    return {"exit": 0, "node": job.node, "pid": os.getpid()}


@pytest.mark.parametrize("executor", [InProcess(), Processes(1), Processes(3)])
def test_all_executors_give_the_same_results(executor: Executor) -> None:
    jobs = [job("a"), job("b", "usage"), job("c", "bug"), job("d", "large")]
    outcomes = {one.job.name: one.result for one in executor.run(iter(jobs), work)}
    for result in outcomes.values():
        assert result is not None
        result.pop("pid", None)
    assert outcomes == {
        "a": {"exit": 0, "node": "a"},
        "b": {"error": {"message": "no such thing", "hint": "take another", "exit": 2}},
        "c": do(job("c", "bug"), work),
        "d": {"exit": 0, "text": "x" * 3_000_000},
    }


def test_the_work_of_a_killed_process_is_done_again(tmp_path: Path) -> None:
    jobs = [job("a"), job("b", "die once", place=str(tmp_path / "died")), job("c")]
    outcomes = {one.job.name: one for one in Processes(2).run(iter(jobs), work)}
    assert [one.attempts for one in (outcomes[name] for name in "abc")] == [1, 2, 1]
    assert all(one.result is not None and one.result["exit"] == 0 for one in outcomes.values())


def test_a_job_that_kills_every_process_is_reported() -> None:
    jobs = [job("a", "die"), job("b"), job("c", "leave"), job("d")]
    outcomes = {one.job.name: one for one in Processes(2).run(iter(jobs), work)}
    assert outcomes["a"].failure == "its process was killed by SIGKILL, 3 times"
    assert outcomes["c"].failure == "its process ended with exit code 7, 3 times"
    assert (outcomes["a"].result, outcomes["c"].result) == (None, None)
    assert outcomes["b"].result is not None
    assert outcomes["d"].result is not None


def test_a_job_that_takes_too_long_is_ended() -> None:
    start = time.monotonic()
    outcomes = {one.job.name: one for one in Processes(2, max_seconds=0.5).run([job("a", "sleep"), job("b")], work)}
    assert outcomes["a"].failure == "it took longer than 0.5 s and was ended"
    assert outcomes["b"].result is not None
    assert time.monotonic() - start < 30


def test_jobs_are_made_only_as_there_is_room_for_them() -> None:
    made = 0

    def jobs() -> Iterator[Job]:
        nonlocal made
        for number in range(40):
            made += 1
            yield job(str(number))

    done = 0
    for _ in Processes(2).run(jobs(), work):
        done += 1
        assert made <= done + 2
    assert done == 40


def test_closing_ends_running_jobs() -> None:
    outcomes = Processes(2).run([job("a"), job("b", "sleep"), job("c", "sleep")], work)
    assert next(outcomes).job.name == "a"
    start = time.monotonic()
    outcomes.close()
    assert time.monotonic() - start < 10
