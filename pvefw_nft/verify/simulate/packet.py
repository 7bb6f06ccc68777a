"""From a description of a packet in an administrator's words to its fields and its way through the host.

Example: ``PacketSpec(source="vm100", destination="10.0.0.7:22", protocol="tcp")`` gives the path from VM 100
to the owner of 10.0.0.7, and a TCP SYN from VM 100's address, port 40000.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pvefw_nft.errors import UsageError
from pvefw_nft.verify.model import (
    ADDRESS_TYPES,
    ARP,
    ARP_HLEN,
    ARP_HTYPE,
    ARP_OP,
    ARP_PLEN,
    ARP_PTYPE,
    ARP_SHA,
    ARP_SPA,
    ARP_THA,
    ARP_TPA,
    CT_DIRECTION,
    CT_MARK,
    CT_STATE,
    CT_STATES,
    CT_STATUS,
    DADDR4,
    DADDR6,
    DADDR_TYPE,
    DEFAULTS,
    DPORT,
    DSCP,
    ETHER_DST,
    ETHER_SRC,
    ETHER_TYPE,
    EXTENSION,
    FRAGMENT,
    ICMP,
    ICMP6,
    IPV4,
    IPV6,
    L4PROTO,
    LENGTH,
    MARK,
    ND_TARGET,
    PKTTYPE,
    PORT_PROTOCOLS,
    PROTOCOL,
    SADDR4,
    SADDR6,
    SADDR_TYPE,
    SKGID,
    SKUID,
    SPORT,
    TCP_FLAGS,
    TTL,
    VLAN,
    VLAN_ID,
    Field,
    FieldKind,
    has_field,
    names,
)
from pvefw_nft.verify.model.text import parse_value
from pvefw_nft.verify.network.path import (
    End,
    HostEnd,
    NicEnd,
    Path,
    PortEnd,
    RoutedEnd,
    Topology,
    candidates,
    choose_ends,
    find_ends,
    find_ends_elsewhere,
    find_ends_outside,
    find_path,
)
from pvefw_nft.verify.network.vlans import deliver_tagged
from pvefw_nft.verify.simulate.conntrack import first_state
from pvefw_nft.verify.simulate.contradictions import check_override, check_spec, known_field

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pvefw_nft.verify.model.intervals import IntervalSet
    from pvefw_nft.verify.network.path import Nic
    from pvefw_nft.verify.simulate.spec import PacketSpec

Address = tuple[int, int]
"""An IP version and an address of it."""

UNKNOWN_MAC = 0x020000000001
"""The MAC address of an end whose own is unknown: a locally administered address."""
HOST_MAC = 0x020000000002
EPHEMERAL_PORT = 40000
_OUTSIDE: Mapping[int, int] = {
    4: int(ipaddress.IPv4Address("198.51.100.1")),
    6: int(ipaddress.IPv6Address("2001:db8:ffff::1")),
}
"""Addresses for ends without a known one: those reserved for documentation (RFC 5737, RFC 3849)."""
_INSIDE: Mapping[int, int] = {
    4: int(ipaddress.IPv4Address("192.0.2.0")),
    6: int(ipaddress.IPv6Address("2001:db8::")),
}


@dataclass(frozen=True, slots=True)
class MadeUp:
    """An address that was made up: ``field`` is where the packet has it, ``end`` whose it is.

    ``stands_for_many``: the end is the outside, so any address is an example. ``option`` gives another one.
    """

    field: Field
    end: str
    option: str
    stands_for_many: bool = False


@dataclass(frozen=True, slots=True)
class Guess:
    """The verdicts for other values of one made-up address.

    ``otherwise`` gives, by verdict, addresses that lead to another one; empty: no address would. ``complete``: all
    addresses were tried that the rules tell apart.
    """

    made_up: MadeUp
    address: int
    otherwise: Mapping[str, IntervalSet]
    complete: bool = True


class ElsewhereError(UsageError):
    """Both ends of a packet are guests of other nodes, or one is and the other outside: it does not pass this one."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A packet ready to send: its fields (interfaces aside, which depend on the hook) and its path.

    With a ``topology`` simulate also tells whether the answer to a rejected packet arrives. ``made_up`` are the
    addresses that no file gives, ``about`` further remarks about the packet.
    """

    fields: Mapping[Field, int]
    path: Path
    topology: Topology | None = None
    made_up: tuple[MadeUp, ...] = ()
    about: tuple[str, ...] = ()


def make_probe(spec: PacketSpec, topology: Topology) -> Probe:
    """Return the packet and path that a description means.

    Raises UsageError for ends that do not exist, and for values that contradict one another or cannot be read.
    """
    try:
        return _Maker(spec, topology).make()
    except (ValueError, KeyError) as error:
        raise UsageError(f"there is no such packet: {error}") from None


class _Maker:
    def __init__(self, spec: PacketSpec, topology: Topology) -> None:
        self.spec = spec
        self.topology = topology
        destination, port = _split_port(spec.destination)
        check_spec(spec, port)
        self.dport = spec.dport if spec.dport is not None else port
        self.source_address = _given_address(spec.source_address) or _address(spec.source)
        self.destination_address = _given_address(spec.destination_address) or _address(destination)
        source_guests, destination_guests = (self._elsewhere(zone) for zone in (spec.source, destination))
        if source_guests and destination_guests:
            nodes = {nic.node for guests in (source_guests, destination_guests) for nic in guests.values()}
            raise ElsewhereError(
                f"{spec.source} and {destination} run on other nodes: packets between them do not pass this one",
                f"name one of their nodes with --node: {', '.join(sorted(nodes))}",
            )
        source_ends = [*source_guests] or self._ends(spec.source, self.source_address)
        self.source, self.destination = choose_ends(
            source_ends, [*destination_guests] or self._ends(destination, self.destination_address, source_ends[0])
        )
        if (source_guests or destination_guests) and self.source == self.destination:
            nodes = {nic.node for guests in (source_guests, destination_guests) for nic in guests.values()}
            raise ElsewhereError(
                f"{spec.source} and {destination} are both beyond {self.source}: this node is not between them",
                f"name another node with --node: {', '.join(sorted(nodes))}",
            )
        self.source_guest = source_guests.get(self.source) or _nic_of(self.source)
        self.destination_guest = destination_guests.get(self.destination) or _nic_of(self.destination)
        self.made_up: list[MadeUp] = []

    def _elsewhere(self, zone: str) -> dict[End, Nic]:
        """Return by which ends a guest of another node is reached, where a zone or address means one."""
        topology = self.topology
        address = _address(zone)
        if any(nic.is_called(zone) for nic in candidates(topology.nics, zone)):
            return {}
        if address is not None and any(address in nic.addresses for nic in topology.nics):
            return {}
        if address is None:
            nics = [nic for nic in candidates(topology.elsewhere, zone) if zone in (nic.zone, nic.name)]
        else:
            nics = [nic for nic in topology.elsewhere if address in nic.addresses]
        return find_ends_elsewhere(topology, nics)

    def _ends(self, zone: str, address: Address | None, other: End | None = None) -> list[End]:
        """Return the ends that a zone or address means."""
        if _address(zone) is None:
            return find_ends(self.topology, zone)
        assert address is not None  # zone is one
        topology = self.topology
        nics = [NicEnd(nic) for nic in topology.nics if address in nic.addresses]
        if nics:
            return [*nics]
        networks = [network for link in topology.links for network in link.networks]
        if any((network.version, network.address) == address for network in networks):
            return [HostEnd()]
        # packets to a group leave by an uplink, whichever member is meant
        if self._is_group(address) and isinstance(other, (NicEnd, HostEnd)):
            return find_ends_outside(topology)
        local = [link for link in topology.links if any(n.contains(*address) for n in link.networks)]
        outside = find_ends_outside(topology)
        # an address of one of the host's networks is behind the interface of this network
        near = [end for end in outside if any(str(end).split("/")[0] == link.name for link in local)]
        return near or outside or [HostEnd()]

    @staticmethod
    def _is_group(address: Address) -> bool:
        version, number = address
        ip = ipaddress.IPv4Address(number) if version == 4 else ipaddress.IPv6Address(number)
        return ip.is_multicast or (version == 4 and number == 0xFFFFFFFF)

    def make(self) -> Probe:
        self._same_vlan()
        path = find_path(self.topology, self.source, self.destination)
        tag = self.spec.vlan if self.spec.vlan is not None else self._own_tag()
        if tag is not None:
            path = deliver_tagged(self.topology, path, tag)
        fields: dict[Field, int] = dict.fromkeys((*MARK, *CT_MARK, *CT_STATUS.values()), 0)
        for bit, on in enumerate(MARK):
            fields[on] = self.spec.mark >> bit & 1
        protocol = self._protocol()
        fields[PROTOCOL] = protocol
        if protocol in (IPV4, IPV6):
            self._ip(fields, 4 if protocol == IPV4 else 6)
        elif protocol == ARP:
            self._arp(fields)
        state = (self.spec.ctstate or first_state(fields)).lower()
        if state not in CT_STATES:
            raise ValueError(f"ctstate is one of {', '.join(CT_STATES)}, not {state}")
        # A bridge's connection tracking leaves all but IP untracked (net/bridge/netfilter/nf_conntrack_bridge.c).
        fields[CT_STATE] = CT_STATES.index(state if protocol in (IPV4, IPV6) else "untracked")
        _set_defaults(fields, CT_DIRECTION)
        self._link(fields)
        _set_defaults(fields, *(on for on in DEFAULTS if on not in fields and has_field(fields, on)))
        for name, value in self.spec.overrides:
            on = known_field(name)
            check_override(on, fields)
            fields[on] = parse_value(on, value)
        given = {known_field(name) for name, _ in self.spec.overrides}
        made_up = tuple(one for one in self.made_up if one.field not in given)
        return Probe(fields, path, self.topology, made_up, tuple(self._about()))

    def _same_vlan(self) -> None:
        """Refuse a packet between guests of one bridge in two VLANs, if one of them runs on another node."""
        source, destination = self.source_guest, self.destination_guest
        if source is None or destination is None or source.bridge != destination.bridge:
            return
        if (source.node or destination.node) and source.tag != destination.tag:
            raise UsageError(
                f"{source.name} (VLAN {source.tag}) and {destination.name} (VLAN {destination.tag}) do not reach each"
                " other directly",
                "simulate the way from the router, which is outside: --from outside",
            )

    def _own_tag(self) -> int | None:
        """Return the VLAN of the sending NIC, whose frames come to the host with that tag."""
        nic = self.source_guest
        return nic.tag if nic is not None and nic.tag else None

    def _about(self) -> Iterator[str]:
        for nic in (self.source_guest, self.destination_guest):
            if nic is not None and nic.node:
                yield f"{nic.name} runs on node {nic.node}: the filters of that node are not simulated"

    def _protocol(self) -> int:
        spec = self.spec
        if spec.ether_type is not None:
            return names.ether_type(spec.ether_type)
        if spec.protocol == "arp" or spec.arp_sender is not None:
            return ARP
        versions = {a[0] for a in (self.source_address, self.destination_address) if a is not None}
        if spec.family is not None:
            versions.add(spec.family)
        if spec.protocol in ("icmpv6", "ipv6-icmp") or (spec.protocol == "58" and not versions):
            versions.add(6)
        if len(versions) > 1:
            raise ValueError("IPv4 and IPv6 do not go together in one packet")
        return IPV6 if versions == {6} else IPV4

    # --- IP -------------------------------------------------------------------------------------------------

    def _ip(self, fields: dict[Field, int], version: int) -> None:
        source, destination = (SADDR4, DADDR4) if version == 4 else (SADDR6, DADDR6)
        fields[source] = self._source(source)
        fields[destination] = self._destination(destination)
        fields[SADDR_TYPE] = self._address_type(version, fields[source], self.source)
        fields[DADDR_TYPE] = self._address_type(version, fields[destination], self.destination)
        for on in (SADDR_TYPE, DADDR_TYPE):
            here = Field(f"{on} here", len(ADDRESS_TYPES), FieldKind.ENUM, ADDRESS_TYPES)
            fields[here] = fields[on]
        number = self._transport(version)
        fields[L4PROTO] = number
        if version == 6:
            _set_defaults(fields, EXTENSION)
        fragment = self.spec.fragment or FRAGMENT.names[DEFAULTS[FRAGMENT]]
        if fragment not in FRAGMENT.names:
            raise ValueError(f"fragment is one of {', '.join(FRAGMENT.names)}, not {fragment}")
        fields[FRAGMENT] = FRAGMENT.names.index(fragment)
        _set_defaults(fields, TTL, DSCP, LENGTH)
        if isinstance(self.source, HostEnd):
            fields[SKUID] = fields[SKGID] = self.spec.uid or 0
        # a later fragment has no transport header
        if fragment != "later":
            self._transport_header(fields, number, version)

    def _transport(self, version: int) -> int:
        name = self.spec.protocol
        if name is None:
            if self.dport is None and self.spec.sport is None and self.spec.tcp_flags is None:
                # nothing tells of ports: a ping
                return 1 if version == 4 else 58
            return 6
        return names.protocol_number("icmpv6" if name == "icmp" and version == 6 else name)

    def _transport_header(self, fields: dict[Field, int], number: int, version: int) -> None:
        spec = self.spec
        protocol = "udp" if number == 17 else "tcp"
        if number in PORT_PROTOCOLS:
            fields[SPORT] = names.port_number(str(EPHEMERAL_PORT if spec.sport is None else spec.sport), protocol)
            fields[DPORT] = names.port_number(str(80 if self.dport is None else self.dport), protocol)
        elif self.dport is not None or spec.sport is not None:
            raise ValueError(f"protocol {spec.protocol or number} has no ports")
        if number == 6:
            # later packets of a connection have no SYN
            default = "syn" if spec.ctstate in (None, "new") else "ack"
            fields[TCP_FLAGS] = names.tcp_flags(default if spec.tcp_flags is None else spec.tcp_flags)
        elif number == 1 and version == 4:
            fields[ICMP] = names.icmp_set(spec.icmp_type or "echo-request", names.ICMP_TYPES).smallest()
        elif number == 58 and version == 6:
            fields[ICMP6] = names.icmp_set(spec.icmp_type or "echo-request", names.ICMP6_TYPES).smallest()
            if fields[ICMP6] >> 8 in (135, 136):  # who is that? this is me (RFC 4861, section 4.4)
                fields[ND_TARGET] = fields[DADDR6 if fields[ICMP6] >> 8 == 135 else SADDR6]
        elif spec.icmp_type is not None:
            raise ValueError("an ICMP type needs protocol icmp or icmpv6")

    def _source(self, on: Field) -> int:
        if self.source_address is not None:
            return self.source_address[1]
        return self._end_address(on, self.source, self.source_guest, "--source")

    def _destination(self, on: Field) -> int:
        if self.destination_address is not None:
            return self.destination_address[1]
        return self._end_address(on, self.destination, self.destination_guest, "--dest")

    def _end_address(self, on: Field, end: End, guest: Nic | None, option: str) -> int:
        """Return the address a packet has at one end where none is given: a known one, or one made up for it."""
        version = 4 if on.kind is FieldKind.IPV4 else 6
        if guest is not None:
            known = [number for v, number in guest.addresses if v == version]
            if known:
                return known[0]
            self.made_up.append(MadeUp(on, guest.name, option))
            ranges = [(first, last) for v, first, last in guest.ranges if v == version]
            if ranges:
                first, last = ranges[0]
                return min(first + 1 + guest.vmid % 200, last)
            return _INSIDE[version] + 1 + guest.vmid % 200
        if isinstance(end, HostEnd):
            found = self._host_address(version)
            if found is None:
                self.made_up.append(MadeUp(on, "host", option))
            return _INSIDE[version] + 254 if found is None else found
        self.made_up.append(MadeUp(on, str(end), option, stands_for_many=True))
        return _OUTSIDE[version]

    def _host_address(self, version: int) -> int | None:
        """Return an address of the host: one of the interface that the other end is behind, where it has any."""
        other = self.destination if isinstance(self.source, HostEnd) else self.source
        links = sorted(self.topology.links, key=lambda link: link.name != _link_name(other))
        return next((n.address for link in links for n in link.networks if n.version == version), None)

    def _address_type(self, version: int, address: int, end: End) -> int:
        """Return the kind of an address in the host's routing tables (fib_frontend.c, inet_addr_type).

        An address given for the host itself counts as one of its own.
        """
        kind = "local" if isinstance(end, HostEnd) else "unicast"
        if self._is_group((version, address)):
            kind = "broadcast" if version == 4 and address == 0xFFFFFFFF else "multicast"
        elif version == 4 and address == 0:
            # inet_addr_type says so of 0.0.0.0, which DHCP clients have
            kind = "broadcast"
        elif version == 4 and address >> 24 == 127:
            kind = "local"
        for link in self.topology.links:
            for network in link.networks:
                if (network.version, network.address) == (version, address):
                    kind = "local"
                last = network.address | ((1 << (32 - network.length)) - 1) if network.version == 4 else -1
                # a network of two addresses has no broadcast address (RFC 3021)
                if version == network.version == 4 and address == last and network.length < 31:
                    kind = "broadcast"
        return ADDRESS_TYPES.index(kind)

    # --- ARP and frames -------------------------------------------------------------------------------------

    def _arp(self, fields: dict[Field, int]) -> None:
        sender = _given_address(self.spec.arp_sender)
        if any(
            given is not None and given[0] == 6 for given in (sender, self.source_address, self.destination_address)
        ):
            raise ValueError("ARP is of IPv4 only: for IPv6, simulate -p icmpv6 --icmp-type neighbour-solicitation")
        _set_defaults(fields, ARP_HTYPE, ARP_PTYPE, ARP_HLEN, ARP_PLEN, ARP_OP)
        fields[ARP_SPA] = self._source(ARP_SPA) if sender is None else sender[1]
        fields[ARP_TPA] = self._destination(ARP_TPA)
        fields[ARP_SHA] = self._mac(self.source, self.source_guest, self.spec.mac)
        _set_defaults(fields, ARP_THA)

    @staticmethod
    def _mac(end: End, guest: Nic | None, given: str | None) -> int:
        if given is not None:
            return names.mac_number(given)
        if guest is not None and guest.mac is not None:
            return guest.mac
        return HOST_MAC if isinstance(end, HostEnd) else UNKNOWN_MAC

    def _link(self, fields: dict[Field, int]) -> None:
        spec = self.spec
        fields[ETHER_SRC] = self._mac(self.source, self.source_guest, spec.mac)
        fields[ETHER_DST] = self._mac(self.destination, self.destination_guest, spec.destination_mac)
        if spec.destination_mac is None:
            if fields.get(DADDR_TYPE) == ADDRESS_TYPES.index("broadcast") or fields[PROTOCOL] == ARP:
                fields[ETHER_DST] = 0xFFFFFFFFFFFF
            elif DADDR4 in fields and fields[DADDR_TYPE] == ADDRESS_TYPES.index("multicast"):
                fields[ETHER_DST] = 0x01005E000000 | (fields[DADDR4] & 0x7FFFFF)  # RFC 1112 section 6.4
            elif DADDR6 in fields and fields[DADDR_TYPE] == ADDRESS_TYPES.index("multicast"):
                fields[ETHER_DST] = 0x333300000000 | (fields[DADDR6] & 0xFFFFFFFF)  # RFC 2464 section 7
        _set_defaults(fields, PKTTYPE)  # a unicast frame; below what follows from other addresses
        if fields[ETHER_DST] == 0xFFFFFFFFFFFF:
            fields[PKTTYPE] = 1
        elif fields[ETHER_DST] >> 40 & 1:
            fields[PKTTYPE] = 2
        fields[ETHER_TYPE] = fields[PROTOCOL]
        if spec.vlan is not None:
            if not 0 <= spec.vlan < 4096:
                raise ValueError(f"no VLAN: {spec.vlan}")
            fields[ETHER_TYPE], fields[VLAN_ID] = VLAN, spec.vlan


def _set_defaults(fields: dict[Field, int], *of: Field) -> None:
    """Give a packet the declared values of these fields. Reports write the fields in the order in which they are set.

    Addresses, ports, flags and the like are not declared: they follow from the ends and the rest of the packet.
    """
    fields |= {on: DEFAULTS[on] for on in of}


# --- text ---------------------------------------------------------------------------------------------------


def _split_port(text: str) -> tuple[str, str | None]:
    """Return an end and the port behind it: ``10.0.0.7:22``, ``[fd00::7]:22``, ``vm100:22``."""
    if text.startswith("["):
        address, _, port = text[1:].partition("]")
        return address, port.removeprefix(":") or None
    if text.count(":") == 1:
        end, _, port = text.partition(":")
        return end, port
    return text, None


def _link_name(end: End) -> str:
    """Return the host's interface that an end is behind; of the host itself, ``lo``."""
    match end:
        case HostEnd():
            return "lo"
        case NicEnd(nic):
            return nic.bridge
        case PortEnd(bridge, _):
            return bridge
        case RoutedEnd(interface):
            return interface


def _nic_of(end: End) -> Nic | None:
    return end.nic if isinstance(end, NicEnd) else None


def _given_address(text: str | None) -> Address | None:
    """Return an address that must be one where it is given. Raises ValueError."""
    address = _address(text)
    if text is not None and address is None:
        raise ValueError(f"not an address: {text}")
    return address


def _address(text: str | None) -> Address | None:
    """Return an address with its version, or None if the text is none."""
    if text is None:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return address.version, int(address)
