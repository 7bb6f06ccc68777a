"""The records of pvefw: the last good rulesets under /var/lib, this boot's settings under /run.

Every file is written whole or not at all: to a temporary file, synced, then renamed over the old one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pvefw_nft.errors import HostError

from .. import service_user
from ..lock import RUN_DIRECTORY

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

STATE_DIRECTORY = Path("/var/lib/pvefw")
MAX_SIZE = 1 << 30
"""Size in bytes that no record reaches: the ruleset of 10,000 guests takes an eighth of it."""
_AS_ROOT = "run this as root"


def state_directory() -> Path:
    """Return the directory that outlives a reboot (``PVEFW_STATE_DIRECTORY``, else /var/lib/pvefw)."""
    return Path(os.environ.get("PVEFW_STATE_DIRECTORY", STATE_DIRECTORY))


def run_directory() -> Path:
    """Return the directory that does not (``PVEFW_RUN_DIRECTORY``, else /run, and there ``pvefw``)."""
    return Path(os.environ.get("PVEFW_RUN_DIRECTORY", RUN_DIRECTORY)) / "pvefw"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A file written and synced under a temporary name; :meth:`commit` puts it in place."""

    temporary: Path
    path: Path

    def commit(self) -> None:
        """Rename over the old file. The content is on disk already, so a full disk cannot fail this."""
        try:
            self.temporary.replace(self.path)
            _sync_directory(self.path.parent)
        except OSError as err:
            raise _cannot_write(self.path, err) from err

    def discard(self) -> None:
        """Remove the temporary file."""
        self.temporary.unlink(missing_ok=True)


def prepare(path: Path, value: Any) -> Prepared:  # noqa: ANN401 (any JSON value)
    """Write a JSON value beside ``path`` and sync it. Raises :class:`HostError` (full or read-only disk)."""
    return prepare_text(path, json.dumps(value))


def prepare_text(path: Path, text: str) -> Prepared:
    """Write text beside ``path`` and sync it. Raises :class:`HostError` (full or read-only disk)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.name}.*"):  # of a run that was killed
            set_aside(left)
            left.unlink(missing_ok=True)
        set_aside(path)
        # O_EXCL: never a file or link that the service's user put there, see service_user.py
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            service_user.hand_over(descriptor, path.parent)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as err:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _cannot_write(path, err) from err
    return Prepared(temporary, path)


def write(path: Path, value: Any) -> None:  # noqa: ANN401 (any JSON value)
    """Write a JSON value, whole or not at all. Raises :class:`HostError`."""
    prepare(path, value).commit()


def read(path: Path) -> Any:  # noqa: ANN401 (any JSON value)
    """Return the JSON value of a file, or None where there is none.

    Raises :class:`HostError` where the file cannot be read or was not written here.
    """
    text = read_text(path)
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as err:
        raise damaged(path, err) from err


def read_record(path: Path, check: Callable[[Any], _T | None]) -> _T | None:
    """Return the result of ``check`` for a file's JSON value; None if the file is missing or damaged.

    ``check`` raises KeyError, TypeError, ValueError or AttributeError for a value of another shape. A damaged file is
    as if it were not there, with a warning (:func:`take_warnings`).
    """

    def checked() -> _T | None:
        value = read(path)
        return None if value is None else check(value)

    return checked_record(path, checked)


def checked_record(path: Path, read_it: Callable[[], _T | None]) -> _T | None:
    """Return what ``read_it`` returns; None, with a warning, where it raises what the check of a record may raise."""
    try:
        return read_it()
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        _warn(damaged(path, f"{type(err).__name__}: {err}"))
    except HostError as err:
        if err.hint == _AS_ROOT:
            raise
        _warn(err)
    return None


def typed(value: Any, kind: type[_T]) -> _T:  # noqa: ANN401 (any JSON value)
    """Return a JSON value that must be of this type. Raises TypeError."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{str(value)[:40]!r} is not {kind.__name__}")
    return value


_warnings: dict[str, None] = {}


def _warn(error: HostError) -> None:
    warn(f"{error.message}; it is left out of account")


def warn(message: str) -> None:
    """Keep a warning for the user of the command: about a record that is damaged or cannot be written."""
    _warnings[message] = None


def take_warnings() -> list[str]:
    """Return the warnings since the last call, each once."""
    found = list(_warnings)
    _warnings.clear()
    return found


def read_text(path: Path) -> str | None:
    """Return the text of a file, or None where there is none. Raises what :func:`read` raises.

    Only a regular file of this user or root is read, that no other may write to, never through a link, and up to a
    size; root reads files of the service's user, too.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as err:
        if err.errno in (errno.ELOOP, errno.ENXIO):
            raise damaged(path, "it is no regular file") from err
        hint = _AS_ROOT if err.errno in {errno.EACCES, errno.EPERM} else None
        raise HostError(f"cannot read {path}: {err.strerror}", hint) from err
    try:
        status = os.fstat(descriptor)
        _check_status(path, status)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            # read(n) reserves n bytes at once, which a small machine does not have: never more than the file's size
            return file.read(min(MAX_SIZE, status.st_size)).decode()
    except OSError as err:
        raise HostError(f"cannot read {path}: {err.strerror}") from err
    except ValueError as err:
        raise damaged(path, err) from err
    finally:
        os.close(descriptor)


def _check_status(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise damaged(path, "it is no regular file")
    if not service_user.trusts(found.st_uid):
        raise damaged(path, f"it belongs to user {found.st_uid}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise damaged(path, f"others may write to it (mode {found.st_mode & 0o7777:o})")
    if found.st_size >= MAX_SIZE:
        raise damaged(path, f"it is larger than {MAX_SIZE >> 20} MiB")


def damaged(path: Path, reason: object) -> HostError:
    """Return the error for a file that is not as it was written."""
    return HostError(f"{path} is damaged: {reason}", f"remove it, then run `pvefw start`: {path}")


def remove(path: Path) -> None:
    """Remove a file if it is there; a folder in its place is moved aside. Raises :class:`HostError`."""
    if not (path.exists() or path.is_symlink()):
        return  # on a read-only file system unlink(2) fails even then
    try:
        set_aside(path)
        path.unlink(missing_ok=True)
    except OSError as err:
        raise _cannot_write(path, err) from err


def set_aside(path: Path) -> None:
    """Move a folder away that is where a file belongs, under a name that says so. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        names = (path.with_name(f"{path.name}.was-a-folder{number or ''}") for number in range(1000))
        path.rename(next(name for name in names if not name.exists()))


def remove_unfinished() -> None:
    """Remove temporary files of killed processes; the caller holds the lock."""
    for directory in (state_directory(), run_directory()):
        for left in directory.glob(".*"):
            if not left.is_dir():
                remove(left)


def _cannot_write(path: Path, err: OSError) -> HostError:
    hints = {
        errno.ENOSPC: f"make room on the disk of {path.parent}",
        errno.EDQUOT: f"make room on the disk of {path.parent}",
        errno.EROFS: f"{path.parent} must be on a file system that can be written",
        errno.EACCES: _AS_ROOT,
        errno.EPERM: _AS_ROOT,
    }
    return HostError(f"cannot write {path}: {err.strerror}", hints.get(err.errno or 0))


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
