"""Notes of one process's compile that a later one takes up: the ruleset equals a cold compile, whatever they hold."""

from __future__ import annotations

import copy
import json
import os
import random
import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.app import desired as desired_ruleset
from pvefw_nft.app.compile_task import Task
from pvefw_nft.app.compiler import Compiler, find_nics_once, find_once
from pvefw_nft.app.judgement import Connections
from pvefw_nft.app.nics import read_filtered_nics
from pvefw_nft.app.session_guard import judge
from pvefw_nft.cache import Cache
from pvefw_nft.config import netdb, resolve
from pvefw_nft.host.live_network import LiveLink, LiveNetwork
from pvefw_nft.host.records import deltas, record, state
from pvefw_nft.host.tracking.connections import Flow, Session
from pvefw_nft.pipeline import MAX_NOTE, Source
from pvefw_nft.pipeline.notes import LastCompile
from tests.support import CONTAINER, VM, file_path
from tests.test_cache import CLUSTER, EDITS, FILES, edit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pvefw_nft.app.desired import Result
    from pvefw_nft.host.records.record import Desired
    from tests.support import MakeRoot

BACKENDS = ("iptables", "nft")
SOUND: dict[str, str | bytes] = {
    "host": "[OPTIONS]\nenable: 1\n",
    **{f"{vmid}.conf": VM.replace("01,", f"{vmid - 90},") for vmid in range(100, 106)},
    **{
        f"{vmid}.fw": f"[OPTIONS]\nenable: 1\n[RULES]\nGROUP web\nIN ACCEPT -source +admins -p tcp -dport {vmid}\n"
        for vmid in range(100, 106)
    },
    "cluster": CLUSTER,
}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the list that the VMIDs of guests go to whose files are read."""
    found: list[int] = []
    read_guest = resolve.read_guest

    def noted(*arguments: Any) -> Any:  # noqa: ANN401
        found.append(arguments[-1])
        return read_guest(*arguments)

    monkeypatch.setattr(resolve, "read_guest", noted)
    return found


def source_of(root: Path) -> Source:
    return Source(root, "n1", lambda: "10.0.0.0/24")


def compiled(root: Path, backend: str, past: LastCompile | None = None) -> Result:
    return desired_ruleset.compiled(source_of(root), backend, Cache(), past)


def past_of(result: Result) -> LastCompile:
    """Return what a later process finds on record."""
    desired = result.desired
    return LastCompile(desired.backend, result.observations, dict(result.notes), desired.pieces, result.diagnostics)


def assert_same(warm: Result, cold: Result, what: object) -> None:
    assert warm.desired == cold.desired, what
    assert warm.diagnostics == cold.diagnostics, what
    assert warm.observations == cold.observations, what


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_edit_gives_what_a_cold_compile_gives(make_root: MakeRoot, backend: str) -> None:
    root = make_root(FILES)
    last = compiled(root, backend)
    for what, name, content in EDITS:
        edit(root, name, content)
        last, cold = compiled(root, backend, past_of(last)), compiled(root, backend)
        assert_same(last, cold, what)
        assert last.notes == cold.notes, what


_OPTIONS = ("ipfilter: 1", "macfilter: 0", "policy_out: DROP", "log_level_in: info", "layer2_protocols: ARP", "ips: 1")
_RULES = (
    "GROUP web",
    "GROUP mail -i net0",
    "IN ACCEPT -source +admins",
    "IN DROP -source dc/web -log info",
    "OUT REJECT -p tcp -dport 25",
    "IN SSH(ACCEPT)",
    "IN ACCEPT -p tcp -dport 80,443",
    "IN ACCEPT -source +own",
    "IN ACCEPT -source +nowhere",
    "IN ACCEPT -p icmp -icmp-type echo-request",
    "OUT ACCEPT -dest 2001:db8::/64",
)


def some_guest(chance: random.Random) -> str:
    options = ["enable: 1", *chance.sample(_OPTIONS, chance.randrange(3))]
    own = "[IPSET own]\n10.0.0.7\n2001:db8::/32\n10.0.0.0/29 nomatch\n" if chance.random() < 0.3 else ""
    rules = chance.sample(_RULES, chance.randrange(6))
    return "\n".join(["[OPTIONS]", *options, "[RULES]", *rules, own])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(3))
def test_random_edits_give_what_a_cold_compile_gives(make_root: MakeRoot, backend: str, seed: int) -> None:
    chance = random.Random(seed)
    root = make_root({**SOUND, **{f"{vmid}.fw": some_guest(chance) for vmid in range(100, 106)}})
    last = compiled(root, backend)
    clusters = [CLUSTER, CLUSTER, CLUSTER, CLUSTER.replace("10.0.0.80", "10.0.0.81"), CLUSTER.replace("-dport 25", "")]
    for step in range(25):
        for _ in range(chance.randrange(1, 3)):
            vmid = chance.randrange(100, 108)
            match chance.randrange(6):
                case 0:
                    edit(root, f"{vmid}.conf", chance.choice([None, VM, CONTAINER.replace("net0", "net1")]))
                case 1:
                    edit(root, "cluster", chance.choice(clusters))
                case 2:
                    (root / f"etc/pve/firewall/{vmid}.pvefw").write_text(chance.choice(["", "[OPTIONS]\nqinq: 1\n"]))
                case _:
                    edit(root, f"{vmid}.fw", chance.choice([some_guest(chance), some_guest(chance), None]))
        last, cold = compiled(root, backend, past_of(last)), compiled(root, backend)
        assert_same(last, cold, step)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_changed_guest_is_read(make_root: MakeRoot, reads: list[int], backend: str) -> None:
    root = make_root(SOUND)
    past = past_of(compiled(root, backend))
    edit(root, "103.fw", "[OPTIONS]\nenable: 1\n[RULES]\nIN ACCEPT -p tcp -dport 99\n")
    edit(root, "106.conf", VM.replace("01,", "20,"))
    edit(root, "106.fw", "[OPTIONS]\nenable: 1\n")
    edit(root, "105.conf", None)
    reads.clear()
    warm = compiled(root, backend, past)
    assert reads == [103, 106]
    assert_same(warm, compiled(root, backend), "several guests")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cluster", CLUSTER.replace("web 10", "# as before\nweb 10")),
        ("host", "[OPTIONS]\nenable: 1\nnf_conntrack_max: 100000\n"),
        ("cluster", CLUSTER + "[IPSET more]\n10.0.0.9\n"),
    ],
)
def test_change_outside_of_guests_reads_all(
    make_root: MakeRoot, reads: list[int], backend: str, name: str, content: str
) -> None:
    root = make_root(SOUND)
    past = past_of(compiled(root, backend))
    edit(root, name, content)
    reads.clear()
    warm = compiled(root, backend, past)
    assert reads == list(range(100, 106))
    assert_same(warm, compiled(root, backend), name)


def test_guest_with_a_diagnostic_has_no_note(make_root: MakeRoot) -> None:
    found = compiled(make_root({**SOUND, "101.fw": "[OPTIONS]\nenable: 1\n[RULES]\nnonsense\n"}), "nft")
    assert set(found.notes) == {"100", "102", "103", "104", "105"}


def test_guest_with_a_long_note_has_none(make_root: MakeRoot) -> None:
    entries = "".join(f"10.{n >> 8}.{n & 255}.1\n" for n in range(MAX_NOTE // 10))
    found = compiled(make_root({**SOUND, "101.fw": f"[OPTIONS]\nenable: 1\n[IPSET large]\n{entries}"}), "nft")
    assert set(found.notes) == {"100", "102", "103", "104", "105"}


@pytest.mark.usefixtures("names_unread")
@pytest.mark.parametrize("backend", BACKENDS)
def test_host_renumbers_a_service(
    make_root: MakeRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    etc = tmp_path / "names"
    etc.mkdir()
    monkeypatch.setattr(netdb, "ETC", etc)
    (etc / "services").write_text("ownservice 5000/tcp\n")
    root = make_root({**SOUND, "104.fw": "[OPTIONS]\nenable: 1\n[RULES]\nIN ACCEPT -p tcp -dport ownservice\n"})
    past = past_of(compiled(root, backend))
    (etc / "services").write_text("ownservice 6000/tcp\n")
    edit(root, "100.fw", "[OPTIONS]\nenable: 1\n")
    warm = compiled(root, backend, past)
    assert "6000" in "".join(warm.desired.pieces)
    assert_same(warm, compiled(root, backend), "services")


# --- damaged notes ------------------------------------------------------------------------------------------


def damages(value: Any, chance: random.Random) -> Any:  # noqa: ANN401 - JSON
    """Return JSON with one place of it replaced by something else."""
    value = copy.deepcopy(value)
    at, place = value, chance.choice([*value])
    while isinstance(at[place], dict | list) and at[place] and chance.random() < 0.85:
        at = at[place]
        place = chance.choice([*at]) if isinstance(at, dict) else chance.randrange(len(at))
    at[place] = chance.choice([None, True, -1, 7, 1 << 70, "", "x", "tap100i0-IN", [], {}, [[]], [None, 1], {"a": []}])
    return value


@pytest.mark.parametrize("backend", BACKENDS)
def test_damaged_note_costs_no_more_than_its_guest(make_root: MakeRoot, backend: str) -> None:
    """A note may be of any shape. What is in it may be believed only as far as it names the guest's own chains."""
    chance = random.Random(7)
    root = make_root({**SOUND, "101.fw": "[OPTIONS]\nenable: 1\nipfilter: 1\n[IPSET own]\n10.0.0.1\n"})
    last = compiled(root, backend)
    edit(root, "100.fw", "[OPTIONS]\nenable: 1\n")
    cold = compiled(root, backend)
    assert chains_of_others(cold)
    for _ in range(150):
        past = past_of(last)
        damaged = {**past.guests, "101": json.dumps(damages(json.loads(past.guests["101"]), chance))}
        warm = compiled(root, backend, LastCompile(backend, past.observations, damaged, past.pieces, ()))
        assert chains_of_others(warm) == chains_of_others(cold)


_OTHERS_CHAIN = re.compile(r'(?:\n  |\{"add":\{"rule":\{[^}]*?"chain":)"(?:[a-z]+/)?tap10[02-5]i.*', re.DOTALL)


def chains_of_others(result: Result) -> list[str]:
    """Return the rules of the chains of all guests but 101."""
    return [found[0] for found in map(_OTHERS_CHAIN.search, result.desired.pieces) if found is not None]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "break_it",
    [
        lambda note: note["part"]["chains"][0].__setitem__(1, "PVEFW-INPUT"),
        lambda note: note["part"]["chains"][0].__setitem__(1, "tap100i0-IN"),
        lambda note: note["part"]["nics"][0].__setitem__(0, "tap100i0"),
        lambda note: note["part"]["nics"][0].__setitem__(1, "eno1"),
        lambda note: note["part"]["nics"][0].__setitem__(3, "tap100i0-OUT"),
        lambda note: note.__setitem__("filtered", [["0", False]]),
        lambda note: note.__setitem__("texts", "0" * 64),
        lambda note: note["part"]["groups"].append(["nowhere", "IN"]),
        lambda note: note.pop("stages"),
        lambda note: note["stages"].clear(),
        lambda note: [stages.clear() for stages in note["stages"].values()],
    ],
)
def test_note_of_another_guests_chains_does_not_count(
    make_root: MakeRoot, backend: str, break_it: Callable[[Any], object]
) -> None:
    root = make_root(SOUND)
    past = past_of(compiled(root, backend))
    note = json.loads(past.guests["101"])
    break_it(note)
    edit(root, "105.fw", "[OPTIONS]\nenable: 1\n")
    broken = LastCompile(backend, past.observations, {**past.guests, "101": json.dumps(note)}, past.pieces, ())
    assert_same(compiled(root, backend, broken), compiled(root, backend), "a broken note")


@pytest.mark.parametrize("text", ["", "nonsense", "[" * 10_000, "[]", "7"])
def test_note_that_is_none_does_not_count(make_root: MakeRoot, reads: list[int], text: str) -> None:
    root = make_root(SOUND)
    past = past_of(compiled(root, "nft"))
    reads.clear()
    broken = LastCompile("nft", past.observations, {**past.guests, "101": text}, past.pieces, ())
    assert_same(compiled(root, "nft", broken), compiled(root, "nft"), text)
    assert reads[0] == 101
    assert len(reads) == 1 + 6


@pytest.mark.parametrize("backend", BACKENDS)
def test_pieces_that_are_not_there_are_made(make_root: MakeRoot, backend: str) -> None:
    root = make_root(SOUND)
    past = past_of(compiled(root, backend))
    pieces = [piece for piece in past.pieces if "tap102i0" not in piece and "PVEFW-reject" not in piece]
    lacking = LastCompile(backend, past.observations, past.guests, tuple(pieces), ())
    assert_same(compiled(root, backend, lacking), compiled(root, backend), "pieces")


# --- on record ----------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give records a folder of their own; return where those of this boot are."""
    monkeypatch.setenv("PVEFW_RUN_DIRECTORY", str(tmp_path / "records"))
    monkeypatch.setenv("PVEFW_STATE_DIRECTORY", str(tmp_path / "records"))
    yield state.run_directory()
    state.take_warnings()
    deltas.remove(record.inputs_path())


def apply(source: Source, backend: str | None, result: Result) -> None:
    """Write the records of a result, as an apply does."""
    record.prepare(record.running_path(), result.desired).commit()
    desired_ruleset.note(result, source, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_update_takes_up_what_the_service_noted(
    make_root: MakeRoot, run: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service's compiler notes its result of each change; a command then begins with it, in another process."""
    root, source = make_root(SOUND), source_of(make_root(SOUND))
    with Compiler(source, backend, settle=0.0) as service:
        service.find()
        edit(root, "101.fw", "[OPTIONS]\nenable: 1\n")
        apply(source, backend, service.find())
    assert run.exists()
    edit(root, "102.fw", "[OPTIONS]\nenable: 1\n")
    taken: list[Any] = []
    take_up = Compiler.take_up

    def noted(self: Compiler, *past: Any) -> None:  # noqa: ANN401
        taken.append(past)
        take_up(self, *past)

    monkeypatch.setattr(Compiler, "take_up", noted)
    cold = find_once(source, backend)
    assert not taken
    warm = find_once(source, backend, from_notes=True)
    assert len(taken) == 1
    assert_same(warm, cold, "in another process")
    assert warm.notes == cold.notes


@pytest.mark.usefixtures("run")
def test_compile_afresh_takes_nothing_from_a_record(make_root: MakeRoot) -> None:
    source = source_of(make_root(SOUND))
    apply(source, "nft", compiled(source.root, "nft"))
    assert find_once(source, "nft").from_record
    assert not find_once(source, "nft", afresh=True).from_record


def past(source: Source, backend: str) -> tuple[Desired, LastCompile] | None:
    return desired_ruleset.last_compile(desired_ruleset.read_notes(source, backend))


def test_notes_of_another_ruleset_do_not_count(make_root: MakeRoot, run: Path) -> None:
    source = source_of(make_root(SOUND))
    first = compiled(source.root, "nft")
    apply(source, "nft", first)
    assert past(source, "nft") is not None
    assert past(source, "iptables") is None
    assert past(source_of(source.root / "etc"), "nft") is None
    edit(source.root, "101.fw", "[OPTIONS]\nenable: 1\n")
    record.prepare(record.running_path(), compiled(source.root, "nft").desired).commit()  # not noted
    assert past(source, "nft") is None


def test_notes_of_another_version_do_not_count(
    make_root: MakeRoot, monkeypatch: pytest.MonkeyPatch, reads: list[int]
) -> None:
    root = make_root(SOUND)
    past = past_of(compiled(root, "nft"))
    monkeypatch.setattr("pvefw_nft.config.source.program_digest", lambda: "another program")
    reads.clear()
    warm = compiled(root, "nft", past)
    assert reads == list(range(100, 106))
    assert_same(warm, compiled(root, "nft"), "version")


def _huge(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(state.MAX_SIZE)


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _link(path: Path) -> None:
    path.rename(path.with_suffix(".other"))
    path.symlink_to(path.with_suffix(".other"))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: os.truncate(path, path.stat().st_size // 2),
    "binary": lambda path: path.write_bytes(b"\xff\0" * 100),
    "no object": lambda path: path.write_text("[1, 2]"),
    "guests of another shape": lambda path: path.write_text(
        path.read_text().replace('"guests": {', '"guests": [{') + "]"
    ),
    "deep": lambda path: path.write_text("[" * 100_000),
    "huge": _huge,
    "FIFO": _fifo,
    "link": _link,
    "writable by others": lambda path: path.chmod(0o666),
    "of another user": lambda path: os.chown(path, 12345, 12345),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_record_counts_as_none(make_root: MakeRoot, run: Path, how: str) -> None:
    if how == "of another user" and os.geteuid() != 0:
        pytest.skip("only root may give a file away")
    source = source_of(make_root(SOUND))
    apply(source, "nft", compiled(source.root, "nft"))
    path = record.inputs_path()
    assert path.stat().st_mode & 0o777 == 0o600
    DAMAGES[how](path)
    assert past(source, "nft") is None
    edit(source.root, "101.fw", "[OPTIONS]\nenable: 1\n")
    found = find_once(source, "nft", from_notes=True)
    assert_same(found, compiled(source.root, "nft"), how)


# --- one process for all questions of a command -----------------------------------------------------------------

_NIC_EDITS: list[tuple[str, str, str | None]] = [
    ("another bridge", "102.conf", VM.replace("01,", "12,").replace("bridge=vmbr0", "bridge=vmbr1,tag=7")),
    ("trunks and MTU", "102.conf", VM.replace("01,", "12,").replace("firewall=1", "firewall=1,trunks=3;5-9,mtu=1400")),
    ("the bridge's MTU", "102.conf", VM.replace("01,", "12,").replace("firewall=1", "firewall=1,mtu=1")),
    ("no bridge", "102.conf", VM.replace("01,", "12,").replace("bridge=vmbr0,", "")),
    ("no firewall", "102.conf", VM.replace("01,", "12,").replace(",firewall=1", "")),
    ("no NIC", "102.conf", "name: x\n"),
    ("binary", "102.conf", "net0: \0"),
    ("back", "102.conf", VM.replace("01,", "12,")),
]


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("backend", BACKENDS)
def test_nics_after_a_find_are_those_of_the_files(make_root: MakeRoot, backend: str) -> None:
    source = source_of(make_root({**SOUND, "200.ct": CONTAINER}))
    apply(source, backend, compiled(source.root, backend))
    edits = [one for made in _NIC_EDITS for one in (made, (f"then, {made[0]}", "103.fw", f"# {made[0]}\n"))]
    for what, name, content in [*edits, *EDITS]:
        edit(source.root, name, content)
        with Compiler(source, backend, settle=0.0) as compiler:
            found = compiler.find_once(from_notes=True)
            nics = compiler.filtered_nics()
        assert nics == find_nics_once(source), what
        assert_same(found, compiled(source.root, backend), what)
        apply(source, backend, found)


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("backend", BACKENDS)
def test_nics_of_unchanged_guests_are_not_read_again(make_root: MakeRoot, backend: str) -> None:
    root = make_root(SOUND)
    first = compiled(root, backend)
    edit(root, "101.fw", "[OPTIONS]\nenable: 1\n")
    found = compiled(root, backend, past_of(first))
    assert sorted(found.guests) == list(range(100, 106))
    for vmid in range(100, 106):
        (root / file_path(f"{vmid}.conf")).write_text("")
    nics = read_filtered_nics(source_of(root), found.guests)
    assert [nic.vmid for nic in nics.nics] == list(range(100, 106))
    assert read_filtered_nics(source_of(root), {100: found.guests[100]}).nics == nics.nics[:1]
    moved = {vmid: replace(guest, file=f"{guest.file}.old") for vmid, guest in found.guests.items()}
    assert read_filtered_nics(source_of(root), moved).nics == ()
    for vmid in range(100, 106):
        edit(root, f"{vmid}.conf", None)
    assert read_filtered_nics(source_of(root), found.guests).nics == ()


@pytest.mark.usefixtures("run")
def test_notes_of_the_other_backend_in_a_process_of_its_own(make_root: MakeRoot) -> None:
    """host.fw asks for another backend than the one of the record, whose modules the process begins with."""
    source = source_of(make_root(SOUND))
    apply(source, None, desired_ruleset.compiled(source, None, Cache()))
    edit(source.root, "host", "[OPTIONS]\nenable: 1\nnftables: 1\n")
    found = find_once(source, None, from_notes=True)
    assert found.desired.backend == "nft"
    assert_same(found, desired_ruleset.compiled(source, None, Cache()), "another backend")


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_process_that_found_judges_as_another_one(
    make_root: MakeRoot, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(make_root(SOUND))
    allowing = CLUSTER.replace("enable: 1\n", "enable: 1\npolicy_in: ACCEPT\n", 1)
    edit(source.root, "cluster", allowing)
    apply(source, backend, compiled(source.root, backend))
    running = record.load(record.running_path())
    started: list[Task] = []
    start = Task.__init__

    def noted(self: Task, *arguments: Any, **more: Any) -> None:  # noqa: ANN401
        started.append(self)
        start(self, *arguments, **more)

    monkeypatch.setattr(Task, "__init__", noted)
    edit(source.root, "101.fw", "[OPTIONS]\nenable: 1\n")
    edit(source.root, "cluster", allowing + "[RULES]\nIN DROP -p tcp -dport 22\n")
    own, far = (4, 0x0A000001), (4, 0x0A000009)
    network = LiveNetwork((LiveLink("vmbr0", True, ("eno1",), ((*own, 24),)),), ((4, 0x0A000000, 24, "vmbr0"),), {})
    flow = Flow(6, far, 50000, own, 22)
    session = Session("ssh", flow, "an established connection")
    for sessions, tracked in (((session,), (flow,)), ((session,), ()), ((), (flow,)), ((), ()), ((), None)):
        now = partial(Connections, sessions, tracked, network, calls_iptables=False)
        with Compiler(source, backend, settle=0.0) as compiler:
            desired = compiler.find_once(from_notes=True).desired
            assert record.load(record.running_path()) is running
            judged = compiler.judge(desired, running, now)
        assert len(started) == 1
        assert judged == judge(desired, running, source, now())
        assert bool(judged.cuts) is bool(sessions)
        with Compiler(source, backend, settle=0.0) as compiler:
            assert compiler.judge(desired, running, now) == judged
        started.clear()
