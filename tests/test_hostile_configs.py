"""Other hostile inputs of a tenant beside ten good guests: the text of the guest's own config, and names of sets.

As in :mod:`tests.test_hostile_tenants`: others keep their rules in both backends, and the tenant's guest is closed or
has the restrictions of its good lines.
"""

from __future__ import annotations

import itertools
import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.app import desired
from pvefw_nft.pipeline import BACKENDS, Source
from tests.support import VM
from tests.test_hostile_tenants import (
    HEAD,
    RESTRICTIONS,
    TENANT,
    VALUES,
    assert_restricted,
    chains,
    lay_out,
    others,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support import MakeRoot

GOOD_FILE = (HEAD + RESTRICTIONS).encode()
GOOD_NIC = VM.replace("00:01", "00:05")

CONFIG_LINES = [
    "{}\n",
    "#{}\n",
    "name: {}\n",
    "description: {}\n",
    "{}: 1\n",
    "net{}: virtio=BC:24:11:00:00:05,bridge=vmbr0,firewall=1\n",
    "net1: virtio={},bridge=vmbr0,firewall=1\n",
    "net1: {}=BC:24:11:00:00:05,bridge=vmbr0,firewall=1\n",
    "net1: virtio=BC:24:11:00:00:00,bridge={},firewall=1\n",
    "net1: virtio=BC:24:11:00:00:05,bridge=vmbr0,firewall={}\n",
    "net1: virtio=BC:24:11:00:00:05,bridge=vmbr0,firewall=1,tag={}\n",
    "net1: virtio=BC:24:11:00:00:05,bridge=vmbr0,firewall=1,trunks={}\n",
    "net1: virtio=BC:24:11:00:00:05,bridge=vmbr0,firewall=1,mtu={}\n",
    "net1: virtio=BC:24:11:00:00:05,bridge=vmbr0,firewall=1,{}\n",
    "net1: name=eth1,hwaddr=BC:24:11:00:00:05,bridge=vmbr0,firewall=1,ip={}\n",
    "ipconfig1: ip={}/24\n",
    "[{}]\nnet0: virtio=BC:24:11:00:00:09,bridge=vmbr0\n",
]
WHOLE_CONFIGS = {
    "nothing": b"",
    "NUL": b"\0",
    "NUL behind": GOOD_NIC.encode() + b"\0",
    "UTF-16": GOOD_NIC.encode("utf-16"),
    "UTF-32": GOOD_NIC.encode("utf-32"),
    "no UTF-8": GOOD_NIC.encode() + b"\xff\xfe\xfd" * 4000,
    "bytes": bytes(range(256)) * 50,
    "49,000 NICs": GOOD_NIC.encode() * 49_000,
    "all numbers of NICs": "".join(GOOD_NIC.replace("net0", f"net{n}") for n in range(40_000)).encode(),
    "all NICs": "".join(GOOD_NIC.replace("net0", f"net{n}") for n in range(32)).encode(),
    "a MAC of another guest": VM.replace("00:01", "00:04").encode(),
    "broadcast for a MAC": VM.replace("BC:24:11:00:00:01", "FF:FF:FF:FF:FF:FF").encode(),
    "a million trunks": (GOOD_NIC.strip() + ",trunks=" + "7;" * 1_000_000 + "8\n").encode(),
    "a million properties": (GOOD_NIC.strip() + ",queues=1" * 1_000_000 + "\n").encode(),
    "one line of 10 MB": GOOD_NIC.encode() + b"x" * 10_000_000,
    "a million lines": GOOD_NIC.encode() + b"#\n" * 1_000_000,
    "brackets": b"[" * 1_000_000,
    "too large": GOOD_NIC.encode() + b"#" * (17 << 20),
    "CR": GOOD_NIC.replace("\n", "\r").encode() * 3,
}


def hostile_configs() -> Iterator[tuple[str, bytes]]:
    """Yield named configs: whole ones, then a hostile value in each kind of line, before or after the good NIC."""
    yield from WHOLE_CONFIGS.items()
    chosen = random.Random(12).sample(list(itertools.product(VALUES, CONFIG_LINES)), 120)
    for number, (value, line) in enumerate(chosen):
        written = line.replace("{}", value)
        if line.startswith("["):  # a snapshot's section goes on to the end
            text = GOOD_NIC + written
        else:
            text = GOOD_NIC + written if number % 2 else written + "\n" + GOOD_NIC
        yield f"{line.strip()} {value[:20]!r}", text.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("backend", BACKENDS)
def test_hostile_guest_configs_harm_only_their_own_guest(make_root: MakeRoot, backend: str) -> None:
    root = lay_out(make_root)
    source = Source(root, "n1", lambda: "10.0.0.0/24")
    (root / f"etc/pve/firewall/{TENANT}.fw").write_bytes(GOOD_FILE)
    (config,) = root.glob(f"etc/pve/**/qemu-server/{TENANT}.conf")
    expected = others(chains(source, backend))
    for name, content in hostile_configs():
        config.write_bytes(content)
        ruleset = chains(source, backend)
        assert others(ruleset) == expected, name
        if GOOD_NIC.encode() in content and backend == "iptables":
            assert ruleset.get(f"iptables filter tap{TENANT}i0-IN"), (
                name
            )  # the good line counts, or the guest is closed
            assert_restricted(ruleset, GOOD_FILE)


# --- names of sets ----------------------------------------------------------------------------------------------

_PRIME, _BASIS = 0x01000193, 0x811C9DC5
_INVERSE = pow(_PRIME, -1, 1 << 32)
SHARED = "a-name-that-is-too-long-for-an-ipset"


def _hash(data: bytes, value: int = _BASIS) -> int:
    for byte in data:
        value = (value ^ byte) * _PRIME & 0xFFFFFFFF
    return value


def _before(value: int, data: bytes) -> int:
    """Return the state of the hash before it met ``data``."""
    for byte in reversed(data):
        value = value * _INVERSE & 0xFFFFFFFF ^ byte
    return value


def colliding_name(victim: str, tenant: str) -> str:
    """Return a set's name of the scope ``tenant`` with the 31-bit hash of ``victim``, found by meeting in the
    middle."""
    words = [f"{number:05x}" for number in range(1 << 17)]
    head = f"{tenant}-a-long-name-"
    states = {_hash(word.encode(), _hash(head.encode())): word for word in words}
    target = _hash(victim.encode())
    for top, word in itertools.product((0, 1 << 31), words):
        state = _before(target & 0x7FFFFFFF | top, f"-{word}-v4".encode())
        if state in states:
            return f"a-long-name-{states[state]}-{word}"
    raise AssertionError("no collision: try more words")


def _with_set(name: str, network: str) -> str:
    return f"{HEAD}[IPSET {name}]\n{network}\n{RESTRICTIONS}IN ACCEPT -source +{name} -p tcp -dport 443\n"


def _sets_spelled_out(ruleset: dict[str, Any]) -> str:
    """Return a ruleset of iptables with the content of each ipset in place of its name."""
    text = json.dumps(others(ruleset), sort_keys=True)
    for name, lines in ruleset.items():
        if name.startswith("ipset  "):
            ipset = name.removeprefix("ipset  ")
            content = json.dumps([line.replace(ipset, "SET") for line in lines])
            text = text.replace(f" {ipset} ", f" {content} ").replace(f'"{name}"', f'"{content}"')
    return text


def _compiled(root: Path, backend: str) -> tuple[dict[str, Any], list[tuple[str, str, int]]]:
    source = Source(root, "n1", lambda: "10.0.0.0/24")
    problems = desired.compiled(source, backend).diagnostics
    places = [(one.code, one.span.file.rpartition("/")[2], one.span.line) for one in problems]
    return chains(source, backend), places


@pytest.mark.parametrize("backend", BACKENDS)
def test_own_sets_whose_names_collide_harm_only_their_own_guest(make_root: MakeRoot, backend: str) -> None:
    root = lay_out(make_root)
    file = root / f"etc/pve/firewall/{TENANT}.fw"
    file.write_bytes(GOOD_FILE)
    expected = others(_compiled(root, backend)[0])
    name = colliding_name(f"{TENANT}-{SHARED}-v4", str(TENANT))
    sets = f"[IPSET {SHARED}]\n10.1.0.0/16\n[IPSET {name}]\n10.2.0.0/16\n"
    rules = f"IN ACCEPT -source +{SHARED} -p tcp -dport 443\nIN ACCEPT -source +{name} -p tcp -dport 80\n"
    file.write_text(HEAD + sets + RESTRICTIONS + rules)
    ruleset, problems = _compiled(root, backend)
    assert others(ruleset) == expected
    if backend == "iptables":
        assert [problem for problem in problems if problem[0] == "set-name-collision"] == [
            ("set-name-collision", f"{TENANT}.fw", 5),
            ("set-name-collision", f"{TENANT}.fw", 7),
        ]
        rules_of = ruleset[f"iptables filter tap{TENANT}i0-IN"]
        for port, network in ((443, "10.1.0.0/16"), (80, "10.2.0.0/16")):
            (rule,) = [rule for rule in rules_of if f"--dport {port} " in rule]
            (ipset,) = [word for word in rule.split() if f"ipset  {word}" in ruleset]
            assert [line for line in ruleset[f"ipset  {ipset}"] if line.startswith("add")] == [f"add {ipset} {network}"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("victim", [104, 106, 0])
def test_colliding_set_names_of_two_guests_stay_apart(make_root: MakeRoot, backend: str, victim: int) -> None:
    root = lay_out(make_root)
    firewall = root / "etc/pve/firewall"
    if victim:
        (firewall / f"{victim}.fw").write_text(_with_set(SHARED, "10.1.0.0/16"))
    else:
        cluster = (firewall / "cluster.fw").read_text()
        (firewall / "cluster.fw").write_text(f"{cluster}[IPSET {SHARED}]\n10.1.0.0/16\n")
        (firewall / "104.fw").write_text(f"{HEAD}{RESTRICTIONS}IN ACCEPT -source +dc/{SHARED}\n")
    file = firewall / f"{TENANT}.fw"
    file.write_bytes(GOOD_FILE)
    before, _ = _compiled(root, backend)
    name = colliding_name(f"{victim}-{SHARED}-v4", str(TENANT))
    file.write_text(_with_set(name, "10.2.0.0/16"))
    after, problems = _compiled(root, backend)
    if backend == "iptables":  # rules of others change only in the name of a set, whose elements stay the same
        assert _sets_spelled_out(after) == _sets_spelled_out(before)
        assert ("set-name-collision", f"{TENANT}.fw", 5) in problems
    else:
        assert others(after).items() >= others(before).items()
