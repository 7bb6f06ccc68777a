"""How long ``start`` and ``update`` take to judge the connections that a host has.

Usage: ``python benchmarks/guard.py [--guests N] [--connections N] [--met N ...]``

Makes the configuration of ``benchmarks/compile.py``, and connections to the first ``--met`` of its guests that its
rules cut off, beside two sessions of sshd that they cut off, too. Prints processor seconds for each backend, and how
many connections were judged.
"""

from __future__ import annotations

import argparse
import gc
import ipaddress
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.compile import NODE, generate
from pvefw_nft.app import session_guard
from pvefw_nft.app.desired import desired_of
from pvefw_nft.app.judgement import Connections
from pvefw_nft.host.live_network import LiveLink, LiveNetwork
from pvefw_nft.host.tracking.connections import Address, Flow, Session
from pvefw_nft.pipeline import Source, compile_root
from pvefw_nft.pipeline.topology import topology

HOST = 4, int(ipaddress.IPv4Address("10.128.0.1"))
CLIENT, NETWORK, FAR = (int(ipaddress.IPv4Address(text)) for text in ("10.255.0.9", "10.128.0.0", "198.51.100.1"))
PORTS = (80, 443, 22, 5432)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guests", type=int, default=1000)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--met", type=int, nargs="+", default=[1, 50, 1000])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder), arguments.guests)
        source = Source(Path(folder), NODE, lambda: None)
        nics = topology(source).nics
        guests = [(4, NETWORK + 256 + number) for number in range(len(nics))]
        network = LiveNetwork(
            (LiveLink("vmbr0", is_bridge=True, ports=("eno1",), addresses=((*HOST, 16),)),),
            ((4, NETWORK, 16, "vmbr0"), (4, 0, 0, "vmbr0")),
            {guest: nic.mac for guest, nic in zip(guests, nics, strict=True) if nic.mac is not None},
        )
        sessions = [Session("ssh", Flow(6, (4, CLIENT), 50000 + n, HOST, 22), "a benchmark") for n in range(2)]
        gc.disable()  # as the commands do
        for backend in ("iptables", "nft"):
            desired = desired_of(compile_root(source, backend))
            for met in arguments.met:
                flows = _flows(guests[:met], arguments.connections)
                now = Connections(tuple(sessions), tuple(flows), network, calls_iptables=False)
                begun = time.process_time()
                judgement = session_guard.judge(desired, None, source, now)
                seconds = time.process_time() - begun
                judged = "; ".join(judgement.notes) or "all were judged"
                print(f"{backend}: {len(flows)} connections of {met} guests: {seconds:.2f} s; {judged}")


def _flows(guests: list[Address], count: int) -> list[Flow]:
    """Return so many connections from outside to these guests."""
    return [Flow(6, (4, FAR), 40000 + n, guests[n % len(guests)], PORTS[n % len(PORTS)]) for n in range(count)]


if __name__ == "__main__":
    main()
