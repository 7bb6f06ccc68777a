"""Compare the cost of each command with an older commit: CPU time and memory, and their growth with the guests.

Usage, as root: ``python benchmarks/against.py --base REV [--base-up-to GUESTS] [--rows NAME ...] [--guests N ...]
[--runs N] [--json]``

The base is checked out in a worktree of its own, with an environment of its own. Both run in turn, as processes of
their own, with configurations of ``benchmarks/compile.py``. Printed are medians: seconds of the processors and of
those the ones in the kernel, the peak of resident memory in MB (10^6 bytes), the rules of a ruleset where a row makes
one, and the ratio of each figure to the base's. Rows that load rules do so in a network namespace, with what
this kernel lacks left out of them (``benchmarks/cut_down.py``). Caches are empty, but for rows after a change.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from benchmarks.compile import NODE, generate  # noqa: E402 - found by the path above

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

GUESTS = (100, 1000, 5000)
TIMEOUT = 900
"""Seconds after which a command is ended; its side of the row then has no figures."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds on the wall clock, of the processors, and of those in the kernel; peak memory in MB; rules, if any."""

    wall: float
    cpu: float
    system: float
    memory: float
    rules: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result: the figures of the base and of this tree; None: not measured, or ended by the timeout."""

    name: str
    guests: int
    base: Figures | None
    now: Figures | None

    @property
    def ratios(self) -> dict[str, float]:
        """The ratio of each figure to the base's."""
        if self.base is None or self.now is None:
            return {}
        before, after = asdict(self.base), asdict(self.now)
        return {name: round(after[name] / before[name], 3) for name in before if before[name] and after[name]}


class TimedOutError(Exception):
    """A command took longer than :data:`TIMEOUT`."""


class Tree:
    """A checkout, with folders of its own for what its commands make."""

    def __init__(self, checkout: Path, folder: Path, config: Path) -> None:
        """Use ``folder``, a new one, for caches, state and rulesets. ``config`` is the root of the configuration."""
        self.checkout = checkout
        self.folder = folder
        self.root = folder / "root"
        folder.mkdir(parents=True)
        shutil.copytree(config, self.root)
        self.where = ["--root", str(self.root), "--node", NODE]
        self.inputs = [*self.where, "--local-network", "10.0.0.0/24"]
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(checkout),
            "PVEFW_RUN_DIRECTORY": str(folder / "run"),
            "PVEFW_STATE_DIRECTORY": str(folder / "state"),
            "PVEFW_CACHE_DIRECTORY": str(folder / "cache"),
        }
        (folder / "run").mkdir()

    def command(self, *arguments: str, cut_down: bool = False) -> list[str]:
        """Return the command line of a pvefw command of this checkout."""
        program = [str(self.checkout / "benchmarks/cut_down.py")] if cut_down else ["-m", "pvefw_nft.cli"]
        return [str(self.checkout / ".venv/bin/python"), *program, *arguments]

    def run(self, command: Sequence[str], allowed: tuple[int, ...] = (0,)) -> Figures:
        """Run a command and return its cost. Raises :class:`TimedOutError`."""
        with (self.folder / "errors").open("w+b") as errors:
            begun = time.perf_counter()
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=errors, env=self.environment, cwd=self.checkout
            )
            while True:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                if time.perf_counter() - begun > TIMEOUT:
                    process.kill()
                    os.wait4(process.pid, 0)
                    raise TimedOutError
                time.sleep(0.005)
            wall = time.perf_counter() - begun
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode not in allowed:
                errors.seek(0)
                message = errors.read()[-1000:].decode(errors="replace")
                raise SystemExit(f"{' '.join(command)}: exit {process.returncode}\n{message}")
        return Figures(wall, usage.ru_utime + usage.ru_stime, usage.ru_stime, usage.ru_maxrss * 1024 / 1e6)

    def compiled(self, backend: str) -> Path:
        """Compile the configuration into a file, which is returned; its name is another one after a change."""
        file = self.folder / f"{backend}.{len(list(self.folder.glob(f'{backend}.*')))}"
        formats = ["--format", "json"] if backend == "nft" else []
        self.run(self.command("compile", "--backend", backend, *formats, *self.inputs, "-o", str(file)))
        return file

    def change_guest(self, port: int) -> None:
        """Give the first guest's file another rule at its top."""
        file = self.root / "etc/pve/firewall/100.fw"
        text = re.sub(r"\[RULES\]\n(?:IN ACCEPT -p tcp -dport 6\d{4}\n)?", "[RULES]\n", file.read_text())
        file.write_text(text.replace("[RULES]\n", f"[RULES]\nIN ACCEPT -p tcp -dport {port}\n"))


# --- the rows -----------------------------------------------------------------------------------------------


def _compile(backend: str) -> Callable[[Tree], Figures]:
    def measure(tree: Tree) -> Figures:
        output = tree.folder / "output"
        formats = ["--format", "json"] if backend == "nft" else []
        command = tree.command("compile", "--backend", backend, *formats, *tree.inputs, "-o", str(output))
        taken = tree.run(command)
        return Figures(taken.wall, taken.cpu, taken.system, taken.memory, _count_rules(output))

    return measure


def _count_rules(output: Path) -> int:
    """Return the number of rules in restore text, signatures aside, or in nft JSON, which has a command on a line.

    Read line by line: a new process starts with the peak of the one that made it, so this one must stay small.
    """
    with output.open() as lines:
        return sum(line.startswith(("-A ", '{"add":{"rule":')) and "PVESIG:" not in line for line in lines)


def _load(backend: str, *, changed: bool) -> Callable[[Tree], Figures]:
    def measure(tree: Tree) -> Figures:
        cut_down = backend == "nft"
        options = [*tree.inputs, "--backend", backend]
        with _namespace() as inside:
            loaded = tree.run([*inside, *tree.command("start", *options, cut_down=cut_down)])
            if not changed:
                return loaded
            tree.change_guest(60001)
            return tree.run([*inside, *tree.command("update", *options, cut_down=cut_down)])

    return measure


@contextmanager
def _namespace() -> Iterator[list[str]]:
    """Make a network namespace; yields how a command line begins that runs in it."""
    with subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; exec cat"], stdin=-1, stdout=-1) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            yield ["nsenter", "-t", str(holder.pid), "-n"]
        finally:
            holder.kill()


def _compare(tree: Tree) -> Figures:
    return tree.run(_comparison(tree), (0, 1))


def _compare_changed(tree: Tree) -> Figures:
    tree.run(_comparison(tree), (0, 1))
    tree.change_guest(60001)
    return tree.run(_comparison(tree), (0, 1))


def _comparison(tree: Tree) -> list[str]:
    rulesets = (f"save:{tree.compiled('iptables')}", f"nft-json:{tree.compiled('nft')}")
    return tree.command("compare", *rulesets, *tree.where)


def _check(tree: Tree) -> Figures:
    return tree.run(tree.command("check", *tree.inputs), (0, 1))


def _simulate(backend: str, prefix: str) -> Callable[[Tree], Figures]:
    def measure(tree: Tree) -> Figures:
        packet = ["--from", "outside", "--to", "vm100:80"]
        ruleset = f"{prefix}:{tree.compiled(backend)}"
        return tree.run(tree.command("simulate", "--ruleset", ruleset, *packet, *tree.where), (0, 1))

    return measure


ROWS: dict[str, Callable[[Tree], Figures]] = {
    "compile-iptables": _compile("iptables"),
    "compile-nft": _compile("nft"),
    "load-iptables": _load("iptables", changed=False),
    "load-nft": _load("nft", changed=False),
    "update-iptables": _load("iptables", changed=True),
    "update-nft": _load("nft", changed=True),
    "compare": _compare,
    "compare-changed": _compare_changed,
    "check": _check,
    "simulate-iptables": _simulate("iptables", "save"),
    "simulate-nft": _simulate("nft", "nft-json"),
}


# --- the measurement ----------------------------------------------------------------------------------------


@contextmanager
def base_checkout(revision: str, folder: Path | None) -> Iterator[Path]:
    """Yield a worktree of a commit with its environment; ``folder``: where it is kept for the next time."""
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary) / "base"
        if not (place / "pvefw").exists():
            git = ["git", "-C", str(REPOSITORY), "worktree", "add", "--quiet", "--detach", str(place), revision]
            subprocess.run(git, check=True)
        try:
            prepare(place)
            yield place
        finally:
            if folder is None:
                remove = ["git", "-C", str(REPOSITORY), "worktree", "remove", "--force", str(place)]
                subprocess.run(remove, check=True)


def prepare(checkout: Path) -> None:
    """Make the environment of a checkout, with its bytecode, as after the first use."""
    subprocess.run([str(checkout / "pvefw"), "--help"], stdout=subprocess.DEVNULL, check=True)
    for package in ("pvefw_nft", "backends", "benchmarks"):
        command = [str(checkout / ".venv/bin/python"), "-m", "compileall", "-q", str(checkout / package)]
        subprocess.run(command, check=True)


def measure(name: str, guests: int, checkouts: tuple[Path, Path], runs: int, *, with_base: bool = True) -> Row:
    """Return a row: so many runs of base and of this tree in turn, with new folders each."""
    samples: tuple[list[Figures], list[Figures]] = ([], [])
    late: set[int] = set() if with_base else {0}
    with tempfile.TemporaryDirectory() as temporary:
        config = Path(temporary) / "config"
        generate(config, guests)
        for run in range(runs):
            for side, checkout in enumerate(checkouts):
                if side in late:
                    continue
                folder = Path(temporary) / f"{side}.{run}"
                try:
                    samples[side].append(ROWS[name](Tree(checkout, folder, config)))
                except TimedOutError:
                    late.add(side)
                shutil.rmtree(folder)
    base, now = (None if side in late else _median(samples[side]) for side in (0, 1))
    return Row(name, guests, base, now)


def _median(samples: Sequence[Figures]) -> Figures:
    def median(name: str) -> float:
        return round(float(statistics.median(getattr(sample, name) for sample in samples)), 3)

    return Figures(median("wall"), median("cpu"), median("system"), median("memory"), samples[0].rules)


def machine() -> str:
    """Return a description of the machine that was measured."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    processor = model[1] if model else platform.machine()
    return f"{os.cpu_count()} x {processor}, Linux {platform.release()}, Python {platform.python_version()}"


def line(row: Row) -> str:
    """Return a row as text."""
    start = f"{row.name:18} {row.guests:5}"
    figures = []
    for name, unit in (("cpu", "s"), ("system", "s"), ("memory", "MB"), ("rules", "")):
        before, after = (None if side is None else getattr(side, name) for side in (row.base, row.now))
        if before is not None or after is not None:
            texts = ["-" if value is None else f"{value:.6g}" for value in (before, after)]
            ratio = f" ({row.ratios[name]:.2f})" if name in row.ratios else ""
            figures.append(f"{name} {' → '.join(texts)} {unit}{ratio}".rstrip())
    return f"{start}  " + "  ".join(figures or [f"both: more than {TIMEOUT} s"])


def growth(rows: Sequence[Row]) -> Iterator[str]:
    """Yield by what factor the CPU time and memory of this tree grow from one number of guests to the next."""
    for few, many in pairwise(rows):
        if few.name == many.name and few.now and many.now:
            cpu, system, memory = (
                getattr(many.now, n) / max(getattr(few.now, n), 0.001) for n in ("cpu", "system", "memory")
            )
            yield (
                f"{few.name:18} guests x {many.guests / few.guests:g}: "
                f"cpu x {cpu:.2f}, system x {system:.2f}, memory x {memory:.2f}"
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base", required=True, metavar="REV", help="the commit to compare with")
    parser.add_argument("--base-up-to", type=int, metavar="GUESTS", help="with more guests measure this tree alone")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="NAME")
    parser.add_argument("--guests", type=int, nargs="+", default=list(GUESTS))
    parser.add_argument("--runs", type=int, default=3, help="runs of each row, in turn (default: 3)")
    parser.add_argument("--keep-base", type=Path, metavar="DIR", help="where the base's worktree is kept")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    rows: list[Row] = []
    with base_checkout(arguments.base, arguments.keep_base) as base:
        prepare(REPOSITORY)
        if not arguments.json:
            print(machine())
        for name in arguments.rows:
            for guests in arguments.guests:
                with_base = arguments.base_up_to is None or guests <= arguments.base_up_to
                rows.append(measure(name, guests, (base, REPOSITORY), arguments.runs, with_base=with_base))
                if not arguments.json:
                    print(line(rows[-1]), flush=True)
    if arguments.json:
        report = {"machine": machine(), "rows": [{**asdict(row), "ratios": row.ratios} for row in rows]}
        print(json.dumps(report, indent=2))
    else:
        print("\n".join(growth(rows)))


if __name__ == "__main__":
    main()
