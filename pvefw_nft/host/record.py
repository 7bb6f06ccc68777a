"""The records of rulesets on disk: what runs, what was confirmed last, and what ran before an unconfirmed change."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pvefw_nft.errors import HostError

from . import state
from .changes import Remembered
from .settings import Conntrack
from .witness import Witness

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_VERSION = 2


@dataclass(frozen=True, slots=True)
class Desired:
    """A compiled ruleset and what goes with it.

    ``text`` is the artefact's JSON; ``conntrack`` are host.fw's options; equal rulesets have one ``fingerprint``.
    """

    backend: str
    enabled: bool
    text: str
    fingerprint: str
    conntrack: Conntrack | None = None

    @property
    def artefact(self) -> Mapping[str, Any]:
        """The artefact, parsed: for thousands of guests that takes a while, and often nobody asks."""
        parsed: Mapping[str, Any] = json.loads(self.text)
        return parsed

    @property
    def identity(self) -> str:
        """What tells it from all others: the ruleset's fingerprint, and what goes with it."""
        return json.dumps([self.fingerprint, self.enabled, None if self.conntrack is None else asdict(self.conntrack)])


def desired(backend: str, text: str, *, enabled: bool, conntrack: Conntrack | None = None) -> Desired:
    """Return a ruleset from what ``pvefw compile --format json`` prints for it."""
    return Desired(backend, enabled, text, _fingerprint(backend, text), conntrack)


def _fingerprint(backend: str, text: str) -> str:
    return hashlib.sha256(f"{backend} {text}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Memory:
    """What the kernel listed after the last apply, to tell changes by hand.

    ``identity`` is that of what was applied. ``witness`` was taken when it had been read back; None: nothing proves
    that it still holds.
    """

    identity: str
    chains: Mapping[str, Remembered]
    witness: Witness | None


def running_path() -> Path:
    """The ruleset that was applied last."""
    return state.state_directory() / "running.json"


def confirmed_path() -> Path:
    """The ruleset that was confirmed last, or applied without asking for confirmation."""
    return state.state_directory() / "confirmed.json"


def previous_path() -> Path:
    """The ruleset that an unconfirmed change goes back to."""
    return state.state_directory() / "previous.json"


def held_path() -> Path:
    """The fingerprint of a ruleset that nobody confirmed: only a person may apply it again."""
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
    """What the ruleset that was applied last was compiled from."""
    return state.run_directory() / "inputs.json"


def prepare(path: Path, ruleset: Desired) -> state.Prepared:
    """Write a record beside its place. Raises :class:`HostError` (full or read-only disk)."""
    conntrack = ruleset.conntrack
    return state.prepare(
        path,
        {
            "version": _VERSION,
            "backend": ruleset.backend,
            "enabled": ruleset.enabled,
            "fingerprint": ruleset.fingerprint,
            "conntrack": None if conntrack is None else [conntrack.maximum, conntrack.established, conntrack.syn_recv],
            "artefact": ruleset.text,
        },
    )


def load(path: Path) -> Desired | None:
    """Return a record, or None where there is none. Raises :class:`HostError` where it is damaged."""
    value = state.read(path)
    if value is None:
        return None
    try:
        if value["version"] != _VERSION:
            raise HostError(f"{path} was written by another version of pvefw", f"remove it: {path}")
        conntrack = None if value["conntrack"] is None else Conntrack(*value["conntrack"])
        found = Desired(value["backend"], value["enabled"], value["artefact"], value["fingerprint"], conntrack)
        if found.fingerprint != _fingerprint(found.backend, found.text):
            raise HostError(f"{path} is damaged: its ruleset is not the one that was written", f"remove it: {path}")
        return found
    except (AttributeError, KeyError, TypeError) as error:
        raise HostError(f"{path} is damaged ({error!r})", f"remove it: {path}") from error


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
        if target.exists() and target.samefile(source):
            return
        temporary.unlink(missing_ok=True)
        temporary.hardlink_to(source)
        temporary.replace(target)
    except OSError as error:
        raise HostError(f"cannot write {target}: {error.strerror}", "check the disk") from error


def stamp(path: Path) -> list[int] | None:
    """Return what tells a record from one written later in its place, or None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]


def write_memory(memory: Memory) -> None:
    """Write what to remember about the ruleset that runs. Raises :class:`HostError`."""
    state.write(
        memory_path(),
        {
            "identity": memory.identity,
            "record": stamp(running_path()),
            "witness": None if memory.witness is None else memory.witness.as_json(),
            "chains": {key: [value.signature, value.listing] for key, value in memory.chains.items()},
        },
    )


def read_memory() -> Memory | None:
    """Return what was remembered since this boot of the ruleset on record; None where nothing sound is there."""
    try:
        value = state.read(memory_path())
        if value is None:
            return None
        chains = {key: Remembered(*pair) for key, pair in value["chains"].items()}
        if value["record"] != stamp(running_path()):
            return None  # a run that was killed had written another ruleset
        return Memory(value["identity"], chains, Witness.of_json(value["witness"]))
    except (HostError, KeyError, TypeError, AttributeError):
        return None
