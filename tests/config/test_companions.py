"""Companion files hold options that only pvefw has; an unreadable value counts as the strict one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pvefw_nft.config.option_values import Layer2
from pvefw_nft.config.options import OPTIONS, ClusterHardening, FileKind, GuestHardening, HostHardening
from pvefw_nft.pipeline import Observations, Source, check_root
from pvefw_nft.pipeline.inventory import read_inventory
from tests.support import NODE, VM

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import MakeRoot

ON = "[OPTIONS]\nenable: 1\n"


def root_with(make_root: MakeRoot, **companions: str) -> Path:
    root = make_root({"100.conf": VM, "100.fw": ON, "host": "[OPTIONS]\nenable: 1\n"})
    places = {
        "cluster": "etc/pve/firewall/cluster.pvefw",
        "host": "etc/pve/local/host.pvefw",
        "guest": "etc/pve/firewall/100.pvefw",
    }
    for name, text in companions.items():
        (root / places[name]).write_text(text)
    return root


def read(root: Path) -> tuple[ClusterHardening, HostHardening, GuestHardening, list[str]]:
    inventory = read_inventory(Source(root, NODE, lambda: None))
    (guest,) = inventory.guests
    assert guest.firewall is not None
    codes = [diagnostic.code for diagnostic in inventory.diagnostics]
    return inventory.node.cluster.hardening, inventory.node.host.hardening, guest.firewall.hardening, codes


def test_without_files_nothing_is_closed(make_root: MakeRoot) -> None:
    assert read(root_with(make_root)) == (ClusterHardening(), HostHardening(), GuestHardening(), [])


def test_all_options_are_read(make_root: MakeRoot) -> None:
    root = root_with(
        make_root,
        cluster="[OPTIONS]\nl2: strict\nmax_connections: 5000\n",
        host="[OPTIONS]\nsynflood_sources: 4096\n",
        guest="[OPTIONS]\nqinq: 1\none_zone: 1\nL2: open\nipfilter_established: 1\nmax_fragments: 0\n",
    )
    cluster, host, guest, codes = read(root)
    assert codes == []
    assert cluster == ClusterHardening(l2=Layer2.STRICT, max_connections=5000)
    assert host == HostHardening(synflood_sources=4096)
    assert guest == GuestHardening(qinq=True, one_zone=True, l2=Layer2.OPEN, ipfilter_established=True, max_fragments=0)
    assert guest.over(cluster) == GuestHardening(
        qinq=True, one_zone=True, l2=Layer2.OPEN, ipfilter_established=True, max_connections=5000, max_fragments=0
    )


PLACES = {FileKind.CLUSTER_HARDENING: "cluster", FileKind.HOST_HARDENING: "host", FileKind.GUEST_HARDENING: "guest"}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in PLACES for name in OPTIONS[kind]])
def test_a_value_that_cannot_be_read_counts_as_the_strict_one(kind: FileKind, name: str, make_root: MakeRoot) -> None:
    *levels, codes = read(root_with(make_root, **{PLACES[kind]: f"[OPTIONS]\n{name}: often # really\n"}))
    assert codes == ["bad-option-value"]
    assert getattr(levels[list(PLACES).index(kind)], name) == OPTIONS[kind][name].strict


def test_an_unknown_option_is_an_error_that_says_where_it_belongs(make_root: MakeRoot) -> None:
    root = root_with(make_root, cluster="[OPTIONS]\nqinq: 1\n", guest="[OPTIONS]\nmacfilter: 0\nl3: strict\n")
    diagnostics = read_inventory(Source(root, NODE, lambda: None)).diagnostics
    assert [d.code for d in diagnostics] == ["unknown-option"] * 3
    assert [d.hint for d in diagnostics][:2] == [
        "`qinq` belongs in a guest's .pvefw file",
        "`macfilter` belongs in a guest's .fw file",
    ]


def test_an_option_of_a_companion_is_unknown_to_proxmox(make_root: MakeRoot) -> None:
    root = make_root({"100.conf": VM, "100.fw": ON + "l2: strict\n"})
    (diagnostic,) = check_root(Source(root, NODE, lambda: None)).diagnostics
    assert diagnostic.code == "unknown-option"
    assert diagnostic.hint == "`l2` belongs in cluster.pvefw or in a guest's .pvefw file"


@pytest.mark.parametrize("section", ["RULES", "ALIASES", "IPSET some"])
def test_companions_have_options_only(section: str, make_root: MakeRoot) -> None:
    root = root_with(make_root, guest=f"[{section}]\nIN ACCEPT\n")
    assert read(root)[3] == ["misplaced-section"]


def test_a_change_of_a_companion_is_a_change_of_the_configuration(make_root: MakeRoot) -> None:
    root = root_with(make_root)
    source = Source(root, NODE, lambda: None)
    observations = Observations()
    check_root(observations.observed(source))
    observations.finish()
    assert observations.still_hold(source)
    (root / "etc/pve/firewall/100.pvefw").write_text("[OPTIONS]\nl2: strict\n")
    assert not observations.still_hold(source)
