"""Comments of rules: the origin of each rule, so that listings, traces and counters can name the line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.ir.nodes import Provenance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pvefw_nft.ir.nodes import Origin

MAX_LENGTH = 100
"""Longest comment, in characters; the digest of a chain has to fit behind it."""


def comment(origins: Sequence[Origin]) -> str:
    """Return the comment for the rules with these origins: ``100.fw:12 (SSH)``, or ``100.fw:4,5,7`` for several.

    It is ASCII. A text that does not fit is cut off with ``...``.
    """
    first = origins[0]
    if len(origins) > 1 and any(origin != first for origin in origins):
        same_file = all(origin.file == first.file and origin.line for origin in origins)
        if same_file and first.file is not None:
            lines = dict.fromkeys(str(origin.line) for origin in origins)
            text = f"{_file(first)}:{','.join(lines)}"
        else:
            text = ", ".join(dict.fromkeys(str(origin) for origin in origins))
    elif first.group is not None and first.provenance is Provenance.BUILTIN:
        text = f"{first} (group {first.group})"
    else:
        text = str(first)
    text = text.encode("ascii", "replace").decode()
    return text if len(text) <= MAX_LENGTH else f"{text[: MAX_LENGTH - 3]}..."


def _file(origin: Origin) -> str:
    return (origin.file or "").rsplit("/", 1)[-1]
