"""Limit the wait for a file system that does not answer.

``/etc/pve`` is a FUSE file system. When its daemon hangs, each call to it hangs, and no signal ends this
call. So files are read in a thread of their own, which can be abandoned. A process cannot end while one of its threads
hangs in such a call, so a probe first finds out whether the file system answers.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from pvefw_nft.config.files import FILES, Files
from pvefw_nft.errors import UnreadableError, number_of_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_T = TypeVar("_T")

SECONDS = 10
"""How long one call to the file system may take (``PVEFW_FILE_TIMEOUT``)."""
_LOOK = 0.2  # seconds between two looks at whether the thread still moves
_HINT = "see whether its daemon hangs: systemctl status pve-cluster"


class Patience:
    """Runs functions that read files, and gives up if one call to the file system takes too long.

    Only the time in such calls counts, so that a large configuration may take as long as it needs. After a call that
    hangs nothing else is begun until it has ended, since that would hang as well.
    """

    def __init__(
        self, root: Path | str, probe: Callable[[float], bool] = lambda _: True, seconds: float | None = None
    ) -> None:
        """Wait ``seconds`` for each call; None: as long as ``PVEFW_FILE_TIMEOUT`` says, else 10 s.

        ``probe`` tells whether the file system below ``root`` answers within so many seconds.
        """
        self._root = str(root)
        self._probe = probe
        self._seconds = (
            float(number_of_environment("PVEFW_FILE_TIMEOUT", SECONDS, 1, 3600)) if seconds is None else seconds
        )
        self._call: tuple[float, str] | None = None
        self._thread: threading.Thread | None = None
        self._hanging = ""

    def run(self, function: Callable[[], _T]) -> _T:
        """Return the function's result, or raise its error; :class:`UnreadableError` if it hangs.

        A hanging function continues in its thread when the file system answers again: other code must not use its
        data then.
        """
        if threading.current_thread() is self._thread:
            return function()  # within another one
        if self._thread is not None and self._thread.is_alive():
            raise self._no_answer()
        if not self._probe(self._seconds):
            self._hanging = self._root
            raise self._no_answer()
        results: list[_T] = []
        errors: list[BaseException] = []
        done = threading.Event()

        def act() -> None:
            try:
                results.append(function())
            except BaseException as error:
                errors.append(error)
            finally:
                done.set()

        self._call = None
        self._thread = threading.Thread(target=act, name="files", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the limit of processes is reached: better read without a way out than not at all
            self._thread = None
            return function()
        while not done.wait(_LOOK):
            self._give_up_where_it_hangs()
        self._thread.join()
        self._thread = None
        if errors:
            raise errors[0]
        return results[0]

    def _give_up_where_it_hangs(self) -> None:
        call = self._call
        if call is not None and time.monotonic() - call[0] > self._seconds:
            self._hanging = call[1]
            raise self._no_answer()

    @contextlib.contextmanager
    def call(self, path: Path | str) -> Iterator[None]:
        """Say that the block waits for the file system, because of this path."""
        outer, self._call = self._call, (time.monotonic(), str(path))
        try:
            yield
        finally:
            self._call = None if outer is None else (time.monotonic(), outer[1])

    def files(self, files: Files = FILES) -> PatientFiles:
        """Return files each of whose calls counts."""
        return PatientFiles(files, self)

    def ask(self, path: Path | str, question: Callable[[], _T]) -> _T:
        """Return the answer of one call to the file system. Raises as :meth:`run`."""

        def asking() -> _T:
            with self.call(path):
                return question()

        return self.run(asking)

    def _no_answer(self) -> UnreadableError:
        return UnreadableError(f"{self._hanging}: the file system does not answer within {self._seconds:g} s", _HINT)


class PatientFiles(Files):
    """Files that do not wait for ever. Ask many questions within :meth:`Patience.run`, in one thread for all."""

    def __init__(self, files: Files, patience: Patience) -> None:
        """Ask ``files``."""
        self.files = files
        self.patience = patience

    def text(self, path: Path | str) -> str | None:
        """Return the text of a file, as the files that are asked; UnreadableError if they do not answer."""
        return self.patience.ask(path, lambda: self.files.text(path))

    def listed(self, folder: Path) -> list[str]:
        """Return the names in a folder; raises as :meth:`text`."""
        return self.patience.ask(folder, lambda: self.files.listed(folder))

    def is_folder(self, path: Path) -> bool:
        """Tell whether a path leads to a folder; raises as :meth:`text`."""
        return self.patience.ask(path, lambda: self.files.is_folder(path))

    def link(self, path: Path) -> str | None:
        """Return where a link points to, or None; raises as :meth:`text`."""
        return self.patience.ask(path, lambda: self.files.link(path))

    def host_name(self) -> str:
        """Return this host's name."""
        return self.files.host_name()
