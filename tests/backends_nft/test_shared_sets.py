"""Sets in rules of guests are named by their content, so that their number does not grow with the guests."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from pvefw_nft.backends.nft import NftBackend
from tests.support import check

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import MakeRoot

RULES = (
    "[OPTIONS]\nenable: 1\n[RULES]\nIN DNS(ACCEPT)\nIN ACCEPT -p tcp -dport 80,443\nOUT DROP -dest 10.0.0.1,10.2.0.1\n"
)


def node(make_root: MakeRoot, guests: int) -> Path:
    files: dict[str, str | bytes] = {}
    for vmid in range(100, 100 + guests):
        files[f"{vmid}.conf"] = f"net0: virtio=BC:24:11:00:00:{vmid & 255:02X},bridge=vmbr0,firewall=1\n"
        files[f"{vmid}.fw"] = RULES
    return make_root(files)


def commands(root: Path) -> list[dict[str, Any]]:
    return list(json.loads("".join(NftBackend().lower(check(root).ruleset).json()))["nftables"])


def count_sets(root: Path) -> tuple[int, int]:
    """Return the numbers of sets and maps with a name, and of those within rules."""
    named = anonymous = 0
    for command in commands(root):
        ((kind, body),) = (command.get("add") or command["delete"]).items()
        named += kind in ("set", "map")
        anonymous += json.dumps(body.get("expr", [])).count('{"set": [')
    return named, anonymous


def test_sets_do_not_grow_with_the_guests(make_root: MakeRoot) -> None:
    assert count_sets(node(make_root, 3)) == count_sets(node(make_root, 9))


def test_equal_sets_of_guests_are_one(make_root: MakeRoot) -> None:
    looked_up = Counter(
        part.partition('"')[0]
        for command in commands(node(make_root, 3))
        if (rule := command.get("add", {}).get("rule")) and rule["family"] == "bridge"
        for part in json.dumps(rule["expr"]).split('"@')[1:]
    )
    assert looked_up["ports-80_443"] == 3
    assert looked_up["protocols-6_17"] == 3


def test_another_set_has_another_name(make_root: MakeRoot) -> None:
    rules = "".join(f"IN ACCEPT -p tcp -source 10.{number}.0.1,10.9.0.1 -sport {number}\n" for number in range(1, 6))
    root = make_root({"100.conf": "net0: virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1\n", "100.fw": RULES + rules})
    sets = {
        command["add"]["set"]["name"]: command["add"]["set"]["elem"]
        for command in commands(root)
        if "set" in command.get("add", {}) and command["add"]["set"]["name"].startswith("values-")
    }
    assert [f"10.{number}.0.1" in json.dumps(list(sets.values())) for number in range(1, 6)] == [True] * 5
