"""The lab notices when a ruleset is changed: of the changes that matter to any packet, nearly all."""

from __future__ import annotations

import itertools
import os
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.kernel import configurations
from tests.kernel.artefact import BACKENDS, Artefact, parse_iptables, parse_nft
from tests.kernel.guest.machine import GuestError
from tests.kernel.mutate import Mutation, mutations
from tests.kernel.outcome import DROP

if TYPE_CHECKING:
    from tests.kernel.configurations import Configuration
    from tests.kernel.lab import Lab
    from tests.kernel.packets import Probe
    from tests.kernel.survey import Surveys

MUTATED = ("guest-rules", "reject", "ipsets", "icmp", "host")
CHANGES_PER_CONFIGURATION = int(os.environ.get("PVEFW_TEST_CHANGES", "2"))
"""So many changes that matter are tried on each configuration, for each backend: 20 with two backends."""
MISSED = 1
"""So many changes of a backend's rulesets may go unnoticed."""
OTHER_PROBES = 500
"""So many probes more than the tests use tell whether a change that they do not show matters at all."""


@dataclass(slots=True)
class Tally:
    """The number of changes that mattered, and the changes that no probe showed."""

    mattered: int = 0
    missed: list[str] = field(default_factory=list)


@pytest.mark.parametrize("backend", configurations.backends())
def test_changes_are_noticed(backend: str, surveys: Surveys) -> None:
    tally = Tally()
    for name in MUTATED:
        try_changes(configurations.of_case(name), backend, surveys, tally)
    assert tally.mattered >= CHANGES_PER_CONFIGURATION * len(MUTATED)
    assert len(tally.missed) <= MISSED, tally.missed


def try_changes(configuration: Configuration, backend: str, surveys: Surveys, tally: Tally) -> None:
    """Try changes of one ruleset until enough of them matter."""
    lab, probes = surveys.lab, surveys.probes(configuration)
    others = other_probes(configuration, probes)
    artefact = configurations.compiled(configuration, backend)
    lab.set_up(configuration.plan)
    lab.load(artefact)
    expected, others_expected = undisturbed(lab, probes), undisturbed(lab, others)
    enough = tally.mattered + CHANGES_PER_CONFIGURATION
    for mutation in itertools.islice(mutations(artefact, seed=len(configuration.name)), 100):
        try:
            lab.change(mutation.change)
        except GuestError as error:
            if "ArtefactError" not in str(error):
                raise
            tally.mattered += 1
        else:
            if changes_outcomes(lab, probes, expected):
                tally.mattered += 1
            elif changes_outcomes(lab, others, others_expected):
                tally.mattered += 1
                tally.missed.append(f"{configuration.name}: {mutation.what}")
        lab.change(mutation.undo)
        if tally.mattered >= enough:
            return


def undisturbed(lab: Lab, probes: list[Probe]) -> list[str]:
    """Return the outcomes of probes, sent twice: what looks like a drop but once was lost on a busy machine."""
    first, second = ([str(outcome) for outcome in lab.run(probes)] for _ in range(2))
    return [one if one != DROP else other for one, other in zip(first, second, strict=True)]


def changes_outcomes(lab: Lab, probes: list[Probe], expected: list[str]) -> bool:
    """Whether any probe comes to another outcome than expected, twice in a row."""
    suspects = list(range(len(probes)))
    for _ in range(2):
        outcomes = lab.run([probes[number] for number in suspects])
        pairs = zip(suspects, outcomes, strict=True)
        suspects = [number for number, outcome in pairs if str(outcome) != expected[number]]
        if not suspects:
            return False
    return True


def other_probes(configuration: Configuration, known: list[Probe]) -> list[Probe]:
    """Return probes that the tests do not use."""
    seen = {probe.packets for probe in known}
    made = (probe for seed in (0, 1) for probe in configurations.probes(configuration, seed=seed))
    fresh = list({probe.packets: probe for probe in made if probe.packets not in seen}.values())
    return random.Random(0).sample(fresh, min(OTHER_PROBES, len(fresh)))


RESTORE = """### iptables-restore -T filter -n
*filter
-A tap100i0-IN -s 10.0.0.0/24 -p tcp --dport 22 -j ACCEPT
-A tap100i0-IN -j DROP
COMMIT
"""
NFT_RULES = """{"nftables": [
{"add": {"rule": {"family": "bridge", "table": "t", "chain": "c", "expr": [
  {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}},
             "right": {"prefix": {"addr": "10.0.0.0", "len": 24}}}}, {"accept": null}]}}},
{"add": {"rule": {"family": "bridge", "table": "t", "chain": "c", "expr": [{"drop": null}]}}}]}
"""


def first_of_each_kind(artefact: Artefact) -> dict[str, Mutation]:
    kinds: dict[str, Mutation] = {}
    for mutation in itertools.islice(mutations(artefact, seed=1), 200):
        kinds.setdefault(mutation.what.split()[1], mutation)
    return kinds


@pytest.mark.parametrize("artefact", [parse_iptables(RESTORE), parse_nft(NFT_RULES)], ids=BACKENDS)
def test_there_are_four_kinds_of_changes(artefact: Artefact) -> None:
    kinds = first_of_each_kind(artefact)
    assert set(kinds) == {"drop", "swap", "widen", "verdict"}
    assert all(mutation.change != mutation.undo for mutation in kinds.values())


def test_a_wider_prefix() -> None:
    mutation = first_of_each_kind(parse_iptables(RESTORE))["widen"]
    assert mutation.undo.text.splitlines() == ["*filter", "-F tap100i0-IN", *RESTORE.splitlines()[2:]]
    assert mutation.change.text == mutation.undo.text.replace("10.0.0.0/24", "10.0.0.0/23")
