"""IP headers as bytes: options, extension headers, fragments, and mistakes of a sender in them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .network.plan import Address
    from .packets import Packet

FRAGMENT_HEADER = 44
ROUTING_HEADER = 43


@dataclass(frozen=True, slots=True)
class Ends:
    """From where to where a packet goes, its hop limit, and the number that its fragments have in common."""

    source: Address
    destination: Address
    hop_limit: int
    number: int


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo_header(source: Address, destination: Address, protocol: int, length: int) -> bytes:
    """Return the pseudo header that a transport protocol's checksum covers (RFC 9293, RFC 8200)."""
    if source.version == 4:
        return source.packed + destination.packed + struct.pack("!BBH", 0, protocol, length)
    return source.packed + destination.packed + struct.pack("!IHBB", length, 0, 0, protocol)


def datagrams(packet: Packet, ends: Ends, body: bytes) -> list[bytes]:
    """Return the IP packets that carry ``body``: one, or two fragments, in the order in which they are sent."""
    if packet.first_fragment is None:
        return [_header(packet, ends, len(body), None) + body]
    cut, repeated = packet.first_fragment, packet.overlap
    pieces = [(0, True, body[:cut]), (cut - repeated, False, bytes(repeated) + body[cut:])]
    if packet.only_first:
        del pieces[1:]
    made = [_header(packet, ends, len(piece), (at, more)) + piece for at, more, piece in pieces]
    return made[::-1] if packet.last_first else made


def patched(packet: Packet, data: bytes) -> bytes:
    """Return the bytes behind the Ethernet header, with the packet's ``patches`` and ``cut``."""
    if not packet.patches and packet.cut is None:
        return data
    made = bytearray(data)
    for at, new in packet.patches:
        made[at : at + len(new)] = new
    if packet.is_ip and packet.family == 4:
        length = max(20, (made[0] & 15) * 4)
        made[10:12] = bytes(2)
        made[10:12] = struct.pack("!H", checksum(bytes(made[:length])))
    return bytes(made[: packet.cut])


def _header(packet: Packet, ends: Ends, length: int, fragment: tuple[int, bool] | None) -> bytes:
    """Return an IP header (RFC 791, RFC 8200), for a fragment (offset, more) where there is one."""
    if packet.family == 4:
        offset, more = fragment or (0, False)
        options = packet.ip_options
        first = 0x45 + len(options) // 4
        bits = (0x2000 if more else 0) | offset // 8
        header = struct.pack(
            "!BBHHHBBH",
            first,
            0,
            20 + len(options) + length,
            ends.number & 0xFFFF,
            bits,
            ends.hop_limit,
            packet.protocol,
            0,
        )
        header += ends.source.packed + ends.destination.packed + options
        total = checksum(header) ^ (0x5555 if packet.damage == "ip" else 0)
        return header[:10] + struct.pack("!H", total) + header[12:]
    following, extensions = _extensions(packet, ends, fragment)
    header = struct.pack("!IHBB", 0x60000000, len(extensions) + length, following, ends.hop_limit)
    return header + ends.source.packed + ends.destination.packed + extensions


def _extensions(packet: Packet, ends: Ends, fragment: tuple[int, bool] | None) -> tuple[int, bytes]:
    """Return the number of the first extension header, and all of them (RFC 8200, section 4)."""
    offset, more = fragment or (0, False)
    numbers = [*packet.extensions, *([FRAGMENT_HEADER] if fragment is not None else [])]
    following, made = packet.protocol, b""
    for number in reversed(numbers):
        if number == FRAGMENT_HEADER:
            one = struct.pack("!BBHI", following, 0, offset | int(more), ends.number)
        elif number == ROUTING_HEADER:
            one = struct.pack("!BBBB4x", following, 0, 253, 0)  # a type for experiments (RFC 4727), no segments left
        else:
            one = struct.pack("!BB", following, 0) + b"\1\4\0\0\0\0"  # options that only fill (PadN)
        following, made = number, one + made
    return following, made
