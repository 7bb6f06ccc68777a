"""The hosts that this one must reach: the peers of corosync, and the nodes that guests migrate from and to.

Migrations go to the nodes of the cluster, in its migration network. Facts: datacenter.cfg (Proxmox VE, ``man
datacenter.cfg``) names the network as ``migration: secure,network=CIDR``, in older files ``migration_unsecure`` and no
network. A secure migration goes through ssh, an insecure one to a port from 60000 on. Nodes are known by their
addresses in ``.members`` and in corosync.conf.
"""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pvefw_nft.pipeline.inventory import corosync_links

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pvefw_nft.config.values import Prefix
    from pvefw_nft.host.live_network import LiveNetwork
    from pvefw_nft.host.tracking.connections import Address
    from pvefw_nft.pipeline import Source

_COROSYNC_PORT = 5405
_INSECURE_PORT = 60000
_SSH_PORT = 22
_LINE = re.compile(r"^\s*migration\s*:\s*(\S+)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Peer:
    """A host of the cluster that must reach this one at a port, and be reached there, for ``service``."""

    service: str
    own: Address
    address: Address
    protocol: str
    port: int


def cluster_peers(source: Source, network: LiveNetwork) -> list[Peer]:
    """Return the peers of corosync and of migrations. Raises the errors of :func:`.check_root`."""
    links = corosync_links(source)
    return [*_corosync_peers(links, network), *_migration_peers(source, links, network)]


def _corosync_peers(links: Iterable[tuple[Prefix, Prefix]], network: LiveNetwork) -> Iterator[Peer]:
    for own, theirs in links:
        ours = own.version, own.address
        if ours in network.own_addresses:
            yield Peer("corosync", ours, (theirs.version, theirs.address), "udp", _COROSYNC_PORT)


def _migration_peers(source: Source, links: Iterable[tuple[Prefix, Prefix]], network: LiveNetwork) -> list[Peer]:
    """Return the hosts that guests migrate from and to, each with this host's address towards it.

    With a migration network, these are the nodes with an address in it; if no such node is known, the first and last
    address of the network represent all.
    """
    secure, named = _settings(source)
    nodes = _node_addresses(source, links)
    peers: dict[tuple[Address, Address], Peer] = {}
    for version, own, length in (address for link in network.links for address in link.addresses):
        here = ipaddress.ip_network((own, length), strict=False)
        if named is None:
            there = [node for node in nodes if node[0] == version and ipaddress.ip_address(node[1]) in here]
        elif named.version == version and ipaddress.ip_address(own) in named:
            inside = [node for node in nodes if node[0] == version and ipaddress.ip_address(node[1]) in named]
            there = inside if any(node[1] != own for node in inside) else _ends_of(named)
        else:
            continue
        service, port = ("migration", _SSH_PORT) if secure else ("insecure migration", _INSECURE_PORT)
        for address in there:
            if address not in network.own_addresses:
                key = (version, own), address
                peers[key] = Peer(service, (version, own), address, "tcp", port)
    return list(peers.values())


def _settings(source: Source) -> tuple[bool, ipaddress.IPv4Network | ipaddress.IPv6Network | None]:
    """Return whether migrations are encrypted, and the migration network. An unreadable setting is the default."""
    found = _LINE.search(source.files.text(source.root / "etc/pve/datacenter.cfg") or "")
    secure, network = True, None
    for word in found[1].split(",") if found is not None else ():
        key, equals, value = word.partition("=")
        if key == "insecure" or (key == "type" and value == "insecure"):
            secure = False
        elif equals and key == "network":
            try:
                network = ipaddress.ip_network(value, strict=False)
            except ValueError:
                continue
    return secure, network


def _node_addresses(source: Source, links: Iterable[tuple[Prefix, Prefix]]) -> list[Address]:
    found = [(theirs.version, theirs.address) for _, theirs in links]
    try:
        members = json.loads(source.files.text(source.root / "etc/pve/.members") or "{}")
        for node in members["nodelist"].values():
            ip = ipaddress.ip_address(node["ip"])
            found.append((ip.version, int(ip)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # not a cluster, or its list is not there yet
    return list(dict.fromkeys(found))


def _ends_of(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> list[Address]:
    first, last = int(network.network_address), int(network.broadcast_address)
    usable = (first + 1, last - 1) if last - first > 1 else (first, last)
    return [(network.version, number) for number in dict.fromkeys(usable)]
