"""Follow one packet: the rules that it meets, hop by hop, and the one that decides.

The walk follows the kernel (net/netfilter/core.c, ip_tables.c, nf_tables_core.c): at each stage of the path
the base chains in order, in each the rules in order; accept ends the base chain, drop and reject end the way.
Marks stay with the packet, also from one bridge to the next.

Where readers met matches they do not know and were told to assume ``both``, the walk is done for either
outcome of each such match it meets, and the verdict counts only if all agree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from pvefw_nft.errors import UsageError
from pvefw_nft.verify.model import (
    CT_DIRECTION,
    CT_MARK,
    CT_STATE,
    CT_STATES,
    CT_STATUS,
    DADDR4,
    DADDR6,
    DPORT,
    ETHER_DST,
    ETHER_SRC,
    ETHER_TYPE,
    FRAGMENT,
    IBR,
    IIF,
    IS_BRIDGED,
    LABEL,
    MARK,
    NO_INTERFACE,
    OBR,
    OIF,
    PHYSIN,
    PHYSOUT,
    PKTTYPE,
    PROTOCOL,
    SADDR4,
    SADDR6,
    SPORT,
    TRACKING,
    VLAN_ID,
    Accept,
    All,
    Alter,
    Any,
    Chain,
    Condition,
    CopyMark,
    Drop,
    Effect,
    Family,
    Field,
    FieldKind,
    Goto,
    Guard,
    Jump,
    Log,
    Nat,
    NoTrack,
    PlainVerdict,
    Point,
    Queue,
    Reject,
    Return,
    Rule,
    RulesetModel,
    SetField,
    SetHelper,
    SetMark,
    SetZone,
    Table,
    Test,
    UnknownVerdict,
    UpdateSet,
    VerdictMap,
    holds,
    own_counter,
    rate_of,
    tests_of,
)
from pvefw_nft.verify.model.text import value_text
from pvefw_nft.verify.network.martians import martian
from pvefw_nft.verify.simulate.conntrack import first_state
from pvefw_nft.verify.simulate.packet import HOST_MAC, Probe
from pvefw_nft.verify.simulate.reject_reply import answer_way
from pvefw_nft.verify.simulate.tracking import (
    CONNECTED,
    CONNECTION_FIELDS,
    DEFAULT_ZONE,
    LATER,
    PLAIN,
    View,
    enters,
    seen_state,
    tracking_of,
    undecided_zones,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pvefw_nft.verify.model.intervals import IntervalSet
    from pvefw_nft.verify.model.shortcuts import Shortcuts
    from pvefw_nft.verify.network.path import Stage
    from pvefw_nft.verify.simulate.connections import Connections
    from pvefw_nft.verify.simulate.packet import Guess
    from pvefw_nft.verify.simulate.tracking import Tracked

_PLACE = re.compile(r"\S:\d+")
"""Matches an origin that names file and line."""
STANDARD = "standard chain"
"""The origin of rules that every ruleset of pvefw has. It does not explain why a packet came there."""
_USUAL_BITS = {"rate ": 0, "expired ": 0, "ct helper ": 0, LABEL: 0, "fib ": 1}
"""Assumed values of fields made on demand: rates are not exceeded, elements have not expired, no helper reads the
connection, it has no label, routes exist.
"""
LATER_FRAGMENT = FRAGMENT.names.index("later")
EXEMPT = 1
"""The value of ``TRACKING`` of a packet that is not looked up."""
MAX_UNKNOWN = 10
"""How many unknown matches one walk may meet: each doubles the walks."""


@dataclass(frozen=True, slots=True)
class Step:
    """A rule a packet met: ``number`` counts from 1 in its chain. ``failed`` is the test that did not hold; None: it
    matched. ``seen`` is the value that the packet had of the field of a single failed test; None: of several, or none.

    ``callers`` are the rules whose jumps or gotos led here, outermost first. ``verdict`` is what the rule decided: of a
    verdict map the entry that holds.
    """

    table: Table
    chain: Chain
    number: int
    rule: Rule
    callers: tuple[Step, ...] = ()
    failed: Condition | None = None
    verdict: PlainVerdict | None = None
    seen: int | None = None

    @property
    def matched(self) -> bool:
        """Whether the rule applied."""
        return self.failed is None

    @property
    def origin(self) -> str:
        """The place in the configuration that the rule comes from: its own, else the place of the rule that led to
        it."""
        origins = [step.rule.origin for step in (self, *reversed(self.callers)) if step.rule.origin]
        for telling in (_PLACE.search, lambda origin: origin != STANDARD):
            for origin in origins:
                if telling(origin):
                    return origin
        return origins[0] if origins else ""


@dataclass(slots=True)
class ChainWalk:
    """A packet's walk from one base chain: the rules met, and the end. ``policy``: no rule decided."""

    table: Table
    chain: Chain
    steps: list[Step] = field(default_factory=list)
    end: End = field(default_factory=Accept)
    policy: bool = False

    @property
    def decider(self) -> Step | None:
        """The rule that decided: the last that matched and had a verdict other than a jump.

        Where that rule only tested a mark, or was entered to set it, the rule that had the mark set is meant.
        """
        last: Step | None = None
        before: Step | None = None
        setter: Step | None = None
        for step in self.steps:
            if not step.matched:
                continue
            verdict = step.verdict
            if any(isinstance(effect, SetMark) and effect.flip for effect in step.rule.effects):
                entered = before is not None and isinstance(before.verdict, (Goto, Jump))
                setter = before if entered and not step.rule.conditions else step
            # a jump alone decides nothing: the chain may return
            if isinstance(verdict, (Goto, Return, Accept, Drop, Reject, Queue, Nat, UnknownVerdict)):
                last = setter if setter is not None and _tests_mark(step.rule) else step
            before = step
        return last


def _tests_mark(rule: Rule) -> bool:
    """Return whether a rule only returns or accepts marked packets."""
    tests = [test for condition in rule.conditions for test in tests_of(condition)]
    return bool(tests) and all(test.field in MARK and 1 in test.values for test in tests)


@dataclass(slots=True)
class StageWalk:
    """The walks at one stage: one for each base chain there."""

    stage: Stage
    chains: list[ChainWalk] = field(default_factory=list)


End: TypeAlias = Accept | Drop | Reject | UnknownVerdict
"""How the walk of a base chain ends; a packet for a program's queue counts as accepted."""


@dataclass(slots=True)
class Outcome:
    """The whole way of a packet. ``verdict`` is ACCEPT, DROP, REJECT or UNDECIDED, ``kind`` the rejection's
    kind.

    ``connections`` are those known afterwards, for the next packet. ``stopped`` says what else than a rule dropped it.
    ``notes`` are what a reader should know: queues, translations,
    assumptions that the verdict depends on. ``answered`` says whether the answer to a rejected packet reaches its
    sender (None: not rejected, or not known). ``guesses`` say whether the verdict depends on each made-up address.
    ``put_together``: it was a later fragment, which is no packet of its own from connection tracking on. A proof's
    probe, which has no topology, ends there; else it goes on as the packet without its ports. ``fields`` are the
    packet's at the end, its connection's mark among them.
    """

    probe: Probe
    verdict: str
    kind: str | None
    stages: list[StageWalk]
    logs: list[Log]
    notes: list[str]
    answered: bool | None = None
    stopped: str | None = None
    connections: Connections | None = None
    guesses: tuple[Guess, ...] = ()
    put_together: bool = False
    fields: Mapping[Field, int] = field(default_factory=dict)

    @property
    def deciding(self) -> list[tuple[StageWalk, ChainWalk]]:
        """The walks in which something decided: of a packet that ended on its way the last, else all of them."""
        walks = [(stage, walk) for stage in self.stages for walk in stage.chains]
        if self.stopped is not None:
            return []
        if self.verdict != "ACCEPT":
            return walks[-1:]
        return [(stage, walk) for stage, walk in walks if walk.decider is not None]

    @property
    def decider(self) -> Step | None:
        """The rule that decided about the packet; of several that let it pass the last one a user wrote."""
        steps = [walk.decider for _, walk in self.deciding if not walk.policy and walk.decider is not None]
        above_link = [step for step in steps if step.table.key.tool != "ebtables"]
        for wanted in ([step for step in steps if _PLACE.search(step.origin)], above_link, steps):
            if wanted:
                return wanted[-1]
        return None

    @property
    def text(self) -> str:
        """The verdict with its kind: ``REJECT (tcp-reset)``."""
        return f"{self.verdict} ({self.kind})" if self.kind else self.verdict


class _Undecided(Exception):  # noqa: N818  not an error: the walk asks for an answer
    """The walk met an unknown match whose outcome is not chosen yet."""

    def __init__(self, on: Field) -> None:
        super().__init__(on.name)
        self.field = on


LookedUp: TypeAlias = "dict[Field, dict[IntervalSet, None]]"
"""The sets that rules asked for a packet's fields, by field."""


def simulate(
    model: RulesetModel,
    probe: Probe,
    looked_up: LookedUp | None = None,
    connections: Connections | None = None,
    shortcuts: Shortcuts | None = None,
) -> Outcome:
    """Return the verdict on a packet, with its walk. With ``connections`` its state follows from those known before it.

    Where ``looked_up`` has fields as keys, the sets that rules looked up for them are added to it. With ``shortcuts``
    the outcome has only the steps that matched. Raises UsageError if more unknown matches matter than can be tried.
    """
    outcomes: list[tuple[dict[Field, int], Outcome]] = []
    pending: list[dict[Field, int]] = [{}]
    while pending:
        chosen = pending.pop()
        try:
            outcomes.append((chosen, _Walker(model, probe, chosen, looked_up, connections, shortcuts).run()))
        except _Undecided as question:
            # each question doubles the walks
            if len(chosen) >= MAX_UNKNOWN:
                message = f"more than {MAX_UNKNOWN} unknown matches on the packet's way"
                raise UsageError(message, "choose --assume-unknown match or nomatch") from None
            # walk again from the start, once with each answer
            pending += [{**chosen, question.field: 0}, {**chosen, question.field: 1}]
    first = outcomes[0][1]
    first.notes += [*probe.about, *model.assumptions]
    verdicts = {(outcome.verdict, outcome.kind) for _, outcome in outcomes}
    if len(verdicts) > 1:
        texts = sorted({outcome.text for _, outcome in outcomes})
        unknown = sorted({on.name.removeprefix("unknown ") for chosen, _ in outcomes for on in chosen})
        first.notes.append(f"{' or '.join(texts)}, depending on {', '.join(unknown)}")
        first.verdict, first.kind = "UNDECIDED", None
    elif first.verdict == "REJECT":
        _follow_rejection(model, first)
    return first


def _follow_rejection(model: RulesetModel, outcome: Outcome) -> None:
    """Walk the answer to a rejected packet back, and note if it does not arrive."""
    probe, kind = outcome.probe, outcome.kind
    if probe.topology is None or kind is None:
        return
    apart = tracking_of(model).has_zones
    way = answer_way(probe.topology, probe.path, len(outcome.stages) - 1, kind, probe.fields, apart=apart)
    outcome.answered = way is None or bool(way.legs)
    if way is not None and not way.legs:
        outcome.notes.append(f"no answer is sent to {probe.path.source}: {way.unsent}")
    for leg in way.legs if way is not None else ():
        fields = {**way.fields, CT_STATE: CT_STATES.index(leg.state)} if way is not None else {}
        path = replace(probe.path, source=probe.path.destination, destination=probe.path.source, stages=leg.stages)
        back = simulate(model, Probe(fields, path))
        if back.verdict != "ACCEPT":
            outcome.answered = False
            step = back.decider
            rule = f"{step.chain.name} rule {step.number}" if step is not None else "a policy"
            outcome.notes.append(f"the answer does not reach {probe.path.source}: {back.verdict} by {rule}")
            return


class _Walker:
    """Walk one packet through a ruleset. ``chosen`` are the assumed outcomes of unknown matches.

    ``looked_up`` collects, for its fields, the sets that rules looked up.
    """

    def __init__(
        self,
        model: RulesetModel,
        probe: Probe,
        chosen: dict[Field, int],
        looked_up: LookedUp | None = None,
        connections: Connections | None = None,
        shortcuts: Shortcuts | None = None,
    ) -> None:
        self.model = model
        self.shortcuts = shortcuts
        self.probe = probe
        self.packet: dict[Field, int] = {TRACKING: 0, **probe.fields}
        self.chosen = chosen
        self.unicast = self.packet.get(PKTTYPE) == 0
        self.logs: list[Log] = []
        self.notes: list[str] = []
        self.view: dict[Field, int] = {}
        self.tracking = PLAIN
        self.looked_up: LookedUp = {} if looked_up is None else looked_up
        self.connections = None if connections is None else connections.copy()
        self.rule_at: Rule | None = None

    def run(self) -> Outcome:
        stages: list[StageWalk] = []
        for stage, tracked in zip(self.probe.path.stages, self._tracked(), strict=True):
            stages.append(StageWalk(stage))
            if self.connections is not None and enters(stage):
                self.connections.confirm()
            self.view = self._see(stage)
            # other packets run this stage, such as untagged ones
            if not self._holds(stage.when):
                continue
            if self.probe.topology is not None and (reason := martian(stage, self.view)):
                return replace(self._outcome(stages, "DROP", None), stopped=reason)
            ended = self._stage(stages, tracked)
            if ended is not None:
                return ended
        if self.probe.path.dead_end:
            return replace(self._outcome(stages, "DROP", None), stopped=self.probe.path.dead_end)
        if self.connections is not None:
            self.connections.confirm()
        return self._outcome(stages, "ACCEPT", None)

    def _stage(self, stages: list[StageWalk], tracked: Tracked) -> Outcome | None:
        """Walk the base chains of the last of these stages. Return the outcome if one of them ends the packet's way."""
        walk = stages[-1]
        due = tracked.zones is not None
        for table, chain in walk.stage.chains(self.model, self.packet[PROTOCOL]):
            hook = chain.hook
            if hook is None:
                continue  # no base chain: it runs only when a rule calls it
            if due and hook.priority >= tracked.since:
                self._look_up(tracked)
                due = False
            whole = hook.priority >= tracked.whole
            # nf_defrag keeps a later fragment until the packet is whole: no chain behind it sees the fragment
            if whole and self.packet.get(FRAGMENT) == LATER_FRAGMENT and self.probe.topology is None:
                return replace(self._outcome(stages, "ACCEPT", None), put_together=True)
            if FRAGMENT in self.packet:
                self.view[FRAGMENT] = 0 if whole else self.packet[FRAGMENT]
            self._see_connection(tracked.view(hook.priority))
            if hook.kind == "nat" and self.view.get(CT_STATE) != CT_STATES.index("new"):
                continue  # only a connection's first packet meets nat chains
            ended = self._ended(stages, self._base_chain(walk, table, chain))
            if ended is not None:
                return ended
        # no base chain comes behind the lookup at this hook
        if due:
            self._look_up(tracked)
        return None

    def _look_up(self, tracked: Tracked) -> None:
        """Look the packet up among the connections known, in the zone that it has here."""
        if self.connections is not None and self.packet[TRACKING] != EXEMPT:
            zone = min(tracked.zones or {DEFAULT_ZONE})
            found = self.connections.look_up(zone, self.packet)
            # labels belong to the entry: labels of another zone's entry do not count here
            for on in [on for on in self.packet if on.name.startswith(LABEL)]:
                del self.packet[on]
            self.packet |= {CT_STATE: found.state, CT_DIRECTION: found.direction, **dict.fromkeys(found.labels, 1)}

    def _ended(self, stages: list[StageWalk], end: End) -> Outcome | None:
        """Return the outcome if the end of a base chain is also the packet's end; None if the packet goes on."""
        match end:
            case Drop():
                return self._outcome(stages, "DROP", None)
            case Reject():
                return self._outcome(stages, "REJECT", end.kind(self.packet[PROTOCOL]))
            case UnknownVerdict(text):
                self.notes.append(f"the effect of {text} is not known")
                return self._outcome(stages, "UNDECIDED", None)
            case Accept():
                return None  # NF_ACCEPT ends this base chain only: those behind it see the packet, too

    def _outcome(self, stages: list[StageWalk], verdict: str, kind: str | None) -> Outcome:
        return Outcome(
            self.probe, verdict, kind, stages, self.logs, self.notes, connections=self.connections, fields=self.packet
        )

    def _tracked(self) -> tuple[Tracked, ...]:
        """Return the effect of connection tracking at each stage."""
        path = self.probe.path

        def runs(stage: Stage) -> bool:
            return holds(stage.when, self._see(stage))

        tracked = tracking_of(self.model).track(self.packet[PROTOCOL], path.stages, path.back, runs)
        if any(undecided_zones(tracked)):
            self.notes.append("its zone depends on more than its way: taken for one that the way back uses, too")
        return tracked

    def _see_connection(self, view: View) -> None:
        """Set the state of the packet's connection as a base chain sees it."""
        self.tracking = view
        first = CT_STATES.index(first_state(self.packet))
        if self.connections is not None:
            view = view._replace(known=True)  # the state comes from a lookup in this zone
        state = seen_state(self.packet[CT_STATE], first, view, self.packet[TRACKING])
        self.view[CT_STATE] = state
        unknown = not view.known and self.packet[CT_STATE] in LATER
        for on in CONNECTION_FIELDS:
            if state in CONNECTED:
                self.view[on] = 0 if unknown else self.packet.get(on, 0)
            else:
                self.view.pop(on, None)
        for on in [on for on in self.view if on.name.startswith(LABEL)]:
            del self.view[on]
        if state in CONNECTED:
            self.view |= {on: value for on, value in self.packet.items() if on.name.startswith(LABEL)}

    def _see(self, stage: Stage) -> dict[Field, int]:
        """Return the packet as a stage's hooks see it. On its way to the next bridge it loses its connection."""
        if enters(stage):
            self.packet[TRACKING] = 0
        view = dict(self.packet)
        for on in (IIF, OIF, PHYSIN, PHYSOUT):
            view[on] = NO_INTERFACE
        for on in (IBR, OBR, IS_BRIDGED):
            view.pop(on, None)
        view.update(stage.fields)
        if self.unicast:
            view[PKTTYPE] = stage.unicast
        if stage.from_host or stage.untagged:
            view.pop(VLAN_ID, None)
            view[ETHER_TYPE] = view[PROTOCOL]
        if stage.from_host:
            view[ETHER_SRC] = HOST_MAC
            # the kernel builds the Ethernet header behind these hooks of the IP families
            if stage.family is not Family.BRIDGE and stage.point in (Point.OUTPUT, Point.POSTROUTING):
                del view[ETHER_SRC]
                view.pop(ETHER_DST, None)
        return view

    # --- chains ---------------------------------------------------------------------------------------------

    def _base_chain(self, stage: StageWalk, table: Table, chain: Chain) -> End:
        walk = ChainWalk(table, chain)
        stage.chains.append(walk)
        returns: list[tuple[Chain, Iterator[int], tuple[Step, ...]]] = []
        current, positions = chain, self._positions(chain)
        callers: tuple[Step, ...] = ()
        while True:
            position = next(positions, None)
            if position is None:
                # only ebtables gives chains of the user a policy, see ebtables(8)
                decided: PlainVerdict | None = current.policy if current is not chain else Return()
            else:
                step = self._rule(table, current, position, callers)
                if self.shortcuts is None or step.failed is None:
                    walk.steps.append(step)
                decided = step.verdict
            match decided:
                case None:
                    continue
                case Jump(target):
                    returns.append((current, positions, callers))
                    current, callers = table.chains[target], (*callers, walk.steps[-1])
                    positions = self._positions(current)
                case Goto(target):
                    # nothing is pushed: a return from there goes to the last chain that jumped
                    current, callers = table.chains[target], (*callers, walk.steps[-1])
                    positions = self._positions(current)
                case Return():
                    if not returns:
                        walk.policy = walk.decider is None or isinstance(chain.policy, Drop)
                        walk.end = chain.policy if isinstance(chain.policy, Drop) else Accept()
                        return walk.end
                    current, positions, callers = returns.pop()
                case Queue(first, last, _):
                    numbers = first if first == last else f"{first}-{last}"
                    self.notes.append(f"goes to the program on queue {numbers}, taken to let it pass")
                    return walk.end
                case Nat():
                    self._translate(decided)
                    return walk.end  # a translation also accepts: nf_nat_setup_info returns NF_ACCEPT
                case Accept() | Drop() | Reject() | UnknownVerdict():
                    walk.end = decided
                    return decided

    def _positions(self, chain: Chain) -> Iterator[int]:
        if self.shortcuts is not None:
            return iter(self.shortcuts.positions(chain, self.view))
        return iter(range(len(chain.rules)))

    def _rule(self, table: Table, chain: Chain, position: int, callers: tuple[Step, ...]) -> Step:
        rule = self.rule_at = chain.rules[position]
        for condition in rule.conditions:
            if not self._holds(condition):
                seen = self.view.get(condition.field) if isinstance(condition, Test) else None
                return Step(table, chain, position + 1, rule, callers, condition, seen=seen)
        for effect in rule.effects:
            if isinstance(effect, Guard):
                # nft_do_chain runs a rule's expressions in order: effects before a guard that fails stay
                if not self._holds(effect.condition):
                    return Step(table, chain, position + 1, rule, callers, effect.condition)
            else:
                self._apply(effect)
        verdict = rule.verdict
        if isinstance(verdict, VerdictMap):
            found = self._lookup(verdict)
            failed = _keys(verdict) if found is None else None
            return Step(table, chain, position + 1, rule, callers, failed, found)
        return Step(table, chain, position + 1, rule, callers, verdict=verdict)

    def _lookup(self, verdict: VerdictMap) -> PlainVerdict | None:
        index = verdict.index
        if self.looked_up and (index is None or index[0] in self.looked_up):
            for test in (test for condition, _ in verdict.entries for test in tests_of(condition)):
                self._note(test)
        return verdict.lookup(self.view)

    def _holds(self, condition: Condition) -> bool:
        """As :func:`~.model.holds`, with rates kept and unknown matches asked for where they matter."""
        if isinstance(condition, Test):
            self._note(condition)
            on = condition.field
            if on.kind is FieldKind.BIT and self.rule_at is not None and rate_of(on) is not None:
                own = own_counter(on, self.rule_at)
                on = own if own in self.view else on
            if on not in self.view:
                if on.name.startswith("unknown "):
                    if on not in self.chosen:
                        raise _Undecided(on)
                    return self.chosen[on] in condition.values
                for prefix, usual in _USUAL_BITS.items():
                    if on.name.startswith(prefix):
                        return self._usual(on, usual) in condition.values
            value = self.view.get(on)
            return value is not None and value in condition.values
        if isinstance(condition, All):
            return all(self._holds(part) for part in condition.of)
        if isinstance(condition, Any):
            return any(self._holds(part) for part in condition.of)
        return not self._holds(condition.of)

    def _note(self, test: Test) -> None:
        """Note which sets were looked up for the fields that are watched."""
        if test.field in self.looked_up:
            self.looked_up[test.field][test.values] = None

    def _usual(self, on: Field, value: int) -> int:
        """Return the value that a field made on demand is taken to have, and note an unusual one."""
        if on.name.startswith("fib ") and (note := f"assumed: the host has a route ({on} exists)") not in self.notes:
            self.notes.append(note)
        return value

    # --- effects --------------------------------------------------------------------------------------------

    def _set(self, on: Field, value: int) -> None:
        if on in CONNECTION_FIELDS and not self.tracking.known and self.packet[CT_STATE] in LATER:
            return  # an unknown connection is looked up again each time, so a value assigned to it does not last
        self.packet[on] = self.view[on] = value

    def _apply(self, effect: Effect) -> None:
        match effect:
            case Log():
                self.logs.append(effect)
            case SetMark() | CopyMark():
                self._mark(effect)
            case NoTrack():
                self._exempt(1)
            case SetZone():
                self._exempt(2)
            case SetHelper(template=template):
                if template:
                    self._exempt(2)
            case SetField():
                self._set_field(effect)
            case UpdateSet() | Alter() | Guard():
                pass

    def _set_field(self, effect: SetField) -> None:
        """Change a field, or give the packet's connection a label."""
        on = effect.field
        if on.name.startswith(LABEL):
            # nft_ct_set_eval does nothing for a packet without a connection
            if self.view[CT_STATE] in CONNECTED:
                self.packet[on] = self.view[on] = 1
                if self.connections is not None:
                    self.connections.label(on)
        elif on in self.view:
            self._set(on, effect.result(self.view[on]))

    def _mark(self, effect: SetMark | CopyMark) -> None:
        """Change a mark. A packet without a connection has no connection mark; an unknown connection starts with 0."""
        other = MARK if effect.target.bits is CT_MARK else CT_MARK
        for bit, on in enumerate(effect.target.bits):
            if on not in self.view or (isinstance(effect, CopyMark) and other[bit] not in self.view):
                return
            value = self.view[on] & effect.keep >> bit & 1
            if isinstance(effect, SetMark):
                self._set(on, value ^ (effect.flip >> bit & 1))
            else:
                self._set(on, value ^ (self.view[other[bit]] & effect.take >> bit & 1))

    def _exempt(self, tracking: int) -> None:
        """Record that a rule exempts the packet or sets its zone. The first rule before the lookup counts."""
        # xt_CT and nft_notrack ignore packets that have a connection, a template or are untracked already
        if not self.tracking.looked_up and self.packet[TRACKING] == 0:
            self.packet[TRACKING] = tracking
            self._see_connection(self.tracking)

    def _translate(self, nat: Nat) -> None:
        """Translate to one address or port. The packet keeps its way to the first destination."""
        to_destination = nat.kind in ("dnat", "redirect")
        self._set(CT_STATUS["dnat" if to_destination else "snat"], 1)
        parts = []
        address = (DADDR4, DADDR6) if to_destination else (SADDR4, SADDR6)
        if nat.addresses is not None:
            on = address[0] if address[0] in self.view else address[1]
            self._set(on, nat.addresses[0])
            parts.append(value_text(on, nat.addresses[0]))
        port = DPORT if to_destination else SPORT
        if nat.ports is not None and port in self.view:
            self._set(port, nat.ports[0])
            parts.append(f"port {nat.ports[0]}")
        end = "destination" if to_destination else "source"
        self.notes.append(f"{nat.kind}: its {end} becomes {' '.join(parts) or 'an address of the host'}")


def _keys(verdict: VerdictMap) -> Condition:
    """Return the condition under which a verdict map has an entry for a packet."""
    return Any(tuple(condition for condition, _ in verdict.entries))
