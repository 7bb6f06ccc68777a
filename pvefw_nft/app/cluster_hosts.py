"""The addresses of a cluster's nodes: from the command line, otherwise from corosync.conf."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pvefw_nft.app.cluster import corosync_nodes
from pvefw_nft.config.files import files_of
from pvefw_nft.errors import ConfigurationError, UsageError
from pvefw_nft.fleet.ssh import Target, read_known_hosts

if TYPE_CHECKING:
    from pvefw_nft.config.files import Files

KNOWN_HOSTS = ("~/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts")
"""The files that ssh(1) reads; on Proxmox VE the latter is the cluster's."""


def find_targets(root: Path, hosts: str | None, known_hosts: Path | None) -> list[Target]:
    """Return the nodes to ask, in the order given, or by name.

    ``hosts`` is a list such as ``pve1,pve2=10.0.0.2``. Without it, the result has all nodes of corosync.conf below
    ``root``, each with the address of its first link. ``known_hosts`` is the only file of host keys. Without it, the
    files of ssh(1) count, or Proxmox VE's file ``etc/pve/nodes/NAME/ssh_known_hosts``, by the node's name. Raises
    UsageError if there are no nodes, or one is given twice.
    """
    files = files_of(root)
    addresses = _addresses(root, files)
    if hosts is not None:
        words = [word.strip() for word in hosts.split(",") if word.strip()]
        given = [_given(word, addresses) for word in words]
    else:
        given = sorted(addresses.items())
    if not given:
        raise UsageError(
            f"{root}/etc/pve/corosync.conf names no nodes with addresses" if hosts is None else "--hosts names no node",
            "name the nodes with --hosts, such as --hosts pve1,pve2=10.0.0.2",
        )
    names = [name for name, _ in given]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"{twice[:60]} is named twice", "name each node once")
    common = read_known_hosts([known_hosts] if known_hosts else [Path(one).expanduser() for one in KNOWN_HOSTS])
    return [_target(root, files, name, address, common, only=known_hosts is not None) for name, address in given]


def _addresses(root: Path, files: Files) -> dict[str, str]:
    found = {}
    for node in corosync_nodes(root, files):
        if node.links and node.name:
            found[node.name] = node.links[min(node.links)].canonical
    return found


def _given(word: str, addresses: dict[str, str]) -> tuple[str, str]:
    name, equals, address = word.partition("=")
    if not name or (equals and not address) or word.startswith("-"):
        raise UsageError(f"no node: {word[:60]}", "name a node as pve1, 10.0.0.1 or pve1=10.0.0.1")
    return name, address or addresses.get(name, name)


def _target(root: Path, files: Files, name: str, address: str, common: bytes, *, only: bool) -> Target:
    if not only and "/" not in name:
        try:
            own = files.text(root / "etc" / "pve" / "nodes" / name / "ssh_known_hosts")
        except ConfigurationError:
            own = None
        if own:
            return Target(name, address, own.encode(), alias=name)
    return Target(name, address, common)
