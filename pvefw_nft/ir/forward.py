"""The chains of FORWARD rules: for routed packets, and for packets between a VNet's ports.

They live in a layer of their own, since the reference ruleset has no place for them. Acceptance is final there
and needs no mark: the guests' own chains run at other hooks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.config.model import GroupRule, RuleType
from pvefw_nft.config.option_values import Policy
from pvefw_nft.ir.nodes import Direction, Interface, Jump, Layer, Origin, Provenance, Rule, Vnet
from pvefw_nft.ir.rules import ACCEPT, DROP, Chains, Context, ndp_rules, policy_origin, user_rule
from pvefw_nft.ir.standard import reject_rules

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pvefw_nft.config.model import ClusterConfig, RuleItem, VnetConfig

HOST_FORWARD = "PVEFW-HOST-FORWARD"
"""The chain for routed packets."""


def add_forward_chains(context: Context, chains: Chains) -> tuple[str | None, tuple[Vnet, ...]]:
    """Add the chains of FORWARD rules; returns the name of the host's, if there is one, and the VNets."""
    node = context.node
    host = None
    rules = (*node.host.rules, *node.cluster.rules)
    policy = node.cluster.options.policy_forward
    # without rules and with policy ACCEPT, the chain would accept everything
    if node.host.options.enable and (policy is not Policy.ACCEPT or speaks_of_forward(context, rules)):
        host = HOST_FORWARD
        level = node.host.options.log_level_forward
        forwarded = [*_rules(context, rules, host), *_policy(context, node.cluster, policy, host, level)]
        _add_groups(context, chains, rules)
        chains.add(Layer.FORWARD, host, forwarded)
    vnets = []
    for vnet in node.vnets:
        if vnet.options.enable:
            chain = f"VNET-{vnet.name}-FORWARD"
            options = vnet.options
            body = [
                *ndp_rules(ACCEPT, advertise=True),
                *_rules(context, vnet.rules, chain),
                *_policy(context, vnet, options.policy_forward, chain, options.log_level_forward),
            ]
            _add_groups(context, chains, vnet.rules)
            chains.add(Layer.FORWARD, chain, body)
            vnets.append(Vnet(vnet.name, chain))
    # no rule can jump to a chain of another layer, so this layer has its own copy
    if chains.layers[Layer.FORWARD]:
        chains.add(Layer.FORWARD, "PVEFW-reject", reject_rules())
    return host, tuple(vnets)


def speaks_of_forward(context: Context, rules: Iterable[RuleItem]) -> bool:
    """Tell whether rules, or the groups they use, have FORWARD rules among them."""
    groups = context.node.cluster.groups
    return any(
        any(member.type is RuleType.FORWARD for member in groups[rule.group].rules)
        if isinstance(rule, GroupRule)
        else rule.type is RuleType.FORWARD
        for rule in rules
    )


def _rules(context: Context, rules: Iterable[RuleItem], chain: str) -> Iterator[Rule]:
    for rule in rules:
        if isinstance(rule, GroupRule):
            if speaks_of_forward(context, [rule]):
                line = rule.written.line
                origin = Origin(Provenance.BUILTIN, line.file, line.number, group=rule.group)
                matches = () if rule.iface is None else (Interface(Direction.IN, rule.iface),)
                yield Rule(matches, Jump(_group_chain_name(rule.group)), origin)
        elif rule.type is RuleType.FORWARD:
            yield from user_rule(context, rule, chain, 0, ACCEPT)


def _group_chain_name(name: str) -> str:
    return f"GROUP-{name}-FWD"  # short, so that the longest name of a group fits into a chain's


def _add_groups(context: Context, chains: Chains, rules: Iterable[RuleItem]) -> None:
    """Add the chains of the groups with FORWARD rules that rules use, if they do not exist yet."""
    for used in rules:
        if not isinstance(used, GroupRule) or not speaks_of_forward(context, [used]):
            continue
        chain = _group_chain_name(used.group)
        if chain not in chains.layers[Layer.FORWARD]:
            members = [rule for rule in context.node.cluster.groups[used.group].rules if rule.type is RuleType.FORWARD]
            made = [made for rule in members for made in user_rule(context, rule, chain, 0, ACCEPT, group=used.group)]
            chains.add(Layer.FORWARD, chain, made)


def _policy(
    context: Context, config: ClusterConfig | VnetConfig, policy: Policy, chain: str, level: int | None
) -> Iterator[Rule]:
    origin = policy_origin(config, "policy_forward", policy)
    if policy is Policy.ACCEPT:
        yield Rule((), ACCEPT, origin)
    else:
        yield Rule((), DROP, origin, log=context.log(level, 0, chain, f"policy {policy.value}"))
