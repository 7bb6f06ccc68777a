"""Feed pvefw damaged input, for a bounded time and with a fresh seed: no traceback, no hang, nothing that opens.

    python scripts/fuzz.py --seconds 60
    python scripts/fuzz.py --inputs 100000 --seed 7 --save tests/fuzz

Kinds of input: firewall files and guest configs, command lines, saved rulesets, and records of the host side. What
fails is written to ``--save`` as a file that ``tests/test_fuzz.py`` runs from then on. Nothing of the machine is
changed: no command that applies anything is run. Exit status: 0 nothing failed, 1 something did.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pvefw_nft.cli import main
from pvefw_nft.errors import HostError, PvefwError
from pvefw_nft.host import control, record, settings, state
from pvefw_nft.pipeline import Source, compile_root

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Case: TypeAlias = "dict[str, Any]"
"""One input: its ``kind``, and what is fed."""

LONGEST = 30  # seconds for one input
FILES = {
    "firewall/cluster.fw": "[OPTIONS]\nenable: 1\npolicy_in: DROP\n[ALIASES]\nadmin 10.0.0.7\n[IPSET friends]\n"
    "10.1.0.0/16\n!10.1.2.3\n[RULES]\nIN SSH(ACCEPT) -source +friends -log info\n"
    "IN ACCEPT -p tcp -dport 80,443 -i vmbr0\n"
    "[group web]\nIN HTTP(ACCEPT)\nOUT REJECT -p icmp -icmp-type echo-request\n",
    "nodes/n/host.fw": "[OPTIONS]\nprotection_synflood: 1\nnf_conntrack_max: 262144\n[RULES]\n"
    "IN ACCEPT -p udp -dport 53\n",
    "firewall/100.fw": "[OPTIONS]\nenable: 1\nmacfilter: 1\nipfilter: 1\n[RULES]\nGROUP web -i net0\n"
    "IN ACCEPT -p tcp -dport 22\n",
    "nodes/n/qemu-server/100.conf": "name: a\nnet0: virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1,tag=5\n",
    "firewall/101.fw": "[OPTIONS]\nenable: 1\npolicy_out: DROP\n[IPSET ipfilter-net0]\n10.0.0.9\n[RULES]\n"
    "OUT ACCEPT -dest admin\n",
    "nodes/n/qemu-server/101.conf": "net0: virtio=BC:24:11:00:00:02,bridge=vmbr0,firewall=1\n"
    "net1: e1000,bridge=vmbr1\n",
}
TENANT = ("firewall/101.fw", "nodes/n/qemu-server/101.conf")
SAVED = (
    "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [1:60]\n:X - [0:0]\n-A INPUT -i lo -j ACCEPT\n"
    "-A INPUT -p tcp -m multiport --dports 22,80 -m conntrack --ctstate NEW -j X\n-A X -s 10.0.0.0/8 -j RETURN\n"
    "-A X -j REJECT --reject-with icmp-port-unreachable\nCOMMIT\n"
)
WORDS = (
    "compile",
    "check",
    "simulate",
    "compare",
    "--backend",
    "nft",
    "iptables",
    "--format",
    "json",
    "text",
    "--from",
    "outside",
    "--to",
    "vm100",
    "-p",
    "tcp",
    "--dport",
    "22",
    "--root",
    "--node",
    "n",
    "--help",
    "-o",
    "--local-network",
    "10.0.0.0/8",
    "--",
    "-1",
    "",
    "\x1b[31m",
    "x" * 300,
    "0x7fffffffffffffff",
    "--source",
    "::1",
    "vm4294967296",
)
PIECES = (
    "\0",
    "\n",
    "\r\n",
    "[",
    "]",
    "[RULES]\n",
    "[OPTIONS]\n",
    "enable: 0\n",
    "-",
    "+",
    "!",
    ":",
    "/",
    ",",
    "=",
    "#",
    "\t",
    "9" * 30,
    "-1",
    "\u202e",
    "\x1b]0;x\x07",
    "é",
    "A" * 5000,
    '"',
    "'",
    "$(id)",
    "`",
    "\\",
    "{",
    "}",
    "null",
    "1e999",
)


def mutated(chance: random.Random, text: str) -> str:
    """Return a text with some pieces inserted, removed, doubled or moved."""
    for _ in range(chance.randint(1, 6)):
        at = chance.randint(0, len(text))
        end = min(len(text), at + chance.randint(0, 40))
        match chance.randint(0, 5):
            case 0:
                text = text[:at] + chance.choice(PIECES) + text[at:]
            case 1:
                text = text[:at] + text[end:]
            case 2:
                text = text[:end] + text[at:end] * chance.randint(1, 3) + text[end:]
            case 3:
                text = text[:at]
            case 4:
                lines = text.splitlines(keepends=True)
                chance.shuffle(lines)
                text = "".join(lines)
            case _:
                text = text[:at] + chr(chance.randint(1, 0x2FF)) + text[end:]
    return text


def made(chance: random.Random) -> Case:
    """Return an input of a random kind."""
    kind = chance.choice(("files", "files", "tenant", "records", "records", "saved", "command"))
    match kind:
        case "files":
            changed = chance.sample(sorted(FILES), chance.randint(1, 3))
            return {"kind": kind, "files": {name: mutated(chance, FILES[name]) for name in changed}}
        case "tenant":
            return {"kind": kind, "files": {name: mutated(chance, FILES[name]) for name in TENANT}}
        case "records":
            return {"kind": kind, "files": {name: mutated(chance, text) for name, text in records().items()}}
        case "saved":
            return {"kind": kind, "text": mutated(chance, SAVED)}
        case _:
            return {"kind": kind, "words": [chance.choice(WORDS) for _ in range(chance.randint(1, 8))]}


def records() -> dict[str, str]:
    """Return sound records of the host side, by name."""
    digest = record.desired("nft", ['{"x": 1}'], enabled=True)
    head = {"version": 3, "backend": "nft", "enabled": True, "fingerprint": digest.fingerprint, "conntrack": [1, 2, 3]}
    return {
        "running.ruleset": json.dumps(head) + '\0{"x": 1}',
        "held.json": '{"fingerprint": "x"}',
        "pending.json": '{"token": "a", "deadline": 5.5, "was_running": true}',
        "memory.json": '{"identity": "x", "record": null, "witness": ["b", 1, 2, ""], '
        '"names": {}, "chains": {"a": ["b", "c"]}}',
        "sysctls.json": '{"net/ipv4/ip_forward": {"before": "0", "ours": "1"}}',
        "inputs.json": '{"question": [], "identity": "x", "diagnostics": [], "answers": [["text", "/x", "d"]]}',
    }


# --- feeding ------------------------------------------------------------------------------------------------


def problem_of(case: Case) -> str | None:
    """Feed one input, and return what is wrong with what came of it; None: nothing."""
    signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(LONGEST)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _FEED[case["kind"]](case, Path(folder))
    except TimeoutError:
        return f"it took longer than {LONGEST} s"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)


def _hangs(*_: object) -> None:
    raise TimeoutError


def _write(folder: Path, files: dict[str, str]) -> None:
    for name, text in {**FILES, **files}.items():
        path = folder / "etc/pve" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))


def _feed_files(case: Case, folder: Path) -> str | None:
    _write(folder, case["files"])
    for backend in ("iptables", "nft"):
        with contextlib.suppress(PvefwError):
            compile_root(Source(folder, "n", lambda: "10.0.0.0/8", cautious=True), backend)
    return _run(["check", "--root", str(folder), "--node", "n", "--local-network", "10.0.0.0/8"])


def _feed_tenant(case: Case, folder: Path) -> str | None:
    """Whatever a guest's own files hold, the firewall is on and the other guest keeps its rules."""
    chains = []
    nothing: dict[str, str] = {}
    for files in (nothing, case["files"]):
        _write(folder, files)
        made_of = compile_root(Source(folder, "n", lambda: "10.0.0.0/8", cautious=True), "iptables")
        if not made_of.checked.ruleset.enabled:
            return "a guest's file switched the firewall off"
        found = json.loads("".join(made_of.artefact.loadable()))["iptables"]["filter"]
        chains.append({name: rules for name, rules in found.items() if name.startswith("tap100i0-")})
    return None if chains[0] == chains[1] else "a guest's file changed the rules of another guest"


def _feed_records(case: Case, folder: Path) -> str | None:
    (folder / "pvefw").mkdir()
    os.environ["PVEFW_RUN_DIRECTORY"], os.environ["PVEFW_STATE_DIRECTORY"] = str(folder), str(folder / "pvefw")
    for name, text in case["files"].items():
        (folder / "pvefw" / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    reads: Sequence[Callable[[], object]] = (
        lambda: record.load(record.running_path()),
        record.read_memory,
        control.pending,
        settings.read_remembered,
        lambda: control.is_held_back(record.desired("nft", ["{}"], enabled=True)),
    )
    for read in reads:
        with contextlib.suppress(HostError):
            read()
    state.take_warnings()
    return None


def _feed_saved(case: Case, folder: Path) -> str | None:
    (folder / "a.v4").write_bytes(case["text"].encode("utf-8", "surrogatepass"))
    (folder / "b.v4").write_text(SAVED)
    return _run(["compare", str(folder / "a.v4"), str(folder / "b.v4")])


def _feed_command(case: Case, folder: Path) -> str | None:
    os.chdir(folder)
    try:
        return _run(case["words"])
    finally:
        os.chdir("/")


def _run(arguments: Sequence[str]) -> str | None:
    """Run a command that only reads, and return what is wrong with how it ended."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main(arguments)
        except SystemExit as end:
            if end.code not in (None, 0, 1, 2, 3, 5):
                return f"it ended with {end.code!r}"
    text = said.getvalue()
    bad = next((word for word in ("Traceback", "pvefw failed", "cannot print") if word in text), None)
    return None if bad is None else text[text.index(bad) :][:500]


_FEED: dict[str, Callable[[Case, Path], str | None]] = {
    "files": _feed_files,
    "tenant": _feed_tenant,
    "records": _feed_records,
    "saved": _feed_saved,
    "command": _feed_command,
}


def fuzz() -> int:
    """Run from the command line; return the exit status."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=float("inf"), help="end after so many seconds")
    options.add_argument("--inputs", type=int, default=100_000, help="end after so many inputs (100000)")
    options.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    options.add_argument("--save", type=Path, help="folder for inputs that fail")
    given = options.parse_args()
    begun = time.monotonic()
    kinds: Counter[str] = Counter()
    failed = 0
    while sum(kinds.values()) < given.inputs and time.monotonic() - begun < given.seconds:
        number = sum(kinds.values())
        case = made(random.Random(f"{given.seed} {number}"))  # noqa: S311 - repeatable
        kinds[case["kind"]] += 1
        problem = problem_of(case)
        if problem is not None:
            failed += 1
            sys.stdout.write(f"seed {given.seed}, input {number}: {problem}\n{json.dumps(case)[:1000]}\n")
            if given.save is not None:
                given.save.mkdir(parents=True, exist_ok=True)
                (given.save / f"{given.seed}-{number}.json").write_text(json.dumps(case, indent=1))
    seconds = time.monotonic() - begun
    counts = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    sys.stdout.write(
        f"seed {given.seed}: {sum(kinds.values())} inputs ({counts}) in {seconds:.0f} s, {failed} failed\n"
    )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(fuzz())
