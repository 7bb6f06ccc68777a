"""Accidents of a service, its files and its tools while it runs: rules stay or come back, the service stays, and it
follows the next change.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.host.tools import use_runner

from .runners import first_from

pytest.importorskip("pyroute2")
pytest.importorskip("nftables")

from pvefw_nft.host import tools
from pvefw_nft.host.records import record, state
from pvefw_nft.host.records.pending import pending

from .commands import Command, pvefw, service
from .conftest import need
from .fuse import own_mounts
from .here import control, unguarded
from .listing import everything
from .network import compiled, configure, takes_compiled_nft
from .test_faults import ALL, have_no_rules, rules
from .test_other_hands import legacy_tools, shell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pvefw_nft.host.control import Control

    from .conftest import Namespace


class Running:
    """A running service, and its configuration below ``pve``."""

    def __init__(self, command: Command, folder: Path) -> None:
        self.command = command
        self.folder = folder
        self.pve = folder / "etc/pve"
        self.cluster = self.pve / "firewall/cluster.fw"
        self.rules = self.pve / "firewall/100.fw"
        self.guest = self.pve / "nodes/n/qemu-server/100.conf"

    def waits_for(self, condition: Callable[[], object], seconds: float = 40) -> None:
        self.command.waits_for(condition, seconds)

    def follows(self) -> None:
        """See that a change of the configuration still arrives, and only that."""
        before = rules()
        configure(self.folder, 7)
        self.waits_for(lambda: "--dport 2007 " in listed("tap100i0-IN"))
        configure(self.folder)
        self.waits_for(lambda: rules() == before)
        assert "Traceback" not in self.command.said()
        assert "pvefw failed" not in self.command.said()


def listed(chain: str) -> str:
    return subprocess.run(["iptables", "-w", "-S", chain], capture_output=True, text=True, check=False).stdout


def options_of(folder: Path) -> list[str]:
    return ["--root", str(folder), "--node", "n", "--local-network", "192.0.2.0/24", "--backend", "iptables"]


@pytest.fixture
def options(host: Namespace, tmp_path: Path) -> list[str]:
    need("iptables -L; ip6tables -L; ipset list; ebtables -L; nft add table inet probe; nft delete table inet probe")
    configure(tmp_path)
    (tmp_path / "said").mkdir()
    return options_of(tmp_path)


@pytest.fixture
def running(options: list[str], tmp_path: Path) -> Iterator[Running]:
    with service(tmp_path / "said", *options, "--poll", "0.2", "--settle", "0.5") as command:
        command.waits_for(lambda: "started:" in command.said())
        yield Running(command, tmp_path)


# --- records and locks ---------------------------------------------------------------------------------------


def run_directory_removed(_: Running) -> None:
    shutil.rmtree(state.run_directory())


def all_of_run_removed(_: Running) -> None:
    for path in state.run_directory().parent.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def state_removed(_: Running) -> None:
    shutil.rmtree(state.state_directory())


def lock_file_removed(_: Running) -> None:
    (state.run_directory().parent / "pvefw.lock").unlink()


def records_are_others(_: Running) -> None:
    for path in [*state.state_directory().iterdir(), *state.run_directory().iterdir()]:
        os.chown(path, 65534, 65534)
        path.chmod(0o666)


@pytest.mark.parametrize(
    "remove", [run_directory_removed, all_of_run_removed, state_removed, lock_file_removed, records_are_others]
)
def test_records_of_the_service_are_removed_while_it_runs(running: Running, remove: Callable[[Running], None]) -> None:
    before = rules()
    remove(running)
    shell("iptables -F tap100i0-IN")
    running.waits_for(lambda: rules() == before)
    running.follows()


def test_two_services_at_once_do_not_fight(running: Running, options: list[str], tmp_path: Path) -> None:
    before = rules()
    with service(tmp_path / "said", *options, "--poll", "0.2") as other:
        other.waits_for(lambda: "started:" in other.said())
        shell("iptables -F tap100i0-IN; iptables -D INPUT -j PVEFW-INPUT")
        running.waits_for(lambda: rules() == before)
        running.follows()
        for command in (running.command, other):
            assert "keeps changing the rules" not in command.said()


# --- the process ---------------------------------------------------------------------------------------------


def test_service_that_was_stopped_for_a_while_catches_up(running: Running) -> None:
    before = rules()
    running.command.send(signal.SIGSTOP)
    shell("iptables -F; ip6tables -F; ipset flush")
    configure(running.folder, 3)
    time.sleep(1)  # longer than it ever waits for a look
    running.command.send(signal.SIGCONT)
    running.waits_for(lambda: "--dport 2003 " in listed("tap100i0-IN"))
    configure(running.folder)
    running.waits_for(lambda: rules() == before)


@pytest.mark.parametrize(("name", "times"), [("start", 2), ("update", 2), ("stop", 2)])
def test_interrupted_at_any_moment_a_command_leaves_the_one_or_the_other(
    options: list[str], tmp_path: Path, name: str, times: int
) -> None:
    """SIGINT, as Ctrl-C sends it; a later start always comes to the same end."""
    said = tmp_path / "said"
    found = []
    arguments = [name, *(options if name != "stop" else [])]
    # chains that the kernel's chains jump to stay: from the second on there are all of them
    for number in (0, 1, 0, 1):
        configure(tmp_path, number, other=bool(number))
        begun = time.monotonic()
        assert pvefw(said, "start", *options).status == 0
        usual = time.monotonic() - begun
        found.append(rules())
    found = found[2:]
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    for number in range(20 if ALL else times):
        configure(tmp_path, number % 2, other=bool(number % 2))
        command = Command(arguments, said)
        time.sleep(chance.uniform(0, usual))  # any moment of its run
        with contextlib.suppress(ProcessLookupError):
            command.send(signal.SIGINT)
        done = command.ended()
        # 0: it was done by then
        assert done.status in (0, 130), (seed, number, done)
        assert "Traceback" not in done.said, (seed, number, done.said)
        if name == "stop":
            assert pvefw(said, "stop").status == 0
            assert have_no_rules()
        assert pvefw(said, "start", *options).status == 0
        if name != "stop":
            assert rules() == found[number % 2], (seed, number)


@pytest.mark.parametrize("name", ["confirm", "rollback"])
def test_interrupted_at_any_moment_a_change_still_has_one_end(options: list[str], tmp_path: Path, name: str) -> None:
    """SIGINT while a change is confirmed or rolled back: made again, the command has the same end."""
    said = tmp_path / "said"
    rulesets = [compiled(tmp_path, "iptables"), compiled(tmp_path, "iptables", 1, other=True)]
    found = []
    usual = 0.0
    for desired in (*rulesets, *rulesets):
        control.apply(desired)
        found.append(rules())
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    for number in range(21 if ALL else 3):
        control.apply(rulesets[0])
        unguarded().apply(rulesets[1], confirm_within=600)
        assert rules() == found[3]
        begun = time.monotonic()
        command = Command([name], said)
        if number:  # the first shows how long it takes
            time.sleep(chance.uniform(0, usual))  # any moment of its run
            with contextlib.suppress(ProcessLookupError):
                command.send(signal.SIGINT)
        done = command.ended()
        usual = usual or time.monotonic() - begun
        assert done.status in ((0, 130) if number else (0,)), (seed, number, done)
        assert "Traceback" not in done.said, (seed, number, done.said)
        again = pvefw(said, name)
        assert again.status in (0, 3), (seed, number, again)  # 3: it was done by then, and no change waits
        assert rules() == found[3 if name == "confirm" else 2], (seed, number)
        assert pending() is None
        assert record.confirmed_path().read_bytes() == record.running_path().read_bytes()


def test_service_interrupted_at_any_moment_of_its_first_apply_leaves_nothing_half_done(
    options: list[str], tmp_path: Path
) -> None:
    said = tmp_path / "said"
    for _ in range(2):
        assert pvefw(said, "start", *options).status == 0
        found = rules()
        assert pvefw(said, "stop").status == 0
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    for number in range(20 if ALL else 3):
        command = Command(["run", *options], said)
        time.sleep(chance.uniform(0, 2) if number else 0)  # any moment of its start
        command.send(signal.SIGINT)
        done = command.ended()
        # 130: it was no service yet
        assert done.status in (0, 130), (seed, number, done)
        assert "Traceback" not in done.said, (seed, number, done.said)
        if "started:" in done.said:
            assert rules() == found, (seed, number)
        assert pvefw(said, "start", *options).status == 0
        assert rules() == found, (seed, number)
        assert pvefw(said, "stop").status == 0
        assert have_no_rules()


def lose_an_interrupt_before_it_is_a_service() -> None:
    """Have this process get SIGINT where nobody can catch KeyboardInterrupt: in a generator that is dropped."""
    run = importlib.import_module("pvefw_nft.cli.run")
    make_control: Callable[[], Control] = run.make_control

    def generator() -> Iterator[None]:
        try:
            yield
        finally:
            signal.raise_signal(signal.SIGINT)

    def make_control_and_lose_it() -> Control:
        started = generator()
        next(started)
        del started
        return make_control()

    setattr(run, "make_control", make_control_and_lose_it)  # noqa: B010 - of this process alone


def test_service_does_not_lose_an_interrupt(options: list[str], tmp_path: Path) -> None:
    done = Command(["run", *options], tmp_path / "said", lose_an_interrupt_before_it_is_a_service).ended(60)
    assert done.status in (0, 130), done
    assert "ignored" not in done.said
    assert "Traceback" not in done.said


def end_between_load_and_record() -> None:
    """Have this process get SIGTERM when its ruleset is loaded and not yet on record."""
    commit = record.Prepared.commit

    def commit_after_the_signal(self: record.Prepared) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        commit(self)

    setattr(record.Prepared, "commit", commit_after_the_signal)  # noqa: B010 - of this process alone


@pytest.mark.parametrize("name", ["start", "update", "run"])
@pytest.mark.parametrize("backend", ["iptables", "nft"])
def test_ended_between_load_and_record_the_next_start_has_the_same_end(
    options: list[str], tmp_path: Path, backend: str, name: str
) -> None:
    """SIGTERM, as systemd sends it: the service finishes first, a command ends at once."""
    if backend == "nft" and not takes_compiled_nft():
        pytest.skip("this kernel does not take compiled nft rulesets")
    options = [*options[:-1], backend]
    said = tmp_path / "said"
    found = []
    for number in (0, 1, 0, 1, 0):
        configure(tmp_path, number, other=bool(number))
        assert pvefw(said, "start", *options).status == 0
        found.append(everything())
    configure(tmp_path, 1, other=True)
    done = Command([name, *options], said, end_between_load_and_record).ended()
    assert done.status == (0 if name == "run" else -signal.SIGTERM), done
    assert "Traceback" not in done.said
    assert rules() == {key: found[3][key] for key in rules()}  # all of it is loaded
    assert pvefw(said, "start", *options).status == 0
    assert everything() == found[3]
    assert pvefw(said, "stop").status == 0
    assert have_no_rules()


def test_reader_that_ends_early_is_not_an_error(options: list[str], tmp_path: Path) -> None:
    """As ``pvefw status | head -1``."""
    assert pvefw(tmp_path / "said", "start", *options).status == 0
    for command in ("status", "doctor"):
        reading, writing = os.pipe()
        os.close(reading)
        done = Command([command, *options], tmp_path / "said", partial(os.dup2, writing, 1)).ended()
        os.close(writing)
        assert (done.status, done.said) == (1, ""), done


# --- files ---------------------------------------------------------------------------------------------------


def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.open(path.parent, os.O_PATH)  # the whole path may be too long for a socket
        listening.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def a_link_to_nowhere(path: Path) -> None:
    path.symlink_to("/nonexistent/file")


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


FILES = ("cluster", "rules", "guest")
BECOMING = [*product(FILES, [a_folder, a_pipe, a_socket, a_link_to_itself, a_link_to_nowhere, endless])]
SOME_BECOMING = [("cluster", a_folder), ("rules", a_pipe), ("guest", a_link_to_nowhere)]


@pytest.mark.parametrize(("file", "become"), BECOMING if ALL else SOME_BECOMING)
def test_file_becomes_something_else(running: Running, file: str, become: Callable[[Path], None]) -> None:
    """The host's rules stay as they were, and the guest is filtered as before, or closed."""
    path: Path = getattr(running, file)
    text, before = path.read_text(), rules()
    host, guest = listed("PVEFW-HOST-IN"), listed("tap100i0-IN")
    path.unlink()
    become(path)
    time.sleep(2)  # --settle is 0.5 s
    assert listed("PVEFW-HOST-IN") == host
    assert listed("tap100i0-IN") == guest or "-j DROP\n" in listed("tap100i0-IN")
    assert "tap100i0" in listed("PVEFW-FWBR-IN")
    assert path.name in running.command.said()
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.write_text(text)
    running.waits_for(lambda: rules() == before)
    running.follows()


@pytest.mark.parametrize(("file", "mode"), [*product(FILES, (0o000, 0o200))] if ALL else [("cluster", 0o000)])
def test_file_without_read_permission(running: Running, file: str, mode: int) -> None:
    """The process that reads files has none of root's power over them."""
    path: Path = getattr(running, file)
    before = rules()
    path.chmod(mode)
    running.command.send(signal.SIGHUP)
    running.waits_for(lambda: f"{path.name}: cannot be read: Permission denied" in running.command.said())
    assert rules() == before
    path.chmod(0o640)
    running.follows()


def test_change_that_keeps_size_and_times_is_followed(running: Running) -> None:
    """As ``rsync --times``, or a clock that was set back."""
    found = running.rules.stat()
    text = running.rules.read_text()
    running.rules.write_text(text.replace("2000", "2999"))
    os.utime(running.rules, ns=(found.st_atime_ns, found.st_mtime_ns - 10**15))
    running.waits_for(lambda: "--dport 2999 " in listed("tap100i0-IN"))
    running.rules.write_text(text)
    os.utime(running.rules, ns=(0, 0))
    running.waits_for(lambda: "--dport 2000 " in listed("tap100i0-IN"))


# --- tools and other programs --------------------------------------------------------------------------------


def test_nft_flush_ruleset_in_a_loop(running: Running) -> None:
    before = rules()
    end = time.monotonic() + 5
    while time.monotonic() < end:
        shell("nft flush ruleset")
        time.sleep(0.1)  # as a loop of another program
    assert running.command.said().count("rules changed") <= 6
    assert "`nft`" in running.command.said()
    running.waits_for(lambda: rules() == before)


def test_set_renamed_after_a_flush_is_made_again(running: Running) -> None:
    before = rules()
    running.command.send(signal.SIGSTOP)
    shell(
        "iptables -F; ip6tables -F; ipset rename PVEFW-0-friends-v4 mine; ipset create PVEFW-0-friends-v4 hash:ip,port"
    )
    running.command.send(signal.SIGCONT)
    running.waits_for(lambda: {**rules(), "ipset": None} == {**before, "ipset": None})
    running.waits_for(lambda: "10.0.1.0/24" in tools.run(["ipset", "save", "PVEFW-0-friends-v4"]))
    assert "create mine " in tools.run(["ipset", "save", "mine"])


@pytest.mark.parametrize(("script", "said"), [("exec sleep 1000", "did not end within"), ("exit 3", "exit status 3")])
def test_tool_that_hangs_or_fails(options: list[str], tmp_path: Path, script: str, said: str) -> None:
    """The rules stay, and the change is made once the tool works again."""
    folder = tmp_path / "broken"
    folder.mkdir()
    runner = first_from(folder, timeout=2.0)
    with use_runner(runner), service(tmp_path / "said", *options, "--poll", "0.2") as command:
        command.waits_for(lambda: "started:" in command.said())
        before = listed("tap100i0-IN")
        broken = folder / "iptables-restore"
        broken.write_text(f"#!/bin/sh\n{script}\n")
        broken.chmod(0o755)
        configure(tmp_path, 4)
        command.waits_for(lambda: "iptables-restore" in command.said() and said in command.said())
        assert listed("tap100i0-IN") == before
        broken.unlink()
        command.waits_for(lambda: "--dport 2004 " in listed("tap100i0-IN"))


@pytest.fixture
def legacy(host: Namespace, tmp_path: Path) -> Iterator[None]:
    with legacy_tools(tmp_path / "tools"):
        yield


def test_lock_of_legacy_iptables_that_another_program_keeps(legacy: None, tmp_path: Path) -> None:
    need("iptables -L; ip6tables -L; ebtables -L; ipset list")
    configure(tmp_path)
    (tmp_path / "said").mkdir()
    with own_mounts():
        shell("mount -t tmpfs tmpfs /run")
        with service(tmp_path / "said", *options_of(tmp_path), "--poll", "0.2") as command:
            command.waits_for(lambda: "started:" in command.said())
            with open("/run/xtables.lock", "a") as lock:  # noqa: PTH123
                fcntl.flock(lock, fcntl.LOCK_EX)
                configure(tmp_path, 5)
                command.waits_for(lambda: "xtables lock" in command.said(), 60)
            command.waits_for(lambda: "--dport 2005 " in tools.run(["iptables", "-w", "-S", "tap100i0-IN"]))
