"""Files that are no configuration: a diagnostic or a clear error in good time, never a traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

REPOSITORY = Path(__file__).resolve().parent.parent

CLUSTER = "[OPTIONS]\nenable: 1\n"
GUEST = "[OPTIONS]\nenable: 1\n[RULES]\nIN SSH(ACCEPT)\n"
CONF = "cores: 2\nnet0: virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1\n"

FILES = {
    "cluster": "etc/pve/firewall/cluster.fw",
    "host": "etc/pve/local/host.fw",
    "guest": "etc/pve/firewall/100.fw",
    "conf": "etc/pve/qemu-server/100.conf",
    "corosync": "etc/pve/corosync.conf",
    "vnet": "etc/pve/sdn/firewall/vnet1.fw",
}

each_file = pytest.mark.parametrize("which", FILES)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Give a small configuration without a fault."""
    for which, text in {"cluster": CLUSTER, "host": "", "guest": GUEST, "conf": CONF, "vnet": ""}.items():
        file = tmp_path / FILES[which]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


def pvefw(
    command: str, root: Path, *arguments: str, timeout: float = 30, prefix: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a command on a configuration; fail on a traceback, or when it takes too long."""
    script = "from pvefw_nft.cli import main; main()"
    options = ["--root", str(root), "--node", "n1", "--local-network", "10.0.0.0/24"]
    run = subprocess.run(
        [*prefix, sys.executable, "-c", script, command, *options, *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=timeout,
        check=False,
    )
    assert "Traceback" not in run.stderr
    assert re.fullmatch(r"[^\x00-\x09\x0b-\x1f\x7f-\x9f]*", run.stderr), "control characters on the terminal"
    return run


def refused(root: Path, file: Path, prefix: Sequence[str] = ()) -> None:
    """Expect that a file is named as the reason why the configuration is not compiled, or as faulty."""
    run = pvefw("compile", root, "--format", "json", prefix=prefix)
    assert run.returncode in (1, 3), run.stderr
    assert file.name in run.stderr
    if run.stdout:
        guest = json.loads(run.stdout)["iptables"].get("filter", {}).get("tap100i0-IN")
        assert guest is not None, "the guest is not filtered"


def test_the_configuration_itself_is_good(root: Path) -> None:
    run = pvefw("compile", root, "--format", "json")
    assert (run.returncode, run.stderr) == (0, "")
    assert "tap100i0-IN" in json.loads(run.stdout)["iptables"]["filter"]


# --- no text ------------------------------------------------------------------------------------------------


@each_file
def test_a_binary_file(root: Path, which: str) -> None:
    file = root / FILES[which]
    file.write_bytes(bytes(range(256)) * 40)
    refused(root, file)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "cp500"])
@pytest.mark.parametrize("which", ["cluster", "guest", "conf"])
def test_another_encoding(root: Path, which: str, encoding: str) -> None:
    file = root / FILES[which]
    file.write_bytes(file.read_text().encode(encoding))
    refused(root, file)


@pytest.mark.parametrize("which", ["cluster", "guest", "conf"])
def test_a_comment_in_latin_1_changes_nothing(root: Path, which: str) -> None:
    before = pvefw("compile", root).stdout
    file = root / FILES[which]
    file.write_bytes("# für alle\n".encode("latin-1") + file.read_bytes())
    assert pvefw("compile", root).stdout == before


@each_file
def test_a_file_of_100_megabytes(root: Path, which: str) -> None:
    file = root / FILES[which]
    with file.open("w") as out:
        out.writelines("# a comment of sixty-four characters, and nothing behind it. ..\n" * 1000 for _ in range(1600))
    start = time.monotonic()
    refused(root, file)
    assert time.monotonic() - start < 10


@each_file
def test_a_folder_in_place_of_a_file(root: Path, which: str) -> None:
    file = root / FILES[which]
    file.unlink(missing_ok=True)
    file.mkdir()
    refused(root, file)


@each_file
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda file: os.mkfifo(file), id="a pipe without a writer"),
        pytest.param(lambda file: file.symlink_to(file.name), id="a link to itself"),
        pytest.param(lambda file: file.symlink_to("/proc/self/mem"), id="a file that gives an error when read"),
        pytest.param(lambda file: file.symlink_to("/dev/zero"), id="a device without end"),
    ],
)
def test_files_that_cannot_be_read(root: Path, which: str, make: Callable[[Path], None]) -> None:
    file = root / FILES[which]
    file.unlink(missing_ok=True)
    make(file)
    refused(root, file)


@each_file
def test_an_unreadable_file(root: Path, which: str) -> None:
    file = root / FILES[which]
    file.touch()
    file.chmod(0)
    refused(root, file, prefix=powerless())


def powerless() -> list[str]:
    """Return the prefix that runs a command without root's power to read any file."""
    if os.geteuid():
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("root reads any file, and setpriv is not installed")
    return [setpriv, "--bounding-set=-dac_override,-dac_read_search"]


def test_a_firewall_folder_that_is_a_file(root: Path) -> None:
    folder = root / "etc/pve/firewall"
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    folder.touch()
    assert pvefw("compile", root).returncode in (1, 3)


# --- text beyond measure ------------------------------------------------------------------------------------

RULES = {
    "an address list": "IN ACCEPT -source " + ",".join(f"10.{i >> 8}.{i & 255}.0/24" for i in range(20000)),
    "commas": "IN ACCEPT -source " + "," * 100_000,
    "ports": "IN ACCEPT -p tcp -dport " + ",".join(["1"] * 50_000),
    "a word": "IN " + "A" * 100_000,
    "a macro": "IN " + "A" * 100_000 + "(ACCEPT)",
    "brackets": "IN " + "(" * 100_000,
    "options": "IN ACCEPT" + " -p tcp" * 20_000,
    "blanks": "IN" + " " * 100_000 + "ACCEPT",
    "dashes": "IN ACCEPT " + "-" * 100_000,
    "a port": "IN ACCEPT -p tcp -dport " + "9" * 100_000,
    "a prefix length": "IN ACCEPT -source 10.0.0.0/" + "9" * 100_000,
    "columns": "IN ACCEPT" + " -" * 50_000,
    "short commas": "IN ACCEPT -source " + "," * 4000,
    "short ports": "IN ACCEPT -p tcp -dport " + ",".join(["1"] * 2000),
    "short brackets": "IN " + "(" * 4000,
    "short dashes": "IN ACCEPT " + "-" * 4000,
    "a short port": "IN ACCEPT -p tcp -dport " + "9" * 5000,
    "short columns": "IN ACCEPT" + " -" * 2000,
    "an escape sequence": "IN ACCEPT -p \x1b[2Jtcp",
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_beyond_measure(root: Path, rule: str) -> None:
    (root / FILES["guest"]).write_text(GUEST + RULES[rule] + "\nIN HTTP(ACCEPT)\n")
    run = pvefw("compile", root, "--format", "json", timeout=10)
    assert run.returncode == 1
    assert "100.fw:5" in run.stderr
    assert len(run.stderr) < 20_000, "a message floods the terminal"
    # The lines behind it are compiled.
    chain = json.loads(run.stdout)["iptables"]["filter"]["tap100i0-IN"]
    assert "-A tap100i0-IN -p tcp --dport 80 -j ACCEPT" in chain


def test_a_long_comment_is_accepted(root: Path) -> None:
    (root / FILES["guest"]).write_text(f"# {'x' * 100_000}\n{GUEST}IN HTTP(ACCEPT) # {'x' * 5000}\n")
    run = pvefw("compile", root)
    assert (run.returncode, run.stderr) == (0, "")
    assert "xxxx" not in run.stdout


def test_a_nul_byte_is_not_text(root: Path) -> None:
    (root / FILES["guest"]).write_text(GUEST + "IN ACCEPT -p tcp -dport 22\0 -j ACCEPT\n")
    refused(root, root / FILES["guest"])


@pytest.mark.parametrize(
    "name",
    ["../../../etc/passwd", "..", "a/b", "/etc/passwd", "$(id)", "`id`", "x;y", "x' -j ACCEPT", "a" * 200],
)
@pytest.mark.parametrize(
    "lines",
    [
        "[IPSET {}]\n10.0.0.1",
        "[group {}]\nIN ACCEPT",
        "[ALIASES]\n{} 10.0.0.1",
        "[RULES]\nGROUP {}",
        "[RULES]\nIN ACCEPT -source +{}",
        "[RULES]\nIN ACCEPT -source dc/{}",
        "[RULES]\nIN {}(ACCEPT)",
        "[RULES]\nIN ACCEPT -i {}",
        "[OPTIONS]\n{}: 1",
    ],
)
def test_a_name_that_leads_elsewhere(root: Path, lines: str, name: str) -> None:
    (root / FILES["cluster"]).write_text(CLUSTER + lines.format(name) + "\n")
    run = pvefw("compile", root)
    assert run.returncode == 1
    assert "cluster.fw" in run.stderr
    assert name not in run.stdout


@pytest.mark.parametrize("node", ["..", "../..", "a/b", "/etc", "", "."])
def test_an_invalid_node_name_is_an_error(root: Path, node: str) -> None:
    run = pvefw("compile", root, f"--node={node}")
    assert run.returncode == 2
    assert run.stdout == ""


@pytest.mark.parametrize(
    "file", ["..fw", "-1.fw", "0100.fw", "100 .fw", "1e3.fw", "\u0661.fw", "100.fw.bak", "9" * 40 + ".fw"]
)
def test_a_file_that_is_not_named_after_a_guest(root: Path, file: str) -> None:
    (root / "etc/pve/firewall" / file).write_text("[OPTIONS]\nenable: 1\n")
    run = pvefw("compile", root, "--format", "json")
    assert {name for name in json.loads(run.stdout)["iptables"]["filter"] if name.startswith("tap")} == {
        "tap100i0-IN",
        "tap100i0-OUT",
    }
