"""Asking the file system: what a compile reads goes through :class:`Files`, so that it can be noted.

Files are untrusted input: they are read whole, with a limit, and decoded as UTF-8. A file that is no text at all is an
error: leaving out a guest's file would leave the guest unfiltered.
"""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from pvefw_nft.errors import ConfigurationError, UnusableFileError

MAX_FILE_SIZE = 16 * 1024 * 1024
"""Largest file that is read, in bytes. pmxcfs itself holds files of at most 1 MiB."""

MAX_UNDECODABLE = 0.1
"""Share of characters that may not be UTF-8 (a comment in an older encoding) in a file that is still read."""


class Files:
    """The file system, and the host's name."""

    def text(self, path: Path | str) -> str | None:
        """Return the text of a file; see :func:`read_text`."""
        return read_text(path)

    def listed(self, folder: Path) -> list[str]:
        """Return the names in a folder; none where it does not exist. Raises ConfigurationError."""
        return list_folder(folder)

    def is_folder(self, path: Path) -> bool:
        """Tell whether a path leads to a folder."""
        return path.is_dir()

    def link(self, path: Path) -> str | None:
        """Return where a symbolic link points to, or None where the path is none."""
        return str(path.readlink()) if path.is_symlink() else None

    def host_name(self) -> str:
        """Return this host's name."""
        return socket.gethostname()


FILES = Files()
"""The file system, of which nobody notes anything."""


def list_folder(folder: Path) -> list[str]:
    """Return what is in a folder; nothing where it does not exist. Raises ConfigurationError."""
    try:
        return [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigurationError(f"{folder}: cannot be read: {error.strerror}", "check its permissions") from None


def read_text(path: Path | str) -> str | None:
    """Return the text of a file, without a byte-order mark, or None where it does not exist.

    Bytes that are not UTF-8 become U+FFFD, which the readers of lines report. Raises ConfigurationError where
    the file cannot be read, and its subclass UnusableFileError where it can, but is too large, is no text, no regular
    file, or a link to nowhere.
    """
    try:
        data = _read_bytes(path)
    except FileNotFoundError:
        if Path(path).is_symlink():
            raise UnusableFileError(str(path), 0, "the link leads nowhere", "mend it or remove it") from None
        return None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}", "check its permissions") from None
    if len(data) > MAX_FILE_SIZE:
        reason = f"larger than {MAX_FILE_SIZE // 2**20} MiB"
        raise UnusableFileError(str(path), 0, reason, "this cannot be a firewall file; move it away")
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


def _read_bytes(path: Path | str) -> bytes:
    """Return a file's bytes, at most one more than are allowed. Raises OSError, ConfigurationError for a non-file."""
    # Without O_NONBLOCK, opening a FIFO would wait for somebody who writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            what = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise UnusableFileError(str(path), 0, f"{what}, where a text file should be", "move it away")
        parts = []
        left = MAX_FILE_SIZE + 1
        while left and (part := os.read(descriptor, min(left, max(status.st_size, 4096) + 1))):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)
