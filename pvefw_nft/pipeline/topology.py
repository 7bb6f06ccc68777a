"""Describe the network that a node's ruleset filters, for the checker."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pvefw_nft.config.files import FilesOnce
from pvefw_nft.config.findings import Findings
from pvefw_nft.pipeline.roots import offline, open_configuration, root_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pvefw_nft.config.load import Configuration
    from pvefw_nft.config.model import Guest
    from pvefw_nft.config.source import Source
    from pvefw_nft.verify.network.path import Nic, Topology


def topology(source: Source, configuration: Configuration | None = None) -> Topology:
    """Return the NICs, bridges and addresses of a node, from its guest configs and /etc/network/interfaces.

    Mistakes in the configuration are not reported. ``configuration``: that of the source, opened offline; None: it is
    opened here. Raises as :func:`.check_root`.
    """
    from pvefw_nft.config.inventory import guest_addresses, guests_elsewhere
    from pvefw_nft.config.model import GuestKind
    from pvefw_nft.verify.network.interfaces import read_interfaces
    from pvefw_nft.verify.network.path import Nic, Topology

    source = replace(source, observed_files=FilesOnce(source.files))
    root = root_of(source)
    configuration = configuration or open_configuration(offline(source), Findings())
    cluster = configuration.node.cluster

    def nics_of(guest: Guest, node: str = "") -> Iterator[Nic]:
        known = guest_addresses(root, cluster, guest)
        for nic in guest.nics:
            if nic.bridge is None:
                continue
            addresses = known[nic.index]
            yield Nic(
                zone=f"{'vm' if guest.kind is GuestKind.VM else 'ct'}{guest.vmid}",
                vmid=guest.vmid,
                index=nic.index,
                interface=guest.interface(nic),
                bridge=nic.bridge,
                filtered=nic.firewall,
                mac=nic.mac,
                addresses=tuple((prefix.version, prefix.address) for prefix in addresses.hosts),
                tag=nic.tag or 0,
                ranges=tuple((prefix.version, prefix.address, prefix.last) for prefix in addresses.networks),
                node=node,
                trunks=bool(nic.trunks),
            )

    here = list(configuration.guests(rules=False))
    nics = tuple(nic for guest in here for nic in nics_of(guest))
    vmids = {guest.vmid for guest in here}
    elsewhere = tuple(
        nic for node, guest in guests_elsewhere(root) if guest.vmid not in vmids for nic in nics_of(guest, node)
    )
    interfaces = source.files.text(source.root / "etc" / "network" / "interfaces")
    return Topology(nics, read_interfaces(interfaces or ""), elsewhere=elsewhere).with_bridges()
