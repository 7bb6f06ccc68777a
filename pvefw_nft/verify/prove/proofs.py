"""Proofs kept from one comparison to the next: which NICs need not be proved again, and why a hit equals a recompute.

The proof of a guest's NIC depends on the rules that its packets can meet on the NIC's ways, and on a few facts of both
rulesets as a whole. A :class:`Keys` makes a digest of all that for each NIC; where a digest was proved before, by the
same prover, so is the NIC. Only proofs are kept by which no packet is treated otherwise, and which compared everything.

Which rules count is an over-approximation: from the base chains on the ways, whatever a rule leads to, except rules and
entries of verdict maps that ask for an interface which no stage of the ways has. Such a rule is void in every program
that the proof makes. Whether the interfaces and hooks assumed here are those of the ways is checked where a NIC is
proved (:meth:`Keys.covers`), so a proof is kept only under a key that holds for it.

Example: a changed rule of VM 100 changes the key of VM 100. A changed rule of a security group changes the keys of the
guests that use it. A new set of the cluster changes no key until a rule names it.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pvefw_nft.verify import model as m
from pvefw_nft.verify.model.intervals import IntervalSet
from pvefw_nft.verify.network.path import NicEnd, PortEnd
from pvefw_nft.verify.prove.program import INTERFACES
from pvefw_nft.verify.simulate.tracking import sets_zone

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pvefw_nft.verify.network.path import End, Nic, Stage
    from pvefw_nft.verify.prove.flows import PathPair, Side
    from pvefw_nft.verify.prove.network import Network
    from pvefw_nft.verify.simulate.tracking import Zone

MAX_SINGLES = 8
"""A rule that asks for at most so many interfaces by name is left out of the keys of NICs that have none of them."""

_BRIDGED = frozenset((m.Point.PREROUTING, m.Point.FORWARD, m.Point.POSTROUTING))
_EVERYWHERE = frozenset(m.Point)


class Proof(NamedTuple):
    """The proof of a NIC: both sides treat every packet alike in its segments.

    ``marked``: packets may leave with different marks, which counts where some segment looks at earlier marks;
    ``looks``: one of these does. ``ways`` and ``pairs`` are what a report counts, ``zones`` the pairs of zones of both
    sides' lookups.
    """

    ways: int
    pairs: int
    marked: bool
    looks: bool
    zones: frozenset[tuple[Zone, Zone]]


class Proofs(Protocol):
    """Where proofs are kept, by key."""

    def load(self) -> Mapping[str, Proof]:
        """Return what was proved before."""

    def save(self, used: Mapping[str, Proof]) -> None:
        """Keep what a comparison used: proofs found and proofs made."""


class NoProofs:
    """Keeps nothing."""

    def load(self) -> Mapping[str, Proof]:
        """Return nothing."""
        return {}

    def save(self, used: Mapping[str, Proof]) -> None:
        """Keep nothing."""


NO_PROOFS = NoProofs()


@cache
def prover_digest() -> str:
    """Return a digest of this prover: of Python's version and of the sources of :mod:`pvefw_nft.verify`.

    Raises OSError where they cannot be read.
    """
    found = hashlib.sha256(sys.version.encode())
    folder = Path(__file__).resolve().parent.parent
    sources = sorted(folder.rglob("*.py"))
    if not sources:
        raise FileNotFoundError(folder)
    for file in sources:
        content = file.read_bytes()
        found.update(f"\0{file.relative_to(folder)}\0{len(content)}\0".encode())
        found.update(content)
    return found.hexdigest()


# --- rules as text ------------------------------------------------------------------------------------------------


class Writer:
    """Writes rules as text: equal texts mean equal rules, in any process."""

    def __init__(self) -> None:
        self._tests: dict[m.Test, str] = {}
        self._others: dict[tuple[type[object], object], str] = {}

    def rule(self, rule: m.Rule) -> str:
        """Return conditions, effects and verdict of a rule; where it comes from does not count."""
        return f"{self.tuple(rule.conditions)}{self.tuple(rule.effects)}{self.text(rule.verdict)}"

    def tuple(self, values: Iterable[object]) -> str:
        """Return values in their order."""
        return f"({','.join([self.text(value) for value in values])})"

    def text(self, value: object) -> str:
        """Return any part of a rule. Raises TypeError for what is none."""
        if isinstance(value, m.Test):
            found = self._tests.get(value)
            if found is None:
                found = self._tests[value] = f"{self._made(value.field)}{value.values.bounds}"
            return found
        if value is None or isinstance(value, (str, int)):
            return repr(value)
        key = type(value), value
        found = self._others.get(key)
        if found is None:
            found = self._others[key] = self._made(value)
        return found

    def _made(self, value: object) -> str:
        if isinstance(value, m.Field):
            return f"{value.name!r}/{value.size}/{value.kind.value}/{value.names}"
        if isinstance(value, IntervalSet):
            return repr(value.bounds)
        if isinstance(value, Enum):
            return str(value)
        if isinstance(value, frozenset):
            return f"{{{','.join(sorted(self.text(one) for one in value))}}}"
        if isinstance(value, tuple):
            return f"{type(value).__name__}{self.tuple(value)}"
        if is_dataclass(value):
            return f"{type(value).__name__}{self.tuple(getattr(value, one.name) for one in fields(value))}"
        raise TypeError(f"no part of a rule: {value!r}")


# --- chains -------------------------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """A rule of a dispatch chain: its number, its digest, and the chains that it leads to.

    ``entries``: of a verdict map over an interface, the entries, which ``digest`` and ``targets`` leave out.
    """

    number: int
    digest: bytes
    targets: tuple[str, ...]
    entries: m.VerdictMap | None = None


class _Chain(NamedTuple):
    """A chain: the digest of its rules and the chains they lead to; of a dispatch chain, ``parts`` by interface."""

    digest: bytes
    targets: tuple[str, ...]
    others: tuple[_Part, ...] = ()
    by_interface: Mapping[int, tuple[_Part, ...]] = {}


class _Chains:
    """The chains of one table."""

    def __init__(self, table: m.Table, writer: Writer) -> None:
        self._table = table
        self._writer = writer
        self._known: dict[str, _Chain] = {}

    def reach(self, start: Iterable[str], interfaces: Sequence[int]) -> Iterator[bytes]:
        """Yield digests of all that packets with these interfaces can meet from these chains on."""
        todo = list(start)
        seen = set(todo)
        while todo:
            name = todo.pop()
            chain = self._chain(name)
            yield f"chain {name}".encode()
            yield chain.digest
            targets = list(chain.targets)
            for part in self._parts(chain, interfaces):
                yield b"rule"
                yield part.digest
                targets += part.targets
                for verdict in _entries(part.entries, interfaces):
                    yield self._writer.text(verdict).encode()
                    targets += m.targets(verdict)
            new = [target for target in dict.fromkeys(targets) if target not in seen]
            seen.update(new)
            todo += new

    @staticmethod
    def _parts(chain: _Chain, interfaces: Sequence[int]) -> list[_Part]:
        if not chain.by_interface:
            return list(chain.others)
        found = {part.number: part for part in chain.others}
        for number in interfaces:
            found |= {part.number: part for part in chain.by_interface.get(number, ())}
        return [found[number] for number in sorted(found)]

    def _chain(self, name: str) -> _Chain:
        found = self._known.get(name)
        if found is None:
            there = self._table.chains.get(name)  # no proof ends that meets a chain which is not there
            found = self._known[name] = _Chain(b"missing", ()) if there is None else self._made(there)
        return found

    def _made(self, chain: m.Chain) -> _Chain:
        head = self._writer.tuple((chain.policy, chain.hook))
        singles = [_interfaces(rule) for rule in chain.rules]
        if not any(singles) and not any(_is_map(rule.verdict) for rule in chain.rules):
            texts = [head, *[self._writer.rule(rule) for rule in chain.rules]]
            targets = dict.fromkeys(target for rule in chain.rules for target in m.targets(rule.verdict))
            return _Chain(_digest("\n".join(texts)), tuple(targets))
        others: list[_Part] = []
        by_interface: dict[int, list[_Part]] = {}
        for number, (rule, of) in enumerate(zip(chain.rules, singles, strict=True)):
            part = self._part(number, rule)
            for interface in of or ():
                by_interface.setdefault(interface, []).append(part)
            if of is None:
                others.append(part)
        indexed = {interface: tuple(parts) for interface, parts in by_interface.items()}
        return _Chain(_digest(head), (), tuple(others), indexed)

    def _part(self, number: int, rule: m.Rule) -> _Part:
        if isinstance(rule.verdict, m.VerdictMap) and _is_map(rule.verdict):
            on = rule.verdict.index[0] if rule.verdict.index else None
            text = self._writer.tuple((rule.conditions, rule.effects, on))
            return _Part(number, _digest(text), (), rule.verdict)
        return _Part(number, _digest(self._writer.rule(rule)), tuple(m.targets(rule.verdict)))


def _interfaces(rule: m.Rule) -> tuple[int, ...] | None:
    """Return the few interfaces of which a rule asks for one; None where it asks for no few."""
    for condition in rule.conditions:
        if isinstance(condition, m.Test) and condition.field in INTERFACES:
            values = condition.values
            if values.bounds and values.count() <= MAX_SINGLES:
                return tuple(value for first, last in values for value in range(first, last + 1))
    return None


def _is_map(verdict: m.Verdict | None) -> bool:
    """Whether a verdict is a map over an interface."""
    return isinstance(verdict, m.VerdictMap) and verdict.index is not None and verdict.index[0] in INTERFACES


def _entries(lookup: m.VerdictMap | None, interfaces: Sequence[int]) -> Iterator[m.Verdict | None]:
    """Yield the entry of a map over an interface for each of these."""
    if lookup is not None and lookup.index is not None:
        on = lookup.index[0]
        for number in interfaces:
            yield lookup.lookup({on: number})


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=24).digest()


# --- keys ---------------------------------------------------------------------------------------------------------


class _Rules:
    """The rules of one side."""

    def __init__(self, side: Side, writer: Writer) -> None:
        self.topology = side.topology
        self._model = side.model
        self._chains = [_Chains(table, writer) for table in side.model.tables]
        named = [link.name for link in side.topology.links]
        named += [port for link in side.topology.links for port in link.ports]
        self._common = frozenset(m.interface_number(name) for name in named) | {0, m.NO_INTERFACE}

    def interfaces(self, nic: Nic) -> frozenset[int]:
        """Return the interfaces that stages of a NIC's ways may have, and maybe others."""
        names = (nic.interface, nic.port, nic.link, nic.firewall_bridge, nic.bridge)
        return self._common | {m.interface_number(name) for name in names}

    def reach(self, points: frozenset[m.Point], interfaces: Sequence[int]) -> Iterator[bytes]:
        """Yield digests of all rules that packets with these interfaces can meet at these points."""
        for table, chains in zip(self._model.tables, self._chains, strict=True):
            roots = [c.name for c in table.chains.values() if c.hook is not None and c.hook.point in points]
            yield b"table"
            yield from chains.reach(roots, interfaces)

    def everything(self, writer: Writer) -> Iterator[str]:
        """Yield the facts of the whole ruleset that count for each NIC: its base chains, and all that set zones."""
        for table in self._model.tables:
            yield writer.text(table.key)
            for name, chain in table.chains.items():
                if chain.hook is not None:
                    yield writer.tuple((name, chain.hook, chain.policy))
                    if sets_zone(table, name):
                        yield from self._all_rules(table, name, writer)

    @staticmethod
    def _all_rules(table: m.Table, start: str, writer: Writer) -> Iterator[str]:
        """Yield a chain and those it leads to, whole."""
        todo, seen = [start], {start}
        while todo:
            chain = table.chains.get(todo.pop())
            if chain is None:
                continue
            yield writer.tuple(("zones", chain.name, chain.policy))
            for rule in chain.rules:
                yield writer.rule(rule)
                new = [target for target in dict.fromkeys(m.targets(rule.verdict)) if target not in seen]
                seen.update(new)
                todo += new


class Keys:
    """Gives NICs their keys. ``settings`` are all facts, besides rules, network and prover, that proofs depend on.

    Raises OSError where the sources of the prover cannot be read.
    """

    def __init__(self, sides: tuple[Side, Side], network: Network, settings: Iterable[object]) -> None:
        self._writer = writer = Writer()
        self._network = network
        self._rules = tuple(_Rules(side, writer) for side in sides)
        common = [prover_digest(), *[writer.text(one) for one in settings]]
        for rules, topology in zip(self._rules, (network.before, network.after), strict=True):
            common.append(repr(replace(topology, nics=(), elsewhere=())))
            common += rules.everything(writer)
        self._common = _digest("\0".join(common))

    def key(self, nic: Nic, peer: End) -> str:
        """Return the key of a NIC whose ways lead to and from ``peer``."""
        found = hashlib.blake2b(self._common, digest_size=32)
        counterpart = self._counterpart(nic)
        found.update(f"{nic!r}\0{counterpart!r}\0{peer!r}\0{self._network.counterparts.get(peer, peer)!r}".encode())
        for rules, one in zip(self._rules, (nic, counterpart), strict=True):
            interfaces = sorted(rules.interfaces(one))
            for part in rules.reach(self._points(nic, peer), interfaces):
                found.update(len(part).to_bytes(4, "big"))
                found.update(part)
        return found.hexdigest()

    def covers(self, nic: Nic, peer: End, ways: Iterable[PathPair]) -> bool:
        """Return whether a NIC's key takes in all hooks and interfaces of its ways."""
        points = self._points(nic, peer)
        for way in ways:
            sides = ((*way.before, *way.back_before), (*way.after, *way.back_after))
            for rules, one, stages in zip(self._rules, (nic, self._counterpart(nic)), sides, strict=True):
                interfaces = rules.interfaces(one)
                if not all(_within(stage, points, interfaces) for stage in stages):
                    return False
        return True

    def _counterpart(self, nic: Nic) -> Nic:
        end = self._network.counterparts.get(NicEnd(nic))
        return end.nic if isinstance(end, NicEnd) else nic

    @staticmethod
    def _points(nic: Nic, peer: End) -> frozenset[m.Point]:
        return _BRIDGED if isinstance(peer, PortEnd) and peer.bridge == nic.bridge else _EVERYWHERE


def _within(stage: Stage, points: frozenset[m.Point], interfaces: frozenset[int]) -> bool:
    return stage.point in points and all(value in interfaces for on, value in stage.fields if on in INTERFACES)
