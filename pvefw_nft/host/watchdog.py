"""Start the watchdog, which undoes a change without a confirmation in time.

It runs outside of the command, so that it works also when the shell, the ssh session or pvefw dies: a transient
systemd timer where systemd runs, else a process of its own session.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pvefw_nft.errors import HostError

from . import tools
from .proxmox.services import has_systemd

if TYPE_CHECKING:
    from collections.abc import Sequence

_START = 60.0  # seconds for the process to say that it runs


def start_watchdog(token: str, seconds: float) -> None:
    """Start the watchdog of the change with that token. ``seconds``: how long it waits.

    Raises HostError or OSError unless it is known to run.
    """
    if has_systemd():
        start_timer(_command(token), f"pvefw-guard-{token}", seconds)
    else:
        start_watchdog_process(token, seconds)


def start_watchdog_process(token: str, seconds: float) -> None:
    """Do the same without systemd."""
    start_process([*_command(token), "--after", f"{seconds:g}"])


def _command(token: str) -> list[str]:
    return [sys.executable, "-m", "pvefw_nft.cli", "rollback", "--guard", token]


def start_timer(command: Sequence[str], unit: str, seconds: float) -> None:
    """Have systemd run a command in so many seconds, unless the timer of that name is stopped. Raises HostError."""
    # oneshot: a start by hand waits for the command's end (`systemctl start --wait` would need D-Bus)
    timer = [f"--on-active={seconds:g}s", f"--unit={unit}", "--timer-property=AccuracySec=100ms"]
    timer.append("--service-type=oneshot")
    environment = [f"--setenv={key}={value}" for key, value in _environment().items()]
    tools.run(["systemd-run", "--quiet", "--collect", *timer, *environment, "--", *command])
    tools.run(["systemctl", "is-active", "--quiet", f"{unit}.timer"])


def start_process(command: Sequence[str]) -> None:
    """Start a command that survives this one, and wait until it says that it runs. Raises HostError, OSError."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as ready:
        try:
            # a session of its own survives the end of this terminal
            subprocess.Popen(
                [*command, "--ready", str(writing)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=[writing],
                env={**os.environ, **_environment()},
                cwd="/",
            )
        finally:
            os.close(writing)
        # end of file: it died before it could say so
        if not select.select([ready], [], [], _START)[0] or not ready.read(1):
            raise HostError("the guard process did not start")


def _environment() -> dict[str, str]:
    """Return the environment by which the watchdog is this program with this state, in any folder."""
    kept = {key: os.environ[key] for key in ("PVEFW_RUN_DIRECTORY", "PVEFW_STATE_DIRECTORY") if key in os.environ}
    paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths)}
