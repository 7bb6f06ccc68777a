"""Compare the cost of the nft backend with the iptables backend: rules, compiling, loading, and each packet.

Usage: ``python benchmarks/nft.py [--guests N ...] [--runs N] [--json]``

The configurations come from ``compile.py``. Rules are counted as the tools count them, iptables' of both families
together and layer 2 apart. Loading and packets are measured in the kernel lab's guest (``tests/kernel``; as root): it
is emulated, so only ratios mean something, and both sides are measured in the same run.

Loading: the JSON by ``nft -j -f``, against ipset, iptables-nft-restore, ip6tables-nft-restore and
ebtables-nft-restore with the restore text, each from an empty kernel.

Packets: the kernel's packet generator puts new UDP flows into the firewall bridge of the last guest, and the time for
each packet is compared with the same bridge without a ruleset.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from benchmarks import compile as configurations  # noqa: E402 - found by the path above

FIRST_VMID = 100
PACKETS = 20_000
PACKET_RUNS = 5
"""Runs of the packet generator: short ones, which other work on the machine disturbs easily."""
LOADS = {
    "ipset restore": ["ipset", "restore"],
    "iptables-restore": ["iptables-nft-restore", "-n"],
    "ip6tables-restore": ["ip6tables-nft-restore", "-n"],
    "ebtables-restore": ["ebtables-nft-restore"],
}
"""The beginnings of the headings in restore text, and Debian's default tools."""


@dataclass(frozen=True, slots=True)
class Result:
    """Figures for one number of guests; times in seconds, of a packet in microseconds."""

    guests: int
    iptables_rules: int
    nft_rules: int
    iptables_compile: float
    nft_compile: float
    iptables_load: float
    nft_load: float
    empty_packet: float
    iptables_packet: float
    nft_packet: float

    @property
    def ratios(self) -> dict[str, float]:
        """The figures that hold on any machine."""
        return {
            "nft rules / iptables rules": round(self.nft_rules / self.iptables_rules, 3),
            "nft compile / iptables compile": round(self.nft_compile / self.iptables_compile, 2),
            "nft load / iptables load": round(self.nft_load / self.iptables_load, 2),
            "packet: nft / empty bridge": round(self.nft_packet / self.empty_packet, 2),
            "packet: iptables / empty bridge": round(self.iptables_packet / self.empty_packet, 2),
        }


# --- on this machine ----------------------------------------------------------------------------------------


def compiled(root: Path, backend: str, output: Path, runs: int) -> float:
    """Compile into a file and return the least time that a whole process took."""
    command = [sys.executable, "-m", "pvefw_nft.cli", "compile", "--backend", backend, "--root", str(root)]
    command += ["--node", configurations.NODE, "--local-network", "10.0.0.0/24", "-o", str(output)]
    best = float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, cwd=REPOSITORY, check=True)
        best = min(best, time.perf_counter() - start)
    return best


def iptables_rules(text: str) -> int:
    """Return the number of rules for iptables and ip6tables, signatures aside."""
    parts = re.split(r"^### (.+)$", text, flags=re.MULTILINE)
    ip_parts = [
        body for head, body in zip(parts[1::2], parts[2::2], strict=True) if head.startswith("ip") and "set" not in head
    ]
    return sum(len(re.findall(r"^-A (?!.*PVESIG:)", body, re.MULTILINE)) for body in ip_parts)


def nft_rules(text: str) -> int:
    """Return the number of rules in nft's JSON."""
    return sum("rule" in (command.get("add") or {}) for command in json.loads(text)["nftables"])


# --- in the guest -------------------------------------------------------------------------------------------


def sh(command: str) -> None:
    """Run a shell command, which must succeed."""
    subprocess.run(["sh", "-c", command], check=True, stdout=subprocess.DEVNULL)


def feed(command: list[str], text: str) -> None:
    """Run a command with an input, which it must take."""
    subprocess.run(command, input=text, text=True, check=True)


def empty() -> None:
    """Remove all rulesets, sets and connections."""
    sh("nft flush ruleset; ipset destroy; conntrack -F 2>/dev/null || true")


def load_iptables(text: str) -> None:
    """Load restore text with Debian's default tools."""
    parts = re.split(r"^### (.+)$", text, flags=re.MULTILINE)
    for head, body in zip(parts[1::2], parts[2::2], strict=True):
        command = next(command for start, command in LOADS.items() if head.startswith(start))
        table = ["-T", head.split()[2]] if "-T" in head else []
        feed([*command, *table], body)


def timed_load(backend: str, text: str) -> float:
    """Load a ruleset into an empty kernel and return the seconds it took."""
    empty()
    start = time.perf_counter()
    if backend == "nft":
        feed(["nft", "-j", "-f", "-"], text)
    else:
        load_iptables(text)
    return time.perf_counter() - start


def plug(vmid: int) -> None:
    """Make the firewall bridge of a guest, from devices that discard the packets that they send."""
    bridge, link, tap = f"fwbr{vmid}i0", f"fwln{vmid}i0", f"tap{vmid}i0"
    sh(f"ip link add {bridge} type bridge mcast_snooping 0")
    for port in (link, tap):
        sh(f"ip link add {port} type dummy && ip link set {port} master {bridge} up")
    sh(f"ip link set {bridge} up; bridge fdb add 02:00:00:00:00:02 dev {tap} master static")


def packet_cost(vmid: int, runs: int) -> float:
    """Return the microseconds that one packet of a new flow takes on its way to a guest; the least of some runs."""
    control = Path("/proc/net/pktgen")
    link, number = f"fwln{vmid}i0", vmid - FIRST_VMID
    best = float("inf")
    for _ in range(runs):
        sh("conntrack -F 2>/dev/null || true")
        (control / "kpktgend_0").write_text("rem_device_all\n")
        (control / "kpktgend_0").write_text(f"add_device {link}\n")
        for setting in (
            "xmit_mode netif_receive",
            f"count {PACKETS}",
            "pkt_size 100",
            "delay 0",
            "flag UDPSRC_RND",
            "udp_src_min 1024",
            "udp_src_max 65000",
            f"udp_dst_min {10000 + number}",
            f"udp_dst_max {10000 + number}",
            f"src_min 10.200.{number % 50}.7",
            f"src_max 10.200.{number % 50}.7",
            "dst 10.64.0.1",
            "dst_mac 02:00:00:00:00:02",
            "src_mac 02:00:00:00:00:01",
        ):
            (control / link).write_text(setting + "\n")
        (control / "pgctrl").write_text("start\n")
        result = re.search(r"OK: (\d+)\(.*?\) usec, (\d+) ", (control / link).read_text())
        if result is None:
            raise RuntimeError((control / link).read_text())
        best = min(best, int(result[1]) / int(result[2]))
    return best


def in_guest(folder: Path, guests: list[int], runs: int) -> None:
    """Measure loading and packets of the rulesets in a folder; leaves ``measured.json`` there."""
    sh("modprobe -a br_netfilter nf_conntrack_bridge nft_meta_bridge nft_reject_bridge pktgen dummy ip_set_hash_net")
    sh("sysctl -q net.netfilter.nf_conntrack_max=262144")
    measured = {}
    for count in guests:
        vmid = FIRST_VMID + count - 1
        plug(vmid)
        empty()
        figures = {"empty_packet": packet_cost(vmid, PACKET_RUNS)}
        for backend in ("iptables", "nft"):
            text = (folder / f"{count}.{backend}").read_text()
            figures[f"{backend}_load"] = min(timed_load(backend, text) for _ in range(runs))
            on = int(backend == "iptables")
            sh(f"sysctl -q net.bridge.bridge-nf-call-iptables={on} net.bridge.bridge-nf-call-ip6tables={on}")
            figures[f"{backend}_packet"] = packet_cost(vmid, PACKET_RUNS)
        empty()
        measured[count] = figures
    (folder / "measured.json").write_text(json.dumps(measured))


# --- the report ---------------------------------------------------------------------------------------------


def measure(guests: list[int], runs: int) -> list[Result]:
    """Return the figures for each number of guests."""
    from tests.kernel.guest.machine import Guest  # deferred: `--in-guest` needs none

    compile_times = {}
    with tempfile.TemporaryDirectory() as temporary, Guest(memory=2048) as machine:
        for count in guests:
            root = Path(temporary) / str(count)
            configurations.generate(root, count)
            for backend in ("iptables", "nft"):
                output = machine.share / f"{count}.{backend}"
                compile_times[count, backend] = compiled(root, backend, output, runs)
        command = [sys.executable, __file__, "--in-guest", str(machine.share), "--runs", str(runs)]
        status, output_text = machine.run([*command, "--guests", *map(str, guests)], seconds=3600)
        if status != 0:
            sys.exit(f"in the guest: {output_text.decode()[-3000:]}")
        measured = json.loads((machine.share / "measured.json").read_text())
        return [
            Result(
                guests=count,
                iptables_rules=iptables_rules((machine.share / f"{count}.iptables").read_text()),
                nft_rules=nft_rules((machine.share / f"{count}.nft").read_text()),
                iptables_compile=compile_times[count, "iptables"],
                nft_compile=compile_times[count, "nft"],
                **measured[str(count)],
            )
            for count in guests
        ]


def report(results: list[Result]) -> str:
    """Return the ratios as a table, and how a packet's cost grows."""
    lines = []
    for result in results:
        lines += [f"{result.guests} guests: {result.nft_rules} nft rules, {result.iptables_rules} iptables rules"]
        lines += [f"  {name}: {ratio}" for name, ratio in result.ratios.items()]
    few, many = results[0], results[-1]
    for backend in ("nft", "iptables"):
        name = f"packet: {backend} / empty bridge"
        growth = many.ratios[name] / few.ratios[name]
        lines.append(f"{name}, {many.guests} guests / {few.guests} guests: {growth:.2f}")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--guests", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--runs", type=int, default=3, help="runs of each measurement, of which the least counts")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--in-guest", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_guest is not None:
        in_guest(args.in_guest, args.guests, args.runs)
        return
    results = measure(args.guests, args.runs)
    if args.json:
        print(json.dumps([asdict(result) | result.ratios for result in results], indent=2))
    else:
        print(report(results))


if __name__ == "__main__":
    main()
