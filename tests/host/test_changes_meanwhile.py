"""Other programs change rules during a load: it is repeated at once, and no ruleset with gaps comes back."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("pyroute2")
pytest.importorskip("nftables")

from pvefw_nft.errors import HostError
from pvefw_nft.host.apply import apply_iptables
from pvefw_nft.host.apply.nftables_state import DIGESTS, Nftables
from pvefw_nft.host.records import record

from .here import control, engine
from .listing import everything
from .network import start
from .test_other_hands import desired_of, kind, shell

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pvefw_nft.host.apply.iptables_plan import Plan

__all__ = ["kind"]  # a fixture

AFTER = {
    "iptables": [
        ("iptables -F; ip6tables -F; ebtables -F", "ebtables -D FORWARD -j PVEFW-FORWARD"),
        ("ebtables -F", "iptables -F; iptables -X; ip6tables -F tap100i0-IN"),
        ("iptables -F PVEFW-FORWARD", "ipset flush"),
    ],
    "legacy": [("iptables -F", "iptables -F; iptables -X")],
    "nft": [
        ("nft flush ruleset", "nft flush ruleset"),
        ("nft delete table inet pvefw", "nft flush chain bridge pvefw digests"),
    ],
}
"""By kind of tools: the foreign changes before an apply, and those between its load and its reading back."""


def _notes_objects(command: dict[str, Any]) -> bool:
    """Tell whether a command writes the notes of our tables, as each transaction does that switches their rules."""
    return bool(command.get("add", {}).get("rule", {}).get("chain") == DIGESTS)


def disturb(monkeypatch: pytest.MonkeyPatch, script: str, times: int, *, before: bool = False) -> None:
    """Have the script run so many times after rules were loaded, or before: once the plan is made."""
    left = iter(range(times))

    def disturbed(load: Callable[[], Any]) -> Any:  # noqa: ANN401
        now = next(left, None) is not None
        if now and before:
            shell(script)
        done = load()
        if now and not before:
            shell(script)
        return done

    execute, run = apply_iptables.execute, Nftables.run

    def executed(planned: Plan) -> list[str]:
        left_over: list[str] = disturbed(lambda: execute(planned))
        return left_over

    def library(self: Nftables, commands: Any) -> Any:  # noqa: ANN401
        if not any(_notes_objects(command) for command in commands):  # a listing, or a twin
            return run(self, commands)
        return disturbed(lambda: run(self, commands))

    monkeypatch.setattr(apply_iptables, "execute", executed)
    monkeypatch.setattr(Nftables, "run", library)


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [(tools, *scripts) for tools, some in AFTER.items() for scripts in some],
    indirect=["kind"],
)
def test_rules_changed_before_they_are_read_back_are_loaded_again(
    kind: str, first: str, second: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desired = desired_of(kind, tmp_path / "c")
    start(desired)
    wanted = everything()
    for times in (1, 2):
        shell(first)
        with monkeypatch.context() as patched:
            disturb(patched, second, times)
            control.apply(desired)
        assert everything() == wanted


@pytest.mark.parametrize("kind", ["iptables", "legacy"], indirect=True)
def test_chains_deleted_between_plan_and_load_are_made_again(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desired = desired_of(kind, tmp_path / "c")
    start(desired)
    wanted = everything()
    shell("iptables -F; ip6tables -F")
    disturb(monkeypatch, "iptables -X; ip6tables -X", 1, before=True)
    control.apply(desired)
    assert everything() == wanted


GAPS = {
    "iptables": ("iptables -F; ip6tables -F; ebtables -F", "ebtables -D FORWARD -j PVEFW-FORWARD"),
    "nft": ("nft flush ruleset", "nft flush chain bridge pvefw digests"),
}


@pytest.mark.parametrize("kind", GAPS, indirect=True)
def test_flushed_ruleset_is_not_put_back(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desired = desired_of(kind, tmp_path / "c")
    start(desired)
    first, second = GAPS[kind]
    shell(second)
    loaded = everything()
    shell(first)
    with monkeypatch.context() as patched:
        disturb(patched, second, 100)
        with pytest.raises(HostError, match="the rules that were loaded by then are in place") as caught:
            control.apply(desired)
    assert "ran before is in place" not in caught.value.message
    assert everything() == loaded
    control.apply(desired)
    assert everything() != loaded


@pytest.mark.parametrize("kind", ["nft"], indirect=True)
def test_damaged_record_has_the_loaded_rules_stay(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing tells whether the tables that were there before, or none, were the complete ruleset."""
    desired, other = desired_of(kind, tmp_path / "c"), desired_of(kind, tmp_path / "d", 1)
    start(desired)
    for flush in ("true", "nft flush ruleset"):
        shell(flush)
        record.running_path().write_text("damaged")
        with monkeypatch.context() as patched:
            disturb(patched, "nft flush chain bridge pvefw digests", 100)
            with pytest.raises(HostError, match="the rules that were loaded by then are in place"):
                control.apply(other)
        listed = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
        assert "table bridge pvefw" in listed


@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize("kind", GAPS, indirect=True)
def test_complete_ruleset_is_put_back(
    kind: str, started: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that nothing tells of, as of Proxmox VE's own firewall before a take-over."""
    desired, other = desired_of(kind, tmp_path / "c"), desired_of(kind, tmp_path / "d", 1)
    start(desired)
    wanted = everything()
    if not started and kind == "iptables":
        record.marker_path().unlink()
    disturb(monkeypatch, GAPS[kind][1], apply_iptables.TRIES)
    with pytest.raises(HostError, match="the ruleset that ran before is in place"):
        control.apply(other)
    assert everything() == wanted


@pytest.mark.parametrize("kind", GAPS, indirect=True)
def test_failed_first_start_leaves_no_rules(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disturb(monkeypatch, GAPS[kind][1], apply_iptables.TRIES)
    with pytest.raises(HostError, match="the ruleset that ran before is in place"):
        control.apply(desired_of(kind, tmp_path / "c"))
    assert not engine(kind).present()
