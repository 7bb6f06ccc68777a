"""Commands of pvefw as processes that inherit this thread's namespaces, without the time that Python takes to start."""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import signal
import sys
import traceback
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from pvefw_nft import app, cli
from pvefw_nft.cli import main
from pvefw_nft.pipeline.preload import load_stages
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path


PATIENCE = 240.0
"""Seconds that a command may take to its end: a start can need a minute in an emulated machine with little time."""


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a command: its exit status (negative: by this signal), and its output."""

    status: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return self.out + self.err


class Command:
    """A command that runs."""

    def __init__(self, arguments: Sequence[str], folder: Path, first: Callable[[], object] = lambda: None) -> None:
        """Start it; its output goes to files in ``folder``. ``first`` is called in its process."""
        self._files = [folder / f"{len(list(folder.iterdir()))}.{name}" for name in ("out", "err")]
        descriptors = [os.open(file, os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o600) for file in self._files]
        sys.stdout.flush()
        sys.stderr.flush()
        import_commands()
        # Python forgets signals that reach a child before it has ended its part of the fork
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        self.pid = os.fork()
        if self.pid == 0:
            _become(descriptors, arguments, first, mask)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for descriptor in descriptors:
            os.close(descriptor)

    def said(self) -> str:
        """Return its output."""
        return "".join(file.read_text(errors="replace") for file in self._files)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def is_running(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def waits_for(self, condition: Callable[[], object], seconds: float = 30) -> None:
        """Wait for something while it runs."""
        holds = False

        def is_over() -> bool:
            nonlocal holds
            holds = bool(condition())
            return holds or not self.is_running()

        wait_until(is_over, seconds)
        assert holds, self.said()

    def ended(self, seconds: float = PATIENCE) -> Done:
        """Wait for its end; one that does not end is killed, and fails the test."""
        hangs = not wait_until(lambda: not self.is_running(), seconds, every=0.01)
        if hangs:
            self.send(signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        out, err = (file.read_text(errors="replace") for file in self._files)
        assert not hangs, f"it did not end: {out}{err}"
        return Done(os.waitstatus_to_exitcode(status), out, err)


@cache
def import_commands() -> None:
    """Import what commands import when they need it, so that no process does it for itself.

    That takes half of a command's time, and 1.8 seconds of a processor in the emulated machine.
    """
    load_stages(checks=True)
    importlib.import_module("tracemalloc")  # pytest's own hook asks for it where a limit of a test may forbid that
    for package in (cli, app):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)


def pvefw(folder: Path, *arguments: str, seconds: float = PATIENCE) -> Done:
    """Run a command to its end."""
    return Command(arguments, folder).ended(seconds)


@contextlib.contextmanager
def service(folder: Path, *arguments: str, first: Callable[[], object] = lambda: None) -> Iterator[Command]:
    """Have ``pvefw run`` run while the block does, and end it by SIGTERM. ``first`` is called in its process."""
    command = Command(["run", *arguments], folder, first)
    try:
        yield command
    finally:
        with contextlib.suppress(ProcessLookupError):
            command.send(signal.SIGTERM)
        done = command.ended()
    assert done.status == 0, done.said
    assert "Traceback" not in done.said


def _become(descriptors: Sequence[int], arguments: Sequence[str], first: Callable[[], object], mask: set[int]) -> None:
    """Become the command in a process just forked, which takes signals by ``mask`` from here on."""
    status = 99
    try:
        # a shell has the commands that it starts in the background ignore it, tests among them
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, descriptor in enumerate(descriptors, 1):
            os.dup2(descriptor, number)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - pytest's own would keep it in memory
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        first()
        main(arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except KeyboardInterrupt:  # before the command began
        status = 130
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
