"""The systemd units that ``run --print-unit`` and ``--write-units`` make, and when the service says it is ready."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

pytest.importorskip("pyroute2")

from pvefw_nft.cli import cli
from pvefw_nft.errors import HostError, UsageError
from pvefw_nft.host import service_units, service_user
from pvefw_nft.host.proxmox.flag import flag_path

from .commands import service
from .conftest import need
from .network import configure

if TYPE_CHECKING:
    from click.testing import Result

    from .conftest import Namespace


def printed(*options: str) -> str:
    done = invoke("--print-unit", *options)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def invoke(*options: str) -> Result:
    """Run the command ``run``, with what it says to people apart from what it prints."""
    # click 8.2 keeps them apart without being asked to
    arguments: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in signature(CliRunner).parameters else {}
    return CliRunner(**arguments).invoke(cli, ["run", *options])


def test_unit_keeps_the_options_it_was_given() -> None:
    given = ("--backend", "nft", "--root", "/srv/x", "--node", "n", "--poll", "3.0", "--settle", "7.0", "--stop-at-end")
    (line,) = [line for line in printed(*given).splitlines() if line.startswith("ExecStart=")]
    words = line.split(" run ", 1)[1].split()
    assert sorted(words) == sorted(given)


def test_unit_without_options_has_none() -> None:
    (line,) = [line for line in printed().splitlines() if line.startswith("ExecStart=")]
    assert line.endswith(" run")
    assert "RequiredBy" not in printed()


def test_fail_closed_unit_is_required_by_the_units_that_start_guests() -> None:
    assert "RequiredBy=pve-guests.service libvirt-guests.service\n" in printed("--fail-closed")


@pytest.fixture
def open_to_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this program be one that the service's user may run, wherever the tests' Python lies."""
    monkeypatch.setattr(service_user, "why_root", lambda _: None)
    monkeypatch.setattr(service_user, "uid", lambda: 64230)


def written(folder: Path, *options: str) -> str:
    """Write the printed unit below a folder, with a program that is there, and return its path."""
    lines = printed(*options).splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if line.startswith("ExecStart="))
    lines[at] = "ExecStart=/bin/true\n"
    (folder / "pvefw.service").write_text("".join(lines))
    (folder / "pvefw-failure.service").write_text(printed_failure_unit())
    return str(folder / "pvefw.service")


def printed_failure_unit() -> str:
    done = invoke("--print-failure-unit")
    assert done.exit_code == 0, done.stderr
    return done.stdout


def systemd_analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


def test_units_are_written_with_the_options_given(tmp_path: Path) -> None:
    done = invoke("--backend", "nft", "--as-user", "--write-units", str(tmp_path))
    assert done.exit_code == 0, done.stderr
    assert done.stdout == ""
    assert {path.name for path in tmp_path.iterdir()} == set(service_units.NAMES)
    assert f"{tmp_path}/pvefw-flag.path\n" in done.stderr
    assert (tmp_path / "pvefw.service").read_text() == printed("--backend", "nft", "--as-user")
    (tmp_path / "pvefw.service").unlink()
    (tmp_path / "pvefw.service").symlink_to("pvefw-failure.service")
    (tmp_path / ".pvefw.service.pvefw").symlink_to("elsewhere")
    assert invoke("--as-user", "--write-units", str(tmp_path)).exit_code == 0
    assert not (tmp_path / "pvefw.service").is_symlink()  # the link's target stays unchanged
    assert (tmp_path / "pvefw-failure.service").read_text() == printed_failure_unit()
    assert not (tmp_path / "elsewhere").exists()


def test_roots_unit_needs_none_for_the_flag_file(tmp_path: Path) -> None:
    assert invoke("--as-root", "--write-units", str(tmp_path)).exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {service_units.SERVICE, service_units.FAILURE}
    assert "pvefw-flag" not in (tmp_path / "pvefw.service").read_text()


def test_units_of_the_flag_file_are_sound(tmp_path: Path, open_to_users: None) -> None:
    assert invoke("--as-user", "--write-units", str(tmp_path)).exit_code == 0
    (tmp_path / "pvefw.service").unlink()  # its program is not there
    for name in service_units.FLAG_UNITS:
        text = (tmp_path / name).read_text()
        assert "@" not in text.replace("@system-service", "")
        assert str(flag_path()) in text
        done = systemd_analyze("verify", "--man=no", "--recursive-errors=no", str(tmp_path / name))
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", ["missing", "file"])
def test_units_that_cannot_be_written_are_told(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("")
    where = tmp_path / "file/below" if folder == "file" else Path("/proc/missing")
    done = invoke("--as-user", "--write-units", str(where))
    assert isinstance(done.exception, HostError)
    assert done.exception.message.startswith(f"cannot write {where}/pvefw.service: ")


@pytest.mark.parametrize(("options", "score"), [((), 15), (("--as-root",), 27)])
def test_unit_is_exposed_no_more_than_that(
    tmp_path: Path, open_to_users: None, options: tuple[str, ...], score: int
) -> None:
    unit = written(tmp_path, *options)
    done = systemd_analyze("security", "--offline=true", f"--threshold={score}", unit)
    assert done.returncode == 0, done.stdout[-300:]
    assert systemd_analyze("security", "--offline=true", f"--threshold={score - 1}", unit).returncode == 1


def test_systemd_understands_each_line(tmp_path: Path, open_to_users: None) -> None:
    for options in ((), ("--as-root",)):
        done = systemd_analyze("verify", "--recursive-errors=no", written(tmp_path, *options))
        assert [line for line in done.stderr.splitlines() if str(tmp_path) in line] == []


def test_units_of_user_and_root_differ_in_their_needs(open_to_users: None) -> None:
    users, roots = printed(), printed("--as-root")
    assert "\nUser=pvefw\n" in users
    assert "\nAmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW\n" in users
    assert "Wants=modprobe@nf_conntrack_bridge.service" in users
    assert not [word for word in ("User=", "Ambient", "modprobe@") if word in roots]
    assert "CAP_SYS_MODULE" in roots
    for text in (users, roots):
        assert re.findall(r"@[A-Z]+@", text) == []
        for setting in ("MemoryMax=", "IPAddressDeny=any", "OnFailure=pvefw-failure.service", "OOMPolicy=continue"):
            assert f"\n{setting}" in text
    assert "ExecStopPost=+/bin/rm -f /run/proxmox-nftables" in printed("--stop-at-end")
    assert "ExecStopPost=" not in users + printed("--stop-at-end", "--as-root")


def test_unit_that_must_be_roots_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_user, "why_root", lambda _: "/root is closed")
    done = invoke("--print-unit")
    assert done.exit_code == 0
    assert "this unit runs as root: /root is closed" in done.stderr
    assert "User=" not in done.stdout
    assert "User=" in printed("--as-user")
    for option in ("--as-root", "--as-user"):
        assert isinstance(invoke(option).exception, UsageError)


def test_unit_without_its_user_would_not_start(monkeypatch: pytest.MonkeyPatch, open_to_users: None) -> None:
    assert "User=" in printed()
    monkeypatch.setattr(service_user, "uid", lambda: None)
    done = invoke("--print-unit")
    assert "User=" not in done.stdout
    assert "systemd-sysusers --inline" in done.stderr


@pytest.mark.parametrize("fail_closed", [False, True])
def test_ready_before_rules_are_in_place_only_without_fail_closed(
    host: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail_closed: bool
) -> None:
    need("iptables -L; ip6tables -L; ipset list; ebtables -L")
    (tmp_path / "said").mkdir()
    (tmp_path / "c").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(0.1)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        messages: list[bytes] = []

        def heard(text: bytes) -> bool:
            with contextlib.suppress(TimeoutError):
                while True:
                    messages.append(manager.recv(4096))
            return any(text in message for message in messages)

        options = ["--root", str(tmp_path / "c"), "--node", "n", "--local-network", "192.0.2.0/24"]
        more = ["--fail-closed"] if fail_closed else []
        with service(tmp_path / "said", *options, "--backend", "iptables", "--poll", "0.2", *more) as command:
            command.waits_for(lambda: "nothing is there" in command.said())
            command.waits_for(lambda: heard(b"EXTEND_TIMEOUT_USEC=" if fail_closed else b"READY=1"))
            assert heard(b"READY=1") is not fail_closed
            if fail_closed:
                configure(tmp_path / "c")
                command.waits_for(lambda: heard(b"READY=1"))
                assert "changes in" in command.said()
