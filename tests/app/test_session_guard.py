"""The effect of a ruleset on connections that exist. The connections are made up, the rulesets are compiled."""

from __future__ import annotations

import ipaddress
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.app import compiler as compiler_module
from pvefw_nft.app import session_guard
from pvefw_nft.app.compiler import Compiler
from pvefw_nft.app.desired import desired_of
from pvefw_nft.app.judgement import Connections, Judgement
from pvefw_nft.app.steady_source import patient
from pvefw_nft.host.live_network import LiveLink, LiveNetwork
from pvefw_nft.host.tracking.connections import Flow, Session
from pvefw_nft.host.watching import file_probe
from pvefw_nft.pipeline import Observations, Source, compile_root

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pvefw_nft.host.records.record import Desired
    from pvefw_nft.host.tracking.connections import Address
    from pvefw_nft.pipeline import Compiled
    from pvefw_nft.pipeline.closing import Closed

pytestmark = pytest.mark.parametrize("backend", ["iptables", "nft"])

GUEST_MAC = "BC:24:11:00:00:01"


def address(text: str) -> Address:
    ip = ipaddress.ip_address(text)
    return ip.version, int(ip)


HOST, CLIENT, GUEST, FAR = (address(text) for text in ("10.0.0.1", "10.0.0.9", "10.0.0.100", "203.0.113.7"))
NETWORK = LiveNetwork(
    (LiveLink("vmbr0", True, ("eno1", "fwpr100p0"), ((*HOST, 24),)),),
    ((4, address("10.0.0.0")[1], 24, "vmbr0"), (4, 0, 0, "vmbr0")),
    {GUEST: int(GUEST_MAC.replace(":", ""), 16)},
)


def ssh(client: Address = CLIENT, port: int = 22, sport: int = 50000) -> Session:
    return Session("ssh", Flow(6, client, sport, HOST, port), "an established connection")


class Configured:
    """A configuration with one filtered guest, and connections that exist."""

    def __init__(self, root: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.backend, self.monkeypatch = root, backend, monkeypatch
        self.compiled: Desired | None = None
        self.write("nodes/n/qemu-server/100.conf", f"net0: virtio={GUEST_MAC},bridge=vmbr0,firewall=1\n")
        self.cluster("")

    def write(self, file: str, text: str) -> None:
        path = self.root / "etc/pve" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def cluster(self, more: str) -> None:
        head = "[OPTIONS]\nenable: 1\n[ALIASES]\nlocal_network 192.0.2.0/24\n"
        self.write("firewall/cluster.fw", head + more)

    def judge(
        self,
        sessions: Sequence[Session] = (),
        tracked: Sequence[Flow] = (),
        *,
        before: bool = False,
        network: LiveNetwork = NETWORK,
        seconds: float = session_guard.MAX_SECONDS,
    ) -> Judgement:
        """Judge the configuration; ``before``: by what changes against the ruleset that was compiled last."""
        source = Source(self.root, "n", lambda: None)
        running = self.compiled if before else None
        self.compiled = desired_of(compile_root(source, self.backend))
        now = Connections(tuple(sessions), tuple(tracked), network, calls_iptables=False)
        return session_guard.judge(self.compiled, running, source, now, seconds=seconds)


@pytest.fixture
def configured(tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> Configured:
    return Configured(tmp_path, backend, monkeypatch)


def test_an_untracked_session_is_cut_by_the_policy(configured: Configured) -> None:
    (cut,) = configured.judge([ssh()]).cuts
    assert (cut.effect, cut.place) == ("would be cut", "cluster.fw policy_in DROP")
    assert cut.add == "`IN ACCEPT -source 10.0.0.9 -dest 10.0.0.1 -p tcp -dport 22` in [RULES] of host.fw"


def test_the_rule_that_is_proposed_keeps_the_session(configured: Configured) -> None:
    (cut,) = configured.judge([ssh(port=2222)]).cuts
    configured.write("nodes/n/host.fw", f"[RULES]\n{cut.add.split('`')[1]}\n")
    assert configured.judge([ssh(port=2222)]).cuts == ()


def test_the_line_of_host_fw_is_named(configured: Configured) -> None:
    configured.write("nodes/n/host.fw", "[RULES]\nIN ACCEPT -p icmp\nIN DROP -source 10.0.0.0/24 -p tcp -dport 22\n")
    (cut,) = configured.judge([ssh()]).cuts
    assert cut.place == "host.fw:3"
    assert cut.add.endswith("of host.fw, above line 3")


def test_a_tracked_session_continues_but_could_not_be_opened_again(configured: Configured) -> None:
    (cut,) = configured.judge([ssh()], [ssh().flow]).cuts
    assert cut.effect == "could not be opened again"


def test_connections_that_the_running_ruleset_refuses_do_not_block_the_next(configured: Configured) -> None:
    assert configured.judge([ssh()], [ssh().flow]).cuts
    configured.cluster("[RULES]\nIN ACCEPT -p tcp -dport 80\n")
    assert configured.judge([ssh()], [ssh().flow], before=True).cuts == ()


def test_outgoing_policies_cut_answers_of_untracked_sessions_only_where_they_are_not_established(
    configured: Configured,
) -> None:
    configured.cluster("[RULES]\nIN ACCEPT -p tcp -dport 22\n")
    configured.write("nodes/n/host.fw", "[RULES]\nOUT DROP -p tcp -sport 22\n")
    assert configured.judge([ssh()]).cuts == ()


def test_a_session_from_a_guest_is_cut_by_the_guests_own_rules(configured: Configured) -> None:
    configured.cluster("[RULES]\nIN ACCEPT -p tcp -dport 22\n")
    configured.write("firewall/100.fw", "[OPTIONS]\nenable: 1\n[RULES]\nOUT REJECT -p tcp -dport 22\n")
    (cut,) = configured.judge([ssh(GUEST)]).cuts
    assert cut.place == "100.fw:4"
    assert cut.add == (
        "`OUT ACCEPT -source 10.0.0.100 -dest 10.0.0.1 -p tcp -dport 22` in [RULES] of 100.fw, above line 4"
    )


def test_connections_of_guests_are_listed_by_the_line_that_shuts_them_out(configured: Configured) -> None:
    web, name, out = Flow(6, FAR, 40000, GUEST, 80), Flow(17, FAR, 40001, GUEST, 53), Flow(6, GUEST, 40002, FAR, 443)
    configured.write(
        "firewall/100.fw", "[OPTIONS]\nenable: 1\n[RULES]\nIN DROP -p tcp -dport 80\nIN ACCEPT -p udp -dport 53\n"
    )
    judgement = configured.judge((), [web, name, out])
    assert judgement.cuts == ()
    assert [(loss.place, loss.connections) for loss in judgement.guests] == [
        ("100.fw:4", ("tcp 203.0.113.7:40000 → 10.0.0.100:80",))
    ]


def test_connections_of_guests_that_were_not_allowed_before_are_not_listed_again(configured: Configured) -> None:
    configured.write("firewall/100.fw", "[OPTIONS]\nenable: 1\n")
    assert configured.judge((), [Flow(6, FAR, 40000, GUEST, 80)]).guests
    configured.cluster("[RULES]\nIN ACCEPT -p tcp -dport 1\n")
    assert configured.judge((), [Flow(6, FAR, 40000, GUEST, 80)], before=True).guests == ()


def test_a_translated_connection_is_judged_by_the_guest_that_answers(configured: Configured) -> None:
    configured.write("firewall/100.fw", "[OPTIONS]\nenable: 1\n[RULES]\nIN DROP -p tcp -dport 80\n")
    (loss,) = configured.judge((), [Flow(6, FAR, 40000, HOST, 80, GUEST)]).guests
    assert loss.connections == ("tcp 203.0.113.7:40000 → 10.0.0.100:80",)


def test_corosync_peers_must_get_through(configured: Configured) -> None:
    nodes = "".join(
        f"  node {{\n    name: {n}\n    ring0_addr: {a}\n  }}\n" for n, a in (("n", "10.0.0.1"), ("m", "10.0.0.2"))
    )
    configured.write("corosync.conf", f"totem {{\n  version: 2\n}}\nnodelist {{\n{nodes}}}\n")
    configured.cluster("[RULES]\nIN ACCEPT -p tcp -dport 22\n")
    assert configured.judge().cuts == ()
    configured.write("nodes/n/host.fw", "[RULES]\nOUT DROP -dest 10.0.0.2\n")
    assert [(cut.connection, cut.place) for cut in configured.judge().cuts] == [
        ("corosync 10.0.0.1 → 10.0.0.2:5405", "host.fw:2"),
        ("migration 10.0.0.1 → 10.0.0.2:22", "host.fw:2"),
    ]


def test_the_migration_network_must_get_through(configured: Configured) -> None:
    configured.write("datacenter.cfg", "keyboard: de\nmigration: insecure,network=10.0.0.0/24\n")
    cuts = configured.judge().cuts
    assert {cut.connection for cut in cuts} == {"insecure migration 10.0.0.254 → 10.0.0.1:60000"}
    configured.cluster("[RULES]\nIN ACCEPT -source 10.0.0.0/24 -p tcp -dport 60000:60050\n")
    assert configured.judge().cuts == ()


def test_a_firewall_that_is_off_cuts_nothing(configured: Configured) -> None:
    configured.write("firewall/cluster.fw", "[OPTIONS]\nenable: 0\n[ALIASES]\nlocal_network 192.0.2.0/24\n")
    assert configured.judge([ssh()]).cuts == ()


def many_guests(configured: Configured, count: int) -> tuple[LiveNetwork, list[Flow]]:
    """Add guests from VMID 200 on that accept only their own port, each with a connection to port 80."""
    met: dict[Address, int] = {GUEST: int(GUEST_MAC.replace(":", ""), 16)}
    flows = []
    for number in range(count):
        mac = f"BC:24:11:00:01:{number:02X}"
        configured.write(f"nodes/n/qemu-server/{200 + number}.conf", f"net0: virtio={mac},bridge=vmbr0,firewall=1\n")
        rules = f"IN ACCEPT -p tcp -dport {1000 + number}\nIN DROP -p tcp -dport 80\n"
        configured.write(f"firewall/{200 + number}.fw", f"[OPTIONS]\nenable: 1\n[RULES]\n{rules}")
        guest = (4, address("10.0.1.0")[1] + number)
        met[guest] = int(mac.replace(":", ""), 16)
        flows.append(Flow(6, FAR, 40000 + number, guest, 80))
    return replace(NETWORK, neighbours=met), flows


def test_connections_of_many_guests_are_judged_by_each_guests_own_rules(configured: Configured) -> None:
    network, flows = many_guests(configured, 60)
    more = [*flows, Flow(6, FAR, 1, flows[7].destination, 1007)]
    judgement = configured.judge((), more, network=network, seconds=60)
    assert {(loss.place, loss.connections) for loss in judgement.guests} == {
        (f"{200 + number}.fw:5", (f"tcp 203.0.113.7:{40000 + number} → 10.0.1.{number}:80",)) for number in range(60)
    }
    assert judgement.notes == ()


def test_connections_between_guests_meet_the_rules_of_both(configured: Configured) -> None:
    network, (first, second) = many_guests(configured, 2)
    configured.write("firewall/200.fw", "[OPTIONS]\nenable: 1\n[RULES]\nOUT DROP -p tcp -dport 1001\n")
    between = [Flow(6, first.destination, 5, second.destination, port) for port in (1001, 80, 1002)]
    judgement = configured.judge((), between, network=network)
    assert {(loss.place, len(loss.connections)) for loss in judgement.guests} == {
        ("200.fw:4", 1), ("201.fw:5", 1), ("201.fw policy_in DROP", 1),
    }  # fmt: skip


def test_sessions_of_the_host_are_judged_even_beside_many_connections_of_guests(configured: Configured) -> None:
    network, flows = many_guests(configured, 60)
    judgement = configured.judge([ssh()], flows, network=network, seconds=0)
    assert [cut.place for cut in judgement.cuts] == ["cluster.fw policy_in DROP"]
    (note,) = judgement.notes
    assert " of 60 connections of guests were checked: " in note
    assert sum(len(loss.connections) for loss in judgement.guests) < 60


def test_a_thousand_connections_take_less_than_a_second(configured: Configured) -> None:
    configured.write("firewall/100.fw", "[OPTIONS]\nenable: 1\n[RULES]\nIN DROP -source 198.51.100.0/25\n")
    clients = [(4, address("198.51.100.0")[1] + number) for number in range(250)]
    sessions = [ssh(client, sport=40000 + turn) for client in clients for turn in range(2)]
    flows = [Flow(6, client, 40000 + turn, GUEST, 80) for client in clients for turn in range(2)]
    begun = time.process_time()
    judgement = configured.judge(sessions, flows)
    assert time.process_time() - begun < 1
    assert len(judgement.cuts) == 500
    assert sum(len(loss.connections) for loss in judgement.guests) == 500


def test_guest_on_whose_file_the_compile_fails_does_not_end_the_judgement(
    configured: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Source, backend: str, *, closed: Closed, only: set[int]) -> Compiled:
        if 100 not in closed:
            raise KeyError("an unforeseen input")
        return compile_root(source, backend, closed=closed, only=only)

    configured.cluster("[RULES]\nIN DROP -p tcp -dport 22\n")
    configured.write("firewall/100.fw", "[OPTIONS]\nenable: 1\n")
    source = Source(configured.root, "n", lambda: None)
    desired = desired_of(compile_root(source, configured.backend))
    monkeypatch.setattr(session_guard, "compile_root", fail)
    now = Connections((ssh(), ssh(GUEST)), (), NETWORK, calls_iptables=False)
    assert {cut.place for cut in session_guard.judge(desired, None, source, now).cuts} >= {"cluster.fw:6"}


def test_judgement_of_the_compilers_process_is_the_same_and_probes_the_file_system_once(
    configured: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured.write("firewall/100.fw", "[OPTIONS]\nenable: 1\n[RULES]\nIN DROP -p tcp -dport 80\n")
    flow = Flow(6, FAR, 40000, GUEST, 80)
    here = configured.judge([ssh()], [flow])
    assert (len(here.cuts), len(here.guests)) == (1, 1)
    probes: list[Path] = []

    def answers(root: Path, _: float) -> bool:
        probes.append(root)
        return True

    monkeypatch.setattr(file_probe, "answers", answers)
    now = Connections((ssh(),), (flow,), NETWORK, calls_iptables=False)
    assert configured.compiled is not None
    source = patient(Source(configured.root, "n", lambda: None))
    with Compiler(source, None, settle=0.0) as compiler:
        assert compiler.judge(configured.compiled, None, lambda: now) == here
        assert probes == [configured.root]
        assert not compiler.still_hold(Observations())  # at once: the file system has just answered
        assert probes == [configured.root]
        monkeypatch.setattr(compiler_module, "PROBE_SECONDS", 0.0)
        assert not compiler.still_hold(Observations())
        assert probes == [configured.root] * 2
