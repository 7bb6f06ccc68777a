"""Whether the answer to a rejected packet arrives; as seen on Linux 6.1 to 6.18 with the reference's rulesets."""

from __future__ import annotations

import pytest

from pvefw_nft.verify.network.path import Link, Network, Nic, Topology
from pvefw_nft.verify.readers.files import Text, read_ruleset
from pvefw_nft.verify.simulate.packet import make_probe
from pvefw_nft.verify.simulate.spec import PacketSpec
from pvefw_nft.verify.simulate.walk import Outcome, simulate

TOPOLOGY = Topology(
    nics=(
        Nic("vm100", 100, 0, "tap100i0", "vmbr0", filtered=True, addresses=((4, 0x0A000064),)),
        Nic("vm101", 101, 0, "tap101i0", "vmbr0", filtered=True, addresses=((4, 0x0A000065),)),
        Nic("vm102", 102, 0, "tap102i0", "vmbr0", filtered=False, addresses=((4, 0x0A000066),)),
    ),
    links=(
        Link("vmbr0", True, ("eno1",), (Network(4, 0x0A000001, 24),)),
        Link("eno2", False, (), (Network(4, 0x0A090001, 24),)),
    ),
)

RULES = """*filter
:reject - [0:0]
:in - [0:0]
:out - [0:0]
-A FORWARD -m conntrack --ctstate INVALID -j DROP
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -m physdev --physdev-is-bridged --physdev-in fwln+ -j in
-A FORWARD -m physdev --physdev-is-bridged --physdev-out fwln+ -j out
-A INPUT -p udp --dport 514 -j reject
-A INPUT -p tcp --dport 24 -j reject
-A OUTPUT -m conntrack --ctstate INVALID -j DROP
-A OUTPUT -p tcp --dport 26 -j reject
-A in -p tcp --dport 23 -j reject
-A in -p udp --dport 53 -j reject
-A out -p tcp --dport 25 -j reject
-A out -p udp --dport 25 -j reject
-A reject -p tcp -j REJECT --reject-with tcp-reset
-A reject -j REJECT --reject-with icmp-port-unreachable
COMMIT
"""
MODEL = read_ruleset([Text("iptables", RULES)])


def run(source: str, destination: str, protocol: str, rules: str = RULES) -> Outcome:
    model = MODEL if rules is RULES else read_ruleset([Text("iptables", rules)])
    return simulate(model, make_probe(PacketSpec(source, destination, protocol), TOPOLOGY))


@pytest.mark.parametrize(
    ("source", "destination", "protocol", "arrives"),
    [
        ("vm100", "outside:25", "tcp", True),  # the reset goes straight back to the tap
        ("vm100", "outside:25", "udp", False),  # the host's answer meets the INVALID rule: nothing was confirmed
        ("vm100", "vm101:25", "udp", False),
        ("vm100", "host:25", "udp", False),
        ("outside", "vm100:23", "tcp", True),
        ("outside", "vm100:53", "udp", True),
        ("vm102", "vm100:23", "tcp", True),
        ("vm101", "vm100:23", "tcp", False),  # the reset ends the connection on vmbr0, and is invalid on fwbr101i0
        ("vm101", "vm100:53", "udp", True),  # confirmed on its own bridge, so the answer is related
        ("vm100", "host:24", "tcp", True),
        ("vm100", "host:514", "udp", True),
        ("outside", "host:514", "udp", True),
        ("eno2", "vm100:23", "tcp", True),
        ("host", "vm100:23", "tcp", True),
        ("host", "vm100:53", "udp", True),
        ("host", "outside:26", "tcp", True),
    ],
)
def test_answers_arrive_or_not(source: str, destination: str, protocol: str, arrives: bool) -> None:
    outcome = run(source, destination, protocol)
    assert outcome.verdict == "REJECT"
    assert outcome.answered is arrives
    assert any("does not reach" in note for note in outcome.notes) is not arrives


def test_without_the_rule_for_invalid_packets_it_arrives() -> None:
    rules = RULES.replace("-A FORWARD -m conntrack --ctstate INVALID -j DROP\n", "")
    assert run("vm100", "outside:25", "udp", rules).answered is True


def test_the_host_answers_no_link_local_address_of_a_bridge_it_does_not_speak_on() -> None:
    rules = RULES.replace("icmp-port-unreachable", "icmp6-port-unreachable")
    model = read_ruleset([Text("ip6tables", rules)])
    spec = PacketSpec("outside", "vm100:53", "udp", source_address="fe80::1")
    outcome = simulate(model, make_probe(spec, TOPOLOGY))
    assert (outcome.verdict, outcome.answered) == ("REJECT", False)


def test_only_rejected_packets_get_an_answer() -> None:
    assert run("outside", "vm100:80", "tcp").answered is None


@pytest.mark.parametrize(
    ("source", "destination", "protocol", "arrives"),
    [
        ("vm100", "outside:25", "tcp", True),  # iptables resets it, on the bridge that it came to
        ("outside", "vm100:23", "tcp", False),  # but no bridge takes a frame from a group's address
        ("outside", "vm100:53", "udp", False),
        ("outside", "host:24", "tcp", False),
        ("outside", "host:514", "udp", False),
    ],
)
def test_broadcast_and_multicast_packets_are_hardly_ever_answered(
    source: str, destination: str, protocol: str, arrives: bool
) -> None:
    spec = PacketSpec(source, destination, protocol, destination_address="224.0.0.251")
    outcome = simulate(MODEL, make_probe(spec, TOPOLOGY))
    assert (outcome.verdict, outcome.answered) == ("REJECT", arrives)
    assert any("to many" in note for note in outcome.notes) is not arrives


@pytest.mark.parametrize(("protocol", "arrives"), [("41", False), ("47", True)])
def test_the_kernel_answers_no_packet_whose_checksum_it_cannot_check(protocol: str, arrives: bool) -> None:
    """A guest's tunnel of IPv6 in IPv4 has none; that a GRE packet may have none is known (nf_reject_verify_csum)."""
    rules = RULES.replace("-p udp --dport 53", f"-p {protocol}")
    assert run("outside", "vm100", protocol, rules).answered is arrives
