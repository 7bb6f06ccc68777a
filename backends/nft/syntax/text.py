"""The same language as nft writes it (nft(8)), for people, and for ``nft -f``: spelled from the commands in JSON.

The text and the JSON of a ruleset give the same rules in the kernel, since nothing is said here that is not in a
command. No kernel and no library is asked. Numbers that have a name in nft have it here where nft needs no file of the
host to know it. Where its versions write a thing differently, the form stands here that all of them read.

Text of names, comments and log prefixes is put between quotes or at places of identifiers; what cannot stand there
raises :class:`InternalError`, since nft has no way to escape it.

Example: ``{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 22}}`` is
``tcp dport 22``.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, TypeAlias

from pvefw_nft.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Node: TypeAlias = dict[str, Any]
"""An object, statement or expression of a command, as :mod:`json` reads it."""

_IDENTIFIER = re.compile(r"[A-Za-z_.][A-Za-z0-9/_.-]*")
"""Names that nft reads without quotes (``string`` in its scanner.l)."""

_QUOTABLE = re.compile(r"[ -!#%-~]*")
"""Printable ASCII but for the quote, which would end the text, and the dollar sign, which begins a variable."""

_WORD = re.compile(r"[A-Za-z0-9_.:/-]+")

_INTERFACES = ("iifname", "oifname", "ibrname", "obrname")
_MASKS = ("mark",)

PROTOCOLS = {1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 33: "dccp", 50: "esp", 51: "ah", 58: "icmpv6", 132: "sctp"}
PROTOCOLS |= {108: "comp", 136: "udplite"}
"""Protocols that are words of nft's own."""

ICMP_TYPES = {
    0: "echo-reply",
    3: "destination-unreachable",
    4: "source-quench",
    5: "redirect",
    8: "echo-request",
    9: "router-advertisement",
    10: "router-solicitation",
    11: "time-exceeded",
    12: "parameter-problem",
    13: "timestamp-request",
    14: "timestamp-reply",
    15: "info-request",
    16: "info-reply",
    17: "address-mask-request",
    18: "address-mask-reply",
}
"""nft's names of ICMP types (``nft describe icmp type``)."""

ICMPV6_TYPES = {
    1: "destination-unreachable",
    2: "packet-too-big",
    3: "time-exceeded",
    4: "parameter-problem",
    128: "echo-request",
    129: "echo-reply",
    130: "mld-listener-query",
    131: "mld-listener-report",
    132: "mld-listener-done",
    133: "nd-router-solicit",
    134: "nd-router-advert",
    135: "nd-neighbor-solicit",
    136: "nd-neighbor-advert",
    137: "nd-redirect",
}
"""nft's names of ICMPv6 types (``nft describe icmpv6 type``)."""

TCP_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr")
"""The flags of TCP by bit, the lowest first."""

ETHERTYPES = {0x0800: "ip", 0x0806: "arp", 0x8100: "vlan", 0x86DD: "ip6", 0x88A8: "8021ad"}
"""nft's names of protocols above Ethernet (``nft describe ether type``)."""

_NAMES = {
    "meta protocol": ETHERTYPES,
    "ether type": ETHERTYPES,
    "arp ptype": ETHERTYPES,
    "meta l4proto": PROTOCOLS,
    "icmp type": ICMP_TYPES,
    "icmpv6 type": ICMPV6_TYPES,
}

_TYPED = {
    "ifname": "meta iifname",
    "ether_type": "meta protocol",
    "inet_proto": "meta l4proto",
    "icmp_type": "icmp type",
    "icmpv6_type": "icmpv6 type",
}
"""A selector for each type of elements that has words of its own."""


def table_text(family: str, name: str, objects: Iterable[str], chains: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield the text that replaces a table as a whole, whether there was one or not.

    ``objects`` are the commands that add sets, maps and helpers; ``chains`` pairs the command that adds a chain with
    those that add its rules, separated as in :data:`.objects.BETWEEN`.
    """
    table = f"{_word(family)} {_identifier(name)}"
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


# --- objects -------------------------------------------------------------------------------------------------


def _object(added: tuple[str, Node]) -> str:
    """Return the block of a set, map or helper of a table."""
    kind, body = added
    rest = {key: value for key, value in body.items() if key not in ("family", "table", "name")}
    match kind:
        case "set" | "map":
            lines = _set_lines(rest)
        case "ct helper":
            lines = [f"type {_quoted(rest.pop('type'))} protocol {_word(rest.pop('protocol'))}"]
        case _:
            raise InternalError(f"nft's text has no place for {kind!r}")
    if rest:
        raise InternalError(f"nft's text has no place for {', '.join(rest)} of a {kind}")
    return f"\t{kind} {_identifier(body['name'])} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}\n"


def _set_lines(rest: Node) -> list[str]:
    key = rest.pop("type")
    data = rest.pop("map", None)
    types = " . ".join(map(_word, [key] if isinstance(key, str) else key))
    lines = [f"type {types}" + ("" if data is None else f" : {_word(data)}")]
    flags = rest.pop("flags", [])
    timeout = rest.pop("timeout", None)
    if "size" in rest:
        lines.append(f"size {int(rest.pop('size'))}")
    if timeout is not None and "timeout" in flags:
        flags = ["dynamic", *flags]  # a set that rules fill; from JSON, nft sees it by the rules
    if flags:
        lines.append(f"flags {','.join(map(_word, flags))}")
    if timeout is not None:
        lines.append(f"timeout {_duration(timeout)}")
    elements = rest.pop("elem", [])
    if elements:
        spelled = [_element(types, element) for element in elements]
        lines.append(f"elements = {{ {_wrapped(spelled, 2 if key == 'ipv4_addr' else 1)} }}")
    return lines


def _element(key: str, element: Any) -> str:  # noqa: ANN401 - a value, or a pair of value and verdict
    of = " . ".join(_TYPED.get(kind, kind) for kind in key.split(" . "))
    if isinstance(element, list):
        value, verdict = element
        return f"{_value(of, value)} : {_statement(verdict)}"
    return _value(of, element)


def _wrapped(elements: list[str], in_a_line: int) -> str:
    """Return the elements with line breaks as nft sets them."""
    lines = [", ".join(elements[at : at + in_a_line]) for at in range(0, len(elements), in_a_line)]
    return ",\n\t\t\t     ".join(lines)


def _duration(seconds: int) -> str:
    """Return a time as nft writes it, such as ``1m5s``."""
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        number, seconds = divmod(seconds, size)
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"


def _chain(body: Node, rules: list[Node]) -> str:
    lines = [f"\tchain {_identifier(body['name'])} {{\n"]
    if "hook" in body:
        hook = f"type {_word(body['type'])} hook {_word(body['hook'])} priority {int(body['prio'])}"
        lines.append(f"\t\t{hook}; policy {_word(body['policy'])};\n")
    for command in rules:
        kind, rule = _added(command)
        if kind != "rule" or rule["chain"] != body["name"]:
            raise InternalError("a chain's text holds something other than its rules")
        comment = f" comment {_quoted(rule['comment'])}" if rule.get("comment") else ""
        lines.append(f"\t\t{' '.join(map(_statement, rule['expr']))}{comment}\n")
    return "".join([*lines, "\t}\n"])


# --- statements ----------------------------------------------------------------------------------------------


def _statement(statement: Node) -> str:
    ((kind, body),) = statement.items()
    spell = _STATEMENTS.get(kind)
    if spell is None:
        raise InternalError(f"nft's text has no place for the statement {kind!r}")
    return spell(kind, body)


def _plain_statement(kind: str, _body: None) -> str:
    return kind


def _go(kind: str, body: Node) -> str:
    return f"{kind} {_identifier(body['target'])}"


def _limit(_kind: str, body: Node) -> str:
    burst = "" if body["burst"] == 5 else f" burst {int(body['burst'])} packets"  # nft leaves out the default 5
    over = "over " if body.get("inv") else ""
    return f"limit rate {over}{int(body['rate'])}/{_word(body['per'])}{burst}"


def _count(_kind: str, body: Node) -> str:
    return f"ct count {'over ' if body.get('inv') else ''}{int(body['val'])}"


def _log(_kind: str, body: Node) -> str:
    return f"log prefix {_quoted(body['prefix'])} group {int(body['group'])}"


def _queue(_kind: str, body: Node) -> str:
    flags = f" flags {','.join(map(_word, body['flags']))}" if body.get("flags") else ""
    return f"queue{flags} to {_value('queue', body['num'])}"


def _mangle(_kind: str, body: Node) -> str:
    key = _selector(body["key"])
    return f"{key} set {_new_value(key, body['value'])}"


def _assign_helper(_kind: str, body: str) -> str:
    return f"ct helper set {_quoted(body)}"


def _update(_kind: str, body: Node) -> str:
    inner = " ".join(map(_statement, body["stmt"]))
    return f"{_word(body['op'])} {_reference(body['set'])} {{ {_selector(body['elem'])} {inner} }}"


def _translate(kind: str, body: Node) -> str:
    return f"{kind} {_word(body['family'])} to {_selector(body['addr'])}"


def _reject(_kind: str, body: Node) -> str:
    kind = body["type"]
    return "reject with tcp reset" if kind == "tcp reset" else f"reject with {_word(kind)} type {_word(body['expr'])}"


def _match(_kind: str, body: Node) -> str:
    operator, left, right = body["op"], _selector(body["left"]), body["right"]
    if isinstance(right, bool):
        return f"{left} {'exists' if right is (operator == '==') else 'missing'}"
    value = _right(left, right)
    if operator == "!=":
        return f"{left} != {value}"
    if operator == "in" and isinstance(right, list | str):
        return f"{left} {value}"
    if operator == "==":
        return f"{left} == {value}" if "&" in body["left"] else f"{left} {value}"
    raise InternalError(f"nft's text has no place for the operator {operator!r}")


def _lookup(kind: str, body: Node) -> str:
    """Return a look-up in a map: a named one, or one whose pairs are written in the rule."""
    key, data = _selector(body["key"]), body["data"]
    if isinstance(data, str):
        return f"{key} {kind} {_reference(data)}"
    pairs = ((_value(key, value), _statement(to) if kind == "vmap" else str(int(to))) for value, to in data["set"])
    return f"{key} {kind} {{ {', '.join(f'{value} : {to}' for value, to in pairs)} }}"


def _new_value(key: str, value: Any) -> str:  # noqa: ANN401 - a constant or an expression
    if not isinstance(value, dict):
        return _value(key, value)
    if "map" in value:
        return _statement(value)
    ((operator, (left, right)),) = value.items()
    if operator not in ("&", "|"):
        raise InternalError(f"nft's text has no place for the expression {operator!r}")
    return f"{_selector(left)} {operator} {_value(key, right)}"


_STATEMENTS: dict[str, Callable[[str, Any], str]] = {
    **dict.fromkeys(("accept", "drop", "return", "counter"), _plain_statement),
    **dict.fromkeys(("jump", "goto"), _go),
    **dict.fromkeys(("vmap", "map"), _lookup),
    **dict.fromkeys(("dnat", "snat"), _translate),
    "match": _match,
    "reject": _reject,
    "limit": _limit,
    "ct count": _count,
    "log": _log,
    "queue": _queue,
    "mangle": _mangle,
    "ct helper": _assign_helper,
    "set": _update,
}


# --- expressions ---------------------------------------------------------------------------------------------


def _selector(node: Node) -> str:
    ((kind, body),) = node.items()
    match kind:
        case "meta":
            key = _word(body["key"])
            return key if key in ("iifname", "oifname") else f"meta {key}"
        case "ct":
            return f"ct {_word(body['key'])}"
        case "payload" if "base" in body:
            return f"@{_word(body['base'])},{int(body['offset'])},{int(body['len'])}"
        case "payload":
            return f"{_word(body['protocol'])} {' '.join(map(_word, body['field'].split(' ')))}"
        case "exthdr":
            return f"exthdr {_word(body['name'])}"
        case "fib":
            return f"fib {' . '.join(map(_word, body['flags']))} {_word(body['result'])}"
        case "concat":
            return " . ".join(map(_selector, body))
        case "&":
            left, mask = body
            key = _selector(left)
            return f"{key} & {_mask(key, mask)}"
    raise InternalError(f"nft's text has no place for the expression {kind!r}")


def _right(left: str, right: Any) -> str:  # noqa: ANN401 - a value, a set of them, or names of bits
    selector, masked, _ = left.partition(" & ")
    if selector == "tcp flags" and masked:
        return _flags(right)
    if selector == "ct status" and masked:
        return hex(right)
    if isinstance(right, list):
        return ",".join(map(_word, right))
    if isinstance(right, dict) and "set" in right:
        return f"{{ {', '.join(_value(selector, value) for value in right['set'])} }}"
    return _value(selector, right)


def _flags(bits: int) -> str:
    """Spell flags of TCP: ``fin``, ``(fin | syn)``, or ``0x0`` for none."""
    names = [name for bit, name in enumerate(TCP_FLAGS) if bits >> bit & 1]
    if not names:
        return "0x0"
    return names[0] if len(names) == 1 else f"({' | '.join(names)})"


def _mask(key: str, mask: Any) -> str:  # noqa: ANN401 - a number or an address
    if key == "tcp flags":
        return _flags(mask)
    return hex(mask) if isinstance(mask, int) and key.split(" ")[-1] not in _MASKS else _value(key, mask)


def _value(of: str, value: Any) -> str:  # noqa: ANN401 - a constant, network, range or concatenation
    """Spell a value that is compared with the selector spelled ``of``, or is of that type of a set's elements."""
    if isinstance(value, dict):
        ((kind, body),) = value.items()
        match kind:
            case "prefix":
                return f"{_word(body['addr'])}/{int(body['len'])}"
            case "range":
                first, last = body
                return f"{_plain(first)}-{_plain(last)}"
            case "concat":
                return " . ".join(_value(part, one) for part, one in zip(of.split(" . "), body, strict=True))
        raise InternalError(f"nft's text has no place for the value {kind!r}")
    if isinstance(value, str) and value.startswith("@"):
        return _reference(value)
    if of.split(" ")[-1] in _INTERFACES:
        return _quoted(value)
    if isinstance(value, int) and of.split(" ")[-1] in _MASKS:
        return f"0x{value:08x}"
    if isinstance(value, int):
        return _NAMES.get(of, {}).get(value, str(value))
    return _word(value)


def _plain(value: Any) -> str:  # noqa: ANN401 - a number or an address
    return str(value) if isinstance(value, int) else _word(value)


# --- words ---------------------------------------------------------------------------------------------------


def _identifier(text: str) -> str:
    if not _IDENTIFIER.fullmatch(text):
        raise InternalError(f"nft cannot read {text!r} as a name")
    return text


def _reference(text: str) -> str:
    return f"@{_identifier(text.removeprefix('@'))}"


def _word(text: str) -> str:
    if not _WORD.fullmatch(text):
        raise InternalError(f"nft cannot read {text!r} as one word")
    return text


def _quoted(text: str) -> str:
    if not _QUOTABLE.fullmatch(text):
        raise InternalError(f"nft cannot read {text!r} between quotes")
    return f'"{text}"'
