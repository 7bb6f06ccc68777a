"""Every diagnostic code, declared once: for ``pvefw explain``, SARIF, docs/diagnostics.md, and the test of examples.

To add a code, declare it in the module of its subject: its example is tested, and a test reports a code that is
used and not declared, or declared with another severity.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from pvefw_nft.config.codes import advice, files, guests, rules, sdn, survey
from pvefw_nft.config.codes.declaration import Code as Code  # noqa: TC001 - for those who explain codes

if TYPE_CHECKING:
    from collections.abc import Mapping

SUBJECTS: Mapping[str, tuple[Code, ...]] = {
    "Files, sections and names": files.CODES,
    "Rules": rules.CODES,
    "Guests and the cluster": guests.CODES,
    "Software-defined networks": sdn.CODES,
    "Files and settings without effect": survey.CODES,
    "Lines without effect": advice.CODES,
}
"""The codes by subject, in the order of the manual."""


@cache
def declared() -> Mapping[str, Code]:
    """Return the codes by id, in the order of the manual."""
    return {code.id: code for codes in SUBJECTS.values() for code in codes}
