"""A ruleset loaded as nft's text is in the kernel what it is when loaded as JSON, and errors say the same.

Where the kernel cannot track connections on bridges, rules that need it are replaced (``benchmarks/cut_down.py``).
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings

from benchmarks.cut_down import cut_command
from pvefw_nft.backends.nft.syntax.text import commands as writer
from pvefw_nft.errors import ConfigurationError, HostError, InternalError
from pvefw_nft.host import lock
from pvefw_nft.host.apply import apply_nft, nft_text, nft_text_program
from pvefw_nft.host.apply.nftables_state import Nftables, Reader, listing, read_kernel
from pvefw_nft.pipeline import Source, compile_root
from tests.property.test_untrusted_input import FILES, REPEATABLE

from .network import configure, has_bridge_conntrack
from .rulesets import pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pvefw_nft.host.apply.nftables_state import Command
    from tests.property.test_untrusted_input import Files

    from .conftest import Namespace

pytest.importorskip("nftables")

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = 40
NEVER = 10**9
ROOTS = sorted(
    root
    for folder in ("examples", "tests/cases", "tests/kernel/evasion")
    for root in (REPOSITORY / folder).iterdir()
    if (root / "etc").is_dir()
)


@pytest.fixture
def _nftables(host: Namespace) -> None:
    try:
        Nftables().run([add("table", name="probe")])
        Nftables().run([{"delete": {"table": {"family": "bridge", "name": "probe"}}}])
    except HostError as error:
        pytest.skip(f"no nftables of family bridge here: {error.message}")


pytestmark = pytest.mark.usefixtures("_nftables")


def add(kind: str, **body: Any) -> Command:  # noqa: ANN401 - JSON
    return {"add": {kind: {"family": "bridge", **body}}}


def commands_of(root: Path, node: str = "") -> list[Command]:
    """Return the commands of a compile, such as this kernel takes."""
    nodes = sorted(path.name for path in (root / "etc/pve/nodes").glob("*"))
    source = Source(root, node or (nodes[0] if nodes else "n1"), lambda: "192.168.1.0/24")
    commands: list[Command] = json.loads("".join(compile_root(source, "nft").artefact.json()))["nftables"]
    if has_bridge_conntrack():
        return commands
    return [cut_command(command) for command in commands if "ct helper" not in command.get("add", {})]


def load(commands: list[Command], many: int) -> None:
    """Load a ruleset as a start does; ``many`` decides whether as text."""
    target = Reader().wanted(pieces({"nftables": commands}))
    apply_nft.execute(apply_nft.replacing(read_kernel(), target), Nftables(many))


def listed() -> list[Any]:
    """Return all that the kernel holds, as nft lists it; the handles of two loads are not the same."""
    output = subprocess.run(["nft", "-j", "list", "ruleset"], capture_output=True, check=True).stdout
    found: list[Any] = json.loads(re.sub(rb'"handle": \d+', b'"handle": 0', output))["nftables"]
    return found


class LackingError(Exception):
    """This kernel cannot hold the ruleset."""


def loaded_both_ways(commands: list[Command]) -> Iterator[tuple[Any, Any]]:
    """Load a ruleset as JSON and as text; yield what the kernel then lists, and digests of what it answers."""
    for many in (NEVER, 0):
        try:
            load(commands, many)
        except HostError as error:
            if many == NEVER:
                raise LackingError(error.message) from error
            raise
        yield (
            listed(),
            {family: listing(family).digests for family in ("bridge", "inet") if family in read_kernel()},
        )
        apply_nft.execute(apply_nft.replacing(read_kernel(), {}), Nftables())


@pytest.mark.parametrize("root", ROOTS, ids=lambda root: root.name)
def test_each_case_is_loaded_alike(root: Path) -> None:
    try:
        from_json, from_text = loaded_both_ways(commands_of(root))
    except LackingError as error:
        pytest.skip(f"not with this kernel: {error}")
    assert from_text == from_json
    assert len(from_json[0]) > 10 or "off" in root.name


def test_networks_that_neighbour_advertisements_may_name_are_loaded_alike(tmp_path: Path) -> None:
    configure(tmp_path)
    with (tmp_path / "etc/pve/firewall/100.fw").open("a") as file:
        file.write("[IPSET ipfilter-net0]\n2001:db8::/48\n10.0.0.100\n")
    commands = commands_of(tmp_path)
    assert any("range" in text and "0x20010db8" in text for text in map(json.dumps, commands))
    from_json, from_text = loaded_both_ways(commands)
    assert from_text == from_json


def test_any_ruleset_is_loaded_alike(tmp_path: Path) -> None:
    compared = 0

    @settings(REPEATABLE, max_examples=EXAMPLES)
    @given(FILES)
    def load_one(files: Files) -> None:
        nonlocal compared
        files.write(tmp_path)
        try:
            commands = commands_of(tmp_path, "n1")
        except ConfigurationError:
            return
        try:
            from_json, from_text = loaded_both_ways(commands)
        except LackingError:
            return
        assert from_text == from_json
        compared += 1

    load_one()
    assert compared > EXAMPLES // 2


MUTATIONS = [
    (r"\bdrop\b", "accept"),
    (r"!= ", ""),
    (r"jump GROUP-\S+", "return"),
    (r"\bcounter ", ""),
    (r"burst \d+", "burst 7"),
    (r" comment \".*", ""),
    (r"priority -\d+", "priority 7"),
    (r"(tcp dport) \d+", r"\1 4444"),
    (r"\d+ : jump", "4444 : jump"),
]


@pytest.mark.parametrize(("pattern", "instead"), MUTATIONS)
def test_another_text_is_noticed(monkeypatch: pytest.MonkeyPatch, pattern: str, instead: str) -> None:
    """What the kernel lists differs if the writer writes one thing wrong, in whichever example has it."""
    write = writer.command_line
    changed: list[str] = []

    def write_wrong(command: Command) -> str:
        line = write(command)
        wrong = re.sub(pattern, instead, line, count=1)
        changed.extend([line] if wrong != line else [])
        return wrong

    monkeypatch.setattr(writer, "command_line", write_wrong)
    for root in ROOTS:
        try:
            from_json, from_text = loaded_both_ways(commands_of(root))
        except LackingError:
            continue
        except HostError:
            return
        if changed:
            assert from_text != from_json
            return
    pytest.skip("no case has it on this kernel")


def small(*statements: Any, chain: str = "c") -> list[Command]:  # noqa: ANN401 - JSON
    place = {"table": "pvefw-probe"}
    rule = add("rule", **place, chain=chain, expr=list(statements))
    return [add("table", name="pvefw-probe"), add("chain", **place, name=chain), rule]


def keywords() -> list[str]:
    """Return the words of nft's language, as libnftables names them in its errors."""
    library = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    path = re.search(r"libnftables\.so\.1 .*=> (\S+)", library)
    assert path is not None
    return sorted({word.decode() for word in re.findall(rb'\0"([a-z][a-z0-9-]*)"', Path(path[1]).read_bytes())})


def test_a_name_may_be_a_word_of_nft_but_nothing_else() -> None:
    words = keywords()
    assert {"accept", "counter", "helpers", "jump", "table"} <= set(words)
    for word in words:
        place = {"table": "pvefw-probe"}
        source = {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": f"@{word}"}}
        Nftables(0).run(
            [
                add("table", name="pvefw-probe"),
                add("chain", **place, name=word),
                add("chain", **place, name="other"),
                add("set", **place, name=word, type="ipv4_addr"),
                add("map", **place, name=f"{word}-map", type="ifname", map="verdict"),
                add("rule", **place, chain="other", expr=[source, {"jump": {"target": word}}]),
            ]
        )
        found = {kind: body for entry in listed()[1:] for kind, body in entry.items()}
        assert (found["set"]["name"], found["map"]["name"]) == (word, f"{word}-map")
        assert {entry["chain"]["name"] for entry in listed() if "chain" in entry} == {word, "other"}
        assert found["rule"]["expr"] == [source, {"jump": {"target": word}}]
        Nftables().run([{"delete": {"table": {"family": "bridge", "name": "pvefw-probe"}}}])


TOO_LONG = {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "abcdefghijklmnopqrst"}}


def test_an_error_names_the_command_that_the_kernel_refused() -> None:
    with pytest.raises(HostError, match=r'No such file or directory\n  in the command \{"add": \{"rule": .*"nowhere"'):
        Nftables(0).run(small({"jump": {"target": "nowhere"}}))
    assert listed()[1:] == []


def test_an_error_names_the_command_that_libnftables_refused() -> None:
    with pytest.raises(HostError, match=r'maximum length.*\n  in the command \{"add": \{"rule": .*"abcdefghij'):
        Nftables(0).run(small(TOO_LONG))
    assert listed()[1:] == []


def test_a_command_without_text_changes_nothing() -> None:
    with pytest.raises(InternalError, match="no place for"):
        Nftables(0).run(small({"xt": None}))
    assert listed()[1:] == []


@pytest.mark.parametrize("character", [chr(code) for code in range(32, 127) if chr(code) not in '"$'])
def test_quoted_text_is_loaded_as_it_is(character: str) -> None:
    said = f"a{character}b{character}{character}"
    rule = small({"log": {"prefix": said, "group": 0}})
    rule[-1]["add"]["rule"]["comment"] = said
    Nftables(0).run(rule)
    (loaded,) = (entry["rule"] for entry in listed() if "rule" in entry)
    assert loaded["comment"] == said
    assert loaded["expr"] == [{"log": {"prefix": said, "group": 0}}]


# --- the process that loads ---------------------------------------------------------------------------------


def is_loaded() -> bool:
    return any("chain" in entry for entry in listed())


def test_without_another_process_it_is_loaded_in_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BlockingIOError

    monkeypatch.setattr(nft_text, "_start", refuse)
    Nftables(0).run(small({"accept": None}))
    assert is_loaded()
    with pytest.raises(HostError, match=r"maximum length.*\n  in the command"):
        Nftables(0).run(small(TOO_LONG))


def started_and(action: Callable[[subprocess.Popen[bytes]], object]) -> Callable[..., subprocess.Popen[bytes]]:
    """Return what starts the process, and then does something to it."""
    start = nft_text._start

    def start_and(path: str, descriptor: int) -> subprocess.Popen[bytes]:
        process = start(path, descriptor)
        action(process)
        return process

    return start_and


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Have an interrupt raise KeyboardInterrupt: a shell has processes in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupt_waits_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft_text, "_start", started_and(lambda _: os.kill(os.getpid(), signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt):
        Nftables(0).run(small({"accept": None}))
    assert is_loaded()


def test_if_it_is_killed_the_ruleset_is_loaded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    root = REPOSITORY / "examples/minimal"
    target = Reader().wanted(pieces({"nftables": commands_of(root)}))
    planned = apply_nft.replacing(read_kernel(), target)
    with monkeypatch.context() as patch:
        patch.setattr(nft_text, "_start", started_and(lambda process: process.kill()))
        with pytest.raises(apply_nft.NotAsLoadedError, match="ended by signal 9"):
            apply_nft.execute(planned, Nftables(0))
    apply_nft.execute(apply_nft.replacing(read_kernel(), target), Nftables(0))
    assert is_loaded()


def test_it_holds_the_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nls -l /proc/self/fd\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert str(lock.lock_path()) not in nft_text.run(["list tables"])
    with lock.hold():
        assert str(lock.lock_path()) in nft_text.run(["list tables"])
    assert lock.held() == ()


PARENT = """
import os, subprocess, sys, time
program, fifo = sys.argv[1:]
child = subprocess.Popen([sys.executable, "-I", "-S", program, fifo, str(os.getpid())])
while "libnftables" not in open(f"/proc/{child.pid}/maps").read():
    time.sleep(0.01)
time.sleep(0.2)
print(child.pid, flush=True)
os._exit(child.poll() is not None)
"""


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)  # it waits for somebody to write
    command = [sys.executable, "-c", PARENT, nft_text_program.__file__, str(fifo)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=30)
    stat = Path(f"/proc/{int(done.stdout)}/stat")
    deadline = time.monotonic() + 10
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "ZX":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_loads_nothing_for_another_process(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("add table inet mine\n")
    command = [sys.executable, "-I", "-S", nft_text_program.__file__, str(file)]
    assert subprocess.run([*command, "1"], check=False).returncode == 1
    assert listed()[1:] == []
    assert subprocess.run([*command, str(os.getpid())], check=False).returncode == 0
    assert listed()[1:] != []
