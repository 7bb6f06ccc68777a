"""The proofs of compare on disk: only their owner can use them, and a damaged file does no harm."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from pvefw_nft.app import proof_cache
from pvefw_nft.app.proof_cache import ProofFile, kept_proofs
from pvefw_nft.cli import cli
from pvefw_nft.verify.prove.proofs import NO_PROOFS, Proof

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEY, OTHER = "a" * 64, "b" * 64
PROOF = Proof(2, 9, marked=True, looks=False, zones=frozenset({((0, 0), (5, 5))}))
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "cache"
    monkeypatch.setenv("PVEFW_CACHE_DIRECTORY", str(found))
    return found


def kept() -> dict[str, Proof]:
    return dict(kept_proofs().load())


def keep(**proofs: Proof) -> None:
    cache = kept_proofs()
    cache.load()
    cache.save(proofs)


def test_proofs_are_read_back(folder: Path) -> None:
    assert kept() == {}
    keep(**{KEY: PROOF})
    keep(**{OTHER: PROOF._replace(zones=frozenset())})
    assert kept() == {KEY: PROOF, OTHER: PROOF._replace(zones=frozenset())}
    assert (folder.stat().st_mode & 0o777, (folder / "proofs").stat().st_mode & 0o777) == (0o700, 0o600)
    assert sorted(file.name for file in folder.iterdir()) == ["proofs", "proofs.lock"]


def test_two_commands_at_a_time_both_keep_theirs(folder: Path) -> None:
    first, second = kept_proofs(), kept_proofs()
    first.load()
    second.load()
    first.save({KEY: PROOF})
    second.save({OTHER: PROOF})
    assert kept().keys() == {KEY, OTHER}


def test_the_proofs_used_last_are_kept(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    for used in ({KEY: PROOF}, {OTHER: PROOF}, {KEY: PROOF, "c" * 64: PROOF}):
        cache = ProofFile(folder, max_proofs=2)
        cache.load()
        cache.save(used)
    assert kept().keys() == {KEY, "c" * 64}


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def with_another_number(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"[2,9", b"[2,8"))


def of_another_version(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"pvefw proofs 1", b"pvefw proofs 2"))


def with_no_json(file: Path) -> None:
    file.write_bytes(proof_cache._head(b"{") + b"\n{")


def with_no_proof(file: Path) -> None:
    file.write_bytes(proof_cache._head(b'{"x":[]}') + b'\n{"x":[]}')


def with_a_list(file: Path) -> None:
    file.write_bytes(proof_cache._head(b"[]") + b"\n[]")


def with_numbers_for_zones(file: Path) -> None:
    body = f'{{"{KEY}":[1,1,true,true,[1]]}}'.encode()
    file.write_bytes(proof_cache._head(body) + b"\n" + body)


def too_deep(file: Path) -> None:
    body = b"[" * 100_000
    file.write_bytes(proof_cache._head(body) + b"\n" + body)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def writable_by_others(file: Path) -> None:
    file.chmod(0o666)


def a_link(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")


def a_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def a_folder_open_to_others(file: Path) -> None:
    file.parent.chmod(0o750)


def a_link_to_the_folder(file: Path) -> None:
    file.parent.rename(file.parent.with_name("moved"))
    file.parent.symlink_to("moved")


@pytest.mark.parametrize(
    "damage",
    [
        cut_off, with_another_number, of_another_version, with_no_json, with_no_proof, with_a_list,
        with_numbers_for_zones, too_deep, empty, writable_by_others, a_link, a_fifo, a_folder_open_to_others,
        a_link_to_the_folder,
    ],
)  # fmt: skip
def test_an_unsafe_or_damaged_cache_counts_as_empty(folder: Path, damage: Callable[[Path], None]) -> None:
    keep(**{KEY: PROOF})
    damage(folder / "proofs")
    assert kept() == {}
    keep(**{OTHER: PROOF})  # it does not fail, whether or not it can keep it


@as_root
@pytest.mark.parametrize("name", ["", "proofs"])
def test_root_trusts_nothing_of_another_user(folder: Path, name: str) -> None:
    keep(**{KEY: PROOF})
    os.chown(folder / name, NOBODY, NOBODY)
    assert kept() == {}


@as_root
def test_root_makes_no_folder_in_the_home_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chown(tmp_path, NOBODY, NOBODY)
    monkeypatch.delenv("PVEFW_CACHE_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    assert kept_proofs() is NO_PROOFS
    assert not (tmp_path / ".cache").exists()


def test_the_folder_is_below_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PVEFW_CACHE_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep(**{KEY: PROOF})
    assert (tmp_path / "pvefw" / "proofs").exists()


@pytest.mark.parametrize("place", ["", "relative"])
def test_without_a_sound_place_nothing_is_kept(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PVEFW_CACHE_DIRECTORY", place)
    assert kept_proofs() is NO_PROOFS


def test_a_full_disk_is_not_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    keep(**{KEY: PROOF})
    assert kept() == {}
    assert sorted(file.name for file in folder.iterdir()) == ["proofs.lock"]


def test_a_file_that_grew_too_large_is_not_written(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    ProofFile(folder, max_bytes=100).save({KEY: PROOF})
    assert not (folder / "proofs").exists()


def compare(*arguments: str) -> dict[str, int]:
    result = CliRunner().invoke(cli, ["compare", "--root", "examples/homelab", "--format", "json", *arguments])
    assert result.exit_code == 0, result.output
    found: dict[str, int] = json.loads(result.stdout)["proof"]
    return found


def test_compare_keeps_proofs_unless_told_not_to(folder: Path) -> None:
    assert compare("--no-cache")["kept"] == 0
    assert not folder.exists()
    assert compare()["kept"] == 0
    assert compare()["kept"] > 0
    assert compare("--no-cache")["kept"] == 0
    assert isinstance(kept_proofs(), ProofFile)
