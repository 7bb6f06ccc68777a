"""A first load that fails falls back to the ruleset confirmed last, under the lock of the load."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pvefw_nft.errors import HostError, LockedError
from pvefw_nft.host import control, firewall, lock
from pvefw_nft.host.records.record import desired as desired_ruleset
from pvefw_nft.host.settings import Conntrack

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pvefw_nft.host.records.record import Desired


@pytest.fixture
def fell_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened, on a host on which nothing runs and no ruleset can be loaded."""
    monkeypatch.setenv("PVEFW_RUN_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setenv("PVEFW_STATE_DIRECTORY", str(tmp_path / "state"))
    (tmp_path / "run").mkdir()
    happened: list[str] = []

    def fall_back() -> bool:
        with pytest.raises(LockedError), lock.hold(wait=0):  # the lock of the load is still held
            pass
        happened.append("confirmed ruleset")
        return True

    def reconcile(*_arguments: object, **_options: object) -> None:
        raise HostError("no space left on device")

    monkeypatch.setattr(firewall, "is_running", lambda: False)
    monkeypatch.setattr(firewall, "reconcile", reconcile)
    monkeypatch.setattr(control, "fall_back", fall_back)
    return happened


def ruleset(*, enabled: bool = True) -> Desired:
    return desired_ruleset("iptables", (), enabled=enabled, conntrack=Conntrack(262_144, 432_000, 60), hardening="")


def apply(desired: Desired, happened: list[str], prepare: Callable[[], None] = lambda: None) -> None:
    with pytest.raises(HostError, match="no space"):
        control.apply(desired, prepare=prepare, fell_back=lambda: happened.append("message"), wait=0)


def test_a_failed_load_falls_back_under_the_same_lock(fell_back: list[str]) -> None:
    apply(ruleset(), fell_back)
    assert fell_back == ["confirmed ruleset", "message"]


def test_a_failed_preparation_falls_back(fell_back: list[str]) -> None:
    def prepare() -> None:
        raise HostError("no space left on device")

    apply(ruleset(), fell_back, prepare)
    assert fell_back == ["confirmed ruleset", "message"]


def test_a_ruleset_that_is_off_does_not_fall_back(fell_back: list[str]) -> None:
    apply(ruleset(enabled=False), fell_back)
    assert fell_back == []


def test_a_running_ruleset_stays(fell_back: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firewall, "is_running", lambda: True)
    apply(ruleset(), fell_back)
    assert fell_back == []
