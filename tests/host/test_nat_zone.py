"""NAT beside the iptables ruleset: pvefw's rules and messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from pvefw_nft.cli import cli
from pvefw_nft.host import doctor
from pvefw_nft.host.doctor import Level
from pvefw_nft.host.tracking import nat_shield, nat_zone

from .conftest import need
from .network import configure

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Namespace

MASQUERADE = "iptables -t nat -A POSTROUTING -s 10.0.0.0/24 -o eno1 -j MASQUERADE"
OTHERS_RULE = "-t raw -I PREROUTING -i fwbr+ -j CT --zone 1"
WARNING = "firewall bridges have no connection tracking zone"


@pytest.fixture
def root(host: Namespace, tmp_path: Path) -> Path:
    need("ip link add fwbr100i0 type bridge && ipset list -n && iptables -t raw -nL && iptables -t nat -nL")
    configure(tmp_path)
    return tmp_path


def shell(script: str) -> None:
    need(script)


def start(root: Path, *options: str, command: str = "start") -> str:
    where = ["--root", str(root), "--node", "n", "--local-network", "10.0.0.0/24"]
    result = CliRunner().invoke(cli, [command, "--backend", "iptables", *where, *options])
    return result.output


def raw(tool: str = "iptables") -> list[str]:
    from .nat_network import run

    return [line for line in run(f"{tool}-save", "-t", "raw").splitlines() if "--zone" in line]


def shields() -> list[str]:
    from .nat_network import run

    return [line for line in run("iptables-save", "-t", "nat").splitlines() if nat_zone.COMMENT in line]


def test_start_and_status_tell_of_nat_without_zone_rule(root: Path) -> None:
    assert WARNING not in start(root)
    shell(MASQUERADE)
    assert WARNING in start(root)
    assert WARNING in start(root, command="status")
    shell(f"iptables {OTHERS_RULE}")
    assert WARNING not in start(root)
    assert WARNING not in start(root, command="status")


def test_translating_rules_of_nft_also_count(root: Path) -> None:
    shell("nft add table ip mine; nft add chain ip mine out '{ type nat hook postrouting priority 100; }'")
    assert nat_zone.missing() == []
    shell("nft add rule ip mine out oifname eno1 masquerade")
    (line,) = nat_zone.missing()
    assert line.startswith("iptables: ")
    assert "nft: ip mine out" in line


def test_no_firewall_bridge_no_warning(root: Path) -> None:
    shell(MASQUERADE)
    shell("ip link del fwbr100i0")
    assert nat_zone.missing() == []


def test_nat_zone_adds_a_rule_that_stop_removes(root: Path) -> None:
    shell(MASQUERADE)
    output = start(root, "--nat-zone")
    assert WARNING not in output
    assert all(len(raw(tool)) == 1 for tool in ("iptables", "ip6tables"))
    start(root, "--nat-zone")
    assert len(raw()) == 1
    # others flush it: the next apply that has something to do brings it back, and so does a start
    shell("iptables -t raw -F PREROUTING")
    start(root)
    assert len(raw()) == 1
    CliRunner().invoke(cli, ["stop"])
    assert raw() == []
    start(root)
    assert len(raw()) == 1
    assert WARNING in start(root, "--no-nat-zone")
    assert raw() == []
    assert shields() == []


def test_helpers_are_assigned_in_front_of_the_zone_rule(root: Path) -> None:
    (root / "etc/pve/nodes/n/host.fw").write_text("[OPTIONS]\nnf_conntrack_helpers: ftp,tftp\n")
    shell(f"iptables {OTHERS_RULE} && ip6tables {OTHERS_RULE} && {MASQUERADE}")
    assert "keeps guests' packets from helpers (ftp, tftp)" in start(root)
    assert "helpers" not in start(root, "--nat-zone")
    first, second, theirs = raw()
    assert [line.split(" -j ")[1] for line in (first, second)] == [
        "CT --helper ftp --zone 1",
        "CT --helper tftp --zone 1",
    ]
    assert nat_zone.COMMENT not in theirs
    (root / "etc/pve/nodes/n/host.fw").write_text("[OPTIONS]\nnf_conntrack_helpers: ftp\n")
    start(root)
    assert len(raw()) == 2


def test_port_forwards_leave_firewall_bridges_out(root: Path) -> None:
    shell(f"iptables {OTHERS_RULE} && ip6tables {OTHERS_RULE}")
    shell("iptables -t nat -A PREROUTING -d 192.0.2.254 -p tcp --dport 8080 -j DNAT --to-destination 10.0.0.100:80")
    assert "translates packets on firewall bridges already" in start(root)
    assert "translates packets" not in start(root, "--nat-zone")
    assert len(shields()) == 2
    assert shields()[0].startswith("-A PREROUTING -i fwbr+ ")
    CliRunner().invoke(cli, ["stop"])
    assert shields() == []


def test_port_forwards_of_nft_leave_firewall_bridges_out(root: Path) -> None:
    shell(f"iptables {OTHERS_RULE} && ip6tables {OTHERS_RULE}")
    shell("nft add table ip mine; nft add chain ip mine pre '{ type nat hook prerouting priority -100; }'")
    shell("nft add rule ip mine pre iifname eno1 tcp dport 8081 dnat to 10.0.0.100:80")
    assert "translates packets" not in start(root, command="status")
    start(root, "--nat-zone")
    assert nat_shield.shielded() == set()
    shell("nft add rule ip mine pre ip daddr 192.0.2.254 tcp dport 8080 dnat to 10.0.0.100:80")
    assert "port forward (nft: ip mine pre) translates packets" in start(root, command="status")
    assert "translates packets" not in start(root)
    assert nat_shield.shielded() == {"ip"}
    shell("nft flush chain ip mine pre")
    start(root)
    assert nat_shield.shielded() == set()
    shell("nft add rule ip mine pre tcp dport 8080 redirect to :80")
    start(root)
    assert nat_shield.shielded() == {"ip"}
    CliRunner().invoke(cli, ["stop"])
    assert nat_shield.shielded() == set()


def test_foreign_zone_rule_stays(root: Path) -> None:
    shell(f"iptables {OTHERS_RULE}")
    start(root, "--nat-zone")
    assert len(raw()) == 1
    start(root, "--no-nat-zone")
    CliRunner().invoke(cli, ["stop"])
    assert len(raw()) == 1


def test_doctor_tells_of_nat_without_zone_rule(root: Path) -> None:
    shell(MASQUERADE)
    found = [finding for finding in doctor._nat("iptables") if WARNING in finding.text]
    assert [finding.level for finding in found] == [Level.BAD]
    assert found[0].remedy == nat_zone.REMEDY
    assert list(doctor._nat("nft")) == []
