"""``pvefw cluster``: ask all nodes of a cluster over ssh, or bring their firewalls up to date one by one."""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pvefw_nft.app.cluster_hosts import find_targets
from pvefw_nft.cli.command import Command
from pvefw_nft.cli.examples import EXAMPLES
from pvefw_nft.cli.render import printable
from pvefw_nft.errors import UsageError
from pvefw_nft.fleet.ssh import Login, need_asyncssh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pvefw_nft.fleet.rollout import Step
    from pvefw_nft.fleet.ssh import Target

_F = TypeVar("_F", bound="Callable[..., Any]")

_BY_SEVERITY = (0, 5, 1, 2, 3)
"""Exit codes, the worst last."""


@click.group("cluster")
def cluster_command() -> None:
    """Ask all nodes of a cluster over ssh, or apply their configurations one by one.

    Each node needs sshd and pvefw; nothing else listens there. Host keys must be known, and logins use keys.
    """


_SSH_OPTIONS = (
    click.option(
        "--pvefw", default="pvefw", show_default=True, metavar="COMMAND", help="The command of pvefw on the nodes."
    ),
    click.option(
        "--time-limit",
        type=click.FloatRange(min=1),
        default=600.0,
        show_default=True,
        metavar="SECONDS",
        help="Limit for a command on a node.",
    ),
    click.option(
        "--connect-time",
        type=click.FloatRange(min=0.1),
        default=15.0,
        show_default=True,
        metavar="SECONDS",
        help="Limit for the login to a node.",
    ),
    click.option(
        "--known-hosts",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The only file of host keys. Default: ssh's files, and Proxmox VE's file for each node.",
    ),
    click.option("-i", "--identity", multiple=True, metavar="FILE", help="The key to log in with. Default: ssh's."),
    click.option(
        "--port",
        type=click.IntRange(1, 65535),
        metavar="PORT",
        default=22,
        show_default=True,
        help="The port of the nodes' sshd.",
    ),
    click.option("--user", metavar="NAME", default="root", show_default=True, help="The user to log in as."),
    click.option(
        "--root",
        type=click.Path(path_type=Path),
        default=Path("/"),
        metavar="DIR",
        help="The folder that holds etc/pve with the cluster's corosync.conf. Default: /.",
    ),
    click.option("--hosts", metavar="NODE[=ADDRESS],…", help="Which nodes. Default: all nodes in corosync.conf."),
)
"""Options that name the nodes, and say how to log in; the last one comes first in the help."""


def _ssh_options(command: _F) -> _F:
    """Add the options that name the nodes, and say how to log in."""
    for option in _SSH_OPTIONS:
        command = option(command)
    return command


def _at_once(command: _F) -> _F:
    return click.option(
        "-j", "--jobs", type=click.IntRange(min=1), default=10, show_default=True, metavar="N", help="Nodes at a time."
    )(command)


_form = click.option("--format", "form", type=click.Choice(("text", "json")), default="text", help="Default: text.")


def _targets(options: dict[str, Any]) -> tuple[list[Target], Login]:
    need_asyncssh()
    login = Login(
        options["user"],
        options["port"],
        tuple(options["identity"]),
        options["connect_time"],
        options["time_limit"],
    )
    return find_targets(options["root"], options["hosts"], options["known_hosts"]), login


def _words(options: dict[str, Any]) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(options["pvefw"]))
    except ValueError:
        words = ()
    if not words:
        raise UsageError("--pvefw names no command", "write --pvefw pvefw")
    return words


# --- asking -------------------------------------------------------------------------------------------------------


@cluster_command.command("status", cls=Command, examples=EXAMPLES["cluster status"])
@_at_once
@_form
@_ssh_options
@click.pass_context
def status_command(ctx: click.Context, /, **options: Any) -> None:  # noqa: ANN401 - from _ssh_options
    """Show for each node whether its firewall runs, and how it differs from its configuration.

    The exit code is the worst one of all nodes; a node that does not answer counts as 3.
    """
    ctx.exit(_survey(options, None))


@cluster_command.command("compare", cls=Command, examples=EXAMPLES["cluster compare"])
@click.option(
    "--only", type=click.Choice(("ours",)), help="Leave out rules of other programs, such as Docker and fail2ban."
)
@_at_once
@_form
@_ssh_options
@click.pass_context
def compare_command(ctx: click.Context, /, **options: Any) -> None:  # noqa: ANN401
    """Show the status of each node, and prove that its running rules agree with its configuration."""
    ctx.exit(_survey(options, ["--only", options["only"]] if options["only"] else []))


def _survey(options: dict[str, Any], compare: Sequence[str] | None) -> int:
    from pvefw_nft.fleet.survey import survey

    targets, login = _targets(options)
    entries = asyncio.run(survey(targets, login, _words(options), options["jobs"], compare))
    if options["form"] == "json":
        click.echo(json.dumps({"nodes": entries}, indent=1))
    else:
        for line in table_lines(
            [_row(entry, with_compare=compare is not None) for entry in entries], shutil.get_terminal_size().columns
        ):
            click.echo(line)
        for entry in entries:
            if entry["error"]:
                click.echo(f"{printable(entry['node'])}: {click.style(printable(entry['error']), fg='red')}")
        _print_versions(entries)
    codes: list[int] = [entry["exit"] for entry in entries]
    return max(codes, key=_severity)


def _severity(code: int) -> int:
    return _BY_SEVERITY.index(code) if code in _BY_SEVERITY else len(_BY_SEVERITY)


def _row(entry: dict[str, Any], *, with_compare: bool) -> dict[str, str]:
    """Return a line of the table; a node's answer may have any form."""
    status = entry["status"] or {}
    row = {
        "node": entry["node"],
        "pvefw": entry["pvefw"] or "-",
        "kernel": entry["kernel"] or "-",
        "firewall": _state(entry),
        "pending": _count(status, "changes"),
        "by hand": _count(status, "drifted"),
        "unplugged": _count(status, "unplugged"),
    }
    if with_compare:
        row["compare"] = str((entry["compare"] or {}).get("answer", "-"))
    return {name: printable(value)[:40] for name, value in row.items()}


def _state(entry: dict[str, Any]) -> str:
    status = entry["status"]
    if status is None:
        return "no answer"
    backends = status.get("backends")
    names = " and ".join(map(str, backends)) if isinstance(backends, list) else "?"
    if not status.get("running"):
        return "stopped"
    waits = ", unconfirmed" if status.get("confirmation") else ""
    return f"{names or 'disabled'}{waits}"


def _count(status: dict[str, Any], name: str) -> str:
    value = status.get(name, "-")
    return str(len(value)) if isinstance(value, list) else "unknown" if value is None else "-"


def table_lines(rows: list[dict[str, str]], width: int) -> Iterator[str]:
    """Yield the lines of a table: the names of columns, then the rows.

    If the table is wider than ``width`` columns, the column of kernels is left out first (different versions are named
    below the table). If it is still too wide, each node's name gets a line of its own above its row.
    """
    if _width(rows) > width:
        rows = [{name: value for name, value in row.items() if name != "kernel"} for row in rows]
    if _width(rows) <= width:
        yield from _aligned(rows)
        return
    head, *lines = _aligned([{name: value for name, value in row.items() if name != "node"} for row in rows])
    yield f"  {head}"
    for row, line in zip(rows, lines, strict=True):
        yield from (row["node"], f"  {line}")


def _width(rows: list[dict[str, str]]) -> int:
    return max(map(len, _aligned(rows)))


def _aligned(rows: list[dict[str, str]]) -> list[str]:
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    all_rows = ({name: name for name in widths}, *rows)
    return ["  ".join(f"{row[name]:{width}}" for name, width in widths.items()).rstrip() for row in all_rows]


def _print_versions(entries: list[dict[str, Any]]) -> None:
    for name in ("pvefw", "kernel"):
        versions: dict[str, list[str]] = {}
        for entry in entries:
            if entry[name]:
                versions.setdefault(entry[name], []).append(entry["node"])
        if len(versions) > 1:
            parts = (f"{version} on {', '.join(nodes)}" for version, nodes in versions.items())
            click.echo(printable(f"versions of {name} differ: {'; '.join(parts)}"))


# --- rolling out --------------------------------------------------------------------------------------------------


def _rollout_options(command: _F) -> _F:
    for option in (
        click.option(
            "--backend", type=click.Choice(("iptables", "nft")), help="Default: the backend of each node's host.fw."
        ),
        click.option("--force", is_flag=True, help="Go on even if this cuts sessions of a node."),
        click.option("--dry-run", is_flag=True, help="Show for each node how much would change; change nothing."),
        click.option(
            "--roll-back",
            is_flag=True,
            help="Confirm only after all nodes have passed; otherwise roll back all. --confirm must be long "
            "enough for all of them.",
        ),
        click.option(
            "--confirm",
            "seconds",
            type=click.FloatRange(min=5, max=24 * 3600),
            required=True,
            metavar="SECONDS",
            help="A node restores its previous ruleset unless its change is confirmed within this time.",
        ),
    ):
        command = option(command)
    return command


@cluster_command.command("start", cls=Command, examples=EXAMPLES["cluster start"])
@_rollout_options
@_form
@_ssh_options
@click.pass_context
def start_command(ctx: click.Context, /, **options: Any) -> None:  # noqa: ANN401
    """Start the firewall of one node after the other; stop at the first failure.

    A node's change is confirmed over a new connection, once its own pvefw reports no difference from the
    configuration.
    """
    ctx.exit(_roll_out("start", options))


@cluster_command.command("update", cls=Command, examples=EXAMPLES["cluster update"])
@_rollout_options
@_form
@_ssh_options
@click.pass_context
def update_command(ctx: click.Context, /, **options: Any) -> None:  # noqa: ANN401
    """Update the running firewall of one node after the other; stop at the first failure."""
    ctx.exit(_roll_out("update", options))


def _roll_out(verb: str, options: dict[str, Any]) -> int:
    from pvefw_nft.fleet.rollout import Plan, State, dry_run, roll_out

    targets, login = _targets(options)
    extra = [*(["--backend", options["backend"]] if options["backend"] else [])]
    extra += ["--force"] if options["force"] and not options["dry_run"] else []
    plan = Plan(_words(options), verb, options["seconds"], tuple(extra), keep_open=options["roll_back"])
    is_text = options["form"] == "text"
    if options["dry_run"]:
        steps = asyncio.run(dry_run(targets, login, plan))
        for step in steps if is_text else ():
            _print_step(step)
    else:
        steps = asyncio.run(roll_out(targets, login, plan, _print_step if is_text else lambda _: None))
    good = sum(step.state in (State.DONE, State.UNCHANGED) for step in steps)
    if is_text:
        for step in steps:
            if step.state is State.NOT_TRIED:
                _print_step(step)
        click.echo(f"{good} of {len(steps)} nodes {'would pass' if options['dry_run'] else 'done'}")
    else:
        nodes = [
            {"node": one.target.name, "address": one.target.address, "state": one.state.value, "detail": one.detail}
            for one in steps
        ]
        click.echo(json.dumps({"nodes": nodes, "dry_run": options["dry_run"]}, indent=1))
    return 0 if good == len(steps) else 3


def _print_step(step: Step) -> None:
    from pvefw_nft.fleet.rollout import State

    colour = {State.DONE: "green", State.UNCHANGED: "green", State.NOT_TRIED: "yellow"}.get(step.state, "red")
    detail = f": {printable(step.detail.replace(chr(10), '; '))}" if step.detail else ""
    click.echo(f"{printable(step.target.name)}: {click.style(step.state.value, fg=colour)}{detail}")
