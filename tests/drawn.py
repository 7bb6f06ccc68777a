"""What a short run tries of a long list: others each time, and all of it where ``PVEFW_TEST_DRAWN`` is ``all``."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

Choice = TypeVar("Choice")

SEED = int(os.environ.get("PVEFW_TEST_SEED") or random.randrange(1 << 32))
"""What decides; pytest prints it at its start."""
ALL = os.environ.get("PVEFW_TEST_DRAWN") == "all"


def drawn(choices: Sequence[Choice], number: int, purpose: str) -> list[Choice]:
    """Return so many of the choices, in their order; the same ones for a purpose as long as the process runs."""
    if ALL or number >= len(choices):
        return list(choices)
    places = random.Random(f"{SEED} {purpose}").sample(range(len(choices)), number)
    return [choices[place] for place in sorted(places)]
