"""``pvefw start``, ``update``, ``restart``, ``stop``: this host's ruleset."""

from __future__ import annotations

import select
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pvefw_nft.app import desired as desired_ruleset
from pvefw_nft.app.compiler import Compiler
from pvefw_nft.app.steady_source import patient
from pvefw_nft.cli import console
from pvefw_nft.cli.command import command
from pvefw_nft.cli.confirm import outcome_facts, report, report_problems, styled_change, wait_option
from pvefw_nft.cli.formats import diagnostic_data
from pvefw_nft.cli.options import (
    backend_option,
    beside_option,
    make_source,
    need_root,
    settle_option,
    source_options,
)
from pvefw_nft.cli.plug_options import chosen_plug_options, plug_and_report, plug_options
from pvefw_nft.cli.render import show
from pvefw_nft.cli.session_check import check_sessions, force_option, refuse_cuts_option
from pvefw_nft.errors import (
    CompilerError,
    ConfigurationError,
    HostError,
    InternalError,
    UnreadableError,
)
from pvefw_nft.host import lock
from pvefw_nft.host.backend_info import info
from pvefw_nft.host.control import MAX_SECONDS, make_control
from pvefw_nft.host.firewall import running_ruleset
from pvefw_nft.host.proxmox.services import refuse_beside_proxmox
from pvefw_nft.host.proxmox.units import is_taken_over
from pvefw_nft.host.records.pending import Beside
from pvefw_nft.host.tracking import nat_zone

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pvefw_nft.app.desired import Result
    from pvefw_nft.host.control import Control
    from pvefw_nft.host.firewall import Firewall, Outcome
    from pvefw_nft.host.records.pending import Pending
    from pvefw_nft.host.records.record import Desired

_F = TypeVar("_F", bound="Callable[..., Any]")


confirm_option = click.option(
    "--confirm",
    "confirm_within",
    type=click.FloatRange(min=1, max=MAX_SECONDS),
    metavar="SECONDS",
    help="Return to the previous ruleset, unless `pvefw confirm` (or Enter) comes within this time.",
)


def _apply_options(command: _F) -> _F:
    """Add the options of commands that apply a ruleset."""
    for option in (
        wait_option,
        settle_option,
        force_option,
        refuse_cuts_option,
        plug_options,
        click.option(
            "--dry-run",
            is_flag=True,
            help="Change nothing. Print the changes: lines that come (+) and go (-); with -v also the tools' input.",
        ),
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


@command("start", answers=True)
@click.option(
    "--nat-zone/--no-nat-zone",
    "nat_zone_wanted",
    default=None,
    help="With the iptables backend: add (or remove) rules that make NAT work for guests behind firewall bridges. "
    "This is remembered; `stop` removes the rules.",
)
@_apply_options
@click.pass_context
def start_command(ctx: click.Context, /, **options: Any) -> None:  # noqa: ANN401 - from _apply_options
    """Load the ruleset of the configuration, and replace the previous one.

    A repeated start changes nothing. A configuration with errors is not applied without --skip-invalid. A guest whose
    file is binary or too large is closed: nothing passes its NICs. If a file cannot be read, nothing changes.

    Over ssh, use `pvefw start --confirm 60`: unless you confirm, the previous ruleset comes back.
    """
    ctx.exit(_apply(_Wanted(**options)))


@command("update", answers=True)
@_apply_options
@click.pass_context
def update_command(ctx: click.Context, /, **options: Any) -> None:  # noqa: ANN401
    """Apply changes of the configuration if the firewall is running; otherwise do nothing."""
    ctx.exit(_apply(_Wanted(**options, only_if_running=True)))


@command("restart", answers=True)
@_apply_options
@click.pass_context
def restart_command(ctx: click.Context, /, **options: Any) -> None:  # noqa: ANN401
    """Compile and load the whole ruleset again, unchanged parts included. The host is never without rules."""
    ctx.exit(_apply(_Wanted(**options, reload_all=True)))


@command("stop", answers=True)
@wait_option
def stop_command(wait: float) -> None:
    """Remove all rules, sets and tables of pvefw, and nothing else. The host is then unfiltered."""
    need_root()
    outcome = make_control().stop(wait=wait)
    console.say("stopped: this host is not filtered" if outcome.running else "nothing was running")
    console.answer(was_running=outcome.running, proxmox_firewall_masked=is_taken_over())
    if is_taken_over():
        console.warn("Proxmox VE's firewall is masked", "`pvefw hand-back` returns to it")
    report_problems(outcome)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The values of the options of ``start``, ``update`` and ``restart``."""

    root: Path
    node: str | None
    local_network: str | None
    backend: str | None
    confirm_within: float | None
    skip_invalid: bool
    dry_run: bool
    wait: float
    settle: float
    force: bool
    refuse_cuts: bool
    no_plug: bool
    unplugged: str | None
    harden: bool
    beside: bool
    only_if_running: bool = False
    reload_all: bool = False
    nat_zone_wanted: bool | None = None


@desired_ruleset.no_garbage()
def _apply(wanted: _Wanted) -> int:
    """Find the ruleset, check connections, plug NICs, load, report. Return the exit code."""
    if not wanted.dry_run:
        _need_host(beside=wanted.beside)
    source = patient(replace(make_source(wanted.root, wanted.node, wanted.local_network), harden=wanted.harden))
    control = make_control()
    with Compiler(source, wanted.backend, wanted.settle) as compiler:
        result = find_ruleset(
            control,
            compiler,
            skip_invalid=wanted.skip_invalid,
            settle=wanted.settle,
            starts=not wanted.dry_run and not wanted.only_if_running,
            from_notes=wanted.only_if_running,
            afresh=wanted.reload_all,
        )
        if result is None:
            return 1
        desired, invalid = result.desired, result.has_errors
        filtered = _prepare(control.firewall, desired, compiler, wanted)
    if wanted.dry_run:
        _preview(control.firewall, desired, reload_all=wanted.reload_all, only_if_running=wanted.only_if_running)
        return int(invalid)
    outcome, pending = _load(control, desired, wanted)
    if not outcome.running:
        console.answer(running=False, changes=[])
        console.warn("the firewall is not running: nothing done")
        return int(invalid)
    desired_ruleset.note(result, source, wanted.backend)
    _report_applied(desired, outcome, quiet=wanted.only_if_running)
    if pending is not None and not _is_confirmed(control, pending, wanted.wait):
        return 3
    return int(invalid or not filtered)


def _prepare(firewall: Firewall, desired: Desired, compiler: Compiler, wanted: _Wanted) -> bool:
    """Check connections and plug NICs, unless nothing will be loaded. Return whether all NICs are filtered then."""
    if wanted.only_if_running and not firewall.is_running():
        return True
    # a change with --confirm may break connections: it is undone if the administrator's own breaks
    go_on = wanted.force or wanted.dry_run or (wanted.confirm_within is not None and not wanted.refuse_cuts)
    check_sessions(firewall, desired, compiler, go_on=go_on)
    if not desired.enabled:
        return True
    # before the load: the rules match each NIC at its firewall bridge
    options = chosen_plug_options(no_plug=wanted.no_plug, unplugged=wanted.unplugged)
    return plug_and_report(compiler, desired.backend, options, dry_run=wanted.dry_run, wait=wanted.wait)


def _load(control: Control, desired: Desired, wanted: _Wanted) -> tuple[Outcome, Pending | None]:
    def prepare() -> None:
        if wanted.nat_zone_wanted is not None:
            nat_zone.want(wanted=wanted.nat_zone_wanted)

    return control.apply(
        desired,
        only_if_running=wanted.only_if_running,
        reload_all=wanted.reload_all,
        confirm_within=wanted.confirm_within,
        beside=Beside.REMOVE if wanted.beside else Beside.NOTHING,
        wait=wanted.wait,
        prepare=prepare,
        fell_back=None if wanted.only_if_running or wanted.beside else _report_fall_back,
    )


def _report_applied(desired: Desired, outcome: Outcome, *, quiet: bool) -> None:
    """Report an apply, and see to the zone rule for NAT. ``quiet``: without warnings about NAT."""
    if not desired.enabled:
        console.warn("the firewall is disabled in cluster.fw (enable: 0): nothing is filtered")
    report(outcome)
    console.answer(backend=desired.backend, enabled=desired.enabled)
    _look_at_nat(desired, quiet=quiet)


def _is_confirmed(control: Control, pending: Pending, wait: float) -> bool:
    """Wait for the confirmation. Tell whether it came, after reporting that."""
    confirmed = wait_for_confirmation(control, pending, wait)
    console.answer(confirmation="confirmed" if confirmed else "undone")
    if not confirmed:
        before = "the ruleset that ran before is back" if pending.was_running else "this host is open again"
        console.error(f"not confirmed: {before}")
    return confirmed


def _preview(firewall: Firewall, desired: Desired, *, reload_all: bool, only_if_running: bool) -> None:
    """Print the changes of an apply, with added and removed lines; with -v the input of the tools."""
    outcome = firewall.preview(desired, reload_all=reload_all)
    console.answer(dry_run=True)
    if only_if_running and not outcome.running:
        console.answer(running=False, changes=[])
        console.warn("the firewall is not running: nothing to do")
        return
    if console.current().form == "text" and console.is_verbose():
        click.echo(outcome.text, nl=False)
        if outcome.switched_from is not None:
            click.echo(f"# then the rules of the {outcome.switched_from} backend are removed")
        return
    from pvefw_nft.app.ruleset_diff import with_lines  # deferred: it reads rulesets, and an apply does not

    changes = with_lines(outcome.changes, running_ruleset(), desired)
    console.answer(**outcome_facts(replace(outcome, changes=changes)), backend=desired.backend)
    for change in changes:
        console.say(styled_change(change))
    if not changes:
        console.say("nothing would change")
    if outcome.switched_from is not None:
        console.say(f"then the rules of the {outcome.switched_from} backend are removed")


def _need_host(*, beside: bool) -> None:
    """Raise HostError if nothing can be applied here: without root, or beside Proxmox VE's own firewall."""
    need_root()
    if not beside:
        refuse_beside_proxmox()


def _look_at_nat(desired: Desired, *, quiet: bool) -> None:
    """Add the zone rule for NAT if it is wanted. Warn if NAT of guests does not work without it."""
    if not desired.enabled or info(desired.backend).sets_zones:
        return
    if nat_zone.is_wanted():
        nat_zone.add()
    for line in () if quiet else nat_problems():
        console.warn(line, nat_zone.REMEDY)


def nat_problems() -> list[str]:
    """Return a line for each place where NAT of guests does not work; none if that cannot be examined."""
    try:
        return nat_zone.missing()
    except HostError:
        return []


def find_ruleset(
    control: Control,
    compiler: Compiler,
    *,
    skip_invalid: bool,
    settle: float = 0.0,
    starts: bool = True,
    from_notes: bool = False,
    afresh: bool = False,
) -> Result | None:
    """Return the desired ruleset; None if its errors forbid applying it, which is reported.

    ``starts``: if the configuration cannot be read or compiled and no ruleset runs, load the ruleset confirmed last.
    ``from_notes`` and ``afresh`` are as for :meth:`.Compiler.find_once`, which names the errors.
    """

    def waiting(path: str) -> None:
        console.note(f"{path} is missing, empty or cut off, perhaps while it is being saved: waiting {settle:g} s")

    try:
        result = compiler.find_once(waiting=waiting, from_notes=from_notes, afresh=afresh)
    except (ConfigurationError, InternalError) as error:
        if starts and (skip_invalid or isinstance(error, UnreadableError | CompilerError | InternalError)):
            _fall_back(control)
        raise
    show(result.diagnostics)
    console.answer(diagnostics=[diagnostic_data(one) for one in result.diagnostics])
    if result.may_open and not skip_invalid:
        console.error(
            "nothing was changed, because the configuration has errors",
            "mend the lines named above, or leave them out with --skip-invalid",
        )
        return None
    return result


def _fall_back(control: Control) -> None:
    """If no ruleset runs, load the one confirmed last: a host that comes up must not be open. Raises HostError."""
    with lock.hold():
        if control.fall_back():
            _report_fall_back()


def _report_fall_back() -> None:
    console.warn("the ruleset that was confirmed last is in place")


def wait_for_confirmation(control: Control, pending: Pending, wait: float) -> bool:
    """Wait for `pvefw confirm`, or for Enter if there is a terminal. Tell whether the change was confirmed."""
    seconds = f"{pending.seconds_left():.0f} s"
    if pending.was_running:
        then = "the previous one comes back"
    elif pending.beside is Beside.NOTHING:
        then = "this host is open again, as before"
    else:
        then = "Proxmox VE's firewall goes on alone"
    if sys.stdin.isatty():
        console.ask(f"press Enter to keep this ruleset; in {seconds} {then}")
        while pending.waits():
            ready, _, _ = select.select([sys.stdin], [], [], 0.1)
            if ready and sys.stdin.readline():
                return control.confirm(wait=wait)
            if ready:
                break  # end of file, the terminal is gone: the watchdog decides
    else:
        console.ask(f"run `pvefw confirm` to keep this ruleset; in {seconds} {then}")
    return control.await_confirmation(pending)
