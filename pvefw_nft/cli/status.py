"""``pvefw status``: tell whether the firewall runs, how it differs from the configuration, and which NICs are open."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import click

from pvefw_nft.app import desired as desired_ruleset
from pvefw_nft.app.compiler import Compiler, find_nics_once, find_once
from pvefw_nft.app.plug_nics import unplugged_lines
from pvefw_nft.app.reasons import why_pending
from pvefw_nft.app.ruleset_diff import with_lines
from pvefw_nft.app.steady_source import patient
from pvefw_nft.cli import console
from pvefw_nft.cli.command import command
from pvefw_nft.cli.confirm import styled_change
from pvefw_nft.cli.options import backend_option, make_source, need_root, source_options
from pvefw_nft.cli.plug_options import unplugged_data
from pvefw_nft.cli.start import nat_problems
from pvefw_nft.errors import HostError, PvefwError
from pvefw_nft.host.backend_info import info
from pvefw_nft.host.bridges import drop
from pvefw_nft.host.bridges.unplugged import read_unplugged
from pvefw_nft.host.control import make_control
from pvefw_nft.host.firewall import running_ruleset
from pvefw_nft.host.other_filters import other_filters
from pvefw_nft.host.proxmox.services import running_firewalls
from pvefw_nft.host.proxmox.theirs import leftovers
from pvefw_nft.host.records.pending import pending_if_sound
from pvefw_nft.host.tracking import nat_zone

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pvefw_nft.app.unfiltered import Unfiltered
    from pvefw_nft.host.bridges.unplugged import Unplugged
    from pvefw_nft.host.firewall import Status
    from pvefw_nft.host.records.pending import Pending
    from pvefw_nft.host.records.record import Desired
    from pvefw_nft.pipeline import Source

_MAX_LISTED = 10
"""How many files, guests and counters are listed without -v."""


@dataclass(slots=True)
class _Found:
    """The facts that ``status`` reports beside the rules themselves."""

    theirs: list[str] = field(default_factory=list)
    waiting: Pending | None = None
    unplugged: list[Unplugged] = field(default_factory=list)
    nat: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    unfiltered: list[Unfiltered] = field(default_factory=list)
    invalid: bool = False


@command("status")
@source_options
@backend_option
@click.option("--diff", is_flag=True, help="Also list what differs: rules and entries that come (+) and go (-).")
@click.option("--format", "form", type=click.Choice(("text", "json")), default="text", help="Default: text.")
@click.pass_context
@desired_ruleset.no_garbage()
def status_command(
    ctx: click.Context,
    root: Path,
    node: str | None,
    local_network: str | None,
    backend: str | None,
    diff: bool,
    form: str,
) -> None:
    """Show whether the firewall runs, and how and why it differs from the configuration.

    Also listed: guests' NICs that no rule filters, and other programs with rules on this host.

    Exit code 0: running and as configured; 1: changes are pending, rules were changed by hand, the configuration has
    errors, or a NIC with firewall=1 is not behind its firewall bridge; 3: not running, or something could not be
    examined.
    """
    need_root()
    source = patient(make_source(root, node, local_network))
    about = _Found()
    desired = _desired(source, backend, about)
    found = make_control().firewall.status(desired)
    if diff and found.changes and desired is not None:
        found = replace(found, changes=with_lines(found.changes, running_ruleset(), desired))
    _look(about, found, source, backend, desired)
    if form == "json":
        click.echo(json.dumps(_status_json(found, about), indent=2))
    else:
        _print_status(found, about, diff=diff)
    clean = not (found.changes or found.drifted or about.invalid or about.unplugged or about.theirs or about.leftovers)
    ctx.exit((0 if clean else 1) if found.running and not found.unseen else 3)


def _desired(source: Source, backend: str | None, about: _Found) -> Desired | None:
    """Return the configured ruleset; None, and an error, if it cannot be had: then only the kernel is shown."""
    try:
        result = find_once(source, backend)
    except PvefwError as error:
        about.invalid = True
        console.error(error.message, error.hint)
        return None
    about.invalid = result.has_errors
    return result.desired


def _look(about: _Found, found: Status, source: Source, backend: str | None, desired: Desired | None) -> None:
    about.theirs = _theirs()
    about.waiting = pending_if_sound()
    about.leftovers = _leftovers()
    about.others = _others()
    if found.running:
        about.unplugged = _unplugged(source, desired)
        about.nat = [] if all(info(name).sets_zones for name in found.backends) else nat_problems()
    if desired is None:
        return
    try:
        with Compiler(source, backend, settle=0.0) as compiler:
            if found.changes:
                about.reasons = why_pending(source, backend, desired, compiler.changed)
            if desired.enabled:
                about.unfiltered = compiler.unfiltered()
    except PvefwError as error:
        console.warn(f"the guests were not examined: {error.message}", error.hint)


def _theirs() -> list[str]:
    """Return the running parts of Proxmox VE's own firewall."""
    try:
        return running_firewalls()
    except PvefwError as error:
        console.warn(f"Proxmox VE's services could not be examined: {error.message}")
        return []


def _leftovers() -> list[str]:
    """Return the variants of iptables that hold chains of a firewall that runs no more; none if that is not seen."""
    try:
        return leftovers()
    except HostError:
        return []


def _others() -> list[str]:
    """Return the other programs that filter here; empty if no tool lists rules, which status reports elsewhere."""
    try:
        return other_filters()
    except HostError:
        return []


def _unplugged(source: Source, desired: Desired | None) -> list[Unplugged]:
    """Return the NICs that are not behind their firewall bridges, as far as configuration and links tell."""
    if desired is not None and not desired.enabled:
        return []
    try:
        nics = find_nics_once(source)
        return read_unplugged(nics.nics, nics.misconfigured, None if desired is None else desired.backend)
    except PvefwError as error:
        console.warn(f"the guests' NICs could not be examined: {error.message}")
        return []


def _status_json(found: Status, about: _Found) -> dict[str, Any]:
    waiting = about.waiting
    return {
        **asdict(found),
        "unplugged": [unplugged_data(one, dropped=drop.is_wanted()) for one in about.unplugged],
        "proxmox_firewall": about.theirs,
        "configuration_errors": about.invalid,
        "confirmation": None if waiting is None else {"seconds_left": round(waiting.seconds_left(), 1)},
        "nat": about.nat,
        "leftovers": about.leftovers,
        "pending_because": about.reasons,
        "other_filters": about.others,
        "unfiltered": [asdict(one) for one in about.unfiltered],
    }


def _print_status(found: Status, about: _Found, *, diff: bool) -> None:
    for name in about.theirs:
        console.warn(f"{name} beside pvefw, see `pvefw take-over`", err=False)
    for variant in about.leftovers:
        console.warn(
            f"PVEFW chains of iptables-{variant} are left over: no running firewall updates them, and packets must "
            "still pass them; see `pvefw take-over`",
            err=False,
        )
    for missed in found.unseen:
        console.tell(f"some parts could not be examined: {missed.message}", err=False)
        if missed.hint is not None:
            console.tell(f"  help: {missed.hint}", err=False)
    if found.running:
        _print_running(found, about, diff=diff)
    else:
        console.say(_styled("stopped, as far as can be seen" if found.unseen else "stopped", good=False))
    _list("other rules on this host", about.others)
    for line in about.nat:
        console.warn(f"NAT: {line}", nat_zone.REMEDY, err=False)


def _print_running(found: Status, about: _Found, *, diff: bool) -> None:
    names = " and ".join(found.backends)
    if found.enabled and names:
        console.say(_styled(f"running ({names})", good=True))
    else:
        console.say(_styled("running (disabled in cluster.fw)", good=False))
    if found.hardened:
        console.say("hardened: table bridge pvefw-hardening")
    if about.waiting is not None:
        console.say(f"waiting for `pvefw confirm`: {about.waiting.seconds_left():.0f} s left")
    if about.invalid:
        console.say("the configuration has errors: see `pvefw check`")
    console.say(f"pending changes: {_count(found.changes)}")
    _list("  because", about.reasons)
    for change in (found.changes or ()) if diff else ():
        console.say(styled_change(change, indent="  "))
    console.say(f"changed by hand: {_count(found.drifted)}")
    for name in found.drifted or ():
        console.say(f"  {name}")
    for line in unplugged_lines(about.unplugged, dropped=drop.is_wanted()):
        console.tell(line, err=False)
    if about.unfiltered:
        _list("not filtered", [f"{one.guest} {one.nic}: {one.reason}" for one in about.unfiltered])
    console.say(f"packets dropped or rejected: {sum(found.dropped.values())}")
    for chain, packets in sorted(found.dropped.items(), key=lambda item: -item[1])[:_MAX_LISTED]:
        console.say(f"  {packets:10} {chain}")


def _list(heading: str, lines: Sequence[str]) -> None:
    """Print a heading with its lines: one beside it, several below."""
    shown = lines if console.is_verbose() else lines[:_MAX_LISTED]
    if len(lines) == 1:
        console.say(f"{heading}: {lines[0]}")
    elif lines:
        console.say(f"{heading}: {len(lines)}")
        indent = " " * (len(heading) - len(heading.lstrip()) + 2)
        for line in shown:
            console.say(f"{indent}{line}")
        if len(lines) > len(shown):
            console.say(f"{indent}and {len(lines) - len(shown)} more, see -v")


def _styled(text: str, *, good: bool) -> str:
    return click.style(text, fg="green" if good else "red", bold=True)


def _count(known: Sequence[object] | None) -> str:
    return "unknown" if known is None else str(len(known))
