"""Clear the accept mark as early as possible, so that the rules that the clearing parted can be joined."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.backends.nft.passes.marks import clears_for_all, tests_mark
from pvefw_nft.ir.nodes import Drop, Goto

if TYPE_CHECKING:
    from pvefw_nft.backends.nft.scope import Scope
    from pvefw_nft.ir.nodes import Rule


def clear_early(rules: list[Rule], _chain: str, scope: Scope) -> list[Rule]:
    """Move each clearing of the mark for all packets up, past rules whose packets never use the mark.

    These are rules that drop, and rules that set the mark and leave the chain.

    Before: ``icmpv6 134 -> drop; clear accept mark; icmpv6 133 -> goto PVEFW-SET-ACCEPT-MARK``. After: ``clear accept
    mark; icmpv6 134 -> drop; icmpv6 133 -> goto PVEFW-SET-ACCEPT-MARK``.
    """
    result: list[Rule] = []
    for rule in rules:
        position = len(result)
        if clears_for_all(rule):
            while position and _ignores_mark(result[position - 1], scope):
                position -= 1
        result.insert(position, rule)
    return result


def _ignores_mark(rule: Rule, scope: Scope) -> bool:
    """Tell whether a rule neither tests nor logs the mark, and no packet that it matches keeps the mark."""
    if rule.log is not None or tests_mark(rule):
        return False
    match rule.action:
        case Drop():
            return True
        case Goto(name):
            return scope.facts(name).only_sets
        case _:
            return False
