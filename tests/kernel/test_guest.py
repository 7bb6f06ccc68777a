"""The guest: a kernel of its own on this machine's files."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.kernel.guest import image, machine
from tests.kernel.guest.machine import Guest, GuestError

if TYPE_CHECKING:
    from pathlib import Path


def test_a_command_gives_its_status_and_output(guest: Guest) -> None:
    status, output = guest.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (status, output) == (3, b"out\nerr\n")


def test_output_comes_as_it_is_written(guest: Guest) -> None:
    pieces: list[bytes] = []
    guest.run(["sh", "-c", "echo one; sleep 0.5; echo two"], output=pieces.append)
    assert pieces == [b"one\n", b"two\n"]


def test_a_command_that_does_not_exist(guest: Guest) -> None:
    status, output = guest.run(["no-such-command"])
    assert (status, output) == (127, b"no-such-command: No such file or directory\n")


def test_the_kernel_is_the_guests_own(guest: Guest) -> None:
    _, output = guest.run(["uname", "-r"])
    assert output.decode().strip() == image.prepare().modules.name


def test_writes_of_the_guest_stay_in_the_guest(guest: Guest, tmp_path: Path) -> None:
    status, _ = guest.run(["sh", "-c", f"mkdir -p {tmp_path} && echo x > {tmp_path}/file && test -s {tmp_path}/file"])
    assert status == 0
    assert not (tmp_path / "file").exists()


def test_the_share_is_seen_by_both(guest: Guest) -> None:
    (guest.share / "in").write_text("hello")
    status, _ = guest.run(["cp", str(guest.share / "in"), str(guest.share / "out")])
    assert status == 0
    assert (guest.share / "out").read_text() == "hello"


def test_a_function_that_raises_tells_where(guest: Guest) -> None:
    with pytest.raises(GuestError, match=r"Traceback[\s\S]*FileNotFoundError.*/no-such-folder"):
        guest.call("os:listdir", "/no-such-folder")


def test_its_time_passes_as_this_machines_does(guest: Guest) -> None:
    """However long QEMU had to wait for a processor while the guest's kernel booted: it ran up to 14 times too fast."""
    here, there = time.monotonic(), guest.call("time:monotonic")
    time.sleep(2)  # the time to compare
    passed_there, passed_here = guest.call("time:monotonic") - there, time.monotonic() - here
    assert passed_there == pytest.approx(passed_here, rel=0.2)


def test_a_guest_that_hangs_is_booted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    qemu_command = machine._qemu_command

    def freeze_the_first(made: image.Image, share: Path, control: Path, memory: int, processors: int) -> list[str]:
        command = qemu_command(made, share, control, memory, processors)
        monkeypatch.setattr(machine, "_qemu_command", qemu_command)
        return [*command, "-S"]

    monkeypatch.setattr(machine, "_qemu_command", freeze_the_first)
    with Guest(boot_seconds=(2.0, *machine.BOOT_SECONDS)) as other:
        assert other.run(["true"]) == (0, b"")


def test_a_command_that_takes_too_long_ends_its_guest() -> None:
    with Guest() as other:
        with pytest.raises(GuestError, match="no answer from the guest in time"):
            other.run(["sleep", "60"], seconds=1)
        with pytest.raises((GuestError, OSError)):
            other.run(["true"])
