"""Plug and unplug many guest NICs: read the links once, then plan and execute for each NIC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pvefw_nft.errors import PvefwError

from .. import lock
from ..links import open_route, read_links
from .firewall_bridge import Naming, plan_plug, plan_unplug
from .linksteps import execute

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..links import Links
    from .firewall_bridge import Nic
    from .linksteps import Step


@dataclass(frozen=True, slots=True)
class PlugResult:
    """The steps taken (or, in a dry run, planned) for one NIC; ``error`` says why it failed."""

    nic: Nic
    steps: tuple[Step, ...]
    error: PvefwError | None = None


def plug_nics(
    nics: Sequence[Nic], naming: Naming = Naming.CURRENT, *, dry_run: bool = False, wait: float = lock.WAIT
) -> list[PlugResult]:
    """Put each NIC behind its firewall bridge. A NIC that fails does not stop the rest."""
    return _each(nics, lambda nic, links: plan_plug(nic, links, naming), dry_run=dry_run, wait=wait)


def unplug_nics(nics: Sequence[Nic], *, dry_run: bool = False, wait: float = lock.WAIT) -> list[PlugResult]:
    """Remove each NIC's firewall bridge. A NIC that fails does not stop the rest."""
    return _each(nics, plan_unplug, dry_run=dry_run, wait=wait)


def existing(nics: Sequence[Nic]) -> tuple[list[Nic], list[Nic]]:
    """Return the NICs whose host side exists (the guest runs), and those without one."""
    with open_route() as route:
        links = read_links(route)
    there = [nic for nic in nics if links.get(nic.interface) is not None]
    return there, [nic for nic in nics if links.get(nic.interface) is None]


def _each(
    nics: Sequence[Nic], plan: Callable[[Nic, Links], list[Step]], *, dry_run: bool, wait: float
) -> list[PlugResult]:
    results = []
    with lock.hold(lock.lock_path("pvefw-plumbing"), wait), open_route() as route:
        links = read_links(route)
        for nic in nics:
            steps: list[Step] = []
            error: PvefwError | None = None
            try:
                steps = plan(nic, links)
                if not dry_run:
                    execute(steps, links, route)
            except PvefwError as err:
                error = err
                # some steps were done, the model of the links is stale
                links = read_links(route)
            results.append(PlugResult(nic, tuple(steps), error))
    return results
