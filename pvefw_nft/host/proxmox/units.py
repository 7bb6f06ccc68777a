"""End and start Proxmox VE's services without the removal of any rule, and manage the unit of pvefw's own service.

The state of each service before is on record, for its return. A drop-in of its unit prevents the removal of rules at
its end, and its start while pvefw owns the host: an upgrade of its package unmasks nothing, but starts units that are
not masked. Mask and drop-in last until the next boot at first, and permanently once pvefw's own unit is enabled: a host
that is switched off half way comes up with Proxmox VE's firewall.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from pvefw_nft.errors import HostError

from .. import service_units, tools
from ..paths import paths
from ..records import state
from .services import IPTABLES_SERVICE, LOGGER, SERVICES, Service, read_services

if TYPE_CHECKING:
    from pathlib import Path

OWN_UNIT = service_units.SERVICE
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
    """Return the file that tells pvefw's service to keep its rules at its end, overriding its options."""
    return state.run_directory() / "handing-back"


def is_taken_over() -> bool:
    """Tell whether ``pvefw take-over`` was run, and ``pvefw hand-back`` not since."""
    return record_path().exists()


def services_to_end() -> list[Service]:
    """Return the services of Proxmox VE that run, or that a boot would start. Raises HostError."""
    return [
        service
        for service in read_services(*SERVICES)
        if service.exists and (service.running or service.load != "masked" or not _is_ended_by_us(service.name))
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
    """Stop a service without its own clean-up, and mask it until the next boot.

    May be repeated, and killed anywhere. Raises HostError.
    """
    masked = service.load == "masked"
    if masked and service.running:
        _unmask(service.name)  # systemd reads no drop-ins of a masked unit
        masked = False
    if not masked:
        write(_drop_in(paths().runtime_units, service.name), _DROP_IN.format(record=record_path()))
        _systemctl("daemon-reload")
    _systemctl("stop", service.name)
    left = [again for again in read_services(service.name) if again.running]
    if left:
        raise HostError(f"{service.name} does not stop", f"see `systemctl status {service.name}`")
    if not masked and _can_be_masked(service.name):
        _systemctl("mask", "--runtime", service.name)


def keep_ended() -> None:
    """Have the services that :func:`end_service` ended stay masked after a boot, too. Raises HostError."""
    ended = [service.name for service in read_services(*SERVICES) if service.exists and _is_ended_by_us(service.name)]
    for name in ended:
        write(_drop_in(paths().units, name), _DROP_IN.format(record=record_path()))
    if ended:
        _systemctl("daemon-reload")
    if maskable := [name for name in ended if _can_be_masked(name)]:
        _systemctl("mask", *maskable)


def restore_service(name: str) -> None:
    """Unmask a service and have it enabled or not as it was before. Raises HostError."""
    noted = (_noted() or {}).get("services", {}).get(name, {})
    for drop_in in (_drop_in(paths().units, name), _drop_in(paths().runtime_units, name)):
        drop_in.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another drop-in is there, or none was
            drop_in.parent.rmdir()
    _unmask(name)
    _systemctl("daemon-reload")
    if noted.get("enabled") == "enabled":
        _systemctl("enable", name)


def resume_iptables_service() -> None:
    """Have pve-firewall run again after a take-over that was not confirmed, if that ended it. Raises HostError."""
    noted = _noted()
    if noted is None:
        return
    if noted.get("services", {}).get(IPTABLES_SERVICE, {}).get("active"):
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


def enable_own_units(texts: dict[str, str]) -> None:
    """Write the units of pvefw's service, by name, and have it run, also after a boot. Raises HostError."""
    state.remove(handing_back_path())  # of a hand-back that was not completed
    for name, text in texts.items():
        path = paths().units / name
        if not path.exists() or path.read_text("utf-8", "replace") != text:
            write(path, text)
    _systemctl("daemon-reload")
    _systemctl("enable", OWN_UNIT)
    _systemctl("restart", OWN_UNIT)


def has_own_unit() -> bool:
    """Tell whether a unit of pvefw's service is installed."""
    return any(unit.exists for unit in read_services(OWN_UNIT))


def end_own_unit() -> None:
    """Stop pvefw's service, whose rules stay. A boot starts it, unless Proxmox VE's runs by then. Raises HostError."""
    if has_own_unit():
        _systemctl("stop", OWN_UNIT)


def forget() -> None:
    """Disable pvefw's service; remove the record of the take-over, and the unit that it made. Raises HostError."""
    if has_own_unit():
        _systemctl("disable", OWN_UNIT)
    if (_noted() or {}).get("unit"):
        for name in service_units.NAMES:
            (paths().units / name).unlink(missing_ok=True)
        _systemctl("daemon-reload")
    state.remove(record_path())


def _noted() -> dict[str, Any] | None:
    try:
        value = state.read(record_path())
    except HostError:
        return None
    return value if isinstance(value, dict) else None


def _drop_in(folder: Path, name: str) -> Path:
    return folder / f"{name}.d" / "pvefw.conf"


def _is_ended_by_us(name: str) -> bool:
    return any(_drop_in(folder, name).exists() for folder in (paths().units, paths().runtime_units))


def _can_be_masked(name: str) -> bool:
    """Tell whether no unit file is in the way of the mask; else the drop-in keeps the unit from being started."""
    return not any((folder / name).is_file() for folder in (paths().units, paths().runtime_units))


def _unmask(name: str) -> None:
    for option in ((), ("--runtime",)):
        _systemctl("unmask", *option, name)


def write(path: Path, text: str) -> None:
    """Write a file of systemd's, so that at no time it is half there. Raises HostError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.pvefw")
        temporary.unlink(missing_ok=True)
        with temporary.open("x", encoding="utf-8") as file:  # through no link that another user may have made there
            file.write(text)
        temporary.replace(path)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}", "run this as root") from error


def _systemctl(*arguments: str) -> None:
    tools.run(["systemctl", "--quiet", *arguments], timeout=_TIMEOUT)
