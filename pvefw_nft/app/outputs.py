"""Files that the command line asks to write."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_MODE = 0o600
"""Rulesets describe a network: only their owner may read them, under any umask."""

_WRITABLE_BY_OTHERS = 0o022
_MAX_LINKS = 40  # as many as the kernel follows (path_resolution(7))
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def write_file(path: Path, pieces: Iterable[str]) -> None:
    """Write a regular file as a whole or not at all; write into any other, such as ``/dev/null`` or a FIFO.

    If other users may write to a folder of the path, their links and FIFOs there are not used: a link may lead to a
    file that only this user may write to. The text is written to a new file beside the old one, which then gets the old
    one's name; both are in the folder that was opened first. Raises OSError; ELOOP for a foreign link.
    """
    folder, name = _place(path)
    try:
        existing = _status(folder, name)
        if existing is None or stat.S_ISREG(existing.st_mode):
            _replace(folder, name, pieces)
        elif _is_foreign(folder, existing):
            raise OSError(errno.ELOOP, "not a regular file, and another user may have put it there")
        else:
            descriptor = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.writelines(pieces)
    finally:
        os.close(folder)


def _place(path: Path) -> tuple[int, str]:
    """Open the folder that a path leads to; return its descriptor, and the name in it.

    Links to files are followed one by one, while each belongs to this user or root. If the result is a link, the link
    is foreign, or it leads to no file, like the links of /proc/self/fd.
    """
    folder = _folder(path.parent, None)
    name = path.name or "."
    try:
        for _ in range(_MAX_LINKS):
            status = _status(folder, name)
            if status is None or not stat.S_ISLNK(status.st_mode) or _is_foreign(folder, status):
                return folder, name
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISREG(os.stat(name, dir_fd=folder).st_mode):
                    return folder, name
            target = Path(os.readlink(name, dir_fd=folder))
            following = _folder(target.parent, folder)
            os.close(folder)
            folder, name = following, target.name or "."
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    except BaseException:
        os.close(folder)
        raise


def _folder(path: Path, start: int | None) -> int:
    """Open a folder step by step, from the folder ``start`` or the working directory; follow no foreign link.

    The kernel's own guard (fs.protected_symlinks, proc(5)) looks at the last step of a path only.
    """
    here = os.open(".", _FOLDER, dir_fd=start)
    steps = list(reversed(path.parts))
    links = 0
    try:
        while steps:
            step = steps.pop()
            status = os.stat(step, dir_fd=here, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                if _is_foreign(here, status):
                    raise OSError(errno.ELOOP, f"{step} is a link, and another user may have put it there")
                steps += reversed(Path(os.readlink(step, dir_fd=here)).parts)
                continue
            following = os.open(step, _FOLDER, dir_fd=here)
            os.close(here)
            here = following
    except BaseException:
        os.close(here)
        raise
    return here


def _status(folder: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_foreign(folder: int, status: os.stat_result) -> bool:
    """Tell whether another user than us and root may have put something into a folder."""
    trusted = (0, os.geteuid())
    place = os.fstat(folder)
    return status.st_uid not in trusted and (place.st_uid not in trusted or bool(place.st_mode & _WRITABLE_BY_OTHERS))


def _replace(folder: int, name: str, pieces: Iterable[str]) -> None:
    temporary = f".{name[:200]}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, _MODE, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(pieces)
            file.flush()
            os.fchmod(file.fileno(), _MODE)
            os.fsync(file.fileno())
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.unlink(temporary, dir_fd=folder)
        raise
