"""Options and messages about NICs that are not behind their firewall bridges."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pvefw_nft.app.compiler import find_nics_once
from pvefw_nft.app.nics import FilteredNics
from pvefw_nft.app.plugging import PlugOptions, settle
from pvefw_nft.cli import console
from pvefw_nft.errors import PvefwError
from pvefw_nft.host.bridges.arrivals import ArrivalWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pvefw_nft.host.bridges.keep import Plugged
    from pvefw_nft.host.bridges.plumbing import Nic
    from pvefw_nft.host.bridges.unplugged import Unplugged
    from pvefw_nft.pipeline import Source

_F = TypeVar("_F", bound="Callable[..., Any]")
_OWNER_PLUGS_WITHIN = 5.0  # seconds


def plugging_options(command: _F) -> _F:
    """Add ``--no-plug`` and ``--unplugged``."""
    for option in (
        click.option("--no-plug", is_flag=True, help="Do not move NICs that are not behind their firewall bridge."),
        click.option(
            "--unplugged",
            type=click.Choice(("report", "drop")),
            help="NICs that stay unplugged: report them, or drop their traffic. Default: as given last, else report.",
        ),
    ):
        command = option(command)
    return command


def chosen(*, no_plug: bool, unplugged: str | None) -> PlugOptions:
    """Return the meaning of the options of :func:`plugging_options`."""
    return PlugOptions(plug=not no_plug, drop=None if unplugged is None else unplugged == "drop")


def plug_and_report(source: Source, backend: str, options: PlugOptions, *, dry_run: bool, wait: float) -> bool:
    """Plug this host's filtered NICs and print the changes. Return whether all of them are filtered then."""
    try:
        result = settle(find_nics_once(source), backend, options, dry_run=dry_run, wait=wait)
    except PvefwError as error:
        console.warn(f"the guests' NICs could not be examined: {error.message}")
        return False
    console.answer(
        plugged=[*result.plugged], unplugged=[unplugged_data(one, dropped=result.dropped) for one in result.left]
    )
    for step in result.steps:
        console.say(f"# {step}")
    for line in plugged_lines(result, dry_run=dry_run):
        console.tell(line)
    return not result.left and result.problem is None


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


def unplugged_data(one: Unplugged, *, dropped: bool) -> dict[str, Any]:
    """Return an unplugged NIC as data."""
    return {"interface": one.interface, "bridge": one.bridge, "dropped": dropped, "reason": one.reason}


class NicService:
    """Keep the filtered NICs plugged while the service runs, and report each change."""

    def __init__(self, read: Callable[[], FilteredNics], options: PlugOptions, tell: Callable[..., None]) -> None:
        """``read`` gives the NICs of the configuration; ``tell`` prints a message, once."""
        self._read = read
        self._options = options
        self._tell = tell
        self._found = FilteredNics(())
        self._by_name: dict[str, Nic] = {}
        self._in_no_bridge: dict[str, float] = {}  # since when, in seconds of the monotonic clock

    def watch_arrivals(self) -> None:
        """Begin to plug NICs as they appear."""
        if self._options.plug:
            ArrivalWatch(lambda: self._by_name, self._arrived).start()

    def refresh(self, backend: str, *, changed: bool) -> None:
        """Plug the configuration's NICs that are not plugged; they are read again where the files ``changed``.

        One that is in no bridge is plugged when it has been so for some seconds: until then its maker may be about
        to plug it.
        """
        try:
            if changed:
                self._found = self._read()
                self._by_name = {nic.interface: nic for nic in self._found.nics}
            result = settle(self._found, backend, self._options, only_bridged=True)
            if self._options.plug and self._has_waited_long(result.left):
                result = settle(self._found, backend, self._options)
        except PvefwError as error:
            self._tell(f"warning: the guests' NICs could not be examined: {error.message}")
            return
        waiting = self._in_no_bridge if self._options.plug else {}
        settled = replace(result, left=tuple(one for one in result.left if one.interface not in waiting))
        for line in plugged_lines(settled):
            self._tell(line)

    def _has_waited_long(self, left: Sequence[Unplugged]) -> bool:
        """Note which NICs are in no bridge, and tell whether one of them has been so for long."""
        now = time.monotonic()
        names = [one.interface for one in left if one.bridge is None and one.reason is None]
        self._in_no_bridge = {name: self._in_no_bridge.get(name, now) for name in names}
        return any(now - since >= _OWNER_PLUGS_WITHIN for since in self._in_no_bridge.values())

    def _arrived(self, result: Plugged | PvefwError, seconds: float) -> None:
        if isinstance(result, PvefwError):
            self._tell(f"warning: a NIC that appeared could not be plugged: {result.message}")
            return
        for interface in result.plugged:
            self._tell(f"{interface}: plugged {seconds * 1000:.0f} ms after it appeared", again=True)
        for line in unplugged_lines(result.left, dropped=False):
            self._tell(line)
