"""What a compile leaves to a later process; without the modules of the stages, which the reader may not need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pvefw_nft.config.source import Observations
    from pvefw_nft.errors import Diagnostic


@dataclass(frozen=True, slots=True)
class LastCompile:
    """The compile that made the ruleset on record: its questions, its notes by VMID, and the ruleset's pieces."""

    backend: str
    observations: Observations
    guests: Mapping[str, str]
    pieces: tuple[str, ...]
    diagnostics: Sequence[Diagnostic]
