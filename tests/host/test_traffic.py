"""Packets while rulesets come and go: a denied packet never passes, an allowed one never fails.

A kernel that lacks what a backend needs (connection tracking on bridges for nft) makes these skip; the kernel lab runs
them on one that has it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.waiting import wait_until

pytest.importorskip("pyroute2")
pytest.importorskip("nftables")

from pvefw_nft.host.links import open_route
from pvefw_nft.host.records.pending import pending

from .here import control, firewall
from .network import (
    ADDRESSES,
    ALLOWED,
    CUT_DOWN,
    DENIED_WAYS,
    HOST_ONLY,
    Denied,
    Echo,
    Network,
    Streams,
    check,
    compiled,
    recompiled,
    rounds,
    start,
    switch_off,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pvefw_nft.host.records.record import Desired

    from .conftest import Namespace

UPDATES = int(os.environ.get("PVEFW_TEST_UPDATES", "20"))
SWITCHES = int(os.environ.get("PVEFW_TEST_SWITCHES", "4"))
BACKENDS = ("iptables", "nft")


@pytest.fixture
def network(host: Namespace) -> Iterator[Network]:
    made = Network()
    yield made
    made.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_updates_under_traffic(network: Network, tmp_path: Path, backend: str) -> None:
    start(compiled(tmp_path / "c", backend))
    with Streams(network) as streams:
        for number in rounds(UPDATES):
            outcome, _ = control.apply(compiled(tmp_path / "c", backend, number))
            assert outcome.changes
    print(f"{streams.sent} denied datagrams, {streams.connected} new connections, {streams.echoed} words over old ones")
    check(streams)


def test_switching_backends_under_traffic(network: Network, tmp_path: Path) -> None:
    rulesets = [compiled(tmp_path / backend, backend) for backend in ("nft", "iptables")]
    switch_off()  # a switch to nft does so again
    for desired in rulesets:
        start(desired)
    with Streams(network) as streams:
        for number in rounds(SWITCHES):
            outcome, _ = control.apply(rulesets[(number + 1) % 2])
            assert outcome.switched_from is not None
    print(f"{streams.sent} denied datagrams, {streams.connected} new connections, {streams.echoed} words over old ones")
    check(streams)


def test_without_rules_all_that_is_denied_arrives(network: Network) -> None:
    """The tests rely on this: only the rules keep a packet from arriving."""
    with contextlib.closing(Denied(network)) as denied:
        there = {f"{here} to {address}" for here, place in DENIED_WAYS for address in ADDRESSES[place]}
        assert set(denied.pass_now()) == there


def test_streams_notice_a_hole_and_a_cut(network: Network, tmp_path: Path) -> None:
    """The tests of updates rely on this: a moment without the rules is seen."""
    start(compiled(tmp_path / "c", "iptables"))
    with Streams(network, patience=0.5) as streams:
        subprocess.run(["iptables", "-D", "INPUT", "-j", "PVEFW-INPUT"], check=True)
        time.sleep(0.02)  # the hole
        subprocess.run(["iptables", "-A", "INPUT", "-j", "PVEFW-INPUT"], check=True)
        time.sleep(0.5)  # the packets that passed arrive
        assert set(streams.leaked) == {"outside to 10.0.0.1"}
        subprocess.run(["iptables", "-I", "INPUT", "-p", "tcp", "-j", "DROP"], check=True)
        time.sleep(2)  # longer than the patience of the streams
    assert sorted(failed.split(":")[0] for failed in streams.failed) == ["_connect", "_stay"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_guest_cannot_get_around_the_filter_through_its_firewall_bridge(
    network: Network, tmp_path: Path, backend: str
) -> None:
    """A datagram that the guest must not send, to the firewall bridge's own MAC address; the host would take it."""
    start(compiled(tmp_path / "c", backend))
    with open_route() as route:
        (message,) = route.get_links(route.link_lookup(ifname="fwbr100i0")[0])
    mac = message.get("address")
    with network.guest.entered():
        for address in ADDRESSES["host"]:
            subprocess.run(["ip", "neigh", "replace", address, "lladdr", mac, "dev", "eth0"], check=True)
    with contextlib.closing(Denied(network, [("outside", "host")], HOST_ONLY)) as welcome:
        assert welcome.pass_now() == ["outside to 10.0.0.1", "outside to fd00::1"]
    with contextlib.closing(Denied(network, [("guest", "host")], HOST_ONLY)) as around:
        assert around.pass_now() == []


def cutting(folder: Path, backend: str) -> Desired:
    """Return a ruleset that lets no new connection to the guest any more."""
    compiled(folder, backend)
    guest = folder / "etc/pve/firewall/100.fw"
    guest.write_text(guest.read_text().replace(f"IN ACCEPT -p tcp -dport {ALLOWED}", "IN DROP"))
    return recompiled(folder, backend)


def connects(network: Network, patience: float = 20) -> list[str]:
    """Return the families over which a new connection to the guest comes to be within so many seconds."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(TimeoutError):
            network.connect(("outside", "guest"), family, patience).close()
            found.append(family.name)
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_unconfirmed_update_that_cuts_new_connections(network: Network, tmp_path: Path, backend: str) -> None:
    if backend == "nft" and CUT_DOWN:
        pytest.skip("the guard is another program, which loads the rules as they are")
    start(compiled(tmp_path / "c", backend))
    before = firewall.status(compiled(tmp_path / "c", backend))
    with Echo(network), contextlib.closing(Denied(network)) as denied:
        assert connects(network) == ["AF_INET", "AF_INET6"]
        control.apply(cutting(tmp_path / "c", backend), confirm_within=5)
        assert connects(network, 1) == []
        assert pending() is not None
        wait_until(lambda: pending() is None, 60)
        assert connects(network) == ["AF_INET", "AF_INET6"]
        assert denied.pass_now() == []
    after = firewall.status(compiled(tmp_path / "c", backend))
    assert (after.changes, after.drifted) == (before.changes, before.drifted) == ((), ())


@pytest.mark.parametrize("backend", BACKENDS)
def test_confirmed_update_that_cuts_new_connections(network: Network, tmp_path: Path, backend: str) -> None:
    start(compiled(tmp_path / "c", backend))
    with Echo(network), contextlib.closing(Denied(network)) as denied:
        assert connects(network) == ["AF_INET", "AF_INET6"]
        _, change = control.apply(cutting(tmp_path / "c", backend), confirm_within=3)
        assert change is not None
        assert control.confirm()
        assert control.await_confirmation(change)
        time.sleep(change.seconds_left() + 1.5)  # the guard looks every second
        assert connects(network, 1) == []
        assert denied.pass_now() == []
    assert firewall.status(recompiled(tmp_path / "c", backend)).changes == ()
