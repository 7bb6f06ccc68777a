"""Guests that differ in their numbers alone are judged once, and their rules are judged as if each was walked."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.verify.network.path import Link, Nic, Topology
from pvefw_nft.verify.prove import dead_rules as analysis
from pvefw_nft.verify.prove.dead_rules import Advice, Kind, analyse
from pvefw_nft.verify.prove.network import Side
from pvefw_nft.verify.prove.walk import Walk
from pvefw_nft.verify.readers.files import Text, read_ruleset

if TYPE_CHECKING:
    from collections.abc import Callable

GUESTS = range(100, 110)
TOPOLOGY = Topology(
    nics=tuple(Nic(f"vm{vmid}", vmid, 0, f"tap{vmid}i0", "vmbr0", filtered=True) for vmid in GUESTS),
    links=(Link("vmbr0", is_bridge=True, ports=("eth0",)),),
).with_bridges()
FRAME = """# iptables-save
*filter
:FORWARD ACCEPT [0:0]
:mark - [0:0]
:group - [0:0]
{chains}
-A mark -j MARK --set-mark 0x80000000/0x80000000
-A group -p tcp --dport 8080 -j DROP
-A group -p tcp --dport 22 -g mark
{rules}
COMMIT
"""


def advice(rules: dict[int, list[str]], origins: dict[tuple[int, int], str] | None = None) -> Advice:
    """Return the findings; ``origins`` are lines by guest and number of the rule."""
    lines = []
    for vmid, own in rules.items():
        lines.append(f"-A FORWARD -m physdev --physdev-is-bridged --physdev-out tap{vmid}i0 -j G{vmid}")
        lines += [f"-A G{vmid} {rule}" for rule in own]
    chains = "\n".join(f":G{vmid} - [0:0]" for vmid in rules)
    named = {("iptables", "filter", f"G{vmid}", number): text for (vmid, number), text in (origins or {}).items()}
    text = FRAME.format(chains=chains, rules="\n".join(lines))
    return analyse(Side("x", read_ruleset([Text("x", text)], origins=named), TOPOLOGY))


@pytest.fixture
def count_walks(spy: Callable[[object, str], list[Any]]) -> list[Any]:
    """Return the list of all walks that are run."""
    return spy(Walk, "run")


def numbered(vmid: int) -> list[str]:
    return [
        f"-j CONNMARK --set-mark {vmid}",
        f'-p tcp --dport {vmid}:{vmid + 10} -j NFLOG --nflog-prefix "guest {vmid}"',
        f"-p tcp --dport {vmid}:{vmid + 10} -s 10.0.{vmid}.0/24 -j ACCEPT",
        f"-p tcp --dport {vmid + 5} -s 10.0.{vmid}.7 -j DROP",
        f"-p udp --dport {vmid} -j DROP",
        "-j DROP",
    ]


def test_guests_of_one_shape_are_walked_once(count_walks: list[Walk]) -> None:
    all_of_them = advice({vmid: numbered(vmid) for vmid in GUESTS})
    walks = len(count_walks)
    count_walks.clear()
    advice({100: numbered(100)})
    assert walks == len(count_walks)
    dead = [one for one in all_of_them.found if one.kind is Kind.NEVER_MATCHES]
    assert [(one.places[0].chain, one.by) for one in dead] == [(f"G{vmid}", (f"G{vmid} rule 3",)) for vmid in GUESTS]


@pytest.mark.parametrize("vmid", [100, 104, 109])
def test_a_guest_whose_numbers_overlap_otherwise_is_judged_for_itself(vmid: int) -> None:
    rules = {other: numbered(other) for other in GUESTS}
    rules[vmid][3] = rules[vmid][3].replace(f"--dport {vmid + 5}", f"--dport {vmid + 11}")
    dead = {one.places[0].chain for one in advice(rules).found if one.kind is Kind.NEVER_MATCHES}
    assert dead == {f"G{other}" for other in GUESTS if other != vmid}


def test_a_mark_that_is_tested_for_another_number_counts() -> None:
    def rules(vmid: int, tested: int) -> list[str]:
        return [
            f"-j CONNMARK --set-mark {vmid}",
            f"-p tcp -m connmark --mark {tested} -j ACCEPT",
            "-p tcp --dport 22 -j ACCEPT",
            "-j DROP",
        ]

    mixed = advice({vmid: rules(vmid, vmid if vmid != 103 else 99) for vmid in GUESTS})
    alone = {vmid: advice({vmid: rules(vmid, vmid if vmid != 103 else 99)}) for vmid in GUESTS}
    for vmid in GUESTS:
        own = [(one.kind, one.by) for one in mixed.found if one.places[0].chain == f"G{vmid}"]
        assert own == [(one.kind, one.by) for one in alone[vmid].found if one.places[0].chain == f"G{vmid}"]


@pytest.mark.parametrize("seed", range(4))
def test_findings_equal_walks_without_shapes(
    seed: int, monkeypatch: pytest.MonkeyPatch, count_walks: list[Walk]
) -> None:
    chance = random.Random(seed)
    rules, origins = {}, {}
    for vmid in GUESTS:
        rules[vmid] = [chance.choice(_MAKERS)(chance, vmid) for _ in range(4)] + ["-j DROP"]
        for number in range(1, 6):
            if chance.random() < 0.8:
                origins[vmid, number] = f"{vmid}.fw:{chance.choice((number, number - 1))}"
    shared, walks = advice(rules, origins), len(count_walks)
    monkeypatch.setattr(analysis, "shape_of", lambda _walk, _shapes: None)
    assert advice(rules, origins) == shared
    assert shared.found
    assert walks <= len(count_walks) - walks


def _accept(chance: random.Random, vmid: int) -> str:
    ports = chance.choice((f"{vmid}", f"{vmid}:{vmid + 9}", "22", "1:1023"))
    return f"-p tcp --dport {ports} -s 10.0.{chance.choice((0, vmid))}.0/24 -j {chance.choice(('ACCEPT', 'DROP'))}"


_MAKERS: tuple[Callable[[random.Random, int], str], ...] = (
    _accept,
    _accept,
    lambda _chance, _vmid: "-j group",
    lambda _chance, _vmid: "-m mark --mark 0x80000000/0x80000000 -j ACCEPT",
    lambda chance, vmid: (
        f"-p tcp --dport {chance.choice((22, vmid))} -j CONNMARK --set-mark {chance.choice((1, vmid))}"
    ),
    lambda chance, vmid: f"-m connmark --mark {chance.choice((1, vmid))} -j {chance.choice(('ACCEPT', 'DROP'))}",
    lambda chance, vmid: f'-p udp --dport {vmid} -j NFLOG --nflog-prefix "{chance.choice(("a", vmid))}"',
)
