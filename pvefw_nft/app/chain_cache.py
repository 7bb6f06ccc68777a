"""What ``compare`` knows of chains by digest, on disk, in the folder and under the rules of :mod:`.proof_cache`.

A line has the version of the prover, a digest of the files that names of services and the like are looked up in, and
one of the rest. That is a line of JSON with the values of :mod:`~pvefw_nft.verify.prove.chain_memo`: digests, numbers,
and the names of the chains that a chain leads to. With write access to the file, another user could make ``compare``
call two different rulesets alike; so a file counts that only this user can write to. A damaged file, or one of another
version, is taken for an empty one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from typing import TYPE_CHECKING, TypeVar

from pvefw_nft.app.proof_cache import UNUSABLE, content_of, locked, opened, put, safe_folder
from pvefw_nft.verify.model import Summary
from pvefw_nft.verify.model.names import names_digest
from pvefw_nft.verify.prove.chain_memo import Kept, NicKey
from pvefw_nft.verify.prove.proofs import prover_digest

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 1 << 25
"""A larger file is not read, and none is written: a chain takes some 100 bytes, a NIC some 300."""
MIN_OLDER = 1 << 12
"""So many values that a comparison did not use are kept at least; at most as many as it used."""

_FORMAT = "pvefw chains 1"
_FILE = "chains"
_DIGEST = re.compile(r"[0-9a-f]{24,64}")
_Value = TypeVar("_Value")


def kept_chains() -> ChainFile | None:
    """Return what this user's earlier comparisons know; None if there is no folder for it, or it is not safe."""
    folder = safe_folder()
    return None if folder is None else ChainFile(folder)


class ChainFile:
    """The file in a folder. Nothing that is wrong with it ever raises."""

    def __init__(self, folder: Path) -> None:
        """Take a folder that was found safe; it is looked at again each time."""
        self._folder = folder
        # taken before rules are read: the values that are saved belong to the names of that time
        self._names = names_digest()
        self._loaded: tuple[bytes, Kept] | None = None

    def load(self) -> Kept:
        """Return what is known."""
        try:
            with opened(self._folder) as folder:
                content = content_of(folder, _FILE, MAX_BYTES)
                self._loaded = content, _read(content, self._names)
                return self._loaded[1]
        except UNUSABLE:
            return Kept()

    def save(self, known: Kept, used: Kept) -> None:
        """Keep what a comparison used, and some of what else there is room for; ``known`` is what it loaded."""
        if (
            used.summaries.keys() <= known.summaries.keys()
            and used.keys.keys() <= known.keys.keys()
            and used.checks.keys() <= known.checks.keys()
        ):
            return
        with contextlib.suppress(OSError), opened(self._folder) as folder, locked(folder):
            try:
                content = content_of(folder, _FILE, MAX_BYTES)
                # mostly equal: no other comparison has ended since
                loaded = self._loaded
                found = loaded[1] if loaded is not None and loaded[0] == content else _read(content, self._names)
            except UNUSABLE:
                found = Kept()
            merged = Kept(
                _merged(found.summaries, used.summaries),
                _merged(found.keys, used.keys),
                _merged(found.checks, used.checks),
            )
            content = _content(merged, self._names)
            if len(content) <= MAX_BYTES:
                put(folder, _FILE, content)


def _merged(found: dict[str, _Value], used: dict[str, _Value]) -> dict[str, _Value]:
    """Return the values used, at the end, behind as many of the others as are kept: those used last."""
    older = [key for key in found if key not in used]
    return {key: found[key] for key in older[-max(MIN_OLDER, len(used)) :]} | used


def _head(body: bytes, names: str) -> bytes:
    return f"{_FORMAT} {prover_digest()} {names} {hashlib.sha256(body).hexdigest()}".encode()


def _content(kept: Kept, names: str) -> bytes:
    items: dict[frozenset[str], int] = {}
    chains = {
        digest: [items.setdefault(one.items, len(items)), one.asks_interface, *one.targets]
        for digest, one in kept.summaries.items()
    }
    data = {
        "items": [sorted(one) for one in items],
        "chains": chains,
        "keys": {digest: [key.digest, *key.zones] for digest, key in kept.keys.items()},
        "checks": list(kept.checks),
    }
    body = json.dumps(data, separators=(",", ":")).encode()
    return _head(body, names) + b"\n" + body


def _read(content: bytes, names: str) -> Kept:
    """Return what the file's content says. Raises ValueError if it is unusable."""
    head, _, body = content.partition(b"\n")
    if head != _head(body, names):
        raise ValueError("damaged, or of another version")
    match json.loads(body):
        case {"items": list(items), "chains": dict(chains), "keys": dict(keys), "checks": list(checks)}:
            sets = [_items(one) for one in items]
            return Kept(
                {_sound(digest): _summary(value, sets) for digest, value in chains.items()},
                {_sound(digest): _key(value) for digest, value in keys.items()},
                {_sound(digest): None for digest in checks},
            )
        case _:
            raise ValueError("no chains")


def _sound(digest: str) -> str:
    """Return a digest. Raises ValueError and TypeError if it is none."""
    if not _DIGEST.fullmatch(digest):
        raise ValueError(digest)
    return digest


def _items(value: object) -> frozenset[str]:
    match value:
        case list(items):
            return frozenset(map(_sound, items))
    raise ValueError(value)


def _summary(value: object, sets: list[frozenset[str]]) -> Summary:
    match value:
        case [int(number), bool(asks_interface), *names] if 0 <= number < len(sets):
            targets = tuple([name for name in names if isinstance(name, str)])
            if len(targets) == len(names):
                return Summary(sets[number], targets, asks_interface)
    raise ValueError(value)


def _key(value: object) -> NicKey:
    match value:
        case [str(digest), list(before), list(after)]:
            if all(type(zone) is int for zone in (*before, *after)):
                return NicKey(_sound(digest), (tuple(before), tuple(after)))
    raise ValueError(value)
