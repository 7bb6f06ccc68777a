"""Run nft's text by libnftables: from a file in memory, in a process of its own.

The Python bindings run text from a buffer only. Then libnftables copies it twice, and its errors do not say the line
(``erec_print`` in its erec.c). For 1,000 guests it takes 175 MB, which the other process gives back at its end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from pvefw_nft.errors import HostError

from .. import lock, signals, tools
from . import nft_text_program

if TYPE_CHECKING:
    from collections.abc import Iterable

_DEFERRED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that wait until the transaction is over, as they do while Python runs a function of a library."""


class EndedError(HostError):
    """The process was killed: the kernel may have taken the transaction, or not."""


def run(lines: Iterable[str]) -> str:
    """Run lines of nft's text as one transaction, and return libnftables' errors; none: it went through.

    Raises :class:`HostError` if there is no memory for them, or no library; :class:`EndedError` if it is not known
    whether it went through.
    """
    try:
        descriptor = os.memfd_create("pvefw", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "w", encoding="ascii", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            return _run_file(descriptor)
    except OSError as error:
        raise HostError(f"libnftables cannot be given the ruleset: {error}") from error


def _run_file(descriptor: int) -> str:
    path = f"/proc/self/fd/{descriptor}"
    with signals.deferred(*_DEFERRED):
        try:
            process = _start(path, descriptor)
        except OSError:  # at a limit of processes
            return nft_text_program.run_file(path)
        tools.note_started(process.pid)
        printed, _ = process.communicate()
    if process.returncode < 0:
        raise EndedError(
            f"the process that loads the ruleset was ended by signal {-process.returncode}",
            "see whether memory ran out: `dmesg`",
        )
    return printed.decode(errors="replace") or ("no reason given" if process.returncode else "")


def _start(path: str, descriptor: int) -> subprocess.Popen[bytes]:
    """Start the process that runs a file. Raises OSError.

    It ends with this one. It holds the lock as long as it runs, so that no other run of pvefw begins before.
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-S", nft_text_program.__file__, path, str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={"PATH": tools.FOLDERS, "LC_ALL": "C.UTF-8"},
        pass_fds=[descriptor, *lock.held()],
    )
