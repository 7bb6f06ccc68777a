"""Every packet of tests/cases gets its verdict from simulate, through the ruleset of each backend."""

from __future__ import annotations

import pytest

from pvefw_nft.pipeline import Source, compile_root
from pvefw_nft.pipeline.read_back import read_back
from tests.kernel import cases, configurations
from tests.kernel.artefact import IPTABLES
from tests.kernel.differences import excuse
from tests.kernel.packets import Probe, describe
from tests.verify.lab import lost, lost_before_rules, outcome_of, text_of, topology_of, unheard


@pytest.mark.parametrize("backend", configurations.backends())
@pytest.mark.parametrize("name", cases.names())
def test_verdicts(name: str, backend: str) -> None:
    case = cases.load(name)
    plan = configurations.of_case(name).plan
    topology = topology_of(plan, call_iptables=backend == IPTABLES)
    model = read_back(compile_root(Source(case.root, case.node, lambda: case.local_network), backend))
    wrong = []
    for probe, expected in case.expected:
        if lost_before_rules(probe.judged, topology):
            continue
        outcome = outcome_of(probe, plan, topology, model)
        may_be_drop = unheard(outcome, probe.judged) or lost(outcome, probe.judged)
        got = "DROP" if expected == "DROP" and may_be_drop else text_of(outcome)
        first = outcome_of(Probe(probe.packets[:1]), plan, topology, model)
        kept_out = len(probe.packets) > 1 and first.verdict != "ACCEPT"
        if got != expected and not (backend == IPTABLES and excuse(probe, plan, {IPTABLES: got}, kept_out=kept_out)):
            wrong.append(f"{describe(probe)}: expected {expected}, got {got}")
    assert not wrong, "\n".join(wrong)
