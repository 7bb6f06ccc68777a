"""The question about a host's connections before a ruleset is loaded, and its answer.

The kernel's facts are read with privileges, and judged without, by :mod:`.session_guard` in the compiler's process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pvefw_nft.host import sysctl
from pvefw_nft.host.live_network import LiveNetwork, read_live_network
from pvefw_nft.host.tracking import connections

if TYPE_CHECKING:
    from pvefw_nft.host.tracking.connections import Flow, Session


@dataclass(frozen=True, slots=True)
class Connections:
    """The connections of a host at one moment, and its network.

    ``tracked`` is None if the kernel does not list tracked connections. ``calls_iptables``: bridged packets pass
    iptables.
    """

    sessions: tuple[Session, ...]
    tracked: tuple[Flow, ...] | None
    network: LiveNetwork
    calls_iptables: bool


def read_connections() -> Connections:
    """Read the connections that this host has now, from the kernel. Raises HostError."""
    network = read_live_network()
    tracked = connections.tracked()
    return Connections(
        tuple(connections.sessions(own=network.own_addresses)),
        None if tracked is None else tuple(tracked),
        network,
        sysctl.read("net/bridge/bridge-nf-call-iptables") == "1",
    )


@dataclass(frozen=True, slots=True)
class Cut:
    """A connection that must not break and would: ``place`` is the line that cuts it, ``add`` a rule to keep it."""

    connection: str
    effect: str
    place: str
    add: str


@dataclass(frozen=True, slots=True)
class GuestLoss:
    """Established connections of guests that one line would not allow any more."""

    place: str
    connections: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Judgement:
    """The effect of a ruleset on the connections of this moment; ``notes`` name those that were not judged."""

    cuts: tuple[Cut, ...] = ()
    guests: tuple[GuestLoss, ...] = ()
    notes: tuple[str, ...] = ()
