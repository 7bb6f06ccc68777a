"""Start, update, stop, switching, confirming and rolling back, with the real tools in a namespace."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.errors import HostError, LockedError
from pvefw_nft.host import control, firewall, lock, record, settings, state, sysctl, tools
from pvefw_nft.host.engines import engine
from pvefw_nft.host.settings import Conntrack

from .conftest import need
from .network import ruleset, small_file_system
from .rulesets import iptables, nft, pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pvefw_nft.host.record import Desired

    from .conftest import Namespace

pytest.importorskip("nftables")

REPOSITORY = Path(__file__).resolve().parents[2]


def with_port(port: int) -> Desired:
    """Return an iptables ruleset that is told by this port."""
    artefact = iptables()
    artefact["iptables"]["filter"]["tap100i0-IN"] = [f"-A tap100i0-IN -p tcp --dport {port} -j ACCEPT"]
    return ruleset("iptables", artefact)


def shell(script: str) -> str:
    return subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=True).stdout


class _Killed(BaseException):
    """Stands for SIGKILL."""


def die(*_: object, **__: object) -> None:
    raise _Killed


def everything() -> list[str]:
    text = shell("iptables-save; ip6tables-save; ipset save; ebtables-save; nft list table inet mine")
    lines = (re.sub(r" initval \S+| \[\d+:\d+\]", "", line) for line in text.splitlines() if not line.startswith("#"))
    return sorted(line for line in lines if line not in ("*filter", "*raw"))


def ours() -> list[str]:
    return [line for line in everything() if "PVEFW" in line or "tap100i0" in line]


def has_port(port: int) -> bool:
    return f"--dport {port} -j ACCEPT" in shell("iptables-save")


@pytest.fixture
def real(host: Namespace) -> Namespace:
    """A host with rules of its own, on which both backends' tools work."""
    need(
        "iptables -A INPUT -s 192.0.2.1 -j DROP; ip6tables -A INPUT -s 2001:db8::1 -j DROP;"
        "iptables -t raw -A PREROUTING -s 192.0.2.1 -j DROP; ip6tables -t raw -A PREROUTING -s 2001:db8::1 -j DROP;"
        "ipset create mine hash:ip; ebtables -N mine; ebtables -A FORWARD -p ARP -j mine;"
        "nft add table inet mine; nft add table bridge probe; nft delete table bridge probe"
    )
    return host


# --- start, update, stop ------------------------------------------------------------------------------------


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
        outcome, _ = control.apply(desired, anew=True)
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


def test_kernel_settings_are_put_back_on_stop(real: Namespace) -> None:
    key = "net/ipv4/tcp_syncookies"
    sysctl.write(key, "0")
    control.apply(with_port(80))
    control.apply(with_port(81))
    assert sysctl.read(key) == "1"
    assert sysctl.read("net/bridge/bridge-nf-call-iptables") == "1"
    control.stop()
    assert sysctl.read(key) == "0"


def test_setting_changed_meanwhile_is_left_alone(real: Namespace) -> None:
    key = "net/ipv4/tcp_syncookies"
    sysctl.write(key, "0")
    control.apply(with_port(80))
    sysctl.write(key, "2")
    control.stop()
    assert sysctl.read(key) == "2"


def test_only_missing_modules_are_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "nft_meta_bridge").mkdir()
    loaded: list[str] = []
    monkeypatch.setattr(settings, "_MODULES", tmp_path)
    monkeypatch.setattr(tools, "run", lambda command: loaded.append(command[-1]))
    settings.load_modules("nft")
    assert loaded == ["nf_conntrack_bridge", "nft_reject_bridge"]


# --- br_netfilter -------------------------------------------------------------------------------------------

BRIDGED = [f"net/bridge/bridge-nf-call-{tool}" for tool in ("iptables", "ip6tables", "arptables")]
PASSED_BY = (
    "as before pvefw was started, bridged packets pass no chains of iptables, ip6tables, arptables (net.bridge."
    "bridge-nf-call-iptables=0, net.bridge.bridge-nf-call-ip6tables=0, net.bridge.bridge-nf-call-arptables=0)"
)


class Module:
    """br_netfilter as far as its settings go: missing until it is loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loaded = self.dies = False
        self._read, self._run = sysctl.read, tools.run
        monkeypatch.setattr(sysctl, "read", self.read)
        monkeypatch.setattr(tools, "run", self.run)

    def read(self, key: str) -> str | None:
        return self._read(key) if self.loaded or key not in BRIDGED else None

    def run(self, command: list[str], text: str | None = None) -> str:
        if command[-1] != "br_netfilter":
            return self._run(command, text)
        if self.dies:
            raise _Killed
        if not self.loaded:
            self.load()
        return ""

    def load(self) -> None:
        for key in BRIDGED:
            sysctl.write(key, "1")
        self.loaded = True

    def settings(self) -> list[str | None]:
        return [self.read(key) for key in BRIDGED]


@pytest.fixture
def module(real: Namespace, monkeypatch: pytest.MonkeyPatch) -> Module:
    return Module(monkeypatch)


def test_bridged_packets_pass_iptables_by_again_after_stop(module: Module) -> None:
    control.apply(with_port(80))
    assert module.settings() == ["1", "1", "1"]
    control.apply(with_port(81))
    control.apply(with_port(81), anew=True)
    assert control.stop().notes == (PASSED_BY,)
    assert module.settings() == ["0", "0", "0"]
    control.apply(with_port(80))  # now it is loaded, and its settings are 0
    assert module.settings() == ["1", "1", "0"]
    control.stop()
    assert module.settings() == ["0", "0", "0"]


def test_bridged_packets_pass_iptables_by_again_after_a_kill(module: Module) -> None:
    module.dies = True
    with contextlib.suppress(_Killed):
        control.apply(with_port(80))
    assert control.stop().notes == ()
    with contextlib.suppress(_Killed):
        control.apply(with_port(80))
    module.dies = False
    control.apply(with_port(80))
    control.stop()
    assert module.settings() == ["0", "0", "0"]


def test_bridged_packets_pass_iptables_by_again_after_a_switch(module: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    control.apply(with_port(80))
    with monkeypatch.context() as patched:
        patched.setattr(settings, "put_back", die)
        with contextlib.suppress(_Killed):
            control.apply(ruleset("nft", nft()))
    assert module.settings() == ["1", "1", "1"]
    assert control.apply(ruleset("nft", nft()))[0].notes == (PASSED_BY,)
    assert module.settings() == ["0", "0", "0"]
    assert control.apply(ruleset("nft", nft()))[0].notes == ()
    control.apply(with_port(80))
    assert module.settings() == ["1", "1", "0"]
    control.apply(ruleset("nft", nft()))
    control.stop()
    assert module.settings() == ["0", "0", "0"]


def test_setting_of_br_netfilter_changed_meanwhile_is_left_alone(module: Module) -> None:
    control.apply(with_port(80))
    sysctl.write(BRIDGED[2], "0")
    note = control.stop().notes[0]
    assert "chains of iptables, ip6tables (" in note
    assert module.settings() == ["0", "0", "0"]


@pytest.mark.parametrize("before", ["0", "1"])
def test_br_netfilter_that_was_loaded_stays_as_it_was(module: Module, before: str) -> None:
    module.load()
    for key in BRIDGED:
        sysctl.write(key, before)
    control.apply(with_port(80))
    control.apply(ruleset("nft", nft()))
    assert module.settings() == [before] * 3
    control.apply(with_port(80))
    control.stop()
    assert module.settings() == [before] * 3


def test_nft_does_not_load_br_netfilter(module: Module) -> None:
    control.apply(ruleset("nft", nft()))
    assert control.stop().notes == ()
    assert not module.loaded


def test_conntrack_options() -> None:
    assert Conntrack(262145, 7875, 60).settings() == {
        "net/netfilter/nf_conntrack_buckets": "67584",
        "net/netfilter/nf_conntrack_max": "270336",
        "net/netfilter/nf_conntrack_tcp_timeout_established": "7875",
        "net/netfilter/nf_conntrack_tcp_timeout_syn_recv": "60",
    }


def test_missing_bridge_setting_is_an_error_before_anything_changes(
    real: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything()
    monkeypatch.setattr(settings, "needed_first", lambda _: {"net/bridge/no-such-setting": "1"})
    with pytest.raises(HostError, match="the kernel has no setting net/bridge/no-such-setting"):
        control.apply(with_port(80))
    assert everything() == before


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
def test_killed_between_loading_the_new_and_removing_the_old(
    real: Namespace, monkeypatch: pytest.MonkeyPatch, new: str
) -> None:
    rulesets = {"iptables": with_port(80), "nft": ruleset("nft", nft())}
    old = "iptables" if new == "nft" else "nft"
    control.apply(rulesets[old])

    with monkeypatch.context() as patched:
        patched.setattr(type(engine(old)), "remove", die)
        with pytest.raises(_Killed):
            control.apply(rulesets[new])
    assert engine("nft").present()
    assert engine("iptables").present()  # both: nothing is open
    control.apply(rulesets[new])
    assert engine(new).present()
    assert not engine(old).present()


# --- failures -----------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(real: Namespace) -> Iterator[Path]:
    with small_file_system(state.state_directory()) as path:
        yield path


def test_damaged_records_do_not_keep_it_from_starting(real: Namespace) -> None:
    control.apply(with_port(80))
    record.running_path().unlink()
    record.running_path().write_text("{")
    record.memory_path().write_text("[]")
    assert control.apply(with_port(81))[0].running
    assert has_port(81)


def test_nothing_else_is_removed_when_the_new_ruleset_fails(real: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    control.apply(with_port(80))

    def failing(*_: object, **__: object) -> None:
        raise HostError("no")

    monkeypatch.setattr(type(engine("nft")), "apply", failing)
    with pytest.raises(HostError, match="no"):
        control.apply(ruleset("nft", nft()))
    assert has_port(80)


# --- confirming and rolling back ----------------------------------------------------------------------------


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return condition()


@pytest.fixture
def no_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the guard be a process, also where the tests run under systemd."""
    is_dir = Path.is_dir
    monkeypatch.setattr(Path, "is_dir", lambda path: str(path) != "/run/systemd/system" and is_dir(path))


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
            raise _Killed

    with monkeypatch.context() as patched:
        patched.setattr(control, "_start_guard", lost)
        patched.setattr(control, "_GRACE", 0)
        if killed:
            # SIGKILL undoes nothing
            patched.setattr(state, "remove", lambda _: None)
            patched.setattr(control, "_hold_as_before", lambda _: None)
        with contextlib.suppress(_Killed):
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
        assert control.keep_up(with_port(81)) is None
        assert has_port(80)
        assert control.keep_up(with_port(82)) is not None
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
        firewall.bring_to(with_port(81))  # what was not confirmed by anybody
    control.roll_back()
    assert has_port(80)


def test_service_leaves_what_was_rolled_back_alone(real: Namespace, no_systemd: None) -> None:
    control.apply(with_port(80))
    control.apply(with_port(81), confirm_within=60)
    with lock.hold():
        assert control.keep_up(with_port(81)) is None
    control.roll_back()
    with lock.hold():
        assert control.keep_up(with_port(81)) is None
        assert has_port(80)
        assert control.keep_up(with_port(82)) is not None  # the configuration changed again
    control.apply(with_port(81))  # a person asks for it
    with lock.hold():
        assert control.keep_up(with_port(81)) is not None


def test_unconfirmed_ruleset_does_not_come_back_with_a_reboot(real: Namespace, no_systemd: None) -> None:
    control.apply(with_port(80))
    control.apply(with_port(81), confirm_within=60)
    # a reboot: no rules, nothing under /run
    with lock.hold():
        firewall.remove_all()
        assert control.keep_up(with_port(81)) is None
    assert has_port(80)


# --- the commands -------------------------------------------------------------------------------------------


def pvefw(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:  # noqa: ANN401
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, env=environment(), **options
    )


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pvefw_nft.cli", *arguments]


def environment() -> dict[str, str]:
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """A configuration whose cluster.fw lets one port in."""
    (tmp_path / "etc/pve/firewall").mkdir(parents=True)
    write(tmp_path, 80)
    return tmp_path


def write(root: Path, port: int, more: str = "") -> None:
    text = f"[OPTIONS]\nenable: 1\n[RULES]\nIN ACCEPT -p tcp -dport {port}\n{more}"
    temporary = root / "etc/pve/firewall/.new"
    temporary.write_text(text)
    temporary.replace(root / "etc/pve/firewall/cluster.fw")


def options(root: Path) -> list[str]:
    return ["--root", str(root), "--node", "n", "--local-network", "10.0.0.0/24"]


def lets_in(port: int) -> bool:
    return f"--dport {port} -j RETURN" in shell("iptables-save")


def test_commands(real: Namespace, configuration: Path) -> None:
    there = options(configuration)
    assert pvefw("status", *there).returncode == 3
    compiled = pvefw("compile", *there).stdout
    fed = pvefw("start", "--dry-run", *there).stdout
    # parts in which nothing happens are not fed
    assert fed == compiled.replace("### iptables-restore -T raw -n\n*raw\nCOMMIT\n", "").replace(
        "### ip6tables-restore -T raw -n\n*raw\nCOMMIT\n", ""
    )
    done = pvefw("start", *there)
    assert (done.returncode, "chains and sets changed" in done.stdout) == (0, True)
    assert pvefw("update", *there).stdout == "nothing changed\n"
    assert pvefw("status", *there).returncode == 0
    write(configuration, 81)
    status = pvefw("status", "--diff", *there)
    assert status.returncode == 1
    assert "change iptables filter PVEFW-HOST-IN" in status.stdout
    assert json.loads(pvefw("status", "--format", "json", *there).stdout)["backends"] == ["iptables"]
    assert pvefw("update", *there).returncode == 0
    assert lets_in(81)
    assert pvefw("stop").returncode == 0
    assert pvefw("status", *there).returncode == 3


def test_configuration_with_errors_keeps_the_running_ruleset(real: Namespace, configuration: Path) -> None:
    there = options(configuration)
    pvefw("start", *there)
    write(configuration, 81, "IN NONSENSE\n")
    refused = pvefw("update", *there)
    assert refused.returncode == 1
    assert "nothing was changed, because the configuration has errors" in refused.stderr
    assert "cluster.fw:5" in refused.stderr
    assert lets_in(80)
    assert pvefw("status", *there).returncode == 1
    applied = pvefw("update", "--skip-invalid", *there)
    assert applied.returncode == 1
    assert lets_in(81)


def test_two_updates_at_once(real: Namespace, configuration: Path) -> None:
    there = options(configuration)
    pvefw("start", *there)
    write(configuration, 81)
    both = [subprocess.Popen(command("update", *there), env=environment(), stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert lets_in(81)
    assert firewall.is_running()


def test_lock_that_stays_held(real: Namespace, configuration: Path) -> None:
    with lock.hold():
        refused = pvefw("start", "--wait", "0.2", *options(configuration))
    assert refused.returncode == 4
    assert "another run of pvefw" in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_ruleset_comes_back_when_the_command_dies(real: Namespace, configuration: Path, number: signal.Signals) -> None:
    if Path("/run/systemd/system").is_dir():
        pytest.skip("the guard is systemd's here, and runs outside of this namespace")
    there = options(configuration)
    pvefw("start", *there)
    write(configuration, 81)
    arguments = command("update", "--confirm", "3", *there)
    with subprocess.Popen(arguments, env=environment(), stdin=subprocess.DEVNULL, start_new_session=True) as process:
        assert wait_until(lambda: lets_in(81))
        os.killpg(process.pid, number)
    assert wait_until(lambda: lets_in(80) and not lets_in(81))
    assert wait_until(lambda: control.pending() is None)


def test_confirm_command(real: Namespace, configuration: Path) -> None:
    if Path("/run/systemd/system").is_dir():
        pytest.skip("the guard is systemd's here, and runs outside of this namespace")
    there = options(configuration)
    pvefw("start", *there)
    write(configuration, 81)
    arguments = command("update", "--confirm", "60", *there)
    with subprocess.Popen(arguments, env=environment(), stdin=subprocess.DEVNULL) as process:
        assert wait_until(lambda: lets_in(81) and pvefw("confirm").returncode == 0)
        assert process.wait(30) == 0
    assert lets_in(81)
    assert pvefw("confirm").returncode == 3


def test_service_follows_the_configuration(real: Namespace, configuration: Path) -> None:
    with subprocess.Popen(command("run", *options(configuration)), env=environment()) as service:
        try:
            assert wait_until(lambda: lets_in(80))
            write(configuration, 81)
            assert wait_until(lambda: lets_in(81))
            write(configuration, 82, "IN NONSENSE\n")
            assert wait_until(lambda: lets_in(82))
            shell("iptables -F PVEFW-HOST-IN")
            service.send_signal(signal.SIGHUP)
            assert wait_until(lambda: lets_in(82))
        finally:
            service.terminate()
        assert service.wait(30) == 0
    assert lets_in(82)  # the rules stay


def test_service_tells_the_service_manager(real: Namespace, configuration: Path, tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        env = {**environment(), "NOTIFY_SOCKET": str(tmp_path / "notify")}
        with subprocess.Popen(command("run", "--stop-at-end", *options(configuration)), env=env) as service:
            said = [manager.recv(4096).decode()]
            while "READY=1" not in said[-1]:
                said.append(manager.recv(4096).decode())
            assert said[0] == "STATUS=filtering (iptables)"
            service.terminate()
            while said[-1] != "STOPPING=1":
                said.append(manager.recv(4096).decode())
            assert service.wait(30) == 0
    assert ours() == []
