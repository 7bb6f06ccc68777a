"""Changes that wait for their confirmation, and their way back."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.errors import HostError
from pvefw_nft.host import lock
from pvefw_nft.host.clock import Clock
from pvefw_nft.host.control import Control
from pvefw_nft.host.records import record, state
from pvefw_nft.host.records.pending import is_held_back, pending
from pvefw_nft.host.watchdog import start_process
from tests.clocks import FastClock
from tests.waiting import wait_until

from .applied import everything, has_port, with_port
from .here import control, engine, firewall, unguarded, with_engine
from .network import ruleset, small_file_system
from .rulesets import nft

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .conftest import Namespace

pytest.importorskip("nftables")


@pytest.fixture
def small_disk(real: Namespace) -> Iterator[Path]:
    with small_file_system(state.state_directory()) as path:
        yield path


def test_confirmed_change_stays(real: Namespace) -> None:
    control.apply(with_port(80))
    _, change = control.apply(with_port(81), confirm_within=2)
    assert change is not None
    assert control.confirm()
    assert control.await_confirmation(change)
    assert Control(firewall, clock=FastClock()).guard(change.token, 2) is None
    assert has_port(81)
    assert not control.confirm()


def test_unconfirmed_change_goes_by_itself(real: Namespace) -> None:
    control.apply(with_port(80))
    _, change = control.apply(with_port(81), confirm_within=1)
    assert change is not None
    assert has_port(81)
    assert wait_until(lambda: pending() is None)
    assert not control.await_confirmation(change)
    assert has_port(80)
    assert not has_port(81)


def test_unconfirmed_first_start_leaves_no_rules(real: Namespace) -> None:
    before = everything()
    control.apply(with_port(80), confirm_within=1)
    assert wait_until(lambda: pending() is None)
    assert everything() == before
    assert not firewall.is_running()


def test_unconfirmed_switch_of_backends_goes_by_itself(real: Namespace) -> None:
    control.apply(with_port(80))
    control.apply(ruleset("nft", nft()), confirm_within=1)
    assert wait_until(lambda: pending() is None)
    assert has_port(80)
    assert not engine("nft").present()


def test_rollback_needs_no_room_on_the_disk(small_disk: Path) -> None:
    control.apply(with_port(80))
    control.apply(with_port(81), confirm_within=60)
    with contextlib.suppress(OSError):
        (small_disk / "filler").write_bytes(b"x" * 1_000_000)
    control.roll_back()
    assert has_port(80)


class _SeenClock(Clock):
    """The host's clock, which notes that it was slept by."""

    def __init__(self) -> None:
        self.slept = threading.Event()

    def sleep(self, seconds: float) -> None:
        self.slept.set()
        super().sleep(seconds)


def test_confirmation_is_seen_when_it_is_complete(real: Namespace) -> None:
    """Not between the two files that it removes."""
    _, change = control.apply(with_port(80), confirm_within=60)
    assert change is not None
    with ThreadPoolExecutor(1) as pool:
        with lock.hold():
            state.remove(record.pending_path())
            clock = _SeenClock()
            confirmed = pool.submit(Control(firewall, clock=clock).await_confirmation, change)
            assert clock.slept.wait(10)  # for the lock
            state.remove(record.held_path())
        assert confirmed.result(10)


def test_guard_waits_for_the_lock(real: Namespace) -> None:
    control.apply(with_port(80))
    _, change = control.apply(with_port(81), confirm_within=600)
    assert change is not None
    state.write(record.pending_path(), asdict(replace(change, deadline=0.0)))  # the time is over
    held = contextlib.ExitStack()
    held.enter_context(lock.hold())
    clock = FastClock()
    ends = clock.since_boot() + 1500  # longer than one wait for the lock

    def release() -> None:
        if clock.since_boot() > ends:
            held.close()

    clock.during = release
    Control(firewall, clock=clock).guard(change.token, 0)
    assert has_port(80)


def test_no_second_change_while_one_waits(real: Namespace) -> None:
    control.apply(with_port(80))
    control.apply(with_port(81), confirm_within=60)
    with pytest.raises(HostError, match="another change waits for its confirmation"):
        control.apply(with_port(82))
    control.roll_back()
    assert has_port(80)


def test_change_without_a_guard_does_not_happen(real: Namespace) -> None:
    control.apply(with_port(80))
    dying = Control(firewall, start_watchdog=lambda _token, _seconds: start_process(["/bin/false"]))
    with pytest.raises(HostError, match="no guard could be started, so nothing was changed"):
        dying.apply(with_port(81), confirm_within=60)
    assert has_port(80)
    assert pending() is None
    assert not is_held_back(with_port(81))


def late(clock: FastClock) -> Control:
    """Return a control when the time of a change is over, and the guard's grace as well."""
    clock.sleep(75)
    assert pending() is not None
    return Control(firewall, clock=clock)


def test_first_start_killed_before_its_guard_runs(real: Namespace) -> None:
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            # as SIGKILL: nothing is undone
            killed = Control(firewall, start_watchdog=lambda _token, _seconds: os._exit(9))
            killed.apply(with_port(80), confirm_within=60)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    later = late(FastClock())
    assert later.apply(with_port(80), only_if_running=True)[0].running is False
    assert later.apply(with_port(80))[0].changes
    assert pending() is None
    assert has_port(80)


def test_update_whose_guard_was_killed_is_undone_by_the_service(real: Namespace) -> None:
    control.apply(with_port(80))
    unguarded().apply(with_port(81), confirm_within=60)
    later = late(FastClock())
    assert has_port(81)
    with lock.hold():
        assert later.reconcile_from_service(with_port(81)) is None
        assert has_port(80)
        assert later.reconcile_from_service(with_port(82)) is not None
    assert has_port(82)


def test_change_that_fails_half_way_is_undone_at_once(real: Namespace) -> None:
    control.apply(with_port(80))

    def failing() -> None:
        raise HostError("the old rules do not go")

    with pytest.raises(HostError, match="do not go"):
        with_engine("iptables", remove=failing).apply(ruleset("nft", nft()), confirm_within=60)
    assert pending() is None
    assert has_port(80)
    assert not engine("nft").present()


def test_rollback_at_any_time(real: Namespace) -> None:
    with pytest.raises(HostError, match="no confirmed ruleset"):
        control.roll_back()
    control.apply(with_port(80))
    with lock.hold():
        firewall.reconcile(with_port(81))  # a ruleset without a confirmation
    control.roll_back()
    assert has_port(80)


def test_service_does_not_apply_a_rolled_back_ruleset(real: Namespace) -> None:
    control.apply(with_port(80))
    control.apply(with_port(81), confirm_within=60)
    with lock.hold():
        assert control.reconcile_from_service(with_port(81)) is None
    control.roll_back()
    with lock.hold():
        assert control.reconcile_from_service(with_port(81)) is None
        assert has_port(80)
        assert control.reconcile_from_service(with_port(82)) is not None  # the configuration changed again
    control.apply(with_port(81))  # a person asks for it
    with lock.hold():
        assert control.reconcile_from_service(with_port(81)) is not None


def test_unconfirmed_ruleset_does_not_come_back_with_a_reboot(real: Namespace) -> None:
    control.apply(with_port(80))
    control.apply(with_port(81), confirm_within=60)
    # a reboot: no rules, nothing under /run
    with lock.hold():
        firewall.remove_all()
        assert control.reconcile_from_service(with_port(81)) is None
    assert has_port(80)
