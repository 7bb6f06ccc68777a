"""``pvefw check``: say what is wrong with a configuration."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import click

from pvefw_nft.cli.options import make_source, source_options
from pvefw_nft.cli.render import as_json, as_sarif, show
from pvefw_nft.pipeline import analyse_root, check_root, closing_failures, in_file_order

if TYPE_CHECKING:
    from pathlib import Path


@click.command("check")
@source_options
@click.option("--format", "form", type=click.Choice(("text", "json", "sarif")), default="text", help="Default: text.")
@click.option("--analysis/--no-analysis", default=True, help="Look for rules and names without effect. Default: yes.")
@click.pass_context
def check_command(
    ctx: click.Context, root: Path, node: str | None, local_network: str | None, form: str, analysis: bool
) -> None:
    """Say what is wrong with a configuration: exit 0 when nothing is, 1 when something is.

    Where nothing is, the rules are analysed: those that can never match or change nothing, and groups, ipsets and
    aliases that nothing uses, are warned about. Warnings alone leave the exit code at 0.
    """
    gc.disable()  # the IR has no cycles
    source = make_source(root, node, local_network)
    checked = closing_failures(source, lambda closed: check_root(source, closed=closed))
    diagnostics = checked.diagnostics
    if analysis and not checked.has_errors and checked.ruleset.enabled:
        gc.enable()
        advice = analyse_root(source, checked)
        diagnostics = in_file_order([*diagnostics, *advice.diagnostics])
        for reason in advice.unfinished:
            click.echo(f"some rules were not analysed: {reason}", err=True)
    match form:
        case "json":
            click.echo(as_json(diagnostics))
        case "sarif":
            click.echo(as_sarif(diagnostics))
        case _:
            show(diagnostics, err=False)
            if not diagnostics:
                click.echo("no problems")
    ctx.exit(1 if checked.has_errors else 0)
