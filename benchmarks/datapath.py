"""Measure the cost of each ruleset in the data path: packets, answered datagrams and connections a second.

Usage: ``python benchmarks/datapath.py [--guests N ...] [--runs N] [--json]`` (as root)

Measured in the kernel lab's guest (``tests/kernel``), which is emulated: far slower than a machine, so that only ratios
mean something. A second is one of the processor that emulates it, so that other work on the machine does not count. The
configurations come from ``compile.py``; the packets go to the last guest::

    client ─ eno1 ─ vmbr0 ─ fwpr ─ fwln ─ fwbr ─ tap ─ server

``bridge`` is the same with the guest's port on vmbr0 itself and no rules, ``firewall bridge`` without rules. Packets
are UDP of 100 bytes that the kernel's packet generator has arrive at eno1: each of a flow of its own (new), or of one
that the server has answered (established). The server's side drops and counts them as they arrive. Datagrams and their
answers, in an established flow, and connections, opened and closed one after the other, are between real sockets, which
take most of the time.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from benchmarks import compile as configurations  # noqa: E402 - found by the path above

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.guest.machine import Guest

FIRST_VMID = 100
PACKETS = 40_000
EXCHANGES = 2_000
CONNECTIONS = 400
WEB = 80
CLIENT_PORT = 5_000
CLIENT_MAC = "02:00:00:00:00:01"
BEHIND = ("iptables-nft", "nft", "nft without zones", "nft --as-reference", "iptables-legacy")
"""The rulesets, the last one last: its kernel modules stay once they are there."""
TOOLS = {
    "iptables-nft": ("iptables-nft-restore", "ip6tables-nft-restore", "ebtables-nft-restore"),
    "iptables-legacy": ("iptables-legacy-restore", "ip6tables-legacy-restore", "ebtables-legacy-restore"),
}
MODULES = "br_netfilter nf_conntrack_bridge nft_meta_bridge nft_reject_bridge pktgen veth ip_set_hash_net"


@dataclass(frozen=True, slots=True)
class Result:
    """Microseconds of the emulating processor, of one ruleset for one number of guests."""

    guests: int
    ruleset: str
    new_packet: float
    established_packet: float
    exchange: float
    connection: float


# --- in the guest -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Way:
    """The guest at the end of the way: its number among all, and what follows from it (see ``compile.guest``)."""

    number: int

    @property
    def vmid(self) -> int:
        """Its VMID."""
        return FIRST_VMID + self.number

    @property
    def tap(self) -> str:
        """The host's port of its NIC."""
        return f"tap{self.vmid}i0"

    @property
    def mac(self) -> str:
        """The MAC address of its NIC."""
        return f"bc:24:11:{self.number >> 16 & 255:02x}:{self.number >> 8 & 255:02x}:{self.number & 255:02x}"

    @property
    def address(self) -> str:
        """The address that its rules name."""
        return f"10.{64 + (self.number >> 8)}.{self.number & 255}.1"

    @property
    def client(self) -> str:
        """An address that its rules let send to its UDP port."""
        return f"10.200.{self.number % 50}.7"

    @property
    def port(self) -> int:
        """Its UDP port."""
        return 10_000 + self.number


def sh(command: str) -> str:
    """Run a shell command, which must succeed, and return its output."""
    return subprocess.run(["sh", "-c", command], check=True, stdout=subprocess.PIPE, text=True).stdout


def inside(namespace: str, command: str) -> str:
    """Run a command in a network namespace."""
    return sh(f"ip netns exec {namespace} {command}")


def build(way: Way) -> None:
    """Make both ends and vmbr0, with the server's port on it."""
    sh("ip netns add client; ip netns add server; ip link add vmbr0 type bridge mcast_snooping 0 forward_delay 0")
    for port, namespace, address, mac in (
        ("eno1", "client", way.client, CLIENT_MAC),
        (way.tap, "server", way.address, way.mac),
    ):
        sh(f"ip link add {port} type veth peer name eth0 netns {namespace} address {mac}; ip link set {port} up")
        inside(namespace, f"ip address add {address}/8 dev eth0")
        inside(namespace, "sh -c 'ip link set lo up; ip link set eth0 up'")
    sh(f"ip link set eno1 master vmbr0; ip link set {way.tap} master vmbr0; ip link set vmbr0 up")
    inside("client", f"ip neigh replace {way.address} lladdr {way.mac} dev eth0")
    inside("server", f"ip neigh replace {way.client} lladdr {CLIENT_MAC} dev eth0")


def plug(way: Way) -> None:
    """Put the firewall bridge between the server's port and vmbr0."""
    bridge, inner, outer = f"fwbr{way.vmid}i0", f"fwln{way.vmid}i0", f"fwpr{way.vmid}p0"
    sh(f"ip link add {bridge} type bridge mcast_snooping 0 forward_delay 0; ip link add {inner} type veth peer {outer}")
    for port, master in ((way.tap, bridge), (inner, bridge), (outer, "vmbr0")):
        sh(f"ip link set {port} master {master} up")
    sh(f"ip link set {bridge} up")


def tear_down(way: Way) -> None:
    """Remove all of it."""
    sh(f"ip link del vmbr0; ip link del fwbr{way.vmid}i0; ip link del fwln{way.vmid}i0; ip netns del client")
    sh("ip netns del server")


def load(ruleset: str, folder: Path) -> None:
    """Load a ruleset into a kernel that has none, and hand bridged packets to iptables where it wants them."""
    on = int(ruleset in TOOLS)
    sh(f"sysctl -q net.bridge.bridge-nf-call-iptables={on} net.bridge.bridge-nf-call-ip6tables={on}")
    if ruleset not in TOOLS:
        name = "as-reference" if ruleset == "nft --as-reference" else "nft"
        text = (folder / name).read_text()
        if ruleset == "nft without zones":
            text = "\n".join(line for line in text.splitlines() if not _sets_zones(line))
        subprocess.run(["nft", "-j", "-f", "-"], input=text, text=True, check=True)
        return
    ipv4, ipv6, layer2 = TOOLS[ruleset]
    commands = {
        "ipset restore": ["ipset", "restore"],
        "iptables-restore": [ipv4, "-n"],
        "ip6tables-restore": [ipv6, "-n"],
        "ebtables-restore": [layer2],
    }
    parts = re.split(r"^### (.+)$", (folder / "iptables").read_text(), flags=re.MULTILINE)
    for head, body in zip(parts[1::2], parts[2::2], strict=True):
        command = next(command for start, command in commands.items() if head.startswith(start))
        table = ["-T", head.split()[2]] if "-T" in head else []
        subprocess.run([*command, *table], input=body, text=True, check=True)


def _sets_zones(line: str) -> bool:
    return '"rule"' in line and '"chain":"zones"' in line


def unload() -> None:
    """Remove all rules and sets."""
    sh("nft flush ruleset")
    for tool in TOOLS["iptables-legacy"][:2]:
        flush = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n"
        if Path("/proc/net/ip_tables_names").exists() and Path("/proc/net/ip_tables_names").read_text():
            subprocess.run([tool], input=flush, text=True, check=True)
    sh("ipset destroy; conntrack -F 2>/dev/null || true")


def in_namespace(name: str, kind: socket.SocketKind) -> socket.socket:
    """Return a socket of a network namespace."""
    from tests.kernel.network.namespace import inside as entered

    with entered(name):
        made = socket.socket(socket.AF_INET, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.settimeout(10)
    return made


def serve(way: Way) -> None:
    """Answer datagrams and accept connections in the server's namespace, in threads that end with the program."""
    datagrams = in_namespace("server", socket.SOCK_DGRAM)
    datagrams.settimeout(None)
    datagrams.bind((way.address, way.port))
    listener = in_namespace("server", socket.SOCK_STREAM)
    listener.settimeout(None)
    listener.bind((way.address, WEB))
    listener.listen(64)

    def echo() -> None:
        while True:
            data, sender = datagrams.recvfrom(100)
            datagrams.sendto(data, sender)

    def accept() -> None:
        while True:
            listener.accept()[0].close()

    for work in (echo, accept):
        threading.Thread(target=work, daemon=True).start()


def exchange(way: Way) -> None:
    """Have datagrams answered, one after the other; leaves their flow established."""
    with in_namespace("client", socket.SOCK_DGRAM) as client:
        client.bind((way.client, CLIENT_PORT))
        client.connect((way.address, way.port))
        for _ in range(EXCHANGES):
            client.send(bytes(60))
            client.recv(100)


def connect(way: Way) -> None:
    """Open and close connections, one after the other."""
    for _ in range(CONNECTIONS):
        with in_namespace("client", socket.SOCK_STREAM) as client:
            client.connect((way.address, WEB))
            client.recv(1)


PKTGEN = Path("/proc/net/pktgen")
COUNTED = """table netdev count {{
  chain c {{ type filter hook ingress device eth0 priority 0; policy accept; udp dport {port} counter drop; }}
}}
"""


def prepare_packets(way: Way, established: bool) -> None:  # noqa: FBT001 - called by name in the guest
    """Set up the packet generator, and what drops and counts at the server's side."""
    command = ["ip", "netns", "exec", "server", "nft", "-f", "-"]
    subprocess.run(command, input=COUNTED.format(port=way.port), text=True, check=True)
    (PKTGEN / "kpktgend_0").write_text("rem_device_all\n")
    (PKTGEN / "kpktgend_0").write_text("add_device eno1\n")
    low, high = (CLIENT_PORT, CLIENT_PORT) if established else (10_000, 65_000)
    for setting in (
        "xmit_mode netif_receive",
        f"count {PACKETS}",
        "pkt_size 100",
        "delay 0",
        "flag !UDPSRC_RND" if established else "flag UDPSRC_RND",
        f"udp_src_min {low}",
        f"udp_src_max {high}",
        f"udp_dst_min {way.port}",
        f"udp_dst_max {way.port}",
        f"src_min {way.client}",
        f"src_max {way.client}",
        f"dst {way.address}",
        f"dst_mac {way.mac}",
        f"src_mac {CLIENT_MAC}",
    ):
        (PKTGEN / "eno1").write_text(setting + "\n")


def send_packets() -> None:
    """Have the packet generator send."""
    (PKTGEN / "pgctrl").write_text("start\n")


def count_packets() -> int:
    """Return how many packets came to the server, and let all through again."""
    found = re.search(r"packets (\d+)", inside("server", "nft list table netdev count"))
    inside("server", "nft delete table netdev count")
    return int(found[1]) if found else 0


def forget_connections() -> None:
    """Empty the table of connections."""
    sh("conntrack -F 2>/dev/null || true")


def prepare() -> None:
    """Load the modules, without rules."""
    sh(f"modprobe -a {MODULES}; sysctl -q net.netfilter.nf_conntrack_max=262144 net.core.netdev_max_backlog=100000")
    sh("sysctl -q net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0")


# --- on this machine ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bench:
    """The booted guest, the way in it, and how often each figure is taken."""

    machine: Guest
    way: Way
    runs: int

    def call(self, name: str, *args: object) -> Any:  # noqa: ANN401 - any function's
        """Call a function of this file in the guest."""
        return self.machine.call(f"benchmarks.datapath:{name}", *args)

    def cost(self, count: int, name: str, *args: object) -> float:
        """Return the microseconds for one of so many things that a function does."""
        start = self.machine.cpu_seconds()
        self.call(name, *args)
        return (self.machine.cpu_seconds() - start) / count * 1e6

    def packet(self, *, established: bool) -> float:
        """Return the microseconds that a packet takes."""
        self.call("prepare_packets", self.way, established)
        taken = self.cost(PACKETS, "send_packets")
        arrived = self.call("count_packets")
        if arrived < PACKETS * 0.99:
            sys.exit(f"{arrived} of {PACKETS} packets arrived, established={established}")
        return taken

    def figures(self, ruleset: str) -> Result:
        """Return the figures of the loaded ruleset: of each the least of the runs."""
        found: list[tuple[float, float, float, float]] = []
        for _ in range(self.runs):
            self.call("forget_connections")
            exchanged = self.cost(EXCHANGES, "exchange", self.way)
            established = self.packet(established=True)
            new = self.packet(established=False)
            found.append((new, established, exchanged, self.cost(CONNECTIONS, "connect", self.way)))
        return Result(self.way.number + 1, ruleset, *(min(column) for column in zip(*found, strict=True)))


def measure(sizes: list[int], runs: int) -> Iterator[Result]:
    """Yield the figures for each number of guests."""
    from tests.kernel.guest.machine import Guest  # deferred: the part in the guest does not need it

    with tempfile.TemporaryDirectory() as temporary, Guest(memory=2048, processors=1) as machine:
        machine.call("benchmarks.datapath:prepare")
        for guests in sizes:
            root = Path(temporary) / str(guests)
            configurations.generate(root, guests)
            compile_all(root, machine.share)
            bench = Bench(machine, Way(guests - 1), runs)
            bench.call("build", bench.way)
            bench.call("serve", bench.way)
            yield bench.figures("bridge")
            bench.call("plug", bench.way)
            yield bench.figures("firewall bridge")
            for ruleset in BEHIND:
                bench.call("load", ruleset, machine.share)
                yield bench.figures(ruleset)
                bench.call("unload")
            bench.call("tear_down", bench.way)


def compile_all(root: Path, folder: Path) -> None:
    """Write the rulesets of a configuration into a folder."""
    for name, options in {
        "iptables": ["--backend", "iptables"],
        "nft": ["--backend", "nft"],
        "as-reference": ["--backend", "nft", "--as-reference"],
    }.items():
        command = [sys.executable, "-m", "pvefw_nft.cli", "compile", *options, "--root", str(root)]
        command += ["--node", configurations.NODE, "--local-network", "10.0.0.0/24"]
        subprocess.run([*command, "-o", str(folder / name)], cwd=REPOSITORY, check=True)


def report(results: list[Result]) -> str:
    """Return a table in Markdown: how many a second, and the cost as a multiple of the bridge's."""
    lines = [
        "| guests | ruleset | new packets/s | established packets/s | answered datagrams/s | connections/s |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    bare = {result.guests: result for result in results if result.ruleset == "bridge"}
    for one in results:
        costs = (one.new_packet, one.established_packet, one.exchange, one.connection)
        base = bare[one.guests]
        bases = (base.new_packet, base.established_packet, base.exchange, base.connection)
        cells = [f"{1e6 / cost:,.0f} ({cost / of:.2f})" for cost, of in zip(costs, bases, strict=True)]
        lines.append(f"| {one.guests:,} | {one.ruleset} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--guests", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--runs", type=int, default=3, help="runs of each measurement, of which the best counts")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args()
    found = list(measure(args.guests, args.runs))
    print(json.dumps([asdict(result) for result in found], indent=2) if args.json else report(found))


if __name__ == "__main__":
    from benchmarks import datapath  # the guest unpickles the classes under this name

    datapath.main()
