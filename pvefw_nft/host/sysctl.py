"""Kernel settings below /proc/sys: read, write, and remember the values before."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from pvefw_nft.errors import HostError

from .paths import paths

if TYPE_CHECKING:
    from pathlib import Path


def path_of(key: str) -> Path:
    """Return the file of a setting; ``key`` is its path below /proc/sys, as ``net/ipv4/ip_forward``.

    Slashes, not dots, since interface names may hold dots.
    """
    parts = key.split("/")
    if not all(parts) or any(part in {".", ".."} for part in parts):
        msg = f"not a kernel setting: {key!r}"
        raise ValueError(msg)
    return paths().sysctls.joinpath(*parts)


def read(key: str) -> str | None:
    """Return the value of a setting without its line end, or None if the kernel does not have it."""
    try:
        return path_of(key).read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as err:
        # proc reports EINVAL or ENODEV when the link vanishes between open and read
        if err.errno in {errno.EINVAL, errno.ENODEV}:
            return None
        raise HostError(f"cannot read the kernel setting {key}: {err.strerror}") from err


def write(key: str, value: str) -> None:
    """Set a kernel setting. Raises :class:`HostError` if the kernel has none of that name or refuses."""
    try:
        path_of(key).write_text(f"{value}\n")
    except FileNotFoundError as err:
        raise HostError(
            f"the kernel has no setting {key}", "load the module it belongs to, or check the interface's name"
        ) from err
    except PermissionError as err:
        raise HostError(f"no permission to set {key}", "run this as root") from err
    except OSError as err:
        hint = "/proc/sys is read-only here (a container?)" if err.errno == errno.EROFS else None
        raise HostError(f"the kernel refused {key} = {value}: {err.strerror}", hint) from err
