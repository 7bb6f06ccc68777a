"""The hardening table is loaded with the iptables ruleset, listed, rolled back with it, and removed by stop."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.app.desired import desired_of
from pvefw_nft.errors import HostError
from pvefw_nft.host import hardening
from pvefw_nft.host.records import record
from pvefw_nft.pipeline import Source, compile_root
from tests.support import NODE, VM

from .conftest import need
from .here import control, engine, firewall, with_engine

if TYPE_CHECKING:
    from pathlib import Path

    from pvefw_nft.host.records.record import Desired
    from tests.support import MakeRoot

    from .conftest import Namespace

pytest.importorskip("nftables")

ON = "[OPTIONS]\nenable: 1\n"


@pytest.fixture
def real(host: Namespace) -> Namespace:
    """A host on which both tools work."""
    need("iptables -L; ip6tables -L; ebtables -L; ipset create mine hash:ip; nft add table bridge probe")
    return host


def root_of(make_root: MakeRoot, mac: str = "BC:24:11:00:00:01") -> Path:
    return make_root({"100.conf": VM.replace("BC:24:11:00:00:01", mac), "100.fw": ON})


def desired(root: Path, *, harden: bool) -> Desired:
    source = Source(root, NODE, lambda: "10.0.0.0/24")
    return desired_of(compile_root(source, "iptables"), harden=harden)


def listed() -> str:
    command = ["nft", "list", "table", "bridge", hardening.NAME]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def test_it_comes_and_goes_with_the_ruleset_that_asks_for_it(real: Namespace, make_root: MakeRoot) -> None:
    hardened, plain = (desired(root_of(make_root), harden=asked) for asked in (True, False))
    first, _ = control.apply(hardened)
    assert "add nft table bridge pvefw-hardening" in map(str, first.changes)
    assert "ether saddr != bc:24:11:00:00:01" in listed()
    assert firewall.status(hardened).hardened
    assert firewall.status(hardened).changes == ()
    assert [str(change) for change in firewall.status(plain).changes or ()] == [
        "remove nft table bridge pvefw-hardening"
    ]
    again, _ = control.apply(hardened)
    assert again.changes == ()
    control.apply(plain)
    assert listed() == ""
    assert not firewall.status(plain).hardened


def test_host_pvefw_asks_for_it(real: Namespace, make_root: MakeRoot) -> None:
    root = root_of(make_root)
    (root / "etc/pve/local").mkdir(parents=True, exist_ok=True)
    (root / "etc/pve/local/host.pvefw").write_text("[OPTIONS]\nharden: 1\n")
    control.apply(desired(root, harden=False))
    assert "chain stateless" in listed()


def test_stop_removes_it(real: Namespace, make_root: MakeRoot) -> None:
    control.apply(desired(root_of(make_root), harden=True))
    assert control.stop().running
    assert listed() == ""
    assert not engine("iptables").present()


def test_a_change_follows_the_configuration(real: Namespace, make_root: MakeRoot) -> None:
    control.apply(desired(root_of(make_root), harden=True))
    control.apply(desired(root_of(make_root, "BC:24:11:00:00:09"), harden=True))
    assert "bc:24:11:00:00:09" in listed()
    assert "bc:24:11:00:00:01" not in listed()


def test_removed_hardening_is_loaded_again(real: Namespace, make_root: MakeRoot) -> None:
    hardened = desired(root_of(make_root), harden=True)
    control.apply(hardened)
    subprocess.run(["nft", "delete", "table", "bridge", hardening.NAME], check=True)
    assert [str(change) for change in firewall.status(hardened).changes or ()] == [
        "add nft table bridge pvefw-hardening"
    ]
    control.apply(hardened)
    assert "chain stateless" in listed()


def test_a_record_keeps_it(real: Namespace, make_root: MakeRoot) -> None:
    hardened = desired(root_of(make_root), harden=True)
    control.apply(hardened)
    assert record.load(record.running_path()) == hardened


def test_a_ruleset_that_cannot_be_loaded_leaves_none(real: Namespace, make_root: MakeRoot) -> None:
    def fail(*_: object) -> None:
        raise HostError("no")

    with pytest.raises(HostError, match="no"):
        with_engine("iptables", apply=fail).apply(desired(root_of(make_root), harden=True))
    assert listed() == ""


def test_the_nft_ruleset_needs_none(make_root: MakeRoot) -> None:
    source = Source(root_of(make_root), NODE, lambda: "10.0.0.0/24")
    assert desired_of(compile_root(source, "nft"), harden=True).hardening == ""


def test_the_iptables_artefact_is_the_same_with_it(make_root: MakeRoot) -> None:
    hardened, plain = (desired(root_of(make_root), harden=asked) for asked in (True, False))
    assert hardened.pieces == plain.pieces
    assert hardened.identity != plain.identity
