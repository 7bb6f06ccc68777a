"""``pvefw check``: say what is wrong with a configuration."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import click

from pvefw_nft.cli.options import make_source, source_options
from pvefw_nft.cli.render import as_json, as_sarif, show
from pvefw_nft.pipeline import check_root

if TYPE_CHECKING:
    from pathlib import Path


@click.command("check")
@source_options
@click.option("--format", "form", type=click.Choice(("text", "json", "sarif")), default="text", help="Default: text.")
@click.pass_context
def check_command(ctx: click.Context, root: Path, node: str | None, local_network: str | None, form: str) -> None:
    """Say what is wrong with a configuration: exit 0 when nothing is, 1 when something is.

    Warnings alone leave the exit code at 0.
    """
    gc.disable()  # the IR has no cycles
    checked = check_root(make_source(root, node, local_network))
    match form:
        case "json":
            click.echo(as_json(checked.diagnostics))
        case "sarif":
            click.echo(as_sarif(checked.diagnostics))
        case _:
            show(checked.diagnostics, err=False)
            if not checked.diagnostics:
                click.echo("no problems")
    ctx.exit(1 if checked.has_errors else 0)
