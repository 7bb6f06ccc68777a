"""Whatever fails around pvefw (the cluster file system, the disks, what it remembers, limits of the kernel): the rules
stay, a host that comes up gets the ruleset confirmed last, ``stop`` works, and the message says what is wrong.

:data:`FAULTS` are what fails, :data:`EXPECTED` is what each command then does, by the kind of fault. The nft backend's
compiled rulesets need bridge conntrack: where the kernel lacks it, its tests are skipped (the lab runs some of them).
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import shutil
import signal
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("pyroute2")
pytest.importorskip("nftables")

from pvefw_nft.host import sysctl, tools
from pvefw_nft.host.records import record, state
from pvefw_nft.host.settings import needed_first
from tests.drawn import SEED

from .commands import Command, Done, pvefw, service
from .conftest import need
from .fuse import HANG, Faulty, own_mounts
from .listing import everything_in_the_kernel
from .network import configure, small_file_system, switch_off, takes_compiled_nft

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from .conftest import Namespace

FILE_TIMEOUT = float(os.environ.get("PVEFW_TEST_FILE_TIMEOUT", "3"))
"""Seconds after which a file system counts as hanging; an emulated machine needs some for what does not hang."""
ALL = os.environ.get("PVEFW_TEST_FAULTS") == "all"
"""Try every fault; else some, or one of each kind, that take different ways through the program."""


@dataclass(frozen=True)
class Host:
    """A host whose etc/pve is a FUSE file system, and the options that name its configuration."""

    faulty: Faulty
    folder: Path
    options: tuple[str, ...]
    stack: contextlib.ExitStack

    @cached_property
    def doctor(self) -> int:
        """How ``doctor`` ends; ask before anything fails."""
        return self.pvefw("doctor").status

    @property
    def backend(self) -> str:
        return self.options[-1]

    def pvefw(self, command: str, *more: str) -> Done:
        reads = command not in ("stop", "confirm", "rollback")
        return pvefw(self.folder, command, *more, *(self.options if reads else ()))

    def configure(self, number: int) -> None:
        configure(self.folder.parent / "c", number, other=bool(number % 2))


@pytest.fixture(params=["iptables", "nft"])
def host_of(
    request: pytest.FixtureRequest, host: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Host]:
    backend: str = request.param
    print(f"faults are chosen by PVEFW_TEST_SEED={SEED}")
    need("iptables -L; ip6tables -L; ipset list; ebtables -L; nft add table inet probe; nft delete table inet probe")
    if backend == "nft" and not takes_compiled_nft():
        pytest.skip("this kernel does not take compiled nft rulesets")
    monkeypatch.setenv("PVEFW_FILE_TIMEOUT", f"{FILE_TIMEOUT:g}")
    configure(tmp_path / "c")
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "said").mkdir()
    with own_mounts(), contextlib.ExitStack() as stack:
        faulty = Faulty(tmp_path / "root/etc/pve", tmp_path / "c/etc/pve", tmp_path / "faults.json")
        stack.callback(faulty.close)
        options = (
            "--root",
            str(tmp_path / "root"),
            "--node",
            "n",
            "--local-network",
            "192.0.2.0/24",
            "--backend",
            backend,
        )
        made = Host(faulty, tmp_path / "said", options, stack)
        done = made.pvefw("start")
        assert done.status == 0, done.said
        yield made
        faulty.mend()


# --- what fails ---------------------------------------------------------------------------------------------

Fault = "Callable[[Host], object]"


def fails(operation: str, fault: str | int, *names: str) -> Callable[[Host], object]:
    return lambda host: host.faulty.break_(operation, fault, names)


def killed(host: Host) -> None:
    host.faulty.kill()


def unmounted(host: Host) -> None:
    host.faulty.kill()
    host.faulty.unmount()


CLUSTER_FILE_SYSTEM: dict[str, tuple[Callable[[Host], object], str]] = {
    "one file cannot be read": (fails("read", errno.EIO, "100.fw"), "100.fw: cannot be read: Input/output error"),
    "cluster.fw cannot be read": (fails("read", errno.EIO, "cluster.fw"), "cluster.fw: cannot be read"),
    "cluster.fw cannot be looked up": (fails("stat", errno.EACCES, "cluster.fw"), "cluster.fw: cannot be read"),
    "host.fw cannot be opened": (fails("open", errno.EIO, "host.fw"), "host.fw: cannot be read"),
    "guests cannot be listed": (fails("readdir", errno.EIO, "qemu-server"), "qemu-server: cannot be read"),
    "one guest cannot be looked up": (fails("stat", errno.EIO, "100.conf"), "100.conf: cannot be read"),
    "all times out": (fails("all", errno.ETIMEDOUT), "timed out"),
    "not connected": (fails("all", errno.ENOTCONN), "not connected"),
    "daemon killed": (killed, "not connected"),
    "unmounted": (unmounted, "etc/pve: nothing is there"),
    "all hangs": (fails("all", HANG), f"does not answer within {FILE_TIMEOUT:g} s"),
    "read hangs": (fails("read", HANG), f"does not answer within {FILE_TIMEOUT:g} s"),
    "readdir hangs": (fails("readdir", HANG), f"does not answer within {FILE_TIMEOUT:g} s"),
    "one file hangs": (fails("read", HANG, "100.fw"), f"does not answer within {FILE_TIMEOUT:g} s"),
    # each error of pmxcfs in each call
    **{
        f"{operation} fails with {errno.errorcode[number]}": (fails(operation, number), os.strerror(number))
        for operation in ("stat", "open", "read", "readdir")
        for number in (errno.EIO, errno.EAGAIN, errno.ENOTCONN, errno.EACCES, errno.ETIMEDOUT)
    },
}


def damaged(name: str, content: Callable[[Path], object]) -> Callable[[Host], object]:
    def damage(_: Host) -> None:
        for folder in (state.state_directory(), state.run_directory()):
            for path in folder.glob(name):
                path.unlink()
                content(path)

    return damage


def full(directory: Callable[[], Path]) -> Callable[[Host], object]:
    def fill(host: Host) -> None:
        kept = [(path.name, path.read_bytes()) for path in directory().iterdir() if path.is_file()]
        disk = host.stack.enter_context(small_file_system(directory(), "1m"))
        for name, content in kept:
            (disk / name).write_bytes(content)
        with contextlib.suppress(OSError):
            (disk / "filler").write_bytes(b"x" * 2_000_000)

    return fill


def read_only(directory: Callable[[], Path]) -> Callable[[Host], object]:
    def protect(host: Host) -> None:
        for command in (["mount", "--bind"], ["mount", "-o", "remount,bind,ro"]):
            tools.run([*command, *([str(directory())] * (2 if "--bind" in command else 1))])
        host.stack.callback(tools.run, ["umount", str(directory())])

    return protect


def writes(text: str | bytes) -> Callable[[Path], object]:
    data = text.encode() if isinstance(text, str) else text
    return lambda path: path.write_bytes(data)


DEEP = "[" * 100_000
RECORDS: dict[str, Callable[[Host], object]] = {
    "all records empty": damaged("*", writes("")),
    "all records are numbers": damaged("*", writes("7")),
    "all records are empty objects": damaged("*", writes("{}")),
    "all records are lists": damaged("*", writes('[{"a": [1]}]')),
    "all records nested deeply": damaged("*", writes(DEEP)),
    "all records are not text": damaged("*", writes(b"\xff\xfe\0\xff" * 100)),
    "all records are FIFOs": damaged("*", lambda path: os.mkfifo(path)),
    "all records are folders": damaged("*", lambda path: (path / "x").mkdir(parents=True)),
    "all records are links to nowhere": damaged("*", lambda path: path.symlink_to("/nonexistent/x")),
    "all records are endless": damaged("*", lambda path: path.symlink_to("/dev/zero")),
    "all records are gone": damaged("*", lambda _: None),
}
DISKS: dict[str, Callable[[Host], object]] = {
    "state is full": full(state.state_directory),
    "run directory is full": full(state.run_directory),
    "state is read-only": read_only(state.state_directory),
    "run directory is read-only": read_only(state.run_directory),
}
DISKS_BY_FOLDER = (
    ("state is full", "state is read-only"),
    ("run directory is full", "run directory is read-only"),
)


# --- what each command does ---------------------------------------------------------------------------------

KEPT, CHANGED, GONE = "as they were", "as the change has them", "gone"
AS_BEFORE = -1
"""The command ends as it did before the fault: ``doctor`` has its opinion about the machine."""
EXPECTED: dict[str, dict[str, tuple[int, str]]] = {
    # of a host whose rules run: by command, how it ends, and the rules after it
    "cluster file system": {
        "update": (1, KEPT),
        "start": (1, KEPT),
        "status": (1, KEPT),
        "doctor": (1, KEPT),
        "confirm": (3, KEPT),
        "run": (0, KEPT),
        "stop": (0, GONE),
    },
    # what runs is not known any more: it is pending, and loaded again
    "records": {
        "status": (1, KEPT),
        "doctor": (AS_BEFORE, KEPT),
        "confirm": (3, KEPT),
        "update": (0, KEPT),
        "start": (0, KEPT),
        "run": (0, KEPT),
        "stop": (0, GONE),
    },
    # the same, and nothing can be loaded, since that could not be noted
    "full state": {
        "status": (1, KEPT),
        "doctor": (AS_BEFORE, KEPT),
        "confirm": (3, KEPT),
        "update": (3, KEPT),
        "start": (3, KEPT),
        "run": (0, KEPT),
        "stop": (0, GONE),
    },
    # nothing is to be done
    "other disks": {
        "status": (0, KEPT),
        "doctor": (AS_BEFORE, KEPT),
        "confirm": (3, KEPT),
        "update": (0, KEPT),
        "start": (0, KEPT),
        "run": (0, KEPT),
        "stop": (0, GONE),
    },
}


def rules() -> dict[str, Any]:
    """Return what the kernel holds of rules."""
    found = everything_in_the_kernel()
    return {key: found[key] for key in ("iptables", "ip6tables", "ebtables", "ipset", "bridge", "inet")}


def have_no_rules() -> bool:
    return not any("PVEFW" in line or "tap100i0" in line for line in repr(rules()).split(","))


def some(faults: Iterable[str], *short: str) -> list[str]:
    """Return the faults to try."""
    return [fault for fault in faults if ALL or fault in short]


def one_of_each(faults: Iterable[str], *kinds: tuple[str, ...]) -> list[str]:
    """Return the faults to try: all, or one of each kind, by chance."""
    chance = random.Random(SEED)
    chosen = [chance.choice(kind) for kind in kinds]
    return [fault for fault in faults if ALL or fault in chosen]


def run_for(host: Host, seconds: float, message: str) -> str:
    with service(host.folder, *host.options, "--poll", "0.3") as running:
        running.waits_for(lambda: running.said() and re.search(message, running.said()))
        end = time.monotonic() + seconds
        running.waits_for(lambda: time.monotonic() >= end)
    return running.said()


def check_all_commands(host: Host, kind: str, message: str) -> None:
    before = rules()
    for command, (code, after) in EXPECTED[kind].items():
        if command == "run":
            said = run_for(host, 1.0, message)
        else:
            done = host.pvefw(command)
            assert done.status == (host.doctor if code == AS_BEFORE else code), (command, done)
            said = done.said
        assert "Traceback" not in said, (command, said)
        assert "cannot print" not in said, (command, said)
        assert "pvefw failed" not in said, (command, said)
        if command in ("update", "start", "status", "doctor", "run"):
            assert re.search(message, said), (command, said)
            assert not message or said.count(message) <= 2, (command, said)
        if after == KEPT:
            assert rules() == before, command
        else:
            assert have_no_rules(), command


@pytest.mark.parametrize(
    "fault",
    one_of_each(
        CLUSTER_FILE_SYSTEM,
        ("open fails with EACCES", "stat fails with EIO"),
        ("one file cannot be read",),
        ("daemon killed", "unmounted"),
        ("all hangs", "readdir hangs"),
    ),
)
def test_cluster_file_system_fails(host_of: Host, fault: str) -> None:
    inject, message = CLUSTER_FILE_SYSTEM[fault]
    before = rules()
    inject(host_of)
    check_all_commands(host_of, "cluster file system", message)
    # at boot: nothing runs, and the ruleset confirmed last is put in place
    shutil.rmtree(state.run_directory())
    done = host_of.pvefw("update")
    assert have_no_rules()
    done = host_of.pvefw("start")
    assert done.status == 1
    assert re.search(message, done.said)
    assert "the ruleset that was confirmed last is in place" in done.said
    assert rules() == before
    assert host_of.pvefw("stop").status == 0
    said = run_for(host_of, 0.5, "confirmed last is in place")
    assert re.search(message, said)
    assert rules() == before


@pytest.mark.parametrize(
    "fault",
    one_of_each(
        RECORDS,
        ("all records are lists",),
        ("all records nested deeply", "all records are endless"),
        ("all records are FIFOs", "all records are folders"),
    ),
)
def test_records_are_damaged(host_of: Host, fault: str) -> None:
    assert host_of.doctor in (0, 1)
    RECORDS[fault](host_of)
    check_all_commands(host_of, "records", "")
    # what a start writes is sound again
    assert host_of.pvefw("start").status == 0
    assert host_of.pvefw("status").status == 0


@pytest.mark.parametrize("fault", one_of_each(DISKS, *DISKS_BY_FOLDER))
def test_disks_are_full_or_read_only(host_of: Host, fault: str) -> None:
    assert host_of.doctor in (0, 1)
    DISKS[fault](host_of)
    check_all_commands(host_of, "full state" if fault == "state is full" else "other disks", "")


@pytest.mark.parametrize("fault", one_of_each(DISKS, *DISKS_BY_FOLDER))
def test_change_on_a_full_or_read_only_disk_is_not_half_done(host_of: Host, fault: str) -> None:
    before = rules()
    DISKS[fault](host_of)
    host_of.configure(1)
    done = host_of.pvefw("update")
    assert "Traceback" not in done.said
    if "state" in fault:
        assert done.status == 3
        assert str(state.state_directory()) in done.said
        assert rules() == before
    else:
        assert str(state.run_directory()) in done.said
        assert rules() != before
    stopped = host_of.pvefw("stop")
    assert stopped.status == 0, stopped
    assert have_no_rules()


@pytest.mark.parametrize("fault", [name for name in DISKS if "run" in name])
def test_first_start_is_whole_without_room_in_the_run_directory(host_of: Host, fault: str) -> None:
    before = rules()
    assert host_of.pvefw("stop").status == 0
    DISKS[fault](host_of)
    done = host_of.pvefw("start")
    assert done.status == 0, done
    assert str(state.run_directory()) in done.said
    assert rules() == before
    assert record.confirmed_path().read_bytes() == record.running_path().read_bytes()
    assert host_of.pvefw("stop").status == 0
    assert have_no_rules()


# --- at boot ------------------------------------------------------------------------------------------------


def unreadable(host: Host) -> None:
    host.faulty.break_("all", errno.ENOTCONN)


def both(*faults: Callable[[Host], object]) -> Callable[[Host], object]:
    def inject(host: Host) -> None:
        for fault in faults:
            fault(host)

    return inject


AT_BOOT: dict[str, tuple[Callable[[Host], object], int, str, Callable[[], str]]] = {
    # nothing runs, and the configuration has changed since: how ``start`` ends, the rules after it or ``run``, and what
    # the message names. What cannot be recorded on disk is not loaded; without the notes below /run it is.
    "state is full": (full(state.state_directory), 3, KEPT, lambda: str(state.state_directory())),
    "state is read-only": (read_only(state.state_directory), 3, KEPT, lambda: str(state.state_directory())),
    "run directory is full": (full(state.run_directory), 0, CHANGED, lambda: str(state.run_directory())),
    "run directory is read-only": (read_only(state.run_directory), 0, CHANGED, lambda: str(state.run_directory())),
    "state and run directory are full": (
        both(full(state.state_directory), full(state.run_directory)),
        3,
        KEPT,
        lambda: str(state.state_directory()),
    ),
    **{fault: (inject, 0, CHANGED, lambda: "") for fault, inject in RECORDS.items()},
    **{
        f"{fault}, and no file can be read": (both(inject, unreadable), 1, GONE, lambda: "not connected")
        for fault, inject in RECORDS.items()
    },
}


def boot(host: Host) -> None:
    """Have the host be as after a boot: no rules, settings as the kernel has them, nothing below /run."""
    assert host.pvefw("stop").status == 0
    shutil.rmtree(state.run_directory())
    state.run_directory().mkdir(mode=0o700)
    switch_off()


@pytest.mark.parametrize("command", ["start", "run"])
@pytest.mark.parametrize(
    "fault",
    some(
        AT_BOOT,
        "state is full",
        "run directory is read-only",
        "all records are FIFOs, and no file can be read",
    ),
)
def test_fault_at_boot(host_of: Host, fault: str, command: str) -> None:
    kept = rules()
    host_of.configure(2)
    assert host_of.pvefw("update").status == 0
    changed = rules()
    host_of.configure(0)
    assert host_of.pvefw("update").status == 0
    assert rules() == kept != changed
    boot(host_of)
    host_of.configure(2)
    inject, status, after, named = AT_BOOT[fault]
    inject(host_of)
    if command == "run":
        said = run_for(host_of, 0.5, re.escape(named()))
    else:
        done = host_of.pvefw(command)
        assert done.status == status, done
        said = done.said
    assert named() in said
    for word in ("Traceback", "pvefw failed", "cannot print"):
        assert word not in said, said
    if after == GONE:
        assert have_no_rules()
    else:
        assert rules() == (changed if after == CHANGED else kept), said
        needed = needed_first(host_of.backend)
        assert {key: sysctl.read(key) for key in needed} == needed
        assert ("the ruleset that was confirmed last is in place" in said) == (after == KEPT)
    if needed_first(host_of.backend) and "run directory" in fault:
        assert "`pvefw stop` cannot restore net.bridge.bridge-nf-call-iptables=0" in said
    stopped = host_of.pvefw("stop")
    assert stopped.status == 0, stopped
    assert have_no_rules()


# --- a change that waits for its confirmation ---------------------------------------------------------------


@contextlib.contextmanager
def waiting_update(host: Host) -> Iterator[Command]:
    """Have a change wait for its confirmation, and end its command."""
    waiting = Command(["update", *host.options, "--confirm", "600"], host.folder)
    try:
        # an emulated machine takes half a minute to start the guard
        waiting.waits_for(lambda: "pvefw confirm" in waiting.said(), 120)
        yield waiting
    finally:
        with contextlib.suppress(ProcessLookupError):
            waiting.send(signal.SIGKILL)
        waiting.ended()


WITH_A_CHANGE: dict[str, dict[str, tuple[int, str]]] = {
    # of a change that waits for its confirmation: by command, how it ends, and the rules after it
    "cluster file system": {"confirm": (0, CHANGED), "rollback": (0, KEPT)},
    # there is nothing sound to confirm or to return to
    "records": {"confirm": (3, CHANGED), "rollback": (3, CHANGED)},
    "full": {"confirm": (0, CHANGED), "rollback": (0, KEPT)},
    # the rules come first, and then it cannot be noted
    "read-only": {"confirm": (3, CHANGED), "rollback": (3, KEPT)},
}
PENDING: dict[str, tuple[Callable[[Host], object], str]] = {
    **{fault: (inject, "cluster file system") for fault, (inject, _) in CLUSTER_FILE_SYSTEM.items()},
    **{fault: (inject, "records") for fault, inject in RECORDS.items()},
    **{fault: (inject, "full" if "full" in fault else "read-only") for fault, inject in DISKS.items()},
}


@pytest.mark.parametrize("command", ["confirm", "rollback"])
@pytest.mark.parametrize(
    "fault",
    some(
        PENDING,
        "stat fails with EIO",
        "all records are lists",
        "state is read-only",
    ),
)
def test_change_that_waits_for_its_confirmation(host_of: Host, fault: str, command: str, no_systemd: None) -> None:
    before = rules()
    host_of.configure(2)
    with waiting_update(host_of):
        changed = rules()
        assert changed != before
        inject, kind = PENDING[fault]
        inject(host_of)
        status, after = WITH_A_CHANGE[kind][command]
        done = host_of.pvefw(command)
        assert done.status == status, done
        assert "Traceback" not in done.said
        assert rules() == (changed if after == CHANGED else before)
        if status == 3:
            folder = state.run_directory() if "run directory" in fault else state.state_directory()
            assert "no change waits" in done.said or str(folder) in done.said or "no confirmed ruleset" in done.said


def test_service_comes_back_with_the_file_system(host_of: Host) -> None:
    before = rules()
    host_of.configure(1)
    host_of.faulty.break_("all", errno.EIO)
    with service(host_of.folder, *host_of.options, "--poll", "0.2") as running:
        running.waits_for(lambda: "Input/output error" in running.said())
        assert rules() == before
        host_of.faulty.mend()
        running.waits_for(lambda: "changes in" in running.said())
        assert rules() != before
        # and dies and is mounted again
        changed = rules()
        host_of.faulty.kill()
        running.waits_for(lambda: "not connected" in running.said())
        host_of.configure(2)
        time.sleep(0.5)  # for a mistake that would change rules
        assert rules() == changed
        host_of.faulty.unmount()
        host_of.faulty.mount()
        running.waits_for(lambda: rules() != changed)
