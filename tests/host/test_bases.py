"""Large rulesets on disk: a change writes what changed; a kill or damage anywhere leaves a whole ruleset, or none."""

from __future__ import annotations

import itertools
import json
from functools import partial
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.errors import HostError
from pvefw_nft.host.records import bases, record, state

from .test_kill import killed_at

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pvefw_nft.host.records.record import Desired

PIECES = [f'{{"piece {number}": "{"x" * 200}"}}' for number in range(1000)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PVEFW_STATE_DIRECTORY", str(tmp_path))
    forget()
    return tmp_path


def forget() -> None:
    """Have the next load read the disk, as another process would."""
    record._last = None


def ruleset(**changed: str) -> Desired:
    """Return a large ruleset; ``changed`` names pieces by ``p`` and number."""
    pieces = list(PIECES)
    for name, text in changed.items():
        pieces[int(name[1:])] = text
    return record.desired("nft", pieces, enabled=True)


def write(desired: Desired) -> None:
    record.prepare(record.running_path(), desired).commit()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("backend", ["nft", "iptables"])
def test_change_writes_only_the_changed_part(folder: Path, backend: str) -> None:
    before, after = (record.desired(backend, ruleset(p7=text).pieces, enabled=True) for text in ('"a"', '"b"'))
    write(before)
    (base,) = folder.glob("base.*")
    kept = bases.file_version(base)
    write(after)
    assert record.running_path().stat().st_size < 500
    assert bases.file_version(base) == kept
    forget()
    assert record.load(record.running_path()) == after


@pytest.mark.parametrize(
    "pieces",
    [
        PIECES[::-1],
        PIECES[3:] + PIECES[:3],
        [*PIECES[:5], *PIECES[:5], *PIECES],
        PIECES[:1],
        [],
        ["new", *PIECES, "newer", "newer"],
    ],
)
def test_any_order_and_number_of_pieces_is_read_back(pieces: list[str]) -> None:
    write(ruleset())
    desired = record.desired("nft", pieces, enabled=True)
    write(desired)
    forget()
    assert record.load(record.running_path()) == desired


def test_process_that_read_the_record_goes_on_from_its_base(folder: Path) -> None:
    write(ruleset())
    before = names(folder)
    forget()
    record.load(record.running_path())
    write(ruleset(p1="other"))
    assert names(folder) == before


def test_new_base_is_written_where_much_changes_and_the_old_one_stays_while_it_is_named(folder: Path) -> None:
    write(ruleset())
    record.copy(record.running_path(), record.confirmed_path())
    other = record.desired("nft", [piece.upper() for piece in PIECES], enabled=True)
    write(other)
    assert len(list(folder.glob("base.*"))) == 2
    forget()
    assert record.load(record.confirmed_path()) == ruleset()
    assert record.load(record.running_path()) == other
    record.copy(record.running_path(), record.confirmed_path())
    assert len(list(folder.glob("base.*"))) == 1
    forget()
    assert record.load(record.confirmed_path()) == other


def test_small_ruleset_has_no_base(folder: Path) -> None:
    write(record.desired("nft", ["a", "b"], enabled=True))
    assert names(folder) == [record.running_path().name]


def test_record_of_the_version_before_is_read(folder: Path) -> None:
    desired = ruleset()
    head = {
        "version": 3,
        "backend": "nft",
        "enabled": True,
        "fingerprint": desired.fingerprint,
        "conntrack": None,
        "hardening": "",
    }
    (folder / record.running_path().name).write_text("\0".join([json.dumps(head), *desired.pieces]))
    assert record.load(record.running_path()) == desired


def test_fingerprint_of_iptables_does_not_depend_on_where_its_document_is_cut() -> None:
    one, other = (record.desired("iptables", pieces, enabled=True) for pieces in (["ab", "c"], ["a", "bc"]))
    assert one.fingerprint == other.fingerprint


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_link(path: Path) -> None:
    path.rename(path.with_name("x"))
    path.symlink_to("x")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: path.unlink(),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "one letter": lambda path: path.write_bytes(path.read_bytes().replace(b"x", b"y", 1)),
    "empty": lambda path: path.write_bytes(b""),
    "no text": lambda path: path.write_bytes(b"\xff\0\xfe"),
    "a folder": as_folder,
    "a link": as_link,
    "others may write": lambda path: path.chmod(0o666),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_base_counts_as_absent_and_is_written_again(folder: Path, damage: str) -> None:
    write(ruleset())
    (base,) = folder.glob("base.*")
    DAMAGE[damage](base)
    forget()
    with pytest.raises(HostError, match=r"running\.ruleset|base\."):
        record.load(record.running_path())
    assert record.load_if_sound(record.running_path()) is None
    write(ruleset(p5="new"))
    forget()
    assert record.load(record.running_path()) == ruleset(p5="new")


def test_base_that_was_damaged_since_it_was_read_is_not_built_upon(folder: Path) -> None:
    write(ruleset())
    (base,) = folder.glob("base.*")
    DAMAGE["one letter"](base)
    write(ruleset(p5="new"))
    forget()
    assert record.load(record.running_path()) == ruleset(p5="new")


@pytest.mark.parametrize(
    "parts",
    [
        None,
        7,
        [],
        [[0, 1001]],
        [[-1, 5]],
        [[5, 5]],
        [[0]],
        [[0, 1, 2]],
        [["0", 1]],
        [[0, 1000], 1],
        [0],
        [-1],
        [True],
        [1.5],
        [None],
        [[[0, 1]]],
        [[0, 1000]] * 5000,
    ],
)
def test_parts_that_no_writer_made_are_damage(folder: Path, parts: object) -> None:
    write(ruleset())
    path = folder / record.running_path().name
    path.write_text(json.dumps({**json.loads(path.read_text()), "parts": parts}))
    forget()
    with pytest.raises(HostError, match="damaged"):
        record.load(record.running_path())


@pytest.mark.parametrize("base", [7, "", "base.x", "../base." + "0" * 32, "base." + "0" * 32, ["base"]])
def test_base_that_cannot_be_is_damage(folder: Path, base: object) -> None:
    write(ruleset())
    path = folder / record.running_path().name
    path.write_text(json.dumps({**json.loads(path.read_text()), "base": base}))
    forget()
    with pytest.raises(HostError, match="damaged"):
        record.load(record.running_path())


def test_write_killed_at_every_step_leaves_the_old_ruleset_or_the_new_one(folder: Path) -> None:
    """From nothing to a base, from that to a change of it, from that to a new base, and confirmed in between."""
    turned = record.desired("nft", [piece.upper() for piece in PIECES], enabled=True)
    chain = [None, ruleset(), ruleset(p3="new"), turned, ruleset(p4="new")]

    def act(desired: Desired) -> None:
        record.load_if_sound(record.running_path())
        write(desired)
        record.copy(record.running_path(), record.confirmed_path())

    confirmed: Desired | None = None
    for old, new in itertools.pairwise(chain):
        assert new is not None
        for step in itertools.count():
            killed = killed_at(step, partial(act, new))
            forget()
            found = record.load(record.running_path())
            assert found in (old, new)
            forget()
            assert record.load(record.confirmed_path()) in (confirmed, new)
            if not killed:
                break
        assert step >= 2
        assert record.load(record.running_path()) == record.load(record.confirmed_path()) == new
        state.remove_unfinished()
        assert len(list(folder.glob("base.*"))) == 1
        confirmed = new
