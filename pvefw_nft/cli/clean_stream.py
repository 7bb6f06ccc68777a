"""Keep terminals safe: no character of a file, an argument or a link's name may command one."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TextIO

_COMMANDS = re.compile(
    r"(\A\r(?:\x1b\[K)?"  # progress: a line that is written over
    r"|\x1b\[(?:0|1|3[0-7]|9[0-7])m)"  # colour and bold, as click.style writes them
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters, characters that change the direction of text (UAX #9), and lone surrogates; not tab and LF."""


class CleanStream:
    """A text stream that writes U+FFFD for characters that would command a terminal; else it is the stream it wraps."""

    def __init__(self, stream: TextIO) -> None:
        """Wrap a stream."""
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text without its commands. Passes on the errors of the stream."""
        if not text.replace("\n", "").isprintable():
            text = clean(text)
        return self._stream.write(text)

    def writelines(self, lines: list[str]) -> None:
        """Write texts one after the other."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any attribute of the stream
        return getattr(self._stream, name)


def clean(text: str) -> str:
    """Return a text with U+FFFD for terminal commands other than colours and progress of pvefw itself."""
    return _COMMANDS.sub(lambda found: found[1] or "\N{REPLACEMENT CHARACTER}", text)


def clean_output() -> None:
    """Let this process print to clean streams only."""
    if sys.stdout is not None:  # None: closed before the process began
        sys.stdout = CleanStream(sys.stdout)
    if sys.stderr is not None:
        sys.stderr = CleanStream(sys.stderr)
