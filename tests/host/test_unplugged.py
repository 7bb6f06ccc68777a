"""NICs with firewall=1 that are not behind their firewall bridges: plugged by start, update and run, told, dropped."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.host.bridges.firewall_bridge import Nic
from pvefw_nft.host.bridges.plug import plug_nics, unplug_nics
from pvefw_nft.host.bridges.unplugged import Misconfigured, find_unplugged
from pvefw_nft.host.links import BridgeSettings, Link, Links, open_route, read_links
from tests.waiting import wait_until

from .commands import pvefw as forked_pvefw
from .network import ADDRESSES, MACS, Denied, Echo, Network, configure, has_bridge_conntrack
from .test_commands import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .conftest import Namespace

pytest.importorskip("pyroute2")

BACKENDS = ["iptables", "nft"]
PLAIN = BridgeSettings(30000, 0, 32768, 0, 200, 2000, 0, 0)
NIC = Nic("tap100i0", "vmbr0", 100, 0)


@pytest.fixture
def network(host: Namespace) -> Iterator[Network]:
    """Outside, host and a guest whose NIC is in vmbr0 itself."""
    made = Network()
    unplug(made)
    yield made
    made.close()


def pvefw(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process that has read the program already: to start Python takes seconds in the guest."""
    with tempfile.TemporaryDirectory() as folder:
        done = forked_pvefw(Path(folder), *arguments)
    return subprocess.CompletedProcess(arguments, done.status, done.out, done.err)


def unplug(network: Network) -> None:
    (done,) = unplug_nics([NIC])
    assert done.error is None
    with open_route() as route:
        index, bridge = (route.link_lookup(ifname=name)[0] for name in ("tap100i0", "vmbr0"))
        route.link("set", index=index, master=bridge)


def master(name: str) -> str | None:
    with open_route() as route:
        link = read_links(route).get(name)
    assert link is not None
    return link.master


def options(root: Path, backend: str) -> list[str]:
    return ["--root", str(root), "--node", "n", "--local-network", "192.0.2.0/24", "--backend", backend]


def need(backend: str) -> None:
    if backend == "nft" and not has_bridge_conntrack():
        pytest.skip("this kernel does not take compiled nft rulesets")


def need_bridge_names(backend: str) -> None:
    """Skip where the kernel cannot match a bridge's name, as ebtables-nft and nft do it (nft_meta_bridge)."""
    need(backend)
    rule = "table bridge probe { chain c { type filter hook prerouting priority 0; meta ibrname x drop; }; }"
    if subprocess.run(["nft", "-c", rule], capture_output=True, check=False).returncode:
        pytest.skip("this kernel lacks nft_meta_bridge")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("verb", ["start", "update"])
def test_start_and_update_plug(network: Network, tmp_path: Path, backend: str, verb: str) -> None:
    need(backend)
    configure(tmp_path)
    if verb == "update":
        assert pvefw("start", *options(tmp_path, backend)).returncode == 0
        unplug(network)
    done = pvefw(verb, *options(tmp_path, backend))
    assert done.returncode == 0, done.stderr
    assert "tap100i0: plugged behind its firewall bridge\n" in done.stderr
    assert master("tap100i0") == "fwbr100i0"
    assert pvefw("status", *options(tmp_path, backend)).returncode == 0


def test_without_plugging_it_is_said_and_status_tells(network: Network, tmp_path: Path) -> None:
    configure(tmp_path)
    done = pvefw("start", "--no-plug", *options(tmp_path, "iptables"))
    told = "warning: tap100i0 has firewall=1 but is in vmbr0, not behind fwbr100i0: it is not filtered\n"
    assert done.returncode == 1
    assert told in done.stderr
    assert master("tap100i0") == "vmbr0"
    status = pvefw("status", *options(tmp_path, "iptables"))
    assert status.returncode == 1
    assert told in status.stdout
    found = json.loads(pvefw("status", "--format", "json", *options(tmp_path, "iptables")).stdout)
    assert found["unplugged"] == [{"interface": "tap100i0", "bridge": "vmbr0", "dropped": False, "reason": None}]


def test_a_dry_run_names_the_nics_to_plug(network: Network, tmp_path: Path) -> None:
    configure(tmp_path)
    done = pvefw("start", "--dry-run", *options(tmp_path, "iptables"))
    assert "tap100i0: would be plugged" in done.stderr
    assert "# ip link set tap100i0 master fwbr100i0\n" in done.stdout
    assert master("tap100i0") == "vmbr0"


def test_a_bad_nic_does_not_stop_the_rest(network: Network, tmp_path: Path) -> None:
    configure(tmp_path)
    config = tmp_path / "etc/pve/nodes/n/qemu-server"
    (config / "101.conf").write_text("net0: virtio=BC:24:11:00:00:77,firewall=1\n")
    (config / "102.conf").write_text("net0: virtio=BC:24:11:00:00:78,bridge=ovs0,firewall=1\n")
    with open_route() as route:
        for name in ("tap101i0", "tap102i0", "ovs0"):
            route.link("add", ifname=name, kind="veth", peer={"ifname": f"{name}x"})
        for name in ("tap101i0",):
            index, bridge = (route.link_lookup(ifname=link)[0] for link in (name, "vmbr0"))
            route.link("set", index=index, master=bridge)
    done = pvefw("start", "--skip-invalid", *options(tmp_path, "iptables"))
    assert master("tap100i0") == "fwbr100i0"
    assert done.returncode == 1
    assert "tap101i0 has firewall=1 but is in vmbr0, not behind fwbr101i0; it cannot be plugged: " in done.stderr
    assert "names no bridge for it: it is not filtered" in done.stderr
    assert "tap102i0 has firewall=1 but is in no bridge, not behind fwbr102i0; it cannot be plugged: " in done.stderr
    assert "ovs0 is not a Linux bridge" in done.stderr
    plumb = pvefw("plumb", "--root", str(tmp_path), "--node", "n")
    assert "2 of 3 NICs could not be plugged" in plumb.stderr
    doctor = pvefw("doctor", "--root", str(tmp_path), "--node", "n").stdout
    assert "tap101i0 has firewall=1 but is in vmbr0" in doctor


def links(*others: Link) -> Links:
    bridges = [Link(name, 1, "bridge", 1500, up=True, bridge=PLAIN) for name in ("vmbr0", "fwbr100i0")]
    return Links([*bridges, *others])


def test_a_nic_that_leads_to_open_vswitch_is_filtered_by_iptables_only() -> None:
    there = links(
        Link("tap100i0", 2, "tun", 1500, up=True, master="fwbr100i0"),
        Link("fwln100o0", 3, "openvswitch", 1500, up=True, master="fwbr100i0"),
    )
    assert find_unplugged([NIC], (), there, "iptables") == []
    (found,) = find_unplugged([NIC], (), there, "nft")
    assert found.reason == "it leads to Open vSwitch, whose port the nft ruleset does not match"


def test_nics_that_do_not_exist_are_not_unplugged() -> None:
    assert find_unplugged([NIC], [Misconfigured("tap5i0", "fwbr5i0", "no bridge")], links()) == []


def test_plugging_a_running_nic_loses_at_most_a_few_packets(network: Network) -> None:
    """Send 2,000 datagrams a second each way while the NIC moves, ten times; print the losses."""
    lost = []
    for turn in range(10):
        with flow(network, ("outside", "guest")) as inwards, flow(network, ("guest", "outside")) as outwards:
            time.sleep(0.1)  # packets flow before
            (done,) = plug_nics([NIC])
            assert done.error is None
            time.sleep(0.2)  # and after
        lost.append((inwards.missing, outwards.missing))
        if turn < 9:
            unplug(network)
            time.sleep(0.1)  # the last packets arrive
    print(f"lost of the stream to and from the guest, by turn: {lost}")
    counts = sorted(count for pair in lost for count in pair)
    assert counts[len(counts) // 2] <= 10
    # the kernel waits for all processors while the NIC changes its bridge, which takes long where they are busy
    assert counts[-1] <= 1000


class Flow:
    """Numbered datagrams from one place to another, 2,000 a second, and how many did not arrive."""

    def __init__(self, network: Network, way: tuple[str, str]) -> None:
        here, there = way
        self._address = ADDRESSES[there][0], 9000
        self._sender = network.socket_of(here, socket.AF_INET, socket.SOCK_DGRAM)
        self._sink = network.socket_of(there, socket.AF_INET, socket.SOCK_DGRAM)
        self._sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._sink.bind(self._address)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self.sent = self.missing = 0

    def _send(self) -> None:
        while not self._over.is_set():
            self._sender.sendto(b"x", self._address)
            self.sent += 1
            time.sleep(0.0005)  # the rate

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join()
        self._sink.settimeout(0.2)
        arrived = 0
        try:
            while self._sink.recv(8):
                arrived += 1
        except TimeoutError:
            pass
        self.missing = self.sent - arrived
        self._sink.close()
        self._sender.close()


@contextmanager
def flow(network: Network, way: tuple[str, str]) -> Iterator[Flow]:
    made = Flow(network, way)
    made.begin()
    try:
        yield made
    finally:
        made.end()


# --- what stays unplugged ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_traffic_of_a_nic_that_stays_unplugged_is_dropped(network: Network, tmp_path: Path, backend: str) -> None:
    need_bridge_names(backend)
    configure(tmp_path)
    denied = Denied(network, [("outside", "guest"), ("guest", "outside"), ("guest", "host"), ("host", "guest")])
    assert len(denied.pass_now()) == 8  # IPv4 and IPv6, nothing is loaded
    done = pvefw("start", "--no-plug", "--unplugged", "drop", *options(tmp_path, backend))
    assert "not behind fwbr100i0: all its traffic is dropped" in done.stderr
    assert denied.pass_now() == []
    assert "all its traffic is dropped" in pvefw("status", *options(tmp_path, backend)).stdout
    assert pvefw("update", "--no-plug", *options(tmp_path, backend)).returncode == 1  # as was asked for last
    assert denied.pass_now() == []
    # once it is plugged the ruleset decides, even before pvefw looks again
    (plugged,) = plug_nics([NIC])
    assert plugged.error is None
    with Echo(network), network.connect(("outside", "guest"), socket.AF_INET, 10):
        pass
    assert pvefw("update", *options(tmp_path, backend)).returncode == 0
    unplug(network)
    assert pvefw("update", "--no-plug", "--unplugged", "report", *options(tmp_path, backend)).returncode == 1
    assert len(denied.pass_now()) > 0
    assert pvefw("stop").returncode == 0
    assert "pvefw-unplugged" not in everything_loaded()
    denied.close()


def everything_loaded() -> str:
    commands = ("iptables-save", "ip6tables-save", "ebtables-save", "nft list ruleset")
    return "".join(subprocess.run(c.split(), capture_output=True, text=True, check=False).stdout for c in commands)


# --- the service ---------------------------------------------------------------------------------------------


@contextmanager
def service(root: Path, *more: str, backend: str = "iptables") -> Iterator[Path]:
    """Run ``pvefw run`` and wait until it is ready; the file has its output."""
    said = root / "said"
    command = [sys.executable, "-m", "pvefw_nft.cli", "run", *options(root, backend), *more]
    with (
        said.open("w") as file,
        subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
        ) as running,
    ):
        eventually(lambda: "started: " in said.read_text(), said)
        time.sleep(0.5)  # it prepares for changes
        try:
            yield said
        finally:
            running.send_signal(signal.SIGTERM)
            running.wait(30)


def eventually(holds: Callable[[], object], said: Path) -> None:
    assert wait_until(holds, 30, every=0.01), said.read_text()


def appear(network: Network) -> None:
    """Let the guest's NIC appear again, in vmbr0: as Proxmox plugs it if it makes no firewall bridges."""
    with open_route() as route:
        bridge = route.link_lookup(ifname="vmbr0")[0]
        peer = {"ifname": "eth0", "net_ns_fd": network.guest.descriptor, "address": MACS["guest"]}
        route.link("add", ifname="tap100i0", kind="veth", peer=peer)
        index = route.link_lookup(ifname="tap100i0")[0]
        route.link("set", index=index, master=bridge, state="up")
        with network.guest.entered(), open_route() as inside:
            network._give_addresses(inside, "eth0", "guest")
            inside.link("set", index=inside.link_lookup(ifname="eth0")[0], state="up")


def disappear() -> None:
    with open_route() as route:
        route.link("del", index=route.link_lookup(ifname="tap100i0")[0])


def test_the_service_plugs_a_nic_that_appears(network: Network, tmp_path: Path) -> None:
    """Measure, ten times, how long a NIC that appears in the guest's bridge stays there."""
    configure(tmp_path)
    windows = []
    with service(tmp_path) as said:
        for _ in range(10):
            unplug_nics([NIC])
            disappear()
            time.sleep(0.2)  # the service takes note
            begun = time.monotonic()
            appear(network)
            eventually(lambda: master("tap100i0") == "fwbr100i0", said)
            windows.append(time.monotonic() - begun)
        told = re.findall(r"tap100i0: plugged (\d+) ms after it appeared", said.read_text())
    print(f"ms until it was plugged: {[round(1000 * window) for window in windows]}; as told: {told}")
    assert sorted(windows)[5] < 0.5


def test_the_service_leaves_a_nic_in_no_bridge_to_the_program_that_makes_it(network: Network, tmp_path: Path) -> None:
    configure(tmp_path)
    unplug_nics([NIC])
    disappear()
    with service(tmp_path) as said, open_route() as route:
        route.link("add", ifname="tap100i0", kind="veth", peer={"ifname": "other"})
        for _ in range(4):
            time.sleep(0.4)  # for it to plug the NIC by mistake
            route.link("set", index=route.link_lookup(ifname="other")[0], state="up")
            assert master("tap100i0") is None
        assert "could not be plugged" not in said.read_text()
