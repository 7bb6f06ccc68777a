"""What a hostile guest sends gets no further than the firewall's options promise, in a real kernel."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest

from tests.kernel import configurations, evasion
from tests.kernel.artefact import IPTABLES, NFT
from tests.kernel.outcome import ACCEPT
from tests.kernel.packets import LARGE_FRAGMENT, Packet, Probe, Proto, describe

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.kernel.lab import Lab


@pytest.mark.parametrize("backend", configurations.backends())
@pytest.mark.parametrize("name", evasion.names())
def test_attempts(name: str, backend: str, lab: Lab) -> None:
    configuration, attempts = evasion.load(name)
    lab.set_up(configuration.plan)
    lab.load(configurations.compiled(configuration, backend))
    wrong = attempts
    found: list[str] = []
    for _ in range(2):  # what is late on a busy machine looks like a drop; twice in a row is no accident
        outcomes = lab.run([attempt.probe for attempt in wrong])
        pairs = [(a, o) for a, o in zip(wrong, outcomes, strict=True) if str(o) != a.expected(backend)]
        wrong = [attempt for attempt, _ in pairs]
        found = [f"{describe(a.probe)}: not {a.expected(backend)}, {o}" for a, o in pairs]
        if not wrong:
            break
    assert not found, "\n".join(found)


# --- floods: what one guest uses up that all share -----------------------------------------------------------------


def loaded(lab: Lab, backend: str) -> None:
    """Load the ruleset of the suite ``limits``."""
    configuration, _ = evasion.load("limits")
    lab.set_up(configuration.plan)
    lab.load(configurations.compiled(configuration, backend))


def accepted(lab: Lab, packets: Iterable[Packet]) -> int:
    """Send packets, each of a flow of its own, and return how many came to their receivers."""
    return sum(outcome.verdict == ACCEPT for outcome in lab.run([Probe((packet,)) for packet in packets]))


def flows(sender: str, count: int, first: int = 10_000) -> list[Packet]:
    return [Packet(sender, "outside", 4, Proto.UDP, sport=first + number, dport=4321) for number in range(count)]


def test_a_guest_opens_no_more_connections_than_it_may(lab: Lab) -> None:
    loaded(lab, NFT)
    assert 40 <= accepted(lab, flows("vm100", 200)) <= 60
    assert accepted(lab, flows("vm101", 200, first=20_000)) == 200


def datagrams(sender: str, count: int, source: IPv4Address | None = None, *, only_first: bool = False) -> list[Packet]:
    """Return datagrams in fragments, which together are more than the memory for fragments holds."""
    made = Packet(sender, "outside", 4, Proto.UDP, source, dport=4321, first_fragment=LARGE_FRAGMENT)
    return [replace(made, sport=10_000 + number, only_first=only_first) for number in range(count)]


def test_a_guest_sends_no_more_fragments_than_it_may(lab: Lab) -> None:
    loaded(lab, NFT)
    assert 10 <= accepted(lab, datagrams("vm100", 100)) <= 60
    assert accepted(lab, datagrams("vm101", 60)) == 60


@pytest.mark.parametrize(("backend", "passes"), [(NFT, True), (IPTABLES, False)])
def test_forged_fragments_fill_no_memory(backend: str, *, passes: bool, lab: Lab) -> None:
    loaded(lab, backend)
    lab.run([Probe((one,)) for one in datagrams("vm102", 4000, IPv4Address("10.9.9.9"), only_first=True)])
    assert (accepted(lab, datagrams("vm101", 20)) == 20) is passes


def openings(sender: str, receiver: str, sources: Iterable[int]) -> list[Packet]:
    """Return the first packets of connections from these addresses."""
    return [Packet(sender, receiver, 4, Proto.TCP, IPv4Address(source), dport=22) for source in sources]


def test_forged_sources_of_one_guest_leave_place_for_others(lab: Lab) -> None:
    loaded(lab, NFT)
    known = openings("outside", "vm100", [0xC6330001])
    assert accepted(lab, known) == 1
    forged = range(0x0A090000, 0x0A090000 + 3000)
    assert accepted(lab, openings("vm101", "outside", forged)) <= 1024 * 3 // 8
    assert accepted(lab, known) == 1
    assert accepted(lab, openings("outside", "vm100", range(0xC6330002, 0xC6330012))) == 16
