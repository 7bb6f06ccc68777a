"""Signals, closed streams and missing privileges: each command names the problem, and the service stays."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("pyroute2")

from pvefw_nft.errors import HostError, LockedError
from pvefw_nft.host import lock
from pvefw_nft.host.watching.watch import Watcher

from .commands import Command, pvefw, service
from .conftest import need
from .fuse import own_mounts
from .network import configure

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Namespace


def test_storm_of_signals_wakes_and_nothing_else() -> None:
    watcher = Watcher(list, lambda _: None)
    for _ in range(100_000):  # more than the pipe holds
        watcher._hang_up()


@pytest.fixture
def options(host: Namespace, tmp_path: Path) -> list[str]:
    need("iptables -L; ip6tables -L; ipset list; ebtables -L")
    configure(tmp_path)
    (tmp_path / "said").mkdir()
    return ["--root", str(tmp_path), "--node", "n", "--local-network", "192.0.2.0/24", "--backend", "iptables"]


def test_service_lives_through_a_storm_while_another_run_holds_the_lock(options: list[str], tmp_path: Path) -> None:
    with service(tmp_path / "said", *options) as command:
        command.waits_for(lambda: "started:" in command.said())
        with lock.hold():
            for _ in range(5000):
                command.send(signal.SIGHUP)
            time.sleep(0.5)  # for it to end by mistake
            assert command.is_running()


@pytest.mark.parametrize("command", ["status", "run", "start", "update", "stop"])
def test_without_root_the_first_message_says_so(options: list[str], tmp_path: Path, command: str) -> None:
    def become_nobody() -> None:
        os.setgid(65534)
        os.setuid(65534)

    more = [] if command == "stop" else options
    done = Command([command, *more], tmp_path / "said", become_nobody).ended()
    assert done.status == 3
    assert done.said == "error: this needs root, or CAP_NET_ADMIN and CAP_NET_RAW\n  help: run this as root\n"


@pytest.mark.parametrize("descriptors", [(1,), (2,), (1, 2)])
def test_closed_output_is_no_traceback(options: list[str], tmp_path: Path, descriptors: tuple[int, ...]) -> None:
    def close() -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    done = Command(["start", *options], tmp_path / "said", close).ended()
    assert done.status == 3
    assert "Traceback" not in done.said


@pytest.mark.parametrize("descriptors", [(1,), (2,), (1, 2)])
@pytest.mark.parametrize("name", ["update", "stop", "confirm"])
def test_closed_output_keeps_no_command_from_its_work(
    options: list[str], tmp_path: Path, no_systemd: None, name: str, descriptors: tuple[int, ...]
) -> None:
    """It may end with an error, because it could not report its result."""

    def close() -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    said = tmp_path / "said"
    assert pvefw(said, "start", *options).status == 0
    configure(tmp_path, 1)
    waiting = Command(["update", *options, "--confirm", "60"], said) if name == "confirm" else None
    if waiting is not None:
        waiting.waits_for(lambda: "pvefw confirm" in waiting.said())
    done = Command([name, *(options if name == "update" else [])], said, close).ended()
    assert done.status in (0, 3), done
    assert "Traceback" not in done.said
    if waiting is not None:
        assert waiting.ended().status == 0
    assert has_port(1001) == (name != "stop")
    assert not has_port(1000)


def test_unconfirmed_first_start_says_that_the_host_is_open_again(
    options: list[str], tmp_path: Path, no_systemd: None
) -> None:
    done = pvefw(tmp_path / "said", "start", *options, "--confirm", "1")
    assert done.status == 3
    assert "error: not confirmed: this host is open again\n" in done.err
    assert "ran before" not in done.said
    assert not has_port(1000)


def full() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)


def unread() -> None:
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(reading)


@pytest.mark.parametrize("deafen", [full, unread])
def test_service_follows_changes_where_its_messages_go_nowhere(
    options: list[str], tmp_path: Path, deafen: Callable[[], None]
) -> None:
    with service(tmp_path / "said", *options, first=deafen) as command:
        command.waits_for(lambda: has_port(1000))
        configure(tmp_path, 1)
        command.waits_for(lambda: has_port(1001))


def has_port(number: int) -> bool:
    saved = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
    return f"--dport {number} " in saved


def protect(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)


def fill(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for number in itertools.count():
            (folder / f"filler{number}").touch()


@pytest.mark.parametrize("trouble", [protect, fill])
@pytest.mark.parametrize("there", [True, False], ids=["its file is there", "its file is not there"])
def test_lock_is_held_where_no_file_can_be_made(
    tmp_path: Path, trouble: Callable[[Path], None], *, there: bool
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with own_mounts():
        subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=100", "tmpfs", folder], check=True)
        path = folder / "pvefw.lock"
        if there:
            path.touch(0o600)
        trouble(folder)
        with lock.hold(path), pytest.raises(LockedError), lock.hold(path, wait=0.1):
            pass
        with lock.hold(path):  # it was given back
            assert path.exists() == there


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_lock_path_that_is_no_file_is_named_with_the_remedy(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "pvefw.lock"
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HostError) as caught, lock.hold(path):
        pass
    assert f"cannot open the lock file {path}: " in caught.value.message
    assert caught.value.hint == f"remove it: {path}"
    assert not (tmp_path / "elsewhere").exists()
