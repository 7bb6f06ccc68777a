"""Packets that the option ``ipfilter_established`` would drop: within connections, from addresses not in the set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.config.own_addresses import may_send_from
from pvefw_nft.pipeline.inventory import read_inventory
from pvefw_nft.verify.model import CT_STATE, CT_STATES, SADDR4, SADDR6
from pvefw_nft.verify.network.path import NicEnd

if TYPE_CHECKING:
    from collections.abc import Callable

    from pvefw_nft.pipeline import Source
    from pvefw_nft.pipeline.inventory import Inventory
    from pvefw_nft.verify.simulate.walk import Outcome

_WITHIN = frozenset(CT_STATES.index(state) for state in ("established", "related"))


def hit_by_ipfilter_established(source: Source) -> Callable[[Outcome], str | None]:
    """Return a judge of simulated packets: the reason why the option would drop one, or None.

    The configuration is read for the first packet that the option could concern.
    """
    inventories: list[Inventory] = []

    def judge(outcome: Outcome) -> str | None:
        end, fields = outcome.probe.path.source, outcome.fields
        if outcome.verdict != "ACCEPT" or fields.get(CT_STATE) not in _WITHIN:
            return None
        if not isinstance(end, NicEnd) or not end.nic.filtered:
            return None
        version, address = (4, fields[SADDR4]) if SADDR4 in fields else (6, fields.get(SADDR6))
        if address is None:
            return None
        if not inventories:
            inventories.append(read_inventory(source))
        guests = [guest for guest in inventories[0].guests if guest.vmid == end.nic.vmid and guest.firewall is not None]
        if not guests or may_send_from(guests[0], end.nic.index, version, address):
            return None
        return (
            f"`ipfilter_established: 1` would drop it: the IP filter of {end.nic.name} does not hold its source address"
        )

    return judge
