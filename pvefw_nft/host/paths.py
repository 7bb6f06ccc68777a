"""Files of the kernel and of systemd that pvefw reads or writes, and the place of each on this host."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Paths:
    """Where they lie. Records of pvefw have folders of their own (:mod:`.records.state`)."""

    sysctls: Path = Path("/proc/sys")
    modules: Path = Path("/sys/module")
    """has a folder for each module that is loaded"""
    units: Path = Path("/etc/systemd/system")
    runtime_units: Path = Path("/run/systemd/system")
    """exists only where systemd runs this host (sd_booted(3))"""
    services: Path = Path("/sys/fs/cgroup/system.slice")
    """has the control group of each service"""
    bus: Path = Path("/run/dbus/system_bus_socket")


_current = Paths()


def paths() -> Paths:
    """Return the places on the host that this process works on."""
    return _current


@contextlib.contextmanager
def use_paths(other: Paths) -> Iterator[None]:
    """Work on a host with other places while the block runs."""
    global _current
    before, _current = _current, other
    try:
        yield
    finally:
        _current = before
