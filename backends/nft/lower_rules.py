"""Lowering of rules: the chains of the IR, run by run, to rules of nft.

Example, the rule of the IR's docstring, in the bridge table::

    Rule((Address(SOURCE, 10.0.0.0/8), ProtocolMatch(tcp), Ports(DESTINATION, 22)), Accept(), 100.fw:4, V4)
    meta protocol ip ip saddr 10.0.0.0/8 tcp dport 22 accept comment "100.fw:4"
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Final, assert_never

from backends.nft.comments import comment
from backends.nft.intervals import merged, without
from backends.nft.lower_matches import MatchLowering, family_guard, intervals_of
from backends.nft.merge import runs
from backends.nft.place import Place, chain_name
from backends.nft.syntax import statements as nft
from backends.nft.syntax.expressions import bits, ct, meta, with_bits
from backends.nft.syntax.objects import MAX_PREFIX, Chain, Rule
from pvefw_nft.errors import InternalError
from pvefw_nft.ir import nodes as ir
from pvefw_nft.ir.nodes import ACCEPT_MARK, Direction, Family, Layer, ProtocolMatch, Provenance, RejectKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backends.nft.lower_matches import Alternative, Key
    from backends.nft.merge import Run
    from backends.nft.place import Scope
    from backends.nft.syntax.expressions import Value
    from backends.nft.syntax.statements import Statement, Verdict
    from pvefw_nft.ir.nodes import Action, Log

MAPS: Final = {
    (Layer.FILTER, Direction.IN): "guests-in",
    (Layer.FILTER, Direction.OUT): "guests-out",
    (Layer.LINK, Direction.OUT): "guests-link",
}
"""The verdict maps from the ports of firewall bridges to the chains of NICs."""

_DEFAULT_BURST = 5
_DEFAULT_QUEUE = 0
_LOG_GROUP = 0
_SET_MARK = nft.mangle(meta("mark"), with_bits(meta("mark"), ACCEPT_MARK))
_CLEAR_MARK = nft.mangle(meta("mark"), bits(meta("mark"), 0xFFFFFFFF ^ ACCEPT_MARK))
_REJECT = {
    RejectKind.TCP_RESET: nft.reject("tcp reset"),
    RejectKind.PORT_UNREACHABLE: nft.reject("icmpx", "port-unreachable"),
    RejectKind.HOST_UNREACHABLE: nft.reject("icmpx", "host-unreachable"),
}
_PROHIBITED = {
    Family.V4: nft.reject("icmp", "host-prohibited"),
    Family.V6: nft.reject("icmpv6", "admin-prohibited"),
}


class RuleLowering:
    """Lowers the chains of one scope. A dispatch looks into the map that :data:`MAPS` names."""

    def __init__(self, scope: Scope) -> None:
        """Start with nothing lowered."""
        self._scope = scope
        self._place = scope.place
        self._matches = MatchLowering(scope)
        # The rules that many chains share are one object in the IR; what they become is kept by identity.
        self._shared: dict[tuple[int, ...], tuple[Rule, ...]] = {}

    def chain(self, name: str) -> Chain:
        """Return a chain of the scope, and its name in the table."""
        return Chain(chain_name(self._scope.layer, name), tuple(self.rules(self._scope.live_rules(name))))

    def rules(self, rules: Sequence[ir.Rule]) -> Iterator[Rule]:
        """Yield the rules of nft for rules of the IR that stand one after the other."""
        for run in runs(rules):
            if run.rules[0].origin.provenance is Provenance.USER:
                yield from self._run(run)
                continue
            key = tuple(id(rule) for rule in run.rules)
            known = self._shared.get(key)
            if known is None:
                known = self._shared[key] = tuple(self._run(run))
            yield from known

    def _run(self, run: Run) -> Iterator[Rule]:
        first = run.rules[0]
        text = comment([rule.origin for rule in run.rules])
        any_transport = run.key is not None and isinstance(first.matches[run.key], ProtocolMatch)
        for families, tests in self._conditions(run, first, any_transport=any_transport):
            guard = family_guard(families, self._place)
            if run.is_map:
                yield Rule((*guard, *tests, self._verdict_map(run)), text)
                continue
            log = () if first.log is None else _log(first.log)
            if first.log is not None and first.log.limit is not None:
                yield Rule((*guard, *tests, *log), text)
                log = ()
            for action_families, action in self._actions(first.action):
                both = families & action_families
                if both:
                    own_guard = guard if both == families else family_guard(both, self._place)
                    yield Rule((*own_guard, *tests, *log, *action), text)

    # --- conditions ---

    def _conditions(self, run: Run, first: ir.Rule, *, any_transport: bool) -> Iterator[tuple[int, list[Statement]]]:
        """Yield families and tests: one for each combination of the alternatives of the matches."""
        choices: list[Sequence[Alternative]] = []
        for index, match in enumerate(first.matches):
            if index == run.key:
                key = self._key(run, any_transport=any_transport)
                choices.append(
                    ((key.families, key.first),) if run.is_map else (self._matches.comparison(key, run.keys),)
                )
            else:
                choices.append(self._matches.alternatives(match, first, any_transport=any_transport))
        for combination in product(*choices):
            families: int = first.families
            tests: list[Statement] = []
            for alternative_families, statements in combination:
                families &= alternative_families
                tests += statements
            if families:
                yield families, tests

    def _key(self, run: Run, *, any_transport: bool) -> Key:
        assert run.key is not None
        first = run.rules[0]
        key = self._matches.key(first.matches[run.key], first, any_transport=any_transport)
        if key is None:
            raise InternalError(f"a run cannot differ in {type(first.matches[run.key]).__name__}")
        return key

    def _verdict_map(self, run: Run) -> Statement:
        """Return the look-up for a run; where rules share a value, the first one has it."""
        key = self._key(run, any_transport=isinstance(run.keys[0], ProtocolMatch))
        pairs: list[tuple[Value, Verdict]] = []
        seen: list[Value] = []
        for index, (rule, match) in enumerate(zip(run.rules, run.keys, strict=True)):
            verdict = self._verdict(rule.action)
            taken = [interval for earlier in run.keys[:index] for interval in intervals_of(earlier)]
            if intervals_of(match):
                left = without(intervals_of(match), merged(taken))
                values = self._matches.interval_values(left, match)
            else:
                values = [value for value in self._matches.values([match]) if value not in seen]
            seen += values
            pairs += [(value, verdict) for value in values]
        return nft.vmap(key.left, pairs)

    # --- actions ---

    def _actions(self, action: Action) -> Iterator[tuple[int, tuple[Statement, ...]]]:
        """Yield what an action becomes, for each group of families in which it is the same."""
        match action:
            case ir.Accept() | ir.Return() | ir.Jump() | ir.Goto():
                yield Family.BOTH, (self._verdict(action),)
            case ir.Drop():
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
                yield Family.BOTH, (nft.vmap(meta("iifname"), f"@{MAPS[self._scope.layer, direction]}"),)
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
                return nft.jump(chain_name(self._scope.layer, name))
            case ir.Goto(name):
                return nft.goto(chain_name(self._scope.layer, name))
            case _:
                raise InternalError(f"{type(action).__name__} is not a verdict")


def _log(log: Log) -> tuple[Statement, ...]:
    if len(log.prefix.encode()) > MAX_PREFIX:
        raise InternalError(f"log prefix {log.prefix!r} is too long")
    statement = nft.log(log.prefix, _LOG_GROUP)
    if log.limit is None:
        return (statement,)
    limit = log.limit
    return nft.limit(limit.number, limit.unit, limit.burst or _DEFAULT_BURST), statement
