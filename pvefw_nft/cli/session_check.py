"""Refuse a ruleset that would cut off the operator, or warn if cutting is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pvefw_nft.cli import console
from pvefw_nft.errors import HostError, PvefwError
from pvefw_nft.host.firewall import running_ruleset

if TYPE_CHECKING:
    from pvefw_nft.app.compiler import Compiler
    from pvefw_nft.app.judgement import Judgement
    from pvefw_nft.host.firewall import Firewall
    from pvefw_nft.host.records.record import Desired

_MAX_SHOWN = 5

force_option = click.option(
    "--force",
    is_flag=True,
    help="Apply the ruleset even if it cuts sessions of sshd or port 8006, corosync, or the migration network.",
)


refuse_cuts_option = click.option(
    "--refuse-cuts", is_flag=True, help="Refuse a ruleset that cuts such sessions, also with --confirm."
)


def check_sessions(firewall: Firewall, desired: Desired, compiler: Compiler, *, go_on: bool) -> None:
    """Print which connections a ruleset would cut, before it is loaded.

    Raises :class:`HostError` if a protected connection is among them, unless ``go_on``.
    """
    if firewall.is_in_force(desired):
        return  # this ruleset runs already: nothing changes
    try:
        judgement = compiler.judge(desired, running_ruleset())
    except PvefwError as error:
        console.warn(f"connections were not checked: {error.message}")
        return
    _print(judgement)
    if judgement.cuts and not go_on:
        raise HostError(
            "nothing was changed, because connections that must not break would be cut: see above",
            "add the missing rules; or use --confirm SECONDS, which undoes the change by itself, or --force",
        )


def _print(judgement: Judgement) -> None:
    for cut in judgement.cuts:
        console.warn(f"{cut.connection} {cut.effect} by {cut.place}", f"add {cut.add}")
    for loss in judgement.guests:
        count = len(loss.connections)
        what = f"{count} established connection{'s' if count > 1 else ''} of guests"
        shown = count if console.is_verbose() else min(count, _MAX_SHOWN)
        lines = [f"  {text}" for text in loss.connections[:shown]]
        lines += [f"  and {count - shown} more"] if count > shown else []
        console.note("\n".join([f"{what} would not be allowed again, by {loss.place}:", *lines]))
    for note in judgement.notes:
        console.note(note)
