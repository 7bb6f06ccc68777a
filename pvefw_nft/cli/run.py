"""``pvefw run``: keep this host at its configuration, as a service."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from pvefw_nft.app import desired as desired_ruleset
from pvefw_nft.app.compiler import Compiler
from pvefw_nft.app.steady_source import SteadySource
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
from pvefw_nft.cli.plugging import NicService, chosen, plugging_options
from pvefw_nft.cli.render import show
from pvefw_nft.errors import HostError, PvefwError, UsageError
from pvefw_nft.host import control, firewall, lock, service_units, service_user, tools
from pvefw_nft.host.proxmox import units
from pvefw_nft.host.proxmox.awake import FirewallWatch
from pvefw_nft.host.proxmox.flag import keep_flag
from pvefw_nft.host.proxmox.services import refuse_beside_proxmox
from pvefw_nft.host.records import state
from pvefw_nft.host.tracking.moved import MovedGuests
from pvefw_nft.host.watching import watch
from pvefw_nft.host.watching.rule_guard import RuleGuard
from pvefw_nft.pipeline.roots import node_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pvefw_nft.app.desired import Result
    from pvefw_nft.app.plugging import PlugOptions
    from pvefw_nft.host.records.record import Desired
    from pvefw_nft.host.watching.rule_events import Transaction
    from pvefw_nft.pipeline import Source

_LOCK_WAIT = 60.0
_RULES_CHANGED = "rules changed"
_RETRY = 5.0  # seconds after a failure
_STILL_STARTING = 600  # seconds within which a service that waits for its first ruleset must say so again


@command("run")
@source_options
@backend_option
@click.option(
    "--poll", type=click.FloatRange(min=0.1), default=10.0, show_default=True, metavar="SECONDS",
    help="How often to look for changes that the file system does not report.",
)  # fmt: skip
@settle_option
@click.option("--stop-at-end", is_flag=True, help="Remove the rules when the service ends. Default: they stay.")
@plugging_options
@beside_option
@click.option(
    "--fail-closed",
    is_flag=True,
    help="Report ready only when rules are loaded. In the unit: at boot, guests start only then.",
)
@click.option("--print-unit", is_flag=True, help="Print a systemd unit with these options, and end.")
@click.option(
    "--as-root/--as-user",
    default=None,
    help=f"In the unit: who the service is. Default: user {service_user.NAME}, where there is one that can.",
)
@click.option(
    "--write-units", type=click.Path(file_okay=False, path_type=Path), metavar="DIRECTORY",
    help="Write that unit and those that belong to it, such as to /etc/systemd/system, and end.",
)  # fmt: skip
@click.option("--print-failure-unit", is_flag=True, help="Print the unit that the former asks for at its end, and end.")
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
    if print_failure_unit:
        click.echo(service_units.failure(), nl=False)
        return
    if print_unit or write_units is not None:
        texts = service_units.unit_texts(*_given_options(ctx), as_root=_as_root(root, asked=as_root))
        if write_units is not None:
            _write_units(write_units, texts)
        if print_unit:
            click.echo(texts[service_units.SERVICE], nl=False)
        return
    if as_root is not None:
        raise UsageError("--as-root and --as-user are for units", "without one, `pvefw run` runs as who starts it")
    need_root()
    if not beside:
        refuse_beside_proxmox()
    options = chosen(no_plug=no_plug, unplugged=unplugged)
    service = _Service(
        make_source(root, node, local_network), backend, settle, options, beside=beside, fail_closed=fail_closed
    )
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
    if stop_at_end and not units.handing_back_path().exists():
        report_problems(control.stop(wait=_LOCK_WAIT))


def _given_options(ctx: click.Context) -> Iterator[str]:
    """Yield the options of the command line, but for those about the unit; paths as they are from anywhere."""
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
    """Tell whether the unit is root's; say on standard error why, though that was not asked for. None: find out."""
    if asked is not None:
        return asked
    reason = service_user.why_root(root) or service_user.why_missing()
    if reason is not None:
        click.echo(f"this unit runs as root: {reason}", err=True)
    return reason is not None


def _write_units(folder: Path, texts: dict[str, str]) -> None:
    """Write the units into a folder, each at once as a whole. Raises HostError."""
    for name, text in texts.items():
        units.write(folder / name, text)
        click.echo(f"wrote {folder / name}", err=True)


def _give_back_memory() -> None:
    """Give memory that is free back to the system (malloc_trim(3)): a service lasts, and a whole ruleset takes much.

    libnftables needs 500 MB to load the rules of 1,000 guests, which the C library would keep.
    """
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _said(error: PvefwError | OSError) -> str:
    return error.message if isinstance(error, PvefwError) else error.strerror or str(error)


def _told(error: Exception) -> tuple[str, str | None]:
    """Return the message and the remedy for an error of reading the configuration."""
    if isinstance(error, PvefwError):
        return error.message, error.hint
    if isinstance(error, OSError):
        where = "" if error.filename is None else f"{error.filename}: "
        return f"{where}{_said(error)}", tools.LIMIT_HINTS.get(error.errno or 0)
    return f"pvefw failed: {type(error).__name__}: {error}", "this is a bug of pvefw; please report it"


class _Service:
    """The reaction of the service to a change. A failure is reported, and tried again at the next change."""

    def __init__(
        self,
        source: Source,
        backend: str | None,
        settle: float,
        options: PlugOptions,
        *,
        beside: bool,
        fail_closed: bool,
    ) -> None:
        self.steady = SteadySource(source, backend, settle)
        self._source = self.steady.source
        self._compiler = Compiler(source, backend, settle)
        self._beside = beside
        self._plugging = NicService(self._compiler.filtered_nics, options, self._tell)
        self._folders = watch.folders_above(source.root)
        self._backend = backend
        self._told: set[str] = set()
        self._shown: object = None
        self._last: Result | None = None
        self._noted: Result | None = None
        self._rules = RuleGuard()
        self._theirs = FirewallWatch()
        self._moved = MovedGuests()
        self._fail_closed = fail_closed
        self._started = self._ready = False
        self._in_place = False  # the rules of the configuration

    def folders(self) -> list[Path]:
        """Return the folders to watch. Raises what :func:`node_name` raises."""
        self._folders = watch.folders_of(self._source.root, node_name(self._source))
        return self._folders

    def warn(self, message: str) -> None:
        """Tell of something that keeps the service from noticing changes at once."""
        self._tell(f"warning: {message}")

    def started(self) -> None:
        """Tell that the ruleset is in place, and prepare for changes."""
        self._started = True
        self._tell_ready()
        self._plugging.watch_arrivals()
        if self._last is not None:
            with contextlib.suppress(PvefwError):
                firewall.warm_up(self._last.desired)
        gc.freeze()  # the cached configuration has no cycles: keep it out of later collections

    @desired_ruleset.no_garbage()
    def refresh(self, reason: str) -> float | None:
        """Compile and apply. Returns the seconds after which to look again; None: whenever something changes."""
        self._look_at_proxmox()
        again: float | None = None
        begun = time.monotonic()
        if reason == "SIGHUP":
            watch.notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            self._apply(reason, begun)
            again = self._tell_doubts()
        except Exception as error:  # after any failure the service and the rules stay
            message, hint = _told(error)
            self._tell(f"error: {message}" + (f" ({hint})" if hint else ""))
            if reason == _RULES_CHANGED and self._rules.maker:
                program = self._rules.maker.partition(" (")[0]  # without its process, which may be another each time
                self._tell(f"warning: {program} changes rules while they are being mended")
            self._fall_back()
            watch.notify(f"STATUS={message.splitlines()[0]}")
            again = _RETRY
        for warning in state.take_warnings():
            self._tell(f"warning: {warning}")
        self._tell_ready()
        if reason == "SIGHUP":
            watch.notify("READY=1")
        return again

    def look_at_rules(self, made: Sequence[Transaction]) -> float | None:
        """Mend the rules where others changed them; ``made`` are the transactions of others since the last look.

        Returns the seconds after which to look again, where it is too early to look now.
        """
        desired = None if self._last is None else self._last.desired
        if desired is None:
            return None
        self._look_at_proxmox()
        self._look_for_moved(desired)
        wait = self._rules.wait(made)
        if wait:
            if self._rules.fights:
                self._tell(
                    f"warning: {self._rules.opponent} keeps changing the rules of pvefw: they are repaired less often"
                )
            return wait
        with self._rules.looking():
            try:
                unchanged = firewall.stands(desired)
            except (PvefwError, OSError):
                unchanged = False  # the refresh reports the error
            return None if unchanged else self.refresh(_RULES_CHANGED)

    def _look_at_proxmox(self) -> None:
        """Tell which of Proxmox VE's firewalls came to life; the flag file has proxmox-firewall remove its tables."""
        try:
            for line in () if self._beside else self._theirs.news():
                self._tell(line, again=True)
                if (problem := keep_flag()) is not None:
                    self._tell(f"warning: {problem}")
            self._rules.beside_proxmox = self._theirs.runs
        except (PvefwError, OSError) as error:
            self._tell(f"warning: Proxmox VE's firewalls cannot be looked for: {_said(error)}")

    def _look_for_moved(self, desired: Desired) -> None:
        """Have connections of guests that just came here by live migration go on."""
        try:
            count = self._moved.look(desired) if desired.enabled else 0
        except (HostError, OSError) as error:
            self._tell(f"warning: connections of guests that moved here may break: {_said(error)}")
            return
        if count:
            self._tell(f"{count} connections of guests that moved here go on", again=True)

    def _tell_ready(self) -> None:
        """Tell the service manager that guests may start; with --fail-closed only where rules are in place."""
        if not self._started or self._ready:
            return
        if self._fail_closed and not (self._in_place or firewall.was_started()):
            # the time for a start is over only where this service does not go on trying
            watch.notify(f"EXTEND_TIMEOUT_USEC={_STILL_STARTING * 10**6}")
            return
        self._ready = True
        watch.notify("READY=1")

    def _tell_doubts(self) -> float | None:
        paths, seconds = self._compiler.doubts
        for path in paths:
            self._tell(
                f"{path} is missing, empty or cut off, perhaps while it is being saved: its last content stays in use"
            )
        return seconds

    def _apply(self, reason: str, begun: float) -> None:
        result = self._find()
        desired = result.desired
        if desired.enabled:
            self._plugging.refresh(desired.backend, changed=result is not self._noted)
        with lock.hold(wait=_LOCK_WAIT):
            outcome = control.reconcile_from_service(desired, beside=self._beside)
        self._look_for_moved(desired)
        if result.diagnostics != self._shown:  # first the rules, then their diagnostics
            self._shown = result.diagnostics
            with contextlib.suppress(OSError, ValueError):
                show(result.diagnostics)
        if outcome is None:
            self._tell("left alone: a change waits for its confirmation, or was rolled back")
            return
        self._in_place = True
        if result is not self._noted:
            desired_ruleset.note(result, self._source, self._backend)
            self._noted = result
        if outcome.changes or reason == "started":
            spent = time.monotonic() - begun
            by = f" by {self._rules.maker}" if reason == _RULES_CHANGED and self._rules.maker else ""
            again = not (reason == _RULES_CHANGED and self._rules.fights)
            self._tell(f"{reason}{by}: {len(outcome.changes)} changes in {spent:.2f} s", again=again)
            if reason == _RULES_CHANGED:
                self._rules.mended()
            _give_back_memory()
        for problem in outcome.problems:
            self._tell(f"warning: {problem}")
        for note in outcome.notes:
            self._tell(note)
        watch.notify(f"STATUS={'filtering' if desired.enabled else 'disabled in cluster.fw'} ({desired.backend})")

    def _find(self) -> Result:
        """Return the ruleset; that of the last time, if none of its inputs changed."""
        self._last = self._compiler.find(self._wait_for)
        for missing in self._compiler.missing:
            self._tell(f"warning: the compiler's process runs without this confinement: {missing}")
        return self._last

    def close(self) -> None:
        """End the compiler's process."""
        self._compiler.close()

    def _wait_for(self, path: str) -> None:
        self._tell(f"{path} is missing, empty or cut off, perhaps while it is being saved: waiting")
        self._fall_back()

    def _fall_back(self) -> None:
        """Load the ruleset that was confirmed last, if the configuration cannot be used at boot."""
        try:
            with lock.hold(wait=_LOCK_WAIT):
                if control.fall_back():
                    self._tell("the ruleset that was confirmed last is in place", again=True)
        except Exception as error:  # whatever goes wrong, the service stays
            self._tell(f"error: {_told(error)[0]}")

    def _tell(self, message: str, *, again: bool = False) -> None:
        """Print a message, unless it was printed since the ruleset last changed."""
        if again:
            self._told.clear()
        elif message in self._told:
            return
        self._told.add(message)
        with contextlib.suppress(OSError, ValueError):  # a full disk, or nobody reads: the service goes on
            click.echo(message, err=True)
