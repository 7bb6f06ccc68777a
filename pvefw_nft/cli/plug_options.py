"""The options ``--no-plug`` and ``--unplugged``, and the report of plugging."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from pvefw_nft.app.plug_nics import PlugOptions, plug_or_drop, plugged_lines
from pvefw_nft.cli import console
from pvefw_nft.errors import PvefwError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pvefw_nft.app.compiler import Compiler
    from pvefw_nft.host.bridges.unplugged import Unplugged

_F = TypeVar("_F", bound="Callable[..., Any]")


def plug_options(command: _F) -> _F:
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


def chosen_plug_options(*, no_plug: bool, unplugged: str | None) -> PlugOptions:
    """Return the values of the options that :func:`plug_options` adds."""
    return PlugOptions(plug=not no_plug, drop=None if unplugged is None else unplugged == "drop")


def plug_and_report(compiler: Compiler, backend: str, options: PlugOptions, *, dry_run: bool, wait: float) -> bool:
    """Plug this host's filtered NICs and print the changes. Return whether all of them are filtered."""
    try:
        result = plug_or_drop(compiler.filtered_nics(), backend, options, dry_run=dry_run, wait=wait)
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


def unplugged_data(one: Unplugged, *, dropped: bool) -> dict[str, Any]:
    """Return an unplugged NIC as data."""
    return {"interface": one.interface, "bridge": one.bridge, "dropped": dropped, "reason": one.reason}
