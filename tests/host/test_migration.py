"""A guest that moves to another host with its connections, as by Proxmox VE's live migration."""

from __future__ import annotations

import itertools
import socket
import struct
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.host import sysctl
from pvefw_nft.host.bridges.firewall_bridge import Nic
from pvefw_nft.host.bridges.plug import plug_nics, unplug_nics
from pvefw_nft.host.links import open_route
from pvefw_nft.host.netfilter import conntrack
from pvefw_nft.host.tracking import moved
from tests.drawn import drawn

from .conftest import Namespace, need
from .nat_network import run
from .network import has_bridge_conntrack, recompiled, start

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from pvefw_nft.host.records.record import Desired

pytest.importorskip("pyroute2")

VMID, MAC = 100, "bc:24:11:00:00:01"
GUEST, OUTSIDE = "10.0.0.100", "10.0.0.254"


def configure(root: Path) -> None:
    """Write a configuration under which the guest accepts port 80 and opens connections, as node ``n``."""
    for folder in ("firewall", "nodes/n/qemu-server"):
        (root / "etc/pve" / folder).mkdir(parents=True)
    (root / "etc/pve/firewall/cluster.fw").write_text("[OPTIONS]\nenable: 1\n")
    (root / "etc/pve/firewall/100.fw").write_text("[OPTIONS]\nenable: 1\n[RULES]\nIN ACCEPT -p tcp -dport 80\n")
    nic = f"net0: virtio={MAC.upper()},bridge=vmbr0,firewall=1\n"
    (root / "etc/pve/nodes/n/qemu-server/100.conf").write_text(nic)


def index(route: Any, name: str) -> int:  # noqa: ANN401
    found: int = route.link_lookup(ifname=name)[0]
    return found


class Host:
    """A host with vmbr0, on a wire to the outside, and with state of its own."""

    def __init__(self, namespace: Namespace, outside: Namespace, number: int, folder: Path) -> None:
        self.namespace, self.folder = namespace, folder
        (folder / "run").mkdir(parents=True)
        configure(folder)
        with namespace.entered(), open_route() as route:
            route.link("add", ifname="vmbr0", kind="bridge", br_forward_delay=0)
            peer = {"ifname": f"port{number}", "net_ns_fd": outside.descriptor}
            route.link("add", ifname="eno1", kind="veth", peer=peer)
            route.link("set", index=index(route, "eno1"), master=index(route, "vmbr0"))
            for name in ("lo", "vmbr0", "eno1"):
                route.link("set", index=index(route, name), state="up")
        with outside.entered(), open_route() as route:
            route.link("set", index=index(route, f"port{number}"), master=index(route, "br0"), state="up")

    def start(self, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PVEFW_RUN_DIRECTORY", str(self.folder / "run"))
        monkeypatch.setenv("PVEFW_STATE_DIRECTORY", str(self.folder / "state"))
        with self.namespace.entered():
            start(recompiled(self.folder, backend))
            value = "1" if backend == "iptables" else "0"
            for tool in ("iptables", "ip6tables"):
                sysctl.write(f"net/bridge/bridge-nf-call-{tool}", value)

    def update(self, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Apply the configuration as it is now."""
        monkeypatch.setenv("PVEFW_RUN_DIRECTORY", str(self.folder / "run"))
        monkeypatch.setenv("PVEFW_STATE_DIRECTORY", str(self.folder / "state"))
        with self.namespace.entered():
            start(recompiled(self.folder, backend))

    def take_in(self, guest: Namespace) -> None:
        """Have the guest's NIC here, behind its firewall bridge; the guest tells the switch where it is."""
        with self.namespace.entered(), open_route() as route:
            peer = {"ifname": "eth0", "net_ns_fd": guest.descriptor, "address": MAC}
            route.link("add", ifname="tap100i0", kind="veth", peer=peer)
            route.link("set", index=index(route, "tap100i0"), master=index(route, "vmbr0"), state="up")
            (plugged,) = plug_nics([Nic("tap100i0", "vmbr0", VMID, 0)])
            assert plugged.error is None
        with guest.entered():
            with open_route() as route:
                route.link("set", index=index(route, "eth0"), state="up")
                route.addr("add", index=index(route, "eth0"), address=GUEST, prefixlen=24)
            announce()

    def give_away(self) -> None:
        """Remove the NIC, and then the guest's connections, as Proxmox VE does on the source."""
        with self.namespace.entered():
            unplug_nics([Nic("tap100i0", "vmbr0", VMID, 0)])
            with open_route() as route:
                route.link("del", index=index(route, "tap100i0"))
            run("conntrack", "--delete", "--mark", str(VMID))


def announce() -> None:
    """Send an ARP announcement (RFC 5227) by eth0."""
    own, address = bytes.fromhex(MAC.replace(":", "")), socket.inet_aton(GUEST)
    arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + own + address + bytes(6) + address
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
        link.bind(("eth0", 0))
        link.send(b"\xff" * 6 + own + b"\x08\x06" + arp)


def transfer(source: Host, target: Host) -> int:
    """Copy the connections with the guest's mark, each into the zone that it is in."""
    with source.namespace.entered():
        found = list(conntrack.entries(VMID))
    zones: dict[int, list[conntrack.Entry]] = defaultdict(list)
    for entry in found:
        zones[entry.zone].append(entry)
    with target.namespace.entered():
        return sum(conntrack.copy(some, zone) for zone, some in zones.items())


def connection(client: Namespace, server: Namespace, address: str) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a TCP connection."""
    with server.entered():
        listening = socket.create_server((address, 80))
    with client.entered():
        opened = socket.create_connection((address, 80), timeout=5)
    accepted, _ = listening.accept()
    listening.close()
    for end in (opened, accepted):
        end.settimeout(8)
    return opened, accepted


def says(end: socket.socket, other: socket.socket) -> bool:
    end.sendall(b"still there")
    try:
        return other.recv(64) == b"still there"
    except OSError:
        return False


@pytest.mark.parametrize(("before", "after"), drawn([*itertools.product(("iptables", "nft"), repeat=2)], 2, "moves"))
def test_connections_of_a_guest_that_moves_go_on(
    host: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    if not has_bridge_conntrack():
        pytest.skip("this kernel does not track connections on bridges")
    run("modprobe", "br_netfilter")
    run("modprobe", "nf_conntrack_netlink")
    outside, guest, there = Namespace(), Namespace(), Namespace()
    with outside.entered(), open_route() as route:
        route.link("add", ifname="br0", kind="bridge", br_forward_delay=0)
        route.addr("add", index=index(route, "br0"), address=OUTSIDE, prefixlen=24)
        for name in ("lo", "br0"):
            route.link("set", index=index(route, name), state="up")
    source, target = (Host(one, outside, n, tmp_path / str(n)) for n, one in enumerate((host, there)))
    config = target.folder / "etc/pve/nodes/n/qemu-server/100.conf"
    text = config.read_text()
    config.unlink()  # Proxmox VE moves it when the guest has moved
    target.start(after, monkeypatch)
    source.start(before, monkeypatch)
    source.take_in(guest)
    opened, its_server = connection(guest, outside, OUTSIDE)
    its_client, accepted = connection(outside, guest, GUEST)
    assert says(opened, its_server)
    assert says(its_client, accepted)
    assert transfer(source, target) > 0
    source.give_away()
    target.take_in(guest)
    config.write_text(text)
    target.update(after, monkeypatch)
    # the far end sends first: without an entry in the zone of this host its packet would be one of a new connection
    assert says(its_server, opened)
    assert says(opened, its_server)
    assert says(its_client, accepted)
    assert says(accepted, its_client)
    for end in (opened, its_server, its_client, accepted):
        end.close()


def test_connections_of_a_nic_that_appears_are_adopted_for_a_minute(
    host: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopted: list[list[int]] = []

    def adopt(vmids: Collection[int], _: Desired) -> int:
        adopted.append(sorted(vmids))
        return 0

    monkeypatch.setattr(moved, "adopt", adopt)
    now, names = [0.0], ["tap100i0", "lo"]
    guests = moved.MovedGuests(lambda: now[0], lambda: list(enumerate(names)))
    configure(tmp_path)
    ruleset = recompiled(tmp_path, "nft")
    guests.look(ruleset)
    names += ["veth101i0", "tap102i1"]
    guests.look(ruleset)
    now[0] = 30
    names.remove("tap102i1")
    guests.look(ruleset)
    now[0] = 61
    guests.look(ruleset)
    assert adopted == [[], [101, 102], [101], []]


@pytest.mark.parametrize(("backend", "there", "here"), [("nft", 0, 4097 + 100 * 32), ("iptables", 7, 0)])
def test_established_connections_are_copied_once_to_the_zone_of_this_host(
    host: Namespace, tmp_path: Path, backend: str, there: int, here: int
) -> None:
    need("conntrack -L && iptables -t raw -nL")
    configure(tmp_path)
    ruleset = recompiled(tmp_path, backend)
    ports = f"--src {GUEST} --dst {OUTSIDE} --sport 50000 --dport 80 --zone {there} --timeout 100"
    for protocol in ("tcp --state ESTABLISHED", "udp"):  # the latter was not answered
        status = " --status SEEN_REPLY,ASSURED" if protocol.startswith("tcp") else ""
        # conntrack(8) 1.4.7 takes the status for the mark where it comes after it
        run("conntrack", *f"--create --proto {protocol} {ports}{status} --mark {VMID}".split())
    assert moved.adopt([VMID, VMID + 1], ruleset) == 1
    assert [entry.tuples[0].protocol for entry in conntrack.entries(VMID) if entry.zone == here] == [6]
    assert moved.adopt([VMID], ruleset) == 0
    assert moved.adopt(range(100, 200), ruleset) == 0
