"""Compare the cost of a Dask cluster for each node with a process for each node on one machine.

Usage: ``python benchmarks/fleet.py [--clusters N] [--nodes N] [--guests N] [--workers N] [--json] [--keep DIR]``

Makes clusters (200, of 5 nodes and 30 guests each) in a temporary directory and checks all their nodes: with processes,
then on a LocalCluster of as many single-threaded workers, then there again with one worker killed on the way; last,
both ways with jobs that do nothing. The checks' results must be the same each time.

Output: nodes a second by the clock; CPU seconds a node of coordinator and workers together; how much more that
is than with processes; the coordinator's resident memory after a tenth of the nodes and at the end, and the largest
worker's peak, in MB (10^6 bytes).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.compile import cluster as cluster_file
from benchmarks.compile import guest as guest_file
from pvefw_nft.app.cluster import find_clusters, read_cluster
from pvefw_nft.cli import node_work
from pvefw_nft.fleet.jobs import Job
from pvefw_nft.fleet.local import Processes
from pvefw_nft.fleet.scheduler import Scheduler
from pvefw_nft.pipeline.preload import load_stages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pvefw_nft.fleet.jobs import Executor, Work


@dataclass(frozen=True, slots=True)
class Result:
    """The cost of one way of running."""

    name: str
    nodes: int
    seconds: float
    nodes_per_second: float
    cpu_per_node: float
    work_per_node: float
    coordinator_early: float
    coordinator_late: float
    worker_peak: float


# --- the clusters -------------------------------------------------------------------------------------------------


def generate(root: Path, clusters: int, nodes: int, guests: int) -> None:
    """Write clusters below ``root``, no two guests alike."""
    for number in range(clusters):
        place = root / f"cluster{number:05}"
        firewall = place / "etc/pve/firewall"
        firewall.mkdir(parents=True)
        (firewall / "cluster.fw").write_text(cluster_file())
        for node in range(nodes):
            (place / f"etc/pve/nodes/pve{node}/qemu-server").mkdir(parents=True)
        for vm in range(guests):
            unique = number * guests + vm
            mac = f"BC:24:11:{unique >> 16 & 255:02X}:{unique >> 8 & 255:02X}:{unique & 255:02X}"
            config = place / f"etc/pve/nodes/pve{vm % nodes}/qemu-server/{100 + vm}.conf"
            config.write_text(f"net0: virtio={mac},bridge=vmbr0,firewall=1\n")
            (firewall / f"{100 + vm}.fw").write_text(guest_file(unique % 60_000))


def jobs(root: Path) -> Iterator[Job]:
    """Yield a job for each node."""
    options = {"local_network": "10.0.0.0/24", "network_origin": "", "analysis": True}
    for folder in find_clusters(root):
        for node in read_cluster(folder, local_network="10.0.0.0/24").nodes:
            yield Job(f"{folder.name}/{node.name}", "check", folder, node.name, node.files, options)


# --- the measurement ----------------------------------------------------------------------------------------------


def measure(
    name: str,
    executor: Executor,
    root: Path,
    cpu: Callable[[], float],
    midway: Callable[[], None] = lambda: None,
    work: Work = node_work.work,
) -> tuple[Result, dict[str, Any]]:
    """Check all nodes; ``cpu`` returns the CPU seconds used so far, ``midway`` is called after a third of the nodes."""
    count = sum(1 for _ in jobs(root))
    gc.collect()
    results, seconds, early = {}, 0.0, 0.0
    used, start = cpu(), time.perf_counter()
    for number, outcome in enumerate(executor.run(jobs(root), work), 1):
        if outcome.result is None:
            sys.exit(f"{name}: {outcome.job.name}: {outcome.failure}")
        results[outcome.job.name] = len(outcome.result["diagnostics"]), outcome.result["exit"]
        seconds += outcome.seconds
        if number == count // 10:
            early = memory("self", "VmRSS")
        if number == count // 3:
            midway()
    wall = time.perf_counter() - start
    result = Result(
        name,
        count,
        seconds=round(wall, 2),
        nodes_per_second=round(count / wall, 3),
        cpu_per_node=round((cpu() - used) / count, 5),
        work_per_node=round(seconds / count, 5),
        coordinator_early=round(early, 1),
        coordinator_late=round(memory("self", "VmRSS"), 1),
        worker_peak=0.0,
    )
    return result, results


def memory(process: str | int, field: str) -> float:
    """Return a process's VmRSS or VmHWM in MB (proc_pid_status(5))."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def cpu_of_family() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def cpu_with(pids: list[int]) -> float:
    """Return the CPU seconds of this process and of other running ones (proc_pid_stat(5))."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime + ticks / os.sysconf("SC_CLK_TCK")


def measure_all(root: Path, workers: int) -> list[Result]:
    """Run in all ways and return their results; they must have found the same."""
    from dask import config
    from distributed import LocalCluster

    config.set({"distributed.worker.profile.enabled": False})  # as docs/fleet.md advises: it keeps each stack
    load_stages(checks=True, proof=True)
    alone, expected = measure("processes", Processes(workers), root, cpu_of_family)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    measured = [with_peak(alone, peak)]
    empty, _ = measure("processes, no work", Processes(workers), root, cpu_of_family, work=no_work)
    make: Any = LocalCluster  # of which mypy knows no types
    with make(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster:
        scheduler = Scheduler(cluster.scheduler_address)

        def pids() -> list[int]:
            return [worker.pid for worker in cluster.workers.values() if worker.pid is not None]

        warm_up(scheduler, root, 2 * workers)
        dask, found = measure("dask", scheduler, root, lambda: cpu_with(pids()))
        measured.append(with_peak(dask, max(memory(pid, "VmHWM") for pid in pids())))
        killed, again = measure(
            "dask, one killed", scheduler, root, lambda: 0.0, lambda: os.kill(pids()[0], signal.SIGKILL)
        )
        measured.append(with_peak(killed, max(memory(pid, "VmHWM") for pid in pids())))
        measured.append(with_peak(empty, 0.0))
        idle, _ = measure("dask, no work", scheduler, root, lambda: cpu_with(pids()), work=no_work)
        measured.append(with_peak(idle, max(memory(pid, "VmHWM") for pid in pids())))
    if not expected == found == again:
        sys.exit("the results differ")
    return measured


def warm_up(scheduler: Scheduler, root: Path, count: int) -> None:
    """Have each worker import its modules."""
    first = [job for job, _ in zip(jobs(root), range(count), strict=False)]
    for _ in scheduler.run(iter(first), node_work.work):
        pass


def no_work(job: Job) -> dict[str, Any]:
    """Do nothing: the time that remains is the cost of running a job."""
    return {"diagnostics": [], "exit": 0, "node": job.node}


def with_peak(result: Result, peak: float) -> Result:
    """Return a result with the memory that its largest worker had."""
    return Result(**{**asdict(result), "worker_peak": round(peak, 1)})


def overhead(results: list[Result]) -> float:
    """Return how much more CPU time Dask takes for a node than processes do, in percent."""
    return round(100 * (results[1].cpu_per_node / results[0].cpu_per_node - 1), 1)


def report(results: list[Result]) -> str:
    """Return the results as a table."""
    names = ("s", "nodes/s", "CPU ms/node", "work ms", "coordinator MB", "worker MB")
    lines = [" ".join((f"{'':18}", f"{'nodes':>6}", *(f"{name:>14}" for name in names)))]
    for one in results:
        cpu = f"{1000 * one.cpu_per_node:.0f}" if one.cpu_per_node else "-"
        grown = f"{one.coordinator_early:.0f} → {one.coordinator_late:.0f}"
        figures = (
            f"{one.seconds:.1f}",
            f"{one.nodes_per_second:.2f}",
            cpu,
            f"{1000 * one.work_per_node:.0f}",
            grown,
            f"{one.worker_peak:.0f}",
        )
        lines.append(" ".join((f"{one.name:18}", f"{one.nodes:>6}", *(f"{figure:>14}" for figure in figures))))
    lines.append(f"CPU time of a node with Dask against processes: {overhead(results):+} %")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clusters", type=int, default=200)
    parser.add_argument("--nodes", type=int, default=5, help="of each cluster (default: 5)")
    parser.add_argument("--guests", type=int, default=30, help="of each cluster (default: 30)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--keep", type=Path, help="leave the clusters in this new directory")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        base: Path = args.keep or Path(temporary)
        generate(base, args.clusters, args.nodes, args.guests)
        results = measure_all(base, args.workers)
    if args.json:
        print(
            json.dumps({"results": [asdict(one) for one in results], "overhead_percent": overhead(results)}, indent=2)
        )
    else:
        print(report(results))


if __name__ == "__main__":
    main()
