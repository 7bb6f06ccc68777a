"""A process without privileges that reads tenants' files, and the messages to and from it.

It is a fork, not another program: the modules that it needs are loaded already, and starting costs milliseconds. Only
where its capabilities would stay with it (:func:`.confine.needs_another_program`), it runs :mod:`.confined_program`. It
keeps no descriptor but two pipes, and gives up what :mod:`.confine` takes before it reads anything.

The pipes carry frames: four bytes of length, then so many bytes. The other process may send anything, so the reader of
a frame checks its content; it is never code (no pickle).
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import pickle
import resource
import select
import signal
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvefw_nft.errors import CompilerError, HostError, number_of_environment

from . import signals
from .confine import confine, forgo_capabilities, needs_another_program
from .tools import LIMIT_HINTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

SECONDS = 200
"""Seconds of the processor that one request may take (``PVEFW_COMPILER_SECONDS``): less than the watchdog's 600."""
MAX_MEMORY = 8 << 30
"""Bytes that the process may have beyond its size at the start; at most half of the machine's
(``PVEFW_COMPILER_MEMORY`` in MiB). The ruleset of 5,000 guests takes 2 GiB."""
MAX_FRAME = 1 << 30
_MIN_MEMORY = 1 << 30
_LEAST_MEMORY = 64  # MiB that may be asked for; with less Python cannot start a thread
_WAIT = 400.0  # seconds for an answer, its own waits included
_PIPE = 1 << 20
_MAX_LEFT_BEHIND = 3
_F_SETPIPE_SZ = 1031  # include/uapi/linux/fcntl.h

_STANDARD = (0, 1, 2)

KILLED_BY_FILTER = "it was killed by SIGSYS"
"""The answer of :meth:`Worker.close` after a unit's seccomp filter killed it (pvefw's own filter never kills)."""

_left_behind: set[int] = set()
"""Processes that were killed and have not ended: one that waits for a hanging file system cannot."""


class Channel:
    """One end of two pipes. ``seconds`` is how long a frame may take to come or go; None: as long as it takes."""

    def __init__(self, reading: int, writing: int, seconds: float | None = None) -> None:
        """Read from one descriptor and write to the other."""
        self.descriptors = (reading, writing)
        self._seconds = seconds

    def send(self, frame: bytes) -> None:
        """Send a frame. Raises OSError (the other end is gone) and TimeoutError."""
        writing, end = self.descriptors[1], self._end()
        left = memoryview(struct.pack("=I", len(frame)) + frame)
        while left:
            self._await([], [writing], end)
            left = left[os.write(writing, left[: select.PIPE_BUF] if end is not None else left) :]

    def receive(self) -> bytes:
        """Return the next frame. Raises EOFError if the other end is gone, TimeoutError, ValueError (too long)."""
        end = self._end()
        (length,) = struct.unpack("=I", self._read(4, end))
        if length > MAX_FRAME:
            raise ValueError(f"a frame of {length} bytes")
        return self._read(length, end)

    def closes_within(self, seconds: float) -> bool:
        """Tell whether the other end closes within so many seconds. A frame that arrives ends the wait."""
        poll = select.poll()
        poll.register(self.descriptors[0], select.POLLIN)
        return any(not event & select.POLLIN for _, event in poll.poll(seconds * 1000))

    def _read(self, length: int, end: float | None) -> bytes:
        parts = []
        while length:
            self._await([self.descriptors[0]], [], end)
            part = os.read(self.descriptors[0], min(length, _PIPE))
            if not part:
                raise EOFError
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def _end(self) -> float | None:
        return None if self._seconds is None else time.monotonic() + self._seconds

    @staticmethod
    def _await(reading: Sequence[int], writing: Sequence[int], end: float | None) -> None:
        if end is not None and not any(select.select(reading, writing, [], max(0.0, end - time.monotonic()))):
            raise TimeoutError

    def close(self) -> None:
        """Close both ends."""
        for descriptor in self.descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)


class Worker:
    """The other process. It ends with this one, and with :meth:`close`."""

    def __init__(self, serve: Callable[[Channel, Sequence[str]], None], readable: Sequence[Path]) -> None:
        """Start the process: ``serve`` runs there with the channel and the names of missing confinements, and may read
        files below ``readable``. It is a method of an object that can be pickled, see :class:`.confined_program.Job`.
        Raises HostError if no process can be started, and CompilerError if earlier ones hang.
        """
        _reap()
        if len(_left_behind) >= _MAX_LEFT_BEHIND:
            raise CompilerError("processes that read the configuration hang", "see whether its file system answers")
        memory = _memory()
        job = pickle.dumps((_owner(serve), list(readable), memory)) if needs_another_program() else None
        descriptors: list[int] = []
        try:
            descriptors += _pipe()
            descriptors += _pipe()
            to_read, child_writes, child_reads, to_write = descriptors
            with signals.deferred(signal.SIGINT):  # a function that Python calls at a fork would lose it
                self._process = os.fork()
                if self._process == 0:
                    channel = Channel(child_reads, child_writes)
                    if job is None:
                        _become_worker(channel, lambda: serve(channel, confine(readable, memory)))
                    _become_worker(channel, lambda: _run_program(channel))
        except OSError as error:
            for descriptor in descriptors:
                os.close(descriptor)
            hint = LIMIT_HINTS.get(error.errno or 0)
            raise HostError(f"no process to compile in: {error.strerror}", hint) from error
        os.close(child_writes)
        os.close(child_reads)
        self.channel = Channel(to_read, to_write, _WAIT)
        with contextlib.suppress(OSError):
            fcntl.fcntl(to_read, _F_SETPIPE_SZ, _PIPE)
        if job is not None:
            with contextlib.suppress(OSError, TimeoutError):  # it ended: waiting for its first frame reports that
                self.channel.send(job)

    def allow(self) -> None:
        """Let the next request take its share of the processor; beyond that the kernel ends the process."""
        seconds = number_of_environment("PVEFW_COMPILER_SECONDS", SECONDS, 1, 86_400)
        with contextlib.suppress(OSError, ValueError):
            most = int(self._spent()) + 1 + seconds
            resource.prlimit(self._process, resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))

    def _spent(self) -> float:
        """Return the processor time that it took so far, in seconds."""
        with open(f"/proc/{self._process}/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> str:
        """End the process without waiting for it if it hangs. Return how it had ended before, empty if it ran."""
        self.channel.close()
        ended = _wait(self._process, 0.2)
        if ended is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process, signal.SIGKILL)
            if _wait(self._process, 1.0) is None:
                _left_behind.add(self._process)
            return "it was ended"
        return _spelled(ended)


def _become_worker(channel: Channel, work: Callable[[], None]) -> NoReturn:
    """Do the work in the process that was just forked, and end it."""
    status = 1
    try:
        gc.freeze()  # what belongs to the other process is not to be closed by this one
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the other process decides
        _keep_only(channel.descriptors)
        work()
        status = 0
    except BaseException:
        status = 1  # the other end sees that it is gone
    finally:
        os._exit(status)


def _owner(method: Any) -> object:  # noqa: ANN401 - a function that is no method has no owner
    """Return the object that a method is bound to. Raises AttributeError."""
    return method.__self__


def _run_program(channel: Channel) -> NoReturn:
    """Become :mod:`.confined_program`, which has no capabilities."""
    for descriptor in channel.descriptors:
        os.set_inheritable(descriptor, True)  # noqa: FBT003 - it takes no keyword
    forgo_capabilities()
    # where this program's modules lie, also where it was started in their folder
    paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    ends = map(str, channel.descriptors)
    command = [sys.executable, "-P", "-m", "pvefw_nft.host.confined_program", *ends]
    os.execve(  # noqa: S606 - without a shell, like every command here
        sys.executable, command, {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    )


def _pipe() -> tuple[int, int]:
    """Return a pipe whose descriptors are none of the standard ones, which a command may have been started without."""
    ends = [os.pipe()]
    while min(ends[-1]) <= _STANDARD[-1]:
        ends.append(os.pipe())
    for reading, writing in ends[:-1]:
        os.close(reading)
        os.close(writing)
    return ends[-1]


def _keep_only(descriptors: Sequence[int]) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in _STANDARD:
        os.dup2(nothing, standard)
    first = _STANDARD[-1] + 1
    for kept in (*sorted(descriptors), os.sysconf("SC_OPEN_MAX")):
        os.closerange(first, kept)
        first = kept + 1


def _memory() -> int:
    given = number_of_environment("PVEFW_COMPILER_MEMORY", 0, _LEAST_MEMORY, 1 << 20)
    if given:
        return given << 20
    half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return min(MAX_MEMORY, max(_MIN_MEMORY, half))


def _wait(process: int, seconds: float) -> int | None:
    """Return the wait status of a child, or None if it has not ended within so many seconds."""
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return 0
    try:
        select.select([descriptor], [], [], seconds)
        ended, status = os.waitpid(process, os.WNOHANG)
    except ChildProcessError:
        return 0
    finally:
        os.close(descriptor)
    return status if ended else None


def _spelled(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGXCPU:
        return "it took more than its share of the processor"
    return f"it was killed by {signal.Signals(-code).name}" if code < 0 else f"it ended with status {code}"


def _reap() -> None:
    for process in list(_left_behind):
        if _wait(process, 0) is not None:
            _left_behind.discard(process)
