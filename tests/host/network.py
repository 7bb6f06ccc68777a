"""Outside, host and a guest behind its firewall bridge, each in a namespace; rulesets for them, and packets among them.

Only port 80 of guest, host and outside may be reached, over TCP, from anywhere. What is sent to port 5000 must not
arrive, in either direction.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import selectors
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from pvefw_nft.app.desired import desired_of
from pvefw_nft.errors import HostError
from pvefw_nft.host import sysctl, tools
from pvefw_nft.host.bridges.firewall_bridge import Nic
from pvefw_nft.host.bridges.plug import plug_nics
from pvefw_nft.host.links import open_route
from pvefw_nft.host.records import record
from pvefw_nft.host.settings import needed_first
from pvefw_nft.pipeline import Source, compile_root

from .conftest import Namespace
from .here import control
from .rulesets import pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pvefw_nft.host.records.record import Desired

SECONDS = float(os.environ.get("PVEFW_TEST_SECONDS", "inf"))
"""How long a test goes on with updates or switches, where it is to make many."""
ALLOWED, DENIED, HOST_ONLY = 80, 5000, 5001
MACS = {place: f"bc:24:11:00:00:0{number}" for number, place in enumerate(("host", "guest", "outside"))}
ADDRESSES = {
    "host": ("10.0.0.1", "fd00::1"),
    "outside": ("10.0.0.254", "fd00::254"),
    "guest": ("10.0.0.100", "fd00::100"),
}
"""By place: its addresses, IPv4 and IPv6."""
HOST, OUTSIDE, GUEST = (ADDRESSES[place][0] for place in ("host", "outside", "guest"))
DENIED_WAYS = (("outside", "guest"), ("outside", "host"), ("guest", "outside"), ("guest", "host"))
ALLOWED_WAYS = (("outside", "guest"), ("outside", "host"), ("guest", "outside"))
CUT_DOWN = "PVEFW_TEST_CUT_DOWN" in os.environ
"""Whether nft's rules are to do without connections on bridges where the kernel does not track them."""
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_MAY_PASS = " (open)"
_NO_DAD = 0x02  # IFA_F_NODAD, linux/if_addr.h: the address can be used at once
_LACKING = ("not supported", "Protocol error", "No such file", "no setting")


class Network:
    """The host (this namespace), a guest and the outside, on vmbr0."""

    def __init__(self) -> None:
        self.guest, self.outside, self._host = Namespace(), Namespace(), Namespace.here()
        with open_route() as route:
            route.link("add", ifname="vmbr0", kind="bridge", br_forward_delay=0, address=MACS["host"])
            self._join(route, "eno1", self.outside, "outside")
            self._join(route, "tap100i0", self.guest, "guest")
            self._give_addresses(route, "vmbr0", "host")
            for name in ("vmbr0", "lo"):
                route.link("set", index=route.link_lookup(ifname=name)[0], state="up")
        for scope in ("all", "default"):
            sysctl.write(f"net/ipv4/conf/{scope}/rp_filter", "0")
        (plugged,) = plug_nics([Nic("tap100i0", "vmbr0", 100, 0)])
        assert plugged.error is None

    def _join(self, route: Any, name: str, there: Namespace, place: str) -> None:  # noqa: ANN401
        peer = {"ifname": "eth0", "net_ns_fd": there.descriptor, "address": MACS[place]}
        route.link("add", ifname=name, kind="veth", peer=peer)
        index, bridge = route.link_lookup(ifname=name)[0], route.link_lookup(ifname="vmbr0")[0]
        route.link("set", index=index, master=bridge, state="up")
        with there.entered(), open_route() as inside:
            self._give_addresses(inside, "eth0", place)
            for link in ("lo", "eth0"):
                inside.link("set", index=inside.link_lookup(ifname=link)[0], state="up")
            inside.route("add", dst="default", gateway=HOST)

    @staticmethod
    def _give_addresses(route: Any, name: str, place: str) -> None:  # noqa: ANN401
        index = route.link_lookup(ifname=name)[0]
        version4, version6 = ADDRESSES[place]
        route.addr("add", index=index, address=version4, prefixlen=24)
        route.addr("add", index=index, address=version6, prefixlen=64, flags=_NO_DAD)
        for other in ADDRESSES.keys() - {place}:  # so that nothing is lost because nobody knows where to send it
            for address in ADDRESSES[other]:
                route.neigh("add", ifindex=index, dst=address, lladdr=MACS[other], state="permanent")

    def socket_of(self, place: str, family: int, kind: int) -> socket.socket:
        """Return a socket of that place."""
        with {"host": self._host, "guest": self.guest, "outside": self.outside}[place].entered():
            return socket.socket(family, kind)

    def connect(self, way: tuple[str, str], family: int, patience: float) -> socket.socket:
        """Return a TCP connection from one place to the open port of another. Raises OSError after ``patience`` s."""
        here, there = way
        connection = self.socket_of(here, family, socket.SOCK_STREAM)
        # shut at once, so that ports do not run out
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.settimeout(patience)
        try:
            connection.connect((ADDRESSES[there][family == socket.AF_INET6], ALLOWED))
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        for namespace in (self.guest, self.outside, self._host):
            namespace.close()


def compiled(folder: Path, backend: str, number: int = 0, *, other: bool = False) -> Desired:
    """Return a ruleset for this network, as :func:`configure` writes it."""
    configure(folder, number, other=other)
    return recompiled(folder, backend)


def configure(folder: Path, number: int = 0, *, other: bool = False) -> None:
    """Write a configuration for this network, whose node is ``n``; each number gives another one.

    ``other``: one that also has other chains and sets, in tables that the first does not use.
    """
    firewall, configs = folder / "etc/pve/firewall", folder / "etc/pve/nodes/n"
    for directory in (firewall, configs / "qemu-server"):
        directory.mkdir(parents=True, exist_ok=True)
    (configs / "qemu-server/100.conf").write_text(f"net0: virtio={MACS['guest'].upper()},bridge=vmbr0,firewall=1\n")
    more = "[IPSET more]\n192.0.2.0/24\n[group some]\nIN ACCEPT -source +more -p udp -dport 53\n"
    (firewall / "cluster.fw").write_text(
        f"[OPTIONS]\nenable: 1\n[IPSET friends]\n10.{number % 250}.1.0/24\n{more if other else ''}"
        f"[RULES]\nIN ACCEPT -p tcp -dport {1000 + number}\nIN ACCEPT -p tcp -dport {ALLOWED}\n"
        f"IN ACCEPT -p udp -dport {HOST_ONLY}\n"
    )
    (configs / "host.fw").write_text(f"[OPTIONS]\nprotection_synflood: {int(other)}\n")
    (firewall / "100.fw").write_text(
        f"[OPTIONS]\nenable: 1\nmacfilter: {int(other)}\npolicy_out: DROP\n[RULES]\n{'GROUP some' if other else ''}\n"
        f"IN ACCEPT -source +friends -p udp -dport {2000 + number}\n"
        f"IN ACCEPT -p tcp -dport {ALLOWED}\nOUT ACCEPT -p tcp -dport {ALLOWED}\n"
    )


def recompiled(folder: Path, backend: str) -> Desired:
    """Return the ruleset of the files as they are now."""
    return desired_of(compile_root(Source(folder, "n", lambda: "192.0.2.0/24"), backend))


def ruleset(backend: str, artefact: dict[str, Any]) -> Desired:
    """Return a ruleset that was not compiled."""
    return record.desired(backend, pieces(artefact), enabled=True)


def has_bridge_conntrack() -> bool:
    """Tell whether the kernel tracks connections on bridges, without which it does not take compiled nft rulesets."""
    with contextlib.suppress(HostError):
        tools.run(["modprobe", "-q", "nf_conntrack_bridge"])
    return Path("/sys/module/nf_conntrack_bridge").is_dir()


def switch_off() -> None:
    """Switch off the settings that iptables' rulesets need, where the kernel has them."""
    for key in needed_first("iptables"):
        if sysctl.read(key) is not None:
            sysctl.write(key, "0")


def takes_compiled_nft() -> bool:
    """Tell whether this kernel takes compiled nft rulesets, if need be with unsupported parts replaced."""
    return CUT_DOWN or has_bridge_conntrack()


@contextlib.contextmanager
def small_file_system(path: Path, size: str = "64k") -> Iterator[Path]:
    """Mount one of 64 KiB there while the block runs."""
    path.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"cannot mount a tmpfs: {error.stderr.decode()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def start(desired: Desired) -> None:
    """Apply a ruleset, and skip where the kernel lacks what its backend needs."""
    if desired.backend == "nft":
        with contextlib.suppress(HostError):
            tools.run(["modprobe", "nf_conntrack_bridge"])
    try:
        control.apply(desired)
    except HostError as error:
        if any(reason in error.message for reason in _LACKING):
            pytest.skip(f"this kernel lacks what the {desired.backend} backend needs: {error.message[:160]}")
        raise


def rounds(count: int, least: int = 4) -> Iterator[int]:
    """Return the numbers from 1 to ``count``, or as many as there is time for but ``least``; print how many."""
    begun = time.monotonic()
    number = 0
    while number < count and (number < least or time.monotonic() - begun < SECONDS):
        number += 1
        yield number
    print(f"{number} of {count} in {time.monotonic() - begun:.0f} s")


class Denied:
    """Datagrams that must not arrive, and the sockets where they would."""

    def __init__(self, network: Network, ways: Iterable[tuple[str, str]] = DENIED_WAYS, port: int = DENIED) -> None:
        self._senders: list[tuple[socket.socket, bytes, tuple[str, int]]] = []
        self._sinks = selectors.DefaultSelector()
        ways = list(ways)
        for number, family in enumerate(_FAMILIES):
            for there in sorted({there for _, there in ways}):
                sink = network.socket_of(there, family, socket.SOCK_DGRAM)
                sink.bind((ADDRESSES[there][number], port))
                sink.setblocking(False)
                self._sinks.register(sink, selectors.EVENT_READ, sink)
            for here, there in ways:
                sender = network.socket_of(here, family, socket.SOCK_DGRAM)
                address = ADDRESSES[there][number]
                self._senders.append((sender, f"{here} to {address}".encode(), (address, port)))

    def send(self, note: str = "") -> int:
        """Send one of each, with a note for the receiver; return how many were sent."""
        sent = 0
        for sender, text, address in self._senders:
            with contextlib.suppress(OSError):
                sent += sender.sendto(text + note.encode(), address) > 0
        return sent

    def arrived(self, seconds: float) -> list[str]:
        """Return what arrives first within that time: from where to where, and the note."""
        ready = self._sinks.select(seconds)
        return [key.data.recv(64).decode() for key, _ in ready]

    def pass_now(self) -> list[str]:
        """Send a few of each and return those that arrive."""
        for _ in range(3):
            assert self.send() == len(self._senders)
        found = set()
        while some := self.arrived(0.1):
            found.update(some)
        return sorted(found)

    def close(self) -> None:
        for sink in [key.data for key in self._sinks.get_map().values()]:
            sink.close()
        self._sinks.close()
        for sender, *_ in self._senders:
            sender.close()


class Echo:
    """Servers on the open port of every place, which report the packets that they get."""

    def __init__(self, network: Network) -> None:
        self._over = threading.Event()
        self._waiting = selectors.DefaultSelector()
        for place, addresses in ADDRESSES.items():
            for family, address in zip(_FAMILIES, addresses, strict=True):
                server = network.socket_of(place, family, socket.SOCK_STREAM)
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.bind((address, ALLOWED))
                server.listen(64)
                self._waiting.register(server, selectors.EVENT_READ, server)
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)
        for server in [key.data for key in self._waiting.get_map().values()]:
            server.close()
        self._waiting.close()

    def _serve(self) -> None:
        while not self._over.is_set():
            for key, _ in self._waiting.select(0.2):
                connection, _ = key.data.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    @staticmethod
    def _answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(64):
                connection.sendall(data)


class Streams:
    """Packets without a pause: denied datagrams, new connections, and connections that stay, all of IPv4 and IPv6."""

    def __init__(
        self,
        network: Network,
        pause: float = 0.001,
        patience: float = 10,
        *,
        denied: Iterable[tuple[str, str]] = DENIED_WAYS,
        allowed: Iterable[tuple[str, str]] = ALLOWED_WAYS,
    ) -> None:
        """Pause so many seconds between denied datagrams; an answer must come within ``patience`` seconds."""
        self._patience = patience
        self._allowed = list(allowed)
        self._network = network
        self._pause = pause
        self._over = threading.Event()
        self._denied = Denied(network, denied)
        self._echo = Echo(network)
        self.connected = self.echoed = 0
        self.leaked: Counter[str] = Counter()
        self.failed: list[str] = []
        # a process of its own: the update that is tested must not keep these from being sent
        forking = multiprocessing.get_context("fork")
        self._sent = forking.Value("Q", 0, lock=False)
        self._open = forking.Value("B", 0)
        self.let_through = 0
        self._flooding = forking.Process(target=self._flood, daemon=True)
        actions = (self._connect, self._stay, self._watch)
        self._threads = [threading.Thread(target=self._told, args=(action,), daemon=True) for action in actions]

    @property
    def sent(self) -> int:
        """How many denied datagrams were sent."""
        return int(self._sent.value)

    def expect(self, *, may_pass: bool) -> None:
        """Have denied datagrams that are sent from now on count as leaked, or as ``let_through``."""
        with self._open.get_lock():  # no datagram is on its way
            self._open.value = may_pass

    def __enter__(self) -> Self:
        self._flooding.start()
        self._echo.__enter__()
        for thread in self._threads:
            thread.start()
        time.sleep(0.5)  # all streams flow
        return self

    def __exit__(self, *_: object) -> None:
        self._flooding.kill()
        self._flooding.join()
        self._over.set()
        for thread in self._threads:
            thread.join(self._patience + 20)
        self._echo.__exit__()
        self._denied.close()

    def _told(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self.failed.append(f"{action.__name__}: {error!r}")

    def _rest(self, seconds: float, since: float) -> None:
        """Pause, and at least as long as the work took: an emulated machine needs its processors for the updates."""
        time.sleep(max(seconds, min(0.05, time.monotonic() - since)))  # the rate of a stream

    def _flood(self) -> None:
        while True:
            begun = time.monotonic()
            with self._open.get_lock():
                self._sent.value += self._denied.send(_MAY_PASS if self._open.value else "")
            self._rest(self._pause, begun)

    def _watch(self) -> None:
        while not self._over.is_set():
            arrived = self._denied.arrived(0.1)
            leaked = [text for text in arrived if not text.endswith(_MAY_PASS)]
            self.let_through += len(arrived) - len(leaked)
            self.leaked.update(leaked)

    def _connect(self) -> None:
        for way, family in itertools.cycle(itertools.product(self._allowed, _FAMILIES)):
            if self._over.is_set():
                return
            begun = time.monotonic()
            with self._network.connect(way, family, self._patience) as connection:
                connection.sendall(b"new")
                assert connection.recv(64) == b"new"
            self.connected += 1
            self._rest(50 * self._pause, begun)

    def _stay(self) -> None:
        with contextlib.ExitStack() as stack:
            connections = [
                stack.enter_context(self._network.connect(way, family, self._patience))
                for way, family in itertools.product(self._allowed, _FAMILIES)
            ]
            for connection in itertools.cycle(connections):
                if self._over.is_set():
                    return
                begun = time.monotonic()
                connection.sendall(b"established")
                assert connection.recv(64) == b"established"
                self.echoed += 1
                self._rest(10 * self._pause, begun)


def check(streams: Streams) -> None:
    """Assert that allowed packets passed, denied ones did not, and that there were enough of both."""
    assert streams.failed == [], streams.failed
    assert not streams.leaked, streams.leaked
    assert streams.sent > 100
    assert streams.connected > 5
    assert streams.echoed > 10
