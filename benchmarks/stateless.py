"""Measure the cost of the chain ``stateless`` for a frame that a guest sends.

Usage, as root: ``unshare -n python benchmarks/stateless.py [--rounds N]``

Frames go into a firewall bridge by its guest's port, on this machine's own kernel, in a network namespace of its own;
the sending process is timed, in which the bridge runs, too. With each of the tables in turn, several rounds: the least
time of each counts, because other work only adds to it.
"""

from __future__ import annotations

import argparse
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from pvefw_nft.backends.nft.lower import HARDENING  # noqa: E402 - found by the path above
from pvefw_nft.pipeline import Source, compile_root, hardening_of  # noqa: E402 - found by the path above

FRAMES = 20_000
FIRST_VMID = 100
IPFILTER = "ipfilter: 1\n[IPSET ipfilter-net0]\n10.0.0.1\n"
LINKS = ("eth0", "tap100i0", "fwln100i0", "out0", "fwbr100i0")
SETUP = """
ip link add eth0 type veth peer name tap100i0
ip link add fwln100i0 type veth peer name out0
ip link add fwbr100i0 type bridge
ip link set tap100i0 master fwbr100i0
ip link set fwln100i0 master fwbr100i0
"""


def table(guests: int, options: str = "") -> str:
    """Return the table of a node with so many guests, as a transaction."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        pve = root / "etc/pve"
        for name in ("firewall", "qemu-server"):
            (pve / name).mkdir(parents=True)
        (pve / "firewall/cluster.fw").write_text("[OPTIONS]\nenable: 1\n")
        for vmid in range(FIRST_VMID, FIRST_VMID + guests):
            nic = f"net0: virtio=BC:24:11:00:{vmid >> 8:02X}:{vmid & 255:02X},bridge=vmbr0,firewall=1\n"
            (pve / f"qemu-server/{vmid}.conf").write_text(nic)
            (pve / f"firewall/{vmid}.fw").write_text(f"[OPTIONS]\nenable: 1\n{options}")
        return hardening_of(compile_root(Source(root, "n", lambda: None), "iptables"), asked=True)


def frame() -> bytes:
    """Return a UDP packet of guest 100."""
    addresses = bytes([10, 0, 0, 1, 10, 0, 0, 2])
    header = struct.pack("!BBHHHBBH", 0x45, 0, 64, 0, 0, 64, 17, 0) + addresses
    body = struct.pack("!HHHH", 1000, 2000, 44, 0) + bytes(36)
    return bytes.fromhex("02fe00000001" + "bc2411000064" + "0800") + header + body


def main() -> None:
    """Measure, and print the time of a frame with each table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    rounds = parser.parse_args().rounds
    subprocess.run(["sh", "-ec", SETUP], check=True)
    for link in LINKS:
        Path(f"/proc/sys/net/ipv6/conf/{link}/disable_ipv6").write_text("1")
        subprocess.run(["ip", "link", "set", link, "up"], check=True)
    tables = {
        "no table": "",
        "1 NIC": table(1),
        "1 NIC with an IP filter": table(1, IPFILTER),
        "1,000 NICs": table(1000),
        "1,000 NICs with IP filters": table(1000, IPFILTER),
    }
    times: dict[str, list[float]] = {name: [] for name in tables}
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(("eth0", 0))
        for _ in range(rounds):
            for name, text in tables.items():
                subprocess.run(["nft", "delete", "table", "bridge", HARDENING], capture_output=True, check=False)
                if text:
                    subprocess.run(["nft", "-j", "-f", "-"], input=text, text=True, check=True)
                times[name].append(_time(sender))
    for name, found in times.items():
        print(f"{name:28} {min(found):.2f} µs")


def _time(sender: socket.socket) -> float:
    """Return the time of a frame in microseconds."""
    data = frame()
    start = time.process_time()
    for _ in range(FRAMES):
        sender.send(data)
    return (time.process_time() - start) / FRAMES * 1e6


if __name__ == "__main__":
    main()
