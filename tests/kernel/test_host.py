"""The host side on the guest's kernel: what this machine's own kernel may lack (bridge conntrack, VLAN filtering)."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.drawn import SEED, drawn
from tests.kernel import cases

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.kernel.guest.machine import Guest

pytest.importorskip("pyroute2")

# Processes are slow in an emulated machine, and an update of iptables runs ten: as many as there is time for.
LIMITS = {
    "PVEFW_TEST_UPDATES": "200",
    "PVEFW_TEST_SWITCHES": "20",
    "PVEFW_TEST_SECONDS": "10",
    "PVEFW_TEST_KILLS": "kernel",
    "PVEFW_TEST_FILE_TIMEOUT": "20",
    "PVEFW_TEST_SLOW": "60",
}
# Tests that this machine's kernel cannot run; it runs all other tests of these files. Killing at every step takes
# minutes.
_KILLED = "nft or switch" if "PVEFW_TEST_KILLS" in os.environ else "every_step_then and nft"
_ALL_FAULTS = os.environ.get("PVEFW_TEST_FAULTS") == "all"
# a fault of the cluster file system takes two minutes there
_FAULTS = "nft" if _ALL_FAULTS else "nft and half_done and state"
_PLUGS = " or ".join(f"{verb}-nft" for verb in drawn(["start", "update"], 1, "verbs that plug"))
_LOADED = " or ".join(f"each_case_is_loaded_alike[{name}]" for name in drawn(cases.names(), 4, "loaded as text"))
_UNPLUGGED = drawn(["dropped and iptables", "dropped and nft"], 1, "backends of unplugged NICs")[0]
FILES = {
    "test_firewall_bridge_kernel.py": "vlan or tag",
    "test_traffic.py": "nft and not under_traffic",
    "test_nat.py": "",
    "test_nat_variants.py": "",
    "test_vnet.py": "",
    "test_migration.py": "go_on",
    "test_zone_change.py": "",
    "test_coexistence.py": "commands or policy or variant",
    "test_failures.py": "nft",
    "test_guarded_start.py": "force and nft",
    "test_unplugged.py": f"({_UNPLUGGED}) or (nft and ({_PLUGS} or vswitch))",
    "test_kill.py": f"({_KILLED}) and not small",
    "test_drift.py": "come_back and (nft or ebtables)",
    "test_legacy_tables.py": "ebtables",
    "test_load_as_text.py": f"{_LOADED} or refused",
    "test_faults.py": _FAULTS,
    "test_limits.py": "nft" if _ALL_FAULTS else "nft and at_its_limit and process",
}


def inherited(*names: str) -> dict[str, str]:
    """Return the variables that are set here, to set them in the guest."""
    return {name: os.environ[name] for name in names if name in os.environ}


def run_tests(guest: Guest, settings: Mapping[str, str], *arguments: str, seconds: float) -> tuple[int, str]:
    """Run tests in the guest, and return pytest's exit status and output, which is printed too."""
    options = ["-q", "-s", "-rs", "-p", "no:cacheprovider"]
    status, output = guest.call("tests.kernel.guest.pytests:run", [*options, *arguments], settings, seconds=seconds)
    text: str = output.decode(errors="replace")
    print(text)
    return status, text


def run_file(guest: Guest, file: str, chosen: str) -> None:
    """Run those tests of a file of ``tests/host`` that ``-k`` chooses, and assert that none fails or is skipped."""
    limits = {name: os.environ.get(name, value) for name, value in LIMITS.items()}
    seconds = 1800 if limits == LIMITS else 7200
    settings = {**limits, **inherited("PVEFW_TEST_NAT", "PVEFW_TEST_FAULTS", "PVEFW_TEST_DRAWN")}
    settings["PVEFW_TEST_SEED"] = str(SEED)
    status, output = run_tests(guest, settings, "-k", chosen, f"tests/host/{file}", seconds=seconds)
    assert status == 0
    # there, every test can run
    assert "skipped" not in output


@pytest.mark.parametrize("file", FILES)
def test_host_side(guest: Guest, file: str) -> None:
    run_file(guest, file, FILES[file])


def test_rulesets_change_under_traffic(guest: Guest) -> None:
    """Packets are to meet a ruleset at any moment of its change, and so have a processor of their own."""
    with guest.with_all_processors():
        assert guest.run(["nproc"]) == (0, b"%d\n" % min(2, os.cpu_count() or 1))
        run_file(guest, "test_traffic.py", "under_traffic")


_PROBE = """\
mount --make-rprivate /
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link add probe type bridge
nft list tables
cat /proc/sys/net/bridge/bridge-nf-call-iptables
"""


@functools.cache
def takes_systemd() -> bool:
    """Tell whether this machine runs a systemd in namespaces: one of its own would mind, and it must be root's."""
    if Path("/run/systemd/system").exists() or os.geteuid() != 0 or not Path("/lib/systemd/systemd").exists():
        return False
    own = ["unshare", "--mount", "--pid", "--cgroup", "--net", "--uts", "--ipc", "--fork"]
    return subprocess.run([*own, "sh", "-ec", _PROBE], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("file", ["systemd_in_guest.py", "takeover_in_guest.py", "migration_in_guest.py"])
@pytest.mark.parametrize("where", ["here", "in the guest"])
def test_under_systemd(request: pytest.FixtureRequest, where: str, file: str) -> None:
    """The service, take-over, hand-back and the guide to them: on this machine where that can be, for it is far faster.

    Its kernel may not track connections on bridges: nft's rules that need it are then replaced.
    """
    here = where == "here"
    if here and not takes_systemd():
        pytest.skip("all of it runs in the guest")
    long = inherited("PVEFW_TEST_TAKE_OVER", "PVEFW_TEST_SYSTEMD")
    limits = [f"{name}={value}" for name, value in long.items()]
    if not here and takes_systemd() and not limits:
        pytest.skip("all of nft's rules, which takes a quarter of an hour in the guest: PVEFW_TEST_SYSTEMD=1")
    backends = "iptables nft" if here or limits else "iptables"
    if limits and not here and takes_systemd():
        backends = "nft"
    pytest_command = [sys.executable, "-m", "pytest", "-q", "-s", "-rs", "-p", "no:cacheprovider"]
    command = ["env", f"PVEFW_TEST_BACKENDS={backends}", *limits, *pytest_command, f"tests/kernel/{file}"]
    seconds = 7200 if limits else 2400
    if here:
        done = subprocess.run(command, capture_output=True, timeout=seconds, check=False)
        status, output = done.returncode, done.stdout
    else:
        status, output = request.getfixturevalue("guest").run(command, seconds=seconds)
    text = output.decode(errors="replace")
    print(text)
    assert status == 0
    skipped = [line for line in text.splitlines() if line.startswith("SKIPPED")]
    reasons = ["other backend", "empty parameter set", *(["part of this kernel"] if here else [])]
    assert [line for line in skipped if not any(reason in line for reason in reasons)] == []


def test_legacy_variants_of_iptables(guest: Guest) -> None:
    """Alternatives as Proxmox VE sets them; the long form takes over and hands back with them, too."""
    files = ["tests/kernel/variants_in_guest.py"]
    files += ["tests/kernel/takeover_in_guest.py"] if "PVEFW_TEST_TAKE_OVER" in os.environ else []
    settings = inherited("PVEFW_TEST_TAKE_OVER")
    chosen = "not killed and not boot and not switched_off" if len(files) > 1 else "not switching"
    set_all = "for tool in iptables ip6tables ebtables; do update-alternatives --{0} $tool {1}; done"
    guest.run(["sh", "-ec", set_all.format("set", "/usr/sbin/$tool-legacy")], seconds=60)
    try:
        status, output = run_tests(guest, settings, "-k", chosen, *files, seconds=7200 if len(files) > 1 else 1200)
    finally:
        guest.run(["sh", "-ec", set_all.format("auto", "")], seconds=60)
    assert status == 0
    assert "skipped" not in output
