"""The NICs of guests that no rule of the configuration filters, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pvefw_nft.pipeline.inventory import read_inventory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pvefw_nft.pipeline import Source


@dataclass(frozen=True, slots=True)
class Unfiltered:
    """A guest's NIC that no rule of the configuration filters: ``guest`` is its VMID, ``nic`` is like ``net0``."""

    guest: str
    nic: str
    reason: str


def unfiltered_guests(source: Source) -> Iterator[Unfiltered]:
    """Yield the NICs of this node's guests that no rule filters. Passes on the errors of reading the configuration."""
    for guest in read_inventory(source).guests:
        for nic in guest.nics:
            if guest.firewall is None:
                reason = f"there is no {guest.vmid}.fw"
            elif not guest.firewall.options.enable:
                reason = f"`enable: 1` is missing in {guest.vmid}.fw"
            elif not nic.firewall:
                reason = "firewall=1 is missing at the NIC"
            else:
                continue
            yield Unfiltered(str(guest.vmid), f"net{nic.index}", reason)
