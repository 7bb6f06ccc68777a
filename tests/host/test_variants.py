"""The commands on a host whose iptables is the legacy variant, which Proxmox VE sets."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.host import tools

from .conftest import need
from .here import control, firewall
from .network import compiled
from .test_other_hands import legacy_tools

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .conftest import Namespace

pytest.importorskip("pyroute2")

LEGACY = ("iptables-legacy-save", "ip6tables-legacy-save")


@pytest.fixture
def legacy(host: Namespace, tmp_path: Path) -> Iterator[None]:
    """Have legacy iptables and ip6tables."""
    with legacy_tools(tmp_path / "tools"):
        need("iptables -L; ip6tables -L; ebtables -L; ipset list")
        assert "legacy" in tools.run(["iptables", "--version"])
        yield


def loaded() -> str:
    """Return pvefw's rules in the legacy variants, and in the nft variants."""
    commands = [*LEGACY, "iptables-nft-save", "ip6tables-nft-save", "ebtables-save"]
    text = "".join(subprocess.run([name], capture_output=True, text=True, check=True).stdout for name in commands)
    return "\n".join(line for line in text.splitlines() if "PVEFW" in line or "tap100i0" in line)


def test_start_update_status_stop_with_legacy_tools(legacy: None, tmp_path: Path) -> None:
    first = compiled(tmp_path / "root", "iptables")
    control.apply(first)
    assert all("tap100i0-IN" in tools.run([name]) for name in LEGACY)
    assert firewall.status(first).changes == ()
    assert firewall.status(first).drifted == ()
    outcome, _ = control.apply(first)
    assert outcome.changes == ()
    changed = compiled(tmp_path / "root", "iptables", 7)
    assert firewall.status(changed).changes
    control.apply(changed)
    assert "--dport 2007" in tools.run([LEGACY[0]])
    need("iptables -F tap100i0-IN")
    assert firewall.status(changed).drifted
    control.apply(changed)
    assert firewall.status(changed).drifted == ()
    control.apply(compiled(tmp_path / "root", "iptables", 7, other=True))
    control.stop()
    assert loaded() == ""
