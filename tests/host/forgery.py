"""Forged answers: SYN-ACKs made by the sender of the request, as a guest with raw sockets can."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .nat_network import NatNetwork

_ETH_P_IP = 0x0800
_SYN, _ACK = 0x02, 0x10


@dataclass(slots=True)
class Forged:
    """How many answers were forged."""

    count: int = 0


@contextlib.contextmanager
def forge_answers(network: NatNetwork, place: str, victim: str) -> Iterator[Forged]:
    """Send, for each TCP SYN that a place sends to the victim's address, the SYN-ACK that the victim would answer with.

    It leaves by the same NIC, from the victim's IP address and to a MAC address without an owner.
    """
    forged = Forged()
    with network.places[place].entered():
        link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        link.bind(("eth0", 3))
    link.settimeout(0.1)
    over = threading.Event()

    def forge() -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                frame = link.recv(2048)
                answer = _answer(frame, victim)
                if answer is not None:
                    link.send(answer)
                    forged.count += 1

    thread = threading.Thread(target=forge, daemon=True)
    thread.start()
    try:
        yield forged
    finally:
        over.set()
        thread.join()
        link.close()


def _answer(frame: bytes, victim: str) -> bytes | None:
    """Return the frame with the SYN-ACK for a SYN to the victim; None for any other frame."""
    if frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_TCP or frame[30:34] != socket.inet_aton(victim):
        return None
    tcp = frame[14 + (frame[14] & 15) * 4 :]
    source, destination, sequence = struct.unpack_from("!HHI", tcp)
    if tcp[13] != _SYN:
        return None
    asking = frame[26:30]
    head = struct.pack(
        "!HHIIBBHHH", destination, source, 1000, (sequence + 1) & 0xFFFFFFFF, 5 << 4, _SYN | _ACK, 64000, 0, 0
    )
    pseudo = socket.inet_aton(victim) + asking + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(head))
    head = head[:16] + _checksum(pseudo + head) + head[18:]
    ip = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(head), 0, 0, 64, socket.IPPROTO_TCP, 0, socket.inet_aton(victim), asking
    )
    ip = ip[:10] + _checksum(ip) + ip[12:]
    return b"\x02\x00\x00\x00\x99\x99" + frame[6:12] + struct.pack("!H", _ETH_P_IP) + ip + head


def _checksum(data: bytes) -> bytes:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
