"""Find the declarations of diagnostic codes, for ``pvefw explain`` and the manual."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pvefw_nft.config.codes import Code as Code


def diagnostic_codes() -> Mapping[str, tuple[Code, ...]]:
    """Return the declarations of all diagnostic codes by subject, in the order of the manual."""
    from pvefw_nft.config.codes import SUBJECTS  # deferred: few commands need all these texts

    return SUBJECTS


def find_code(name: str) -> Code:
    """Return the declaration of a diagnostic code. Raises UsageError for an unknown name, with the nearest one."""
    from pvefw_nft.config.codes import declared
    from pvefw_nft.config.values import nearest

    codes = declared()
    if name not in codes:
        raise UsageError(f"unknown code `{name[:60]}`", nearest(name, codes) or "`pvefw explain` lists all codes")
    return codes[name]
