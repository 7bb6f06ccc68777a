"""Rules of a VNet between its guests and the host's own interface on its bridge."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .nat_network import ADDRESSES, BRIDGES, NatNetwork, configure
from .network import has_bridge_conntrack, recompiled, start

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Namespace

pytest.importorskip("pyroute2")

GUEST, HOST = ADDRESSES["vm102"], BRIDGES["vmbr1"]
# a server says from which address it was reached
SILENT = "no answer"


@pytest.mark.parametrize("host_firewall", [True, False])
def test_vnet_rules_hold_between_guests_and_the_host(host: Namespace, tmp_path: Path, host_firewall: bool) -> None:
    if not has_bridge_conntrack():
        pytest.skip("this kernel does not track connections on bridges")
    configure(tmp_path, f"enable: {int(host_firewall)}")
    rules = tmp_path / "etc/pve/sdn/firewall/vmbr1.fw"
    rules.parent.mkdir(parents=True)
    rules.write_text("[OPTIONS]\nenable: 1\npolicy_forward: DROP\n[RULES]\nFORWARD ACCEPT -p tcp -dport 22\n")
    with NatNetwork() as network:
        start(recompiled(tmp_path, "nft"))
        assert network.tcp("vm102", HOST, 22) == GUEST
        assert network.tcp("host", GUEST, 22) == HOST
        assert network.tcp("vm102", HOST, 80) == (SILENT if host_firewall else GUEST)
        assert network.tcp("host", GUEST, 80) == (SILENT if host_firewall else HOST)
        # between guests they hold in any case
        assert network.tcp("vm102", ADDRESSES["vm101"], 80) == SILENT
        # another bridge is another VNet's
        assert network.tcp("host", ADDRESSES["vm103"], 80) == BRIDGES["vmbr2"]
