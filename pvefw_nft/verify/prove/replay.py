"""One packet through a ruleset, by the definition of the model: no atoms, no diagrams.

The prover puts each packet that it shows through this, on both sides, to name the rules that decide; and it shows
none for which the verdicts here are not those that the proof predicts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pvefw_nft.errors import HostError
from pvefw_nft.verify import model as m
from pvefw_nft.verify.describe import rule_text
from pvefw_nft.verify.prove.report import Place
from pvefw_nft.verify.prove.residual import CAST, INTERFACES, MAX_DEPTH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pvefw_nft.verify.path import Stage


@dataclass(slots=True)
class Replay:
    """The run of one packet; after :meth:`run`, ``verdict`` and the ``places`` of the rules that decided.

    ``done`` lists what was done on the way: log lines, queues, translations.
    """

    model: m.RulesetModel
    packet: dict[m.Field, int]
    verdict: str = "accept"
    places: list[Place] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    _marker: Place | None = None
    _stack: list[Place] = field(default_factory=list)

    def run(self, stages: Sequence[Stage]) -> Replay:
        """Put the packet through these stages."""
        for stage in stages:
            seen = self._seen(stage)
            if not m.holds(stage.when, seen):
                continue
            for table, chain in stage.chains(self.model, self.packet[m.PROTOCOL]):
                if chain.hook is not None and chain.hook.kind == "nat" and not _is_new(self.packet):
                    continue
                if not self._base(table, chain, stage):
                    return self
        return self

    def _seen(self, stage: Stage) -> Mapping[m.Field, int]:
        """The packet as a hook sees it."""
        seen = dict(self.packet)
        for on in (*INTERFACES, m.IS_BRIDGED):
            seen.pop(on, None)
        if stage.point not in (m.Point.OUTPUT, m.Point.POSTROUTING):
            seen.pop(m.SKUID, None)
            seen.pop(m.SKGID, None)
        seen[m.PKTTYPE] = (stage.unicast, 1, 2)[self.packet.get(CAST, 0)]
        seen.update(stage.fields)
        return seen

    def _base(self, table: m.Table, chain: m.Chain, stage: Stage) -> bool:
        """Run a base chain; returns whether the packet goes on."""
        self._stack.clear()
        verdict = self._chain(table, chain, stage, 0)
        if isinstance(verdict, m.Return):
            verdict = chain.policy
            if isinstance(verdict, m.Drop):
                self.places = [Place(str(table.key), chain.name, 0, "policy drop")]
        if isinstance(verdict, m.Drop):
            self.verdict = "drop"
        elif isinstance(verdict, m.Reject):
            self.verdict = f"reject {verdict.kind(self.packet[m.PROTOCOL])}"
        elif isinstance(verdict, m.UnknownVerdict):
            self.verdict = f"unknown {verdict.text}"
        return self.verdict == "accept"

    def _chain(self, table: m.Table, chain: m.Chain, stage: Stage, depth: int) -> m.PlainVerdict:
        if depth > MAX_DEPTH:
            raise HostError(f"chains of {table.key} call one another in a circle, by way of '{chain.name}'")
        for number, rule in enumerate(chain.rules, 1):
            seen = self._seen(stage)
            if not all(m.holds(condition, seen) for condition in rule.conditions):
                continue
            if not self._effects(rule, stage):
                continue
            verdict = rule.verdict
            if isinstance(verdict, m.VerdictMap):
                verdict = verdict.lookup(self._seen(stage))
            if verdict is None:
                if any(isinstance(e, m.SetMark) and e.flip for e in rule.effects) and self._stack:
                    self._marker = self._stack[-1]
                continue
            place = Place(
                str(table.key), chain.name, number, rule_text(rule), rule.origin, rule.line
            )
            if isinstance(verdict, (m.Jump, m.Goto)):
                self._stack.append(place)
                inner = self._chain(table, table.chains[verdict.chain], stage, depth + 1)
                self._stack.pop()
                if isinstance(inner, m.Return) and isinstance(verdict, m.Jump):
                    continue
                return inner
            self._decided(rule, place)
            if isinstance(verdict, m.Queue):
                self.done.append("queue bypass" if verdict.bypass else "queue")
                return m.ACCEPT
            if isinstance(verdict, m.Nat):
                self._translate(verdict)
                return m.ACCEPT
            return verdict
        return chain.policy if chain.hook is None else m.RETURN

    def _decided(self, rule: m.Rule, place: Place) -> None:
        """Note the rule that decides: where it only asks for a mark, the one that set it, too."""
        places = [place]
        tests = {test.field for condition in rule.conditions for test in m.tests_of(condition)}
        if tests & set(m.MARK) and self._marker is not None:
            places.insert(0, self._marker)
        elif self._stack and not place.origin:
            places.insert(0, self._stack[-1])
        if not isinstance(rule.verdict, m.Return):
            self.places = places
        elif tests & set(m.MARK):
            self.places = places

    def _effects(self, rule: m.Rule, stage: Stage) -> bool:
        """Carry the effects out; returns False where a guard ends the rule."""
        for effect in rule.effects:
            match effect:
                case m.Guard(condition):
                    if not m.holds(condition, self._seen(stage)):
                        return False
                case m.SetMark(target, keep, flip):
                    for place, bit in enumerate(target.bits):
                        kept = self.packet.get(bit, 0) & (keep >> place & 1)
                        self.packet[bit] = kept ^ (flip >> place & 1)
                case m.CopyMark(target, keep, take):
                    other = m.CT_MARK if target is m.MarkTarget.PACKET else m.MARK
                    for place, (bit, source) in enumerate(zip(target.bits, other, strict=True)):
                        kept = self.packet.get(bit, 0) & (keep >> place & 1)
                        self.packet[bit] = kept ^ (self.packet.get(source, 0) & (take >> place & 1))
                case m.NoTrack():
                    self.packet[m.CT_STATE] = m.CT_STATES.index("untracked")
                case m.Log(prefix):
                    self.done.append(f"log {prefix}")
                case m.SetHelper() | m.Alter():
                    pass
        return True

    def _translate(self, nat: m.Nat) -> None:
        self.done.append(nat.kind)
        source = nat.kind in ("snat", "masquerade")
        if nat.addresses is not None and nat.addresses[0] == nat.addresses[1]:
            v4 = self.packet[m.PROTOCOL] == m.IPV4
            both = (m.SADDR4, m.DADDR4) if v4 else (m.SADDR6, m.DADDR6)
            self.packet[both[0] if source else both[1]] = nat.addresses[0]
        if nat.ports is not None and nat.ports[0] == nat.ports[1]:
            self.packet[m.SPORT if source else m.DPORT] = nat.ports[0]


def _is_new(packet: Mapping[m.Field, int]) -> bool:
    return packet.get(m.CT_STATE) == m.CT_STATES.index("new")


def replay(model: m.RulesetModel, stages: Sequence[Stage], packet: Mapping[m.Field, int]) -> Replay:
    """Return the run of a packet over these stages."""
    return Replay(model, dict(packet)).run(stages)
