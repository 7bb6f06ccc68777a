"""Read a compiled ruleset back with the readers of verify, which share no code with the lowerings."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pvefw_nft.backends.base import Artefact, Backend
    from pvefw_nft.ir.nodes import Origin
    from pvefw_nft.pipeline import Compiled
    from pvefw_nft.verify.model import RulesetModel


def read_back(compiled: Compiled, *, on_demand: bool = False) -> RulesetModel:
    """Return a compiled ruleset as verify reads it from the artefact's text, with the origins of the rules.

    ``on_demand``: parse the rules of a chain at its first use. Raises RulesetError for text that verify cannot read.
    """
    return read_back_origins(compiled.backend, compiled.artefact, str, on_demand=on_demand)


def read_back_origins(
    backend: Backend, artefact: Artefact, spelled: Callable[[Origin], str], *, on_demand: bool = False
) -> RulesetModel:
    """Read an artefact back as :func:`read_back` does; ``spelled`` gives the text of each rule's origin."""
    from pvefw_nft.verify.readers.files import Text, read_ruleset  # deferred: compiling needs nothing of verify

    form = artefact.json if backend.default_format == "json" else artefact.text
    return read_ruleset(
        [Text(backend.name, "".join(form()))],
        origins={place: spelled(origin) for place, origin in artefact.origins()},
        on_demand=on_demand,
    )
