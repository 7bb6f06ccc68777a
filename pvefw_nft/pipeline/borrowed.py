"""Warn of facts that a ruleset for another host takes from this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.errors import Span

if TYPE_CHECKING:
    from pvefw_nft.config.findings import Findings
    from pvefw_nft.config.model import NodeConfig
    from pvefw_nft.config.source import Source

BORROWED_CODES = ("borrowed-network", "borrowed-names")
"""Codes about facts that a ruleset for another host takes from this machine."""


def report_borrowed(source: Source, node: NodeConfig, findings: Findings) -> None:
    """Warn if the root belongs to another host and its ruleset uses this machine's network or names."""
    from pvefw_nft.config import netdb

    span = Span(node.cluster.file, 0)
    network = node.local_network
    if source.borrows_network and network is not None and "local_network" not in node.cluster.aliases:
        findings.warning(
            "borrowed-network",
            span,
            f"the local network {network.spelling} is that of this machine, since nothing in {source.root} names one",
            "name the host's network with --local-network, or as alias local_network in cluster.fw",
        )
    names = netdb.own_names() if source.borrows_names else ()
    if names:
        findings.warning(
            "borrowed-names",
            span,
            f"{', '.join(names[:8])}{' …' if len(names) > 8 else ''}: known by this machine's /etc only, or by another "
            "number than Debian's",
            "write numbers, which mean the same on every host",
        )
