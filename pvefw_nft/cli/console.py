"""The output of a command: answers, remarks, and with ``--format json`` one object that holds all of them.

A command reports its work with :func:`say`, remarks for the reader with :func:`warn` and :func:`note`, and facts for
programs with :func:`answer`. The output of each function goes to:

=========  ===============  ================  ===========================
           text             text with ``-q``  ``--format json``
=========  ===============  ================  ===========================
``say``    standard output  nowhere           nowhere: a fact says it
``note``   standard error   nowhere           ``messages``
``warn``   standard error   standard error    ``messages``
``ask``    standard error   standard error    standard error
=========  ===============  ================  ===========================
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from typing import TextIO

_LEVELS = {"error": "red", "warning": "yellow", "note": "cyan"}
_VERDICTS = {"ACCEPT": "green", "DROP": "red", "REJECT": "red", "UNDECIDED": "yellow"}
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
_HANGING = 4  # columns: the hanging indent of wrapped lines
_NARROWEST = 40  # columns: a narrower terminal wraps the lines


@dataclass(slots=True)
class Console:
    """How a command prints, and the facts and messages that its JSON answer will hold."""

    form: str = "text"
    quiet: bool = False
    verbose: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, str | None]] = field(default_factory=list)


_current: ContextVar[Console] = ContextVar("console")


def current() -> Console:
    """Return the console of the command that runs; a plain one if none does."""
    return _current.get(_PLAIN)


_PLAIN = Console()


def use(console: Console) -> Any:  # noqa: ANN401 - a Token, whose type has a parameter that callers need not name
    """Make this the console of the command that runs. Returns the argument for :func:`leave`."""
    return _current.set(console)


def leave(token: Any) -> None:  # noqa: ANN401 - see use
    """Undo :func:`use`."""
    _current.reset(token)


def is_quiet() -> bool:
    """Tell whether ``-q`` was given."""
    return current().quiet


def is_verbose() -> bool:
    """Tell whether ``-v`` was given."""
    return current().verbose


def say(text: str = "", *, err: bool = False) -> None:
    """Print a line of the command's own account, wrapped at the terminal's width."""
    console = current()
    if console.form == "text" and not console.quiet:
        click.echo(wrapped(text, sys.stderr if err else sys.stdout), err=err)


def answer(**facts: Any) -> None:  # noqa: ANN401 - any JSON value
    """Add facts to the JSON answer of the command."""
    current().facts.update(facts)


def warn(text: str, help: str | None = None, *, err: bool = True) -> None:  # noqa: A002 - as the message reads
    """Print a warning, and a remedy below it."""
    _print_message("warning", text, help, err=err)


def note(text: str, help: str | None = None, *, err: bool = True) -> None:  # noqa: A002 - as the message reads
    """Print a fact that needs no action."""
    _print_message("note", text, help, err=err)


def error(text: str, help: str | None = None, *, err: bool = True) -> None:  # noqa: A002 - as the message reads
    """Print the failure of a part. The command continues."""
    _print_message("error", text, help, err=err)


def tell(line: str, *, err: bool = True) -> None:
    """Print a line at the level that it begins with (``warning: …``); without one it is a plain remark."""
    level, colon, text = line.partition(": ")
    if colon and level in _LEVELS:
        head, _, remedy = text.partition("\n  help: ")
        _print_message(level, head, remedy or None, err=err)
    else:
        _print_message("", line, None, err=err)


def ask(text: str) -> None:
    """Print the user's next step on standard error, in every format."""
    click.echo(text, err=True)


def _print_message(level: str, text: str, remedy: str | None, *, err: bool) -> None:
    console = current()
    if console.form == "json":
        console.messages.append({"level": level or "info", "text": text, "help": remedy})
        return
    if console.quiet and level in ("", "note"):
        return
    stream = sys.stderr if err else sys.stdout
    head = f"{click.style(level, fg=_LEVELS[level], bold=True)}: " if level else ""
    click.echo(wrapped(head + text, stream), err=err)
    if remedy is not None:
        click.echo(wrapped(f"  help: {remedy}", stream), err=err)


# --- terminals ------------------------------------------------------------------------------------------------------


def colour() -> bool | None:
    """Return False if the environment forbids colour, by NO_COLOR (no-color.org) or TERM; None: colour on terminals."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None


def verdict_styled(text: str) -> str:
    """Colour a text that begins with a verdict, such as ``DROP: tcp …``: the verdict alone."""
    word = re.match(r"[A-Z]+", text)
    found = _VERDICTS.get(word[0]) if word is not None else None
    return text if word is None or found is None else click.style(word[0], fg=found, bold=True) + text[word.end() :]


def wrapped(text: str, stream: TextIO | None) -> str:
    """Wrap lines at the width of a terminal, with a hanging indent. Output to a pipe is not wrapped."""
    if stream is None or not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return text if width < _NARROWEST else "\n".join(_wrapped_line(line, width) for line in text.split("\n"))


def _wrapped_line(line: str, width: int) -> str:
    plain = _ESCAPE.sub("", line)
    if len(plain) <= width:
        return line
    indent = " " * (len(plain) - len(plain.lstrip()) + _HANGING)
    pieces = textwrap.wrap(
        plain.strip(),
        width,
        initial_indent=indent[_HANGING:],
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    # a colour at the head of a line stays: it takes no columns, and textwrap would count it
    head = re.match(r"(\s*)(\x1b\[[0-9;]*m)+([^\x1b]*)(\x1b\[[0-9;]*m)", line)
    if head is not None and pieces[0].startswith(head[1] + head[3]):
        pieces[0] = head[0] + pieces[0][len(head[1]) + len(head[3]) :]
    return "\n".join(pieces)
