"""Signals, closed streams and missing privileges: each command says what is wrong, and the service stays."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("pyroute2")

from pvefw_nft.host import lock
from pvefw_nft.host.watching.watch import Watcher

from .commands import Command, service
from .conftest import need
from .network import configure

if TYPE_CHECKING:
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
            time.sleep(0.5)
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
