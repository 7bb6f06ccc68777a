"""Limits that are reached: possible work is done, the rest changes nothing, and the message names the limit.

Which limits the kernel has, and how a process meets them: :mod:`.refused_calls`.
"""

from __future__ import annotations

import itertools
import re
import resource
import signal
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.waiting import wait_until

pytest.importorskip("pyroute2")
pytest.importorskip("nftables")


from .commands import Command, service
from .conftest import need
from .here import firewall
from .network import configure
from .refused_calls import NO_INOTIFY, NO_PROCESS, NO_WATCH, Limit, refusing
from .test_faults import Host, host_of, rules

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Namespace

__all__ = ["host_of"]


def descriptors(number: int) -> Callable[[], None]:
    return partial(resource.setrlimit, resource.RLIMIT_NOFILE, (number, number))


LIMITS: dict[str, tuple[Callable[[], None], str]] = {
    "no process": (refusing(NO_PROCESS), "Resource temporarily unavailable"),
    # none for a module that the command needs, none for files, none for a tool
    "8 descriptors": (descriptors(8), "Too many open files"),
    "10 descriptors": (descriptors(10), "Too many open files"),
    "12 descriptors": (descriptors(12), "Too many open files"),
}
_NEEDS_TOOLS = ("update", "start", "stop")


def check_words(said: str) -> None:
    for word in ("Traceback", "pvefw failed", "cannot print", "Exception ignored"):
        assert word not in said, said


@pytest.mark.parametrize("limit", LIMITS)
def test_command_at_its_limit_changes_all_or_nothing(host_of: Host, limit: str) -> None:
    reach, message = LIMITS[limit]
    before = rules()
    host_of.configure(1)
    for command in ("status", "doctor", "confirm", *_NEEDS_TOOLS):
        options = () if command in ("stop", "confirm") else host_of.options
        done = Command([command, *options], host_of.folder, reach).ended()
        check_words(done.said)
        if command in _NEEDS_TOOLS and done.status == 0:
            assert rules() != before, (command, done)
            break  # there was room enough
        assert rules() == before, (command, done)
        assert firewall.is_running()
        if command in _NEEDS_TOOLS:
            assert done.status == 3, (command, done)
            assert re.search(message, done.said), (command, done)


@pytest.mark.parametrize("number", [6, 7, 10, 14, 21])
def test_no_traceback_where_descriptors_run_out(host: Namespace, tmp_path: Path, number: int) -> None:
    """So few that a netlink socket, a module or a thread of the service gets none; 6 and 7 end in asyncio."""
    need("iptables -L; ip6tables -L; ipset list; ebtables -L")
    configure(tmp_path / "c")
    (tmp_path / "said").mkdir()
    options = ["--root", str(tmp_path / "c"), "--node", "n", "--local-network", "192.0.2.0/24"]
    for command in ("doctor", "status"):
        check_words(Command([command, *options], tmp_path / "said", descriptors(number)).ended().said)
    running = Command(["run", *options, "--poll", "0.3"], tmp_path / "said", descriptors(number))
    wait_until(lambda: not running.is_running() or running.said(), 30)
    time.sleep(2)  # it may run into its limit once more
    if running.is_running():
        running.send(signal.SIGTERM)
    done = running.ended()
    check_words(done.said)
    assert done.status in (0, 3)  # 3: there are too few even to begin


def test_service_without_processes_stays_and_the_rules_too(host_of: Host) -> None:
    before = rules()
    host_of.configure(1)
    command = Command(["run", *host_of.options, "--poll", "0.3"], host_of.folder, refusing(NO_PROCESS))
    command.waits_for(lambda: "Resource temporarily unavailable" in command.said())
    time.sleep(1)  # it tries again
    assert command.is_running(), command.said()
    check_words(command.said())
    assert "TasksMax" in command.said()
    assert rules() == before
    command.send(signal.SIGTERM)
    assert command.ended().status == 0


def test_service_without_descriptors_stays_and_goes_on_when_there_are_some(host_of: Host) -> None:
    before = rules()
    with service(host_of.folder, *host_of.options, "--poll", "0.2") as running:
        running.waits_for(lambda: "started:" in running.said())
        time.sleep(1)  # it prepares for changes
        kept = resource.prlimit(running.pid, resource.RLIMIT_NOFILE)
        opened = {int(path.name) for path in Path(f"/proc/{running.pid}/fd").iterdir()}
        lowest = next(number for number in itertools.count() if number not in opened)
        resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (lowest, kept[1]))
        host_of.configure(1)
        running.waits_for(lambda: "Too many open files" in running.said())
        time.sleep(6)  # it looks at the rules every 2 s
        assert running.is_running(), running.said()
        assert rules() == before
        resource.prlimit(running.pid, resource.RLIMIT_NOFILE, kept)
        running.waits_for(lambda: rules() != before)
        check_words(running.said())
        # and none was left open (while a look lasts, there are more)
        running.waits_for(lambda: len(list(Path(f"/proc/{running.pid}/fd").iterdir())) <= len(opened))


@pytest.mark.parametrize(
    ("limit", "named"), [(NO_INOTIFY, "max_user_instances"), (NO_WATCH, "max_user_watches")], ids=["inotify", "watch"]
)
def test_folders_that_the_kernel_does_not_watch_are_polled(host_of: Host, limit: Limit, named: str) -> None:
    """The rules come first, then a warning, then files are looked at every --poll seconds."""
    before = rules()
    command = Command(["run", *host_of.options, "--poll", "0.2"], host_of.folder, refusing(limit))
    command.waits_for(lambda: named in command.said())
    assert command.said().index("started:") < command.said().index(named)
    host_of.configure(1)
    command.waits_for(lambda: rules() != before)
    assert command.said().count(named) == 1
    command.send(signal.SIGTERM)
    assert command.ended().status == 0
