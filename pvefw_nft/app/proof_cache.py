"""Proofs of ``compare`` on disk, in a folder that only this user can read or write.

One file has the proofs used last, as a line with a digest and a line of JSON: keys of :mod:`~.verify.prove.proofs` with
the numbers of a report. It holds only digests and numbers, no part of a configuration. With write access to the file,
another user could make ``compare`` call two different rulesets alike. So the folder and the file must belong to the
user that runs the command, and no other user may write to them; otherwise nothing is read or written. A file that is
damaged, cut off or of another version counts as empty. Two commands at the same time both keep their proofs.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pvefw_nft.verify.prove.proofs import NO_PROOFS, Proof, Proofs, prover_digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

VARIABLE = "PVEFW_CACHE_DIRECTORY"
"""Another folder for the cache; empty: none is kept."""
MAX_PROOFS = 1 << 15
"""So many proofs are kept, those used last."""
MAX_BYTES = 1 << 23
"""A larger file is not read, and none is written: proofs take some 100 bytes each."""

_FORMAT = "pvefw proofs 1"
_FILE, _LOCK = "proofs", "proofs.lock"
_KEY = re.compile(r"[0-9a-f]{64}")
_WRITABLE_BY_OTHERS = 0o022
_OPEN_TO_OTHERS = 0o077
_PATIENCE = 2.0  # seconds to wait for another command, which takes milliseconds
UNUSABLE = (OSError, ValueError, TypeError, RecursionError)
"""The errors of reading a damaged file."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def kept_proofs() -> Proofs:
    """Return this user's proofs; a cache that keeps nothing if there is no folder for them, or it is not safe."""
    folder = safe_folder()
    return NO_PROOFS if folder is None else ProofFile(folder)


def safe_folder() -> Path | None:
    """Return this user's folder for the cache, made if necessary; None if there is none, or it is not safe."""
    given = os.environ.get(VARIABLE)
    if given == "":
        return None
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") if given is None else None
        folder = Path(given or "") if base is None else base / "pvefw"
        if not folder.is_absolute():
            return None
        prover_digest()
        _make(folder)
        with opened(folder):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        return None


class ProofFile:
    """The proofs in a folder's file. Nothing that is wrong with it ever raises."""

    def __init__(self, folder: Path, max_proofs: int = MAX_PROOFS, max_bytes: int = MAX_BYTES) -> None:
        """Keep at most so many proofs, in a file of at most so many bytes."""
        self._folder = folder
        self._max_proofs = max_proofs
        self._max_bytes = max_bytes
        self._loaded: dict[str, Proof] = {}

    def load(self) -> Mapping[str, Proof]:
        """Return the proofs of earlier comparisons."""
        try:
            with opened(self._folder) as folder:
                self._loaded = _read(folder)
        except UNUSABLE:
            self._loaded = {}
        return self._loaded

    def save(self, used: Mapping[str, Proof]) -> None:
        """Keep the proofs that a comparison used, and as many older ones as there is room for."""
        if used.keys() <= self._loaded.keys():
            return
        with contextlib.suppress(OSError), opened(self._folder) as folder, locked(folder):
            try:
                found = _read(folder)
            except UNUSABLE:
                found = {}
            for key, proof in used.items():
                found.pop(key, None)
                found[key] = proof
            _write(folder, dict(list(found.items())[-self._max_proofs :]), self._max_bytes)


def _make(folder: Path) -> None:
    """Make a folder, unless that would be in another user's. Raises OSError."""
    if folder.is_dir():
        return
    there = next(parent for parent in folder.parents if parent.exists())
    if there.stat().st_uid != os.geteuid():
        raise PermissionError(there)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open the folder. Raises OSError if another user may read it or write to it."""
    folder = os.open(path, _FOLDER)
    try:
        found = os.fstat(folder)
        if found.st_uid != os.geteuid() or found.st_mode & _OPEN_TO_OTHERS:
            raise PermissionError(path)
        yield folder
    finally:
        os.close(folder)


@contextlib.contextmanager
def locked(folder: int) -> Iterator[None]:
    """Wait until no other command writes. Raises OSError after some time."""
    lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)
        yield
    finally:
        os.close(lock)


def content_of(folder: int, name: str, max_bytes: int) -> bytes:
    """Return the content of a file. Raises OSError if another user may write to it, ValueError if it is larger."""
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & _WRITABLE_BY_OTHERS:
            raise PermissionError(name)
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError("too large")
    return content


def _read(folder: int) -> dict[str, Proof]:
    """Return the proofs of the file, those used last at the end. Raises OSError and ValueError if it is unusable."""
    head, _, body = content_of(folder, _FILE, MAX_BYTES).partition(b"\n")
    if head != _head(body):
        raise ValueError("damaged, or of another version")
    data = json.loads(body)
    if not isinstance(data, dict):
        raise ValueError("no proofs")
    return {_sound_key(key): _proof(value) for key, value in data.items()}


def _head(body: bytes) -> bytes:
    return f"{_FORMAT} {hashlib.sha256(body).hexdigest()}".encode()


def _sound_key(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(key)
    return key


def _proof(value: object) -> Proof:
    """Return a proof as it was written. Raises ValueError if the text is not a proof."""
    match value:
        case [int(ways), int(pairs), bool(marked), bool(looks), list(zones)]:
            return Proof(ways, pairs, marked, looks, frozenset(((a, b), (c, d)) for a, b, c, d in zones))
        case _:
            raise ValueError(value)


def _write(folder: int, proofs: Mapping[str, Proof], max_bytes: int) -> None:
    """Put another file in place of the one there, unless it would be too large. Raises OSError."""
    data = {
        key: [one.ways, one.pairs, one.marked, one.looks, sorted([*before, *after] for before, after in one.zones)]
        for key, one in proofs.items()
    }
    body = json.dumps(data, separators=(",", ":")).encode()
    content = _head(body) + b"\n" + body
    if len(content) <= max_bytes:
        put(folder, _FILE, content)


def put(folder: int, name: str, content: bytes) -> None:
    """Put a file with this content in place of the one there, at once. Raises OSError."""
    temporary = f".{name}.{secrets.token_hex(8)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
