"""How long it takes to bring a host to its ruleset, for both backends, and to plumb its guests' NICs.

Usage: ``python benchmarks/host.py [--guests N ...] [--backend NAME ...] [--cut-down] [--plumb N] [--json]``, as root.

Everything happens in a network namespace of its own, with the configurations of ``benchmarks/compile.py``. Printed
are seconds of whole processes, on the wall clock and of the processors: a full start, an update that changes
nothing, an update after one guest changed; and under ``pvefw run``, from saving a file until the kernel holds the new
rule, asked for every 10 ms, and the memory that the service takes, in MB at rest and at most. A kernel that lacks what
a backend needs is said so. For nft, which needs connection tracking on bridges, ``python -m tests.kernel.guest --
python benchmarks/host.py`` runs it on one that has it, emulated and so many times slower; ``--cut-down`` leaves out of
the rules what this kernel lacks.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from benchmarks.compile import NODE, generate  # noqa: E402 - the repository must be on the path first
from pvefw_nft.host.netfilter.nf_listing import Listing  # noqa: E402
from pvefw_nft.host.netfilter.nf_tables import Questions  # noqa: E402


class Figure(NamedTuple):
    """Seconds on the wall clock, and of the processors (None: not counted); MB of memory, at rest and at most."""

    wall: float
    cpu: float | None = None
    memory: tuple[float, float] | None = None


class Host:
    """A configuration, and the commands on it; state and locks are kept in a folder of the benchmark."""

    def __init__(self, folder: Path, guests: int, backend: str, *, cut_down: bool) -> None:
        self.root = folder / "root"
        generate(self.root, guests)
        self.options = ["--root", str(self.root), "--node", NODE, "--local-network", "10.0.0.0/24"]
        self.options += ["--backend", backend]
        (folder / "run").mkdir()
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
            "PVEFW_RUN_DIRECTORY": str(folder / "run"),
            "PVEFW_STATE_DIRECTORY": str(folder / "state"),
        }
        self.backend = backend
        self._program = [str(REPOSITORY / "benchmarks/cut_down.py")] if cut_down else ["-m", "pvefw_nft.cli"]

    def run(self, *arguments: str) -> Figure:
        """Run a command and return how long it and the tools it started took."""
        begun, before = time.perf_counter(), os.times()
        done = subprocess.run(self.command(*arguments), env=self.environment, capture_output=True, text=True)
        spent = time.perf_counter() - begun
        if done.returncode != 0:
            raise SystemExit(f"pvefw {arguments[0]}: {done.stderr.strip()[-600:]}")
        after = os.times()
        return Figure(spent, sum(after[2:4]) - sum(before[2:4]))

    def command(self, *arguments: str) -> list[str]:
        """Return how to start a command."""
        return [sys.executable, *self._program, *arguments]

    def change_guest(self, port: int) -> None:
        """Save guest 100's file with a rule for this port at its top, as an editor does."""
        file = self.root / "etc/pve/firewall/100.fw"
        text = re.sub(
            r"(\[RULES\]\n)(?:IN ACCEPT -p tcp -dport 6\d{4}\n)?",
            rf"\1IN ACCEPT -p tcp -dport {port}\n",
            file.read_text(),
        )
        new = file.with_suffix(".new")
        new.write_text(text)
        new.replace(file)

    def chain(self) -> str:
        """Return a value that changes with the kernel's rules for packets to guest 100."""
        if self.backend == "iptables":
            return listed("iptables", "-S", "tap100i0-IN")
        with Questions() as questions:  # nft reads all chains for one
            return Listing(questions, "bridge", "pvefw").of("chain", "tap100i0-IN") or ""

    def holds(self, port: int) -> bool:
        """Tell whether the kernel has the rule for this port."""
        if self.backend == "iptables":
            return str(port) in listed("iptables", "-S", "tap100i0-IN")
        return str(port) in listed("nft", "list", "chain", "bridge", "pvefw", "tap100i0-IN")


def listed(*command: str) -> str:
    """Return the output of a command."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def measure(guests: int, backend: str, *, cut_down: bool) -> dict[str, Figure]:
    """Return the figures of one backend with so many guests, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        host = Host(Path(folder), guests, backend, cut_down=cut_down)
        figures = {"full start": host.run("start", *host.options)}
        figures["update, nothing changed"] = host.run("update", *host.options)
        figures["status"] = host.run("status", *host.options)
        host.change_guest(60001)
        figures["update, one guest changed"] = host.run("update", *host.options)
        figures["run: from saving to the rule"] = latency(host)
        figures["stop"] = host.run("stop")
        return figures


def latency(host: Host) -> Figure:
    """Return the seconds from saving a guest's file until the kernel holds the rule, under ``pvefw run``.

    Seconds of the processors are the service's and its tools', until it is at rest again.
    """
    command = host.command("run", *host.options)
    with subprocess.Popen(command, env=host.environment, stderr=subprocess.PIPE, text=True) as service:
        try:
            assert service.stderr is not None
            for line in service.stderr:
                if line.startswith("started"):
                    break
            rest(service.pid)
            before, chain = used(service.pid), host.chain()
            host.change_guest(60002)
            saved = time.perf_counter()
            while host.chain() == chain:
                if time.perf_counter() - saved > 60:
                    raise SystemExit("the rule did not come")
                time.sleep(0.01)
            spent = time.perf_counter() - saved
            if not host.holds(60002):
                raise SystemExit("other rules came")
            rest(service.pid)
            return Figure(spent, used(service.pid) - before, memory(service.pid))
        finally:
            service.terminate()


def used(pid: int) -> float:
    """Return the seconds of the processors that a process and the children it waited for have used (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> tuple[float, float]:
    """Return the MB of memory that a process takes now, and took at most (proc(5))."""
    found = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    now, most = (int(found[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))
    return now, most


def rest(pid: int) -> None:
    """Wait until a process has done nothing for a second."""
    before = -1.0
    while used(pid) != before:
        before = used(pid)
        time.sleep(1)


def plumbing(count: int) -> dict[str, Figure]:
    """Return how long it takes to plug, plug again and unplug so many NICs, in seconds."""
    from pvefw_nft.host.bridges.firewall_bridge import Nic
    from pvefw_nft.host.bridges.plug import plug_nics
    from pvefw_nft.host.links import open_route

    with tempfile.TemporaryDirectory() as folder, open_route() as route:
        os.environ["PVEFW_RUN_DIRECTORY"] = folder
        route.link("add", ifname="vmbr0", kind="bridge", br_forward_delay=0)
        nics = []
        for number in range(100, 100 + count):
            name = f"tap{number}i0"
            route.link("add", ifname=name, kind="veth", peer={"ifname": f"guest{number}"})
            nics.append(Nic(name, "vmbr0", number, 0))
        figures = {}
        for what, action in (("plug", plug_nics), ("plug again", plug_nics)):
            begun = time.perf_counter()
            results = action(nics)
            figures[what] = Figure(time.perf_counter() - begun)
            failed = [result.error.message for result in results if result.error is not None]
            if failed:
                raise SystemExit(failed[0])
        return figures


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--guests", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--backend", nargs="+", default=["iptables", "nft"])
    parser.add_argument("--cut-down", action="store_true", help="leave out of nft's rules what this kernel lacks")
    parser.add_argument("--plumb", type=int, default=1000, help="NICs to plumb; 0: none")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if "PVEFW_BENCHMARK" not in os.environ:
        os.environ["PVEFW_BENCHMARK"] = "1"
        os.execvp("unshare", ["unshare", "-n", sys.executable, *sys.argv])
    report: dict[str, dict[str, Figure] | str] = {}

    def tell(title: str, figures: dict[str, Figure] | str) -> None:
        report[title] = figures
        if not arguments.json:
            print("\n".join([title, *_lines(figures)]), flush=True)

    for backend in arguments.backend:
        for guests in arguments.guests:
            try:
                tell(f"{backend}, {guests} guests", measure(guests, backend, cut_down=arguments.cut_down))
            except SystemExit as error:
                tell(f"{backend}, {guests} guests", str(error))
    if arguments.plumb:
        tell(f"plumbing, {arguments.plumb} NICs", plumbing(arguments.plumb))
    if arguments.json:
        print(json.dumps(report, indent=2))


def _lines(figures: dict[str, Figure] | str) -> list[str]:
    if isinstance(figures, str):
        return [f"  {figures}"]
    lines = []
    for what, figure in figures.items():
        line = f"  {what:32} {figure.wall:8.2f} s"
        if figure.cpu is not None:
            line += f" {figure.cpu:8.2f} s of the processors"
        if figure.memory is not None:
            line += f" {figure.memory[0]:8.0f} MB, at most {figure.memory[1]:.0f}"
        lines.append(line)
    return lines


if __name__ == "__main__":
    main()
