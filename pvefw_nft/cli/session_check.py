"""Refuse a ruleset that would cut off the operator, or warn if cutting is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pvefw_nft.app.compiler import judge_once
from pvefw_nft.errors import HostError, PvefwError
from pvefw_nft.host import firewall

if TYPE_CHECKING:
    from pvefw_nft.app.judgement import Judgement
    from pvefw_nft.host.records.record import Desired
    from pvefw_nft.pipeline import Source

_MAX_SHOWN = 5

force_option = click.option(
    "--force",
    is_flag=True,
    help="Apply also a ruleset that cuts sessions of sshd or port 8006, corosync, or the migration network.",
)


refuse_cuts_option = click.option(
    "--refuse-cuts", is_flag=True, help="With --confirm, too, refuse a ruleset that cuts such sessions."
)


def check_sessions(desired: Desired, source: Source, *, go_on: bool) -> None:
    """Print which connections a ruleset would cut, before it is loaded.

    Raises :class:`HostError` where one of those is among them that must not break, unless ``go_on``.
    """
    if firewall.stands(desired):
        return  # this ruleset runs already: nothing changes
    try:
        judgement = judge_once(source, desired, firewall.running_ruleset())
    except PvefwError as error:
        click.echo(f"warning: connections were not judged: {error.message}", err=True)
        return
    _print(judgement)
    if judgement.cuts and not go_on:
        raise HostError(
            "nothing was changed, because connections that must not break would be cut: see above",
            "add the missing rules; or use --confirm SECONDS, which undoes the change by itself, or --force",
        )


def _print(judgement: Judgement) -> None:
    for cut in judgement.cuts:
        click.echo(f"warning: {cut.connection} {cut.effect} by {cut.place}", err=True)
        click.echo(f"  help: add {cut.add}", err=True)
    for loss in judgement.guests:
        count = len(loss.connections)
        what = f"{count} established connection{'s' if count > 1 else ''} of guests"
        click.echo(f"note: {what} would not be allowed again, by {loss.place}:", err=True)
        for text in loss.connections[:_MAX_SHOWN]:
            click.echo(f"  {text}", err=True)
        if count > _MAX_SHOWN:
            click.echo(f"  and {count - _MAX_SHOWN} more", err=True)
    for note in judgement.notes:
        click.echo(f"note: {note}", err=True)
