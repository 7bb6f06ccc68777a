"""Established connections where a ruleset with connection tracking zones takes the place of one without, and back."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Self

import pytest

from pvefw_nft.app.desired import desired_of
from pvefw_nft.host.clock import CLOCK
from pvefw_nft.host.netfilter import nf_tables
from pvefw_nft.host.records import record, state
from pvefw_nft.host.tracking import zone_change
from pvefw_nft.ir.zones import first_choice
from pvefw_nft.pipeline import Source, compile_root
from tests.drawn import drawn

from .here import control
from .nat_network import ADDRESSES, NatNetwork, configure
from .network import has_bridge_conntrack, recompiled, start

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

    from pvefw_nft.host import firewall
    from pvefw_nft.host.records.record import Desired

    from .conftest import Namespace

pytest.importorskip("pyroute2")

WAYS = (("vm100", "vm101"), ("vm102", "vm100"), ("vm101", "vm102"), ("internet", "vm103"), ("vm103", "internet"))


@pytest.fixture
def network(host: Namespace, tmp_path: Path) -> Iterator[NatNetwork]:
    if not has_bridge_conntrack():
        pytest.skip("this kernel does not track connections on bridges")
    configure(tmp_path)
    # only established packets may pass
    for vmid in (100, 101, 103):
        path = tmp_path / f"etc/pve/firewall/{vmid}.fw"
        path.write_text(
            path.read_text().replace("policy_out: ACCEPT", "policy_out: DROP") + "OUT ACCEPT -p tcp -dport 80\n"
        )
    with NatNetwork() as network:
        yield network


class Streams:
    """TCP connections that are to outlast what happens to the ruleset. The side named by ``quiet`` sends nothing."""

    def __init__(self, network: NatNetwork) -> None:
        self._open: dict[tuple[str, str], socket.socket] = {}
        for here, there in WAYS:
            connection = network.connect(here, ADDRESSES[there], 80)
            connection.settimeout(3)
            connection.recv(64)
            self._open[here, there] = connection

    def broken(self) -> list[str]:
        """Return the connections on which nothing comes back any more."""
        found = []
        for connection in self._open.values():
            connection.send(b"still there?")
        for (here, there), connection in self._open.items():
            try:
                answer = connection.recv(64)
            except OSError as error:
                answer = repr(error).encode()
            if answer != b"still there?":
                found.append(f"{here} to {there}: {answer.decode()}")
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._open.values():
            connection.close()


def close_ports(root: Path) -> None:
    """Let nothing new pass to or from guests."""
    for path in (root / "etc/pve/firewall").glob("1*.fw"):
        path.write_text(
            re.sub(r"(IN|OUT) .*\n", "", path.read_text()).replace("policy_out: ACCEPT", "policy_out: DROP")
        )


def without_zones(root: Path) -> Desired:
    """Return an nft ruleset with one zone for all bridges."""
    return desired_of(compile_root(Source(root, "n", lambda: "192.0.2.0/24", as_reference=True), "nft"))


def told(outcome: firewall.Outcome) -> list[str]:
    """Return the problems of connections; other settings need the first namespace."""
    return [problem for problem in outcome.problems if "connections" in problem]


@pytest.mark.parametrize(
    ("before", "after"), drawn([("iptables", "nft"), ("nft", "iptables"), ("without zones", "nft")], 2, "zones")
)
def test_established_connections_outlast_a_change_of_zones(
    network: NatNetwork, tmp_path: Path, before: str, after: str
) -> None:
    first = without_zones(tmp_path) if before == "without zones" else recompiled(tmp_path, before)
    start(first)
    with Streams(network) as streams:
        assert streams.broken() == []
        close_ports(tmp_path)
        outcome, _ = control.apply(recompiled(tmp_path, after))
        assert told(outcome) == []
        assert streams.broken() == []
        assert network.tcp("vm102", ADDRESSES["vm100"], 80) == "no answer"
        # nor does an update end them
        outcome, _ = control.apply(recompiled(tmp_path, after), reload_all=True)
        assert streams.broken() == []


def test_connections_from_before_are_forgotten_in_time(network: NatNetwork, tmp_path: Path) -> None:
    start(recompiled(tmp_path, "iptables"))
    with Streams(network):
        control.apply(recompiled(tmp_path, "nft"))
        assert "bridge" in nf_tables.tables(zone_change.TRANSITION_TABLE)
        control.apply(recompiled(tmp_path, "nft"))
        assert "bridge" in nf_tables.tables(zone_change.TRANSITION_TABLE)
        noted = json.loads((state.run_directory() / "transition.json").read_text())
        assert noted["until"] > CLOCK.since_boot() + zone_change.LIFETIME / 2
        state.write(state.run_directory() / "transition.json", {"until": 0})  # the time is over
        control.apply(recompiled(tmp_path, "nft"))
        assert nf_tables.tables(zone_change.TRANSITION_TABLE) == set()


def test_stop_removes_the_connections_from_before(network: NatNetwork, tmp_path: Path) -> None:
    start(recompiled(tmp_path, "iptables"))
    with Streams(network):
        control.apply(recompiled(tmp_path, "nft"))
        control.stop()
    assert nf_tables.tables(zone_change.TRANSITION_TABLE) == set()


def test_no_more_connections_are_kept_than_there_is_room_for(
    network: NatNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(recompiled(tmp_path, "iptables"))
    monkeypatch.setattr(zone_change, "MAX_CONNECTIONS", 2)
    with Streams(network):
        outcome, _ = control.apply(recompiled(tmp_path, "nft"))
    (problem,) = told(outcome)
    assert "2 established connections of guests are kept, " in problem


def test_zones_in_force_are_those_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PVEFW_STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setenv("PVEFW_RUN_DIRECTORY", str(tmp_path / "run"))
    configure(tmp_path)
    assert zone_change.zones_in_force() == {}
    ruleset = recompiled(tmp_path, "nft")
    record.prepare(record.running_path(), ruleset).commit()
    expected = {(vmid, 0): first_choice(vmid, 0) for vmid in (100, 101, 103)}
    assert zone_change.zones_in_force() == expected
    # a damaged record says nothing, and the zones are those that follow from the NICs
    text = record.running_path().read_text()
    record.running_path().write_text(text.replace(f'"fwbr100i0",{first_choice(100, 0)}', '"fwbr100i0",1'))
    assert zone_change.zones_in_force() == {}
