"""Options of a comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pvefw_nft.verify.prove.budget import MAX_MEMORY, MAX_SECONDS
from pvefw_nft.verify.prove.chain_memo import NO_MEMO
from pvefw_nft.verify.prove.proofs import NO_PROOFS

if TYPE_CHECKING:
    from pvefw_nft.verify.prove.chain_memo import ChainMemo
    from pvefw_nft.verify.prove.expected_differences import Known
    from pvefw_nft.verify.prove.proofs import Proofs


@dataclass(frozen=True, slots=True)
class Options:
    """How to compare: ``strict`` also compares logs, marks, queue numbers and helpers; ``known`` are differences to
    expect. ``max_memory`` bounds each decision diagram (MiB), ``max_seconds`` the whole comparison (None: no bound).
    ``jobs``: the number of processes that prove guests. ``proofs`` come from earlier comparisons, ``memo`` has what is
    known of chains that are read on demand.
    """

    strict: bool = False
    known: tuple[Known, ...] = ()
    max_memory: int | None = MAX_MEMORY
    max_seconds: float | None = MAX_SECONDS
    jobs: int = 1
    proofs: Proofs = NO_PROOFS
    memo: ChainMemo = NO_MEMO
