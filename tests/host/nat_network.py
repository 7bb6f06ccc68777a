"""A host that routes and translates addresses for guests behind firewall bridges, and servers and clients among them.

::

    internet ── wan0 (192.0.2.254) ─ host ─┬─ vmbr1 (10.10.10.1) ─┬─ fwbr100i0 ─ vm100
                                           │                      ├─ fwbr101i0 ─ vm101
                                           │                      └─ tap102i0 ── vm102, not filtered
                                           └─ vmbr2 (10.20.20.1) ─── fwbr103i0 ─ vm103

The sockets are real ones, so that each answer is what a stack makes of it.
"""

from __future__ import annotations

import contextlib
import itertools
import selectors
import socket
import struct
import subprocess
import threading
from typing import TYPE_CHECKING, Any, Self

from pvefw_nft.host import sysctl
from pvefw_nft.host.bridges.firewall_bridge import Nic
from pvefw_nft.host.bridges.plug import plug_nics
from pvefw_nft.host.links import open_route

from .conftest import Namespace

if TYPE_CHECKING:
    from pathlib import Path

SERVED = (21, 22, 23, 24, 25, 80)
"""TCP ports with a server everywhere; guests accept 21, 22 and 80 from anywhere."""
WAN = "192.0.2.254"
ADDRESSES = {
    "internet": "192.0.2.1",
    "vm100": "10.10.10.100",
    "vm101": "10.10.10.101",
    "vm102": "10.10.10.102",
    "vm103": "10.20.20.103",
}
BRIDGES = {"vmbr1": "10.10.10.1", "vmbr2": "10.20.20.1"}
WAN6 = "2001:db8::254"
ADDRESSES6 = {
    "internet": "2001:db8::1",
    "vm100": "fd10::100",
    "vm101": "fd10::101",
    "vm102": "fd10::102",
    "vm103": "2001:db8:20::103",
}
BRIDGES6 = {"vmbr1": "fd10::1", "vmbr2": "2001:db8:20::1"}
_GUEST_BRIDGES = {"vm100": "vmbr1", "vm101": "vmbr1", "vm102": "vmbr1", "vm103": "vmbr2"}
FILTERED = ("vm100", "vm101", "vm103")
FORWARDED = {8080: ("vm100", 80), 8023: ("vm100", 23), 2121: ("vm100", 21)}
"""Ports of the host's outer address, and the guest and port that each leads to."""

_ECHO_REQUEST = struct.pack("!BBHHH", 8, 0, 0, 1, 1) + b"ping"


def configure(root: Path, host_options: str = "nf_conntrack_helpers: ftp", tag: int | None = None) -> None:
    """Write a configuration for this network, whose node is ``n``; ``tag``: the VLAN of the guests of vmbr1."""
    firewall, node = root / "etc/pve/firewall", root / "etc/pve/nodes/n"
    for folder in (firewall, node / "qemu-server"):
        folder.mkdir(parents=True, exist_ok=True)
    (firewall / "cluster.fw").write_text("[OPTIONS]\nenable: 1\npolicy_in: ACCEPT\n")
    (node / "host.fw").write_text(f"[OPTIONS]\n{host_options}\n")
    for guest, bridge in _GUEST_BRIDGES.items():
        vmid = int(guest.removeprefix("vm"))
        firewalled = int(guest in FILTERED)
        (node / f"qemu-server/{vmid}.conf").write_text(
            f"net0: virtio={_mac(vmid).upper()},bridge={bridge},firewall={firewalled}"
            f"{'' if tag is None or bridge != 'vmbr1' else f',tag={tag}'}\n"
        )
        (firewall / f"{vmid}.fw").write_text(
            "[OPTIONS]\nenable: 1\npolicy_in: DROP\npolicy_out: ACCEPT\n[RULES]\n"
            "IN SSH(ACCEPT)\nIN ACCEPT -p tcp -dport 21\nIN ACCEPT -p tcp -dport 80\nIN REJECT -p tcp -dport 24\n"
            "OUT REJECT -p tcp -dport 25\n"
        )


def _mac(vmid: int) -> str:
    return f"02:00:00:00:01:{vmid % 100:02x}"


class NatNetwork:
    """The host (this namespace), the internet and the guests, with a server for each of :data:`SERVED` everywhere."""

    def __init__(self, tag: int | None = None) -> None:
        """``tag``: vmbr1 is VLAN-aware, its guests are in that VLAN, and so is the host's address (vmbr1.20)."""
        self.places = {name: Namespace() for name in ADDRESSES} | {"host": Namespace.here()}
        self.gateways: dict[str, str] = {}
        with open_route() as route:
            for bridge, address in BRIDGES.items():
                route.link("add", ifname=bridge, kind="bridge", br_forward_delay=0)
                self._up(route, bridge)
                link = bridge
                if tag is not None and bridge == "vmbr1":
                    run("ip", "link", "set", bridge, "type", "bridge", "vlan_filtering", "1")
                    run("bridge", "vlan", "add", "dev", bridge, "vid", str(tag), "self")
                    link = f"{bridge}.{tag}"
                    run("ip", "link", "add", "link", bridge, "name", link, "type", "vlan", "id", str(tag))
                self.gateways[bridge] = link
                self._address(route, link, address)
            self._join(route, "internet", "wan0", "02:00:00:00:02:01", None)
            self._address(route, "wan0", WAN)
            for guest, bridge in _GUEST_BRIDGES.items():
                vmid = int(guest.removeprefix("vm"))
                self._join(route, guest, f"tap{vmid}i0", _mac(vmid), bridge)
            self._up(route, "lo")
        if tag is not None:
            run("bridge", "vlan", "add", "dev", "tap102i0", "vid", str(tag), "pvid", "untagged")
        sysctl.write("net/ipv4/ip_forward", "1")
        with self.places["internet"].entered(), open_route() as route:
            # the guests of vmbr1 are reached by the host's outer address only
            route.route("add", dst="10.20.20.0/24", gateway=WAN)
        tags = {"vmbr1": tag}
        bridges = {guest: _GUEST_BRIDGES[guest] for guest in FILTERED}
        plugged = plug_nics(
            [Nic(f"tap{int(g[2:])}i0", bridge, int(g[2:]), 0, tags.get(bridge)) for g, bridge in bridges.items()]
        )
        assert [one.error for one in plugged] == [None] * len(FILTERED)
        self._servers = _Servers(self)

    def _join(self, route: Any, place: str, port: str, mac: str, bridge: str | None) -> None:  # noqa: ANN401
        there = self.places[place]
        peer = {"ifname": "eth0", "net_ns_fd": there.descriptor, "address": mac}
        route.link("add", ifname=port, kind="veth", peer=peer)
        if bridge is not None:
            route.link("set", index=route.link_lookup(ifname=port)[0], master=route.link_lookup(ifname=bridge)[0])
        self._up(route, port)
        with there.entered(), open_route() as inside:
            self._address(inside, "eth0", ADDRESSES[place])
            self._up(inside, "lo")
            sysctl.write("net/ipv4/ping_group_range", "0 2147483647")
            if bridge is not None:
                inside.route("add", dst="default", gateway=BRIDGES[bridge])

    def _address(self, route: Any, link: str, address: str) -> None:  # noqa: ANN401
        route.addr("add", index=route.link_lookup(ifname=link)[0], address=address, prefixlen=24)
        self._up(route, link)

    @staticmethod
    def _up(route: Any, link: str) -> None:  # noqa: ANN401
        route.link("set", index=route.link_lookup(ifname=link)[0], state="up")

    def translate(self) -> None:
        """Add the host's own NAT rules: masquerade, port forwards, and the way back for guests that use these."""
        rules = ["POSTROUTING -s 10.10.10.0/24 -o wan0 -j MASQUERADE"]
        for port, (guest, inner) in FORWARDED.items():
            address = ADDRESSES[guest]
            rules += [
                f"PREROUTING -d {WAN} -p tcp --dport {port} -j DNAT --to-destination {address}:{inner}",
                f"POSTROUTING -s 10.10.10.0/24 -d {address} -p tcp --dport {inner} -j MASQUERADE",
            ]
        for rule in rules:
            run("iptables", "-t", "nat", "-A", *rule.split())
        run("iptables", "-t", "raw", "-A", "PREROUTING", "-i", "wan0", "-p", "tcp", "--dport", "2121", "-j", "CT",
            "--helper", "ftp")  # fmt: skip

    def translate_by_nft(self) -> None:
        """Add the same by rules of nft, which the user may have instead of iptables'."""
        dnat = "".join(f"ip daddr {WAN} tcp dport {p} dnat to {ADDRESSES[g]}:{i};\n" for p, (g, i) in FORWARDED.items())
        back = "".join(
            f"ip saddr 10.10.10.0/24 ip daddr {ADDRESSES[g]} tcp dport {i} masquerade;\n" for g, i in FORWARDED.values()
        )
        run(
            "nft",
            f"""table ip users {{
            ct helper ftp {{ type "ftp" protocol tcp; }}
            chain pre {{ type nat hook prerouting priority dstnat; {dnat} }}
            chain post {{ type nat hook postrouting priority srcnat;
                ip saddr 10.10.10.0/24 oifname wan0 masquerade; {back} }}
            chain help {{ type filter hook prerouting priority -150; iifname wan0 tcp dport 2121 ct helper set ftp; }}
        }}""",
        )

    def have_ip6(self) -> None:
        """Give all places IPv6 addresses; addresses of vmbr1 are translated (NAT66), addresses of vmbr2 routed."""
        sysctl.write("net/ipv6/conf/all/forwarding", "1")
        for link, address in (*((self.gateways[b], a) for b, a in BRIDGES6.items()), ("wan0", WAN6)):
            run("ip", "address", "add", f"{address}/64", "dev", link, "nodad")
        for place, address in ADDRESSES6.items():
            gateway = WAN6 if place == "internet" else BRIDGES6[_GUEST_BRIDGES[place]]
            with self.places[place].entered():
                run("ip", "address", "add", f"{address}/64", "dev", "eth0", "nodad")
                run("ip", "route", "add", "2001:db8:20::/64" if place == "internet" else "default", "via", gateway)
        inner = ADDRESSES6["vm100"]
        run(
            "nft",
            f"""table ip6 users {{
            chain pre {{ type nat hook prerouting priority dstnat;
                ip6 daddr {WAN6} tcp dport 8080 dnat to [{inner}]:80; }}
            chain post {{ type nat hook postrouting priority srcnat; ip6 saddr fd10::/64 oifname wan0 masquerade;
                ip6 saddr fd10::/64 ip6 daddr {inner} tcp dport 80 masquerade; }}
        }}""",
        )

    def socket_of(self, place: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Return a socket of that place."""
        with self.places[place].entered():
            return socket.socket(family, kind, protocol)

    def connect(self, place: str, address: str, port: int, patience: float = 1.5) -> socket.socket:
        """Return a TCP connection. Raises OSError if none comes about within ``patience`` seconds."""
        connection = self.socket_of(place, _family(address), socket.SOCK_STREAM)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.settimeout(patience)
        try:
            connection.connect((address, port))
        except BaseException:
            connection.close()
            raise
        return connection

    def tcp(self, place: str, address: str, port: int, patience: float = 1.5) -> str:
        """Return the address that the server saw the client by, or why there was no connection."""
        try:
            with self.connect(place, address, port, patience) as connection:
                return connection.recv(64).decode()
        except TimeoutError:
            return "no answer"
        except OSError as error:
            return error.strerror or repr(error)

    def udp(self, place: str, address: str, port: int = 53, patience: float = 1.5) -> str:
        """Return the address that the server saw a datagram come from, or that none came back."""
        with self.socket_of(place, _family(address), socket.SOCK_DGRAM) as sender:
            sender.settimeout(patience)
            sender.connect((address, port))
            sender.send(b"who am I")
            return _answer(sender)

    def ping(self, place: str, address: str, patience: float = 1.5) -> str:
        """Return ``pong`` where an echo request is answered."""
        with self.socket_of(place, socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as sender:
            sender.settimeout(patience)
            sender.connect((address, 0))
            sender.send(_ECHO_REQUEST)
            found = _answer(sender)
            return "pong" if "ping" in found else found

    def ftp_active(self, patience: float = 3) -> str:
        """Have vm100 ask the internet's server for data on a connection that the server opens; return what comes."""
        with (
            self.connect("vm100", ADDRESSES["internet"], 21, patience) as control,
            self.socket_of("vm100", socket.AF_INET, socket.SOCK_STREAM) as listening,
        ):
            listening.bind((ADDRESSES["vm100"], 0))
            listening.listen(1)
            listening.settimeout(patience)
            _ftp_log_in(control)
            control.sendall(f"PORT {_ftp_address(*listening.getsockname())}\r\n".encode())
            try:
                data, _ = listening.accept()
            except TimeoutError:
                return "no data connection"
            with data:
                data.settimeout(patience)
                return data.recv(64).decode()

    def ftp_passive(self, patience: float = 3) -> str:
        """Have the internet ask vm100's server, by its forwarded port, for a data connection; return what comes."""
        with self.connect("internet", WAN, 2121, patience) as control:
            _ftp_log_in(control)
            control.sendall(b"PASV\r\n")
            told = control.recv(128).decode().partition("(")[2].partition(")")[0]
            return self.tcp("internet", *_from_ftp(told), patience)

    def close(self) -> None:
        self._servers.close()
        for place in self.places.values():
            place.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Servers:
    """The servers in every place. TCP servers tell the client's address, and echo its data; 21 speaks some FTP."""

    def __init__(self, network: NatNetwork) -> None:
        self._network = network
        self._over = threading.Event()
        self._waiting = selectors.DefaultSelector()
        for place, family in itertools.product((*ADDRESSES, "host"), (socket.AF_INET, socket.AF_INET6)):
            for port in SERVED:
                server = self._bound(place, family, socket.SOCK_STREAM, port)
                server.listen(64)
                self._waiting.register(server, selectors.EVENT_READ, (place, port))
            listening = self._bound(place, family, socket.SOCK_DGRAM, 53)
            self._waiting.register(listening, selectors.EVENT_READ, (place, 53))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _bound(self, place: str, family: int, kind: int, port: int) -> socket.socket:
        made = self._network.socket_of(place, family, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(("", port))
        return made

    def close(self) -> None:
        self._over.set()
        self._thread.join(10)
        for listening in [key.fileobj for key in self._waiting.get_map().values()]:
            assert isinstance(listening, socket.socket)
            listening.close()
        self._waiting.close()

    def _serve(self) -> None:
        while not self._over.is_set():
            for key, _ in self._waiting.select(0.2):
                place, port = key.data
                listening = key.fileobj
                assert isinstance(listening, socket.socket)
                if port == 53:
                    _, sender = listening.recvfrom(64)
                    with contextlib.suppress(OSError):
                        listening.sendto(sender[0].encode(), sender)
                    continue
                connection, sender = listening.accept()
                with contextlib.suppress(OSError):  # the client may have gone already
                    connection.sendall(sender[0].encode())
                answer = self._ftp if port == 21 else self._echo
                threading.Thread(target=answer, args=(connection, place), daemon=True).start()

    @staticmethod
    def _echo(connection: socket.socket, _: str) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(4096):
                connection.sendall(data)

    def _ftp(self, connection: socket.socket, place: str) -> None:
        """Speak as much FTP (RFC 959) as a connection tracking helper reads; each line ends as it wants it."""
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"\r\n")
            while request := connection.recv(128).decode():
                if request.startswith("PORT "):
                    connection.sendall(b"200 PORT\r\n")
                    with self._network.connect(place, *_from_ftp(request.split()[1]), 3) as data:
                        data.sendall(b"some data")
                        data.recv(1)
                elif request.startswith("PASV"):
                    with self._network.socket_of(place, socket.AF_INET, socket.SOCK_STREAM) as listening:
                        listening.bind((connection.getsockname()[0], 0))
                        listening.listen(1)
                        listening.settimeout(5)
                        told = _ftp_address(*listening.getsockname())
                        connection.sendall(f"227 Entering Passive Mode ({told})\r\n".encode())
                        data, _ = listening.accept()
                        with data:
                            data.sendall(b"some data")
                            data.recv(1)
                else:
                    connection.sendall(b"230 go on\r\n")


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _ftp_log_in(control: socket.socket) -> None:
    control.recv(64)
    control.sendall(b"USER anonymous\r\n")
    while not control.recv(64).endswith(b"230 go on\r\n"):
        pass


def _ftp_address(address: str, port: int) -> str:
    return f"{address.replace('.', ',')},{port >> 8},{port & 255}"


def _from_ftp(text: str) -> tuple[str, int]:
    *address, high, low = text.split(",")
    return ".".join(address), int(high) * 256 + int(low)


def _answer(asking: socket.socket) -> str:
    try:
        return asking.recv(64).decode(errors="replace")
    except TimeoutError:
        return "no answer"
    except OSError as error:
        return error.strerror or repr(error)


def run(*command: str) -> str:
    """Run a command and return its output. Raises CalledProcessError."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
