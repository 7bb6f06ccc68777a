"""The NICs with firewall=1 of a configuration, as the host side plugs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pvefw_nft.errors import UsageError
from pvefw_nft.host.bridges.firewall_bridge import Nic
from pvefw_nft.host.bridges.unplugged import Misconfigured
from pvefw_nft.host.links import VlanRange
from pvefw_nft.pipeline.inventory import read_guests

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pvefw_nft.config import model
    from pvefw_nft.pipeline import Source

_BRIDGE_MTU = 1  # qemu-server: a NIC's mtu=1 means its bridge's MTU


@dataclass(frozen=True, slots=True)
class FilteredNics:
    """NICs with firewall=1; ``misconfigured`` are NICs whose bridge, VLAN or name cannot be used."""

    nics: tuple[Nic, ...]
    misconfigured: tuple[Misconfigured, ...] = ()


def read_filtered_nics(source: Source, known: Mapping[int, model.Guest] | None = None) -> FilteredNics:
    """Return the filtered NICs of a configuration, without reading any rules. Passes on the errors of reading.

    ``known`` are guests by VMID whose files were just read.
    """
    return filtered_nics(read_guests(source, known))


def filtered_nics(guests: Iterable[model.Guest]) -> FilteredNics:
    """Return the filtered NICs of guests. A NIC with a mistake does not hide the rest."""
    nics, misconfigured = [], []
    for guest in guests:
        for nic in guest.nics:
            if not nic.firewall:
                continue
            interface = guest.interface(nic)
            try:
                nics.append(_nic(guest, nic, interface))
            except UsageError as error:
                bridge = f"fwbr{guest.vmid}i{nic.index}"
                misconfigured.append(Misconfigured(interface, bridge, error.message, error.hint))
    return FilteredNics(tuple(nics), tuple(misconfigured))


def _nic(guest: model.Guest, nic: model.Nic, interface: str) -> Nic:
    if nic.bridge is None:
        raise UsageError(f"{guest.file} names no bridge for it", "add `bridge=` to that NIC")
    mtu = None if nic.mtu == _BRIDGE_MTU else nic.mtu
    trunks = tuple(VlanRange(first, last) for first, last in nic.trunks)
    return Nic(interface, nic.bridge, guest.vmid, nic.index, nic.tag, trunks, mtu)
