"""Rulesets as the command line names them: ``iptables:DIR``, ``nft:DIR``, ``save:FILE``, ``nft-json:FILE``, ``live`` …

``simulate`` and ``compare`` take the same names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pvefw_nft.errors import HostError, UsageError
from pvefw_nft.pipeline import BACKENDS, check_root, compile_root, default_backend, read_back
from pvefw_nft.verify.reading import Assume

if TYPE_CHECKING:
    from collections.abc import Callable

    from pvefw_nft.pipeline import Source
    from pvefw_nft.verify.model import RulesetModel

SPEC_HELP = (
    "iptables:DIR or nft:DIR (the configuration below DIR through that backend), save:FILE[,FILE…] (what "
    "iptables-save, ip6tables-save, ipset save and ebtables-save print), nft-json:FILE (nft -j list ruleset), live, "
    "live:iptables or live:nft (what this host runs)"
)


@dataclass(frozen=True, slots=True)
class Named:
    """A ruleset and what to call it."""

    name: str
    model: RulesetModel


def assume_option(command: Callable[..., object]) -> Callable[..., object]:
    """Add ``--assume-unknown``."""
    return click.option(
        "--assume-unknown",
        "assume",
        type=click.Choice([choice.value for choice in Assume]),
        help="Take matches that are not modelled for one that always matches, one that never does, or try both.",
    )(command)


def load_ruleset(spec: str, source_of: Callable[[Path], Source], assume: str | None) -> Named:
    """Return the ruleset a name means. ``source_of`` gives the configuration below a folder.

    Raises UsageError for a name that is none, and what reading and compiling raise.
    """
    kind, colon, rest = spec.partition(":")
    chosen = Assume(assume) if assume else None
    if colon and kind in BACKENDS:
        return Named(spec, compiled_model(source_of(Path(rest)), kind))
    if colon and kind in ("save", "nft-json"):
        from pvefw_nft.verify.read import Text, read_ruleset

        texts = [Text(name, _file_text(Path(name))) for name in rest.split(",") if name]
        return Named(spec, read_ruleset(texts, assume=chosen))
    if kind == "live" and rest in ("", *BACKENDS):
        from pvefw_nft.host.saved import saved_rulesets
        from pvefw_nft.verify.read import Text, read_ruleset

        texts = [Text(name, text) for name, text in saved_rulesets(rest or None)]
        return Named(spec, read_ruleset(texts, assume=chosen))
    if not colon and Path(spec).is_dir():
        return Named(spec, compiled_model(source_of(Path(spec)), None))
    raise UsageError(f"no ruleset: {spec}", f"name one as {SPEC_HELP}")


def compiled_model(source: Source, backend: str | None) -> RulesetModel:
    """Return the ruleset of a configuration; ``backend`` None: the one that host.fw asks for."""
    return read_back(compile_root(source, backend))


def configuration_models(source: Source, backend: str | None) -> list[Named]:
    """Return the rulesets of a configuration through a backend, through ``both``, or the one of host.fw (None)."""
    if backend == "both":
        return [Named(name, compiled_model(source, name)) for name in BACKENDS]
    name = backend or default_backend(check_root(source).node)
    return [Named(name, compiled_model(source, name))]


def _file_text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "surrogateescape")
    except OSError as error:
        raise HostError(f"{path}: cannot be read: {error.strerror}") from None
