"""The messages of the service: each is printed once until the ruleset changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.errors import PvefwError
from pvefw_nft.host import tools

if TYPE_CHECKING:
    from collections.abc import Callable


class Messages:
    """Print messages for the journal. A state that lasts is reported once, not at each look."""

    def __init__(self, write: Callable[[str], None]) -> None:
        """``write`` prints one line."""
        self._write = write
        self._printed: set[str] = set()

    def event(self, message: str) -> None:
        """Print a message about a change. Messages about states may be printed again after it."""
        self._printed.clear()
        self.state(message)

    def state(self, message: str) -> None:
        """Print a message about a state, unless it was printed since the last event."""
        if message not in self._printed:
            self._printed.add(message)
            self._write(message)


def reason_of(error: PvefwError | OSError) -> str:
    """Return the reason that an error gives, without its hint and file name."""
    return error.message if isinstance(error, PvefwError) else error.strerror or str(error)


def message_and_hint(error: Exception) -> tuple[str, str | None]:
    """Return the message of an error and what to do about it; None: nothing is known to help."""
    if isinstance(error, PvefwError):
        return error.message, error.hint
    if isinstance(error, OSError):
        where = "" if error.filename is None else f"{error.filename}: "
        return f"{where}{reason_of(error)}", tools.LIMIT_HINTS.get(error.errno or 0)
    return f"pvefw failed: {type(error).__name__}: {error}", "this is a bug of pvefw; please report it"
