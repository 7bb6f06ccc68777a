"""Start, update, stop and switching, with the real tools in a namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft import pipeline
from pvefw_nft.errors import HostError
from pvefw_nft.host import backend_info
from pvefw_nft.host.records import record

from .applied import Killed, die, everything, has_port, ours, shell, with_port
from .here import control, engine, firewall, with_engine
from .network import ruleset
from .rulesets import iptables, nft, pieces

if TYPE_CHECKING:
    from .conftest import Namespace

pytest.importorskip("nftables")


@pytest.mark.parametrize(("backend", "artefact"), [("iptables", iptables()), ("nft", nft())])
def test_start_update_stop(real: Namespace, backend: str, artefact: dict[str, Any]) -> None:
    before = everything()
    desired = ruleset(backend, artefact)
    assert not firewall.is_running()
    assert control.apply(desired, only_if_running=True)[0].running is False
    assert not firewall.is_running()

    first, _ = control.apply(desired)
    assert first.changes
    assert firewall.is_running()
    assert engine(backend).present()
    again, _ = control.apply(desired, only_if_running=True)
    assert again.running
    assert again.changes == ()
    assert firewall.status(desired).changes == ()

    assert control.stop().running
    assert not firewall.is_running()
    assert everything() == before
    assert not engine("nft").present()
    assert control.stop().running is False


def test_restart_loads_everything_again(real: Namespace) -> None:
    for desired in (with_port(80), ruleset("nft", nft())):
        control.apply(desired)
        state_before = firewall.status(desired)
        outcome, _ = control.apply(desired, reload_all=True)
        assert outcome.running
        assert firewall.status(desired) == state_before


def test_dry_run_changes_nothing(real: Namespace) -> None:
    before = everything()
    outcome = firewall.preview(with_port(80))
    assert "-A tap100i0-IN -p tcp --dport 80 -j ACCEPT" in outcome.text
    assert everything() == before
    assert not firewall.is_running()


def test_disabled_firewall_runs_without_rules(real: Namespace) -> None:
    before = everything()
    empty: dict[str, Any] = {
        "iptables": {"filter": {}, "raw": {}},
        "ip6tables": {"filter": {}, "raw": {}},
        "ipset": {},
        "ebtables": {},
    }
    disabled = record.desired("iptables", pieces({"enabled": False, **empty}), enabled=False)
    control.apply(disabled)
    assert firewall.is_running()
    assert firewall.status(disabled).enabled is False
    assert everything() == before
    assert control.apply(with_port(80), only_if_running=True)[0].changes
    control.apply(disabled, only_if_running=True)
    left = [line for line in ours() if not line.startswith(":")]
    # the chains that the kernel's chains jump to stay, empty
    assert {line.split(" -j ")[0] for line in left} == {f"-A {c}" for c in ("INPUT", "OUTPUT", "FORWARD", "PREROUTING")}
    control.stop()
    assert everything() == before


def test_status_tells_pending_changes_and_changes_by_hand(real: Namespace) -> None:
    control.apply(with_port(80))
    found = firewall.status(with_port(81))
    assert [str(change) for change in found.changes or ()] == ["change iptables filter tap100i0-IN"]
    assert found.drifted == ()
    shell("iptables -A PVEFW-HOST-IN -j ACCEPT")
    assert firewall.status(with_port(80)).drifted == ("iptables filter PVEFW-HOST-IN",)
    control.apply(with_port(80))
    assert firewall.status(with_port(80)).drifted == ()


# --- switching backends -------------------------------------------------------------------------------------


def test_switching_backends_and_back(real: Namespace) -> None:
    before = everything()
    control.apply(with_port(80))
    outcome, _ = control.apply(ruleset("nft", nft()))
    assert outcome.switched_from == "iptables"
    assert ours() == []
    assert engine("nft").present()
    outcome, _ = control.apply(with_port(80))
    assert outcome.switched_from == "nft"
    assert not engine("nft").present()
    assert has_port(80)
    control.stop()
    assert everything() == before


@pytest.mark.parametrize("new", ["nft", "iptables"])
def test_killed_between_loading_the_new_and_removing_the_old(real: Namespace, new: str) -> None:
    rulesets = {"iptables": with_port(80), "nft": ruleset("nft", nft())}
    old = "iptables" if new == "nft" else "nft"
    control.apply(rulesets[old])

    with pytest.raises(Killed):
        with_engine(old, remove=die).apply(rulesets[new])
    assert engine("nft").present()
    assert engine("iptables").present()  # both: nothing is open
    control.apply(rulesets[new])
    assert engine(new).present()
    assert not engine(old).present()


# --- failures -----------------------------------------------------------------------------------------------


def test_damaged_records_do_not_keep_it_from_starting(real: Namespace) -> None:
    control.apply(with_port(80))
    record.running_path().unlink()
    record.running_path().write_text("{")
    record.memory_path().write_text("[]")
    assert control.apply(with_port(81))[0].running
    assert has_port(81)


def test_nothing_else_is_removed_when_the_new_ruleset_fails(real: Namespace) -> None:
    control.apply(with_port(80))

    def failing(*_: object) -> None:
        raise HostError("no")

    with pytest.raises(HostError, match="no"):
        with_engine("nft", apply=failing).apply(ruleset("nft", nft()))
    assert has_port(80)


def test_every_loadable_backend_is_known_to_the_host() -> None:
    assert backend_info.BACKENDS == pipeline.BACKENDS
