"""Rules as text, in which tests of addresses and ports, chains, interfaces and zones stand by their places.

:mod:`.nic_keys` makes keys of them, and says why that is sound. A chain whose rules ask for no interface is one *part*,
which all NICs share that meet it; else each rule is a part, and a NIC meets those that its interfaces do not rule out.

Example: ``-s 10.0.0.0/24 -p tcp --dport 80 -j G1`` becomes ``saddr4#0;'l4proto'/…(6, 7)dport#1;Jump0;``, with the two
tests and the chain beside it.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from pvefw_nft.verify import model as m
from pvefw_nft.verify.model.intervals import IntervalSet
from pvefw_nft.verify.prove.program import INTERFACES
from pvefw_nft.verify.prove.shapes import RENAMED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pvefw_nft.verify.prove.specialise import Residuals

MAX_SINGLES = 8
"""A rule that asks for at most so many interfaces by name is left out of the keys of NICs that have none of them."""
MAX_INTERFACE_TESTS = 64
"""A rule with more tests of interfaces, maps over one interface aside, means: no key. Each NIC would evaluate them."""

IS_INTERFACE = frozenset(INTERFACES)


class NoKeyError(Exception):
    """A NIC meets something that a key cannot express: it is proved for itself."""


# --- rules as text ------------------------------------------------------------------------------------------------


class Verbatim:
    """Writes parts of rules word for word: equal texts mean equal parts, in any process."""

    def __init__(self) -> None:
        self._known: dict[tuple[type[object], object], str] = {}

    def text(self, value: object) -> str:
        """Return any part of a rule. Raises TypeError for what is none."""
        if value is None or isinstance(value, (str, int)):
            return repr(value)
        key = type(value), value
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._made(value)
        return found

    def _made(self, value: object) -> str:
        if isinstance(value, m.Test):
            return f"{self.text(value.field)}{value.values.bounds}"
        if isinstance(value, m.Field):
            return f"{value.name!r}/{value.size}/{value.kind.value}/{value.names}"
        if isinstance(value, IntervalSet):
            return repr(value.bounds)
        if isinstance(value, Enum):
            return str(value)
        if isinstance(value, frozenset):
            return f"{{{','.join(sorted(self.text(one) for one in value))}}}"
        if isinstance(value, tuple):
            return f"{type(value).__name__}({','.join([self.text(one) for one in value])})"
        if is_dataclass(value):
            return f"{type(value).__name__}({','.join([self.text(getattr(value, f.name)) for f in fields(value)])})"
        raise TypeError(f"no part of a rule: {value!r}")


class Part(NamedTuple):
    """Some rules as a digest of their text, in which ``tests``, ``targets``, ``interfaces`` (tests of interfaces) and
    ``zones`` stand by their numbers, and ``lookups`` (maps over an interface) without their entries.
    """

    digest: str
    tests: tuple[m.Test, ...]
    targets: tuple[str, ...]
    interfaces: tuple[m.Test, ...]
    lookups: tuple[m.VerdictMap | m.SetZone, ...]
    zones: tuple[int, ...]


class Pen:
    """Writes rules as a part."""

    def __init__(self, residuals: Residuals, verbatim: Verbatim) -> None:
        self._residuals = residuals
        self._verbatim = verbatim
        self._texts: list[str] = []
        self._tests: dict[m.Test, int] = {}
        self._targets: dict[str, int] = {}
        self._zones: dict[int, int] = {}
        self._interfaces: list[m.Test] = []
        self._lookups: list[m.VerdictMap | m.SetZone] = []

    @property
    def met_interfaces(self) -> bool:
        """Whether some rule asks for an interface."""
        return bool(self._interfaces or self._lookups)

    def part(self) -> Part:
        """Return what was written. Raises NoKeyError."""
        if len(self._interfaces) > MAX_INTERFACE_TESTS:
            raise NoKeyError
        return Part(
            digest("".join(self._texts)),
            tuple(self._tests),
            tuple(self._targets),
            tuple(self._interfaces),
            tuple(self._lookups),
            tuple(self._zones),
        )

    def write(self, value: object) -> None:
        """Write a fact word for word."""
        self._texts.append(self._verbatim.text(value))

    def rule(self, rule: m.Rule) -> None:
        """Write a rule, unless it does nothing that counts."""
        verdict = rule.verdict
        effects = [effect for effect in rule.effects if not self._is_void(effect)] if rule.effects else ()
        # a guard with nothing behind it has no effect
        if verdict is None and all(isinstance(effect, m.Guard) for effect in effects):
            return
        texts, tests = self._texts, self._tests
        texts.append("\n")
        for condition in rule.conditions:
            if type(condition) is m.Test and (on := condition.field) in RENAMED:  # as in condition(): nearly all are
                place = tests.get(condition)
                if place is None:
                    place = tests[condition] = len(tests)
                texts.append(f"{on.name}#{place};")
            else:
                texts.append(self.condition(condition))
        for effect in effects:
            texts.append(self.effect(effect))
        texts.append(_PLAIN.get(id(verdict)) or self.end(verdict))

    def condition(self, condition: m.Condition) -> str:
        """Return a condition."""
        if isinstance(condition, m.Test):
            on = condition.field
            if on in RENAMED:
                return f"{on.name}#{self._tests.setdefault(condition, len(self._tests))};"
            if on in IS_INTERFACE:
                # decided for each NIC apart: the text has only its place
                self._interfaces.append(condition)
                return f"{on.name}@;"
            return self._verbatim.text(condition)
        if isinstance(condition, m.Not):
            return f"not({self.condition(condition.of)})"
        return f"{type(condition).__name__}({''.join([self.condition(part) for part in condition.of])})"

    def end(self, verdict: m.Verdict | None) -> str:
        """Return a verdict."""
        if not isinstance(verdict, m.VerdictMap):
            return self.verdict(verdict)
        index = verdict.index
        if index is not None and index[0] in IS_INTERFACE:
            self._lookups.append(verdict)
            return f"map {index[0].name}"
        return f"map({''.join([self.condition(one) + self.verdict(end) for one, end in verdict.entries])})"

    def verdict(self, verdict: m.PlainVerdict | None) -> str:
        """Return a verdict that is no map."""
        if isinstance(verdict, (m.Jump, m.Goto)):
            return f"{type(verdict).__name__}{self._targets.setdefault(verdict.chain, len(self._targets))};"
        if isinstance(verdict, m.Nat):
            # values that translation gives are compared like tested ones
            return self._verbatim.text(verdict) + "".join(map(self.condition, _given(verdict)))
        return self._verbatim.text(verdict)

    def effect(self, effect: m.Effect) -> str:
        """Return an effect. Raises NoKeyError."""
        match effect:
            case m.Guard(condition):
                return f"guard({self.condition(condition)})"
            case m.SetMark(target, keep, flip):
                mask = self._mask(target)
                return f"mark {target} {keep & mask} {flip & mask}"
            case m.CopyMark(target, keep, take):
                mask = self._mask(target)
                return f"copy mark {target} {keep & mask} {take & mask}"
            case m.SetZone():
                return self.zone(effect)
            case m.SetField(on, value) if on in RENAMED and on in self._residuals.later.fields:
                if not isinstance(value, int):
                    raise NoKeyError
                return self._verbatim.text(effect) + self.condition(m.equals(on, value))
            case _:
                return self._verbatim.text(effect)

    def zone(self, effect: m.SetZone) -> str:
        """Return the effect of giving a zone."""
        text = f"zone {effect.original} {effect.reply}"
        index = effect.index
        if index is not None and index[0] in IS_INTERFACE:
            self._lookups.append(effect)
            return f"{text} map {index[0].name}"
        zones = self._zones
        made = [f"{self.condition(one)}{zones.setdefault(zone, len(zones))};" for one, zone in effect.entries]
        return f"{text}({''.join(made)})"

    def _is_void(self, effect: m.Effect) -> bool:
        """Whether :meth:`~.actions.ActionMaker.effect` makes nothing of an effect, in whatever context."""
        residuals = self._residuals
        match effect:
            case m.SetMark(target, keep, flip):
                mask = self._mask(target)
                return keep & mask == mask and not flip & mask
            case m.CopyMark(target, keep, take):
                mask = self._mask(target)
                return keep & mask == mask and not take & mask
            case m.Log() | m.Alter():
                return not residuals.strict
            case m.UpdateSet(name):
                return not residuals.strict and name not in residuals.later.sets
            case m.SetField(on):
                return not residuals.strict and on not in residuals.later.fields
            case _:
                return False

    def _mask(self, target: m.MarkTarget) -> int:
        """Return the bits of a mark that matter."""
        return sum(1 << place for place, bit in enumerate(target.bits) if bit in self._residuals.tracked)


def _given(nat: m.Nat) -> Iterator[m.Test]:
    """Yield tests of the values that address translation may give to a field."""
    if nat.addresses is not None:
        yield from (m.equals(on, nat.addresses[0]) for on in (m.SADDR4, m.DADDR4, m.SADDR6, m.DADDR6))
    if nat.ports is not None:
        yield from (m.equals(on, nat.ports[0]) for on in (m.SPORT, m.DPORT))


def digest(text: str) -> str:
    """Return a short digest of a text."""
    return hashlib.blake2b(text.encode(), digest_size=24).hexdigest()


_PLAIN = {id(one): Verbatim().text(one) for one in (m.ACCEPT, m.DROP, m.RETURN)}
"""The texts of the most frequent verdicts, which are mostly these objects."""


# --- chains -------------------------------------------------------------------------------------------------------


class Chain(NamedTuple):
    """A chain: the parts that all packets meet, and others by an interface that their rules ask for, both by number."""

    others: Mapping[int, Part]
    by_interface: Mapping[int, Mapping[int, Part]] = {}

    def parts(self, interfaces: Sequence[int]) -> list[Part]:
        """Return the parts that packets with these interfaces may meet, in order."""
        if not self.by_interface:
            return list(self.others.values())
        found = dict(self.others)
        for number in interfaces:
            found |= self.by_interface.get(number, {})
        return [found[number] for number in sorted(found)]


class Chains:
    """The chains of one table."""

    def __init__(self, table: m.Table, residuals: Residuals, verbatim: Verbatim) -> None:
        self.table = table
        self._residuals = residuals
        self._verbatim = verbatim
        self._known: dict[str, Chain] = {}
        self._roots: dict[frozenset[m.Point], list[str]] = {}

    def roots(self, points: frozenset[m.Point]) -> list[str]:
        """Return the names of the base chains at these points."""
        found = self._roots.get(points)
        if found is None:
            chains = self.table.chains.items()
            found = [name for name, chain in chains if chain.hook is not None and chain.hook.point in points]
            self._roots[points] = found
        return found

    def chain(self, name: str) -> Chain:
        """Return a chain. Raises NoKeyError."""
        found = self._known.get(name)
        if found is None:
            found = self._known[name] = self._made(name)
        return found

    def _made(self, name: str) -> Chain:
        chain = self.table.chains.get(name)
        if chain is None:  # no proof ends that meets a chain which is not there
            raise NoKeyError
        head = self._pen(chain)
        for rule in chain.rules:
            head.rule(rule)
            if head.met_interfaces:
                break
        else:
            # no rule asks for an interface: all NICs meet the whole chain
            return Chain({0: head.part()})
        others = {0: self._pen(chain).part()}
        by_interface: dict[int, dict[int, Part]] = {}
        for number, rule in enumerate(chain.rules, 1):
            pen = Pen(self._residuals, self._verbatim)
            pen.rule(rule)
            part = pen.part()
            of = interfaces_of(rule)
            if of is None:
                others[number] = part
            for interface in of or ():
                by_interface.setdefault(interface, {})[number] = part
        return Chain(others, by_interface)

    def _pen(self, chain: m.Chain) -> Pen:
        pen = Pen(self._residuals, self._verbatim)
        pen.write((chain.policy, chain.hook))
        return pen


def interfaces_of(rule: m.Rule) -> tuple[int, ...] | None:
    """Return the few interfaces of which a rule asks for one; None where it asks for no few."""
    for condition in rule.conditions:
        if isinstance(condition, m.Test) and condition.field in IS_INTERFACE:
            values = condition.values
            if values.bounds and values.count() <= MAX_SINGLES:
                return tuple(value for first, last in values for value in range(first, last + 1))
    return None
