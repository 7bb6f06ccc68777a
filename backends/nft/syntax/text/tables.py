"""A table as a whole, as ``nft list ruleset`` prints it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pvefw_nft.backends.nft.syntax.text.objects import TABLE_FAMILIES, hook_text, object_lines
from pvefw_nft.backends.nft.syntax.text.statements import rule_text
from pvefw_nft.backends.nft.syntax.text.words import identifier, one_of
from pvefw_nft.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pvefw_nft.backends.nft.syntax.text.words import Node


def table_text(family: str, name: str, objects: Iterable[str], chains: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield the text that replaces a table as a whole, whether there was one or not.

    ``objects`` are the commands that add sets, maps and helpers; ``chains`` pairs the command that adds a chain with
    those that add its rules, separated as in :data:`.objects.BETWEEN`.
    """
    table = f"{one_of(family, TABLE_FAMILIES)} {identifier(name)}"
    yield f"add table {table}\ndelete table {table}\n\ntable {table} {{\n"
    separator = ""
    for command in objects:
        yield separator + _object(_added(json.loads(command)))
        separator = "\n"
    for declaration, rules in chains:
        yield separator + _chain(_added(json.loads(declaration))[1], json.loads(f"[{rules}]"))
        separator = "\n"
    yield "}\n"


def _added(command: Node) -> tuple[str, Node]:
    ((verb, added),) = command.items()
    if verb != "add":
        raise InternalError(f"nft's text has no place for the command {verb!r}")
    ((kind, body),) = added.items()
    return kind, body


def _object(added: tuple[str, Node]) -> str:
    """Return the block of a set, map or helper of a table."""
    kind, body = added
    rest = {key: value for key, value in body.items() if key not in ("family", "table", "name")}
    lines, elements = object_lines(kind, rest)
    if elements:
        lines.append(f"elements = {{ {_wrapped(elements, 2 if body['type'] == 'ipv4_addr' else 1)} }}")
    return f"\t{kind} {identifier(body['name'])} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}\n"


def _wrapped(elements: list[str], in_a_line: int) -> str:
    """Return the elements with line breaks as nft sets them."""
    lines = [", ".join(elements[at : at + in_a_line]) for at in range(0, len(elements), in_a_line)]
    return ",\n\t\t\t     ".join(lines)


def _chain(body: Node, rules: list[Node]) -> str:
    lines = [f"\tchain {identifier(body['name'])} {{\n"]
    if "hook" in body:
        lines.append(f"\t\t{hook_text(body)}\n")
    for command in rules:
        kind, rule = _added(command)
        if kind != "rule" or rule["chain"] != body["name"]:
            raise InternalError("a chain's text holds something other than its rules")
        lines.append(f"\t\t{rule_text(rule)}\n")
    return "".join([*lines, "\t}\n"])
