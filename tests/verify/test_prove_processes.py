"""Guests that are proved in several processes: the report is the one that a single process makes."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pvefw_nft.verify.network.path import Link, Nic, Topology
from pvefw_nft.verify.prove import processes
from pvefw_nft.verify.prove.compare import Comparison, Options, compare
from pvefw_nft.verify.prove.network import Side
from pvefw_nft.verify.prove.render import report_data, report_text
from pvefw_nft.verify.prove.report import Answer, Report
from pvefw_nft.verify.prove.segments import SegmentProver
from pvefw_nft.verify.readers.files import Text, read_ruleset

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pvefw_nft.verify.prove.processes import Finding

GUESTS = range(100, 109)
TOPOLOGY = Topology(
    nics=tuple(Nic(f"vm{vmid}", vmid, 0, f"tap{vmid}i0", "vmbr0", filtered=True) for vmid in GUESTS),
    links=(Link("vmbr0", is_bridge=True, ports=("eth0",)),),
).with_bridges()


@pytest.fixture(autouse=True)
def share_few_guests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MIN_SHARE", 2)
    monkeypatch.setattr(processes, "BETWEEN_REPORTS", 1)


def side(name: str, own: dict[int, str], *more: str) -> Side:
    """Return a ruleset with one rule a guest; ``own`` replaces the accepted port of some guests."""
    lines = ["# iptables-save", "*filter", ":FORWARD ACCEPT [0:0]"]
    lines += [f":G{vmid} - [0:0]" for vmid in GUESTS]
    for vmid in GUESTS:
        lines.append(f"-A FORWARD -m physdev --physdev-is-bridged --physdev-out tap{vmid}i0 -j G{vmid}")
        lines.append(f"-A G{vmid} {own.get(vmid, f'-p tcp --dport {vmid} -j DROP')}")
    return Side(name, read_ruleset([Text(name, "\n".join([*lines, *more, "COMMIT", ""]))]), TOPOLOGY)


def reports(before: Side, after: Side) -> tuple[Report, Report]:
    return compare(before, after), compare(before, after, Options(jobs=3))


def assert_same(one: Report, other: Report) -> None:
    """Compare two reports, except for the proofs of each process."""
    first, second = (replace(report, counts=replace(report.counts, pairs=0, diagrams=0)) for report in (one, other))
    assert report_text(first, verbose=True) == report_text(second, verbose=True)
    assert report_data(first) == report_data(second)


MARK = "-p tcp --dport 80 -j MARK --set-xmark 0x1/0x1"
READS_MARK = "-A FORWARD -m mark --mark 0x1/0x1 -j DROP"


@pytest.mark.parametrize(
    ("changed", "more", "answer"),
    [
        ({}, (), Answer.EQUAL),
        ({104: "-p tcp --dport 1:104 -j DROP"}, (), Answer.DIFFERENT),
        ({102: "-p udp -j DROP", 108: "-s 10.0.0.0/8 -j ACCEPT"}, (), Answer.DIFFERENT),
        (dict.fromkeys(GUESTS, "-j DROP"), (), Answer.DIFFERENT),
        ({103: MARK}, (READS_MARK,), Answer.DIFFERENT),
        ({103: MARK}, (), Answer.DIFFERENT),
    ],
)
def test_the_report_equals_one_process(changed: dict[int, str], more: tuple[str, ...], answer: Answer) -> None:
    one, several = reports(side("old", {}, *more), side("new", changed, *more))
    assert one.answer is answer
    assert_same(one, several)


@pytest.mark.parametrize("matters", [False, True])
def test_marks_that_alone_differ(matters: bool) -> None:
    rules = {vmid: f"-p tcp --dport {vmid} -j DROP" for vmid in GUESTS}
    marking = tuple(f"-A G{vmid} -j MARK --set-xmark 0x1/0x1" for vmid in (101, 105))
    reads = ("-A FORWARD -m physdev --physdev-is-bridged --physdev-out tap107i0 -m mark --mark 0x1/0x1 -j DROP",)
    sides = [side(name, rules, *(reads if matters else ()), *more) for name, more in (("a", ()), ("b", marking))]
    assert_same(*reports(*sides))


def test_marks_that_nothing_looks_at_are_no_trouble() -> None:
    looks = "-A INPUT -m mark --mark 0x1/0x1"  # the mark is followed, and no verdict depends on it
    marking = tuple(f"-A G{vmid} -j MARK --set-xmark 0x1/0x1" for vmid in GUESTS)
    comparison = Comparison(side("old", {}, looks), side("new", {}, looks, *marking), Options())
    comparison.segments.prove_ways(lambda _done, _all: None)
    places = [place for several in comparison.segments.found.troubles.values() for place in several]
    ends = {str(end) for place in places for end in (place.way.source, place.way.destination)}
    assert ends & {f"vm{vmid}i0" for vmid in GUESTS} == {
        "vm100i0",
        "vm101i0",
    }  # two stand for all on ways between guests


def test_a_proof_beyond_the_time_limit_is_undecided_in_every_process() -> None:
    sides = side("old", {}), side("new", {vmid: f"-p udp --dport {vmid} -j DROP" for vmid in GUESTS})
    late = Options(max_seconds=-1)
    one, several = (compare(*sides, options) for options in (late, replace(late, jobs=3)))
    assert several.undecided
    assert_same(one, several)


def test_a_process_that_dies_costs_nothing_but_time(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = os.getpid()
    original = SegmentProver.prove_share

    def dying(self: SegmentProver, numbers: Iterable[int]) -> Iterator[Finding]:
        assert os.getpid() != parent
        found = original(self, numbers)
        yield next(found)
        if 0 in numbers:
            os.kill(os.getpid(), signal.SIGKILL)
        if 1 in numbers:
            raise RuntimeError
        yield from found

    monkeypatch.setattr(SegmentProver, "prove_share", dying)
    assert_same(*reports(side("old", {}), side("new", {102: "-p udp -j DROP", 103: "-j DROP"})))


def test_progress_of_all_processes() -> None:
    told: list[tuple[int, int]] = []
    sides = side("old", {}), side("new", {104: "-j DROP"})
    compare(*sides, Options(jobs=3), lambda done, total: told.append((done, total)))
    assert told[-1] == (told[0][1], told[0][1])
    assert all(done <= total for done, total in told)


def test_shares() -> None:
    assert [list(share) for share in processes.shares(9, 4)] == [[0, 4, 8], [1, 5], [2, 6], [3, 7]]
    assert processes.shares(3, 8) == [range(3)]
    assert processes.shares(0, 8) == [range(0)]
