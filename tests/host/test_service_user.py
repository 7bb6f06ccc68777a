"""The service's user: files that it may leave in its folders for root's commands, and rights that it lacks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.host.paths import Paths, use_paths
from pvefw_nft.host.tools import use_runner

from .runners import Answering

pytest.importorskip("pyroute2")

import pvefw_nft
from pvefw_nft.app.compiler import Compiler
from pvefw_nft.errors import HostError
from pvefw_nft.host import lock, service_user, settings, tools
from pvefw_nft.host.records import record, state
from pvefw_nft.pipeline import Source

from .conftest import need
from .network import configure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .conftest import Namespace

OWNER = 64230
"""A number that no user of this machine has."""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the service's folder of records, which belongs to its user."""
    made = tmp_path / "records"
    made.mkdir(mode=0o700)
    os.chown(made, OWNER, -1)
    monkeypatch.setenv("PVEFW_STATE_DIRECTORY", str(made))
    monkeypatch.setenv("PVEFW_RUN_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(service_user, "uid", lambda: OWNER)
    return made


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Return a file of root that no command may touch."""
    made = tmp_path / "secret"
    made.write_text("root's")
    made.chmod(0o600)
    return made


def is_untouched(secret: Path) -> bool:
    found = secret.stat()
    return (secret.read_text(), found.st_uid, found.st_mode & 0o777) == ("root's", 0, 0o600)


# --- records -----------------------------------------------------------------------------------------------------


def test_root_hands_records_to_the_service(folder: Path) -> None:
    state.write(folder / "held.json", {"fingerprint": "x"})
    found = (folder / "held.json").stat()
    assert (found.st_uid, found.st_mode & 0o777) == (OWNER, 0o600)
    os.chown(folder, 0, -1)
    state.write(folder / "held.json", {"fingerprint": "x"})
    assert (folder / "held.json").stat().st_uid == 0  # a folder of root's holds files of root's


@pytest.mark.parametrize("kind", ["link", "second name", "FIFO", "folder"])
@pytest.mark.parametrize("name", ["held.json", f".held.json.{os.getpid()}"])
def test_root_does_not_write_to_a_link_or_fifo_in_the_place_of_a_record(
    folder: Path, secret: Path, kind: str, name: str
) -> None:
    place = folder / name
    match kind:
        case "link":
            place.symlink_to(secret)
        case "second name":
            place.hardlink_to(secret)
        case "FIFO":
            os.mkfifo(place)
        case _:
            place.mkdir()
    state.write(folder / "held.json", {"fingerprint": "x"})
    assert json.loads((folder / "held.json").read_text()) == {"fingerprint": "x"}
    assert is_untouched(secret)


def test_record_that_is_a_link_is_not_read(folder: Path, secret: Path) -> None:
    (folder / "held.json").symlink_to(secret)
    assert state.read_record(folder / "held.json", str) is None
    assert "no regular file" in " ".join(state.take_warnings())


@pytest.mark.parametrize("owner", [OWNER + 1, 1])
def test_records_of_other_users_are_not_read(folder: Path, owner: int) -> None:
    (folder / "held.json").write_text("{}")
    os.chown(folder / "held.json", owner, -1)
    assert state.read_record(folder / "held.json", str) is None
    os.chown(folder / "held.json", OWNER, -1)
    assert state.read_record(folder / "held.json", str) == "{}"
    state.take_warnings()


def test_copy_of_a_link_is_a_link(folder: Path, secret: Path) -> None:
    (folder / "running.ruleset").symlink_to(secret)
    record.copy(folder / "running.ruleset", folder / "confirmed.ruleset")
    assert secret.stat().st_nlink == 1
    assert is_untouched(secret)


def test_lock_with_a_second_name_or_of_another_user_is_refused(folder: Path, secret: Path, tmp_path: Path) -> None:
    (tmp_path / "pvefw.lock").hardlink_to(secret)
    with pytest.raises(HostError, match="is not pvefw's"), lock.hold():
        pass
    assert is_untouched(secret)
    (tmp_path / "pvefw.lock").unlink()
    (tmp_path / "pvefw.lock").touch()
    os.chown(tmp_path / "pvefw.lock", OWNER, -1)
    with lock.hold():
        assert (tmp_path / "pvefw.lock").stat().st_uid == OWNER
    os.chown(tmp_path / "pvefw.lock", OWNER + 1, -1)
    with pytest.raises(HostError, match="is not pvefw's"), lock.hold():
        pass


@pytest.mark.parametrize(
    "key", ["net/core/bpf_jit_harden", "net/ipv4/ip_forward", "kernel/modprobe", "net/bridge/../../kernel/modprobe"]
)
def test_setting_that_pvefw_never_sets_is_not_put_back(folder: Path, tmp_path: Path, key: str) -> None:
    standing = tmp_path / "sys" / key
    (tmp_path / "sys/net/bridge").mkdir(parents=True)
    standing.parent.mkdir(parents=True, exist_ok=True)
    standing.write_text("1\n")
    state.run_directory().mkdir()
    (state.run_directory() / "sysctls.json").write_text(json.dumps({key: {"before": "0", "ours": "1"}}))
    with use_paths(Paths(sysctls=tmp_path / "sys")):
        settings.put_back()
    assert standing.read_text() == "1\n"
    assert "is no setting" in " ".join(state.take_warnings())


# --- rights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mask", "enough"), [("3000", True), ("1000", False), ("2000", False), ("1ffffffffff", True)])
def test_capabilities_stand_for_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: str, enough: bool) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: OWNER)
    (tmp_path / "status").write_text(f"Name:\tpvefw\nCapPrm:\t0\nCapEff:\t{mask:>016}\n")
    if enough:
        service_user.need_privileges(tmp_path / "status")
    else:
        with pytest.raises(HostError, match="CAP_NET_ADMIN and CAP_NET_RAW"):
            service_user.need_privileges(tmp_path / "status")


def test_user_has_br_netfilter_loaded_by_a_rule(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[Sequence[str], str | None]] = []

    def note(command: Sequence[str], text: str | None) -> str:
        ran.append((command, text))
        return ""

    monkeypatch.setattr(os, "geteuid", lambda: OWNER)
    with use_paths(Paths(sysctls=folder, modules=folder)), use_runner(Answering(note)):
        settings.load_modules("iptables")
        assert [command for command, _ in ran] == [["iptables-restore", "--noflush"]] * 2
        assert "physdev" in str(ran[0][1])
        ran.clear()
        settings.load_modules("nft")
        assert ran == []  # they come with the unit


def test_probe_of_br_netfilter_leaves_no_rule(host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    need("iptables -L")
    before = tools.run(["iptables-save"])
    for text in (settings._PROBE, settings._END_PROBE):
        tools.run(["iptables-restore", "--noflush"], text)
    assert "PVEFW" not in tools.run(["iptables-save"])
    assert "PVEFW" not in before


SHED = """
import json, sys
from pathlib import Path
from pvefw_nft.app.compiler import Compiler
from pvefw_nft.host.confine import needs_another_program
from pvefw_nft.pipeline import Source

assert needs_another_program()
with Compiler(Source(Path(sys.argv[1]), "n", lambda: "192.0.2.0/24"), "nft") as compiler:
    found = compiler.find()
    assert compiler.find() is found
    status = Path(f"/proc/{compiler._worker._process}/status").read_text().splitlines()
masks = {line.split()[0]: line.split()[1] for line in status if line.startswith("Cap")}
print(json.dumps([masks, compiler.missing, list(found.desired.pieces)]))
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Return a folder that all may read, as pytest's own are not."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


class User:
    """A user of this machine, and a Python that users may run."""

    def __init__(self, python: str) -> None:
        self._python = python

    def run(self, *arguments: str, capabilities: str = "-all") -> subprocess.CompletedProcess[str]:
        """Run Python with these capabilities and no others."""
        kept = [f"--{kind}-caps={capabilities}" for kind in ("inh", "ambient")]
        paths = os.pathsep.join((str(Path(pvefw_nft.__file__).parents[1]), sysconfig.get_path("purelib")))
        return subprocess.run(
            ["setpriv", f"--reuid={OWNER}", f"--regid={OWNER}", "--clear-groups", *kept, self._python, *arguments],
            capture_output=True, text=True, check=False, cwd="/",
            env={"PYTHONPATH": paths, "PVEFW_RUN_DIRECTORY": "/nowhere", "PVEFW_STATE_DIRECTORY": "/nowhere"},
        )  # fmt: skip


@pytest.fixture
def user() -> User:
    """Skip if users may run no Python: the tests' Python may be below /root."""
    again = "import os, sys; os.execv(sys.executable, [sys.executable, '-c', 'import pvefw_nft.cli, pyparsing'])"
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        if shutil.which("setpriv") is not None and User(python).run("-c", again).returncode == 0:
            return User(python)
    pytest.skip("needs setpriv, and a Python that users may run")


def test_compiler_of_a_user_has_no_capabilities(open_folder: Path, user: User) -> None:
    configure(open_folder)
    run = user.run("-c", SHED, str(open_folder), capabilities="+net_admin,+net_raw")
    assert run.returncode == 0, run.stderr
    masks, missing, pieces = json.loads(run.stdout)
    assert (masks["CapPrm:"], masks["CapEff:"], masks["CapAmb:"]) == ("0" * 16,) * 3
    assert not any("capabilities" in one for one in missing)
    with Compiler(Source(open_folder, "n", lambda: "192.0.2.0/24"), "nft") as compiler:
        assert list(compiler.find().desired.pieces) == pieces


def test_user_without_capabilities_is_told(open_folder: Path, user: User) -> None:
    run = user.run("-m", "pvefw_nft.cli", "run", "--root", str(open_folder))
    assert run.returncode == 3
    assert "needs root, or CAP_NET_ADMIN and CAP_NET_RAW" in run.stderr


# --- which unit it is -----------------------------------------------------------------------------------------------


def test_closed_folder_or_addresses_in_priv_ask_for_root(open_folder: Path) -> None:
    pve = open_folder / "etc" / "pve"
    (pve / "priv").mkdir(parents=True)
    elsewhere = service_user.why_root(open_folder)
    if elsewhere is not None:
        pytest.skip(elsewhere)
    (pve / "priv" / "ipam.db").touch()
    assert "ipam.db holds addresses" in (service_user.why_root(open_folder) or "")
    (pve / "sdn").mkdir()
    (pve / "sdn" / "pve-ipam-state.json").touch()
    assert service_user.why_root(open_folder) is None
    open_folder.chmod(0o700)
    assert service_user.why_root(open_folder) == f"{open_folder} is closed to users other than root"
