"""The files that are read, their places, and the lines of guest configs and corosync.conf that count."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.config.findings import Findings
from pvefw_nft.config.load import Configuration, Root
from pvefw_nft.errors import ConfigurationError, PvefwError, UsageError
from pvefw_nft.ir.host import corosync_peers
from pvefw_nft.pipeline import Source, check_root
from pvefw_nft.pipeline.inventory import read_guests
from tests.support import CONTAINER, NODE, VM, check

if TYPE_CHECKING:
    from pathlib import Path

    from pvefw_nft.config.model import Guest
    from tests.support import MakeRoot

ON = "[OPTIONS]\nenable: 1\n"


def guests(root: Path) -> list[Guest]:
    return list(Configuration(Root(root, NODE), Findings(), lambda: None).guests())


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_host_file_of_the_node_where_there_is_no_local_folder(tmp_path: Path) -> None:
    write(tmp_path, f"etc/pve/nodes/{NODE}/host.fw", "[OPTIONS]\nndp: 0\n")
    assert not check(tmp_path).node.host.options.ndp
    write(tmp_path, "etc/pve/local/host.fw", "")
    assert check(tmp_path).node.host.options.ndp


def test_a_folder_without_a_configuration_is_not_a_disabled_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nothing is there"):
        check(tmp_path)
    (tmp_path / "etc/pve").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="nothing is there"):
        check(tmp_path)
    (tmp_path / "etc/pve/nodes").mkdir()
    assert check(tmp_path).diagnostics == ()


def test_a_dangling_link_is_not_a_missing_file(tmp_path: Path) -> None:
    folder = tmp_path / "etc/pve/firewall"
    folder.mkdir(parents=True)
    (folder / "cluster.fw").symlink_to(folder / "elsewhere.fw")
    with pytest.raises(ConfigurationError, match="leads nowhere"):
        check(tmp_path)


def test_guests_of_the_own_node_only(tmp_path: Path) -> None:
    write(tmp_path, f"etc/pve/nodes/{NODE}/qemu-server/100.conf", VM)
    write(tmp_path, "etc/pve/nodes/other/qemu-server/101.conf", VM)
    assert [guest.vmid for guest in guests(tmp_path)] == [100]


def test_node_from_the_link_etc_pve_local(tmp_path: Path) -> None:
    write(tmp_path, "etc/pve/nodes/frodo/host.fw", "")
    (tmp_path / "etc/pve/local").symlink_to("nodes/frodo")
    assert check_root(Source(tmp_path, None, lambda: None)).node.node == "frodo"


@pytest.mark.parametrize("through", ["nodes/here", "local", "/etc/pve/nodes/here"])
def test_a_named_node_has_nothing_of_the_node_that_the_links_lead_to(tmp_path: Path, through: str) -> None:
    """``--node`` of another node on a Proxmox VE host, whose etc/pve has links to the host's own folders."""
    for node, vmid in (("here", 100), ("there", 200)):
        write(tmp_path, f"etc/pve/nodes/{node}/host.fw", f"[OPTIONS]\nndp: {int(node == 'here')}\n")
        write(tmp_path, f"etc/pve/nodes/{node}/qemu-server/{vmid}.conf", VM)
        write(tmp_path, f"etc/pve/nodes/{node}/lxc/{vmid + 1}.conf", CONTAINER)
    write(tmp_path, "etc/pve/nodes/here/host.pvefw", "[OPTIONS]\nharden: 1\n")
    local = tmp_path / "etc/pve/local"
    local.symlink_to(tmp_path / "etc/pve/nodes/here" if through.startswith("/") else "nodes/here")
    for folder in ("qemu-server", "lxc"):
        target = f"{tmp_path if through.startswith('/') else ''}{through}/{folder}"
        (tmp_path / "etc/pve" / folder).symlink_to(target)
    for node, vmid in (("here", 100), ("there", 200)):
        source = Source(tmp_path, node, lambda: None)
        found = check_root(source).node
        assert found.host.options.ndp == (node == "here")
        assert found.host.hardening.harden == (node == "here")
        assert [guest.vmid for guest in read_guests(source)] == [vmid, vmid + 1]
    assert [guest.vmid for guest in read_guests(Source(tmp_path, None, lambda: None))] == [100, 101]


def test_root_of_other_nodes_wants_a_name(tmp_path: Path) -> None:
    write(tmp_path, "etc/pve/nodes/frodo/host.fw", "")
    with pytest.raises(UsageError) as error:
        check_root(Source(tmp_path, None, lambda: None))
    assert error.value.hint is not None
    assert "frodo" in error.value.hint


def test_named_node_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, "etc/pve/nodes/frodo/host.fw", "")
    with pytest.raises(UsageError) as error:
        check_root(Source(tmp_path, "froddo", lambda: None))
    assert "`froddo`" in error.value.message
    assert "--node: frodo" in (error.value.hint or "")


@pytest.mark.parametrize("node", ["", "..", "a/b"])
def test_node_that_cannot_be_one(tmp_path: Path, node: str) -> None:
    with pytest.raises(UsageError):
        check_root(Source(tmp_path, node, lambda: None))


def test_order_of_guests_and_nics(make_root: MakeRoot) -> None:
    nics = "".join(f"net{i}: virtio=BC:24:11:00:00:0{i % 10},bridge=vmbr0,firewall=1\n" for i in (2, 10, 0))
    root = make_root({"9.conf": VM, "1000.conf": VM, "100.conf": nics, "50.ct": CONTAINER})
    found = guests(root)
    assert [guest.vmid for guest in found] == [100, 1000, 9, 50]
    assert [found[0].interface(nic) for nic in found[0].nics] == ["tap100i0", "tap100i10", "tap100i2"]


def test_snapshots_do_not_count(make_root: MakeRoot) -> None:
    root = make_root({"100.conf": VM + "[snap]\nnet1: virtio=BC:24:11:00:00:03,bridge=vmbr0,firewall=1\n"})
    assert [nic.index for nic in guests(root)[0].nics] == [0]


def test_properties_of_nics(make_root: MakeRoot) -> None:
    vm = "net3: model=virtio,macaddr=BC:24:11:0A:00:01,bridge=vmbr1,firewall=1,tag=20,trunks=5;7-9,mtu=9000,queues=4\n"
    container = "net0: name=eth0,bridge=vmbr0,hwaddr=bc:24:11:0a:00:02,ip=10.0.0.2/24,ip6=2001:db8::2/64,type=veth\n"
    first, second = guests(make_root({"100.conf": vm, "200.ct": container}))
    (nic,) = first.nics
    assert (nic.mac, nic.mac_spelling, nic.bridge, nic.tag) == (0xBC24110A0001, "BC:24:11:0A:00:01", "vmbr1", 20)
    assert (nic.trunks, nic.mtu, nic.firewall) == (((5, 5), (7, 9)), 9000, True)
    (nic,) = second.nics
    assert (nic.firewall, [address.canonical for address in nic.addresses]) == (False, ["10.0.0.2", "2001:db8::2"])


def test_raw_lxc_settings_with_an_equals_sign(make_root: MakeRoot) -> None:
    assert check(make_root({"200.ct": "lxc.mount.entry = /srv srv none bind\n" + CONTAINER})).diagnostics == ()


@pytest.mark.parametrize(
    ("line", "filtered"),
    [
        ("net0: virtio=BC:24:11:00:00:01, bridge=vmbr0,firewall=1", True),
        ("net0: virtio=BC:24:11:00:00:01,bridge=vm br0,firewall=1", True),
        ("net0 virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall =1", True),
        ("net0: virtio=BC:24:11:00:00:01, bridge=vmbr0,firewall=0", False),
        ("net0: virtio=BC:24:11:00:00:01, bridge=vmbr0", False),
    ],
)
def test_nic_that_is_misspelled_stays_filtered(make_root: MakeRoot, line: str, *, filtered: bool) -> None:
    root = make_root({"100.conf": line + "\n", "100.fw": ON})
    assert [problem.code for problem in check(root).diagnostics] == ["syntax"]
    (nic,) = guests(root)[0].nics
    assert (nic.firewall, nic.mac) == (filtered, 0xBC2411000001)


@pytest.mark.parametrize("line", ["net0: virtio=BC:24:11:00:00:01,,bridge=vmbr0", "net0: a b", "net0: ,firewall=1"])
def test_nic_that_cannot_be_read(make_root: MakeRoot, line: str) -> None:
    checked = check(make_root({"100.conf": line + "\n"}))
    assert [problem.code for problem in checked.diagnostics] == ["syntax"]


def test_local_network_of_the_alias_counts_more_than_the_option(make_root: MakeRoot) -> None:
    root = make_root({"cluster": ON + "[ALIASES]\nlocal_network 192.0.2.0/24\n"})
    network = check(root, "10.0.0.0/8").node.local_network
    assert network is not None
    assert network.canonical == "192.0.2.0/24"


def test_bad_local_network(make_root: MakeRoot) -> None:
    with pytest.raises(UsageError) as error:
        check(make_root(), "10.0.0.1/8")
    assert error.value.hint is not None
    assert "10.0.0.0/8" in error.value.hint


@pytest.mark.parametrize(("age", "enabled"), [(0, True), (30, True), (100, False), (-1000, False)])
def test_enable_as_epoch_time_holds_for_a_minute(make_root: MakeRoot, age: int, enabled: bool) -> None:
    root = make_root({"cluster": f"[OPTIONS]\nenable: {int(time.time()) - age}\n"})
    assert check(root).ruleset.enabled is enabled


@pytest.mark.parametrize("cautious", [True, False])
def test_unreadable_enable(make_root: MakeRoot, cautious: bool) -> None:
    on = "[OPTIONS]\nenable: ture\n"
    root = make_root({"cluster": on, "100.conf": VM, "100.fw": on})
    checked = check_root(Source(root, "n1", lambda: None, cautious=cautious))
    assert [finding.code for finding in checked.diagnostics] == ["bad-option-value"] * 2
    assert checked.ruleset.enabled is cautious
    assert bool(checked.ruleset.nics) is cautious


def test_missing_cluster_file_means_disabled(tmp_path: Path) -> None:
    write(tmp_path, "etc/pve/firewall/100.fw", ON)
    assert not check(tmp_path).ruleset.enabled


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(PvefwError):
        check(tmp_path / "nowhere")


COROSYNC = """\
totem {
  # a comment
  transport: udpu
  interface {
    linknumber: 0
  }
}
nodelist {
  node {
    name: n2
    ring0_addr: 10.0.0.2
    ring1_addr: 2001:db8::2
  }
  node {
    name: n1
    ring0_addr: 10.0.0.1
    ring1_addr: 10.1.0.1
  }
}
"""


def test_corosync_pairs_addresses_of_one_family_on_one_link(make_root: MakeRoot) -> None:
    checked = check(make_root({"corosync": COROSYNC}))
    assert checked.diagnostics == ()
    corosync = checked.node.corosync
    assert corosync is not None
    assert corosync.transport == "udpu"
    pairs = [(ours.canonical, theirs.canonical) for ours, theirs in corosync_peers(corosync, NODE)]
    assert pairs == [("10.0.0.1", "10.0.0.2")]


NAMED = """\
totem {
  ip_version: VERSION
}
nodelist {
  node {
    name: n1
    ring0_addr: n1.lan
  }
  node {
    name: n2
    ring0_addr: N2
  }
}
"""
HOSTS = "10.0.0.1 n1.lan n1 # here\n2001:db8::1 n1.lan\n10.0.0.2 n2\n10.0.0.3 n2\n2001:DB8:0::2 n2\n"


@pytest.mark.parametrize(
    ("version", "pairs"),
    [
        ("ipv4", [("10.0.0.1", "10.0.0.2")]),
        ("ipv6", [("2001:db8::1", "2001:db8::2")]),
        ("ipv6-4", [("2001:db8::1", "2001:db8::2")]),
        ("ipv4-6", [("10.0.0.1", "10.0.0.2")]),
        ("", [("2001:db8::1", "2001:db8::2")]),
    ],
)
def test_corosync_names_are_those_of_etc_hosts_below_the_root(
    make_root: MakeRoot, version: str, pairs: list[tuple[str, str]]
) -> None:
    text = NAMED.replace("VERSION", version) if version else NAMED.replace("  ip_version: VERSION\n", "")
    root = make_root({"corosync": text})
    write(root, "etc/hosts", HOSTS)
    checked = check(root)
    assert checked.diagnostics == ()
    assert checked.node.corosync is not None
    found = [(ours.canonical, theirs.canonical) for ours, theirs in corosync_peers(checked.node.corosync, NODE)]
    assert found == pairs


def test_a_corosync_name_of_the_other_family_is_used_where_both_are_allowed(make_root: MakeRoot) -> None:
    root = make_root({"corosync": NAMED.replace("VERSION", "ipv6-4")})
    write(root, "etc/hosts", "10.0.0.1 n1.lan\n10.0.0.2 n2\n")
    corosync = check(root).node.corosync
    assert corosync is not None
    assert [theirs.canonical for _, theirs in corosync_peers(corosync, NODE)] == ["10.0.0.2"]


def test_a_corosync_node_without_a_name_is_named_after_its_first_link(make_root: MakeRoot) -> None:
    text = NAMED.replace("VERSION", "ipv4").replace("    name: n1\n", "").replace("n1.lan", "n1")
    root = make_root({"corosync": text})
    write(root, "etc/hosts", HOSTS)
    corosync = check(root).node.corosync
    assert corosync is not None
    assert [ours.canonical for ours, _ in corosync_peers(corosync, NODE)] == ["10.0.0.1"]


def test_a_corosync_name_that_is_not_known(make_root: MakeRoot) -> None:
    text = "nodelist {\n  node {\n    name: n1\n    ring0_addr: n1.lan\n  }\n}\n"
    (problem,) = check(make_root({"corosync": text})).diagnostics
    assert (problem.code, problem.span.line, problem.span.column, problem.span.end_column) == (
        "corosync-address",
        4,
        17,
        23,
    )


def test_corosync_with_a_banner_of_comment_signs(make_root: MakeRoot) -> None:
    # Read as several comments, these would be tried in 2^2000 ways.
    assert check(make_root({"corosync": COROSYNC.replace("totem {", "totem {\n" + "#" * 2000)})).diagnostics == ()


@pytest.mark.parametrize("text", ["totem {\n", "totem }\n", "nodelist {\n node {\n", "{" * 5000])
def test_corosync_that_cannot_be_read(make_root: MakeRoot, text: str) -> None:
    checked = check(make_root({"corosync": text}))
    assert [problem.code for problem in checked.diagnostics] == ["syntax"]
