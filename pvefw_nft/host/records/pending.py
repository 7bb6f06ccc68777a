"""Records of a change that waits for its confirmation, and of a ruleset that was not confirmed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pvefw_nft.errors import HostError

from ..clock import CLOCK
from . import record, state

if TYPE_CHECKING:
    from ..clock import Clock
    from .record import Desired


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

    def seconds_left(self, clock: Clock = CLOCK) -> float:
        """Return the seconds until the ruleset before it comes back."""
        return max(0.0, self.deadline - clock.since_boot())

    def waits(self) -> bool:
        """Tell whether this change still waits for its confirmation. Raises HostError."""
        change = pending()
        return change is not None and change.token == self.token


def pending() -> Pending | None:
    """Return the change that waits for its confirmation, if there is one. Raises HostError."""

    def check(value: Any) -> Pending:  # noqa: ANN401 - JSON
        deadline = float(state.typed(value["deadline"], int | float))  # type: ignore[arg-type]  # a union is one type here
        if not math.isfinite(deadline):
            raise ValueError("a deadline that is no time")
        beside = Beside(value.get("beside", ""))  # a ValueError for another value
        return Pending(state.typed(value["token"], str), deadline, state.typed(value["was_running"], bool), beside)

    return state.read_record(record.pending_path(), check)


def pending_if_sound() -> Pending | None:
    """Return the result of :func:`pending`, or None if that cannot be read: for those who only want to tell."""
    try:
        return pending()
    except HostError:
        return None


def held() -> str | None:
    """Return the fingerprint of the ruleset that was not confirmed, if there is one. Raises HostError."""
    return state.read_record(record.held_path(), lambda value: state.typed(value["fingerprint"], str))


def hold(fingerprint: str | None) -> None:
    """Record the ruleset of this fingerprint as not confirmed; None: there is none. Raises HostError."""
    if fingerprint is None:
        state.remove(record.held_path())
    else:
        state.write(record.held_path(), {"fingerprint": fingerprint})


def is_held_back(desired: Desired) -> bool:
    """Tell whether this ruleset ran and was not confirmed, so that only a person may apply it again."""
    return held() == desired.fingerprint


def keep() -> None:
    """Record the running ruleset as confirmed; the caller holds the lock. Raises HostError for a damaged record."""
    if record.load(record.running_path()) is not None:
        record.copy(record.running_path(), record.confirmed_path())
    state.remove(record.pending_path())
    state.remove(record.held_path())
