"""The verbs: apply, stop, confirm, roll back, each under the lock.

A change that must be confirmed is undone by itself without a confirmation in time: the watchdog does that
(:mod:`.watchdog`), and :meth:`Control.guard` is its work. It is started before anything changes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from pvefw_nft.errors import HostError, PvefwError

from . import lock
from .apply.engines import make_engines
from .clock import CLOCK
from .firewall import Firewall, Outcome, was_started
from .proxmox import units
from .proxmox.flag import remove_flag
from .proxmox.services import keeps_flag
from .records import record, state
from .records.pending import Beside, Pending, held, hold, is_held_back, keep, pending
from .watchdog import start_watchdog

if TYPE_CHECKING:
    from collections.abc import Callable

    from .clock import Clock
    from .records.record import Desired

MAX_SECONDS = 24 * 3600
_GRACE = 10.0  # seconds after which a command itself does what the guard should have done
_GUARD_LOCK_WAIT = 600.0  # the guard must get its turn: it waits for the lock this long, again and again


class Control:
    """The firewall of this host, and the changes to it that a person may have to confirm."""

    def __init__(
        self,
        firewall: Firewall,
        *,
        clock: Clock = CLOCK,
        start_watchdog: Callable[[str, float], None] = start_watchdog,
    ) -> None:
        """``start_watchdog`` gets a change's token and its seconds, and raises as :func:`.start_watchdog`."""
        self.firewall = firewall
        self.clock = clock
        self._start_watchdog = start_watchdog

    def apply(
        self,
        desired: Desired,
        *,
        only_if_running: bool = False,
        reload_all: bool = False,
        confirm_within: float | None = None,
        beside: Beside = Beside.NOTHING,
        wait: float = lock.WAIT,
        prepare: Callable[[], None] = lambda: None,
        fell_back: Callable[[], None] | None = None,
    ) -> tuple[Outcome, Pending | None]:
        """Apply a ruleset; with ``confirm_within`` seconds it is undone unless :meth:`confirm` comes in time.

        ``only_if_running``: do nothing if the firewall is not running. ``reload_all``: load unchanged parts, too.
        ``beside`` other than NOTHING: leave the rules of another firewall. ``prepare`` is called before the first
        change. ``fell_back``: if a first load without confirmation fails, as on a full disk at boot, load the ruleset
        confirmed last and call this. Raises :class:`HostError`, also if another change waits for its confirmation, and
        LockedError.
        """
        with lock.hold(wait=wait, clock=self.clock):
            waiting = pending()
            if waiting is not None and self._is_overdue(waiting):
                # where that fails, the ruleset that is wanted now takes its place all the same
                with contextlib.suppress(PvefwError):
                    self._undo(waiting)
                waiting = None
            running = self.firewall.is_running() if beside is Beside.NOTHING else was_started()
            if only_if_running and not running:
                return Outcome(running=False), None
            if waiting is not None:
                raise HostError(
                    f"another change waits for its confirmation for {waiting.seconds_left(self.clock):.0f} s",
                    "run `pvefw confirm` or `pvefw rollback` first",
                )
            if confirm_within is not None:
                prepare()
                return self._apply_guarded(
                    desired, confirm_within, was_running=running, reload_all=reload_all, beside=beside
                )
            try:
                prepare()
                outcome = self.firewall.reconcile(desired, reload_all=reload_all, beside=beside is not Beside.NOTHING)
            except HostError as error:
                if fell_back is not None and not running and desired.enabled:
                    self._fall_back_after(error, fell_back)
                raise
            keep()
            return outcome, None

    def _fall_back_after(self, error: HostError, fell_back: Callable[[], None]) -> None:
        """Load the ruleset confirmed last if nothing runs. Raises HostError with both errors if that fails, too."""
        try:
            if self.fall_back():
                fell_back()
        except PvefwError as again:
            raise HostError(
                f"{error.message}\nand the ruleset confirmed last could not be loaded: {again.message}", error.hint
            ) from error

    def stop(self, *, wait: float = lock.WAIT) -> Outcome:
        """Remove pvefw's rules and nothing else, and restore the kernel's settings. Raises HostError, LockedError."""
        with lock.hold(wait=wait, clock=self.clock):
            return self._remove_all()

    def _remove_all(self) -> Outcome:
        outcome = self.firewall.remove_all()
        if not keeps_flag():
            remove_flag()
        return outcome

    def confirm(self, *, wait: float = lock.WAIT) -> bool:
        """Keep the change that waits for its confirmation; False if none waits. Raises HostError, LockedError."""
        with lock.hold(wait=wait, clock=self.clock):
            if pending() is None:
                return False
            keep()
            return True

    def roll_back(self, *, wait: float = lock.WAIT) -> Outcome:
        """Return to the ruleset confirmed last; a change that waits for its confirmation is undone.

        Raises :class:`HostError` if nothing was ever confirmed, and LockedError.
        """
        with lock.hold(wait=wait, clock=self.clock):
            change = pending()
            if change is not None:
                return self._undo(change)
            return self.bring_to_confirmed()

    def bring_to_confirmed(self) -> Outcome:
        """Return to the ruleset confirmed last; the caller holds the lock."""
        confirmed = record.load(record.confirmed_path())
        if confirmed is None:
            raise HostError("there is no confirmed ruleset to return to", "run `pvefw start`")
        return self.firewall.reconcile(confirmed, record_of=record.confirmed_path())

    def reconcile_from_service(self, desired: Desired, *, beside: bool = False) -> Outcome | None:
        """Do the service's part, which never overrides a person; the caller holds the lock.

        ``beside``: as for :meth:`.Firewall.reconcile`.

        None if a change waits for its confirmation, or where this ruleset was not confirmed: then the one confirmed
        last runs, also after a reboot.
        """
        waiting = pending()
        if waiting is not None:
            if not self._is_overdue(waiting):
                return None
            self._undo(waiting)
        if is_held_back(desired):
            if not self.firewall.is_running() and record.load_if_sound(record.confirmed_path()) is not None:
                self.bring_to_confirmed()
            return None
        outcome = self.firewall.reconcile(desired, beside=beside)
        keep()
        return outcome

    def fall_back(self) -> bool:
        """If nothing runs, load the ruleset confirmed last; return whether it did. The caller holds the lock."""
        if self.firewall.is_running() or record.load_if_sound(record.confirmed_path()) is None:
            return False
        self.bring_to_confirmed()
        return True

    def guard(self, token: str, seconds: float, ready: int | None = None) -> Outcome | None:
        """Wait, then undo the change of that token unless it was confirmed; what the guard process runs.

        ``ready`` is a file descriptor that is written to once nothing can keep the guard from its work any more.
        """
        if ready is not None:
            os.write(ready, b"!")
            os.close(ready)
        end = self.clock.since_boot() + seconds
        while True:
            change = pending()
            if change is None or change.token != token:
                return None
            # the time starts again once the ruleset is in place
            left = max(end, change.deadline) - self.clock.since_boot()
            if left <= 0:
                break
            self.clock.sleep(min(1.0, left))
        while True:
            try:
                with lock.hold(wait=_GUARD_LOCK_WAIT, clock=self.clock):
                    change = pending()
                    return self._undo(change) if change is not None and change.token == token else None
            except PvefwError:
                # the obstacle (a full disk, a lock) may go: the host must not stay in this state, so try again
                self.clock.sleep(5)

    def await_confirmation(self, change: Pending) -> bool:
        """Return True once the change is confirmed, False once it was undone."""
        while change.waits():
            if self.clock.since_boot() > change.deadline + _GRACE:
                self.guard(change.token, 0)
            self.clock.sleep(0.1)
        # the process that ended the wait holds the lock until all is done
        with lock.hold(wait=_GUARD_LOCK_WAIT, clock=self.clock):
            # confirming forgets that the ruleset was held back, undoing does not
            return held() is None

    def _apply_guarded(
        self, desired: Desired, seconds: float, *, was_running: bool, reload_all: bool, beside: Beside
    ) -> tuple[Outcome, Pending]:
        if was_running:
            if record.load(record.running_path()) is None:
                raise HostError(
                    "the running ruleset is not on record, so it could not be restored",
                    "run `pvefw start` without --confirm once",
                )
            record.copy(record.running_path(), record.previous_path())
        change = Pending(secrets.token_hex(8), self.clock.since_boot() + seconds, was_running, beside)
        # on disk, so that the daemon does not apply it after a reboot either
        held_before = held()
        hold(desired.fingerprint)
        state.write(record.pending_path(), asdict(change))
        try:
            self._start_guard(change.token, seconds)
        except BaseException:
            state.remove(record.pending_path())
            hold(held_before)
            raise
        try:
            outcome = self.firewall.reconcile(desired, reload_all=reload_all, beside=beside is not Beside.NOTHING)
        except PvefwError as error:
            # what failed half way is undone now; where that fails too, or this process is interrupted, by the guard
            try:
                self._undo(change)
                hold(held_before)
            except PvefwError as again:
                raise HostError(
                    f"{error.message}\nand the change could not be undone yet: {again.message}",
                    f"it is tried again within {seconds:.0f} s; until then packets may meet both rulesets",
                ) from error
            left = (
                "the ruleset that ran before is in place" if was_running else "no rules of pvefw are loaded, as before"
            )
            raise HostError(f"{error.message}\nthe change was undone: {left}", error.hint) from error
        change = replace(change, deadline=self.clock.since_boot() + seconds)
        state.write(record.pending_path(), asdict(change))
        return outcome, change

    def _start_guard(self, token: str, seconds: float) -> None:
        """Start what undoes the change. Raises HostError unless it is known to run: nothing may change without it."""
        try:
            self._start_watchdog(token, seconds)
        except (HostError, OSError) as error:
            message = error.message if isinstance(error, HostError) else error.strerror
            raise HostError(f"no guard could be started, so nothing was changed: {message}") from error

    def await_with_rules(self, seconds: float) -> Pending:
        """Note that the ruleset beside another firewall is to be removed on confirmation; the caller holds the lock.

        Without a confirmation the rules stay. Raises HostError.
        """
        running = record.load(record.running_path())
        if running is not None:
            record.copy(record.running_path(), record.previous_path())
            hold(running.fingerprint)
        change = Pending(
            secrets.token_hex(8), self.clock.since_boot() + seconds, was_running=True, beside=Beside.REMOVE
        )
        state.write(record.pending_path(), asdict(change))
        return change

    def _is_overdue(self, change: Pending) -> bool:
        """Tell whether a change should have been undone by now.

        Its guard was killed, or never started, or waits for the lock: the holder of the lock has to undo the change.
        """
        return self.clock.since_boot() > change.deadline + _GRACE

    def _undo(self, change: Pending) -> Outcome:
        if change.was_running:
            before = record.load(record.previous_path())
            if before is None:
                raise HostError("the ruleset that ran before was not kept", "run `pvefw start` or `pvefw stop`")
            outcome = self.firewall.reconcile(
                before, record_of=record.previous_path(), beside=change.beside is not Beside.NOTHING
            )
        elif change.beside is not Beside.NOTHING:
            self.firewall.withdraw(remove=change.beside is Beside.REMOVE)
            units.resume_iptables_service()
            outcome = Outcome(running=False)
        else:
            outcome = self._remove_all()
        state.remove(record.pending_path())
        return outcome


def make_control() -> Control:
    """Make the control of this host, with engines whose caches last as long as it."""
    return Control(Firewall(make_engines()))
