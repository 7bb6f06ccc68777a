"""Records of rulesets on disk: the running one, the one confirmed last, and the one before an unconfirmed change."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pvefw_nft.errors import HostError, InternalError

from ..backend_info import BACKENDS, info
from ..netfilter.stamp import RulesetStamp
from ..settings import Conntrack
from . import bases, deltas, state
from .bases import BETWEEN, file_version
from .changes import AppliedChain

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from .bases import Base

_VERSION = 4
_WITHOUT_BASES = 3
"""The version whose records hold all pieces, which is still read."""


@dataclass(frozen=True, slots=True)
class Desired:
    """A compiled ruleset and its settings.

    ``pieces`` are the artefact's (:meth:`backends.base.Artefact.loadable`); ``conntrack`` are host.fw's options; equal
    rulesets have one ``fingerprint``. ``hardening`` is the transaction of nft that hardens it from beside; empty: none.
    """

    backend: str
    enabled: bool
    pieces: tuple[str, ...]
    fingerprint: str
    conntrack: Conntrack | None = None
    hardening: str = ""

    @property
    def identity(self) -> str:
        """The identity: the ruleset's fingerprint, and its settings."""
        return json.dumps([self.fingerprint, self.enabled, None if self.conntrack is None else asdict(self.conntrack)])


def desired(
    backend: str, pieces: Iterable[str], *, enabled: bool, conntrack: Conntrack | None = None, hardening: str = ""
) -> Desired:
    """Return a ruleset from the pieces of its artefact."""
    kept = tuple(pieces)
    return Desired(backend, enabled, kept, _fingerprint(backend, kept, hardening), conntrack, hardening)


def _fingerprint(backend: str, pieces: Sequence[str], hardening: str) -> str:
    if info(backend).one_document:
        pieces = ["".join(pieces)]
    parts = [backend, *pieces, hardening] if hardening else [backend, *pieces]
    return hashlib.sha256(BETWEEN.join(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class AppliedState:
    """The kernel's listing after the last apply, to detect changes by hand.

    ``identity`` belongs to the applied ruleset. ``stamp`` was taken when it had been read back; None: nothing proves
    that it still holds. ``names`` are digests of the host's names that it was loaded under, where it holds names.
    ``exact``: beside its chains and sets none of pvefw's were there, and no foreign rule used them.
    """

    identity: str
    chains: Mapping[str, AppliedChain]
    stamp: RulesetStamp | None
    names: Mapping[str, str] = field(default_factory=dict)
    exact: bool = False


def running_path() -> Path:
    """The ruleset that was applied last."""
    return state.state_directory() / "running.ruleset"


def confirmed_path() -> Path:
    """The ruleset that was confirmed last, or applied without asking for confirmation."""
    return state.state_directory() / "confirmed.ruleset"


def previous_path() -> Path:
    """The ruleset that an unconfirmed change goes back to."""
    return state.state_directory() / "previous.ruleset"


def held_path() -> Path:
    """The fingerprint of a ruleset that was not confirmed: only a person may apply it again."""
    return state.state_directory() / "held.json"


def pending_path() -> Path:
    """The change that waits for its confirmation. It goes with a reboot, and so does the guard."""
    return state.run_directory() / "pending.json"


def marker_path() -> Path:
    """Says that the firewall was started since boot."""
    return state.run_directory() / "running.json"


def memory_path() -> Path:
    """How the kernel listed the ruleset after the last apply."""
    return state.run_directory() / "memory.json"


def inputs_path() -> Path:
    """The inputs of the ruleset that was applied last."""
    return state.run_directory() / "inputs.json"


def paths_since_boot() -> list[Path]:
    """All files about the running ruleset that go with it."""
    return [marker_path(), *deltas.files_of(memory_path()), *deltas.files_of(inputs_path()), pending_path()]


@dataclass(frozen=True, slots=True)
class _Known:
    """The record read or written last, with the version of its file. Reading the record of a large node takes long."""

    path: Path
    version: list[int] | None
    ruleset: Desired
    base: Base | None


_last: _Known | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A record that is written beside its place."""

    file: state.Prepared
    ruleset: Desired
    base: Base | None = None

    def commit(self) -> None:
        """Put it in place, as :meth:`.state.Prepared.commit`."""
        global _last
        written = file_version(self.file.temporary)  # a new name does not change it
        self.file.commit()
        _last = _Known(self.file.path, written, self.ruleset, self.base)
        _remove_unused_bases()

    def discard(self) -> None:
        """Remove it."""
        self.file.discard()
        _remove_unused_bases()


def prepare(path: Path, ruleset: Desired) -> Prepared:
    """Write a record beside its place: the differences from the base of the record read or written last.

    A new base is written where there is none, or too much differs. Raises :class:`HostError` (full or read-only disk).
    """
    if any(BETWEEN in piece for piece in ruleset.pieces):
        raise InternalError("an artefact that is not JSON")
    base = None if _last is None else _last.base
    if base is not None and not base.still_holds():
        base = None
    parts, new = bases.parts_of(ruleset.pieces, base)
    if bases.differs_too_much(ruleset.pieces, new):
        base = bases.write(ruleset.pieces)  # in place before a record names it
        parts, new = bases.parts_of(ruleset.pieces, base)
    conntrack = _numbers(ruleset.conntrack)
    head = {
        "version": _VERSION,
        "backend": ruleset.backend,
        "enabled": ruleset.enabled,
        "fingerprint": ruleset.fingerprint,
        "conntrack": conntrack,
        "settings": _digest(enabled=ruleset.enabled, conntrack=conntrack),
        "hardening": ruleset.hardening,
        "base": None if base is None else base.name,
        "parts": parts,
    }
    return Prepared(state.prepare_text(path, BETWEEN.join([json.dumps(head), *new])), ruleset, base)


def _numbers(conntrack: Conntrack | None) -> list[int] | None:
    return None if conntrack is None else [conntrack.maximum, conntrack.established, conntrack.syn_recv]


def _digest(*, enabled: bool, conntrack: list[int] | None) -> str:
    """Return the digest of the settings, which the ruleset's fingerprint leaves out."""
    return hashlib.sha256(json.dumps([enabled, conntrack]).encode()).hexdigest()


def load(path: Path) -> Desired | None:
    """Return a record, or None where there is none. Raises :class:`HostError` where it is damaged."""
    global _last
    found = file_version(path)
    if found is not None and _last is not None and (_last.path, _last.version) == (path, found):
        return _last.ruleset
    text = state.read_text(path)
    if text is None:
        return None
    ruleset, base = _read(path, text)
    if found == file_version(path):  # else it may have been another one
        _last = _Known(path, found, ruleset, base)
    return ruleset


def _read(path: Path, text: str) -> tuple[Desired, Base | None]:
    head, *new = text.split(BETWEEN)
    try:
        value = json.loads(head)
        if value["version"] not in (_VERSION, _WITHOUT_BASES):
            raise HostError(f"{path} was written by another version of pvefw", f"remove it: {path}")
        numbers = value["conntrack"]
        conntrack = None if numbers is None else Conntrack(*(state.typed(number, int) for number in numbers))
        backend, fingerprint = state.typed(value["backend"], str), state.typed(value["fingerprint"], str)
        hardening = state.typed(value.get("hardening", ""), str)
        enabled = state.typed(value["enabled"], bool)
        if backend not in BACKENDS:
            raise ValueError(f"there is no backend {backend[:40]!r}")
        base = _base_of(value)
        pieces = tuple(new) if value["version"] == _WITHOUT_BASES else bases.put_together(value["parts"], new, base)
        found = Desired(backend, enabled, pieces, fingerprint, conntrack, hardening)
        digest = _digest(enabled=enabled, conntrack=numbers)
        sound = fingerprint == _fingerprint(backend, pieces, hardening)
        sound = sound and value.get("settings", digest) == digest  # older records have none
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise state.damaged(path, repr(error)) from error
    if not sound:
        raise state.damaged(path, "its ruleset is not the one that was written")
    return found, base


def _base_of(head: Any) -> Base | None:  # noqa: ANN401 - JSON
    """Return the base that a record names; the one in memory where it is that one."""
    name = head.get("base")
    if name is None:
        return None
    known = None if _last is None else _last.base
    return known if known is not None and known.name == name and known.still_holds() else bases.read(name)


def _remove_unused_bases() -> None:
    """Remove the bases that no record names; none where a record cannot be read."""
    known = None if _last is None or _last.base is None else _last.base.name
    if bases.names() <= {known}:
        return
    named = set()
    for path in (running_path(), confirmed_path(), previous_path()):
        try:
            head = json.loads((state.read_text(path) or "{}").partition(BETWEEN)[0])
            named.add(head.get("base"))
        except (AttributeError, ValueError, RecursionError):
            continue  # no record: it names nothing
        except HostError:
            return
    bases.remove_others(named)


def load_if_sound(path: Path) -> Desired | None:
    """Return a record, or None where there is none or it is damaged: a start must not depend on it."""
    try:
        return load(path)
    except HostError:
        return None


def copy(source: Path, target: Path) -> None:
    """Give a record a second name; needs no room on the disk. Raises :class:`HostError`."""
    temporary = target.with_name(f".{target.name}.link")
    try:
        if target.exists() and target.samefile(source) and not target.is_symlink():
            return
        for place in (temporary, target):
            state.set_aside(place)
        temporary.unlink(missing_ok=True)
        os.link(source, temporary, follow_symlinks=False)  # the folder may be the service's user's
        temporary.replace(target)
        _remove_unused_bases()
    except OSError as error:
        raise HostError(f"cannot write {target}: {error.strerror}", "check the disk") from error


def write_memory(memory: AppliedState) -> None:
    """Write the remembered state of the running ruleset. Raises :class:`HostError`."""
    deltas.write(
        memory_path(),
        {
            "identity": memory.identity,
            "record": file_version(running_path()),
            "witness": None if memory.stamp is None else memory.stamp.as_json(),
            "names": dict(memory.names),
            "exact": memory.exact,
            "chains": {key: [value.signature, value.listing] for key, value in memory.chains.items()},
        },
    )


_read_last: tuple[object, AppliedState] | None = None
"""The versions of the files that a state was read from, and the state: a service asks for it every two seconds."""


def read_memory() -> AppliedState | None:
    """Return the state remembered since this boot of the ruleset on record; None if there is no valid one."""
    global _read_last
    versions = [*map(file_version, (*deltas.files_of(memory_path()), running_path()))]
    if _read_last is None or _read_last[0] != versions:
        found = _read_memory()
        if found is None:
            return None
        _read_last = versions, found
    return _read_last[1]


def _read_memory() -> AppliedState | None:
    def check(value: Any) -> AppliedState | None:  # noqa: ANN401 - JSON
        chains = {
            key: AppliedChain(state.typed(signature, str), state.typed(listing, str))
            for key, (signature, listing) in value["chains"].items()
        }
        names = {key: state.typed(digest, str) for key, digest in value["names"].items()}
        ruleset_stamp = RulesetStamp.of_json(value["witness"])
        if value["record"] != file_version(running_path()):
            return None  # a run that was killed had written another ruleset
        exact = state.typed(value.get("exact", False), bool)  # versions before this one did not record it
        return AppliedState(state.typed(value["identity"], str), chains, ruleset_stamp, names, exact)

    return deltas.read(memory_path(), check)
