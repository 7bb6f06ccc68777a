"""The kernel gives each counterexample of ``compare`` the predicted verdicts, before and after the change."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.verify.prove.compare import compare
from pvefw_nft.verify.prove.network import Side
from pvefw_nft.verify.readers.files import Text, read_ruleset
from pvefw_nft.verify.simulate.packet import Probe as Simulated
from pvefw_nft.verify.simulate.walk import simulate
from tests.kernel import configurations
from tests.kernel.artefact import IPTABLES
from tests.kernel.guest.machine import GuestError
from tests.kernel.mutate import mutations
from tests.kernel.packets import Probe, describe
from tests.kernel.replay import as_packets
from tests.verify.lab import agrees, outcome_of, text_of, topology_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pvefw_nft.verify.network.path import Topology
    from pvefw_nft.verify.prove.report import Counterexample
    from pvefw_nft.verify.simulate.walk import Outcome as Foreseen
    from tests.kernel.artefact import Artefact
    from tests.kernel.configurations import Configuration
    from tests.kernel.lab import Lab
    from tests.kernel.mutate import Mutation
    from tests.kernel.network.plan import Plan
    from tests.kernel.outcome import Outcome

MUTATED = ("guest-rules", "host", "ipsets", "examples/homelab", "examples/positional")
CHANGES_PER_CONFIGURATION = 2
"""So many changes of each ruleset that compare reports: 10 of each backend, 20 in all."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A change, a packet that it changes the fate of, and that fate as simulate foresees it before and after."""

    mutation: Mutation
    probe: Probe
    before: Foreseen
    after: Foreseen


def mutated() -> list[Configuration]:
    return [one for one in configurations.surveyed() if one.name in MUTATED]


@pytest.mark.parametrize("backend", configurations.backends())
@pytest.mark.parametrize("configuration", mutated(), ids=lambda one: one.name)
def test_the_kernel_confirms_counterexamples(configuration: Configuration, backend: str, lab: Lab) -> None:
    artefact = configurations.compiled(configuration, backend)
    lab.set_up(configuration.plan)
    lab.load(artefact)
    replayed = 0
    for found in counterexamples(configuration.plan, artefact, seed=len(configuration.name)):
        before = fate(lab, found.probe, found.before)
        try:
            lab.change(found.mutation.change)
        except GuestError as error:
            if "ArtefactError" not in str(error):
                raise
            lab.load(artefact)
            continue
        after = fate(lab, found.probe, found.after)
        lab.change(found.mutation.undo)
        seen = f"{describe(found.probe)}: {before}, {after} where {found.mutation.what}"
        assert agrees(found.before, before, found.probe.judged), seen
        assert agrees(found.after, after, found.probe.judged), seen
        replayed += 1
        if replayed == CHANGES_PER_CONFIGURATION:
            return
    pytest.fail(f"of {configuration.name} {replayed} changes were replayed")


def fate(lab: Lab, probe: Probe, foreseen: Foreseen) -> Outcome:
    """Send a probe; again where it is lost, as happens on a busy machine."""
    (outcome,) = lab.run([probe])
    return outcome if agrees(foreseen, outcome, probe.judged) else lab.run([probe])[0]


def counterexamples(plan: Plan, artefact: Artefact, seed: int) -> Iterator[Shown]:
    """Yield random changes of a ruleset that compare reports, each with a packet that the lab can send."""
    topology = topology_of(plan, call_iptables=artefact.backend == IPTABLES)
    before = side(artefact, topology)
    for mutation in itertools.islice(mutations(artefact, seed), 100):
        after = side(mutation.artefact, topology)
        for difference in compare(before, after).differences:
            found = replayable(difference.counterexample, mutation, (before, after), plan)
            if found is not None:
                yield found
                break


def side(artefact: Artefact, topology: Topology) -> Side:
    return Side(artefact.backend, read_ruleset([Text(artefact.backend, artefact.text)]), topology)


def replayable(
    counterexample: Counterexample, mutation: Mutation, sides: tuple[Side, Side], plan: Plan
) -> Shown | None:
    """Return the packet of the lab that is like an example and has the verdicts of ``compare``, if there is one."""
    said = [
        text_of(simulate(side.model, Simulated(counterexample.packet, path)))
        for side, path in zip(sides, (counterexample.before, counterexample.after), strict=True)
    ]
    for packet in as_packets(counterexample, plan):
        probe = Probe((packet,), "example of compare")
        before, after = (outcome_of(probe, plan, side.topology, side.model) for side in sides)
        if [text_of(before), text_of(after)] == said and {before.answered, after.answered} <= {None, True}:
            return Shown(mutation, probe, before, after)
    return None
