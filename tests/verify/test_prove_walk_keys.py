"""NICs of one key are judged by the walks of the first, and those that differ in what counts have keys of their own.

Each case has the rules of all guests but one, and those of the odd one, which differ in one respect. A key without this
respect would give the odd guest the findings of the others.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from pvefw_nft.verify.network.path import Link, Nic, Topology
from pvefw_nft.verify.prove.dead_rules import Finding, analyse
from pvefw_nft.verify.prove.network import Side
from pvefw_nft.verify.prove.walk_groups import Record
from pvefw_nft.verify.prove.walk_keys import WalkKeys
from pvefw_nft.verify.readers.files import Text, read_ruleset

if TYPE_CHECKING:
    from collections.abc import Callable

GUESTS = range(101, 107)
TOPOLOGY = Topology(
    nics=tuple(Nic(f"vm{vmid}", vmid, 0, f"tap{vmid}i0", "vmbr0", filtered=True) for vmid in GUESTS),
    links=(Link("vmbr0", is_bridge=True, ports=("eth0",)),),
)
FRAME = """# iptables-save
*filter
:FORWARD ACCEPT [0:0]
{chains}
{rules}
COMMIT
"""


class Case(NamedTuple):
    """Rules of most guests, ``old`` text in them and the ``new`` text of the odd guest; ``lines`` are their origins.

    ``N`` stands for the guest's number, ``M`` for that plus 1. ``A`` to ``D`` are chains of its own, as targets and at
    the beginning of their rules.
    """

    rules: tuple[str, ...]
    old: str
    new: str
    lines: tuple[str, ...] = ()
    new_lines: tuple[str, ...] = ()


CASES = {
    "order of values": Case(
        ("-p tcp --dport N:M -j ACCEPT", "-p tcp --dport M -j DROP", "-j DROP"), "--dport M", "--dport 80"
    ),
    "place of a test": Case(
        ("-p tcp --dport N -j ACCEPT", "-p tcp --dport N:M -s 10.0.N.0/24 -j DROP", "-p tcp --dport N -j ACCEPT"),
        "--dport N -j",
        "--dport N:M -j",
    ),
    "interface": Case(
        ("-m physdev --physdev-out tapNi0 -p tcp -j ACCEPT", "-p tcp --dport N -j DROP", "-j DROP"),
        "tapNi0",
        "tap102i0",
    ),
    "all interfaces but one": Case(
        ("-m physdev ! --physdev-out tapNi0 -p tcp -j ACCEPT", "-p tcp --dport N -j DROP", "-p tcp -j DROP"),
        "tapNi0",
        "tap102i0",
    ),
    "place of a test among chains": Case(
        (
            "A -p tcp --dport N -j ACCEPT",
            "B -p tcp --dport M -s 10.0.N.0/24 -j DROP",
            "-j A",
            "-j B",
            "-p tcp --dport N -j DROP",
            "-p udp -j DROP",
        ),
        "--dport N -j DROP",
        "--dport M -j DROP",
    ),
    "place of a chain": Case(
        (
            "-p tcp --dport N -g A",
            "-p tcp -g B",
            "A -j C",
            "B -j C",
            "C -m limit --limit 1/sec -j ACCEPT",
            "C -j DROP",
            "D -m limit --limit 1/sec -j ACCEPT",
            "D -j DROP",
            "-p udp -j D",
        ),
        "B -j C",
        "B -j D",
    ),
    "place of a connection's mark": Case(
        (
            "-p tcp --dport N -g A",
            "-p tcp --dport M -g B",
            "-p tcp -g C",
            "A -j CONNMARK --set-mark N",
            "A -j ACCEPT",
            "B -j CONNMARK --set-mark M",
            "B -j ACCEPT",
            "C -j CONNMARK --set-mark N",
            "C -j ACCEPT",
        ),
        "C -j CONNMARK --set-mark N",
        "C -j CONNMARK --set-mark M",
    ),
    "verdict": Case(("-p tcp --dport N -j ACCEPT", "-p tcp -j DROP", "-j DROP"), "ACCEPT", "DROP"),
    "field": Case(("-p tcp --dport N -j ACCEPT", "-p tcp --sport N -j ACCEPT", "-j DROP"), "--sport", "--dport"),
    "word": Case(("-p tcp -j ACCEPT", "-p udp --dport N -j ACCEPT", "-j DROP"), "udp", "tcp"),
    "mark of packets": Case(
        ("-j MARK --set-xmark 0x1/0x1", "-m mark --mark 0x0/0x1 -p tcp --dport N -j ACCEPT", "-j DROP"),
        "0x1/0x1",
        "0x2/0x2",
    ),
    "prefix of a log": Case(
        (
            "A -j NFLOG --nflog-prefix N",
            "A -j ACCEPT",
            "B -j NFLOG --nflog-prefix N",
            "B -j ACCEPT",
            "-p tcp --dport N -g A",
            "-p tcp -g B",
        ),
        "B -j NFLOG --nflog-prefix N",
        "B -j NFLOG --nflog-prefix other",
    ),
    "mark of connections": Case(
        (
            "A -j CONNMARK --set-mark N",
            "A -j ACCEPT",
            "B -j CONNMARK --set-mark N",
            "B -j ACCEPT",
            "-p tcp --dport N -g A",
            "-p tcp -g B",
        ),
        "B -j CONNMARK --set-mark N",
        "B -j CONNMARK --set-mark M",
    ),
    "test of a connection's mark": Case(
        ("-j CONNMARK --set-mark 7", "-p tcp -m connmark --mark 7 -j ACCEPT", "-p tcp --dport N -j DROP", "-j DROP"),
        "--set-mark 7",
        "--set-mark 8",
    ),
    "chain": Case(
        (
            "A -m limit --limit 1/sec -j ACCEPT",
            "A -j DROP",
            "B -m limit --limit 1/sec -j ACCEPT",
            "B -j DROP",
            "-p tcp --dport N -g A",
            "-p tcp -g A",
        ),
        "-p tcp -g A",
        "-p tcp -g B",
    ),
    "line": Case(
        ("-p tcp --dport N -j ACCEPT", "-p tcp --dport M -j DROP", "-p tcp -j DROP", "-j DROP"),
        "",
        "",
        ("x.fw:1", "x.fw:2", "x.fw:3", "x.fw:4"),
        ("x.fw:1", "x.fw:1", "x.fw:3", "x.fw:4"),
    ),
    "name of a line": Case(
        ("A -j ACCEPT", "-p tcp --dport N -g A", "-p tcp --dport N -j DROP", "-j DROP"),
        "",
        "",
        ("x.fw:1", "x.fw:2", "x.fw:3", "x.fw:4"),
        ("x.fw:1", "standard", "x.fw:3", "x.fw:4"),
    ),
}


def findings(case: Case, odd: int | None) -> dict[int, list[Finding]]:
    """Return the findings by guest; ``odd``: the guest that differs."""
    chains, rules, origins = [], [], {}
    for vmid in GUESTS:
        rules.append(f"-A FORWARD -m physdev --physdev-is-bridged --physdev-out tap{vmid}i0 -j G{vmid}")
        chains += [f":{name}{vmid} - [0:0]" for name in "GABCD"]
        numbers = dict.fromkeys("GABCD", 0)
        lines = case.new_lines if vmid == odd else case.lines
        for place, written in enumerate(case.rules):
            rule = written.replace(case.old, case.new) if vmid == odd and case.old else written
            name, _, rest = rule.partition(" ") if rule[0] in "ABCD" else ("G", "", rule)
            rest = re.sub(r"(?<![A-Z])N(?![A-Z])", str(vmid), rest)
            rest = re.sub(r"(?<![A-Z])M(?![A-Z])", str(vmid + 1), rest)
            rest = re.sub(r"(?<=-[gj] )([A-D])\b", rf"\g<1>{vmid}", rest)
            rules.append(f"-A {name}{vmid} {rest}")
            numbers[name] += 1
            if lines and lines[place]:
                origins["iptables", "filter", f"{name}{vmid}", numbers[name]] = lines[place].replace("x", str(vmid))
    text = FRAME.format(chains="\n".join(chains), rules="\n".join(rules))
    advice = analyse(Side("x", read_ruleset([Text("x", text)], origins=origins), TOPOLOGY))
    return {vmid: [one for one in advice.found if one.places[0].chain[1:] == str(vmid)] for vmid in GUESTS}


@pytest.mark.parametrize("odd", [GUESTS[0], GUESTS[3]])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_guest_that_differs_in_what_counts_is_judged_for_itself(
    case: Case, odd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = findings(case, odd)
    with monkeypatch.context() as patch:
        patch.setattr(WalkKeys, "of", lambda *_: None)
        assert findings(case, odd) == shared
    # the odd guest's findings are others, so that those of a wrong key would show
    kinds = {vmid: [(one.kind, one.origin[-1], [by[-1] for by in one.by]) for one in shared[vmid]] for vmid in GUESTS}
    assert kinds[odd] != kinds[GUESTS[1]]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_guests_that_differ_in_numbers_alone_are_walked_once(
    case: Case, spy: Callable[[object, str], list[Any]]
) -> None:
    noted = spy(Record, "note")
    findings(case, None)
    assert len(noted) >= len(GUESTS) - 1


def test_stages_known_from_another_nic_are_those_of_the_nic_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["interface"]
    known = spied_keys(case, monkeypatch)
    monkeypatch.setattr(WalkKeys, "stages", lambda self, _nic, segments: self._made(segments()))
    assert spied_keys(case, monkeypatch) == known
    assert len(known) == len(GUESTS)


def spied_keys(case: Case, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return the keys of all NICs."""
    found = []
    rules = WalkKeys._rules

    def noted(self: WalkKeys, stages: Any) -> Any:  # noqa: ANN401 - of a private type
        found.append((stages, key := rules(self, stages)))
        return key

    with monkeypatch.context() as patch:
        patch.setattr(WalkKeys, "_rules", noted)
        findings(case, None)
    return [(stages, key) for stages, (key, _) in found]
