"""Lowered chains taken from the pieces of an earlier artefact, where a chain is known to be lowered alike."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

from pvefw_nft.ir.nodes import Family, Layer, Origin, Provenance

if TYPE_CHECKING:
    from collections.abc import Iterable

_SECTION = re.compile(r',?\n"([a-z0-9]+)": \{|\},\n"([a-z]+)": \{')
_TABLE = re.compile(r',?\n "([a-z]+)": \{')
_MEMBER = re.compile(r',?\n  "([^"\\]+)": (?=\[)')
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


class NotedLines(Sequence[tuple[str, Origin]]):
    """The lines of a chain, by their JSON text, which is read where a line is asked for."""

    def __init__(self, text: str) -> None:
        """Take the text of a list of lines."""
        self.text = text

    @cached_property
    def _lines(self) -> list[tuple[str, Origin]]:
        return [(line, _NOWHERE) for line in json.loads(self.text)]

    @overload
    def __getitem__(self, place: int) -> tuple[str, Origin]: ...

    @overload
    def __getitem__(self, place: slice) -> list[tuple[str, Origin]]: ...

    def __getitem__(self, place: int | slice) -> tuple[str, Origin] | list[tuple[str, Origin]]:
        """Return a line with its origin, which is not known."""
        return self._lines[place]

    def __len__(self) -> int:
        """Return the number of lines."""
        return len(self._lines)


class NotedChains:
    """The chains in the pieces of an artefact."""

    def __init__(self, pieces: Iterable[str]) -> None:
        """Find the chains in the pieces that :meth:`.IptablesArtefact.loadable` gave."""
        self._found: dict[tuple[str, str], str] = {}
        section = stage = ""
        for piece in pieces:
            if piece.endswith("]") and (member := _MEMBER.match(piece)) is not None:
                self._found[stage, member[1]] = piece[member.end() :]
            elif (found := _SECTION.fullmatch(piece)) is not None:
                section = stage = found[1] or found[2]
            elif (found := _TABLE.fullmatch(piece)) is not None and section in _FAMILIES and found[1] in _LAYERS:
                stage = f"iptables {_FAMILIES[section].value} {_LAYERS[found[1]].value} True"

    def result(self, stage: str, name: str, noted: Any, dependencies: Any, _: Any) -> Any:  # noqa: ANN401
        """Return the result of a stage for a chain of which ``noted`` was noted; None where it is not there."""
        if stage.startswith("dispatches "):
            return noted
        found = self._found.get((stage, name), "")
        if found != "[]" and not found.startswith('["'):
            return None
        if stage != "ebtables" and not _names_are_plain(dependencies()):
            return None
        return NotedLines(found)
