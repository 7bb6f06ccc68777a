"""Tell whether the answer to a rejected packet reaches its sender.

A rejection is a packet of its own, and the ruleset sees it on its way back. Where its connection was never
confirmed, because the first packet was rejected at once, or is gone, since a reset ends it, connection tracking
takes the answer for invalid, and the ruleset drops it: to the sender that looks like a drop.

Sources: net/ipv4/netfilter/nf_reject_ipv4.c and net/ipv6/netfilter/nf_reject_ipv6.c (a reset of a bridged packet goes
out by the bridge itself, other answers come from the host's own stack with its own address; a later fragment is not
answered), net/bridge/netfilter/nft_reject_bridge.c (answers go back out of the port they came by),
nf_conntrack_proto_tcp.c (a reset before any reply deletes the connection).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pvefw_nft.verify.model import (
    CT_DIRECTION,
    CT_STATE,
    CT_STATES,
    DADDR4,
    DADDR6,
    DADDR_TYPE,
    DEFAULTS,
    DPORT,
    ETHER_DST,
    ETHER_SRC,
    ETHER_TYPE,
    FRAGMENT,
    ICMP,
    ICMP6,
    IPV4,
    IS_BRIDGED,
    L4PROTO,
    LENGTH,
    MARK,
    PKTTYPE,
    PROTOCOL,
    SADDR4,
    SADDR6,
    SADDR_TYPE,
    SPORT,
    TCP_FLAGS,
    TTL,
    Family,
    Point,
)
from pvefw_nft.verify.network.path import HostEnd, Path, find_path, way_back

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pvefw_nft.verify.model import Field
    from pvefw_nft.verify.network.path import Stage, Topology

RESET = "tcp-reset"
_RST_ACK = 0x14
_CODES4 = {
    "net-unreachable": 0, "host-unreachable": 1, "proto-unreachable": 2, "port-unreachable": 3, "net-prohibited": 9,
    "host-prohibited": 10, "admin-prohibited": 13,
}  # fmt: skip
_CODES6 = {
    "no-route": 0, "admin-prohibited": 1, "addr-unreachable": 3, "port-unreachable": 4, "policy-fail": 5,
    "reject-route": 6,
}  # fmt: skip

_UNSUMMED = (4, 41, 97, 115, 137)
"""IP in IP, IPv6 in IP, Ethernet in IP, L2TP and MPLS in IP: no checksum of all they carry, and not in the list of
those that may have none (nf_reject_verify_csum, include/net/netfilter/nf_reject.h)."""


@dataclass(frozen=True, slots=True)
class Leg:
    """A part of the answer's way, on which connection tracking takes it for ``state``."""

    stages: tuple[Stage, ...]
    state: str


@dataclass(frozen=True, slots=True)
class AnswerWay:
    """An answer, its fields but for the connection's state, and its way back in legs.

    Where there is no way, ``unsent`` says why.
    """

    fields: Mapping[Field, int]
    path: Path
    legs: tuple[Leg, ...]
    unsent: str = ""


def answer_way(
    topology: Topology, path: Path, at: int, kind: str, packet: Mapping[Field, int], *, apart: bool = False
) -> AnswerWay | None:
    """Return the way of the answer to a packet rejected at stage number ``at`` of its path.

    ``kind`` is the rejection's, ``packet`` the rejected packet; ``apart``: firewall bridges have other connection
    tracking zones than the guests' bridges. None: the sender is the host itself, which learns
    of it at once. Where nothing can be answered, the way has no legs.
    """
    source = path.source
    if isinstance(source, HostEnd) and path.stages[at].point is Point.OUTPUT:
        return None
    stage = path.stages[at]
    known = packet[CT_STATE] != CT_STATES.index("new") or any(
        before.point is Point.POSTROUTING for before in path.stages[:at]
    )
    bridged = dict(stage.fields).get(IS_BRIDGED) == 1
    from_host = stage.family is not Family.BRIDGE and not (bridged and kind == RESET)
    if from_host and isinstance(source, HostEnd):
        return None
    if from_host:
        stages: Sequence[Stage] = find_path(topology, HostEnd(), source).stages
    else:
        stages = way_back(topology, path, at)
    nowhere = Path(path.destination, source, ())
    if packet.get(FRAGMENT) == FRAGMENT.names.index("later"):
        return AnswerWay({}, nowhere, (), "a later fragment does not say which connection it is of")
    fields = _fields(topology, packet, kind, by_host=from_host and kind != RESET)
    if _to_many(packet, stage, stages, kind):
        return AnswerWay(fields, nowhere, (), "packets to many are not answered")
    if packet[L4PROTO] in _UNSUMMED:
        return AnswerWay(fields, nowhere, (), "the kernel sends no rejection if it cannot verify the packet's checksum")
    if from_host and _unanswerable(packet):
        return AnswerWay(fields, nowhere, (), "the host cannot reach that address from there")
    legs = tuple(_legs(stages, kind, known=known, attached=from_host, apart=apart))
    return AnswerWay(fields, Path(path.destination, source, tuple(stages)), legs)


def _to_many(packet: Mapping[Field, int], stage: Stage, back: Sequence[Stage], kind: str) -> bool:
    """Return whether a packet that was sent to many, and rejected at a stage, is not answered for that.

    All that is ever sent is a reset: by the host where only the frame went to many, and by iptables for a bridged
    packet, over IPv4 even from the group's address. The latter leaves the bridge it is made on in a frame that is from
    the group's MAC address, which no other bridge takes.

    Sources: icmp_send (net/ipv4/icmp.c), icmp6_send (net/ipv6/icmp.c), nft_reject_bridge_eval
    (net/bridge/netfilter/nft_reject_bridge.c), nf_send_reset and nf_send_reset6, br_handle_frame
    (net/bridge/br_input.c); seen in the kernel lab.
    """
    if packet.get(PKTTYPE, 0) == 0:
        return False
    to_group = packet[DADDR_TYPE] in _MANY
    bridged = dict(stage.fields).get(IS_BRIDGED) == 1
    if kind != RESET or stage.family is Family.BRIDGE:
        return True
    if not bridged:
        return to_group
    return (to_group and packet[PROTOCOL] != IPV4) or any(one.point is Point.PREROUTING for one in back)


_MANY = tuple(SADDR_TYPE.names.index(name) for name in ("broadcast", "multicast"))


def _unanswerable(packet: Mapping[Field, int]) -> bool:
    """Return whether the host's own stack has no way to answer this sender: one address for many, none, or a
    link-local one, which it would have to look for on the firewall bridge, where it does not speak IPv6.
    """
    if packet[SADDR_TYPE] != SADDR_TYPE.names.index("unicast"):
        return packet[SADDR_TYPE] != SADDR_TYPE.names.index("local")
    return SADDR6 in packet and packet[SADDR6] >> 118 == 0xFE80 >> 6


def _legs(stages: Sequence[Stage], kind: str, *, known: bool, attached: bool, apart: bool) -> list[Leg]:
    """Split a way at each hook where connection tracking looks the answer up again.

    ``known``: the connection is in its table; ``attached``: the answer starts with its connection attached. A reset
    ends the connection in the zone where it is looked up: ``apart``, the next bridge still has its own.
    """
    state = ("established" if kind == RESET else "related") if attached else "untracked"
    legs: list[Leg] = []
    current: list[Stage] = []
    hop = stages[0].hop if stages else ""
    for stage in stages:
        if stage.point is Point.PREROUTING and stage.hop != hop:
            legs.append(Leg(tuple(current), state))
            current, hop = [], stage.hop
            if kind == RESET:
                state, known = ("established" if known else "invalid"), known and apart
            else:
                state = "related" if known else "invalid"
        current.append(stage)
    legs.append(Leg(tuple(current), state))
    return legs


def _fields(topology: Topology, packet: Mapping[Field, int], kind: str, *, by_host: bool) -> dict[Field, int]:
    """Return the answer's fields; ``by_host``: it comes from the host's own address."""
    v4 = packet[PROTOCOL] == IPV4
    source, destination = (SADDR4, DADDR4) if v4 else (SADDR6, DADDR6)
    fields = {on: value for on, value in packet.items() if on.size == 2 and on not in MARK}
    fields |= dict.fromkeys(MARK, 0)
    fields |= {on: packet[on] for on in (PROTOCOL, ETHER_TYPE) if on in packet}
    fields |= {on: DEFAULTS[on] for on in (FRAGMENT, TTL, LENGTH, CT_DIRECTION, PKTTYPE)}
    fields[CT_DIRECTION] = 1
    fields[destination] = packet[source]
    fields[source] = _host_address(topology, packet[source], v4=v4) if by_host else packet[destination]
    fields[DADDR_TYPE] = packet[SADDR_TYPE]
    fields[SADDR_TYPE] = SADDR_TYPE.names.index("local") if by_host else packet[DADDR_TYPE]
    fields[ETHER_SRC], fields[ETHER_DST] = packet[ETHER_DST], packet[ETHER_SRC]
    if kind == RESET:
        fields |= {L4PROTO: 6, SPORT: packet[DPORT], DPORT: packet[SPORT], TCP_FLAGS: _RST_ACK}
    elif v4:
        fields |= {L4PROTO: 1, ICMP: 3 << 8 | _CODES4.get(kind, 3)}
    else:
        fields |= {L4PROTO: 58, ICMP6: 1 << 8 | _CODES6.get(kind, 4)}
    return fields


def _host_address(topology: Topology, to: int, *, v4: bool) -> int:
    version = 4 if v4 else 6
    networks = [n for link in topology.links for n in link.networks if n.version == version]
    near = [network for network in networks if network.contains(version, to)]
    return (near or networks)[0].address if networks else to ^ 1
