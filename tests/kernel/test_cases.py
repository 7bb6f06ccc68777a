"""Every packet of tests/cases gets its verdict, by the ruleset of each backend, in a real kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel import cases, configurations
from tests.kernel.artefact import IPTABLES
from tests.kernel.differences import excuse
from tests.kernel.outcome import ACCEPT
from tests.kernel.packets import describe

if TYPE_CHECKING:
    from tests.kernel.configurations import Configuration
    from tests.kernel.survey import Surveys


def test_a_packet_with_an_unknown_key_is_an_error() -> None:
    with pytest.raises(cases.CaseError, match="unknown keys"):
        cases.read_packets({"from": "outside", "to": "vm100", "port": 22})


def test_lists_multiply() -> None:
    table = {"from": "outside", "to": ["vm100", "vm101"], "tcp": [22, 80], "family": [4, 6], "verdict": "DROP"}
    assert len(cases.read_packets(table)) == 8


@pytest.mark.parametrize("backend", configurations.backends())
@pytest.mark.parametrize("name", cases.names())
def test_verdicts(name: str, backend: str, surveys: Surveys) -> None:
    case, configuration = cases.load(name), configurations.of_case(name)
    surveys.outcomes(configuration, backend)
    surveys.settle(configuration, wrong_ones(case, configuration, backend, surveys))
    outcomes = surveys.outcomes(configuration, backend)
    wrong = {number: outcomes[number] for number in wrong_ones(case, configuration, backend, surveys)}
    lines = [f"{describe(case.expected[n][0])}: not {case.expected[n][1]}, {one}" for n, one in wrong.items()]
    assert not lines, "\n".join(lines)


def wrong_ones(case: cases.Case, configuration: Configuration, backend: str, surveys: Surveys) -> list[int]:
    """Return the numbers of the probes whose outcome is neither the expected one nor a documented difference."""
    outcomes = surveys.outcomes(configuration, backend)
    wrong = [n for n, (_, expected) in enumerate(case.expected) if str(outcomes[n]) != expected]
    if backend != IPTABLES:
        return wrong
    several = [number for number in wrong if len(case.expected[number][0].packets) > 1]
    first = surveys.first_outcomes(configuration, backend, several)
    kept_out = {number for number, outcome in first.items() if outcome.verdict != ACCEPT}

    def excused(number: int) -> bool:
        probe, outcome = case.expected[number][0], {backend: str(outcomes[number])}
        return excuse(probe, configuration.plan, outcome, kept_out=number in kept_out) is not None

    return [number for number in wrong if not excused(number)]
