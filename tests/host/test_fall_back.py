"""A first load that fails falls back to the ruleset confirmed last, under the lock of the load."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pvefw_nft.errors import HostError, LockedError
from pvefw_nft.host import lock
from pvefw_nft.host.control import Control
from pvefw_nft.host.firewall import Firewall, Outcome
from pvefw_nft.host.records import record
from pvefw_nft.host.settings import Conntrack

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pvefw_nft.host.records.record import Desired


class _Full(Firewall):
    """A firewall that can load the ruleset confirmed last and no other one, since its disk is full."""

    def __init__(self, *, runs: bool = False) -> None:
        super().__init__(())
        self.runs = runs
        self.happened: list[str] = []

    def is_running(self) -> bool:
        return self.runs

    def reconcile(self, *_: object, record_of: Path | None = None, **__: object) -> Outcome:
        if record_of != record.confirmed_path():
            raise HostError("no space left on device")
        with pytest.raises(LockedError), lock.hold(wait=0):  # the lock of the load is still held
            pass
        self.happened.append("confirmed ruleset")
        return Outcome(running=True)


@pytest.fixture(autouse=True)
def confirmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a ruleset that was confirmed last."""
    monkeypatch.setenv("PVEFW_RUN_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setenv("PVEFW_STATE_DIRECTORY", str(tmp_path / "state"))
    (tmp_path / "run").mkdir()
    record.prepare(record.confirmed_path(), ruleset()).commit()


def ruleset(*, enabled: bool = True) -> Desired:
    return record.desired("iptables", (), enabled=enabled, conntrack=Conntrack(262_144, 432_000, 60), hardening="")


def apply(firewall: _Full, desired: Desired, prepare: Callable[[], None] = lambda: None) -> list[str]:
    """Fail to apply a ruleset; return what happened."""
    with pytest.raises(HostError, match="no space"):
        Control(firewall).apply(desired, prepare=prepare, fell_back=lambda: firewall.happened.append("message"), wait=0)
    return firewall.happened


def test_a_failed_load_falls_back_under_the_same_lock() -> None:
    assert apply(_Full(), ruleset()) == ["confirmed ruleset", "message"]


def test_a_failed_preparation_falls_back() -> None:
    def prepare() -> None:
        raise HostError("no space left on device")

    assert apply(_Full(), ruleset(), prepare) == ["confirmed ruleset", "message"]


def test_a_ruleset_that_is_off_does_not_fall_back() -> None:
    assert apply(_Full(), ruleset(enabled=False)) == []


def test_a_running_ruleset_stays() -> None:
    assert apply(_Full(runs=True), ruleset()) == []
