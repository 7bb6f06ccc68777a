"""The passes that simplify the chains of the IR for nft, in order. None changes a packet's verdict, mark or log line.

Each pass is a function from the rules of a chain to fewer, simpler or reordered rules. It may use the chain's name and
its :class:`.Scope`: the place, the sets, the NICs, and :meth:`.Scope.facts` of called chains. An example of each pass,
before and after, is in ``tests/backends_nft/test_passes.py``. Rules are joined later, as they are lowered
(:mod:`..merge`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pvefw_nft.backends.nft.passes.early_clear import clear_early
from pvefw_nft.backends.nft.passes.final_accept import leave_out_final_accept
from pvefw_nft.backends.nft.passes.idle_marks import leave_out_idle_marks
from pvefw_nft.backends.nft.passes.simplify import simplify_rules

if TYPE_CHECKING:
    from pvefw_nft.backends.nft.scope import ChainPass

PASSES: Final[tuple[ChainPass, ...]] = (
    simplify_rules,  # first: the other passes look at the rules that remain
    leave_out_final_accept,
    clear_early,  # before idle marks: a mark that is cleared earlier makes more tests idle
    leave_out_idle_marks,
)
