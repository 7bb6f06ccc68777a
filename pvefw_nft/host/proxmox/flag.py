"""The file by which Proxmox VE knows that something else than its nftables firewall filters guests.

While it exists, proxmox-firewall does nothing, and Proxmox VE plugs NICs with firewall=1 through firewall bridges. /run
is empty after a boot, so it has to be made again before guests start.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from ..lock import RUN_DIRECTORY
from ..records import state

_PATIENCE = 2.0  # seconds
_NAME = "proxmox-nftables-firewall-force-disable"


def flag_path() -> Path:
    """Return where the file lies: in /run, or in ``PVEFW_RUN_DIRECTORY``."""
    return Path(os.environ.get("PVEFW_RUN_DIRECTORY", RUN_DIRECTORY)) / _NAME


def keep_flag() -> str | None:
    """Make the file unless it exists. Returns the reason if it could not be made; the caller continues without it.

    Where the service runs as its own user, who may not, the unit ``pvefw-flag.path`` does: that is waited for.
    """
    if flag_path().exists():
        return None
    if not _may_write():
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            if flag_path().exists():
                return None
            time.sleep(0.05)
    try:
        descriptor = os.open(flag_path(), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        return f"{flag_path()} cannot be made: {error.strerror}; Proxmox VE may not make firewall bridges"
    os.close(descriptor)
    return None


def remove_flag() -> None:
    """Remove the file if it is there. Raises HostError.

    The service's user cannot; the unit does that for it (``ExecStopPost=``).
    """
    if _may_write():
        state.remove(flag_path())


def _may_write() -> bool:
    return os.geteuid() == 0 or os.access(flag_path().parent, os.W_OK)
