"""``pvefw start``, ``update``, ``stop``, ``restart``, ``status``: this host's ruleset."""

from __future__ import annotations

import json
import select
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pvefw_nft.app import desired as desired_ruleset
from pvefw_nft.app.compiler import find_nics_once, find_once
from pvefw_nft.app.steady_source import patient
from pvefw_nft.cli.confirm import report, report_problems, wait_option
from pvefw_nft.cli.options import (
    backend_option,
    beside_option,
    make_source,
    need_root,
    settle_option,
    source_options,
)
from pvefw_nft.cli.plugging import chosen, plug_and_report, plugging_options, unplugged_lines
from pvefw_nft.cli.render import show
from pvefw_nft.cli.session_check import check_sessions, force_option, refuse_cuts_option
from pvefw_nft.errors import (
    CompilerError,
    ConfigurationError,
    HostError,
    InternalError,
    PvefwError,
    UnreadableError,
)
from pvefw_nft.host import control, firewall, lock
from pvefw_nft.host.backend_info import info
from pvefw_nft.host.bridges import drop
from pvefw_nft.host.bridges.unplugged import read_unplugged
from pvefw_nft.host.proxmox.services import refuse_beside_proxmox, running_firewalls
from pvefw_nft.host.proxmox.theirs import leftovers
from pvefw_nft.host.proxmox.units import is_taken_over
from pvefw_nft.host.tracking import nat_zone

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pvefw_nft.app.desired import Result
    from pvefw_nft.host.bridges.unplugged import Unplugged
    from pvefw_nft.host.control import Pending
    from pvefw_nft.host.firewall import Status
    from pvefw_nft.host.records.record import Desired
    from pvefw_nft.pipeline import Source

_F = TypeVar("_F", bound="Callable[..., Any]")


confirm_option = click.option(
    "--confirm",
    "confirm_within",
    type=click.FloatRange(min=1, max=control.MAX_SECONDS),
    metavar="SECONDS",
    help="Return to the ruleset before, unless `pvefw confirm` (or Enter) comes within this time.",
)


def _apply_options(command: _F) -> _F:
    """Add the options of commands that apply a ruleset."""
    for option in (
        wait_option,
        settle_option,
        force_option,
        refuse_cuts_option,
        plugging_options,
        click.option("--dry-run", is_flag=True, help="Print the ruleset that would be loaded; change nothing."),
        click.option("--skip-invalid", is_flag=True, help="Leave out lines with errors, and apply the rest."),
        confirm_option,
        click.option(
            "--harden",
            is_flag=True,
            help="With the iptables backend: also load an nft table that drops the frames of hostile guests. Holds "
            "until the next apply without this option; `harden: 1` in host.pvefw keeps it.",
        ),
        beside_option,
        backend_option,
        source_options,
    ):
        command = option(command)
    return command


@click.command("start")
@click.option(
    "--nat-zone/--no-nat-zone",
    "nat_zone_wanted",
    default=None,
    help="With the iptables backend: have (or no longer have) a rule that makes NAT work for guests behind firewall "
    "bridges. AppliedChain; `stop` removes the rule.",
)
@_apply_options
@click.pass_context
def start_command(ctx: click.Context, /, **options: Any) -> None:  # noqa: ANN401 - those of _apply_options
    """Load the ruleset of the configuration, and replace the one before.

    Repeating it changes nothing. A configuration with errors is not applied without --skip-invalid. If a guest's file
    cannot be read at all, the guest is closed: nothing passes its NICs.

    Over ssh, use `pvefw start --confirm 60`: unless you confirm, the ruleset before comes back.
    """
    ctx.exit(_apply(**options))


@click.command("update")
@_apply_options
@click.pass_context
def update_command(ctx: click.Context, /, **options: Any) -> None:  # noqa: ANN401
    """Apply changes of the configuration if the firewall is running; otherwise do nothing."""
    ctx.exit(_apply(**options, only_if_running=True))


@click.command("restart")
@_apply_options
@click.pass_context
def restart_command(ctx: click.Context, /, **options: Any) -> None:  # noqa: ANN401
    """Load the whole ruleset again, unchanged parts included. At no time is the host without rules."""
    ctx.exit(_apply(**options, reload_all=True))


@click.command("stop")
@wait_option
def stop_command(wait: float) -> None:
    """Remove all rules, sets and tables of pvefw, and nothing else. The host is then unfiltered."""
    need_root()
    outcome = control.stop(wait=wait)
    click.echo("stopped: this host is not filtered" if outcome.running else "nothing was running")
    if is_taken_over():
        click.echo("Proxmox VE's firewall is masked: `pvefw hand-back` returns to it", err=True)
    report_problems(outcome)


@click.command("status")
@source_options
@backend_option
@click.option("--diff", is_flag=True, help="Also list which chains, sets and entries differ.")
@click.option("--format", "form", type=click.Choice(("text", "json")), default="text", show_default=True)
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
    """Show whether the firewall runs, and how it differs from the configuration.

    Exit code 0: running and as configured; 1: changes are pending, rules were changed by hand, the configuration has
    errors, or a NIC with firewall=1 is not behind its firewall bridge; 3: not running, or something could not be
    examined.
    """
    need_root()
    source = patient(make_source(root, node, local_network))
    desired, invalid = None, False
    try:
        result = find_once(source, backend)
        invalid = result.has_errors
        desired = result.desired
    except PvefwError as error:  # the configuration is unusable: report the state of the kernel alone
        invalid = True
        click.echo(f"error: {error.message}", err=True)
        if error.hint is not None:
            click.echo(f"  help: {error.hint}", err=True)
    found = firewall.status(desired)
    theirs = _theirs()
    waiting = control.pending_if_sound()
    unplugged = _unplugged(source, desired) if found.running else []
    nat = _nat_problems() if found.running and not all(info(name).sets_zones for name in found.backends) else []
    left = _leftovers()
    if form == "json":
        shown = {**_status_json(found, waiting, unplugged, theirs, invalid=invalid), "nat": nat, "leftovers": left}
        click.echo(json.dumps(shown, indent=2))
    else:
        for name in theirs:
            click.echo(f"warning: {name} beside pvefw, see `pvefw take-over`")
        for variant in left:
            click.echo(
                f"warning: PVEFW chains of iptables-{variant} are left over: no running firewall updates them, and "
                "packets must still pass them; see `pvefw take-over`"
            )
        _print_status(found, waiting, unplugged, diff=diff, invalid=invalid)
        for line in nat:
            click.echo(f"NAT: {line}\n  help: {nat_zone.REMEDY}")
    clean = not (found.changes or found.drifted or invalid or unplugged or theirs or left)
    ctx.exit((0 if clean else 1) if found.running and not found.unseen else 3)


@desired_ruleset.no_garbage()
def _apply(
    root: Path,
    node: str | None,
    local_network: str | None,
    backend: str | None,
    confirm_within: float | None,
    *,
    skip_invalid: bool,
    dry_run: bool,
    wait: float,
    settle: float,
    force: bool,
    refuse_cuts: bool,
    no_plug: bool,
    unplugged: str | None,
    harden: bool,
    beside: bool,
    only_if_running: bool = False,
    reload_all: bool = False,
    nat_zone_wanted: bool | None = None,
) -> int:
    if not dry_run:
        _need_host(beside=beside)
    source = patient(replace(make_source(root, node, local_network), harden=harden))
    starts = not dry_run and not only_if_running
    result = find_ruleset(source, backend, skip_invalid=skip_invalid, settle=settle, starts=starts)
    if result is None:
        return 1
    desired, invalid = result.desired, result.has_errors
    filtered = True
    if not (only_if_running and not firewall.is_running()):
        check_sessions(desired, source, go_on=force or dry_run or (confirm_within is not None and not refuse_cuts))
        if desired.enabled:  # before the rules are loaded: they then find each NIC where they look for it
            options = chosen(no_plug=no_plug, unplugged=unplugged)
            filtered = plug_and_report(source, desired.backend, options, dry_run=dry_run, wait=wait)
    if dry_run:
        outcome = firewall.preview(desired, reload_all=reload_all)
        if only_if_running and not outcome.running:
            click.echo("the firewall is not running: nothing to do", err=True)
        else:
            click.echo(outcome.text, nl=False)
            if outcome.switched_from is not None:
                click.echo(f"# then the rules of the {outcome.switched_from} backend are removed")
        return int(invalid)
    if nat_zone_wanted is not None:
        nat_zone.want(wanted=nat_zone_wanted)
    outcome, pending = control.apply(
        desired,
        only_if_running=only_if_running,
        reload_all=reload_all,
        confirm_within=confirm_within,
        beside="remove" if beside else "",
        wait=wait,
    )
    if not outcome.running:
        click.echo("the firewall is not running: nothing done", err=True)
        return int(invalid)
    desired_ruleset.note(result, source, backend)
    if not desired.enabled:
        click.echo("the firewall is disabled in cluster.fw (enable: 0): nothing is filtered", err=True)
    report(outcome)
    _look_at_nat(desired, quiet=only_if_running)
    if pending is not None and not wait_for_confirmation(pending, wait):
        before = "the ruleset that ran before is back" if pending.was_running else "this host is open again"
        click.echo(f"not confirmed: {before}", err=True)
        return 3
    return int(invalid or not filtered)


def _need_host(*, beside: bool) -> None:
    """Raise HostError where nothing can be applied here: no root, or Proxmox VE's own firewall runs."""
    need_root()
    if not beside:
        refuse_beside_proxmox()


def _look_at_nat(desired: Desired, *, quiet: bool) -> None:
    """Have the zone rule for NAT where it is wanted, and warn where NAT of guests does not work without it."""
    if not desired.enabled or info(desired.backend).sets_zones:
        return
    if nat_zone.is_wanted():
        nat_zone.add()
    for line in () if quiet else _nat_problems():
        click.echo(f"warning: {line}\n  help: {nat_zone.REMEDY}", err=True)


def _nat_problems() -> list[str]:
    """Return where NAT of guests does not work; nothing where that cannot be seen."""
    try:
        return nat_zone.missing()
    except HostError:
        return []


def find_ruleset(
    source: Source, backend: str | None, *, skip_invalid: bool, settle: float = 0.0, starts: bool = True
) -> Result | None:
    """Return the ruleset, or None where there were errors, and they count.

    A start whose configuration cannot be read or compiled, on a host where nothing runs, loads the ruleset
    confirmed last.
    """

    def waiting(path: str) -> None:
        click.echo(f"{path} is missing, empty or cut off, perhaps while it is being saved: waiting {settle:g} s")

    try:
        result = find_once(source, backend, settle=settle, waiting=waiting)
    except (ConfigurationError, InternalError) as error:
        if starts and (skip_invalid or isinstance(error, UnreadableError | CompilerError | InternalError)):
            with lock.hold():
                if control.fall_back():
                    click.echo("the ruleset that was confirmed last is in place", err=True)
        raise
    show(result.diagnostics)
    if result.may_open and not skip_invalid:
        click.echo("nothing was changed, because the configuration has errors", err=True)
        click.echo("  help: mend the lines named above, or leave them out with --skip-invalid", err=True)
        return None
    return result


def wait_for_confirmation(pending: Pending, wait: float) -> bool:
    """Wait for the confirmation: by `pvefw confirm`, or by Enter where there is a terminal."""
    seconds = f"{pending.seconds_left:.0f} s"
    if pending.was_running:
        then = "the one before it comes back"
    else:
        then = "Proxmox VE's firewall goes on alone" if pending.beside else "this host is open again, as before"
    if sys.stdin.isatty():
        click.echo(f"press Enter to keep this ruleset; in {seconds} {then}", err=True)
        while control.waits(pending):
            ready, _, _ = select.select([sys.stdin], [], [], 0.1)
            if ready and sys.stdin.readline():
                return control.confirm(wait=wait)
            if ready:
                break  # the terminal is gone: the guard decides
    else:
        click.echo(f"run `pvefw confirm` to keep this ruleset; in {seconds} {then}", err=True)
    return control.await_confirmation(pending)


def _theirs() -> list[str]:
    """Return the running parts of Proxmox VE's own firewall."""
    try:
        return running_firewalls()
    except PvefwError as error:
        click.echo(f"warning: Proxmox VE's services could not be examined: {error.message}", err=True)
        return []


def _leftovers() -> list[str]:
    """Return the variants of iptables that hold chains of a firewall that runs no more; none where that is not seen."""
    try:
        return leftovers()
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
        click.echo(f"warning: the guests' NICs could not be examined: {error.message}", err=True)
        return []


def _status_json(
    found: Status, waiting: Pending | None, unplugged: Sequence[Unplugged], theirs: Sequence[str], *, invalid: bool
) -> dict[str, Any]:
    return {
        **asdict(found),
        "unplugged": [
            {"interface": one.interface, "bridge": one.bridge, "dropped": drop.is_wanted(), "reason": one.reason}
            for one in unplugged
        ],
        "proxmox_firewall": [*theirs],
        "configuration_errors": invalid,
        "confirmation": None if waiting is None else {"seconds_left": round(waiting.seconds_left, 1)},
    }


def _print_status(
    found: Status, waiting: Pending | None, unplugged: Sequence[Unplugged], *, diff: bool, invalid: bool
) -> None:
    for missed in found.unseen:
        click.echo(f"some parts could not be examined: {missed.message}")
        if missed.hint is not None:
            click.echo(f"  help: {missed.hint}")
    if not found.running:
        click.echo("stopped, as far as can be seen" if found.unseen else "stopped")
        return
    names = " and ".join(found.backends)
    click.echo(f"running ({names})" if found.enabled and names else "running (disabled in cluster.fw)")
    if found.hardened:
        click.echo("hardened: table bridge pvefw-hardening")
    if waiting is not None:
        click.echo(f"waiting for `pvefw confirm`: {waiting.seconds_left:.0f} s left")
    if invalid:
        click.echo("the configuration has errors: see `pvefw check`")
    click.echo(f"pending changes: {_count(found.changes)}")
    for change in (found.changes or ()) if diff else ():
        click.echo(f"  {change}")
    click.echo(f"changed by hand: {_count(found.drifted)}")
    for name in found.drifted or ():
        click.echo(f"  {name}")
    for line in unplugged_lines(unplugged, dropped=drop.is_wanted()):
        click.echo(line)
    dropped = sum(found.dropped.values())
    click.echo(f"packets dropped or rejected: {dropped}")
    for chain, packets in sorted(found.dropped.items(), key=lambda item: -item[1])[:10]:
        click.echo(f"  {packets:10} {chain}")


def _count(known: Sequence[object] | None) -> str:
    return "unknown" if known is None else str(len(known))
