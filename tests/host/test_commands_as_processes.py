"""The commands as processes, with the real tools in a namespace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.host import lock
from pvefw_nft.host.records.pending import pending
from tests.waiting import wait_until

from .applied import ours, shell
from .here import firewall

if TYPE_CHECKING:
    from .conftest import Namespace

pytest.importorskip("nftables")

REPOSITORY = Path(__file__).resolve().parents[2]


def pvefw(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:  # noqa: ANN401
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, env=environment(), **options
    )


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pvefw_nft.cli", *arguments]


def environment() -> dict[str, str]:
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """A configuration whose cluster.fw lets one port in."""
    (tmp_path / "etc/pve/firewall").mkdir(parents=True)
    write(tmp_path, 80)
    return tmp_path


def write(root: Path, port: int, more: str = "") -> None:
    text = f"[OPTIONS]\nenable: 1\n[RULES]\nIN ACCEPT -p tcp -dport {port}\n{more}"
    temporary = root / "etc/pve/firewall/.new"
    temporary.write_text(text)
    temporary.replace(root / "etc/pve/firewall/cluster.fw")


def options(root: Path) -> list[str]:
    return ["--root", str(root), "--node", "n", "--local-network", "10.0.0.0/24"]


def lets_in(port: int) -> bool:
    return f"--dport {port} -j RETURN" in shell("iptables-save")


def test_commands(real: Namespace, configuration: Path) -> None:
    there = options(configuration)
    assert pvefw("status", *there).returncode == 3
    compiled = pvefw("compile", *there).stdout
    fed = pvefw("start", "--dry-run", "-v", *there).stdout
    # parts in which nothing happens are not fed
    assert fed == compiled.replace("### iptables-restore -T raw -n\n*raw\nCOMMIT\n", "").replace(
        "### ip6tables-restore -T raw -n\n*raw\nCOMMIT\n", ""
    )
    done = pvefw("start", *there)
    assert (done.returncode, "chains and sets changed" in done.stdout) == (0, True)
    assert pvefw("update", *there).stdout == "nothing changed\n"
    assert pvefw("status", *there).returncode == 0
    write(configuration, 81)
    status = pvefw("status", "--diff", *there)
    assert status.returncode == 1
    assert "change iptables filter PVEFW-HOST-IN" in status.stdout
    assert "    - -p tcp --dport 80 -j RETURN" in status.stdout
    assert "    + -p tcp --dport 81 -j RETURN" in status.stdout
    assert f"  because: {configuration}/etc/pve/firewall/cluster.fw changed" in status.stdout
    preview = pvefw("update", "--dry-run", *there)
    assert preview.stdout.count("PVEFW-HOST-IN\n    - -p tcp --dport 80 -j RETURN\n    + -p tcp --dport 81") == 2
    assert json.loads(pvefw("status", "--format", "json", *there).stdout)["backends"] == ["iptables"]
    assert pvefw("update", *there).returncode == 0
    assert lets_in(81)
    assert pvefw("stop").returncode == 0
    assert pvefw("status", *there).returncode == 3


def test_configuration_with_errors_keeps_the_running_ruleset(real: Namespace, configuration: Path) -> None:
    there = options(configuration)
    pvefw("start", *there)
    write(configuration, 81, "IN NONSENSE\n")
    refused = pvefw("update", *there)
    assert refused.returncode == 1
    assert "nothing was changed, because the configuration has errors" in refused.stderr
    assert "cluster.fw:5" in refused.stderr
    assert lets_in(80)
    assert pvefw("status", *there).returncode == 1
    applied = pvefw("update", "--skip-invalid", *there)
    assert applied.returncode == 1
    assert lets_in(81)


def test_two_updates_at_once(real: Namespace, configuration: Path) -> None:
    there = options(configuration)
    pvefw("start", *there)
    write(configuration, 81)
    both = [subprocess.Popen(command("update", *there), env=environment(), stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert lets_in(81)
    assert firewall.is_running()


def test_lock_that_stays_held(real: Namespace, configuration: Path) -> None:
    with lock.hold():
        refused = pvefw("start", "--wait", "0.2", *options(configuration))
    assert refused.returncode == 4
    assert "another run of pvefw" in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_ruleset_comes_back_when_the_command_dies(real: Namespace, configuration: Path, number: signal.Signals) -> None:
    if Path("/run/systemd/system").is_dir():
        pytest.skip("the guard is systemd's here, and runs outside of this namespace")
    there = options(configuration)
    pvefw("start", *there)
    write(configuration, 81)
    arguments = command("update", "--confirm", "3", *there)
    with subprocess.Popen(arguments, env=environment(), stdin=subprocess.DEVNULL, start_new_session=True) as process:
        assert wait_until(lambda: lets_in(81))
        os.killpg(process.pid, number)
    assert wait_until(lambda: lets_in(80) and not lets_in(81))
    assert wait_until(lambda: pending() is None)


def test_confirm_command(real: Namespace, configuration: Path) -> None:
    if Path("/run/systemd/system").is_dir():
        pytest.skip("the guard is systemd's here, and runs outside of this namespace")
    there = options(configuration)
    pvefw("start", *there)
    write(configuration, 81)
    arguments = command("update", "--confirm", "60", *there)
    with subprocess.Popen(arguments, env=environment(), stdin=subprocess.DEVNULL) as process:
        assert wait_until(lambda: lets_in(81) and pvefw("confirm").returncode == 0)
        assert process.wait(30) == 0
    assert lets_in(81)
    assert pvefw("confirm").returncode == 3


def test_service_follows_the_configuration(real: Namespace, configuration: Path) -> None:
    with subprocess.Popen(command("run", *options(configuration)), env=environment()) as service:
        try:
            assert wait_until(lambda: lets_in(80))
            write(configuration, 81)
            assert wait_until(lambda: lets_in(81))
            write(configuration, 82, "IN NONSENSE\n")
            assert wait_until(lambda: lets_in(82))
            shell("iptables -F PVEFW-HOST-IN")
            service.send_signal(signal.SIGHUP)
            assert wait_until(lambda: lets_in(82))
        finally:
            service.terminate()
        assert service.wait(30) == 0
    assert lets_in(82)  # the rules stay


def test_service_tells_the_service_manager(real: Namespace, configuration: Path, tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        env = {**environment(), "NOTIFY_SOCKET": str(tmp_path / "notify")}
        with subprocess.Popen(command("run", "--stop-at-end", *options(configuration)), env=env) as service:
            said = [manager.recv(4096).decode()]
            while "READY=1" not in said[-1]:
                said.append(manager.recv(4096).decode())
            assert said[0] == "STATUS=filtering (iptables)"
            service.terminate()
            while said[-1] != "STOPPING=1":
                said.append(manager.recv(4096).decode())
            assert service.wait(30) == 0
    assert ours() == []
