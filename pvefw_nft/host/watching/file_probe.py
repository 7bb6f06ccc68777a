"""Asking in a process of its own whether a file system answers.

A call to a FUSE file system whose daemon has taken the request and does not answer cannot be ended, not even by SIGKILL
(request_wait_answer in fs/fuse/dev.c): a process with a thread in this call does not end before the daemon answers. So
a child makes the first calls, and is left behind where they hang.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import TYPE_CHECKING

from .. import signals

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import NoReturn

_left_behind: set[int] = set()
_HAS_ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT
_POLL = 0.01  # seconds


def answers(root: Path, seconds: float) -> bool:
    """Tell whether the folders of a configuration and cluster.fw can be read; the content does not matter.

    ``root`` holds ``etc/pve``. While a child of an earlier call still hangs, nothing is asked again.
    """
    _reap()
    if _left_behind:
        return False
    pve = root / "etc" / "pve"
    return _try([pve, pve / "firewall", pve / "nodes", pve / "local", pve / "firewall" / "cluster.fw"], seconds)


def _try(paths: Sequence[Path], seconds: float) -> bool:
    try:
        with signals.deferred(signal.SIGINT):  # a function that Python calls at a fork would lose it
            child = os.fork()
            if child == 0:
                _become_probe(paths)
    except OSError:
        return True  # no process left: the caller has to find out itself
    if _ends_within(child, seconds):
        os.waitpid(child, 0)
        return True
    os.kill(child, signal.SIGKILL)
    _left_behind.add(child)
    return False


def _become_probe(paths: Sequence[Path]) -> NoReturn:
    """Touch the paths in the process that was just forked, and end it."""
    try:
        for path in paths:
            with contextlib.suppress(OSError):
                _touch(path)
    finally:
        os._exit(0)


def _ends_within(child: int, seconds: float) -> bool:
    try:
        ended = os.pidfd_open(child)
    except OSError:  # no descriptor left
        end = time.monotonic() + seconds
        while (running := os.waitid(os.P_PID, child, _HAS_ENDED) is None) and time.monotonic() < end:
            time.sleep(_POLL)
        return not running
    try:
        ready, _, _ = select.select([ended], [], [], seconds)
    finally:
        os.close(ended)
    return bool(ready)


def _touch(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if path.suffix == ".fw":
            os.read(descriptor, 1)
        else:
            os.listdir(descriptor)  # noqa: PTH208 - a descriptor has no Path
    finally:
        os.close(descriptor)


def _reap() -> None:
    for child in list(_left_behind):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(child, os.WNOHANG)[0] == 0:
                continue
        _left_behind.discard(child)
