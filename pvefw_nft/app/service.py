"""The service: compile and apply whenever a file, a link, an address or a rule in the kernel changes."""

from __future__ import annotations

import contextlib
import gc
import time
from typing import TYPE_CHECKING

from pvefw_nft.app import desired as desired_ruleset
from pvefw_nft.app.compiler import Compiler
from pvefw_nft.app.nic_service import NicService
from pvefw_nft.app.service_messages import Messages, message_and_hint, reason_of
from pvefw_nft.app.steady_source import SteadySource
from pvefw_nft.errors import HostError, PvefwError
from pvefw_nft.host import lock
from pvefw_nft.host.firewall import was_started
from pvefw_nft.host.memory import return_free_memory
from pvefw_nft.host.proxmox.awake import FirewallWatch
from pvefw_nft.host.proxmox.flag import keep_flag
from pvefw_nft.host.records import state
from pvefw_nft.host.tracking.moved import MovedGuests
from pvefw_nft.host.watching import watch
from pvefw_nft.host.watching.rule_guard import RuleGuard
from pvefw_nft.pipeline.roots import node_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pvefw_nft.app.desired import Result
    from pvefw_nft.app.plug_nics import PlugOptions
    from pvefw_nft.errors import Diagnostic
    from pvefw_nft.host.control import Control
    from pvefw_nft.host.firewall import Outcome
    from pvefw_nft.host.records.record import Desired
    from pvefw_nft.host.watching.rule_events import Transaction
    from pvefw_nft.pipeline import Source

LOCK_WAIT = 60.0
"""Seconds that the service waits for a command that holds the lock."""

_RULES_CHANGED = "rules changed"
_RETRY = 5.0  # seconds after a failure
_STILL_STARTING = 600  # seconds: systemd ends a service that neither starts nor asks for more time within them


class Service:
    """React to changes. After a failure the rules stay loaded; the next change or look tries again."""

    def __init__(
        self,
        control: Control,
        source: Source,
        backend: str | None,
        settle: float,
        options: PlugOptions,
        *,
        beside: bool,
        fail_closed: bool,
        write: Callable[[str], None],
        show: Callable[[Sequence[Diagnostic]], None],
    ) -> None:
        """``write`` prints a message, ``show`` prints diagnostics; neither may raise.

        ``backend`` None: the one that host.fw selects. ``settle``: seconds until a file that is missing or cut off
        counts as such. ``beside``: keep the rules of Proxmox VE's firewall. ``fail_closed``: report readiness to
        systemd only when rules are loaded.
        """
        self._control = control
        self.steady = SteadySource(source, backend, settle)
        self._source = self.steady.source
        self._backend = backend
        self._compiler = Compiler(source, backend, settle)
        self._beside = beside
        self._fail_closed = fail_closed
        self._messages = Messages(write)
        self._show = show
        self._nics = NicService(self._compiler.filtered_nics, options, self._messages)
        self._folders = watch.folders_above(source.root)
        self._rules = RuleGuard()
        self._proxmox = FirewallWatch()
        self._moved = MovedGuests()
        self._result: Result | None = None  # of the last compile
        self._applied: Result | None = None
        self._shown: object = None  # the diagnostics printed last
        self._started = self._ready = False
        self._in_place = False  # the rules of the configuration are loaded

    def folders(self) -> list[Path]:
        """Return the folders to watch. Raises as :func:`.node_name`."""
        self._folders = watch.folders_of(self._source.root, node_name(self._source))
        return self._folders

    def warn(self, message: str) -> None:
        """Print a warning about a condition that lasts, such as a folder that cannot be watched."""
        self._messages.state(f"warning: {message}")

    def started(self) -> None:
        """Report readiness after the first refresh, and prepare for changes."""
        self._started = True
        self._notify_ready()
        self._nics.watch_arrivals()
        if self._result is not None:
            with contextlib.suppress(PvefwError):
                self._control.firewall.warm_up(self._result.desired)
        gc.freeze()  # the cached configuration has no cycles: keep it out of later collections

    def close(self) -> None:
        """End the compiler's process."""
        self._compiler.close()

    @desired_ruleset.no_garbage()
    def refresh(self, reason: str) -> float | None:
        """Compile and apply. Return the seconds until the next refresh; None: wait for a change."""
        self._look_at_proxmox()
        again: float | None = None
        begun = time.monotonic()
        if reason == "SIGHUP":
            watch.notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            self._apply(reason, begun)
            again = self._report_doubts()
        except Exception as error:  # after any failure the service and the rules stay
            self._report_failure(error, reason)
            again = _RETRY
        for warning in state.take_warnings():
            self.warn(warning)
        self._notify_ready()
        if reason == "SIGHUP":
            watch.notify("READY=1")
        return again

    def look_at_rules(self, made: Sequence[Transaction]) -> float | None:
        """Repair pvefw's rules if another program changed them; ``made``: its transactions since the last look.

        Return the seconds after which to look again, if it is too early now; None: done.
        """
        desired = None if self._result is None else self._result.desired
        if desired is None:
            return None
        self._look_at_proxmox()
        self._adopt_moved_guests(desired)
        wait = self._rules.wait(made)
        if wait:
            if self._rules.fights:
                self.warn(f"{self._rules.opponent} keeps changing the rules of pvefw: they are repaired less often")
            return wait
        with self._rules.looking():
            try:
                unchanged = self._control.firewall.is_in_force(desired)
            except (PvefwError, OSError):
                unchanged = False  # the refresh reports the error
            return None if unchanged else self.refresh(_RULES_CHANGED)

    def _look_at_proxmox(self) -> None:
        """Report firewalls of Proxmox VE that started or ended; keep the flag file that disables proxmox-firewall."""
        try:
            for line in () if self._beside else self._proxmox.news():
                self._messages.event(line)
                if (problem := keep_flag()) is not None:
                    self.warn(problem)
            self._rules.beside_proxmox = self._proxmox.runs
        except (PvefwError, OSError) as error:
            self.warn(f"Proxmox VE's firewalls cannot be looked for: {reason_of(error)}")

    def _adopt_moved_guests(self, desired: Desired) -> None:
        """Keep the connections of guests that live migration just moved here."""
        try:
            count = self._moved.look(desired) if desired.enabled else 0
        except (HostError, OSError) as error:
            self.warn(f"connections of guests that moved here may break: {reason_of(error)}")
            return
        if count:
            self._messages.event(f"{count} connections of guests that moved here go on")

    def _notify_ready(self) -> None:
        """Report readiness once: systemd then starts the guests. With ``fail_closed`` only if rules are loaded."""
        if not self._started or self._ready:
            return
        if self._fail_closed and not (self._in_place or was_started()):
            # this service keeps trying: the start must not time out before
            watch.notify(f"EXTEND_TIMEOUT_USEC={_STILL_STARTING * 10**6}")
            return
        self._ready = True
        watch.notify("READY=1")

    def _report_doubts(self) -> float | None:
        """Report files whose new content is not used yet. Return the seconds until the first of them is."""
        paths, seconds = self._compiler.doubts
        for path in paths:
            self._messages.state(
                f"{path} is missing, empty or cut off, perhaps while it is being saved: its last content stays in use"
            )
        return seconds

    def _report_failure(self, error: Exception, reason: str) -> None:
        """Report an error of a refresh. Load the ruleset confirmed last if no rules are loaded yet."""
        message, hint = message_and_hint(error)
        self._messages.state(f"error: {message}" + (f" ({hint})" if hint else ""))
        if reason == _RULES_CHANGED and self._rules.maker:
            program = self._rules.maker.partition(" (")[0]  # without the PID: each process would be a new message
            self.warn(f"{program} changes rules while they are being mended")
        self._fall_back()
        watch.notify(f"STATUS={message.splitlines()[0]}")

    def _apply(self, reason: str, begun: float) -> None:
        result = self._find()
        desired = result.desired
        if desired.enabled:
            self._nics.refresh(desired.backend, changed=result is not self._applied)
        with lock.hold(wait=LOCK_WAIT):
            outcome = self._control.reconcile_from_service(desired, beside=self._beside)
        self._adopt_moved_guests(desired)
        if result.diagnostics != self._shown:  # after the load: rules must not wait for a slow terminal
            self._shown = result.diagnostics
            self._show(result.diagnostics)
        if outcome is None:
            self._messages.state("left alone: a change waits for its confirmation, or was rolled back")
            return
        self._in_place = True
        if result is not self._applied:
            desired_ruleset.note(result, self._source, self._backend)
            self._applied = result
        self._report_outcome(outcome, reason, begun)
        watch.notify(f"STATUS={'filtering' if desired.enabled else 'disabled in cluster.fw'} ({desired.backend})")

    def _report_outcome(self, outcome: Outcome, reason: str, begun: float) -> None:
        if outcome.changes or reason == "started":
            spent = time.monotonic() - begun
            by = f" by {self._rules.maker}" if reason == _RULES_CHANGED and self._rules.maker else ""
            # two programs that change the rules in turn would fill the journal
            fights = reason == _RULES_CHANGED and self._rules.fights
            report = self._messages.state if fights else self._messages.event
            report(f"{reason}{by}: {len(outcome.changes)} changes in {spent:.2f} s")
            if reason == _RULES_CHANGED:
                self._rules.mended()
            return_free_memory()
        for problem in outcome.problems:
            self.warn(problem)
        for note in outcome.notes:
            self._messages.state(note)

    def _find(self) -> Result:
        """Return the desired ruleset; the same object as last time if no input changed."""
        self._result = self._compiler.find(self._report_wait)
        for missing in self._compiler.missing:
            self.warn(f"the compiler's process runs without this confinement: {missing}")
        return self._result

    def _report_wait(self, path: str) -> None:
        self._messages.state(f"{path} is missing, empty or cut off, perhaps while it is being saved: waiting")
        self._fall_back()

    def _fall_back(self) -> None:
        """At boot, load the ruleset confirmed last: the configuration cannot be used."""
        try:
            with lock.hold(wait=LOCK_WAIT):
                if self._control.fall_back():
                    self._messages.event("the ruleset that was confirmed last is in place")
        except Exception as error:  # the service must survive any failure
            self._messages.state(f"error: {message_and_hint(error)[0]}")
