"""pvefw's rulesets beside foreign rules, in a kernel that runs them all: read as listed, simulated and compared."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.verify.prove.compare import compare
from pvefw_nft.verify.prove.network import Side
from pvefw_nft.verify.prove.render import report_text
from pvefw_nft.verify.readers.files import Text, read_ruleset
from tests.kernel import configurations
from tests.kernel.artefact import BACKENDS, IPTABLES, NFT
from tests.kernel.network.build import HOST_NAMESPACE
from tests.kernel.outcome import DROP
from tests.kernel.packets import describe
from tests.kernel.wire import WATCH_TABLE
from tests.verify.docker import ENGINES, script
from tests.verify.lab import agrees, lost_before_rules, outcome_of, topology_of

if TYPE_CHECKING:
    from pvefw_nft.verify.model import RulesetModel
    from tests.kernel.configurations import Configuration
    from tests.kernel.lab import Lab

FOREIGN = """
nft -f - <<'END'
table inet f2b-table {
  set addr-set-sshd { type ipv4_addr; flags interval; auto-merge; elements = { 10.0.0.66, 198.51.100.0/24 } }
  chain f2b-chain {
    type filter hook input priority filter - 1; policy accept;
    tcp dport { 22, 2222 } ip saddr @addr-set-sshd reject with icmp port-unreachable
  }
}
table inet mine {
  map ports { type inet_service : verdict; elements = { 80 : accept, 4321 : drop } }
  chain input {
    type filter hook input priority 10; policy accept;
    ct state established,related accept
    iifname "lo" accept
    ip6 nexthdr ipv6-icmp icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
    tcp dport vmap @ports
    meta pkttype multicast limit rate 10/second counter accept
  }
}
table bridge mine {
  chain forward {
    type filter hook forward priority filter; policy accept;
    ether type arp accept
    udp dport 4321 counter drop comment "no games"
  }
}
END
"""


def test_nft_lists_the_compiled_ruleset_beside_foreign_tables(lab: Lab) -> None:
    configuration = configurations.of_case("guest-rules")
    artefact = configurations.compiled(configuration, NFT)
    lab.set_up(configuration.plan)
    lab.load(artefact)
    alone = on_host(lab, "nft -j list table bridge pvefw"), on_host(lab, "nft -j list table inet pvefw")
    docker = on_host(lab, f"{script('28')}\niptables-nft-save")
    on_host(lab, FOREIGN)
    listed = listing(lab)
    topology = topology_of(configuration.plan, call_iptables=False)
    foreign = [
        Text("others", on_host(lab, f"nft -j list table {one}"))
        for one in ("inet mine", "bridge mine", "inet f2b-table")
    ]
    sides = [
        Side("compiled", read_ruleset([Text("compiled", artefact.text), Text("rules.v4", docker), *foreign]), topology),
        Side(
            "alone",
            read_ruleset([*(Text("alone", one) for one in alone), Text("rules.v4", docker), *foreign]),
            topology,
        ),
        Side("listed", read_ruleset([Text("listed", listed), Text("rules.v4", docker)]), topology),
    ]
    for one in sides[:2]:
        report = compare(one, sides[2])
        assert report.equal, report_text(report)
    assert not compare(Side("ours", read_ruleset([Text("compiled", artefact.text)]), topology), sides[2]).equal


@pytest.mark.parametrize(("engine", "backend"), list(zip(ENGINES, BACKENDS, strict=True)))
def test_simulate_predicts_all_rulesets_together(engine: str, backend: str, lab: Lab) -> None:
    """Packets cross bridges where Docker's FORWARD sees them, too, and are routed past it."""
    configuration = configurations.of_case("guest-rules")
    lab.set_up(configuration.plan)
    lab.load(configurations.compiled(configuration, backend))
    on_host(lab, f"{script(engine)}\n{FOREIGN}")
    saves = ("ipset save", "iptables-nft-save", "ip6tables-nft-save", "ebtables-nft-save")
    texts = [Text("listing", listing(lab)), *(Text(command, on_host(lab, command)) for command in saves)]
    wrong = mistakes(configuration, read_ruleset(texts), lab, call_iptables=backend == IPTABLES)
    assert not wrong, "\n".join(wrong)


def on_host(lab: Lab, commands: str) -> str:
    status, output = lab.guest.run(["ip", "netns", "exec", HOST_NAMESPACE, "sh", "-ec", commands])
    assert status == 0, output.decode()
    return output.decode()


def listing(lab: Lab) -> str:
    """Return nft's listing of the lab's host, without the table by which the lab watches it."""
    everything = json.loads(on_host(lab, "nft -j list ruleset"))["nftables"]
    others = [
        item for item in everything if not any(WATCH_TABLE in (b.get("table"), b.get("name")) for b in item.values())
    ]
    return json.dumps({"nftables": others})


def mistakes(configuration: Configuration, model: RulesetModel, lab: Lab, *, call_iptables: bool) -> list[str]:
    """Return the packets to all places whose verdict by simulate differs from the kernel's, twice in a row."""
    plan = configuration.plan
    topology = topology_of(plan, call_iptables=call_iptables)
    probes = [
        probe
        for probe in configurations.sampled_probes(configuration, 250, 250)
        if not lost_before_rules(probe.judged, topology)
    ]
    foreseen = [outcome_of(probe, plan, topology, model) for probe in probes]
    suspects = list(range(len(probes)))
    wrong: list[str] = []
    for _ in range(2):
        outcomes = lab.run([probes[number] for number in suspects])
        pairs = [
            (number, outcome)
            for number, outcome in zip(suspects, outcomes, strict=True)
            if not agrees(foreseen[number], outcome, probes[number].judged)
        ]
        suspects = [number for number, _ in pairs]
        wrong = [f"{describe(probes[n])}: the kernel {outcome}, simulate {foreseen[n].text}" for n, outcome in pairs]
        if not suspects:
            break
    assert sum(one.verdict == DROP for one in foreseen) > 100
    return wrong
