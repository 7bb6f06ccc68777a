"""Probes and networks of the kernel lab as simulate knows them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pvefw_nft.verify.model import CT_STATES, IPV4, PROTOCOL, RulesetModel, names
from pvefw_nft.verify.network.path import Link, Network, Nic, Topology
from pvefw_nft.verify.simulate.connections import Connections, Found
from pvefw_nft.verify.simulate.packet import Probe as Simulated
from pvefw_nft.verify.simulate.packet import make_probe
from pvefw_nft.verify.simulate.spec import PacketSpec
from pvefw_nft.verify.simulate.walk import Outcome, simulate
from tests.kernel.network.plan import HOST, ROUTER, WAN_PORT, Plan
from tests.kernel.packets import SMALL_FRAGMENT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pvefw_nft.verify.model import Field
    from pvefw_nft.verify.simulate.tracking import Zone
    from tests.kernel.outcome import Outcome as Seen
    from tests.kernel.packets import Packet, Probe

_CODES4 = ("net-unreachable", "host-unreachable", "proto-unreachable", "port-unreachable", "net-prohibited")
KINDS = {
    4: {name: f"icmp-{name}" for name in (*_CODES4, "host-prohibited", "admin-prohibited")},
    6: {name: f"icmp6-{name}" for name in ("no-route", "addr-unreachable", "port-unreachable")},
}
"""Rejections as the lab calls them, which is as iptables does."""
KINDS[6]["admin-prohibited"] = "icmp6-adm-prohibited"


SUMMED_WITH_HEADER = (1, 6, 17)
"""ICMP, TCP and UDP: connection tracking sums their checksum up from the IPv4 header on, which comes to nothing if its
own is right, so a packet with a wrong one is INVALID (nf_ip_checksum, net/netfilter/utils.c of Linux 6.1)."""


VRRP = 112
RELATED = CT_STATES.index("related")


def lost_before_rules(packet: Packet, topology: Topology) -> bool:
    """Return whether a packet is dropped for its IPv4 header's checksum before any rule sees it.

    br_netfilter does (br_validate_ipv4), and the host's own stack (ip_rcv_core); a bridge alone does not.
    """
    by_host = bool({packet.sender, packet.receiver} & {HOST, ROUTER})
    return packet.damage == "ip" and (topology.call_iptables or by_host)


def unheard(outcome: Outcome, packet: Packet) -> bool:
    """Return whether nothing was sent to say that a packet was rejected, which looks like a drop.

    None is sent for a protocol that should have a checksum and has none, as here for VRRP.
    """
    return outcome.verdict == "REJECT" and (outcome.answered is False or packet.protocol == VRRP)


def topology_of(plan: Plan, *, call_iptables: bool) -> Topology:
    """Return the lab's network."""
    nics, uplinks = [], {}
    for endpoint in plan.endpoints:
        if endpoint.bridge is None:
            continue
        if endpoint.name.startswith("outside"):
            uplinks[endpoint.bridge] = plan.bridge(endpoint.bridge).uplink
            continue
        vmid, _, index = endpoint.port.removeprefix("tap").removeprefix("veth").partition("i")
        addresses = ((4, int(endpoint.v4)), (6, int(endpoint.v6)))
        zone = endpoint.name.partition("i")[0]
        mac = names.mac_number(endpoint.mac)
        nics.append(Nic(zone, int(vmid), int(index), endpoint.port, endpoint.bridge, endpoint.filtered, mac, addresses))
    own = tuple(Network(i.version, int(i.ip), i.network.prefixlen) for i in plan.host)
    links = [
        Link(bridge.name, True, (uplinks[bridge.name],), own if number == 0 else ())
        for number, bridge in enumerate(plan.bridges)
    ]
    wan = tuple(Network(i.version, int(i.ip), i.network.prefixlen) for i in plan.host_interfaces if i not in plan.host)
    links.append(Link(WAN_PORT, False, (), tuple(n for n in wan if n.address != 0x7F000001)))
    return Topology(tuple(nics), tuple(links), call_iptables=call_iptables)


def zone(name: str, other: str, plan: Plan) -> str:
    if name == HOST:
        return "host"
    if name == ROUTER:
        return WAN_PORT
    endpoint = plan.endpoint(name, other)
    if endpoint.name.startswith("outside"):
        return f"{endpoint.bridge}/{plan.bridge(endpoint.bridge or '').uplink}"
    return endpoint.port


MAX_LENGTH = 1500
"""The largest number in the type field of a frame that is a length, as in IEEE 802.3, section 3.2.6."""
LLC = 0x0004
"""Linux's protocol number of such frames (ETH_P_802_2 of linux/if_ether.h)."""


def with_field(spec: PacketSpec, name: str, value: str) -> PacketSpec:
    return replace(spec, overrides=(*spec.overrides, (name, value)))


def spec_of(packet: Packet, plan: Plan, state: str | None) -> PacketSpec:
    def address(name: str, other: str) -> str:
        if name == HOST:
            return str(plan.host_address(packet.family))
        endpoint = plan.endpoint(name, other)
        return str(endpoint.v4 if packet.family == 4 else endpoint.v6)

    spec = PacketSpec(
        zone(packet.sender, packet.receiver, plan),
        zone(packet.receiver, packet.sender, plan),
        mac=packet.source_mac,
        destination_mac=packet.destination_mac,
        vlan=packet.outer_vlan,
        ctstate=state,
    )
    behind_one_tag = packet.tags[1:] if packet.vlan is None else packet.tags
    if behind_one_tag or packet.wrapping is not None:
        kind = behind_one_tag[0][0] if behind_one_tag else packet.wrapping.type if packet.wrapping is not None else 0
        return replace(spec, ether_type=f"{kind if kind > MAX_LENGTH else LLC:x}", ctstate=None)
    if packet.arp is not None:
        sender = packet.arp.sender or plan.endpoint(packet.sender, packet.receiver).v4
        spec = replace(spec, protocol="arp", arp_sender=str(sender))
        return spec if packet.arp.sender_mac is None else with_field(spec, "arp saddr ether", packet.arp.sender_mac)
    if packet.ethertype is not None:
        return replace(spec, ether_type=f"{packet.ethertype:x}")
    flags = ",".join(name for name, bit in names.TCP_FLAG_BITS.items() if packet.flags & bit and name != "ecn")
    ported = packet.protocol in (6, 17, 33, 132, 136)
    if packet.nd_target is not None:
        spec = with_field(spec, "nd target", str(packet.nd_target))
    return replace(
        spec,
        fragment="first" if packet.first_fragment is not None else None,
        protocol=str(packet.protocol),
        family=packet.family,
        source_address=str(packet.source or address(packet.sender, packet.receiver)),
        destination_address=str(packet.destination or address(packet.receiver, packet.sender)),
        sport=(packet.sport if packet.sport is not None else (9 if packet.answering else 40000)) if ported else None,
        dport=(packet.dport if packet.dport is not None else (40000 if packet.answering else 9)) if ported else None,
        tcp_flags=(flags or "none") if packet.protocol == 6 else None,
        icmp_type=f"{packet.icmp_type}/{packet.icmp_code}" if packet.icmp_type is not None else None,
    )


def one(packet: Packet, plan: Plan, topology: Topology, state: str | None) -> Simulated:
    return make_probe(spec_of(packet, plan, state), topology)


class Quoted(Connections):
    """Connections as a packet meets them that quotes one: where it is known, the packet is related to it."""

    def copy(self) -> Quoted:
        """Return the same connections, to try a packet on."""
        return Quoted(super().copy().known)

    def look_up(self, zone: Zone, packet: Mapping[Field, int]) -> Found:
        """Return the state of the packet in a zone."""
        return Found(RELATED) if any(zone[0] in known.zone for known in self.known) else super().look_up(zone, packet)


def outcome_of(probe: Probe, plan: Plan, topology: Topology, model: RulesetModel) -> Outcome:
    """Return the fate of a probe's last packet; those before it make the connection it belongs to.

    A connection is known from the first bridge that a packet of it left, in the zone it has there, wherever it was
    dropped later.
    """
    connections = Connections()
    for packet in probe.packets[:-1]:
        outcome = simulate(model, one(packet, plan, topology, None), connections=connections)
        # A reset before any answer deletes it.
        connections = Connections() if outcome.kind == "tcp-reset" else outcome.connections or connections
    judged = probe.judged
    if judged.damage == "l4" or (judged.damage == "ip" and judged.protocol in SUMMED_WITH_HEADER):
        return simulate(model, one(judged, plan, topology, "invalid"))
    last = one(judged, plan, topology, None)
    if len(probe.packets) == 1:
        return simulate(model, last)
    if judged.quoted is not None:
        connections = Quoted(connections.known)
    return simulate(model, last, connections=connections)


def text_of(outcome: Outcome) -> str:
    """Return an outcome as the lab writes it: ``REJECT icmp-port-unreachable``."""
    if outcome.kind is None:
        return outcome.verdict
    family = 4 if outcome.probe.fields[PROTOCOL] == IPV4 else 6
    return f"{outcome.verdict} {KINDS[family].get(outcome.kind, outcome.kind)}"


def lost(outcome: Outcome, packet: Packet) -> bool:
    """Return whether a bridge may lose a packet that the rules let by: IPv6 in fragments smaller than 1280 bytes.

    Without br_netfilter it does where it takes them apart again (br_ip6_fragment). Simulate knows fragments only as put
    together.
    """
    small = packet.first_fragment == SMALL_FRAGMENT and packet.family == 6
    topology = outcome.probe.topology
    return outcome.verdict == "ACCEPT" and small and topology is not None and not topology.call_iptables


def agrees(foreseen: Outcome, seen: Seen, packet: Packet) -> bool:
    """Return whether the predicted outcome of a packet is the kernel's.

    A rejection that cannot be sent looks like a drop. An answer to a spoofed source goes to the owner of that address,
    which simulate cannot know.
    """
    if seen.verdict == "DROP" and (unheard(foreseen, packet) or lost(foreseen, packet)):
        return True
    if packet.outer_vlan is not None and foreseen.probe.path.dead_end and foreseen.stopped:
        return seen.verdict == "ACCEPT"  # the lab sees it come to the bridge, where no port takes it
    told = foreseen.answered in (None, seen.told) or packet.source is not None
    return text_of(foreseen) == str(seen) and told
