"""The systemd units of the service."""

from __future__ import annotations

import sys
from importlib.resources import files

from pvefw_nft.errors import UsageError

from . import service_user
from .proxmox.flag import flag_path

SERVICE = "pvefw.service"
FAILURE = "pvefw-failure.service"
"""The unit that :data:`SERVICE` starts at its end, if it is not restarted: it writes an alert into the journal."""
FLAG_UNITS = ("pvefw-flag.path", "pvefw-flag.service")
"""The unit that keeps :func:`.flag_path` if the service runs as its own user, who may not write there."""
NAMES = (SERVICE, FAILURE, *FLAG_UNITS)
_STARTS_GUESTS = ("pve-guests", "libvirt-guests")


def unit_texts(*options: str, as_root: bool) -> dict[str, str]:
    """Return the units of a service that runs with these options, by name. Raises UsageError as :func:`service`."""
    others = (FAILURE,) if as_root else (FAILURE, *FLAG_UNITS)
    return {SERVICE: service(*options, as_root=as_root), **{name: _filled(_read(name)) for name in others}}


def service(*options: str, as_root: bool) -> str:
    """Return the unit that runs the service with these options. Raises UsageError for one with a blank."""
    for option in options:
        if not option.isprintable() or set(option) & set(" \t\"'\\%$;"):
            raise UsageError(f"an option that a unit cannot have: {option!r}", "leave it out, or write the unit")
    text = _lines_for("ROOT" if as_root else "USER", _read(SERVICE))
    if "--fail-closed" in options:
        guests = " ".join(f"{name}.service" for name in _STARTS_GUESTS)
        text = text.replace("WantedBy=multi-user.target", f"WantedBy=multi-user.target\nRequiredBy={guests}")
    if "--beside" in options:
        text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("ExecCondition="))
    if "--stop-at-end" in options and not as_root:  # as a start makes it: root's part of a stop
        text = text.replace("ExecReload=", "ExecStopPost=+/bin/rm -f @FLAG@\nExecReload=")
    return _filled(text.replace("@PVEFW@ run\n", " ".join(["@PVEFW@ run", *options]) + "\n"))


def failure() -> str:
    """Return the unit that tells of the service's end."""
    return _read(FAILURE)


def _read(name: str) -> str:
    return files("pvefw_nft.host").joinpath("systemd", name).read_text("utf-8")


def _filled(text: str) -> str:
    names = {"@PVEFW@": f"{sys.executable} -m pvefw_nft.cli", "@NAME@": service_user.NAME, "@FLAG@": str(flag_path())}
    for name, value in names.items():
        text = text.replace(name, value)
    return text


def _lines_for(who: str, text: str) -> str:
    """Return the lines of a unit without those that are marked for another than ``who``, and without the marks."""
    mark = f"@{who}@ "
    lines = (line.removeprefix(mark) for line in text.splitlines(keepends=True))
    return "".join(line for line in lines if not line.startswith(("@USER@", "@ROOT@")))
