"""Findings in the files of other nodes, in files that no node reads, and in settings that defeat one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pvefw_nft.pipeline import Source
from pvefw_nft.pipeline.review import survey_root
from tests.support import NODE, VM

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import MakeRoot

ON = "[OPTIONS]\nenable: 1\n"
RULES = "[RULES]\nIN SSH(ACCEPT)\n"


def write(root: Path, name: str, text: str | bytes) -> None:
    path = root / "etc/pve" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def found(root: Path) -> list[tuple[str, str, int]]:
    """Return code, file and line of the survey's findings."""
    survey = survey_root(Source(root, NODE, lambda: None))
    return [(one.code, one.span.file.removeprefix(f"{root}/etc/pve/"), one.span.line) for one in survey]


@pytest.fixture
def cluster(make_root: MakeRoot) -> Path:
    """Return a sound configuration of nodes n1, with VM 100, and n2, with VM 101."""
    root = make_root({"100.fw": ON + RULES})
    write(root, f"nodes/{NODE}/qemu-server/100.conf", VM)
    write(root, "nodes/n2/qemu-server/101.conf", VM)
    return root


def test_a_sound_configuration_has_no_findings(cluster: Path) -> None:
    write(cluster, "firewall/101.fw", ON + RULES)
    write(cluster, "nodes/n2/host.fw", RULES)
    assert found(cluster) == []


def test_a_survey_does_not_repeat_findings_of_the_compile(cluster: Path) -> None:
    write(cluster, "firewall/cluster.fw", ON + "[RULES]\nIN NONSENSE\n")
    write(cluster, "firewall/100.fw", ON + "[RULES]\nIN NONSENSE\nIN SSH(ACCEPT)\n")
    assert found(cluster) == []


def test_files_of_another_nodes_guests_are_read(cluster: Path) -> None:
    write(cluster, "firewall/101.fw", ON + "[RULES]\nIN NONSENSE\nGROUP nosuch\n")
    write(cluster, "nodes/n2/lxc/102.conf", "net0: name=eth0,bridge=vmbr0,firewall=1,hwaddr=nonsense,type=veth\n")
    assert found(cluster) == [
        ("bad-action", "firewall/101.fw", 4),
        ("unknown-group", "firewall/101.fw", 5),
        ("bad-mac", "nodes/n2/lxc/102.conf", 1),
    ]


def test_the_host_file_of_another_node_is_read(cluster: Path) -> None:
    write(cluster, "nodes/n2/host.fw", "[RULES]\nIN NONSENSE\n")
    write(cluster, "nodes/n3/host.fw", b"\0")
    assert found(cluster) == [("bad-action", "nodes/n2/host.fw", 2), ("host-file-unusable", "nodes/n3/host.fw", 1)]


def test_the_file_of_a_guest_that_no_node_has_is_read(cluster: Path) -> None:
    write(cluster, "firewall/900.fw", "garbage\n" + ON + "[RULES]\nIN NONSENSE\n")
    assert found(cluster) == [
        ("unread-file", "firewall/900.fw", 0),
        ("no-section", "firewall/900.fw", 1),
        ("bad-action", "firewall/900.fw", 5),
    ]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("groups.fw", "[group name]"),
        ("host.fw", "nodes/NODE/host.fw"),
        ("datacenter.cfg", "cluster.fw"),
        ("web.fw", "VMID.fw"),
        ("0100.fw", "VMID.fw"),
    ],
)
def test_files_that_no_node_reads(cluster: Path, name: str, hint: str) -> None:
    write(cluster, f"firewall/{name}", "[RULES]\n")
    (one,) = survey_root(Source(cluster, NODE, lambda: None))
    assert (one.code, one.span.file) == ("unread-file", f"{cluster}/etc/pve/firewall/{name}")
    assert hint in (one.hint or "")


@pytest.mark.parametrize("name", ["100.fw~", ".100.fw.swp", "cluster.fw.bak", "cluster.pvefw", "100.pvefw"])
def test_backups_and_companion_files_are_no_finding(cluster: Path, name: str) -> None:
    write(cluster, f"firewall/{name}", "")
    assert found(cluster) == []


def test_the_file_of_a_vnet_that_does_not_exist(cluster: Path) -> None:
    write(cluster, "sdn/firewall/vint.fw", ON)
    assert found(cluster) == []  # nothing lists the VNets
    write(cluster, "sdn/vnets.cfg", "vnet: vnew\n\tzone z\n")
    assert found(cluster) == [("unread-file", "sdn/firewall/vint.fw", 0)]
    write(cluster, "sdn/vnets.cfg", "vnet: vint\n\tzone z\n")
    assert found(cluster) == []
    write(cluster, "sdn/vnets.cfg", "")
    write(cluster, "sdn/.running-config", '{"vnets": {"ids": {"vint": {"zone": "z"}}}}')
    assert found(cluster) == []


def test_rules_without_a_filtered_nic(cluster: Path) -> None:
    write(cluster, f"nodes/{NODE}/qemu-server/100.conf", VM.replace(",firewall=1", ""))
    assert found(cluster) == [("guest-not-filtered", "firewall/100.fw", 4)]
    write(cluster, f"nodes/{NODE}/qemu-server/100.conf", "memory: 512\n")
    assert found(cluster) == [("guest-not-filtered", "firewall/100.fw", 4)]
    write(cluster, "firewall/100.fw", "")
    assert found(cluster) == []


@pytest.mark.parametrize(("options", "code", "line"), [("", "not-enabled", 2), ("enable: 0\n", "switched-off", 2)])
def test_rules_of_a_guest_that_is_not_enabled(cluster: Path, options: str, code: str, line: int) -> None:
    text = f"[OPTIONS]\n{options}{RULES}" if options else RULES
    write(cluster, "firewall/100.fw", text)
    assert found(cluster) == [(code, "firewall/100.fw", line)]


def test_rules_of_a_cluster_that_is_not_enabled(cluster: Path) -> None:
    write(cluster, "firewall/cluster.fw", RULES)
    assert found(cluster) == [("not-enabled", "firewall/cluster.fw", 2)]
    write(cluster, "firewall/cluster.fw", "")
    assert found(cluster) == [("not-enabled", "firewall/cluster.fw", 0)]  # the guest has rules
    write(cluster, "firewall/cluster.fw", "[OPTIONS]\nenable: 0\n")
    assert found(cluster) == [("switched-off", "firewall/cluster.fw", 2)]
    write(cluster, "firewall/100.fw", ON)
    assert found(cluster) == []


def test_rules_of_a_host_that_is_switched_off(cluster: Path) -> None:
    write(cluster, f"nodes/{NODE}/host.fw", "[OPTIONS]\nenable: 0\n" + RULES)
    assert found(cluster) == [("switched-off", f"nodes/{NODE}/host.fw", 2)]


def test_rules_for_nics_that_the_guest_lacks_or_that_are_not_filtered(cluster: Path) -> None:
    config = VM + VM.replace("net0", "net1").replace(",firewall=1", "")
    write(cluster, f"nodes/{NODE}/qemu-server/100.conf", config)
    rules = "".join(f"IN SSH(ACCEPT) -i net{number}\n" for number in range(3))
    write(cluster, "firewall/100.fw", f"{ON}[RULES]\n{rules}")
    assert found(cluster) == [("missing-nic", "firewall/100.fw", 5), ("missing-nic", "firewall/100.fw", 6)]


def test_a_filtered_nic_without_a_bridge(cluster: Path) -> None:
    write(cluster, f"nodes/{NODE}/qemu-server/100.conf", VM + "net1: virtio=BC:24:11:00:00:02,firewall=1\n")
    assert found(cluster) == [("nic-without-bridge", f"nodes/{NODE}/qemu-server/100.conf", 2)]


@pytest.mark.parametrize(
    ("rules", "is_found"),
    [
        ("IN SSH(ACCEPT)\nIN HTTP(ACCEPT)\n", True),
        ("GROUP web\n", True),
        ("IN SSH(ACCEPT)\nIN HTTP(DROP)\n", False),
        ("IN SSH(ACCEPT) -log info\n", False),
        ("OUT SSH(DROP)\n", False),
    ],
)
def test_a_policy_that_accepts_beside_rules_that_accept(cluster: Path, rules: str, is_found: bool) -> None:
    write(cluster, "firewall/cluster.fw", ON + "[group web]\nIN HTTP(ACCEPT)\n")
    write(cluster, "firewall/100.fw", f"{ON}policy_in: ACCEPT\n[RULES]\n{rules}")
    assert found(cluster) == [("policy-accepts", "firewall/100.fw", 3)] * is_found


def test_a_policy_of_the_cluster_that_accepts(cluster: Path) -> None:
    write(cluster, "firewall/cluster.fw", ON + "policy_in: ACCEPT\n")
    write(cluster, f"nodes/{NODE}/host.fw", RULES)
    assert found(cluster) == [("policy-accepts", "firewall/cluster.fw", 3)]
