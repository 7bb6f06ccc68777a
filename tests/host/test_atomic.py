"""Replacing tables under a flood of denied packets: none passes, whatever is replaced.

``PVEFW_TEST_REPLACEMENTS`` sets how many replacements each test makes. Without the twin, one or two of a hundred
replacements of a table let a packet pass; of changes in part one of 2,000, if a map goes together with its rule.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.host.apply.nftables_state import Command

pytest.importorskip("pyroute2")
pytest.importorskip("nftables")

from pvefw_nft.errors import HostError
from pvefw_nft.host.apply import apply_nft, twin
from pvefw_nft.host.apply.nftables_state import TABLE, Nftables, Reader, read_kernel
from pvefw_nft.host.links import open_route
from pvefw_nft.host.netfilter import nf_tables

from .rulesets import pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .conftest import Namespace

REPLACEMENTS = int(os.environ.get("PVEFW_TEST_REPLACEMENTS", "100"))
HERE, THERE, PORT = "192.0.2.1", "192.0.2.2", 5000


class Flood:
    """Denied datagrams from another namespace, one after the other without a pause."""

    def __init__(self, other: Namespace) -> None:
        with open_route() as route:
            route.link("add", ifname="denied0", kind="veth", peer={"ifname": "peer0", "net_ns_fd": other.descriptor})
            _set_up(route, "denied0", HERE)
        with other.entered(), open_route() as route:
            _set_up(route, "peer0", THERE)
        self._receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._receiver.bind((HERE, PORT))
        self._other = other
        self._child = 0

    def start(self) -> None:
        self._child = os.fork()
        if self._child == 0:
            with self._other.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.connect((HERE, PORT))
                while True:
                    with contextlib.suppress(OSError):
                        sender.send(b"denied")

    def passed(self) -> int:
        """Return how many arrived since the last call."""
        for count in itertools.count():
            try:
                self._receiver.recv(16)
            except BlockingIOError:
                return count
        raise AssertionError

    def stop(self) -> None:
        if self._child:
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
        self._receiver.close()


def _set_up(route: Any, name: str, address: str) -> None:  # noqa: ANN401 - pyroute2 has no types
    index = route.link_lookup(ifname=name)[0]
    route.addr("add", index=index, address=address, prefixlen=24)
    route.link("set", index=index, state="up")


@pytest.fixture
def flood(host: Namespace, other: Namespace) -> Iterator[Flood]:
    made = Flood(other)
    yield made
    made.stop()


def denying(number: int, *, late: bool = False) -> dict[str, Any]:
    """Return rulesets that all deny the flood, each by a map and a chain of another name.

    ``late``: the map that leads to the chain keeps its name, and a base chain of its own does nothing before.
    """
    table = {"family": "inet", "table": TABLE}
    names = ("nics" if late else f"verdicts-{number}", f"denied-{number}")
    base = {"type": "filter", "hook": "input", "prio": 0, "policy": "accept"}
    pairs = [["denied0", {"goto": {"target": names[1]}}]]
    rules = [
        ("input", {"vmap": {"key": {"meta": {"key": "iifname"}}, "data": f"@{names[0]}"}}),
        (names[1], {"drop": None}),
    ]
    return {
        "nftables": [
            {"add": {"table": {"family": "inet", "name": TABLE}}},
            {"add": {"chain": {**table, "name": "input", **base}}},
            {"add": {"chain": {**table, "name": names[1]}}},
            {"add": {"map": {**table, "name": names[0], "type": "ifname", "map": "verdict", "elem": pairs}}},
            *({"add": {"rule": {**table, "chain": chain, "expr": [expression]}}} for chain, expression in rules),
        ]
    }


class Rulesets:
    """The denying rulesets by turns, each loaded over the one before."""

    def __init__(self, *, late: bool = False) -> None:
        both = [denying(number, late=late) for number in range(2)]
        self._turns = itertools.cycle([Reader().wanted(pieces(artefact)) for artefact in both])
        self._before: dict[str, Any] = {}
        self.library = Nftables()

    def replace(self, *, whole: bool = False) -> apply_nft.Plan:
        target = next(self._turns)
        planned = (
            apply_nft.replacing(read_kernel(), target)
            if whole
            else apply_nft.plan(read_kernel(), target, lambda: self._before)
        )
        apply_nft.execute(planned, self.library)
        self._before = target
        return planned


def replace_in_part(rulesets: Rulesets) -> None:
    assert not rulesets.replace().whole


def replace_as_a_whole(rulesets: Rulesets) -> None:
    assert rulesets.replace(whole=True).whole


WAYS: dict[str, tuple[Callable[[Rulesets], None], bool]] = {
    "whole": (replace_as_a_whole, False),
    "map of rules": (replace_in_part, False),
    "element of a map": (replace_in_part, True),
}


@pytest.mark.parametrize("way", WAYS)
def test_no_denied_packet_passes_while_rules_are_replaced(flood: Flood, way: str) -> None:
    replace, late = WAYS[way]
    rulesets = Rulesets(late=late)
    rulesets.replace()
    flood.start()
    assert flood.passed() == 0
    for number in range(REPLACEMENTS):
        replace(rulesets)
        assert flood.passed() == 0, f"replacement {number}"
    assert twin.families(TABLE) == []


def small(table: str) -> list[dict[str, Any]]:
    """Return the transaction that replaces a table of one chain."""
    whole = {"table": {"family": "inet", "name": table}}
    base = {"type": "filter", "hook": "input", "prio": 0, "policy": "accept"}
    chain = {"chain": {"family": "inet", "table": table, "name": "input", **base}}
    return [{"add": whole}, {"delete": whole}, {"add": whole}, {"add": chain}]


def test_twin_is_there_from_before_a_table_is_replaced_until_after(host: Namespace) -> None:
    steps: list[tuple[bool, bool]] = []

    class Noting(Nftables):
        def run(self, commands: Iterable[Command]) -> list[Command]:
            try:
                return super().run(commands)
            finally:
                steps.append((bool(nf_tables.tables("probe")), bool(twin.families("probe"))))

    library = Noting()
    twin.replace(library, "probe", small("probe"))
    assert steps == [(True, False)]
    steps.clear()
    twin.replace(library, "probe", small("probe"))
    assert steps == [(True, True), (True, True), (True, False)]


def test_twin_that_a_killed_run_left_goes_with_the_next_apply(host: Namespace) -> None:
    rulesets = Rulesets()
    rulesets.replace()
    library = Nftables()
    library.run(twin.loading(TABLE, denying(0)["nftables"]))
    assert twin.families(TABLE) == ["inet"]
    planned = apply_nft.plan(read_kernel(), Reader().wanted(pieces(denying(0))), twins=twin.families(TABLE))
    assert [str(change) for change in planned.changes] == ["remove nft table inet pvefw-twin"]
    apply_nft.execute(planned, library)
    assert twin.families(TABLE) == []


class _Refusing(Nftables):
    def run(self, commands: Iterable[Command]) -> list[Command]:
        if {"delete": {"table": {"family": "inet", "name": TABLE}}} in commands:
            raise HostError("no memory")
        return super().run(commands)


def test_failed_replacement_leaves_the_table_and_no_twin(host: Namespace) -> None:
    rulesets = Rulesets()
    rulesets.replace()
    before = read_kernel()
    rulesets.library = _Refusing()
    with pytest.raises(HostError, match="no memory"):
        rulesets.replace(whole=True)
    assert read_kernel() == before
    assert twin.families(TABLE) == []
