"""Programs that are the same step by step: equal without a diagram.

Two rulesets that come from one configuration mostly differ in small shared chains alone. So programs are compared
step by step first; where two called programs are not the same that way, they are proved equal once, by diagrams, for
all programs that call them. The test is sufficient, not necessary: programs that fail it may still be equal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.verify.prove.evaluate import Base, Evaluation, Flow, programs_of
from pvefw_nft.verify.prove.program import Call, Step

if TYPE_CHECKING:
    from pvefw_nft.verify.prove.program import Program

MAX_STEPS = 60
"""Called programs of more steps than this are not proved equal by themselves: they are not likely to be shared."""


class Congruence:
    """Remembers which programs are the same."""

    def __init__(self) -> None:
        self._known: dict[tuple[Program, Program], bool] = {}

    def flows(self, one: Flow, two: Flow) -> bool:
        """Return whether two flows are the same, step by step."""
        return len(one) == len(two) and all(
            left.accepts == right.accepts and self._steps(left.program, right.program)
            for left, right in zip(one, two, strict=True)
        )

    def _steps(self, one: Program, two: Program) -> bool:
        if one is two:
            return True
        return len(one.steps) == len(two.steps) and all(
            left is right or self._step(left, right) for left, right in zip(one.steps, two.steps, strict=True)
        )

    def _step(self, one: Step, two: Step) -> bool:
        if one[:3] != two[:3]:
            return False
        if isinstance(one.end, Call) and isinstance(two.end, Call):
            return one.end.back == two.end.back and self._called(one.end.program, two.end.program)
        return one.end == two.end

    def _called(self, one: Program, two: Program) -> bool:
        if one is two:
            return True
        found = self._known.get((one, two))
        if found is None:
            found = self._known[one, two] = self._steps(one, two) or self._proved(one, two)
        return found

    @staticmethod
    def _proved(one: Program, two: Program) -> bool:
        flows: list[Flow] = [(Base(one, accepts=True),), (Base(two, accepts=True),)]
        if sum(len(program.steps) for program in programs_of(flows)) > MAX_STEPS:
            return False
        evaluation = Evaluation(flows)
        return evaluation.program(one) == evaluation.program(two)
