"""Files that are saved in two steps, by each way of saving: the firewall is never off, and no guest without its rules,
because a file was missing, empty or cut off for a moment. What closes something is applied at once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Self

import pytest

pytest.importorskip("pyroute2")

from pvefw_nft.config.files import Files
from pvefw_nft.config.steady import SettledFiles, SteadyFiles, is_cut_off

from .commands import Command, pvefw, service
from .conftest import need
from .network import configure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .conftest import Namespace

SETTLE = 1.5
GAP = 0.3  # seconds that a file is missing, empty or cut off: longer than the service waits for more events


def gap() -> None:
    """Have the file be incomplete for a while, as a slow program would."""
    time.sleep(GAP)  # the service must notice


def by_truncating(path: Path, text: str) -> None:
    with path.open("w") as file:  # as `cat > file` and many editors
        file.flush()
        gap()
        file.write(text)


def by_writing_in_parts(path: Path, text: str) -> None:
    data = text.encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
    for start in range(0, len(data), len(data) // 3 + 1):
        os.write(descriptor, data[start : start + len(data) // 3 + 1])
        gap()
    os.close(descriptor)


def by_writing_anew(path: Path, text: str) -> None:
    """Write line by line, the first one otherwise than before, as scripts do."""
    first, *others = text.splitlines(keepends=True)
    with path.open("w") as file:
        for line in [first.replace("\n", " \n"), *others]:
            file.write(line)
            file.flush()
            gap()


def by_moving_away(path: Path, text: str) -> None:
    away = path.with_name(f"{path.name}~")
    path.rename(away)  # as vim with `backupcopy=no` does
    gap()
    path.write_text(text)
    away.unlink()


def by_removing(path: Path, text: str) -> None:
    path.unlink()  # as `rsync --inplace --delete-before`, and scripts
    gap()
    path.write_text(text)


def by_renaming_over(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")  # as sed -i, rsync, and pmxcfs' own tools
    temporary.write_text(text)
    temporary.replace(path)


def by_cp(path: Path, text: str) -> None:
    source = path.parent.parent / "source"
    source.write_text(text)
    subprocess.run(["cp", source, path], check=True)


def by_sed(path: Path, text: str) -> None:
    by_renaming_over(path, text + "X\n")
    subprocess.run(["sed", "-i", "$d", path], check=True)


def by_rsync(path: Path, text: str, *options: str) -> None:
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    source = path.parent.parent / "source"
    source.write_text(text)
    # slower than a poll: the file is there in parts meanwhile, or its temporary copy is
    subprocess.run(["rsync", "--ignore-times", "--bwlimit=1", *options, source, path], check=True)


def by_rsync_in_place(path: Path, text: str) -> None:
    by_rsync(path, text, "--inplace", "--whole-file")


def by_rsync_of_the_folder(path: Path, text: str) -> None:
    """Copy all files of the folder, and delete those that the source does not have."""
    source = path.parent.parent / "source"
    shutil.copytree(path.parent, source)
    (source / path.name).write_text(text)
    subprocess.run(["rsync", "--archive", "--delete-before", "--ignore-times", f"{source}/", path.parent], check=True)


WAYS: dict[str, Callable[[Path, str], None]] = {
    "truncate": by_truncating,
    "write in parts": by_writing_in_parts,
    "write anew": by_writing_anew,
    "move away": by_moving_away,
    "remove": by_removing,
    "rename over": by_renaming_over,
    "cp": by_cp,
    "sed -i": by_sed,
    "rsync": by_rsync,
    "rsync --inplace": by_rsync_in_place,
    "rsync --delete": by_rsync_of_the_folder,
}
FILES = {
    "cluster.fw": "firewall/cluster.fw",
    "guest's rules": "firewall/100.fw",
    "guest": "nodes/n/qemu-server/100.conf",
}


class Sampler:
    """Looks all the time how many rules a guest's chain and the host's chain have."""

    def __init__(self) -> None:
        self.fewest = (1 << 30, 1 << 30)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(30)

    def _look(self) -> None:
        while not self._over.is_set():
            host, guest = rules_now()
            self.fewest = (min(self.fewest[0], host), min(self.fewest[1], guest))
            time.sleep(0.02)  # between two looks


def rules_now() -> tuple[int, int]:
    text = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
    return text.count("-A PVEFW-HOST-IN "), text.count("-A tap100i0-IN ")


@pytest.fixture
def running(host: Namespace, tmp_path: Path) -> Iterator[tuple[Command, Path]]:
    need("iptables -L; ip6tables -L; ipset list; ebtables -L")
    configure(tmp_path)
    (tmp_path / "said").mkdir()
    options = ["--root", str(tmp_path), "--node", "n", "--local-network", "192.0.2.0/24", "--backend", "iptables"]
    with service(tmp_path / "said", *options, "--poll", "0.1", "--settle", str(SETTLE)) as command:
        command.waits_for(lambda: "started:" in command.said())
        yield command, tmp_path / "etc/pve"


def has(text: str) -> bool:
    return text in subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("way", WAYS)
def test_saving_opens_nothing(running: tuple[Command, Path], way: str, file: str) -> None:
    command, pve = running
    path = pve / FILES[file]
    before = rules_now()
    assert min(before) > 3
    text = path.read_text()
    added = {
        "cluster.fw": text + "IN ACCEPT -p tcp -dport 4711\n",
        "guest's rules": text + "IN ACCEPT -p tcp -dport 4711\n",
        "guest": text + "net1: virtio=BC:24:11:00:00:77,bridge=vmbr0,firewall=1\n",
    }[file]
    with Sampler() as sampler:
        WAYS[way](path, added)
        command.waits_for(lambda: has("--dport 4711" if file != "guest" else "tap100i1-IN"), 60)
    assert all(fewest >= rules for fewest, rules in zip(sampler.fewest, before, strict=True)), sampler.fewest


def test_changes_that_close_are_applied_at_once(running: tuple[Command, Path]) -> None:
    """Also while another file is in doubt."""
    command, pve = running
    fw = pve / "firewall/100.fw"
    text = fw.read_text()
    (pve / "firewall/cluster.fw").rename(pve / "firewall/cluster.fw~")
    fw.write_text(text.replace("OUT ACCEPT -p tcp -dport 80", "OUT DROP -p tcp -dport 80"))
    begun = time.monotonic()
    command.waits_for(lambda: has("-A tap100i0-OUT -p tcp -m tcp --dport 80 -j DROP"))
    assert time.monotonic() - begun < SETTLE + 3  # a loaded machine
    assert has("-A INPUT -j PVEFW-INPUT")


def test_a_file_that_stays_away_counts_as_missing_after_a_while(running: tuple[Command, Path]) -> None:
    command, pve = running
    (pve / "firewall/cluster.fw").write_text("")
    command.waits_for(lambda: "cluster.fw is missing, empty or cut off" in command.said())
    assert has("PVEFW-HOST-IN")
    command.waits_for(lambda: not has("PVEFW-HOST-IN"))


def test_switching_off_by_hand_needs_no_wait(running: tuple[Command, Path]) -> None:
    command, pve = running
    path = pve / "firewall/cluster.fw"
    by_renaming_over(path, path.read_text().replace("enable: 1", "enable: 0"))
    command.waits_for(lambda: not has("PVEFW-HOST-IN"))
    assert "missing, empty or cut off" not in command.said()


@pytest.mark.parametrize("file", ["cluster.fw", "guest"])
def test_update_waits_for_a_file_that_is_being_saved(host: Namespace, tmp_path: Path, file: str) -> None:
    need("iptables -L; ip6tables -L; ipset list; ebtables -L")
    configure(tmp_path)
    (tmp_path / "said").mkdir()
    options = ["--root", str(tmp_path), "--node", "n", "--local-network", "192.0.2.0/24", "--backend", "iptables"]
    assert pvefw(tmp_path / "said", "start", *options).status == 0
    path = tmp_path / "etc/pve" / FILES[file]
    text = path.read_text()
    before = rules_now()
    path.unlink()
    update = Command(("update", *options, "--settle", "5"), tmp_path / "said")
    update.waits_for(lambda: "perhaps while it is being saved" in update.said())
    path.write_text(text)
    done = update.ended()
    assert done.status == 0, done
    assert rules_now() == before
    path.unlink()
    # without cluster.fw, names that the guest's rules use are unknown
    pvefw(tmp_path / "said", "update", *options, "--settle", "0.2", "--skip-invalid")
    assert rules_now() != before


# --- without a host -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "before", "cut"),
    [
        (None, "a\n", True),
        ("", "a\n", True),
        (" \n", "a\n", True),
        ("a\n", "a\nb\n", True),
        ("x\nb", "a\nb\n", True),
        ("a\nb", "a\nb", False),
        ("b\n", "a\nb\n", False),
        ("# new\n", "a\nb\n", True),
        ("# new\na\n", "a\nb\n", False),  # as many lines: no more can be told
        ("# new\n\n\na\n", "a\nb\nc\n", True),
        ("x\nc\n", "a\nb\nc\n", False),
        ("a\nb: 1\nd\n", "a\nb: 1\nc\n", False),
        ("[OPTIONS]\n# one\n# two\n", "[OPTIONS]\nenable: 1\n", True),
        ("[OPTIONS]\nenable: 0\n# two\n", "[OPTIONS]\nenable: 1\n", False),
        ("#a\n#b\n", "#a\nnet0: virtio=BC:24:11:00:00:01,firewall=1\n", True),
        ("#a\nnet0: virtio=BC:24:11:00:00:01\n", "#a\nnet0: virtio=BC:24:11:00:00:01,firewall=1\n", False),
        ("a\nb\nc\n", "a\nb\n", False),
        ("a\n", None, False),
        (None, None, False),
        (None, "", False),
    ],
)
def test_files_that_look_cut_off(text: str | None, before: str | None, cut: bool) -> None:
    assert is_cut_off(text, before) is cut


def test_file_that_never_settles_is_taken_in_the_end(tmp_path: Path) -> None:
    path, now = tmp_path / "x", 0.0
    files = SteadyFiles(Files(), 1.0, lambda: now)
    path.write_text("whole\ntext\n")
    assert files.text(path) == "whole\ntext\n"
    for number in range(100):
        now += 0.5
        path.write_text("whole\n"[: number % 6])
        if files.text(path) != "whole\ntext\n":
            break
    assert 9 <= now <= 11


def test_new_names_count_while_other_names_are_in_doubt(tmp_path: Path) -> None:
    now = 0.0
    files = SteadyFiles(Files(), 1.0, lambda: now)
    (tmp_path / "100.conf").touch()
    assert files.listed(tmp_path) == ["100.conf"]
    (tmp_path / "100.conf").rename(tmp_path / "101.conf")
    assert sorted(files.listed(tmp_path)) == ["100.conf", "101.conf"]
    assert files.doubtful() == [str(tmp_path / "100.conf")]
    now = 1.1
    assert files.listed(tmp_path) == ["101.conf"]
    assert files.doubt_ends() is None


def test_no_wait_for_files_that_were_missing_before(tmp_path: Path) -> None:
    files = SettledFiles(Files(), lambda _path, _text: False, [], 60)
    assert files.text(tmp_path / "x") is None
    assert files.listed(tmp_path) == []
