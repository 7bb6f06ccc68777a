"""``pvefw take-over``: from Proxmox VE's own firewall to pvefw."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pvefw_nft.app import desired as desired_ruleset
from pvefw_nft.app.compiler import Compiler
from pvefw_nft.cli import console
from pvefw_nft.cli.command import command
from pvefw_nft.cli.confirm import wait_option
from pvefw_nft.cli.handover import dry_run_option, take_steps
from pvefw_nft.cli.options import backend_option, make_source, source_options
from pvefw_nft.cli.plug_options import chosen_plug_options, plug_and_report, plug_options
from pvefw_nft.cli.session_check import check_sessions, force_option
from pvefw_nft.cli.start import confirm_option, find_ruleset, wait_for_confirmation
from pvefw_nft.host import service_units, service_user
from pvefw_nft.host.control import make_control
from pvefw_nft.host.proxmox.take_over import Step, TakeOver

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pvefw_nft.app.desired import Result
    from pvefw_nft.app.plug_nics import PlugOptions
    from pvefw_nft.pipeline import Source


@command("take-over", answers=True)
@wait_option
@force_option
@plug_options
@dry_run_option
@confirm_option
@click.option("--skip-invalid", is_flag=True, help="Leave out lines with errors, and take over with the rest.")
@backend_option
@source_options
@click.pass_context
@desired_ruleset.no_garbage()
def take_over_command(
    ctx: click.Context,
    root: Path,
    node: str | None,
    local_network: str | None,
    backend: str | None,
    confirm_within: float | None,
    wait: float,
    *,
    skip_invalid: bool,
    dry_run: bool,
    force: bool,
    no_plug: bool,
    unplugged: str | None,
) -> None:
    """Replace Proxmox VE's own firewall (pve-firewall or proxmox-firewall) by pvefw.

    The host is never without rules. pvefw loads its rules beside Proxmox VE's rules and reads them back, stops and
    masks Proxmox VE's services without their clean-up, and only then removes their rules. Each step is printed. If a
    run is interrupted, run it again to complete it.

    Over ssh, use `pvefw take-over --confirm 120`, after a look at `pvefw take-over --dry-run`.
    """
    control = make_control()
    source = make_source(root, node, local_network)
    with Compiler(source, backend, settle=0.0) as compiler:
        result = find_ruleset(control, compiler, skip_invalid=skip_invalid)
        if result is None:
            ctx.exit(1)
        go_on = force or dry_run or confirm_within is not None
        check_sessions(control.firewall, result.desired, compiler, go_on=go_on)
    given = {"--backend": backend, "--node": node, "--local-network": local_network, "--unplugged": unplugged}
    taking = TakeOver(
        control,
        result.desired,
        _unit_texts(root, given, no_plug=no_plug),
        confirm_within,
        lambda pending: wait_for_confirmation(control, pending, wait),
        wait,
    )
    options = chosen_plug_options(no_plug=no_plug, unplugged=unplugged)
    plugged: list[bool] = []
    take_steps(_with_plugging(taking, source, result, options, plugged, dry_run=dry_run), dry_run=dry_run)
    if not dry_run:
        desired_ruleset.note(result, source, backend)
        console.say("pvefw filters this host; `pvefw hand-back` returns to Proxmox VE's firewall")
    ctx.exit(int(result.has_errors or not all(plugged)))


def _unit_texts(root: Path, given: Mapping[str, str | None], *, no_plug: bool) -> dict[str, str]:
    """Return the units of a service with the options that this command was given."""
    options = [word for name, value in given.items() if value is not None for word in (name, value)]
    options += ["--root", str(root)] if root != Path("/") else []
    options += ["--no-plug"] if no_plug else []
    return service_units.unit_texts(*options, as_root=service_user.why_root(root) is not None)


def _with_plugging(
    taking: TakeOver, source: Source, result: Result, options: PlugOptions, plugged: list[bool], *, dry_run: bool
) -> Iterator[Step]:
    """Yield the steps, with the plugging of guests' NICs once our rules are loaded, which need it."""
    backend, wait = result.desired.backend, taking.wait

    def plug() -> tuple[str, ...]:
        with Compiler(source, None, settle=0.0) as compiler:
            plugged.append(plug_and_report(compiler, backend, options, dry_run=dry_run, wait=wait))
        return ()

    for step in taking.steps():
        yield step
        if step.loads and result.desired.enabled:
            yield Step("plug NICs with firewall=1 that are not behind their firewall bridges", plug)
