"""``take-over``, ``hand-back`` and a boot beside stand-ins of Proxmox VE's two firewall services, under systemd.

The stand-ins imitate the known behaviour of the real services. pve-firewall loads its PVEFW chains in a loop, or with
`nftables: 1` removes them by name, and removes them when it is stopped. proxmox-firewall loads its two tables in a
loop, unless the flag file exists, and removes them when it is stopped. Both deny UDP to port 5000 and nothing else.
Only :mod:`tests.kernel.test_host` runs this file, in the lab's guest or on a machine that no systemd runs.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import pytest

from tests import schemas
from tests.host.conftest import Namespace
from tests.host.network import Denied, Network, Streams, check, configure, has_bridge_conntrack
from tests.kernel.systemd_in_guest import BACKENDS, COMMAND, DROP_IN, Systemd, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

LONG = "PVEFW_TEST_TAKE_OVER" in os.environ
"""Each daemon with each backend, undisturbed and killed at each step. Without it: one of each."""
FLAG = "/run/proxmox-nftables-firewall-force-disable"
NODE = "n"

THEIRS = os.environ.get("PVEFW_TEST_THEIRS", "")
"""``-legacy`` or ``-nft``: the variant of iptables that pve-firewall uses; ``iptables`` may be the other one."""

COMMON = """\
import os, signal, subprocess, sys, time
FLAG = "/run/proxmox-nftables-firewall-force-disable"
def nftables():
    return "nftables: 1" in open("/etc/pve/nodes/n/host.fw").read()
def run(command, text=None):
    return subprocess.run(command, input=text, text=True, capture_output=True)
"""

PVE_FIREWALL = (
    COMMON
    + f"""\
THEIRS = {THEIRS!r}
"""
    + """\
CHAINS = {"INPUT": "PVEFW-INPUT", "FORWARD": "PVEFW-FORWARD"}
def apply():
    for tool in ("iptables", "ip6tables"):
        open("/proc/sys/net/bridge/bridge-nf-call-" + tool, "w").write("1")
    for tool in ("iptables", "ip6tables"):
        saved = run([tool + THEIRS + "-save", "-t", "filter"]).stdout
        lines = ["*filter"] + [f":{chain} - [0:0]" for chain in CHAINS.values()]
        for hook, chain in CHAINS.items():
            lines += [f"-A {chain} -p udp --dport 5000 -j DROP"]
            if f"-A {hook} -j {chain}" not in saved:
                lines += [f"-A {hook} -j {chain}"]
        run([tool + THEIRS + "-restore", "--noflush"], "\\n".join(lines + ["COMMIT", ""]))
def remove():
    for tool in ("iptables", "ip6tables"):
        saved = run([tool + THEIRS + "-save", "-t", "filter"]).stdout.splitlines()
        chains = [line[1:].split()[0] for line in saved if line.startswith(":PVEFW-")]
        lines = ["*filter"] + [f"-D {h} -j {c}" for h, c in CHAINS.items() if f"-A {h} -j {c}" in saved]
        lines += [f"-D OUTPUT -j PVEFW-OUTPUT"] if "-A OUTPUT -j PVEFW-OUTPUT" in saved else []
        lines += [f"-F {chain}" for chain in chains] + [f"-X {chain}" for chain in chains]
        run([tool + THEIRS + "-restore", "--noflush"], "\\n".join(lines + ["COMMIT", ""]))
def end(*_):
    remove()
    sys.exit(0)
if sys.argv[1:] == ["stop"]:
    end()
signal.signal(signal.SIGTERM, end)
while True:
    if nftables():
        remove()
        if os.path.exists(FLAG):
            os.unlink(FLAG)
    else:
        apply()
        open(FLAG, "w").close()
    time.sleep(1)  # its loop
"""
)

PROXMOX_FIREWALL = (
    COMMON
    + """\
RULES = '''
add table inet proxmox-firewall
delete table inet proxmox-firewall
add table bridge proxmox-firewall-guests
delete table bridge proxmox-firewall-guests
table inet proxmox-firewall {
  chain input { type filter hook input priority 0; udp dport 5000 drop; }
  chain forward { type filter hook forward priority 0; udp dport 5000 drop; }
}
table bridge proxmox-firewall-guests {
  chain in { type filter hook prerouting priority 0; udp dport 5000 drop; }
}
'''
def remove():
    for table in ("inet proxmox-firewall", "bridge proxmox-firewall-guests"):
        run(["nft", "delete", "table", *table.split()])
def end(*_):
    remove()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
while True:
    if os.path.exists(FLAG) or not nftables():
        remove()
    else:
        run(["nft", "-f", "-"], RULES)
    time.sleep(1)  # its loop
"""
)

UNIT = """\
[Service]
ExecStart=/opt/python/bin/{python} /usr/local/lib/{name} start
{stop}
[Install]
WantedBy=multi-user.target
"""

DAEMONS = {"pve-firewall": (PVE_FIREWALL, 0), "proxmox-firewall": (PROXMOX_FIREWALL, 1)}
"""The stand-ins, and host.fw's ``nftables`` with which each filters."""


class Node:
    """A Proxmox VE host: systemd with the stand-ins, and a network with a guest and the outside."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.on = False
        self.switch_on()
        python = Path(sys.executable).name
        self.systemd.write("/run/pvefw-command", COMMAND.format(python=python))
        self.run("install", "-m755", "/run/pvefw-command", "/usr/local/sbin/pvefw")
        for unit in ("pvefw", "pvefw-hand-back-guard"):
            self.systemd.write(f"/etc/systemd/system/{unit}.service.d/lab.conf", DROP_IN)
        for name, (text, _) in DAEMONS.items():
            stop = f"ExecStop=/opt/python/bin/{python} /usr/local/lib/{name} stop\n" if name == "pve-firewall" else ""
            self.systemd.write(f"/usr/local/lib/{name}", text)
            unit = UNIT.format(python=python, name=name, stop=stop)
            self.systemd.write(f"/usr/local/lib/systemd/system/{name}.service", unit)
        self.run("systemctl", "daemon-reload")

    def switch_on(self) -> None:
        """Boot; :meth:`start_enabled` then starts the units that a boot starts."""
        self.on = True
        self.systemd = Systemd(self._folder)
        self.run = self.systemd.run
        self.run("hostname", NODE)
        self.run("ip", "link", "delete", "vmbr0")
        self.run("modprobe", "br_netfilter", check=False)  # this machine's kernel may have it built in
        self.namespace = Namespace(os.open(f"/proc/{self.systemd._pid}/ns/net", os.O_RDONLY))

    def close(self) -> None:
        """Switch the host off: memory, and the kernel's state with the network namespace, are lost."""
        if self.on:
            self.on = False
            self.namespace.close()
            self.systemd.close()

    def start_enabled(self) -> None:
        """Start the enabled units, in one transaction like multi-user.target."""
        wanted = self.root / "etc/systemd/system/multi-user.target.wants"
        self.run("systemctl", "start", *(unit.name for unit in wanted.iterdir()), check=False)

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self.systemd._pid}/root")

    def configure(self, *, nftables: int) -> None:
        configure(self.root)
        (self.root / f"etc/pve/nodes/{NODE}/host.fw").write_text(f"[OPTIONS]\nnftables: {nftables}\n")

    def rules(self) -> str:
        variants = ("", THEIRS) if THEIRS else ("",)
        saved = [self.run(f"{tool}{variant}-save") for tool in ("iptables", "ip6tables") for variant in variants]
        return "".join(saved) + self.run("nft", "list", "tables")

    def journal(self) -> str:
        """Return the output of the process of pvefw's service."""
        process = self.run("systemctl", "show", "--property=MainPID", "--value", "pvefw").strip()
        return self.run("journalctl", f"_PID={process}", "--output", "cat", check=False)

    def is_active(self, name: str) -> bool:
        return self.run("systemctl", "is-active", name, check=False).strip() == "active"

    def is_masked(self, name: str) -> bool:
        return self.run("systemctl", "is-enabled", name, check=False).strip().startswith("masked")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    made = Node(tmp_path_factory.mktemp("systemd"))
    yield made
    made.close()


@contextmanager
def filtered_by(node: Node, daemon: str) -> Iterator[Network]:
    """Have a stand-in filter the host and its guest; afterwards nothing does."""
    node.configure(nftables=DAEMONS[daemon][1])
    with node.namespace.entered():
        network = Network()
        start_theirs(node, daemon)
        try:
            yield network
        finally:
            forget(node)
            remove_links(node)
            network.close()


def remove_links(node: Node) -> None:
    for link in ("fwln100i0", "fwbr100i0", "tap100i0", "eno1", "vmbr0"):
        node.run("ip", "link", "delete", link, check=False)


def start_theirs(node: Node, daemon: str) -> None:
    node.run("systemctl", "enable", *DAEMONS)
    node.run("systemctl", "start", *DAEMONS)
    mark = "proxmox-firewall-guests" if daemon == "proxmox-firewall" else "-A INPUT -j PVEFW-INPUT"
    eventually(lambda: mark in node.rules())


def forget(node: Node) -> None:
    """Stop all firewalls, and have no trace of a take-over left."""
    for option in ((), ("--runtime",)):
        node.run("systemctl", "unmask", *option, *DAEMONS, check=False)
    node.run("systemctl", "stop", "pvefw", *DAEMONS, check=False)
    node.run("pvefw", "stop", check=False)
    node.run("rm", "-rf", "/var/lib/pvefw/taken-over.json", "/run/pvefw/handing-back", FLAG)
    for name in DAEMONS:
        for folder in ("/etc", "/run"):
            node.run("rm", "-rf", f"{folder}/systemd/system/{name}.service.d")
    node.run("systemctl", "daemon-reload")


def streams(network: Network) -> Streams:
    return Streams(network, pause=0.005, patience=60)


def pairs(*those: tuple[str, str]) -> list[tuple[str, str]]:
    """Return the pairs of daemon and backend to try here."""
    return [(daemon, backend) for daemon, backend in those if backend in BACKENDS]


COMBINATIONS = pairs(*itertools.product(DAEMONS, ("iptables", "nft")))
SHORT = pairs(("proxmox-firewall", "nft"))


@pytest.mark.parametrize(("daemon", "backend"), COMBINATIONS if LONG else SHORT)
def test_take_over_and_hand_back_under_traffic(node: Node, daemon: str, backend: str) -> None:
    with filtered_by(node, daemon) as network:
        refused = node.run("pvefw", "start", "--backend", backend, check=False)
        assert f"{daemon}.service runs" in refused
        assert "pvefw take-over" in refused
        with streams(network) as passing:
            told = answer(node, "take-over", "--backend", backend)
            time.sleep(3)  # time for their loops
        check(passing)
        assert_taken_over(node, backend)
        assert [step for step in told["steps"] if f"load the {backend} ruleset" in step["step"]]
        with streams(network) as passing:
            told = answer(node, "hand-back")
            time.sleep(3)  # time for their loops
        check(passing)
        assert_handed_back(node, daemon)
        assert [step for step in told["steps"] if "remove the rules of pvefw" in step["step"]]


def answer(node: Node, name: str, *options: str) -> dict[str, Any]:
    """Run a command, and return its answer, which has the published form."""
    command = node.systemd.command("pvefw", name, *options, "--format", "json")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    schemas.check(name, done.stdout)
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["dry_run"] is False
    return found


def assert_taken_over(node: Node, backend: str) -> None:
    for name in DAEMONS:
        assert not node.is_active(name)
        assert node.is_masked(name)
    assert node.is_active("pvefw")
    assert (node.root / FLAG[1:]).exists()
    rules = node.rules()
    assert "proxmox-firewall" not in rules
    assert ("PVEFW-INPUT" in rules) == (backend == "iptables")
    assert ("table bridge pvefw" in rules) == (backend == "nft")
    status = node.run("pvefw", "status", "--backend", backend)
    assert f"running ({backend})" in status


def assert_handed_back(node: Node, daemon: str) -> None:
    for name in DAEMONS:
        assert node.is_active(name)
    assert not node.is_active("pvefw")
    rules = node.rules()
    assert "table bridge pvefw" not in rules
    assert ("PVEFW-INPUT" in rules) == (daemon == "pve-firewall")
    assert ("proxmox-firewall" in rules) == (daemon == "proxmox-firewall")
    assert not (node.root / "etc/systemd/system/pvefw.service").exists()
    assert not (node.root / f"etc/systemd/system/{daemon}.service.d").exists()


KILLED = COMBINATIONS if LONG else pairs(("pve-firewall", "iptables"))


@pytest.mark.parametrize(("daemon", "backend"), KILLED)
def test_killed_at_each_step(node: Node, daemon: str, backend: str) -> None:
    """Each run is killed at a step later than the one before, until one comes through; all under traffic.

    In the short form at every third step.
    """
    stride = 1 if LONG else 3
    chance = random.Random(7)
    with filtered_by(node, daemon) as network:
        there, back = ("take-over", "--backend", backend), ("hand-back",)
        for command in (there, back) if LONG else (there,):
            with streams(network) as passing:
                kills = 0
                while kill_at(node, command, kills * stride + 1, chance.random() * 0.4):
                    kills += 1
                time.sleep(3)  # time for their loops
            print(
                f"{command[0]}: killed at {kills} steps, {passing.sent} denied packets, {passing.connected} connections"
            )
            check(passing)
            assert kills >= (6 if LONG else 2)
            if command == back:
                assert_handed_back(node, daemon)
            else:
                assert_taken_over(node, backend)


def kill_at(node: Node, command: tuple[str, ...], step: int, seconds: float) -> bool:
    """Run a command and kill it so long after it told that step; return False if it ended before."""
    with subprocess.Popen(
        node.systemd.command("pvefw", *command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        assert running.stdout is not None
        said = []
        for line in running.stdout:
            said.append(line)
            if line.startswith(f"{step}. "):
                time.sleep(seconds)  # any moment of the step
                # nsenter's child: the command itself, by its id
                children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
                for child in children or [str(running.pid)]:
                    os.kill(int(child), 9)
                running.kill()
                running.wait()
                return True
        assert running.wait() == 0, "".join(said)
    return False


@pytest.mark.parametrize("backend", BACKENDS if LONG else ["iptables"] if "iptables" in BACKENDS else [])
def test_an_unconfirmed_take_over_leaves_proxmox_filtering(node: Node, backend: str) -> None:
    with filtered_by(node, "pve-firewall") as network:
        with streams(network) as passing:
            told = node.run("pvefw", "take-over", "--backend", backend, "--confirm", "3", check=False)
            time.sleep(3)  # time for their loops
        assert "not confirmed" in told
        check(passing)
        assert "table bridge pvefw" not in node.rules()
        assert "-A INPUT -j PVEFW-INPUT" in node.rules()
        if THEIRS:
            assert "PVEFW" not in node.run("iptables-save")
        assert node.is_active("pve-firewall")
        assert not (node.root / "var/lib/pvefw/taken-over.json").exists()
        assert not (node.root / "etc/systemd/system/pve-firewall.service.d").exists()


if LONG and "nft" in BACKENDS:

    def test_an_unconfirmed_hand_back_takes_over_again(node: Node) -> None:
        with filtered_by(node, "pve-firewall") as network:
            node.run("pvefw", "take-over", "--backend", "nft")
            with streams(network) as passing:
                told = node.run("pvefw", "hand-back", "--confirm", "3", check=False)
                time.sleep(2)  # time for their loops
            assert "not confirmed" in told
            check(passing)
            assert_taken_over(node, "nft")
            with confirmed_by_another_shell(node):
                node.run("pvefw", "hand-back", "--confirm", "60")
            assert_handed_back(node, "pve-firewall")
            assert "pvefw-hand-back-guard" not in node.run("systemctl", "list-timers", "--all", "--no-legend")


@contextmanager
def confirmed_by_another_shell(node: Node) -> Iterator[None]:
    loop = "until pvefw confirm; do sleep 1; done"
    with subprocess.Popen(node.systemd.command("sh", "-c", loop), stderr=subprocess.DEVNULL) as confirming:
        yield
        confirming.wait()


@contextmanager
def booted(node: Node) -> Iterator[Network]:
    """Switch the host on (off first if it is on), and start the enabled units."""
    node.close()
    node.switch_on()
    with node.namespace.entered():
        network = Network()
        node.start_enabled()
        try:
            yield network
        finally:
            remove_links(node)
            network.close()


@pytest.mark.parametrize(("daemon", "backend"), COMBINATIONS if LONG else [])
def test_switched_off_at_each_step(node: Node, daemon: str, backend: str) -> None:
    """Each run is cut short at a step later than the one before; the next boot must start one firewall or the other."""
    with configured_for_boots(node, daemon):
        for command in (("take-over", "--backend", backend), ("hand-back",)):
            step = 1
            while kill_at(node, command, step, 0):
                with booted(node) as network:
                    filters(node, network, daemon)
                step += 1
            print(f"{command[0]}: switched off at {step - 1} steps")
            assert step > 6


@pytest.mark.skipif("iptables" not in BACKENDS, reason="with the other backend")
def test_switched_off_while_a_take_over_waits_for_its_confirmation(node: Node) -> None:
    """pve-firewall has ended by then, and the unit of pvefw is not enabled yet."""
    command = ("pvefw", "take-over", "--backend", "iptables", "--confirm", "600", "--force")
    with configured_for_boots(node, "pve-firewall"):
        with subprocess.Popen(node.systemd.command(*command), stdout=subprocess.DEVNULL):
            eventually(lambda: "PVEFW-HOST-IN" in node.rules())
            assert not node.is_active("pve-firewall")
            node.close()
        with booted(node) as network:
            filters(node, network, "pve-firewall")
            assert node.is_active("pve-firewall")
            assert "PVEFW-HOST-IN" not in node.rules()


@contextmanager
def configured_for_boots(node: Node, daemon: str) -> Iterator[None]:
    """Have a stand-in filter the host, and be started by each boot; afterwards nothing does."""
    node.configure(nftables=DAEMONS[daemon][1])
    try:
        start_theirs(node, daemon)
        yield
    finally:
        forget(node)
        node.run("systemctl", "disable", *DAEMONS, check=False)


def filters(node: Node, network: Network, daemon: str) -> None:
    """Wait until one firewall has loaded its rules, and see that nothing denied passes."""
    marks = ("-A INPUT -j PVEFW-INPUT", "proxmox-firewall-guests", "table bridge pvefw")
    eventually(lambda: any(mark in node.rules() for mark in marks))
    time.sleep(1.5)  # stand-ins look each second
    denied = Denied(network)
    try:
        assert denied.pass_now() == []
    finally:
        denied.close()
    running = {name for name in (*DAEMONS, "pvefw") if node.is_active(name)}
    assert running == {"pvefw"} or daemon in running <= DAEMONS.keys(), running


@pytest.mark.parametrize("backend", BACKENDS if LONG else BACKENDS[:1])
def test_the_service_tells_of_a_firewall_that_comes_to_life(node: Node, backend: str) -> None:
    """A start of Proxmox VE's services while pvefw runs is reported, and the host is never open."""
    daemon = "pve-firewall" if backend == "iptables" else "proxmox-firewall"  # nftables: 0, nftables: 1
    with filtered_by(node, daemon) as network:
        node.run("pvefw", "take-over", "--backend", backend)
        with streams(network) as passing:
            for name in DAEMONS:
                node.run("rm", "-r", f"/etc/systemd/system/{name}.service.d", f"/run/systemd/system/{name}.service.d")
                node.run("systemctl", "unmask", name)
                node.run("systemctl", "unmask", "--runtime", name)
            node.run("systemctl", "start", *DAEMONS)
            for name in DAEMONS:
                eventually(lambda name=name: f"warning: {name}.service runs: " in node.journal())  # type: ignore[misc]
            eventually(lambda: (node.root / FLAG[1:]).exists())  # with nftables: 1, pve-firewall removes it
            time.sleep(2)  # time for their loops
        check(passing)
        assert node.is_active("pvefw")
        status = node.run("pvefw", "status", check=False)
        assert f"running ({backend})" in status
        assert "pve-firewall.service runs" in status
        assert "pve-firewall.service runs" in node.run("pvefw", "update", "--backend", backend, check=False)
        # the way out
        node.run("pvefw", "take-over", "--backend", backend)
        assert_taken_over(node, backend)


GUESTS = """\
[Unit]
Wants=pve-firewall.service
After=pve-firewall.service pvefw.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'test -e {flag} && echo flagged >/run/guests; {{ iptables-save; nft list tables; }} >>/run/guests'
ExecStart=/bin/sh -c '{start}'
[Install]
WantedBy=multi-user.target
"""
STARTS = {
    # as Proxmox VE does where it sees the flag file
    "through the firewall bridge": f"test -e {FLAG} && pvefw plug tap100i0 --bridge vmbr0",
    "in the guest's bridge": "ip link set tap100i0 master vmbr0",
}
CUT_DOWN = not has_bridge_conntrack()
"""Whether nft's rules do without names of bridges, by which NICs that are not plugged yet are told."""
BOOTS = [("iptables", "through the firewall bridge"), *itertools.product(["nft"], list(STARTS)[: 1 if CUT_DOWN else 2])]


@pytest.mark.parametrize(("backend", "start"), [boot for boot in (BOOTS if LONG else BOOTS[:2]) if boot[0] in BACKENDS])
def test_boot(node: Node, backend: str, start: str) -> None:
    """A host boots after a take-over, and starts a guest: flag file, firewall bridge, first packet filtered.

    A guest whose NIC comes into the guest's own bridge is plugged by the service; until then its traffic is dropped
    (nft; rules of iptables that drop it come with the service's next look).
    """
    node.systemd.write(
        "/usr/local/lib/systemd/system/pve-guests.service", GUESTS.format(flag=FLAG, start=STARTS[start])
    )
    with configured_for_boots(node, "pve-firewall"):
        unplugged = () if CUT_DOWN and backend == "nft" else ("--unplugged", "drop")
        node.run("pvefw", "take-over", "--backend", backend, *unplugged)
        node.run("systemctl", "enable", "pve-guests")
        node.close()
        node.switch_on()
        with node.namespace.entered():
            network = Network()
            for link in ("fwln100i0", "fwbr100i0"):  # the guest is not there yet
                node.run("ip", "link", "delete", link)
            with streams_of_denied(network) as leaked:
                node.start_enabled()
                eventually(lambda: "fwbr100i0" in node.run("ip", "link", "show", "tap100i0"))
                time.sleep(1)  # packets meet these rules
            remove_links(node)
            network.close()
        node.run("systemctl", "disable", "pve-guests")
        said = node.run("cat", "/run/guests")
        assert "flagged" in said
        assert {"iptables": "PVEFW-FWBR-IN", "nft": "table bridge pvefw"}[backend] in said
        assert leaked == []
        assert node.is_active("pvefw")
        assert not node.is_active("pve-firewall")


@contextmanager
def streams_of_denied(network: Network) -> Iterator[list[str]]:
    """Send denied datagrams to and from the guest; the list has those that arrived."""
    denied, over, leaked = Denied(network, [("outside", "guest"), ("guest", "outside")]), Event(), list[str]()

    def send() -> None:
        while not over.is_set():
            denied.send()
            leaked.extend(denied.arrived(0.01))

    thread = Thread(target=send, daemon=True)
    thread.start()
    try:
        yield leaked
    finally:
        over.set()
        thread.join()
        denied.close()
