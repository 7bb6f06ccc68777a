"""Guests that ``ipfilter_established`` would cut off."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pvefw_nft.pipeline import Source
from pvefw_nft.pipeline.review import survey_root
from tests.support import NODE, VM

if TYPE_CHECKING:
    from tests.support import MakeRoot

ON = "[OPTIONS]\nenable: 1\n"
SET = "[IPSET ipfilter-net0]\n192.0.2.0/24\n!192.0.2.66\n"


def warned(
    make_root: MakeRoot, rule: str, companion: str = "ipfilter_established: 1", guest_set: str = SET
) -> list[str]:
    root = make_root({"cluster": ON + "[group web]\nIN ACCEPT -dest 203.0.113.5\n", "100.conf": VM})
    folder = root / "etc/pve/firewall"
    (folder / "100.fw").write_text(f"{ON}{guest_set}[RULES]\n{rule}\n")
    (folder / "100.pvefw").write_text(f"[OPTIONS]\n{companion}\n")
    diagnostics = survey_root(Source(root, NODE, lambda: None))
    return [f"{d.span.line}: {d.message}" for d in diagnostics if d.code == "answers-cut-off"]


def test_an_address_outside_of_the_set_is_named(make_root: MakeRoot) -> None:
    (text,) = warned(make_root, "IN ACCEPT -p tcp -dport 22 -dest 203.0.113.5")
    assert text.startswith("7: net0 may not send from 203.0.113.5,")


@pytest.mark.parametrize("address", ["192.0.2.66", "2001:db8::1", "192.0.0.0/16"])
def test_so_is_a_hole_another_family_and_a_network_that_reaches_out(address: str, make_root: MakeRoot) -> None:
    assert len(warned(make_root, f"IN ACCEPT -dest {address}")) == 1


def test_and_a_rule_of_a_group(make_root: MakeRoot) -> None:
    assert len(warned(make_root, "GROUP web")) == 1


@pytest.mark.parametrize(
    "rule", ["IN ACCEPT -dest 192.0.2.7", "IN ACCEPT", "IN DROP -dest 203.0.113.5", "OUT ACCEPT -dest 203.0.113.5"]
)
def test_these_own_addresses_cut_no_guest_off(rule: str, make_root: MakeRoot) -> None:
    assert warned(make_root, rule) == []


def test_nor_without_the_option_or_without_a_filter(make_root: MakeRoot) -> None:
    assert warned(make_root, "IN ACCEPT -dest 203.0.113.5", companion="qinq: 1") == []
    assert warned(make_root, "IN ACCEPT -dest 203.0.113.5", guest_set="") == []
