"""The verdict of ``simulate`` equals the kernel's for every probe, with both backends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pvefw_nft.pipeline import Source, compile_root
from pvefw_nft.pipeline.read_back import read_back
from tests.kernel import configurations
from tests.kernel.artefact import IPTABLES
from tests.kernel.outcome import DROP
from tests.kernel.packets import describe
from tests.verify.lab import agrees, lost_before_rules, outcome_of, topology_of

if TYPE_CHECKING:
    from tests.kernel.survey import Surveys


@pytest.mark.parametrize("backend", configurations.backends())
@pytest.mark.parametrize("configuration", configurations.surveyed(), ids=lambda one: one.name)
def test_simulate_foresees_the_kernel(
    configuration: configurations.Configuration, backend: str, surveys: Surveys
) -> None:
    surveys.outcomes(configuration, backend)
    surveys.settle(configuration, list(mistakes(configuration, backend, surveys)))
    wrong = mistakes(configuration, backend, surveys)
    assert not wrong, "\n".join(wrong.values())


def mistakes(configuration: configurations.Configuration, backend: str, surveys: Surveys) -> dict[int, str]:
    """Return by number the probes whose verdict by ``simulate`` differs from the kernel's."""
    plan = configuration.plan
    topology = topology_of(plan, call_iptables=backend == IPTABLES)
    source = Source(configuration.root, configuration.node, lambda: configuration.local_network)
    model = read_back(compile_root(source, backend))
    found = {}
    outcomes = surveys.outcomes(configuration, backend)
    for number, (probe, outcome) in enumerate(zip(surveys.probes(configuration), outcomes, strict=True)):
        if lost_before_rules(probe.judged, topology):
            if outcome.verdict != DROP:
                found[number] = f"{describe(probe)}: its checksum is wrong, and the kernel {outcome}"
            continue
        foreseen = outcome_of(probe, plan, topology, model)
        if not agrees(foreseen, outcome, probe.judged):
            found[number] = f"{describe(probe)}: the kernel {outcome} (told: {outcome.told}), simulate {foreseen.text}"
    return found
