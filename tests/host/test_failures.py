"""Failures that prevent an update, with either backend: the error names the cause, and nothing has changed."""

from __future__ import annotations

import contextlib
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.host.apply.nftables_state import Command
from pvefw_nft.host.tools import use_runner

from . import runners
from .here import with_library
from .runners import Editing

pytest.importorskip("nftables")

from pvefw_nft.errors import HostError, LockedError
from pvefw_nft.host import lock, sysctl, tools
from pvefw_nft.host.apply.nftables_state import Nftables
from pvefw_nft.host.records import state

from . import rulesets
from .here import control
from .listing import everything
from .network import ruleset, small_file_system

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from pvefw_nft.host.records.record import Desired

    from .conftest import Namespace


@pytest.fixture(params=["iptables", "nft"])
def backend(host: Namespace, request: pytest.FixtureRequest) -> str:
    """A backend whose first ruleset runs."""
    name: str = request.param
    if sysctl.read("net/bridge/bridge-nf-call-iptables") is None:
        with contextlib.suppress(HostError):
            tools.run(["modprobe", "br_netfilter"])
    try:
        control.apply(numbered(name, 0))
    except HostError as error:
        pytest.skip(f"the tools are not usable here: {error}")
    return name


def numbered(backend: str, number: int) -> Desired:
    """Return a ruleset that is told by its number."""
    if backend == "nft":
        return ruleset("nft", rulesets.nft(ports=(1000 + number,)))
    artefact = rulesets.iptables()
    artefact["iptables"]["filter"]["tap100i0-IN"] = [f"-A tap100i0-IN -p tcp --dport {1000 + number} -j ACCEPT"]
    artefact["ipset"]["PVEFW-0-management-v4"][1] = f"add PVEFW-0-management-v4 10.{number}.0.0/24"
    return ruleset("iptables", artefact)


def fill(directory: Path) -> None:
    with contextlib.suppress(OSError):
        (directory / "filler").write_bytes(b"x" * 1_000_000)


def test_full_disk(backend: str) -> None:
    with small_file_system(state.state_directory()) as disk:
        control.apply(numbered(backend, 0))
        before = everything()
        fill(disk)
        with pytest.raises(HostError, match="No space left on device") as caught:
            control.apply(numbered(backend, 1))
        assert "make room" in str(caught.value.hint)
        assert everything() == before
        assert not list(disk.glob(".*.json.*"))
        assert control.stop().running


def test_full_run_directory(backend: str) -> None:
    """Notes that are only there to tell changes by hand are not worth failing for."""
    with small_file_system(state.run_directory()) as disk:
        control.apply(numbered(backend, 0))
        fill(disk)
        outcome, _ = control.apply(numbered(backend, 1))
        assert outcome.changes
        assert any("No space left on device" in problem for problem in outcome.problems)


def test_read_only_state(backend: str) -> None:
    with small_file_system(state.state_directory()) as disk:
        control.apply(numbered(backend, 0))
        before = everything()
        tools.run(["mount", "-o", "remount,ro", str(disk)])
        with pytest.raises(HostError, match="Read-only file system") as caught:
            control.apply(numbered(backend, 1))
        assert "must be on a file system that can be written" in str(caught.value.hint)
        assert everything() == before


def test_held_lock(backend: str) -> None:
    before = everything()
    with lock.hold(), pytest.raises(LockedError, match=f"process {os.getpid()}") as caught:
        # flock(2) is by open file: another open file of this process competes
        control.apply(numbered(backend, 1), wait=0.1)
    assert caught.value.exit_code == 4
    assert everything() == before


def test_two_updates_at_once(backend: str) -> None:
    children = []
    for number in (1, 2):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                control.apply(numbered(backend, number), wait=60)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    found = everything()
    ends = []
    for number in (1, 2):
        control.apply(numbered(backend, number))
        ends.append(everything())
    assert ends[0] != ends[1]
    assert found in ends


def test_no_privileges(backend: str, as_nobody: Callable[[Callable[[], object]], str], tmp_path: Path) -> None:
    before = everything()
    for directory in (tmp_path, *tmp_path.parents[:3]):
        directory.chmod(0o755)
    message = as_nobody(lambda: control.apply(numbered(backend, 1)))
    assert "ermission denied" in message
    assert everything() == before


def test_missing_tools(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything()
    with monkeypatch.context() as patched:
        if backend == "nft":
            patched.setitem(sys.modules, "nftables", None)
            expected, package = "libnftables is not usable", "python3-nftables"
        else:
            patched.setenv("PATH", "/nonexistent")
            expected, package = "the program (ip6?tables-save|ipset) is not installed", "apt-get install ip"
        with use_runner(runners.NONE), pytest.raises(HostError, match=expected) as caught:
            control.apply(numbered(backend, 1))
    assert package in str(caught.value.hint)
    assert everything() == before


class _Failing(Nftables):
    """A library whose changes fail if a function says so."""

    def __init__(self, fail: Callable[[str], None]) -> None:
        super().__init__()
        self._fail = fail

    def run(self, commands: Iterable[Command]) -> list[Command]:
        if any("list" not in command for command in commands):
            self._fail("libnftables")
        return super().run(commands)


def test_failing_tool(backend: str) -> None:
    """Each call that changes the kernel fails, one after the other; earlier changes are restored."""
    before = everything()
    for number in range(2 if backend == "iptables" else 1):
        left = iter(range(number))
        failed = False

        def failing(what: str, left: Any = left) -> None:  # noqa: ANN401
            nonlocal failed
            # nft's transaction is tried once more, with all tables as a whole: that fails too
            if (not failed or backend == "nft") and next(left, None) is None:
                failed = True
                raise HostError(f"{what} failed: out of memory")

        def edit(command: Sequence[str], text: str | None, failing: Any = failing) -> str | None:  # noqa: ANN401
            if text is not None:
                failing(command[0])
            return text

        with use_runner(Editing(edit)), pytest.raises(HostError, match="failed: out of memory"):
            with_library(partial(_Failing, failing)).apply(numbered(backend, 1))
        assert failed
        assert everything() == before
