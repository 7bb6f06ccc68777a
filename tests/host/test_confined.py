"""The compiler's process: its limits, its equal results, and the effects if it ends or lies."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pyparsing
import pytest

pytest.importorskip("pyroute2")

from pvefw_nft.app import compile_task, desired
from pvefw_nft.app.compile_messages import encode
from pvefw_nft.app.compiler import Compiler
from pvefw_nft.app.judgement import Connections
from pvefw_nft.errors import CompilerError, ConfigurationError, DeniedError, InternalError, UsageError
from pvefw_nft.host import hardening
from pvefw_nft.host.apply import xtables
from pvefw_nft.host.apply.nftables_state import Reader
from pvefw_nft.host.confined import Channel, Worker
from pvefw_nft.host.live_network import LiveLink, LiveNetwork
from pvefw_nft.host.records import record
from pvefw_nft.host.tracking import connections
from pvefw_nft.host.tracking.connections import Flow, Session
from pvefw_nft.pipeline import Observations, Source

from .commands import Command, pvefw, service
from .conftest import need
from .network import configure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .conftest import Namespace

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def source(root: Path, node: str = "n") -> Source:
    return Source(root, node, lambda: "192.0.2.0/24")


def rules() -> list[str]:
    """Return the rules of the table filter, as the kernel lists them."""
    saved = subprocess.run(["iptables-save", "-t", "filter"], capture_output=True, text=True, check=True).stdout
    return [line for line in saved.splitlines() if line.startswith("-A")]


@pytest.fixture
def compiler(tmp_path: Path) -> Iterator[Compiler]:
    configure(tmp_path)
    with Compiler(source(tmp_path), "iptables") as made:
        yield made


# --- limits of the process ----------------------------------------------------------------------------------------


def _write(path: str) -> None:
    Path(path).write_text("x")


def _execute(program: str) -> None:
    os.execv(program, [program])


ATTEMPTS: dict[str, Callable[[], object]] = {
    "open a socket": lambda: socket.socket(socket.AF_INET),
    "open a local socket": lambda: socket.socket(socket.AF_UNIX),
    "open a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
    "fork": os.fork,
    "run a program": lambda: _execute("/bin/true"),
    "send a signal": lambda: os.kill(os.getppid(), 0),
    "write a file": lambda: _write("/tmp/pvefw-was-here"),
    "write below /etc/pve": lambda: _write("/etc/pve/pvefw-was-here"),
    "remove a file": lambda: Path("/tmp/pvefw-was-here").unlink(missing_ok=False),
    "make a folder": lambda: Path("/tmp/pvefw-was-there").mkdir(),
    "change a mode": lambda: Path("/tmp").chmod(0o1777),
    "change its user": lambda: os.setuid(0),
    "change its limits": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32)),
    "take 3 GiB": lambda: bytearray(3 << 30),
}


def test_process_may_only_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PVEFW_COMPILER_MEMORY", "1024")

    def serve(channel: Channel, missing: Sequence[str]) -> None:
        found = {}
        for name, attempt in ATTEMPTS.items():
            try:
                attempt()
                found[name] = "done"
            except (OSError, MemoryError, ValueError) as error:
                found[name] = type(error).__name__
        # without Landlock it may read these, like the user who runs it
        status = Path("/proc/self/status")
        found["capabilities"] = _capabilities(status) if "Landlock" in str(missing) else ""
        channel.send(encode({"found": found, "missing": [*missing]}))

    worker = Worker(serve, [tmp_path])
    message = json.loads(worker.channel.receive())
    worker.close()
    assert not any(word.startswith(("limits", "capabilities", "no new", "network")) for word in message["missing"])
    if any("seccomp" in word for word in message["missing"]):
        pytest.skip("this machine has no libseccomp2")
    capabilities = message["found"].pop("capabilities")
    assert capabilities in ("", "0000000000000000")
    allowed = [name for name, how in message["found"].items() if how == "done"]
    assert allowed == []
    assert not Path("/tmp/pvefw-was-here").exists()


def _capabilities(status: Path) -> str:
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("CapEff")]
    return line.split()[1]


def test_process_keeps_no_descriptor_and_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_text("inside")
    (tmp_path / "outside").write_text("outside")
    kept = os.open(tmp_path / "outside", os.O_RDONLY)

    def serve(channel: Channel, missing: Sequence[str]) -> None:
        found = [(tmp_path / "in" / "file").read_text()]
        reads: tuple[Callable[[], str], ...] = (
            lambda: (tmp_path / "outside").read_text(),
            lambda: os.read(kept, 9).decode(),
        )
        for read in reads:
            try:
                found.append(read())
            except OSError as error:
                found.append(type(error).__name__)
        channel.send(encode({"found": found, "landlock": "Landlock" not in str(missing)}))

    try:
        worker = Worker(serve, [tmp_path / "in"])
        message = json.loads(worker.channel.receive())
        worker.close()
    finally:
        os.close(kept)
    inside, outside, descriptor = message["found"]
    assert (inside, descriptor) == ("inside", "OSError")
    assert outside == ("PermissionError" if message["landlock"] else "outside")


# --- it compiles the same ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["iptables", "nft"])
@pytest.mark.parametrize(("example", "node"), [("homelab", "pve"), ("provider", "pve1")])
def test_same_ruleset_as_in_one_process(example: str, node: str, backend: str) -> None:
    of = source(EXAMPLES / example, node)
    here = desired.compiled(of, backend)
    with Compiler(of, backend) as compiler:
        found = compiler.find()
        assert compiler.find() is found
    assert (found.desired, found.diagnostics, found.observations) == (here.desired, here.diagnostics, here.observations)


READABLE = """\
import sys
from pathlib import Path
from pvefw_nft.app import compiler
print("pyparsing" in sys.modules, *compiler._readable(Path("/")), sep="\\n")
"""


def test_process_may_read_the_parser_that_is_not_loaded_yet(tmp_path: Path) -> None:
    """It lies outside of Python's own folders: Debian's package is below /usr, this one anywhere."""
    shutil.copytree(Path(pyparsing.__file__).parent, tmp_path / "pyparsing")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{EXAMPLES.parent}"}
    done = subprocess.run([sys.executable, "-c", READABLE], env=environment, capture_output=True, text=True, check=True)
    loaded, *paths = done.stdout.splitlines()
    assert loaded == "False"
    assert str(tmp_path / "pyparsing") in paths


def test_only_changed_pieces_are_sent_again(tmp_path: Path) -> None:
    configure(tmp_path)
    with Compiler(source(tmp_path), "nft") as compiler:
        first = compiler.find()
        configure(tmp_path, 3242)
        second = compiler.find()
    assert "4242" in "".join(second.desired.pieces)
    assert second.desired == desired.compiled(source(tmp_path), "nft").desired
    before = {id(piece) for piece in first.desired.pieces}
    assert sum(id(piece) in before for piece in second.desired.pieces) > len(second.desired.pieces) / 2


def test_channel_tells_an_end_that_closes_from_a_frame_and_from_silence() -> None:
    (reading, to_read), (other, writing) = os.pipe(), os.pipe()
    here, there = Channel(reading, writing), Channel(other, to_read)
    assert not here.closes_within(0.01)
    there.send(b"frame")
    assert not here.closes_within(60)
    there.close()
    assert not here.closes_within(60)
    assert here.receive() == b"frame"
    assert here.closes_within(60)
    here.close()


@pytest.mark.parametrize("backend", ["iptables", "nft"])
def test_memory_stays_over_many_changes(tmp_path: Path, backend: str) -> None:
    configure(tmp_path)
    file = tmp_path / "etc/pve/firewall/100.fw"
    sizes = []
    with Compiler(source(tmp_path), backend) as compiler:
        for number in range(250):
            new = file.with_suffix(".new")
            new.write_text(f"[OPTIONS]\nenable: 1\n[RULES]\nIN ACCEPT -p udp -dport {10_000 + number % 20}\n")
            new.replace(file)
            compiler.find()
            if number % 50 == 49:
                assert compiler._worker is not None
                sizes.append(_resident(compiler._worker._process))
    assert sizes[-1] <= sizes[1] + 1024, sizes


def _resident(process: int) -> int:
    """Return the KiB of memory that a process has (proc(5))."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def test_errors_come_through(tmp_path: Path) -> None:
    with Compiler(source(tmp_path), "nft") as compiler, pytest.raises(ConfigurationError, match="nothing is there"):
        compiler.find()
    with Compiler(source(tmp_path / "no"), "nft") as compiler, pytest.raises(UsageError, match="not a folder"):
        compiler.find()


@pytest.mark.skipif(os.geteuid() != 0, reason="says what root is told")
@pytest.mark.parametrize(("mode", "owner"), [(0o000, 0), (0o600, 65534)])
def test_file_that_modes_close_to_root_is_told_with_the_reason(
    compiler: Compiler, tmp_path: Path, mode: int, owner: int
) -> None:
    file = tmp_path / "etc/pve/firewall/100.fw"
    file.chmod(mode)
    os.chown(file, owner, owner)
    with pytest.raises(DeniedError, match=r"100\.fw: cannot be read: Permission denied") as raised:
        compiler.find()
    assert "run this as root" not in str(raised.value.hint)
    assert "chown root, chmod u+r" in str(raised.value.hint)
    os.chown(file, 0, 0)
    file.chmod(0o400)
    assert compiler.find().desired.enabled


def test_bug_of_the_compiler_is_reported(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("unforeseen")

    monkeypatch.setattr("pvefw_nft.app.desired.compile_root", fail)
    with pytest.raises(InternalError, match="pvefw failed: KeyError: 'unforeseen'"):
        compiler.find()


def test_all_requests_of_a_process_that_runs_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pvefw_nft.host.confined.needs_another_program", lambda: True)
    configure(tmp_path)
    own = 4, 0x0A000001
    network = LiveNetwork((LiveLink("vmbr0", True, ("eno1",), ((*own, 24),)),), ((4, 0x0A000000, 24, "vmbr0"),), {})
    ssh = Session("ssh", Flow(6, (4, 0x0A000009), 50000, own, 22), "an established connection")
    with Compiler(source(tmp_path), "iptables") as compiler:
        found = compiler.find()
        now = Connections((ssh,), (), network, calls_iptables=True)
        (cut,) = compiler.judge(found.desired, None, lambda: now).cuts
        assert cut.place == "cluster.fw policy_in DROP"
        assert compiler.still_hold(found.observations)
        assert [nic.vmid for nic in compiler.filtered_nics().nics] == [100]


# --- only it reads the configuration ------------------------------------------------------------------------------


def _opened_by(folder: Path, root: Path, *arguments: str) -> tuple[set[str], str]:
    """Run a command; return the files below ``root`` that its own process opened, and its output."""
    log = folder / "opened"
    log.write_text("")

    def note_opens() -> None:
        own = os.getpid()
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)

        def note(event: str, details: tuple[Any, ...]) -> None:
            if event == "open" and os.getpid() == own and str(root) in str(details[0]):
                os.write(descriptor, f"{details[0]}\n".encode())

        sys.addaudithook(note)

    done = Command(arguments, folder, note_opens).ended()
    assert "Traceback" not in done.said
    return {line for line in log.read_text().splitlines() if not Path(line).is_dir()}, done.said


def test_process_with_privileges_opens_no_file_of_the_configuration(
    host: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("iptables -L; ip6tables -L; ipset list; ebtables -L")
    said, root = tmp_path / "said", tmp_path / "root"
    said.mkdir()
    configure(root)
    subprocess.run(["ip", "address", "add", "10.0.0.1/24", "dev", "lo"], check=True)
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.9 50000 10.0.0.1 22")
    where = ["--root", str(root), "--node", "n", "--local-network", "192.0.2.0/24"]
    opened, _ = _opened_by(said, root, "check", "--root", str(root), "--node", "n")
    assert any(name.endswith("100.fw") for name in opened)  # so such an open is seen
    for command in (["start", "--dry-run", "--backend", "nft"], ["start"]):  # both judge
        opened, output = _opened_by(said, root, *command, *where)
        assert "ssh 10.0.0.9:50000 → 10.0.0.1:22 (SSH_CONNECTION) would be cut by cluster.fw policy_in DROP" in output
        assert opened == set()
    for command in (["start", "--force"], ["update"], ["status"], ["restart", "--force"]):
        opened, output = _opened_by(said, root, *command, *where)
        assert opened == set(), command
        assert "error" not in output
    configure(root, 3242)
    assert _opened_by(said, root, "update", "--force", *where)[0] == set()


# --- it ends ----------------------------------------------------------------------------------------------------


def _endless(*_: object) -> None:
    while True:
        pass


def _greedy(*_: object) -> None:
    kept = []
    while True:
        kept.append(bytearray(1 << 24))


def _killed(*_: object) -> None:
    os._exit(9)


ENDS = {"endless": (_endless, "share of the processor"), "greedy": (_greedy, "status 1"), "gone": (_killed, "status 9")}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PVEFW_COMPILER_MEMORY", "64")
    monkeypatch.setenv("PVEFW_COMPILER_SECONDS", "1")


@contextmanager
def compiling_by(act: Callable[..., object]) -> Iterator[None]:
    """Have the compiler's process act so instead of compiling."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pvefw_nft.app.desired.closing_failures", act)
        yield


@pytest.mark.parametrize("how", sorted(ENDS))
def test_limits_end_the_process_and_the_next_request_has_another_one(compiler: Compiler, small: None, how: str) -> None:
    act, reason = ENDS[how]
    with compiling_by(act), pytest.raises(CompilerError, match=reason):
        compiler.find()
    assert compiler.find().desired.enabled


@pytest.mark.parametrize("how", sorted(ENDS))
def test_start_after_boot_restores_the_confirmed_ruleset(
    host: Namespace, other: Namespace, tmp_path: Path, small: None, how: str
) -> None:
    need("iptables -L; ip6tables -L; ipset list; ebtables -L")
    (tmp_path / "said").mkdir()
    configure(tmp_path)
    options = ["--root", str(tmp_path), "--node", "n", "--local-network", "192.0.2.0/24", "--backend", "iptables"]
    assert pvefw(tmp_path / "said", "start", *options).status == 0
    before = rules()
    configure(tmp_path, 3242)
    with compiling_by(ENDS[how][0]):
        done = pvefw(tmp_path / "said", "update", *options)
        assert done.status == 1
        assert "the compiler's process ended" in done.err
        assert rules() == before
        (Path(os.environ["PVEFW_RUN_DIRECTORY"]) / "pvefw" / "running.json").unlink()
        with other.entered():  # it holds no rules, as after a boot
            done = pvefw(tmp_path / "said", "start", *options)
            assert "the ruleset that was confirmed last is in place" in done.err
            assert rules() == before
    assert done.status == 1


def test_service_lives_on_without_its_compiler(host: Namespace, tmp_path: Path) -> None:
    need("iptables -L; ip6tables -L; ipset list; ebtables -L")
    (tmp_path / "said").mkdir()
    configure(tmp_path)
    options = ["--root", str(tmp_path), "--node", "n", "--local-network", "192.0.2.0/24", "--backend", "iptables"]
    with service(tmp_path / "said", *options, "--poll", "0.2", "--settle", "0") as command:
        command.waits_for(lambda: "started:" in command.said())
        children = Path(f"/proc/{command.pid}/task/{command.pid}/children")
        (compiler, *_) = children.read_text().split()  # the first that it starts; others probe the file system
        os.kill(int(compiler), signal.SIGKILL)
        configure(tmp_path, 3242)
        command.waits_for(lambda: "4242" in "".join(rules()))
        assert "the compiler's process ended" in command.said()
        assert compiler not in children.read_text().split()


# --- it lies ----------------------------------------------------------------------------------------------------

RULESET: dict[str, Any] = {
    "kind": "ruleset", "backend": "iptables", "enabled": True, "conntrack": None, "hardening": "", "pieces": [-1],
    "diagnostics": [], "answers": [], "doubts": [], "seconds": None,
}  # fmt: skip
LIES: dict[str, list[bytes]] = {
    "no JSON": [b"\xff\xfe"],
    "no object": [b"[]"],
    "another kind": [encode({"kind": "shell"})],
    "nested": [b"[" * 100_000],
    "a secret asked for": [encode({"kind": "ask", "what": "names", "about": "shadow"})],
    "nothing before": [encode({"kind": "same", "doubts": [], "seconds": None})],
    "another backend": [encode({**RULESET, "backend": "nft"}), b"{}"],
    "a program for a backend": [encode({**RULESET, "backend": "os.system"}), b"{}"],
    "an unknown piece": [encode({**RULESET, "pieces": [7]}), b"{}"],
    "a number for a piece": [encode({**RULESET, "pieces": ["x"]}), b"{}"],
    "no UTF-8": [encode(RULESET), b"\xff"],
    "a wrong diagnostic": [encode({**RULESET, "diagnostics": [["error"]]}), b"{}"],
    "an unknown error": [encode({"kind": "failed", "error": ["SystemExit", "x", None]})],
    "NICs": [encode({"kind": "nics", "nics": [], "misconfigured": []})],
}


JUDGEMENT: dict[str, Any] = {"kind": "judgement", "cuts": [], "guests": [], "notes": []}
LIES_OF_OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "a ruleset for a judgement": ("judge", RULESET),
    "a short cut": ("judge", {**JUDGEMENT, "cuts": [["ssh", "would be cut"]]}),
    "numbers for a cut": ("judge", {**JUDGEMENT, "cuts": [[1, 2, 3, 4]]}),
    "a text for connections": ("judge", {**JUDGEMENT, "guests": [["100.fw:4", "tcp"]]}),
    "no notes": ("judge", {**JUDGEMENT, "notes": None}),
    "a judgement for an answer": ("holds", JUDGEMENT),
    "a text for yes": ("holds", {"kind": "holds", "holds": "yes"}),
    "the host's secrets": ("holds", {"kind": "ask", "what": "file", "about": "/etc/shadow"}),
}


ServeBy: TypeAlias = "Callable[[Callable[[object, Channel, Sequence[str]], None]], None]"


@pytest.fixture
def serve_by(monkeypatch: pytest.MonkeyPatch) -> ServeBy:
    """Return a function that has another function serve the compiler's process."""
    return partial(monkeypatch.setattr, compile_task.Task, "serve")


@pytest.mark.parametrize("lie", sorted(LIES_OF_OTHERS))
def test_invalid_answers_about_connections_and_changes_are_refused(
    compiler: Compiler, serve_by: ServeBy, lie: str
) -> None:
    request, answer = LIES_OF_OTHERS[lie]

    def serve(_: object, channel: Channel, missing: Sequence[str]) -> None:
        channel.send(encode({"missing": [*missing]}))
        channel.receive()
        channel.send(encode(answer))
        channel.receive()

    serve_by(serve)
    ruleset = record.desired("nft", ["{}"], enabled=True)
    now = Connections((), (), LiveNetwork((), (), {}), calls_iptables=False)
    asks: dict[str, Callable[[], object]] = {
        "judge": lambda: compiler.judge(ruleset, None, lambda: now),
        "holds": lambda: compiler.still_hold(Observations({("program", ""): ""})),
    }
    with pytest.raises(CompilerError):
        asks[request]()


@pytest.mark.parametrize("lie", sorted(LIES))
def test_invalid_answers_of_a_compiler_are_refused(compiler: Compiler, serve_by: ServeBy, lie: str) -> None:
    def serve(_: object, channel: Channel, missing: Sequence[str]) -> None:
        channel.send(encode({"missing": [*missing]}))
        channel.receive()
        for frame in LIES[lie]:
            channel.send(frame)
        channel.receive()

    serve_by(serve)
    with pytest.raises(CompilerError):
        compiler.find()


def test_length_beyond_the_limit_is_not_read(compiler: Compiler, serve_by: ServeBy) -> None:
    def serve(_: object, channel: Channel, missing: Sequence[str]) -> None:
        os.write(channel.descriptors[1], b"\xff\xff\xff\xff")
        channel.receive()

    serve_by(serve)
    with pytest.raises(CompilerError, match="a frame of"):
        compiler.find()


CHAIN = "PVEFW-INPUT"
LINES = {
    "program": f"-A {CHAIN} --modprobe=/tmp/x -j ACCEPT",
    "program, short": f"-A {CHAIN} -M /tmp/x -j ACCEPT",
    "program, joined": f"-A {CHAIN} -M/tmp/x -j ACCEPT",
    "program, abbreviated": f"-A {CHAIN} --modp /tmp/x -j ACCEPT",
    "program, quoted": f'-A {CHAIN} "-M" /tmp/x -j ACCEPT',
    "program, quoted in part": f"-A {CHAIN} '-'M /tmp/x -j ACCEPT",
    "program, escaped": f"-A {CHAIN} \\-M /tmp/x -j ACCEPT",
    "program, by a tab": f"-A {CHAIN}  \t-M /tmp/x -j ACCEPT",
    "table": f"-A {CHAIN} -t nat -j ACCEPT",
    "second chain": f"-A {CHAIN} -A INPUT -j ACCEPT\n-A INPUT -j ACCEPT",
    "file": f"-A {CHAIN} --atomic-file /etc/x -j ACCEPT",
    "very long": f"-A {CHAIN} -s {'1' * 20_000} -j ACCEPT",
}


def _artefact(**changed: object) -> dict[str, Any]:
    tables = {"filter": {CHAIN: [f"-A {CHAIN} -j ACCEPT"]}}
    return {"enabled": True, "iptables": tables, "ip6tables": {}, "ipset": {}, "ebtables": {}, **changed}


@pytest.mark.parametrize("what", sorted(LINES))
def test_lines_that_are_more_than_a_rule_are_refused(what: str) -> None:
    xtables.wanted(_artefact())
    with pytest.raises(InternalError):
        xtables.wanted(_artefact(iptables={"filter": {CHAIN: [LINES[what]]}}))
    with pytest.raises(InternalError):
        xtables.wanted(_artefact(ebtables={"PVEFW-FORWARD": [LINES[what].replace(CHAIN, "PVEFW-FORWARD")]}))


@pytest.mark.parametrize("chain", ["INPUT", "FORWARD", "DOCKER-USER", "PVEFW-X y", "PVEFW-" + "x" * 40, ""])
def test_foreign_chains_are_refused(chain: str) -> None:
    with pytest.raises(InternalError):
        xtables.wanted(_artefact(iptables={"filter": {chain: []}}))


@pytest.mark.parametrize(
    "lines",
    [
        ["create PVEFW-s hash:net family inet hashsize 64 maxelem 64 bucketsize 12 -file /etc/x"],
        ["create PVEFW-s hash:net family inet hashsize 64 maxelem 64 bucketsize 12", "add PVEFW-s 1.2.3.4 -output x"],
        ["create PVEFW-s hash:net family inet hashsize 64 maxelem 64 bucketsize 12", "destroy other"],
        ["create other hash:net family inet hashsize 64 maxelem 64 bucketsize 12"],
    ],
)
def test_sets_that_are_more_than_sets_are_refused(lines: list[str]) -> None:
    with pytest.raises(InternalError):
        xtables.wanted(_artefact(ipset={lines[0].split()[1]: lines}))


@pytest.mark.parametrize(
    "command",
    [
        '{"add": {"rule": {"family": "ip", "table": "filter", "chain": "INPUT", "expr": []}}}',
        '{"flush": {"ruleset": null}}',
        '{"list": {"ruleset": {}}}',
        '{"add": {"flowtable": {"family": "inet", "table": "pvefw", "name": "x"}}}',
        '{"add": {"chain": {"family": "bridge", "table": "pvefw", "name": "x\\n"}}}',
        '{"add": {"chain": {"family": "bridge", "table": "pvefw", "name": 7}}}',
        '{"add": {"rule": {"family": "bridge", "table": "pvefw"}}}',
        "{",
    ],
)
def test_commands_of_nft_about_other_tables_are_refused(command: str) -> None:
    with pytest.raises(InternalError):
        Reader().wanted([command])


@pytest.mark.parametrize("table", ["pvefw", "filter"])
def test_hardening_of_another_table_is_refused(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardening, "change", lambda _: "something")
    rule = {"family": "bridge", "table": table, "chain": "c", "comment": "", "expr": []}
    with pytest.raises(InternalError):
        hardening.load(json.dumps({"nftables": [{"add": {"rule": rule}}]}))


# --- its limits in the environment --------------------------------------------------------------------------------

NO_NUMBERS = ["²", "٣", "9" * 5000, "-1", "0", "nan", "inf", "1e3", "0x10", "1_000", " 5", "\x1b[2J"]


@pytest.mark.parametrize("name", ["PVEFW_COMPILER_MEMORY", "PVEFW_COMPILER_SECONDS", "PVEFW_FILE_TIMEOUT"])
def test_limit_that_is_not_a_number_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    configure(tmp_path)
    for text in NO_NUMBERS:
        monkeypatch.setenv(name, text)
        with pytest.raises(UsageError, match=f"^{name}="), Compiler(source(tmp_path), "nft") as made:
            made.find()
    monkeypatch.setenv(name, "")
    with Compiler(source(tmp_path), "nft") as made:
        assert made.find().desired.enabled


def test_connection_of_the_environment_has_ports(tmp_path: Path) -> None:
    for port in (*NO_NUMBERS[:3], "65536"):
        environment = {"SSH_CONNECTION": f"10.0.0.9 {port} 10.0.0.1 22"}
        assert connections.sessions(tmp_path, environment, own=frozenset({(4, 0x0A000001)})) == []
