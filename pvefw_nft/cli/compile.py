"""``pvefw compile``: print the ruleset of a configuration."""

from __future__ import annotations

import gc
import pathlib
import sys
from typing import TYPE_CHECKING, Any

import click

from pvefw_nft.app.outputs import write_file
from pvefw_nft.cli import discard_output
from pvefw_nft.cli.command import command
from pvefw_nft.cli.options import (
    all_nodes_options,
    as_reference_option,
    is_for_all_nodes,
    make_offline_source,
    source_options,
)
from pvefw_nft.cli.render import show
from pvefw_nft.errors import HostError, UsageError
from pvefw_nft.pipeline import PRINTABLE, compile_root
from pvefw_nft.pipeline.closing import closing_failures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@command("compile")
@source_options
@click.option(
    "--backend",
    type=click.Choice(PRINTABLE),
    help="Default: the backend of host.fw. explain: the policy in English.",
)
@as_reference_option
@click.option("--format", "form", type=click.Choice(("text", "json")), help="Default: text, for nft json.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=pathlib.Path),
    metavar="FILE",
    help="Write to this file; with --all-nodes, write a file for each node to this folder.",
)
@click.option(
    "--summary",
    type=click.Choice(("text", "json", "sarif")),
    default="text",
    help="With --all-nodes: the format of the report. Default: text.",
)
@all_nodes_options
@click.pass_context
def compile_command(
    ctx: click.Context,
    /,
    root: Path,
    node: str | None,
    local_network: str | None,
    backend: str | None,
    as_reference: bool,
    form: str | None,
    output: Path | None,
    summary: str,
    **_: Any,  # noqa: ANN401 - from all_nodes_options
) -> None:
    """Print the ruleset of a configuration.

    Bad lines are reported on standard error and left out; then the exit code is 1.
    """
    if is_for_all_nodes(ctx.params):
        from pvefw_nft.cli import all_nodes  # deferred: most compiles are of one node

        options = {"backend": backend, "as_reference": as_reference, "form": form, "keep": output is not None}
        ctx.exit(all_nodes.run(all_nodes.request("compile", ctx.params, options, form=summary), _writer(output)))
    gc.disable()  # the IR has no cycles, and looking for them takes a fifth of the time
    source = make_offline_source(root, node, local_network, as_reference=as_reference)
    compiled = closing_failures(source, lambda closed: compile_root(source, backend, closed=closed))
    pieces = (
        compiled.artefact.text() if (form or compiled.backend.default_format) == "text" else compiled.artefact.json()
    )
    if output is None:
        _print(pieces)
    else:
        _write(pieces, output)
    show(compiled.checked.diagnostics)
    ctx.exit(1 if compiled.checked.has_errors else 0)


def _writer(folder: Path | None) -> Callable[[str, dict[str, Any]], None]:
    """Return a writer of each node's ruleset to a file of a folder: ``pve1.iptables``, or ``pve1.nft.json``."""
    if folder is not None and not folder.is_dir():
        raise UsageError(f"{folder}: not a folder", "with --all-nodes, -o names an existing folder")

    def write(name: str, result: dict[str, Any]) -> None:
        text, data = result.pop("text"), result["data"]
        result["text"] = ""
        if folder is None or data is None:
            return
        form = ".json" if data["format"] == "json" else ""
        place = folder / f"{name.replace('/', '.')}.{data['backend']}{form}"
        _write(iter((text,)), place)
        data["file"] = str(place)

    return write


def _print(pieces: Iterator[str]) -> None:
    if sys.stdout is None:
        raise HostError("standard output is closed", "name a file with -o")
    try:
        for piece in pieces:
            sys.stdout.write(piece)
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()  # the reader has enough: `pvefw compile | head`


def _write(pieces: Iterator[str], path: Path) -> None:
    try:
        write_file(path, pieces)
    except OSError as error:
        raise HostError(f"{path}: cannot be written: {error.strerror}", "name another file with -o") from None
