"""Commands that take long show on a terminal how far they are, and nothing in a pipe."""

from __future__ import annotations

import io
from contextlib import redirect_stderr

import pytest

from pvefw_nft.cli import progress
from tests.clocks import FastClock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_work_of_more_than_half_a_second_is_shown_and_removed() -> None:
    clock = FastClock()
    with redirect_stderr(terminal := Terminal()), progress.progress("analysing", clock) as show:
        assert show is not None
        show(1, 4)
        clock.sleep(0.6)
        for done in (2, 3, 4):
            show(done, 4)
    assert terminal.getvalue() == (
        "\ranalysing: 2 of 4 (50 %)\ranalysing: 3 of 4 (75 %)\ranalysing: 4 of 4 (100 %)\r\x1b[K"
    )


def test_short_work_shows_nothing() -> None:
    with redirect_stderr(terminal := Terminal()), progress.progress("analysing") as show:
        assert show is not None
        show(1, 1)
    assert terminal.getvalue() == ""


def test_the_progress_line_is_removed_if_the_work_is_interrupted() -> None:
    terminal, clock = Terminal(), FastClock()

    def interrupted() -> None:
        with redirect_stderr(terminal), progress.progress("proving", clock) as show:
            assert show is not None
            clock.sleep(1)
            show(1, 10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_a_pipe_gets_nothing() -> None:
    with redirect_stderr(io.StringIO()), progress.progress("analysing") as show:
        assert show is None
