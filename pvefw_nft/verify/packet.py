"""From a description of a packet in an administrator's words to its fields and its way through the host.

Example: ``PacketSpec(source="vm100", destination="10.0.0.7:22", protocol="tcp")`` gives the path from VM 100
to whoever has 10.0.0.7, and a TCP SYN from VM 100's address, port 40000.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pvefw_nft.errors import UsageError
from pvefw_nft.verify import names
from pvefw_nft.verify.conntrack import first_state
from pvefw_nft.verify.describe import parse_value
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
    DPORT,
    DSCP,
    ETHER_DST,
    ETHER_SRC,
    ETHER_TYPE,
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
    field_named,
)
from pvefw_nft.verify.path import (
    End,
    HostEnd,
    NicEnd,
    Path,
    Topology,
    choose_ends,
    find_ends,
    find_ends_outside,
    find_path,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

Address = tuple[int, int]
"""An IP version and an address of it."""

UNKNOWN_MAC = 0x020000000001
"""What a frame's addresses are where nobody knows them: a locally administered address."""
HOST_MAC = 0x020000000002
EPHEMERAL_PORT = 40000
_OUTSIDE: Mapping[int, int] = {
    4: int(ipaddress.IPv4Address("198.51.100.1")),
    6: int(ipaddress.IPv6Address("2001:db8:ffff::1")),
}
"""Addresses for whoever has none known: those kept for documentation (RFC 5737, RFC 3849)."""
_INSIDE: Mapping[int, int] = {
    4: int(ipaddress.IPv4Address("192.0.2.0")),
    6: int(ipaddress.IPv6Address("2001:db8::")),
}


@dataclass(frozen=True, slots=True)
class PacketSpec:
    """A packet as asked for; None or empty is what a new, ordinary packet has.

    ``source`` and ``destination`` are zones or addresses, the destination may carry a port (``10.0.0.7:22``,
    ``[fd00::7]:22``, ``vm100:22``). ``protocol`` is a name or number, or ``arp`` or another ether type by
    ``ether_type``. ``ctstate`` None: what connection tracking makes of such a packet when it knows no connection of it,
    which for most is new. ``family`` is 4 or 6. ``mark`` is the packet mark. ``overrides`` sets fields by their names,
    after all else.
    """

    source: str
    destination: str
    protocol: str | None = None
    source_address: str | None = None
    destination_address: str | None = None
    sport: int | str | None = None
    dport: int | str | None = None
    icmp_type: str | None = None
    tcp_flags: str | None = None
    ctstate: str | None = None
    mac: str | None = None
    destination_mac: str | None = None
    vlan: int | None = None
    fragment: str | None = None
    mark: int = 0
    family: int | None = None
    ether_type: str | None = None
    arp_sender: str | None = None
    uid: int | None = None
    overrides: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Probe:
    """A packet ready to send: its fields (interfaces aside, which depend on the hook) and its path.

    With the ``topology`` simulate also says whether the answer to a rejected packet arrives.
    """

    fields: Mapping[Field, int]
    path: Path
    topology: Topology | None = None


def make_probe(spec: PacketSpec, topology: Topology) -> Probe:
    """Return the packet and path that a description means.

    Raises UsageError for what does not exist, does not fit together or cannot be read.
    """
    try:
        return _Maker(spec, topology).make()
    except (ValueError, KeyError) as error:
        raise UsageError(f"not a packet: {error}") from None


class _Maker:
    def __init__(self, spec: PacketSpec, topology: Topology) -> None:
        self.spec = spec
        self.topology = topology
        destination, port = _split_port(spec.destination)
        self.dport = spec.dport if spec.dport is not None else port
        self.source_address = _address(spec.source_address) or _address(spec.source)
        self.destination_address = _address(spec.destination_address) or _address(destination)
        source_ends = self._ends(spec.source, self.source_address)
        self.source, self.destination = choose_ends(
            source_ends, self._ends(destination, self.destination_address, source_ends[0])
        )

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
        if self._is_group(address) and isinstance(other, (NicEnd, HostEnd)):
            return find_ends_outside(topology)
        local = [link for link in topology.links if any(n.contains(*address) for n in link.networks)]
        outside = find_ends_outside(topology)
        near = [end for end in outside if any(str(end).split("/")[0] == link.name for link in local)]
        return near or outside or [HostEnd()]

    @staticmethod
    def _is_group(address: Address) -> bool:
        version, number = address
        ip = ipaddress.IPv4Address(number) if version == 4 else ipaddress.IPv6Address(number)
        return ip.is_multicast or (version == 4 and number == 0xFFFFFFFF)

    def make(self) -> Probe:
        path = find_path(self.topology, self.source, self.destination)
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
        fields[CT_DIRECTION] = 0
        self._link(fields)
        for name, value in self.spec.overrides:
            on = field_named(name)
            fields[on] = parse_value(on, value)
        return Probe(fields, path, self.topology)

    def _protocol(self) -> int:
        spec = self.spec
        if spec.ether_type is not None:
            return names.ether_type(spec.ether_type)
        if spec.protocol == "arp" or spec.arp_sender is not None:
            return ARP
        versions = {a[0] for a in (self.source_address, self.destination_address) if a is not None}
        if spec.family is not None:
            versions.add(spec.family)
        if spec.protocol in ("icmpv6", "ipv6-icmp", "58"):
            versions.add(6)
        if len(versions) > 1:
            raise ValueError("IPv4 and IPv6 do not go together in one packet")
        return IPV6 if versions == {6} else IPV4

    # --- IP -------------------------------------------------------------------------------------------------

    def _ip(self, fields: dict[Field, int], version: int) -> None:
        source, destination = (SADDR4, DADDR4) if version == 4 else (SADDR6, DADDR6)
        fields[source] = self._end_address(self.source, self.source_address, version)
        fields[destination] = self._end_address(self.destination, self.destination_address, version)
        fields[SADDR_TYPE] = self._address_type(version, fields[source])
        fields[DADDR_TYPE] = self._address_type(version, fields[destination])
        for on in (SADDR_TYPE, DADDR_TYPE):
            here = Field(f"{on} here", len(ADDRESS_TYPES), FieldKind.ENUM, ADDRESS_TYPES)
            fields[here] = fields[on]
        number = self._transport(version)
        fields[L4PROTO] = number
        fragment = self.spec.fragment or "whole"
        if fragment not in FRAGMENT.names:
            raise ValueError(f"fragment is one of {', '.join(FRAGMENT.names)}, not {fragment}")
        fields[FRAGMENT] = FRAGMENT.names.index(fragment)
        fields[TTL], fields[DSCP], fields[LENGTH] = 64, 0, 60
        if isinstance(self.source, HostEnd):
            fields[SKUID] = fields[SKGID] = self.spec.uid or 0
        if fragment != "later":
            self._transport_header(fields, number, version)

    def _transport(self, version: int) -> int:
        name = self.spec.protocol
        if name is None:
            if self.dport is None and self.spec.sport is None and self.spec.tcp_flags is None:
                return 1 if version == 4 else 58
            return 6
        number = names.protocol_number("icmpv6" if name == "icmp" and version == 6 else name)
        if number == 1 and version == 6:
            return 58
        return number

    def _transport_header(self, fields: dict[Field, int], number: int, version: int) -> None:
        spec = self.spec
        protocol = "udp" if number == 17 else "tcp"
        if number in PORT_PROTOCOLS:
            fields[SPORT] = names.port_number(str(EPHEMERAL_PORT if spec.sport is None else spec.sport), protocol)
            fields[DPORT] = names.port_number(str(80 if self.dport is None else self.dport), protocol)
        elif self.dport is not None or spec.sport is not None:
            raise ValueError(f"protocol {spec.protocol or number} has no ports")
        if number == 6:
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

    def _end_address(self, end: End, given: Address | None, version: int) -> int:
        """Return the address a packet has at one end: as given, as known, or one made up for it."""
        if given is not None:
            return given[1]
        if isinstance(end, NicEnd):
            known = [number for v, number in end.nic.addresses if v == version]
            return known[0] if known else _INSIDE[version] + 1 + end.nic.vmid % 200
        if isinstance(end, HostEnd):
            networks = [n for link in self.topology.links for n in link.networks if n.version == version]
            return networks[0].address if networks else _INSIDE[version] + 254
        return _OUTSIDE[version]

    def _address_type(self, version: int, address: int) -> int:
        """Return the kind of an address in the host's routing tables (fib_frontend.c, inet_addr_type)."""
        kind = "unicast"
        if self._is_group((version, address)):
            kind = "broadcast" if version == 4 and address == 0xFFFFFFFF else "multicast"
        elif version == 4 and address == 0:
            kind = "broadcast"
        elif version == 4 and address >> 24 == 127:
            kind = "local"
        for link in self.topology.links:
            for network in link.networks:
                if (network.version, network.address) == (version, address):
                    kind = "local"
                last = network.address | ((1 << (32 - network.length)) - 1) if network.version == 4 else -1
                if version == network.version == 4 and address == last and network.length < 31:
                    kind = "broadcast"
        return ADDRESS_TYPES.index(kind)

    # --- ARP and frames -------------------------------------------------------------------------------------

    def _arp(self, fields: dict[Field, int]) -> None:
        sender = _address(self.spec.arp_sender)
        fields |= {ARP_HTYPE: 1, ARP_PTYPE: IPV4, ARP_HLEN: 6, ARP_PLEN: 4, ARP_OP: 1}  # RFC 826: a request
        fields[ARP_SPA] = self._end_address(self.source, sender or self.source_address, 4)
        fields[ARP_TPA] = self._end_address(self.destination, self.destination_address, 4)
        fields[ARP_SHA] = self._mac(self.source, self.spec.mac)
        fields[ARP_THA] = 0

    def _mac(self, end: End, given: str | None) -> int:
        if given is not None:
            return names.mac_number(given)
        if isinstance(end, NicEnd) and end.nic.mac is not None:
            return end.nic.mac
        return HOST_MAC if isinstance(end, HostEnd) else UNKNOWN_MAC

    def _link(self, fields: dict[Field, int]) -> None:
        spec = self.spec
        fields[ETHER_SRC] = self._mac(self.source, spec.mac)
        fields[ETHER_DST] = self._mac(self.destination, spec.destination_mac)
        if spec.destination_mac is None:
            if fields.get(DADDR_TYPE) == ADDRESS_TYPES.index("broadcast") or fields[PROTOCOL] == ARP:
                fields[ETHER_DST] = 0xFFFFFFFFFFFF
            elif DADDR4 in fields and fields[DADDR_TYPE] == ADDRESS_TYPES.index("multicast"):
                fields[ETHER_DST] = 0x01005E000000 | (fields[DADDR4] & 0x7FFFFF)  # RFC 1112 section 6.4
            elif DADDR6 in fields and fields[DADDR_TYPE] == ADDRESS_TYPES.index("multicast"):
                fields[ETHER_DST] = 0x333300000000 | (fields[DADDR6] & 0xFFFFFFFF)  # RFC 2464 section 7
        fields[PKTTYPE] = 0
        if fields[ETHER_DST] == 0xFFFFFFFFFFFF:
            fields[PKTTYPE] = 1
        elif fields[ETHER_DST] >> 40 & 1:
            fields[PKTTYPE] = 2
        fields[ETHER_TYPE] = fields[PROTOCOL]
        if spec.vlan is not None:
            if not 0 <= spec.vlan < 4096:
                raise ValueError(f"no VLAN: {spec.vlan}")
            fields[ETHER_TYPE], fields[VLAN_ID] = VLAN, spec.vlan


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


def _address(text: str | None) -> Address | None:
    """Return an address with its version, or None where the text is none."""
    if text is None:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return address.version, int(address)
