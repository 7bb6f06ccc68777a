"""Every packet of tests/cases gets its verdict, by the ruleset of each backend, in a real kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel import cases, configurations
from tests.kernel.artefact import IPTABLES
from tests.kernel.differences import excuse
from tests.kernel.packets import describe

if TYPE_CHECKING:
    from tests.kernel.lab import Lab


def test_a_packet_with_an_unknown_key_is_an_error() -> None:
    with pytest.raises(cases.CaseError, match="unknown keys"):
        cases.read_packets({"from": "outside", "to": "vm100", "port": 22})


def test_lists_multiply() -> None:
    table = {"from": "outside", "to": ["vm100", "vm101"], "tcp": [22, 80], "family": [4, 6], "verdict": "DROP"}
    assert len(cases.read_packets(table)) == 8


@pytest.mark.parametrize("backend", configurations.backends())
@pytest.mark.parametrize("name", cases.names())
def test_verdicts(name: str, backend: str, lab: Lab) -> None:
    case, configuration = cases.load(name), configurations.of_case(name)
    lab.set_up(configuration.plan)
    lab.load(configurations.compiled(configuration, backend))
    outcomes = lab.run([probe for probe, _ in case.expected])
    wrong = []
    for (probe, expected), outcome in zip(case.expected, outcomes, strict=True):
        if str(outcome) == expected:
            continue
        if backend == IPTABLES and excuse(probe, configuration.plan, {IPTABLES: str(outcome)}) is not None:
            continue
        wrong.append(f"{describe(probe)}: expected {expected}, got {outcome}")
    assert wrong == []
