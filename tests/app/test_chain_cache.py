"""What compare knows of chains on disk: damaged or foreign files never decide, and the answer is that without them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from pvefw_nft.app import chain_cache
from pvefw_nft.app.chain_cache import ChainFile, kept_chains
from pvefw_nft.cli import cli
from pvefw_nft.verify.model import Summary
from pvefw_nft.verify.model.names import names_digest
from pvefw_nft.verify.prove.chain_memo import Kept, NicKey
from tests.app.test_proof_cache import (
    NOBODY,
    a_fifo,
    a_folder_open_to_others,
    a_link,
    a_link_to_the_folder,
    as_root,
    cut_off,
    empty,
    too_deep,
    writable_by_others,
)
from tests.kernel import cases
from tests.verify.test_read_by_parts import compiled

if TYPE_CHECKING:
    from collections.abc import Callable

A, B, C = ("a" * 48, "b" * 48, "c" * 48)
KEPT = Kept(
    {A: Summary(frozenset({"1" * 24, "2" * 24}), ("x", "y"), asks_interface=True)},
    {B: NicKey("d" * 64, ((0, 5), (0,)))},
    {C: None},
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "cache"
    monkeypatch.setenv("PVEFW_CACHE_DIRECTORY", str(found))
    return found


def cache() -> ChainFile:
    found = kept_chains()
    assert found is not None
    return found


def test_what_is_kept_is_read_back(folder: Path) -> None:
    assert cache().load() == Kept()
    cache().save(Kept(), KEPT)
    assert cache().load() == KEPT
    assert (folder.stat().st_mode & 0o777, (folder / "chains").stat().st_mode & 0o777) == (0o700, 0o600)
    written = (folder / "chains").stat().st_mtime_ns
    cache().save(KEPT, KEPT)
    assert (folder / "chains").stat().st_mtime_ns == written


def test_two_commands_at_a_time_both_keep_theirs(folder: Path) -> None:
    cache().save(Kept(), Kept(summaries=KEPT.summaries))
    cache().save(Kept(), Kept(keys=KEPT.keys, checks=KEPT.checks))
    assert cache().load() == KEPT


def test_what_was_used_last_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_cache, "MIN_OLDER", 1)
    for number in range(4):
        cache().save(Kept(), Kept(checks={f"{number:048x}": None}))
    assert list(cache().load().checks) == [f"{number:048x}" for number in (2, 3)]


def test_a_file_that_would_be_too_large_is_not_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_cache, "MAX_BYTES", 10)
    cache().save(Kept(), KEPT)
    assert not (folder / "chains").exists()


def with_another_name(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'"x"', b'"z"'))


def of_another_version(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"pvefw chains 1", b"pvefw chains 2"))


def of_another_prover(file: Path) -> None:
    words = file.read_bytes().split(b" ", 4)
    words[3] = b"0" * 64
    file.write_bytes(b" ".join(words))


def holding(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    """Return a change of what the file holds, with the digest that fits."""

    def changed(file: Path) -> None:
        data = json.loads(file.read_bytes().partition(b"\n")[2])
        change(data)
        body = json.dumps(data).encode()
        file.write_bytes(chain_cache._head(body, names_digest()) + b"\n" + body)

    return changed


DAMAGES = {
    "cut off": cut_off,
    "another name": with_another_name,
    "version": of_another_version,
    "prover": of_another_prover,
    "empty": empty,
    "writable by others": writable_by_others,
    "link": a_link,
    "fifo": a_fifo,
    "open folder": a_folder_open_to_others,
    "link to the folder": a_link_to_the_folder,
    "deep": too_deep,
    "no items": holding(lambda data: data.pop("items")),
    "number of items": holding(lambda data: data.update(chains={A: [7, True]})),
    "negative number": holding(lambda data: data.update(chains={A: [-1, True]})),
    "no name": holding(lambda data: data.update(chains={A: [0, True, 5]})),
    "no digest": holding(lambda data: data.update(chains={"x": [0, True]})),
    "no key": holding(lambda data: data.update(keys={A: ["x", [], []]})),
    "no zone": holding(lambda data: data.update(keys={A: [A, ["5"], []]})),
    "number for a check": holding(lambda data: data.update(checks=[5])),
    "list for items": holding(lambda data: data.update(items=[[["x"]]])),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_an_unsafe_or_damaged_file_counts_as_empty(folder: Path, what: str) -> None:
    cache().save(Kept(), KEPT)
    file = ChainFile(folder)
    DAMAGES[what](folder / "chains")
    assert file.load() == Kept()
    file.save(Kept(), KEPT)  # it does not fail, whether or not it can keep it


@as_root
@pytest.mark.parametrize("name", ["", "chains"])
def test_root_trusts_nothing_of_another_user(folder: Path, name: str) -> None:
    cache().save(Kept(), KEPT)
    file = ChainFile(folder)
    os.chown(folder / name, NOBODY, NOBODY)
    assert file.load() == Kept()


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def rulesets(tmp_path: Path) -> list[str]:
    files = []
    for prefix, backend in (("save", "iptables"), ("nft-json", "nft")):
        file = tmp_path / backend
        file.write_text(compiled("groups", backend))
        files.append(f"{prefix}:{file}")
    return files


def compared(rulesets: list[str], *options: str) -> tuple[int, str, str]:
    case = cases.load("groups")
    root = ["--root", str(case.root), "--node", case.node, "--local-network", case.local_network, "--jobs", "1"]
    result = CliRunner().invoke(cli, ["compare", *rulesets, *root, *options])
    return result.exit_code, result.stdout, result.stderr


def edit(ruleset: str, old: str, new: str) -> None:
    file = Path(ruleset.partition(":")[2])
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


EDITS: dict[str, Callable[[list[str]], None]] = {
    "nothing": lambda _: None,
    "an accepted port": lambda rulesets: edit(rulesets[0], "-j DROP", "-j ACCEPT"),
    "an unreadable rule": lambda rulesets: edit(rulesets[0], "-j DROP", "-m nonsense -j DROP"),
    "a chain that is not there": lambda rulesets: edit(rulesets[1], '"jump":{"target":"', '"jump":{"target":"no-'),
    "cut off": lambda rulesets: edit(rulesets[0], "COMMIT", ""),
}


@pytest.mark.parametrize("what", EDITS)
@pytest.mark.parametrize("form", ["text", "json"])
def test_the_command_says_the_same_with_what_it_knows(folder: Path, rulesets: list[str], what: str, form: str) -> None:
    compared(rulesets)
    assert cache().load().summaries
    EDITS[what](rulesets)
    warm = [compared(rulesets, "--format", form) for _ in range(2)]
    without = compared(rulesets, "--format", form, "--no-cache")
    for code, stdout, stderr in warm:
        assert (code, stderr) == (without[0], without[2])
        if form == "json" and stdout:
            found, expected = json.loads(stdout), json.loads(without[1])
            del found["proof"], expected["proof"]
            assert found == expected
        else:
            assert stdout == without[1]


@pytest.mark.parametrize("what", ["cut off", "another name", "prover", "writable by others"])
def test_the_command_says_the_same_with_a_damaged_file(folder: Path, rulesets: list[str], what: str) -> None:
    without = compared(rulesets, "--no-cache")
    compared(rulesets)
    if what == "another name":
        (folder / "chains").write_bytes((folder / "chains").read_bytes().replace(b"tap", b"tab"))
    else:
        DAMAGES[what](folder / "chains")
    assert compared(rulesets) == without
