"""The way of a packet through the host: which hooks see it, in which order, and with which interfaces.

A :class:`Topology` says which NICs, bridges and interfaces there are; :func:`find_path` gives, from one
:class:`End` to another, the :class:`Path`: a flat list of :class:`Stage`, one for each hook. Evaluating a
ruleset for a path means: at each stage take ``stage.chains(model, protocol)`` in order, with the stage's
interface fields in the packet; the first drop or reject ends the way; marks stay with the packet from stage
to stage.

A frame from filtered VM 100 to the outside crosses two bridges::

    fwbr100i0: tap100i0 → fwln100i0    bridge prerouting … ip prerouting … bridge forward, ip forward,
    postrouting vmbr0: fwpr100p0 → eth0            the same once more

Sources: net/bridge/br_input.c, br_forward.c and br_netfilter_hooks.c of Linux 6.1 to 6.12. With
bridge-nf-call-iptables, the bridge's hooks call the IP hooks at priority 0 (in postrouting, last); there the
bridge is both input and output interface and the ports are physdev. A frame for the host itself runs IP
prerouting inside the bridge and not again after it (``ip_sabotage_in``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias, overload

from pvefw_nft.errors import UsageError
from pvefw_nft.verify.model import (
    ARP,
    ETHER_TYPE,
    FALSE,
    IBR,
    IIF,
    IPV4,
    IPV6,
    IS_BRIDGED,
    OBR,
    OIF,
    PHYSIN,
    PHYSOUT,
    TRUE,
    VLAN,
    Family,
    Point,
    equals,
    interface_name,
    interface_number,
    negate,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable

    from pvefw_nft.verify.model import Chain, Condition, Field, RulesetModel, Table

OTHERHOST, HOST = 3, 0
BRNF_PRIORITY = 0
"""Where br_netfilter runs the IP hooks among the bridge's prerouting hooks (NF_BR_PRI_BRNF)."""


# --- topology -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Nic:
    """A guest's NIC: ``interface`` is its host side, ``bridge`` the guest's bridge (not the firewall bridge).

    ``addresses`` are the known addresses of the guest (IP version and address), ``ranges`` the networks of its address
    (version, first and last), ``mac`` is None if unknown, ``tag`` its VLAN (0: none). Only a ``filtered`` NIC is
    plugged through a firewall bridge. ``node`` is the other node that the guest runs on, empty for one of this host.
    ``trunks``: it sends and receives tagged frames.
    """

    zone: str
    vmid: int
    index: int
    interface: str
    bridge: str
    filtered: bool
    mac: int | None = None
    addresses: tuple[tuple[int, int], ...] = ()
    tag: int = 0
    ranges: tuple[tuple[int, int, int], ...] = ()
    node: str = ""
    trunks: bool = False

    @property
    def name(self) -> str:
        """The zone with the NIC's number: ``vm100i0``."""
        return f"{self.zone}i{self.index}"

    def is_called(self, zone: str) -> bool:
        """Tell whether a zone means this NIC, or all NICs of its guest."""
        return zone in (self.zone, self.name, self.interface)

    @property
    def firewall_bridge(self) -> str:
        """The bridge between guest and the guest's bridge."""
        return f"fwbr{self.vmid}i{self.index}"

    @property
    def link(self) -> str:
        """The firewall bridge's port towards the guest's bridge."""
        return f"fwln{self.vmid}i{self.index}"

    @property
    def port(self) -> str:
        """The port of the guest's bridge by which the NIC is reached."""
        return f"fwpr{self.vmid}p{self.index}" if self.filtered else self.interface


_NUMBER = re.compile(r"[0-9]+")
_MAX_DIGITS = 9
"""Digits of the largest VMID."""


class NicsOnDemand(Sequence[Nic]):
    """NICs that are read when they are asked for: those of a few guests alone, or all of them.

    ``read`` returns the NICs of the guests with the given VMIDs, or of all guests (None), in the same order.
    """

    def __init__(self, read: Callable[[Container[int] | None], Iterable[Nic]]) -> None:
        """Read nothing yet."""
        self._read = read
        self._all: tuple[Nic, ...] | None = None
        self._some: dict[frozenset[int], tuple[Nic, ...]] = {}

    def of(self, vmids: frozenset[int]) -> tuple[Nic, ...]:
        """Return the NICs of the guests with these VMIDs."""
        if vmids not in self._some:
            self._some[vmids] = tuple(self._read(vmids)) if vmids else ()
        return self._some[vmids]

    def all(self) -> tuple[Nic, ...]:
        """Return the NICs of all guests."""
        if self._all is None:
            self._all = tuple(self._read(None))
        return self._all

    def __len__(self) -> int:
        return len(self.all())

    @overload
    def __getitem__(self, index: int) -> Nic: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Nic, ...]: ...
    def __getitem__(self, index: int | slice) -> Nic | tuple[Nic, ...]:
        return self.all()[index]


def candidates(nics: Sequence[Nic], name: str) -> Sequence[Nic]:
    """Return the NICs that a name may mean: those of the guests whose VMID is in it, as in ``vm100`` and ``tap100i0``.

    NICs that are not read on demand are all returned: the caller compares the name.
    """
    if not isinstance(nics, NicsOnDemand):
        return nics
    return nics.of(frozenset(int(digits) for digits in _NUMBER.findall(name) if len(digits) <= _MAX_DIGITS))


@dataclass(frozen=True, slots=True)
class Network:
    """A network of the host's: IP ``version``, the host's own ``address`` in it and the prefix ``length``."""

    version: int
    address: int
    length: int

    def contains(self, version: int, address: int) -> bool:
        """Return whether an address lies in it."""
        shift = (32 if self.version == 4 else 128) - self.length
        return version == self.version and address >> shift == self.address >> shift


@dataclass(frozen=True, slots=True)
class Link:
    """An interface of the host with addresses: a bridge with its uplink ``ports``, or (no bridge) a plain
    one. ``vlan`` is the interface and the tag of the frames that it takes, such as ``("vmbr0", 5)`` for vmbr0.5.
    ``vlan_aware``: the bridge filters by VLAN.
    """

    name: str
    is_bridge: bool
    ports: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()
    vlan: tuple[str, int] | None = None
    vlan_aware: bool = False


@dataclass(frozen=True, slots=True)
class Topology:
    """The settings that a packet's way depends on. ``call_iptables`` is the sysctl bridge-nf-call-iptables (and
    -ip6tables), ``filter_vlan_tagged`` bridge-nf-filter-vlan-tagged. ``elsewhere`` are the NICs of guests that run on
    other nodes: to this host they are behind the uplink of their bridge.
    """

    nics: Sequence[Nic] = ()
    links: tuple[Link, ...] = ()
    call_iptables: bool = True
    filter_vlan_tagged: bool = False
    elsewhere: Sequence[Nic] = ()

    @property
    def has_vlans(self) -> bool:
        """Whether the files speak of any VLAN, so that tagged frames are to be expected."""
        guests = any(nic.tag or nic.trunks for nic in self.nics)
        return guests or any(link.vlan is not None or link.vlan_aware for link in self.links)

    def link(self, name: str) -> Link | None:
        """Return the host's interface of this name."""
        return next((link for link in self.links if link.name == name), None)

    def with_bridges(self, bridges: Iterable[str] | None = None) -> Topology:
        """Return this topology with a bridge, and an uplink for it, wherever a NIC's bridge is not listed.

        ``bridges`` are those of the NICs, if the caller knows them. Uplinks of bridges without one are called ``eth0``,
        ``eth1`` …, by the order of the bridges.
        """
        known = {link.name for link in self.links}
        missing = sorted({*(bridges if bridges is not None else (nic.bridge for nic in self.nics))} - known)
        links = self.links + tuple(Link(name, is_bridge=True) for name in missing)
        if not any(link.is_bridge for link in links):
            links += (Link("vmbr0", is_bridge=True),)
        used = {port for link in links for port in link.ports} | {link.name for link in links}
        free = (name for n in range(len(links) + len(used) + 1) if (name := f"eth{n}") not in used)
        return replace(
            self,
            links=tuple(
                replace(link, ports=(next(free),)) if link.is_bridge and not link.ports else link for link in links
            ),
        )


# --- ends ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HostEnd:
    """The host itself."""

    def __str__(self) -> str:
        return "host"


@dataclass(frozen=True, slots=True)
class NicEnd:
    """A guest, at one of its NICs."""

    nic: Nic

    def __str__(self) -> str:
        return self.nic.name


@dataclass(frozen=True, slots=True)
class PortEnd:
    """A peer behind a port of one of the host's bridges."""

    bridge: str
    port: str

    def __str__(self) -> str:
        return f"{self.bridge}/{self.port}"


@dataclass(frozen=True, slots=True)
class RoutedEnd:
    """A peer behind an interface of the host that is no bridge."""

    interface: str

    def __str__(self) -> str:
        return self.interface


End: TypeAlias = HostEnd | NicEnd | PortEnd | RoutedEnd


def find_ends(topology: Topology, zone: str) -> list[End]:
    """Return the ends that a zone may mean, best first: ``host``, ``outside``, ``vm100``, ``vmbr0/eth0`` etc.

    ``iface/NAME`` is an interface of the host, ``port/BRIDGE/NAME`` a port of a bridge and ``nic/BRIDGE/INTERFACE`` a
    filtered NIC, whether or not any file names them.
    Raises UsageError if there is no such zone, naming those there are.
    """
    if zone == "host":
        return [HostEnd()]
    if (assumed := _assumed_end(zone)) is not None:
        return [assumed]
    ends: list[End] = []
    if zone == "outside":
        ends += [PortEnd(link.name, port) for link in topology.links if link.is_bridge for port in link.ports]
        ends += [RoutedEnd(link.name) for link in topology.links if not link.is_bridge and link.name != "lo"]
    elif "/" in zone:
        bridge, port = zone.split("/", 1)
        link = topology.link(bridge)
        if link is not None and link.is_bridge and port in link.ports:
            ends.append(PortEnd(bridge, port))
    else:
        ends += [NicEnd(nic) for nic in candidates(topology.nics, zone) if nic.is_called(zone)]
        ends += [RoutedEnd(x.name) for x in topology.links if not x.is_bridge and x.name == zone]
        ends += [
            PortEnd(link.name, port)
            for link in topology.links
            if link.is_bridge
            for port in link.ports
            if zone in (port, link.name)
        ]
    if not ends:
        known = ["host", "outside", *dict.fromkeys(nic.zone for nic in (*topology.nics, *topology.elsewhere))]
        known += [str(end) for end in find_ends_outside(topology)]
        raise UsageError(f"there is no zone '{zone}'", hint=f"zones here: {', '.join(known)}")
    return ends


_ASSUMED = re.compile(
    r"iface/(?P<device>[^/\s]{1,15})|port/(?P<of>[^/\s]{1,15})/(?P<port>[^/\s]{1,15})"
    r"|nic/(?P<bridge>[^/\s]{1,15})/(?P<nic>(?P<kind>tap|veth)(?P<vmid>\d{1,9})i(?P<index>\d{1,2}))"
)


def _assumed_end(zone: str) -> End | None:
    """Return the end that a zone means which no file needs to name; None for another zone."""
    found = _ASSUMED.fullmatch(zone)
    if found is None:
        return None
    if found["device"]:
        return RoutedEnd(found["device"])
    if found["port"]:
        return PortEnd(found["of"], found["port"])
    name = f"{'vm' if found['kind'] == 'tap' else 'ct'}{found['vmid']}"
    return NicEnd(Nic(name, int(found["vmid"]), int(found["index"]), found["nic"], found["bridge"], filtered=True))


def find_ends_elsewhere(topology: Topology, nics: Iterable[Nic]) -> dict[End, Nic]:
    """Return by which ends guests of other nodes are reached: the ports of their bridge, or any if it is not here."""
    found: dict[End, Nic] = {}
    for nic in nics:
        link = topology.link(nic.bridge)
        # frames of that guest come in by an uplink, as they would from the outside
        ports = [PortEnd(nic.bridge, port) for port in link.ports] if link is not None and link.is_bridge else []
        for end in ports or find_ends_outside(topology):
            found.setdefault(end, nic)
    return found


def find_ends_outside(topology: Topology) -> list[End]:
    """Return every end that is neither the host nor a guest."""
    ends: list[End] = [PortEnd(x.name, port) for x in topology.links if x.is_bridge for port in x.ports]
    return ends + [RoutedEnd(x.name) for x in topology.links if not x.is_bridge and x.name != "lo"]


# --- stages -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stage:
    """One hook on the way. ``family`` BRIDGE means the bridge's own hooks, IP the hooks of IPv4 or IPv6 (and inet).

    ``fields`` are the interfaces as this hook sees them (field, value). Of the hook's chains only those with
    a priority from ``first`` up to, not including, ``last`` run here (None: no bound). ``when`` says which
    packets run this stage at all. To this hook ``PKTTYPE`` of a unicast frame is ``unicast`` (host or
    otherhost). ``hop`` names the part of the way the stage belongs to. ``untagged``: a VLAN interface took the tag off.
    """

    family: Family
    point: Point
    fields: tuple[tuple[Field, int], ...]
    hop: str
    unicast: int = HOST
    first: int | None = None
    last: int | None = None
    when: Condition = TRUE
    from_host: bool = False
    untagged: bool = False

    def chains(self, model: RulesetModel, protocol: int) -> list[tuple[Table, Chain]]:
        """Return the base chains a packet of this network protocol (``PROTOCOL``) meets here, in order."""
        if self.family is Family.BRIDGE:
            found = model.base_chains(self.point, Family.BRIDGE)
        elif protocol == IPV4:
            found = model.base_chains(self.point, Family.IP, Family.INET)
        elif protocol == IPV6:
            found = model.base_chains(self.point, Family.IP6, Family.INET)
        else:
            found = model.base_chains(self.point, Family.ARP) if protocol == ARP else []
        return [
            (table, chain)
            for table, chain in found
            if chain.hook is not None
            and (self.first is None or chain.hook.priority >= self.first)
            and (self.last is None or chain.hook.priority < self.last)
        ]

    def __str__(self) -> str:
        return f"{'bridge' if self.family is Family.BRIDGE else 'ip'} {self.point.name.lower()}"


@dataclass(frozen=True, slots=True)
class Path:
    """The stages from ``source`` to ``destination``, in order; ``back`` are the stages of the way back.

    Connection tracking depends on the way back: a connection is known here if the way back is tracked in the same zone.
    ``dead_end``: the reason why the packet ends at the last stage, whatever the rules say; empty: it arrives.
    """

    source: End
    destination: End
    stages: tuple[Stage, ...]
    back: tuple[Stage, ...] = ()
    dead_end: str = ""

    def __str__(self) -> str:
        return f"{self.source} → {self.destination}"


@dataclass(frozen=True, slots=True)
class _Bridging:
    """Makes the stages of one bridge."""

    topology: Topology
    bridge: str

    @property
    def ip_when(self) -> Condition:
        return TRUE if self.topology.filter_vlan_tagged else negate(equals(ETHER_TYPE, VLAN))

    def enter(self, port: str, hop: str, unicast: int) -> list[Stage]:
        """A frame comes in by a port: bridge prerouting, with IP prerouting inside."""
        fields = ((IIF, interface_number(port)), (IBR, interface_number(self.bridge)))
        before = Stage(Family.BRIDGE, Point.PREROUTING, fields, hop, unicast)
        if not self.topology.call_iptables:
            return [before]
        inside = Stage(Family.IP, Point.PREROUTING, _ip(iif=self.bridge, physin=port), hop, when=self.ip_when)
        # br_netfilter runs the IP hooks amid the bridge's own: the stage is split at its priority
        return [replace(before, last=BRNF_PRIORITY), inside, replace(before, first=BRNF_PRIORITY)]

    def cross(self, source: str, destination: str) -> list[Stage]:
        """A frame is bridged from port to port."""
        hop = f"{self.bridge}: {source} → {destination}"
        ports = ((IIF, interface_number(source)), (OIF, interface_number(destination)))
        both = (*ports, (IBR, interface_number(self.bridge)), (OBR, interface_number(self.bridge)))
        forward = Stage(Family.BRIDGE, Point.FORWARD, both, hop, OTHERHOST)
        stages = self.enter(source, hop, OTHERHOST)
        if not self.topology.call_iptables:
            return [*stages, forward, *self.leave(destination, hop, None)]
        inside = Stage(
            Family.IP,
            Point.FORWARD,
            _ip(iif=self.bridge, oif=self.bridge, physin=source, physout=destination),
            hop,
            when=self.ip_when,
        )
        # the bridge calls the IP hooks here, too (br_nf_forward_ip)
        stages += [replace(forward, last=BRNF_PRIORITY), inside, replace(forward, first=BRNF_PRIORITY)]
        return [*stages, *self.leave(destination, hop, source)]

    def leave(self, port: str, hop: str, source: str | None) -> list[Stage]:
        """A frame goes out by a port; ``source`` is the port it was bridged from where IP hooks see it."""
        fields = ((OIF, interface_number(port)), (OBR, interface_number(self.bridge)))
        stages = [Stage(Family.BRIDGE, Point.POSTROUTING, fields, hop, OTHERHOST)]
        if source is not None and self.topology.call_iptables:
            seen = _ip(oif=self.bridge, physin=source, physout=port)
            stages.append(Stage(Family.IP, Point.POSTROUTING, seen, hop, when=self.ip_when))
        return stages


def _ip(
    *, iif: str | None = None, oif: str | None = None, physin: str | None = None, physout: str | None = None
) -> tuple[tuple[Field, int], ...]:
    named = ((IIF, iif), (OIF, oif), (PHYSIN, physin), (PHYSOUT, physout))
    fields = tuple((on, interface_number(name)) for on, name in named if name is not None)
    return (*fields, (IS_BRIDGED, int(physout is not None)))


# --- paths --------------------------------------------------------------------------------------------------


def choose_ends(sources: list[End], destinations: list[End]) -> tuple[End, End]:
    """Return the pair that most likely is meant: on the same bridge where there is one, else the first of
    each.
    """
    for source in sources:
        for destination in destinations:
            bridge = _bridge(source)
            if bridge is not None and bridge == _bridge(destination) and source != destination:
                return source, destination
    for source in sources:
        for destination in destinations:
            if source != destination:
                return source, destination
    return sources[0], destinations[0]


def _bridge(end: End) -> str | None:
    match end:
        case NicEnd(nic):
            return nic.bridge
        case PortEnd(bridge, _):
            return bridge
        case HostEnd() | RoutedEnd():
            return None


def find_path(topology: Topology, source: End, destination: End) -> Path:
    """Return the path from one end to another: bridged where both are on one bridge, else routed by the host.

    Raises UsageError if both ends are the same, or on one bridge in two VLANs.
    """
    return Path(
        source,
        destination,
        find_stages(topology, source, destination),
        find_stages(topology, destination, source),
    )


def find_stages(topology: Topology, source: End, destination: End) -> tuple[Stage, ...]:
    """As :func:`find_path`, without the way back."""
    if isinstance(source, HostEnd) and isinstance(destination, HostEnd):
        return tuple(_loopback())
    if source == destination:
        raise UsageError(f"a packet from {source} to itself does not pass the host")
    bridge = _bridge(source)
    if bridge is not None and bridge == _bridge(destination):
        _same_vlan(source, destination)
        stages = _from_guest(topology, source)
        stages += _Bridging(topology, bridge).cross(_port(source), _port(destination))
        return tuple(stages + _to_guest(topology, destination))
    stages = _from_guest(topology, source) + _arrive(topology, source)
    from_host = isinstance(source, HostEnd)
    stages += [replace(stage, from_host=from_host) for stage in _local(topology, source, destination)]
    stages += [replace(stage, from_host=True) for stage in _depart(topology, source, destination)]
    return tuple(stages)


def way_back(topology: Topology, path: Path, at: int) -> tuple[Stage, ...]:
    """Return the stages of an answer that a bridge sends back out of the port a packet came by.

    The packet was at stage number ``at`` of its path. First comes that bridge's own output, then each bridge on the way
    back to the source.
    """
    stage = path.stages[at]
    bridge, port = _came_by(stage)
    stages = [
        Stage(Family.BRIDGE, Point.OUTPUT, ((OIF, interface_number(port)), (OBR, interface_number(bridge))), stage.hop),
        *_Bridging(topology, bridge).leave(port, stage.hop, None),
    ]
    source, destination = path.source, path.destination
    # the answer is already on the sender's own firewall bridge: behind this port is the guest
    if isinstance(source, NicEnd) and source.nic.filtered and bridge == source.nic.firewall_bridge:
        return tuple(stages)
    if isinstance(destination, NicEnd) and destination.nic.filtered and bridge == destination.nic.firewall_bridge:
        # the packet was routed: the answer goes to the host first
        if _bridge(source) != destination.nic.bridge:
            return tuple(stages + _arrive(topology, destination))
        stages += _Bridging(topology, destination.nic.bridge).cross(destination.nic.port, _port(source))
    return tuple(stages + _to_guest(topology, source))


def _came_by(stage: Stage) -> tuple[str, str]:
    """Return the bridge and the port by which a bridged packet came to a stage."""
    fields = dict(stage.fields)
    if stage.family is Family.BRIDGE:
        return interface_name(fields[IBR]), interface_name(fields[IIF])
    return interface_name(fields[IIF]), interface_name(fields[PHYSIN])


def _same_vlan(source: End, destination: End) -> None:
    tags = [end.nic.tag for end in (source, destination) if isinstance(end, NicEnd)]
    if len(tags) == 2 and tags[0] != tags[1]:
        raise UsageError(
            f"{source} (VLAN {tags[0]}) and {destination} (VLAN {tags[1]}) do not reach each other directly",
            hint="simulate each half of the way: to 'outside', where their router is, and from it",
        )


def _port(end: End) -> str:
    match end:
        case NicEnd(nic):
            return nic.port
        case PortEnd(_, port):
            return port
        case RoutedEnd(interface):
            return interface
        case HostEnd():
            raise AssertionError("the host is behind no port")


def _from_guest(topology: Topology, end: End) -> list[Stage]:
    """The firewall bridge of a filtered guest, outwards."""
    if isinstance(end, NicEnd) and end.nic.filtered:
        nic = end.nic
        return _Bridging(topology, nic.firewall_bridge).cross(nic.interface, nic.link)
    return []


def _to_guest(topology: Topology, end: End) -> list[Stage]:
    """The firewall bridge of a filtered guest, inwards."""
    if isinstance(end, NicEnd) and end.nic.filtered:
        nic = end.nic
        return _Bridging(topology, nic.firewall_bridge).cross(nic.link, nic.interface)
    return []


def _interface(end: End) -> str:
    """The host's interface by which an end is reached."""
    return _bridge(end) or _port(end)


def _arrive(topology: Topology, source: End) -> list[Stage]:
    """A packet comes to the host's own stack: up to and with IP prerouting."""
    bridge = _bridge(source)
    if isinstance(source, HostEnd):
        return []
    if bridge is None:
        return [Stage(Family.IP, Point.PREROUTING, _ip(iif=_interface(source)), f"{source} → host")]
    port = _port(source)
    hop = f"{bridge}: {port} → host"
    stages = _Bridging(topology, bridge).enter(port, hop, HOST)
    fields = ((IIF, interface_number(port)), (IBR, interface_number(bridge)))
    stages.append(Stage(Family.BRIDGE, Point.INPUT, fields, hop))
    # the host's stack runs prerouting for frames that it has not run for inside the bridge
    unseen = _unseen(topology)
    if unseen is not FALSE:
        stages.append(Stage(Family.IP, Point.PREROUTING, _ip(iif=bridge), hop, when=unseen))
    return stages


def _unseen(topology: Topology) -> Condition:
    """Return which frames br_netfilter does not show to the IP hooks, so that only the host's own stack does."""
    if not topology.call_iptables:
        return TRUE
    return FALSE if topology.filter_vlan_tagged else equals(ETHER_TYPE, VLAN)


def _local(topology: Topology, source: End, destination: End) -> list[Stage]:
    """Input, output or forward of the IP stack. Packets that br_netfilter saw come in still have their port."""
    if isinstance(source, HostEnd):
        return [Stage(Family.IP, Point.OUTPUT, _ip(oif=_interface(destination)), "host")]
    point = Point.INPUT if isinstance(destination, HostEnd) else Point.FORWARD
    iif, oif = _interface(source), None if isinstance(destination, HostEnd) else _interface(destination)
    plain = Stage(Family.IP, point, _ip(iif=iif, oif=oif), "host")
    # without a bridge there is no port to see
    unseen = _unseen(topology) if _bridge(source) is not None else TRUE
    if unseen is TRUE:
        return [plain]
    with_port = replace(plain, fields=_ip(iif=iif, oif=oif, physin=_port(source)))
    if unseen is FALSE:
        return [with_port]
    # of two stages each packet runs one: tagged frames have no port here, others have
    return [replace(plain, when=unseen), replace(with_port, when=negate(unseen))]


def _depart(topology: Topology, source: End, destination: End) -> list[Stage]:
    """A packet of the host's own stack goes out: IP postrouting, then the bridge it leaves by.

    Forwarded packets still have their input interface there (ip_output, net/ipv4/ip_output.c, since Linux 5.7).
    """
    if isinstance(destination, HostEnd):
        return []
    came_by = None if isinstance(source, HostEnd) else _interface(source)
    stages = [Stage(Family.IP, Point.POSTROUTING, _ip(iif=came_by, oif=_interface(destination)), "host")]
    bridge = _bridge(destination)
    if bridge is None:
        return stages
    port = _port(destination)
    hop = f"{bridge}: host → {port}"
    fields = ((OIF, interface_number(port)), (OBR, interface_number(bridge)))
    stages.append(Stage(Family.BRIDGE, Point.OUTPUT, fields, hop, OTHERHOST))
    stages += _Bridging(topology, bridge).leave(port, hop, None)
    return stages + _to_guest(topology, destination)


def _loopback() -> list[Stage]:
    """The host to itself."""
    stages = [
        Stage(Family.IP, Point.OUTPUT, _ip(oif="lo"), "host"),
        Stage(Family.IP, Point.POSTROUTING, _ip(oif="lo"), "host"),
        Stage(Family.IP, Point.PREROUTING, _ip(iif="lo"), "host"),
        Stage(Family.IP, Point.INPUT, _ip(iif="lo"), "host"),
    ]
    return [replace(stage, from_host=True) for stage in stages]
