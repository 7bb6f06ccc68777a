"""Turn differing diagrams into few, readable classes of packets, with one packet each.

A class is a cube: a set of values for each field. The search takes one path of the difference, drops fields from it and
widens the sets of the rest while all its packets differ in the same way. Then it subtracts this class from the
difference, and repeats. The first packets of ordinary connections are searched first, and described without that fact.
Other packets count only if they are not in those classes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from pvefw_nft.verify import model as m
from pvefw_nft.verify.model.intervals import IntervalSet
from pvefw_nft.verify.prove.backend_differences import BROADCASTS4, KIND, MULTICASTS4, MULTICASTS6, Exceptions
from pvefw_nft.verify.prove.program import CAST, SOMETIMES_ABSENT, TOGETHER, Case, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pvefw_nft.verify.prove.diagram import Cube
    from pvefw_nft.verify.prove.evaluate import Evaluation

MAX_CLASSES = 16
"""Classes shown of one pair of verdicts on one way."""

_MULTICAST = KIND["multicast"]
_BROADCAST = KIND["broadcast"]
_LOCAL_OR_UNICAST = IntervalSet.of(*((KIND[name],) * 2 for name in ("unicast", "local")))
_ALL_ONES = (1 << 48) - 1

_UNICAST4 = m.SADDR4.everything - BROADCASTS4 - MULTICASTS4
_UNICAST6 = m.SADDR6.everything - MULTICASTS6

USUAL: Mapping[m.Field, IntervalSet] = {
    m.CT_STATE: IntervalSet.single(m.CT_STATES.index("new")),
    m.CT_DIRECTION: IntervalSet.single(m.DEFAULTS[m.CT_DIRECTION]),
    CAST: IntervalSet.single(0),
    m.FRAGMENT: IntervalSet.single(m.DEFAULTS[m.FRAGMENT]),
    m.EXTENSION: IntervalSet.single(m.DEFAULTS[m.EXTENSION]),
    m.TCP_FLAGS: IntervalSet.single(0x02),
    m.SPORT: IntervalSet.of((1, 0xFFFF)),
    m.SADDR4: _UNICAST4,
    m.DADDR4: _UNICAST4,
    m.SADDR6: _UNICAST6,
    m.DADDR6: _UNICAST6,
    m.SADDR_TYPE: _LOCAL_OR_UNICAST,
    m.DADDR_TYPE: _LOCAL_OR_UNICAST,
}
"""The fields of the first packet of an ordinary connection, which a class does not mention. Not every default is one of
them: rules about the TTL, say, are rare enough to be mentioned always.
"""

_KEEP = (m.L4PROTO, m.DPORT, m.ICMP, m.ICMP6, m.DADDR4, m.DADDR6, m.SADDR4, m.SADDR6, m.SPORT)
"""Fields that say most, best first: the last to be dropped from a class."""


class Class(NamedTuple):
    """Packets that come to ``before`` on one side and to ``after`` on the other; ``packet`` is one of them."""

    before: Outcome
    after: Outcome
    fields: tuple[tuple[m.Field, IntervalSet], ...]
    usual: bool
    packet: Mapping[m.Field, int]


def _complexity(values: IntervalSet, size: int) -> int:
    return min(len(values), len(values.complement(size)))


# --- which packets there are --------------------------------------------------------------------------------


def _present(on: m.Field) -> m.Condition:
    return m.Test(on, on.everything)


def _iff(one: m.Condition, other: m.Condition) -> m.Condition:
    return m.Any((m.All((one, other)), m.Not(m.Any((one, other)))))


def _implies(one: m.Condition, other: m.Condition) -> m.Condition:
    return m.Any((m.Not(one), other))


def possible(fields: Iterable[m.Field], case: Case, *, from_host: bool) -> Iterator[m.Condition]:
    """Yield the facts that hold for every packet, as far as these fields go: which fields it has, and how addresses and
    their kinds go together (inet_addr_type of net/ipv4/fib_frontend.c, ipv6_addr_type of net/ipv6).
    """
    present = set(fields)
    for on in present & {m.SKUID, m.SKGID}:
        yield _present(on) if from_host else m.Not(_present(on))
    if m.EXTENSION in present:
        yield m.Test(m.EXTENSION, m.EXTENSIONS | IntervalSet.single(m.NO_EXTENSION))
    for on in present & SOMETIMES_ABSENT & set(m.PRESENCE):
        whole = () if case.fragments else (m.FRAGMENT,)
        needs = [m.Test(*need) for need in m.PRESENCE[on] if need[0] not in (m.PROTOCOL, *whole)]
        yield _iff(_present(on), m.All(tuple(needs)))
    pairs = (
        (m.SADDR_TYPE, m.SADDR4, m.SADDR6),
        (m.DADDR_TYPE, m.DADDR4, m.DADDR6),
    )
    for kind, v4, v6 in pairs:
        if kind not in present:
            continue
        if case.protocol == m.IPV4:
            yield _iff(m.equals(kind, _MULTICAST), m.Test(v4, MULTICASTS4))
            yield _implies(m.Test(v4, BROADCASTS4), m.equals(kind, _BROADCAST))
        else:
            yield _iff(m.equals(kind, _MULTICAST), m.Test(v6, MULTICASTS6))
            yield m.Not(m.equals(kind, _BROADCAST))
    if {CAST, m.ETHER_DST} <= present:
        yield _iff(m.equals(CAST, 1), m.equals(m.ETHER_DST, _ALL_ONES))
        odd = IntervalSet.from_ranges((first << 40, (first + 1 << 40) - 1) for first in range(1, 256, 2))
        yield _iff(m.equals(CAST, 2), m.Test(m.ETHER_DST, odd - IntervalSet.single(_ALL_ONES)))


def tests_of_possible(
    fields: Iterable[m.Field], case: Case, exceptions: Exceptions, *, usual: bool
) -> Iterator[m.Test]:
    """Yield the tests needed to tell which packets there are, and (``usual``) which of them are ordinary."""
    present = set(fields)
    found: dict[m.Test, None] = {}
    before = -1
    while before != len(present):
        before = len(present)
        for condition in (
            *possible(present, case, from_host=False),
            *exceptions.compared(present, case),
        ):
            found |= dict.fromkeys(m.tests_of(condition))
        present |= {test.field for test in found}
    yield from found
    if usual:
        yield from (m.Test(on, values) for on, values in USUAL.items() if on in present)


# --- classes ------------------------------------------------------------------------------------------------


def pairs_of(evaluation: Evaluation, before: int, after: int, exceptions: Exceptions, case: Case) -> int:
    """Return the diagram of the pairs of outcomes of packets that differ; false where they do not."""
    space, false = evaluation.space, evaluation.false

    def pair(left: int, right: int) -> int | None:
        if left == right:
            return false
        one, two = space.values.get(left), space.values.get(right)
        if not isinstance(one, Outcome) or not isinstance(two, Outcome):
            return None
        if {one.verdict, two.verdict} == {TOGETHER.verdict, "accept"}:
            return false  # a later fragment passes, or waits for the first one, with which it is decided about it
        return false if exceptions.excused(one, two, case) else space.terminal((one, two))

    found = space.apply(pair, before, after)
    # a packet that has the mark already which only one side gives it is treated alike
    for terminal in space.terminals(found):
        cube = _unchanged(evaluation, space.values[terminal])
        if cube is not None:
            only = space.replace(found, {}, partial(_either, terminal, evaluation.true, false), {})
            same = space.select(only, space.rule(cube, evaluation.true, false), false, evaluation.true)
            found = space.select(same, false, found, evaluation.true)
    return found


def _either(wanted: int, then: int, other: int, node: int) -> int:
    return then if node == wanted else other


def _unchanged(evaluation: Evaluation, pair: object) -> Cube | None:
    """Return the packets for which two outcomes leave the same mark of the connection, since it was so before."""
    if not isinstance(pair, tuple):
        return None
    one, two = pair
    changed = set(one.assigned) ^ set(two.assigned)
    marks = {m.Field(name, 2): value for name, value in changed if name.startswith("ct mark ")}
    if not marks or len(marks) < len(changed) or (one.verdict, one.trace) != (two.verdict, two.trace):
        return None
    if not marks.keys() <= evaluation.number.keys():
        return None
    levels = sorted((evaluation.number[on], value) for on, value in marks.items())
    return tuple((level, 1 << evaluation.levels[level].atoms.atom(value)) for level, value in levels)


def differing(evaluation: Evaluation, before: int, after: int, exceptions: Exceptions, case: Case) -> bool:
    """Whether any packets differ, possible or not."""
    return pairs_of(evaluation, before, after, exceptions, case) != evaluation.false


class Explainer:
    """Takes the packets apart that two diagrams of one evaluation treat differently."""

    def __init__(
        self,
        evaluation: Evaluation,
        before: int,
        after: int,
        case: Case,
        exceptions: Exceptions,
        *,
        from_host: bool,
    ) -> None:
        self.evaluation = evaluation
        self.space = evaluation.space
        self.case = case
        self.omitted = 0
        self.valid = evaluation.true
        for condition in (
            *possible(evaluation.number, case, from_host=from_host),
            *exceptions.compared(evaluation.number, case),
        ):
            self.valid = self._both(evaluation.condition(condition), self.valid)
        pairs = pairs_of(evaluation, before, after, exceptions, case)
        self.differing = self.space.select(self.valid, pairs, evaluation.false, evaluation.true)

    def _both(self, one: int, two: int) -> int:
        return self.space.select(one, two, self.evaluation.false, self.evaluation.true)

    def where(self, condition: m.Condition, *, holds: bool) -> bool:
        """Look only at the packets for which a condition holds, or does not; returns whether any are left."""
        false = self.evaluation.false
        chosen = self.evaluation.condition(condition)
        kept = (self.differing, false) if holds else (false, self.differing)
        self.differing = self.space.select(chosen, *kept, self.evaluation.true)
        return self.differing != false

    def classes(self) -> list[Class]:
        """Return the classes of all packets that differ (as far as looked at)."""
        found: list[Class] = []
        for pair in sorted(self.space.terminals(self.differing) - {self.evaluation.false}):
            found += self._of_pair(pair)
        return found

    def _of_pair(self, pair: int) -> Iterator[Class]:
        true, false = self.evaluation.true, self.evaluation.false
        left = self.space.replace(self.differing, {}, lambda node: true if node == pair else false, {})
        # packets that cannot exist may join a class: that makes its text shorter
        wide = self.space.select(self.valid, left, true, true)
        usual = {
            self.evaluation.number[on]: self._atoms(on, values)
            for on, values in USUAL.items()
            if on in self.evaluation.number
        }
        count = 0
        # ordinary packets first: readers expect them
        for fixed in (usual, {}) if usual and all(usual.values()) else ({},):
            rule = tuple(sorted(fixed.items()))
            while (some := self.space.rule(rule, left, false)) != false:
                if count == MAX_CLASSES:
                    self.omitted += 1
                    return
                count += 1
                cube = self._widen(dict(next(self.space.paths(some, true))), fixed, wide)
                yield self._class(pair, cube, fixed, some)
                left = self.space.rule(tuple(sorted(cube.items())), false, left)

    def _atoms(self, on: m.Field, values: IntervalSet) -> int:
        """The atoms of these values, with the atom of packets without the field."""
        atoms = self.evaluation.levels[self.evaluation.number[on]].atoms
        return atoms.mask_of(values) | int(atoms.absent)

    def _widen(self, cube: dict[int, int], fixed: Mapping[int, int], wide: int) -> dict[int, int]:
        """Drop fields from a path and widen the rest, within ``fixed``, which is not mentioned."""
        # fields that explain least are dropped first
        for level in sorted(cube, key=self._importance, reverse=True):
            without = {other: mask for other, mask in cube.items() if other != level}
            if self._fits(without, fixed, wide):
                cube = without
        for level in sorted(cube, key=self._importance, reverse=True):
            cube[level] = self._widest(level, cube, fixed, wide)
        for level in cube.keys() & fixed.keys():
            # unusual values need no mention, so add them where that makes the text shorter
            atoms = self.evaluation.levels[level].atoms
            unusual = ((1 << atoms.width) - 1) & ~fixed[level]
            cube[level] = min(
                (cube[level], cube[level] | unusual), key=lambda mask: _complexity(atoms.values(mask), atoms.size)
            )
        return cube

    def _fits(self, cube: Mapping[int, int], fixed: Mapping[int, int], wide: int) -> bool:
        return self.space.restrict(wide, {**fixed, **cube}, self.evaluation.true)

    def _widest(self, level: int, cube: dict[int, int], fixed: Mapping[int, int], wide: int) -> int:
        """Return the most atoms that a level can have, or all but those no packet has, the shorter of both."""
        atoms = self.evaluation.levels[level].atoms
        largest = cube[level]
        smallest = cube[level]
        allowed = fixed.get(level, (1 << atoms.width) - 1)
        for atom in range(atoms.width):
            one = 1 << atom
            if not one & allowed & ~cube[level]:
                continue
            tried = {**cube, level: one}
            if self._fits(tried, fixed, wide):
                largest |= one
                if not self.space.restrict(self.valid, {**fixed, **tried}, self.evaluation.false):
                    smallest |= one
        return min((largest, smallest), key=lambda mask: _complexity(atoms.values(mask), atoms.size))

    def _importance(self, level: int) -> tuple[int, int]:
        on = self.evaluation.levels[level].field
        return (_KEEP.index(on) if on in _KEEP else len(_KEEP), level)

    def _class(self, pair: int, cube: dict[int, int], fixed: Mapping[int, int], some: int) -> Class:
        value = self.space.values[pair]
        assert isinstance(value, tuple)
        levels = self.evaluation.levels
        fields = tuple((levels[level].field, levels[level].atoms.values(mask)) for level, mask in sorted(cube.items()))
        inside = self.space.rule(tuple(sorted(cube.items())), some, self.evaluation.false)
        return Class(value[0], value[1], fields, bool(fixed), self._packet(inside))

    # --- packets ---

    def _packet(self, node: int) -> dict[m.Field, int]:
        """Return one whole packet for which a diagram is true."""
        packet: dict[m.Field, int] = {}
        absent: set[m.Field] = set()
        true, false = self.evaluation.true, self.evaluation.false
        for number, level in enumerate(self.evaluation.levels):
            if node == true or self.space.levels[node] != number:
                mask, child = (1 << level.atoms.width) - 1, node
                if level.atoms.absent:
                    mask &= ~1
            else:
                edges = [edge for edge in self.space.edges[node] if edge[0] != false]
                child, mask = max(edges, key=lambda edge: self._likes(level.field, edge[1]))
            if level.atoms.absent and mask == 1:
                absent.add(level.field)
            else:
                packet[level.field] = choose(level.field, level.atoms.values(mask))
            node = child
        return complete(packet, self.case, absent)

    def _likes(self, on: m.Field, mask: int) -> int:
        """How fit a set of atoms is to choose a value from."""
        values = self.evaluation.levels[self.evaluation.number[on]].atoms.values(mask)
        liked = _LIKED.get(on, ())
        return next((len(liked) - place for place, value in enumerate(liked) if value in values), 0)


_LIKED: Mapping[m.Field, tuple[int, ...]] = {
    m.CT_STATE: (m.CT_STATES.index("new"), m.CT_STATES.index("established")),
    m.EXTENSION: (m.NO_EXTENSION, 60, 0),
    m.L4PROTO: (6, 17, 1, 58),
    m.TCP_FLAGS: (0x02, 0x10),
    m.ICMP: (8 << 8, 0),
    m.ICMP6: (128 << 8, 129 << 8),
    m.SPORT: (40000, 1024, 53),
    m.DPORT: (80, 22, 443, 53, 40000),
    m.SADDR4: (0xC0000201, 0xC6336401, 0x0A000001),
    m.DADDR4: (0xC0000202, 0xC6336402, 0x0A000002),
    m.SADDR6: ((0x20010DB8 << 96) | 1,),
    m.DADDR6: ((0x20010DB8 << 96) | 2,),
    m.SADDR_TYPE: (m.SADDR_TYPE.names.index("unicast"),),
    m.DADDR_TYPE: (m.DADDR_TYPE.names.index("unicast"), m.DADDR_TYPE.names.index("local")),
    m.ETHER_SRC: (0x020000000001,),
    m.ETHER_DST: (0x020000000002,),
    **{on: (m.DEFAULTS[on],) for on in (m.TTL, m.LENGTH, m.ARP_OP, m.ARP_HTYPE, m.ARP_PTYPE, m.ARP_HLEN, m.ARP_PLEN)},
    m.ARP_SPA: (0xC0000201,),
    m.ARP_TPA: (0xC0000202,),
    m.ARP_SHA: (0x020000000001,),
}
"""Values to choose first for examples: documentation addresses (RFC 5737, RFC 3849), common ports. They make examples
read well, and mean nothing else: so they are no part of the declarations of the fields.
"""


def choose(on: m.Field, values: IntervalSet) -> int:
    """Return one of the values, one that reads well."""
    for liked in _LIKED.get(on, ()):
        if liked in values:
            return liked
    ranges = sorted(values, key=lambda pair: (pair[0] == 0, pair[0]))
    first, last = ranges[0]
    is_address = on.kind in (m.FieldKind.IPV4, m.FieldKind.IPV6)
    return first + 1 if is_address and first < last else first


_IP_DEFAULTS: Mapping[m.Field, int] = {
    on: default
    for on, default in m.DEFAULTS.items()
    if not m.protocols_of(on) - IntervalSet.of((m.IPV4, m.IPV4), (m.IPV6, m.IPV6))
}
_STATE_BITS = (*m.MARK, *m.CT_MARK, *m.CT_STATUS.values())


def complete(packet: Mapping[m.Field, int], case: Case, absent: set[m.Field]) -> dict[m.Field, int]:
    """Return a packet with every field it should have: those given, the rest as usual.

    How the packet was sent (unicast, broadcast) is written as ``PKTTYPE``, as the simulator expects.
    """
    full = dict.fromkeys(_STATE_BITS, 0) | {m.CT_DIRECTION: m.DEFAULTS[m.CT_DIRECTION], **packet}
    full.setdefault(m.CT_STATE, m.CT_STATES.index("new" if case.is_ip else "untracked"))
    full[m.PROTOCOL] = case.protocol
    full[m.ETHER_TYPE] = m.VLAN if case.tagged else case.protocol
    if case.is_ip:
        full = {**_IP_DEFAULTS, **full}
    for on in m.PRESENCE:
        if m.has_field(full, on):
            if on not in full and on not in absent:
                full[on] = choose(on, on.everything)
        else:
            full.pop(on, None)
    _complete_kinds(full, packet)
    cast = full.pop(CAST)
    full[m.PKTTYPE] = cast
    full.setdefault(m.ETHER_DST, (0x020000000002, _ALL_ONES, 0x01005E000001)[cast])
    full.setdefault(m.ETHER_SRC, choose(m.ETHER_SRC, m.ETHER_SRC.everything))
    return full


def _complete_kinds(full: dict[m.Field, int], packet: Mapping[m.Field, int]) -> None:
    """Make kinds of addresses, and whom the frame is for, go with the addresses where no rule asks."""
    for kind, v4, v6 in ((m.SADDR_TYPE, m.SADDR4, m.SADDR6), (m.DADDR_TYPE, m.DADDR4, m.DADDR6)):
        if kind in packet or kind not in full:
            continue
        if kind is m.DADDR_TYPE and v4 in full and packet.get(CAST) == 1:
            full[kind] = _BROADCAST
        elif full.get(v4, 0x01000000) in MULTICASTS4 or full.get(v6, 0) in MULTICASTS6:
            full[kind] = _MULTICAST
        elif full.get(v4, 0x01000000) in BROADCASTS4:
            full[kind] = _BROADCAST
    if CAST not in full:
        full[CAST] = {_MULTICAST: 2, _BROADCAST: 1}.get(full.get(m.DADDR_TYPE, 0), 0)
