"""Programs, tests and sets that nothing uses are forgotten; the others stay the same objects."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

from pvefw_nft.cli import node_work
from pvefw_nft.config.files import FILES
from pvefw_nft.fleet.jobs import Job
from pvefw_nft.verify import model as m
from pvefw_nft.verify.model.intervals import IntervalSet
from pvefw_nft.verify.prove.interned import forget_unused
from pvefw_nft.verify.prove.program import Call, Program, Step
from tests.fleet.clusters import make_cluster

if TYPE_CHECKING:
    from pathlib import Path


def test_forget_unused_removes_what_nothing_refers_to() -> None:
    test = m.Test(m.DPORT, IntervalSet.of((60_001, 60_007)))
    called = Program((Step((test,), (), (), None),))
    caller = Program((Step((), (), (), Call(called, back=True)),))
    references = [weakref.ref(one) for one in (caller, called, test)] + [weakref.ref(test.values)]
    del test, called, caller
    gc.collect()
    forget_unused()
    assert [reference() for reference in references] == [None] * 4


def test_forget_unused_keeps_what_is_used() -> None:
    test = m.Test(m.DPORT, IntervalSet.of((60_011, 60_017)))
    program = Program((Step((test,), (), (), None),))
    alone = IntervalSet.single(60_019)
    forget_unused()
    assert m.Test(m.DPORT, IntervalSet.of((60_011, 60_017))) is test
    assert IntervalSet.of((60_011, 60_017)) is test.values
    assert IntervalSet.single(60_019) is alone
    assert Program((Step((test,), (), (), None),)) is program


def test_a_worker_that_compares_does_not_grow_with_its_jobs(tmp_path: Path) -> None:
    options = {
        **dict.fromkeys(("known", "max_time", "max_memory", "only", "bridge_call", "assume")),
        **dict.fromkeys(("strict", "as_reference", "verbose"), False),
        "no_cache": True,
        "local_network": "10.0.0.0/24",
        "network_origin": "",
    }
    programs = []
    for number in range(3):
        root = make_cluster(tmp_path / str(number), 1)
        rules = root / "etc/pve/firewall/101.fw"
        rules.write_text(f"{rules.read_text()}IN ACCEPT -p tcp -dport {7000 + number} -source 10.9.{number}.7\n")
        assert node_work.work(Job("", "compare", root, "pve1", FILES, options))["exit"] == 0
        programs.append(len(Program._known))
    assert programs[2] <= programs[0]
