"""Digests of the rules that legacy iptables, ip6tables and ebtables keep in the kernel, without running these tools.

The kernel neither counts nor announces changes of these tables. Reading a table takes two system calls, where
``iptables-legacy-save`` and above all ``ebtables-legacy-save`` (a Perl script) take processes. Constants and structures
come from include/uapi/linux/netfilter_ipv4/ip_tables.h, netfilter_ipv6/ip6_tables.h and netfilter_bridge/ebtables.h.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_TRIES = 5
_NAME = 32  # XT_TABLE_MAXNAMELEN, EBT_TABLE_MAXNAMELEN
_IP_GET_INFO, _IP_GET_ENTRIES = 64, 65  # IPT_SO_GET_INFO, IPT_SO_GET_ENTRIES; of IPv6 the same
_BRIDGE_GET_INFO, _BRIDGE_GET_ENTRIES = 128, 129  # EBT_SO_GET_INFO, EBT_SO_GET_ENTRIES
_INFO = struct.Struct("=32sI5I5III")  # struct ipt_getinfo
_ENTRIES_AT = 40  # of struct ipt_get_entries: the name, the size, and 4 bytes, since entries are aligned to 8
_COUNTERS = 16  # bytes of struct xt_counters: packets and bytes
# struct ebt_replace: name, hooks, entries and their size, the hooks' pointers, counters that are wanted, pointers
_REPLACE = struct.Struct("@32sIII6PIPP")
_EBTABLES_MODULE = Path("/sys/module/ebtable_filter")


@dataclass(frozen=True, slots=True)
class _Family:
    """The places of a protocol's tables, and of the needed fields of struct ipt_entry or ip6t_entry."""

    family: int
    level: int
    names: Path
    offsets_at: int  # target_offset, next_offset
    counters_at: int


_PROC = Path("/proc/thread-self/net")  # /proc/net belongs to the process's first thread
_FAMILIES = {
    "iptables": _Family(socket.AF_INET, socket.IPPROTO_IP, _PROC / "ip_tables_names", 88, 96),
    "ip6tables": _Family(socket.AF_INET6, socket.IPPROTO_IPV6, _PROC / "ip6_tables_names", 140, 152),
}


def digest(tool: str) -> str:
    """Return a digest of all rules that a tool's legacy variant would list in this network namespace.

    ``tool`` is ``iptables``, ``ip6tables`` or ``ebtables`` (only its table ``filter`` is read). Counters are left out
    of it. Raises OSError if the kernel does not tell.
    """
    found = hashlib.sha256()
    for name, entries in sorted(_bridge_tables().items() if tool == "ebtables" else _ip_tables(tool).items()):
        found.update(name.encode() + struct.pack("=Q", len(entries)) + entries)
    return found.hexdigest()


def _ip_tables(tool: str) -> dict[str, bytes]:
    family = _FAMILIES[tool]
    try:
        names = family.names.read_text("ascii").split()
    except FileNotFoundError:
        return {}  # the module is not loaded, and asking for a table would load it
    with _asking(family.family) as asking:
        return {name: _entries(asking, family, name.encode()) for name in names}


def _asking(family: int) -> socket.socket:
    return socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)


def _entries(asking: socket.socket, family: _Family, name: bytes) -> bytes:
    for _ in range(_TRIES):
        info = ctypes.create_string_buffer(name, _INFO.size)
        _get(asking, family.level, _IP_GET_INFO, info)
        size = _INFO.unpack(info.raw)[-1]
        answer = ctypes.create_string_buffer(_ENTRIES_AT + size)
        struct.pack_into("@32sI", answer, 0, name, size)
        try:
            _get(asking, family.level, _IP_GET_ENTRIES, answer)
        except OSError as error:
            if error.errno == errno.EAGAIN:  # the table was replaced since its size was asked for
                continue
            raise
        return _without_counters(bytearray(memoryview(answer)[_ENTRIES_AT:]), family)
    raise OSError(errno.EAGAIN, "a table changes all the time")


def _without_counters(entries: bytearray, family: _Family) -> bytes:
    position = 0
    while position < len(entries):
        _, following = struct.unpack_from("=HH", entries, position + family.offsets_at)
        counters = position + family.counters_at
        entries[counters : counters + _COUNTERS] = bytes(_COUNTERS)
        if following == 0:
            raise OSError(errno.EBADMSG, "a table that cannot be read")
        position += following
    return bytes(entries)


def has_bridge_table() -> bool:
    """Tell whether legacy ebtables can have rules: where its module is not loaded, asking for them would load it."""
    return _EBTABLES_MODULE.is_dir()


def _bridge_tables() -> dict[str, bytes]:
    if not has_bridge_table():
        return {}
    name = "filter"
    with _asking(socket.AF_INET) as asking:
        for _ in range(_TRIES):
            info = ctypes.create_string_buffer(name.encode(), _REPLACE.size)
            _get(asking, socket.IPPROTO_IP, _BRIDGE_GET_INFO, info)
            _, hooks, count, size, *_ = _REPLACE.unpack(info.raw)
            entries = ctypes.create_string_buffer(size)
            # no counters are wanted
            pointers = (*[0] * 6, 0, 0, ctypes.addressof(entries))
            wanted = ctypes.create_string_buffer(_REPLACE.size + size)
            _REPLACE.pack_into(wanted, 0, name.encode(), hooks, count, size, *pointers)
            try:
                _get(asking, socket.IPPROTO_IP, _BRIDGE_GET_ENTRIES, wanted)
            except OSError as error:
                if error.errno == errno.EINVAL:  # the table was replaced since its size was asked for
                    continue
                raise
            return {name: entries.raw}
    raise OSError(errno.EAGAIN, "a table changes all the time")


def _get(asking: socket.socket, level: int, option: int, value: ctypes.Array[ctypes.c_char]) -> None:
    """Call getsockopt(2) with a value that the kernel reads first; Python's own hands none over."""
    length = ctypes.c_uint(len(value))
    if _libc.getsockopt(asking.fileno(), level, option, value, ctypes.byref(length)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
