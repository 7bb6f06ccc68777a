"""Lowered chains taken from the pieces of an earlier artefact, where a chain is known to be lowered alike."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from pvefw_nft.ir.nodes import Family, Layer, Origin, Provenance

if TYPE_CHECKING:
    from collections.abc import Iterable

_SECTION = re.compile(r',?\n"([a-z0-9]+)": \{|\},\n"([a-z]+)": \{')
_TABLE = re.compile(r',?\n "([a-z]+)": \{')
_MEMBER = re.compile(r',?\n  ("[^"\\]+"): (\[.*\])', re.DOTALL)
_FAMILIES = {"iptables": Family.V4, "ip6tables": Family.V6}
_LAYERS = {"filter": Layer.FILTER, "raw": Layer.RAW}
_NOWHERE = Origin(Provenance.BUILTIN)


def note_of(stage: str, dependencies: Any, result: Any) -> Any:  # noqa: ANN401 - of any stage
    """Return what to note of a cached result of this backend, as JSON; None: nothing, or it is of another stage."""
    if stage.startswith("dispatches "):
        return None if result else False
    if stage == "ebtables" or (stage.startswith("iptables ") and _names_are_plain(dependencies)):
        return 0
    return None


def _names_are_plain(dependencies: Any) -> bool:  # noqa: ANN401
    """Tell whether no two sets' names collide: else the names in a chain depend on sets of other guests."""
    return bool(dependencies[1] == ())


class KeptChains:
    """The chains in the pieces of an artefact."""

    def __init__(self, pieces: Iterable[str]) -> None:
        """Find the chains in the pieces that :meth:`.IptablesArtefact.loadable` gave."""
        self._found: dict[tuple[str, str], str] = {}
        section = stage = ""
        for piece in pieces:
            if (member := _MEMBER.fullmatch(piece)) is not None:
                self._found[stage, json.loads(member[1])] = member[2]
            elif (found := _SECTION.fullmatch(piece)) is not None:
                section = stage = found[1] or found[2]
            elif (found := _TABLE.fullmatch(piece)) is not None and section in _FAMILIES and found[1] in _LAYERS:
                stage = f"iptables {_FAMILIES[section].value} {_LAYERS[found[1]].value} True"

    def result(self, stage: str, name: str, noted: Any, dependencies: Any, _: Any) -> Any:  # noqa: ANN401
        """Return the result of a stage for a chain of which ``noted`` was noted; None where it is not there."""
        if stage.startswith("dispatches "):
            return noted
        found = self._found.get((stage, name))
        if found is None or (stage != "ebtables" and not _names_are_plain(dependencies())):
            return None
        return [(line, _NOWHERE) for line in json.loads(found)]
