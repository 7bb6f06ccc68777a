"""The host side on the guest's kernel: what this machine's own kernel may lack (bridge conntrack, VLAN filtering)."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.kernel.guest.machine import Guest

pytest.importorskip("pyroute2")

# Processes are slow in an emulated machine, and an update of iptables runs ten: as many as there is time for.
LIMITS = {
    "PVEFW_TEST_UPDATES": "200",
    "PVEFW_TEST_SWITCHES": "20",
    "PVEFW_TEST_SECONDS": "20",
    "PVEFW_TEST_KILLS": "kernel",
}
# What this machine's kernel cannot do; all else of these files is tested on it. Killing all there is takes minutes.
_KILLED = "nft or switch" if "PVEFW_TEST_KILLS" in os.environ else "every_step_then and nft"
FILES = {
    "test_plumbing_kernel.py": "",
    "test_traffic.py": "",
    "test_nat.py": "",
    "test_vnet.py": "",
    "test_migration.py": "",
    "test_zone_change.py": "",
    "test_coexistence.py": "commands or policy or variant",
    "test_failures.py": "nft",
    "test_guarded_start.py": "force and nft",
    "test_unplugged.py": "dropped or (nft and (start or vswitch))",
    "test_kill.py": f"({_KILLED}) and not small",
    "test_drift.py": "come_back and (nft or ebtables)",
}


@pytest.mark.parametrize("file", FILES)
def test_host_side(guest: Guest, file: str) -> None:
    limits = {name: os.environ.get(name, value) for name, value in LIMITS.items()}
    seconds = 1800 if limits == LIMITS else 7200
    pytest_command = [sys.executable, "-m", "pytest", "-q", "-s", "-rs", "-p", "no:cacheprovider", "-k", FILES[file]]
    settings = [f"{name}={value}" for name, value in limits.items()]
    status, output = guest.run(["env", *settings, *pytest_command, f"tests/host/{file}"], seconds=seconds)
    print(output.decode(errors="replace"))
    assert status == 0
    # there, every test can run
    assert b"skipped" not in output


def test_service_under_systemd(guest: Guest) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rs",
        "-p",
        "no:cacheprovider",
        "tests/kernel/systemd_in_guest.py",
    ]
    status, output = guest.run(command, seconds=1200)
    assert status == 0, output.decode(errors="replace")
    assert b"5 passed" in output


def test_take_over_from_proxmox(guest: Guest) -> None:
    limits = [f"{name}={os.environ[name]}" for name in ("PVEFW_TEST_TAKE_OVER",) if name in os.environ]
    pytest_command = [sys.executable, "-m", "pytest", "-q", "-s", "-rs", "-p", "no:cacheprovider"]
    command = ["env", *limits, *pytest_command, "tests/kernel/takeover_in_guest.py"]
    status, output = guest.run(command, seconds=7200 if limits else 2400)
    print(output.decode(errors="replace"))
    assert status == 0
    assert b"skipped" not in output


def test_legacy_variants_of_iptables(guest: Guest) -> None:
    """Alternatives as Proxmox VE sets them; the long form takes over and hands back with them, too."""
    files = ["tests/kernel/variants_in_guest.py"]
    files += ["tests/kernel/takeover_in_guest.py"] if "PVEFW_TEST_TAKE_OVER" in os.environ else []
    pytest_command = [sys.executable, "-m", "pytest", "-q", "-s", "-rs", "-p", "no:cacheprovider"]
    chosen = "not killed and not boot" if len(files) > 1 else "not switching"
    set_all = "for tool in iptables ip6tables ebtables; do update-alternatives --{0} $tool {1}; done"
    guest.run(["sh", "-ec", set_all.format("set", "/usr/sbin/$tool-legacy")], seconds=60)
    try:
        status, output = guest.run([*pytest_command, "-k", chosen, *files], seconds=7200 if len(files) > 1 else 1200)
    finally:
        guest.run(["sh", "-ec", set_all.format("auto", "")], seconds=60)
    print(output.decode(errors="replace"))
    assert status == 0
    assert b"skipped" not in output
