"""Bases: whole rulesets on disk. Records note only their differences from a base.

The ruleset of 1,000 guests has 4,000 pieces and 12 MB; a change replaces one or two pieces. A record therefore names
a base and says which pieces to take from it; the base is written again once too much differs. A base never changes once
it has its name, and is removed once no record names it.

Example: of a base ``a b c d`` the ruleset ``a x c d`` is the parts ``[[0, 1], 1, [2, 4]]`` and the one new piece ``x``.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from pvefw_nft.errors import HostError

from . import state

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path

BETWEEN = "\0"
"""The separator of pieces in a file: no JSON text holds it."""
MIN_BASE = 1 << 16
"""Size in characters up to which pieces are written into the record itself, however much of it they are."""
_MAX_SHARE = 4  # a new base is written where more than this part of the ruleset differs from the old one
_MAX_PIECES = 1 << 22
_NAME = re.compile(r"base\.[0-9a-f]{32}")

Part: TypeAlias = "list[int] | int"
"""``[first, end]``: these pieces of the base, from 0 and without the end; a number: so many new pieces."""


@dataclass(frozen=True)
class Base:
    """A base as it was read or written, and the version of its file then."""

    name: str
    pieces: tuple[str, ...]
    version: list[int] | None

    @cached_property
    def index(self) -> dict[str, int]:
        """Where each piece is; the first of equal ones."""
        found: dict[str, int] = {}
        for number, piece in enumerate(self.pieces):
            found.setdefault(piece, number)
        return found

    def still_holds(self) -> bool:
        """Tell whether the file is the one that was read or written."""
        return self.version is not None and self.version == file_version(path_of(self.name))


def path_of(name: str) -> Path:
    """Return where the base of that name is."""
    return state.state_directory() / name


def file_version(path: Path) -> list[int] | None:
    """Return the facts that identify this version of a file (device, inode, size, mtime); None: there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]


def write(pieces: Sequence[str]) -> Base:
    """Write a base. Raises :class:`HostError` (full or read-only disk)."""
    text = BETWEEN.join(pieces)
    name = f"base.{hashlib.sha256(text.encode()).hexdigest()[:32]}"
    state.prepare_text(path_of(name), text).commit()
    return Base(name, tuple(pieces), file_version(path_of(name)))


def read(name: object) -> Base:
    """Read a base. Raises ValueError if it is not there, and :class:`HostError`.

    Whether it is as it was written, the fingerprint of the ruleset tells that is put together from it.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"there cannot be a base {str(name)[:40]!r}")
    before = file_version(path_of(name))
    text = state.read_text(path_of(name))
    if text is None:
        raise ValueError(f"{path_of(name)} is not there")
    return Base(name, tuple(text.split(BETWEEN)), before)


def parts_of(pieces: Iterable[str], base: Base | None) -> tuple[list[Part], list[str]]:
    """Return a ruleset as parts of a base and the pieces that it lacks."""
    index = {} if base is None else base.index
    there = () if base is None else base.pieces
    parts: list[Part] = []
    new: list[str] = []
    for piece in pieces:
        last = parts[-1] if parts else None
        if isinstance(last, list) and last[1] < len(there) and there[last[1]] == piece:
            last[1] += 1
        elif (number := index.get(piece)) is not None:
            parts.append([number, number + 1])
        else:
            new.append(piece)
            if isinstance(last, int):
                parts[-1] = last + 1
            else:
                parts.append(1)
    return parts, new


def differs_too_much(pieces: Sequence[str], new: Sequence[str]) -> bool:
    """Tell whether a ruleset has so many new pieces that it is better written as a base."""
    size = sum(map(len, new))
    return size > MIN_BASE and size * _MAX_SHARE > sum(map(len, pieces))


def put_together(parts: Any, new: Sequence[str], base: Base | None) -> tuple[str, ...]:  # noqa: ANN401 - JSON
    """Return the pieces of a ruleset. Raises ValueError and TypeError for parts that no :func:`parts_of` made."""
    there = () if base is None else base.pieces
    found: list[str] = []
    used = 0
    for part in state.typed(parts, list):
        if isinstance(part, list):
            first, end = (state.typed(number, int) for number in part)
            if not 0 <= first < end <= len(there):
                raise ValueError("a part that its base has not")
            found += there[first:end]
        else:
            count = state.typed(part, int)
            if not 0 < count <= len(new) - used:
                raise ValueError("fewer new pieces than there should be")
            found += new[used : used + count]
            used += count
        if len(found) > _MAX_PIECES:
            raise ValueError("more pieces than a ruleset has")
    if used != len(new):
        raise ValueError("more new pieces than there should be")
    return tuple(found)


def names() -> set[str]:
    """Return the names of the bases on disk; none if the folder cannot be read."""
    try:
        return {path.name for path in state.state_directory().iterdir() if _NAME.fullmatch(path.name)}
    except OSError:
        return set()


def remove_others(named: Collection[object]) -> None:
    """Remove the bases that are none of these. One that stays takes room and does no harm."""
    with contextlib.suppress(HostError, OSError):
        for name in names().difference(named):
            state.remove(path_of(name))
