"""The flag file, and Proxmox VE's own firewall: found by loaded rules and by systemd, refused, reported."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.errors import HostError
from pvefw_nft.host import service_units
from pvefw_nft.host.firewall import was_started
from pvefw_nft.host.paths import Paths, use_paths
from pvefw_nft.host.proxmox import services, theirs, units
from pvefw_nft.host.proxmox.awake import FirewallWatch
from pvefw_nft.host.proxmox.flag import flag_path
from pvefw_nft.host.records import record
from pvefw_nft.host.records.pending import Beside
from pvefw_nft.host.tools import use_runner
from pvefw_nft.host.watching.rule_guard import RuleGuard

from .here import control
from .network import compiled, configure, start
from .runners import Answering
from .test_commands import pvefw

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from .conftest import Namespace

pytest.importorskip("pyroute2")

TABLES = (
    "table inet proxmox-firewall { chain input { type filter hook input priority 0; udp dport 5000 drop; }; }; "
    "table bridge proxmox-firewall-guests { chain in { type filter hook prerouting priority 0; "
    "udp dport 5000 drop; }; }"
)


def options(root: Path, backend: str = "iptables") -> list[str]:
    return ["--root", str(root), "--node", "n", "--local-network", "192.0.2.0/24", "--backend", backend]


def load_tables() -> None:
    if subprocess.run(["nft", TABLES], capture_output=True, check=False).returncode:
        pytest.skip("nft is not usable here")


def test_the_flag_file_is_there_while_pvefw_owns_the_host(host: Namespace, tmp_path: Path) -> None:
    desired = compiled(tmp_path, "iptables")
    start(desired)
    assert flag_path() == tmp_path / "run/proxmox-nftables-firewall-force-disable"
    assert flag_path().exists()
    flag_path().unlink()
    control.apply(desired)  # nothing changed, and yet
    assert flag_path().exists()
    control.stop()
    assert not flag_path().exists()


def test_an_undone_first_start_removes_the_flag_file(host: Namespace, tmp_path: Path) -> None:
    _, change = control.apply(compiled(tmp_path, "iptables"), confirm_within=60)
    assert change is not None
    assert flag_path().exists()
    control.roll_back()
    assert not flag_path().exists()


def test_a_flag_file_that_cannot_be_made_is_told_and_does_not_matter(host: Namespace, tmp_path: Path) -> None:
    flag_path().symlink_to("/nonexistent/place")
    outcome, _ = control.apply(compiled(tmp_path, "iptables"))
    assert any("proxmox-nftables-firewall-force-disable cannot be made" in problem for problem in outcome.problems)


@pytest.mark.parametrize("verb", ["start", "update", "run"])
def test_commands_that_apply_refuse_beside_proxmox(host: Namespace, tmp_path: Path, verb: str) -> None:
    load_tables()
    configure(tmp_path)
    done = pvefw(verb, *options(tmp_path))
    assert done.returncode == 3
    assert "rules of proxmox-firewall are loaded (nft tables inet proxmox-firewall and bridge" in done.stderr
    assert "`pvefw take-over --dry-run` shows the steps" in done.stderr
    assert "PVEFW" not in subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout


def test_beside_leaves_their_rules_and_makes_no_flag_file(host: Namespace, tmp_path: Path) -> None:
    load_tables()
    configure(tmp_path)
    done = pvefw("start", "--beside", *options(tmp_path))
    assert done.returncode == 0, done.stderr
    assert len(services.loaded_tables()) == 2
    assert not flag_path().exists()
    status = pvefw("status", *options(tmp_path))
    assert status.returncode == 1
    assert "warning: rules of proxmox-firewall are loaded" in status.stdout
    found = json.loads(pvefw("status", "--format", "json", *options(tmp_path)).stdout)
    assert len(found["proxmox_firewall"]) == 1
    doctor = pvefw("doctor", "--root", str(tmp_path), "--node", "n")
    assert "rules of proxmox-firewall are loaded" in doctor.stdout


def test_their_tables_are_removed_in_one_transaction(host: Namespace) -> None:
    load_tables()
    assert theirs.remove_tables() == ["inet proxmox-firewall", "bridge proxmox-firewall-guests"]
    assert services.loaded_tables() == []
    assert theirs.remove_tables() == []


def test_a_change_beside_is_undone_without_touching_the_chains_before(host: Namespace, tmp_path: Path) -> None:
    subprocess.run(
        ["iptables-restore"],
        input="*filter\n:PVEFW-INPUT - [0:0]\n-A INPUT -j PVEFW-INPUT\n-A PVEFW-INPUT -p udp -j DROP\nCOMMIT\n",
        text=True,
        check=True,
    )
    assert theirs.has_iptables_chains()
    _, change = control.apply(compiled(tmp_path, "iptables"), confirm_within=60, beside=Beside.LEAVE)
    assert change is not None
    control.roll_back()
    assert theirs.has_iptables_chains()  # pve-firewall goes on with them
    assert not was_started()
    assert not record.pending_path().exists()


def test_chains_that_no_running_firewall_takes_care_of_are_named(host: Namespace, tmp_path: Path) -> None:
    load = ["iptables-restore", "--noflush"]
    chains = "*filter\n:PVEFW-INPUT - [0:0]\n-A INPUT -j PVEFW-INPUT\n-A PVEFW-INPUT -p udp -j RETURN\nCOMMIT\n"
    subprocess.run(load, input=chains, text=True, check=True)
    configure(tmp_path)
    assert "chains of iptables-nft are left over" in pvefw("status", *options(tmp_path)).stdout
    assert pvefw("start", *options(tmp_path)).returncode == 0
    status = pvefw("status", *options(tmp_path))
    assert status.returncode == 0, status.stdout
    assert "left over" not in status.stdout


def test_the_service_tells_of_a_firewall_that_comes_to_life_and_looks_at_it_ever_more_seldom() -> None:
    now, looks = 0.0, 0
    running: list[str] = []

    def look() -> list[str]:
        nonlocal looks
        looks += 1
        return list(running)

    watch = FirewallWatch(look, lambda: now)
    told = {}
    for second in range(4000):
        now = float(second)
        running[:] = ["pve-firewall.service runs"] if 100 <= second < 2000 else []
        told.update(dict.fromkeys(watch.news(), second))
    (came, at), (gone, ended) = told.items()
    assert came.startswith("warning: pve-firewall.service runs: ")
    assert gone == "no more: pve-firewall.service runs"
    assert 100 <= at <= 120
    assert 2000 <= ended <= 2320
    assert looks < 5 + 10 + 120


def test_rules_are_mended_soon_while_a_firewall_of_proxmox_removes_them_in_its_loop() -> None:
    now, waited = 0.0, []
    guard = RuleGuard(lambda: now)
    guard.beside_proxmox = True
    for _ in range(20):
        waited.append(guard.wait(()))
        now += waited[-1]
        guard.mended()
    assert waited[:3] == [0, 0, 0]
    assert max(waited) == 5
    now += 10  # pve-firewall's loop
    assert guard.wait(()) == 0


SHOWN = """\
Id=pve-firewall.service
LoadState=loaded
ActiveState=active
FragmentPath=/lib/systemd/system/pve-firewall.service
UnitFileState=enabled

Id=proxmox-firewall.service
LoadState=not-found
ActiveState=inactive
FragmentPath=
UnitFileState=
"""


@dataclass
class Systemd:
    """A systemd that shows two services. ``given`` are the commands that it got, ``folder`` has its units."""

    folder: Path
    given: list[str] = field(default_factory=list)
    shown: str = SHOWN

    def answer(self, command: Sequence[str], _: str | None) -> str:
        self.given.append(" ".join(command))
        return self.shown if command[1] == "show" else ""

    def changes(self) -> list[str]:
        """Return the changes by systemctl since the last call."""
        found = [command.removeprefix("systemctl --quiet ") for command in self.given if " show " not in command]
        self.given.clear()
        return found


@pytest.fixture
def systemd(host: Namespace, tmp_path: Path) -> Iterator[Systemd]:
    made = Systemd(tmp_path / "units")
    (made.folder / "run").mkdir(parents=True)
    places = Paths(
        units=made.folder / "etc",
        runtime_units=made.folder / "run",
        services=made.folder / "groups",
        bus=made.folder / "bus",
    )
    with use_paths(places), use_runner(Answering(made.answer)):
        yield made


def test_services_are_found_by_systemd(systemd: Systemd) -> None:
    first, second = services.read_services(*services.SERVICES)
    assert (first.running, first.exists, first.enabled) == (True, True, "enabled")
    assert (second.running, second.exists) == (False, False)
    with pytest.raises(HostError, match=r"pve-firewall\.service runs: two firewalls"):
        services.refuse_beside_proxmox()


def test_without_d_bus_control_groups_tell_users_the_running_services(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for name, populated in (("pve-firewall.service", 1), ("ended.service", 0)):
        (systemd.folder / "groups" / name).mkdir(parents=True)
        (systemd.folder / "groups" / name / "cgroup.events").write_text(f"populated {populated}\nfrozen 0\n")
    names = ("pve-firewall.service", "ended.service", "missing.service")
    assert [service.running for service in services.read_services(*names)] == [True, False, False]
    assert systemd.given == []


@pytest.fixture
def stopped(systemd: Systemd) -> Systemd:
    """Have both services stopped."""
    systemd.shown = SHOWN.replace("=active", "=inactive")
    return systemd


def test_a_service_is_ended_without_its_clean_up_and_masked(stopped: Systemd, tmp_path: Path) -> None:
    folders = stopped.folder
    (service, _) = services.read_services(*services.SERVICES)
    units.note_services(unit=True)
    units.end_service(service)
    text = (folders / "run/pve-firewall.service.d/pvefw.conf").read_text()
    assert "\nExecStop=\n" in text
    assert "\nKillSignal=SIGKILL\n" in text
    assert f"ConditionPathExists=!{tmp_path}/state/taken-over.json" in text
    assert not (folders / "etc").exists()  # a boot would start the service
    assert stopped.changes() == ["daemon-reload", "stop pve-firewall.service", "mask --runtime pve-firewall.service"]
    units.keep_ended()
    assert (folders / "etc/pve-firewall.service.d/pvefw.conf").read_text() == text
    assert stopped.changes() == ["daemon-reload", "mask pve-firewall.service"]
    units.restore_service("pve-firewall.service")
    assert not list(folders.glob("*/pve-firewall.service.d"))
    assert stopped.changes() == [
        "unmask pve-firewall.service",
        "unmask --runtime pve-firewall.service",
        "daemon-reload",
        "enable pve-firewall.service",
    ]


def test_a_unit_file_that_is_in_the_way_of_a_mask_gets_the_drop_in_only(stopped: Systemd) -> None:
    folders = stopped.folder
    (folders / "etc").mkdir()
    (folders / "etc/pve-firewall.service").write_text("[Service]\n")
    (service, _) = services.read_services(*services.SERVICES)
    units.end_service(service)
    units.keep_ended()
    assert (folders / "etc/pve-firewall.service.d/pvefw.conf").exists()
    assert not any("mask" in change for change in stopped.changes())


def test_the_unit_neither_stops_proxmox_firewalls_nor_runs_beside_them() -> None:
    text = service_units.service("--backend", "nft", as_root=False)
    assert "Conflicts=" not in text
    assert "After=pve-firewall.service proxmox-firewall.service" in text
    assert "ExecCondition=+/bin/sh -c '! systemctl --quiet is-active pve-firewall.service" in text
    assert "ExecStartPre=+/bin/touch /run/proxmox-nftables-firewall-force-disable" in text
    assert text.index("Before=pve-guests.service") > 0
    assert " run --backend nft\n" in text
    assert "ExecCondition" not in service_units.service("--beside", as_root=False)


def test_without_systemd_the_commands_say_so(host: Namespace, tmp_path: Path) -> None:
    if services.has_systemd():
        pytest.skip("systemd runs here")
    configure(tmp_path)
    assert "systemd does not run this host" in pvefw("take-over", *options(tmp_path)).stderr
    done = pvefw("hand-back", "--root", str(tmp_path), "--node", "n")
    assert (done.returncode, "systemd does not run this host" in done.stderr) == (3, True)
