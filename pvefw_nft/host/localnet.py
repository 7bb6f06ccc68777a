"""The local network of a host: the network that its own address, or else its default route, lies in.

Only files of ``/proc`` and ``/etc/hosts`` are read, so that ``pvefw compile`` needs neither netlink nor DNS.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_RTF_UP = 0x1
_RTF_GATEWAY = 0x2


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the main table: where to, by which interface, and whether over a gateway."""

    network: _Network
    interface: str
    gateway: bool


def detect(node: str | None = None, root: Path = Path("/")) -> str | None:
    """Return the local network as a CIDR, or None if the host has none.

    It is the connected network that holds the address of ``node`` (default: this host's name) in /etc/hosts;
    without such an address, the connected network that the default route leaves by. ``root`` is where ``etc`` and
    ``proc`` lie.
    """
    routes = read_routes(root)
    connected = [
        route
        for route in routes
        if not route.gateway and route.network.prefixlen and route.interface != "lo" and not route.network.is_link_local
    ]
    for address in _addresses_of(node or socket.gethostname().partition(".")[0], root / "etc/hosts"):
        holding = [route.network for route in connected if address in route.network]
        if holding:
            return str(max(holding, key=lambda network: network.prefixlen))
    for default in (route for route in routes if route.gateway and route.network.prefixlen == 0):
        for route in connected:
            if route.interface == default.interface and route.network.version == default.network.version:
                return str(route.network)
    return None


def read_routes(root: Path = Path("/")) -> list[Route]:
    """Return the unicast routes of the main tables of IPv4 and IPv6; ``root`` is where ``proc`` lies."""
    return [*_routes_v4(root / "proc/net/route"), *_routes_v6(root / "proc/net/ipv6_route")]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []


def _addresses_of(name: str, hosts: Path) -> Iterator[_Address]:
    for line in _lines(hosts):
        address, *names = line.partition("#")[0].split() or [""]
        if name not in names:
            continue
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            continue
        if not parsed.is_loopback:
            yield parsed


def _routes_v4(path: Path) -> Iterator[Route]:
    """Yield the routes of /proc/net/route (net/ipv4/fib_trie.c): addresses in hexadecimal, in the host's byte order."""
    for line in _lines(path)[1:]:
        interface, destination, _, flags, _, _, _, mask, *_ = line.split()
        if int(flags, 16) & _RTF_UP:
            address = ipaddress.IPv4Address(socket.ntohl(int(destination, 16)))
            length = int(mask, 16).bit_count()
            network = ipaddress.IPv4Network((address, length), strict=False)
            yield Route(network, interface, bool(int(flags, 16) & _RTF_GATEWAY))


def _routes_v6(path: Path) -> Iterator[Route]:
    """Yield the unicast routes of /proc/net/ipv6_route (net/ipv6/route.c): addresses in hexadecimal."""
    for line in _lines(path):
        destination, length, _, _, _, _, _, _, flags, interface = line.split()
        network = ipaddress.IPv6Network((bytes.fromhex(destination), int(length, 16)), strict=False)
        if int(flags, 16) & _RTF_UP and not network.is_multicast and network.prefixlen < 128:
            yield Route(network, interface, bool(int(flags, 16) & _RTF_GATEWAY))
