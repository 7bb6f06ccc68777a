"""Access to the file system: a compile reads through :class:`Files`, so that each access can be recorded.

Files are untrusted input: they are read whole, with a limit, and decoded as UTF-8. A file that is no text at all is an
error: leaving out a guest's file would leave the guest unfiltered.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pvefw_nft.errors import DeniedError, UnreadableError, UnusableFileError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_FILE_SIZE = 16 * 1024 * 1024
"""Largest file that is read, in bytes. pmxcfs itself holds files of at most 1 MiB."""

MAX_UNDECODABLE = 0.1
"""Share of characters that may not be UTF-8 (a comment in an older encoding) in a file that is still read."""

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_NO_FILES = {errno.ELOOP: "the link leads to itself", errno.ENXIO: "it is a socket, or a device that is not there"}
"""Errors of open(2) for a path that leads to no file. A file system that fails never gives them."""
_DENIED = (errno.EACCES, errno.EPERM)
_AS_ROOT = (
    "pvefw reads files as root, but without root's right to ignore file modes: have root own the file and its "
    "folders and its owner read them (chown root, chmod u+r, for folders u+rx), or let others read them"
)
_AS_OTHERS = "let this user read the file and enter its folders, or run this as root"
_FAILING = "see whether the file system is mounted and its daemon runs: systemctl status pve-cluster"


class Files:
    """The file system, and the host's name."""

    def text(self, path: Path | str) -> str | None:
        """Return the text of a file; see :func:`read_text`."""
        return read_text(path)

    def listed(self, folder: Path) -> list[str]:
        """Return the names in a folder; none if it does not exist. Raises ConfigurationError."""
        return list_folder(folder)

    def is_folder(self, path: Path) -> bool:
        """Tell whether a path leads to a folder. Raises UnreadableError."""
        return is_folder(path)

    def link(self, path: Path) -> str | None:
        """Return where a symbolic link points to, or None if the path is none. Raises UnreadableError."""
        return read_link(path)

    def host_name(self) -> str:
        """Return this host's name."""
        return socket.gethostname()


FILES = Files()
"""The file system, without recording."""


class OtherFiles(Files):
    """The files of another access, which answers each question that a subclass does not answer in its own way."""

    def __init__(self, files: Files) -> None:
        """Ask ``files``."""
        self._files = files

    def text(self, path: Path | str) -> str | None:
        """Return the text of a file, or None if it does not exist. Raises the errors of the other files."""
        return self._files.text(path)

    def listed(self, folder: Path) -> list[str]:
        """Return the names in a folder; none if it does not exist. Raises as :meth:`text`."""
        return self._files.listed(folder)

    def is_folder(self, path: Path) -> bool:
        """Tell whether a path leads to a folder. Raises as :meth:`text`."""
        return self._files.is_folder(path)

    def link(self, path: Path) -> str | None:
        """Return where a symbolic link points to, or None. Raises as :meth:`text`."""
        return self._files.link(path)

    def host_name(self) -> str:
        """Return this host's name."""
        return self._files.host_name()


class FilesOnce(OtherFiles):
    """Files of which each text is read once: for work that asks for a file again and again.

    A file that cannot be used is read again, and raises again.
    """

    def __init__(self, files: Files) -> None:
        """Take the access to files; nothing is read yet."""
        super().__init__(files)
        self._texts: dict[str, str | None] = {}

    def text(self, path: Path | str) -> str | None:
        """Return the text of a file, as it was when it was first asked for."""
        name = str(path)
        try:
            return self._texts[name]
        except KeyError:
            text = self._texts[name] = self._files.text(path)
            return text


class FilesBelow(Files):
    """The files below a folder that may come from anybody: no link leads out of it, and only regular files are read.

    A path is opened with O_PATH, which neither waits for a FIFO nor does anything to a device (open(2)); the kernel
    then names the opened file and its place (proc_pid_fd(5)), even if the path changes meanwhile.
    """

    def __init__(self, root: Path) -> None:
        """Take a folder for the whole file system."""
        self._root = root
        self._place = str(root.resolve())

    def text(self, path: Path | str) -> str | None:
        """Return the text of a file; see :func:`read_text`. Raises UnusableFileError for a file elsewhere."""
        return read_text(path, self._open)

    def listed(self, folder: Path) -> list[str]:
        """Return the names in a folder below the root; none if it does not exist. Raises ConfigurationError."""
        return list_folder(folder, self._list)

    def is_folder(self, path: Path) -> bool:
        """Tell whether a path leads to a folder below the root. Raises UnreadableError."""
        try:
            os.close(self._pinned(path, os.O_DIRECTORY))
        except UnusableFileError:  # it leads out of the root
            return False
        except OSError as error:
            if error.errno in _ABSENT:
                return False
            raise _unreadable(path, error) from None
        return True

    def _open(self, path: Path | str) -> int:
        pinned = self._pinned(path)
        try:
            _require_regular_file(pinned, path)
            return os.open(f"/proc/self/fd/{pinned}", _READ)
        finally:
            os.close(pinned)

    def _list(self, folder: Path) -> list[str]:
        pinned = self._pinned(folder, os.O_DIRECTORY)
        try:
            return [path.name for path in Path(f"/proc/self/fd/{pinned}").iterdir()]
        finally:
            os.close(pinned)

    def _pinned(self, path: Path | str, flags: int = 0) -> int:
        """Return a descriptor that names the target of a path, without opening it.

        Raises OSError, and UnusableFileError if that lies outside of the root.
        """
        pinned = os.open(path, os.O_PATH | os.O_CLOEXEC | flags)
        try:
            place = os.readlink(f"/proc/self/fd/{pinned}")  # noqa: PTH115 - each file of a compile is asked
            if not self._is_below(place):
                self._place = str(self._root.resolve())  # the root itself may be a link, which another process changed
            if not self._is_below(place):
                raise UnusableFileError(
                    str(path), 0, f"it leads out of {self._root}", "copy the file below the root instead"
                )
        except BaseException:
            os.close(pinned)
            raise
        return pinned

    def _is_below(self, place: str) -> bool:
        """Tell whether a path that the kernel gave, which has no ``..``, is the root or lies below it."""
        return place == self._place or place.startswith("/" if self._place == "/" else f"{self._place}/")


@lru_cache(maxsize=8)
def files_of(root: Path) -> Files:
    """Return the access to files below a root: ``/`` is the host's own, any other is untrusted."""
    return FILES if root == Path("/") else FilesBelow(root)


def list_folder(folder: Path, names: Callable[[Path], list[str]] = os.listdir) -> list[str]:
    """Return the names in a folder; none if it does not exist. Raises UnreadableError.

    ``names`` lists the folder, and raises OSError.
    """
    try:
        return names(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(folder, error) from None


def is_folder(path: Path) -> bool:
    """Tell whether a path leads to a folder. Raises UnreadableError."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        if error.errno in _ABSENT:
            return False
        raise _unreadable(path, error) from None


def read_link(path: Path | str) -> str | None:
    """Return where a symbolic link points to, or None if the path is none. Raises UnreadableError."""
    try:
        return os.readlink(path)  # noqa: PTH115 - asked for each file that is not there
    except OSError as error:
        if error.errno in (*_ABSENT, errno.EINVAL):
            return None
        raise _unreadable(path, error) from None


def _unreadable(path: Path | str, error: OSError) -> UnreadableError:
    message = f"{path}: cannot be read: {error.strerror}"
    if error.errno in _DENIED:
        return DeniedError(message, _AS_ROOT if os.geteuid() == 0 else _AS_OTHERS)
    return UnreadableError(message, _FAILING)


def read_text(path: Path | str, opened: Callable[[Path | str], int] | None = None) -> str | None:
    """Return the text of a file, without a byte-order mark, or None if it does not exist.

    Bytes that are not UTF-8 become U+FFFD, which the readers of lines report. ``opened`` returns a descriptor that
    reads the file. Raises UnreadableError if the file system fails, and UnusableFileError if the file can be
    read, but is too large, not a text, not a regular file, or a link that leads nowhere.
    """
    try:
        data = read_bytes(path, MAX_FILE_SIZE, opened)
    except FileNotFoundError:
        if read_link(path) is not None:
            raise UnusableFileError(str(path), 0, "the link leads nowhere", "mend it or remove it") from None
        return None
    except OSError as error:
        if (reason := _NO_FILES.get(error.errno or 0)) is not None:
            raise UnusableFileError(str(path), 0, reason, "mend it or remove it") from None
        raise _unreadable(path, error) from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UnusableFileError(str(path), 1, "the file is UTF-16", "save it as UTF-8")
    nul = data.find(b"\0")
    if nul >= 0:
        line = data.count(b"\n", 0, nul) + 1
        raise UnusableFileError(str(path), line, "not a text file (NUL byte)", "restore the file from a backup")
    text = data.decode("utf-8-sig", "replace")
    if text.count("\ufffd") > len(text) * MAX_UNDECODABLE:
        raise UnusableFileError(str(path), 1, "not UTF-8 text", "save it as UTF-8, or restore it from a backup")
    return text


def read_bytes(path: Path | str, limit: int, opened: Callable[[Path | str], int] | None = None) -> bytes:
    """Return the bytes of a regular file. ``opened`` returns a descriptor that reads it.

    Raises OSError, and UnusableFileError for a file that is not regular or has more than ``limit`` bytes.
    """
    descriptor = os.open(path, _READ) if opened is None else opened(path)
    try:
        size = _require_regular_file(descriptor, path)
        parts = []
        left = limit + 1
        while left and (part := os.read(descriptor, min(left, max(size, 4096) + 1))):
            parts.append(part)
            left -= len(part)
    finally:
        os.close(descriptor)
    if not left:
        reason = f"larger than {limit // 2**20} MiB"
        raise UnusableFileError(str(path), 0, reason, "this cannot be the right file; move it away")
    return b"".join(parts)


_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""Without O_NONBLOCK, opening a FIFO waits until another process writes to it."""


def _require_regular_file(descriptor: int, path: Path | str) -> int:
    """Return the size of an open file in bytes. Raises UnusableFileError for a file that is not regular."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        what = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise UnusableFileError(str(path), 0, f"{what}, where a text file should be", "move it away")
    return status.st_size
