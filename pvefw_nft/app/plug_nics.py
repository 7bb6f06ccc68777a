"""Plug the filtered NICs that are not plugged, and drop the traffic of NICs that stay unplugged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pvefw_nft.errors import HostError
from pvefw_nft.host import lock
from pvefw_nft.host.bridges import drop
from pvefw_nft.host.bridges.keep import Plugged, plug_all
from pvefw_nft.host.bridges.unplugged import read_absent_or_unplugged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pvefw_nft.app.nics import FilteredNics
    from pvefw_nft.host.bridges.unplugged import Unplugged


@dataclass(frozen=True, slots=True)
class PlugOptions:
    """The treatment of unplugged NICs.

    ``plug``: plug them. ``drop``: drop the traffic of NICs that stay unplugged; None: as the last command that chose.
    """

    plug: bool = True
    drop: bool | None = None


def plug_or_drop(
    found: FilteredNics,
    backend: str,
    options: PlugOptions,
    *,
    only_bridged: bool = False,
    dry_run: bool = False,
    wait: float = lock.WAIT,
) -> Plugged:
    """Plug the NICs that exist and are not plugged, then drop the traffic of the rest if that is wanted.

    ``only_bridged``: see :func:`.plug_all`. The result lists NICs that could not be plugged. Raises HostError if the
    links cannot be read, LockedError.
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


def plugged_lines(result: Plugged, *, dry_run: bool = False) -> list[str]:
    """Return the plugged and the unplugged NICs, as lines for people."""
    verb = "would be plugged" if dry_run else "plugged"
    lines = [f"{interface}: {verb} behind its firewall bridge" for interface in result.plugged]
    if result.problem is not None:
        lines.append(f"error: unplugged NICs are not dropped: {result.problem.message}")
    return lines + unplugged_lines(result.left, dropped=result.dropped)


def unplugged_lines(left: Sequence[Unplugged], *, dropped: bool) -> list[str]:
    """Return a warning for each unplugged NIC, with its remedy."""
    effect = "all its traffic is dropped" if dropped else "it is not filtered"
    return [f"warning: {one}: {effect}" + (f"\n  help: {one.hint}" if one.hint is not None else "") for one in left]
