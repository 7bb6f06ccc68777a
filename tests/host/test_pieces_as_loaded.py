"""Pieces of the artefact that is loaded are not read again: the result is that of reading them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.host.apply import nftables_state
from pvefw_nft.host.apply.nftables_state import Reader
from pvefw_nft.pipeline import Source, compile_root
from tests.test_cache import EDITS, FILES, edit

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import MakeRoot


def pieces_of(root: Path) -> list[str]:
    return list(compile_root(Source(root, "n1", lambda: "10.0.0.0/24"), "nft").artefact.loadable())


def digests_of(pieces: list[str]) -> dict[str, str]:
    tables = Reader().wanted(pieces)
    return {f"{family} {key}": made.digests for family, table in tables.items() for key, made in table.objects.items()}


def test_any_change_reads_as_without_knowing_what_is_loaded(
    make_root: MakeRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_root(FILES)
    before = pieces_of(root)
    read: list[str] = []
    parts = nftables_state._parts

    def noted(piece: str) -> object:
        read.append(piece)
        return parts(piece)

    for what, name, content in EDITS:
        edit(root, name, content)
        after = pieces_of(root)
        reader, digests = Reader(), digests_of(before)
        with monkeypatch.context() as patched:
            patched.setattr(nftables_state, "_parts", noted)
            read.clear()
            reader.assume(before, digests)
            found = reader.wanted(after)
        assert found == Reader().wanted(after), what
        known = [piece for piece in after if piece in before and piece.startswith('{"add":{"rule":')]
        assert not set(known) & set(read), what
        assert {family: list(table.commands()) for family, table in found.items()} == {
            family: list(table.commands()) for family, table in Reader().wanted(after).items()
        }
        before = after


RULE = '{"add":{"rule":{"family":"bridge","table":"pvefw","chain":"a","expr":[{"drop":null}]}}}'


@pytest.mark.parametrize(
    "piece",
    [
        RULE.replace("bridge", "ip"),
        RULE.replace("pvefw", "other"),
        RULE.replace('"a"', '"a b"'),
        RULE.replace("add", "delete"),
        RULE + ",\n" + RULE.replace('"a"', '"b"'),
        RULE + ",\n" + RULE.replace("rule", "chain"),
        " " + RULE,
        json.dumps({"add": {"table": {"family": "bridge", "name": "pvefw"}}}),
    ],
)
def test_piece_of_another_form_is_read(piece: str) -> None:
    digests = {"bridge chain a": "x.y", "bridge chain b": "x.y", "ip chain a": "x.y"}
    assert nftables_state._part_of_rules(RULE, digests) is not None
    assert nftables_state._part_of_rules(RULE, {}) is None
    assert nftables_state._part_of_rules(piece, digests) is None
