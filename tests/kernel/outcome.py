"""The outcome of a probe, derived from all packets that were seen."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from .network.plan import HOST, Address, Plan
from .packets import ETHER_IPV4, ETHER_IPV6, ETHER_VLAN, ICMP_ERRORS, RST, Proto, read_mark
from .wire import INPUT_PREFIX, OUTPUT_PREFIX, Seen

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .packets import Encoded, Probe

ACCEPT = "ACCEPT"
DROP = "DROP"
REJECT = "REJECT"

UNREACHABLE = {
    (4, 0): "icmp-net-unreachable",
    (4, 1): "icmp-host-unreachable",
    (4, 2): "icmp-proto-unreachable",
    (4, 3): "icmp-port-unreachable",
    (4, 9): "icmp-net-prohibited",
    (4, 10): "icmp-host-prohibited",
    (4, 13): "icmp-admin-prohibited",
    (6, 0): "icmp6-no-route",
    (6, 1): "icmp6-adm-prohibited",
    (6, 3): "icmp6-addr-unreachable",
    (6, 4): "icmp6-port-unreachable",
}
"""Codes of "destination unreachable" by family, in iptables' words."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The fate of a packet.

    ``verdict`` is ACCEPT (it came to its receiver), REJECT (the sender was to be told, ``kind`` says how) or DROP.
    ``told`` says whether the rejection came to any endpoint: an answer may meet rules on its own way.
    ``elsewhere`` are other places it came to. Outcomes are compared by verdict and kind.
    """

    verdict: str
    kind: str | None = None
    told: bool = True
    elsewhere: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the form used in ``packets.toml``: ``ACCEPT``, ``DROP``, ``REJECT tcp-reset``."""
        return self.verdict if self.kind is None else f"{self.verdict} {self.kind}"


@dataclass(frozen=True, slots=True)
class _Ip:
    """The fields that are read of an IP packet."""

    family: int
    protocol: int
    source: Address
    destination: Address
    payload: bytes


def _read_ip(data: bytes) -> _Ip | None:
    """Return the IP packet in ``data``, or None if it is none; IPv6 fragment headers are stepped over."""
    if len(data) >= 20 and data[0] >> 4 == 4:
        length = (data[0] & 15) * 4
        return _Ip(4, data[9], IPv4Address(data[12:16]), IPv4Address(data[16:20]), data[length:])
    if len(data) >= 40 and data[0] >> 4 == 6:
        following, payload = data[6], data[40:]
        if following == 44 and len(payload) >= 8:
            following, payload = payload[0], payload[8:]
        return _Ip(6, following, IPv6Address(data[8:24]), IPv6Address(data[24:40]), payload)
    return None


def _carried(seen: Seen) -> bytes:
    """Return the packet behind the link header; empty if the frame does not carry IP."""
    if seen.place in (INPUT_PREFIX, OUTPUT_PREFIX):
        return seen.data
    at = 12
    while seen.data[at : at + 2] == struct.pack("!H", ETHER_VLAN):
        at += 4
    (ethertype,) = struct.unpack_from("!H", seen.data, at) if len(seen.data) >= at + 2 else (0,)
    return seen.data[at + 2 :] if ethertype in (ETHER_IPV4, ETHER_IPV6) else b""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A packet told apart: the probe and step it belongs to, where, and the rejection it is, if it is one."""

    number: int
    step: int
    place: str
    vlan: int | None
    rejection: str | None


def sightings(everything: Sequence[Seen], sent: dict[tuple[int, int], Encoded], run: int) -> Iterator[Sighting]:
    """Assign each sighting to the packet of a probe that it shows or rejects.

    ``sent`` maps probe number and step to the sent packet. Sightings that belong to no probe of this run are left
    out: the host's own packets, and late packets of an earlier run.
    """
    for seen in everything:
        carried = _carried(seen)
        ip = _read_ip(carried) if carried else None
        mark = read_mark(seen.data)
        if mark is None:
            number = _reset_of(ip, sent)
            if number is not None:
                yield Sighting(*number, seen.place, seen.vlan, "tcp-reset")
            continue
        if mark[0] != run & 0xFFFF or (mark[1], mark[2]) not in sent:
            continue
        encoded = sent[mark[1], mark[2]]
        rejection = None
        if ip is not None and (ip.source, ip.destination) != (encoded.source, encoded.destination):
            rejection = _unreachable(ip)
        yield Sighting(mark[1], mark[2], seen.place, seen.vlan, rejection)


def passing(place: str) -> bool:
    """Whether a place is one that packets only pass: where a firewall bridge meets the guest's bridge."""
    return place.startswith("fwpr")


def _unreachable(ip: _Ip) -> str | None:
    """Return the kind of an ICMP error, in iptables' words."""
    if ip.protocol not in (Proto.ICMP, Proto.ICMPV6) or len(ip.payload) < 2:
        return None
    kind, code = ip.payload[0], ip.payload[1]
    if kind not in ICMP_ERRORS[ip.family]:
        return None
    if kind == (3 if ip.family == 4 else 1):
        return UNREACHABLE.get((ip.family, code), f"icmp-unreachable-{code}")
    return f"icmp-error-{kind}"


def _reset_of(ip: _Ip | None, sent: dict[tuple[int, int], Encoded]) -> tuple[int, int] | None:
    """Return probe and step of the TCP packet this reset answers, told by addresses and sequence numbers."""
    if ip is None or ip.protocol != Proto.TCP or len(ip.payload) < 20 or not ip.payload[13] & RST:
        return None
    sequence, acknowledged = struct.unpack_from("!II", ip.payload, 4)
    for number in (acknowledged >> 12, sequence >> 12):
        for step in range(4):
            encoded = sent.get((number, step))
            if encoded is None or (encoded.source, encoded.destination) != (ip.destination, ip.source):
                continue
            if encoded.reset in ((sequence, None), (None, acknowledged)):
                return number, step
    return None


def judge(probe: Probe, number: int, found: Sequence[Sighting], plan: Plan) -> Outcome:
    """Return the outcome of a probe, given all sightings of it.

    A packet that came to its receiver is accepted, whatever was answered: the receiver's own stack may answer
    in any way it likes.
    """
    packet = probe.judged
    last = len(probe.packets) - 1
    mine = [one for one in found if one.number == number and one.step == last]
    arrived = [one for one in mine if one.rejection is None and one.place != OUTPUT_PREFIX]
    if packet.receiver == HOST:
        bridge = plan.bridges[0].name
        if packet.sender != HOST:
            bridge = plan.endpoint(packet.sender).bridge or bridge
        plain = packet.is_ip and packet.outer_vlan is None and packet.wrapping is None
        wanted = INPUT_PREFIX if plain else bridge
        there = [one for one in arrived if one.place == wanted]
    else:
        endpoint = plan.endpoint(packet.receiver, packet.sender)
        tag = endpoint.tag if endpoint.tag is not None else packet.outer_vlan
        there = [one for one in arrived if one.place == endpoint.namespace and one.vlan == tag]
        wanted = endpoint.namespace
    elsewhere = tuple(sorted({one.place for one in arrived if one.place != wanted and not passing(one.place)}))
    if there:
        return Outcome(ACCEPT, elsewhere=elsewhere)
    rejections = [one for one in mine if one.rejection is not None]
    if rejections:
        told = any(one.place not in (INPUT_PREFIX, OUTPUT_PREFIX) and not passing(one.place) for one in rejections)
        return Outcome(REJECT, rejections[0].rejection, told=told or packet.sender == HOST, elsewhere=elsewhere)
    return Outcome(DROP, elsewhere=elsewhere)
