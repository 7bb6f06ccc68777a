"""Proofs that are kept: a comparison that uses them gives the report of one that proves everything."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.verify.network.path import Link, Nic, Topology
from pvefw_nft.verify.prove import nic_keys, segments
from pvefw_nft.verify.prove.compare import Options, compare
from pvefw_nft.verify.prove.network import Side
from pvefw_nft.verify.prove.render import report_data
from pvefw_nft.verify.prove.report import Answer, Report
from pvefw_nft.verify.prove.segments import SegmentProver
from pvefw_nft.verify.readers.files import Text, read_ruleset
from tests.verify.test_prove_mutations import mutants

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pvefw_nft.verify.model import RulesetModel
    from pvefw_nft.verify.prove.proofs import Proof

GUESTS = range(100, 106)


class Memory:
    """Keeps proofs as long as a test takes."""

    def __init__(self) -> None:
        self.known: dict[str, Proof] = {}

    def load(self) -> Mapping[str, Proof]:
        return dict(self.known)

    def save(self, used: Mapping[str, Proof]) -> None:
        self.known |= used


def topology(**changed: object) -> Topology:
    nics = tuple(Nic(f"vm{vmid}", vmid, 0, f"tap{vmid}i0", "vmbr0", filtered=True) for vmid in GUESTS)
    made = Topology(nics, (Link("vmbr0", is_bridge=True, ports=("eth0",)),)).with_bridges()
    return replace(made, **changed)  # type: ignore[arg-type] # the test names fields of a topology


def xtables(own: dict[int, str], *more: str, host: Topology | None = None) -> Side:
    """Return a ruleset with a chain a guest, dispatched by interface, and a chain that all share."""
    lines = ["# iptables-save", "*filter", ":INPUT ACCEPT [0:0]", ":FORWARD ACCEPT [0:0]", ":shared - [0:0]"]
    lines += [f":G{vmid} - [0:0]" for vmid in GUESTS]
    for vmid in GUESTS:
        lines.append(f"-A FORWARD -m physdev --physdev-is-bridged --physdev-out tap{vmid}i0 -j G{vmid}")
        lines += [f"-A G{vmid} {own.get(vmid, f'-p tcp --dport {vmid} -j DROP')}", f"-A G{vmid} -j shared"]
    text = "\n".join([*lines, *more, "COMMIT", ""])
    return Side("rules", read(text), host or topology())


def read(text: str) -> RulesetModel:
    return read_ruleset([Text("rules", text)])


def nft(own: dict[int, str]) -> Side:
    """Return a ruleset that dispatches by a verdict map."""
    entries = ", ".join(f'"tap{vmid}i0" : jump G{vmid}' for vmid in GUESTS)
    chains = "\n".join(f"chain G{v} {{\n {own.get(v, f'tcp dport {v} drop')}\n}}" for v in GUESTS)
    hook = "type filter hook forward priority 0; policy accept;"
    text = f"table bridge t {{\n{chains}\nchain f {{\n {hook}\n oifname vmap {{ {entries} }}\n }}\n}}\n"
    return Side("rules", read(text), topology())


def report(before: Side, after: Side, memory: Memory, given: Options | None = None) -> Report:
    """Compare with cached proofs, and check that the answer equals a comparison without them."""
    given = given or Options()
    found = compare(before, after, replace(given, proofs=memory))
    assert answer_of(found) == answer_of(compare(before, after, given))
    return found


def answer_of(report: Report) -> dict[str, object]:
    """Return a report without the cost of the proof."""
    data = report_data(report)
    del data["proof"]
    return data


@pytest.mark.parametrize("make", [xtables, nft])
def test_only_the_changed_guest_is_proved_again(make: Callable[[dict[int, str]], Side]) -> None:
    memory = Memory()
    assert report(make({}), make({}), memory).counts.kept == 0
    assert report(make({}), make({}), memory).counts.kept == len(GUESTS)
    wider = {
        103: "-s 10.0.0.3 -p tcp --dport 1:103 -j DROP" if make is xtables else "ip saddr 10.0.0.3 tcp dport 1-103 drop"
    }
    found = report(make({}), make(wider), memory)
    assert (found.answer, found.counts.kept) == (Answer.DIFFERENT, len(GUESTS) - 1)
    assert report(make(wider), make(wider), memory).counts.kept == len(GUESTS) - 1


@pytest.mark.parametrize("make", [xtables, nft])
def test_a_guest_whose_numbers_change_on_both_sides_alike_keeps_its_proof(
    make: Callable[[dict[int, str]], Side],
) -> None:
    memory = Memory()
    report(make({}), make({}), memory)
    other = {103: "-p tcp --dport 1:1023 -j DROP" if make is xtables else "tcp dport 1-1023 drop"}
    assert report(make(other), make(other), memory).counts.kept == len(GUESTS)


def test_a_difference_is_never_kept() -> None:
    memory = Memory()
    changed = xtables({103: "-j DROP"})
    report(xtables({}), changed, memory)
    found = report(xtables({}), changed, memory)
    assert (found.answer, found.counts.kept) == (Answer.DIFFERENT, len(GUESTS) - 1)


@pytest.mark.parametrize(
    "changed",
    [
        xtables({}, "-A shared -p udp -j DROP"),
        xtables({}, "-I FORWARD -m physdev --physdev-out tap+ -j DROP"),
        xtables({}, "-P FORWARD DROP", "-A FORWARD -j ACCEPT"),
        xtables({}, "-I FORWARD ! -i eth7 -j ACCEPT"),
        xtables({}, host=topology(call_iptables=False)),
        xtables({}, host=topology(filter_vlan_tagged=True)),
        xtables({}, "-A INPUT -m mark --mark 1 -j DROP"),
    ],
)
def test_differences_for_all_guests_are_proved_for_all(changed: Side) -> None:
    memory = Memory()
    report(xtables({}), xtables({}), memory)
    assert report(xtables({}), changed, memory).counts.kept == 0


def test_a_changed_dispatch_rule_concerns_only_its_guest() -> None:
    memory = Memory()
    rule = "-A FORWARD -p tcp -m physdev --physdev-in tap104i0 --dport {} -j DROP"
    before, after = (xtables({}, rule.format(port)) for port in (1, 2))
    report(before, before, memory)
    assert report(before, after, memory).counts.kept == len(GUESTS) - 1


def test_a_changed_zone_concerns_all_guests() -> None:
    memory = Memory()
    text = "# iptables-save\n*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -i eth7 -j CT --zone {}\nCOMMIT\n"
    before, after = (replace(xtables({}), model=read(text.format(z)).merged(xtables({}).model)) for z in (1, 2))
    report(before, before, memory)
    assert report(before, after, memory).counts.kept == 0


def test_rules_that_guests_do_not_meet_do_not_count() -> None:
    memory = Memory()
    report(xtables({}), xtables({}), memory)
    host = xtables({}, "-A INPUT -p tcp --dport 22 -j DROP")
    assert report(host, host, memory).counts.kept == len(GUESTS)


@pytest.mark.parametrize("options", [Options(strict=True), Options(max_memory=1)])
def test_other_options_have_proofs_of_their_own(options: Options) -> None:
    memory = Memory()
    sides = xtables({}), xtables({101: "-p tcp --dport 101 -j REJECT"})
    report(*sides, memory)
    assert report(*sides, memory, options).counts.kept == 0


def test_another_prover_proves_again(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory()
    report(xtables({}), xtables({}), memory)
    monkeypatch.setattr(segments, "prover_digest", lambda: "another")
    assert report(xtables({}), xtables({}), memory).counts.kept == 0


MARK = "-p tcp --dport 80 -j MARK --set-xmark 0x1/0x1"
READS_MARK = "-m mark --mark 0x1/0x1 -j DROP"


def test_marks_that_differ_count_as_soon_as_a_guest_looks_at_them() -> None:
    """The guest that marks has its proof kept; then another one's rules look at the mark."""
    memory = Memory()
    looks = "-A INPUT -m mark --mark 0x1/0x1"  # the mark is followed, and no verdict depends on it
    sides = xtables({}, looks), xtables({101: MARK}, looks)
    report(*sides, memory)
    own = {104: READS_MARK}
    report(xtables(own, looks), xtables({101: MARK, **own}, looks), memory)
    report(xtables(own, looks), xtables({101: MARK, **own}, looks), memory)


def test_interrupted_comparisons_are_not_cached() -> None:
    memory = Memory()
    sides = xtables({}), xtables({vmid: f"-p udp --dport {vmid} -j DROP" for vmid in GUESTS})
    assert report(*sides, memory, Options(max_seconds=-1)).undecided
    assert not memory.known


def test_a_proof_is_kept_only_where_its_key_takes_in_the_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory()
    monkeypatch.setattr(nic_keys, "BRIDGED", frozenset())  # the hooks of packets that cross a bridge
    report(xtables({}), xtables({}), memory)
    assert not memory.known


@pytest.mark.parametrize("backend", ["iptables", "nft"])
@pytest.mark.parametrize("name", ["groups", "layer2"])
def test_changes_of_real_rulesets_are_found_with_proofs_of_before(name: str, backend: str) -> None:
    for mutant in mutants(name, backend):
        memory = Memory()
        compare(mutant.before, mutant.before, Options(proofs=memory))
        assert memory.known
        found = compare(mutant.before, mutant.side, Options(proofs=memory))
        assert answer_of(found) == answer_of(compare(mutant.before, mutant.side)), mutant.what


def test_no_guest_is_proved_if_all_proofs_are_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory()
    report(xtables({}), xtables({}), memory)
    monkeypatch.setattr(SegmentProver, "prove_nic", None)
    assert compare(xtables({}), xtables({}), Options(proofs=memory)).equal


def test_proofs_of_several_processes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pvefw_nft.verify.prove.processes.MIN_SHARE", 2)
    memory = Memory()
    report(xtables({}), xtables({101: MARK}), memory, Options(jobs=3))
    assert report(xtables({}), xtables({101: MARK}), memory, Options(jobs=3)).counts.kept >= len(GUESTS) - 1
