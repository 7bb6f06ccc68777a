"""Terminal sessions in Markdown: the commands that a page shows, and the output that it shows below them.

A block of the language ``console`` holds commands behind a prompt, and output::

    $ ./pvefw check --root examples/tutorial/wrong
    error[host-bits]: `10.0.9.7/24` has host bits set
    …
    1 error
    $ echo $?
    1

Lines of output must occur in this order. ``…`` alone on a line stands for any lines, ``…`` at the end of a line for the
rest of it. Without ``echo $?`` the exit code is 0. Commands behind ``#`` change a host; they are not run. Text three
blanks behind a command explains it.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"^( *)```console\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_CODE = "echo $?"


@dataclass(frozen=True, slots=True)
class Session:
    """One command of a page: its prompt (``$`` or ``#``), its words, the lines below it, and the exit code."""

    prompt: str
    words: tuple[str, ...]
    lines: tuple[str, ...] = ()
    exit_code: int = 0

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments of ``./pvefw``."""
        return self.words[1:]

    @property
    def is_run(self) -> bool:
        """Whether a test can run it: ``./pvefw`` as any user, alone on its line."""
        return self.prompt == "$" and self.words[0] == "./pvefw" and not {"|", ">", "<"} & set(self.words)


def sessions_of(page: Path) -> list[Session]:
    """Return all commands of a page's console blocks, in order."""
    return sessions_in(page.read_text("utf-8"))


def sessions_in(text: str) -> list[Session]:
    """Return all commands of the console blocks of Markdown, in order."""
    sessions: list[Session] = []
    for indent, block in _BLOCK.findall(text):
        lines = [line.removeprefix(indent) for line in re.sub(r" *\\\n *", " ", block).splitlines()]
        for line in lines:
            prompt, _, rest = line.partition(" ")
            if prompt not in ("$", "#") or not rest:
                *_, last = sessions
                sessions[-1] = Session(last.prompt, last.words, (*last.lines, line), last.exit_code)
            elif rest == _CODE:
                sessions.append(Session(prompt, ("echo",)))
            else:
                command = re.split(r" {3,}", rest)[0]
                sessions.append(Session(prompt, tuple(shlex.split(command, comments=True))))
    return list(_with_codes(sessions))


def _with_codes(sessions: list[Session]) -> list[Session]:
    """Give each command the exit code that an ``echo $?`` behind it shows."""
    result: list[Session] = []
    for one in sessions:
        if one.words == ("echo",):
            before = result.pop()
            result.append(Session(before.prompt, before.words, before.lines, int(one.lines[0])))
        else:
            result.append(one)
    return result


@cache
def run(arguments: tuple[str, ...]) -> tuple[int, str]:
    """Run pvefw in the checkout's folder, as the pages do; return its exit code and all that it prints."""
    command = [sys.executable, "-c", "from pvefw_nft.cli import run; run()", *arguments]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=REPOSITORY, check=False
    )
    return done.returncode, done.stdout


def assert_shown(session: Session) -> None:
    """Run a command and compare its output with the page."""
    assert_like(session, *run(session.arguments))


def assert_like(session: Session, code: int, text: str) -> None:
    """Compare the exit code and the output of a command with the page."""
    command = " ".join(session.words)
    assert code == session.exit_code, f"{command}: exit code {code}\n{text[-2000:]}"
    output = iter(text.splitlines())
    for line in session.lines:
        if line.strip() != "…":
            assert any(_is_like(line, printed) for printed in output), f"{command}: not there, or not here: {line}"


def _is_like(line: str, printed: str) -> bool:
    # trailing blanks are invisible on a page, and editors remove them
    if line.endswith("…") and not printed.endswith("…"):
        return printed.startswith(line.removesuffix("…").rstrip())
    return line.rstrip() == printed.rstrip()
