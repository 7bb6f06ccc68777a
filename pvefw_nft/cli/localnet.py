"""``pvefw localnet``: show the local network, and the corosync peers that the ruleset lets in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pvefw_nft.cli.options import make_source, source_options
from pvefw_nft.pipeline import read_inventory

if TYPE_CHECKING:
    from pathlib import Path


@click.command("localnet")
@source_options
def localnet_command(root: Path, node: str | None, local_network: str | None) -> None:
    """Show the local network, and the corosync peers that are let in."""
    inventory = read_inventory(make_source(root, node, local_network))
    network = inventory.node.local_network
    alias = "local_network" in inventory.node.cluster.aliases
    source = "cluster.fw" if alias else "--local-network" if local_network is not None else "detected"
    click.echo(f"node: {inventory.node.node}")
    if network is None:
        click.echo("local network: none found, so the management set holds only the addresses that cluster.fw adds")
        click.echo("  help: add an alias local_network to cluster.fw")
    else:
        click.echo(f"local network: {network.spelling} ({source})")
    corosync = inventory.node.corosync
    if corosync is None:
        click.echo("corosync: no corosync.conf, no cluster")
        return
    multicast = ", multicast accepted" if corosync.transport == "udp" else ""
    click.echo(f"corosync: {corosync.transport}{multicast}")
    for ours, theirs in inventory.corosync_peers:
        click.echo(f"  {theirs.spelling} <-> {ours.spelling}, udp 5404:5405")
    if not inventory.corosync_peers:
        click.echo("  no peer has an address on a link of this node")
