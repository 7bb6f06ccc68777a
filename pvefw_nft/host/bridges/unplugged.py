"""NICs with firewall=1 that exist and are not behind their firewall bridges: no ruleset filters them as written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..links import open_route, read_links
from .firewall_bridge import Naming

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..links import Links
    from .firewall_bridge import Nic

_OPEN_VSWITCH_PORT = re.compile(r"fwln\d+o\d+")
"""Proxmox VE's port from a firewall bridge to Open vSwitch, made by Proxmox itself."""


@dataclass(frozen=True, slots=True)
class Misconfigured:
    """A NIC with firewall=1 that cannot be plugged by its configuration, and why.

    ``firewall_bridge`` is where it would be.
    """

    interface: str
    firewall_bridge: str
    reason: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Unplugged:
    """A NIC that exists and is not behind its firewall bridge.

    ``bridge`` is the link it is a port of, None: of none. ``nic`` is None if its configuration does not say where
    it belongs: then ``reason`` tells why.
    """

    interface: str
    firewall_bridge: str
    bridge: str | None
    nic: Nic | None
    reason: str | None = None
    hint: str | None = None

    def __str__(self) -> str:
        where = f"in {self.bridge}" if self.bridge is not None else "in no bridge"
        because = f"; it cannot be plugged: {self.reason}" if self.reason is not None else ""
        return f"{self.interface} has firewall=1 but is {where}, not behind {self.firewall_bridge}{because}"


@dataclass(frozen=True, slots=True)
class Port:
    """A NIC whose traffic is to be dropped, except in its ``firewall_bridge`` (None: there too)."""

    interface: str
    firewall_bridge: str | None


def find_unplugged(
    nics: Sequence[Nic], misconfigured: Sequence[Misconfigured], links: Links, backend: str | None = None
) -> list[Unplugged]:
    """Return the NICs that exist and are not behind their firewall bridges, by name.

    ``backend`` is the ruleset's backend (None: any): the nft ruleset does not see the ports of Open vSwitch.
    """
    found = []
    for nic in nics:
        link = links.get(nic.interface)
        if link is None or is_behind(nic, links, backend):
            continue
        unseen = on_open_vswitch(nic, links)
        reason = "it leads to Open vSwitch, whose port the nft ruleset does not match" if unseen else None
        hint = "use a Linux bridge, or the iptables backend" if unseen else None
        found.append(Unplugged(nic.interface, nic.firewall_bridge, link.master, nic, reason, hint))
    for wrong in misconfigured:
        link = links.get(wrong.interface)
        if link is not None and link.master != wrong.firewall_bridge:
            found.append(Unplugged(wrong.interface, wrong.firewall_bridge, link.master, None, wrong.reason, wrong.hint))
    return sorted(found, key=lambda one: one.interface)


def is_behind(nic: Nic, links: Links, backend: str | None = None) -> bool:
    """Tell whether a NIC is in its firewall bridge, whose other port is one that the ruleset matches.

    With Open vSwitch Proxmox VE makes a port ``fwln100o0``; only the iptables ruleset matches it, by its ``fwln+``.
    """
    link = links.get(nic.interface)
    if link is None or link.master != nic.firewall_bridge:
        return False
    inner, _ = nic.pair(Naming.CURRENT)
    others = set(links.ports(nic.firewall_bridge)) - {nic.interface}
    matched = backend != "nft"
    return all(other == inner or (matched and _OPEN_VSWITCH_PORT.fullmatch(other) is not None) for other in others)


def on_open_vswitch(nic: Nic, links: Links) -> bool:
    """Tell whether a NIC is behind a firewall bridge that leads to Open vSwitch."""
    ports = links.ports(nic.firewall_bridge)
    return nic.interface in ports and any(_OPEN_VSWITCH_PORT.fullmatch(port) is not None for port in ports)


def read_unplugged(
    nics: Sequence[Nic], misconfigured: Sequence[Misconfigured] = (), backend: str | None = None
) -> list[Unplugged]:
    """Return the result of :func:`find_unplugged` for this host's links. Raises HostError."""
    if not nics and not misconfigured:
        return []
    with open_route() as route:
        return find_unplugged(nics, misconfigured, read_links(route), backend)


def read_absent_or_unplugged(nics: Sequence[Nic], misconfigured: Sequence[Misconfigured], backend: str) -> list[Port]:
    """Return the NICs whose traffic to drop. Raises HostError.

    With the nft backend also those that do not exist yet, which costs nothing there: so not even their first packet
    passes. Each rule of iptables costs every packet, so that those come with the next look.
    """
    if not nics and not misconfigured:
        return []
    with open_route() as route:
        links = read_links(route)
    ports = [
        Port(one.interface, one.firewall_bridge if one.bridge != one.firewall_bridge else None)
        for one in find_unplugged(nics, misconfigured, links, backend)
    ]
    if backend == "nft":
        known = [(nic.interface, nic.firewall_bridge) for nic in nics]
        known += [(wrong.interface, wrong.firewall_bridge) for wrong in misconfigured]
        ports += [Port(interface, bridge) for interface, bridge in known if links.get(interface) is None]
    return ports
