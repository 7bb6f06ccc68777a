"""The service through thousands of changes, while a link goes up and down a hundred times a second and other programs
change rules of theirs: each change arrives, memory and descriptors stay, and the rules of others too.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import statistics
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.waiting import wait_until

pytest.importorskip("pyroute2")
pytest.importorskip("nftables")

from benchmarks.cut_down import cut_down
from pvefw_nft.host.links import open_route
from pvefw_nft.host.netfilter.nf_listing import Listing
from pvefw_nft.host.netfilter.nf_tables import Questions

from .commands import service
from .conftest import need
from .network import configure, has_bridge_conntrack
from .test_other_hands import shell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .commands import Command
    from .conftest import Namespace

UPDATES = int(os.environ.get("PVEFW_TEST_SOAK", "15"))
"""Changes for each backend."""
PATIENCE = 60.0
"""Seconds after which a change is missed."""
PORTS = 50
"""So many ports come round: the compiler keeps what it read of each, up to a bound that no soak reaches."""
FLAPS = 100  # a second
OTHERS = [
    ("iptables -w -I FORWARD -s 192.0.2.1 -j ACCEPT", "iptables -w -D FORWARD -s 192.0.2.1 -j ACCEPT"),
    ("ip6tables -w -A INPUT -s 2001:db8::1 -j DROP", "ip6tables -w -D INPUT -s 2001:db8::1 -j DROP"),
    ("nft add rule inet theirs in ip saddr 192.0.2.2 accept", "nft flush chain inet theirs in"),
    ("ipset -exist add theirs 192.0.2.3", "ipset -exist del theirs 192.0.2.3"),
]
KEPT = ["iptables -A FORWARD -s 192.0.2.9 -j DROP", "nft add rule inet kept in ip saddr 192.0.2.9 drop"]


def flap() -> None:
    """Have a link go down or up a hundred times a second."""
    with open_route() as route:
        (index,) = route.link_lookup(ifname="flapping0")
        for state in itertools.cycle(("down", "up")):
            begun = time.monotonic()
            route.link("set", index=index, state=state)
            time.sleep(max(0.0, 1 / FLAPS - (time.monotonic() - begun)))  # keep the rate


def change_others() -> None:
    """Change rules and sets that are not ours, a few times a second."""
    for change in itertools.cycle(command for pair in OTHERS for command in pair):
        subprocess.run(change.split(), check=False, capture_output=True)
        time.sleep(0.2)  # the rate


def printed(command: str) -> str:
    return subprocess.run(command.split(), capture_output=True, text=True, check=True).stdout


@contextlib.contextmanager
def beside(*actions: Callable[[], None]) -> Iterator[None]:
    """Do these in processes of their own while the block runs; none of them ends by itself."""
    forking = multiprocessing.get_context("fork")
    processes = [forking.Process(target=action, daemon=True) for action in actions]
    for process in processes:
        process.start()
    try:
        yield
        assert all(process.is_alive() for process in processes)
    finally:
        for process in processes:
            process.kill()
            process.join()


def resident(process: int) -> float:
    """Return the MB of memory that a process has; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


class Service:
    """The running service, and how the kernel shows what it did."""

    def __init__(self, folder: Path, backend: str, command: Command) -> None:
        self.command = command
        self._file = folder / "etc/pve/firewall/100.fw"
        self._backend = backend

    def chain(self, questions: Questions) -> str | None:
        """Return something that differs whenever the rules for what comes to guest 100 do."""
        if self._backend == "iptables":
            return self._listed()
        return Listing(questions, "bridge", "pvefw").of("chain", "tap100i0-IN")

    def _listed(self) -> str:
        show = {"iptables": "iptables -S", "nft": "nft list chain bridge pvefw"}[self._backend]
        return printed(f"{show} tap100i0-IN")

    def change(self, number: int) -> float:
        """Save another port in the guest's file; return the seconds until the kernel holds it. It may be missed."""
        port = 10_000 + number % PORTS
        new = self._file.with_suffix(".new")
        new.write_text(f"[OPTIONS]\nenable: 1\npolicy_out: DROP\n[RULES]\nIN ACCEPT -p udp -dport {port}\n")
        with Questions() as questions:
            before = self.chain(questions)
            begun = time.monotonic()
            new.replace(self._file)
            came = wait_until(lambda: self.chain(questions) != before, PATIENCE, every=0.01)
            assert came, f"change {number} was missed: {self.command.said()[-2000:]}"
        spent = time.monotonic() - begun
        listed = self._listed()
        assert f"dport {port} " in listed, (number, listed)
        return spent

    def memory(self) -> float:
        """Return the MB that it and its compiler's process take (proc(5)), the least of some looks.

        A tool that it starts is a copy of it for a moment.
        """
        looks = []
        for _ in range(5):
            children = self._proc(f"task/{self.command.pid}/children").read_text().split()
            looks.append(sum(resident(process) for process in (self.command.pid, *map(int, children))))
            time.sleep(0.02)  # between two looks
        return min(looks)

    def descriptors(self) -> int:
        """Return how many are open once nothing runs: the least of some looks."""
        counts = []
        for _ in range(20):
            counts.append(len(list(self._proc("fd").iterdir())))
            time.sleep(0.02)  # between two looks
        return min(counts)

    def _proc(self, name: str) -> Path:
        return Path(f"/proc/{self.command.pid}/{name}")


@pytest.mark.parametrize("backend", ["iptables", "nft"])
def test_soak(host: Namespace, tmp_path: Path, backend: str) -> None:
    need("iptables -L; ip6tables -L; ipset list; ebtables -L; nft add table inet probe; nft delete table inet probe")
    configure(tmp_path)
    shell("ip link add flapping0 type veth peer name flapping1; ip link set lo up")
    chain = "{ type filter hook input priority 10; }"
    shell(f"nft add table inet theirs; nft add chain inet theirs in '{chain}'; ipset create theirs hash:ip")
    shell(f"nft add table inet kept; nft add chain inet kept in '{chain}'; {'; '.join(KEPT)}")
    (tmp_path / "said").mkdir()
    options = ["--root", str(tmp_path), "--node", "n", "--local-network", "192.0.2.0/24", "--backend", backend]
    cuts = backend == "nft" and not has_bridge_conntrack()
    seconds: list[float] = []
    memory: list[float] = []
    opened: list[int] = []
    begun = time.monotonic()
    with service(tmp_path / "said", *options, first=cut_down if cuts else lambda: None) as command:
        command.waits_for(lambda: "started:" in command.said(), 120)
        running = Service(tmp_path, backend, command)
        with beside(flap, change_others):
            for number in range(UPDATES):
                seconds.append(running.change(number))
                if number % max(1, UPDATES // 40) == 0:
                    memory.append(running.memory())
                    opened.append(running.descriptors())
    said = command.said()
    order = sorted(seconds)
    median, p99 = statistics.median(order), order[int(0.99 * (len(order) - 1))]
    quarter = memory[len(memory) // 4]
    print(
        f"{backend}: {len(order)} changes in {time.monotonic() - begun:.0f} s, none missed; from saving to the kernel: "
        f"median {median:.3f} s, p99 {p99:.3f} s, at most {order[-1]:.3f} s; memory: {memory[0]:.1f} MB first, "
        f"{quarter:.1f} after a quarter, {memory[-1]:.1f} last, {max(memory):.1f} at most; "
        f"descriptors: {opened[0]} first, {opened[-1]} last, {max(opened)} at most"
    )
    for word in ("Traceback", "pvefw failed", "error:"):
        assert word not in said, said[-3000:]
    assert "-s 192.0.2.9/32 -j DROP" in subprocess.run(["iptables-save"], capture_output=True, text=True).stdout
    assert (
        "192.0.2.9 drop"
        in subprocess.run(["nft", "list", "table", "inet", "kept"], capture_output=True, text=True).stdout
    )
    # a tool that runs at that moment has some: what is left when none does must not grow
    assert min(opened[-4:]) <= opened[0] + 2
    # what grows does so in each quarter; pools of the C library fill within the first
    assert memory[-1] <= quarter * 1.05 + 1
