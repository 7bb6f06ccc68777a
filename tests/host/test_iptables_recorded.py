"""A small change of iptables that is planned by the record is the one that a listing of all rules gives."""

from __future__ import annotations

import json
import random
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.errors import HostError
from pvefw_nft.host.apply import apply_iptables, iptables_recorded, xtables
from pvefw_nft.host.apply.engines import IptablesEngine, make_engines
from pvefw_nft.host.control import Control
from pvefw_nft.host.firewall import Firewall
from pvefw_nft.host.netfilter import stamp
from pvefw_nft.host.records import record
from pvefw_nft.host.tools import use_runner
from pvefw_nft.host.watchdog import start_watchdog_process
from tests.drawn import SEED

from .conftest import need
from .listing import everything, everything_in_the_kernel
from .rulesets import iptables
from .runners import Editing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pvefw_nft.host.apply.iptables_recorded import RecordedPlan
    from pvefw_nft.host.records.record import Desired

    from .conftest import Namespace

STEPS = 25


@pytest.fixture
def real(host: Namespace) -> Namespace:
    """A host on which the tools work, and the kernel tells whether rules changed."""
    need("iptables -L; ip6tables -L; ebtables -L; ipset list")
    if apply_iptables.take_stamp() is None or not stamp.are_counted(("iptables-save", "iptables-restore")):
        pytest.skip("this kernel does not tell namespaces apart, or iptables is the legacy variant")
    return host


def members(items: dict[str, list[str]]) -> Iterator[str]:
    for index, (name, lines) in enumerate(items.items()):
        yield f"{',' if index else ''}\n  {json.dumps(name)}: {json.dumps(lines)}"


def pieces(artefact: dict[str, Any]) -> Iterator[str]:
    """Cut an artefact as the backend does."""
    yield f'{{"enabled": {json.dumps(artefact["enabled"])}'
    for tool in ("iptables", "ip6tables"):
        yield f',\n"{tool}": {{'
        for index, (table, chains) in enumerate(artefact[tool].items()):
            yield f'{"," if index else ""}\n "{table}": {{'
            yield from members(chains)
            yield "}"
        yield "}"
    yield ',\n"ipset": {'
    yield from members(artefact["ipset"])
    yield '},\n"ebtables": {'
    yield from members(artefact["ebtables"])
    yield "}}\n"


def desired(artefact: dict[str, Any]) -> Desired:
    made = [*pieces(artefact)]
    assert json.loads("".join(made)) == artefact
    return record.desired("iptables", made, enabled=True)


def first() -> dict[str, Any]:
    artefact = iptables()
    for vmid in (100, 101, 102):
        name = f"tap{vmid}i0-IN"
        artefact["iptables"]["filter"][name] = [f"-A {name} -p tcp --dport {vmid} -j ACCEPT", f"-A {name} -j DROP"]
        artefact["ip6tables"]["filter"][name] = [f"-A {name} -p tcp --dport {vmid} -j ACCEPT", f"-A {name} -j DROP"]
    return artefact


def with_port(port: int, vmid: int = 100) -> Desired:
    artefact = first()
    for tool in ("iptables", "ip6tables"):
        artefact[tool]["filter"][f"tap{vmid}i0-IN"][:1] = [f"-A tap{vmid}i0-IN -p tcp --dport {port} -j ACCEPT"]
    return desired(artefact)


def command() -> Control:
    """Return the control of a command, which has seen no rules yet."""
    return Control(Firewall(make_engines()), start_watchdog=start_watchdog_process)


def target_of(wanted: Desired) -> xtables.State:
    return xtables.wanted(json.loads("".join(wanted.pieces)))


def plan_by_record(wanted: Desired) -> RecordedPlan | None:
    memory = record.read_memory()
    if not IptablesEngine().unchanged(memory):
        return None
    return iptables_recorded.plan(wanted, memory, record.load(record.running_path()))


# --- random changes -------------------------------------------------------------------------------------------


def rules_edited(artefact: dict[str, Any], rng: random.Random) -> None:
    for _ in range(rng.randint(1, 3)):
        tool, table = rng.choice((("iptables", "filter"), ("ip6tables", "filter"), ("iptables", "raw")))
        name = rng.choice([*artefact[tool][table]])
        lines = artefact[tool][table][name]
        if lines and rng.random() < 0.3:
            lines.pop(rng.randrange(len(lines)))
        else:
            protocol, port = rng.choice(("tcp", "udp", "17")), rng.choice(("ssh", "domain", rng.randint(1, 60000)))
            source = rng.choice(("", f"-s {'2001:db8::1' if tool == 'ip6tables' else '192.0.2.1,192.0.2.9'} "))
            lines.insert(
                0,
                f"-A {name} {source}-p {protocol} -m {'udp' if protocol == '17' else protocol} --dport {port} -j DROP",
            )


def other_parts_edited(artefact: dict[str, Any], rng: random.Random) -> None:
    number = rng.randint(1, 250)
    match rng.randrange(4):
        case 0:
            artefact["iptables"]["filter"][f"tap{number}i9-IN"] = []
        case 1:
            artefact["ip6tables"]["filter"].pop(f"tap10{rng.randint(0, 2)}i0-IN", None)
        case 2:
            artefact["ipset"]["PVEFW-0-management-v4"][1:2] = [f"add PVEFW-0-management-v4 10.0.{number}.0/24"]
        case _:
            artefact["ebtables"]["tap100i0-OUT"][:1] = [f"-A tap100i0-OUT -s ! bc:24:11:a:0:{number % 10} -j DROP"]


HANDS = (
    "iptables -I INPUT -s 192.0.2.3 -j DROP",
    "iptables -A tap100i0-IN -j ACCEPT",
    "ip6tables -F PVEFW-INPUT",
    "iptables -D INPUT -j PVEFW-INPUT",
    "ipset add PVEFW-0-management-v4 198.51.100.0/24",
    "ebtables -F tap100i0-OUT",
    "iptables -N mine; iptables -A mine -j PVEFW-HOST-IN",
)


def test_random_changes(real: Namespace) -> None:
    rng = random.Random(f"{SEED} recorded")
    artefact = first()
    command().apply(desired(artefact))
    by_record = 0
    for _ in range(STEPS):
        rules_edited(artefact, rng)
        if rng.random() < 0.2:
            other_parts_edited(artefact, rng)
        if rng.random() < 0.2:
            subprocess.run(["sh", "-c", rng.choice(HANDS)], check=False, capture_output=True)
        wanted = desired(artefact)
        memory = record.read_memory()
        assert memory is not None
        target = target_of(wanted)
        whole = apply_iptables.plan(apply_iptables.look(ebtables=True).state, target, memory.chains)
        found = plan_by_record(wanted)
        if found is not None:
            by_record += 1
            assert (str(found), found.changes, found.notes) == (str(whole), whole.changes, whole.notes)
        outcome, _ = command().apply(wanted)
        assert outcome.changes == whole.changes
        check_record(wanted)
    assert by_record >= STEPS // 4


def check_record(wanted: Desired) -> None:
    """Compare the record with the kernel: the ruleset is in force, and each chain is listed as noted."""
    memory = record.read_memory()
    assert memory is not None
    assert memory.identity == wanted.identity
    seen = apply_iptables.look(ebtables=True)
    assert memory.stamp == seen.stamp
    assert apply_iptables.drifted(seen.state, memory.chains) == []
    target = target_of(wanted)
    assert apply_iptables.differences(seen.state, target) == []
    whole = apply_iptables.plan(seen.state, target, stamp=seen.stamp)
    assert dict(memory.chains) == apply_iptables.memory_of(seen.state, whole)
    assert memory.exact == apply_iptables.is_exact(seen.state, target)


# --- what is read ---------------------------------------------------------------------------------------------


def run_noting(wanted: Desired, before: Callable[[Sequence[str]], None] = lambda _: None) -> list[str]:
    """Apply, and return the commands; ``before`` is called with each of them first."""
    ran: list[str] = []

    def note(line: Sequence[str], text: str | None) -> str | None:
        before(line)
        ran.append(line[0].rpartition("/")[2])
        return text

    with use_runner(Editing(note)):
        command().apply(wanted)
    return ran


def test_lists_no_other_chain(real: Namespace) -> None:
    command().apply(with_port(1))
    ran = run_noting(with_port(2))
    assert not {"iptables-save", "ip6tables-save", "ebtables-save"} & {*ran}
    assert "iptables-restore" in ran


@pytest.mark.parametrize("hand", HANDS)
def test_lists_all_after_other_hands(real: Namespace, hand: str) -> None:
    command().apply(with_port(1))
    clean = everything_in_the_kernel()
    command().apply(with_port(2))
    subprocess.run(["sh", "-ec", hand], check=True)
    assert "iptables-save" in run_noting(with_port(1))
    found = everything_in_the_kernel()
    for theirs in ("*filter mine", "*filter INPUT"):
        found["iptables"].pop(theirs, None)
        clean["iptables"].pop(theirs, None)
    assert found == clean
    check_record(with_port(1))


def test_a_foreign_rule_that_uses_a_chain_is_listed_each_time(real: Namespace) -> None:
    command().apply(with_port(1))
    subprocess.run(["sh", "-ec", "iptables -N mine; iptables -A mine -j tap101i0-IN"], check=True)
    command().apply(with_port(1))  # only the stamp is new
    assert "iptables-save" in run_noting(with_port(2))
    assert "iptables-save" in run_noting(with_port(3))


@pytest.mark.parametrize("change", [first, lambda: {**first(), "enabled": False}])
def test_pieces_cut_elsewhere_are_not_taken(real: Namespace, change: Callable[[], dict[str, Any]]) -> None:
    command().apply(with_port(1))
    artefact = change()
    whole = record.desired("iptables", [json.dumps(artefact)], enabled=True)
    assert plan_by_record(whole) is None
    assert plan_by_record(record.desired("iptables", ["".join(pieces(artefact))], enabled=True)) is None


# --- failures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", ["/iptables-restore", "ip6tables-restore"])
def test_a_tool_that_fails_leaves_the_ruleset_before(real: Namespace, tool: str) -> None:
    command().apply(with_port(1))
    before = everything()
    fails = 0

    def fail(line: Sequence[str]) -> None:
        nonlocal fails
        if f"/{line[0]}".endswith(tool) and fails < 2:  # the try by the record, and the one with all rules
            fails += 1
            raise HostError(f"{tool} failed: out of memory")

    with pytest.raises(HostError, match="the ruleset that ran before is in place"):
        run_noting(with_port(2), fail)
    assert fails == 2
    assert everything() == before
    command().apply(with_port(3))
    check_record(with_port(3))


def test_tools_that_fail_for_good_leave_what_is_loaded_and_the_error_says_so(real: Namespace) -> None:
    command().apply(with_port(1))
    failing = False

    def fail(line: Sequence[str]) -> None:
        nonlocal failing
        failing = failing or line[0].endswith("ip6tables-restore")
        if failing:
            raise HostError("no more processes")

    with pytest.raises(HostError, match="loaded by then are in place") as caught:
        run_noting(with_port(2), fail)
    assert caught.value.hint == apply_iptables.PARTLY_FILTERED
    assert "--dport 2 " in subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
    command().apply(with_port(1))
    check_record(with_port(1))


def test_a_tool_that_fails_once_is_tried_again(real: Namespace) -> None:
    command().apply(with_port(1))
    fails = 0

    def fail(line: Sequence[str]) -> None:
        nonlocal fails
        if line[0].endswith("ip6tables-restore") and not fails:
            fails += 1
            raise HostError("busy")

    assert "iptables-save" in run_noting(with_port(2), fail)
    check_record(with_port(2))


@pytest.mark.parametrize("hand", HANDS)
@pytest.mark.parametrize("moment", ["iptables-restore", "ip6tables-restore", "ip6tables"])
def test_other_hands_between(real: Namespace, hand: str, moment: str) -> None:
    command().apply(with_port(1))
    done = False

    def meddle(line: Sequence[str]) -> None:
        nonlocal done
        if line[0].rpartition("/")[2] == moment and not done:
            done = True
            subprocess.run(["sh", "-ec", hand], check=True)

    assert "iptables-save" in run_noting(with_port(2), meddle)
    assert done
    command().apply(with_port(2))
    seen = apply_iptables.look(ebtables=True)
    target = target_of(with_port(2))
    assert apply_iptables.differences(seen.state, target) == []
    memory = record.read_memory()
    assert memory is not None
    assert apply_iptables.drifted(seen.state, memory.chains) == []
