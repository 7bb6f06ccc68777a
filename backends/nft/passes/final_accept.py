"""Leave out an accept at the end of a hook's way: a packet that falls off the chain passes, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.ir.nodes import Accept

if TYPE_CHECKING:
    from pvefw_nft.backends.nft.scope import Scope
    from pvefw_nft.ir.nodes import Rule


def leave_out_final_accept(rules: list[Rule], chain: str, scope: Scope) -> list[Rule]:
    """Return rules without a last one that accepts all packets and logs none, if the chain ends a hook's way.

    Before: ``tcp 22 -> drop; accept``. After: ``tcp 22 -> drop``.
    """
    if not scope.ends_hook(chain) or not rules:
        return rules
    last = rules[-1]
    return rules[:-1] if last.action == Accept() and not last.matches and last.log is None else rules
