"""Describe the network that a node's ruleset filters, for the checker."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pvefw_nft.config.files import FilesOnce
from pvefw_nft.config.findings import Findings
from pvefw_nft.pipeline.roots import offline, open_configuration, root_of

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from pvefw_nft.config.load import Configuration, Root
    from pvefw_nft.config.model import ClusterConfig, Guest
    from pvefw_nft.config.source import Source
    from pvefw_nft.verify.network.path import Nic, Topology


def topology(source: Source, configuration: Configuration | None = None, *, on_demand: bool = False) -> Topology:
    """Return the NICs, bridges and addresses of a node, from its guest configs and /etc/network/interfaces.

    Mistakes in the configuration are not reported. ``configuration``: that of the source, opened offline; None: it is
    opened here. ``on_demand``: a guest's NICs and addresses are read when they are asked for. Raises as
    :func:`.check_root`.
    """
    from pvefw_nft.config.inventory import bridges_in_use, guest_elsewhere
    from pvefw_nft.verify.network.interfaces import read_interfaces
    from pvefw_nft.verify.network.path import NicsOnDemand, Topology

    source = replace(source, observed_files=FilesOnce(source.files))
    root = root_of(source)
    configuration = configuration or open_configuration(offline(source), Findings())
    cluster = configuration.node.cluster
    guests = root.guests()
    vmids = {vmid for vmid, _, _ in guests}
    guests_elsewhere = [config for config in root.configs_elsewhere() if config[2] not in vmids]

    def here(only: Container[int] | None) -> Iterator[Nic]:
        for vmid, kind, path in guests:
            if only is None or vmid in only:
                yield from _nics(root, cluster, configuration.read_guest(vmid, kind, path, rules=False))

    def elsewhere(only: Container[int] | None) -> Iterator[Nic]:
        for node, kind, vmid, path in guests_elsewhere:
            if only is None or vmid in only:
                yield from _nics(root, cluster, guest_elsewhere(root, kind, vmid, path), node)

    bridges = bridges_in_use(root, configuration, guests) if on_demand else None
    nics, others = NicsOnDemand(here), NicsOnDemand(elsewhere)
    interfaces = read_interfaces(source.files.text(source.root / "etc" / "network" / "interfaces") or "")
    found = Topology(nics, interfaces, elsewhere=others)
    return (found if on_demand else replace(found, nics=nics.all(), elsewhere=others.all())).with_bridges(bridges)


def _nics(root: Root, cluster: ClusterConfig, guest: Guest, node: str = "") -> Iterator[Nic]:
    """Yield the NICs of a guest that are on a bridge. ``node`` is the other node that it runs on."""
    from pvefw_nft.config.inventory import guest_addresses
    from pvefw_nft.config.model import GuestKind
    from pvefw_nft.verify.network.path import Nic

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
