"""``pvefw doctor``: look for problems that keep this host's firewall from working."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from pvefw_nft.app.compiler import Compiler
from pvefw_nft.app.steady_source import patient
from pvefw_nft.cli import console
from pvefw_nft.cli.command import command
from pvefw_nft.cli.options import backend_option, make_source, source_options
from pvefw_nft.errors import PvefwError
from pvefw_nft.host.control import make_control
from pvefw_nft.host.doctor import Finding, Level, examine
from pvefw_nft.host.firewall import applied_backend
from pvefw_nft.pipeline import BACKENDS

if TYPE_CHECKING:
    from pathlib import Path

_COLOURS = {Level.GOOD: "green", Level.NOTE: "cyan", Level.WARNING: "yellow", Level.BAD: "red"}


@command("doctor")
@source_options
@backend_option
@click.option("--format", "form", type=click.Choice(("text", "json")), default="text", help="Default: text.")
@click.pass_context
def doctor_command(
    ctx: click.Context, root: Path, node: str | None, local_network: str | None, backend: str | None, form: str
) -> None:
    """Look for problems that keep this host's firewall from working, and name a remedy for each.

    Nothing is changed. Exit code 1 if there is a problem or a warning.
    """
    firewall = make_control().firewall
    try:
        with Compiler(patient(make_source(root, node, local_network)), backend, settle=0.0) as compiler:
            chosen, switches = compiler.switches()
            found = compiler.filtered_nics()
    except PvefwError as error:  # one broken part must not prevent the examination of the rest
        findings = [Finding(Level.BAD, error.message, error.hint)]
        findings += examine(firewall, backend or applied_backend() or BACKENDS[0], None, ())
    else:
        findings = list(examine(firewall, chosen, switches, found.nics, found.misconfigured))
    if form == "json":
        listed = [{"level": f.level.value, "text": f.text, "remedy": f.remedy} for f in findings]
        click.echo(json.dumps(listed, indent=2))
    else:
        bad = [finding for finding in findings if finding.level in (Level.WARNING, Level.BAD)]
        for finding in bad if console.is_quiet() else findings:
            _print(finding)
    ctx.exit(int(any(finding.level in (Level.WARNING, Level.BAD) for finding in findings)))


def _print(finding: Finding) -> None:
    level = click.style(finding.level.value, fg=_COLOURS[finding.level])
    click.echo(console.wrapped(f"{level}: {finding.text}", sys.stdout))
    if finding.remedy is not None:
        click.echo(console.wrapped(f"  help: {finding.remedy}", sys.stdout))
