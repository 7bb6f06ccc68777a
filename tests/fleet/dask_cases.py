"""Jobs on a Dask cluster: the results of this machine's processes, dead workers, and inputs that kill each worker."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.app.cluster import read_cluster
from pvefw_nft.cli import node_work
from pvefw_nft.errors import HostError
from pvefw_nft.fleet import scheduler
from pvefw_nft.fleet.jobs import Job
from pvefw_nft.fleet.local import InProcess
from pvefw_nft.fleet.scheduler import Scheduler

from .clusters import break_three, make_cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    import dask

    with dask.config.set(
        {"distributed.scheduler.allowed-failures": 1, "distributed.worker.multiprocessing-method": "spawn"}
    ):
        cluster = distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50, worker_dashboard_address=None
        )
        yield cluster
        cluster.close()


def jobs(root: Path, **options: Any) -> list[Job]:  # noqa: ANN401 - JSON
    given = {"local_network": "10.0.0.0/24", "network_origin": "", "analysis": True, **options}
    nodes = read_cluster(root, local_network="10.0.0.0/24").nodes
    return [Job(node.name, "check", root, node.name, node.files, given) for node in nodes]


def work(job: Job) -> dict[str, Any]:
    """Kill the worker where the job is to: once, or each time."""
    place = Path(job.options.get("place", "/nonexistent"))
    if job.node == "pve2" and (job.options.get("poison") or (place.parent.is_dir() and not place.exists())):
        if not job.options.get("poison"):
            place.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return {"exit": 0, "node": job.node, "files": len(job.files.listed(job.root / "etc/pve/firewall"))}


def test_the_results_equal_processes(cluster: Any, tmp_path: Path) -> None:  # noqa: ANN401
    root = make_cluster(tmp_path / "c", 8)
    break_three(root)
    there = {one.job.name: one.result for one in Scheduler(cluster.scheduler_address).run(jobs(root), node_work.work)}
    here = {one.job.name: one.result for one in InProcess().run(jobs(root), node_work.work)}
    assert there == here
    assert len(there) == 8


def test_the_work_of_a_killed_worker_is_done_again(cluster: Any, tmp_path: Path) -> None:  # noqa: ANN401
    root = make_cluster(tmp_path / "c", 4)
    place = tmp_path / "died"
    found = list(Scheduler(cluster.scheduler_address).run(jobs(root, place=str(place)), work))
    assert place.exists()
    assert sorted((one.job.name, one.result["node"]) for one in found if one.result) == [
        (f"pve{number}", f"pve{number}") for number in range(1, 5)
    ]


def test_poison_is_reported_and_the_rest_is_done(cluster: Any, tmp_path: Path) -> None:  # noqa: ANN401
    root = make_cluster(tmp_path / "c", 4)
    found = {one.job.name: one for one in Scheduler(cluster.scheduler_address).run(jobs(root, poison=True), work)}
    assert found["pve2"].failure == "Dask gave it up: 2 workers died while they ran only this job"
    assert [found[f"pve{number}"].failure for number in (1, 3, 4)] == ["", "", ""]


def test_equal_jobs_are_done_once_and_few_are_under_way(cluster: Any, tmp_path: Path) -> None:  # noqa: ANN401
    (job, *_) = jobs(make_cluster(tmp_path / "c", 1))
    made = 0

    def many() -> Iterator[Job]:
        nonlocal made
        for number in range(60):
            made += 1
            options = {**job.options, "number": number // 2}
            yield Job(str(number), job.command, job.root, job.node, job.files, options)

    done = 0
    for outcome in Scheduler(cluster.scheduler_address).run(many(), work):
        assert outcome.result is not None
        done += 1
        assert made <= done + 2 * 2 * 2 + 1
    assert done == 60


def test_a_worker_with_other_code_refuses(monkeypatch: pytest.MonkeyPatch, cluster: Any, tmp_path: Path) -> None:  # noqa: ANN401
    monkeypatch.setattr(scheduler, "code_digest", lambda: "another")
    (outcome,) = Scheduler(cluster.scheduler_address).run(jobs(make_cluster(tmp_path / "c", 1)), work)
    assert outcome.result is not None
    assert outcome.result["error"]["message"] == "the worker runs another version of pvefw"


def test_missing_scheduler_and_workers_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scheduler, "CONNECT_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(HostError, match="no scheduler answers"):
            next(Scheduler(address).run(jobs(make_cluster(tmp_path / "c", 1)), work))


def test_remaining_jobs_are_given_up_once_all_workers_are_gone(tmp_path: Path) -> None:
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None, silence_logs=50, worker_dashboard_address=None
    )
    try:
        outcomes = Scheduler(cluster.scheduler_address, idle_seconds=1).run(
            jobs(make_cluster(tmp_path / "c", 20)), work
        )
        first = next(outcomes)
        assert first.result is not None
        cluster.scale(0)
        start = time.monotonic()
        left = list(outcomes)
        assert time.monotonic() - start < 60
        assert len(left) == 19
        failures = {one.failure for one in left if one.result is None}
        assert failures == {"no worker was left for 1 s"}
    finally:
        cluster.close()
