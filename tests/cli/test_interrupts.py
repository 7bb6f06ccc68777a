"""Interrupts where nobody can catch KeyboardInterrupt: Python goes on, and pvefw ends all the same."""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
import time
import weakref
from functools import partial
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.cli.interrupts import come_again

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Have SIGINT raise KeyboardInterrupt: a shell has commands in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Thing:
    """Something that can be referred to weakly."""


def in_a_dropped_generator() -> None:
    def generator() -> Iterator[None]:
        try:
            yield
        finally:
            signal.raise_signal(signal.SIGINT)

    started = generator()
    next(started)
    del started


def in_a_callback_of_a_weak_reference() -> None:
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
    del thing
    assert reference() is None


def in_a_callback_of_garbage_collection() -> None:
    def interrupt(phase: str, _: object) -> None:
        if phase == "stop":
            signal.raise_signal(signal.SIGINT)

    gc.callbacks.append(interrupt)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(interrupt)


def in_a_dropped_generator_that_raises() -> None:
    def generator() -> Iterator[None]:
        try:
            yield
        finally:
            raise KeyboardInterrupt

    started = generator()
    next(started)
    del started


LOSE = [in_a_dropped_generator, in_a_callback_of_a_weak_reference, in_a_callback_of_garbage_collection]


def lose_and_wait(lose: Callable[[], None]) -> None:
    with come_again():
        lose()
        time.sleep(10)


@pytest.mark.parametrize("lose", LOSE)
def test_lost_interrupt_comes_again(lose: Callable[[], None], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        lose_and_wait(lose)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("lose", LOSE)
def test_lost_interrupt_reaches_a_handler_that_was_set_meanwhile(lose: Callable[[], None]) -> None:
    seen: list[int] = []
    with come_again():
        lose()
        signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
        end = time.monotonic() + 10
        while not seen and time.monotonic() < end:
            time.sleep(0.01)
    assert seen == [signal.SIGINT]


def test_interrupt_that_is_lost_again_comes_again() -> None:
    lost = 0

    def lose(*_: object) -> None:
        """Be called at SIGINT, and lose it twice."""
        nonlocal lost
        lost += 1
        if lost == 3:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        in_a_dropped_generator_that_raises()

    signal.signal(signal.SIGINT, lose)
    with pytest.raises(KeyboardInterrupt):
        lose_and_wait(partial(signal.raise_signal, signal.SIGINT))
    assert lost == 3


def test_other_errors_that_nobody_can_catch_are_told() -> None:
    told: list[object] = []
    before, sys.unraisablehook = sys.unraisablehook, lambda unraisable: told.append(unraisable.exc_type)

    def generator() -> Iterator[None]:
        with contextlib.suppress(GeneratorExit):
            yield
        raise ValueError

    try:
        with come_again():
            started = generator()
            next(started)
            del started
    finally:
        sys.unraisablehook = before
    assert told == [ValueError]


def test_all_is_as_before_after_the_block() -> None:
    before = (sys.unraisablehook, signal.getsignal(signal.SIGALRM))
    with come_again():
        assert signal.getsignal(signal.SIGALRM) is not before[1]
    assert (sys.unraisablehook, signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_alarm_of_another_program_stays_its_own() -> None:
    def alarm(*_: object) -> None: ...

    before = signal.signal(signal.SIGALRM, alarm)
    try:
        with come_again():
            assert signal.getsignal(signal.SIGALRM) is alarm
    finally:
        signal.signal(signal.SIGALRM, before)
