"""``pvefw cluster``: against sshd instances in network namespaces of the test, on nodes that run pvefw for real."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import schemas
from tests.host.conftest import Namespace, need
from tests.host.network import has_bridge_conntrack
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("asyncssh")
pytest.importorskip("pyroute2")

REPOSITORY = Path(__file__).resolve().parents[2]
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
_NO_DAD = 0x02  # IFA_F_NODAD, linux/if_addr.h

OPEN = "[OPTIONS]\nenable: 1\n[ALIASES]\nlocal_network 10.0.0.0/24\n"
SHUT = "[OPTIONS]\nenable: 1\n[ALIASES]\nlocal_network 192.0.2.0/24\n"
"""Rules that let the coordinator in by ssh, and rules that do not."""
NFT = "[OPTIONS]\nnftables: 1\n"

WRAPPER = """\
#!/bin/sh
case $1 in
    status | compare | start | update) exec {python} {program} "$@" --root {root} --node {name} ;;
    *) exec {python} {program} "$@" ;;
esac
"""

SSHD_CONFIG = """\
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {keys}
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
SetEnv PATH={folder}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin {environment}
"""


class Node:
    """A node: a namespace with sshd, and a configuration of its own."""

    def __init__(self, name: str, address: str, folder: Path, key: Path) -> None:
        self.name, self.address, self.folder = name, address, folder
        self.namespace = Namespace()
        (folder / "bin").mkdir(parents=True)
        (folder / "run").mkdir()
        self._make_key(folder / "host_key")
        wrapper = folder / "bin/pvefw"
        # without connection tracking on bridges, what needs it is replaced in nft's rules
        program = "-m pvefw_nft.cli" if has_bridge_conntrack() else REPOSITORY / "benchmarks/cut_down.py"
        wrapper.write_text(WRAPPER.format(python=sys.executable, program=program, root=folder, name=name))
        wrapper.chmod(0o755)
        self.configure(OPEN)
        environment = {
            "PYTHONPATH": REPOSITORY,
            "PVEFW_RUN_DIRECTORY": folder / "run",
            "PVEFW_STATE_DIRECTORY": folder / "state",
        }
        (folder / "sshd_config").write_text(
            SSHD_CONFIG.format(
                address=address,
                folder=folder,
                keys=key.with_suffix(".pub"),
                environment=" ".join(f"{name}={value}" for name, value in environment.items()),
            )
        )
        self.process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def _make_key(path: Path) -> None:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)

    def configure(self, cluster: str, host: str = "") -> None:
        pve = self.folder / "etc/pve"
        (pve / "firewall").mkdir(parents=True, exist_ok=True)
        (pve / f"nodes/{self.name}/qemu-server").mkdir(parents=True, exist_ok=True)
        (pve / "firewall/cluster.fw").write_text(cluster)
        (pve / f"nodes/{self.name}/host.fw").write_text(host)

    def start(self) -> None:
        Path("/run/sshd").mkdir(exist_ok=True)
        assert SSHD is not None
        with self.namespace.entered():
            log = self.folder / "sshd.log"
            log.touch()
            self.process = subprocess.Popen([SSHD, "-D", "-f", str(self.folder / "sshd_config"), "-E", str(log)])

    def known_host(self, name: str | None = None) -> str:
        return f"{name or self.address} {(self.folder / 'host_key.pub').read_text()}"

    def rules(self) -> str:
        return self.output("iptables-save")

    def backends(self) -> list[str]:
        """Return whose rules the kernel holds."""
        found = {"iptables": "PVEFW-INPUT" in self.rules(), "nft": "pvefw" in self.output("nft", "list", "tables")}
        return [backend for backend, loaded in found.items() if loaded]

    def output(self, *command: str) -> str:
        with self.namespace.entered():
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def pvefw(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "PVEFW_RUN_DIRECTORY": str(self.folder / "run"),
            "PVEFW_STATE_DIRECTORY": str(self.folder / "state"),
        }
        with self.namespace.entered():
            return subprocess.run(
                [self.folder / "bin/pvefw", *arguments], capture_output=True, text=True, check=False, env=environment
            )

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.namespace.close()


class Cluster:
    """Nodes on a bridge of a namespace in which pvefw cluster runs."""

    def __init__(self, folder: Path, count: int) -> None:
        from pvefw_nft.host.links import open_route

        self.folder = folder
        self.admin = Namespace()
        self.key = folder / "key"
        Node._make_key(self.key)
        self.nodes = [Node(f"pve{n}", f"10.0.0.{n}", folder / f"pve{n}", self.key) for n in range(1, count + 1)]
        with self.admin.entered(), open_route() as route:
            route.link("add", ifname="br0", kind="bridge", br_forward_delay=0)
            bridge = route.link_lookup(ifname="br0")[0]
            route.addr("add", index=bridge, address="10.0.0.254", prefixlen=24)
            for node in self.nodes:
                peer = {"ifname": "eth0", "net_ns_fd": node.namespace.descriptor}
                route.link("add", ifname=node.name, kind="veth", peer=peer)
                route.link("set", index=route.link_lookup(ifname=node.name)[0], master=bridge, state="up")
                with node.namespace.entered(), open_route() as there:
                    index = there.link_lookup(ifname="eth0")[0]
                    there.addr("add", index=index, address=node.address, prefixlen=24)
                    for link in ("lo", "eth0"):
                        there.link("set", index=there.link_lookup(ifname=link)[0], state="up")
            route.link("set", index=bridge, state="up")
        members = "".join(
            f"  node {{\n    name: {node.name}\n    ring0_addr: {node.address}\n  }}\n" for node in self.nodes
        )
        (folder / "etc/pve").mkdir(parents=True)
        (folder / "etc/pve/corosync.conf").write_text(f"totem {{\n  version: 2\n}}\nnodelist {{\n{members}}}\n")
        self.known_hosts = folder / "known_hosts"
        self.known_hosts.write_text("".join(node.known_host() for node in self.nodes))
        try:
            for node in self.nodes:
                node.start()
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        logs = [node.folder / "sshd.log" for node in self.nodes]
        assert wait_until(lambda: all("Server listening" in log.read_text() for log in logs), 30)

    def run(self, *arguments: str, known_hosts: bool = True) -> subprocess.CompletedProcess[str]:
        options = ["--root", str(self.folder), "-i", str(self.key), "--connect-time", "5"]
        options += ["--known-hosts", str(self.known_hosts)] if known_hosts else []
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HOME": str(self.folder)}
        command = [sys.executable, "-m", "pvefw_nft.cli", "cluster", *arguments, *options]
        with self.admin.entered():
            return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    def answer(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        run = self.run(*arguments, "--format", "json")
        assert run.stdout, run.stderr
        schemas.check("cluster-apply" if arguments[0] in ("start", "update") else "cluster-status", run.stdout)
        return run.returncode, {one["node"]: one for one in json.loads(run.stdout)["nodes"]}

    def close(self) -> None:
        for node in self.nodes:
            node.close()
        self.admin.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    if SSHD is None:
        if os.environ.get("CI"):
            pytest.fail("sshd is missing: install openssh-server")
        pytest.skip("sshd is missing (Debian: openssh-server)")
    if os.environ.get("PVEFW_NO_NAMESPACES") or os.geteuid() != 0:
        pytest.skip("needs root, to make network namespaces")
    need("iptables-save && ipset list && ebtables-save")
    made = Cluster(tmp_path, 4)
    yield made
    made.close()


# --- asking -------------------------------------------------------------------------------------------------------


def test_status_and_compare_ask_every_node(cluster: Cluster) -> None:
    one, two, _, four = cluster.nodes
    for node in (one, two):
        done = node.pvefw("start")
        assert done.returncode == 0, done.stderr
    with two.namespace.entered():
        subprocess.run(["iptables", "-I", "PVEFW-INPUT", "-p", "tcp", "--dport", "99", "-j", "ACCEPT"], check=True)
    assert four.process is not None
    four.process.kill()
    code, found = cluster.answer("compare")
    assert code == 3
    assert {name: one["exit"] for name, one in found.items()} == {"pve1": 0, "pve2": 1, "pve3": 3, "pve4": 3}
    assert found["pve1"]["compare"]["answer"] == "equal"
    assert found["pve2"]["compare"]["answer"] == "different"
    assert found["pve2"]["status"]["drifted"]
    assert (found["pve3"]["status"]["running"], found["pve3"]["error"]) == (False, None)
    assert "no connection" in found["pve4"]["error"]
    text = cluster.run("status").stdout
    lines = text.splitlines()
    assert lines[0].split() == ["node", "pvefw", "kernel", "firewall", "pending", "by", "hand", "unplugged"]
    assert lines[1].split()[0::3] == ["pve1", "iptables", "0"]
    assert lines[2].split()[5] == "1"
    assert lines[3].split()[3] == "stopped"
    assert "no answer" in lines[4]
    assert any(line.startswith("pve4: no connection") for line in lines)


def test_a_host_key_that_is_not_known_is_refused(cluster: Cluster) -> None:
    one, two, three, _ = cluster.nodes
    cluster.known_hosts.write_text(one.known_host() + three.known_host(two.address))
    code, found = cluster.answer("status")
    assert code == 3
    for name in ("pve2", "pve3"):
        assert found[name]["error"] == "its host key is not the one in known_hosts, or none is there"
    assert found["pve1"]["error"] is None


def test_keys_that_proxmox_ve_keeps_of_its_nodes_count(cluster: Cluster) -> None:
    for node in cluster.nodes[:2]:
        place = cluster.folder / f"etc/pve/nodes/{node.name}/ssh_known_hosts"
        place.parent.mkdir(parents=True)
        place.write_text(node.known_host(node.name))
    run = cluster.run("status", "--format", "json", "--hosts", "pve1,pve2=10.0.0.2,pve3", known_hosts=False)
    found = {one["node"]: one["error"] for one in json.loads(run.stdout)["nodes"]}
    assert found["pve1"] is None
    assert found["pve2"] is None
    assert "host key" in found["pve3"]


def test_answers_of_a_node_are_not_trusted(cluster: Cluster) -> None:
    one, two, three, four = (node.folder / "bin/pvefw" for node in cluster.nodes)
    one.write_text('#!/bin/sh\nprintf \'\\033]0;title\\007{"running": 7, "backends": {}, "changes": "\\033[2J"}\'\n')
    two.write_text("#!/bin/sh\nsleep 60\n")
    three.write_text("#!/bin/sh\ncat /dev/zero\n")
    four.write_text("#!/bin/sh\necho '[1]'\n")
    start = time.monotonic()
    run = cluster.run("status", "--time-limit", "5")
    assert time.monotonic() - start < 40
    assert run.returncode == 3, run.stderr
    assert "\x1b" not in run.stdout
    assert "pve2: pvefw took longer than 5 s" in run.stdout
    assert "pve3: it printed more than 64 MiB" in run.stdout
    assert "pve4: pvefw status" in run.stdout


# --- rolling out --------------------------------------------------------------------------------------------------


def states(found: dict[str, Any]) -> list[str]:
    return [one["state"] for one in found.values()]


def test_a_roll_out_node_by_node(cluster: Cluster) -> None:
    code, found = cluster.answer("start", "--confirm", "60", "--dry-run")
    assert (code, states(found)) == (0, ["done"] * 4)
    assert all("PVEFW" not in node.rules() for node in cluster.nodes)
    code, found = cluster.answer("start", "--confirm", "60")
    assert (code, states(found)) == (0, ["done"] * 4), found
    assert all("PVEFW-INPUT" in node.rules() for node in cluster.nodes)
    for node in cluster.nodes:
        status = json.loads(node.pvefw("status", "--format", "json").stdout)
        assert (status["running"], status["confirmation"]) == (True, None)


def test_a_failure_at_the_third_node_rolls_back_the_first_two(cluster: Cluster) -> None:
    cluster.nodes[2].configure(SHUT)  # its own guard for sessions refuses it
    run = cluster.run("start", "--confirm", "60", "--roll-back")
    assert run.returncode == 3, run.stderr
    lines = run.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "pve1",
        "pve2",
        "pve3",
        "pve2",
        "pve1",
        "pve4",
        "0 of 4 nodes done",
    ]
    assert "pve3: failed: pvefw start: exit code 3: " in run.stdout
    assert "connections that must not break would be cut" in run.stdout
    assert lines[3].startswith("pve2: rolled back")
    assert lines[4].startswith("pve1: rolled back")
    assert lines[5] == "pve4: not tried"
    for node in cluster.nodes:
        assert "PVEFW" not in node.rules()
        assert "stopped" in node.pvefw("status").stdout


def test_each_node_gets_the_backend_of_its_own_host_fw(cluster: Cluster) -> None:
    cluster.nodes[0].configure(OPEN, NFT)
    code, found = cluster.answer("start", "--confirm", "60", "--hosts", "pve1,pve2")
    assert (code, states(found)) == (0, ["done"] * 2), found
    assert [node.backends() for node in cluster.nodes] == [["nft"], ["iptables"], [], []]


def test_a_failed_switch_to_nft_rolls_back_to_iptables(cluster: Cluster) -> None:
    one, two, *_ = cluster.nodes
    for node in (one, two):
        assert node.pvefw("start").returncode == 0
        node.configure(OPEN, NFT)
    two.configure(SHUT, NFT)
    switch = ("update", "--confirm", "60", "--roll-back", "--hosts", "pve1,pve2")
    code, found = cluster.answer(*switch)
    assert (code, states(found)) == (3, ["rolled back", "failed"]), found
    assert [one.backends(), two.backends()] == [["iptables"]] * 2
    two.configure(OPEN, NFT)
    code, found = cluster.answer(*switch)
    assert (code, states(found)) == (0, ["done"] * 2), found
    assert [one.backends(), two.backends()] == [["nft"]] * 2


def test_without_roll_back_the_first_nodes_stay(cluster: Cluster) -> None:
    cluster.nodes[2].configure(OPEN + "[RULES]\nIN SHH(ACCEPT)\n")
    code, found = cluster.answer("start", "--confirm", "60")
    assert (code, states(found)) == (3, ["done", "done", "failed", "not tried"])
    assert "exit code 1" in found["pve3"]["detail"]
    assert ["PVEFW-INPUT" in node.rules() for node in cluster.nodes] == [True, True, False, False]


def test_a_node_whose_rules_shut_ssh_out_goes_back_by_itself(cluster: Cluster) -> None:
    cluster.nodes[1].configure(SHUT)
    code, found = cluster.answer("start", "--confirm", "25", "--force", "--hosts", "pve1,pve2")
    assert (code, states(found)) == (3, ["done", "goes back by itself"])
    assert "over a new connection, it does not answer in time" in found["pve2"]["detail"]
    assert wait_until(lambda: "PVEFW" not in cluster.nodes[1].rules(), 60)


def test_update_skips_stopped_nodes(cluster: Cluster) -> None:
    assert cluster.nodes[0].pvefw("start").returncode == 0
    cluster.nodes[0].configure(OPEN + "[RULES]\nIN ACCEPT -p tcp -dport 4711\n")
    code, found = cluster.answer("update", "--confirm", "60")
    assert (code, states(found)) == (0, ["done", "nothing to do", "nothing to do", "nothing to do"])
    assert "4711" in cluster.nodes[0].rules()
    assert "the firewall is not running" in found["pve2"]["detail"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "--hosts", ","], "--hosts names no node"),
        (["status", "--hosts", "a,a"], "a is named twice"),
        (["status", "--hosts", "-oProxyCommand=x"], "no node"),
        (["status", "--root", "/nonexistent"], "names no nodes with addresses"),
        (["start"], "Missing option '--confirm'"),
    ],
)
def test_wrong_command_lines(arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "pvefw_nft.cli", "cluster", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert (run.returncode, message in run.stderr) == (2, True), run.stderr
