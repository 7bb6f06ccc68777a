"""The connections that a sequence of packets leaves behind: a small model of the kernel's table.

The key of a connection is its pair of tuples: the tuple of its first packet and the tuple of an answer, each in the
zone in which its packets are looked up. A packet finds it by either: by the first it is *new* until an answer was seen
and *established* then; by the other it is an answer, and established. The table knows a connection from where its first
packet left a bridge or came to the host, dropped later or not; an answer counts as seen where it is looked up.

Left out: sequence numbers, timeouts, resets, expected connections and translation.

Sources: resolve_normal_ct and nf_conntrack_in (net/netfilter/nf_conntrack_core.c), nf_conntrack_confirm at the end of
postrouting and input, nf_ct_bridge_post (net/bridge/netfilter/nf_conntrack_bridge.c) of Linux 6.1.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from pvefw_nft.verify import model as m
from pvefw_nft.verify.simulate.conntrack import first_state
from pvefw_nft.verify.simulate.tracking import ESTABLISHED, NEW

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pvefw_nft.verify.simulate.tracking import Zone

_Tuple: TypeAlias = tuple[int | None, ...]
_ECHO = {8 << 8: 0, 0: 8 << 8}
_ECHO6 = {128 << 8: 129 << 8, 129 << 8: 128 << 8}
"""Echo requests and replies, by type and code, with the counterpart of each."""


@dataclass(slots=True)
class _Connection:
    zone: Zone
    first: _Tuple
    answer: _Tuple
    answered: bool = False
    labels: set[m.Field] = field(default_factory=set)


class Found(NamedTuple):
    """The result of a lookup: the packet's state (a value of ``CT_STATE``), its direction (``CT_DIRECTION``; 1: an
    answer), and the fields of its connection's labels.
    """

    state: int
    direction: int = 0
    labels: frozenset[m.Field] = frozenset()


@dataclass(slots=True)
class Connections:
    """The connections known, and the one that the packet on its way would add where it stays on it."""

    known: list[_Connection] = field(default_factory=list)
    _pending: _Connection | None = None
    _met: _Connection | None = None

    def copy(self) -> Connections:
        """Return the same connections, to try a packet on."""
        return Connections([replace(c, labels=set(c.labels)) for c in self.known])

    def look_up(self, zone: Zone, packet: Mapping[m.Field, int]) -> Found:
        """Return what a packet is that is looked up in a zone."""
        self._pending = self._met = None
        first = m.CT_STATES.index(first_state(packet))
        tuples = _tuples(packet)
        if tuples is None:
            return Found(first)
        for known in self.known:
            if known.zone[0] == zone[0] and known.first == tuples[0]:
                self._met = known
                return Found(ESTABLISHED if known.answered else NEW, 0, frozenset(known.labels))
            if known.zone[1] == zone[1] and known.answer == tuples[0]:
                known.answered = True
                self._met = known
                return Found(ESTABLISHED, 1, frozenset(known.labels))
        if first == NEW:
            self._pending = self._met = _Connection(zone, *tuples)
        return Found(first)

    def label(self, on: m.Field) -> None:
        """Give the connection of the packet looked up last a label."""
        if self._met is not None:
            self._met.labels.add(on)

    def confirm(self) -> None:
        """Note that the packet looked up last has left the bridge, or came to the host."""
        if self._pending is not None:
            self.known.append(self._pending)
            self._pending = None


def _tuples(packet: Mapping[m.Field, int]) -> tuple[_Tuple, _Tuple] | None:
    """Return a packet's tuple and its answer's tuple; None for a packet that is not tracked."""
    if packet.get(m.PROTOCOL) == m.IPV4:
        source, destination, icmp, echo = m.SADDR4, m.DADDR4, m.ICMP, _ECHO
    elif packet.get(m.PROTOCOL) == m.IPV6:
        source, destination, icmp, echo = m.SADDR6, m.DADDR6, m.ICMP6, _ECHO6
    else:
        return None
    kind = packet.get(icmp)
    ends = (packet.get(m.L4PROTO), packet.get(source), packet.get(destination))
    back = (packet.get(m.L4PROTO), packet.get(destination), packet.get(source))
    if kind is not None:
        return (*ends, kind), (*back, echo.get(kind))
    sport, dport = packet.get(m.SPORT), packet.get(m.DPORT)
    return (*ends, sport, dport), (*back, dport, sport)
