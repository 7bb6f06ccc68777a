"""The facts of a configuration that ``doctor`` examines: its backend and its enable switches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pvefw_nft.host.backend_info import info
from pvefw_nft.host.doctor import Switches
from pvefw_nft.host.records.state import typed
from pvefw_nft.pipeline import default_backend
from pvefw_nft.pipeline.inventory import read_inventory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pvefw_nft.pipeline import Source


def read_switches(source: Source, backend: str | None) -> tuple[str, Switches]:
    """Return the backend, the one that host.fw asks for if ``backend`` is None, and the switches.

    Raises the errors of reading the configuration.
    """
    inventory = read_inventory(source)
    chosen = backend or default_backend(inventory.node)
    switches = Switches(
        cluster=inventory.node.cluster.options.enable,
        host=inventory.node.host.options.enable,
        guests={
            guest.vmid: guest.firewall is not None and guest.firewall.options.enable
            for guest in inventory.guests
            if any(nic.firewall for nic in guest.nics)
        },
        open_layer2=inventory.open_layer2(chosen),
        divided=inventory.divided() if info(chosen).sets_zones else (),
    )
    return chosen, switches


def switches_as_json(backend: str, switches: Switches) -> dict[str, Any]:
    """Return them as a message for :func:`switches_of_json`."""
    return {
        "backend": backend,
        "cluster": switches.cluster,
        "host": switches.host,
        "guests": [[vmid, enabled] for vmid, enabled in switches.guests.items()],
        "open_layer2": [*switches.open_layer2],
        "divided": [*switches.divided],
    }


def switches_of_json(message: Mapping[str, Any]) -> tuple[str, Switches]:
    """Read a message. Raises KeyError, TypeError or ValueError if it is none."""
    switches = Switches(
        cluster=typed(message["cluster"], bool),
        host=typed(message["host"], bool),
        guests={typed(vmid, int): typed(enabled, bool) for vmid, enabled in message["guests"]},
        open_layer2=tuple(typed(vmid, int) for vmid in message["open_layer2"]),
        divided=tuple(typed(vmid, int) for vmid in message["divided"]),
    )
    backend = message["backend"]
    info(backend)
    return typed(backend, str), switches
