"""SIGKILL anywhere in a start, an update, a switch or a stop: the host is not open after it where it was not before,
and a start or stop ends as it would without.

A kernel that lacks what the nft backend's rulesets need runs these with smaller ones.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.waiting import wait_until

pytest.importorskip("pyroute2")
pytest.importorskip("nftables")

from pvefw_nft.host import sysctl
from pvefw_nft.host.apply.nftables_state import Nftables
from pvefw_nft.host.records import record, state
from pvefw_nft.host.settings import needed_first

from . import rulesets
from .here import control, firewall
from .listing import everything
from .network import DENIED_WAYS, Denied, Network, compiled, ruleset, start, switch_off

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pvefw_nft.host.records.record import Desired

    from .conftest import Namespace

ALL_STEPS = os.environ.get("PVEFW_TEST_KILLS", "all") == "all"
"""Else only the steps that touch the kernel: those that touch files are the same for all backends."""
MOMENTS = 5 if ALL_STEPS else 2
STRIDE = 1 if "PVEFW_TEST_KILLS" in os.environ or not ALL_STEPS else 2
"""Every so many steps a kill; the first one differs from run to run, and so all are tried in time."""
_READS = {"iptables", "ip6tables", "modprobe", "nft"}
_FILES = {"os.rename", "os.link", "os.remove", "os.mkdir"}


@pytest.fixture
def network(host: Namespace) -> Iterator[Network]:
    made = Network()
    yield made
    made.close()


Pair = tuple["Desired", "Desired"]


def update(folder: Path, backend: str) -> Pair:
    return compiled(folder, backend), compiled(folder, backend, 1, other=True)


def small_nft(number: int) -> Desired:
    """Return a ruleset that any kernel takes; it filters what the guest sends."""
    return ruleset("nft", rulesets.nft((100, 101)[: number + 1], (f"172.{16 + number}.0.0/16",), (80, 81 + number)))


PAIRS: dict[str, Callable[[Path], Pair]] = {
    "iptables": lambda folder: update(folder, "iptables"),
    "nft": lambda folder: update(folder, "nft"),
    "switch": lambda folder: (compiled(folder, "iptables"), compiled(folder, "nft", 1)),
    "nft-small": lambda _: (small_nft(0), small_nft(1)),
    "switch-small": lambda folder: (compiled(folder, "iptables"), small_nft(0)),
}


class Killing:
    """Two rulesets that follow each other, again and again, with a kill on the way.

    ``ways`` are the denied ways, each from a place to a place; None: another observer watches them.
    """

    def __init__(self, network: Network, pair: Pair, ways: Iterable[tuple[str, str]] | None) -> None:
        self._pair = pair
        switch_off()  # so that there is something to put back
        # the second time round nothing is new: iptables keeps its tables, and an update the chains that are entered
        self._undisturbed = [self._started(desired) for desired in (*pair, *pair)][2:]
        self._denied = None if ways is None else Denied(network, ways)
        self._now = 1

    @staticmethod
    def _started(desired: Desired) -> dict[str, Any]:
        start(desired)
        return everything()

    def go(self, kill: Callable[[Desired], bool]) -> bool:
        """Bring the other ruleset and be killed; look whether the host is open; start. Tells whether it was killed."""
        self._now = 1 - self._now
        desired = self._pair[self._now]
        killed = kill(desired)
        if self._denied is not None:
            assert self._denied.pass_now() == []
        control.apply(desired)
        assert everything() == self._undisturbed[self._now]
        return killed

    def close(self) -> None:
        if self._denied is not None:
            self._denied.close()


def denied_ways(pair: str) -> list[tuple[str, str]]:
    """Return the ways that both rulesets of a pair deny: small ones filter what the guest sends."""
    return [way for way in DENIED_WAYS if way[0] == "guest" or "small" not in pair]


@pytest.fixture(params=PAIRS)
def killing(network: Network, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Killing]:
    made = Killing(network, PAIRS[request.param](tmp_path), denied_ways(request.param))
    yield made
    made.close()


def steps() -> Iterator[int]:
    """Return the numbers of the steps to kill at, without an end."""
    first = random.randrange(STRIDE)
    print(f"every {STRIDE} steps from {first} on")
    return itertools.count(first, STRIDE)


def test_killed_at_every_step_then_started(killing: Killing) -> None:
    for step in steps():
        killed = [killing.go(partial(apply_killed_at, step)) for _ in range(2)]  # there and back
        if not any(killed):
            break
    assert step >= (10 if ALL_STEPS else 1)


def test_killed_at_any_moment_then_started(killing: Killing) -> None:
    undisturbed: list[float] = []
    for _ in range(2):
        killing.go(partial(timed, undisturbed))
    for number in range(MOMENTS):
        killing.go(partial(killed_after, undisturbed[number % 2] * (number + 0.5) / MOMENTS))


# --- first start, and stop ----------------------------------------------------------------------------------


FIRST: dict[str, Callable[[Path], Desired]] = {
    "iptables": lambda folder: compiled(folder, "iptables"),
    "nft": lambda folder: compiled(folder, "nft"),
    "nft-small": lambda _: small_nft(0),
}


class Life:
    """A host on which nothing ran before, again and again."""

    def __init__(self, desired: Desired) -> None:
        self._start = partial(control.apply, desired)
        self._settings = [*needed_first("iptables"), *(desired.conntrack.settings() if desired.conntrack else ())]
        switch_off()
        start(desired)
        self._started = self._found()
        control.stop()
        self._stopped = self._found()
        assert not firewall.is_running()
        assert {self._stopped[key] for key in needed_first("iptables")} <= {"0", None}  # None: no br_netfilter

    def _found(self) -> dict[str, Any]:
        files = {path.name for folder in _folders() for path in folder.glob("*")}
        return {**everything(), **{key: sysctl.read(key) for key in self._settings}, "files": files}

    def kill_start(self, step: int) -> bool:
        for folder in _folders():
            shutil.rmtree(folder, ignore_errors=True)
        return killed_at(step, self._start)

    def start(self) -> None:
        self._start()
        assert self._found() == self._started

    def kill_stop(self, step: int) -> bool:
        return killed_at(step, control.stop)

    def stop(self) -> None:
        control.stop()
        assert self._found() == self._stopped

    def stop_what_was_begun(self) -> None:
        """Stop what no record need tell of."""
        control.stop()
        records = (record.running_path().name, record.confirmed_path().name, "files")
        found, stopped = ({**all_of_it, **dict.fromkeys(records)} for all_of_it in (self._found(), self._stopped))
        assert found == stopped
        assert not list(state.run_directory().glob("*"))
        assert not list(state.state_directory().glob(".*"))  # nothing half written


def _folders() -> list[Path]:
    return [state.state_directory(), state.run_directory()]


@pytest.mark.parametrize("backend", FIRST)
def test_first_start_and_stop_killed_at_every_step(network: Network, tmp_path: Path, backend: str) -> None:
    life = Life(FIRST[backend](tmp_path))
    with contextlib.closing(Denied(network, [("guest", "outside")])) as denied:
        for step in steps():
            killed = [life.kill_start(step)]
            life.start()
            killed.append(life.kill_stop(step))
            life.start()
            assert denied.pass_now() == []
            life.kill_stop(step)
            life.stop()
            life.kill_start(step)
            life.stop_what_was_begun()
            if not any(killed):
                break
    assert step >= (10 if ALL_STEPS else 1)


# --- processes that are killed ------------------------------------------------------------------------------


def apply_killed_at(step: int, desired: Desired) -> bool:
    return killed_at(step, partial(control.apply, desired))


def killed_at(step: int, action: Callable[[], object]) -> bool:
    """Act in a process that kills itself, and the tools it runs, right before its ``step``-th step.

    The end of a step is the beginning of the next one, so there is no need to kill after it, too. False: there are not
    so many steps, and it came to its end.
    """

    def act() -> None:
        die_at(step)
        action()

    return ended(started_process(act))


def killed_after(seconds: float, desired: Desired) -> bool:
    """Apply in a process that is killed after that time. False: it had come to its end before."""
    return process_killed_after(seconds, partial(control.apply, desired))


def process_killed_after(seconds: float, action: Callable[[], object]) -> bool:
    """Act in a process that is killed after that time. False: it had come to its end before."""
    child = started_process(action)
    over = partial(os.waitid, os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    wait_until(lambda: over() is not None, seconds, every=0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return ended(child)


def timed(times: list[float], desired: Desired) -> bool:
    """Apply in a process that is not killed, and note how long that takes."""
    begun = time.monotonic()
    killed = ended(started_process(lambda: control.apply(desired)))
    times.append(time.monotonic() - begun)
    return killed


def started_process(action: Callable[[], object]) -> int:
    """Fork a process with a group of its own."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setpgid(0, 0)
            action()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    with contextlib.suppress(PermissionError, ProcessLookupError):  # both sides, since either may be first
        os.setpgid(child, child)
    return child


def ended(child: int) -> bool:
    """Wait for a process and for all it started; tell whether it was killed."""
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        wait_until(lambda: os.killpg(child, 0), 5, every=0.005)  # raises once all are gone
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def die_at(step: int) -> None:
    """Have this process and its group killed right before its ``step``-th change of a file or of the kernel."""
    left = itertools.count(-step)

    def reached() -> None:
        if next(left) == 0:
            os.killpg(0, signal.SIGKILL)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if changes_kernel(event, args) or (ALL_STEPS and changes_files(event, args)):
            reached()

    sys.addaudithook(hook)
    run = Nftables.run

    def counted(self: Nftables, commands: Any) -> Any:  # noqa: ANN401
        if any("list" not in command for command in commands):
            reached()
        return run(self, commands)

    Nftables.run = counted  # type: ignore[method-assign] # this process has no other use for it


def changes_kernel(event: str, args: tuple[Any, ...]) -> bool:
    if event == "subprocess.Popen":
        command = [Path(args[0]).name, *args[1][1:]]
        reads = command[0] in _READS or command[0].endswith("-save") or command[:2] == ["ipset", "save"]
        return not (reads or (command[0] == "ipset" and "list" in command))
    return changes_files(event, args) and str(args[0]).startswith("/proc/sys/")


def changes_files(event: str, args: tuple[Any, ...]) -> bool:
    if event == "open":
        path, _, flags = args
        is_file = not isinstance(path, int) and not str(path).startswith("/dev/")
        return is_file and bool(flags & (os.O_WRONLY | os.O_RDWR))
    return event in _FILES
