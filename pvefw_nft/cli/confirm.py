"""``pvefw confirm``, ``rollback``: keep a change, or go back. Compiles nothing, so that the guard starts at once."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pvefw_nft.cli import console
from pvefw_nft.cli.command import command
from pvefw_nft.errors import HostError
from pvefw_nft.host import lock
from pvefw_nft.host.control import make_control

if TYPE_CHECKING:
    from pvefw_nft.host.firewall import Outcome
    from pvefw_nft.host.records.changes import Change

_MAX_LISTED = 20
"""Up to how many changes are listed without -v."""

wait_option = click.option(
    "--wait", type=click.FloatRange(min=0), default=lock.WAIT, show_default=True, metavar="SECONDS",
    help="How long to wait for another run of pvefw.",
)  # fmt: skip


@command("confirm", answers=True)
@wait_option
def confirm_command(wait: float) -> None:
    """Keep the change that waits for its confirmation."""
    if not make_control().confirm(wait=wait):
        raise HostError("no change waits for its confirmation", "it was confirmed, or its time is over")
    console.say("confirmed")


@command("rollback", answers=True)
@wait_option
@click.option("--guard", metavar="TOKEN", hidden=True)
@click.option("--after", type=float, default=0.0, hidden=True)
@click.option("--ready", type=int, hidden=True)
def rollback_command(wait: float, guard: str | None, after: float, ready: int | None) -> None:
    """Return to the ruleset that was confirmed last.

    It stays until the configuration changes, or until `pvefw start` or `pvefw update` is run by hand.
    """
    control = make_control()
    if guard is not None:
        control.guard(guard, after, ready)
        return
    outcome = control.roll_back(wait=wait)
    console.say("back to the last confirmed ruleset" if outcome.running else "back to no ruleset")
    report(outcome)


def report(outcome: Outcome) -> None:
    """Print the changes of an apply: each, or with many of them and without -v how many."""
    many = len(outcome.changes) > _MAX_LISTED and not console.is_verbose()
    for change in () if many else outcome.changes:
        console.say(f"{change.what} {change.where} {change.name}")
    if many:
        console.say(f"{len(outcome.changes)} chains and sets changed")
    if not outcome.changes:
        console.say("nothing changed")
    if outcome.switched_from is not None:
        console.say(f"the rules of the {outcome.switched_from} backend were removed")
    console.answer(**outcome_facts(outcome))
    report_problems(outcome)


def outcome_facts(outcome: Outcome) -> dict[str, Any]:
    """Return the changes of an apply, as data."""
    return {
        "running": outcome.running,
        "changes": [asdict(change) for change in outcome.changes],
        "switched_from": outcome.switched_from,
    }


def styled_change(change: Change, indent: str = "") -> str:
    """Return a change with its lines below it: those that come green, those that go red."""
    lines = []
    for line in str(change).split("\n"):
        colour = {"+ ": "green", "- ": "red"}.get(line.lstrip()[:2])
        lines.append(indent + (line if colour is None else click.style(line, fg=colour)))
    return "\n".join(lines)


def report_problems(outcome: Outcome) -> None:
    """Print notes about unexpected facts, and problems that did not make the command fail."""
    for note in outcome.notes:
        console.tell(note, err=False)
    for problem in outcome.problems:
        console.warn(problem)
