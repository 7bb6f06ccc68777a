"""The commands on a host whose alternatives lead to iptables-legacy and ebtables-legacy, as Proxmox VE sets them.

Only :mod:`tests.kernel.test_host` runs this file, in the guest, with these alternatives set.
"""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.host import tools
from tests.host.conftest import host as host
from tests.host.here import control, firewall
from tests.host.network import Network, Streams, check, compiled, start, switch_off

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.host.conftest import Namespace

TOOLS = ("iptables", "ip6tables", "ebtables")


@pytest.fixture(autouse=True)
def legacy(host: Namespace) -> None:
    """Make certain that the names of the tools lead to their legacy variants."""
    for tool in TOOLS:
        assert "nf_tables" not in tools.run([tool, "--version"])
    tools.run(["modprobe", "br_netfilter"])


@pytest.fixture
def network(host: Namespace) -> Iterator[Network]:
    made = Network()
    yield made
    made.close()


def loaded() -> str:
    """Return pvefw's rules in any variant."""
    commands = [f"{tool}-{variant}-save" for tool in TOOLS for variant in ("legacy", "nft")]
    text = "".join(subprocess.run([name], capture_output=True, text=True, check=True).stdout for name in commands)
    return "\n".join(line for line in text.splitlines() if "PVEFW" in line or "tap100i0" in line)


def test_start_drift_update_stop(tmp_path: Path) -> None:
    first = compiled(tmp_path, "iptables")
    control.apply(first)
    assert all("tap100i0-OUT" in tools.run([f"{tool}-legacy-save"]) for tool in TOOLS)
    for flush in ("iptables -F tap100i0-IN", "ip6tables -F PVEFW-INPUT", "ebtables -F tap100i0-OUT"):
        assert firewall.status(first).drifted == ()
        tools.run(flush.split())
        assert firewall.status(first).drifted, flush
        control.apply(first)
    changed = compiled(tmp_path, "iptables", 7)
    assert firewall.status(changed).changes
    control.apply(changed)
    assert firewall.status(changed).changes == ()
    assert firewall.status(changed).drifted == ()
    control.stop()
    assert loaded() == ""


def test_switching_backends_under_traffic(network: Network, tmp_path: Path) -> None:
    rulesets = [compiled(tmp_path / backend, backend) for backend in ("nft", "iptables")]
    switch_off()
    for desired in rulesets:
        start(desired)
    with Streams(network, patience=20) as streams:
        for desired in rulesets:
            outcome, _ = control.apply(desired)
            assert outcome.switched_from is not None
            time.sleep(0.5)  # packets meet these rules
            assert (loaded() == "") == (desired.backend == "nft")
    print(f"{streams.sent} denied datagrams, {streams.connected} new connections")
    check(streams)
