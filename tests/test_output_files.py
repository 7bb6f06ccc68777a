"""``compile -o``: the file that it writes, its mode, and links of other users that it does not follow."""

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


def test_output_to_a_device_or_pipe_is_written(tmp_path: Path) -> None:
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
@pytest.mark.parametrize("deeper", ["", "sub"])
def test_folder_that_is_a_link_of_another_user_is_not_used(tmp_path: Path, deeper: str) -> None:
    own, shared = tmp_path / "own", tmp_path / "shared"
    (own / deeper).mkdir(parents=True)
    (own / deeper / "rules").write_text("only root writes here")
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "folder").symlink_to(own)
    os.lchown(shared / "folder", NOBODY, NOBODY)
    (tmp_path / "link").symlink_to(shared / "folder" / deeper / "rules")
    for place in (
        shared / "folder" / deeper / "rules",
        shared / "folder/../shared/folder" / deeper / "rules",
        tmp_path / "link",
    ):
        with pytest.raises(OSError, match="another user"):
            write_file(place, ["overwritten"])
    assert (own / deeper / "rules").read_text() == "only root writes here"
    os.lchown(shared / "folder", 0, 0)
    write_file(shared / "folder" / deeper / "rules", ["mine"])
    assert (own / deeper / "rules").read_text() == "mine"


def test_folders_that_are_own_links_lead_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "relative").symlink_to("a/b/../b")
    (tmp_path / "absolute").symlink_to(tmp_path / "relative")
    monkeypatch.chdir(tmp_path / "a")
    for place in (Path("../absolute/rules"), tmp_path / "relative/rules", Path("b/rules"), Path("b/../b/./rules")):
        write_file(place, [str(place)])
        assert (tmp_path / "a/b/rules").read_text() == str(place)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        write_file(tmp_path / "loop/rules", ["x"])
    with pytest.raises(FileNotFoundError):
        write_file(tmp_path / "gone/rules", ["x"])


@needs_root
def test_fifo_of_another_user_in_a_shared_folder_is_not_used(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    os.mkfifo(tmp_path / "rules")
    os.chown(tmp_path / "rules", NOBODY, NOBODY)
    with pytest.raises(OSError, match="another user"):
        write_file(tmp_path / "rules", ["told"])
