"""The verbs: apply, stop, confirm, roll back, each under the lock.

A change that must be confirmed is undone by itself without a confirmation in time. A guard outside of the command
does that, so that it happens also when the shell, the ssh session or pvefw dies: a transient systemd timer where
systemd runs, else a process of its own session. It is started before anything changes.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import select
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvefw_nft.errors import HostError, PvefwError

from . import firewall, lock, tools
from .firewall import Outcome
from .proxmox import units
from .proxmox.flag import remove_flag
from .proxmox.services import keeps_flag
from .records import record, state

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .records.record import Desired

MAX_SECONDS = 24 * 3600
_GUARD_START = 60.0  # seconds for the guard process to say that it runs
_GRACE = 10.0  # seconds after which a command itself does what the guard should have done
_GUARD_LOCK_WAIT = 600.0  # the guard must get its turn: it waits for the lock this long, again and again


class Beside(StrEnum):
    """Whether another firewall runs beside pvefw, and what an undo then does with pvefw's rules."""

    NOTHING = ""
    """no other firewall runs: an undo restores the ruleset before, or removes pvefw's rules"""
    REMOVE = "remove"
    """another firewall runs: remove pvefw's rules, and touch no others"""
    LEAVE = "leave"
    """another firewall runs, with chains of the same names: leave them to it, it rewrites them at its next start"""


@dataclass(frozen=True, slots=True)
class Pending:
    """A change that waits for its confirmation until ``deadline``, in seconds since boot.

    ``was_running``: the ruleset before comes back without a confirmation. ``beside``: see :class:`Beside`.
    """

    token: str
    deadline: float
    was_running: bool
    beside: Beside = Beside.NOTHING

    @property
    def seconds_left(self) -> float:
        """Seconds until the ruleset before it comes back."""
        return max(0.0, self.deadline - _since_boot())


def pending() -> Pending | None:
    """Return the change that waits for its confirmation, if there is one. Raises HostError."""

    def check(value: Any) -> Pending:  # noqa: ANN401 - JSON
        deadline = float(state.typed(value["deadline"], int | float))  # type: ignore[arg-type]  # a union is one type here
        if not math.isfinite(deadline):
            raise ValueError("a deadline that is no time")
        beside = Beside(value.get("beside", ""))  # a ValueError for another value
        return Pending(state.typed(value["token"], str), deadline, state.typed(value["was_running"], bool), beside)

    return state.read_record(record.pending_path(), check)


def _held() -> str | None:
    """Return the fingerprint of the ruleset that was not confirmed, if there is one. Raises HostError."""
    return state.read_record(record.held_path(), lambda value: state.typed(value["fingerprint"], str))


def pending_if_sound() -> Pending | None:
    """Return the result of :func:`pending`, or None if that cannot be read: for those who only want to tell."""
    try:
        return pending()
    except HostError:
        return None


def apply(
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
    """Apply a ruleset; with ``confirm_within`` seconds it is undone unless :func:`confirm` comes in time.

    ``only_if_running``: do nothing if the firewall is not running. ``reload_all``: load unchanged parts, too.
    ``beside`` other than NOTHING: leave the rules of another firewall. ``prepare`` is called before the first change.
    ``fell_back``: if a first load without confirmation fails, as on a full disk at boot, load the ruleset confirmed
    last and call this. Raises :class:`HostError`, also if another change waits for its confirmation, and LockedError.
    """
    with lock.hold(wait=wait):
        waiting = pending()
        if waiting is not None and _is_overdue(waiting):
            # where that fails, the ruleset that is wanted now takes its place all the same
            with contextlib.suppress(PvefwError):
                _undo(waiting)
            waiting = None
        running = firewall.is_running() if beside is Beside.NOTHING else firewall.was_started()
        if only_if_running and not running:
            return Outcome(running=False), None
        if waiting is not None:
            raise HostError(
                f"another change waits for its confirmation for {waiting.seconds_left:.0f} s",
                "run `pvefw confirm` or `pvefw rollback` first",
            )
        if confirm_within is not None:
            prepare()
            return _apply_guarded(desired, confirm_within, was_running=running, reload_all=reload_all, beside=beside)
        try:
            prepare()
            outcome = firewall.reconcile(desired, reload_all=reload_all, beside=beside is not Beside.NOTHING)
        except HostError as error:
            if fell_back is not None and not running and desired.enabled:
                _fall_back_after(error, fell_back)
            raise
        keep()
        return outcome, None


def _fall_back_after(error: HostError, fell_back: Callable[[], None]) -> None:
    """Load the ruleset confirmed last if nothing runs. Raises HostError with both errors if that fails, too."""
    try:
        if fall_back():
            fell_back()
    except PvefwError as again:
        raise HostError(
            f"{error.message}\nand the ruleset confirmed last could not be loaded: {again.message}", error.hint
        ) from error


def stop(*, wait: float = lock.WAIT) -> Outcome:
    """Remove pvefw's rules and nothing else, and restore the kernel's settings. Raises HostError, LockedError."""
    with lock.hold(wait=wait):
        return _remove_all()


def _remove_all() -> Outcome:
    outcome = firewall.remove_all()
    if not keeps_flag():
        remove_flag()
    return outcome


def confirm(*, wait: float = lock.WAIT) -> bool:
    """Keep the change that waits for its confirmation; False if none waits. Raises HostError, LockedError."""
    with lock.hold(wait=wait):
        if pending() is None:
            return False
        keep()
        return True


def keep() -> None:
    """Record the running ruleset as confirmed; the caller holds the lock. Raises HostError for a damaged record."""
    if record.load(record.running_path()) is not None:
        record.copy(record.running_path(), record.confirmed_path())
    state.remove(record.pending_path())
    state.remove(record.held_path())


def roll_back(*, wait: float = lock.WAIT) -> Outcome:
    """Return to the ruleset confirmed last; a change that waits for its confirmation is undone.

    Raises :class:`HostError` if nothing was ever confirmed, and LockedError.
    """
    with lock.hold(wait=wait):
        change = pending()
        if change is not None:
            return _undo(change)
        return bring_to_confirmed()


def bring_to_confirmed() -> Outcome:
    """Return to the ruleset confirmed last; the caller holds the lock."""
    confirmed = record.load(record.confirmed_path())
    if confirmed is None:
        raise HostError("there is no confirmed ruleset to return to", "run `pvefw start`")
    return firewall.reconcile(confirmed, record_of=record.confirmed_path())


def reconcile_from_service(desired: Desired, *, beside: bool = False) -> Outcome | None:
    """Do the service's part, which never overrides a person; the caller holds the lock.

    ``beside``: as for :func:`.firewall.reconcile`.

    None if a change waits for its confirmation, or where this ruleset was not confirmed: then the one confirmed
    last runs, also after a reboot.
    """
    waiting = pending()
    if waiting is not None:
        if not _is_overdue(waiting):
            return None
        _undo(waiting)
    if is_held_back(desired):
        if not firewall.is_running() and record.load_if_sound(record.confirmed_path()) is not None:
            bring_to_confirmed()
        return None
    outcome = firewall.reconcile(desired, beside=beside)
    keep()
    return outcome


def fall_back() -> bool:
    """If nothing runs, load the ruleset confirmed last; return whether it did. The caller holds the lock."""
    if firewall.is_running() or record.load_if_sound(record.confirmed_path()) is None:
        return False
    bring_to_confirmed()
    return True


def is_held_back(desired: Desired) -> bool:
    """Tell whether this ruleset ran and was not confirmed, so that only a person may apply it again."""
    return _held() == desired.fingerprint


def guard(token: str, seconds: float, ready: int | None = None) -> Outcome | None:
    """Wait, then undo the change of that token unless it was confirmed; what the guard process runs.

    ``ready`` is a file descriptor that is written to once nothing can keep the guard from its work any more.
    """
    if ready is not None:
        os.write(ready, b"!")
        os.close(ready)
    end = _since_boot() + seconds
    while True:
        change = pending()
        if change is None or change.token != token:
            return None
        # the time starts again once the ruleset is in place
        left = max(end, change.deadline) - _since_boot()
        if left <= 0:
            break
        time.sleep(min(1.0, left))
    while True:
        try:
            with lock.hold(wait=_GUARD_LOCK_WAIT):
                change = pending()
                return _undo(change) if change is not None and change.token == token else None
        except PvefwError:
            # the obstacle (a full disk, a lock) may go: the host must not stay in this state, so try again
            time.sleep(5)


def await_confirmation(change: Pending) -> bool:
    """Return True once the change is confirmed, False once it was undone."""
    while _waits_for(change.token):
        if _since_boot() > change.deadline + _GRACE:
            guard(change.token, 0)
        time.sleep(0.1)
    # the process that ended the wait holds the lock until all is done
    with lock.hold(wait=_GUARD_LOCK_WAIT):
        # confirming forgets that the ruleset was held back, undoing does not
        return _held() is None


def _apply_guarded(
    desired: Desired, seconds: float, *, was_running: bool, reload_all: bool, beside: Beside
) -> tuple[Outcome, Pending]:
    if was_running:
        if record.load(record.running_path()) is None:
            raise HostError(
                "the running ruleset is not on record, so it could not be restored",
                "run `pvefw start` without --confirm once",
            )
        record.copy(record.running_path(), record.previous_path())
    change = Pending(secrets.token_hex(8), _since_boot() + seconds, was_running, beside)
    # on disk, so that the daemon does not apply it after a reboot either
    held = _held()
    state.write(record.held_path(), {"fingerprint": desired.fingerprint})
    state.write(record.pending_path(), asdict(change))
    try:
        _start_guard(change.token, seconds)
    except BaseException:
        state.remove(record.pending_path())
        _hold_as_before(held)
        raise
    try:
        outcome = firewall.reconcile(desired, reload_all=reload_all, beside=beside is not Beside.NOTHING)
    except PvefwError as error:
        # what failed half way is undone now; where that fails too, or this process is interrupted, by the guard
        try:
            _undo(change)
            _hold_as_before(held)
        except PvefwError as again:
            raise HostError(
                f"{error.message}\nand the change could not be undone yet: {again.message}",
                f"it is tried again within {seconds:.0f} s; until then packets may meet both rulesets",
            ) from error
        left = "the ruleset that ran before is in place" if was_running else "no rules of pvefw are loaded, as before"
        raise HostError(f"{error.message}\nthe change was undone: {left}", error.hint) from error
    change = replace(change, deadline=_since_boot() + seconds)
    state.write(record.pending_path(), asdict(change))
    return outcome, change


def await_with_rules(seconds: float) -> Pending:
    """Note that the ruleset beside another firewall is to be removed on confirmation; the caller holds the lock.

    Without a confirmation the rules stay. Raises HostError.
    """
    running = record.load(record.running_path())
    if running is not None:
        record.copy(record.running_path(), record.previous_path())
        state.write(record.held_path(), {"fingerprint": running.fingerprint})
    change = Pending(secrets.token_hex(8), _since_boot() + seconds, was_running=True, beside=Beside.REMOVE)
    state.write(record.pending_path(), asdict(change))
    return change


def _is_overdue(change: Pending) -> bool:
    """Tell whether a change should have been undone by now.

    Its guard was killed, or never started, or waits for the lock: the holder of the lock has to undo the change.
    """
    return _since_boot() > change.deadline + _GRACE


def _hold_as_before(held: str | None) -> None:
    if held is None:
        state.remove(record.held_path())
    else:
        state.write(record.held_path(), {"fingerprint": held})


def _undo(change: Pending) -> Outcome:
    if change.was_running:
        before = record.load(record.previous_path())
        if before is None:
            raise HostError("the ruleset that ran before was not kept", "run `pvefw start` or `pvefw stop`")
        outcome = firewall.reconcile(
            before, record_of=record.previous_path(), beside=change.beside is not Beside.NOTHING
        )
    elif change.beside is not Beside.NOTHING:
        firewall.withdraw(remove=change.beside is Beside.REMOVE)
        units.resume_iptables_service()
        outcome = Outcome(running=False)
    else:
        outcome = _remove_all()
    state.remove(record.pending_path())
    return outcome


def _start_guard(token: str, seconds: float) -> None:
    """Start what undoes the change. Raises HostError unless it is known to run: nothing may change without it."""
    command = [sys.executable, "-m", "pvefw_nft.cli", "rollback", "--guard", token]
    try:
        if Path("/run/systemd/system").is_dir():
            start_timer(command, f"pvefw-guard-{token}", seconds)
        else:
            _start_process([*command, "--after", f"{seconds:g}"])
    except (HostError, OSError) as error:
        message = error.message if isinstance(error, HostError) else error.strerror
        raise HostError(f"no guard could be started, so nothing was changed: {message}") from error


def start_timer(command: Sequence[str], unit: str, seconds: float) -> None:
    """Have systemd run a command in so many seconds, unless the timer of that name is stopped. Raises HostError."""
    # oneshot: a start by hand waits for the command's end (`systemctl start --wait` would need D-Bus)
    timer = [f"--on-active={seconds:g}s", f"--unit={unit}", "--timer-property=AccuracySec=100ms"]
    timer.append("--service-type=oneshot")
    environment = [f"--setenv={key}={value}" for key, value in _guard_environment().items()]
    tools.run(["systemd-run", "--quiet", "--collect", *timer, *environment, "--", *command])
    tools.run(["systemctl", "is-active", "--quiet", f"{unit}.timer"])


def _start_process(command: Sequence[str]) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as ready:
        try:
            # a session of its own survives the end of this terminal
            subprocess.Popen(
                [*command, "--ready", str(writing)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=[writing],
                env={**os.environ, **_guard_environment()},
                cwd="/",
            )
        finally:
            os.close(writing)
        # end of file: it died before it could say so
        if not select.select([ready], [], [], _GUARD_START)[0] or not ready.read(1):
            raise HostError("the guard process did not start")


def _guard_environment() -> dict[str, str]:
    """Return the environment by which the guard is this program with this state, in any folder."""
    kept = {key: os.environ[key] for key in ("PVEFW_RUN_DIRECTORY", "PVEFW_STATE_DIRECTORY") if key in os.environ}
    paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths)}


def waits(change: Pending) -> bool:
    """Tell whether the change still waits for its confirmation."""
    return _waits_for(change.token)


def _waits_for(token: str) -> bool:
    change = pending()
    return change is not None and change.token == token


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
