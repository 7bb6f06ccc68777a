"""Each reader of untrusted input, fed by its harness: what once failed, and fresh input from hypothesis.

``tests/fuzz/readers`` holds inputs that failed, named by their harness and a number; ``scripts/fuzz_readers.py`` finds
more of them. ``PVEFW_TEST_INPUTS`` sets how many inputs each harness gets here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("pyroute2")

from .harnesses import HARNESSES

if TYPE_CHECKING:
    from collections.abc import Callable

FOUND = sorted((Path(__file__).resolve().parents[1] / "fuzz" / "readers").glob("*-*"))
INPUTS = int(os.environ.get("PVEFW_TEST_INPUTS", "60"))
PIECES = [
    *(
        "",
        "\n",
        "\r",
        " ",
        "\t",
        "\0",
        "[",
        "]",
        "[RULES]\n",
        "[OPTIONS]\n",
        "-",
        "--",
        "+",
        "!",
        ":",
        "/",
        ",",
        "=",
        "#",
    ),
    *('"', "'", "\\", "{", "}", "null", "1e999", "9" * 30, "²", "é", "\u202e", "\x1b[31m", "\udcff", "enable: 0\n"),
    *("A" * 3000, "$(id)"),
]
FRESH = settings(
    max_examples=INPUTS,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
"""Other inputs in each run: what fails is printed whole, to be kept in ``tests/fuzz/readers``."""


@pytest.fixture(autouse=True)
def _directories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PVEFW_RUN_DIRECTORY", "PVEFW_STATE_DIRECTORY"):
        monkeypatch.setenv(name, str(tmp_path))


def changed(text: str) -> st.SearchStrategy[bytes]:
    """Draw a text with some parts replaced, left out or doubled."""
    place = st.integers(0, len(text))
    part = st.sampled_from(PIECES) | st.text(max_size=5) | place.map(lambda start: text[start : start + 60])
    edit = st.tuples(place, st.integers(0, 20), part)

    def apply(edits: list[tuple[int, int, str]]) -> bytes:
        now = text
        for start, length, new in edits:
            now = now[:start] + new + now[start + length :]
        return now.encode("utf-8", "surrogatepass")

    return st.lists(edit, min_size=1, max_size=5).map(apply)


@pytest.mark.parametrize("name", sorted(HARNESSES))
def test_reader_takes_anything(name: str) -> None:
    harness, seeds = HARNESSES[name]
    for seed in seeds:
        harness(seed.encode())

    @FRESH
    @given(st.one_of(*map(changed, seeds)) | st.binary(max_size=60))
    def feed(data: bytes) -> None:
        harness(data)

    feed()


@pytest.mark.parametrize("file", FOUND, ids=lambda file: file.name)
def test_input_that_once_failed(file: Path) -> None:
    HARNESSES[file.name.rpartition("-")[0]][0](file.read_bytes())


def _no_key(*_: object) -> None:
    raise KeyError


BROKEN: dict[str, tuple[str, Callable[..., object]]] = {
    "lines": ("pvefw_nft.config.grammar.read_rule", lambda *_: 1 // 0),
    "guest-file-nft": ("pvefw_nft.config.load.Configuration._guarded", lambda *_: 1 // 0),
    "saved-iptables": ("tests.property.harnesses.read_ruleset", _no_key),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_harness_reports_failures(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a harness that finds nothing says nothing."""
    monkeypatch.setattr(*BROKEN[name])
    harness, seeds = HARNESSES[name]
    with pytest.raises((ZeroDivisionError, KeyError, AssertionError, AttributeError)):
        harness(seeds[0].encode() + b"\n# changed\n")
