"""Diagnostics about a configuration, and exceptions that carry an exit code.

A :class:`Diagnostic` is data: front end and compiler collect them, only the command line prints them. An exception of
:class:`PvefwError` ends the command; its ``exit_code`` becomes the exit code of the process.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable

EXIT_UNDECIDED = 5
"""Exit code of a command whose question could not be decided (compare, simulate)."""


class Severity(Enum):
    """How bad a finding is.

    An error is a line without its effect: it is left out, or the kernel's tools would refuse it. A warning
    is a line that works as written, which is probably not the intention. A note is a matter of style.
    """

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Span:
    """A place in a file: one line and the columns from ``column`` up to, not including, ``end_column``.

    Lines and columns count from 1, columns in Unicode code points, as editors do. ``text`` is the whole
    line without its line end. A span with ``line`` 0 means the file as a whole.
    """

    file: str
    line: int
    column: int = 1
    end_column: int = 1
    text: str = ""

    def __str__(self) -> str:
        if self.line == 0:
            return self.file
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding about a configuration: place, problem and remedy.

    ``code`` is a stable, hyphenated name such as ``unknown-macro``; scripts and SARIF viewers key on it.
    """

    severity: Severity
    code: str
    span: Span
    message: str
    hint: str | None = None


def has_errors(diagnostics: Iterable[Diagnostic]) -> bool:
    """Tell whether something was skipped or refused."""
    return any(diagnostic.severity is Severity.ERROR for diagnostic in diagnostics)


class PvefwError(Exception):
    """Base of all errors that end a command; ``hint`` names the remedy."""

    exit_code: ClassVar[int] = 3

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = _without_escapes(message)
        self.hint = None if hint is None else _without_escapes(hint)


def _without_escapes(text: str) -> str:
    """Return a message with no colours of its own: they may come from a file's or a link's name."""
    return text.replace("\x1b", "\N{REPLACEMENT CHARACTER}")


class ConfigurationError(PvefwError):
    """The configuration cannot be used at all (an unreadable or oversized file, not text)."""

    exit_code = 1


class UnusableFileError(ConfigurationError):
    """One file is there and can be read, but no configuration can be taken from it (binary, too large, a directory).

    Unlike other failures to read, it says nothing about the file system: other files may be sound. ``line`` 0 means the
    file as a whole.
    """

    def __init__(self, file: str, line: int, reason: str, hint: str) -> None:
        super().__init__(f"{file}:{line}: {reason}" if line else f"{file}: {reason}", hint)
        self.file = file
        self.line = line
        self.reason = reason


class UnreadableError(ConfigurationError):
    """The file system that holds the configuration fails or is not mounted: nothing is known of the configuration."""


class DeniedError(UnreadableError):
    """The file system refuses to read the configuration."""


class CompilerError(ConfigurationError):
    """The process that compiles ended, or sent an invalid message: no ruleset is known.

    It may have been ended by its limits of memory and time.
    """


class UsageError(PvefwError):
    """The command line asks for something that does not exist or does not go together."""

    exit_code = 2


class HostError(PvefwError):
    """The host refused, lacks a tool or privilege, or is not in the state the command needs."""

    exit_code = 3


class LockedError(PvefwError):
    """Another run of pvefw holds the lock."""

    exit_code = 4


class InternalError(PvefwError):
    """An invariant of the compiler does not hold: a bug of pvefw, never of the configuration."""

    exit_code = 3


def number_of_environment(name: str, default: int, least: int, most: int) -> int:
    """Return the number that a variable of the environment holds; ``default`` where it is not set or empty.

    Raises UsageError for any text but a decimal number from ``least`` to ``most``.
    """
    text = os.environ.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise UsageError(f"{name}={text[:40]} is not a number from {least} to {most}", f"unset {name}, or correct it")
    return int(text)
