"""Plug NICs that are not behind their firewall bridges, as ``start``, ``update`` and ``run`` do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .. import lock
from .plug import plug_nics
from .unplugged import Unplugged, read_unplugged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pvefw_nft.errors import HostError

    from .firewall_bridge import Nic
    from .unplugged import Misconfigured


@dataclass(frozen=True, slots=True)
class Plugged:
    """The plugged NICs (names; in a dry run with the steps), and those left unplugged.

    ``dropped``: the traffic of those left is dropped; ``problem`` says why that could not be brought about.
    """

    plugged: tuple[str, ...] = ()
    left: tuple[Unplugged, ...] = ()
    steps: tuple[str, ...] = ()
    dropped: bool = False
    problem: HostError | None = None


def plug_all(
    nics: Sequence[Nic],
    misconfigured: Sequence[Misconfigured] = (),
    backend: str | None = None,
    *,
    plug: bool = True,
    only_bridged: bool = False,
    dry_run: bool = False,
    wait: float = lock.WAIT,
) -> Plugged:
    """Plug each NIC that exists and is unplugged. A NIC that fails does not stop the rest.

    ``plug`` False only looks. ``only_bridged`` skips NICs in no bridge: the program that makes one may be about to
    plug it, and two programs that make the same bridge make one of them fail. Raises HostError if links cannot be
    read, LockedError.
    """
    found = read_unplugged(nics, misconfigured, backend)
    to_plug = [
        one.nic
        for one in found
        if plug and one.nic is not None and one.reason is None and (one.bridge is not None or not only_bridged)
    ]
    if not to_plug:
        return Plugged(left=tuple(found))
    results = plug_nics(to_plug, dry_run=dry_run, wait=wait)
    steps = tuple(str(step) for result in results for step in result.steps) if dry_run else ()
    failed = {result.nic.interface: result.error for result in results if result.error is not None}
    done = tuple(result.nic.interface for result in results if result.error is None)
    left = [
        replace(one, reason=error.message, hint=error.hint) if (error := failed.get(one.interface)) is not None else one
        for one in found
        if one.interface not in done
    ]
    return Plugged(done, tuple(left), steps)
