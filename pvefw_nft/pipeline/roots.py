"""Open the configuration of a source: find its root folder and the node whose rules count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pvefw_nft.cache import NO_CACHE
from pvefw_nft.errors import ConfigurationError, UsageError

if TYPE_CHECKING:
    from pvefw_nft.cache import Cache
    from pvefw_nft.config.findings import Findings
    from pvefw_nft.config.load import Configuration, Root
    from pvefw_nft.config.source import Source


def node_name(source: Source) -> str:
    """Return the name of a source's node. Raises as :func:`root_of`."""
    return root_of(source).node


def open_configuration(source: Source, findings: Findings, cache: Cache = NO_CACHE) -> Configuration:
    """Read the files of the cluster and the node; guests follow when :meth:`.Configuration.guests` is iterated.

    Mistakes go to ``findings``. Raises ConfigurationError for a file that cannot be used, and as :func:`root_of`.
    """
    from pvefw_nft.config.load import Configuration

    return Configuration(root_of(source), findings, source.local_network, source.real_interface, cache, source.now)


def offline(source: Source) -> Source:
    """Return a source that does not look at the network of this machine."""
    return replace(source, local_network=lambda: None, real_interface=lambda _: None)


def root_of(source: Source) -> Root:
    """Find the node of a source: the given one, else the target of ``etc/pve/local``, else this host.

    Raises UsageError if the root or the node's folder does not exist, ConfigurationError for a broken link.
    """
    from pvefw_nft.config.load import Root

    files = source.files
    if not files.is_folder(source.root):
        raise UsageError(f"{source.root}: not a folder", "name the folder that holds etc/pve")
    if source.node is not None:
        if not source.node or "/" in source.node or source.node in (".", ".."):
            raise UsageError(f"`{source.node}` cannot be the name of a node", "name a folder of etc/pve/nodes")
        _require_node(source, source.node)
        return Root(source.root, source.node, files)
    place = source.root / "etc" / "pve" / "local"
    local = files.link(place)
    if local is not None and not files.is_folder(place):
        raise ConfigurationError(
            f"{place}: the link leads to no folder below {source.root} (`{local}`)",
            "mend the link, or name the node with --node",
        )
    return Root(source.root, Path(local).name if local is not None else _own_node(source), files)


def _own_node(source: Source) -> str:
    """Return this host's short name. Raises UsageError if the root holds other nodes, and not this one."""
    name = source.files.host_name().partition(".")[0]
    if not source.files.is_folder(source.root / "etc" / "pve" / "local"):
        _require_node(source, name, ", which is this host")
    return name


def _require_node(source: Source, name: str, who: str = "") -> None:
    """Raise UsageError if etc/pve/nodes has folders, but none for this node: its ruleset would have no guests."""
    files = source.files
    nodes = source.root / "etc" / "pve" / "nodes"
    if files.is_folder(nodes / name):
        return
    known = ", ".join(sorted(other for other in files.listed(nodes) if files.is_folder(nodes / other)))
    if known:
        raise UsageError(f"{nodes}: no node `{name[:60]}`{who}", f"name a node with --node: {known}")
