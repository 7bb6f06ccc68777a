"""A packet as asked for, by the words of the command line or of a tests file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PacketSpec:
    """A packet as asked for; None or empty: the value of a new, ordinary packet.

    ``source`` and ``destination`` are zones or addresses, the destination may carry a port (``10.0.0.7:22``,
    ``[fd00::7]:22``, ``vm100:22``). ``protocol`` is a name or number, or ``arp`` or another ether type by
    ``ether_type``. ``ctstate`` None: the state of a packet without a known connection, mostly new. ``family`` is 4 or
    6. ``mark`` is the packet mark. ``overrides`` sets fields by their names, after all else.
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
