"""The host's network as the kernel has it: links with their addresses, routes, and the neighbours it knows."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .links import open_route, read_links
from .localnet import read_routes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .tracking.connections import Address


@dataclass(frozen=True, slots=True)
class LiveLink:
    """A link that has addresses or is a bridge. ``addresses``: IP version, the host's own address, prefix length."""

    name: str
    is_bridge: bool
    ports: tuple[str, ...]
    addresses: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class LiveNetwork:
    """Links, the routes of the main table as (version, prefix, length, link), longest first, and MACs of neighbours."""

    links: tuple[LiveLink, ...]
    routes: tuple[tuple[int, int, int, str], ...]
    neighbours: Mapping[Address, int]

    @property
    def own_addresses(self) -> frozenset[Address]:
        """The addresses of the host itself."""
        return frozenset((version, number) for link in self.links for version, number, _ in link.addresses)

    def link_to(self, address: Address) -> str | None:
        """Return the link by which the host reaches an address, None if it has no route."""
        version, number = address
        bits = 32 if version == 4 else 128
        for of, prefix, length, link in self.routes:
            if of == version and number >> (bits - length) == prefix >> (bits - length):
                return link
        return None


def read_live_network() -> LiveNetwork:
    """Read links, addresses and neighbours over netlink, routes from /proc. Raises HostError."""
    with open_route() as route:
        links = read_links(route)
        addresses: dict[int, list[tuple[int, int, int]]] = {}
        for message in route.get_addr():
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            if text:
                ip = ipaddress.ip_address(text)
                addresses.setdefault(message["index"], []).append((ip.version, int(ip), message["prefixlen"]))
        neighbours = _neighbours(route)
    live = tuple(
        LiveLink(
            link.name,
            link.bridge is not None,
            tuple(links.ports(link.name)) if link.bridge is not None else (),
            tuple(addresses.get(link.index, ())),
        )
        for link in links
        if link.bridge is not None or link.index in addresses
    )
    routes = sorted(
        (
            (route.network.version, int(route.network.network_address), route.network.prefixlen, route.interface)
            for route in read_routes()
        ),
        key=lambda row: -row[2],
    )
    return LiveNetwork(live, tuple(routes), neighbours)


def _neighbours(route: Any) -> dict[Address, int]:  # noqa: ANN401 (pyroute2 is untyped)
    found: dict[Address, int] = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        for message in route.get_neighbours(family=family):
            address, mac = message.get_attr("NDA_DST"), message.get_attr("NDA_LLADDR")
            if address and mac:
                ip = ipaddress.ip_address(address)
                found[ip.version, int(ip)] = int(str(mac).replace(":", ""), 16)
    return found
