"""Options that several commands share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pvefw_nft.errors import UsageError
from pvefw_nft.pipeline import BACKENDS, SETTLE_SECONDS, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_F = TypeVar("_F", bound="Callable[..., Any]")

JOBS_HELP = "With --all-nodes: number of nodes at a time, each in its own process. Default: one for each core."


def _complete_node(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from pvefw_nft.cli import completion  # deferred: only a shell asks

    return completion.nodes(ctx, param, incomplete)


def source_options(command: _F) -> _F:
    """Add ``--root``, ``--node`` and ``--local-network``."""
    for option in (
        click.option(
            "--local-network",
            metavar="CIDR",
            help="The network from which this node is administered, if cluster.fw has no alias local_network. "
            "Default: detected from this host's addresses and routes.",
        ),
        click.option(
            "--node",
            metavar="NAME",
            shell_complete=_complete_node,
            help="The node. Default: etc/pve/local, else this host's short name.",
        ),
        click.option(
            "--root",
            type=click.Path(path_type=Path),
            default=Path("/"),
            metavar="DIR",
            help="The folder that holds etc/pve. Default: /.",
        ),
    ):
        command = option(command)
    return command


def beside_option(command: _F) -> _F:
    """Add ``--beside``."""
    return click.option(
        "--beside",
        is_flag=True,
        help="Do not refuse if Proxmox VE's own firewall runs, and leave its rules. Both must then accept a packet.",
    )(command)


def backend_option(command: _F) -> _F:
    """Add ``--backend``."""
    return click.option(
        "--backend", type=click.Choice(BACKENDS), help="Default: nft if host.fw has `nftables: 1`, else iptables."
    )(command)


def as_reference_option(command: _F) -> _F:
    """Add ``--as-reference``."""
    return click.option(
        "--as-reference",
        is_flag=True,
        help="Leave out the rules that make the nft ruleset stricter than Proxmox VE's (list: docs/nft.md).",
    )(command)


def all_nodes_options(command: _F, jobs_help: str = JOBS_HELP) -> _F:
    """Add ``--all-nodes`` and its companions. ``jobs_help`` is the help of ``-j``."""
    for option in (
        click.option(
            "--scheduler",
            metavar="ADDRESS",
            help="With --all-nodes: use the workers of this Dask scheduler, such as tcp://10.0.0.9:8786.",
        ),
        click.option(
            "-j",
            "--jobs",
            type=click.IntRange(min=1),
            metavar="N",
            help=jobs_help,
        ),
        click.option(
            "--all-clusters", is_flag=True, help="As --all-nodes, for many clusters: --root holds a folder for each."
        ),
        click.option("--all-nodes", is_flag=True, help="Do this for each node of the cluster, with one summary."),
    ):
        command = option(command)
    return command


def is_for_all_nodes(params: Mapping[str, Any], *, jobs_alone: bool = False) -> bool:
    """Tell whether the command is for many nodes. Raises UsageError for options that do not go together.

    ``jobs_alone``: ``-j`` means something for one node, too.
    """
    many = params["all_nodes"] or params["all_clusters"]
    if many and params["node"] is not None:
        raise UsageError("--all-nodes and --node do not go together", "leave one out")
    if not many and ((params["jobs"] and not jobs_alone) or params["scheduler"]):
        raise UsageError("-j and --scheduler go with --all-nodes or --all-clusters only", "add one of these")
    if params["jobs"] and params["scheduler"]:
        raise UsageError("-j and --scheduler do not go together", "the scheduler says how many nodes at a time")
    return bool(many)


def make_source(root: Path, node: str | None, local_network: str | None, *, as_reference: bool = False) -> Source:
    """Return the source that the options of :func:`source_options` and :func:`as_reference_option` name."""

    def network() -> str | None:
        if local_network is not None:
            return local_network
        from pvefw_nft.host.localnet import detect  # deferred: needed only if the network is not named

        return detect()

    # Only on the host itself do its links have anything to do with the configuration.
    made = Source(root, node, network, as_reference=as_reference)
    return replace(made, real_interface=_real_interface) if root == Path("/") else made


def make_offline_source(
    root: Path, node: str | None, local_network: str | None, *, as_reference: bool = False
) -> Source:
    """Do the same as :func:`make_source`, for commands that change no host.

    The root may belong to another host. Then facts taken from this machine are reported.
    """
    source = make_source(root, node, local_network, as_reference=as_reference)
    elsewhere = root.resolve() != Path("/")
    return replace(source, borrows_network=elsewhere and local_network is None, borrows_names=elsewhere)


def _real_interface(name: str) -> str | None:
    if "/" in name or name.endswith("+") or Path("/sys/class/net", name).exists():
        return None  # a link's own name, a pattern, or no name of a link
    from pvefw_nft.host.altnames import real_name  # deferred: needed if a rule names no link of this host

    return real_name(name)


def settle_option(command: _F) -> _F:
    """Add ``--settle``."""
    return click.option(
        "--settle", type=click.FloatRange(min=0, max=60), default=SETTLE_SECONDS, show_default=True, metavar="SECONDS",
        help="Wait before a missing, empty or cut-off file counts: a program may still be writing it.",
    )(command)  # fmt: skip


def need_root() -> None:
    """Raise HostError if this runs without root's rights about the network; see :func:`.need_privileges`."""
    from pvefw_nft.host.service_user import need_privileges  # deferred: only commands on a host need it

    need_privileges()
