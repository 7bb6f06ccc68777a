"""Take the firewall's own part of a ruleset, without foreign rules (Docker's, fail2ban's, an administrator's).

The firewall's part are the nft tables ``pvefw``, the tables of Proxmox's own nft firewall, and in the tables of
iptables and ebtables the chains that a jump to a chain ``PVEFW-…`` reaches. Foreign rules in the same tables are left
out, and so are the policies of the built-in chains.
"""

from __future__ import annotations

from dataclasses import replace

from pvefw_nft.verify.model import ACCEPT, Chain, Drop, Goto, Jump, Rule, RulesetModel, Table

PREFIX = "PVEFW-"
NFT_TABLES = ("pvefw", "proxmox-firewall", "proxmox-firewall-guests")


def only_ours(model: RulesetModel) -> RulesetModel:
    """Return the ruleset with nothing but the firewall's own tables, chains and rules."""
    tables = [_own_part(table) if table.key.tool != "nft" else table for table in model.tables if _may_be_ours(table)]
    return replace(model, tables=tuple(tables))


def _may_be_ours(table: Table) -> bool:
    return table.key.tool != "nft" or table.key.name in NFT_TABLES


def _own_part(table: Table) -> Table:
    """Return a table whose built-in chains lead to the firewall's chains and nowhere else."""
    chains = {}
    for name, chain in table.chains.items():
        if chain.hook is None:
            chains[name] = chain
        else:
            rules = [rule for rule in chain.rules if _leads_to_ours(rule)]
            chains[name] = Chain(name, rules, ACCEPT if isinstance(chain.policy, Drop) else chain.policy, chain.hook)
    return Table(table.key, chains, table.sets)


def _leads_to_ours(rule: Rule) -> bool:
    return isinstance(rule.verdict, Jump | Goto) and rule.verdict.chain.startswith(PREFIX)
