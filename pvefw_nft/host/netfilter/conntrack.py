"""The kernel's connection tracking table over netlink: reading entries, and copying them into another zone.

Entries are copied as the kernel lists them, attribute by attribute, which no library does. Constants come from
include/uapi/linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h and nf_conntrack_common.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pvefw_nft.errors import HostError

from .nf_tables import DUMP, REQUEST, attribute, attributes

if TYPE_CHECKING:
    from collections.abc import Iterator

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 1 << 8
_NEW, _GET = _SUBSYSTEM | 0, _SUBSYSTEM | 1
_ACK, _CREATE, _EXCLUSIVE = 0x4, 0x400, 0x200
_ERROR, _DONE = 2, 3

_ORIGINAL, _REPLY, _STATUS, _PROTOCOL_INFO, _TIMEOUT, _MARK, _ZONE, _MARK_MASK = 1, 2, 3, 4, 7, 8, 18, 21
_LABELS, _SEQUENCE_ORIGINAL, _SEQUENCE_REPLY = 22, 15, 16
_KEPT = (_ORIGINAL, _REPLY, _PROTOCOL_INFO, _TIMEOUT, _MARK, _LABELS, _SEQUENCE_ORIGINAL, _SEQUENCE_REPLY)
"""Attributes of an entry that its copy gets too. Its translation is none of them: a copy is of what a bridge sees."""
_SEEN_REPLY, _ASSURED, _CONFIRMED = 2, 4, 8
_NESTED = 0x8000
_IP, _PROTOCOL = 1, 2
_SOURCES, _DESTINATIONS = {1: 4, 3: 6}, {2: 4, 4: 6}
_NUMBER, _SPORT, _DPORT = 1, 2, 3
_TCP = 6


@dataclass(frozen=True, slots=True)
class Tuple:
    """One direction of a connection: protocol number, and per end a packed address and a port (0: it has none)."""

    protocol: int
    source: bytes
    destination: bytes
    sport: int
    dport: int


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the table; ``seconds`` are left of its life. The rest is for :func:`copy`."""

    family: int
    zone: int
    mark: int
    seconds: int
    status: int
    raw: dict[int, bytes]

    @property
    def answered(self) -> bool:
        """Tell whether both ends have sent."""
        return bool(self.status & _SEEN_REPLY)

    @property
    def tuples(self) -> tuple[Tuple, Tuple]:
        """Both directions: of who opened the connection, and of the answers."""
        return _tuple(self.raw[_ORIGINAL]), _tuple(self.raw[_REPLY])


def entries(mark: int | None = None) -> Iterator[Entry]:
    """Yield all entries, or those with that mark. Raises :class:`HostError` if the kernel lists none."""
    about = b"" if mark is None else _number(_MARK, mark) + _number(_MARK_MASK, 0xFFFFFFFF)
    with _socket() as asking:
        asking.send(_message(_GET, REQUEST | DUMP, 0, about))
        for kind, body in _answers(asking):
            if kind != _NEW:
                continue
            raw = {key & 0x3FFF: value for key, value in attributes(body, 4)}
            if raw.keys() >= {_ORIGINAL, _REPLY, _STATUS, _TIMEOUT}:
                yield Entry(
                    body[0],
                    int.from_bytes(raw.get(_ZONE, b""), "big"),
                    int.from_bytes(raw.get(_MARK, b""), "big"),
                    int.from_bytes(raw[_TIMEOUT], "big"),
                    int.from_bytes(raw[_STATUS], "big"),
                    raw,
                )


def copy(some: list[Entry], zone: int) -> int:
    """Copy entries into a zone; those that it has stay as they are. Return how many were made.

    Raises :class:`HostError` if the kernel refuses one for another reason.
    """
    made = 0
    with _socket() as asking:
        for entry in some:
            status = entry.status & (_SEEN_REPLY | _ASSURED) | _CONFIRMED
            about = b"".join(_attribute(key, entry.raw[key]) for key in _KEPT if key in entry.raw)
            about += _number(_STATUS, status)
            if zone:
                about += struct.pack("=HH", 6, _ZONE) + zone.to_bytes(2, "big") + b"\0\0"
            asking.send(_message(_NEW, REQUEST | _ACK | _CREATE | _EXCLUSIVE, entry.family, about))
            try:
                for _ in _answers(asking):
                    pass
                made += 1
            except HostError as error:
                if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.EEXIST:
                    raise
    return made


def _attribute(key: int, value: bytes) -> bytes:
    nested = key in (_ORIGINAL, _REPLY, _PROTOCOL_INFO, _SEQUENCE_ORIGINAL, _SEQUENCE_REPLY)
    head = struct.pack("=HH", 4 + len(value), key | (_NESTED if nested else 0))
    return head + value + bytes(-len(value) % 4)


def _number(key: int, value: int) -> bytes:
    return struct.pack("=HH", 8, key) + value.to_bytes(4, "big")


def _tuple(nested: bytes) -> Tuple:
    parts = dict(attributes(nested, 0))
    source = destination = b""
    for key, value in attributes(parts.get(_IP, b""), 0):
        if key in _SOURCES:
            source = value
        elif key in _DESTINATIONS:
            destination = value
    protocol = parts.get(_PROTOCOL, b"")
    number = int.from_bytes(attribute(protocol, _NUMBER), "big")
    sport, dport = (int.from_bytes(attribute(protocol, key), "big") for key in (_SPORT, _DPORT))
    return Tuple(number, source, destination, sport, dport)


def _socket() -> socket.socket:
    try:
        asking = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    except OSError as error:
        raise HostError(f"connection tracking does not answer: {error.strerror}") from error
    asking.settimeout(60)
    return asking


def _message(kind: int, flags: int, family: int, about: bytes) -> bytes:
    # struct nlmsghdr, struct nfgenmsg
    return struct.pack("=IHHIIBBH", 20 + len(about), kind, flags, 1, 0, family, 0, 0) + about


def _answers(asking: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Yield the kind and body of each answer, until the kernel says that this was all."""
    try:
        while True:
            data = asking.recv(1 << 18)
            position = 0
            while position + 16 <= len(data):
                length, kind = struct.unpack_from("=IH", data, position)
                if length < 16:
                    break
                body = data[position + 16 : position + length]
                if kind == _ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    return
                if kind == _DONE:
                    return
                yield kind, body
                position += (length + 3) & ~3
    except OSError as error:
        hint = "run this as root" if error.errno == errno.EPERM else "modprobe nf_conntrack_netlink"
        raise HostError(f"connection tracking does not answer: {error.strerror or error}", hint) from error
