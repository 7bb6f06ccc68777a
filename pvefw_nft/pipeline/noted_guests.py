"""Results of one process's compile that a later process takes up, so that a change of one guest costs one guest.

A compile notes for each guest without diagnostics what later stages need of it: the names of its chains, their
references, and how they were lowered, which is by the pieces of the artefact on record. A note counts while all else
that a guest's compile reads gives the same answers (:class:`.Observations`), and the texts of its own files are the
same. A guest whose note does not count is compiled as always; so is one whose note is damaged.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from pvefw_nft.cache import Cache, Once
from pvefw_nft.config.load import GUEST, LazyGuest, Reading
from pvefw_nft.config.model import Guest, Nic
from pvefw_nft.errors import PvefwError, Span
from pvefw_nft.ir.build import FILTERED_NICS, PART
from pvefw_nft.ir.noted_part import part_as_json, part_of_json, references_as_json, references_of_json, typed
from pvefw_nft.pipeline import MAX_NOTE
from pvefw_nft.pipeline.borrowed import BORROWED_CODES

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from pvefw_nft.config.source import Observations, Source
    from pvefw_nft.pipeline.notes import LastCompile

_T = TypeVar("_T")
_Entries: TypeAlias = dict[str, list[Any]]
"""Dependencies and result of a guest or chain, by stage."""

_GUEST_TEXT = re.compile(r"/firewall/[1-9][0-9]*\.(?:fw|pvefw)|/(?:qemu-server|lxc)/[1-9][0-9]*\.conf")
_GUEST_FOLDERS = ("qemu-server", "lxc")
_GUEST_STAGES = (GUEST, FILTERED_NICS, PART)
_VALID = "valid chain "
_NOWHERE = Span("", 0)
_DAMAGED = (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError)
"""The errors of reading a note of another shape."""


def notes_of(cache: Cache, backend: str) -> dict[str, str]:
    """Return a note, as JSON text, for each guest that has no diagnostics, from the cache of a compile that is done.

    Notes of guests whose results are the ones of the compile before come from the cache as well.
    """
    note_of = import_module(f"pvefw_nft.backends.{backend}.noted").note_of
    guests: dict[int, _Entries] = defaultdict(dict)
    chains: dict[str, _Entries] = defaultdict(dict)
    for stage, key, *entry in cache.results(of_this_generation=False):
        if stage in _GUEST_STAGES:
            guests[cast("int", key)][stage] = entry
        elif stage.startswith(_VALID):
            chains[cast("str", key)][stage] = entry
    for stage, key, *entry in cache.results(of_this_generation=True):
        if isinstance(key, str) and key in chains:
            chains[key][stage] = entry
    notes = {}
    for vmid, stages in guests.items():
        if len(stages) < len(_GUEST_STAGES):
            continue
        lowered = {chain.name: chains[chain.name] for _, chain in stages[PART][1].chains}
        dependencies = stages, lowered
        text = cache.get(
            "note of a guest", vmid, partial(_itself, dependencies), partial(_note, *dependencies, note_of)
        )
        if text is not None:
            notes[str(vmid)] = text
    return notes


def guests_read(cache: Cache) -> dict[int, Guest]:
    """Return, by VMID, the guests without diagnostics that a compile read, from its cache."""
    found = {}
    for stage, vmid, _, reading in cache.results(of_this_generation=False):
        if stage == GUEST and not cast("Reading", reading).diagnostics:
            guest = cast("Reading", reading).guest
            if not isinstance(guest, LazyGuest):
                found[cast("int", vmid)] = guest
    return found


def _itself(dependencies: object) -> object:
    return dependencies


def _note(stages: _Entries, lowered: Mapping[str, _Entries], note_of: Callable[[str, Any, Any], Any]) -> str | None:
    """Return the note of a guest by the results of its stages and, by their names, its chains; None if it gets none."""
    (origin, _), reading = stages[GUEST]
    part = part_as_json(stages[PART][1])
    if reading.diagnostics or part is None:
        return None
    chains: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, entries in lowered.items():
        for stage, (dependencies, result) in entries.items():
            valid = stage.startswith(_VALID)
            noted = references_as_json(result) if valid else note_of(stage, dependencies, result)
            if noted is not None:
                chains[name][stage] = noted
    filtered = [[index, one] for (_, index), one in stages[FILTERED_NICS][1].items()]
    nics = [[n.index, n.bridge, n.tag, n.trunks, n.mtu] for n in reading.guest.nics if n.firewall]
    note = {
        "texts": _digest(origin),
        "filtered": filtered,
        "nics": nics,
        "part": part,
        "stages": {n: chains[n] for n in lowered},
    }
    text = json.dumps(note, separators=(",", ":"))
    return text if len(text) <= MAX_NOTE else None


def _digest(origin: Any) -> str:  # noqa: ANN401 - all that a guest is read from
    parts = [origin.vmid, origin.kind.value, *origin.config, *origin.firewall, *origin.companion]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class NotesCache(Cache):
    """A cache for one compile that begins with the notes of the one on record.

    Where anything about a note is doubtful, its guest is compiled as without notes.
    """

    def __init__(self, past: LastCompile, observations: Observations, source: Source) -> None:
        """Begin a compile that notes its questions in ``observations`` and asks ``source``."""
        super().__init__()
        self._past = past
        self._observations = observations
        self._source = source
        self._holds: bool | None = None
        self._stages: dict[tuple[str, Hashable], Any] = {}
        self._builders: dict[int, Callable[[], Any]] = {}
        self.notes: dict[str, str] = {}
        """The notes that counted, by VMID."""
        self.guests: dict[int, Guest] = {}
        """The guests of these notes: their filtered NICs, with nothing but where they are."""
        module = import_module(f"pvefw_nft.backends.{past.backend}.noted")
        self._chains = Once(lambda: module.NotedChains(past.pieces))

    def get(
        self,
        stage: str,
        key: Hashable,
        dependencies: Callable[[], object],
        make: Callable[[], _T],
        still_holds: Callable[[_T], bool] | None = None,
    ) -> _T:
        """Return the result of ``make``, or one that is known to equal it."""
        if stage == GUEST:
            self._take_up(cast("int", key), cast("Any", dependencies()))
        noted = self._stages.get((stage, key))
        if noted is not None:
            result = self._result(stage, key, noted, dependencies, make)
            if result is not None and (stage == GUEST or still_holds is None or still_holds(result)):
                return cast("_T", result)
        return super().get(stage, key, dependencies, make, still_holds)

    def _take_up(self, vmid: int, dependencies: Any) -> None:  # noqa: ANN401 - of any stage
        """Take up the note of a guest if it counts."""
        if self._holds is None:
            self._holds = self._holds_still()
        text = self._past.guests.get(str(vmid))
        if not self._holds or text is None:
            return
        origin = dependencies[0]
        try:
            note = json.loads(text)
            if note["texts"] != _digest(origin):
                return
            found: dict[tuple[str, Hashable], Any] = {
                (GUEST, vmid): origin,
                (FILTERED_NICS, vmid): {(vmid, typed(i, int)): typed(one, bool) for i, one in note["filtered"]},
                (PART, vmid): part_of_json(note["part"], vmid, lambda: self._builders[vmid]()),
            }
            for _, name, _ in note["part"]["chains"]:
                found |= {(stage, name): noted for stage, noted in note["stages"][name].items()}
            guest = Guest(vmid, origin.kind, tuple(map(_nic, note["nics"])), None, origin.config[0])
        except _DAMAGED:
            return
        self.guests[vmid] = guest
        self._stages |= found
        self.notes[str(vmid)] = text

    def _result(
        self,
        stage: str,
        key: Hashable,
        noted: Any,  # noqa: ANN401 - of any stage
        dependencies: Callable[[], object],
        make: Callable[[], Any],
    ) -> Any:  # noqa: ANN401
        """Return the result of a stage from its note; None where it cannot be had."""
        if stage == GUEST:
            path, _ = noted.config
            read = Once(lambda: cast("Guest", make().guest))
            return Reading(LazyGuest(noted.vmid, noted.kind, path, read), (), (), None)
        if stage == PART:
            self._builders[cast("int", key)] = make
        if stage in (FILTERED_NICS, PART):
            return noted
        try:
            if stage.startswith(_VALID):
                return references_of_json(noted)
            return self._chains().result(stage, key, noted, dependencies, make)
        except _DAMAGED:
            return None

    def _holds_still(self) -> bool:
        """Tell whether all that guests have in common gives the same answers as in the compile on record.

        What the compile has asked so far are the files of the cluster and the node. What guests asked beyond their
        files is asked here, so that it is among the questions of this compile too.
        """
        before = self._past.observations.answers
        if ("time", "") in before or any(found.code in BORROWED_CODES for found in self._past.diagnostics):
            return False
        asked = [question for question in self._observations.answers if not _is_of_guests(*question)]
        if any(before.get(question) != self._observations.answers[question] for question in asked):
            return False
        from pvefw_nft.config import netdb

        try:
            for kind, name in before:
                if kind == "names":
                    self._observations.note(kind, name, netdb.host_text(name))
                elif kind == "interface":
                    self._source.real_interface(name)
                else:
                    continue
                if self._observations.answers[kind, name] != before[kind, name]:
                    return False
        except PvefwError:
            return False
        return True


def _nic(value: list[Any]) -> Nic:
    """Return a filtered NIC of a note. Raises TypeError and ValueError for JSON that is none."""
    index, bridge, tag, trunks, mtu = value
    tag, mtu = (None if number is None else typed(number, int) for number in (tag, mtu))
    bridge = None if bridge is None else typed(bridge, str)
    ranges = tuple([(typed(first, int), typed(last, int)) for first, last in trunks])
    return Nic(typed(index, int), None, "", bridge, True, tag, ranges, mtu, (), _NOWHERE)  # noqa: FBT003 - a field


def _is_of_guests(kind: str, name: str) -> bool:
    """Tell whether a question is about the files of one guest, or lists guests."""
    if kind == "folder":
        return Path(name).name in _GUEST_FOLDERS
    return kind == "text" and _GUEST_TEXT.search(name) is not None
