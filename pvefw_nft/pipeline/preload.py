"""Import the modules of the stages before a process forks or loses access to its program files."""

from __future__ import annotations

from importlib import import_module

from pvefw_nft.pipeline import BACKENDS


def load_stages(*, checks: bool = False, proof: bool = False) -> None:
    """Import the modules of the stages, which are otherwise imported at first use.

    For processes that fork workers, or that cannot read program files later. ``checks`` adds the review of a
    configuration and the readers of rulesets, ``proof`` the prover.
    """
    names = ["config.load", "ir.build", "ir.validate", "pipeline.kept"]
    names += [f"backends.{name}{module}" for name in BACKENDS for module in ("", ".kept")]
    if checks:
        names += [
            "pipeline.review",
            "config.survey",
            "config.unused",
            "config.inventory",
            "verify.readers.files",
            "verify.network.interfaces",
        ]
    if proof:
        names += ["verify.prove.dead_rules", "verify.prove.compare"]
    for name in names:
        import_module(f"pvefw_nft.{name}")
