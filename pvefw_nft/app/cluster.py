"""A cluster's nodes from its files: their names, the files that each reads, and each one's local network.

``etc/pve`` is the same on every node, but for the links ``local``, ``qemu-server`` and ``lxc``, which lead to the
node's own folder. Files outside of it belong to one node. For the others it may lie below ``hosts/NODE``, as in
``hosts/pve2/etc/network/interfaces``.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from pvefw_nft.config.corosync import read_corosync
from pvefw_nft.config.files import Files, files_of
from pvefw_nft.config.findings import Findings
from pvefw_nft.errors import ConfigurationError, UsageError
from pvefw_nft.verify.network.interfaces import read_interfaces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pvefw_nft.config.model import CorosyncNode

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_NODE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
"""A node is named as a host is (RFC 1123, 2.1)."""

OWN_FILES = ("etc/hosts", "etc/network/interfaces")
"""The files outside of ``etc/pve`` that belong to one node."""

_CLUSTERS_HINT = "name the folder that holds a folder for each cluster"

HOSTS = "hosts"
"""The folder with other nodes' own files, a folder a node."""


@dataclass(frozen=True, slots=True)
class LocalNetwork:
    """A node's local network, and the source of this fact; ``cidr`` None: unknown, for the reason given."""

    cidr: str | None
    origin: str


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a cluster; ``files`` show only the files that it reads itself."""

    name: str
    files: Files
    network: LocalNetwork


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster below a root folder. ``name`` is empty if it is the only one."""

    name: str
    root: Path
    nodes: tuple[Node, ...]

    @property
    def files(self) -> Files:
        """The files of the cluster as a whole."""
        return NodeFiles(files_of(self.root), self.root, "", owns_root=True)


class NodeFiles(Files):
    """The files below a root as one node of the cluster has them."""

    def __init__(self, files: Files, root: Path, node: str, *, owns_root: bool) -> None:
        """Show the files that a node reads; ``owns_root``: the files outside of ``etc/pve`` may be its own."""
        self._files = files
        pve = root / "etc" / "pve"
        self._hidden = {pve / "local", pve / "qemu-server", pve / "lxc"}  # links of the node that made the copy
        self._moved: dict[Path, Path | None] = {}
        for name in OWN_FILES:
            own = root / HOSTS / node / name if node else None
            if own is not None and files.is_folder(own.parent):
                self._moved[root / name] = own
            elif not owns_root:
                self._moved[root / name] = None

    def text(self, path: Path | str) -> str | None:
        """Return the text of a file; see :meth:`Files.text`."""
        place = self._moved.get(Path(path), Path(path)) if self._moved else Path(path)
        return None if place is None or place.parent in self._hidden else self._files.text(str(place))

    def listed(self, folder: Path) -> list[str]:
        """Return the names in a folder; see :meth:`Files.listed`."""
        return [] if folder in self._hidden else self._files.listed(folder)

    def is_folder(self, path: Path) -> bool:
        """Tell whether a path leads to a folder; see :meth:`Files.is_folder`."""
        return path not in self._hidden and self._files.is_folder(path)

    def link(self, path: Path) -> str | None:
        """Return where a symbolic link points to; see :meth:`Files.link`."""
        return None if path in self._hidden else self._files.link(path)


def find_clusters(root: Path) -> list[Path]:
    """Return the folders of a folder that hold a cluster's ``etc/pve``, by name. Raises UsageError if none does."""
    files = files_of(root)
    if not files.is_folder(root):
        raise UsageError(f"{root}: not a folder", _CLUSTERS_HINT)
    found = [root / name for name in sorted(files.listed(root)) if files.is_folder(root / name / "etc" / "pve")]
    if not found:
        raise UsageError(f"{root}: no folder below it holds etc/pve", _CLUSTERS_HINT)
    return found


def read_cluster(
    root: Path, name: str = "", *, local_network: str | None = None, detect: Callable[[], str | None] = lambda: None
) -> Cluster:
    """Return the nodes of the cluster below ``root``, by name.

    ``local_network`` applies to all nodes. Without it, each node's local network is found in the files; on a host (root
    ``/``) ``detect`` gives the host's own. Raises UsageError if there are no nodes, and ConfigurationError if the file
    system fails.
    """
    files = files_of(root)
    names = node_names(root)
    owner = _owner(files, root)
    views = {one: NodeFiles(files, root, one, owns_root=owner in ("", one)) for one in names}
    if local_network is not None:
        networks = dict.fromkeys(names, LocalNetwork(local_network, "--local-network"))
    else:
        networks = _local_networks(root, views, {owner: detect()} if root == Path("/") else {})
    return Cluster(name, root, tuple(Node(one, views[one], networks[one]) for one in names))


def node_names(root: Path) -> list[str]:
    """Return the names of a cluster's nodes, in order. Raises UsageError if there are none."""
    files = files_of(root)
    nodes = root / "etc" / "pve" / "nodes"
    found = [name for name in sorted(files.listed(nodes)) if _NODE.fullmatch(name) and files.is_folder(nodes / name)]
    if not found:
        raise UsageError(f"{nodes}: there are no nodes", "name the folder that holds etc/pve with --root")
    return found


def corosync_nodes(root: Path, files: Files) -> tuple[CorosyncNode, ...]:
    """Return the nodes of corosync.conf; none if it is missing or cannot be used."""
    file = root / "etc" / "pve" / "corosync.conf"
    try:
        text = files.text(file)
        read = None if text is None else read_corosync(str(file), text, files, root, Findings())
    except ConfigurationError:
        return ()
    return () if read is None else read.nodes


def _owner(files: Files, root: Path) -> str:
    """Return the node whose files lie outside of ``etc/pve``; empty if that cannot be known."""
    link = files.link(root / "etc" / "pve" / "local")
    if link is not None:
        return Path(link).name
    if root == Path("/"):
        return files.host_name().partition(".")[0]
    try:
        return (files.text(root / "etc" / "hostname") or "").strip().partition(".")[0]
    except ConfigurationError:
        return ""


# --- local networks -----------------------------------------------------------------------------------------------


def _local_networks(
    root: Path, views: Mapping[str, Files], detected: Mapping[str, str | None]
) -> dict[str, LocalNetwork]:
    """Return each node's local network: the network of the nodes' interfaces that contains the node's address.

    corosync.conf and etc/hosts map a node's name to its address. Nodes of a cluster share networks, so the interfaces
    of all nodes count.
    """
    own = {name: list(_interface_networks(root, files)) for name, files in views.items()}
    for name, cidr in detected.items():
        if cidr is not None and name in own:
            own[name].append(ipaddress.ip_network(cidr, strict=False))
    everywhere = [(name, network) for name, networks in own.items() for network in networks]
    found = {}
    for name, files in views.items():
        if detected.get(name) is not None:
            found[name] = LocalNetwork(detected[name], "this host's addresses and routes")
            continue
        addresses = list(_addresses(root, name, files))
        found[name] = _network_of(name, addresses, own[name], everywhere)
    return found


def _network_of(
    name: str, addresses: list[_Address], own: Sequence[_Network], everywhere: Sequence[tuple[str, _Network]]
) -> LocalNetwork:
    if not addresses:
        return LocalNetwork(None, f"neither corosync.conf nor etc/hosts has an address of {name}")
    for address in addresses:
        if holding := [network for network in own if address in network]:
            return LocalNetwork(str(max(holding, key=lambda network: network.prefixlen)), "its etc/network/interfaces")
    for address in addresses:
        if others := [(network, other) for other, network in everywhere if address in network]:
            network, other = max(others, key=lambda one: one[0].prefixlen)
            return LocalNetwork(str(network), f"its address {address}, and the interfaces of {other}")
    return LocalNetwork(None, f"no etc/network/interfaces tells the prefix length of {addresses[0]}")


def _interface_networks(root: Path, files: Files) -> Iterator[_Network]:
    try:
        text = files.text(root / "etc" / "network" / "interfaces") or ""
    except ConfigurationError:
        return
    for link in read_interfaces(text):
        for network in link.networks:
            kind = ipaddress.IPv4Network if network.version == 4 else ipaddress.IPv6Network
            yield kind((network.address, network.length), strict=False)


def _addresses(root: Path, name: str, files: Files) -> Iterator[_Address]:
    for node in corosync_nodes(root, files):
        if node.name == name:
            yield from (ipaddress.ip_address(link.canonical.partition("/")[0]) for link in node.links.values())
    try:
        text = files.text(root / "etc" / "hosts") or ""
    except ConfigurationError:
        return
    for line in text.split("\n"):
        first, *names = line.partition("#")[0].split() or [""]
        if name in names:
            try:
                address = ipaddress.ip_address(first)
            except ValueError:
                continue
            if not address.is_loopback:
                yield address
