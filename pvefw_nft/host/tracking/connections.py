"""The connections that this host's kernel knows: its own TCP sockets, and conntrack entries of guests.

Files of ``/proc`` only. TCP sockets: ``/proc/net/tcp`` and ``tcp6`` (net/ipv4/tcp_ipv4.c, get_tcp4_sock); tracked
connections: ``/proc/net/nf_conntrack`` (net/netfilter/nf_conntrack_standalone.c, ct_seq_show). Both show the network
namespace of the process that reads them.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Address: TypeAlias = tuple[int, int]
"""IP version (4 or 6) and the address as a number."""

TCP = 6
SSH_PORT = 22
GUI_PORT = 8006
"""pveproxy's, the web interface and API of Proxmox VE."""
_ESTABLISHED, _LISTEN = "01", "0A"  # include/net/tcp_states.h
_MAPPED = 0xFFFF << 32  # ::ffff:0:0/96, RFC 4291 section 2.5.5.2
_TRACKED = re.compile(r"^ipv([46])\s+\d+\s+\S+\s+(\d+)\s+\d+\s+(?:([A-Z_0-9]+)\s+)?src=(\S+) dst=(\S+)")
_PORTS = re.compile(r" sport=(\d+) dport=(\d+)")
_PORT = re.compile(r"[0-9]{1,5}")
_REPLY_SOURCE = re.compile(r" src=(\S+)")


@dataclass(frozen=True, slots=True)
class Flow:
    """One connection, from who opened it to who answered. ``protocol`` is the IP protocol's number.

    ``answering`` is the address that answers: another than ``destination`` where the host translates it (DNAT).
    """

    protocol: int
    source: Address
    sport: int
    destination: Address
    dport: int
    answering: Address | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """An established connection to a service of this host that must stay reachable.

    ``service`` is what to call it (``ssh``, ``web interface``), ``told_by`` where it was seen.
    """

    service: str
    flow: Flow
    told_by: str


def sessions(
    proc: Path = Path("/proc"), environment: Mapping[str, str] = os.environ, own: frozenset[Address] = frozenset()
) -> list[Session]:
    """Return the established connections of this host's sshd and of port 8006, those from the host itself aside.

    ``own`` are the host's addresses. The connection that ``SSH_CONNECTION`` names counts where it is to one of them,
    also if no socket of it is seen: sshd may run in another network namespace.
    """
    rows = [*_tcp_rows(proc / "net/tcp", 4), *_tcp_rows(proc / "net/tcp6", 6)]
    held = _sshd_sockets(proc)
    ssh_ports = {SSH_PORT} | {row.local[1] for row in rows if row.inode in held}
    named = _ssh_connection(environment)
    if named is not None and named.destination in own:
        ssh_ports.add(named.dport)
    found: dict[Flow, Session] = {}
    for row in rows:
        if row.state != _ESTABLISHED or row.remote[0] in own or _is_loopback(row.remote[0]):
            continue
        service = "ssh" if row.local[1] in ssh_ports else "web interface" if row.local[1] == GUI_PORT else None
        if service is not None:
            flow = Flow(TCP, *row.remote, *row.local)
            found[flow] = Session(service, flow, "an established connection")
    if named is not None and named.destination in own and named.source not in own:
        found[named] = Session("ssh", named, "SSH_CONNECTION")
    return list(found.values())


def tracked(proc: Path = Path("/proc")) -> list[Flow] | None:
    """Return the established connections of connection tracking, each once; None if the kernel does not list them.

    Without the module nf_conntrack nothing is tracked, and none are returned.

    Of TCP those in state ESTABLISHED, of other protocols those that were answered (ASSURED). A connection that passes
    several firewall bridges is tracked several times, in zones of their own.
    """
    try:
        with (proc / "net/nf_conntrack").open(encoding="ascii", errors="replace") as file:
            return list(dict.fromkeys(_tracked_flows(file)))
    except OSError:
        return None if (proc / "sys/net/netfilter/nf_conntrack_count").exists() else []


def _tracked_flows(lines: Iterable[str]) -> Iterator[Flow]:
    for line in lines:
        head = _TRACKED.match(line)
        if head is None:
            continue
        _, protocol, state, source, destination = head.groups()
        if state != "ESTABLISHED" if protocol == str(TCP) else "[ASSURED]" not in line:
            continue
        ports = _PORTS.search(line)
        reply = _REPLY_SOURCE.search(line, head.end())
        sport, dport = (int(ports[1]), int(ports[2])) if ports is not None else (0, 0)
        answering = _number(reply[1]) if reply is not None else None
        ends = _number(source), _number(destination)
        if ends[0] is not None and ends[1] is not None:
            other = answering if answering != ends[1] else None
            yield Flow(int(protocol), ends[0], sport, ends[1], dport, other)


@dataclass(frozen=True, slots=True)
class _Row:
    local: tuple[Address, int]
    remote: tuple[Address, int]
    state: str
    inode: str


def _tcp_rows(path: Path, version: int) -> Iterator[_Row]:
    try:
        lines = path.read_text("ascii", "replace").splitlines()[1:]
    except OSError:
        return
    for line in lines:
        words = line.split()
        if len(words) > 9:
            yield _Row(_socket_address(words[1], version), _socket_address(words[2], version), words[3], words[9])


def _socket_address(text: str, version: int) -> tuple[Address, int]:
    """Read ``0100007F:0016``: 32-bit words of the address in the host's byte order, in hexadecimal, and a port."""
    words, _, port = text.partition(":")
    packed = b"".join(struct.pack("=I", int(words[at : at + 8], 16)) for at in range(0, len(words), 8))
    number = int.from_bytes(packed, "big")
    if version == 6 and number >> 32 == _MAPPED >> 32:
        return (4, number & 0xFFFFFFFF), int(port, 16)
    return (version, number), int(port, 16)


def _sshd_sockets(proc: Path) -> frozenset[str]:
    """Return the inodes of sockets that processes called sshd (or sshd-session, sshd-auth) hold."""
    found = set()
    for folder in proc.glob("[0-9]*"):
        try:
            if not (folder / "comm").read_text("utf-8", "replace").startswith("sshd"):
                continue
            for entry in (folder / "fd").iterdir():
                target = str(entry.readlink())
                if target.startswith("socket:["):
                    found.add(target[8:-1])
        except OSError:  # the process ended, or is another user's
            continue
    return frozenset(found)


def _ssh_connection(environment: Mapping[str, str]) -> Flow | None:
    """Return the connection that SSH_CONNECTION names (ssh(1)): address and port of the client, then of the server."""
    words = environment.get("SSH_CONNECTION", "").split()
    if len(words) != 4 or not all(_PORT.fullmatch(word) and int(word) < 1 << 16 for word in words[1::2]):
        return None
    source, destination = _number(words[0]), _number(words[2])
    if source is None or destination is None:
        return None
    return Flow(TCP, source, int(words[1]), destination, int(words[3]))


def _number(text: str) -> Address | None:
    version = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        packed = socket.inet_pton(version, text.partition("%")[0])  # fe80::1%vmbr0
    except OSError:
        return None
    number = int.from_bytes(packed, "big")
    if len(packed) == 16 and number >> 32 == _MAPPED >> 32:
        return 4, number & 0xFFFFFFFF
    return (4 if len(packed) == 4 else 6), number


def _is_loopback(address: Address) -> bool:
    version, number = address
    return number >> 24 == 127 if version == 4 else number == 1


def spelled(address: Address) -> str:
    """Return an address as text."""
    version, number = address
    return str(ipaddress.IPv4Address(number) if version == 4 else ipaddress.IPv6Address(number))
