"""``pvefw confirm``, ``rollback``: keep a change, or go back. Compiles nothing, so that the guard starts at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pvefw_nft.errors import HostError
from pvefw_nft.host import control, lock

if TYPE_CHECKING:
    from pvefw_nft.host.firewall import Outcome

wait_option = click.option(
    "--wait", type=click.FloatRange(min=0), default=lock.WAIT, show_default=True, metavar="SECONDS",
    help="How long to wait for another run of pvefw.",
)  # fmt: skip


@click.command("confirm")
@wait_option
def confirm_command(wait: float) -> None:
    """Keep the change that waits for its confirmation."""
    if not control.confirm(wait=wait):
        raise HostError("no change waits for its confirmation", "it was confirmed, or its time is over")
    click.echo("confirmed")


@click.command("rollback")
@wait_option
@click.option("--guard", metavar="TOKEN", hidden=True)
@click.option("--after", type=float, default=0.0, hidden=True)
@click.option("--ready", type=int, hidden=True)
def rollback_command(wait: float, guard: str | None, after: float, ready: int | None) -> None:
    """Return to the ruleset that was confirmed last.

    It stays until the configuration changes, or until `pvefw start` or `pvefw update` is run by hand.
    """
    if guard is not None:
        control.guard(guard, after, ready)
        return
    outcome = control.roll_back(wait=wait)
    click.echo("back to the last confirmed ruleset" if outcome.running else "back to no ruleset")
    report(outcome)


def report(outcome: Outcome) -> None:
    """Print the changes of an apply."""
    for change in outcome.changes if len(outcome.changes) <= 20 else ():
        click.echo(f"{change.what} {change.where} {change.name}")
    if len(outcome.changes) > 20:
        click.echo(f"{len(outcome.changes)} chains and sets changed")
    if not outcome.changes:
        click.echo("nothing changed")
    if outcome.switched_from is not None:
        click.echo(f"the rules of the {outcome.switched_from} backend were removed")
    report_problems(outcome)


def report_problems(outcome: Outcome) -> None:
    """Print notes about unexpected facts, and problems that did not make the command fail."""
    for note in outcome.notes:
        click.echo(note)
    for problem in outcome.problems:
        click.echo(f"warning: {problem}", err=True)
