"""Connections from before a change to nft: a comparison leaves the table out that keeps them in their zone.

``pvefw start`` writes the addresses and ports of connections that exist into sets of the table ``bridge
pvefw-transition``, whose rules have them looked up where the ruleset before has tracked them. No file asks for this
table. It goes when these connections cannot exist any more, so for days a listing would differ from the configuration
that it was made of. The table is left out only if each of its rules does nothing else: for single connections, by both
addresses, protocol and both ports, it sets the zone and renews the entry of the set. Any other rule is compared.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from pvefw_nft.verify import model as m

if TYPE_CHECKING:
    from pvefw_nft.verify.prove.network import Side

TABLE: Final = m.TableKey("nft", m.Family.BRIDGE, "pvefw-transition")
TEXT: Final = (
    "transition: connections of guests from before the change to nft. {name} looks them up in the zone where they were"
    " tracked then (table bridge pvefw-transition), until they end"
)
_CONNECTIONS: Final = (
    {m.SADDR4, m.DADDR4, m.L4PROTO, m.SPORT, m.DPORT},
    {m.SADDR6, m.DADDR6, m.L4PROTO, m.SPORT, m.DPORT},
)
"""The fields that identify one direction of one connection."""


def without_transition(side: Side) -> tuple[Side, tuple[str, ...]]:
    """Return the side without the table of connections from before a change, and a line about it if it had one."""
    found = [table for table in side.model.tables if table.key == TABLE and _only_keeps_connections(table)]
    if not found:
        return side, ()
    tables = tuple(table for table in side.model.tables if table not in found)
    return replace(side, model=m.RulesetModel(tables, side.model.assumptions)), (TEXT.format(name=side.name),)


def _only_keeps_connections(table: m.Table) -> bool:
    """Whether a table does nothing but set zones of single connections."""
    chains = table.chains.values()
    return all(chain.policy == m.ACCEPT and all(map(_keeps_connections, chain.rules)) for chain in chains)


def _keeps_connections(rule: m.Rule) -> bool:
    if rule.verdict is not None or not all(isinstance(effect, m.SetZone | m.UpdateSet) for effect in rule.effects):
        return False
    return any(_is_of_connections(condition) for condition in rule.conditions)


def _is_of_connections(condition: m.Condition) -> bool:
    """Whether a condition holds only for packets of connections that it names one by one, or for no packet."""
    each = condition.of if isinstance(condition, m.Any) else (condition,)
    return all(isinstance(one, m.All) and _is_one_connection(one) for one in each)


def _is_one_connection(condition: m.All) -> bool:
    tests = [one for one in condition.of if isinstance(one, m.Test) and one.values.count() == 1]
    return len(tests) == len(condition.of) and {test.field for test in tests} in _CONNECTIONS
