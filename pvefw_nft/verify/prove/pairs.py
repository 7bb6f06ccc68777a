"""Prove that two flows treat every packet alike: one segment of a way, on both sides."""

from __future__ import annotations

from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

from pvefw_nft.verify import model as m
from pvefw_nft.verify.prove.budget import BudgetExceededError
from pvefw_nft.verify.prove.counterexamples import Explainer, differing, tests_of_possible
from pvefw_nft.verify.prove.evaluate import TESTS_MARK, Evaluation, Flow, programs_of, tests_of_programs
from pvefw_nft.verify.prove.shapes import Shapes
from pvefw_nft.verify.prove.structural import Congruence

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pvefw_nft.verify.prove.backend_differences import Exceptions
    from pvefw_nft.verify.prove.exploration import Exploration
    from pvefw_nft.verify.prove.program import Case
    from pvefw_nft.verify.prove.shapes import Key


class Result(Enum):
    """The result of the proof of two flows."""

    SAME = "same"
    MARKS = "marks"
    """The verdicts are the same, the marks that packets leave with are not."""
    DIFFERENT = "different"
    UNDECIDED = "undecided"
    """A bound was reached before the proof was done."""


class PairProver:
    """Prove pairs of flows of two rulesets, each pair once. ``exceptions`` are packets that are not compared.

    ``results`` are the results of the pairs proved so far, ``reasons`` the reasons for undecided pairs, ``diagrams`` is
    the number of pairs for which diagrams were made. ``packet_marks`` are the values of the fields that packets start a
    way with; ``untouched`` are the values among them that the host's own packets also start with.
    """

    def __init__(self, explored: Exploration, exceptions: Exceptions, *, strict: bool) -> None:
        self.budget = explored.budget
        self.exceptions = exceptions
        self.strict = strict
        self.tested = tested = explored.tested
        self.connection_marks = tuple(bit for bit in m.CT_MARK if bit in explored.marks) if tested.sets_ct_mark else ()
        self.carried = frozenset((*m.MARK, m.TRACKING, *self.connection_marks, *tested.later.fields))
        self.untouched = ((m.TRACKING, 0),) if tested.exempts else ()
        self.packet_marks = (*((bit, 0) for bit in m.MARK if bit in explored.marks), *self.untouched)
        self.results: dict[tuple[Flow, Flow, bool, Case | None], Result] = {}
        self.reasons: dict[tuple[Flow, Flow, bool], str] = {}
        self.diagrams = 0
        self._asked: dict[tuple[Flow, Flow], bool] = {}
        self._asked_shapes: dict[Key, bool] = {}
        self._congruence = Congruence()
        self._shapes = Shapes()
        self._results_of_shapes: dict[tuple[Key, Case, bool], tuple[Result, bool]] = {}
        self._constants: dict[tuple[Case, frozenset[m.Field]], tuple[m.Test, ...]] = {}
        self._evaluations: dict[int, Evaluation] = {}

    def prove(self, before: Flow, after: Flow, case: Case, *, fixed: bool) -> Result:
        """Compare two flows for all packets; ``fixed``: for all that carry no mark."""
        if before == after:
            return Result.SAME
        if self.exceptions.lets_through(case, (before, after)) or self._congruence.flows(before, after):
            return Result.SAME
        flows = (before, after, fixed)
        found = self.results.get((*flows, None)) or self.results.get((*flows, case))
        if found is None:
            found, always = self.proved(before, after, case, fixed=fixed)
            self.results[*flows, None if always or not self.exceptions.across else case] = found
        return found

    def proved(self, before: Flow, after: Flow, case: Case, *, fixed: bool) -> tuple[Result, bool]:
        """As :meth:`_prove`, once for all flows that are the same but for addresses and ports."""
        key = self._shapes.key((before, after), partial(self.constants_of, case))
        if key is not None and (known := self._results_of_shapes.get((key, case, fixed))) is not None:
            return known
        self.diagrams += 1
        try:
            self.budget.check_time()
            found = self._prove(before, after, case, fixed=fixed)
        except BudgetExceededError as error:
            self.reasons[before, after, fixed] = str(error)
            self._evaluations.clear()
            return Result.UNDECIDED, False
        if key is not None:
            self._results_of_shapes[key, case, fixed] = found
        return found

    def _prove(self, before: Flow, after: Flow, case: Case, *, fixed: bool) -> tuple[Result, bool]:
        """Return the result, and whether it holds for every kind of frames with these flows."""
        evaluation = self.evaluation(before, after, case)
        one, two = self.starting(evaluation, before, fixed=fixed), self.starting(evaluation, after, fixed=fixed)
        if one == two:
            return Result.SAME, True
        excusing = bool(self.exceptions.across or self.connection_marks or case.fragments)
        if excusing and not differing(evaluation, one, two, self.exceptions, case):
            return Result.SAME, False
        if self.exceptions.across:
            evaluation = Evaluation([before, after], partial(self.tests, case, usual=False), self.budget)
            one = self.starting(evaluation, before, fixed=fixed)
            two = self.starting(evaluation, after, fixed=fixed)
        if self.alike(evaluation, one, two, case):
            return Result.SAME, False
        if not self.strict and self.alike(evaluation, evaluation.strip(one), evaluation.strip(two), case):
            return Result.MARKS, False
        return Result.DIFFERENT, False

    def constants_of(self, case: Case, fields: frozenset[m.Field]) -> tuple[m.Test, ...]:
        """Return the additional tests, beside the rules' own, for a proof of flows with these fields."""
        found = self._constants.get((case, fields))
        if found is None:
            found = self._constants[case, fields] = tuple(self.tests(case, set(fields), usual=False))
        return found

    def evaluation(self, before: Flow, after: Flow, case: Case) -> Evaluation:
        """Return an evaluation of these flows: the last one for their protocol where it has all that they test.

        A guest's tagged frames run into the chains of its untagged ones, which have been evaluated just before.
        """
        tests = tests_of_programs(programs_of((before, after)))
        last = self._evaluations.get(case.protocol)
        limit = self.budget.memory
        if last is not None and last.covers(tests) and (limit is None or 2 * last.space.memory < limit):
            return last
        made = self._evaluations[case.protocol] = Evaluation([before, after], None, self.budget)
        return made

    def starting(self, evaluation: Evaluation, flow: Flow, *, fixed: bool) -> int:
        """Return what becomes of packets in a flow; ``fixed``: of those that come without a mark."""
        node = evaluation.flow(flow)
        return evaluation.assign(node, self.packet_marks) if fixed and self.packet_marks else node

    def tests(self, case: Case, fields: set[m.Field], *, usual: bool) -> Iterator[m.Test]:
        """Yield the additional tests of a proof, beside the rules' own."""
        if usual or self.exceptions.across:
            yield from tests_of_possible(fields, case, self.exceptions, usual=usual)

    def alike(self, evaluation: Evaluation, one: int, two: int, case: Case) -> bool:
        """Whether two diagrams are the same for all packets that are compared."""
        if one == two:
            return True
        if not self.exceptions.across:
            excusing = self.connection_marks or case.fragments
            return bool(excusing) and not differing(evaluation, one, two, self.exceptions, case)
        explainer = Explainer(evaluation, one, two, case, self.exceptions, from_host=False)
        return explainer.differing == evaluation.false

    # --- marks ---

    def marks_matter(self, segments: Iterable[tuple[Flow, Flow]]) -> bool:
        """Whether some of these segments, which packets come to with a mark, looks at it."""
        return any(self.looks_at_mark(flows) for flows in segments)

    def looks_at_mark(self, flows: tuple[Flow, Flow]) -> bool:
        """Whether either flow of a segment looks at the mark that a packet comes with."""
        found = self._asked.get(flows)
        if found is not None:
            return found
        key = self._shapes.key(flows)
        found = self._asked_shapes.get(key) if key is not None else None
        if found is None:
            # what a zone or a helper leaves behind lasts until the lookup, which is in the same segment
            unseen = () if self.tested.untracks or not self.tested.exempts else ((m.TRACKING, 0),)
            try:
                evaluation = Evaluation(flows, None, self.budget, self.carried)
                nodes = [evaluation.assign(evaluation.flow(flow), unseen) for flow in flows]
                found = any(evaluation.space.marks[node] & TESTS_MARK for node in nodes)
            except BudgetExceededError:
                found = True
        if key is not None:
            self._asked_shapes[key] = found
        self._asked[flows] = found
        return found
