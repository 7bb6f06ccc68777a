"""The table of ``pvefw cluster status`` and ``compare`` fits a terminal of 80 columns."""

from __future__ import annotations

import pytest

from pvefw_nft.cli.cluster import table_lines

ROW = {
    "node": "pve1",
    "pvefw": "0.1.0",
    "kernel": "6.8.12-4-pve",
    "firewall": "iptables",
    "pending": "0",
    "by hand": "unknown",
    "unplugged": "0",
    "compare": "different",
}


def table(**changes: str) -> list[str]:
    return list(table_lines([ROW, {**ROW, **changes}], 80))


def test_a_row_for_each_node() -> None:
    head, first, second = table(node="pve2", compare="equal")
    assert head.split() == ["node", "pvefw", "kernel", "firewall", "pending", "by", "hand", "unplugged", "compare"]
    assert first.split() == list(ROW.values())
    assert second.startswith("pve2  0.1.0  6.8.12-4-pve")


def test_kernels_go_first() -> None:
    lines = table(node="pve-frankfurt-2", firewall="nft, unconfirmed")
    assert "kernel" not in lines[0]
    assert lines[2].split()[:2] == ["pve-frankfurt-2", "0.1.0"]


def test_a_long_name_is_printed_above_its_row() -> None:
    head, *lines = table(node="hypervisor-17.rack-4.frankfurt.example", firewall="iptables, unconfirmed")
    assert head.startswith("  pvefw")
    assert lines[0::2] == ["pve1", "hypervisor-17.rack-4.frankfurt.example"]
    assert [line[:2] for line in lines[1::2]] == ["  ", "  "]


@pytest.mark.parametrize("node", ["pve1", "pve-frankfurt-2", "hypervisor-17.rack-4.frankfurt.example.com"])
@pytest.mark.parametrize("firewall", ["nft", "iptables, unconfirmed"])
def test_table_fits_the_width(node: str, firewall: str) -> None:
    assert max(map(len, table(node=node, firewall=firewall, kernel="6.8.12-4-pve-custom"))) <= 80
