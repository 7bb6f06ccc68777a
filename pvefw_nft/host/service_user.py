"""The user that the service runs as, and which of its files root may trust.

With a unit that has ``User=``, records and locks belong to that user, who may write to their folders at any time.
Root's commands work in the same folders: they make files that did not exist, follow no link, and hand the files to that
user. A file that root reads there may have any content, so the form of each record is checked. A record decides only
about things that this user decides anyway: which rules of pvefw filter this host, and the kernel's network settings
that pvefw sets.
"""

from __future__ import annotations

import os
import pwd
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import Final

import pvefw_nft
from pvefw_nft.errors import HostError

from . import tools

NAME: Final = "pvefw"
"""The user's name, which the unit has."""
_LINE: Final = f'u {NAME} - "firewall of guests and host" -'
MAKE: Final = f"systemd-sysusers --inline '{_LINE}'"
"""The command that makes it (systemd-sysusers(8))."""
_NET_ADMIN, _NET_RAW = 12, 13  # include/uapi/linux/capability.h
_NEEDED: Final = 1 << _NET_ADMIN | 1 << _NET_RAW
_EFFECTIVE = re.compile(r"^CapEff:\s*([0-9a-f]+)$", re.MULTILINE)


@lru_cache(maxsize=1)
def uid() -> int | None:
    """Return the user's number, or None if this host has no such user."""
    try:
        return pwd.getpwnam(NAME).pw_uid
    except KeyError:
        return None


def make() -> None:
    """Make the user, unless this host has it. Raises HostError."""
    if uid() is None:
        tools.run(["systemd-sysusers", "--inline", _LINE])
        uid.cache_clear()


def trusts(owner: int) -> bool:
    """Tell whether a file of this owner may be one of pvefw's records or locks."""
    return owner in (0, os.geteuid()) or (os.geteuid() == 0 and owner == uid())


def hand_over(descriptor: int, folder: Path) -> None:
    """Give a file that root just made in the service's folder to the service, which could not read it otherwise."""
    if os.geteuid() == 0 and (owner := uid()) not in (None, 0) and folder.stat().st_uid == owner:
        os.fchown(descriptor, owner, -1)


def need_privileges(status: Path = Path("/proc/self/status")) -> None:
    """Raise HostError unless this is root, or a process with the capabilities of the service's unit.

    Without them nothing would work, and each tool would say so differently.
    """
    if os.geteuid() == 0:
        return
    found = _EFFECTIVE.search(status.read_text(encoding="utf-8", errors="replace"))
    if found is None or int(found[1], 16) & _NEEDED != _NEEDED:
        raise HostError("this needs root, or CAP_NET_ADMIN and CAP_NET_RAW", "run this as root")


def why_missing() -> str | None:
    """Return that this host has no such user, and how to make it; None if it has."""
    return None if uid() is not None else f"there is no user {NAME} yet; make it, then print the unit again: {MAKE}"


def why_root(root: Path) -> str | None:
    """Return why the service must run as root on this host; None: it may run as its user.

    ``root`` is the folder of the configuration (``--root``).
    """
    for place in (Path(sys.executable), Path(sys.prefix), Path(sys.base_prefix), Path(pvefw_nft.__file__), root):
        for folder in (place, *place.absolute().parents):
            if not _is_open(folder):
                return f"{folder} is closed to users other than root"
    pve = root / "etc" / "pve"
    if not (pve / "sdn" / "pve-ipam-state.json").exists() and (pve / "priv" / "ipam.db").exists():
        return f"{pve / 'priv' / 'ipam.db'} holds addresses of guests (SDN), and only root may read it"
    return None


def _is_open(path: Path) -> bool:
    """Tell whether other users may read a file or enter a folder. True for a path that does not exist."""
    try:
        found = path.stat()
    except OSError:
        return True
    return bool(found.st_mode & (0o001 if path.is_dir() else 0o004))
