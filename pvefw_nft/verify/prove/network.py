"""The network that a comparison walks: each side's own guests, bridges and interfaces, and those only rules name.

Each ruleset is walked on the guests, bridges and interfaces of its own host. An end of a path is paired with the same
end on the other side: a guest's NIC by its interface, a bridge's uplinks by their order. An end that only one host has
is a difference in itself: no packet takes that way on the other host.

**Interfaces that only rules name.** A rule may name an interface of a guest whose files are not there, or a card that
no ``/etc/network/interfaces`` lists; a pattern may fit no interface known. Where rules look decides where such an
interface is put, on both sides:

==========================================  ============================================================
named as                                    is taken for
==========================================  ============================================================
``tap9i0``, ``fwln9i0`` … of a bridge       a NIC of a guest with a firewall bridge, and a plain port, too
any other port of a bridge                  a port of each bridge of the host
a bridge (``ibrname``), or ``vmbrN``        a bridge with an uplink of its own
an interface of the host (``-i``, IP)       an interface of the host that is no bridge
==========================================  ============================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from pvefw_nft.verify import model as m
from pvefw_nft.verify.model.atoms import Atoms
from pvefw_nft.verify.network.path import (
    End,
    HostEnd,
    Link,
    Nic,
    NicEnd,
    PortEnd,
    RoutedEnd,
    Topology,
    find_ends_outside,
)
from pvefw_nft.verify.prove.program import INTERFACES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from pvefw_nft.verify.model.intervals import IntervalSet

MAX_PORTS = 32
"""So many ports that only rules name are added to bridges; each makes a way to every other end."""

_IS_INTERFACE = frozenset(INTERFACES)
_OF_NIC = re.compile(r"(?:(tap|veth)(\d+)i(\d+)|fw(?:br|ln)(\d+)i(\d+)|fwpr(\d+)p(\d+))")
_IS_BRIDGE = re.compile(r"vmbr\d+(v\d+)?")
_COMPLETIONS = ("999i0", "99i0", "9i0", "i0", "999p0", "99p0", "9p0", "p0", "0", "9", "")
"""Endings that complete a pattern's prefix to the name of a guest's interface, or another name."""
_FREE = (*(f"other{n}" for n in range(1000)), *(f"tap99{n}i0" for n in range(100)), "fwln9999i0", "veth9999i0")
"""Names that rules hardly have."""


class Ends(NamedTuple):
    """The ends of packets: a ``general`` end represents all ends that are treated alike, ``nics`` are the filtered
    guests' NICs; each NIC has chains of its own.
    """

    general: list[End]
    nics: list[Nic]


@dataclass(frozen=True, slots=True)
class Side:
    """One of two rulesets to compare: its name, its model, and the host that it runs on."""

    name: str
    model: m.RulesetModel
    topology: Topology


@dataclass(slots=True)
class Named:
    """The interfaces that rules name in one role, singly and by other sets."""

    single: set[int] = field(default_factory=set)
    sets: dict[IntervalSet, None] = field(default_factory=dict)

    def add(self, values: IntervalSet) -> None:
        """Take up a set of interfaces that a rule tests."""
        others = values.complement(1 << 128)
        # a few names, each an interval of its own
        if len(values) == values.count():
            self.single.update(first for first, _ in values)
        # all but a few names, as `! -i eth0`
        elif len(others) == others.count():
            self.single.update(first for first, _ in others)
        else:
            self.sets[values] = None

    @property
    def names(self) -> list[str]:
        """The names named singly."""
        return sorted(filter(None, map(_name, self.single)))


def _name(number: int) -> str:
    """Return the interface name of a value; empty if an interface cannot have it."""
    name = m.interface_name(number)
    sound = name.isascii() and name.isprintable() and not set(name) & set(" /:") and len(name) < 16
    return name if sound and m.interface_number(name) == number else ""


@dataclass(slots=True)
class Roles:
    """The names in rules by their use: ``ports`` of bridges, ``bridges``, and ``devices`` that the IP hooks see."""

    ports: Named = field(default_factory=Named)
    bridges: Named = field(default_factory=Named)
    devices: Named = field(default_factory=Named)

    @classmethod
    def of(cls, *models: m.RulesetModel) -> Roles:
        """Collect them from rulesets."""
        self = cls()
        for table in {id(table): table for model in models for table in model.tables}.values():
            found = (test for chain in m.telling_chains(table) for test in _tests_of_chain(chain))
            for test in dict.fromkeys(test for test in found if test.field in _IS_INTERFACE):
                self._role(test.field, table.key.family).add(test.values)
        return self

    def _role(self, on: m.Field, family: m.Family) -> Named:
        if on in (m.IBR, m.OBR):
            return self.bridges
        if on in (m.PHYSIN, m.PHYSOUT) or family is m.Family.BRIDGE:
            return self.ports
        return self.devices


def _tests_of_chain(chain: m.Chain) -> Iterable[m.Test]:
    """Return every test of a chain, also the tests that choose a zone."""
    if not chain.sets_zone():
        return chain.tests
    return dict.fromkeys(test for condition in _conditions_with_zones(chain) for test in m.tests_of(condition))


def _conditions_with_zones(chain: m.Chain) -> Iterator[m.Condition]:
    for rule in chain.rules:
        yield from rule.conditions
        for effect in rule.effects:
            if isinstance(effect, m.Guard):
                yield effect.condition
            elif isinstance(effect, m.SetZone):
                yield from (condition for condition, _ in effect.entries)
        if isinstance(rule.verdict, m.VerdictMap):
            yield from (condition for condition, _ in rule.verdict.entries)


@dataclass(frozen=True, slots=True)
class Network:
    """The two networks to walk. ``counterparts`` gives, of an end of ``before``, the one of ``after`` where that is
    another.

    ``host_differences`` lists, a line each, guests, bridges and interfaces that only one host has; ``unplaced`` the
    interfaces that rules name and that have no place in the network.
    """

    ends: Ends
    before: Topology
    after: Topology
    counterparts: Mapping[End, End]
    host_differences: tuple[str, ...]
    unplaced: tuple[str, ...]


def make_network(before: Side, after: Side) -> Network:
    """Return the network on which two rulesets are compared."""
    roles = Roles.of(before.model, after.model)
    placing = _Placing(roles, (before.topology, after.topology))
    topologies = [placing.added(before.topology)]
    topologies.append(topologies[0] if after is before else placing.added(after.topology))
    pairing = _Pairing((before.name, after.name), topologies[0], topologies[1])
    pairing.pair()
    return Network(
        _ends(roles, topologies[0], pairing),
        topologies[0],
        topologies[1],
        pairing.counterparts,
        tuple(pairing.differences),
        tuple(placing.unplaced),
    )


def _ends(roles: Roles, topology: Topology, pairing: _Pairing) -> Ends:
    named = roles.ports.single | roles.devices.single
    patterns = [*roles.ports.sets, *roles.devices.sets]
    general: list[End] = [HostEnd(), *(end for end in find_ends_outside(topology) if end not in pairing.alone)]
    seen: dict[object, int] = {}
    filtered: list[Nic] = []
    for nic in topology.nics:
        end = NicEnd(nic)
        if end in pairing.alone:
            continue
        number = m.interface_number(nic.port)
        key = (
            nic.bridge,
            nic.filtered,
            number if number in named else None,
            tuple(number in pattern for pattern in patterns),
        )
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= 2 or end in pairing.counterparts:
            general.append(end)
        if nic.filtered:
            filtered.append(nic)
    return Ends(general, filtered)


# --- pairs of ends ------------------------------------------------------------------------------------------


class _Pairing:
    """Find for each end of one host the same end of the other, and ends without a counterpart (``alone``)."""

    def __init__(self, names: tuple[str, str], before: Topology, after: Topology) -> None:
        self.names = names
        self.before, self.after = before, after
        self.counterparts: dict[End, End] = {}
        self.alone: set[End] = set()
        self.differences: list[str] = []

    def pair(self) -> None:
        others = {nic.interface: nic for nic in self.after.nics}
        for nic in self.before.nics:
            other = others.pop(nic.interface, None)
            if other is None:
                self._only(0, NicEnd(nic), _nic_text(nic))
            elif other != nic:
                self._nics(nic, other)
        for other in others.values():
            self._only(1, NicEnd(other), _nic_text(other))
        links = {link.name: link for link in self.after.links}
        for link in self.before.links:
            self._links(link, links.pop(link.name, None))
        for link in links.values():
            self._only(1, None, f"{'bridge' if link.is_bridge else 'interface'} {link.name}")

    def _nics(self, nic: Nic, other: Nic) -> None:
        self.counterparts[NicEnd(nic)] = NicEnd(other)
        if nic.filtered != other.filtered:
            self.differences.append(
                f"{nic.name} ({nic.interface}) has a firewall bridge in {self.names[other.filtered]} only"
            )
        first, second = self.names
        for word, one, two in (("on bridge", nic.bridge, other.bridge), ("in VLAN", nic.tag, other.tag)):
            if one != two:
                text = f"{nic.name} ({nic.interface}) is {word} {one} in {first} and {word} {two} in {second}"
                self.differences.append(text)

    def _links(self, link: Link, other: Link | None) -> None:
        kind = "bridge" if link.is_bridge else "interface"
        if other is None or other.is_bridge != link.is_bridge:
            self.alone |= {PortEnd(link.name, port) for port in link.ports}
            self.alone.add(RoutedEnd(link.name))
            if other is None:
                self.differences.append(f"{kind} {link.name} is there in {self.names[0]} only")
            else:
                self.differences.append(f"{link.name} is a bridge in {self.names[other.is_bridge]} only")
            return
        for number, port in enumerate(link.ports):
            if number >= len(other.ports):
                self._only(0, PortEnd(link.name, port), f"port {port} of bridge {link.name}")
            elif other.ports[number] != port:
                self.counterparts[PortEnd(link.name, port)] = PortEnd(link.name, other.ports[number])
        for port in other.ports[len(link.ports) :]:
            self._only(1, None, f"port {port} of bridge {link.name}")

    def _only(self, side: int, end: End | None, what: str) -> None:
        if end is not None and side == 0:
            self.alone.add(end)
        self.differences.append(f"{what} is there in {self.names[side]} only")


def _nic_text(nic: Nic) -> str:
    return f"{nic.name} ({nic.interface} on {nic.bridge})"


# --- interfaces that only rules name ------------------------------------------------------------------------


class _Placing:
    """Puts interfaces that rules name, and neither host has, into the network of both."""

    def __init__(self, roles: Roles, topologies: tuple[Topology, ...]) -> None:
        self.unplaced: list[str] = []
        self.nics: dict[tuple[int, int], Nic] = {}
        self.links: dict[str, Link] = {}
        self.ports: dict[str, None] = {}
        self.known_nics = {(nic.vmid, nic.index): nic for topology in topologies for nic in topology.nics}
        links = [link for topology in topologies for link in topology.links]
        self.bridges = list(dict.fromkeys(link.name for link in links if link.is_bridge)) or ["vmbr0"]
        self.devices = {"lo", *(link.name for link in links)}
        self.plain_ports = {port for link in links for port in link.ports}
        self.lonely = {
            link.name
            for topology in topologies
            for link in topology.links
            if link.is_bridge and len(link.ports) + sum(nic.bridge == link.name for nic in topology.nics) < 2
        }
        self._port_names = set(self.plain_ports)
        self._bridge_names = set(self.bridges)
        for nic in self.known_nics.values():
            self._add_names(nic)
        self.singles = roles.ports.single | roles.devices.single | roles.bridges.single
        for name in roles.bridges.names:
            self.place_bridge(name)
        for name in roles.ports.names:
            self.place_port(name)
        for name in roles.devices.names:
            self.place_device(name)
        self.place_device(next(name for name in _FREE if m.interface_number(name) not in self.singles))
        self._patterns("port of a bridge", roles.ports, self.port_names, self.place_port)
        self._patterns("bridge", roles.bridges, self.bridge_names, self.place_bridge)
        self._patterns("interface", roles.devices, self.device_names, self.place_device)

    def added(self, topology: Topology) -> Topology:
        """Return a host's topology with the interfaces that were placed."""
        own = {(nic.vmid, nic.index) for nic in topology.nics}
        nics = tuple(nic for key, nic in self.nics.items() if key not in own)
        names = {link.name for link in topology.links}
        links = [*topology.links, *(link for name, link in self.links.items() if name not in names)]
        full = replace(topology, nics=(*topology.nics, *nics), links=tuple(links)).with_bridges()
        return replace(full, links=tuple(self._with_ports(link) for link in full.links))

    def _with_ports(self, link: Link) -> Link:
        """Return a bridge with the ports that rules name, and with a second end where it has but one."""
        if not link.is_bridge:
            return link
        more = [port for port in self.ports if port not in link.ports and link.name in self.bridges]
        if not more and link.name in self.lonely | set(self.links):
            more = [next(name for name in _FREE if m.interface_number(name) not in self.singles)]
        return replace(link, ports=(*link.ports, *more))

    # --- present links ---

    def _add_names(self, nic: Nic) -> None:
        self._port_names |= {nic.interface, nic.port}
        if nic.filtered:
            self._port_names.add(nic.link)
            self._bridge_names.add(nic.firewall_bridge)

    def _add_link(self, link: Link) -> None:
        self.links[link.name] = link
        if link.is_bridge:
            self._bridge_names.add(link.name)

    def port_names(self) -> set[str]:
        """The names that ports of bridges have."""
        return self._port_names

    def bridge_names(self) -> set[str]:
        """The names that bridges have."""
        return self._bridge_names

    def device_names(self) -> set[str]:
        """The names that the IP hooks see."""
        return self.devices | set(self.links) | self._bridge_names

    def _is_device(self, name: str) -> bool:
        return name in self.devices or name in self.links or name in self._bridge_names

    # --- placing ---

    def place_port(self, name: str) -> None:
        """Add a port of a bridge with this name."""
        if name in self.port_names():
            return
        found = _OF_NIC.fullmatch(name)
        if found is not None and self._place_nic(found):
            return
        if len(self.ports) >= MAX_PORTS:
            self.unplaced.append(f"{name}: more than {MAX_PORTS} ports of bridges are named by rules alone")
            return
        self.ports[name] = None
        self._port_names.add(name)

    def _place_nic(self, found: re.Match[str]) -> bool:
        """Add a NIC with a firewall bridge for the interface of a guest; return whether nothing else is to do."""
        kind, vmid, index = found[1], *(int(one) for one in found.groups()[1:] if one is not None)
        if (vmid, index) in self.known_nics:
            return True  # that host has this NIC, but not this interface of it: no packet has it
        if (vmid, index) not in self.nics:
            zone = f"{'ct' if kind == 'veth' else 'vm'}{vmid}"
            interface = f"{'veth' if kind == 'veth' else 'tap'}{vmid}i{index}"
            nic = self.nics[vmid, index] = Nic(zone, vmid, index, interface, self.bridges[0], filtered=True)
            self._add_names(nic)
        return kind is None or len(self.ports) >= MAX_PORTS

    def place_bridge(self, name: str) -> None:
        """Add a bridge with this name."""
        found = _OF_NIC.fullmatch(name)
        if found is not None:
            self._place_nic(found)
        elif name not in self.bridge_names():
            self._add_link(Link(name, is_bridge=True))

    def place_device(self, name: str) -> None:
        """Add an interface with this name, which the IP hooks see."""
        found = _OF_NIC.fullmatch(name)
        if self._is_device(name):
            return
        if found is not None and name.startswith("fw"):
            self._place_nic(found)
        elif found is not None and (int(found[2]), int(found[3])) in self.known_nics:
            pass  # a port of a bridge: the IP hooks see the bridge
        else:
            self._add_link(Link(name, is_bridge=bool(_IS_BRIDGE.fullmatch(name))))

    # --- patterns ---

    def _patterns(self, what: str, named: Named, known: Callable[[], set[str]], place: Callable[[str], None]) -> None:
        """Have an interface that no rule names for every way in which patterns overlap."""
        atoms = Atoms(1 << 128, tuple(named.sets), absent=False)
        there = {atoms.atom(number) for name in known() if (number := m.interface_number(name)) not in self.singles}
        for atom in range(atoms.width):
            if atom in there:
                continue
            values = atoms.values(1 << atom)
            name = self._free_name(values, named)
            if name is not None:
                place(name)
            elif any(_name(first) for first, _ in values):
                self.unplaced.append(f"{what} {_pattern_text(values)}")

    def _free_name(self, values: IntervalSet, named: Named) -> str | None:
        """Return a name in a set that rules do not name, of a guest's interface where it can be one."""
        prefixes = [name for each in named.sets for first, _ in each if (name := _name(first))]
        made = [prefix + rest for prefix in prefixes for rest in _COMPLETIONS]
        usable = [
            name
            for name in (*made, *_FREE)
            if 0 < len(name) < 16 and (number := m.interface_number(name)) in values and number not in self.singles
        ]
        of_nics = [name for name in usable if _OF_NIC.fullmatch(name)]
        plain = [name for name in usable if not name.startswith(("tap", "veth", "fwbr", "fwln", "fwpr"))]
        return next(iter((*plain, *of_nics, *usable)), None)


def _pattern_text(values: IntervalSet) -> str:
    """Return a set of interfaces in words, in short."""
    names = [name for first, _ in values if (name := _name(first))]
    return f"like {names[0]}*" if names else "of an unusual name"


def unplaced_text(unplaced: Iterable[str]) -> str:
    """Return in a line that some interfaces were not compared."""
    return f"interfaces that only rules name and that have no place in the network: {', '.join(unplaced)}"
