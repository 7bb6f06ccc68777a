"""Commands on a line each, for libnftables: none that comes from a hostile process adds a statement or a command."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pvefw_nft.backends.nft.syntax.text.commands import command_line
from pvefw_nft.errors import InternalError
from pvefw_nft.pipeline import Source, compile_root

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).resolve().parents[2]
PLACE = {"family": "bridge", "table": "pvefw"}


def commands() -> list[Any]:
    """Return a command of each shape in the examples, and of those that only updates have."""
    found: dict[str, Any] = {}
    for folder in ("examples", "tests/cases", "tests/kernel/evasion"):
        for root in sorted(path for path in (REPOSITORY / folder).iterdir() if (path / "etc").is_dir()):
            nodes = sorted(path.name for path in (root / "etc/pve/nodes").glob("*"))
            artefact = compile_root(Source(root, nodes[0] if nodes else "n1", lambda: "192.168.1.0/24"), "nft").artefact
            for command in json.loads("".join(artefact.json()))["nftables"]:
                found.setdefault(json.dumps(shape(command)), command)
    return [
        *found.values(),
        {"flush": {"chain": {**PLACE, "name": "c"}}},
        {"delete": {"map": {**PLACE, "name": "m"}}},
        {"delete": {"ct helper": {**PLACE, "name": "ftp"}}},
        {"delete": {"rule": {**PLACE, "chain": "c", "handle": 7}}},
        {"add": {"element": {**PLACE, "name": "m", "elem": [["tap100i0", {"jump": {"target": "c"}}]]}}},
        {"delete": {"element": {**PLACE, "name": "s", "elem": ["10.0.0.1", {"prefix": {"addr": "fd00::", "len": 8}}]}}},
    ]


def shape(node: Any) -> Any:  # noqa: ANN401 - JSON
    """Return a command without its values."""
    if isinstance(node, dict):
        return {key: shape(value) for key, value in node.items()}
    if isinstance(node, list):
        return [made for number, made in enumerate(map(shape, node)) if made not in list(map(shape, node[:number]))]
    return type(node).__name__


COMMANDS = commands()


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:  # noqa: ANN401 - JSON
    """Yield each part of a command with its place."""
    yield path, node
    if isinstance(node, dict | list):
        for key, part in node.items() if isinstance(node, dict) else enumerate(node[:3]):
            yield from places(part, (*path, key))


def with_part(command: Any, path: tuple[Any, ...], part: Any) -> Any:  # noqa: ANN401 - JSON
    """Return a copy of a command with another part at a place."""
    if not path:
        return part
    changed = copy.deepcopy(command)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = part
    return changed


def outside_quotes(line: str) -> str:
    """Return a line without what is between quotes, names of sets, and the address that may be a name there."""
    return re.sub(r'"[^"]*"|10\.0\.0\.1(?=,)|@[a-z][\w-]*(?=[ ,]|$)(?!,\d)', '""', line)


EVIL = [
    '"',
    'x" drop comment "y',
    "x\nflush ruleset",
    "x\r",
    "x\0",
    "x; flush ruleset",
    "x }",
    "{ x",
    "x # y",
    "x accept",
    "accept accept",
    "x\\",
    "x\\\n",
    "$x",
    "@x accept",
    "@",
    "x,y",
    "x/../y z",
    "10.0.0.1/8",
    "10.0.0.1-10.0.0.9",
    "10.0.0.1 accept",
    "é",
    "\u2028",
    "*",
    "x*y",
    "include",
    "/etc/passwd",
    " ",
    "",
]


def test_hostile_text_stays_between_quotes_or_is_refused() -> None:
    refused = kept = 0
    for command in COMMANDS:
        outside = outside_quotes(command_line(command))
        for path, part in places(command):
            for evil in EVIL if isinstance(part, str) else ():
                try:
                    line = command_line(with_part(command, path, evil))
                except InternalError:
                    refused += 1
                    continue
                kept += 1
                assert "\n" not in line
                assert line.isascii()
                assert line.isprintable()
                # an identifier, or empty: no comment
                plain = evil == "include" or (evil == "" and path[-1] == "comment")
                assert plain or outside_quotes(line) == outside, (path, evil)
                if evil == "include":
                    assert len(outside_quotes(line).split()) == len(outside.split())
    assert refused > 10 * kept > 0


WRONG: list[Any] = [None, True, 1.5, -1, 2**80, [], {}, [[]], {"x": 1}, ["x", "y"], {"drop": None, "accept": None}]


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_parts_of_another_type_are_refused(wrong: Any) -> None:  # noqa: ANN401 - JSON
    for command in COMMANDS:
        for path, part in places(command):
            harmless = (
                part == wrong
                or (path and path[-1] == "prio" and wrong == -1)
                or (wrong is True and (path[-1:] == ("inv",) or "exthdr" in command_line(command)))
                or (wrong == [] and path and path[-1] in ("elem", "flags"))
                or (wrong == ["x", "y"] and path and path[-1] == "elem")
            )
            if not harmless:
                with pytest.raises(InternalError):
                    command_line(with_part(command, path, wrong))


def test_objects_with_another_key_are_refused() -> None:
    for command in COMMANDS:
        for path, part in places(command):
            if isinstance(part, dict):
                with pytest.raises(InternalError):
                    command_line(with_part(command, path, {**part, "position": 1}))


def test_objects_without_one_of_their_keys_are_refused() -> None:
    optional = {"comment", "elem", "flags", "size", "timeout", "inv", "burst"}
    for command in COMMANDS:
        for path, part in places(command):
            for key in part if isinstance(part, dict) else ():
                fewer = {one: value for one, value in part.items() if one != key}
                if key in optional or fewer == {"type": "tcp reset"}:
                    continue
                with pytest.raises(InternalError):
                    command_line(with_part(command, path, fewer))


@pytest.mark.parametrize(
    "command",
    [
        {"flush": {"ruleset": None}},
        {"add": {"table": {"family": "ip", "name": "x"}}},
        {"list": {"tables": None}},
        {"delete": {"chain": {"family": "inet", "name": "x"}}},
        {"add": {"rule": {**PLACE, "chain": "c", "expr": [{"match": {"op": "==", "left": {"ct": {"key": "state"}}}}]}}},
        {"add": {"flowtable": {**PLACE, "name": "x"}}},
        {"include": "/etc/passwd"},
        {},
        [],
        None,
        "flush ruleset",
    ],
)
def test_other_commands_are_refused(command: Any) -> None:  # noqa: ANN401 - JSON
    with pytest.raises(InternalError):
        command_line(command)


def test_deep_nesting_is_refused() -> None:
    deep: Any = {"meta": {"key": "mark"}}
    for _ in range(100_000):
        deep = {"&": [deep, 1]}
    rule = {**PLACE, "chain": "c", "expr": [{"match": {"op": "==", "left": deep, "right": 1}}]}
    with pytest.raises(InternalError):
        command_line({"add": {"rule": rule}})


TARGET = {"payload": {"base": "th", "offset": 64, "len": 128}}
NETWORK = {"range": ["0x20010db8000000000000000000000000", "0x20010db8ffffffffffffffffffffffff"]}
LINES = [
    ({"add": {"table": {"family": "inet", "name": "pvefw"}}}, "add table inet pvefw"),
    (
        {"add": {"chain": {**PLACE, "name": "c", "type": "filter", "hook": "input", "prio": -150, "policy": "accept"}}},
        "add chain bridge pvefw c { type filter hook input priority -150; policy accept; }",
    ),
    ({"delete": {"chain": {**PLACE, "name": "c"}}}, "delete chain bridge pvefw c"),
    (
        {"add": {"set": {**PLACE, "name": "s", "type": "ipv4_addr", "flags": ["interval"], "elem": ["10.0.0.1"]}}},
        "add set bridge pvefw s { type ipv4_addr; flags interval; elements = { 10.0.0.1 }; }",
    ),
    (
        {"add": {"element": {**PLACE, "name": "m", "elem": [["tap100i0", {"drop": None}]]}}},
        'add element bridge pvefw m { "tap100i0" : drop }',
    ),
    (
        {"add": {"ct helper": {**PLACE, "name": "ftp", "type": "ftp", "protocol": "tcp"}}},
        'add ct helper bridge pvefw ftp { type "ftp" protocol tcp; }',
    ),
    (
        {"add": {"rule": {**PLACE, "chain": "c", "expr": [{"drop": None}], "comment": "100.fw:3 (SSH)"}}},
        'add rule bridge pvefw c drop comment "100.fw:3 (SSH)"',
    ),
    ({"delete": {"rule": {**PLACE, "chain": "c", "handle": 7}}}, "delete rule bridge pvefw c handle 7"),
    (
        {"add": {"rule": {**PLACE, "chain": "c", "expr": [{"match": {"op": "!=", "left": TARGET, "right": NETWORK}}]}}},
        "add rule bridge pvefw c @th,64,128 != 0x20010db8000000000000000000000000-0x20010db8ffffffffffffffffffffffff",
    ),
]


@pytest.mark.parametrize(("command", "line"), LINES, ids=[line for _, line in LINES])
def test_line(command: Any, line: str) -> None:  # noqa: ANN401 - JSON
    assert command_line(command) == line


def test_a_comparison_for_equality_of_bits_keeps_its_operator() -> None:
    match = {"match": {"op": "==", "left": {"ct": {"key": "state"}}, "right": "new"}}
    line = command_line({"add": {"rule": {**PLACE, "chain": "c", "expr": [match]}}})
    assert line == "add rule bridge pvefw c ct state == new"


@pytest.mark.parametrize(
    ("address", "is_read"),
    [
        ("::ffff:1.2.3.4", True),
        ("::1.2.3.4", True),
        ("64:ff9b::102:304", True),
        ("64:ff9b::1.2.3.4", False),
        ("1:2:3:4:5:6:7.8.9.10", False),
    ],
)
def test_addresses_that_are_not_one_token_of_nft_are_refused(address: str, is_read: bool) -> None:
    match = {"op": "==", "left": {"payload": {"protocol": "ip6", "field": "daddr"}}, "right": address}
    rule = {"family": "inet", "table": "pvefw", "chain": "c", "expr": [{"match": match}]}
    if is_read:
        assert command_line({"add": {"rule": rule}}).endswith(f"ip6 daddr {address}")
    else:
        with pytest.raises(InternalError, match="as an address"):
            command_line({"add": {"rule": rule}})
