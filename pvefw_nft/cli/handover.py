"""Shared by ``take-over`` and ``hand-back``: print each step, then take it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pvefw_nft.host.proxmox.take_over import Step


def take_steps(steps: Iterable[Step], *, dry_run: bool) -> None:
    """Print each step, and take it unless this is a ``dry_run``. Raises what the steps raise."""
    for number, step in enumerate(steps, 1):
        click.echo(f"{number}. {step.text}")
        for line in () if dry_run else step.execute():
            click.echo(f"   {line}")


dry_run_option = click.option("--dry-run", is_flag=True, help="Print the steps; take none.")
