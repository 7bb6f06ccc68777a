"""``compile -o``: where it writes, with which mode, and what of other users it does not follow."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.app.outputs import write_file

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of other users")


def failing() -> Iterator[str]:
    yield "half"
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_file_is_for_its_owner_under_any_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_file(tmp_path / "rules", ["a\n", "b\n"])
    finally:
        os.umask(before)
    assert (tmp_path / "rules").read_text() == "a\nb\n"
    assert stat.S_IMODE((tmp_path / "rules").stat().st_mode) == 0o600


def test_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "rules").write_text("old")
    with pytest.raises(OSError, match="No space"):
        write_file(tmp_path / "rules", failing())
    assert (tmp_path / "rules").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["rules"]


def test_own_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/rules")
    write_file(tmp_path / "link", ["one"])
    write_file(tmp_path / "link", ["two"])
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder/rules").read_text() == "two"


def test_what_is_no_regular_file_is_written_to(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    try:
        write_file(Path(f"/dev/fd/{writing}"), ["through"])
        assert os.read(reading, 100) == b"through"
    finally:
        os.close(reading)
        os.close(writing)
    (tmp_path / "null").symlink_to("/dev/null")
    write_file(tmp_path / "null", ["nowhere"])
    assert (tmp_path / "null").is_symlink()
    assert Path("/dev/null").is_char_device()


def test_links_in_a_circle_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        write_file(tmp_path / "a", ["x"])


@needs_root
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775])
def test_link_of_another_user_in_a_shared_folder_is_not_followed(tmp_path: Path, mode: int) -> None:
    secret, shared = tmp_path / "secret", tmp_path / "shared"
    secret.write_text("only root writes here")
    shared.mkdir()
    shared.chmod(mode)
    (shared / "rules").symlink_to(secret)
    os.lchown(shared / "rules", NOBODY, NOBODY)
    with pytest.raises(OSError, match="another user"):
        write_file(shared / "rules", ["overwritten"])
    assert secret.read_text() == "only root writes here"


@needs_root
def test_fifo_of_another_user_in_a_shared_folder_is_not_used(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    os.mkfifo(tmp_path / "rules")
    os.chown(tmp_path / "rules", NOBODY, NOBODY)
    with pytest.raises(OSError, match="another user"):
        write_file(tmp_path / "rules", ["told"])
