"""Guests of other nodes, and the addresses that files give guests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from pvefw_nft.cli.simulate import simulate_command
from pvefw_nft.errors import UsageError
from pvefw_nft.pipeline import Source
from pvefw_nft.pipeline.topology import topology

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """Two nodes: vm100 on one, vm200 and ct201 on two, vm300 on two in another VLAN."""
    pve = tmp_path / "etc/pve"
    nics = {
        "one/qemu-server/100": "net0: virtio=BC:24:11:00:01:00,bridge=vmbr0,firewall=1\nipconfig0: ip=10.0.1.0/16\n",
        "two/qemu-server/200": "net0: virtio=BC:24:11:00:02:00,bridge=vmbr0,firewall=1\nipconfig0: ip=10.0.2.0/16\n",
        "two/lxc/201": "net0: name=eth0,bridge=vmbr0,firewall=1,hwaddr=BC:24:11:00:02:01,ip=10.0.2.1/16,type=veth\n",
        "two/qemu-server/300": "net0: virtio=BC:24:11:00:03:00,bridge=vmbr0,firewall=1,tag=7\n",
    }
    for name, text in nics.items():
        path = pve / "nodes" / f"{name}.conf"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (pve / "firewall").mkdir()
    (pve / "firewall/cluster.fw").write_text("[OPTIONS]\nenable: 1\n")
    (pve / "firewall/100.fw").write_text("[OPTIONS]\nenable: 1\n[RULES]\nIN ACCEPT -source 10.0.2.0/31 -p tcp\n")
    (pve / "firewall/200.fw").write_text("[OPTIONS]\nenable: 1\n[IPSET ipfilter-net0]\n10.0.2.9\n10.8.0.0/24\n")
    return tmp_path


def invoke(root: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(
        simulate_command, ["--root", str(root), "--node", "one", "--local-network", "10.0.0.0/16", *arguments]
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_guests_elsewhere_with_their_addresses(cluster: Path) -> None:
    found = topology(Source(cluster, "one", lambda: None))
    assert [nic.zone for nic in found.nics] == ["vm100"]
    vm200 = next(nic for nic in found.elsewhere if nic.zone == "vm200")
    assert (vm200.node, vm200.addresses) == ("two", ((4, 0x0A000200), (4, 0x0A000209)))
    assert vm200.ranges == ((4, 0x0A080000, 0x0A0800FF),)


@pytest.mark.parametrize("sender", ["vm200", "ct201", "10.0.2.1"])
def test_a_guest_of_another_node_is_outside(cluster: Path, sender: str) -> None:
    output = invoke(cluster, "--from", sender, "--to", "vm100:22").output
    assert output.startswith("ACCEPT: tcp 10.0.2.")
    assert "(vmbr0/eth0 → vm100i0)" in output.splitlines()[0]
    assert "runs on node two: the filters of that node are not simulated" in output


def test_two_guests_of_another_node_do_not_pass_this_one(cluster: Path) -> None:
    with pytest.raises(UsageError, match="other nodes") as caught:
        invoke(cluster, "--from", "vm200", "--to", "ct201")
    assert caught.value.hint == "name one of their nodes with --node: two"


def test_two_vlans_of_a_bridge_do_not_reach_each_other(cluster: Path) -> None:
    with pytest.raises(UsageError, match="VLAN 7"):
        invoke(cluster, "--from", "vm300", "--to", "vm100:22")


def test_one_file_of_packets_for_the_whole_cluster(cluster: Path, tmp_path: Path) -> None:
    packets = "".join(
        f'[[packet]]\nfrom = "{source}"\nto = "{to}"\nproto = "tcp"\ndport = 22\nexpect = "{verdict}"\n'
        for source, to, verdict in (
            ("vm200", "vm100", "ACCEPT"),
            ("vm200", "ct201", "DROP"),
            ("host", "ct201", "ACCEPT"),
        )
    )
    file = tmp_path / "packets.toml"
    file.write_text(packets)
    output = invoke(cluster, "--tests", str(file)).output
    assert output.endswith("2 passed, 0 failed, 1 skipped (they do not pass this node)\n")


def test_an_unknown_zone_is_an_error_that_names_the_known_ones(cluster: Path) -> None:
    with pytest.raises(UsageError) as caught:
        invoke(cluster, "--from", "vm999", "--to", "host")
    assert "vm100, vm200, vm300, ct201" in (caught.value.hint or "")
