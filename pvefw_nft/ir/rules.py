"""Shared by the builders of the IR: the facts of the node, the chains, and the translation of a file's rule."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from pvefw_nft.config.model import GroupRule, RuleAction, RuleType
from pvefw_nft.config.option_values import Policy
from pvefw_nft.config.values import Range, common
from pvefw_nft.ir.nodes import (
    Accept,
    AcceptMark,
    Address,
    AddressRange,
    Chain,
    Direction,
    Drop,
    Family,
    Goto,
    IcmpType,
    InSet,
    Interface,
    Jump,
    Layer,
    Log,
    Origin,
    Ports,
    Protocol,
    ProtocolMatch,
    Provenance,
    RateLimit,
    Return,
    Rule,
    SetAcceptMark,
    SetKey,
    Side,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pvefw_nft.config.model import (
        Addresses,
        ClusterConfig,
        GuestConfig,
        Ipset,
        NodeConfig,
        RuleItem,
        Service,
        VnetConfig,
    )
    from pvefw_nft.config.model import Rule as ModelRule
    from pvefw_nft.ir.nodes import Action, Match

ACCEPT = Accept()
DROP = Drop()
REJECT = Jump("PVEFW-reject")
SET_ACCEPT_MARK = Goto("PVEFW-SET-ACCEPT-MARK")
RETURN = Return()

TCP = ProtocolMatch(Protocol(6, "tcp"))
UDP = ProtocolMatch(Protocol(17, "udp"))
ICMPV6 = ProtocolMatch(Protocol(58, "icmpv6"))

NDP_TYPES = {
    "router-solicitation": 133,
    "router-advertisement": 134,
    "neighbor-solicitation": 135,
    "neighbor-advertisement": 136,
}
"""The ICMPv6 types of neighbour discovery that rules let through (RFC 4861, section 4)."""

_TYPES = {Direction.IN: RuleType.IN, Direction.OUT: RuleType.OUT}
"""The type of a file's rules for packets of a direction."""

DEFAULT_LIMIT = RateLimit(1, "second", None, "1/sec")
"""The limit of log lines if the cluster says nothing about it."""


class Context:
    """The node being compiled. ``as_reference``: leave out rules that make the ruleset stricter than the reference's.

    ``limit`` applies to log lines.
    """

    def __init__(self, node: NodeConfig, *, as_reference: bool = False) -> None:
        """Read the limit of log lines from cluster.fw."""
        self.node = node
        self.as_reference = as_reference
        ratelimit = node.cluster.options.log_ratelimit
        self.limit: RateLimit | None = DEFAULT_LIMIT if ratelimit is None else ratelimit.limit

    def log(self, level: int | None, vmid: int, chain: str, message: str) -> Log | None:
        """Return the log of a rule in that chain, or None if nothing is to be logged."""
        return None if level is None else Log(level, vmid, chain, f"{message}: ", self.limit)


class Chains:
    """The chains of a ruleset, by layer and name, while it is built."""

    def __init__(self) -> None:
        """Start with no chains."""
        self.layers: dict[Layer, dict[str, Chain]] = {layer: {} for layer in Layer}

    def add(self, layer: Layer, name: str, rules: Iterable[Rule], families: Family = Family.BOTH) -> None:
        """Add a chain."""
        self.layers[layer][name] = Chain(name, tuple(rules), families)

    def add_groups(self, context: Context, groups: Iterable[tuple[str, Direction]]) -> None:
        """Add the chains of groups, each for a direction, if they do not exist yet."""
        filtering = self.layers[Layer.FILTER]
        for group, direction in groups:
            name = group_chain_name(group, direction)
            if name not in filtering:
                filtering[name] = _group_chain(context, group, direction)


def builtin(reason: str, *matches: Match, action: Action, families: Family = Family.BOTH) -> Rule:
    """Return a rule that an option or a feature asks for."""
    return Rule(matches, action, Origin(Provenance.BUILTIN, reason=reason), families)


def header_origin(ipset: Ipset) -> Origin:
    """Return the place where an ipset is defined."""
    return Origin(Provenance.USER, ipset.header.file, ipset.header.number)


def user_rule(
    context: Context, rule: ModelRule, chain: str, vmid: int, accept: Action, group: str | None = None
) -> Iterator[Rule]:
    """Yield the rules of the IR for one rule of a file, in the chain of that name.

    ``accept`` is the action that means acceptance in that chain.

    Before: ``IN DNS(ACCEPT) -source 10.0.0.0/8``. After: one rule for udp port 53 and one for tcp port 53, both
    from 10.0.0.0/8 and for IPv4 only.
    """
    action = accept if rule.action is RuleAction.ACCEPT else DROP if rule.action is RuleAction.DROP else REJECT
    head: tuple[Match, ...] = ()
    # a guest's chain belongs to one NIC, so only rules of the host test the interface
    if vmid == 0 and rule.iface is not None:
        head = (Interface(Direction.OUT if rule.type is RuleType.OUT else Direction.IN, rule.iface),)
    if rule.source is not None:
        head = (*head, _address(Side.SOURCE, rule.source))
    if rule.dest is not None:
        head = (*head, _address(Side.DESTINATION, rule.dest))
    line = rule.written.line
    origin = Origin(Provenance.USER, line.file, line.number, rule.macro, group)
    log = None if rule.log is None else context.log(rule.log, vmid, chain, rule.action.value)
    for service in rule.services:
        families = common(rule.families, service.families)
        if families is not None:
            matches = head if service.protocol is None else (*head, *_service(service))
            yield Rule(matches, action, origin, families, log)


def _address(side: Side, addresses: Addresses) -> Match:
    match addresses:
        case SetKey():
            return InSet(side, addresses)
        case Range():
            return AddressRange(side, addresses.version, addresses.first, addresses.last, addresses.spelling)
        case _:
            return Address(side, addresses)


def _service(service: Service) -> list[Match]:
    if service.protocol is None:
        return []
    matches: list[Match] = [_protocol_match(service.protocol)]
    if service.icmp is not None:
        icmp = service.icmp
        matches.append(IcmpType(icmp.version, icmp.type, icmp.code, icmp.spelling))
    if service.sport:
        matches.append(Ports(Side.SOURCE, service.sport))
    if service.dport:
        matches.append(Ports(Side.DESTINATION, service.dport))
    return matches


@lru_cache(maxsize=256)
def _protocol_match(protocol: Protocol) -> ProtocolMatch:
    """Return the test of a protocol: one object for all rules."""
    return ProtocolMatch(protocol)


def group_rule(rule: GroupRule, direction: Direction, accept: Action, iface: str | None) -> Iterator[Rule]:
    """Yield the rules for a rule of type GROUP: jump to the group's chain, then test its mark.

    ``iface`` is the host's interface, None in a guest's chains. A packet from a guest keeps the mark and returns,
    which means acceptance there.
    """
    line = rule.written.line
    origin = Origin(Provenance.BUILTIN, line.file, line.number, group=rule.group)
    matches = () if iface is None else (Interface(direction, iface),)
    yield Rule(matches, Jump(group_chain_name(rule.group, direction)), origin)
    yield Rule((AcceptMark(),), RETURN if accept is SET_ACCEPT_MARK else accept, origin)


def group_chain_name(name: str, direction: Direction) -> str:
    """Return the name of a group's chain for a direction."""
    return f"GROUP-{name}-{direction.value}"


def _group_chain(context: Context, name: str, direction: Direction) -> Chain:
    """Return a group's chain for a direction."""
    chain = group_chain_name(name, direction)
    rules = [builtin("group", action=SetAcceptMark(on=False))]
    for rule in context.node.cluster.groups[name].rules:
        if rule.type is _TYPES[direction]:
            rules += user_rule(context, rule, chain, 0, SET_ACCEPT_MARK, group=name)
    return Chain(chain, tuple(rules))


def groups_of(rules: Iterable[RuleItem], nic: int | None = None) -> list[str]:
    """Return the groups that rules of a file name, in order; in a guest's file, those for a NIC."""
    return [rule.group for rule in rules if isinstance(rule, GroupRule) and _concerns(rule, nic)]


def _concerns(rule: RuleItem, nic: int | None) -> bool:
    """Tell whether a rule is for a NIC of a guest; rules of other files (``nic`` None) are for all."""
    return nic is None or rule.iface is None or rule.iface == f"net{nic}"


def file_rules(
    context: Context,
    rules: Iterable[RuleItem],
    chain: str,
    vmid: int,
    direction: Direction,
    accept: Action,
    nic: int | None = None,
) -> Iterator[Rule]:
    """Yield the rules of the IR for the rules of a file that speak of that direction (and, in a guest, that NIC)."""
    wanted = _TYPES[direction]
    for rule in rules:
        if not _concerns(rule, nic):
            continue
        if isinstance(rule, GroupRule):
            yield from group_rule(rule, direction, accept, rule.iface if nic is None else None)
        elif rule.type is wanted:
            yield from user_rule(context, rule, chain, vmid, accept)


def policy_origin(config: ClusterConfig | GuestConfig | VnetConfig, option: str, policy: Policy) -> Origin:
    """Return the origin of a policy: the line of its option, or its file for a default."""
    line = config.option_lines.get(option, 0)
    return Origin(Provenance.POLICY, config.file, line, reason=f"{option} {policy.value}")


def policy_rules(
    context: Context, policy: Policy, origin: Origin, chain: str, vmid: int, level: int | None, accept: Action
) -> Iterator[Rule]:
    """Yield the rules at the end of a chain, for packets that no rule matched."""
    match policy:
        case Policy.ACCEPT:
            yield Rule((), accept, origin)
        case Policy.DROP:
            # PVEFW-Drop drops the noise of local networks first, so that it is not logged
            yield Rule((), Jump("PVEFW-Drop"), origin)
            yield Rule((), DROP, origin, log=context.log(level, vmid, chain, "policy DROP"))
        case Policy.REJECT:
            yield Rule((), Jump("PVEFW-Reject"), origin)
            yield Rule((), Goto("PVEFW-reject"), origin, log=context.log(level, vmid, chain, "policy REJECT"))


def ndp_rules(accept: Action, *, advertise: bool) -> Iterator[Rule]:
    """Yield the rules that let neighbour discovery through; ``advertise``: router advertisements too."""
    for name, number in NDP_TYPES.items():
        if advertise or name != "router-advertisement":
            yield builtin("ndp", ICMPV6, IcmpType(6, number, None, name), action=accept, families=Family.V6)
