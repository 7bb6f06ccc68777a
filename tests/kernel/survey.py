"""The verdicts of each configuration on its probes, by each backend: run once, used by several tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import cases, configurations
from .packets import Probe

if TYPE_CHECKING:
    from .configurations import Configuration
    from .lab import Lab
    from .outcome import Outcome

GENERATED_PROBES = 500
STANDARD_PROBES = 150
"""So many probes made from its rules, and so many others, a configuration gets on top of the packets of its case."""


@dataclass(slots=True)
class Surveys:
    """The outcomes known so far."""

    lab: Lab
    _outcomes: dict[tuple[str, str], list[Outcome]] = field(default_factory=dict)
    _first: dict[tuple[str, str], dict[int, Outcome]] = field(default_factory=dict)
    _probes: dict[str, list[Probe]] = field(default_factory=dict)

    def probes(self, configuration: Configuration) -> list[Probe]:
        """Return the packets to send: the packets of the case, if it is one, then the others."""
        if configuration.name not in self._probes:
            expected: list[Probe] = []
            if configuration.name in cases.names():
                expected = [probe for probe, _ in cases.load(configuration.name).expected]
            self._probes[configuration.name] = [
                *expected,
                *configurations.sampled_probes(configuration, GENERATED_PROBES, STANDARD_PROBES),
            ]
        return self._probes[configuration.name]

    def outcomes(self, configuration: Configuration, backend: str) -> list[Outcome]:
        """Return the outcome of each probe, by the ruleset of a backend.

        Raises:
            CompileError: there is no ruleset.
            GuestError: the kernel does not take it.
        """
        key = (configuration.name, backend)
        if key not in self._outcomes:
            artefact = configurations.compiled(configuration, backend)
            self.lab.set_up(configuration.plan)
            self.lab.load(artefact)
            self._outcomes[key] = self.lab.run(self.probes(configuration))
        return self._outcomes[key]

    def first_outcomes(self, configuration: Configuration, backend: str, numbers: list[int]) -> dict[int, Outcome]:
        """Return by number the outcomes of the first packets of some probes, each sent alone."""
        known = self._first.setdefault((configuration.name, backend), {})
        unknown = [number for number in numbers if number not in known]
        if unknown:
            self.lab.set_up(configuration.plan)
            self.lab.load(configurations.compiled(configuration, backend))
            probes = [Probe(self.probes(configuration)[number].packets[:1]) for number in unknown]
            known.update(zip(unknown, self.lab.run(probes), strict=True))
        return {number: known[number] for number in numbers}

    def settle(self, configuration: Configuration, numbers: list[int]) -> None:
        """Send some probes again, by each backend that was asked before, and note what becomes of them now.

        On a busy machine a packet may come after the wait has ended, which looks like a drop. Twice in a row is no
        accident.
        """
        for (name, _), first in self._first.items():
            for number in numbers if name == configuration.name else ():
                first.pop(number, None)
        for (name, backend), outcomes in self._outcomes.items():
            if name != configuration.name or not numbers:
                continue
            self.lab.set_up(configuration.plan)
            self.lab.load(configurations.compiled(configuration, backend))
            probes = self.probes(configuration)
            for number, outcome in zip(numbers, self.lab.run([probes[n] for n in numbers]), strict=True):
                outcomes[number] = outcome
