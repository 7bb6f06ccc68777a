"""Files that are saved in two steps: do not take one for gone, empty or short while it is being written.

``cp`` and some editors truncate a file and then write it; other editors rename it away first. A compile in that moment
would find a firewall that is off, or a guest without rules. A caller that removes something because a file is missing,
empty or cut off has to stay so for some seconds before it counts.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, TypeVar

from pvefw_nft.config.files import Files, OtherFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

_T = TypeVar("_T")
_SWITCH = re.compile(r"(enable|net\d+)\s*:", re.IGNORECASE | re.ASCII)

SETTLE_SECONDS = 3.0
"""How long a file must be missing, empty or cut off before it counts as that."""
_LONGEST = 10  # a file that changes all the time is given up after so many times the wait
_LOOK = 0.1  # seconds between two looks of a command that waits


def is_cut_off(text: str | None, before: str | None) -> bool:
    """Tell whether a file looks cut off, compared with its content before.

    It looks cut off if it is the beginning of the old content, or if it has fewer lines and lacks the old last line: a
    part of a new version may be written. It also looks cut off if an old line ``enable:`` or ``net0:`` is missing: to
    switch a firewall off, an administrator writes ``enable: 0`` or ``firewall=0``.
    """
    if before is None or text == before:
        return False
    if text is None or not text.strip():
        return bool(before.strip())
    if before.startswith(text) or (before.endswith("\n") and not text.endswith("\n")):
        return True
    now, then = _lines(text), _lines(before)
    if len(now) < len(then) and then[-1] not in now:
        return True
    return not _switches(then) <= _switches(now)


def _lines(text: str) -> list[str]:
    return [line for line in map(str.strip, text.splitlines()) if line]


def _switches(lines: list[str]) -> set[str]:
    """Return the keys of lines that decide whether something is filtered at all: ``enable``, and NICs of a guest."""
    return {match[1].lower() for match in map(_SWITCH.match, lines) if match is not None}


class SteadyFiles(Files):
    """Files as they are; one that looks cut off or is missing has its last content, until it has stayed so.

    For a service, which remembers the content read before and can look again: :meth:`doubt_ends` says when.
    """

    def __init__(
        self, files: Files, seconds: float = SETTLE_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Take an answer that takes something away only after it was the same for ``seconds``."""
        self.files = files
        """The underlying files."""
        self._seconds = seconds
        self._clock = clock
        self._known: dict[tuple[str, str], Any] = {}
        self._doubts: dict[tuple[str, str], _Doubt] = {}

    def doubt_ends(self) -> float | None:
        """Return the seconds until the next doubtful answer is taken; None if there is none."""
        if not self._doubts:
            return None
        return max(0.0, min(doubt.ends(self._seconds) for doubt in self._doubts.values()) - self._clock())

    def doubtful(self) -> list[str]:
        """Return the paths whose content is not believed yet."""
        return sorted({path for _, path in self._doubts})

    def text(self, path: Path | str) -> str | None:
        """Return the text of a file, or None if it does not exist. Raises the errors of the underlying files."""
        return self._settled("text", path, self.files.text(path), is_cut_off)

    def listed(self, folder: Path) -> list[str]:
        """Return the names in a folder; none if it does not exist. Raises as :meth:`text`."""
        before: list[str] = self._known.get(("folder", str(folder)), [])
        now = self.files.listed(folder)
        # one doubt for each name: the doubts about names are independent
        gone = [name for name in before if name not in now and self._settled("name", folder / name, "", _was_there)]
        for name in now:
            self._settled("name", folder / name, name, _was_there)
        answer = [*now, *gone]
        self._known["folder", str(folder)] = answer
        return answer

    def is_folder(self, path: Path) -> bool:
        """Tell whether a path leads to a folder. Raises as :meth:`text`."""
        return self._settled("is folder", path, self.files.is_folder(path), _was_there)

    def link(self, path: Path) -> str | None:
        """Return where a symbolic link points to, or None. Raises as :meth:`text`."""
        return self._settled("link", path, self.files.link(path), _was_there)

    def host_name(self) -> str:
        """Return this host's name."""
        return self.files.host_name()

    def _settled(self, kind: str, path: Path | str, now: _T, is_doubtful: Callable[[_T, _T], bool]) -> _T:
        key = (kind, str(path))
        before: _T = self._known.get(key, now)
        if before != now and is_doubtful(now, before):
            doubt = self._doubts.get(key)
            if doubt is None:
                doubt = self._doubts[key] = _Doubt(now, self._clock())
            doubt.look(now, self._clock())
            if self._clock() < doubt.ends(self._seconds):
                return before
        self._doubts.pop(key, None)
        if before == now:
            now = before  # the same object: a service holds each text once
        self._known[key] = now
        return now


class _Doubt:
    """An answer that is not taken yet, since when it has been the same, and since when there has been any."""

    def __init__(self, answer: object, now: float) -> None:
        self._answer = answer
        self._since = self._begun = now

    def look(self, answer: object, now: float) -> None:
        if answer != self._answer:
            self._answer, self._since = answer, now

    def ends(self, seconds: float) -> float:
        """Return the time at which the answer is to be taken."""
        return min(self._since + seconds, self._begun + _LONGEST * seconds)


def _was_there(now: object, before: object) -> bool:
    return bool(before) and not now


class SettledFiles(OtherFiles):
    """Files for a command that runs once: it waits if a file became missing, empty or cut off.

    ``knew`` returns the recorded facts about a path's text when the ruleset was last applied.
    """

    def __init__(
        self,
        files: Files,
        knew: Callable[[str, str | None], bool],
        names: Iterable[str],
        seconds: float = SETTLE_SECONDS,
        waiting: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``knew`` (path, text) tells whether the path had a text, and not this one; ``names`` are paths that had one.

        ``waiting`` is called with each path that is waited for.
        """
        super().__init__(files)
        self._knew = knew
        self._names: dict[str, set[str]] = {}
        for name in names:
            folder, _, last = name.rpartition("/")  # a Path for each takes ten times as long
            self._names.setdefault(folder, set()).add(last)
        self._seconds = seconds
        self._waiting = waiting

    def text(self, path: Path | str) -> str | None:
        """Return the text of a file, or None if it does not exist. Raises the errors of the underlying files."""

        def doubtful(text: str | None) -> bool:
            looks_cut = text is None or not text.strip() or not text.endswith("\n")
            return looks_cut and self._knew(str(path), text)

        return self._settled(str(path), lambda: self._files.text(path), doubtful)

    def listed(self, folder: Path) -> list[str]:
        """Return the names in a folder; none if it does not exist. Raises as :meth:`text`."""
        expected = self._names.get(str(folder), set())
        return self._settled(str(folder), lambda: self._files.listed(folder), lambda names: not expected <= set(names))

    def _settled(self, path: str, ask: Callable[[], _T], is_doubtful: Callable[[_T], bool]) -> _T:
        answer = ask()
        if not is_doubtful(answer) or not self._seconds:
            return answer
        self._waiting(path)
        begun = since = time.monotonic()
        while is_doubtful(answer) and time.monotonic() < min(since + self._seconds, begun + _LONGEST * self._seconds):
            time.sleep(min(_LOOK, self._seconds))
            now = ask()
            if now != answer:
                answer, since = now, time.monotonic()
        return answer
