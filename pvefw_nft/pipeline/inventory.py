"""Read a host's configuration without building a ruleset: its options, guests, NICs and corosync links."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pvefw_nft.config.findings import Findings
from pvefw_nft.config.option_values import Layer2
from pvefw_nft.pipeline.diagnostics import in_file_order
from pvefw_nft.pipeline.roots import offline, open_configuration, root_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pvefw_nft.config.model import Guest, NodeConfig
    from pvefw_nft.config.options import ClusterHardening
    from pvefw_nft.config.source import Source
    from pvefw_nft.config.values import Prefix
    from pvefw_nft.errors import Diagnostic


@dataclass(frozen=True, slots=True)
class Inventory:
    """The configuration of a host: the node, its guests, and the pairs of own and peers' addresses."""

    node: NodeConfig
    guests: tuple[Guest, ...]
    corosync_peers: tuple[tuple[Prefix, Prefix], ...]
    diagnostics: tuple[Diagnostic, ...]

    def open_layer2(self, backend: str) -> tuple[int, ...]:
        """Return the VMIDs of filtered guests whose NICs pass frames without IP in the ruleset of a backend."""
        node = self.node
        if backend != "nft" and not node.host.hardening.harden:
            cluster: ClusterHardening | None = None  # neither ruleset uses `l2`
        else:
            cluster = node.cluster.hardening
        return tuple(guest.vmid for guest in self.guests if _has_open_layer2(guest, cluster))

    def divided(self) -> tuple[int, ...]:
        """Return the VMIDs of filtered guests with several NICs in one network, each in a zone of its own."""
        return tuple(guest.vmid for guest in self.guests if _is_divided(guest))


def _is_divided(guest: Guest) -> bool:
    config = guest.firewall
    if config is None or not config.options.enable or config.hardening.one_zone:
        return False
    networks = [(nic.bridge, nic.tag) for nic in guest.nics if nic.firewall and nic.bridge is not None]
    return len(set(networks)) < len(networks)


def _has_open_layer2(guest: Guest, cluster: ClusterHardening | None) -> bool:
    """Tell whether frames without IP pass a filtered guest's NICs. ``cluster`` None: the ruleset ignores ``l2``."""
    config = guest.firewall
    if config is None or not config.options.enable or not any(nic.firewall for nic in guest.nics):
        return False
    strict = cluster is not None and config.hardening.over(cluster).l2 is Layer2.STRICT
    return not strict and not config.options.layer2_protocols


def read_inventory(source: Source) -> Inventory:
    """Read a configuration without building a ruleset. Raises what :func:`check_root` raises."""
    from pvefw_nft.ir.host import corosync_peers

    findings = Findings()
    configuration = open_configuration(source, findings)
    node = configuration.node
    peers = () if node.corosync is None else tuple(corosync_peers(node.corosync, node.node))
    guests = tuple(configuration.guests())
    return Inventory(node, guests, peers, in_file_order(findings.diagnostics))


def read_node(source: Source) -> NodeConfig:
    """Return the configuration of the node as a whole, without guests and diagnostics.

    Raises what :func:`check_root` raises.
    """
    return open_configuration(offline(source), Findings()).node


def read_guests(source: Source, known: Mapping[int, Guest] | None = None) -> tuple[Guest, ...]:
    """Return this node's guests and their NICs, without their rules and diagnostics.

    ``known`` are guests by VMID whose files were just read; where it has all, no file is read. Raises what
    :func:`check_root` raises.
    """
    listed = root_of(source).guests()
    found = {vmid: guest for vmid, _, path in listed if (guest := (known or {}).get(vmid)) and guest.file == path}
    if not listed or len(found) < len(listed):
        configuration = open_configuration(offline(source), Findings())
        only = {vmid for vmid, _, _ in listed if vmid not in found} if found else None
        found |= {guest.vmid: guest for guest in configuration.guests(rules=False, only=only)}
    return tuple(found[vmid] for vmid, _, _ in listed if vmid in found)


def corosync_links(source: Source) -> tuple[tuple[Prefix, Prefix], ...]:
    """Return pairs of addresses on one link of corosync: this node's and a peer's. No guest is read.

    Raises what :func:`check_root` raises.
    """
    from pvefw_nft.ir.host import corosync_peers

    if source.files.text(root_of(source).pve / "corosync.conf") is None:
        return ()  # a host alone: its files need not be read
    node = read_node(source)
    return () if node.corosync is None else tuple(corosync_peers(node.corosync, node.node))
