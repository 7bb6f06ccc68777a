"""Translate the effects of rules for a proof: actions on the fields of packets, and notes.

An effect counts only if it can change the verdict of this packet or a later one; in a strict proof every effect counts.
Example: if a rule tests bit 0 of the mark, ``-j CONNMARK --set-mark 1`` becomes "for packets with a connection, bit 0
is 1".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from pvefw_nft.verify import model as m
from pvefw_nft.verify.model.intervals import IntervalSet
from pvefw_nft.verify.model.text import nat_text
from pvefw_nft.verify.prove.program import Action, Copy, FlipBits, Remap, Set, Trace, Where
from pvefw_nft.verify.simulate.tracking import CONNECTED, untracked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pvefw_nft.verify.prove.facts import Context, Counting, Known
    from pvefw_nft.verify.prove.program import Case

_FIRST = IntervalSet.of((m.CT_STATES.index("related"), m.CT_STATES.index("new")))
"""The states of a connection's first packets."""


class ActionMaker(ABC):
    """Makes actions of effects, in one context."""

    residuals: Counting
    context: Context
    known: Known

    @abstractmethod
    def residue(self, condition: m.Condition) -> m.Condition:
        """Return a condition specialised, with each test in its plain meaning."""

    def effect(self, effect: m.Effect) -> list[Action]:
        """Return the actions and notes of an effect."""
        match effect:
            case m.SetMark(target, keep, flip):
                return self.set_mark(target, keep, flip)
            case m.CopyMark(target, keep, take):
                return self.copy_mark(target, keep, take)
            case m.NoTrack():
                return self.exempt(1)
            case m.SetZone():
                return self.exempt(2)
            case m.Log(prefix, level, group):
                return [Trace(f"log {prefix!r} level {level} group {group}")] if self.residuals.strict else []
            case m.SetHelper(name, template):
                return self.helper(name, template=template)
            case m.SetField(on, value):
                return self.set_field(on, value)
            case m.UpdateSet(name, text):
                counts = self.residuals.strict or name in self.residuals.later.sets
                return [Trace(f"set {name}: {text}")] if counts else []
            case m.Alter(text):
                return [Trace(f"alter {text}")] if self.residuals.strict else []
            case m.Guard():
                raise AssertionError("a guard is no effect by itself")

    def exempt(self, tracking: int) -> list[Action]:
        """Return a rule's effect on a packet's tracking: before the lookup, and where no rule had one before."""
        if not self.residuals.exempts or self.context.view.looked_up:
            return []
        return [Where((m.equals(m.TRACKING, 0),), (), (Set(((m.TRACKING, tracking),)),))]

    def helper(self, name: str, *, template: bool) -> list[Action]:
        """Return the effect of giving a connection a helper: on its first packet, before or after the lookup."""
        actions = self.exempt(2) if template else []
        if template == self.context.view.looked_up or not (template or self.context.view.fresh):
            return actions  # too late, or too early
        if not (self.residuals.strict or self.residuals.later.helpers):
            return actions
        tests, conditions = conjuncts(self.residue(m.Test(m.CT_STATE, _FIRST)))
        return [*actions, Where(tuple(tests), tuple(conditions), (Trace(f"helper {name}"),))]

    def set_field(self, on: m.Field, value: int | tuple[int, ...]) -> list[Action]:
        """Return the effect of changing a field that some rule tests."""
        actions: list[Action] = [Trace(f"{on} set {value}")] if self.residuals.strict else []
        if on not in self.residuals.later.fields or self.known.get(on, 0) is None:
            return actions
        if isinstance(value, int):
            return [*actions, Set(((on, value),))]
        return [*actions, Remap(on, value)]

    def set_mark(self, target: m.MarkTarget, keep: int, flip: int) -> list[Action]:
        """Return the effect of changing a mark on the bits that matter."""
        fixed: list[tuple[m.Field, int]] = []
        flipped: list[m.Field] = []
        for place, bit in enumerate(target.bits):
            if bit not in self.residuals.tracked:
                continue
            if not keep >> place & 1:
                fixed.append((bit, flip >> place & 1))
            elif flip >> place & 1:
                flipped.append(bit)
        actions: list[Set | FlipBits | Copy] = [Set(tuple(fixed))] if fixed else []
        actions += [FlipBits(tuple(flipped))] if flipped else []
        return self.of_connection(actions) if target is m.MarkTarget.CONNECTION else [*actions]

    def of_connection(self, actions: Sequence[Set | FlipBits | Copy]) -> list[Action]:
        """Return the effect of actions on a connection's mark: none for packets without a connection."""
        if not actions or not self.context.view.looked_up:
            return []
        connected = m.All((m.Test(m.CT_STATE, CONNECTED), m.Not(untracked())))
        rest = self.residue(connected)
        tests, conditions = conjuncts(rest)
        return [] if rest == m.FALSE else [Where(tuple(tests), tuple(conditions), tuple(actions))]

    def copy_mark(self, target: m.MarkTarget, keep: int, take: int) -> list[Action]:
        """Return the effect of copying a mark on the bits that matter."""
        other = m.CT_MARK if target is m.MarkTarget.PACKET else m.MARK
        fixed: list[tuple[m.Field, int]] = []
        copied: list[tuple[m.Field, m.Field]] = []
        flipped: list[tuple[m.Field, m.Field]] = []
        for place, (bit, source) in enumerate(zip(target.bits, other, strict=True)):
            if bit not in self.residuals.tracked:
                continue
            taken = take >> place & 1
            if keep >> place & 1:
                if taken:
                    flipped.append((bit, source))
            elif taken:
                copied.append((bit, source))
            else:
                fixed.append((bit, 0))
        actions: list[Set | FlipBits | Copy] = [Set(tuple(fixed))] if fixed else []
        actions += [Copy(tuple(copied), flip=False)] if copied else []
        actions += [Copy(tuple(flipped), flip=True)] if flipped else []
        return self.of_connection(actions)


def conjuncts(condition: m.Condition) -> tuple[list[m.Test], list[m.Condition]]:
    """Return the tests that a condition demands, and the other conditions."""
    tests: list[m.Test] = []
    others: list[m.Condition] = []
    todo = [condition]
    for one in todo:
        if isinstance(one, m.Test):
            tests.append(one)
        elif isinstance(one, m.All):
            todo += one.of
        else:
            others.append(one)
    return tests, others


def translate(nat: m.Nat, case: Case) -> list[Action]:
    """A translation is noted; later hooks see the first address and port that it may give."""
    to_destination = nat.kind in ("dnat", "redirect")
    pairs = [(m.CT_STATUS["dnat" if to_destination else "snat"], 1)]
    if nat.addresses is not None:
        both = (m.SADDR4, m.DADDR4) if case.protocol == m.IPV4 else (m.SADDR6, m.DADDR6)
        pairs.append((both[to_destination], nat.addresses[0]))
    if nat.ports is not None:
        pairs.append((m.DPORT if to_destination else m.SPORT, nat.ports[0]))
    note = nat_text(nat, m.SADDR4 if case.protocol == m.IPV4 else m.SADDR6)
    return [Trace(note), Set(tuple(pairs))]
