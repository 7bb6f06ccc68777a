"""Probes, and their bytes on the wire.

The bytes are made here and not by scapy: a probe needs its mark in every packet of every
protocol, and a test run builds tens of thousands of packets. A test compares them with scapy's bytes
for the same packets.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from .ip import Ends, checksum, datagrams, patched, pseudo_header
from .network.plan import HOST, WAN_MAC, Address, Endpoint, Plan, PlanError

if TYPE_CHECKING:
    from collections.abc import Sequence

MAGIC = b"pvL\xa5"
MARK_LENGTH = 16
EPHEMERAL = 32768
LARGE_FRAGMENT = 1232
"""Bytes in a fragment that makes an IPv6 packet of 1280 bytes: senders make none smaller (RFC 8200, section 5)."""
SMALL_FRAGMENT = 64
TINY_FRAGMENT = 8

ETHER_IPV4 = 0x0800
ETHER_ARP = 0x0806
ETHER_VLAN = 0x8100
ETHER_IPV6 = 0x86DD

FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
"""TCP flags (RFC 9293, section 3.1)."""


class Proto(IntEnum):
    """The IP protocols that have a header of their own here; any other number carries just the mark."""

    ICMP = 1
    IGMP = 2
    TCP = 6
    UDP = 17
    DCCP = 33
    GRE = 47
    ICMPV6 = 58
    SCTP = 132
    UDPLITE = 136


WITH_PORTS = frozenset({Proto.TCP, Proto.UDP, Proto.DCCP, Proto.SCTP, Proto.UDPLITE})


@dataclass(frozen=True, slots=True)
class Arp:
    """The content of an ARP packet: ``operation`` 1 (request) or 2 (reply), its IPv4 addresses, and the sender's MAC
    address, if it differs from the frame's. ``hardware`` is 1 (Ethernet), or 6 (IEEE 802), which Linux takes, too.
    """

    operation: int = 1
    sender: IPv4Address | None = None
    target: IPv4Address | None = None
    sender_mac: str | None = None
    hardware: int = 1


@dataclass(frozen=True, slots=True)
class Wrapping:
    """A header between the Ethernet header and the payload: the frame's ``type`` (or, in 802.3, a number up to 1500,
    for which the length is filled in), and the bytes of the header.
    """

    type: int
    header: bytes


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet from an endpoint to another; for None the endpoint's own value is used.

    ``sender`` and ``receiver`` are names of :class:`~.network.plan.Endpoint` or ``host``. ``family`` is 4 or 6; ``arp``
    or ``ethertype`` make it a frame without IP. ``destination`` may be any address: frames find their receiver by MAC
    address. Of ports not given, the source's differs from probe to probe (the destination's, if the packet is
    ``answering``), the other is 9. ``damage`` is ``ip`` or ``l4``: the checksum that is wrong. ``vlan`` is the tag the
    frame carries, over and above the network's own; ``tags`` are several, each its Ethernet type and VLAN id, the
    outermost first. ``wrapping`` is a header around the IP packet, or before the mark of a frame without IP.
    ``nd_target`` is the address that neighbour discovery is about. ``first_fragment`` makes it two fragments; it is the
    bytes in the first one, a multiple of 8. ``only_first`` leaves the second one out, ``last_first`` sends it first,
    and ``overlap`` is how many bytes of the first one it repeats, zeroed. ``ip_options`` stand behind the IPv4 header
    (a multiple of 4 bytes); ``extensions`` are the numbers of IPv6 extension headers, in order (44 is a fragment header
    of a whole packet). ``nd_flags`` is the first byte of a neighbour advertisement's flags. ``says`` is the beginning
    of a UDP datagram, before the mark: the request of a protocol that has a helper. ``patches`` are bytes that replace
    others, each with its place behind the Ethernet header and its tags; the checksum of an IPv4 header is made right
    again. ``cut`` is how many bytes are left behind that header.
    """

    sender: str
    receiver: str
    family: int = 4
    protocol: int = Proto.TCP
    source: Address | None = None
    destination: Address | None = None
    sport: int | None = None
    dport: int | None = None
    flags: int = SYN
    icmp_type: int | None = None
    icmp_code: int = 0
    quoted: Packet | None = None
    source_mac: str | None = None
    destination_mac: str | None = None
    vlan: int | None = None
    tags: tuple[tuple[int, int], ...] = ()
    wrapping: Wrapping | None = None
    ethertype: int | None = None
    arp: Arp | None = None
    nd_target: IPv6Address | None = None
    first_fragment: int | None = None
    only_first: bool = False
    last_first: bool = False
    overlap: int = 0
    ip_options: bytes = b""
    extensions: tuple[int, ...] = ()
    nd_flags: int = 0
    damage: str | None = None
    sequence: int = 0
    acknowledgement: int = 2048
    answering: bool = False
    says: bytes = b""
    patches: tuple[tuple[int, bytes], ...] = ()
    cut: int | None = None

    @property
    def is_ip(self) -> bool:
        """Whether the frame carries IP."""
        return self.arp is None and self.ethertype is None

    @property
    def outer_vlan(self) -> int | None:
        """The VLAN id of the outermost tag the frame carries over and above the network's own."""
        return self.tags[0][1] & 0xFFF if self.tags else self.vlan


@dataclass(frozen=True, slots=True)
class Probe:
    """Packets sent one after the other; the last one is judged. ``why`` gives the purpose."""

    packets: tuple[Packet, ...]
    why: str = ""

    @property
    def judged(self) -> Packet:
        """The packet whose fate is the probe's outcome."""
        return self.packets[-1]


def describe(probe: Probe) -> str:
    """Return a probe in one line, as far as it differs from an ordinary packet."""
    packet = probe.judged
    words = [f"{packet.sender} → {packet.receiver}"]
    if packet.is_ip:
        known = {number.value: number.name.lower() for number in Proto}
        words += [f"IPv{packet.family}", known.get(packet.protocol, f"protocol {packet.protocol}")]
        if packet.icmp_type is not None:
            words.append(f"type {packet.icmp_type}/{packet.icmp_code}")
    plain = {"sender", "receiver", "family", "protocol", "icmp_type", "icmp_code", "quoted"}
    for field in fields(packet):
        value = getattr(packet, field.name)
        if field.name not in plain and value != field.default:
            words.append(f"{field.name}={value}")
    if len(probe.packets) > 1:
        words.append(f"after {len(probe.packets) - 1} packets")
    return " ".join(words) + (f"  [{probe.why}]" if probe.why else "")


def backwards(packet: Packet, **changes: object) -> Packet:
    """Return the packet that answers this one: the other way, ports and addresses exchanged."""
    turned = replace(
        packet,
        sender=packet.receiver,
        receiver=packet.sender,
        source=packet.destination,
        destination=packet.source,
        sport=packet.dport,
        dport=packet.sport,
        flags=SYN | ACK,
        sequence=packet.acknowledgement,
        acknowledgement=packet.sequence + 1,
        source_mac=None,
        destination_mac=None,
        answering=not packet.answering,
    )
    if packet.icmp_type in _ANSWERS:
        turned = replace(turned, icmp_type=_ANSWERS[packet.icmp_type])
    return replace(turned, **changes)  # type: ignore[arg-type]  # the names are Packet's, the caller's to get right


_ANSWERS: dict[int | None, int] = {8: 0, 13: 14, 15: 16, 17: 18, 128: 129}


@dataclass(frozen=True, slots=True)
class Sent:
    """A probe's packet ready to be sent.

    ``namespace`` None: the host itself sends ``data`` (an IP packet) to ``destination``. Otherwise ``data``
    is a frame for the endpoint's interface in that namespace.
    """

    namespace: str | None
    data: bytes
    destination: Address | None = None


@dataclass(frozen=True, slots=True)
class Encoded:
    """A packet ready to send: its bytes, its addresses, and the flow it belongs to (None: no flow).

    ``reset`` holds the fields by which a reset shows the TCP packet that it rejects: sequence number and
    acknowledgement. One of them is None, because it does not come from the packet.
    """

    sent: tuple[Sent, ...]
    source: Address | None
    destination: Address | None
    flow: tuple[object, ...] | None
    reset: tuple[int | None, int | None] = (None, None)


@dataclass(frozen=True, slots=True)
class Numbered:
    """The sender: the network, the run (a new number each time), and the probe's number in it."""

    plan: Plan
    run: int
    number: int
    step: int = 0

    @property
    def mark(self) -> bytes:
        """The bytes that tell this packet from all others; 16 of them, often repeated."""
        return struct.pack("!4sHIB5x", MAGIC, self.run & 0xFFFF, self.number, self.step)


def read_mark(data: bytes) -> tuple[int, int, int] | None:
    """Return run, probe number and step of the first mark in ``data``, or None if there is none."""
    at = data.find(MAGIC)
    if at < 0 or at + 11 > len(data):
        return None
    _, run, number, step = struct.unpack_from("!4sHIB", data, at)
    return run, number, step


def encode(packet: Packet, who: Numbered) -> Encoded:
    """Return the packet as bytes, with its mark inside.

    Raises:
        PlanError: there is no such endpoint, or no way to send this from there.
    """
    if not packet.is_ip:
        return Encoded((Sent(_endpoint(packet, who).namespace, _plain_frame(packet, who)),), None, None, None)
    source = packet.source or _address(packet.sender, packet.receiver, packet.family, who.plan)
    destination = packet.destination or _address(packet.receiver, packet.sender, packet.family, who.plan)
    if not source.version == destination.version == packet.family:
        raise PlanError(f"addresses of another family than {packet.family}: {source}, {destination}")
    sport, dport = _ports(packet, who.number)
    body = _body(replace(packet, sport=sport, dport=dport), source, destination, who)
    sent_as = datagrams(packet, Ends(source, destination, _hop_limit(packet), who.number), body)
    identity: object = None  # connection tracking knows protocols without ports by their addresses alone
    if packet.protocol in WITH_PORTS:
        identity = (sport, dport)
    elif packet.protocol in (Proto.ICMP, Proto.ICMPV6):
        identity = who.number & 0xFFFF
    flow = (packet.protocol, source, destination, identity)
    if packet.sender == HOST:
        sent = tuple(Sent(None, datagram, destination) for datagram in sent_as)
    else:
        endpoint = _endpoint(packet, who)
        header = _ethernet(packet, endpoint, destination, ETHER_IPV4 if packet.family == 4 else ETHER_IPV6, who.plan)
        sent = tuple(Sent(endpoint.namespace, header + patched(packet, datagram)) for datagram in sent_as)
    reset = _reset(packet, len(body), who) if packet.protocol == Proto.TCP else (None, None)
    return Encoded(sent, source, destination, flow, reset)


def _endpoint(packet: Packet, who: Numbered) -> Endpoint:
    if packet.sender == HOST:
        raise PlanError("the host's own IP stack sends no frames without IP")
    return who.plan.endpoint(packet.sender, packet.receiver)


def _address(name: str, other: str, family: int, plan: Plan) -> Address:
    if name == HOST:
        return plan.host_address(family)
    endpoint = plan.endpoint(name, other)
    return endpoint.v4 if family == 4 else endpoint.v6


def _ports(packet: Packet, number: int) -> tuple[int, int]:
    ephemeral = EPHEMERAL + number % 28000
    sport, dport = (9, ephemeral) if packet.answering else (ephemeral, 9)
    return (
        packet.sport if packet.sport is not None else sport,
        packet.dport if packet.dport is not None else dport,
    )


# --- link layer ---------------------------------------------------------------------------------------------


def mac_bytes(text: str) -> bytes:
    """Return the six bytes of a MAC address."""
    return bytes.fromhex(text.replace(":", ""))


def _ethernet(packet: Packet, sender: Endpoint, destination: Address | None, ethertype: int, plan: Plan) -> bytes:
    target = packet.destination_mac or _target_mac(packet, sender, destination, plan)
    header = mac_bytes(target) + mac_bytes(packet.source_mac or sender.mac)
    if sender.tag is not None and packet.vlan is not None:
        raise PlanError(f"{sender.name} is tagged already")
    tags = packet.tags if packet.vlan is None else ((ETHER_VLAN, packet.vlan), *packet.tags)
    if sender.tag is not None:
        tags = ((ETHER_VLAN, sender.tag), *tags)
    header += b"".join(struct.pack("!HH", *tag) for tag in tags)
    if packet.wrapping is not None:
        return header + struct.pack("!H", packet.wrapping.type) + packet.wrapping.header
    return header + struct.pack("!H", ethertype)


def _target_mac(packet: Packet, sender: Endpoint, destination: Address | None, plan: Plan) -> str:
    """Return the MAC address a sender would use: the receiver's on the same bridge, the host's otherwise."""
    match destination:
        case IPv4Address() if destination.is_multicast:
            low = int(destination) & 0x7FFFFF
            return f"01:00:5e:{low >> 16:02x}:{low >> 8 & 0xFF:02x}:{low & 0xFF:02x}"  # RFC 1112, section 6.4
        case IPv6Address() if destination.is_multicast:
            return "33:33:" + ":".join(f"{byte:02x}" for byte in destination.packed[-4:])  # RFC 2464, section 7
        case IPv4Address() if destination in _broadcasts(plan):
            return "ff:ff:ff:ff:ff:ff"
        case _:
            pass
    if packet.receiver != HOST:
        receiver = plan.endpoint(packet.receiver, packet.sender)
        if receiver.bridge is not None and receiver.bridge == sender.bridge:
            return receiver.mac
    return WAN_MAC if sender.bridge is None else plan.bridge(sender.bridge).mac


def _broadcasts(plan: Plan) -> set[IPv4Address]:
    own = {i.network.broadcast_address for i in plan.host if i.version == 4}
    return {IPv4Address("255.255.255.255"), *(address for address in own if isinstance(address, IPv4Address))}


def _plain_frame(packet: Packet, who: Numbered) -> bytes:
    """Return an ARP frame, with the mark as its trailer, or one of another type with just the mark."""
    sender = _endpoint(packet, who)
    if packet.arp is None:
        ethertype = packet.ethertype or 0
        return _ethernet(packet, sender, None, ethertype, who.plan) + patched(packet, who.mark * 3)
    arp = packet.arp
    own = arp.sender or sender.v4
    target = arp.target or _address(packet.receiver, packet.sender, 4, who.plan)
    if arp.operation == 1 and packet.destination_mac is None:
        packet = replace(packet, destination_mac="ff:ff:ff:ff:ff:ff")
    header = _ethernet(packet, sender, None, ETHER_ARP, who.plan)
    # RFC 826: Ethernet, IPv4, lengths 6 and 4.
    body = struct.pack("!HHBBH", arp.hardware, ETHER_IPV4, 6, 4, arp.operation)
    body += mac_bytes(arp.sender_mac or packet.source_mac or sender.mac) + own.packed + bytes(6) + target.packed
    return header + patched(packet, body + bytes(2) + who.mark)


# --- transport layer ----------------------------------------------------------------------------------------


def _marks(first_fragment: int | None) -> int:
    """Return how often a packet carries its mark: in fragments so often that each has one, or the second is large."""
    if first_fragment is None:
        return 3
    return 2 * first_fragment // MARK_LENGTH if first_fragment >= SMALL_FRAGMENT else LARGE_FRAGMENT // MARK_LENGTH + 4


def _body(packet: Packet, source: Address, destination: Address, who: Numbered) -> bytes:
    """Return the payload of the IP packet: the protocol's header, and several copies of the mark."""
    mark = who.mark * _marks(packet.first_fragment)
    match packet.protocol:
        case Proto.TCP:
            body, at = _tcp(packet, who) + mark, 16
        case Proto.UDP | Proto.UDPLITE:
            mark = packet.says + mark
            length = 8 + len(mark)  # of UDP-Lite the part its checksum covers: all of it
            body, at = struct.pack("!HHHH", packet.sport, packet.dport, length, 0) + mark, 6
        case Proto.ICMP | Proto.ICMPV6:
            body, at = _icmp(packet, source, destination, who, mark), 2
        case Proto.IGMP:
            group = destination.packed[-4:]
            body, at = struct.pack("!BBH4s", 0x16, 0, 0, group) + mark, 2  # RFC 2236: membership report
        case Proto.DCCP:
            # RFC 4340, section 5.1: a Request with a 48 bit sequence number and a service code.
            header = struct.pack("!HHBBHBBHII", packet.sport, packet.dport, 5, 0, 0, 1, 0, 0, who.number, 0)
            body, at = header + mark, 6
        case Proto.SCTP:
            return _sctp(packet, who)
        case Proto.GRE:
            return struct.pack("!HH", 0, ETHER_IPV4) + mark
        case _:
            return mark
    pseudo = b""
    if packet.protocol not in (Proto.ICMP, Proto.IGMP):
        # Connection tracking checks UDP-Lite as if it were UDP (udplite_error in Linux 6.1,
        # nf_conntrack_proto_udp.c): it takes what RFC 3828 asks for as invalid, and only this for valid.
        protocol = Proto.UDP if packet.protocol == Proto.UDPLITE else packet.protocol
        pseudo = pseudo_header(source, destination, protocol, len(body))
    total = checksum(pseudo + body) ^ (0x5555 if packet.damage == "l4" else 0)
    if total == 0 and packet.protocol in (Proto.UDP, Proto.UDPLITE):
        total = 0xFFFF
    return body[:at] + struct.pack("!H", total) + body[at + 2 :]


def _hop_limit(packet: Packet) -> int:
    if packet.protocol == Proto.ICMPV6 and packet.icmp_type in range(133, 138):
        return 255  # RFC 4861: else a receiver ignores it
    return 1 if packet.protocol == Proto.IGMP else 64


def sequence_base(number: int) -> int:
    """Return the first TCP sequence number of a probe: a rejection shows it, so its probe can be found."""
    return (number & 0xFFFFF) << 12


def _tcp(packet: Packet, who: Numbered) -> bytes:
    base = sequence_base(who.number)
    return struct.pack(
        "!HHIIBBHHH",
        packet.sport,
        packet.dport,
        base + packet.sequence,
        base + packet.acknowledgement,
        5 << 4,
        packet.flags,
        8192,
        0,
        1 if packet.flags & URG else 0,
    )


def _reset(packet: Packet, length: int, who: Numbered) -> tuple[int | None, int | None]:
    """Return sequence number and acknowledgement of a reset that answers a TCP packet of so many bytes.

    Source: nf_reject_ip_tcphdr_put and nf_reject_ip6_tcphdr_put of Linux 6.1 (net/ipv4/netfilter/nf_reject_ipv4.c,
    net/ipv6/netfilter/nf_reject_ipv6.c), which follow RFC 9293, section 3.5.2.
    """
    base = sequence_base(who.number)
    if packet.flags & ACK:
        return base + packet.acknowledgement, None
    counted = length - 20 + bool(packet.flags & SYN) + bool(packet.flags & FIN)
    return None, base + packet.sequence + counted


def _quoted(packet: Packet, source: Address, destination: Address, who: Numbered) -> bytes:
    """Return the IP packet that an ICMP error is about; by default one from the error's receiver to its sender."""
    quoted = packet.quoted
    assert quoted is not None
    sport, dport = _ports(quoted, who.number)
    from_, to = quoted.source or destination, quoted.destination or source
    body = _body(replace(quoted, sport=sport, dport=dport), from_, to, who)
    (whole,) = datagrams(quoted, Ends(from_, to, _hop_limit(quoted), who.number), body)
    return whole


def _redirected(packet: Packet, source: Address, destination: Address, who: Numbered) -> bytes:
    """Return the option in which a redirect quotes a packet (RFC 4861, section 4.6.3)."""
    whole = _quoted(packet, source, destination, who)
    whole += bytes(-len(whole) % 8)
    return struct.pack("!BB6x", 4, 1 + len(whole) // 8) + whole


ICMP_ERRORS = {4: frozenset({3, 4, 5, 11, 12}), 6: frozenset({1, 2, 3, 4})}
"""ICMP types that quote the packet they are about."""


def _icmp(packet: Packet, source: Address, destination: Address, who: Numbered, mark: bytes) -> bytes:
    kind = packet.icmp_type if packet.icmp_type is not None else (8 if packet.family == 4 else 128)
    header = struct.pack("!BBH", kind, packet.icmp_code, 0)
    told = mark[:2032]  # an option has at most 255 times 8 bytes; receivers ignore unknown ones (RFC 4861, section 4.6)
    option = struct.pack("!BB6x", 253, 1 + len(told) // 8) + told
    if kind in ICMP_ERRORS[packet.family]:
        quoted = packet.quoted or Packet(packet.receiver, packet.sender, packet.family, Proto.UDP)
        whole = _quoted(replace(packet, quoted=quoted), source, destination, who)
        second = bytes(4)
        if (packet.family, kind) in ((4, 3), (6, 2)):
            second = struct.pack("!I", 1280)
        elif (packet.family, kind) == (4, 5):  # the router to take (RFC 792)
            second = source.packed
        return header + second + whole
    if packet.family == 6:
        match kind:
            case 133:
                return header + bytes(4) + option
            case 134:
                return header + bytes(12) + option
            case 135 | 136:
                target = packet.nd_target or (destination if kind == 135 and not destination.is_multicast else source)
                return header + struct.pack("!B3x", packet.nd_flags) + target.packed + option
            case 137:
                begin = header + bytes(4) + source.packed + destination.packed
                return begin + (option if packet.quoted is None else _redirected(packet, source, destination, who))
            case _:
                pass
    identifier = struct.pack("!HH", who.number & 0xFFFF, 1)
    return header + identifier + mark


def _sctp(packet: Packet, who: Numbered) -> bytes:
    """Return an INIT chunk (RFC 9260, section 3.3.2) whose one optional parameter is the mark."""
    parameter = struct.pack("!HH", 0xC0FE, 4 + MARK_LENGTH) + who.mark
    init = struct.pack("!IIHHI", who.number + 1, 65536, 1, 1, who.number)
    chunk = struct.pack("!BBH", 1, 0, 4 + len(init) + len(parameter)) + init + parameter
    header = struct.pack("!HHII", packet.sport, packet.dport, 0, 0)
    total = _crc32c(header + chunk) ^ (0x5555 if packet.damage == "l4" else 0)
    return header[:8] + struct.pack("<I", total) + chunk


def _crc32c(data: bytes) -> int:
    """Return the CRC32c of RFC 9260, appendix A."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def encode_all(probes: Sequence[Probe], plan: Plan, run: int, first: int = 0) -> list[tuple[Encoded, ...]]:
    """Encode every packet of every probe; probe ``i`` gets the number ``first + i``."""
    return [
        tuple(encode(packet, Numbered(plan, run, number, step)) for step, packet in enumerate(probe.packets))
        for number, probe in enumerate(probes, start=first)
    ]
