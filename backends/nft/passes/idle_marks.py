"""Leave out rules that test or clear an accept mark that is known to be clear."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.backends.nft.passes.marks import tests_mark
from pvefw_nft.ir.nodes import (
    Accept,
    AcceptMark,
    Dispatch,
    Drop,
    Family,
    Goto,
    Jump,
    Queue,
    Reject,
    Return,
    SetAcceptMark,
)

if TYPE_CHECKING:
    from pvefw_nft.backends.nft.scope import Scope
    from pvefw_nft.ir.nodes import Rule


def leave_out_idle_marks(rules: list[Rule], _chain: str, scope: Scope) -> list[Rule]:
    """Return rules without those that test or clear the mark while it is known to be clear.

    Before, if the group has only rules for the other direction::

        clear accept mark; jump GROUP-web-OUT; accept mark -> return

    After: ``clear accept mark``. The mark is known to be clear after a rule that clears it for all packets, and after a
    rule that ends the way of packets with the mark, until a called chain may set it.
    """
    result = []
    clear = False
    for rule in rules:
        if clear and (tests_mark(rule) or _only_clears(rule, scope)):
            continue
        result.append(rule)
        clear = _is_clear_after(rule, scope, clear=clear)
    return result


def _is_clear_after(rule: Rule, scope: Scope, *, clear: bool) -> bool:
    """Tell whether the mark of every packet that continues behind a rule is known to be clear."""
    every_packet = not rule.matches and rule.families == Family.BOTH
    match rule.action:
        case SetAcceptMark(on):
            return not on and (clear or every_packet)
        case Jump(name):
            called = scope.facts(name)
            return not called.may_set and (clear or (every_packet and called.clears_first))
        case Dispatch():
            return False  # a guest's chain may set it
        case Accept() | Drop() | Return() | Reject() | Goto() | Queue():
            # packets that match leave the chain here, so only unmarked ones continue
            return clear or (rule.matches == (AcceptMark(),) and rule.families == Family.BOTH)
        case _:
            return clear


def _only_clears(rule: Rule, scope: Scope) -> bool:
    match rule.action:
        case SetAcceptMark(on):
            return not on
        case Jump(name):
            return scope.facts(name).only_clears
        case _:
            return False
