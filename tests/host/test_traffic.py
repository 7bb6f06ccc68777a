"""Packets while rulesets come and go: what is denied never passes, what is allowed never fails.

Outside, host and a guest behind its firewall bridge, each in a namespace. A kernel that lacks what a backend needs
(connection tracking on bridges for nft) makes these skip; the kernel lab runs them on one that has it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any, Self

import pytest

from pvefw_nft.cli.desired import desired_of
from pvefw_nft.errors import HostError
from pvefw_nft.host import control, sysctl, tools, wiring
from pvefw_nft.host.links import open_route
from pvefw_nft.host.plumbing import Nic
from pvefw_nft.pipeline import Source, compile_root

from .conftest import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pvefw_nft.host.record import Desired

pytest.importorskip("pyroute2")
pytest.importorskip("nftables")

UPDATES = int(os.environ.get("PVEFW_TEST_UPDATES", "20"))
SWITCHES = int(os.environ.get("PVEFW_TEST_SWITCHES", "4"))
HOST, OUTSIDE, GUEST = "10.0.0.1", "10.0.0.254", "10.0.0.100"
ALLOWED, DENIED = 80, 5000
BACKENDS = ("iptables", "nft")


class Network:
    """The host (this namespace), a guest and the outside, on vmbr0."""

    def __init__(self) -> None:
        self.guest, self.outside = Namespace(), Namespace()
        with open_route() as route:
            route.link("add", ifname="vmbr0", kind="bridge", br_forward_delay=0)
            self._join(route, "eno1", self.outside, OUTSIDE)
            self._join(route, "tap100i0", self.guest, GUEST)
            index = route.link_lookup(ifname="vmbr0")[0]
            route.addr("add", index=index, address=HOST, prefixlen=24)
            for name in ("vmbr0", "lo"):
                route.link("set", index=route.link_lookup(ifname=name)[0], state="up")
        for scope in ("all", "default"):
            sysctl.write(f"net/ipv4/conf/{scope}/rp_filter", "0")
        (plugged,) = wiring.plug([Nic("tap100i0", "vmbr0", 100, 0)])
        assert plugged.error is None

    @staticmethod
    def _join(route: Any, name: str, there: Namespace, address: str) -> None:  # noqa: ANN401
        route.link("add", ifname=name, kind="veth", peer={"ifname": "eth0", "net_ns_fd": there.descriptor})
        index, bridge = route.link_lookup(ifname=name)[0], route.link_lookup(ifname="vmbr0")[0]
        route.link("set", index=index, master=bridge, state="up")
        with there.entered(), open_route() as inside:
            eth0 = inside.link_lookup(ifname="eth0")[0]
            inside.addr("add", index=eth0, address=address, prefixlen=24)
            for link in ("lo", "eth0"):
                inside.link("set", index=inside.link_lookup(ifname=link)[0], state="up")
            inside.route("add", dst="default", gateway=HOST)

    def close(self) -> None:
        self.guest.close()
        self.outside.close()


@pytest.fixture
def network(host: Namespace) -> Iterator[Network]:
    made = Network()
    yield made
    made.close()


def compiled(folder: Path, backend: str, number: int = 0) -> Desired:
    """Return a ruleset that lets port 80 of the guest in and nothing else; each number gives another one."""
    firewall, configs = folder / "etc/pve/firewall", folder / "etc/pve/nodes/n/qemu-server"
    for directory in (firewall, configs):
        directory.mkdir(parents=True, exist_ok=True)
    (configs / "100.conf").write_text("net0: virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1\n")
    (firewall / "cluster.fw").write_text(
        f"[OPTIONS]\nenable: 1\n[IPSET friends]\n10.{number % 250}.1.0/24\n"
        f"[RULES]\nIN ACCEPT -p tcp -dport {1000 + number}\n"
    )
    (firewall / "100.fw").write_text(
        f"[OPTIONS]\nenable: 1\nmacfilter: 0\n[RULES]\nIN ACCEPT -source +friends -p udp -dport {2000 + number}\n"
        f"IN ACCEPT -p tcp -dport {ALLOWED}\n"
    )
    return desired_of(compile_root(Source(folder, "n", lambda: "192.0.2.0/24"), backend))


def start(desired: Desired) -> None:
    """Apply a ruleset, and skip where the kernel lacks what its backend needs."""
    if desired.backend == "nft":
        with contextlib.suppress(HostError):
            tools.run(["modprobe", "nf_conntrack_bridge"])
    try:
        control.apply(desired)
    except HostError as error:
        if any(reason in error.message for reason in ("not supported", "Protocol error", "No such file", "no setting")):
            pytest.skip(f"this kernel lacks what the {desired.backend} backend needs: {error.message[:160]}")
        raise


class Streams:
    """Packets without a pause: denied datagrams to guest and host, new connections, and one that stays."""

    def __init__(self, network: Network, pause: float = 0.001, patience: float = 10) -> None:
        """Pause so many seconds between denied datagrams; an answer must come within ``patience`` seconds."""
        self._patience = patience
        self._network = network
        self._pause = pause
        self._over = threading.Event()
        self.sent = self.leaked = self.connected = self.echoed = 0
        self.failed: list[str] = []
        with network.guest.entered():
            self._server = socket.create_server((GUEST, ALLOWED), backlog=64)
            self._denied = [self._sink(GUEST)]
        self._denied.append(self._sink(HOST))
        self._threads = [
            threading.Thread(target=self._told, args=(action,), daemon=True)
            for action in (self._serve, self._flood, self._connect, self._stay, self._watch)
        ]

    @staticmethod
    def _sink(address: str) -> socket.socket:
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sink.bind((address, DENIED))
        sink.settimeout(0.2)
        return sink

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        time.sleep(0.5)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(20)
        for each in (self._server, *self._denied):
            each.close()

    def _told(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self.failed.append(f"{action.__name__}: {error!r}")

    def _serve(self) -> None:
        self._server.settimeout(0.2)
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = self._server.accept()
                threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(64):
                connection.sendall(data)

    def _flood(self) -> None:
        with self._network.outside.entered():
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sender:
            while not self._over.is_set():
                for address in (GUEST, HOST):
                    with contextlib.suppress(OSError):
                        sender.sendto(b"denied", (address, DENIED))
                        self.sent += 1
                time.sleep(self._pause)

    def _watch(self) -> None:
        while not self._over.is_set():
            for sink in self._denied:
                sink.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    sink.recv(64)
                    self.leaked += 1

    def _connection(self) -> socket.socket:
        with self._network.outside.entered():
            connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        # shut at once, so that ports do not run out
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.settimeout(self._patience)
        connection.connect((GUEST, ALLOWED))
        return connection

    def _connect(self) -> None:
        while not self._over.is_set():
            with self._connection() as connection:
                connection.sendall(b"new")
                assert connection.recv(64) == b"new"
            self.connected += 1
            time.sleep(10 * self._pause)

    def _stay(self) -> None:
        with self._connection() as connection:
            while not self._over.is_set():
                connection.sendall(b"established")
                assert connection.recv(64) == b"established"
                self.echoed += 1
                time.sleep(5 * self._pause)


def check(streams: Streams) -> None:
    assert streams.failed == []
    assert streams.leaked == 0
    assert streams.sent > 100
    assert streams.connected > 5
    assert streams.echoed > 10


@pytest.mark.parametrize("backend", BACKENDS)
def test_updates_under_traffic(network: Network, tmp_path: Path, backend: str) -> None:
    start(compiled(tmp_path / "c", backend))
    with Streams(network) as streams:
        for number in range(1, UPDATES + 1):
            outcome, _ = control.apply(compiled(tmp_path / "c", backend, number))
            assert outcome.changes
    check(streams)


def test_switching_backends_under_traffic(network: Network, tmp_path: Path) -> None:
    rulesets = [compiled(tmp_path / backend, backend) for backend in ("nft", "iptables")]
    for desired in rulesets:
        start(desired)
    with Streams(network) as streams:
        for number in range(SWITCHES):
            outcome, _ = control.apply(rulesets[number % 2])
            assert outcome.switched_from is not None
    check(streams)


class _Killed(BaseException):
    """Stands for SIGKILL."""


def _dying(run: Callable[..., str], steps: int) -> Callable[..., str]:
    """Return a way to run tools that dies after so many of them were fed something."""
    left = iter(range(steps))

    def dying(command: Sequence[str], text: str | None = None, timeout: float = 60) -> str:
        if text is not None and next(left, None) is None:
            raise _Killed
        return run(command, text, timeout)

    return dying


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_leaks_when_an_update_is_killed(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    start(compiled(tmp_path / "c", backend))
    with Streams(network) as streams:
        for step in range(6):
            dying = _dying(tools.run, step)
            with monkeypatch.context() as patched, contextlib.suppress(_Killed):
                patched.setattr(tools, "run", dying)
                control.apply(compiled(tmp_path / "c", backend, 100 + step))
            time.sleep(0.2)
        control.apply(compiled(tmp_path / "c", backend, 200))
    check(streams)


@pytest.mark.parametrize("backend", BACKENDS)
def test_guest_cannot_get_around_the_filter_through_its_firewall_bridge(
    network: Network, tmp_path: Path, backend: str
) -> None:
    """A datagram to a denied port of the host, sent to the firewall bridge's own MAC address."""
    start(compiled(tmp_path / "c", backend))
    with open_route() as route:
        (message,) = route.get_links(route.link_lookup(ifname="fwbr100i0")[0])
    mac = message.get("address")
    sink = Streams._sink(HOST)
    with network.guest.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        subprocess.run(["ip", "neigh", "replace", HOST, "lladdr", mac, "dev", "eth0"], check=True)
    with sink, sender:
        for _ in range(5):
            sender.sendto(b"around", (HOST, DENIED))
        with pytest.raises(TimeoutError):
            sink.recv(64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_unconfirmed_update_that_cuts_its_own_connection(network: Network, tmp_path: Path, backend: str) -> None:
    start(compiled(tmp_path / "c", backend))
    # slow, since an emulated machine must start the guard meanwhile
    streams = Streams(network, pause=0.05, patience=120)
    with streams:
        before = streams.connected
        (tmp_path / "c/etc/pve/firewall/100.fw").write_text("[OPTIONS]\nenable: 1\n[RULES]\nIN DROP\n")
        cutting = desired_of(compile_root(Source(tmp_path / "c", "n", lambda: "192.0.2.0/24"), backend))
        control.apply(cutting, confirm_within=2)
        time.sleep(1)
        stuck = streams.connected
        end = time.monotonic() + 60
        while control.pending() is not None and time.monotonic() < end:
            time.sleep(0.2)
        assert control.pending() is None
        # a new connection's SYN is sent again (after 1, 3, 7, 15, 31 s): it gets through now the old rules are back
        end = time.monotonic() + 60
        while streams.connected <= stuck + 1 and time.monotonic() < end:
            time.sleep(0.2)
        assert streams.connected > max(before, stuck)
    assert streams.leaked == 0
