"""A host without some tools: known facts are reported, and existing rules do not count as removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.host.tools import Runner, use_runner

pytest.importorskip("nftables")

from pvefw_nft.cli import main
from pvefw_nft.errors import HostError
from pvefw_nft.host import doctor, tools
from pvefw_nft.host.records import record

from . import rulesets
from .conftest import need
from .here import control, engine, firewall
from .listing import everything
from .network import ruleset

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pvefw_nft.host.records.record import Desired
    from tests.support import MakeRoot

    from .conftest import Namespace

XTABLES = ("iptables", "ip6tables", "ipset", "ebtables")
PACKAGES = {"ip6tables": "iptables"}
"""By tool, where its package has another name."""
LIBRARY = "libnftables1 python3-nftables"
ONLY_NFT = ruleset("nft", rulesets.nft())
IPTABLES = ruleset("iptables", rulesets.iptables())


@pytest.fixture
def real(host: Namespace) -> Namespace:
    """A host on which both backends' tools work."""
    need("iptables -L; ebtables -L; ipset list; nft add table bridge probe")
    return host


@contextmanager
def without(folder: Path, *missing: str) -> Iterator[None]:
    """Have these tools, or with ``nft`` the library, not be installed."""
    folder = folder / "-".join(("without", *missing))
    folder.mkdir(exist_ok=True)
    for tool in (*XTABLES, "modprobe"):
        for path in Path(tools.find(tool)).parent.glob(f"{tool}*"):
            if tool not in missing and not (folder / path.name).is_symlink():
                (folder / path.name).symlink_to(path)
    with pytest.MonkeyPatch.context() as patched, use_runner(Runner(str(folder))):
        patched.setenv("PATH", str(folder))
        if "nft" in missing:
            patched.setitem(sys.modules, "nftables", None)
        yield


def pvefw(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def options(root: Path, backend: str) -> list[str]:
    return ["--root", str(root), "--node", "n1", "--local-network", "10.0.0.0/24", "--backend", backend]


MISSING = [(IPTABLES, tool, f"apt-get install {PACKAGES.get(tool, tool)}") for tool in XTABLES]


@pytest.mark.parametrize(
    ("desired", "tool", "remedy"),
    [*MISSING, (ONLY_NFT, "nft", f"apt-get install {LIBRARY}")],
    ids=[*XTABLES, "libnftables"],
)
def test_status_doctor_and_stop_where_a_tool_is_missing(
    real: Namespace,
    make_root: MakeRoot,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    desired: Desired,
    tool: str,
    remedy: str,
) -> None:
    there = options(make_root({"cluster": "[OPTIONS]\nenable: 1\n"}), desired.backend)
    control.apply(desired)
    before = everything()
    with without(tmp_path, tool):
        assert pvefw("status", *there) == 3
        told = capsys.readouterr().out
        assert f"help: {remedy}" in told
        assert f"running ({desired.backend})" in told
        assert "pending changes: unknown" in told
        assert pvefw("status", "--format", "json", *there) == 3
        found = json.loads(capsys.readouterr().out)
        assert (found["running"], found["changes"]) == (True, None)
        assert found["unseen"][0]["hint"].startswith(remedy)
        assert pvefw("doctor", *there) == 1
        assert f"help: {remedy}" in capsys.readouterr().out
        assert pvefw("stop") == 3
        told = capsys.readouterr().err
        assert "nothing was changed" in told
        assert f"help: {remedy}" in told
    assert everything() == before
    assert pvefw("stop") == 0
    assert not engine(desired.backend).present()


@pytest.mark.parametrize("tool", XTABLES)
def test_switch_to_nft_where_a_tool_is_missing(real: Namespace, tmp_path: Path, tool: str) -> None:
    control.apply(IPTABLES)
    before = everything()
    with without(tmp_path, tool), pytest.raises(HostError, match="nothing was changed") as caught:
        control.apply(ONLY_NFT)
    assert caught.value.hint == f"apt-get install {PACKAGES.get(tool, tool)}"
    assert everything() == before
    assert control.apply(ONLY_NFT)[0].switched_from == "iptables"


def test_doctor_finds_rules_that_could_not_be_removed(real: Namespace, tmp_path: Path) -> None:
    control.apply(IPTABLES)
    with without(tmp_path, "ipset"):
        found = list(doctor.examine(firewall, "nft", doctor.Switches(cluster=True, host=True, guests={}), []))
    text = "rules of the iptables backend are loaded, and could not be removed: the program ipset is not installed"
    assert doctor.Finding(doctor.Level.BAD, text, "apt-get install ipset") in found


def test_switch_to_iptables_without_the_library(real: Namespace, tmp_path: Path) -> None:
    control.apply(ONLY_NFT)
    with without(tmp_path, "nft"), pytest.raises(HostError, match=r"libnftables is not usable.*nothing was changed"):
        control.apply(IPTABLES)
    assert not engine("iptables").present()


def test_stop_where_all_tools_are_missing(real: Namespace, tmp_path: Path) -> None:
    control.apply(IPTABLES)
    before = everything()
    with without(tmp_path, *XTABLES):
        assert firewall.status(None).backends == ("iptables",)
        with pytest.raises(HostError, match="iptables-save is not installed, and rules of the iptables backend"):
            control.stop()
    assert everything() == before


def test_rules_that_are_not_on_record(real: Namespace, tmp_path: Path) -> None:
    control.apply(IPTABLES)
    record.marker_path().unlink()
    record.running_path().unlink()
    for tool in XTABLES:
        with without(tmp_path, tool):
            assert firewall.status(IPTABLES).running
            with pytest.raises(HostError, match=f"{tool}.* is not installed"):
                control.stop()


def test_host_that_never_had_iptables(
    real: Namespace, tmp_path: Path, make_root: MakeRoot, capsys: pytest.CaptureFixture[str]
) -> None:
    with without(tmp_path, *XTABLES):
        control.apply(ONLY_NFT)
        found = firewall.status(ONLY_NFT)
        assert (found.running, found.backends, found.changes, found.unseen) == (True, ("nft",), (), ())
        pvefw("doctor", *options(make_root({"cluster": "[OPTIONS]\nenable: 1\n"}), "nft"))
        assert "iptables backend" not in capsys.readouterr().out
        assert control.stop().running
        assert firewall.status(ONLY_NFT).unseen == ()
        assert not firewall.status(ONLY_NFT).running


def test_ruleset_that_needs_no_ebtables(real: Namespace, tmp_path: Path) -> None:
    desired = ruleset("iptables", rulesets.iptables(ebtables={}))
    with without(tmp_path, "ebtables"):
        control.apply(desired)
        found = firewall.status(desired)
        assert (found.running, found.changes, found.drifted, found.unseen) == (True, (), (), ())
        assert control.stop().running
        assert not firewall.is_running()


def test_unchanged_rules_are_known_without_the_library(real: Namespace, tmp_path: Path) -> None:
    control.apply(ONLY_NFT)
    with without(tmp_path, "nft"):
        assert firewall.status(ONLY_NFT).unseen == ()
        subprocess.run([f"{os.sep}usr/sbin/nft", "add", "table", "inet", "mine"], check=True)
        found = firewall.status(ONLY_NFT)
        assert (found.running, found.changes) == (True, None)
        assert [missed.hint for missed in found.unseen] == [f"apt-get install {LIBRARY}"]


def test_status_of_a_host_that_was_never_started(
    real: Namespace, make_root: MakeRoot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = options(make_root({"cluster": "[OPTIONS]\nenable: 1\n"}), "iptables")
    with without(tmp_path, "ipset"):
        assert pvefw("status", *there) == 3
    assert capsys.readouterr().out.splitlines() == [
        "some parts could not be examined: the program ipset is not installed",
        "  help: apt-get install ipset",
        "stopped, as far as can be seen",
    ]
