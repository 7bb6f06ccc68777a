"""``--all-nodes``: one command for all nodes of a cluster, and its answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pvefw_nft.app.cluster import read_cluster
from tests.waiting import wait_until

from .clusters import break_three, make_cluster

REPOSITORY = Path(__file__).resolve().parents[2]
NETWORK = ("--local-network", "10.0.0.0/24")
COMMAND = [sys.executable, "-m", "pvefw_nft.cli"]


def pvefw(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [*COMMAND, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=REPOSITORY)


def answer(*arguments: object) -> dict[str, Any]:
    run = pvefw(*arguments, "--format", "json")
    read: dict[str, Any] = json.loads(run.stdout)
    assert read["exit"] == run.returncode
    return read


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    root = make_cluster(tmp_path / "c", 8)
    break_three(root)
    return root


def test_three_broken_nodes_hide_no_other(broken: Path) -> None:
    run = pvefw("check", "--all-nodes", "--root", broken)
    assert run.returncode == 1
    lines = run.stdout.splitlines()
    assert [line.split()[0] for line in lines[:9]] == [*(f"pve{number}" for number in range(1, 9)), "(cluster)"]
    assert [line.split(maxsplit=1)[1] for line in lines[:9] if not line.endswith("  ok")] == [
        f"error: {broken}/etc/pve/nodes/pve3/host.fw:1: not a text file (NUL byte)",
        "1 error",
        "1 error",
    ]
    assert lines[9] == "8 nodes: 5 without errors, 3 with"
    for expected in ("help: restore the file from a backup", "error[unknown-macro]", "error[guest-closed]"):
        assert expected in run.stdout


def test_json_has_the_output_of_the_command_for_one_node(broken: Path) -> None:
    nodes = {one["node"]: one for one in answer("check", "--all-nodes", "--root", broken)["nodes"]}
    assert [name for name, one in nodes.items() if one["exit"]] == ["pve3", "pve5", "pve7"]
    assert nodes["pve3"]["error"]["hint"] == "restore the file from a backup"
    assert [one["code"] for one in nodes["pve5"]["diagnostics"]] == ["unknown-macro"]
    alone = json.loads(pvefw("check", "--root", broken, "--node", "pve7", *NETWORK, "--format", "json").stdout)
    # one node alone reads the files of all nodes and guests
    own = [one for one in alone if "/501.fw" not in one["file"] and "/pve3/" not in one["file"]]
    assert nodes["pve7"]["diagnostics"] == own


def test_sarif_has_a_run_for_each_node(broken: Path) -> None:
    run = pvefw("check", "--all-nodes", "--root", broken, "--format", "sarif")
    log = json.loads(run.stdout)
    runs = {one["automationDetails"]["id"]: one for one in log["runs"]}
    assert list(runs) == [*(f"pvefw/pve{number}" for number in range(1, 9)), "pvefw/(cluster)"]
    succeeded = [name for name, one in runs.items() if one["invocations"][0]["executionSuccessful"]]
    assert "pvefw/pve3" not in succeeded
    assert len(succeeded) == 8
    assert "not a text file" in runs["pvefw/pve3"]["invocations"][0]["toolExecutionNotifications"][0]["message"]["text"]
    assert [one["ruleId"] for one in runs["pvefw/pve5"]["results"]] == ["unknown-macro"]


def test_all_nodes_find_the_findings_of_each_node_alone(tmp_path: Path) -> None:
    root = make_cluster(tmp_path / "c", 3)
    firewall = root / "etc/pve/firewall"
    (firewall / "cluster.fw").write_text((firewall / "cluster.fw").read_text() + "[group unused]\nIN ACCEPT\n")
    (firewall / "999.fw").write_text("[RULES]\nIN SHH(ACCEPT)\n")
    (firewall / "groups.fw").write_text("")
    (firewall / "102.fw").write_text("[OPTIONS]\nenable: 1\n[ALIASES]\nidle 10.1.1.1\n[RULES]\nIN ACCEPT -i net7\n")
    (firewall / "302.fw").write_text("[OPTIONS]\nenable: 0\n[RULES]\nIN ACCEPT\n")
    (root / "etc/pve/nodes/pve2/host.fw").write_text("[RULES]\nIN ACCEPT -p 300000\n")

    def keys(diagnostics: list[dict[str, Any]]) -> set[tuple[object, ...]]:
        return {(one["code"], one["file"], one["line"], one["message"]) for one in diagnostics}

    together = [keys(one["diagnostics"]) for one in answer("check", "--all-nodes", "--root", root)["nodes"]]
    alone = [
        keys(json.loads(pvefw("check", "--root", root, "--node", f"pve{number}", *NETWORK, "--format", "json").stdout))
        for number in (1, 2, 3)
    ]
    assert set.union(*together) == set.union(*alone)
    assert {"unused-group", "unread-file", "unused-alias", "missing-nic", "switched-off"} <= {
        str(key[0]) for key in set.union(*together)
    }


def test_compile_writes_the_output_of_each_node_alone(tmp_path: Path) -> None:
    root = make_cluster(tmp_path / "c", 3)
    out = tmp_path / "out"
    out.mkdir()
    run = pvefw("compile", "--all-nodes", "--root", root, "--backend", "nft", "-o", out, "--summary", "json")
    nodes = json.loads(run.stdout)["nodes"]
    assert [one["data"]["file"] for one in nodes] == [f"{out}/pve{number}.nft.json" for number in (1, 2, 3)]
    for node in nodes:
        arguments = ["--root", root, "--node", node["node"], "--backend", "nft", *NETWORK]
        assert Path(node["data"]["file"]).read_text() == pvefw("compile", *arguments).stdout


def test_compare_proves_each_node(tmp_path: Path) -> None:
    found = answer("compare", "--all-nodes", "--root", make_cluster(tmp_path / "c", 2))
    assert [(one["node"], one["summary"], one["data"]["answer"]) for one in found["nodes"]] == [
        ("pve1", "alike", "equal"),
        ("pve2", "alike", "equal"),
    ]


def test_nodes_share_the_cache_of_proofs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PVEFW_CACHE_DIRECTORY", str(tmp_path / "cache"))
    root = make_cluster(tmp_path / "c", 2)

    def kept(*options: str) -> list[int]:
        found = answer("compare", "--all-nodes", "--root", root, *options)
        assert {one["data"]["answer"] for one in found["nodes"]} == {"equal"}
        return [one["data"]["proof"]["kept"] for one in found["nodes"]]

    assert kept("-j", "1") == [0, 0]
    first, second = kept()
    assert min(first, second) >= 2  # two guests a node
    assert kept("--no-cache") == [0, 0]
    rules = root / "etc/pve/firewall/201.fw"
    rules.write_text(rules.read_text() + "IN ACCEPT -p tcp -dport 8443\n")
    assert kept() == [first, second - 1]


PACKETS = """\
[[packet]]
name = "web"
from = "outside"
to = "vm101"
proto = "tcp"
dport = 443
source = "198.51.100.7"
expect = "ACCEPT"
[[packet]]
name = "no mail between guests"
from = "vm101"
to = "vm201"
proto = "tcp"
dport = 25
expect = "DROP"
"""


def test_packets_are_judged_by_all_nodes_on_their_way(tmp_path: Path) -> None:
    root = make_cluster(tmp_path / "c", 3)
    tests = tmp_path / "packets.toml"
    tests.write_text(PACKETS)
    found = answer("simulate", "--all-nodes", "--root", root, "--tests", tests)
    assert [one["summary"] for one in found["nodes"]] == [
        "2 passed, 0 failed",
        "1 passed, 0 failed, 1 skipped (they do not pass this node)",
        "0 passed, 0 failed, 2 skipped (they do not pass this node)",
    ]
    assert found["exit"] == 0
    tests.write_text(PACKETS.replace('"DROP"', '"REJECT"'))
    found = answer("simulate", "--all-nodes", "--root", root, "--tests", tests)
    assert [one["exit"] for one in found["nodes"]] == [1, 1, 0]


def test_many_clusters_and_one_that_is_none(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_cluster(tmp_path / "all" / name, 2)
    (tmp_path / "all/c/etc/pve/firewall").mkdir(parents=True)
    run = pvefw("check", "--all-clusters", "--root", tmp_path / "all")
    names = [line.split()[0] for line in run.stdout.splitlines()[:7]]
    assert names == ["a/pve1", "a/pve2", "a/(cluster)", "b/pve1", "b/pve2", "b/(cluster)", "c/(cluster)"]
    assert "etc/pve/nodes: there are no nodes" in run.stdout
    assert run.returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "--all-nodes", "--node", "pve1"], "--all-nodes and --node do not go together"),
        (["check", "-j", "2"], "go with --all-nodes"),
        (["compare", "a", "--all-nodes"], "leave A and B out"),
        (["simulate", "--all-nodes", "--from", "host"], "--all-nodes goes with --tests"),
        (["compile", "--all-nodes", "-o", "/nonexistent"], "not a folder"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, arguments: list[str], message: str) -> None:
    root = make_cluster(tmp_path / "c", 1)
    run = pvefw(*arguments, "--root", root)
    assert (run.returncode, message in run.stderr) == (2, True), run.stderr


def test_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    root = make_cluster(tmp_path / "c", 40, guests=10)
    command = [*COMMAND, "compare", "--all-nodes", "--root", str(root), "-j", "2"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, start_new_session=True,
        # processes that a shell starts in the background ignore Ctrl-C, these tests among them
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    wait_until(lambda: len(members(process.pid)) >= 3, 30)  # two nodes are under way
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert members(process.pid) == []


def members(group: int) -> list[int]:
    """Return the processes of a process group; zombies have ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, member_of = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(member_of) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


# --- local networks -----------------------------------------------------------------------------------------------


def networks(root: Path) -> dict[str, tuple[str | None, str]]:
    return {node.name: (node.network.cidr, node.network.origin) for node in read_cluster(root).nodes}


def test_the_local_network_of_a_node_comes_from_the_files(tmp_path: Path) -> None:
    root = make_cluster(tmp_path / "c", 3)
    own = root / "hosts/pve2/etc/network"
    own.mkdir(parents=True)
    (own / "interfaces").write_text("iface vmbr0 inet static\n\taddress 10.0.0.2/25\n")
    text = (root / "etc/pve/corosync.conf").read_text()
    (root / "etc/pve/corosync.conf").write_text(text.replace("10.0.0.3", "172.16.0.3"))
    found = networks(root)
    assert found["pve1"] == ("10.0.0.0/24", "its etc/network/interfaces")
    assert found["pve2"] == ("10.0.0.0/25", "its etc/network/interfaces")
    assert found["pve3"] == (None, "no etc/network/interfaces tells the prefix length of 172.16.0.3")
    (root / "etc/pve/corosync.conf").unlink()
    assert networks(root)["pve3"] == (None, "neither corosync.conf nor etc/hosts has an address of pve3")


def test_an_unknown_local_network_is_reported(tmp_path: Path) -> None:
    root = make_cluster(tmp_path / "c", 2)
    (root / "etc/network/interfaces").unlink()
    found = answer("check", "--all-nodes", "--root", root)
    assert [one["local_network"] for one in found["nodes"]] == [None, None, None]
    assert "the local network is not known, since no etc/network/interfaces tells" in found["nodes"][0]["notes"][0]
    assert networks(root)["pve1"][0] is None
    given = answer("check", "--all-nodes", "--root", root, "--local-network", "10.0.0.0/24")
    assert [one["notes"] for one in given["nodes"]] == [[], [], []]


def test_links_of_the_node_that_made_the_copy_are_not_followed(tmp_path: Path) -> None:
    root = make_cluster(tmp_path / "c", 2)
    pve = root / "etc/pve"
    (pve / "local").symlink_to("nodes/pve1")
    (pve / "qemu-server").symlink_to("nodes/pve1/qemu-server")
    (pve / "nodes/pve1/host.fw").write_text("[RULES]\nIN SHH(ACCEPT)\n")
    nodes = {one["node"]: one for one in answer("check", "--all-nodes", "--root", root)["nodes"]}
    assert [one["exit"] for one in nodes.values()] == [1, 0, 0]
