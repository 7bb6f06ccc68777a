"""Running the kernel's own tools: iptables-restore and its kin. Never through a shell."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import shutil
import subprocess
from collections import deque
from typing import TYPE_CHECKING

from pvefw_nft.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TIMEOUT = 240.0
"""Seconds a tool may take; a full restore of 50,000 rules takes a few."""
FOLDERS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The system's own folders of tools."""
_PACKAGES = {"ip6tables": "iptables", "iptables": "iptables", "nft": "nftables", "modprobe": "kmod"}
# "line 5 failed", "Error occurred at line: 5", "Error in line 5: …"
_LINE = re.compile(r"\bline:? (\d+)")
LIMIT_HINTS = {
    errno.EAGAIN: "raise the limit of processes: TasksMax= of the service, `ulimit -u`, kernel.threads-max",
    errno.EMFILE: "raise the limit of open files: LimitNOFILE= of the service, `ulimit -n`",
    errno.ENFILE: "raise the limit of open files of the system: fs.file-max",
}
"""Remedies for a limit that a system call ran into, by error number."""
_NO_PRIVILEGE = re.compile(r"permission denied|operation not permitted|you must be root", re.IGNORECASE)


class Runner:
    """Finds tools and runs them. Its folders come before those of PATH, and are the PATH of the tools."""

    def __init__(self, folders: str = FOLDERS, timeout: float = TIMEOUT) -> None:
        """``folders`` are separated by colons, ``timeout`` is in seconds."""
        self.folders = folders
        self._timeout = timeout

    def path(self, tool: str) -> str | None:
        """Return the path of a tool; None: it is not installed."""
        return shutil.which(tool, path=f"{self.folders}:{os.environ.get('PATH', '')}")

    def find(self, tool: str) -> str:
        """Do the work of :func:`find`."""
        path = self.path(tool)
        if path is None:
            family = tool.split("-", 1)[0]
            package = _PACKAGES.get(family, family)
            raise HostError(f"the program {tool} is not installed", f"apt-get install {package}")
        return path

    def run_all(
        self, commands: Sequence[Sequence[str]], text: str | None = None, timeout: float | None = None
    ) -> list[str]:
        """Do the work of :func:`run_all`."""
        running: list[_Running] = []
        try:
            for command in commands:
                # one by one: those started are ended if the next one fails
                running.append(_Running(command, text, self))  # noqa: PERF401
            return [started.output(self._timeout if timeout is None else timeout) for started in running]
        finally:
            for started in running:
                started.close()


_runner = Runner()


@contextlib.contextmanager
def use_runner(runner: Runner) -> Iterator[None]:
    """Have this process run its tools by this runner while the block runs."""
    global _runner
    before, _runner = _runner, runner
    try:
        yield
    finally:
        _runner = before


def is_installed(tool: str) -> bool:
    """Tell whether this host has a tool."""
    return _runner.path(tool) is not None


def version(tool: str) -> str:
    """Return the first line that ``TOOL --version`` prints. Raises HostError as :func:`run` does."""
    return (run([tool, "--version"], timeout=10).splitlines() or ["unknown version"])[0]


_started: deque[int] = deque(maxlen=256)


def note_started(process: int) -> None:
    """Count a process among the tools that ran here."""
    _started.append(process)


def was_started(process: int) -> bool:
    """Tell whether a process is one of the last 256 tools that ran here."""
    return process in _started


def find(tool: str) -> str:
    """Return the path of a tool. Raises :class:`HostError` that names its package where it is missing."""
    return _runner.find(tool)


def run(command: Sequence[str], text: str | None = None, timeout: float | None = None) -> str:
    """Run a tool with ``text`` on its standard input and return its standard output.

    ``command`` is the tool's name and its arguments. ``timeout`` is in seconds; without it the runner's holds, 240 s.
    Raises :class:`HostError` if the tool is missing, takes longer, or fails: then with its reason and, where it names
    one, the line of the input that it refused.
    """
    return run_all([command], text, timeout)[0]


def run_all(commands: Sequence[Sequence[str]], text: str | None = None, timeout: float | None = None) -> list[str]:
    """Run tools in parallel and return their outputs. Raises the error of :func:`run` for the first that fails."""
    return _runner.run_all(commands, text, timeout)


class _Running:
    """A tool that runs. Its output goes to memory, so that it never waits for a reader."""

    def __init__(self, command: Sequence[str], text: str | None, runner: Runner) -> None:
        self._command = command
        self._text = text
        self._files: list[int] = []
        tool, *arguments = command
        try:
            for name in ("input", "output", "errors"):
                self._files.append(os.memfd_create(name, os.MFD_CLOEXEC))
            reading, output, errors = self._files
            if text is not None:
                with open(reading, "wb", closefd=False) as file:
                    file.write(text.encode(errors="replace"))
                os.lseek(reading, 0, os.SEEK_SET)
            self._process = subprocess.Popen(
                [runner.find(tool), *arguments],
                stdin=subprocess.DEVNULL if text is None else reading,
                stdout=output,
                stderr=errors,
                env={"PATH": runner.folders, "LC_ALL": "C.UTF-8"},
            )
            _started.append(self._process.pid)
        except OSError as err:
            self._close_files()
            raise HostError(f"cannot run {tool}: {err.strerror}", LIMIT_HINTS.get(err.errno or 0)) from err
        except BaseException:
            self._close_files()
            raise

    def output(self, timeout: float) -> str:
        """Wait for its end and return its output. Raises HostError."""
        try:
            ended = os.pidfd_open(self._process.pid)
        except OSError as err:
            message = f"cannot wait for {self._command[0]}: {err.strerror}"
            raise HostError(message, LIMIT_HINTS.get(err.errno or 0)) from err
        try:
            # Popen.wait(timeout) looks at growing intervals, and so sleeps on when the tool has long ended
            ready, _, _ = select.select([ended], [], [], timeout)
        finally:
            os.close(ended)
        if not ready:
            raise HostError(
                f"{self._command[0]} did not end within {timeout:g} s",
                "find out why it hangs: another program may hold /run/xtables.lock",
            )
        status = self._process.wait()
        printed, said = (_content(descriptor) for descriptor in self._files[1:])
        if status != 0:
            raise _failure(self._command, self._text or "", said or printed, status)
        return printed

    def close(self) -> None:
        """End it where it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._close_files()

    def _close_files(self) -> None:
        for descriptor in self._files:
            os.close(descriptor)


def _content(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with open(descriptor, "rb", closefd=False) as file:
        return file.read().decode(errors="replace")


def _failure(command: Sequence[str], text: str, stderr: str, status: int) -> HostError:
    reason = _reason(stderr) or f"exit status {status}"
    message = f"{' '.join(command)} failed: {reason}"
    found = _LINE.search(stderr)
    lines = text.splitlines()
    if found is not None and 0 < int(found[1]) <= len(lines):
        message += f"\n  in line {found[1]} of its input: {lines[int(found[1]) - 1]}"
    hint = "run this as root" if _NO_PRIVILEGE.search(stderr) else None
    return HostError(message, hint)


def _reason(stderr: str) -> str:
    """Return the message of a tool, without its usage hints and warnings."""
    kept = [
        line.strip()
        for line in stderr.splitlines()
        if line.strip() and not line.startswith(("Try `", "# Warning:", "Error occurred at line:"))
    ]
    return "; ".join(kept[:4])
