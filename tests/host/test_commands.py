"""The commands around the ruleset: plug, unplug, plumb, localnet, doctor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.errors import HostError
from pvefw_nft.host import doctor
from pvefw_nft.host.bridges.firewall_bridge import Nic
from pvefw_nft.host.doctor import Finding, Level, Switches
from pvefw_nft.host.links import Links, open_route, read_links
from pvefw_nft.host.paths import Paths, use_paths
from pvefw_nft.host.tools import use_runner
from pvefw_nft.pipeline import Source
from pvefw_nft.pipeline.inventory import read_inventory
from tests.host.here import firewall
from tests.support import NODE, VM

from . import runners
from .runners import Editing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support import MakeRoot

    from .conftest import Namespace

pytest.importorskip("pyroute2")

REPOSITORY = Path(__file__).resolve().parents[2]


def pvefw(*arguments: str) -> subprocess.CompletedProcess[str]:
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "pvefw_nft.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    firewall, node = tmp_path / "etc/pve/firewall", tmp_path / "etc/pve/nodes/n"
    firewall.mkdir(parents=True)
    for kind in ("qemu-server", "lxc"):
        (node / kind).mkdir(parents=True)
    (firewall / "cluster.fw").write_text("[OPTIONS]\nenable: 1\n[ALIASES]\nlocal_network 10.0.0.0/24\n")
    (firewall / "100.fw").write_text("[OPTIONS]\nenable: 1\n")
    (node / "qemu-server/100.conf").write_text(
        "net0: virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1,mtu=1\n"
        "net1: virtio=BC:24:11:00:00:02,bridge=vmbr0\n"
        "net2: virtio=BC:24:11:00:00:03,bridge=vmbr0,firewall=1\n"
    )
    (node / "lxc/200.conf").write_text(
        "net0: name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:04,ip=dhcp,type=veth,firewall=1,mtu=1400\n"
    )
    (tmp_path / "etc/pve/corosync.conf").write_text(
        "totem {\n  version: 2\n  transport: udp\n}\nnodelist {\n"
        "  node {\n    name: n\n    ring0_addr: 10.0.0.1\n  }\n"
        "  node {\n    name: m\n    ring0_addr: 10.0.0.2\n  }\n}\n"
    )
    return tmp_path


def options(root: Path) -> list[str]:
    return ["--root", str(root), "--node", "n"]


@pytest.fixture
def nics(host: Namespace) -> None:
    """A bridge, and the NICs of running guests, still in it."""
    with open_route() as route:
        route.link("add", ifname="vmbr0", kind="bridge", br_forward_delay=0)
        bridge = route.link_lookup(ifname="vmbr0")[0]
        for name in ("tap100i0", "tap100i1", "veth200i0"):
            route.link("add", ifname=name, kind="veth", peer={"ifname": f"{name}x"})
            route.link("set", index=route.link_lookup(ifname=name)[0], master=bridge)


def now() -> Links:
    with open_route() as route:
        return read_links(route)


def test_plug_as_configured(nics: None, configuration: Path) -> None:
    assert pvefw("plug", "tap100i0", *options(configuration)).returncode == 0
    assert now().ports("fwbr100i0") == ["fwln100i0", "tap100i0"]
    again = pvefw("plug", "tap100i0", "--dry-run", *options(configuration))
    assert (again.returncode, again.stdout) == (0, "")
    assert pvefw("unplug", "tap100i0").returncode == 0
    assert now().get("fwbr100i0") is None


def test_plug_leaves_a_nic_without_the_firewall_alone(nics: None, configuration: Path) -> None:
    done = pvefw("plug", "tap100i1", *options(configuration))
    assert done.returncode == 0
    assert "does not have firewall=1: left alone" in done.stderr
    assert "tap100i1" in now().ports("vmbr0")


def test_plug_without_a_configuration(nics: None) -> None:
    assert pvefw("plug", "tap100i1", "--bridge", "vmbr0", "--mtu", "1300").returncode == 0
    link = now().get("tap100i1")
    assert link is not None
    assert (link.master, link.mtu) == ("fwbr100i1", 1300)


def test_plumb_plugs_running_guests(nics: None, configuration: Path) -> None:
    done = pvefw("plumb", *options(configuration))
    *each, total = done.stdout.splitlines()
    assert [line.partition(" (")[0] for line in each] == [
        "tap100i0: plugged behind fwbr100i0",
        "veth200i0: plugged behind fwbr200i0",
    ]
    assert total == "2 NICs plugged, 2 of them changed; 1 are not running"
    assert now().ports("vmbr0") == ["fwpr100p0", "fwpr200p0", "tap100i1"]
    container = now().get("veth200i0")
    assert container is not None
    assert container.mtu == 1400
    again = json.loads(pvefw("plumb", "--format", "json", *options(configuration)).stdout)
    assert [(nic["interface"], nic["steps"]) for nic in again["nics"]] == [("tap100i0", []), ("veth200i0", [])]
    assert again["not_running"] == ["tap100i2"]
    assert "0 of them changed" in pvefw("plumb", *options(configuration)).stdout


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("plug", "eth0", "--bridge", "vmbr0"), 2, "not the name of a guest's NIC"),
        (("plug", "tap100i0", "--bridge", "no-such-one"), 3, "there is no bridge no-such-one"),
        (("plug", "tap100i0", "--bridge", "vmbr0", "--trunks", "x"), 2, "not a list of VLANs"),
        (("plug", "tap100i0", "--tag", "5"), 2, "go with --bridge"),
        (("plug", "tap999i0"), 3, "no guest of this node has a NIC tap999i0"),
    ],
)
def test_plug_that_cannot_be(
    nics: None, configuration: Path, arguments: tuple[str, ...], status: int, message: str
) -> None:
    done = pvefw(*arguments, *options(configuration))
    assert done.returncode == status
    assert message in done.stderr


def test_localnet(configuration: Path) -> None:
    assert pvefw("localnet", *options(configuration)).stdout == (
        "node: n\n"
        "local network: 10.0.0.0/24 (cluster.fw)\n"
        "corosync: udp, multicast accepted\n"
        "  10.0.0.2 <-> 10.0.0.1, udp 5404:5405\n"
    )


def test_doctor_finds_nics_that_are_not_plugged(nics: None, configuration: Path) -> None:
    done = pvefw("doctor", "--format", "json", *options(configuration))
    assert done.returncode == 1
    found = {finding["text"]: finding for finding in json.loads(done.stdout)}
    unfiltered = "tap100i0 has firewall=1 but is in vmbr0, not behind fwbr100i0: it is not filtered"
    assert found[unfiltered]["remedy"] == "pvefw plug tap100i0"
    assert found[unfiltered]["level"] == "problem"
    assert "guests with firewall=1 on a NIC whose own firewall is off: 200" in found
    pvefw("plumb", *options(configuration))
    after = pvefw("doctor", *options(configuration)).stdout
    assert "2 NICs with firewall=1 are behind their firewall bridges" in after


def test_doctor_finds_opened_plumbing(nics: None, configuration: Path) -> None:
    pvefw("plumb", *options(configuration))
    Path("/proc/sys/net/ipv4/conf/fwbr100i0/arp_ignore").write_text("0")
    assert (
        "tap100i0: its firewall bridge differs from its configuration"
        in pvefw("doctor", *options(configuration)).stdout
    )


def texts(findings: list[Finding], level: Level) -> list[str]:
    return [finding.text for finding in findings if finding.level is level]


def test_doctor_finds_the_switch_that_is_off() -> None:
    off = list(doctor.examine(firewall, "iptables", Switches(cluster=False, host=True, guests={}), []))
    assert "the firewall is off for the whole cluster, so nothing is filtered" in texts(off, Level.BAD)


def test_doctor_finds_a_missing_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with use_runner(runners.NONE):
        found = list(doctor.examine(firewall, "iptables", Switches(cluster=True, host=True, guests={}), []))
    assert "the program ipset is not installed" in texts(found, Level.BAD)


def test_doctor_finds_a_tool_that_does_not_run() -> None:
    def fail(command: Sequence[str], text: str | None) -> str | None:
        if command[-1] == "--version":
            raise HostError(f"{' '.join(command)} failed: no permission", "run this as root")
        return text

    with use_runner(Editing(fail)):
        found = list(doctor.examine(firewall, "iptables", Switches(cluster=True, host=True, guests={}), []))
    assert [text for text in texts(found, Level.WARNING) if "ipset --version failed" in text]


def test_doctor_finds_a_forward_policy_that_drops(host: Namespace) -> None:
    try:
        subprocess.run(["iptables", "-P", "FORWARD", "DROP"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"iptables is not usable here: {error}")
    found = list(doctor.examine(firewall, "iptables", Switches(cluster=True, host=True, guests={}), []))
    assert any("FORWARD drops by policy" in text for text in texts(found, Level.WARNING))


def test_doctor_finds_a_bridge_setting_that_lets_packets_by(tmp_path: Path) -> None:
    (tmp_path / "net/bridge").mkdir(parents=True)
    for setting in ("call-iptables", "call-ip6tables", "filter-vlan-tagged"):
        (tmp_path / "net/bridge" / f"bridge-nf-{setting}").write_text("0\n")
    nics = [Nic("tap1i0", "b", 1, 0)]
    with use_paths(Paths(sysctls=tmp_path)):
        found = list(doctor.examine(firewall, "iptables", Switches(cluster=True, host=True, guests={}), nics))
    assert "net.bridge.bridge-nf-call-ip6tables is 0: bridged packets bypass ip6tables" in texts(found, Level.BAD)
    assert any("tags with a VLAN itself" in text for text in texts(found, Level.WARNING))


def test_doctor_notes_guests_that_speak_spanning_tree(make_root: MakeRoot) -> None:
    root = make_root({"100.conf": VM, "100.fw": "[OPTIONS]\nenable: 1\n"})

    def warned(backend: str) -> tuple[int, ...]:
        return read_inventory(Source(root, NODE, lambda: None)).open_layer2(backend)

    assert (warned("nft"), warned("iptables")) == ((100,), (100,))
    (root / "etc/pve/firewall/cluster.pvefw").write_text("[OPTIONS]\nl2: strict\n")
    assert (warned("nft"), warned("iptables")) == ((), (100,))
    switches = Switches(cluster=True, host=True, guests={}, open_layer2=(100,))
    found = list(doctor.examine(firewall, "iptables", switches, []))
    # a note leaves the exit code at 0: the default configuration of every host lets them pass
    assert "frames of spanning tree (BPDUs) of guests pass: 100" in texts(found, Level.NOTE)


def test_doctor_notes_guests_that_may_answer_by_another_nic(make_root: MakeRoot) -> None:
    other_bridge = VM.replace("net0", "net1").replace("vmbr0", "vmbr1")
    files = {"100.conf": f"{VM}{VM.replace('net0', 'net1')}", "101.conf": f"{VM}{other_bridge}"}
    root = make_root({**files, "100.fw": "[OPTIONS]\nenable: 1\n", "101.fw": "[OPTIONS]\nenable: 1\n"})
    source = Source(root, NODE, lambda: None)
    assert read_inventory(source).divided() == (100,)
    (root / "etc/pve/firewall/100.pvefw").write_text("[OPTIONS]\none_zone: 1\n")
    assert read_inventory(source).divided() == ()
    switches = Switches(cluster=True, host=True, guests={}, divided=(100,))
    (note,) = [
        text for text in texts(list(doctor.examine(firewall, "nft", switches, [])), Level.NOTE) if "another NIC" in text
    ]
    assert note.endswith(": 100")
