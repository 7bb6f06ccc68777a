"""Lowering of rules: the chains of the IR, run by run, to rules of nft.

Example, the rule of the IR's docstring, in the bridge table::

    Rule((Address(SOURCE, 10.0.0.0/8), ProtocolMatch(tcp), Ports(DESTINATION, 22)), Accept(), 100.fw:4, V4)
    meta protocol ip ip saddr 10.0.0.0/8 tcp dport 22 accept comment "100.fw:4"
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, assert_never

from pvefw_nft.backends.nft.comments import comment
from pvefw_nft.backends.nft.intervals import without
from pvefw_nft.backends.nft.keys import intervals_of, key_of
from pvefw_nft.backends.nft.lower_matches import MatchLowering, family_guard, family_key, family_value
from pvefw_nft.backends.nft.merge import runs
from pvefw_nft.backends.nft.place import Place, chain_name
from pvefw_nft.backends.nft.shared_sets import with_shared_sets
from pvefw_nft.backends.nft.syntax import statements as nft
from pvefw_nft.backends.nft.syntax.expressions import anonymous_set, bits, concatenation, ct, joined, meta, with_bits
from pvefw_nft.backends.nft.syntax.objects import MAX_PREFIX, Rule
from pvefw_nft.errors import InternalError
from pvefw_nft.ir import nodes as ir
from pvefw_nft.ir.nodes import ACCEPT_MARK, Direction, Family, Layer, ProtocolMatch, Provenance, RejectKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pvefw_nft.backends.nft.intervals import Interval
    from pvefw_nft.backends.nft.keys import Key
    from pvefw_nft.backends.nft.lower_matches import Alternative
    from pvefw_nft.backends.nft.merge import Run
    from pvefw_nft.backends.nft.scope import Scope
    from pvefw_nft.backends.nft.syntax.expressions import Single, Value
    from pvefw_nft.backends.nft.syntax.statements import Statement, Verdict
    from pvefw_nft.ir.nodes import Action, Log

MAPS: Final = {
    (Layer.FILTER, Direction.IN): "guests-in",
    (Layer.FILTER, Direction.OUT): "guests-out",
    (Layer.LINK, Direction.OUT): "guests-link",
    (Layer.STATELESS, Direction.OUT): "guests-stateless",
    (Layer.LIMIT, Direction.OUT): "guests-limit",
}
"""The verdict maps from the ports of firewall bridges to the chains of NICs."""

_DEFAULT_BURST = 5  # of iptables' limit match, if none is given (iptables-extensions(8))
_DEFAULT_QUEUE = 0
_LOG_GROUP = 0  # NFLOG group of Proxmox VE's pvefw-logger
_SET_MARK = nft.mangle(meta("mark"), with_bits(meta("mark"), ACCEPT_MARK))
# Only the top bit changes: other programs use the rest of the mark.
_CLEAR_MARK = nft.mangle(meta("mark"), bits(meta("mark"), 0xFFFFFFFF ^ ACCEPT_MARK))
_REJECT = {
    RejectKind.TCP_RESET: nft.reject("tcp reset"),
    RejectKind.PORT_UNREACHABLE: nft.reject("icmpx", "port-unreachable"),
    RejectKind.HOST_UNREACHABLE: nft.reject("icmpx", "host-unreachable"),
}
# icmpx admin-prohibited would send code 13 of ICMP; the reference sends host-prohibited, code 10.
_PROHIBITED = {
    Family.V4: nft.reject("icmp", "host-prohibited"),
    Family.V6: nft.reject("icmpv6", "admin-prohibited"),
}


class RuleLowering:
    """Lowers the chains of one scope. A dispatch looks into the map that :data:`MAPS` names."""

    def __init__(self, scope: Scope) -> None:
        """Start with nothing lowered."""
        self.scope = scope
        self._place = scope.place
        self._matches = MatchLowering(scope)
        # rules that many chains share are one object in the IR: cache their lowered form by identity
        self._shared: dict[int | tuple[int, ...], tuple[Rule, ...] | None] = {}

    def chain_rules(self, name: str) -> Iterator[Rule]:
        """Yield the rules of a chain of the scope."""
        return self.rules(self.scope.rules(name))

    def rules(self, rules: Sequence[ir.Rule]) -> Iterator[Rule]:
        """Yield the nft rules for consecutive rules of the IR."""
        for run in runs(rules):
            # rules of files differ from chain to chain, so caching them would only cost memory
            if run.rules[0].origin.provenance in (Provenance.USER, Provenance.POLICY):
                yield from self._run(run)
                continue
            key = id(run.rules[0]) if len(run.rules) == 1 else tuple([id(rule) for rule in run.rules])
            known = self._shared.get(key)
            if known is None:
                known = tuple(self._run(run))
                # most are of one NIC, and never seen again: keep those that are seen twice
                self._shared[key] = known if key in self._shared else None
            yield from known

    def _run(self, run: Run) -> Iterator[Rule]:
        first = run.rules[0]
        text = comment([rule.origin for rule in run.rules])
        if run.in_turn:
            # these actions do not end the packet's way, so one rule can do all of them
            actions = [statements for rule in run.rules for _, statements in self._actions(rule.action)]
            yield self._rule(tuple(statement for statements in actions for statement in statements), text)
            return
        any_transport = any(isinstance(first.matches[index], ProtocolMatch) for index in run.keys)
        for families, tests in self._conditions(run, any_transport=any_transport):
            # if the rules differ in family, the family is part of the key
            guarded = tests if run.differ_in_family else (*family_guard(families, self._place), *tests)
            if run.is_map:
                yield self._rule((*guarded, self._look_up(run, any_transport=any_transport)), text)
                continue
            log = () if first.log is None else _log(first.log)
            if len(log) > 1:  # behind a limit, the action has to be a rule of its own
                yield self._rule((*guarded, *log), text)
                log = ()
            for action_families, action in self._actions(first.action):
                if action_families & families == families:
                    yield self._rule((*guarded, *log, *action), text)
                elif action_families & families:
                    guard = family_guard(action_families & families, self._place)
                    yield self._rule((*guard, *tests, *log, *action), text)

    def _rule(self, statements: tuple[Statement, ...], text: str) -> Rule:
        """Return a rule. The host's chains do not grow with the guests: their sets stay in their rules, maps do not."""
        shared, sets = with_shared_sets(statements, maps_only=self._place is Place.HOST)
        return Rule(shared, text, sets)

    # --- conditions ---

    def _conditions(self, run: Run, *, any_transport: bool) -> list[tuple[int, tuple[Statement, ...]]]:
        """Return families and tests: one for each combination of the alternatives of the matches.

        The keys of a concatenation come last; the keys of a map are looked up by the action.
        """
        first = run.rules[0]
        wanted: int = Family.BOTH if run.differ_in_family else first.families
        conditions: list[tuple[int, tuple[Statement, ...]]] = [(wanted, ())]
        for index, match in enumerate(first.matches):
            if index in run.keys:
                choices = self._key_tests(run, index, any_transport=any_transport)
            else:
                choices = self._matches.alternatives(match, first, any_transport=any_transport)
            conditions = [
                (families & also, (*tests, *statements))
                for families, tests in conditions
                for also, statements in choices
                if families & also
            ]
        if run.is_concatenation and not run.is_map:
            look_up = self._look_up(run, any_transport=any_transport)
            return [(families, (*tests, look_up)) for families, tests in conditions]
        return conditions

    def _key_tests(self, run: Run, index: int, *, any_transport: bool) -> Sequence[Alternative]:
        """Return the test of a key; keys that are looked up later are not tested here."""
        key = self._key(run.rules[0], index, any_transport=any_transport)
        if run.is_map or run.is_concatenation:
            return ((key.families, key.first),)
        return (self._matches.comparison(key, [rule.matches[index] for rule in run.rules]),)

    def _key(self, rule: ir.Rule, index: int, *, any_transport: bool) -> Key:
        key = key_of(rule.matches[index], rule, any_transport=any_transport)
        if key is None:
            raise InternalError(f"rules of a run cannot differ in {type(rule.matches[index]).__name__}")
        return key

    def _look_up(self, run: Run, *, any_transport: bool) -> Statement:
        """Return the look-up in the set or map of a run; a value that rules share belongs to the first of them."""
        first = run.rules[0]
        left = [self._key(first, index, any_transport=any_transport).left for index in run.keys]
        if run.differ_in_family:
            left.insert(0, family_key(self._place))
        selector = left[0] if len(left) == 1 else concatenation(left)
        pairs = list(self._joined_pairs(run) if run.is_concatenation else self._pairs(run))
        if run.is_map:
            return nft.vmap(selector, [(value, self._verdict(action)) for value, action in pairs])
        return nft.match(selector, anonymous_set([value for value, _ in pairs]))

    def _pairs(self, run: Run) -> Iterator[tuple[Value, Action]]:
        """Yield the values of a run with one key, each with the action it leads to."""
        (index,) = run.keys
        taken: list[Interval] = []
        named: set[str] = set()
        for rule in run.rules:
            match = rule.matches[index]
            intervals = intervals_of(match)
            if intervals:
                # nft refuses a value that is in a map twice; the first rule with the value decides
                values = self._matches.interval_values(without(intervals, taken), match)
                taken += intervals
            else:
                values = [value for value in self._matches.values([match]) if value not in named]
                named.update(str(value) for value in values)
            yield from ((value, rule.action) for value in values)

    def _joined_pairs(self, run: Run) -> Iterator[tuple[Value, Action]]:
        """Yield the joined values of a run with several keys, each with the action it leads to."""
        seen: set[tuple[object, ...]] = set()
        for rule in run.rules:
            parts: list[Single] = [family_value(rule.families, self._place)] if run.differ_in_family else []
            for index in run.keys:
                value = self._matches.values([rule.matches[index]])[0]
                assert isinstance(value, int | str), "merge lets single values only into a concatenation"
                parts.append(value)
            if tuple(parts) not in seen:
                seen.add(tuple(parts))
                yield joined(parts) if len(parts) > 1 else parts[0], rule.action

    # --- actions ---

    def _actions(self, action: Action) -> Iterator[tuple[int, tuple[Statement, ...]]]:
        """Yield the statements of an action, for each group of families in which they are the same."""
        match action:
            case ir.Accept() | ir.Return() | ir.Jump() | ir.Goto():
                yield Family.BOTH, (self._verdict(action),)
            case ir.Drop():
                # `status` adds up these counters
                yield Family.BOTH, (nft.COUNTER, nft.DROP)
            case ir.Reject(kind):
                yield from self._reject(kind)
            case ir.Queue(first, last, bypass):
                number = _DEFAULT_QUEUE if first is None else first
                yield Family.BOTH, (nft.queue(number, last, bypass=bypass),)
            case ir.SetAcceptMark(on):
                yield Family.BOTH, (_SET_MARK if on else _CLEAR_MARK,)
            case ir.SetConnmark(value):
                yield Family.BOTH, (nft.mangle(ct("mark"), value),)
            case ir.AssignHelper(name):
                yield Family.BOTH, (nft.ct_helper(name),)
            case ir.Dispatch(direction):
                yield Family.BOTH, (nft.vmap(meta("iifname"), f"@{MAPS[self.scope.layer, direction]}"),)
            case _:
                assert_never(action)

    def _reject(self, kind: RejectKind) -> Iterator[tuple[int, tuple[Statement, ...]]]:
        if self._place is Place.BRIDGE:
            yield Family.BOTH, (nft.COUNTER, nft.DROP)  # the kernel cannot reject in this hook
        elif kind is RejectKind.ADMIN_PROHIBITED:
            for family, statement in _PROHIBITED.items():
                yield family, (nft.COUNTER, statement)
        else:
            yield Family.BOTH, (nft.COUNTER, _REJECT[kind])

    def _verdict(self, action: Action) -> Verdict:
        match action:
            case ir.Accept():
                return nft.ACCEPT
            case ir.Drop():
                return nft.DROP
            case ir.Return():
                return nft.RETURN
            case ir.Jump(name):
                return nft.jump(chain_name(self.scope.layer, name))
            case ir.Goto(name):
                return nft.goto(chain_name(self.scope.layer, name))
            case _:
                raise InternalError(f"{type(action).__name__} is not a verdict")


def _log(log: Log) -> tuple[Statement, ...]:
    if len(log.prefix.encode()) > MAX_PREFIX:
        raise InternalError(f"log prefix {log.prefix!r} is too long")
    statement = nft.log(log.prefix, _LOG_GROUP)
    if log.limit is None:
        return (statement,)
    limit = log.limit.loadable()
    burst = _DEFAULT_BURST if limit.burst is None else limit.burst
    return nft.limit(limit.number, limit.unit, burst), statement
