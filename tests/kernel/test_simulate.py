"""Simulate says of every probe what the kernel did to it, for both backends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pvefw_nft.pipeline import Source, compile_root, read_back
from tests.kernel import cases, configurations
from tests.kernel.artefact import IPTABLES
from tests.kernel.differences import excuse
from tests.kernel.packets import describe
from tests.verify.lab import outcome_of, text_of, topology_of

if TYPE_CHECKING:
    from tests.kernel.outcome import Outcome
    from tests.kernel.packets import Packet
    from tests.kernel.survey import Surveys

VRRP = 112


@pytest.mark.parametrize("backend", configurations.backends())
@pytest.mark.parametrize("name", cases.names())
def test_simulate_foresees_the_kernel(name: str, backend: str, surveys: Surveys) -> None:
    configuration = configurations.of_case(name)
    surveys.outcomes(configuration, backend)
    surveys.settle(configuration, list(mistakes(configuration, backend, surveys)))
    wrong = mistakes(configuration, backend, surveys)
    assert not wrong, "\n".join(wrong.values())


def mistakes(configuration: configurations.Configuration, backend: str, surveys: Surveys) -> dict[int, str]:
    """Return by number the probes of which simulate says something else than the kernel did."""
    plan = configuration.plan
    topology = topology_of(plan, call_iptables=backend == IPTABLES)
    source = Source(configuration.root, configuration.node, lambda: configuration.local_network)
    model = read_back(compile_root(source, backend))
    found = {}
    outcomes = surveys.outcomes(configuration, backend)
    for number, (probe, outcome) in enumerate(zip(surveys.probes(configuration), outcomes, strict=True)):
        if probe.judged.damage == "ip":
            continue  # br_netfilter drops such a packet before any rule, and without it no rule looks at checksums
        if excuse(probe, plan, {backend: str(outcome)}) is not None:
            continue  # what the kernel does around the ruleset, as listed in known_differences.toml
        foreseen = outcome_of(probe, plan, topology, model)
        if not fits(text_of(foreseen), foreseen.answered, outcome, probe.judged):
            found[number] = f"{describe(probe)}: the kernel {outcome} (told: {outcome.told}), simulate {foreseen.text}"
    return found


def fits(text: str, answered: bool | None, outcome: Outcome, packet: Packet) -> bool:
    """Tell whether what was foreseen is what was seen.

    A rejection that cannot be sent looks like a drop; none is sent for a protocol that should have a checksum and has
    none, as here for VRRP. An answer to a spoofed source goes to whoever has that address, which simulate cannot know.
    """
    if text.startswith("REJECT") and outcome.verdict == "DROP":
        return answered is False or packet.protocol == VRRP
    return text == str(outcome) and (answered in (None, outcome.told) or packet.source is not None)
