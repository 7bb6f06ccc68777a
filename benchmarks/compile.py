"""How long ``pvefw compile`` takes, and how that grows with the number of guests.

Usage: ``python benchmarks/compile.py [--guests N ...] [--runs N] [--backend NAME] [--json] [--keep DIR]``

Makes a configuration for each number of guests in a temporary directory: one NIC a guest, 20 rules each that
no other guest has, 20 groups, 20 ipsets of 50 entries and 50 aliases. Each run is a whole process from its
start. The output is the median of the runs: wall-clock and CPU seconds, the peak of resident memory in
MB (10^6 bytes), and the rules of both families and of layer 2 in the output.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
NODE = "bench"


def keep_bytecode() -> None:
    """Compile the modules, so that commands find them like an installed pvefw after its first use."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    for package in ("pvefw_nft", "backends"):
        compileall.compile_dir(REPOSITORY / package, quiet=1)


# --- the configuration --------------------------------------------------------------------------------------


def generate(root: Path, guests: int) -> None:
    """Write a configuration of so many guests below ``root``."""
    firewall = root / "etc/pve/firewall"
    configs = root / "etc/pve/nodes" / NODE / "qemu-server"
    firewall.mkdir(parents=True)
    configs.mkdir(parents=True)
    (firewall / "cluster.fw").write_text(cluster())
    for number in range(guests):
        (firewall / f"{100 + number}.fw").write_text(guest(number))
        mac = f"BC:24:11:{number >> 16 & 255:02X}:{number >> 8 & 255:02X}:{number & 255:02X}"
        (configs / f"{100 + number}.conf").write_text(
            f"cores: 2\nmemory: 2048\nname: vm{number}\nnet0: virtio={mac},bridge=vmbr0,firewall=1\n"
        )


def cluster() -> str:
    """Return cluster.fw."""
    lines = ["[OPTIONS]", "enable: 1", "policy_in: DROP", "", "[ALIASES]"]
    lines += [f"alias{i} 10.200.{i}.0/24" for i in range(50)]
    for i in range(20):
        lines += ["", f"[IPSET set{i}]"]
        lines += [f"10.{i}.{j}.0/26" if j % 5 else f"2001:db8:{i:x}:{j:x}::/64" for j in range(50)]
    lines += ["", "[RULES]", "IN Ping(ACCEPT)", "IN SSH(ACCEPT) -source +set0"]
    for i in range(20):
        lines += [
            "",
            f"[group group{i}]",
            f"IN ACCEPT -source +set{i} -p tcp -dport {2000 + i}",
            f"IN HTTPS(ACCEPT) -source alias{i}",
            f"OUT DROP -dest 172.16.{i}.0/24",
        ]
    return "\n".join(lines) + "\n"


def guest(number: int) -> str:
    """Return the ``.fw`` file of one guest: 20 rules, none of which another guest has."""
    low, high = number & 255, number >> 8
    net = f"10.{64 + high}.{low}"
    alias, ipset = f"alias{number % 50}", f"+set{number % 20}"
    port = 10000 + number
    rules = [
        f"GROUP group{number % 20} -i net0 # {number}",
        f"IN SSH(ACCEPT) -source {net}.0/28",
        f"IN HTTP(ACCEPT) -dest {net}.1",
        f"IN HTTPS(ACCEPT) -dest {net}.1 -log info",
        f"IN Ping(ACCEPT) -source {net}.16/28",
        f"IN ACCEPT -source {ipset} -p tcp -dport {port}",
        f"IN ACCEPT -source {alias} -p udp -dport {port}",
        f"IN ACCEPT -source {net}.32/27 -p tcp -dport {port},{port + 1},{port + 2}",
        f"IN DROP -source {net}.64-{net}.71 -p tcp",
        f"IN ACCEPT -source 2001:db8:{high:x}:{low:x}::/64 -p tcp -dport 8000:8100",
        f"IN ACCEPT -p icmp -icmp-type echo-request -source {net}.128/25",
        f"IN REJECT -p udp -dport {port + 3} -log warning",
        f"IN DNS(ACCEPT) -source {net}.0/24",
        f"|IN ACCEPT -source {net}.99",
        f"OUT ACCEPT -dest {net}.0/24 -p tcp -dport 3306",
        f"OUT ACCEPT -dest {alias} -p tcp -dport {port}",
        f"OUT NTP(ACCEPT) -dest {net}.1",
        f"OUT DROP -dest {net}.200,{net}.201,{net}.202",
        f"OUT REJECT -p tcp -dport 25 -source {net}.3",
        f"OUT DROP -dest 2001:db8:ffff:{number:x}::1 -p udp -sport {port}",
    ]
    return "\n".join(["[OPTIONS]", "enable: 1", "log_level_in: info", "", "[RULES]", *rules]) + "\n"


# --- the measurement ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    """The cost of one number of guests: seconds, megabytes, and rules emitted."""

    guests: int
    wall: float
    cpu: float
    memory: float
    rules: int


def measure(command: list[str], root: Path, guests: int, runs: int) -> Result:
    """Compile ``root`` so many times and return the medians."""
    output = root / "output"
    samples = [run(command, output) for _ in range(runs)]
    wall, cpu, memory = (statistics.median(sample[i] for sample in samples) for i in range(3))
    return Result(guests, round(wall, 3), round(cpu, 3), round(memory, 1), count_rules(output))


def run(command: list[str], output: Path) -> tuple[float, float, float]:
    """Run the command as a process of its own; return wall-clock and CPU seconds and peak memory in MB."""
    with output.open("wb") as file:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=file)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit {process.returncode}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


def count_rules(output: Path) -> int:
    """Return the number of rules in restore text, signatures aside, or in nft JSON."""
    text = output.read_text()
    if text.startswith("{"):
        return sum("rule" in (item.get("add") or {}) for item in json.loads(text)["nftables"])
    return sum(line.startswith("-A ") and "PVESIG:" not in line for line in text.splitlines())


def report(results: list[Result]) -> str:
    """Return the results and their growth as a table."""
    lines = [f"{'guests':>7} {'wall s':>8} {'cpu s':>8} {'peak MB':>8} {'rules':>8}"]
    lines += [f"{r.guests:>7} {r.wall:>8.2f} {r.cpu:>8.2f} {r.memory:>8.1f} {r.rules:>8}" for r in results]
    for few, many in pairwise(results):
        ratios = growth(few, many)
        told = ", ".join(f"{name} x {ratio}" for name, ratio in ratios.items() if name != "guests")
        lines.append(f"guests x {ratios['guests']}: {told}")
    return "\n".join(lines)


def growth(few: Result, many: Result) -> dict[str, float]:
    """Return by what factor each figure grows from one result to the next."""
    before, after = asdict(few), asdict(many)
    return {name: round(after[name] / before[name], 2) for name in before}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--guests", type=int, nargs="+", default=[100, 1000, 5000])
    parser.add_argument("--runs", type=int, default=3, help="runs for each number of guests (default: 3)")
    parser.add_argument("--backend", default="iptables")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--keep", type=Path, help="leave configurations and outputs in this new directory")
    args = parser.parse_args()

    pvefw = str(REPOSITORY / "pvefw")
    keep_bytecode()
    subprocess.run([pvefw, "--help"], stdout=subprocess.DEVNULL, check=True)  # the first use makes .venv
    with tempfile.TemporaryDirectory() as temporary:
        base: Path = args.keep or Path(temporary)
        results = []
        for guests in args.guests:
            root = base / str(guests)
            generate(root, guests)
            command = [pvefw, "compile", "--backend", args.backend, "--root", str(root), "--node", NODE]
            command += ["--local-network", "10.0.0.0/24"]
            command += ["--format", "json"] if args.backend == "nft" else []
            results.append(measure(command, root, guests, args.runs))
    if args.json:
        steps = [growth(few, many) for few, many in pairwise(results)]
        print(json.dumps({"results": [asdict(r) for r in results], "growth": steps}, indent=2))
    else:
        print(report(results))


if __name__ == "__main__":
    main()
