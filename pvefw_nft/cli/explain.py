"""``pvefw explain``: explain a diagnostic code."""

from __future__ import annotations

import click

from pvefw_nft.cli import completion, manual
from pvefw_nft.pipeline import diagnostic_codes, find_code


@click.command("explain")
@click.argument("code", required=False, shell_complete=completion.codes)
@click.option("--format", "form", type=click.Choice(("text", "markdown")), default="text", help="Default: text.")
def explain_command(code: str | None, form: str) -> None:
    """Explain a diagnostic CODE: its meaning, how Proxmox treats such a line, and how to write it instead.

    Without CODE, list all codes; with --format markdown then print the manual's page of all codes.
    """
    if code is not None:
        found = find_code(code)
        click.echo(manual.section(found) if form == "markdown" else manual.text(found), nl=False)
    elif form == "markdown":
        click.echo(manual.page(), nl=False)
    else:
        codes = [known for known_codes in diagnostic_codes().values() for known in known_codes]
        width = max(len(known.id) for known in codes)
        for known in codes:
            click.echo(f"{known.id:{width}}  {known.severity.value:7}  {known.title}")
