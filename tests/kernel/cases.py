"""Packets with expected verdicts: ``packets.toml`` beside each configuration of ``tests/cases``.

    node = "pve1"
    local_network = "10.0.0.0/24"

    [[packet]]
    from = "outside"            # host, router, outside, vm100, vm100i1, ct200 …
    to = "vm100"
    tcp = [22, 80]              # or udp, sctp …: a port or several; or icmp = "echo-request", proto = 47,
    family = [4, 6]             # 4 where nothing says otherwise          arp = {…}, ethertype = 0x88CC
    source = "10.0.0.7"         # and dest: an address or several; sport; source_mac; vlan; flags = "SYN,ACK"
    state = "established"       # new (default), established, related (an ICMP error about a connection),
                                # answer (from tcp port 22: to a connection from the receiver to that port)
    fragmented = "large"        # in two fragments; "small": of a size that IPv6 senders do not make,
                                # "tiny": the first with 8 bytes only
    damage = "ip"               # or "l4": the checksum that is wrong
    tags = ["8100:0", "8100:7"] # VLAN tags, the outermost first, each its Ethernet type and VLAN id; see also `vlan`
    wrapping = "8864:11000000"  # Ethernet type and header between the Ethernet header and what is in the frame, in hex
    dest_mac = "01:80:c2:00:00:00"; nd_target = "fd00::1" (of neighbour discovery); only_first = true (fragment)
    spoof = "10.0.0.9"          # the source of this packet, where those before it in its connection have another
    quotes = {…}                # of an ICMP error or redirect: the packet it is about, with keys like these
    ip_options = "01010101"     # of IPv4, in hex; extensions = [0, 60, 43, 44]: IPv6 extension headers, in order
    overlap = 16; last_first = true (of two fragments); nd_flags = 0x20 (of a neighbour advertisement)
    patch = ["0:65"]; cut = 20  # bytes (hex) at a place behind the Ethernet header; how many are left behind it
    says = "0001"               # what a UDP datagram begins with, in hex: the request of a protocol that has a helper
    answering = true            # ports the other way round: 9 and the ephemeral one; seq, ack: TCP's, from 0 on
    steps = [{…}, {…}]          # packets sent before this one, in order, each with keys like these
    verdict = "ACCEPT"          # or DROP, or REJECT and how: "REJECT tcp-reset"

Lists multiply: one table can stand for many packets, all with the same verdict.
"""

from __future__ import annotations

import itertools
import tomllib
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from .outcome import ACCEPT, DROP, REJECT, UNREACHABLE
from .packets import (
    ACK,
    LARGE_FRAGMENT,
    PSH,
    SMALL_FRAGMENT,
    TINY_FRAGMENT,
    WITH_PORTS,
    Arp,
    Packet,
    Probe,
    Proto,
    Wrapping,
    backwards,
)
from .restore import ICMP_TYPES, TCP_FLAGS

CASES = Path(__file__).resolve().parents[1] / "cases"

VERDICTS = {ACCEPT, DROP, f"{REJECT} tcp-reset", *(f"{REJECT} {kind}" for kind in UNREACHABLE.values())}

_KEYS = {
    "from", "to", "family", "proto", "icmp", "arp", "ethertype", "source", "dest", "sport", "dport", "source_mac",
    "vlan", "flags", "state", "fragmented", "damage", "verdict", "about", "tags", "wrapping", "dest_mac", "nd_target",
    "only_first", "spoof", "answering", "seq", "ack", "steps", "quotes", "ip_options", "extensions", "overlap",
    "last_first", "nd_flags", "patch", "cut", "says",
}  # fmt: skip


_FRAGMENTS = {"large": LARGE_FRAGMENT, "small": SMALL_FRAGMENT, "tiny": TINY_FRAGMENT, "early": 16}


class CaseError(Exception):
    """A packets.toml says something that is not known here."""


@dataclass(frozen=True, slots=True)
class Case:
    """A configuration (``root`` holds ``etc/pve``) and, probe by probe, the verdicts it must give."""

    name: str
    root: Path
    node: str
    local_network: str
    expected: tuple[tuple[Probe, str], ...]


def names() -> list[str]:
    """Return the names of all cases."""
    return sorted(path.parent.name for path in CASES.glob("*/packets.toml"))


def load(name: str) -> Case:
    """Read a case.

    Raises:
        CaseError: a packet is described with keys or values that are not known.
    """
    root = CASES / name
    data = tomllib.loads((root / "packets.toml").read_text())
    expected = []
    for number, table in enumerate(data["packet"], start=1):
        try:
            expected += [(probe, table["verdict"]) for probe in read_packets(table)]
        except (KeyError, ValueError, CaseError) as error:
            raise CaseError(f"{root / 'packets.toml'}: packet {number}: {error}") from error
    return Case(name, root, data["node"], data["local_network"], tuple(expected))


def read_packets(table: dict[str, Any]) -> list[Probe]:
    """Return the probes that one table of a packets.toml stands for.

    Raises:
        CaseError: a key or value is not known.
    """
    table = dict(table)
    for protocol in WITH_PORTS:
        if protocol.name.lower() in table:
            table["proto"], table["dport"] = protocol.name.lower(), table.pop(protocol.name.lower())
    if unknown := table.keys() - _KEYS:
        raise CaseError(f"unknown keys {sorted(unknown)}")
    if table.get("verdict", ACCEPT) not in VERDICTS:
        raise CaseError(f"unknown verdict {table['verdict']!r}; there are {sorted(VERDICTS)}")
    packets = []
    keys = ("source", "dest", "dport", "icmp", "proto", "ethertype", "from", "to")
    for values in itertools.product(*(_listed(table.get(key)) for key in keys)):
        one = {**table, **dict(zip(keys, values, strict=True))}
        icmp, source, dest = one["icmp"], one["source"], one["dest"]
        addresses = [ip_address(text) for text in (source, dest) if text is not None]
        families = _families(table, icmp, [address.version for address in addresses])
        packets += [_packet(one, family) for family in families]
    probes = [_in_state(packet, table.get("state", "new"), table.get("about", "")) for packet in packets]
    before = tuple(packet for step in table.get("steps", ()) for one in read_packets(step) for packet in one.packets)
    if before:
        probes = [replace(probe, packets=(*before, *probe.packets)) for probe in probes]
    if "spoof" in table:
        spoofed = ip_address(table["spoof"])
        probes = [replace(p, packets=(*p.packets[:-1], replace(p.judged, source=spoofed))) for p in probes]
    return probes


def _listed(value: Any) -> list[Any]:  # noqa: ANN401 - any value of a TOML file
    return value if isinstance(value, list) else [value]


def _families(table: dict[str, Any], icmp: Any, versions: list[int]) -> list[int]:  # noqa: ANN401 - as above
    if versions:
        return versions[:1]
    if "family" in table:
        return _listed(table["family"])
    return [6] if isinstance(icmp, str) and icmp not in ICMP_TYPES[4] and icmp in ICMP_TYPES[6] else [4]


def _packet(one: dict[str, Any], family: int) -> Packet:
    packet = Packet(
        one["from"],
        one["to"],
        family,
        _protocol(one, family),
        source=ip_address(one["source"]) if one["source"] else None,
        destination=ip_address(one["dest"]) if one["dest"] else None,
        sport=one.get("sport"),
        dport=one["dport"],
        source_mac=one.get("source_mac"),
        vlan=one.get("vlan"),
        tags=tuple(_numbers(text) for text in one.get("tags", ())),
        wrapping=_wrapping(one["wrapping"]) if "wrapping" in one else None,
        destination_mac=one.get("dest_mac"),
        nd_target=IPv6Address(one["nd_target"]) if "nd_target" in one else None,
        only_first=one.get("only_first", False),
        last_first=one.get("last_first", False),
        overlap=one.get("overlap", 0),
        ip_options=bytes.fromhex(one.get("ip_options", "")),
        extensions=tuple(one.get("extensions", ())),
        nd_flags=one.get("nd_flags", 0),
        answering=one.get("answering", False),
        sequence=one.get("seq", 0),
        acknowledgement=one.get("ack", 2048),
        ethertype=one.get("ethertype"),
        first_fragment=_FRAGMENTS[one["fragmented"]] if "fragmented" in one else None,
        damage=one.get("damage"),
        patches=tuple((int(at), bytes.fromhex(new)) for at, _, new in (p.partition(":") for p in one.get("patch", ()))),
        cut=one.get("cut"),
        says=bytes.fromhex(one.get("says", "")),
    )
    if one["icmp"] is not None:
        kind, code = _icmp(one["icmp"], family)
        packet = replace(packet, icmp_type=kind, icmp_code=code)
    if "flags" in one:
        packet = replace(packet, flags=sum(TCP_FLAGS[name] for name in one["flags"].split(",")))
    if "arp" in one:
        arp = one["arp"]
        sender, target = (IPv4Address(arp[key]) if key in arp else None for key in ("sender", "target"))
        operation = {"request": 1, "reply": 2}[arp.get("operation", "request")]
        packet = replace(packet, arp=Arp(operation, sender, target, arp.get("sender_mac"), arp.get("hardware", 1)))
    if "quotes" in one:
        ((quoted,),) = [probe.packets for probe in read_packets(one["quotes"])]
        packet = replace(packet, quoted=quoted)
    return packet


def _numbers(text: str) -> tuple[int, int]:
    """Return Ethernet type (hex) and VLAN id of a tag such as ``8100:7``; ``8100:0xe007`` has a priority of 7, too."""
    kind, _, number = text.partition(":")
    return int(kind, 16), int(number, 0)


def _wrapping(text: str) -> Wrapping:
    kind, _, header = text.partition(":")
    return Wrapping(int(kind, 16), bytes.fromhex(header))


def _protocol(one: dict[str, Any], family: int) -> int:
    if one["icmp"] is not None:
        return Proto.ICMP if family == 4 else Proto.ICMPV6
    name = "tcp" if one["proto"] is None else one["proto"]
    return name if isinstance(name, int) else Proto[name.upper()]


def _icmp(text: str | int, family: int) -> tuple[int, int]:
    """Return type and code of a name or of ``3/1``."""
    if isinstance(text, str) and text in ICMP_TYPES[family]:
        kind, code = ICMP_TYPES[family][text]
        return kind, code or 0
    number, _, code_text = str(text).partition("/")
    return int(number), int(code_text or 0)


def _in_state(packet: Packet, state: str, why: str) -> Probe:
    """Return the probe whose judged packet is new, or comes after others of its connection."""
    match state:
        case "new":
            return Probe((packet,), why)
        case "answer":
            opened = replace(
                packet,
                sender=packet.receiver,
                receiver=packet.sender,
                source=packet.destination,
                destination=packet.source,
                acknowledgement=0,
                source_mac=None,
            )
            answer = backwards(opened, sequence=2048, acknowledgement=1, source_mac=packet.source_mac)
            return Probe((opened, answer), why)
        case "established":
            first = replace(packet, acknowledgement=0, source_mac=None, tags=(), wrapping=None)
            later = replace(packet, flags=ACK | PSH, sequence=1, acknowledgement=2049)
            return Probe((first, backwards(first, sequence=2048, acknowledgement=1), later), why)
        case "related":
            if packet.icmp_type is None:
                raise CaseError("only ICMP errors are related to a connection here")
            about = Packet(packet.receiver, packet.sender, packet.family, Proto.UDP, dport=packet.dport or 5000)
            return Probe((about, replace(packet, dport=None, quoted=about)), why)
        case _:
            raise CaseError(f"unknown state {state!r}")
