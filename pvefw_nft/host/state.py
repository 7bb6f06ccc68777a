"""What pvefw remembers: the last good rulesets under /var/lib, this boot's settings under /run.

Every file is written whole or not at all: to a temporary file, synced, then renamed over the old one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pvefw_nft.errors import HostError

from .lock import RUN_DIRECTORY

STATE_DIRECTORY = Path("/var/lib/pvefw")


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
            left.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
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
    except ValueError as err:
        raise damaged(path, err) from err


def read_text(path: Path) -> str | None:
    """Return the text of a file, or None where there is none. Raises what :func:`read` raises."""
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except OSError as err:
        hint = "run this as root" if err.errno in {errno.EACCES, errno.EPERM} else None
        raise HostError(f"cannot read {path}: {err.strerror}", hint) from err
    except ValueError as err:
        raise damaged(path, err) from err


def damaged(path: Path, reason: object) -> HostError:
    """Return the error for a file that is not as it was written."""
    return HostError(f"{path} is damaged: {reason}", f"remove it, then run `pvefw start`: {path}")


def remove(path: Path) -> None:
    """Remove a file if it is there. Raises :class:`HostError`."""
    try:
        path.unlink(missing_ok=True)
    except OSError as err:
        raise _cannot_write(path, err) from err


def remove_unfinished() -> None:
    """Remove what runs that were killed left beside the files they were writing; the caller holds the lock."""
    for directory in (state_directory(), run_directory()):
        for left in directory.glob(".*"):
            remove(left)


def _cannot_write(path: Path, err: OSError) -> HostError:
    hints = {
        errno.ENOSPC: f"make room on the disk of {path.parent}",
        errno.EDQUOT: f"make room on the disk of {path.parent}",
        errno.EROFS: f"{path.parent} must be on a file system that can be written",
        errno.EACCES: "run this as root",
        errno.EPERM: "run this as root",
    }
    return HostError(f"cannot write {path}: {err.strerror}", hints.get(err.errno or 0))


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
