"""The signature of a chain, by which a later run sees whether its rules changed."""

from __future__ import annotations

import base64
import hashlib


def signature(lines: list[str]) -> str:
    """Return the unpadded base64 of the SHA-1 of a chain's lines, joined with nothing between."""
    digest = hashlib.sha1("".join(lines).encode(), usedforsecurity=False).digest()
    return base64.b64encode(digest).decode().rstrip("=")
