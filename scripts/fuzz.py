"""Feed pvefw damaged input, for a bounded time and with a fresh seed: no traceback, no hang, nothing that opens.

    python scripts/fuzz.py --seconds 60
    python scripts/fuzz.py --inputs 100000 --seed 7 --save tests/fuzz

Kinds of input: firewall files and guest configs, command lines, saved rulesets, and records of the host side. What
fails is written to ``--save`` as a file that ``tests/test_fuzz.py`` runs from then on. Nothing of the machine is
changed: no command that applies anything is run. Exit status: 0 nothing failed, 1 something did.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import copy
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pvefw_nft.cli import main
from pvefw_nft.errors import HostError, PvefwError
from pvefw_nft.host import settings
from pvefw_nft.host.records import record, state
from pvefw_nft.host.records.bases import file_version
from pvefw_nft.host.records.pending import is_held_back, pending
from pvefw_nft.pipeline import BACKENDS, Source, compile_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pvefw_nft.pipeline import Compiled

Case: TypeAlias = "dict[str, Any]"
"""One input: its ``kind``, and the data to feed."""

_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - files in it get random names
"""Where the inputs are written: each is a dozen files, which a disk would take longer for than pvefw does."""
_SAVED_XTABLES = ("rules.v4", "rules.v6", "ipset", "ebtables")
_IN_SAME_FOLDER = ("files", "tenant", "saved")
LONGEST = 30  # seconds of the processor for one input: other work on the machine must not count
_WAITS = 600  # seconds by the clock, for an input that has something wait for ever
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
SAVED = {
    "rules.v4": "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -i fwbr+ -j CT --notrack\nCOMMIT\n"
    "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [1:60]\n:X - [0:0]\n-A INPUT -i lo -j ACCEPT\n"
    "-A INPUT -p tcp -m multiport --dports 22,80:90 -m conntrack --ctstate NEW -j X\n-A X -s 10.0.0.0/8 -j RETURN\n"
    "-A X -m set --match-set friends src -m mark ! --mark 0x1/0x1 -j MARK --set-xmark 0x1/0x1\n"
    "-A FORWARD -m physdev --physdev-in tap+ --physdev-is-bridged -p icmp -m icmp --icmp-type 8 -g X\n"
    '-A X -m limit --limit 1/sec --limit-burst 5 -j NFLOG --nflog-prefix ":0:6:X: "\n'
    "-A X -j REJECT --reject-with icmp-port-unreachable\nCOMMIT\n",
    "rules.v6": "*filter\n:INPUT DROP [0:0]\n-A INPUT -s fe80::/10 -p ipv6-icmp -m icmp6 --icmpv6-type 135 -j ACCEPT\n"
    "COMMIT\n",
    "ipset": "create friends hash:net family inet hashsize 64 maxelem 64\nadd friends 10.1.0.0/16\n"
    "add friends 10.1.2.3 nomatch\n",
    "ebtables": "*filter\n:FORWARD ACCEPT\n:A DROP\n-A FORWARD -i tap1+ -j A\n-A A -s ! bc:24:11:0:0:1 -j DROP\n"
    "-A A -p ARP --arp-ip-src 10.0.0.1 -j RETURN\n",
    "nft.json": json.dumps(
        {
            "nftables": [
                {"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
                {"table": {"family": "inet", "name": "t", "handle": 1}},
                {
                    "chain": {
                        "family": "inet",
                        "table": "t",
                        "name": "in",
                        "handle": 1,
                        "type": "filter",
                        "hook": "input",
                        "prio": 0,
                        "policy": "drop",
                    }
                },
                {
                    "set": {
                        "family": "inet",
                        "name": "s",
                        "table": "t",
                        "type": "ipv4_addr",
                        "handle": 2,
                        "flags": ["interval"],
                        "elem": [{"prefix": {"addr": "10.0.0.0", "len": 8}}, {"range": ["11.0.0.1", "11.0.0.9"]}],
                    }
                },
                {
                    "rule": {
                        "family": "inet",
                        "table": "t",
                        "chain": "in",
                        "handle": 3,
                        "expr": [
                            {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "eth*"}},
                            {
                                "match": {
                                    "op": "==",
                                    "left": {"payload": {"protocol": "ip", "field": "saddr"}},
                                    "right": "@s",
                                }
                            },
                            {
                                "match": {
                                    "op": "in",
                                    "left": {"ct": {"key": "state"}},
                                    "right": ["established", "related"],
                                }
                            },
                            {"counter": {"packets": 0, "bytes": 0}},
                            {"vmap": {"key": {"meta": {"key": "mark"}}, "data": {"set": [[1, {"accept": None}]]}}},
                            {"reject": {"type": "icmpx", "expr": "port-unreachable"}},
                        ],
                    }
                },
            ]
        }
    ),
}
WORDS = (
    "explain",
    "localnet",
    "nft:.",
    "iptables:.",
    "save:rules.v4",
    "nft-json:nft.json",
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
_WHERE = ("--root", ".", "--node", "n", "--local-network", "10.0.0.0/8")
COMMANDS = (
    ("compile", *_WHERE, "--backend", "nft", "--format", "json", "-o", "made"),
    ("check", *_WHERE, "--format", "sarif"),
    ("simulate", "--from", "outside", "--to", "vm100", "-p", "tcp", "--dport", "22", *_WHERE, "--source", "10.0.0.1"),
    ("simulate", "--tests", "rules.v4", *_WHERE),
    ("compare", "nft:.", "iptables:.", *_WHERE, "--max-time", "5"),
    ("explain", "option-value"),
)
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1 << 70,
    1e308,
    float("nan"),
    "",
    "x" * 3000,
    "\0",
    "\ud800",
    [],
    {},
    [[[]]],
    {"": None},
)
"""Values of the wrong type or range, for use in JSON documents."""
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


def odd(chance: random.Random, text: str) -> str:
    """Return a JSON document with some values left out, doubled or of another type. Other text is mutated."""
    text, between, rest = text.partition("\0")  # of a record of a ruleset: its head
    try:
        document = json.loads(text)
    except ValueError:
        return mutated(chance, text + between + rest)
    for _ in range(chance.randint(1, 3)):
        places = list(_places(document))
        if not places:
            return json.dumps(chance.choice(ODD)) + between + rest
        holder, key = chance.choice(places)
        match chance.randint(0, 3):
            case 0:
                del holder[key]
            case 1:
                other_holder, other_key = chance.choice(places)
                holder[key] = copy.deepcopy(other_holder[other_key])
            case 2 if isinstance(holder, dict):
                holder[chance.choice(("", "x", "drop", "jump", "set", "\0"))] = holder.pop(key)
            case _:
                holder[key] = copy.deepcopy(chance.choice(ODD))
    return json.dumps(document) + between + rest


def _places(value: Any) -> Iterator[tuple[Any, Any]]:  # noqa: ANN401 - JSON
    """Yield each list or object of a document with each of its indexes or names."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def made(chance: random.Random) -> Case:
    """Return an input of a random kind."""
    kind = chance.choice(("files", "files", "tenant", "records", "records", "saved", "command"))
    match kind:
        case "files":
            changed = chance.sample(sorted(FILES), chance.randint(1, 3))
            files = {name: mutated(chance, FILES[name]) for name in changed}
            return {"kind": kind, "files": files, "way": chance.choice((*BACKENDS, "check"))}
        case "tenant":
            return {"kind": kind, "files": {name: mutated(chance, FILES[name]) for name in TENANT}}
        case "records":
            damage = chance.choice((mutated, odd))
            damaged = {
                name: damage(chance, text) if chance.random() < 0.5 else text for name, text in records().items()
            }
            return {"kind": kind, "files": damaged}
        case "saved":
            name = chance.choice(sorted(SAVED))
            damage = odd if name == "nft.json" and chance.random() < 0.8 else mutated
            text = damage(chance, SAVED[name])
            assume = chance.choice((None, "both", "match"))
            return {"kind": kind, "name": name, "text": text, "assume": assume, "compare": chance.random() < 0.1}
        case _:
            words = [chance.choice(WORDS) for _ in range(chance.randint(0, 8))]
            if chance.random() < 0.3:
                return {"kind": kind, "words": words}
            sound = list(chance.choice(COMMANDS))
            at = chance.randint(1, len(sound))
            return {"kind": kind, "words": [*sound[:at], *words[:3], *sound[at + chance.randint(0, 2) :]]}


_VERSION = "VERSION"
"""The placeholder for the version of the file that differences belong to."""


def records() -> dict[str, str]:
    """Return sound records of the host side, by name."""
    pieces = ['{"x": 1}', '{"y": 2}', '{"z": 3}']
    base = "\0".join(pieces)
    name = f"base.{hashlib.sha256(base.encode()).hexdigest()[:32]}"
    digest = record.desired("nft", ['{"x": 1}', '{"new": 1}', '{"z": 3}'], enabled=True)
    head = {"version": 4, "backend": "nft", "enabled": True, "fingerprint": digest.fingerprint, "conntrack": [1, 2, 3]}
    head |= {"hardening": "", "base": name, "parts": [[0, 1], 1, [2, 3]]}
    before = {
        **head,
        "version": 3,
        "base": None,
        "fingerprint": record.desired("nft", pieces, enabled=True).fingerprint,
    }
    return {
        name: base,
        "running.ruleset": json.dumps(head) + '\0{"new": 1}',
        "confirmed.ruleset": "\0".join([json.dumps(before), *pieces]),
        "held.json": '{"fingerprint": "x"}',
        "pending.json": '{"token": "a", "deadline": 5.5, "was_running": true}',
        "memory.json": '{"identity": "x", "record": null, "witness": ["b", 1, 2, ""], '
        '"names": {}, "chains": {"a": ["b", "c"], "d": ["e", "f"]}}',
        # of the file that is written beside it
        "memory.differences.json": f'{{"of": {_VERSION}, "values": {{"identity": "y"}}, '
        '"entries": {"chains": {"set": {"a": ["g", "h"]}, "gone": ["d"]}}, "gone": []}',
        "sysctls.json": '{"net/ipv4/ip_forward": {"before": "0", "ours": "1"}}',
        "inputs.json": '{"question": [], "identity": "x", "diagnostics": [], "answers": {"text\\n/x": "d"}}',
    }


# --- feeding ------------------------------------------------------------------------------------------------


def problem_of(case: Case) -> str | None:
    """Feed one input. Return the fault in the result; None: there is none."""
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, _hangs)
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    signal.alarm(_WAITS)
    try:
        if case["kind"] in _IN_SAME_FOLDER:
            return _FEED[case["kind"]](case, _same_folder())
        with tempfile.TemporaryDirectory(dir=_MEMORY) as folder:
            return _FEED[case["kind"]](case, Path(folder))
    except TimeoutError:
        return f"it took longer than {LONGEST} s of the processor, or {_WAITS} s"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)


def _hangs(*_: object) -> None:
    raise TimeoutError


@cache
def _same_folder() -> Path:
    """Return a folder for all inputs that are only read: to make and remove a dozen files takes longer than that."""
    made = Path(tempfile.mkdtemp(dir=_MEMORY))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


_written: dict[Path, bytes] = {}


def _write(folder: Path, files: dict[str, str]) -> None:
    for name, text in {**FILES, **files}.items():
        _write_file(folder / "etc/pve" / name, text)


def _write_file(path: Path, text: str) -> None:
    """Write a file, unless it is there as it should be."""
    data = text.encode("utf-8", "surrogatepass")
    if _written.get(path) == data and path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    _written[path] = data


def _feed_files(case: Case, folder: Path) -> str | None:
    _write(folder, case["files"])
    if case["way"] == "check":
        return _run(["check", "--root", str(folder), "--node", "n", "--local-network", "10.0.0.0/8"])
    with contextlib.suppress(PvefwError):
        for _ in compile_root(_source(folder), case["way"]).artefact.loadable():
            pass
    return None


def _feed_tenant(case: Case, folder: Path) -> str | None:
    """Whatever a guest's own files hold, the firewall is on and the other guest keeps its rules."""
    _write(folder, case["files"])
    made_of = compile_root(_source(folder), "iptables")
    if not made_of.checked.ruleset.enabled:
        return "a guest's file switched the firewall off"
    if _other_guests_chains(made_of) != _undamaged_chains():
        return "a guest's file changed the rules of another guest"
    return None


@cache
def _undamaged_chains() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=_MEMORY) as folder:
        _write(Path(folder), {})
        return _other_guests_chains(compile_root(_source(Path(folder)), "iptables"))


def _other_guests_chains(made_of: Compiled) -> dict[str, Any]:
    found = json.loads("".join(made_of.artefact.loadable()))["iptables"]["filter"]
    return {name: rules for name, rules in found.items() if name.startswith("tap100i0-")}


def _source(folder: Path) -> Source:
    return Source(folder, "n", lambda: "10.0.0.0/8", cautious=True)


def _feed_records(case: Case, folder: Path) -> str | None:
    (folder / "pvefw").mkdir()
    os.environ["PVEFW_RUN_DIRECTORY"], os.environ["PVEFW_STATE_DIRECTORY"] = str(folder), str(folder / "pvefw")
    for name, text in case["files"].items():
        (folder / "pvefw" / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    differences = folder / "pvefw/memory.differences.json"
    version = json.dumps(file_version(folder / "pvefw/memory.json"))
    if differences.exists():
        differences.write_bytes(differences.read_bytes().replace(_VERSION.encode(), version.encode()))
    reads: Sequence[Callable[[], object]] = (
        lambda: record.load(record.running_path()),
        lambda: record.load(record.confirmed_path()),
        record.read_memory,
        pending,
        settings.read_remembered,
        lambda: is_held_back(record.desired("nft", ["{}"], enabled=True)),
    )
    for read in reads:
        with contextlib.suppress(HostError):
            read()
    state.take_warnings()
    return None


def _feed_saved(case: Case, folder: Path) -> str | None:
    _write(folder, {})
    for name, text in {**SAVED, case["name"]: case["text"]}.items():
        _write_file(folder / name, text)
    is_nft = case["name"] == "nft.json"
    files = f"nft-json:{folder}/nft.json" if is_nft else "save:" + ",".join(f"{folder}/{n}" for n in _SAVED_XTABLES)
    where = ["--root", str(folder), "--node", "n", "--local-network", "10.0.0.0/8"]
    choice = ["--assume-unknown", case["assume"]] if case["assume"] else []
    if case["compare"]:
        return _run(["compare", files, f"iptables:{folder}", *where, *choice])
    question = ["--from", "outside", "--to", "vm100", "-p", "tcp", "--dport", "22"]
    return _run(["simulate", *question, "--ruleset", files, *where, *choice])


def _feed_command(case: Case, folder: Path) -> str | None:
    _write(folder, {})
    for name, text in SAVED.items():
        _write_file(folder / name, text)
    os.chdir(folder)
    try:
        return _run(case["words"])
    finally:
        os.chdir("/")


def _run(arguments: Sequence[str]) -> str | None:
    """Run a command that only reads. Return the fault in its end; None: there is none."""
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
