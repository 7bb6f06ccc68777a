"""docs/how-to/migrate.md, followed word by word on a host that a stand-in of pve-firewall filters, under traffic.

And the way to a service where Proxmox VE's firewall does not run (docs/how-to/run-as-a-service.md). The commands, the
settings and the answers are read out of the page, so that the page cannot differ from the test. The stand-in loads the
iptables backend's ruleset: byte for byte the reference's. Only :mod:`tests.kernel.test_host` runs this file, in the
lab's guest or on a machine that no systemd runs.
"""

from __future__ import annotations

import pty
import re
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.host.network import Denied, Network, check, has_bridge_conntrack
from tests.kernel.systemd_in_guest import BACKENDS, REPOSITORY, eventually
from tests.kernel.takeover_in_guest import (
    COMMON,
    NODE,
    Node,
    assert_handed_back,
    assert_taken_over,
    filtered_by,
    forget,
    remove_links,
)
from tests.kernel.takeover_in_guest import streams as packets
from tests.shown import Session, assert_like, sessions_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif("nft" not in BACKENDS, reason="with the other backend")

PAGE = REPOSITORY / "docs/how-to/migrate.md"
SERVICE_PAGE = PAGE.with_name("run-as-a-service.md")
ASKED = "to keep this ruleset"
"""The message of a command that waits for its confirmation."""
CUT_DOWN = not has_bridge_conntrack()
NOT_JUDGED = {("pvefw", "compare", "live")} if CUT_DOWN else set[tuple[str, ...]]()
"""Commands that report rules without a module of the kernel as different from the files."""

PVE_FIREWALL = (
    COMMON
    + """\
import re
def tools_and_texts():
    made = run(["/usr/local/sbin/pvefw", "compile", "--backend", "iptables"]).stdout
    return [part.split("\\n", 1) for part in re.split("^### ", made, flags=re.MULTILINE)[1:]]
def apply():
    for tool in ("iptables", "ip6tables"):
        open("/proc/sys/net/bridge/bridge-nf-call-" + tool, "w").write("1")
    for command, text in tools_and_texts():
        more = ["-exist"] if command.startswith("ipset") else ["--noflush"] if command.startswith("ebt") else []
        done = run([*command.split(), *more], text)
        if done.returncode:
            print(command, done.stderr, flush=True)
def is_loaded():
    return "-A INPUT -j PVEFW-INPUT" in run(["iptables-save", "-t", "filter"]).stdout
def remove():
    for tool in ("iptables", "ip6tables"):
        for table in ("filter", "raw"):
            saved = run([tool + "-save", "-t", table]).stdout.splitlines()
            ours = [line[1:].split()[0] for line in saved if re.match(":(PVEFW-|tap)", line)]
            jumps = ["-D" + line[2:] for line in saved if re.match("-A [A-Z]+ -j PVEFW-", line)]
            lines = ["*" + table, *jumps, *(f"-F {chain}" for chain in ours), *(f"-X {chain}" for chain in ours)]
            run([tool + "-restore", "--noflush"], "\\n".join([*lines, "COMMIT", ""]))
    for name in run(["ipset", "list", "-name"]).stdout.split():
        if name.startswith("PVEFW-"):
            run(["ipset", "destroy", name])
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
        if not is_loaded():
            apply()
        open(FLAG, "w").close()
    time.sleep(1)  # its loop
"""
)


class Guided(Node):
    """A host whose configuration has nothing that ``check`` reports."""

    def configure(self, *, nftables: int) -> None:
        super().configure(nftables=nftables)
        with (self.root / "etc/pve/firewall/cluster.fw").open("a") as rules:
            rules.write("IN ACCEPT -p tcp -dport 22\n")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    made = Guided(tmp_path_factory.mktemp("systemd"))
    made.systemd.write("/usr/local/lib/pve-firewall", PVE_FIREWALL)
    yield made
    made.close()


def steps_of(heading: str, page: Path = PAGE) -> list[Session | int]:
    """Return the steps of a part of a page, in order: commands, and values of ``nftables``."""
    text = page.read_text("utf-8")
    (part,) = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    first, *others = re.split(r"Set `nftables: ([01])`", part)
    steps: list[Session | int] = [one for one in sessions_in(first) if one.prompt == "#"]
    for value, following in zip(others[::2], others[1::2], strict=True):
        steps += [int(value), *(one for one in sessions_in(following) if one.prompt == "#")]
    return steps


class Administrator:
    """Executes the steps of the page, and compares the answers with it."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def follow(self, heading: str, page: Path = PAGE) -> None:
        """Follow one part of a page."""
        steps = steps_of(heading, page)
        assert steps, heading
        while steps:
            step = steps.pop(0)
            print(step if isinstance(step, int) else " ".join(step.words), flush=True)
            if isinstance(step, int):
                (self._node.root / f"etc/pve/nodes/{NODE}/host.fw").write_text(f"[OPTIONS]\nnftables: {step}\n")
            elif "--confirm" in step.words:
                confirm = steps.pop(0)
                with self._waiting(step):
                    self._run(confirm)
            else:
                self._run(step)

    def _run(self, step: Session | int) -> None:
        assert isinstance(step, Session), "the page goes on without `pvefw confirm`"
        done = subprocess.run(
            self._node.systemd.command(*step.words),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        print(done.stdout)
        if step.words in NOT_JUDGED:
            assert done.returncode in (0, 1), done.stdout
        else:
            assert_like(step, done.returncode, done.stdout)

    @contextmanager
    def _waiting(self, step: Session) -> Iterator[None]:
        """Run a command at a terminal until it waits; afterwards it ends as the page shows."""
        _, terminal = pty.openpty()
        with subprocess.Popen(
            self._node.systemd.command(*step.words),
            stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ) as running:  # fmt: skip
            assert running.stdout is not None
            said = []
            for line in running.stdout:
                said.append(line)
                if ASKED in line:
                    break
            else:
                pytest.fail("".join(said))
            time.sleep(1)  # while both rulesets are loaded
            yield
            said += running.stdout
            print("".join(said))
        assert_like(step, running.returncode, "".join(said))


def test_each_part_of_the_page_has_its_way_back() -> None:
    for heading, backend in (("To Proxmox VE's own firewall", 0), ("To pvefw with iptables", 0), ("3. After", 1)):
        assert backend in steps_of(heading)


def test_the_page_leads_to_nft_and_back(node: Node) -> None:
    with filtered_by(node, "pve-firewall") as network:
        eventually(lambda: "tap100i0-IN" in node.rules())
        administrator = Administrator(node)
        administrator.follow("1. Before")
        with packets(network) as passing:
            administrator.follow("2. The day")
            administrator.follow("3. After")
            assert_taken_over(node, "nft")
            administrator.follow("To Proxmox VE's own firewall")
            assert_handed_back(node, "pve-firewall")
            administrator.follow("2. The day")
            administrator.follow("3. After")
            administrator.follow("To pvefw with iptables")
            assert_taken_over(node, "iptables")
        check(passing)


def test_the_page_leads_to_a_service(node: Node) -> None:
    node.configure(nftables=0)
    with node.namespace.entered():
        network = Network()
        try:
            Administrator(node).follow("Run as a service", SERVICE_PAGE)
            assert node.is_active("pvefw")
            denied = Denied(network)
            assert denied.pass_now() == []
            denied.close()
        finally:
            forget(node)
            remove_links(node)
            network.close()
