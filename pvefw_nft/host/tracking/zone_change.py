"""Keep established connections when a ruleset with connection tracking zones replaces one without, and back.

The nft ruleset tracks packets that cross a firewall bridge in a zone of that bridge (:mod:`pvefw_nft.ir.zones`). With
the iptables ruleset, and nft rulesets of older versions, all bridges share zone 0, or the zone of a foreign rule for
NAT.

**To zones.** A conntrack entry does not name the bridges that its connection crosses. So the addresses and ports of
existing connections are put into sets of a table of their own, ``bridge pvefw-transition``, and stay in their zone::

    chain zones { type filter hook prerouting priority -301
      meta protocol ip ip frag-off & 16383 0
        ip saddr . ip daddr . ip protocol . th sport . th dport @v4-zone-0 update @v4-zone-0 { … } ct zone set 0 }

An element lasts as long as the entry would, and use renews it; the table goes with the next apply after
:data:`LIFETIME`. Only connections with a guest's mark are noted, since every connection that a filtered NIC opened or
accepted has one, and no more than :data:`MAX_CONNECTIONS`, TCP first.

**From zones.** Entries of the zones of firewall bridges are copied to the zone that the iptables ruleset will look in.
In zone 0 the guests' bridges have seen them already.
"""

from __future__ import annotations

import re
import socket
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pvefw_nft.errors import HostError
from pvefw_nft.ir.zones import SHARED_ZONE, nic_of

from ..apply.nftables_state import TABLE, Nftables
from ..backend_info import info
from ..clock import CLOCK
from ..netfilter import conntrack, nf_tables
from ..records import record, state
from . import nat_zone

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from ..apply.nftables_state import Command
    from ..netfilter.conntrack import Entry, Tuple
    from ..records.record import Desired

TRANSITION_TABLE: Final = "pvefw-transition"
ZONES: Final = "zones"
"""pvefw's chain that sets zones, and the chain of :data:`TRANSITION_TABLE`."""
MAX_CONNECTIONS: Final = 65_536
MAX_ZONES: Final = 4
LIFETIME: Final = 5 * 24 * 3600
"""Seconds: as long as connection tracking keeps a silent TCP connection (nf_conntrack_tcp_timeout_established)."""

_RENEWED = 24 * 3600  # seconds an element is kept after a packet of its connection
_BATCH = 8192
_TCP = 6
_WITH_PORTS = frozenset((_TCP, 17, 33, 132, 136))
_FAMILIES = {socket.AF_INET: ("v4", "ip"), socket.AF_INET6: ("v6", "ip6")}
_FRAGMENT = {"&": [{"payload": {"protocol": "ip", "field": "frag-off"}}, 0x3FFF]}


def zones_of(ruleset: Desired | None) -> dict[tuple[int, int], int]:
    """Return the zones of NICs, by VMID and number, that a ruleset on record sets; none if it sets none.

    Only entries with a firewall bridge's name and a number of pvefw's range count: a damaged record must not matter.
    """
    if ruleset is None or not info(ruleset.backend).sets_zones:
        return {}
    piece = next((piece for piece in ruleset.pieces if f'"chain":"{ZONES}"' in piece), "")
    found: dict[tuple[int, int], int] = {}
    for bridge, zone in re.findall(r'\["(fwbr\w+)",(\d+)\]', piece):
        key = nic_of(bridge)
        if key is not None:
            found[key] = int(zone)
    return found


def zones_in_force() -> dict[tuple[int, int], int]:
    """Return the zones of the ruleset that was applied last; a NIC that stays keeps its own."""
    return zones_of(record.load_if_sound(record.running_path()))


@dataclass(slots=True)
class ZoneChange:
    """The work on connections around an apply. :func:`begin` makes it; a failure is only reported."""

    to_zones: bool = False
    from_zones: bool = False
    vmids: frozenset[int] = frozenset()
    problems: list[str] = field(default_factory=list)
    _noted: set[tuple[int, Tuple]] = field(default_factory=set)
    _left_out: int = 0

    def before_load(self) -> None:
        """Note the connections that exist: the ruleset without zones still tracks them."""
        if self.to_zones:
            self._try(remove_transition)
            self._try(self._note)

    def after_load(self) -> None:
        """Note those that came about since. No packet is tracked without zones any more."""
        if self.to_zones:
            self._try(self._note)
            if self._left_out:
                text = f"{MAX_CONNECTIONS} established connections of guests are kept, {self._left_out} more may break"
                self.problems.append(text)
        if self.from_zones:
            self._try(_copy_from_zones)

    def after_removal(self) -> None:
        """Copy what came about while both rulesets were loaded."""
        if self.from_zones:
            self._try(_copy_from_zones)

    def _try(self, action: Any) -> None:  # noqa: ANN401 - one of the methods above
        try:
            action()
        except HostError as error:
            self.problems.append(f"established connections may break: {error.message}")

    def _make_table(self) -> None:
        state.write(_marker(), {"until": CLOCK.since_boot() + LIFETIME})
        _run_nft([{"add": {"table": {"family": "bridge", "name": TRANSITION_TABLE}}}])
        _run_nft([{"add": {"chain": {**_BODY, "name": ZONES, "type": "filter", "hook": "prerouting", "prio": -301}}}])

    def _note(self) -> None:
        chosen, self._left_out = _choose(self._connections())
        by_set: dict[tuple[int, int], list[Entry]] = defaultdict(list)
        for entry in chosen:
            if (entry.zone, entry.tuples[0]) not in self._noted:
                by_set[entry.family, entry.zone].append(entry)
                self._noted.add((entry.zone, entry.tuples[0]))
        known = {zone for zone, _ in self._noted}
        if len(known) > MAX_ZONES:
            raise HostError(f"connections of guests are in {len(known)} zones, more than {MAX_ZONES}")
        if by_set and not nf_tables.tables(TRANSITION_TABLE):
            self._make_table()
        for (family, zone), some in by_set.items():
            _run_nft(_set_commands(family, zone))
            elements = [element for entry in some for element in _elements(entry)]
            for start in range(0, len(elements), _BATCH):
                body = {**_BODY, "name": _set_name(family, zone), "elem": elements[start : start + _BATCH]}
                _run_nft([{"add": {"element": body}}])

    def _connections(self) -> Iterable[Entry]:
        """Yield the answered connections of guests outside of pvefw's zones, from the most specific zone."""
        ours = set()
        old = []
        for entry in conntrack.entries():
            if entry.zone >= SHARED_ZONE:
                ours.add(entry.tuples[0])
            elif entry.mark in self.vmids and entry.answered and entry.family in _FAMILIES:
                old.append(entry)
        # with a foreign zone rule, firewall bridges are in its zone, and the host is in zone 0
        most = {entry.tuples[0]: entry.zone for entry in sorted(old, key=lambda entry: entry.zone)}
        return [entry for entry in old if entry.zone == most[entry.tuples[0]] and entry.tuples[0] not in ours]


_BODY: Final[Mapping[str, object]] = {"family": "bridge", "table": TRANSITION_TABLE}


def begin(desired: Desired) -> ZoneChange:
    """Return the work that an apply of this ruleset must do for connections.

    The previous firewall, Proxmox's own included, has left its guests' marks on connections.
    """
    if not desired.enabled:
        return ZoneChange()
    try:
        has_zones = bool(nf_tables.rules("bridge", TABLE, ZONES))
    except HostError:
        has_zones = False  # without nf_tables there are none
    if not info(desired.backend).sets_zones:
        return ZoneChange(from_zones=has_zones)
    zones = zones_of(desired)
    return ZoneChange(to_zones=bool(zones) and not has_zones, vmids=frozenset(vmid for vmid, _ in zones))


def remove_transition() -> None:
    """Remove the table of connections from before. Raises :class:`HostError`."""
    if state.read(_marker()) is None:
        return
    if "bridge" in nf_tables.tables(TRANSITION_TABLE):
        _run_nft([{"delete": {"table": {"family": "bridge", "name": TRANSITION_TABLE}}}])
    state.remove(_marker())


def remove_if_over() -> None:
    """Remove the table of connections from before where its time is over. Raises :class:`HostError`."""
    noted = state.read(_marker())
    if noted is not None and CLOCK.since_boot() > float(noted.get("until", 0)):
        remove_transition()


def _marker() -> Path:
    return state.run_directory() / "transition.json"


def _run_nft(commands: list[Command]) -> None:
    Nftables().run(commands)


def _choose(found: Iterable[Entry]) -> tuple[list[Entry], int]:
    """Return the connections to note, TCP first and those with most time left, and how many are left out."""
    ranked = sorted(found, key=lambda entry: (entry.tuples[0].protocol != _TCP, -entry.seconds))
    usable = [entry for entry in ranked if entry.tuples[0].protocol in _WITH_PORTS]
    return usable[:MAX_CONNECTIONS], max(0, len(usable) - MAX_CONNECTIONS)


def _set_name(family: int, zone: int) -> str:
    return f"{_FAMILIES[socket.AddressFamily(family)][0]}-zone-{zone}"


def _set_commands(family: int, zone: int) -> list[Command]:
    """Return the commands for the set of a family and zone and the rule that looks into it; none if they are there."""
    name = _set_name(family, zone)
    version, protocol = _FAMILIES[socket.AddressFamily(family)]
    if any(rule.comment == name for rule in nf_tables.rules("bridge", TRANSITION_TABLE, ZONES)):
        return []
    address = f"ip{version}_addr"
    types = [address, address, "inet_proto", "inet_service", "inet_service"]
    key = {
        "concat": [
            {"payload": {"protocol": protocol, "field": "saddr"}},
            {"payload": {"protocol": protocol, "field": "daddr"}},
            {"payload": {"protocol": protocol, "field": "protocol" if version == "v4" else "nexthdr"}},
            {"payload": {"protocol": "th", "field": "sport"}},
            {"payload": {"protocol": "th", "field": "dport"}},
        ]
    }
    statements: list[dict[str, Any]] = [
        {"match": {"op": "==", "left": {"meta": {"key": "protocol"}}, "right": protocol}},
        # only the first fragment has ports; an IPv6 fragment has another next header
        *([{"match": {"op": "==", "left": _FRAGMENT, "right": 0}}] if version == "v4" else []),
        {"match": {"op": "==", "left": key, "right": f"@{name}"}},
        {"set": {"op": "update", "elem": key, "set": f"@{name}"}},
        {"mangle": {"key": {"ct": {"key": "zone"}}, "value": zone}},
    ]
    size = 4 * MAX_CONNECTIONS
    made = {**_BODY, "name": name, "type": types, "flags": ["timeout"], "timeout": _RENEWED, "size": size}
    rule = {**_BODY, "chain": ZONES, "expr": statements, "comment": name}
    return [{"add": {"set": made}}, {"add": {"rule": rule}}]


def _elements(entry: Entry) -> Iterable[dict[str, Any]]:
    """Yield the elements for both directions of a connection."""
    for one in entry.tuples:
        ends = [socket.inet_ntop(entry.family, end) for end in (one.source, one.destination)]
        yield {
            "elem": {
                "val": {"concat": [*ends, one.protocol, one.sport, one.dport]},
                "timeout": max(60, min(entry.seconds, LIFETIME)),
            }
        }


def _copy_from_zones() -> None:
    """Copy connections of firewall bridges to the zone in which a foreign rule for NAT tracks these bridges."""
    zone = nat_zone.zone_of_rule()
    if zone:
        of_ours = [entry for entry in conntrack.entries() if entry.zone >= SHARED_ZONE and entry.answered]
        conntrack.copy(of_ours[:MAX_CONNECTIONS], zone)
