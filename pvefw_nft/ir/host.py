"""The chains and sets of the host: packets that it receives and sends itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.ir.nodes import (
    Address,
    AddressKind,
    AddressSet,
    AddressType,
    AssignHelper,
    ConnState,
    Direction,
    Family,
    InSet,
    Interface,
    Jump,
    Layer,
    PortRange,
    Ports,
    Protocol,
    ProtocolMatch,
    RateOver,
    Rule,
    SetEntry,
    SetKey,
    Side,
    State,
)
from pvefw_nft.ir.rules import (
    ACCEPT,
    DROP,
    RETURN,
    TCP,
    UDP,
    Chains,
    Context,
    builtin,
    file_rules,
    groups_of,
    header_origin,
    ndp_rules,
    policy_origin,
    policy_rules,
)
from pvefw_nft.ir.standard import NEW_CONNECTION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pvefw_nft.config.model import Corosync, CorosyncNode
    from pvefw_nft.ir.nodes import Prefix

MANAGEMENT = SetKey(0, "management")
"""The set of addresses that may always manage this node."""

BLACKLIST = SetKey(0, "blacklist")
"""The set of addresses whose packets are dropped first."""

_IGMP = ProtocolMatch(Protocol(2, "igmp"))
_MANAGEMENT_IN = ("8006", "5900:5999", "3128", "22", "60000:60050")  # web interface, VNC, SPICE, ssh, live migration
_MANAGEMENT_OUT = ("8006", "22", "5900:5999", "3128")
_COROSYNC = "5404:5405"  # mcastport, and the port before it (corosync.conf(5))

_HELPERS = {
    "amanda": (UDP, 10080, Family.BOTH),
    "ftp": (TCP, 21, Family.BOTH),
    "irc": (TCP, 6667, Family.V4),
    "netbios-ns": (UDP, 137, Family.V4),
    "pptp": (TCP, 1723, Family.V4),
    "sane": (TCP, 6566, Family.BOTH),
    "sip": (UDP, 5060, Family.BOTH),
    "snmp": (UDP, 161, Family.V4),
    "tftp": (UDP, 69, Family.BOTH),
}
"""Protocol and port that each helper of conntrack listens to, and the families it knows (net/netfilter)."""


def _dport(text: str) -> Ports:
    first, _, last = text.partition(":")
    return Ports(Side.DESTINATION, (PortRange(int(first), int(last or first), text),))


def input_filters(context: Context) -> Iterator[Rule]:
    """Yield the rules that every packet to the host or to a guest passes first: blacklist, smurfs, TCP flags."""
    options = context.node.host.options
    if BLACKLIST.name in context.node.cluster.ipsets:
        yield builtin("blacklist", InSet(Side.SOURCE, BLACKLIST), action=Jump("PVEFW-blacklist"))
    if options.nosmurfs:
        new = ConnState((State.INVALID, State.NEW))
        yield builtin("nosmurfs", new, action=Jump("PVEFW-smurfs"), families=Family.V4)
    if options.tcpflags:
        yield builtin("tcpflags", TCP, action=Jump("PVEFW-tcpflags"))


def add_blacklist(context: Context, chains: Chains) -> None:
    """Add the chain that drops packets of the blacklist, if there is one."""
    if BLACKLIST.name not in context.node.cluster.ipsets:
        return
    # One chain serves guests and host. Guests come first, and their log level is the host's log_level_out.
    log = context.log(context.node.host.options.log_level_out, 0, "PVEFW-blacklist", "DROP")
    drop = builtin("blacklist", action=DROP)
    chains.add(Layer.FILTER, "PVEFW-blacklist", [Rule((), DROP, drop.origin, log=log)])


def add_host_chains(context: Context, chains: Chains) -> None:
    """Add PVEFW-HOST-IN and PVEFW-HOST-OUT, and the chains of the groups that they use."""
    groups = groups_of((*context.node.host.rules, *context.node.cluster.rules))
    for direction, name, rules in (
        (Direction.IN, "PVEFW-HOST-IN", _host_in(context)),
        (Direction.OUT, "PVEFW-HOST-OUT", _host_out(context)),
    ):
        chains.add_groups(context, ((group, direction) for group in groups))
        chains.add(Layer.FILTER, name, rules)


def _always(direction: Direction) -> Iterator[Rule]:
    yield builtin("loopback", Interface(direction, "lo"), action=ACCEPT)
    yield builtin("conntrack", ConnState((State.INVALID,)), action=DROP)
    yield builtin("conntrack", ConnState((State.RELATED, State.ESTABLISHED)), action=ACCEPT)


def _host_in(context: Context) -> Iterator[Rule]:
    chain, node = "PVEFW-HOST-IN", context.node
    # acceptance is RETURN in the host's chains: rules of INPUT behind the jump still count
    yield from _always(Direction.IN)
    if node.host.options.ndp:
        yield from ndp_rules(RETURN, advertise=True)
    yield from input_filters(context)
    yield builtin("igmp", _IGMP, action=RETURN)
    # the node's own rules come before the cluster's
    for rules in (node.host.rules, node.cluster.rules):
        yield from file_rules(context, rules, chain, 0, Direction.IN, RETURN)
    for port in _MANAGEMENT_IN:
        yield builtin("management", InSet(Side.SOURCE, MANAGEMENT), TCP, _dport(port), action=RETURN)
    yield from _corosync(context, Direction.IN)
    options = node.host.options
    policy = node.cluster.options.policy_in
    origin = policy_origin(node.cluster, "policy_in", policy)
    yield from policy_rules(context, policy, origin, chain, 0, options.log_level_in, RETURN)


def _host_out(context: Context) -> Iterator[Rule]:
    chain, node = "PVEFW-HOST-OUT", context.node
    yield from _always(Direction.OUT)
    if node.host.options.ndp:
        yield from ndp_rules(RETURN, advertise=False)
    yield builtin("igmp", _IGMP, action=RETURN)
    for rules in (node.host.rules, node.cluster.rules):
        yield from file_rules(context, rules, chain, 0, Direction.OUT, RETURN)
    network = node.local_network
    if network is not None:
        for port in _MANAGEMENT_OUT:
            to_network = Address(Side.DESTINATION, (network,))
            yield builtin("local_network", to_network, TCP, _dport(port), action=RETURN, families=_family(network))
    yield from _corosync(context, Direction.OUT)
    options = node.host.options
    policy = node.cluster.options.policy_out
    origin = policy_origin(node.cluster, "policy_out", policy)
    yield from policy_rules(context, policy, origin, chain, 0, options.log_level_out, RETURN)


def _family(prefix: Prefix) -> Family:
    return Family.V4 if prefix.version == 4 else Family.V6


def _corosync(context: Context, direction: Direction) -> Iterator[Rule]:
    """Yield the rules that let the cluster's nodes talk to each other."""
    corosync = context.node.corosync
    if corosync is None:
        return
    if corosync.transport == "udp":  # the other transports, knet and udpu, send to single addresses only
        multicast = AddressType(Side.DESTINATION, AddressKind.MULTICAST)
        yield builtin("corosync", multicast, UDP, _dport(_COROSYNC), action=RETURN)
    for ours, theirs in corosync_peers(corosync, context.node.node):
        near, far = (Side.DESTINATION, Side.SOURCE) if direction is Direction.IN else (Side.SOURCE, Side.DESTINATION)
        ends = (Address(near, (ours,)), Address(far, (theirs,)))
        yield builtin("corosync", *ends, UDP, _dport(_COROSYNC), action=RETURN, families=_family(ours))


def corosync_peers(corosync: Corosync, node: str) -> Iterator[tuple[Prefix, Prefix]]:
    """Yield pairs of addresses on one link: this node's and a peer's, by the peer's name, then by link."""
    own: CorosyncNode | None = next((member for member in corosync.nodes if member.name == node), None)
    if own is None:
        return
    for peer in sorted(corosync.nodes, key=lambda member: member.name):
        if peer is own:
            continue
        for link, theirs in sorted(peer.links.items()):
            ours = own.links.get(link)
            # no packet has addresses of both IP versions
            if ours is not None and ours.version == theirs.version:
                yield ours, theirs


def add_raw_chain(context: Context, chains: Chains) -> bool:
    """Add the chain that runs before connection tracking; returns whether there is one."""
    options = context.node.host.options
    rules: list[Rule] = []
    if options.protection_synflood:
        over = RateOver(
            options.protection_synflood_rate,
            options.protection_synflood_burst,
            options.nf_conntrack_tcp_timeout_syn_recv * 1000,  # --hashlimit-htable-expire takes milliseconds
            None if context.as_reference else context.node.host.hardening.synflood_sources,
        )
        rules.append(builtin("protection_synflood", TCP, NEW_CONNECTION, over, action=DROP))
    for name in options.nf_conntrack_helpers:
        protocol, port, families = _HELPERS[name]
        to_port = _dport(str(port))
        rules.append(builtin("nf_conntrack_helpers", protocol, to_port, action=AssignHelper(name), families=families))
    if rules:
        chains.add(Layer.RAW, "PVEFW-PREROUTING", rules)
    return bool(rules)


def cluster_sets(context: Context) -> Iterator[AddressSet]:
    """Yield the cluster's sets; ``management`` is always there and holds the local network.

    They include all sets of the SDN, used or not, which replace an ipset of the same name.
    """
    node = context.node
    ipsets = {**node.cluster.ipsets, **node.sdn_ipsets}
    for name, ipset in ipsets.items():
        if name != MANAGEMENT.name:
            entries = tuple(SetEntry(entry.prefix, entry.nomatch) for entry in ipset.entries)
            yield AddressSet(SetKey(0, name), entries, len(entries) + ipset.replaced, header_origin(ipset))
    management = ipsets.get(MANAGEMENT.name)
    entries = () if management is None else tuple(SetEntry(e.prefix, e.nomatch) for e in management.entries)
    local = node.local_network
    counted = len(entries) + (0 if management is None else management.replaced)
    if local is not None:
        # the reference adds the local network twice, sizes the set, and only then removes duplicates
        counted += 2
        if all(
            (e.prefix.version, e.prefix.address, e.prefix.length) != (local.version, local.address, local.length)
            for e in entries
        ):
            entries = (*entries, SetEntry(local))
    yield AddressSet(MANAGEMENT, entries, counted)
