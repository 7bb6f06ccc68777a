"""A root that comes from elsewhere: nothing outside of it is read, whatever its links and special files are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pvefw_nft.pipeline import Source, check_root
from tests.support import VM


def pvefw(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command; fail on a traceback."""
    script = "from pvefw_nft.cli import main; main()"
    command = [sys.executable, "-c", script, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in run.stderr
    return run


def foreign_root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for folder in ("firewall", "nodes/n1/qemu-server"):
        (root / "etc/pve" / folder).mkdir(parents=True)
    (root / "etc/pve/local").symlink_to("nodes/n1")
    (root / "etc/pve/firewall/cluster.fw").write_text("[OPTIONS]\nenable: 1\n")
    (root / "etc/pve/nodes/n1/qemu-server/100.conf").write_text(VM)
    return root


def test_links_inside_a_root_are_followed(tmp_path: Path) -> None:
    root = foreign_root(tmp_path)
    (root / "etc/pve/firewall/100.fw").symlink_to("../shared.fw")
    (root / "etc/pve/shared.fw").write_text("[OPTIONS]\nenable: 1\n")
    (root / "etc/pve/nodes/n1/host.fw").write_text("[RULES]\nIN ACCEPT\n")
    checked = check_root(Source(root, None, lambda: None))
    assert checked.diagnostics == ()
    assert [nic.interface for nic in checked.ruleset.nics] == ["tap100i0"]


@pytest.mark.parametrize("place", ["etc/pve/firewall/100.fw", "etc/pve/nodes/n1/qemu-server/100.conf"])
@pytest.mark.parametrize("target", ["secret", "/{}/secret", "fifo", "device"])
def test_guests_file_that_leads_out_of_the_root_is_not_read(tmp_path: Path, place: str, target: str) -> None:
    root = foreign_root(tmp_path)
    (tmp_path / "secret").write_text("the-password\n")
    path = root / place
    path.unlink(missing_ok=True)
    if target == "fifo":
        os.mkfifo(path)
    elif target == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(target.format(tmp_path) if "/" in target else "../" * 8 + str(tmp_path / "secret")[1:])
    run = pvefw("check", "--root", str(root), "--node", "n1")
    assert run.returncode == 1
    assert "guest-closed" in run.stdout
    assert "password" not in run.stdout + run.stderr


@pytest.mark.parametrize("place", ["etc/pve/firewall/cluster.fw", "etc/pve/nodes/n1/host.fw", "etc/pve/corosync.conf"])
def test_nodes_file_that_leads_out_of_the_root_is_not_read(tmp_path: Path, place: str) -> None:
    root = foreign_root(tmp_path)
    (tmp_path / "secret").write_text("the-password\n")
    (root / place).unlink(missing_ok=True)
    (root / place).symlink_to(tmp_path / "secret")
    run = pvefw("check", "--root", str(root), "--node", "n1")
    assert run.returncode == 1
    assert "leads out of" in run.stderr
    assert "password" not in run.stdout + run.stderr


@pytest.mark.parametrize("folder", ["etc/pve/firewall", "etc/pve/nodes/n1/qemu-server", "etc/pve/sdn/firewall"])
def test_folder_that_leads_out_of_the_root_is_not_listed(tmp_path: Path, folder: str) -> None:
    root = foreign_root(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("100.conf", "vnet1.fw", "cluster.fw"):
        (outside / name).write_text("the-password\n")
    shutil.rmtree(root / folder, ignore_errors=True)
    (root / folder).parent.mkdir(exist_ok=True)
    (root / folder).symlink_to(outside)
    run = pvefw("check", "--root", str(root), "--node", "n1")
    assert run.returncode == 1
    assert "password" not in run.stdout + run.stderr


def test_local_that_points_nowhere_is_an_error(tmp_path: Path) -> None:
    root = foreign_root(tmp_path)
    (root / "etc/pve/local").unlink()
    (root / "etc/pve/local").symlink_to("nodes/gone")
    run = pvefw("compile", "--root", str(root))
    assert run.returncode == 1
    assert "etc/pve/local: the link leads to no folder" in run.stderr
    assert run.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare", "save:{}", "save:{}"),
        ("compare", "nft-json:{}", "save:{}"),
        ("compare", "iptables:{root}", "nft:{root}", "--known", "{}"),
        ("simulate", "--tests", "{}"),
    ],
    ids=["save", "nft-json", "known", "tests"],
)
@pytest.mark.parametrize("kind", ["device", "FIFO", "folder", "huge", "missing"])
def test_input_that_is_not_a_regular_file_is_refused(tmp_path: Path, arguments: tuple[str, ...], kind: str) -> None:
    root, place = foreign_root(tmp_path), tmp_path / "input"
    match kind:
        case "device":
            place = Path("/dev/zero")
        case "FIFO":
            os.mkfifo(place)
        case "folder":
            place.mkdir()
        case "huge":
            place.touch()
            os.truncate(place, 2**40)
        case _:
            pass
    run = pvefw(*(part.format(place, root=root) for part in arguments), "--root", str(root), "--node", "n1")
    assert run.returncode in (2, 3)
    assert str(place) in run.stderr
