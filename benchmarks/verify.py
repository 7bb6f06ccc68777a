"""How long ``pvefw compare`` takes to prove a node's two rulesets equal, and how that grows with its guests.

Usage: ``python benchmarks/verify.py [--guests N ...] [--runs N] [--backends A B] [--json] [--keep DIR]``

The configurations come from ``benchmarks/compile.py``: one NIC a guest, 20 rules each that no other guest has. Each is
compiled through both backends first; the measurement is of one whole process that reads the two artefacts and compares
them, and one that simulates a packet through the first. Printed is the median of the runs: wall-clock and CPU seconds,
and the peak of resident memory in MB (10^6 bytes).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from benchmarks.compile import NODE, generate, keep_bytecode  # noqa: E402 - found only with the path above

CLI = (sys.executable, "-m", "pvefw_nft.cli")


@dataclass(frozen=True)
class Measured:
    """One command's median: seconds of wall-clock and CPU time, MB of memory, and its exit code."""

    guests: int
    command: str
    wall: float
    cpu: float
    memory: float
    code: int


def main() -> None:
    """Measure and print."""
    options = _arguments()
    keep_bytecode()
    results: list[Measured] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        for guests in options.guests:
            for one in measure(folder / str(guests), guests, options.backends, options.runs):
                results.append(one)
                if not options.json:
                    print(
                        f"{one.guests:6} guests  {one.command:9} {one.wall:7.2f} s wall {one.cpu:7.2f} s CPU "
                        f"{one.memory:7.0f} MB  exit code {one.code}",
                        flush=True,
                    )
    if options.json:
        print(json.dumps([asdict(one) for one in results], indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guests", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--backends", nargs=2, default=["iptables", "nft"], metavar=("A", "B"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", type=Path, metavar="DIR")
    return parser.parse_args()


def measure(folder: Path, guests: int, backends: list[str], runs: int) -> list[Measured]:
    """Return what comparing and simulating take for a node of so many guests."""
    root = folder / "root"
    if not root.exists():
        generate(root, guests)
    rulesets = [_compiled(root, folder, backend) for backend in backends]
    where = ["--root", str(root), "--node", NODE]
    packet = ["--from", "outside", "--to", "vm100:80"]
    return [
        _median(guests, "compare", [*CLI, "compare", *rulesets, *where], runs),
        _median(guests, "simulate", [*CLI, "simulate", "--ruleset", rulesets[0], *packet, *where], runs),
    ]


def _compiled(root: Path, folder: Path, backend: str) -> str:
    """Compile a configuration into a file and return it as the command line names rulesets."""
    file = folder / f"{backend}.ruleset"
    arguments = ["compile", "--root", str(root), "--node", NODE, "--backend", backend, "--local-network", "10.0.0.0/8"]
    if not file.exists():
        subprocess.run([*CLI, *arguments, "-o", str(file)], check=True, cwd=REPOSITORY, env=_environment())
    return f"{'nft-json' if backend == 'nft' else 'save'}:{file}"


def _median(guests: int, name: str, command: list[str], runs: int) -> Measured:
    walls, cpus, memories, code = [], [], [], 0
    for _ in range(runs):
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=REPOSITORY, env=_environment(), stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        walls.append(time.perf_counter() - start)
        cpus.append(usage.ru_utime + usage.ru_stime)
        memories.append(usage.ru_maxrss * 1024 / 1e6)
        code = os.waitstatus_to_exitcode(status)
        process.returncode = code
    median = statistics.median
    return Measured(guests, name, median(walls), median(cpus), median(memories), code)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


if __name__ == "__main__":
    main()
