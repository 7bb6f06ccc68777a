"""``pvefw explain``: explain a diagnostic code."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from pvefw_nft.cli import completion, manual
from pvefw_nft.cli.command import command
from pvefw_nft.pipeline.codes import diagnostic_codes, find_code

if TYPE_CHECKING:
    from pvefw_nft.pipeline.codes import Code


@command("explain")
@click.argument("code", required=False, shell_complete=completion.codes)
@click.option(
    "--format", "form", type=click.Choice(("text", "json", "markdown")), default="text", help="Default: text."
)
def explain_command(code: str | None, form: str) -> None:
    """Explain a diagnostic CODE: its meaning, Proxmox's treatment of the line, and the correct line.

    Without CODE, list all codes. Without CODE and with --format markdown, print the manual's page of all codes.
    """
    if form == "json":
        chosen = (
            [find_code(code)] if code is not None else [one for codes in diagnostic_codes().values() for one in codes]
        )
        click.echo(json.dumps([_data(one) for one in chosen], indent=1))
    elif code is not None:
        found = find_code(code)
        click.echo(manual.section(found) if form == "markdown" else manual.text(found), nl=False)
    elif form == "markdown":
        click.echo(manual.page(), nl=False)
    else:
        codes = [known for known_codes in diagnostic_codes().values() for known in known_codes]
        width = max(len(known.id) for known in codes)
        for known in codes:
            click.echo(f"{known.id:{width}}  {known.severity.value:7}  {known.title}")


def _data(code: Code) -> dict[str, Any]:
    return {
        "id": code.id,
        "severity": code.severity.value,
        "title": code.title,
        "why": code.why,
        "proxmox": code.proxmox,
    }
