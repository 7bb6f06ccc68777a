"""Large records: a change writes only the differences.

How the kernel lists the rules of 1,000 guests, and the inputs that they were compiled from, are half a MB each, of
which a change of one guest alters a few entries. Such a record is a whole file and, beside it, a file of the entries
that differ from it. The whole is written again once these are a quarter of it. Both files are written atomically;
differences name the version of the whole that they belong to, and count for no other.

Example: ``{"chains": {"a": 1, "b": 2}}`` with the differences ``{"set": {"b": 3}, "gone": ["a"]}`` of ``chains`` is
``{"chains": {"b": 3}}``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from . import state
from .bases import file_version

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_T = TypeVar("_T")

MIN_SIZE = 1 << 16
"""Size in characters up to which a record is always written whole."""
_MAX_SHARE = 4  # the whole is written again where the differences are more than this part of it


@dataclass(frozen=True, slots=True)
class _Whole:
    """The value of a whole file as it was read or written, its version then, and its size."""

    value: dict[str, Any]
    version: list[int] | None
    size: int


_wholes: dict[Path, _Whole] = {}
"""By path, for records of at least :data:`MIN_SIZE`."""


def differences_path(path: Path) -> Path:
    """Return where the differences from a record's whole file are."""
    return path.with_name(f"{path.stem}.differences{path.suffix}")


def files_of(path: Path) -> tuple[Path, Path]:
    """Return the files of a record, in the order to remove them."""
    return differences_path(path), path


def write(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object, which the caller must not change afterwards. Raises :class:`HostError`."""
    whole = _wholes.get(path)
    if whole is not None and whole.version == file_version(path):
        text = json.dumps({"of": whole.version, **_differences(whole.value, value)})
        if len(text) * _MAX_SHARE < whole.size:
            state.prepare_text(differences_path(path), text).commit()
            return
    text = json.dumps(value)
    prepared = state.prepare_text(path, text)
    version = file_version(prepared.temporary)  # a new name does not change it
    prepared.commit()
    _keep(path, _Whole(value, version, len(text)))
    state.remove(differences_path(path))  # they are of another version, and count no more


def read(path: Path, check: Callable[[Any], _T | None]) -> _T | None:
    """Return the result of ``check`` for a record, as :func:`.state.read_record` does."""
    version = file_version(path)

    def of_whole(whole: _Whole) -> _T | None:
        changes = differences_path(path)
        value = state.checked_record(changes, lambda: _merged(whole, state.read(changes)))
        # if another process wrote the whole meanwhile, the differences may belong to the new one
        return None if value is None or file_version(path) != whole.version else check(value)

    def of_value(value: Any) -> _T | None:  # noqa: ANN401 - JSON
        whole = _Whole(state.typed(value, dict), version, 0 if version is None else version[2])
        _keep(path, whole)
        return of_whole(whole)

    known = _wholes.get(path)
    if known is not None and known.version == version:
        return state.checked_record(path, lambda: of_whole(known))
    return state.read_record(path, of_value)


def remove(path: Path) -> None:
    """Remove a record if it is there. Raises :class:`HostError`."""
    _wholes.pop(path, None)
    for file in files_of(path):
        state.remove(file)


def _keep(path: Path, whole: _Whole) -> None:
    _wholes.pop(path, None)
    if whole.size >= MIN_SIZE:
        _wholes[path] = whole


def _differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return what turns one object into another: values, and entries of objects, that are set or gone."""
    values: dict[str, Any] = {}
    entries: dict[str, Any] = {}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            changed = {name: entry for name, entry in value.items() if name not in old or old[name] != entry}
            gone = [name for name in old if name not in value]
            if changed or gone:
                entries[key] = {"set": changed, "gone": gone}
        elif key not in before or old != value:
            values[key] = value
    return {"values": values, "entries": entries, "gone": [key for key in before if key not in after]}


def _merged(whole: _Whole, found: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """Return a value with its differences. Raises as the check of :func:`.state.read_record` where they are damaged."""
    if found is None or found["of"] != whole.version:
        return whole.value
    value = {**whole.value, **state.typed(found["values"], dict)}
    for key, changes in found["entries"].items():
        value[key] = {**state.typed(value[key], dict), **state.typed(changes["set"], dict)}
        for name in changes["gone"]:
            del value[key][name]
    for key in found["gone"]:
        del value[key]
    return value
