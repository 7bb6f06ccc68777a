"""``pvefw completion``, and completions of arguments: names of a configuration.

Each function here takes click's arguments of a completion (context, parameter, typed text) and returns the names that
begin so. A shell waits for them, and has no place for messages: where a configuration cannot be read there are none.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import get_completion_class

from pvefw_nft.cli.command import command
from pvefw_nft.errors import PvefwError
from pvefw_nft.pipeline import Source
from pvefw_nft.pipeline.codes import diagnostic_codes
from pvefw_nft.pipeline.topology import topology

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pvefw_nft.verify.network.path import Topology

SHELLS = ("bash", "zsh", "fish")


@command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL: commands, options, guests, zones, nodes and codes.

    For bash: `pvefw completion bash >/etc/bash_completion.d/pvefw`; for zsh a file `_pvefw` in a folder of $fpath, for
    fish `~/.config/fish/completions/pvefw.fish`.
    """
    made = get_completion_class(shell)
    assert made is not None, "click knows these shells"
    click.echo(made(ctx.find_root().command, {}, "pvefw", "_PVEFW_COMPLETE").source())


def codes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 - click's
    """Offer the codes of diagnostics."""
    return _starting((code.id for subject in diagnostic_codes().values() for code in subject), incomplete)


def nodes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 - click's
    """Offer the nodes of the configuration below ``--root``."""
    try:
        found = [path.name for path in Path(ctx.params.get("root") or "/", "etc/pve/nodes").iterdir() if path.is_dir()]
    except OSError:
        return []
    return _starting(found, incomplete)


def zones(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 - click's
    """Offer the ends of packets: the host, the outside, guests and their NICs."""
    known = _topology(ctx)
    nics = () if known is None else (*known.nics, *known.elsewhere)
    return _starting(("host", "outside", *(n for nic in nics for n in (nic.zone, nic.name))), incomplete)


def interfaces(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 - click's
    """Offer the interfaces of this node's guests."""
    known = _topology(ctx)
    return _starting((nic.interface for nic in known.nics) if known is not None else (), incomplete)


def _topology(ctx: click.Context) -> Topology | None:
    try:
        return topology(Source(Path(ctx.params.get("root") or "/"), ctx.params.get("node"), lambda: None))
    except (PvefwError, OSError):
        return None


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete) and name.isprintable()})
