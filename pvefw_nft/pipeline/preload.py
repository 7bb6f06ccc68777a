"""Import the modules of the stages before a process forks or loses access to its program files."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pvefw_nft.pipeline import BACKENDS

if TYPE_CHECKING:
    from collections.abc import Iterable


def load_stages(*, backends: Iterable[str] = BACKENDS, checks: bool = False, proof: bool = False) -> None:
    """Import the modules of the stages, which are otherwise imported at first use.

    For processes that fork workers, or that cannot read program files later. ``backends`` are the ones that are likely
    to be needed. ``checks`` adds the review of a
    configuration and the readers of rulesets, ``proof`` the prover.
    """
    names = ["config.load", "config.fine_grammar", "ir.build", "ir.validate", "pipeline.noted_guests"]
    names += [f"backends.{name}{module}" for name in backends for module in ("", ".noted")]
    if checks:
        names += [
            "pipeline.review",
            "config.survey",
            "config.unused",
            "config.inventory",
            "verify.readers.files",
            "verify.readers.ebtables",
            "verify.readers.xtables.rulesets",
            "verify.readers.nft.json_listing",
            "verify.readers.nft.text",
            "verify.network.interfaces",
        ]
    if proof:
        names += ["verify.prove.dead_rules", "verify.prove.compare"]
    for name in names:
        import_module(f"pvefw_nft.{name}")
