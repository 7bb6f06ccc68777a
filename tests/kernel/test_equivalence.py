"""Both rulesets of a configuration load, and do the same to every probe, but for what is documented."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel import cases, configurations
from tests.kernel.differences import Difference, excuse, table
from tests.kernel.packets import describe

if TYPE_CHECKING:
    from tests.kernel.survey import Surveys

LEAST_PROBES = 100
LEAST_PROBES_IN_ALL = 5000


def with_guests(configuration: configurations.Configuration) -> bool:
    return any(endpoint.filtered for endpoint in configuration.plan.endpoints)


CONFIGURATIONS = [
    *(configurations.of_case(name) for name in cases.names()),
    *configurations.examples(),
    *(one for one in configurations.golden() if with_guests(one)),
]

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
    by_backend = {name: surveys.outcomes(configuration, name) for name in configurations.backends()}
    found = {}
    for number, probe in enumerate(surveys.probes(configuration)):
        outcomes = {name: str(results[number]) for name, results in by_backend.items()}
        if len(set(outcomes.values())) > 1 and excuse(probe, configuration.plan, outcomes) is None:
            found[number] = outcomes
    return found


@both_backends
def test_probes_are_many(surveys: Surveys) -> None:
    assert sum(len(surveys.probes(one)) for one in CONFIGURATIONS) >= LEAST_PROBES_IN_ALL


@both_backends
@pytest.mark.parametrize("entry", table(), ids=lambda one: one.name)
def test_each_documented_difference_is_probed(entry: Difference, surveys: Surveys) -> None:
    """An entry that speaks of no probe must go."""
    probed = (
        entry.covers(probe, configuration.plan)
        for configuration in CONFIGURATIONS
        for probe in surveys.probes(configuration)
    )
    assert any(probed), f"no probe is what {entry.name!r} speaks of"
