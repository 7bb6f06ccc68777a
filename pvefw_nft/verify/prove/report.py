"""The result of a comparison, as data. :mod:`~pvefw_nft.verify.prove.render` writes it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pvefw_nft.verify.model import Field, RulesetModel
    from pvefw_nft.verify.model.intervals import IntervalSet
    from pvefw_nft.verify.network.path import Path
    from pvefw_nft.verify.prove.cause import Cause
    from pvefw_nft.verify.prove.place import Place

ANYWHERE = "anywhere"


class Answer(Enum):
    """The three answers of a comparison, as ``--format json`` writes them."""

    EQUAL = "equal"
    """Everything was compared, and nothing differs."""
    DIFFERENT = "different"
    """Some packet is treated differently, whether or not everything was compared."""
    UNDECIDED = "undecided"
    """No difference was found, and something was not compared."""


@dataclass(frozen=True, slots=True)
class Counterexample:
    """One packet of a class, on one way through the host; ``packet`` is complete, to be simulated.

    ``zones`` are, for each side, the names by which ``simulate`` knows the two ends on that side's host.
    """

    before: Path
    after: Path
    packet: Mapping[Field, int]
    zones: tuple[tuple[str, str], tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Difference:
    """Packets that the rulesets treat differently.

    ``sources`` and ``destinations`` are zones, ``protocols`` network protocols (``PROTOCOL``); ``tagged`` says
    that only VLAN-tagged frames differ. ``fields`` describes the packets: fields not listed are free, or, where
    ``usual``, as in the first packet of an ordinary connection (new, unicast, TCP SYN, whole).
    ``before`` and ``after`` are verdicts: ``accept``, ``drop``, ``reject KIND``; in a strict comparison with the
    fields that rules changed. The rules are those that decide the counterexample, ``cause`` is where its two walks
    part. ``known`` is the reason of an expected difference.
    """

    sources: tuple[str, ...]
    destinations: tuple[str, ...]
    protocols: tuple[int, ...]
    tagged: bool
    usual: bool
    fields: tuple[tuple[Field, IntervalSet], ...]
    before: str
    after: str
    rules_before: tuple[Place, ...]
    rules_after: tuple[Place, ...]
    counterexample: Counterexample
    cause: Cause
    known: str | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """How much was proved: ways through the host, kinds of frames, pairs of programs, and those proved by
    diagrams (the rest was the same on both sides, or the same as a pair proved before). ``kept``: NICs of
    guests that an earlier comparison had proved.
    """

    ways: int
    cases: int
    pairs: int
    diagrams: int
    kept: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a comparison of ``before`` with ``after``.

    ``protocols``: the network protocols that each protocol of a difference represents.
    ``assumptions`` lists, a line each, the assumptions of the result, ``left_out`` which packets the sides' tools
    cannot treat alike (see :mod:`~pvefw_nft.verify.prove.backend_differences`). ``omitted`` counts classes of
    packets beyond the limit of classes shown. ``undecided`` lists, a line each, comparisons left out and why,
    ``host_differences`` the guests, bridges and interfaces that only one host has. ``rests_on`` are the assumptions
    of every comparison that count in this one. ``untagged_only``: the tools treat VLAN-tagged frames differently,
    and there are no VLANs on this host.
    """

    before: str
    after: str
    strict: bool
    differences: tuple[Difference, ...]
    assumptions: tuple[str, ...]
    omitted: int
    counts: Counts
    models: tuple[RulesetModel, RulesetModel]
    protocols: Mapping[int, IntervalSet]
    left_out: tuple[str, ...]
    undecided: tuple[str, ...] = ()
    host_differences: tuple[str, ...] = ()
    rests_on: tuple[str, ...] = ()
    untagged_only: bool = False

    @property
    def unexpected(self) -> tuple[Difference, ...]:
        """The differences that are not known ones."""
        return tuple(difference for difference in self.differences if difference.known is None)

    @property
    def answer(self) -> Answer:
        """The answer. Known differences do not make two rulesets differ; an assumption leaves them undecided."""
        if self.unexpected or self.host_differences:
            return Answer.DIFFERENT
        return Answer.UNDECIDED if self.undecided or self.assumptions else Answer.EQUAL

    @property
    def equal(self) -> bool:
        """Whether everything was compared and every packet is treated alike, known differences aside."""
        return self.answer is Answer.EQUAL
