"""Numbers of connection tracking zones: one for each firewall bridge, so that no connection of one counts at another.

A zone is a number of 16 bits. pvefw uses 4096 to 65535 and leaves the rest to other programs (Proxmox's SDN uses 1, and
packets without an assigned zone are in zone 0). The number follows from VMID and NIC, so it is the same on every node
of a cluster, and a guest that moves finds its connections. If two NICs of one host would get the same number, the later
one takes the next free number. A NIC that has a number keeps it.

>>> first_choice(100, 0), first_choice(100, 1), first_choice(101, 0)
(7297, 7298, 7329)
>>> allocate([(100, 0), (100 + 61439, 0)])
{(100, 0): 7297, (61539, 0): 7298}
>>> allocate([(100, 0), (100 + 61439, 0)], {(61539, 0): 7297})
{(100, 0): 7298, (61539, 0): 7297}

The NICs of a guest can share the zone of its first NIC, for guests that answer by another NIC than the request's:

>>> allocate([(100, 0), (100, 1), (101, 0)], together={100})
{(100, 0): 7297, (100, 1): 7297, (101, 0): 7329}
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

NicKey: TypeAlias = "tuple[int, int]"
"""VMID and number of a NIC."""

SHARED_ZONE: Final = 4096
"""The zone of firewall bridges whose NIC the configuration does not know."""
FIRST_ZONE: Final = 4097
LAST_ZONE: Final = 65535
_COUNT: Final = LAST_ZONE - FIRST_ZONE + 1
_MAX_NICS: Final = 32
"""NICs of a guest: net0 to net31."""

_FIREWALL_BRIDGE = re.compile(r"fwbr([1-9]\d*)i(\d+)")


def first_choice(vmid: int, index: int) -> int:
    """Return the zone of a NIC if no other NIC of the host has it."""
    return FIRST_ZONE + (vmid * _MAX_NICS + index) % _COUNT


def allocate(
    nics: Iterable[NicKey], in_force: Mapping[NicKey, int] | None = None, together: Container[int] = ()
) -> dict[NicKey, int]:
    """Return the zone of each NIC, in the order of the keys. Only NICs of guests ``together``, by VMID, share one.

    ``in_force`` are zones of the ruleset that runs: a NIC that has one there keeps it, unless the number is not one of
    ours or another NIC has it too, as after damage. NICs that no number is left for share :data:`SHARED_ZONE`.
    """
    all_keys = sorted(set(nics))
    first: dict[int, NicKey] = {}
    for vmid, index in all_keys:
        first.setdefault(vmid, (vmid, index))
    leader = {key: first[key[0]] if key[0] in together else key for key in all_keys}
    keys = sorted(set(leader.values()))
    taken: dict[int, NicKey] = {}
    zones: dict[NicKey, int] = {}
    for key in keys:
        zone = (in_force or {}).get(key)
        # two NICs may not share a zone: a forged answer on one bridge would count on the other
        if zone is not None and FIRST_ZONE <= zone <= LAST_ZONE and zone not in taken:
            taken[zone] = key
            zones[key] = zone
    for key in keys:
        if key not in zones:
            zones[key] = _next_free(first_choice(*key), taken)
            taken[zones[key]] = key
    return {key: zones[leader[key]] for key in all_keys}


def _next_free(zone: int, taken: Mapping[int, NicKey]) -> int:
    if len(taken) >= _COUNT:
        return SHARED_ZONE
    while zone in taken:
        zone = zone + 1 if zone < LAST_ZONE else FIRST_ZONE
    return zone


def firewall_bridge(key: NicKey) -> str:
    """Return the name of a NIC's firewall bridge: ``fwbr100i0``."""
    return f"fwbr{key[0]}i{key[1]}"


def nic_of(bridge: str) -> NicKey | None:
    """Return VMID and number of the NIC that a firewall bridge belongs to by its name; None for other names."""
    found = _FIREWALL_BRIDGE.fullmatch(bridge)
    return None if found is None else (int(found[1]), int(found[2]))
