"""Running the kernel's own tools: iptables-restore and its kin. Never through a shell."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

from pvefw_nft.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Sequence

TIMEOUT = 300.0
"""Seconds a tool may take; a full restore of 50,000 rules takes a few."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PACKAGES = {"ip6tables": "iptables", "iptables": "iptables", "nft": "nftables", "modprobe": "kmod"}
# "line 5 failed", "Error occurred at line: 5", "Error in line 5: …"
_LINE = re.compile(r"\bline:? (\d+)")
_NO_PRIVILEGE = re.compile(r"permission denied|operation not permitted|you must be root", re.IGNORECASE)


def find(tool: str) -> str:
    """Return the path of a tool. Raises :class:`HostError` that names its package where it is missing."""
    path = shutil.which(tool, path=f"{os.environ.get('PATH', '')}:{_PATH}")
    if path is None:
        family = tool.split("-", 1)[0]
        package = _PACKAGES.get(family, family)
        raise HostError(f"the program {tool} is not installed", f"apt-get install {package}")
    return path


def run(command: Sequence[str], text: str | None = None, timeout: float = TIMEOUT) -> str:
    """Run a tool with ``text`` on its standard input and return its standard output.

    ``command`` is the tool's name and its arguments. Raises :class:`HostError` where the tool is missing,
    takes longer than ``timeout`` seconds, or fails: then with its reason and, where it names one, the line of
    the input that it refused.
    """
    tool, *arguments = command
    try:
        done = subprocess.run(
            [find(tool), *arguments],
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            env={"PATH": _PATH, "LC_ALL": "C.UTF-8"},
        )
    except subprocess.TimeoutExpired as err:
        raise HostError(
            f"{tool} did not end within {timeout:g} s",
            "see what it waits for: another program may hold /run/xtables.lock",
        ) from err
    except OSError as err:
        raise HostError(f"cannot run {tool}: {err.strerror}") from err
    if done.returncode != 0:
        raise _failure(command, text or "", done.stderr or done.stdout, done.returncode)
    return done.stdout


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
    """Return what a tool said, without its usage hints and warnings."""
    kept = [
        line.strip()
        for line in stderr.splitlines()
        if line.strip() and not line.startswith(("Try `", "# Warning:", "Error occurred at line:"))
    ]
    return "; ".join(kept[:4])
