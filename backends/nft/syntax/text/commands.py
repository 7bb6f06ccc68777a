"""Commands on a line each, as ``nft -f`` reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pvefw_nft.backends.nft.syntax.text.expressions import value_text
from pvefw_nft.backends.nft.syntax.text.objects import TABLE_FAMILIES, hook_text, object_lines
from pvefw_nft.backends.nft.syntax.text.statements import rule_text, verdict_text
from pvefw_nft.backends.nft.syntax.text.words import fields, identifier, interface, is_address, one_of, some, whole
from pvefw_nft.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pvefw_nft.backends.nft.syntax.text.words import Node


def command_line(command: Node) -> str:
    """Return a command of a transaction on a line of its own, without its end.

    A command that removes or empties something names it in full, as those that add do. The command may be from an
    untrusted process: raises :class:`InternalError` for each that has no line.
    """
    try:
        ((verb, argument),) = command.items()
        ((kind, body),) = argument.items()
        spell = _COMMANDS.get((verb, kind))
        if spell is None:
            raise InternalError(f"nft's text has no place for the command {verb} {kind}"[:200])
        return f"{verb} {kind} {spell(kind, body)}"
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InternalError(f"nft's text has no place for a command ({error!r}): {str(command)[:200]}") from error


def _table_command(_kind: str, body: Node) -> str:
    fields(body, {"family", "name"})
    return f"{one_of(body['family'], TABLE_FAMILIES)} {identifier(body['name'])}"


def _named_command(_kind: str, body: Node) -> str:
    fields(body, {"family", "table", "name"})
    return _place(body, "name")


def _place(body: Node, name: str) -> str:
    return f"{one_of(body['family'], TABLE_FAMILIES)} {identifier(body['table'])} {identifier(body[name])}"


def _chain_command(_kind: str, body: Node) -> str:
    if "hook" not in body:
        return _named_command(_kind, body)
    fields(body, {"family", "table", "name", "type", "hook", "prio", "policy"})
    return f"{_place(body, 'name')} {{ {hook_text(body)} }}"


def _object_command(kind: str, body: Node) -> str:
    rest = dict(body)
    place = _place({key: rest.pop(key) for key in ("family", "table", "name")}, "name")
    lines, elements = object_lines(kind, rest)
    if elements:
        lines.append(f"elements = {{ {', '.join(elements)} }}")
    return f"{place} {{ {'; '.join(lines)}; }}"


def _element_command(_kind: str, body: Node) -> str:
    fields(body, {"family", "table", "name", "elem"})
    return f"{_place(body, 'name')} {{ {', '.join(map(_untyped_element, some(body['elem'])))} }}"


def _untyped_element(element: Any) -> str:  # noqa: ANN401 - a value, or a value and a verdict
    if isinstance(element, list):
        value, verdict = element
        return f"{_untyped(value)} : {verdict_text(verdict)}"
    return _untyped(element)


def _untyped(value: Any) -> str:  # noqa: ANN401 - a value of any type
    """Spell a value of a set whose type is not known: an address, a number, or the name of an interface."""
    if isinstance(value, dict) and "concat" in value:
        return " . ".join(map(_untyped, some(fields(value, {"concat"})["concat"])))
    if isinstance(value, str) and not is_address(value):
        return interface(value)
    return value_text("", value)


def _rule_command(_kind: str, body: Node) -> str:
    fields(body, {"family", "table", "chain", "expr"}, {"comment"})
    return f"{_place(body, 'chain')} {rule_text(body)}"


def _rule_by_handle(_kind: str, body: Node) -> str:
    fields(body, {"family", "table", "chain", "handle"})
    return f"{_place(body, 'chain')} handle {whole(body['handle'], 2**64 - 1)}"


_COMMANDS: dict[tuple[str, str], Callable[[str, Any], str]] = {
    **dict.fromkeys((("add", "table"), ("delete", "table")), _table_command),
    **{("delete", kind): _named_command for kind in ("chain", "set", "map", "ct helper")},
    **{("add", kind): _object_command for kind in ("set", "map", "ct helper")},
    ("add", "chain"): _chain_command,
    ("flush", "chain"): _named_command,
    ("add", "element"): _element_command,
    ("delete", "element"): _element_command,
    ("add", "rule"): _rule_command,
    ("delete", "rule"): _rule_by_handle,
}
