"""The kernel's settings that a ruleset needs: set at start, and put back at stop."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.errors import HostError
from pvefw_nft.host import settings, sysctl
from pvefw_nft.host.paths import Paths, use_paths
from pvefw_nft.host.settings import Conntrack
from pvefw_nft.host.tools import Runner, use_runner

from .applied import Killed, die, everything, with_port
from .here import control
from .network import ruleset
from .rulesets import nft
from .runners import Answering

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .conftest import Namespace

pytest.importorskip("nftables")


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


def test_only_missing_modules_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "nft_meta_bridge").mkdir()
    loaded: list[str] = []

    def load(command: Sequence[str], _: str | None) -> str:
        loaded.append(command[-1])
        return ""

    with use_paths(Paths(modules=tmp_path)), use_runner(Answering(load)):
        settings.load_modules("nft")
    assert loaded == ["nf_conntrack_bridge", "nft_reject_bridge"]


BRIDGED = [f"net/bridge/bridge-nf-call-{tool}" for tool in ("iptables", "ip6tables", "arptables")]
PASSED_BY = (
    "as before pvefw was started, bridged packets pass no chains of iptables, ip6tables, arptables (net.bridge."
    "bridge-nf-call-iptables=0, net.bridge.bridge-nf-call-ip6tables=0, net.bridge.bridge-nf-call-arptables=0)"
)


class Module(Runner):
    """br_netfilter as far as its settings go: missing until it is loaded."""

    def __init__(self, sysctls: Path) -> None:
        super().__init__()
        self.dies = False
        self._settings = sysctls / "net/bridge"
        self._settings.parent.mkdir(parents=True)
        for folder in ("ipv4", "ipv6", "netfilter", "core"):
            (self._settings.parent / folder).symlink_to(Path("/proc/sys/net", folder))

    @property
    def loaded(self) -> bool:
        return self._settings.exists()

    def run_all(
        self, commands: Sequence[Sequence[str]], text: str | None = None, timeout: float | None = None
    ) -> list[str]:
        if commands[0][-1] != "br_netfilter":
            return super().run_all(commands, text, timeout)
        if self.dies:
            raise Killed
        if not self.loaded:
            self.load()
        return [""]

    def load(self) -> None:
        self._settings.symlink_to("/proc/sys/net/bridge")
        for key in BRIDGED:
            sysctl.write(key, "1")

    def settings(self) -> list[str | None]:
        return [sysctl.read(key) for key in BRIDGED]


@pytest.fixture
def module(real: Namespace, tmp_path: Path) -> Iterator[Module]:
    module = Module(tmp_path / "sysctls")
    with use_runner(module), use_paths(Paths(sysctls=tmp_path / "sysctls", modules=tmp_path / "none")):
        yield module


def test_bridged_packets_pass_iptables_by_again_after_stop(module: Module) -> None:
    control.apply(with_port(80))
    assert module.settings() == ["1", "1", "1"]
    control.apply(with_port(81))
    control.apply(with_port(81), reload_all=True)
    assert control.stop().notes == (PASSED_BY,)
    assert module.settings() == ["0", "0", "0"]
    control.apply(with_port(80))  # now it is loaded, and its settings are 0
    assert module.settings() == ["1", "1", "0"]
    control.stop()
    assert module.settings() == ["0", "0", "0"]


def test_bridged_packets_pass_iptables_by_again_after_a_kill(module: Module) -> None:
    module.dies = True
    with contextlib.suppress(Killed):
        control.apply(with_port(80))
    assert control.stop().notes == ()
    with contextlib.suppress(Killed):
        control.apply(with_port(80))
    module.dies = False
    control.apply(with_port(80))
    control.stop()
    assert module.settings() == ["0", "0", "0"]


def test_bridged_packets_pass_iptables_by_again_after_a_switch(module: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    control.apply(with_port(80))
    with monkeypatch.context() as patched:
        patched.setattr(settings, "put_back", die)
        with contextlib.suppress(Killed):
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
