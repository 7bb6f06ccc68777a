"""In the guest: ends with a real IP stack, where it matters what that makes of a frame."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .ip import checksum, pseudo_header
from .network.build import ENDPOINT_INTERFACE
from .network.namespace import inside
from .packets import ACK, SYN, mac_bytes
from .wire import send_frame

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .network.plan import Endpoint

_EVERY_PROTOCOL = 3
"""``ETH_P_ALL``."""

SECONDS = 1.0
"""How long a datagram is waited for; it is there before the frame has been sent."""


def received(frames: Sequence[tuple[str, bytes]], receiver: Endpoint, port: int) -> list[bytes]:
    """Send frames (namespace and bytes) while the receiver listens to a UDP port; return the datagrams it got."""
    with inside(receiver.namespace):
        subprocess.run(["ip", "address", "replace", f"{receiver.v4}/24", "dev", ENDPOINT_INTERFACE], check=True)
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listener.bind((str(receiver.v4), port))
        listener.settimeout(SECONDS)
    heard: list[bytes] = []
    try:
        for namespace, data in frames:
            send_frame(namespace, data)
        while True:
            heard.append(listener.recv(65536))
    except TimeoutError:
        return heard
    finally:
        listener.close()
        with inside(receiver.namespace):
            subprocess.run(["ip", "address", "flush", "dev", ENDPOINT_INTERFACE], check=True)


# --- connect() by an attacker --------------------------------------------------------------------------------------

BANNER = b"let in\n"
CONNECT_SECONDS = 6.0
"""How long a connection is waited for: its first packet is sent again after 1 and after 3 seconds (RFC 6298)."""
NOBODY = "02:fe:00:00:00:09"
"""A MAC address that no bridge knows: a frame to it goes everywhere."""


@dataclass(frozen=True, slots=True)
class Attack:
    """A connect() from a port of the attacker to a port of the victim, and the attacker's forged packets.

    ``forges`` is ``nothing``, the victim's ``answer`` to its first packet, or an ``opening`` in the victim's name.
    """

    attacker: Endpoint
    victim: Endpoint
    source_port: int
    port: int
    forges: str


def connects(attack: Attack) -> bytes:
    """Return the bytes that a connect() reads from a server at the victim's port; nothing if it fails."""
    attacker, victim = attack.attacker, attack.victim
    with _addressed(attacker, victim), _addressed(victim, attacker), contextlib.ExitStack() as stack:
        with inside(victim.namespace):
            server = stack.enter_context(socket.create_server((str(victim.v4), attack.port)))
        with inside(attacker.namespace):
            client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind((str(attacker.v4), attack.source_port))
            wire = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_EVERY_PROTOCOL)))
            wire.bind((ENDPOINT_INTERFACE, _EVERY_PROTOCOL))
        if attack.forges == "opening":
            wire.send(_segment(attack, SYN, 1000, 0, destination_mac=victim.mac))
            time.sleep(0.2)  # the victim answers it
        client.setblocking(False)
        client.connect_ex((str(victim.v4), attack.port))
        if attack.forges == "answer":
            wire.send(_segment(attack, SYN | ACK, 1000, _first_sequence(wire, attack) + 1, destination_mac=NOBODY))
        return _read(client, server)


@contextlib.contextmanager
def _addressed(end: Endpoint, other: Endpoint) -> Iterator[None]:
    """Give an endpoint its address and its neighbour's, as long as the body runs."""
    with inside(end.namespace):
        for command in (
            f"address replace {end.v4}/24 dev {ENDPOINT_INTERFACE}",
            f"neigh replace {other.v4} lladdr {other.mac} dev {ENDPOINT_INTERFACE} nud permanent",
        ):
            subprocess.run(["ip", *command.split()], check=True)
    try:
        yield
    finally:
        with inside(end.namespace):
            subprocess.run(["ip", "address", "flush", "dev", ENDPOINT_INTERFACE], check=True)


def _first_sequence(wire: socket.socket, attack: Attack) -> int:
    """Return the sequence number of the attacker's own first packet, as it goes by."""
    ports = struct.pack("!HH", attack.source_port, attack.port)
    wire.settimeout(CONNECT_SECONDS)
    while True:
        frame = wire.recv(2048)
        if frame[12:14] == b"\x08\x00" and frame[23] == socket.IPPROTO_TCP and frame[34:38] == ports:
            number: int = struct.unpack_from("!I", frame, 38)[0]
            return number


def _segment(attack: Attack, flags: int, sequence: int, acknowledgement: int, destination_mac: str) -> bytes:
    """Return a frame with a TCP segment from the victim's port to the attacker's, as the victim would send it."""
    source, destination = attack.victim.v4, attack.attacker.v4
    ports = (attack.port, attack.source_port)
    header = struct.pack("!HHIIBBHHH", *ports, sequence, acknowledgement, 5 << 4, flags, 64240, 0, 0)
    total = checksum(pseudo_header(source, destination, socket.IPPROTO_TCP, len(header)) + header)
    header = header[:16] + struct.pack("!H", total) + header[18:]
    ip = (
        struct.pack("!BBHHHBBH", 0x45, 0, 40, 1, 0x4000, 64, socket.IPPROTO_TCP, 0) + source.packed + destination.packed
    )
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    return mac_bytes(destination_mac) + mac_bytes(attack.attacker.mac) + b"\x08\x00" + ip + header


def _read(client: socket.socket, server: socket.socket) -> bytes:
    """Serve the first connection, and return the bytes that the client reads meanwhile."""
    end = time.monotonic() + CONNECT_SECONDS
    while (left := end - time.monotonic()) > 0:
        ready, _, _ = select.select([client, server], [], [], left)
        if server in ready:
            server.accept()[0].sendall(BANNER)
        if client in ready:
            try:
                return client.recv(100)
            except OSError:  # refused, or no way there
                return b""
    return b""
