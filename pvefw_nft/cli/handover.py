"""Shared by ``take-over`` and ``hand-back``: print each step, then take it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pvefw_nft.cli import console

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pvefw_nft.host.proxmox.take_over import Step


def take_steps(steps: Iterable[Step], *, dry_run: bool) -> None:
    """Print each step, and execute it unless this is a ``dry_run``. Passes on the errors of the steps."""
    taken: list[dict[str, Any]] = []
    console.answer(dry_run=dry_run, steps=taken)  # with JSON, a run that fails has the steps before the failure, too
    for number, step in enumerate(steps, 1):
        console.say(f"{number}. {step.text}")
        taken.append({"step": step.text, "remarks": (remarks := list[str]())})
        for line in () if dry_run else step.execute():
            remarks.append(line)
            console.say(f"   {line}")


dry_run_option = click.option("--dry-run", is_flag=True, help="Print the steps; take none.")
