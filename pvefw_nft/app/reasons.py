"""Why a host is not as its configuration says: files that changed, and guests that no rule filters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pvefw_nft.app.desired import known_before
from pvefw_nft.host import control, firewall
from pvefw_nft.pipeline import read_inventory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pvefw_nft.host.records.record import Desired
    from pvefw_nft.pipeline import Inventory, Source

_SUBJECTS = {
    "text": "{name} changed",
    "folder": "files came to or left {name}",
    "is folder": "{name} came or went",
    "link": "{name} leads elsewhere",
    "host name": "the host's name changed",
    "network": "the local network changed",
    "interface": "the link {name} came, went or has another name",
    "names": "{name} changed",
    "program": "pvefw itself changed",
}
"""What it means that a question has another answer than at the last apply; see :class:`.Observations`."""


@dataclass(frozen=True, slots=True)
class Unfiltered:
    """A guest's NIC that no rule of the configuration filters, and why."""

    guest: str
    nic: str
    reason: str


def why_pending(source: Source, backend: str | None, desired: Desired | None) -> list[str]:
    """Return why changes are pending, a sentence each; nothing where no record tells."""
    applied = firewall.applied_backend()
    reasons = []
    if desired is not None and applied is not None and desired.backend != applied:
        reasons.append(f"{applied} runs, and {desired.backend} is wanted (host.fw, `nftables:`, or --backend)")
    if desired is not None and control.is_held_back(desired):
        reasons.append("it was not confirmed or rolled back: `pvefw update` by hand applies it")
    before = known_before(source, backend).observations
    return reasons + ([] if before is None else [_sentence(*question) for question in before.changed(source)])


def _sentence(kind: str, name: str) -> str:
    return _SUBJECTS.get(kind, f"{kind} {name} changed").format(name=name)


def unfiltered_guests(source: Source) -> list[Unfiltered]:
    """Return the NICs of this node's guests that no rule filters. Raises what reading the configuration raises."""
    return [*_unfiltered(read_inventory(source))]


def _unfiltered(inventory: Inventory) -> Iterator[Unfiltered]:
    for guest in inventory.guests:
        firewall_of = guest.firewall
        for nic in guest.nics:
            if firewall_of is None:
                reason = f"there is no {guest.vmid}.fw"
            elif not firewall_of.options.enable:
                reason = f"`enable: 1` is missing in {guest.vmid}.fw"
            elif not nic.firewall:
                reason = "firewall=1 is missing at the NIC"
            else:
                continue
            yield Unfiltered(str(guest.vmid), f"net{nic.index}", reason)
