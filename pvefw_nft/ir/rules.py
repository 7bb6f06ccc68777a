"""Shared by the builders of the IR: the chains made so far, and the translation of a file's rule to rules of the IR."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.config.model import GroupRule, Policy, RuleAction, RuleType
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
"""The limit of log lines where the cluster says nothing about it."""


class Context:
    """The node being compiled, and the chains made so far, by layer and name.

    ``as_reference``: leave out rules that make the ruleset stricter than the reference's. ``journal`` holds, in order,
    the chains added and the group chains asked for since it was last emptied.
    """

    def __init__(self, node: NodeConfig, *, as_reference: bool = False) -> None:
        """Start with no chains."""
        self.node = node
        self.as_reference = as_reference
        self.journal: list[tuple[Layer, Chain] | tuple[str, Direction]] = []
        self.chains: dict[Layer, dict[str, Chain]] = {layer: {} for layer in Layer}
        ratelimit = node.cluster.options.log_ratelimit
        self.limit: RateLimit | None = DEFAULT_LIMIT if ratelimit is None else ratelimit.limit

    def add(self, layer: Layer, name: str, rules: Iterable[Rule], families: Family = Family.BOTH) -> None:
        """Add a chain."""
        chain = Chain(name, tuple(rules), families)
        self.journal.append((layer, chain))
        self.chains[layer][name] = chain

    def forget(self, count: int) -> None:
        """Remove the chains added since the journal had ``count`` entries. Groups' chains stay, for other guests."""
        for first, second in self.journal[count:]:
            if isinstance(second, Chain):
                assert isinstance(first, Layer)
                self.chains[first].pop(second.name, None)
        del self.journal[count:]

    def repeat(self, journal: Iterable[tuple[Layer, Chain] | tuple[str, Direction]]) -> None:
        """Replay a journal."""
        for first, second in journal:
            if isinstance(second, Chain):
                assert isinstance(first, Layer)
                self.chains[first][second.name] = second
            else:
                assert isinstance(first, str)
                group_chain(self, first, second)

    def log(self, level: int | None, vmid: int, chain: str, message: str) -> Log | None:
        """Return the log of a rule in that chain, or None where nothing is to be logged."""
        return None if level is None else Log(level, vmid, chain, f"{message}: ", self.limit)


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
    matches: list[Match] = [ProtocolMatch(service.protocol)]
    if service.icmp is not None:
        icmp = service.icmp
        matches.append(IcmpType(icmp.version, icmp.type, icmp.code, icmp.spelling))
    if service.sport:
        matches.append(Ports(Side.SOURCE, service.sport))
    if service.dport:
        matches.append(Ports(Side.DESTINATION, service.dport))
    return matches


def group_rule(
    context: Context, rule: GroupRule, direction: Direction, accept: Action, iface: str | None
) -> Iterator[Rule]:
    """Yield the rules for a rule of type GROUP: jump to the group's chain, then test its mark.

    The group's chain is made on first use. ``iface`` is the host's interface, None in a guest's chains. A packet
    from a guest keeps the mark and returns, which means acceptance there.
    """
    chain = group_chain(context, rule.group, direction)
    line = rule.written.line
    origin = Origin(Provenance.BUILTIN, line.file, line.number, group=rule.group)
    matches = () if iface is None else (Interface(direction, iface),)
    yield Rule(matches, Jump(chain), origin)
    yield Rule((AcceptMark(),), RETURN if accept is SET_ACCEPT_MARK else accept, origin)


def group_chain(context: Context, name: str, direction: Direction) -> str:
    """Return the name of a group's chain for that direction, after making it where it is not there yet."""
    chain = f"GROUP-{name}-{direction.value}"
    context.journal.append((name, direction))
    if chain not in context.chains[Layer.FILTER]:
        rules = [builtin("group", action=SetAcceptMark(on=False))]
        for rule in context.node.cluster.groups[name].rules:
            if rule.type is _TYPES[direction]:
                rules += user_rule(context, rule, chain, 0, SET_ACCEPT_MARK, group=name)
        context.chains[Layer.FILTER][chain] = Chain(chain, tuple(rules))
    return chain


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
        if nic is not None and rule.iface is not None and rule.iface != f"net{nic}":
            continue
        if isinstance(rule, GroupRule):
            yield from group_rule(context, rule, direction, accept, rule.iface if nic is None else None)
        elif rule.type is wanted:
            yield from user_rule(context, rule, chain, vmid, accept)


def policy_origin(config: ClusterConfig | GuestConfig | VnetConfig, option: str, policy: Policy) -> Origin:
    """Return the origin of a policy: the line of its option, or the file where the default holds."""
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
