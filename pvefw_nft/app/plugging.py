"""Plug NICs with firewall=1 that are not plugged, and drop the traffic of those that stay unplugged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pvefw_nft.errors import HostError
from pvefw_nft.host import lock
from pvefw_nft.host.bridges import drop
from pvefw_nft.host.bridges.keep import Plugged, plug_all
from pvefw_nft.host.bridges.unplugged import read_absent_or_unplugged

if TYPE_CHECKING:
    from pvefw_nft.app.nics import FilteredNics


@dataclass(frozen=True, slots=True)
class PlugOptions:
    """The treatment of NICs that are not plugged.

    ``plug``: plug them. ``drop``: drop the traffic of those that stay unplugged; None: as was asked for last.
    """

    plug: bool = True
    drop: bool | None = None


def settle(
    found: FilteredNics,
    backend: str,
    options: PlugOptions,
    *,
    only_bridged: bool = False,
    dry_run: bool = False,
    wait: float = lock.WAIT,
) -> Plugged:
    """Plug the NICs that exist and are not behind their firewall bridges, then drop the traffic of the rest.

    ``only_bridged``: see :func:`.plug_all`. Failures are in the result. Raises HostError where links
    cannot be read, LockedError.
    """
    plugged = plug_all(
        found.nics,
        found.misconfigured,
        backend,
        plug=options.plug,
        only_bridged=only_bridged,
        dry_run=dry_run,
        wait=wait,
    )
    wanted = drop.is_wanted() if options.drop is None else options.drop
    if dry_run:
        return plugged
    try:
        if wanted:
            ports = read_absent_or_unplugged(found.nics, found.misconfigured, backend)
            drop.set_drops(backend, ports)
        else:
            drop.remove_drops()
    except HostError as error:
        return replace(plugged, problem=error)
    return replace(plugged, dropped=wanted)
