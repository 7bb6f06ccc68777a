"""Changes that wait for their confirmation, and their way back."""

from __future__ import annotations

import contextlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.errors import HostError, LockedError
from pvefw_nft.host import control, firewall, lock
from pvefw_nft.host.apply.engines import engine
from pvefw_nft.host.records import record, state

from .applied import Killed, everything, has_port, wait_until, with_port
from .network import ruleset, small_file_system
from .rulesets import nft

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pvefw_nft.host.records.record import Desired

    from .conftest import Namespace

pytest.importorskip("nftables")


@pytest.fixture
def small_disk(real: Namespace) -> Iterator[Path]:
    with small_file_system(state.state_directory()) as path:
        yield path


def test_confirmed_change_stays(real: Namespace, no_systemd: None) -> None:
    control.apply(with_port(80))
    _, pending = control.apply(with_port(81), confirm_within=2)
    assert pending is not None
    assert control.confirm()
    assert control.await_confirmation(pending)
    time.sleep(2.5)
    assert has_port(81)
    assert not control.confirm()


def test_unconfirmed_change_goes_by_itself(real: Namespace, no_systemd: None) -> None:
    control.apply(with_port(80))
    _, pending = control.apply(with_port(81), confirm_within=1)
    assert pending is not None
    assert has_port(81)
    assert wait_until(lambda: control.pending() is None)
    assert not control.await_confirmation(pending)
    assert has_port(80)
    assert not has_port(81)


def test_unconfirmed_first_start_leaves_no_rules(real: Namespace, no_systemd: None) -> None:
    before = everything()
    control.apply(with_port(80), confirm_within=1)
    assert wait_until(lambda: control.pending() is None)
    assert everything() == before
    assert not firewall.is_running()


def test_unconfirmed_switch_of_backends_goes_by_itself(real: Namespace, no_systemd: None) -> None:
    control.apply(with_port(80))
    control.apply(ruleset("nft", nft()), confirm_within=1)
    assert wait_until(lambda: control.pending() is None)
    assert has_port(80)
    assert not engine("nft").present()


def test_rollback_needs_no_room_on_the_disk(small_disk: Path, no_systemd: None) -> None:
    control.apply(with_port(80))
    control.apply(with_port(81), confirm_within=60)
    with contextlib.suppress(OSError):
        (small_disk / "filler").write_bytes(b"x" * 1_000_000)
    control.roll_back()
    assert has_port(80)


def test_confirmation_is_seen_when_it_is_complete(real: Namespace, no_systemd: None) -> None:
    """Not between the two files that it removes."""
    _, pending = control.apply(with_port(80), confirm_within=60)
    assert pending is not None
    with ThreadPoolExecutor(1) as pool:
        with lock.hold():
            state.remove(record.pending_path())
            confirmed = pool.submit(control.await_confirmation, pending)
            time.sleep(0.5)
            state.remove(record.held_path())
        assert confirmed.result(10)


def test_guard_waits_for_the_lock(real: Namespace, no_systemd: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_GUARD_LOCK_WAIT", 0.1)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    control.apply(with_port(80))
    _, pending = control.apply(with_port(81), confirm_within=600)
    assert pending is not None
    state.write(record.pending_path(), asdict(replace(pending, deadline=0.0)))  # the time is over
    attempts = iter(range(3))
    hold = lock.hold

    def held_at_first(path: Path | None = None, wait: float = 0) -> Any:  # noqa: ANN401
        if next(attempts, None) is not None:
            raise LockedError("held")
        return hold(path, wait)

    monkeypatch.setattr(lock, "hold", held_at_first)
    control.guard(pending.token, 0)
    assert has_port(80)


def test_no_second_change_while_one_waits(real: Namespace, no_systemd: None) -> None:
    control.apply(with_port(80))
    control.apply(with_port(81), confirm_within=60)
    with pytest.raises(HostError, match="another change waits for its confirmation"):
        control.apply(with_port(82))
    control.roll_back()
    assert has_port(80)


def test_change_without_a_guard_does_not_happen(
    real: Namespace, no_systemd: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.apply(with_port(80))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(HostError, match="no guard could be started, so nothing was changed"):
        control.apply(with_port(81), confirm_within=60)
    assert has_port(80)
    assert control.pending() is None
    assert not control.is_held_back(with_port(81))


def apply_and_lose_the_guard(desired: Desired, monkeypatch: pytest.MonkeyPatch, *, killed: bool) -> None:
    """Apply with a guard that dies at once; ``killed``: with the command itself, before anything else."""

    def lost(token: str, seconds: float) -> None:
        if killed:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(control, "_start_guard", lost)
        patched.setattr(control, "_GRACE", 0)
        if killed:
            # SIGKILL undoes nothing
            patched.setattr(state, "remove", lambda _: None)
            patched.setattr(control, "_hold_as_before", lambda _: None)
        with contextlib.suppress(Killed):
            control.apply(desired, confirm_within=0.3)
    time.sleep(0.4)
    assert control.pending() is not None
    monkeypatch.setattr(control, "_GRACE", 0)


def test_first_start_killed_before_its_guard_runs(real: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    apply_and_lose_the_guard(with_port(80), monkeypatch, killed=True)
    assert control.apply(with_port(80), only_if_running=True)[0].running is False
    assert control.apply(with_port(80))[0].changes
    assert control.pending() is None
    assert has_port(80)


def test_update_whose_guard_was_killed_is_undone_by_the_service(
    real: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.apply(with_port(80))
    apply_and_lose_the_guard(with_port(81), monkeypatch, killed=False)
    assert has_port(81)
    with lock.hold():
        assert control.reconcile_from_service(with_port(81)) is None
        assert has_port(80)
        assert control.reconcile_from_service(with_port(82)) is not None
    assert has_port(82)


def test_change_that_fails_half_way_is_undone_at_once(
    real: Namespace, no_systemd: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.apply(with_port(80))

    def failing(_: object) -> None:
        raise HostError("the old rules do not go")

    with monkeypatch.context() as patched:
        patched.setattr(type(engine("iptables")), "remove", failing)
        with pytest.raises(HostError, match="do not go"):
            control.apply(ruleset("nft", nft()), confirm_within=60)
    assert control.pending() is None
    assert has_port(80)
    assert not engine("nft").present()


def test_rollback_at_any_time(real: Namespace, no_systemd: None) -> None:
    with pytest.raises(HostError, match="no confirmed ruleset"):
        control.roll_back()
    control.apply(with_port(80))
    with lock.hold():
        firewall.reconcile(with_port(81))  # a ruleset without a confirmation
    control.roll_back()
    assert has_port(80)


def test_service_does_not_apply_a_rolled_back_ruleset(real: Namespace, no_systemd: None) -> None:
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


def test_unconfirmed_ruleset_does_not_come_back_with_a_reboot(real: Namespace, no_systemd: None) -> None:
    control.apply(with_port(80))
    control.apply(with_port(81), confirm_within=60)
    # a reboot: no rules, nothing under /run
    with lock.hold():
        firewall.remove_all()
        assert control.reconcile_from_service(with_port(81)) is None
    assert has_port(80)
