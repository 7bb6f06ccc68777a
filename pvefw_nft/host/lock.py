"""Locks between runs of pvefw: files under /run, held by flock(2), so a killed run leaves none held."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from pvefw_nft.errors import HostError, LockedError

from . import service_user
from .clock import CLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .clock import Clock

RUN_DIRECTORY = Path("/run")
WAIT = 10.0
"""Seconds a command waits for another one, unless told otherwise."""
_POLL = 0.05
_AS_ROOT = "run this as root; for the service, whose unit makes the file: `systemctl restart pvefw`"

_held: list[int] = []


def lock_path(name: str = "pvefw") -> Path:
    """Return the file of a lock; ``pvefw`` guards the ruleset, ``pvefw-plumbing`` the links."""
    return Path(os.environ.get("PVEFW_RUN_DIRECTORY", RUN_DIRECTORY)) / f"{name}.lock"


@contextlib.contextmanager
def hold(path: Path | None = None, wait: float = WAIT, clock: Clock = CLOCK) -> Iterator[None]:
    """Hold a lock while the block runs; ``wait`` is in seconds.

    Raises :class:`LockedError` that names the process holding it when the wait is over, and
    :class:`HostError` if the file cannot be made.
    """
    path = path or lock_path()
    try:
        descriptor = _open(path)
    except OSError as err:
        raise HostError(f"cannot open the lock file {path}: {err.strerror}", _remedy(err, path)) from err
    try:
        _check(descriptor, path)
        _acquire(descriptor, path, wait, clock)
        with contextlib.suppress(OSError):  # a full disk, or no regular file: the lock holds all the same
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        _held.append(descriptor)
        try:
            yield
        finally:
            _held.remove(descriptor)
    finally:
        os.close(descriptor)


def held() -> tuple[int, ...]:
    """Return the descriptors of the locks that this process holds; a process that inherits one holds the lock, too."""
    return tuple(_held)


def _open(path: Path) -> int:
    """Open the file of a lock; where none can be made, for want of room or of a disk to write, its folder.

    flock(2) asks for no right to write. Raises OSError.
    """
    # never through a link: other users may write to some folders in /run
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise
    try:
        return os.open(path, os.O_RDONLY | flags)
    except FileNotFoundError:
        return os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | flags)


def _remedy(error: OSError, path: Path) -> str:
    if error.errno in {errno.EACCES, errno.EPERM}:
        return _AS_ROOT
    return f"remove it: {path}" if error.errno in {errno.EISDIR, errno.ELOOP, errno.ENXIO} else "check the directory"


def _check(descriptor: int, path: Path) -> None:
    """Raise HostError for a file that is another user's, or has a second name: its content is about to be replaced."""
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and (found.st_nlink > 1 or not service_user.trusts(found.st_uid)):
        raise HostError(f"the lock file {path} is not pvefw's", f"remove it: {path}")


def _acquire(descriptor: int, path: Path, wait: float, clock: Clock) -> None:
    deadline = clock.since_boot() + wait
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if clock.since_boot() >= deadline:
                holder = _holder(descriptor)
                raise LockedError(
                    f"another run of pvefw (process {holder}) holds the lock {path}",
                    f"waited {wait:g} s; try again when it has ended, or wait longer with --wait",
                ) from None
            clock.sleep(_POLL)
        else:
            return


def _holder(descriptor: int) -> str:
    """Return the process number that the holder of the lock has written, or "unknown"."""
    try:
        text = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
    except OSError:
        text = ""
    return text if text.isdecimal() else "unknown"
