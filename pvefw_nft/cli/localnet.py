"""``pvefw localnet``: show the local network, and the corosync peers that the ruleset lets in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.cli import console
from pvefw_nft.cli.command import command
from pvefw_nft.cli.options import make_source, source_options
from pvefw_nft.pipeline.inventory import read_inventory

if TYPE_CHECKING:
    from pathlib import Path


@command("localnet", answers=True)
@source_options
def localnet_command(root: Path, node: str | None, local_network: str | None) -> None:
    """Show the local network, and the corosync peers that are let in."""
    inventory = read_inventory(make_source(root, node, local_network))
    network = inventory.node.local_network
    alias = "local_network" in inventory.node.cluster.aliases
    source = "cluster.fw" if alias else "--local-network" if local_network is not None else "detected"
    console.say(f"node: {inventory.node.node}")
    if network is None:
        console.say("local network: none found")
        console.warn(
            "the management set holds only the addresses that cluster.fw adds",
            "add an alias local_network to cluster.fw",
        )
    else:
        console.say(f"local network: {network.spelling} ({source})")
    corosync = inventory.node.corosync
    console.answer(
        node=inventory.node.node,
        local_network=None if network is None else network.spelling,
        source=None if network is None else source,
        corosync=None if corosync is None else corosync.transport,
        peers=[{"address": theirs.spelling, "own_address": ours.spelling} for ours, theirs in inventory.corosync_peers],
    )
    if corosync is None:
        console.say("corosync: no corosync.conf, no cluster")
        return
    multicast = ", multicast accepted" if corosync.transport == "udp" else ""
    console.say(f"corosync: {corosync.transport}{multicast}")
    for ours, theirs in inventory.corosync_peers:
        console.say(f"  {theirs.spelling} <-> {ours.spelling}, udp 5404:5405")
    if not inventory.corosync_peers:
        console.say("  no peer has an address on a link of this node")
