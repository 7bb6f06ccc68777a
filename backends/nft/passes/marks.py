"""Questions about the accept mark that several passes ask of a rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.ir.nodes import AcceptMark, Family, SetAcceptMark

if TYPE_CHECKING:
    from pvefw_nft.ir.nodes import Rule


def clears_for_all(rule: Rule) -> bool:
    """Tell whether a rule clears the mark of every packet."""
    action = rule.action
    return isinstance(action, SetAcceptMark) and not action.on and not rule.matches and rule.families == Family.BOTH


def tests_mark(rule: Rule) -> bool:
    """Tell whether a rule matches only packets with the mark."""
    return any(isinstance(match, AcceptMark) for match in rule.matches)
