"""Rulesets on disk: written whole, read as written, and read again once they are others."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.errors import HostError, InternalError
from pvefw_nft.host.records import record, state
from pvefw_nft.host.settings import Conntrack

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RULESET = record.desired("nft", ["one\n", '"zwö"', ""], enabled=True, conntrack=Conntrack(1, 2, 3))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "running.ruleset"


def forget(path: Path) -> None:
    """Have the next load read the disk, as after a change by another process."""
    os.utime(path, (0, 0))


def test_record_is_read_as_written(path: Path) -> None:
    record.prepare(path, RULESET).commit()
    forget(path)
    assert record.load(path) == RULESET


def test_record_is_not_there_before_it_is_put_in_place(path: Path) -> None:
    prepared = record.prepare(path, RULESET)
    assert record.load(path) is None
    prepared.discard()
    assert list(path.parent.iterdir()) == []


def test_same_text_in_other_pieces_is_another_ruleset() -> None:
    assert record.desired("nft", ["ab", "c"], enabled=True).fingerprint != RULESET.fingerprint
    one, other = (record.desired("nft", pieces, enabled=True) for pieces in (["ab", "c"], ["a", "bc"]))
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize("cut", [1, 5, 100])
def test_record_that_was_cut_off_is_damaged(path: Path, cut: int) -> None:
    record.prepare(path, RULESET).commit()
    os.truncate(path, path.stat().st_size - cut)
    with pytest.raises(HostError, match="damaged"):
        record.load(path)
    assert record.load_if_sound(path) is None


def a_device(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # zero(4), without end


def a_sparse_file(path: Path) -> None:
    path.touch(0o600)
    os.truncate(path, 1 << 40)


@pytest.mark.parametrize("make", [a_device, a_sparse_file])
def test_what_is_no_file_of_records_is_left_out_of_account(path: Path, make: Callable[[Path], None]) -> None:
    path.parent.mkdir()
    try:
        make(path)
    except OSError as error:
        pytest.skip(f"cannot be made here: {error}")
    assert record.load_if_sound(path) is None
    state.take_warnings()
    assert state.read_record(path, dict) is None
    (warning,) = state.take_warnings()
    assert f"{path} is damaged: it is " in warning
    record.prepare(path, RULESET).commit()
    assert record.load(path) == RULESET


@pytest.mark.parametrize(
    ("written", "found"),
    [('"enabled": true', '"enabled": false'), ('"conntrack": [1, 2, 3]', '"conntrack": [1, 2, 4]')],
)
def test_record_whose_settings_were_damaged_is_damaged(path: Path, written: str, found: str) -> None:
    """A boot from it would leave guests unfiltered, though the rules are there."""
    record.prepare(path, RULESET).commit()
    forget(path)
    text = path.read_text()
    assert written in text
    path.write_text(text.replace(written, found))
    with pytest.raises(HostError, match="damaged"):
        record.load(path)


def test_record_of_an_older_version_has_no_digest_of_its_settings(path: Path) -> None:
    record.prepare(path, RULESET).commit()
    forget(path)
    path.write_text(re.sub(r'"settings": "[0-9a-f]+", ', "", path.read_text()))
    assert '"settings"' not in path.read_text()
    assert record.load(path) == RULESET


def test_record_of_another_process_is_seen(path: Path) -> None:
    other = record.desired("nft", ["other"], enabled=False)
    record.prepare(path, RULESET).commit()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            record.prepare(path, other).commit()
        os._exit(0)
    os.waitpid(child, 0)
    assert record.load(path) == other


def test_record_that_is_gone_is_gone(path: Path) -> None:
    record.prepare(path, RULESET).commit()
    assert record.load(path) == RULESET
    path.unlink()
    assert record.load(path) is None


def test_piece_that_would_not_be_read_back_is_refused(path: Path) -> None:
    with pytest.raises(InternalError):
        record.prepare(path, record.desired("nft", ["a\0b"], enabled=True))
