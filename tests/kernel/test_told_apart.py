"""Pairs of rulesets that differ in connections, in what later packets meet, or in odd fields: packets tell them apart.

Each pair is two nft rulesets and some packets. One ruleset drops the last packet, the other one accepts it. ``compare``
must find the same difference as the kernel.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.verify.prove.compare import compare
from pvefw_nft.verify.prove.network import Side
from pvefw_nft.verify.prove.report import Answer
from pvefw_nft.verify.readers.files import Text, read_ruleset
from tests.kernel import configurations
from tests.kernel.network.plan import UNFILTERED_VMID
from tests.kernel.outcome import ACCEPT, DROP
from tests.kernel.packets import MAGIC, Packet, Probe, Proto, describe
from tests.kernel.test_foreign import listing, on_host
from tests.verify.lab import topology_of

if TYPE_CHECKING:
    from tests.kernel.lab import Lab

BYTES = int.from_bytes(MAGIC[2:4], "big")
"""The third and fourth byte of a packet with a protocol whose header the lab does not know."""


def udp(sender: str, receiver: str, sport: int, dport: int, *, answering: bool = False) -> Packet:
    return Packet(sender, receiver, protocol=Proto.UDP, sport=sport, dport=dport, answering=answering)


ASKED = udp("host", "outside", 5000, 6000)
ANSWER = udp("outside", "host", 6000, 5000, answering=True)
ONE, OTHER = udp("outside", "host", 5001, 7), udp("outside", "host", 5002, 8)
FROM_HOST = udp("host", "outside", 5003, 6003)
TFTP_REQUEST = replace(udp("host", "outside", 5000, 69), says=b"\0\1")
"""A read request (RFC 1350): the server answers from a port of its own choice."""
TFTP_ANSWER = udp("outside", "host", 6001, 5000)
NO_PORTS = Packet("outside", "host", protocol=99)
EXTENDED = Packet("outside", "host", family=6, protocol=60)
"""A packet with an extension header, of destination options, in which the lab's mark stands for options."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Chains of two tables ``inet t`` (or another ``family``), and packets. ``drops`` is the one that drops the last.

    ``wait`` are seconds between loading and sending.
    """

    drops: str
    passes: str
    packets: tuple[Packet, ...]
    family: str = "inet"
    wait: float = 0.0


def chain(hook: str, priority: int, *rules: str, name: str = "a", policy: str = "accept") -> str:
    lines = "\n  ".join(rules)
    return f"chain {name} {{\n  type filter hook {hook} priority {priority}; policy {policy};\n  {lines}\n }}\n"


LATER = chain("input", 10, "ct state established udp dport 5000 drop", name="b")
FIRST = chain("input", 0, "ct state established accept", "ct state { established, invalid } drop")
FIRST_MAP = chain(
    "input", 0, "ct state vmap { established : accept, invalid : drop }", "ct state { established, invalid } drop"
)
ESTABLISHED = chain("input", 0, "ct state established accept", name="b", policy="drop")
UNTRACKED = chain("input", 0, "ct state untracked drop", name="b")
MARKED = "ct mark 1 drop"
TEN = chain("input", 0, "ip dscp 10 drop", name="b")
SET = "set s {{ type ipv4_addr; flags {}; {} }}\n"
DYNAMIC = SET.format("dynamic", "size 1000;")
ONCE = "udp dport { 7, 8 } limit rate 1/hour burst 1 packets accept"
HELPER = 'ct helper tftp {\n  type "tftp" protocol udp; l3proto ip;\n }\n '
RELATED = chain("input", 0, "ct state related udp dport 5000 drop", name="b")
LIMITED = "udp dport { 7, 8 } drop"

PAIRS = {
    "a state that an earlier base chain accepts": Pair(FIRST + LATER, FIRST, (ASKED, ANSWER)),
    "a state that a verdict map accepts": Pair(FIRST_MAP + LATER, FIRST_MAP, (ASKED, ANSWER)),
    "the state before the lookup": Pair(
        chain("prerouting", -300, "udp dport 7 ct state invalid drop"),
        chain("prerouting", -150, "udp dport 7 ct state invalid drop"),
        (ONE,),
    ),
    "notrack after the lookup": Pair(
        chain("prerouting", -300, "notrack") + UNTRACKED, chain("prerouting", -150, "notrack") + UNTRACKED, (ONE,)
    ),
    "a zone for one direction": Pair(
        chain("prerouting", -300, 'iifname "vmbr0" ct zone set 5') + ESTABLISHED, ESTABLISHED, (ASKED, ANSWER)
    ),
    "a zone by a map": Pair(
        chain("prerouting", -300, 'ct zone set iifname map { "vmbr0" : 5 }') + ESTABLISHED, ESTABLISHED, (ASKED, ANSWER)
    ),
    "a mark of the connection": Pair(
        chain("input", 0, MARKED, "udp dport 7 ct mark set 1"), chain("input", 0, MARKED), (ONE, ONE)
    ),
    "an element that a packet leaves in a set": Pair(
        DYNAMIC + chain("input", 0, "udp dport 8 ip saddr @s drop", "udp dport 7 add @s { ip saddr }"),
        DYNAMIC + chain("input", 0, "udp dport 8 ip saddr @s drop"),
        (ONE, OTHER),
    ),
    "an element that expires": Pair(
        SET.format("interval", "elements = { 0.0.0.0/0 };") + chain("input", 0, "udp dport 7 ip saddr @s drop"),
        SET.format("interval, timeout", "elements = { 0.0.0.0/0 timeout 1s };")
        + chain("input", 0, "udp dport 7 ip saddr @s drop"),
        (ONE,),
        wait=3.0,
    ),
    "a helper that relates a later connection": Pair(
        HELPER + chain("output", 0, 'udp dport 69 ct helper set "tftp"') + RELATED,
        HELPER + RELATED,
        (TFTP_REQUEST, TFTP_ANSWER),
    ),
    "two limits with the same text": Pair(
        chain("input", 0, ONCE, LIMITED), chain("input", 0, ONCE, ONCE, LIMITED), (ONE, OTHER)
    ),
    "a changed header that a later rule tests": Pair(
        chain("prerouting", -150, "udp dport 7 ip dscp set 10") + TEN, TEN, (ONE,)
    ),
    "a negated interface where there is none": Pair(
        chain("output", 0, 'iifname != "eth0" udp sport 5003 drop'),
        chain("output", 0, 'iifname "eth0" udp sport 5003 drop'),
        (FROM_HOST,),
    ),
    "bytes of any protocol": Pair(
        chain("input", 0, f"th dport {BYTES} drop"),
        chain("input", 0, f"meta l4proto {{ tcp, udp }} th dport {BYTES} drop"),
        (NO_PORTS,),
    ),
    "the first header of IPv6": Pair(
        chain("input", 0, "ip6 nexthdr 60 drop"),
        chain("input", 0, "meta nfproto ipv6 meta l4proto 60 drop"),
        (EXTENDED,),
    ),
    "a guest that only the rules name": Pair(
        chain("prerouting", -150, 'iifname "tap9999i0" drop'),
        chain("prerouting", -150, 'iifname "tap9998i0" drop'),
        (udp("vm9999", "outside", 5004, 6004),),
        family="bridge",
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_packets_distinguish_rulesets_that_compare_distinguishes(name: str, lab: Lab) -> None:
    pair = PAIRS[name]
    plan = configurations.of_case("guest-rules").plan
    whole = topology_of(plan, call_iptables=False)
    topology = replace(whole, nics=tuple(nic for nic in whole.nics if nic.vmid != UNFILTERED_VMID))
    lab.set_up(plan)
    probe = Probe(pair.packets, name)
    sides, outcomes = [], []
    for number, chains in enumerate((pair.drops, pair.passes)):
        lab.unload()
        table = f"table {pair.family} t {{\n {chains}}}"
        on_host(lab, f"modprobe nf_conntrack_tftp || true\nnft -f - <<'END'\n{table}\nEND\nconntrack -F 2>&1 || true")
        listed = read_ruleset([Text(f"ruleset {number}", listing(lab))])
        sides.append(Side(f"ruleset {number}", listed, topology))
        time.sleep(pair.wait)  # until the ruleset does what the pair is about
        outcomes.append(lab.run([probe])[0])
    lab.unload()
    seen = f"{describe(probe)}: {outcomes}"
    assert [outcome.verdict for outcome in outcomes] == [DROP, ACCEPT], seen
    assert compare(sides[0], sides[1]).answer is Answer.DIFFERENT
    assert compare(sides[0], sides[0]).answer is Answer.EQUAL
