"""``pvefw run``: keep this host at its configuration, as a service."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from pvefw_nft.app.service import LOCK_WAIT, Service
from pvefw_nft.cli.command import command
from pvefw_nft.cli.confirm import report_problems
from pvefw_nft.cli.options import (
    backend_option,
    beside_option,
    make_source,
    need_root,
    settle_option,
    source_options,
)
from pvefw_nft.cli.plug_options import chosen_plug_options, plug_options
from pvefw_nft.cli.render import show
from pvefw_nft.errors import UsageError
from pvefw_nft.host import service_units, service_user
from pvefw_nft.host.control import make_control
from pvefw_nft.host.proxmox import units
from pvefw_nft.host.proxmox.services import refuse_beside_proxmox
from pvefw_nft.host.watching import watch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pvefw_nft.errors import Diagnostic


@command("run")
@source_options
@backend_option
@click.option(
    "--poll", type=click.FloatRange(min=0.1), default=10.0, show_default=True, metavar="SECONDS",
    help="How often to look for changes that the file system does not report.",
)  # fmt: skip
@settle_option
@click.option("--stop-at-end", is_flag=True, help="Remove the rules when the service ends. Default: they stay.")
@plug_options
@beside_option
@click.option(
    "--fail-closed",
    is_flag=True,
    help="Report ready only when rules are loaded. In the unit: guests start at boot only after that.",
)
@click.option("--print-unit", is_flag=True, help="Print a systemd unit with these options, and end.")
@click.option(
    "--as-root/--as-user",
    default=None,
    help=f"In the unit: the user of the service. Default: {service_user.NAME}, or root if that user cannot do it.",
)
@click.option(
    "--write-units", type=click.Path(file_okay=False, path_type=Path), metavar="DIRECTORY",
    help="Write this unit and its companions to a folder, such as /etc/systemd/system, and end.",
)  # fmt: skip
@click.option("--print-failure-unit", is_flag=True, help="Print the unit that reports a failed service, and end.")
@click.pass_context
def run_command(
    ctx: click.Context,
    root: Path,
    node: str | None,
    local_network: str | None,
    backend: str | None,
    poll: float,
    settle: float,
    stop_at_end: bool,
    fail_closed: bool,
    print_unit: bool,
    as_root: bool | None,
    write_units: Path | None,
    print_failure_unit: bool,
    no_plug: bool,
    unplugged: str | None,
    beside: bool,
) -> None:
    """Apply the configuration, and apply it again when a file, link or address changes.

    Lines with errors are left out and reported. SIGHUP applies at once; SIGTERM ends the service, and the rules stay.
    Messages go to standard error, which systemd keeps in the journal.
    """
    if print_failure_unit or print_unit or write_units is not None:
        _print_units(ctx)
        return
    if as_root is not None:
        raise UsageError(
            "--as-root and --as-user are for units", "without them, `pvefw run` runs as the user who starts it"
        )
    need_root()
    if not beside:
        refuse_beside_proxmox()
    control = make_control()
    service = Service(
        control,
        make_source(root, node, local_network),
        backend,
        settle,
        chosen_plug_options(no_plug=no_plug, unplugged=unplugged),
        beside=beside,
        fail_closed=fail_closed,
        write=_write,
        show=_show,
    )
    _watch(service, poll)
    if stop_at_end and not units.handing_back_path().exists():
        report_problems(control.stop(wait=LOCK_WAIT))


def _watch(service: Service, poll: float) -> None:
    """Run the service until SIGTERM or SIGINT."""
    watcher = watch.Watcher(
        service.folders,
        service.refresh,
        look_at_rules=service.look_at_rules,
        look=service.steady.look,
        warn=service.warn,
        poll=poll,
    )
    try:
        watcher.run(service.started)
    finally:
        service.close()


def _print_units(ctx: click.Context) -> None:
    """Print or write the units that the command line asks for. Raises HostError."""
    if ctx.params["print_failure_unit"]:
        click.echo(service_units.failure(), nl=False)
        return
    as_root = _as_root(ctx.params["root"], asked=ctx.params["as_root"])
    texts = service_units.unit_texts(*_given_options(ctx), as_root=as_root)
    if ctx.params["write_units"] is not None:
        _write_units(ctx.params["write_units"], texts)
    if ctx.params["print_unit"]:
        click.echo(texts[service_units.SERVICE], nl=False)


def _given_options(ctx: click.Context) -> Iterator[str]:
    """Yield the options given on the command line, without those about the unit. Paths are made absolute."""
    for parameter in ctx.command.params:
        name = parameter.name or ""
        if (
            name in ("print_unit", "write_units", "as_root")
            or ctx.get_parameter_source(name) is not ParameterSource.COMMANDLINE
        ):
            continue
        value = ctx.params[name]
        yield parameter.opts[0]
        if not isinstance(value, bool):
            yield str(value.absolute() if name == "root" else value)


def _as_root(root: Path, *, asked: bool | None) -> bool:
    """Tell whether the unit runs as root. ``asked`` None: only if it must; then print the reason to standard error."""
    if asked is not None:
        return asked
    reason = service_user.why_root(root) or service_user.why_missing()
    if reason is not None:
        click.echo(f"this unit runs as root: {reason}", err=True)
    return reason is not None


def _write_units(folder: Path, texts: dict[str, str]) -> None:
    """Write the units into a folder, each atomically. Raises HostError."""
    for name, text in texts.items():
        units.write(folder / name, text)
        click.echo(f"wrote {folder / name}", err=True)


def _write(message: str) -> None:
    """Print a message. A full disk or a closed pipe does not end the service."""
    with contextlib.suppress(OSError, ValueError):
        click.echo(message, err=True)


def _show(diagnostics: Sequence[Diagnostic]) -> None:
    """Print diagnostics, as :func:`_write` does."""
    with contextlib.suppress(OSError, ValueError):
        show(diagnostics)
