"""``pvefw check``: report mistakes in a configuration."""

from __future__ import annotations

import gc
import pathlib
from typing import TYPE_CHECKING, Any

import click

from pvefw_nft.cli import console
from pvefw_nft.cli.command import command
from pvefw_nft.cli.formats import FORMATS
from pvefw_nft.cli.options import all_nodes_options, is_for_all_nodes, make_offline_source, source_options
from pvefw_nft.cli.progress import progress
from pvefw_nft.cli.render import show
from pvefw_nft.errors import UsageError, has_errors
from pvefw_nft.pipeline.review import review_root

if TYPE_CHECKING:
    from pathlib import Path


@command("check")
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(path_type=pathlib.Path))
@source_options
@click.option(
    "--format",
    "form",
    type=click.Choice(("text", *FORMATS)),
    default="text",
    help="Default: text. github, gitlab and junit: for CI, which shows findings beside the lines.",
)
@click.option("--analysis/--no-analysis", default=True, help="Look for rules and names without effect. Default: yes.")
@all_nodes_options
@click.pass_context
def check_command(
    ctx: click.Context,
    /,
    folder: Path | None,
    root: Path,
    node: str | None,
    local_network: str | None,
    form: str,
    analysis: bool,
    **_: Any,  # noqa: ANN401 - from all_nodes_options
) -> None:
    """Report mistakes in a configuration. Exit code 1 if a line is an error, otherwise 0.

    DIR is the folder that holds etc/pve, as with --root.

    Every firewall file below etc/pve is read, also for guests of other nodes and for guests that do not exist.
    Without errors the rules are analysed: lines that never match or change nothing, names that nothing uses, and a host
    that accepts no login from outside. Warnings and notes leave the exit code at 0. `pvefw explain CODE` explains
    a code.
    """
    gc.disable()  # the IR has no cycles
    if folder is not None:
        if ctx.get_parameter_source("root") is not click.core.ParameterSource.DEFAULT:
            raise UsageError("the folder is named twice, as DIR and with --root", "leave one out")
        root = folder
    if is_for_all_nodes(ctx.params):
        from pvefw_nft.cli import all_nodes  # deferred: most checks are of one node

        params = {**ctx.params, "root": root}
        ctx.exit(all_nodes.run(all_nodes.request("check", params, {"analysis": analysis}, form=form)))
    source = make_offline_source(root, node, local_network)
    with progress("analysing") as show_progress:
        review = review_root(source, analysis=analysis, progress=show_progress)
    diagnostics = review.diagnostics
    for reason in review.unfinished:
        click.echo(f"some rules were not analysed: {reason}", err=True)
    if form != "text":
        click.echo(FORMATS[form](diagnostics))
    else:
        show(diagnostics, err=False)
        if not diagnostics:
            console.say("no problems")
    ctx.exit(int(has_errors(diagnostics)))
