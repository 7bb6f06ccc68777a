"""Both rulesets of a configuration load, and give every probe the same verdict, except for documented differences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel import configurations
from tests.kernel.artefact import IPTABLES
from tests.kernel.differences import Difference, excuse, table
from tests.kernel.outcome import ACCEPT
from tests.kernel.packets import describe

if TYPE_CHECKING:
    from tests.kernel.survey import Surveys

LEAST_PROBES = 100
LEAST_PROBES_IN_ALL = 5000


CONFIGURATIONS = configurations.surveyed()

both_backends = pytest.mark.skipif(len(configurations.backends()) < 2, reason="only one backend is there")


@both_backends
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda one: one.name)
def test_both_do_the_same(configuration: configurations.Configuration, surveys: Surveys) -> None:
    assert len(surveys.probes(configuration)) >= LEAST_PROBES
    surveys.settle(configuration, list(differences(configuration, surveys)))
    different = differences(configuration, surveys)
    lines = [f"{describe(surveys.probes(configuration)[n])}: {found}" for n, found in different.items()]
    assert not lines, "\n".join(lines)


def differences(configuration: configurations.Configuration, surveys: Surveys) -> dict[int, dict[str, str]]:
    """Return by number the probes that the backends treat differently, with their outcomes, and nothing says why."""
    return {number: outcomes for number, outcomes, entry in excused(configuration, surveys) if entry is None}


def excused(
    configuration: configurations.Configuration, surveys: Surveys
) -> list[tuple[int, dict[str, str], Difference | None]]:
    """Return the probes that the backends treat differently: number, outcomes, and the entry that says why."""
    by_backend = {name: surveys.outcomes(configuration, name) for name in configurations.backends()}
    probes = surveys.probes(configuration)
    different = {}
    for number in range(len(probes)):
        outcomes = {name: str(results[number]) for name, results in by_backend.items()}
        if len(set(outcomes.values())) > 1:
            different[number] = outcomes
    several = [number for number in different if len(probes[number].packets) > 1]
    first = surveys.first_outcomes(configuration, IPTABLES, several)
    kept_out = {number for number, outcome in first.items() if outcome.verdict != ACCEPT}
    plan = configuration.plan
    return [
        (number, outcomes, excuse(probes[number], plan, outcomes, kept_out=number in kept_out))
        for number, outcomes in different.items()
    ]


@both_backends
def test_probes_are_many(surveys: Surveys) -> None:
    assert sum(len(surveys.probes(one)) for one in CONFIGURATIONS) >= LEAST_PROBES_IN_ALL


@both_backends
@pytest.mark.parametrize("entry", table(), ids=lambda one: one.name)
def test_each_documented_difference_is_one(entry: Difference, surveys: Surveys) -> None:
    """An entry that no probe needs any more must go. One that is seen twice in a row is no accident."""
    for configuration in CONFIGURATIONS:
        seen = seen_because_of(entry, configuration, surveys)
        surveys.settle(configuration, seen)
        if seen_because_of(entry, configuration, surveys):
            return
    pytest.fail(f"no probe is treated differently because of {entry.name!r}")


def seen_because_of(entry: Difference, configuration: configurations.Configuration, surveys: Surveys) -> list[int]:
    """Return the numbers of the probes that the backends treat differently, which the entry speaks of."""
    return [number for number, _, found in excused(configuration, surveys) if found is entry]
