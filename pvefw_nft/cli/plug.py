"""``pvefw plug``, ``unplug``, ``plumb``: the firewall bridges of guests' NICs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from pvefw_nft.app.nics import filtered_nics, read_filtered_nics
from pvefw_nft.cli import completion, console
from pvefw_nft.cli.command import command
from pvefw_nft.cli.options import make_source, source_options
from pvefw_nft.errors import HostError, PvefwError, UsageError
from pvefw_nft.host import lock
from pvefw_nft.host.bridges.firewall_bridge import MAX_VLAN, Naming, Nic, guest_nic, parse_trunks
from pvefw_nft.host.bridges.plug import existing, plug_nics, unplug_nics
from pvefw_nft.host.bridges.unplugged import read_unplugged
from pvefw_nft.pipeline.inventory import read_guests

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pvefw_nft.host.bridges.plug import PlugResult
    from pvefw_nft.host.bridges.unplugged import Unplugged
    from pvefw_nft.pipeline import Source

_F = TypeVar("_F", bound="Callable[..., Any]")


def _plug_options(command: _F) -> _F:
    for option in (
        click.option(
            "--wait",
            type=click.FloatRange(min=0),
            default=lock.WAIT,
            show_default=True,
            metavar="SECONDS",
            help="How long to wait for another run of pvefw.",
        ),
        click.option("--dry-run", is_flag=True, help="Print the steps; take none."),
        click.option("--older-names", is_flag=True, help="Name the pair of links link<VMID>i<N>, as on old hosts."),
    ):
        command = option(command)
    return command


@command("plug", answers=True)
@click.argument("interface", shell_complete=completion.interfaces)
@click.option("--bridge", metavar="NAME", help="The guest's bridge. Default: the bridge in the guest's configuration.")
@click.option("--tag", type=click.IntRange(1, MAX_VLAN), metavar="VLAN", help="The VLAN that the guest is in.")
@click.option("--trunks", metavar="VLANS", help="VLANs that the guest tags itself, like 5;10-20.")
@click.option("--mtu", type=click.IntRange(68, 65535), help="The NIC's MTU. Default: its bridge's.")
@source_options
@_plug_options
def plug_command(
    interface: str,
    bridge: str | None,
    tag: int | None,
    trunks: str | None,
    mtu: int | None,
    root: Path,
    node: str | None,
    local_network: str | None,
    older_names: bool,
    dry_run: bool,
    wait: float,
) -> None:
    """Put the guest NIC INTERFACE (tap100i0, veth200i0) behind its firewall bridge.

    Bridge, VLANs and MTU are read from the guest's configuration, unless --bridge names the bridge. Run it again to
    repair missing parts.
    """
    if bridge is None:
        if tag is not None or trunks is not None or mtu is not None:
            raise UsageError("--tag, --trunks and --mtu go with --bridge", "leave them out, or name the bridge too")
        nic = _configured(make_source(root, node, local_network), interface)
        if nic is None:
            console.answer(nics=[])
            console.note(f"{interface}: its configuration does not have firewall=1: left alone")
            return
    else:
        vmid, index = _named(interface)
        nic = Nic(interface, bridge, vmid, index, tag, parse_trunks(trunks) if trunks else (), mtu)
    _report(plug_nics([nic], _naming(older_names=older_names), dry_run=dry_run, wait=wait), dry_run=dry_run)


@command("unplug", answers=True)
@click.argument("interface", shell_complete=completion.interfaces)
@_plug_options
def unplug_command(interface: str, older_names: bool, dry_run: bool, wait: float) -> None:  # noqa: ARG001 - both names go
    """Remove the firewall bridge of the guest NIC INTERFACE, which may be gone already.

    A NIC that is still there is in no bridge afterwards: back in the guest's bridge it would not be filtered.
    """
    vmid, index = _named(interface)
    # where it was plugged is seen from the links
    results = unplug_nics([Nic(interface, interface, vmid, index)], dry_run=dry_run, wait=wait)
    _report(results, dry_run=dry_run, verb="removed")


@command("plumb", answers=True)
@source_options
@_plug_options
def plumb_command(
    root: Path, node: str | None, local_network: str | None, older_names: bool, dry_run: bool, wait: float
) -> None:
    """Plug all NICs with firewall=1 whose guests run, as `pvefw plug` does for one."""
    found = read_filtered_nics(make_source(root, node, local_network))
    there, absent = existing(found.nics)
    results = plug_nics(there, _naming(older_names=older_names), dry_run=dry_run, wait=wait)
    console.answer(not_running=[nic.interface for nic in absent])
    _report(results, dry_run=dry_run, misconfigured=read_unplugged((), found.misconfigured))
    changed = sum(1 for result in results if result.steps and result.error is None)
    if not dry_run:
        console.say(f"{len(there)} NICs plugged, {changed} of them changed; {len(absent)} are not running")


def _configured(source: Source, interface: str) -> Nic | None:
    """Return the NIC of the configuration with this name, None if it is not filtered."""
    guests = read_guests(source)
    if not any(guest.interface(nic) == interface for guest in guests for nic in guest.nics):
        raise HostError(f"no guest of this node has a NIC {interface}", "check its name, or give --bridge")
    found = filtered_nics(guests)
    wrong = next((nic for nic in found.misconfigured if nic.interface == interface), None)
    if wrong is not None:
        raise HostError(f"{interface}: {wrong.reason}", wrong.hint)
    return next((nic for nic in found.nics if nic.interface == interface), None)


def _named(interface: str) -> tuple[int, int]:
    found = guest_nic(interface)
    if found is None:
        raise UsageError(f"`{interface}` is not the name of a guest's NIC", "they are called like tap100i0, veth200i1")
    return found


def _naming(*, older_names: bool) -> Naming:
    if not older_names:
        return Naming.CURRENT
    console.warn("the rulesets of pvefw match fwln links only: with the older names nothing is filtered")
    return Naming.OLDER


def _report(
    results: Sequence[PlugResult],
    *,
    dry_run: bool,
    misconfigured: Sequence[Unplugged] = (),
    verb: str = "plugged behind",
) -> None:
    """Print the result of each NIC. Raises the error of the only NIC, or one that counts them, after printing each."""
    failed: list[PvefwError] = [result.error for result in results if result.error is not None]
    failed += [HostError(f"{one.interface}: {one.reason}", one.hint) for one in misconfigured]
    console.answer(dry_run=dry_run, nics=[_data(result) for result in results])
    for result in results:
        if result.steps and not dry_run and result.error is None:
            console.say(f"{result.nic.interface}: {_done(result, verb)}")
        for step in result.steps if dry_run or console.is_verbose() else ():
            console.say(str(step) if dry_run else f"  {step}")
    count = len(results) + len(misconfigured)
    if count == 1 and failed:
        raise failed[0]
    for error in failed:
        console.error(error.message, error.hint)
    if failed:
        raise HostError(f"{len(failed)} of {count} NICs could not be plugged", "see above")


def _done(result: PlugResult, verb: str) -> str:
    """Return the result for a NIC: ``plugged behind fwbr100i0 (12 steps)``."""
    count = len(result.steps)
    bridge = f"fwbr{result.nic.vmid}i{result.nic.index}"
    return f"{verb} {bridge} ({count} step{'s' if count > 1 else ''})"


def _data(result: PlugResult) -> dict[str, Any]:
    return {
        "interface": result.nic.interface,
        "bridge": result.nic.bridge,
        "steps": [str(step) for step in result.steps],
        "error": None if result.error is None else result.error.message,
    }
