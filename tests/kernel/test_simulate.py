"""Simulate says of every probe what the kernel did to it, for both backends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pvefw_nft.pipeline import Source, compile_root, read_back
from tests.kernel import configurations
from tests.kernel.artefact import IPTABLES
from tests.kernel.packets import describe
from tests.kernel.test_equivalence import CONFIGURATIONS
from tests.verify.lab import outcome_of, text_of, topology_of

if TYPE_CHECKING:
    from tests.kernel.survey import Surveys


@pytest.mark.parametrize("backend", configurations.backends())
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda one: one.name)
def test_simulate_foresees_the_kernel(
    configuration: configurations.Configuration, backend: str, surveys: Surveys
) -> None:
    plan = configuration.plan
    topology = topology_of(plan, call_iptables=backend == IPTABLES)
    source = Source(configuration.root, configuration.node, lambda: configuration.local_network)
    model = read_back(compile_root(source, backend))
    wrong = []
    for probe, outcome in zip(surveys.probes(configuration), surveys.outcomes(configuration, backend), strict=True):
        if probe.judged.damage == "ip":
            continue  # no ruleset sees such a packet with br_netfilter, and none looks at checksums without
        got = outcome_of(probe, plan, topology, model)
        silent = got.answered is False and outcome.verdict == "DROP"  # a rejection that nobody gets to see
        if text_of(got) != str(outcome) and not silent:
            wrong.append(f"{describe(probe)}: the kernel {outcome}, simulate {text_of(got)}")
        elif got.answered is not None and got.answered != outcome.told:
            wrong.append(f"{describe(probe)}: {outcome}, told: {outcome.told}, simulate: {got.answered}")
    assert not wrong, "\n".join(wrong[:25])
