"""Proxmox VE's firewall services as systemd and the kernel show them; never by PID files."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from pvefw_nft.errors import HostError

from .. import tools
from ..netfilter import nf_tables
from ..paths import paths

IPTABLES_SERVICE = "pve-firewall.service"
NFT_SERVICE = "proxmox-firewall.service"
SERVICES = (IPTABLES_SERVICE, NFT_SERVICE)
LOGGER = "pvefw-logger.service"
"""The service that writes NFLOG group 0 to /var/log/pve-firewall.log, which the GUI shows. It stays on."""
TABLES = (("inet", "proxmox-firewall"), ("bridge", "proxmox-firewall-guests"))
"""The tables of proxmox-firewall."""
_RUNNING = frozenset(("active", "activating", "reloading", "deactivating"))
_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class Service:
    """A unit of systemd. ``load`` is its LoadState (``loaded``, ``masked``, ``not-found``), ``active`` its ActiveState,
    ``enabled`` its UnitFileState, ``fragment`` the path of its file.
    """

    name: str
    load: str
    active: str
    enabled: str
    fragment: str

    @property
    def exists(self) -> bool:
        """Whether the unit exists, masked or not."""
        return self.load not in ("not-found", "")

    @property
    def running(self) -> bool:
        """Whether it runs, starts or stops."""
        return self.active in _RUNNING


def has_systemd() -> bool:
    """Tell whether systemd runs this host (sd_booted(3))."""
    return paths().runtime_units.is_dir()


def read_services(*names: str) -> list[Service]:
    """Return units by name, none if systemd does not run. Raises HostError if it does not answer.

    Users other than root get its answers by D-Bus. Where that is not installed, the control groups tell which run.
    """
    if not has_systemd():
        return []
    if not _answers():
        return [_by_control_group(name) for name in names]
    properties = ("Id", "LoadState", "ActiveState", "UnitFileState", "FragmentPath")
    output = tools.run(["systemctl", "show", f"--property={','.join(properties)}", "--", *names], timeout=_TIMEOUT)
    found = []
    for name, block in zip(names, output.split("\n\n"), strict=False):
        values = dict(line.partition("=")[::2] for line in block.splitlines())
        found.append(Service(name, *(values.get(key, "") for key in properties[1:])))
    return found


def _answers() -> bool:
    return os.geteuid() == 0 or paths().bus.exists()


def _by_control_group(name: str) -> Service:
    """Return the state of a service as any user sees it: a service with processes has a control group (systemd(1))."""
    runs = False
    with contextlib.suppress(OSError):  # it has none, or none any more
        runs = "populated 1" in (paths().services / name / "cgroup.events").read_text().splitlines()
    return Service(name, "loaded" if runs else "", "active" if runs else "inactive", "", "")


def keeps_flag() -> bool:
    """Tell whether pve-firewall runs, which has the flag file for itself."""
    with contextlib.suppress(HostError):
        return any(service.running for service in read_services(IPTABLES_SERVICE))
    return False


def loaded_tables() -> list[tuple[str, str]]:
    """Return the loaded tables of proxmox-firewall, loaded by any program. None if the kernel does not tell."""
    with contextlib.suppress(HostError):
        return [(family, name) for family, name in TABLES if family in nf_tables.tables(name)]
    return []


def running_firewalls() -> list[str]:
    """Return the running parts of Proxmox VE's firewall, as text for people. Raises HostError."""
    found = [f"{service.name} runs" for service in read_services(*SERVICES) if service.running]
    if tables := loaded_tables():
        names = " and ".join(f"{family} {name}" for family, name in tables)
        found.append(f"rules of proxmox-firewall are loaded (nft table{'s' if len(tables) > 1 else ''} {names})")
    return found


def refuse_beside_proxmox() -> None:
    """Raise :class:`HostError` with the steps to take where Proxmox VE's own firewall runs."""
    if found := running_firewalls():
        raise HostError(
            f"{'; '.join(found)}: two firewalls that write the same rules undo one another",
            "`pvefw take-over --dry-run` shows the steps from Proxmox VE's firewall to pvefw, `pvefw take-over` takes "
            "them; --beside goes on all the same",
        )
