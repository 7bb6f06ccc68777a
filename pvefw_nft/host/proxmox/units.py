"""Ending and starting Proxmox VE's services so that no rule goes with them, and the unit of pvefw's own service.

What a service of Proxmox VE was before is on record, so that it can be that again. A drop-in of its unit keeps it from
removing rules when it ends, and from being started while pvefw owns the host: also by an upgrade of its package, which
unmasks nothing but starts what is not masked.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from pvefw_nft.errors import HostError

from .. import state, tools
from .services import IPTABLES_SERVICE, LOGGER, SERVICES, Service, read_services

OWN_UNIT = "pvefw.service"
_ETC = Path("/etc/systemd/system")
_TIMEOUT = 120.0
_DROP_IN = """\
# Written by `pvefw take-over`, removed by `pvefw hand-back`: pvefw filters this host.
[Unit]
ConditionPathExists=!{record}

[Service]
# its rules stay when it ends, until those of pvefw are known to be loaded
ExecStop=
ExecStopPost=
KillMode=control-group
KillSignal=SIGKILL
Restart=no
"""


def record_path() -> Path:
    """Return the record that pvefw has taken over, and of what Proxmox VE's services were."""
    return state.state_directory() / "taken-over.json"


def handing_back_path() -> Path:
    """Return the file that tells pvefw's service that its rules stay, whatever it was asked to do at its end."""
    return state.run_directory() / "handing-back"


def is_taken_over() -> bool:
    """Tell whether ``pvefw take-over`` was run, and ``pvefw hand-back`` not since."""
    return record_path().exists()


def services_to_end() -> list[Service]:
    """Return the services of Proxmox VE that run, or that a boot would start. Raises HostError."""
    return [
        service
        for service in read_services(*SERVICES)
        if service.exists and (service.running or service.load != "masked" or not _drop_in(service.name).exists())
    ]


def note_services(*, unit: bool) -> None:
    """Put on record what Proxmox VE's services are now, unless that is on record from before. Raises HostError.

    ``unit``: the unit of pvefw is made by the take-over, so that a hand-back removes it.
    """
    noted = _noted()
    if noted is not None:
        return
    services = {
        service.name: {"enabled": service.enabled, "active": service.running}
        for service in read_services(*SERVICES)
        if service.exists
    }
    state.write(record_path(), {"services": services, "unit": unit})


def end_service(service: Service) -> None:
    """Stop a service without its own clean-up, and mask it. May be repeated, and killed anywhere. Raises HostError."""
    masked = service.load == "masked"
    if masked and service.running:
        _systemctl("unmask", service.name)  # systemd reads no drop-ins of a masked unit
        masked = False
    if not masked:
        _write(_drop_in(service.name), _DROP_IN.format(record=record_path()))
        _systemctl("daemon-reload")
    _systemctl("stop", service.name)
    left = [again for again in read_services(service.name) if again.running]
    if left:
        raise HostError(f"{service.name} does not stop", f"see `systemctl status {service.name}`")
    # a unit file in /etc is in the way of the mask; its drop-in keeps such a unit from being started
    if Path(service.fragment).parent != _ETC and not masked:
        _systemctl("mask", service.name)


def restore_service(name: str) -> None:
    """Unmask a service and have it enabled or not as it was before. Raises HostError."""
    noted = (_noted() or {}).get("services", {}).get(name, {})
    drop_in = _drop_in(name)
    drop_in.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another drop-in is there, or none was
        drop_in.parent.rmdir()
    _systemctl("unmask", name)
    _systemctl("daemon-reload")
    if noted.get("enabled") == "enabled":
        _systemctl("enable", name)


def resume_iptables_service() -> None:
    """Have pve-firewall run again after a take-over that was not confirmed, if that ended it. Raises HostError."""
    noted = _noted()
    if noted is None:
        return
    if was_active(IPTABLES_SERVICE):
        restore_service(IPTABLES_SERVICE)
        start_service(IPTABLES_SERVICE)
    state.remove(record_path())


def start_service(name: str) -> None:
    """Start a service. Raises HostError."""
    _systemctl("start", name)


def was_active(name: str) -> bool:
    """Tell whether a service ran before the take-over; where nothing is on record, it is taken to."""
    noted = _noted()
    return noted is None or bool(noted.get("services", {}).get(name, {}).get("active", True))


def start_logger() -> bool:
    """Have Proxmox VE's logger run, also after a boot; tell whether there is one. Raises HostError."""
    (logger,) = read_services(LOGGER) or (None,)
    if logger is None or not logger.exists:
        return False
    _systemctl("enable", LOGGER)
    _systemctl("start", LOGGER)
    return True


def enable_own_unit(text: str) -> None:
    """Write the unit of pvefw's service, and have it run, also after a boot. Raises HostError."""
    state.remove(handing_back_path())  # of a hand-back that was not completed
    path = _ETC / OWN_UNIT
    if not path.exists() or path.read_text("utf-8", "replace") != text:
        _write(path, text)
    _systemctl("daemon-reload")
    _systemctl("enable", OWN_UNIT)
    _systemctl("restart", OWN_UNIT)


def has_own_unit() -> bool:
    """Tell whether a unit of pvefw's service is installed."""
    return any(unit.exists for unit in read_services(OWN_UNIT))


def end_own_unit() -> None:
    """Stop pvefw's service, whose rules stay, and keep a boot from starting it. Raises HostError."""
    if has_own_unit():
        _systemctl("disable", OWN_UNIT)
        _systemctl("stop", OWN_UNIT)


def forget() -> None:
    """Remove the record of the take-over, and the unit that it made. Raises HostError."""
    if (_noted() or {}).get("unit"):
        (_ETC / OWN_UNIT).unlink(missing_ok=True)
        _systemctl("daemon-reload")
    state.remove(record_path())


def _noted() -> dict[str, Any] | None:
    try:
        value = state.read(record_path())
    except HostError:
        return None
    return value if isinstance(value, dict) else None


def _drop_in(name: str) -> Path:
    return _ETC / f"{name}.d" / "pvefw.conf"


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.pvefw")
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}", "run this as root") from error


def _systemctl(*arguments: str) -> None:
    tools.run(["systemctl", "--quiet", *arguments], timeout=_TIMEOUT)
