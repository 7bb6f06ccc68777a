"""Keys of NICs: equal for NICs whose proofs are the same but for names and numbers, so that one proof is enough.

The proof of a NIC depends on the stages of its ways, on the rules that its packets can meet there, and on a few facts
of both rulesets as a whole. A key is a digest of all that, in which are written by *place*, the number of the first
appearance:

====================================  =================================================================================
written by place                      the key also has
====================================  =================================================================================
the NIC's interfaces, by their role   of each test of an interface, which of the interfaces on the NIC's ways fulfil it
chains                                their rules, in order
tests of addresses and ports          how the values overlap (:func:`~pvefw_nft.verify.prove.shapes.overlaps`)
zones of connection tracking          which of them are zone 0
====================================  =================================================================================

All else is written word for word. Two NICs with the same key have the same result, for these reasons:

- *Interfaces.* Every interface is known at every stage, so a test of one is decided before the proof, by membership
  alone; and the key has these memberships. A rule, or an entry of a map, that asks for interfaces which no stage of the
  ways has is void, and is left out. Any interface on the ways that is not among those looked at means: no key.
- *Chains.* A proof follows calls, and never reads the name of a chain.
- *Addresses and ports.* What specialising does with the values of such tests is Boolean: it intersects and joins sets,
  and asks whether one is empty, is everything, equals another or has a given value. If all tests of one NIC overlap
  like the tests of the other, place by place, each Boolean expression of the one corresponds to the same expression
  of the other, empty just where the other is. So the programs correspond step by step, and then so do their diagrams,
  as for :mod:`.shapes`. All values that come in from elsewhere are among the tests of the key: the host's own MAC
  address, multicast and broadcast addresses, and the values that rules give to such a field (address translation).
- *Zones.* They are compared with one another and with zone 0, nothing else
  (:mod:`~pvefw_nft.verify.simulate.tracking`). The key says which base chains lead to a rule that sets one. The pairs
  of zones that a proof has met are kept by place, and read as the zones of the NIC at hand.
- *Effects.* Effects that no verdict depends on are left out, as specialising does (:mod:`.actions`): logs, and bits of
  marks that no rule tests. In a strict comparison every effect counts.

Example: guests 100 and 101 have ``-A tapNNNi0-IN -s 10.0.NNN.0/24 -p tcp --dport 80 -j ACCEPT``, each with its number:
the same key. If the two rules of a guest overlap, such as ports 80 and 1-1023, and the two rules of another do not, the
keys differ.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from pvefw_nft.verify import model as m
from pvefw_nft.verify.network.path import NicEnd, PortEnd
from pvefw_nft.verify.prove.backend_differences import kind_condition
from pvefw_nft.verify.prove.chain_memo import NicKey
from pvefw_nft.verify.prove.closures import Closures
from pvefw_nft.verify.prove.counterexamples import tests_of_possible
from pvefw_nft.verify.prove.key_parts import IS_INTERFACE, Chains, NoKeyError, Verbatim, digest
from pvefw_nft.verify.prove.program import CAST
from pvefw_nft.verify.prove.shapes import RENAMED, overlaps
from pvefw_nft.verify.simulate.packet import HOST_MAC
from pvefw_nft.verify.simulate.tracking import leads_to_setter, zone_setters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pvefw_nft.verify.network.path import End, Nic, Stage, Topology
    from pvefw_nft.verify.prove.backend_differences import Exceptions
    from pvefw_nft.verify.prove.exploration import Exploration
    from pvefw_nft.verify.prove.flows import PathPair
    from pvefw_nft.verify.prove.network import Side
    from pvefw_nft.verify.prove.specialise import Residuals

BRIDGED = frozenset((m.Point.PREROUTING, m.Point.FORWARD, m.Point.POSTROUTING))
_EVERYWHERE = frozenset(m.Point)


# --- the facts of one NIC -----------------------------------------------------------------------------------------


class _Places:
    """Numbers by first appearance, for one NIC: tests on both sides, zones on each."""

    def __init__(self) -> None:
        self.tests: dict[m.Test, int] = {}
        self.zones: tuple[dict[int, int], dict[int, int]] = ({0: 0}, {0: 0})


class _Side:
    """The rules and the interfaces of one side."""

    def __init__(self, side: Side, topology: Topology, residuals: Residuals, verbatim: Verbatim) -> None:
        self._verbatim = verbatim
        self._chains = [Chains(table, residuals, verbatim) for table in side.model.tables]
        self._closures = [Closures(chains, verbatim) for chains in self._chains]
        named = [link.name for link in topology.links]
        named += [port for link in topology.links for port in link.ports]
        self._common = tuple(sorted({0, m.NO_INTERFACE, *(m.interface_number(name) for name in named)}))
        self._of_all = frozenset(self._common)
        self._of_common: dict[m.Test, tuple[int, ...]] = {}

    def interfaces(self, nic: Nic) -> tuple[int, ...]:
        """Return the interfaces that stages of a NIC's ways may have, by role, and maybe others."""
        names = (nic.interface, nic.port, nic.link, nic.firewall_bridge, nic.bridge)
        return (*(m.interface_number(name) for name in names), *self._common)

    def own_names(self, interfaces: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return the interfaces of a NIC, its bridge the last; None: another device on its ways has one's name, too."""
        own = interfaces[: len(interfaces) - len(self._common)]
        return own if len({*own}) == len(own) and self._of_all.isdisjoint(own[:-1]) else None

    def rules(
        self, points: frozenset[m.Point], interfaces: tuple[int, ...], tests: dict[m.Test, int], zones: dict[int, int]
    ) -> list[object]:
        """Return all rules that packets with these interfaces can meet at these points. Raises NoKeyError.

        The digest of a part tells how many places follow it.
        """
        found: list[object] = []
        for chains in self._chains:
            found.append("table")
            todo = list(chains.roots(points))
            numbers = {name: number for number, name in enumerate(todo)}
            while todo:
                name = todo.pop()
                found.append(numbers[name])
                for part in chains.chain(name).parts(interfaces):
                    part_digest, part_tests, targets, part_interfaces, lookups, part_zones = part
                    found.append(part_digest)
                    if part_tests:
                        found += [tests.setdefault(test, len(tests)) for test in part_tests]
                    if part_interfaces:
                        found += [self._membership(test, interfaces) for test in part_interfaces]
                    if part_zones:
                        found += [zones.setdefault(zone, len(zones)) for zone in part_zones]
                    for lookup in lookups:
                        entries, more = self._entries(lookup, interfaces, zones)
                        found.append(entries)
                        targets += more
                    for target in targets:
                        number = numbers.get(target)
                        if number is None:
                            number = numbers[target] = len(numbers)
                            todo.append(target)
                        found.append(number)
        return found

    def contents(self, points: frozenset[m.Point], interfaces: tuple[int, ...]) -> list[object]:
        """Return digests of all that :meth:`rules` reads for these arguments, and more. Raises NoKeyError.

        Chains that are known by digest are not read. What :meth:`rules` returns is a function of this list, of
        ``interfaces``, and of the facts that are the same for all NICs.
        """
        found: list[object] = []
        for chains, closures in zip(self._chains, self._closures, strict=True):
            found.append("table")
            found += closures.all_met(chains.roots(points), interfaces, len(self._common))
        return found

    def _membership(self, test: m.Test, interfaces: tuple[int, ...]) -> tuple[int, ...]:
        """Return the places of the interfaces that fulfil a test."""
        values = test.values
        own = len(interfaces) - len(self._common)
        of_common = self._of_common.get(test)
        if of_common is None:
            of_common = tuple([place for place, number in enumerate(self._common, own) if number in values])
            self._of_common[test] = of_common
        of_own = tuple([place for place, number in enumerate(interfaces[:own]) if number in values])
        return of_own + of_common

    def _entries(
        self, lookup: m.VerdictMap | m.SetZone, interfaces: tuple[int, ...], zones: dict[int, int]
    ) -> tuple[list[object], tuple[str, ...]]:
        """Return the entry of a map over an interface for each of these, and the chains that entries lead to."""
        index = lookup.index
        assert index is not None
        found: list[object] = []
        targets: list[str] = []
        for number in interfaces:
            if isinstance(lookup, m.SetZone):
                given = [zone for _, zone in lookup.choices({index[0]: number})]
                found.append([zones.setdefault(zone, len(zones)) for zone in given])
                continue
            verdict = lookup.lookup({index[0]: number})
            if isinstance(verdict, m.Nat):
                raise NoKeyError
            if isinstance(verdict, (m.Jump, m.Goto)):
                targets.append(verdict.chain)
                found.append(type(verdict).__name__)
            else:
                found.append(self._verbatim.text(verdict))
        return found, tuple(targets)


class Keys:
    """Gives NICs their keys. ``settings`` are all facts, besides rules and network, that proofs depend on."""

    def __init__(self, explored: Exploration, exceptions: Exceptions, settings: Iterable[object]) -> None:
        verbatim = Verbatim()
        self._verbatim = verbatim
        self._network = network = explored.network
        topologies = (network.before, network.after)
        sides = (explored.before, explored.after)
        self._sides = [
            _Side(side, topology, explored.residuals, verbatim)
            for side, topology in zip(sides, topologies, strict=True)
        ]
        # in an order that is the same in every process: fields hash by their identity
        constants = {*constants_of_proofs(explored, exceptions)}
        self._constants = tuple(sorted(constants, key=lambda test: (test.field.name, test.values.bounds)))
        common = [verbatim.text(one) for one in (*settings, self._constants)]  # keys have the places of constants
        for side, topology in zip(sides, topologies, strict=True):
            common.append(repr(replace(topology, nics=(), elsewhere=())))
            for table in side.model.tables:
                setters = zone_setters(table)
                hooked = [name for name, chain in table.chains.items() if chain.hook is not None]
                zones = [leads_to_setter(table, name, setters) for name in hooked]
                common.append(f"{verbatim.text(table.key)}{zones}")
        self._common = digest("\0".join(common)).encode()
        self._of_kind: dict[object, str] = {}

    def known_by(self, nic: Nic, peer: End) -> str | None:
        """Return a digest of all that the key of a NIC is made of; None: it has no key.

        The ways of a NIC follow from the network, which is the same for all NICs but for the NIC itself, and the peer.
        """
        nics, points, interfaces = self._place(nic, peer)
        facts: list[object] = [nics, peer, self._network.counterparts.get(peer, peer)]
        try:
            facts += [side.contents(points, own) for side, own in zip(self._sides, interfaces, strict=True)]
        except NoKeyError:
            return None
        found = hashlib.blake2b(self._common, digest_size=32)
        found.update(repr(facts).encode(errors="surrogatepass"))
        return found.hexdigest()

    def _place(
        self, nic: Nic, peer: End
    ) -> tuple[tuple[Nic, Nic], frozenset[m.Point], tuple[tuple[int, ...], tuple[int, ...]]]:
        """Return a NIC as both sides have it, the points of its ways, and its interfaces on both sides."""
        other = self._network.counterparts.get(NicEnd(nic))
        nics = (nic, other.nic if isinstance(other, NicEnd) else nic)
        points = BRIDGED if isinstance(peer, PortEnd) and peer.bridge == nic.bridge else _EVERYWHERE
        before, after = self._sides
        return nics, points, (before.interfaces(nics[0]), after.interfaces(nics[1]))

    def key(self, nic: Nic, peer: End, ways: Callable[[], Sequence[PathPair] | None]) -> NicKey | None:
        """Return the key of a NIC whose ``ways`` lead to and from ``peer``; None: it has none."""
        try:
            return self._key(nic, peer, ways)
        except NoKeyError:
            return None

    def _key(self, nic: Nic, peer: End, ways: Callable[[], Sequence[PathPair] | None]) -> NicKey:
        nics, points, interfaces = self._place(nic, peer)
        places = _Places()
        facts: list[object] = [repr(peer), repr(self._network.counterparts.get(peer, peer))]
        facts += [(one.bridge, one.filtered, one.tag, one.trunks) for one in nics]
        facts.append(self._stages_of(nics, peer, points, interfaces, ways))
        for side, numbers, zones in zip(self._sides, interfaces, places.zones, strict=True):
            facts += side.rules(points, numbers, places.tests, zones)
        tests = places.tests
        asked = {test.field for test in tests}
        constants = [test for test in self._constants if test.field in asked]  # overlaps of others are the same for all
        facts.append([(test.field.name, tests.setdefault(test, len(tests))) for test in constants])
        facts.append([(str(on), sorted(met)) for on, met in overlaps(tests)])
        found = hashlib.blake2b(self._common, digest_size=32)
        found.update(repr(facts).encode())
        return NicKey(found.hexdigest(), (tuple(places.zones[0]), tuple(places.zones[1])))

    def _stages_of(
        self,
        nics: tuple[Nic, Nic],
        peer: End,
        points: frozenset[m.Point],
        interfaces: Sequence[tuple[int, ...]],
        ways: Callable[[], Sequence[PathPair] | None],
    ) -> str:
        """Return the facts of the stages of a NIC's ways. Raises NoKeyError.

        Of a NIC, ways depend on its bridge, on how frames are tagged there, and on the names of its interfaces. With
        names of its own, the same on both sides, which no other device on the ways has, only these names tell them
        apart from the ways of another NIC. The facts have no names, so those of the first NIC of a kind hold for the
        others.
        """
        kind = tuple((one.bridge, one.filtered, one.tag, one.trunks) for one in nics), peer
        before, after = (side.own_names(numbers) for side, numbers in zip(self._sides, interfaces, strict=True))
        named = before is not None and before == after
        found = self._of_kind.get(kind) if named else None
        if found is None:
            made = ways()
            if made is None:
                raise NoKeyError
            found = repr([*self._stages(made, points, interfaces)])
            if named:
                self._of_kind[kind] = found
        return found

    def _stages(
        self, ways: Sequence[PathPair], points: frozenset[m.Point], interfaces: Sequence[tuple[int, ...]]
    ) -> Iterator[object]:
        """Yield the stages of ways, with interfaces by role and hops by place. Raises NoKeyError."""
        hops: dict[str, int] = {}
        seen: tuple[list[tuple[Stage, ...]], ...] = ([], [])
        roles = [{number: role for role, number in reversed(list(enumerate(numbers)))} for numbers in interfaces]
        for way in ways:
            yield type(way.source).__name__, type(way.destination).__name__, way.routed, way.segments is None
            for side, paths in enumerate(((way.before, way.back_before), (way.after, way.back_after))):
                for path in paths:
                    if path in seen[side]:  # the way back of the one way is the other way
                        yield seen[side].index(path)
                        continue
                    seen[side].append(path)
                    yield "path"
                    for stage in path:
                        yield self._stage(stage, points, roles[side]), hops.setdefault(stage.hop, len(hops))

    def _stage(self, stage: Stage, points: frozenset[m.Point], roles: Mapping[int, int]) -> tuple[object, ...]:
        if stage.point not in points:
            raise NoKeyError
        seen = []
        for on, value in stage.fields:
            if on in IS_INTERFACE:
                role = roles.get(value)
                if role is None:
                    raise NoKeyError
                seen.append((on.name, role))
            else:
                seen.append((on.name, value))
        return (
            stage.family.value,
            stage.point.value,
            stage.unicast,
            stage.first,
            stage.last,
            stage.from_host,
            stage.untagged,
            self._verbatim.text(stage.when),
            seen,
        )


def constants_of_proofs(explored: Exploration, exceptions: Exceptions) -> Iterator[m.Test]:
    """Yield tests of addresses and ports that a proof makes besides the tests of the rules."""
    yield m.equals(m.ETHER_SRC, HOST_MAC)
    sets = explored.tested.sets
    for on in (m.SADDR_TYPE, m.DADDR_TYPE):
        for values in sets.get(on, ()) if exceptions.across else ():
            for protocol in (m.IPV4, m.IPV6):
                yield from _renamed(m.tests_of(kind_condition(m.Test(on, values), protocol)))
    present = {*sets, *RENAMED, CAST}
    for case in explored.cases:
        yield from _renamed(tests_of_possible(present, case, exceptions, usual=False))


def _renamed(tests: Iterable[m.Test]) -> Iterator[m.Test]:
    return (test for test in tests if test.field in RENAMED)
