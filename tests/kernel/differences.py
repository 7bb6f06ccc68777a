"""The documented differences between the two backends: ``known_differences.toml``."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .artefact import BACKENDS
from .network.plan import HOST, ROUTER
from .packets import SMALL_FRAGMENT

if TYPE_CHECKING:
    from .network.plan import Address, Plan
    from .packets import Packet, Probe

ADVERTISEMENT = 136
"""The ICMPv6 type of a neighbour advertisement (RFC 4861, section 4.4)."""

TABLE = Path(__file__).parent / "known_differences.toml"

FACTS = {
    "tagged", "damage", "small_fragments", "family", "protocol", "steps", "source_kind", "destination_kind", "sender",
    "receiver", "arp", "tags", "forged", "fragment", "dhcp", "answering", "kept_out",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Difference:
    """One entry of the table; ``verdicts`` are the outcomes by backend, as far as it says."""

    name: str
    when: dict[str, Any]
    verdicts: dict[str, str]
    reason: str

    def covers(self, probe: Probe, plan: Plan, *, kept_out: bool = False) -> bool:
        """Whether the probe is one of those the entry speaks of; ``kept_out``: its first packet was not let in."""
        known = {**facts(probe, plan), "kept_out": kept_out}
        return all(known[key] == value for key, value in self.when.items())

    def allows(self, backend: str, outcome: str) -> bool:
        """Whether the entry lets a backend come to this outcome."""
        return self.verdicts.get(backend, outcome) == outcome


@cache
def table() -> tuple[Difference, ...]:
    """Return the documented differences.

    Raises:
        ValueError: an entry has no reason, or speaks of facts that are not known.
    """
    entries = []
    for item in tomllib.loads(TABLE.read_text())["difference"]:
        if item["when"].keys() - FACTS or not item["when"] or not item["reason"].strip():
            raise ValueError(f"{TABLE}: {item['name']}: needs known facts in `when`, and a reason")
        verdicts = {backend: item[backend] for backend in BACKENDS if backend in item}
        entries.append(Difference(item["name"], item["when"], verdicts, item["reason"]))
    return tuple(entries)


def excuse(probe: Probe, plan: Plan, outcomes: dict[str, str], *, kept_out: bool = False) -> Difference | None:
    """Return the entry that allows these outcomes (by backend) of a probe; None if they may not be.

    ``kept_out``: the first of several packets was not let in.
    """
    for entry in table():
        if entry.covers(probe, plan, kept_out=kept_out) and all(entry.allows(*item) for item in outcomes.items()):
            return entry
    return None


def facts(probe: Probe, plan: Plan) -> dict[str, Any]:
    """Return the properties of a probe's judged packet that the table can name."""
    packet = probe.judged
    return {
        "tagged": packet.outer_vlan is not None,
        "damage": packet.damage or "",
        "fragment": packet.first_fragment is not None,
        "dhcp": (packet.sport, packet.dport) in ((68, 67), (546, 547)),
        "small_fragments": packet.first_fragment == SMALL_FRAGMENT,
        "family": packet.family,
        "protocol": packet.protocol,
        "steps": len(probe.packets),
        "source_kind": _kind(packet.source, packet, plan),
        "destination_kind": _kind(packet.destination, packet, plan),
        "sender": packet.sender,
        "receiver": packet.receiver,
        "arp": packet.arp is not None,
        "tags": len(packet.tags) + (packet.vlan is not None),
        "forged": _forged(packet, plan),
        "answering": packet.answering,
    }


def _forged(packet: Packet, plan: Plan) -> str:
    """Return the fields of a filtered guest's packet that are not its own: ``mac``, ``arp mac``, ``target``,
    ``source``."""
    if packet.sender in (HOST, ROUTER) or not plan.endpoint(packet.sender, packet.receiver).filtered:
        return ""
    own = plan.endpoint(packet.sender, packet.receiver)
    if packet.source_mac not in (None, own.mac):
        return "mac"
    if packet.arp is not None:
        return "arp mac" if packet.arp.sender_mac not in (None, own.mac) else ""
    if packet.icmp_type == ADVERTISEMENT and packet.nd_target not in (None, own.v6):
        return "target"
    return "source" if packet.source not in (None, own.v4, own.v6) else ""


def _kind(address: Address | None, packet: Packet, plan: Plan) -> str:
    """Return the kind of an address, as the host's routing table has it."""
    if address is None or not packet.is_ip:
        return "unicast"
    if address.is_multicast:
        return "multicast"
    if address.is_link_local:
        return "link-local"
    if address == IPv4Address("255.255.255.255"):
        return "broadcast"
    ends = [interface.network.broadcast_address for interface in plan.host_interfaces if interface.version == 4]
    return "directed broadcast" if address in ends else "unicast"
