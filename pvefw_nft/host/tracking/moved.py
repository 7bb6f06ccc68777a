"""Connections of guests that come here by live migration, where this host tracks them in other zones than the source.

Proxmox VE copies the conntrack entries with a guest's mark to the target before the guest's config is moved there and
the guest goes on. Each stays in the zone that it has on the source: one for each firewall bridge under the nft ruleset,
the shared one under the iptables ruleset. They are copied to the zone in which the ruleset of this host looks, so that
connections go on whichever end sends first.
"""

from __future__ import annotations

import re
import socket
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from ..backend_info import info
from ..netfilter import conntrack
from . import nat_zone
from .zone_change import zones_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ..netfilter.conntrack import Entry
    from ..records.record import Desired

_IN_CHAIN: Final = re.compile(r'"(?:tap|veth)(\d+)i\d+-IN":')
_NIC: Final = re.compile(r"(?:tap|veth)(\d+)i\d+")
_MAX_GUESTS: Final = 32
"""Of more guests that appear at once none has moved here: each costs a look at all connections in the kernel."""
_SECONDS: Final = 60.0
"""How long connections are looked for after a guest's NIC appeared."""


def arrived(before: Desired | None, after: Desired) -> frozenset[int]:
    """Return the VMIDs of guests that a ruleset filters and the one before it did not.

    None if there was none before, or one of the other backend: then all zones change (:mod:`.zone_change`).
    """
    if before is None or not before.enabled or before.backend != after.backend:
        return frozenset()
    return _guests(after) - _guests(before)


def _guests(ruleset: Desired) -> frozenset[int]:
    if info(ruleset.backend).sets_zones:
        return frozenset(vmid for vmid, _ in zones_of(ruleset))
    return frozenset(int(vmid) for piece in ruleset.pieces for vmid in _IN_CHAIN.findall(piece))


def adopt(vmids: Collection[int], ruleset: Desired) -> int:
    """Copy the established connections of guests to the zones in which a ruleset looks; return how many were made.

    Raises :class:`HostError`.
    """
    if not vmids or len(vmids) > _MAX_GUESTS:
        return 0
    zones: dict[int, list[int]] = defaultdict(list)
    if info(ruleset.backend).sets_zones:
        for (vmid, _), zone in zones_of(ruleset).items():
            zones[vmid].append(zone)
    else:
        shared = nat_zone.zone_of_rule()
        zones.update((vmid, [shared]) for vmid in vmids)
    made = 0
    for vmid in vmids:
        found = [entry for entry in conntrack.entries(vmid) if entry.answered]
        for zone in zones.get(vmid, ()):
            made += conntrack.copy(_missing(found, zone), zone)
    return made


def _missing(found: list[Entry], zone: int) -> list[Entry]:
    """Return one entry of each connection that a zone does not have."""
    there = {entry.tuples[0] for entry in found if entry.zone == zone}
    return list({entry.tuples[0]: entry for entry in found if entry.tuples[0] not in there}.values())


class MovedGuests:
    """Adopts connections of guests whose NICs appear while a ruleset runs that has them already."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        names: Callable[[], list[tuple[int, str]]] = socket.if_nameindex,
    ) -> None:
        """Know no NIC yet: NICs of the first look are not new. ``clock`` is in seconds."""
        self._clock = clock
        self._names = names
        self._seen: frozenset[int] | None = None
        self._until: dict[int, float] = {}

    def look(self, ruleset: Desired) -> int:
        """Adopt the connections of guests that are new here; return how many. Raises :class:`HostError`."""
        now = self._clock()
        present = frozenset(int(found[1]) for _, name in self._names() if (found := _NIC.fullmatch(name)) is not None)
        if self._seen is not None:
            self._until.update(dict.fromkeys(present - self._seen, now + _SECONDS))
        self._seen = present
        self._until = {vmid: until for vmid, until in self._until.items() if now < until and vmid in present}
        return adopt(self._until, ruleset)
