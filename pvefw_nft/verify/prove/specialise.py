"""Partial evaluation: specialise a ruleset for one kind of packet at one hook, into programs.

A proof looks at one :class:`Case` (network protocol, VLAN tag) and one way through the host at a time. There the
interfaces are known, and much else: tests of them are decided, rules that cannot match are gone, rules behind a
final one too. The result is a :class:`Program`: a tuple of :class:`Step` s over the fields still open. Programs
are interned, so that chains with the same rest are one object, whichever ruleset they come from.

Example: for IPv4 that crosses from ``tap100i0`` to ``fwln100i0``, of ::

    -A PVEFW-FORWARD -m conntrack --ctstate INVALID -j DROP
    -A PVEFW-FORWARD -m physdev --physdev-is-bridged --physdev-in fwln+ -j PVEFW-FWBR-IN
    -A PVEFW-FORWARD -m physdev --physdev-is-bridged --physdev-out fwln+ -j PVEFW-FWBR-OUT

are left a step ``ct state invalid: drop`` and a call of the rest of ``tap100i0-OUT``, in which ``ct state`` can no
longer be invalid.
"""

from __future__ import annotations

from heapq import merge
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

from pvefw_nft.errors import HostError
from pvefw_nft.verify import model as m
from pvefw_nft.verify.model.intervals import IntervalSet
from pvefw_nft.verify.prove.actions import ActionMaker, conjuncts, translate
from pvefw_nft.verify.prove.facts import Context, Counting, Known, Later
from pvefw_nft.verify.prove.program import (
    ACCEPT,
    CAST,
    DROP,
    INTERFACES,
    RETURN,
    SOMETIMES_ABSENT,
    Action,
    Call,
    Choice,
    Outcome,
    Program,
    Restrict,
    Step,
    Trace,
    rank,
)
from pvefw_nft.verify.simulate.tracking import CONNECTION_FIELDS, seen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence


MAX_DEPTH = 64
"""How deep chains may call one another; the kernel refuses loops, a file need not."""

MAX_PROGRAMS = 1 << 14
"""So many programs are found again by their chain and context; equal ones are one object all the same."""

# --- making programs ----------------------------------------------------------------------------------------


_MARKS = {*m.MARK, *m.CT_MARK}
_KINDS = (m.SADDR_TYPE, m.DADDR_TYPE)


class _Footprint(NamedTuple):
    """The parts of a context that a chain depends on: ``tested`` are all of them, ``fields`` are known one by one."""

    tested: set[m.Field]
    fields: tuple[m.Field, ...]
    states: bool
    kinds: bool


class Residuals(Counting):
    """Makes programs of a ruleset's chains, with the effects that count.

    ``kind`` gives, for the network protocol, the condition that stands for a test of the kind of an address.
    """

    def __init__(
        self,
        tracked: frozenset[m.Field],
        *,
        strict: bool,
        exempts: bool = False,
        later: Later | None = None,
        kind: Callable[[m.Test, int], m.Condition] | None = None,
    ) -> None:
        super().__init__(tracked, strict=strict, exempts=exempts, later=Later() if later is None else later)
        self.kind = kind
        self._programs: dict[tuple[object, ...], Program] = {}
        self._footprints: dict[tuple[int, int], _Footprint] = {}
        self._fields: dict[frozenset[str], frozenset[m.Field]] = {}
        self._indices: dict[int, _Index | None] = {}
        self._kept: list[object] = []

    def program(self, table: m.Table, chain: m.Chain, context: Context, depth: int = 0) -> Program:
        """Return a chain specialised; without its policy, unless it is a user chain.

        Raises HostError where chains call one another in a circle, or one is missing.
        """
        if depth > MAX_DEPTH:
            raise HostError(f"chains of {table.key} call one another in a circle, by way of '{chain.name}'")
        key = self.key(table, chain, context)
        found = self._programs.get(key)
        if found is None:
            steps = Specialiser(self, table, context, depth).steps(chain)
            if len(self._programs) >= MAX_PROGRAMS:
                self._programs.clear()  # most are of guests that are proved, and never asked for again
            found = self._programs[key] = Program(tuple(steps))
        return found

    def key(self, table: m.Table, chain: m.Chain, context: Context) -> tuple[object, ...]:
        """Return the dependencies of a specialised chain: the parts of the context that its rules and callees test."""
        _, fields, states, kinds = self._footprint(table, chain, 0)
        known = context.known
        return (
            id(table),
            id(chain),
            context.case.protocol,
            (context.states, context.view) if states else None,
            context.unicast if kinds else None,
            *map(known.get, fields, _OPEN),
        )

    def _footprint(self, table: m.Table, chain: m.Chain, depth: int) -> _Footprint:
        """Return the parts of a context that this chain, or one that it calls, tests."""
        found = self._footprints.get((id(table), id(chain)))
        if found is None:
            if depth > MAX_DEPTH:
                raise HostError(f"chains of {table.key} call one another in a circle, by way of '{chain.name}'")
            fields = {*self._own_fields(chain)}
            for name in m.targets_of(chain):
                fields |= self._footprint(table, find_chain(table, name), depth + 1).tested
            plain = tuple(sorted(fields - {m.PKTTYPE} - _CONNECTION, key=lambda on: on.name))
            found = _Footprint(fields, plain, bool(_CONNECTION & fields), m.PKTTYPE in fields)
            self._footprints[id(table), id(chain)] = found
            self._kept += (table, chain)
        return found

    def _own_fields(self, chain: m.Chain) -> frozenset[m.Field]:
        """Return the fields of a context that a chain's own rules test; the same for all chains of the same items."""
        items = None if chain.summary is None else chain.summary.items
        found = None if items is None else self._fields.get(items)
        if found is None:
            found = frozenset(test.field for test in chain.tests if test.field in _CONTEXTUAL)
            if any(isinstance(effect, _TRACKING_EFFECTS) for rule in chain.rules for effect in rule.effects):
                found |= {m.CT_STATE}
            if items is not None:
                self._fields[items] = found
        return found

    def rules(self, chain: m.Chain, known: Known) -> Sequence[m.Rule]:
        """Return the rules of a chain that the known interfaces do not rule out at a glance."""
        # an index of a short chain costs more than it saves
        if len(chain.rules) < 24:
            return chain.rules
        index = self._indices.get(id(chain), False)
        if index is False:
            index = self._indices[id(chain)] = _Index.of(chain)
        return chain.rules if not isinstance(index, _Index) else index.lookup(chain, known)


_OPEN = repeat(-1)
"""In a key, for a field whose value is not known."""
_CONNECTION = frozenset((m.CT_STATE, *CONNECTION_FIELDS))
_TRACKING_EFFECTS = (m.NoTrack, m.SetZone, m.SetHelper, m.SetMark)
"""Effects that are void, or different, before the lookup."""
_CONTEXTUAL = frozenset(
    (
        *INTERFACES,
        *_CONNECTION,
        m.FRAGMENT,
        m.IS_BRIDGED,
        m.PKTTYPE,
        m.ETHER_TYPE,
        m.ETHER_SRC,
        m.ETHER_DST,
        m.VLAN_ID,
        m.SKUID,
        m.SKGID,
    )
)


def find_chain(table: m.Table, name: str) -> m.Chain:
    """Return a chain by name; raises HostError where there is none."""
    chain = table.chains.get(name)
    if chain is None:
        raise HostError(f"{table.key} has no chain '{name}', but a rule goes there")
    return chain


class _Index(NamedTuple):
    """Of a long chain, the rules by the one interface they test, as dispatch chains do."""

    fields: tuple[m.Field, ...]
    by_value: Mapping[tuple[m.Field, int], list[int]]
    others: list[int]

    @classmethod
    def of(cls, chain: m.Chain) -> _Index | None:
        by_value: dict[tuple[m.Field, int], list[int]] = {}
        others: list[int] = []
        for number, rule in enumerate(chain.rules):
            key = next(
                (
                    (c.field, c.values.bounds[0])
                    for c in rule.conditions
                    if isinstance(c, m.Test) and c.field in INTERFACES and c.values.count() == 1
                ),
                None,
            )
            # rules that name no single interface concern every packet
            (others if key is None else by_value.setdefault(key, [])).append(number)
        return cls(tuple({on for on, _ in by_value}), by_value, others) if by_value else None

    def lookup(self, chain: m.Chain, known: Known) -> list[m.Rule]:
        hits: list[list[int]] = [self.others]
        for on in self.fields:
            value = known.get(on)
            if value is not None and (on, value) in self.by_value:
                hits.append(self.by_value[on, value])
        # each list is in order, and so is their union: a chain keeps its order
        return [chain.rules[number] for number in merge(*hits)]


_ENDS: Mapping[type[object], Outcome] = {m.Accept: ACCEPT, m.Drop: DROP, m.Return: RETURN}
"""The verdicts that are the end of a packet's way through a chain, and nothing else."""


class Specialiser(ActionMaker):
    """Makes the steps of one chain in one context."""

    residuals: Residuals

    def __init__(self, residuals: Residuals, table: m.Table, context: Context, depth: int) -> None:
        self.residuals = residuals
        self.table = table
        self.context = context
        self.known = context.known
        self.states = context.states
        self.depth = depth
        self.rule_at: m.Rule | None = None

    def steps(self, chain: m.Chain) -> list[Step]:
        """Return a chain specialised, with the call of its last step inlined."""
        found = self.own_steps(chain)
        while found and not (found[-1].tests or found[-1].conditions or found[-1].actions):
            # every packet that reaches the last step takes it, so the called program can replace it
            end = found[-1].end
            if isinstance(end, Call):
                found[-1:] = end.program.steps
            elif end == RETURN:
                found.pop()
            else:
                break
        return _merge_steps(found)

    def own_steps(self, chain: m.Chain) -> list[Step]:
        """Return the steps of a chain's own rules, and its policy."""
        found: list[Step] = []
        for rule in self.residuals.rules(chain, self.known):
            self.rule_at = rule
            tests, conditions, possible = self.conditions(rule.conditions) if rule.conditions else ((), (), True)
            if not possible:
                continue
            for step in self.rule(rule, tests, conditions):
                if step.conditions:
                    found += self.spread(step)
                else:
                    found.append(step)
                if self.ends(step):
                    return found
        if chain.hook is None and not isinstance(chain.policy, m.Return):
            found.append(Step((), (), (), ACCEPT if isinstance(chain.policy, m.Accept) else DROP))
        return found

    def spread(self, step: Step) -> Iterator[Step]:
        """Yield a step that holds where one of several tests does as a step for each: diagrams take cubes best.

        Only where it ends the way through the chain: else a packet might take two of them.
        """
        final = isinstance(step.end, Outcome) or (isinstance(step.end, Call) and not step.end.back)
        choice = step.conditions[0] if len(step.conditions) == 1 else None
        if final and isinstance(choice, m.Any) and not step.actions:
            for part in choice.of:
                tests, conditions, possible = self.conditions((), (*step.tests, part))
                if possible:
                    yield from self.spread(step._replace(tests=tests, conditions=conditions))
        else:
            yield step

    def ends(self, step: Step) -> bool:
        """Whether no packet goes beyond this step; notes the facts known of those that do."""
        # behind these steps some packets go on with the next one
        if step.end is None or isinstance(step.end, Choice) or (isinstance(step.end, Call) and step.end.back):
            return False
        if step.conditions or any(isinstance(action, Restrict) for action in step.actions):
            return False
        if not step.tests:
            return True
        if len(step.tests) == 1 and step.tests[0].field is m.CT_STATE:
            # later steps meet other states only, which may decide their tests
            self.states = self.states - step.tests[0].values
            return not self.states
        return False

    # --- conditions ---

    def conditions(
        self, conditions: Sequence[m.Condition], left: Sequence[m.Condition] = ()
    ) -> tuple[tuple[m.Test, ...], tuple[m.Condition, ...], bool]:
        """Return the tests left, the other conditions left, and False where they cannot all hold.

        ``conditions`` are a rule's, ``left`` specialised ones of others.
        """
        tests: list[m.Test] = []
        others: list[m.Condition] = []
        for of_rule, several in ((True, conditions), (False, left)):
            for condition in several:
                if isinstance(condition, m.Test):
                    rest = self.left_of_test(condition) if of_rule else self.residue(condition)
                else:
                    rest = self.condition(condition) if of_rule else self.residue(condition)
                if rest is True:
                    continue
                if rest is False or rest == m.FALSE:
                    return (), (), False
                more, others_left = conjuncts(rest)
                tests += more
                others += others_left
        if len(tests) > 1:
            tests = _merge_tests(tests)
            if any(not test.values for test in tests):
                return (), (), False
        return tuple(tests), tuple(others), True

    def test(self, test: m.Test) -> m.Test | bool:
        """Return a test specialised: True or False where it is decided."""
        on = test.field
        if on in self.known:
            value = self.known[on]
            # None: the packet has no such field, so no test of it holds
            return value is not None and value in test.values
        if on is m.CT_STATE:
            if not self.states & test.values:
                return False
            return test if self.states - test.values else True
        # no rule exempts packets from tracking: each has the value 0
        if on is m.TRACKING and not self.residuals.exempts:
            return 0 in test.values
        if on.kind is m.FieldKind.BIT and self.rule_at is not None and m.rate_of(on) is not None:
            return m.Test(m.own_counter(on, self.rule_at), test.values)
        if on is m.PKTTYPE:
            return _cast_test(test.values, self.context.unicast)
        if not test.values:
            return False
        if on not in SOMETIMES_ABSENT and test.values is on.everything:
            return True
        return test

    def left_of_test(self, test: m.Test) -> m.Condition | bool:
        """Return a rule's test specialised."""
        meaning = self.meaning(test)
        return self.test(test) if meaning is test else self.residue(meaning)

    def meaning(self, test: m.Test) -> m.Condition:
        """Return the meaning of a rule's test for the packet, where it is not the test itself.

        Kinds of addresses are what both sides' tools can tell; of a connection a rule sees what its hook shows.
        """
        on = test.field
        if on in _KINDS and self.residuals.kind is not None and self.context.case.is_ip:
            return self.residuals.kind(test, self.context.case.protocol)
        if on in _CONNECTION and (on is not m.CT_STATE or not self.context.view.is_plain or self.residuals.exempts):
            return seen(test, self.context.view)
        return test

    def condition(self, condition: m.Condition) -> m.Condition:
        """Return a rule's condition specialised."""
        return self.residue(condition, self.meaning)

    def residue(self, condition: m.Condition, meaning: Callable[[m.Test], m.Condition] | None = None) -> m.Condition:
        """Return a condition specialised; ``meaning`` translates its tests, None: as written."""
        match condition:
            case m.Test():
                other = condition if meaning is None else meaning(condition)
                if other is not condition:
                    return self.residue(other)
                left = self.test(condition)
                return left if isinstance(left, m.Test) else m.TRUE if left else m.FALSE
            case m.Not(of):
                inner = self.residue(of, meaning)
                return m.FALSE if inner == m.TRUE else m.TRUE if inner == m.FALSE else m.Not(inner)
            case m.All(parts):
                kept = [rest for part in parts if (rest := self.residue(part, meaning)) != m.TRUE]
                return m.FALSE if m.FALSE in kept else kept[0] if len(kept) == 1 else m.All(tuple(kept))
            case m.Any(parts):
                kept = [rest for part in parts if (rest := self.residue(part, meaning)) != m.FALSE]
                if m.TRUE in kept:
                    return m.TRUE
                return kept[0] if len(kept) == 1 else m.Any(tuple(kept))

    # --- rules ---

    def rule(self, rule: m.Rule, tests: tuple[m.Test, ...], conditions: tuple[m.Condition, ...]) -> Iterable[Step]:
        """Return the steps of a rule that may match; none where it does nothing."""
        end = None if rule.effects else _ENDS.get(type(rule.verdict))
        return (Step(tests, conditions, (), end),) if end is not None else self.steps_of_rule(rule, tests, conditions)

    def steps_of_rule(
        self, rule: m.Rule, tests: tuple[m.Test, ...], conditions: tuple[m.Condition, ...]
    ) -> Iterator[Step]:
        """Yield the steps of a rule that has effects, or does more than end its chain."""
        actions: list[Action] = []
        open_end = False
        for effect in rule.effects:
            if isinstance(effect, m.Guard):
                more, others, possible = self.conditions((effect.condition,))
                # effects before this guard stay, those behind it and the verdict never come
                if not possible:
                    open_end = True
                    break
                if more or others:
                    actions.append(Restrict(more, others))
            else:
                actions += self.effect(effect)
        # a guard before the first effect is a condition of the rule as a whole
        while actions and isinstance(actions[0], Restrict):
            merged, others, possible = self.conditions(
                (), (*tests, *actions[0].tests, *conditions, *actions[0].conditions)
            )
            if not possible:
                return
            tests, conditions = merged, others
            del actions[0]
        if open_end or rule.verdict is None:
            # a guard with nothing behind it has no effect
            while actions and isinstance(actions[-1], Restrict):
                actions.pop()
            if actions:
                yield Step(tests, conditions, tuple(actions), None)
        elif isinstance(rule.verdict, m.VerdictMap):
            yield from self.verdict_map(rule.verdict, Step(tests, conditions, tuple(actions), None))
        else:
            yield from self.verdict(rule.verdict, Step(tests, conditions, tuple(actions), None))

    def verdict(self, verdict: m.PlainVerdict, step: Step) -> Iterator[Step]:
        """Yield the step that ends with this verdict."""
        match verdict:
            case m.Accept() | m.Drop() | m.Return():
                yield step._replace(end=_ENDS[type(verdict)])
            case m.Reject():
                yield step._replace(end=Outcome(f"reject {verdict.kind(self.context.case.protocol)}"))
            case m.Jump(name) | m.Goto(name):
                back = isinstance(verdict, m.Jump)
                program = self.call(name, step)
                always = program.always
                if not program.steps or always == RETURN:
                    if step.actions or not back:
                        yield step._replace(end=None if back else RETURN)
                else:
                    yield step._replace(end=always or Call(program, back))
            case m.Queue(first, last, bypass):
                text = f"queue {first}-{last}" if self.residuals.strict else "queue"
                note = Trace(f"{text} bypass" if bypass else text)
                yield step._replace(actions=(*step.actions, note), end=ACCEPT)
            case m.Nat():
                yield step._replace(actions=(*step.actions, *translate(verdict, self.context.case)), end=ACCEPT)
            case m.UnknownVerdict(text):
                yield step._replace(end=Outcome(f"unknown {text}"))

    def call(self, name: str, step: Step) -> Program:
        """Return the specialised chain that a step calls."""
        states = self.states
        for test in step.tests:
            if test.field is m.CT_STATE:
                states = states & test.values
        before = self.context
        context = Context(before.case, before.known, states, before.unicast, before.view)
        return self.residuals.program(self.table, find_chain(self.table, name), context, self.depth + 1)

    def verdict_map(self, lookup: m.VerdictMap, step: Step) -> Iterator[Step]:
        """Yield a step for each verdict of a map: its entries exclude one another, so their order is free."""
        if index := lookup.index:
            on = index[0]
            if on in self.known:
                value = self.known[on]
                found = None if value is None else lookup.lookup({on: value})
                if found is not None:
                    yield from self.verdict(found, step)
                elif step.actions:
                    yield step
                return
        branches = list(self.branches(lookup, step))
        if not step.actions and not _MARKS & {t.field for branch in branches for t in branch.tests}:
            yield from branches
        else:
            # an entry's action could change a field that the next entry tests, so look them up all at once
            inner = [branch._replace(actions=branch.actions[len(step.actions) :]) for branch in branches]
            yield step._replace(end=Choice(tuple(inner)))

    def branches(self, lookup: m.VerdictMap, step: Step) -> Iterator[Step]:
        """Yield for each verdict of a map the step that ends with it."""
        entries: dict[m.PlainVerdict, list[m.Condition]] = {}
        for condition, verdict in lookup.entries:
            entries.setdefault(verdict, []).append(condition)
        for verdict, of in entries.items():
            own = () if step.actions else (*step.tests, *step.conditions)
            tests, conditions, possible = self.conditions((_union(of),), own)
            if possible:
                yield from self.verdict(verdict, step._replace(tests=tests, conditions=conditions))


def _merge_steps(steps: list[Step]) -> list[Step]:
    """Make one of neighbours that end alike, and whose tests differ in one field alone.

    Example: ``tcp, dport 22: accept`` and ``tcp, dport 80: accept`` become ``tcp, dport {22, 80}: accept``.
    """
    if len(steps) < 2:
        return steps
    before = steps[0]
    merged = [before]
    for step in steps[1:]:
        alike = before.end == step.end and _is_final(step) and _is_final(before)
        both = _merged_tests(before.tests, step.tests) if alike else None
        if both is None:
            merged.append(step)
            before = step
        else:
            merged[-1] = before = before._replace(tests=both)
    return merged


def _is_final(step: Step) -> bool:
    """Whether a packet that takes a step does not come to the next one, and nothing but its tests decide that."""
    final = isinstance(step.end, Outcome) or (isinstance(step.end, Call) and not step.end.back)
    return final and not step.conditions and not step.actions


def _merged_tests(one: tuple[m.Test, ...], two: tuple[m.Test, ...]) -> tuple[m.Test, ...] | None:
    """Return tests that hold where either of these do; None where no list of tests says that."""
    if len(one) != len(two):
        return None
    place = None
    for number, (left, right) in enumerate(zip(one, two, strict=True)):
        if left is right:
            continue
        if left.field is not right.field or place is not None:
            return None
        place = number
    if place is None:
        return one
    joined = m.Test(one[place].field, one[place].values | two[place].values)
    if joined.values is joined.field.everything and joined.field not in SOMETIMES_ABSENT:
        return one[:place] + one[place + 1 :]
    return (*one[:place], joined, *one[place + 1 :])


def _merge_tests(tests: list[m.Test]) -> list[m.Test]:
    """Intersect tests of one field, and bring all into the order of the levels."""
    merged: dict[m.Field, m.Test] = {}
    for test in tests:
        before = merged.get(test.field)
        merged[test.field] = (
            test if before is None or before is test else m.Test(test.field, before.values & test.values)
        )
    return sorted(merged.values(), key=lambda test: rank(test.field))


def _cast_test(values: IntervalSet, unicast: int) -> m.Test | bool:
    chosen = [cast for cast, kind in enumerate((unicast, 1, 2)) if kind in values]
    if len(chosen) in (0, 3):
        return bool(chosen)
    return m.Test(CAST, IntervalSet.from_ranges((cast, cast) for cast in chosen))


def _union(conditions: list[m.Condition]) -> m.Condition:
    tests = [c for c in conditions if isinstance(c, m.Test)]
    if len(tests) == len(conditions) and len({t.field for t in tests}) == 1:
        return m.Test(tests[0].field, IntervalSet.from_ranges(r for t in tests for r in t.values))
    return m.Any(tuple(conditions))
