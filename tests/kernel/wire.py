"""In the guest: send the packets made on the host, and collect all packets on the wires.

Four kinds of places are watched: every endpoint's interface (what comes out of the wire), the host's bridges
(frames without IP that reach the host), the ports of the guests' bridges where firewall bridges end (rejections
that get lost further on), and two points in the host's own IP stack: the end of INPUT (what the host accepted)
and the start of OUTPUT (rejections it makes, whether or not they get out).
"""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import time
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import TYPE_CHECKING

from .network.build import ENDPOINT_INTERFACE, HOST_NAMESPACE
from .network.namespace import inside

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .network.plan import Address, Plan
    from .packets import Sent

WATCH_TABLE = "pvlab_watch"
WATCH_GROUP = 7707
INPUT_PREFIX = "in"
OUTPUT_PREFIX = "out"

# Packets that the host accepts end at the watch, so the host answers nothing: a reset from a closed port would end the
# connection a later packet of the probe is to belong to. The priority is connection tracking's own last one
# (NF_IP_PRI_CONNTRACK_CONFIRM); a hook registered earlier runs later there, so the connection is confirmed before the
# packet ends.
_WATCH_RULES = f"""
table inet {WATCH_TABLE} {{
  chain input {{
    type filter hook input priority 2147483647; policy accept;
    log prefix "{INPUT_PREFIX}" group {WATCH_GROUP} drop
  }}
  chain output {{
    type filter hook output priority -400; policy accept;
    tcp flags & rst == rst log prefix "{OUTPUT_PREFIX}" group {WATCH_GROUP}
    icmp type {{ destination-unreachable }} log prefix "{OUTPUT_PREFIX}" group {WATCH_GROUP}
    icmpv6 type {{ destination-unreachable }} log prefix "{OUTPUT_PREFIX}" group {WATCH_GROUP}
  }}
}}
"""

_SOL_PACKET = 263
_PACKET_AUXDATA = 8
_PACKET_IGNORE_OUTGOING = 23
_SO_RCVBUFFORCE = 33
_TP_STATUS_VLAN_VALID = 1 << 4
_ETH_P_ALL = 3
_RECEIVE_BUFFER = 32 << 20


@dataclass(frozen=True, slots=True)
class Seen:
    """A packet met somewhere.

    ``place`` is an endpoint's namespace, or a bridge or port of the host (``data`` is then a frame without its
    VLAN tag, which is ``vlan``), or ``in`` or ``out`` (``data`` is an IP packet in the host's stack).
    """

    place: str
    data: bytes
    vlan: int | None = None


@dataclass(slots=True)
class Watch:
    """The open sockets of one network."""

    endpoints: dict[str, socket.socket] = field(default_factory=dict)
    bridges: dict[str, socket.socket] = field(default_factory=dict)
    log: socket.socket | None = None
    host4: socket.socket | None = None
    host6: socket.socket | None = None
    scope: int = 0


_watch = Watch()


def open_watch(plan: Plan) -> None:
    """Watch the network that was just built; must come before any ruleset is loaded."""
    close_watch()
    for name in dict.fromkeys(endpoint.namespace for endpoint in plan.endpoints):
        with inside(name):
            _watch.endpoints[name] = _packet_socket(ENDPOINT_INTERFACE)
    with inside(HOST_NAMESPACE):
        subprocess.run(["nft", "-f", "-"], input=_WATCH_RULES, text=True, check=True)
        for bridge in plan.bridges:
            _watch.bridges[bridge.name] = _packet_socket(bridge.name)
        for endpoint in plan.endpoints:
            if endpoint.filtered:
                port = endpoint.firewall_names[2]
                _watch.bridges[port] = _packet_socket(port)
        _watch.log = _log_socket(WATCH_GROUP)
        _watch.host4 = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        _watch.host4.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        _watch.host6 = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
        _watch.scope = socket.if_nametoindex(plan.bridges[0].name)


def close_watch() -> None:
    """Close all sockets."""
    for one in (*_watch.endpoints.values(), *_watch.bridges.values(), _watch.log, _watch.host4, _watch.host6):
        if one is not None:
            one.close()
    _watch.endpoints.clear()
    _watch.bridges.clear()


def _packet_socket(interface: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    made.bind((interface, _ETH_P_ALL))
    made.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
    made.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
    made.setblocking(False)
    return made


# --- netlink (linux/netfilter/nfnetlink_log.h, nfnetlink_conntrack.h) ------------------------------------------------

_NETLINK_NETFILTER = 12
_NFULNL_MSG_CONFIG = 4 << 8 | 1
_NFULNL_CFG_CMD_BIND = 1
_NFULNL_COPY_PACKET = 2
_NFULA_CFG_CMD, _NFULA_CFG_MODE, _NFULA_CFG_QTHRESH = 1, 2, 5
_NFULA_PAYLOAD, _NFULA_PREFIX = 9, 10
_NLM_F_REQUEST_ACK = 1 | 4
_IPCTNL_MSG_CT_DELETE = 1 << 8 | 2


def _log_socket(group: int) -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    made.bind((0, 0))
    made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
    for attribute in (
        _attribute(_NFULA_CFG_CMD, struct.pack("B", _NFULNL_CFG_CMD_BIND)),
        _attribute(_NFULA_CFG_MODE, struct.pack("!IBx", 0xFFFF, _NFULNL_COPY_PACKET)),
        _attribute(_NFULA_CFG_QTHRESH, struct.pack("!I", 1)),
    ):
        body = struct.pack("!BBH", socket.AF_UNSPEC, 0, group) + attribute
        _request(made, _NFULNL_MSG_CONFIG, body, f"netfilter log group {group}")
    made.setblocking(False)
    return made


def _request(netlink: socket.socket, kind: int, body: bytes, what: str) -> None:
    """Send one request and wait for its acknowledgement."""
    netlink.send(struct.pack("=IHHII", 16 + len(body), kind, _NLM_F_REQUEST_ACK, 1, 0) + body)
    (error,) = struct.unpack_from("=i", netlink.recv(4096), 16)
    if error:
        raise OSError(-error, os.strerror(-error), what)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _read_log(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield prefix and packet of each message in the data of a log socket."""
    at = 0
    while at + 16 <= len(data):
        (length,) = struct.unpack_from("=I", data, at)
        prefix, payload = "", b""
        attribute = at + 20
        while attribute + 4 <= at + length:
            size, kind = struct.unpack_from("=HH", data, attribute)
            value = data[attribute + 4 : attribute + size]
            if kind == _NFULA_PAYLOAD:
                payload = value
            elif kind == _NFULA_PREFIX:
                prefix = value.rstrip(b"\0").decode()
            attribute += (size + 3) & ~3
        yield prefix, payload
        at += (length + 3) & ~3


# --- exchange -----------------------------------------------------------------------------------------------


def exchange(stages: Sequence[Sequence[Sent]], quiet: float) -> list[Seen]:
    """Send the packets of each stage, then wait until nothing has come for ``quiet`` seconds.

    Between stages a third of that wait is enough: the packets are already under way. Returns everything seen, in the
    order in which it was read.
    """
    seen: list[Seen] = []
    _drain([], 0)
    for number, stage in enumerate(stages, start=1):
        for count, one in enumerate(stage, start=1):
            _send(one)
            if count % 50 == 0:
                _drain(seen, 0)
        _drain(seen, quiet if number == len(stages) else quiet / 3)
    return seen


def flush_connections() -> None:
    """Forget all connections the host tracks."""
    with inside(HOST_NAMESPACE), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
        _request(netlink, _IPCTNL_MSG_CT_DELETE, struct.pack("!BBH", socket.AF_UNSPEC, 0, 0), "forgetting connections")


def add_neighbours(entries: Sequence[tuple[Address, str, str]]) -> None:
    """Make addresses known to the host: (address, MAC, interface)."""
    lines = "".join(f"neigh replace {ip} lladdr {mac} dev {device} nud permanent\n" for ip, mac, device in entries)
    if lines:
        with inside(HOST_NAMESPACE):
            subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True)


def join_groups(groups: Sequence[Address], interface: str) -> None:
    """Have the host listen to multicast groups on a bridge, as long as the network stands."""
    with inside(HOST_NAMESPACE):
        index = socket.if_nametoindex(interface)
        for group in groups:
            if isinstance(group, IPv6Address):
                assert _watch.host6 is not None
                request = group.packed + struct.pack("=I", index)
                _set_quietly(_watch.host6, socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
            else:
                assert _watch.host4 is not None
                request = group.packed + bytes(4) + struct.pack("=i", index)
                _set_quietly(_watch.host4, socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)


def _set_quietly(one: socket.socket, level: int, option: int, value: bytes) -> None:
    try:
        one.setsockopt(level, option, value)
    except OSError as error:
        if error.errno != 98:  # EADDRINUSE: a member already
            raise


def send_frame(namespace: str, data: bytes) -> None:
    """Send a frame from an endpoint."""
    _watch.endpoints[namespace].send(data)


def _send(one: Sent) -> None:
    """Send one packet. That the ruleset forbids it (EPERM) is an outcome, not an error."""
    try:
        if one.namespace is not None:
            endpoint = _watch.endpoints[one.namespace]
            select.select([], [endpoint], [], 5)  # a flood fills the socket's buffer faster than the machine empties it
            endpoint.send(one.data)
        elif isinstance(one.destination, IPv6Address):
            assert _watch.host6 is not None
            scope = _watch.scope if one.destination.is_multicast or one.destination.is_link_local else 0
            _watch.host6.sendto(one.data, (str(one.destination), 0, 0, scope))
        else:
            assert _watch.host4 is not None
            _watch.host4.sendto(one.data, (str(one.destination), 0))
    except PermissionError:
        pass


def _drain(seen: list[Seen], quiet: float) -> None:
    """Read all packets that have come and that come before a pause of ``quiet`` seconds."""
    poll = select.poll()
    by_descriptor: dict[int, tuple[str, socket.socket]] = {}
    for name, one in (*_watch.endpoints.items(), *_watch.bridges.items()):
        by_descriptor[one.fileno()] = (name, one)
    assert _watch.log is not None
    by_descriptor[_watch.log.fileno()] = ("", _watch.log)
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLIN)
    end = time.monotonic() + quiet
    while True:
        ready = poll.poll(max(0.0, end - time.monotonic()) * 1000)
        if not ready:
            return
        for descriptor, _ in ready:
            name, one = by_descriptor[descriptor]
            seen.extend(_read_socket(name, one))
        end = max(end, time.monotonic() + quiet)


def _read_socket(name: str, one: socket.socket) -> Iterator[Seen]:
    while True:
        try:
            data, extra, _, _ = one.recvmsg(65536, 64)
        except BlockingIOError:
            return
        if name == "":
            for prefix, payload in _read_log(data):
                yield Seen(prefix, payload)
            continue
        vlan = None
        for level, kind, value in extra:
            if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA):
                status, tci = struct.unpack_from("=I12xH", value)
                vlan = tci & 0xFFF if status & _TP_STATUS_VLAN_VALID else None
        yield Seen(name, data, vlan)
