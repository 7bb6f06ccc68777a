"""Large records: a change writes only its differences, and a reader gets the last written state."""

from __future__ import annotations

import json
import os
import random
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.host.records import deltas, record, state
from pvefw_nft.host.records.bases import file_version
from pvefw_nft.host.records.changes import AppliedChain

if TYPE_CHECKING:
    from pathlib import Path

MANY = {f"chain {number}": ["signature", "listing" * 10] for number in range(2000)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    state.take_warnings()
    return tmp_path / "memory.json"


def read(path: Path) -> Any:  # noqa: ANN401 - JSON
    return deltas.read(path, lambda value: value)


def read_by_another_process(path: Path) -> Any:  # noqa: ANN401 - JSON
    deltas._wholes.clear()
    return read(path)


def test_a_change_writes_its_differences_only(path: Path) -> None:
    before = {"identity": "one", "chains": MANY, "names": {"a": "x"}}
    deltas.write(path, before)
    whole = path.read_bytes()
    after = {"identity": "two", "chains": {**MANY, "chain 7": ["other", "x"], "new": ["a", "b"]}, "names": {}}
    del after["chains"]["chain 8"]  # type: ignore[attr-defined]  # it is an object
    deltas.write(path, after)
    assert path.read_bytes() == whole
    assert deltas.differences_path(path).stat().st_size < 500
    assert read(path) == after
    assert read_by_another_process(path) == after
    deltas.write(path, before)
    assert read(path) == read_by_another_process(path) == before


def test_the_whole_is_written_again_once_much_differs(path: Path) -> None:
    deltas.write(path, {"chains": MANY})
    whole = path.read_bytes()
    other = {name: ["other", "listing" * 10] for name in MANY}
    deltas.write(path, {"chains": other})
    assert path.read_bytes() != whole
    assert not deltas.differences_path(path).exists()
    assert read_by_another_process(path) == {"chains": other}


def test_a_small_record_is_one_file(path: Path) -> None:
    for number in range(3):
        deltas.write(path, {"chains": {"a": number}})
        assert [file.name for file in path.parent.iterdir()] == ["memory.json"]
        assert read_by_another_process(path) == {"chains": {"a": number}}


def test_differences_from_another_whole_do_not_count(path: Path) -> None:
    """As after a kill between the two files of a write."""
    deltas.write(path, {"chains": MANY})
    deltas.write(path, {"chains": {**MANY, "chain 7": []}})
    left = deltas.differences_path(path).read_bytes()
    deltas._wholes.clear()
    deltas.write(path, {"chains": MANY, "names": {}})
    deltas.differences_path(path).write_bytes(left)
    deltas.differences_path(path).chmod(0o600)
    assert read(path) == read_by_another_process(path) == {"chains": MANY, "names": {}}
    assert state.take_warnings() == []


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "7",
        "[]",
        "{}",
        '{"of": OF}',
        '{"of": OF, "values": 1, "entries": {}, "gone": []}',
        '{"of": OF, "values": {}, "entries": {"chains": 1}, "gone": []}',
        '{"of": OF, "values": {}, "entries": {"chains": {"set": [], "gone": []}}, "gone": []}',
        '{"of": OF, "values": {}, "entries": {"chains": {"set": {}, "gone": [[]]}}, "gone": []}',
        '{"of": OF, "values": {}, "entries": {"chains": {"set": {}, "gone": ["not there"]}}, "gone": []}',
        '{"of": OF, "values": {}, "entries": {"none": {"set": {}, "gone": []}}, "gone": []}',
        '{"of": OF, "values": {}, "entries": {}, "gone": ["not there"]}',
        "[" * 100_000,
    ],
)
def test_damaged_differences_count_as_no_record_with_a_warning(path: Path, damaged: str) -> None:
    deltas.write(path, {"chains": MANY})
    changes = deltas.differences_path(path)
    changes.write_text(damaged.replace("OF", json.dumps(file_version(path))))
    changes.chmod(0o600)
    for read_it in (read, read_by_another_process):
        assert read_it(path) is None
        (warning,) = state.take_warnings()
        assert str(changes) in warning


def test_any_sequence_of_changes_is_read_as_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deltas, "MIN_SIZE", 0)
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    value: dict[str, Any] = {"chains": {}, "names": {}}
    for _ in range(300):
        value = {key: dict(entries) for key, entries in value.items() if isinstance(entries, dict)}
        for entries in value.values():
            for _ in range(chance.randrange(4)):
                name = str(chance.randrange(40))
                if name in entries and chance.random() < 0.4:
                    del entries[name]
                else:
                    entries[name] = ["x" * chance.randrange(60)]
        value["identity"] = chance.choice(["a", "b", None])
        deltas.write(path, value)
        if chance.random() < 0.1:
            deltas._wholes.clear()
        assert read(path) == value, seed


def test_removed_with_its_differences(path: Path) -> None:
    deltas.write(path, {"chains": MANY})
    deltas.write(path, {"chains": {}, "more": 1})
    deltas.write(path, {"chains": MANY})
    deltas.remove(path)
    assert list(path.parent.iterdir()) == []
    assert read(path) is None


def test_state_that_was_read_before_is_read_again_once_its_files_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PVEFW_RUN_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("PVEFW_STATE_DIRECTORY", str(tmp_path))
    record.running_path().write_text("x")
    first, second = (record.AppliedState(name, {"a": AppliedChain(name, name)}, None) for name in ("one", "two"))
    for state_written in (first, second):
        record.write_memory(state_written)
        assert record.read_memory() == record.read_memory() == state_written
    os.utime(record.running_path(), ns=(0, 0))  # another ruleset: what is remembered is not of it
    assert record.read_memory() is None
    record.write_memory(first)
    assert record.read_memory() == first
    deltas.remove(record.memory_path())
    assert record.read_memory() is None
