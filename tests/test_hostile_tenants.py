"""A tenant who may edit the firewall file of one guest: 500 files, each beside ten guests of others.

Whatever the file says, host and other guests get the same rules, byte for byte, in both backends; and the tenant's own
guest is closed, or has at least the restrictions of the file's good lines.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.app import desired
from pvefw_nft.pipeline import BACKENDS, Source
from tests.support import VM

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support import MakeRoot

GOOD = """[OPTIONS]
enable: 1
[ALIASES]
office 10.20.0.0/16
[IPSET clients]
10.1.0.0/24
office
[RULES]
IN SSH(ACCEPT) -source +clients
IN DROP -p tcp -dport 25
GROUP web
OUT REJECT -dest office
"""

TENANT = 105
NIC = re.compile(rf"(?<![0-9]){TENANT}i[0-9]")
HEAD = "[OPTIONS]\nenable: 1\npolicy_in: DROP\npolicy_out: DROP\n"
RESTRICTIONS = "[RULES]\nIN DROP -p tcp -dport 25\nOUT DROP -p tcp -dport 25\n"
KEPT = ("-p tcp --dport 25 -j DROP", "-j DROP")
"""Rules that the chains of the tenant's NIC always have: the good lines, and the policies."""

DIGITS = ["²", "1²", "\u0663", "\u0967", "\U0001d7d9", "\u0661:\u0662", "9" * 4301, "0" * 4301 + "1"]
DIGITS += ["-1", "+1", "1_0", "0x10", "1e9", "65536", "0"]
NAMES = [
    "a" * 5000,
    "a" * 64,
    "a" * 65,
    "..",
    "/",
    "../../etc/shadow",
    "dc/",
    "guest/x/y",
    "sdn/",
    "+",
    "++x",
    "{}",
    "%n",
]
TEXTS = [
    *("'", '"', "\\", "`id`", "$(id)", ";", "&&", "|", "!", "*", "-", "--", "-j", "-A INPUT", "%s%n", "~", "<b>"),
    *(
        "-j ACCEPT",
        '" -j ACCEPT',
        "COMMIT",
        "-F INPUT",
        "*filter",
        ":INPUT ACCEPT [0:0]",
        "add rule",
        "flush ruleset",
        "}",
    ),
    *(
        "\x1b[31m",
        "\x0b",
        "\x0c",
        "\x1c",
        "\x85",
        "\u2028",
        "\u202e",
        "\t",
        "\ufeff",
        "\u00a0",
        "\ufffd",
        "\U0010ffff",
        "é" * 300,
    ),
]
VALUES = [*DIGITS, *NAMES, *TEXTS]
LINES = [
    "IN ACCEPT -source {}",
    "IN ACCEPT -source 10.0.0.{}",
    "IN ACCEPT -source 10.0.0.0/{}",
    "IN ACCEPT -source 10.0.0.1,{}",
    "IN ACCEPT -p tcp -dport {}",
    "IN ACCEPT -p {}",
    "IN {}(ACCEPT)",
    "GROUP {}",
    "IN ACCEPT -i {}",
    "IN ACCEPT -log {}",
    "OUT ACCEPT - {} - tcp 80",
    "IN DROP # {}",
]
OTHER_SECTIONS = [
    "[ALIASES]\nsome {}\n",
    "[ALIASES]\n{} 10.0.0.1\n",
    "[IPSET some]\n{}\n",
    "[IPSET {}]\n10.0.0.1\n",
    "[{}]\nIN ACCEPT\n",
    "[OPTIONS]\nlog_level_in: {}\n",
    "[OPTIONS]\nips_queues: {}\n",
    "[OPTIONS]\nlayer2_protocols: {}\n",
    "[OPTIONS]\n{}: 1\n",
]
WHOLE = [
    b"\0",
    HEAD.encode() + b"\0" + RESTRICTIONS.encode(),
    (HEAD + RESTRICTIONS).encode("utf-16"),
    (HEAD + RESTRICTIONS).encode("utf-32"),
    bytes(range(256)) * 50,
    (HEAD + "[RULES]\n").encode() + b"\xff\xfe\xfd" * 4000,
    b"\n" * 60_000,
    b"[" * 100_000,
    b"IN ACCEPT " * 200_000,
    (HEAD + "[RULES]\n" + "IN ACCEPT\n" * 50_001).encode(),
    (HEAD + RESTRICTIONS + "[IPSET s]\n" + "".join(f"10.{n >> 8}.{n & 255}.1\n" for n in range(49_000))).encode(),
]


def hostile_files() -> Iterator[bytes]:
    """Yield 500 files: whole ones, then a hostile value in each kind of line, before and after the good lines."""
    yield from WHOLE
    lines = [f"[RULES]\n{line}\n" for line in LINES] + OTHER_SECTIONS
    chosen = random.Random(18).sample(list(itertools.product(VALUES, lines)), 500 - len(WHOLE))
    for number, (value, line) in enumerate(chosen):
        written = line.replace("{}", value)
        text = HEAD + (written + RESTRICTIONS if number % 2 else RESTRICTIONS + written)
        yield text.encode("utf-8", "surrogatepass")


def chains(source: Source, backend: str) -> dict[str, Any]:
    """Return a ruleset as ``start`` would load it, by tool and chain, set or other object."""
    pieces = desired.compiled(source, backend).desired.pieces
    if backend == "iptables":
        found: dict[str, Any] = {}
        for tool, content in json.loads("".join(pieces)).items():
            parts = content if tool in ("iptables", "ip6tables") else {"": content}
            for table, named in parts.items():
                for name, rules in named.items() if isinstance(named, dict) else ():
                    found[f"{tool} {table} {name}"] = rules
        return found
    found = {}
    for command in json.loads(f"[{','.join(pieces)}]"):
        ((_, described),) = command.items()
        ((kind, body),) = described.items()
        place = f"{kind} {body['family']} {body.get('table', '')} {body.get('chain') or body.get('name')}"
        found.setdefault(place, []).append(body)
    return found


def is_tenants(name: str) -> bool:
    """Tell whether an object belongs to the tenant's guest alone."""
    return NIC.search(name) is not None or f"PVEFW-{TENANT}-" in name


def others(ruleset: dict[str, Any]) -> dict[str, Any]:
    """Return the ruleset without the tenant's parts; shared objects are returned without their entries for the
    tenant."""
    return {
        name: without_tenant(content)
        for name, content in ruleset.items()
        if not is_tenants(name) and not re.fullmatch(r"ipset  PVEFW-[0-9A-F]+", name)
    }


def without_tenant(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Return JSON without the strings that name the tenant's NIC, and the rules and map elements that hold them.

    Comments are left out: nft's comments hold digests of the whole.
    """
    match value:
        case str():
            return None if NIC.search(value) else value
        case list():
            parts = [without_tenant(part) for part in value]
            # a pair of a key and its target is removed as a whole
            return (
                None if parts and parts[0] is None and len(parts) == 2 else [part for part in parts if part is not None]
            )
        case dict():
            kept = {key: without_tenant(part) for key, part in value.items() if key != "comment"}
            return None if any(kept[key] is None and value[key] is not None for key in kept) else kept
        case _:
            return value


def lay_out(make_root: MakeRoot) -> Path:
    files: dict[str, str | bytes] = {
        "cluster": "[OPTIONS]\nenable: 1\n[group web]\nIN HTTP(ACCEPT)\n[IPSET all]\n10.0.0.0/8\n",
        "host": "[RULES]\nIN SSH(ACCEPT) -source 10.0.0.0/8\n",
    }
    for vmid in range(100, 111):
        files[f"{vmid}.conf"] = VM.replace("00:01", f"00:{vmid - 100:02X}")
        files[f"{vmid}.fw"] = GOOD
    return make_root(files)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hostile_files_harm_only_their_own_guest(make_root: MakeRoot, backend: str) -> None:
    root = lay_out(make_root)
    source = Source(root, "n1", lambda: "10.0.0.0/24")
    expected = others(chains(source, backend))
    files = list(hostile_files())
    assert len(set(files)) == 500
    for content in files:
        (root / f"etc/pve/firewall/{TENANT}.fw").write_bytes(content)
        ruleset = chains(source, backend)
        assert others(ruleset) == expected, content[:300]
        if backend == "iptables":
            assert_restricted(ruleset, content)


def assert_restricted(ruleset: dict[str, Any], content: bytes) -> None:
    for tool, direction in itertools.product(("iptables", "ip6tables"), ("IN", "OUT")):
        rules = ruleset.get(f"{tool} filter tap{TENANT}i0-{direction}")
        if rules is None:
            # a file without [OPTIONS] that can be read switches nothing on: a tenant may do without a firewall
            assert not content.startswith(HEAD.encode()), content[:300]
            continue
        is_closed = len(rules) == 1 and rules[0].endswith("-j DROP")
        assert is_closed or all(any(rule.endswith(kept) for rule in rules) for kept in KEPT), content[:300]
        assert rules[-1].endswith("-j DROP")
