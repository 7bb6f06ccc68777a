"""The service, its sandbox and the guard of ``--confirm`` under a running systemd.

systemd runs as process 1 of namespaces of its own, with a host's network that is empty but for a bridge. Only
:mod:`tests.kernel.test_host` runs this file, in the lab's guest or on a machine that no systemd runs.
"""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
import sysconfig
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.host.fuse import Faulty
from tests.host.network import has_bridge_conntrack
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY = Path(__file__).resolve().parents[2]
BACKENDS = os.environ.get("PVEFW_TEST_BACKENDS", "iptables nft").split()
"""Those that this kernel can load: without bridge connection tracking, iptables alone."""
LEGACY = os.environ.get("PVEFW_TEST_LEGACY", "")
"""The tools, such as ``iptables ip6tables``, whose names are to lead to their legacy variants there."""
UNIT = "/etc/systemd/system/pvefw.service"
WHOLE = "PVEFW_TEST_SYSTEMD" in os.environ
"""Whether to try each unit with each backend; else the unit of the service's user, and a backend for each test."""
ONE_BACKEND = BACKENDS if WHOLE else BACKENDS[:1]
_NUMBERS = itertools.count()
PATIENCE = 60.0
"""Seconds that anything may take on the emulated machine."""

# The checkout and its Python are bound to places that no sandbox hides, like an installed pvefw's. Of what a system
# starts first, only the journal is left: cleaning /tmp alone takes a minute there.
INIT = """\
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --bind {repository} /opt/pvefw
mount --bind {packages} /opt/packages
mount --bind {prefix} /opt/python
mount -t tmpfs -o mode=755 tmpfs /run
for folder in /etc/pve /var/lib/pvefw /etc/systemd/system /usr/local/sbin /usr/local/lib; do
  mkdir -p {disk}$folder
  mount --bind {disk}$folder $folder
done
mkdir -p {disk}/etc/alternatives
cp -a /etc/alternatives/. {disk}/etc/alternatives
mount --bind {disk}/etc/alternatives /etc/alternatives
for tool in {legacy}; do
  for link in $tool $tool-save $tool-restore; do
    ln -sfn /usr/sbin/$tool-legacy${{link#$tool}} /etc/alternatives/$link
  done
done
for file in passwd group; do cp /etc/$file /run/lab-$file; mount --bind /run/lab-$file /etc/$file; done
echo pvefw:x:64230:64230::/:/usr/sbin/nologin >>/etc/passwd
echo pvefw:x:64230: >>/etc/group
printf '[Unit]\\nDefaultDependencies=no\\nWants=systemd-journald.service\\n' >/etc/systemd/system/lab.target
for unit in /lib/systemd/system/sysinit.target.wants/*; do
  case $unit in */systemd-journald.service) ;; *) ln -sf /dev/null /etc/systemd/system/${{unit##*/}} ;; esac
done
ip link set lo up
ip link add vmbr0 type bridge
ip link set vmbr0 up
export container=lab
exec /lib/systemd/systemd --system --unit=lab.target
"""

MOUNT_POINTS = [Path(path) for path in ("/opt/pvefw", "/opt/packages", "/opt/python", "/etc/pve", "/var/lib/pvefw")]
CUT_DOWN = "/usr/local/lib/cut-down"
"""A folder whose module Python runs first in each process of pvefw's."""
CUTS = """\
import sys
if "pvefw_nft.cli" in sys.orig_argv:
    from benchmarks.cut_down import cut_down
    cut_down()
"""
PATHS = "/opt/pvefw:/opt/packages" + ("" if has_bridge_conntrack() else f":{CUT_DOWN}")
# RPATH of an interpreter below /root is closed to the service's user
LIBRARIES = "/opt/python/lib"
COMMAND = (
    f'#!/bin/sh\nLD_LIBRARY_PATH={LIBRARIES} PYTHONPATH={PATHS} exec /opt/python/bin/{{python}} -m pvefw_nft.cli "$@"\n'
)
DROP_IN = f"[Service]\nEnvironment=PYTHONPATH={PATHS} LD_LIBRARY_PATH={LIBRARIES}\n"
"""Additional lines of pvefw's unit, because pvefw is not installed there."""


class Systemd:
    """A running systemd, and commands beside it."""

    def __init__(self, folder: Path) -> None:
        """Start one whose files are in a folder; files of an earlier one there are used again."""
        # without its own root, these places are the machine's
        self._made = [path for path in MOUNT_POINTS if not path.exists()]
        for path in self._made:
            path.mkdir(parents=True)
        init = folder / "init"
        paths = {"repository": REPOSITORY, "packages": sysconfig.get_path("purelib"), "prefix": sys.base_prefix}
        init.write_text(INIT.format(**paths, disk=folder / "disk", legacy=LEGACY))
        own = ["--mount", "--pid", "--cgroup", "--net", "--uts", "--ipc"]
        self.log = (folder / "log").open("w+")
        self._group = f"pvefw-{os.getpid()}-{next(_NUMBERS)}"
        in_group = _in_cgroup(f"mkdir {self._group}; echo $$ >{self._group}/cgroup.procs")
        self._unshare = subprocess.Popen(
            [*in_group, "unshare", *own, "--fork", "--kill-child", "sh", str(init)],
            stdout=self.log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        eventually(lambda: self._find() and self.run("systemctl", "is-system-running", check=False) == "running\n")
        self.write(f"{CUT_DOWN}/sitecustomize.py", CUTS)

    def _find(self) -> bool:
        assert self._unshare.poll() is None, self._words()
        found = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split()
        self._pid = found[0] if found else ""
        return bool(found)

    def _words(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def command(self, *command: str) -> list[str]:
        """Return a command as it is run beside systemd."""
        return ["nsenter", "--target", self._pid, "--all", *command]

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command beside systemd and return its output."""
        done = subprocess.run(
            self.command(*command),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{command}: {done.returncode}\n{done.stdout}\n{self._journal()}"
        return done.stdout

    def path(self, file: str) -> Path:
        """Return the path here of a file of that system."""
        return Path(f"/proc/{self._pid}/root{file}")

    def _journal(self) -> str:
        return self.run("journalctl", "--lines=40", check=False)

    def write(self, file: str, text: str) -> None:
        """Write a file as that system sees it."""
        path = self.path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def close(self) -> None:
        self._unshare.kill()
        self._unshare.wait()
        self.log.close()
        # its processes end one after the other, after process 1
        removal = f"find {self._group} -depth -type d -exec rmdir {{}} + 2>/dev/null && break; sleep 0.2"
        subprocess.run([*_in_cgroup(f"for _ in $(seq 50); do {removal}; done"), "true"], check=False)
        for path in self._made:
            with suppress(OSError):  # another one is at work there
                path.rmdir()


def _in_cgroup(script: str) -> list[str]:
    """Return the start of a command that first does something at the root of control groups (cgroup2)."""
    mounted = "mount --make-rprivate /; mount -t cgroup2 cgroup2 /sys/fs/cgroup; cd /sys/fs/cgroup"
    return ["unshare", "--mount", "sh", "-ec", f'{mounted}; {script}; cd /; exec "$@"', "sh"]


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    assert wait_until(holds, PATIENCE, every=0.3), "it did not come about"


@pytest.fixture(scope="module")
def systemd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Systemd]:
    running = Systemd(tmp_path_factory.mktemp("systemd"))
    running.write("/run/pvefw-command", COMMAND.format(python=Path(sys.executable).resolve().name))
    running.run("install", "-m755", "/run/pvefw-command", "/usr/local/sbin/pvefw")
    running.run("pvefw", "run", "--write-units", "/etc/systemd/system")
    running.write("/etc/systemd/system/pvefw.service.d/lab.conf", DROP_IN)
    yield running
    running.close()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, systemd: Systemd) -> Iterator[str]:
    """Have the configuration ask for a backend; nothing is left of it afterwards."""
    name: str = request.param
    configure(systemd, name, port=1000)
    yield name
    systemd.run("systemctl", "stop", "pvefw", check=False)
    systemd.run("pvefw", "stop")


@pytest.fixture(params=["user", "root"] if WHOLE else ["user"])
def owner(request: pytest.FixtureRequest, systemd: Systemd) -> str:
    """Install the unit that runs as this user; return who that is."""
    options = ["--as-root"] if request.param == "root" else []
    systemd.write(UNIT, systemd.run("pvefw", "run", *options, "--print-unit"))
    systemd.run("systemctl", "daemon-reload")
    return "root" if options else "pvefw"


def configure(systemd: Systemd, backend: str, port: int, folder: str = "/etc/pve") -> None:
    """Write a configuration whose host accepts a port; its files may be read by those who may on Proxmox VE."""
    node = systemd.run("hostname", "--short").strip()
    systemd.write(f"{folder}/nodes/{node}/host.fw", f"[OPTIONS]\nnftables: {int(backend == 'nft')}\n")
    systemd.write(
        f"{folder}/firewall/cluster.fw",
        f"[OPTIONS]\nenable: 1\n[ALIASES]\nlocal_network 192.0.2.0/24\n[RULES]\nIN ACCEPT -p tcp -dport {port}\n",
    )
    systemd.run("mkdir", "-p", "-m", "700", f"{folder}/priv")
    systemd.run("chgrp", "-R", "www-data", folder)
    systemd.run("chmod", "-R", "g-w,o=", f"{folder}/firewall", f"{folder}/nodes")


def rules(systemd: Systemd, backend: str) -> str:
    """Return the rules that the kernel holds."""
    return systemd.run("iptables-save") if backend == "iptables" else systemd.run("nft", "list", "ruleset")


def has_port(systemd: Systemd, backend: str, port: int) -> bool:
    return f"dport {port} " in rules(systemd, backend)


def test_service(systemd: Systemd, owner: str, backend: str) -> None:
    systemd.run("systemctl", "start", "pvefw")
    process = systemd.run("systemctl", "show", "--property=MainPID", "--value", "pvefw").strip()
    assert systemd.run("ps", "-o", "user=", "-p", process).strip() == owner
    assert has_port(systemd, backend, 1000)  # it is started when its rules are there: Type=notify
    assert f"filtering ({backend})" in systemd.run("systemctl", "status", "pvefw")
    assert "started: " in systemd.run("journalctl", "--unit", "pvefw")
    configure(systemd, backend, port=1001)
    eventually(lambda: has_port(systemd, backend, 1001))
    assert_only_known_warnings(systemd)
    systemd.run("systemctl", "reload", "pvefw")
    kill_and_wait(systemd)
    assert has_port(systemd, backend, 1001)
    configure(systemd, backend, port=1002)
    eventually(lambda: has_port(systemd, backend, 1002))
    systemd.run("systemctl", "stop", "pvefw")
    assert has_port(systemd, backend, 1002)  # the rules outlive the service


def assert_only_known_warnings(systemd: Systemd) -> None:
    """Assert that the journal has only one warning: a setting that only the first network namespace has."""
    lines = systemd.run("journalctl", "--unit", "pvefw").splitlines()
    # which only the machine's own network namespace may set
    known = "no permission to set net/netfilter/nf_conntrack_"
    assert [line for line in lines if "warning" in line and known not in line] == []


@pytest.mark.parametrize("backend", ONE_BACKEND, indirect=True)
def test_root_works_beside_the_service(systemd: Systemd, owner: str, backend: str) -> None:
    systemd.run("systemctl", "start", "pvefw")
    systemd.run("systemctl", "stop", "pvefw")
    configure(systemd, backend, port=1005)
    systemd.run("pvefw", "update")
    systemd.run("systemctl", "start", "pvefw")
    assert has_port(systemd, backend, 1005)
    assert "running" in systemd.run("pvefw", "status")
    systemd.run("systemctl", "stop", "pvefw")
    configure(systemd, backend, port=1006)
    with update(systemd, 8) as unconfirmed:
        eventually(lambda: has_port(systemd, backend, 1006))
        systemd.run("systemctl", "start", "pvefw")
        assert "a change waits for its confirmation" in systemd.run("journalctl", "--unit", "pvefw")
        unconfirmed.kill()
    eventually(lambda: has_port(systemd, backend, 1005) and guards(systemd) == 0)
    configure(systemd, backend, port=1007)
    eventually(lambda: has_port(systemd, backend, 1007))
    systemd.run("systemctl", "restart", "pvefw")
    systemd.run("pvefw", "rollback")
    assert has_port(systemd, backend, 1007)
    owners = systemd.run("find", "/var/lib/pvefw", "/run/pvefw", "-printf", "%u\n")
    assert set(owners.split()) == {owner}
    assert_only_known_warnings(systemd)
    systemd.run("pvefw", "stop")
    eventually(lambda: has_port(systemd, backend, 1007))  # it stops no service


@pytest.mark.parametrize("backend", ONE_BACKEND, indirect=True)
def test_unit_of_an_older_version_is_told(systemd: Systemd, owner: str, backend: str) -> None:
    systemd.run("systemctl", "start", "pvefw")
    old = "[Service]\nSystemCallFilter=\nSystemCallFilter=@system-service @module\nSystemCallErrorNumber=\n"
    systemd.write("/etc/systemd/system/pvefw.service.d/old.conf", old)
    systemd.run("systemctl", "daemon-reload")
    try:
        systemd.run("systemctl", "stop", "pvefw")
        configure(systemd, backend, port=1008)
        systemd.run("systemctl", "start", "pvefw")
        eventually(lambda: "killed by SIGSYS" in systemd.run("journalctl", "--unit", "pvefw"))
        said = systemd.run("journalctl", "--unit", "pvefw")
        assert "run OPTIONS --print-unit" in said
        assert has_port(systemd, backend, 1000)  # the rules loaded before
    finally:
        systemd.run("rm", "/etc/systemd/system/pvefw.service.d/old.conf")
        systemd.run("systemctl", "daemon-reload")
    systemd.run("systemctl", "restart", "pvefw")
    assert has_port(systemd, backend, 1008)


@pytest.mark.parametrize("backend", BACKENDS[:1], indirect=True)
def test_service_that_is_not_restarted_is_told(systemd: Systemd, owner: str, backend: str) -> None:
    text = systemd.run("cat", "/etc/systemd/system/pvefw.service")
    systemd.write("/etc/systemd/system/pvefw.service", text.replace(".cli run", ".cli run --no-such-option"))
    systemd.run("systemctl", "daemon-reload")
    systemd.run("systemctl", "start", "pvefw", check=False)
    eventually(lambda: "pvefw.service has failed" in systemd.run("journalctl", "--priority=alert"))
    systemd.run("systemctl", "reset-failed", "pvefw")


@pytest.mark.skipif(Path("/proc/sys/net/bridge").exists() and "nft" not in BACKENDS, reason="with the other backend")
@pytest.mark.parametrize("owner", ["user"], indirect=True)
@pytest.mark.parametrize("backend", ["iptables"], indirect=True)
def test_kernel_loads_br_netfilter_for_the_services_user(systemd: Systemd, owner: str, backend: str) -> None:
    here = Path("/sys/module/br_netfilter")
    subprocess.run(["modprobe", "-r", "br_netfilter"], check=False, capture_output=True)
    if here.exists() or Path("/proc/sys/net/bridge").exists():
        pytest.skip("br_netfilter is part of this kernel, or in use")
    systemd.run("systemctl", "start", "pvefw")
    assert here.exists()
    assert "call-iptables = 1" in systemd.run("sysctl", "net.bridge.bridge-nf-call-iptables")
    systemd.run("systemctl", "stop", "pvefw")
    systemd.run("pvefw", "stop")
    assert "call-iptables = 0" in systemd.run("sysctl", "net.bridge.bridge-nf-call-iptables")  # as it was without it


def kill_and_wait(systemd: Systemd) -> None:
    """Kill the service, and wait until systemd has it running again."""

    def process() -> str:
        return systemd.run("systemctl", "show", "--property=MainPID", "--property=ActiveState", "pvefw")

    eventually(lambda: "ActiveState=active" in process())  # it reloads until it says that it is ready
    before = process()
    systemd.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", "pvefw")
    eventually(lambda: (now := process()) != before and "ActiveState=active" in now)


@contextmanager
def update(systemd: Systemd, seconds: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start an update that waits so long for its confirmation."""
    with subprocess.Popen(
        systemd.command("pvefw", "update", "--confirm", str(seconds)),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as running:  # fmt: skip
        yield running


def guards(systemd: Systemd) -> int:
    return len(systemd.run("systemctl", "list-timers", "--all", "--no-legend", "pvefw-guard-*").splitlines())


@pytest.mark.skipif("nft" not in BACKENDS, reason="with the other backend")
@pytest.mark.parametrize("backend", ["nft"], indirect=True)
def test_guard_is_a_timer(systemd: Systemd, backend: str) -> None:
    systemd.run("pvefw", "start")
    configure(systemd, backend, port=1003)
    with update(systemd, 15) as unconfirmed:
        eventually(lambda: has_port(systemd, backend, 1003))
        assert guards(systemd) == 1
        unconfirmed.kill()
    eventually(lambda: has_port(systemd, backend, 1000))
    assert not has_port(systemd, backend, 1003)
    eventually(lambda: guards(systemd) == 0)
    with update(systemd, 60) as confirmed:
        eventually(lambda: has_port(systemd, backend, 1003))
        systemd.run("pvefw", "confirm")
        assert confirmed.wait() == 0
    assert has_port(systemd, backend, 1003)
    configure(systemd, "iptables", port=1004)
    with update(systemd, 8) as switching:
        eventually(lambda: has_port(systemd, "iptables", 1004))
        switching.kill()
    eventually(lambda: has_port(systemd, backend, 1003) and "PVEFW" not in rules(systemd, "iptables"))


# --- boot ------------------------------------------------------------------------------------------------------

BEHIND = "/run/pve"
GUESTS = """\
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'iptables-save >/run/guests-started; nft list ruleset >>/run/guests-started'
"""
"""Stand-in for the service that starts guests: it records the rules at that moment."""


@contextmanager
def cluster_file_system(systemd: Systemd, folder: Path) -> Iterator[Faulty]:
    """Mount a file system that can fail over /etc/pve, with what that holds."""
    systemd.run("cp", "-a", "/etc/pve", BEHIND)
    (folder / "faults.json").touch()
    command = [sys.executable, "-m", "tests.host.fuse", "/etc/pve", BEHIND, str(folder / "faults.json")]
    with subprocess.Popen(
        systemd.command("env", f"PYTHONPATH={REPOSITORY}", *command),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as mounted:  # fmt: skip
        assert mounted.stdout is not None
        assert mounted.stdout.readline() == "mounted\n"
        yield Faulty.controlled_by(folder / "faults.json")
        mounted.communicate("")
    systemd.run("rm", "-r", BEHIND)


def boot(systemd: Systemd) -> None:
    """Have the system be as after a boot: no service runs, no rule is loaded, /run is empty. Then guests are wanted."""
    systemd.run("systemctl", "stop", "pve-guests", "pvefw")
    systemd.run("pvefw", "stop")
    systemd.run("sh", "-c", "rm -rf /run/pvefw /run/guests-started")
    systemd.run("systemctl", "start", "--no-block", "pve-guests")


def guests_have_started(systemd: Systemd) -> bool:
    return systemd.run("systemctl", "is-active", "pve-guests", check=False) == "active\n"


def found_by_guests(systemd: Systemd, port: int) -> bool:
    return f"dport {port} " in systemd.path("/run/guests-started").read_text()


def test_guests_do_not_start_before_there_are_rules(systemd: Systemd, backend: str, tmp_path: Path) -> None:
    unit = systemd.path(UNIT).read_text()
    systemd.write("/etc/systemd/system/pve-guests.service", GUESTS)
    systemd.write(UNIT, systemd.run("pvefw", "run", "--fail-closed", "--poll", "1", "--print-unit"))
    systemd.run("systemctl", "daemon-reload")
    systemd.run("systemctl", "enable", "pvefw")
    systemd.run("sh", "-c", "rm -rf /var/lib/pvefw/*")
    try:
        with cluster_file_system(systemd, tmp_path) as faulty:
            # nothing was ever confirmed: guests wait for the file system
            faulty.break_("all", errno.EIO)
            boot(systemd)
            eventually(lambda: "cannot be read: Input/output error" in systemd.run("journalctl", "--unit", "pvefw"))
            time.sleep(3)  # for them to start by mistake
            assert not guests_have_started(systemd)
            faulty.mend()
            eventually(lambda: guests_have_started(systemd))
            assert found_by_guests(systemd, 1000)
            # the confirmed ruleset is loaded, and guests start
            configure(systemd, backend, port=1001, folder=BEHIND)
            faulty.break_("all", errno.EIO)
            boot(systemd)
            eventually(lambda: guests_have_started(systemd))
            assert found_by_guests(systemd, 1000)
            assert "confirmed last is in place" in systemd.run("journalctl", "--unit", "pvefw")
            faulty.mend()
            eventually(lambda: has_port(systemd, backend, 1001))
            systemd.run("systemctl", "stop", "pvefw")
    finally:
        systemd.run("systemctl", "disable", "pvefw")
        systemd.run("rm", "/etc/systemd/system/pve-guests.service")
        systemd.write(UNIT, unit)
        systemd.run("systemctl", "daemon-reload")
