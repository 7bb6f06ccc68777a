"""Commands that take long show on a terminal how far they are, and nothing in a pipe."""

from __future__ import annotations

import io
import sys
import time

import pytest

from pvefw_nft.cli import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_work_of_more_than_half_a_second_is_shown_and_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((0.0, 0.1, 0.6, 0.7, 0.8))
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    with progress.progress("analysing") as show:
        assert show is not None
        for done in (1, 2, 3, 4):
            show(done, 4)
    assert terminal.getvalue() == (
        "\ranalysing: 2 of 4 (50 %)\ranalysing: 3 of 4 (75 %)\ranalysing: 4 of 4 (100 %)\r\x1b[K"
    )


def test_short_work_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with progress.progress("analysing") as show:
        assert show is not None
        show(1, 1)
    assert terminal.getvalue() == ""


def test_the_progress_line_is_removed_if_the_work_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((0.0, 1.0))
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(time, "monotonic", lambda: next(times))

    def interrupted() -> None:
        with progress.progress("proving") as show:
            assert show is not None
            show(1, 10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_a_pipe_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress.progress("analysing") as show:
        assert show is None
