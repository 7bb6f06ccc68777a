"""The same language as nft writes it (nft(8)), for people, and for ``nft -f``: spelled from the commands in JSON.

The text and the JSON of a ruleset give the same rules in the kernel, since nothing is said here that is not in a
command. No kernel and no library is asked. Numbers that have a name in nft have it here where nft needs no file of the
host to know it. Where its versions write a thing differently, the form stands here that all of them read.

The commands may come from an untrusted process. Each place takes what is listed for it and nothing else: a word of a
fixed list, an identifier, a number, an address, or text between quotes. An object with another key or of another type
raises :class:`InternalError`, and so does text that cannot stand between quotes, since nft has no way to escape it.
nft's scanner (scanner.l of 1.0.6 and 1.1.3) reads an identifier as one token, and a text between quotes up to the next
quote, whatever else is in it. So no value can end its statement, or the line of its command.

Example: ``{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 22}}`` is
``tcp dport 22``.
"""

from __future__ import annotations

import ipaddress
import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

from pvefw_nft.backends.nft.syntax.expressions import CtKey, MetaKey
from pvefw_nft.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from collections.abc import Set as AbstractSet

Node: TypeAlias = dict[str, Any]
"""An object, statement or expression of a command, as :mod:`json` reads it."""

_IDENTIFIER = re.compile(r"[A-Za-z_.][A-Za-z0-9/_.-]*")
"""Names that nft reads without quotes (``string`` in its scanner.l)."""

_QUOTABLE = re.compile(r"[ -!#%-~]*")
"""Printable ASCII but for the quote, which would end the text, and the dollar sign, which begins a variable."""

_INTERFACE = re.compile(r"(?!@)[!#%-)+-.0-\[\]-~]+\*?")
"""Names of interfaces, or the beginning of names and an asterisk: quotable, without blanks, slashes and backslashes.

nft reads an asterisk at another place, or behind a backslash, as a character of the name.
"""

_NUMBER = re.compile(r"0x[0-9a-f]{1,32}|[0-9]{1,10}")
_MAC = re.compile(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}")
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]{2,45}")
_DOTTED = re.compile(r"::(?:ffff:)?[0-9.]+", re.IGNORECASE)
"""Of IPv6 addresses with an IPv4 address at their end, those that nft's scanner reads as one token."""

_MOST = 2**32 - 1
"""The largest number that a command holds."""

_TABLE_FAMILIES = ("bridge", "inet")
_SET_TYPES = frozenset(
    {"ipv4_addr", "ipv6_addr", "ifname", "ether_type", "inet_proto", "inet_service"}
    | {"icmp_type", "icmpv6_type", "ct_state"}
)
_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
_META_KEYS, _CT_KEYS = get_args(MetaKey), get_args(CtKey)
_PORTS = frozenset({"sport", "dport"})
_FIELDS = {
    "ether": {"saddr", "daddr", "type"},
    "arp": {"ptype", "htype", "hlen", "plen", "operation", "saddr ip", "saddr ether", "daddr ip", "daddr ether"},
    "ip": {"saddr", "daddr", "protocol", "frag-off"},
    "ip6": {"saddr", "daddr", "nexthdr"},
    "icmp": {"type", "code"},
    "icmpv6": {"type", "code"},
    "tcp": _PORTS | {"flags"},
    **dict.fromkeys(("udp", "udplite", "sctp", "dccp", "th"), _PORTS),
}
"""The fields of headers by protocol."""
_EXTENSION_HEADERS = ("hbh", "rt", "frag", "dst", "mh")
_REJECT_CODES = frozenset(
    {"admin-prohibited", "port-unreachable", "host-unreachable", "host-prohibited", "net-unreachable"}
    | {"net-prohibited", "prot-unreachable", "no-route", "addr-unreachable"}
)
_PER = ("second", "minute", "hour", "day", "week")
_CONSTANTS = frozenset(
    {"ip", "ip6", "arp", "vlan", "8021q", "8021ad", "ipv4", "ipv6"}  # protocols
    | {"tcp", "udp", "icmp", "icmpv6", "sctp"}
    | {"host", "unicast", "broadcast", "multicast", "anycast", "other", "local"}  # kinds of packets and addresses
    | {
        "invalid",
        "established",
        "related",
        "new",
        "untracked",
        "original",
        "reply",
        "request",
    }  # of connections; of ARP
)
"""Values that are words of nft's own."""

_INTERFACES = ("iifname", "oifname", "ibrname", "obrname")
_MASKS = ("mark",)
_BITS = ("ct state", "ct status", "tcp flags")
"""Selectors of values that are bits, each with a meaning of its own."""

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
    table = f"{_one_of(family, _TABLE_FAMILIES)} {_identifier(name)}"
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
    lines, elements = _object_lines(kind, rest)
    if elements:
        lines.append(f"elements = {{ {_wrapped(elements, 2 if body['type'] == 'ipv4_addr' else 1)} }}")
    return f"\t{kind} {_identifier(body['name'])} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}\n"


def _object_lines(kind: str, rest: Node) -> tuple[list[str], list[str]]:
    """Return the properties of a set, map or helper, one each, and its elements; ``rest`` is emptied."""
    elements: list[str] = []
    match kind:
        case "set" | "map":
            lines, elements = _set_lines(kind, rest)
        case "ct helper":
            protocol = _one_of(rest.pop("protocol"), ("tcp", "udp"))
            lines = [f"type {_quoted_identifier(rest.pop('type'))} protocol {protocol}"]
        case _:
            raise InternalError(f"nft's text has no place for {kind!r}")
    if rest:
        raise InternalError(f"nft's text has no place for {', '.join(rest)} of a {kind}")
    return lines, elements


def _set_lines(kind: str, rest: Node) -> tuple[list[str], list[str]]:
    key = rest.pop("type")
    types = " . ".join(_one_of(part, _SET_TYPES) for part in (key if isinstance(key, list) and key else [key]))
    lines = [f"type {types}" + (f" : {_one_of(rest.pop('map'), ('verdict',))}" if kind == "map" else "")]
    flags = [_one_of(flag, ("interval", "timeout")) for flag in _list(rest.pop("flags", []))]
    timeout = _whole(rest.pop("timeout")) if "timeout" in rest else None
    if "size" in rest:
        lines.append(f"size {_integer(rest.pop('size'))}")
    if timeout is not None and "timeout" in flags:
        flags = ["dynamic", *flags]  # a set that rules fill; from JSON, nft sees it by the rules
    if flags:
        lines.append(f"flags {','.join(flags)}")
    if timeout is not None:
        lines.append(f"timeout {_duration(timeout)}")
    return lines, [_element(types, element, verdicts=kind == "map") for element in _list(rest.pop("elem", []))]


def _element(key: str, element: Any, *, verdicts: bool) -> str:  # noqa: ANN401 - a value, or a value and a verdict
    of = " . ".join(_TYPED.get(kind, kind) for kind in key.split(" . "))
    if verdicts:
        value, verdict = element
        return f"{_value(of, value)} : {_verdict(verdict)}"
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
        lines.append(f"\t\t{_hook(body)}\n")
    for command in rules:
        kind, rule = _added(command)
        if kind != "rule" or rule["chain"] != body["name"]:
            raise InternalError("a chain's text holds something other than its rules")
        lines.append(f"\t\t{_rule(rule)}\n")
    return "".join([*lines, "\t}\n"])


def _hook(body: Node) -> str:
    kind, hook = _one_of(body["type"], ("filter", "nat")), _one_of(body["hook"], _HOOKS)
    priority = body["prio"]
    sign, number = ("-", -priority) if isinstance(priority, int) and priority < 0 else ("", priority)
    policy = _one_of(body["policy"], ("accept", "drop"))
    return f"type {kind} hook {hook} priority {sign}{_integer(number)}; policy {policy};"


def _rule(rule: Node) -> str:
    text = " ".join(map(_statement, _some(rule["expr"])))
    comment = _quoted(rule.get("comment", ""))
    return text if comment == '""' else f"{text} comment {comment}"


# --- statements ----------------------------------------------------------------------------------------------


def _statement(statement: Node) -> str:
    ((kind, body),) = statement.items()
    spell = _STATEMENTS.get(kind)
    if spell is None:
        raise InternalError(f"nft's text has no place for the statement {kind!r}")
    return spell(kind, body)


def _verdict(statement: Node) -> str:
    ((kind, _),) = statement.items()
    if kind not in _VERDICTS:
        raise InternalError(f"nft's text has no place for the verdict {kind!r}")
    return _statement(statement)


def _plain_statement(kind: str, body: None) -> str:
    if body is not None:
        raise InternalError(f"nft's text has no place for what belongs to {kind!r}")
    return kind


def _go(kind: str, body: Node) -> str:
    return f"{kind} {_identifier(_fields(body, {'target'})['target'])}"


def _limit(_kind: str, body: Node) -> str:
    _fields(body, {"rate", "per", "burst"}, {"inv"})
    burst = "" if body["burst"] == 5 else f" burst {_integer(body['burst'])} packets"  # nft leaves out the default 5
    over = "over " if _is_set(body, "inv") else ""
    return f"limit rate {over}{_integer(body['rate'])}/{_one_of(body['per'], _PER)}{burst}"


def _count(_kind: str, body: Node) -> str:
    _fields(body, {"val"}, {"inv"})
    return f"ct count {'over ' if _is_set(body, 'inv') else ''}{_integer(body['val'])}"


def _log(_kind: str, body: Node) -> str:
    _fields(body, {"prefix", "group"})
    return f"log prefix {_quoted(body['prefix'])} group {_integer(body['group'])}"


def _queue(_kind: str, body: Node) -> str:
    _fields(body, {"num"}, {"flags"})
    given = [_one_of(flag, ("bypass",)) for flag in _list(body.get("flags", []))]
    flags = f" flags {','.join(given)}" if given else ""
    number = body["num"]
    if isinstance(number, dict):
        first, last = _fields(number, {"range"})["range"]
        return f"queue{flags} to {_integer(first)}-{_integer(last)}"
    return f"queue{flags} to {_integer(number)}"


def _mangle(_kind: str, body: Node) -> str:
    _fields(body, {"key", "value"})
    key = _simple_selector(body["key"])
    return f"{key} set {_new_value(key, body['value'])}"


def _assign_helper(_kind: str, body: str) -> str:
    return f"ct helper set {_quoted_identifier(body)}"


def _update(_kind: str, body: Node) -> str:
    _fields(body, {"op", "elem", "set", "stmt"})
    (limit,) = body["stmt"]
    inner = _limit("limit", _fields(limit, {"limit"})["limit"])
    return f"{_one_of(body['op'], ('update',))} {_reference(body['set'])} {{ {_selector(body['elem'])} {inner} }}"


def _translate(kind: str, body: Node) -> str:
    _fields(body, {"family", "addr"})
    return f"{kind} {_one_of(body['family'], ('ip', 'ip6'))} to {_simple_selector(body['addr'])}"


def _reject(_kind: str, body: Node) -> str:
    if body == {"type": "tcp reset"}:
        return "reject with tcp reset"
    _fields(body, {"type", "expr"})
    kind = _one_of(body["type"], ("icmp", "icmpv6", "icmpx"))
    return f"reject with {kind} type {_one_of(body['expr'], _REJECT_CODES)}"


def _match(_kind: str, body: Node) -> str:
    _fields(body, {"op", "left", "right"})
    operator, left, right = body["op"], _selector(body["left"]), body["right"]
    if isinstance(right, bool):
        if operator not in ("==", "!=") or "exthdr" not in body["left"]:
            raise InternalError("nft's text has no place for a truth value there")
        return f"{left} {'exists' if right is (operator == '==') else 'missing'}"
    if isinstance(right, list) and operator != "in":
        raise InternalError(f"nft's text has no place for the operator {operator!r} before several bits")
    value = _right(left, right)
    if operator == "!=":
        return f"{left} != {value}"
    if operator == "in" and isinstance(right, list | str):
        return f"{left} {value}"
    if operator == "==":
        # without the operator nft asks whether one of the bits is set
        return f"{left} == {value}" if "&" in body["left"] or left in _BITS else f"{left} {value}"
    raise InternalError(f"nft's text has no place for the operator {operator!r}")


def _lookup(kind: str, body: Node) -> str:
    """Return a look-up in a map: a named one, or one whose pairs are written in the rule."""
    _fields(body, {"key", "data"})
    key, data = _selector(body["key"]), body["data"]
    if isinstance(data, str):
        return f"{key} {kind} {_reference(data)}"
    pairs = _some(_fields(data, {"set"})["set"])
    spelled = ((_value(key, value), _verdict(to) if kind == "vmap" else str(_integer(to))) for value, to in pairs)
    return f"{key} {kind} {{ {', '.join(f'{value} : {to}' for value, to in spelled)} }}"


def _new_value(key: str, value: Any) -> str:  # noqa: ANN401 - a constant or an expression
    if not isinstance(value, dict):
        return _value(key, value)
    ((operator, body),) = value.items()
    if operator == "map":
        return _lookup(operator, body)
    if operator not in ("&", "|"):
        raise InternalError(f"nft's text has no place for the expression {operator!r}")
    left, right = body
    return f"{_simple_selector(left)} {operator} {_value(key, right)}"


_VERDICTS = ("accept", "drop", "return", "jump", "goto")

_STATEMENTS: dict[str, Callable[[str, Any], str]] = {
    **dict.fromkeys(("accept", "drop", "return", "continue", "counter"), _plain_statement),
    **dict.fromkeys(("jump", "goto"), _go),
    "vmap": _lookup,
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
    if kind == "concat":
        return " . ".join(map(_simple_selector, _some(body)))
    if kind == "&":
        left, mask = body
        key = _simple_selector(left)
        return f"{key} & {_mask(key, mask)}"
    return _simple_selector(node)


def _simple_selector(node: Node) -> str:
    """Return the text of a selector that is one operand, whatever stands beside it."""
    ((kind, body),) = node.items()
    match kind:
        case "meta":
            key = _one_of(_fields(body, {"key"})["key"], _META_KEYS)
            return key if key in ("iifname", "oifname") else f"meta {key}"
        case "ct":
            return f"ct {_one_of(_fields(body, {'key'})['key'], _CT_KEYS)}"
        case "payload" if "base" in body:
            _fields(body, {"base", "offset", "len"})
            return f"@{_one_of(body['base'], ('ll', 'nh', 'th'))},{_integer(body['offset'])},{_integer(body['len'])}"
        case "payload":
            _fields(body, {"protocol", "field"})
            protocol = _one_of(body["protocol"], _FIELDS)
            return f"{protocol} {_one_of(body['field'], _FIELDS[protocol])}"
        case "exthdr":
            return f"exthdr {_one_of(_fields(body, {'name'})['name'], _EXTENSION_HEADERS)}"
        case "fib":
            _fields(body, {"flags", "result"})
            sides = [_one_of(side, ("saddr", "daddr")) for side in _some(body["flags"])]
            return f"fib {' . '.join(sides)} {_one_of(body['result'], ('type',))}"
    raise InternalError(f"nft's text has no place for the expression {kind!r}")


def _right(left: str, right: Any) -> str:  # noqa: ANN401 - a value, a set of them, or names of bits
    selector, masked, _ = left.partition(" & ")
    if selector == "tcp flags" and masked:
        return _flags(right)
    if selector == "ct status" and masked:
        return hex(_whole(right))
    if isinstance(right, list):
        return ",".join(map(_constant, _some(right)))
    if isinstance(right, dict) and "set" in right:
        return f"{{ {', '.join(_value(selector, value) for value in _some(_fields(right, {'set'})['set']))} }}"
    if isinstance(right, str) and right.startswith("@"):
        return _reference(right)
    return _value(selector, right)


def _flags(bits: int) -> str:
    """Spell flags of TCP: ``fin``, ``(fin | syn)``, or ``0x0`` for none."""
    if _whole(bits) >= 1 << len(TCP_FLAGS):
        raise InternalError(f"nft's text has no place for the flags {bits!r}")
    names = [name for bit, name in enumerate(TCP_FLAGS) if bits >> bit & 1]
    if not names:
        return "0x0"
    return names[0] if len(names) == 1 else f"({' | '.join(names)})"


def _mask(key: str, mask: Any) -> str:  # noqa: ANN401 - a number or an address
    if key == "tcp flags":
        return _flags(mask)
    return hex(_whole(mask)) if isinstance(mask, int) and key.split(" ")[-1] not in _MASKS else _value(key, mask)


def _value(of: str, value: Any) -> str:  # noqa: ANN401 - a constant, network, range or concatenation
    """Spell a value that is compared with the selector spelled ``of``, or is of that type of a set's elements."""
    if isinstance(value, dict):
        ((kind, body),) = value.items()
        match kind:
            case "prefix":
                _fields(body, {"addr", "len"})
                return f"{_address(body['addr'])}/{_integer(body['len'], 128)}"
            case "range":
                first, last = body
                return f"{_plain(first)}-{_plain(last)}"
            case "concat":
                return " . ".join(_value(part, one) for part, one in zip(of.split(" . "), body, strict=True))
        raise InternalError(f"nft's text has no place for the value {kind!r}")
    name = of.rpartition(" ")[2]
    if name in _INTERFACES:
        return _interface(value)
    if isinstance(value, int):
        if name in _MASKS:
            return f"0x{_whole(value):08x}"
        return _NAMES.get(of, {}).get(_whole(value)) or str(value)
    return _constant(value)


def _plain(value: Any) -> str:  # noqa: ANN401 - a number or an address
    return _integer(value) if isinstance(value, int) else _address(value)


# --- commands ------------------------------------------------------------------------------------------------


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
    _fields(body, {"family", "name"})
    return f"{_one_of(body['family'], _TABLE_FAMILIES)} {_identifier(body['name'])}"


def _named_command(_kind: str, body: Node) -> str:
    _fields(body, {"family", "table", "name"})
    return _place(body, "name")


def _place(body: Node, name: str) -> str:
    return f"{_one_of(body['family'], _TABLE_FAMILIES)} {_identifier(body['table'])} {_identifier(body[name])}"


def _chain_command(_kind: str, body: Node) -> str:
    if "hook" not in body:
        return _named_command(_kind, body)
    _fields(body, {"family", "table", "name", "type", "hook", "prio", "policy"})
    return f"{_place(body, 'name')} {{ {_hook(body)} }}"


def _object_command(kind: str, body: Node) -> str:
    rest = dict(body)
    place = _place({key: rest.pop(key) for key in ("family", "table", "name")}, "name")
    lines, elements = _object_lines(kind, rest)
    if elements:
        lines.append(f"elements = {{ {', '.join(elements)} }}")
    return f"{place} {{ {'; '.join(lines)}; }}"


def _element_command(_kind: str, body: Node) -> str:
    _fields(body, {"family", "table", "name", "elem"})
    return f"{_place(body, 'name')} {{ {', '.join(map(_untyped_element, _some(body['elem'])))} }}"


def _untyped_element(element: Any) -> str:  # noqa: ANN401 - a value, or a value and a verdict
    if isinstance(element, list):
        value, verdict = element
        return f"{_untyped(value)} : {_verdict(verdict)}"
    return _untyped(element)


def _untyped(value: Any) -> str:  # noqa: ANN401 - a value of any type
    """Spell a value of a set whose type is not known: an address, a number, or the name of an interface."""
    if isinstance(value, dict) and "concat" in value:
        return " . ".join(map(_untyped, _some(_fields(value, {"concat"})["concat"])))
    if isinstance(value, str) and not _is_address(value):
        return _interface(value)
    return _value("", value)


def _rule_command(_kind: str, body: Node) -> str:
    _fields(body, {"family", "table", "chain", "expr"}, {"comment"})
    return f"{_place(body, 'chain')} {_rule(body)}"


def _rule_by_handle(_kind: str, body: Node) -> str:
    _fields(body, {"family", "table", "chain", "handle"})
    return f"{_place(body, 'chain')} handle {_whole(body['handle'], 2**64 - 1)}"


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


# --- words ---------------------------------------------------------------------------------------------------


def _fields(body: Any, needed: AbstractSet[str], optional: AbstractSet[str] = frozenset()) -> Node:  # noqa: ANN401 - JSON
    """Return an object that has the needed keys, and none but these and the optional ones."""
    if not isinstance(body, dict) or not needed <= body.keys() <= needed | optional:
        raise InternalError(f"nft's text has no place for {str(body)[:200]}")
    return body


def _list(value: Any) -> list[Any]:  # noqa: ANN401 - JSON
    if not isinstance(value, list):
        raise InternalError(f"nft's text has no place for {str(value)[:200]}, which is no list")
    return value


def _some(value: Any) -> list[Any]:  # noqa: ANN401 - JSON
    """Return a list that is not empty."""
    if not _list(value):
        raise InternalError("nft cannot read an empty list there")
    return list(value)


def _one_of(text: Any, words: Collection[str]) -> str:  # noqa: ANN401 - JSON
    if not isinstance(text, str) or text not in words:
        raise InternalError(f"nft cannot read {str(text)[:200]!r} there")
    return text


def _is_set(body: Node, key: str) -> bool:
    value = body.get(key, False)
    if not isinstance(value, bool):
        raise InternalError(f"nft's text has no place for {str(value)[:200]}, which is no truth value")
    return value


def _whole(value: Any, most: int = _MOST) -> int:  # noqa: ANN401 - JSON
    """Return a whole number from 0 to ``most``."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise InternalError(f"nft cannot read {str(value)[:200]!r} as a number")
    return value


def _integer(value: Any, most: int = _MOST) -> str:  # noqa: ANN401 - JSON
    return str(_whole(value, most))


def _identifier(text: Any) -> str:  # noqa: ANN401 - JSON
    if not isinstance(text, str) or not _IDENTIFIER.fullmatch(text):
        raise InternalError(f"nft cannot read {text!r} as a name")
    return text


def _reference(text: Any) -> str:  # noqa: ANN401 - JSON
    if not isinstance(text, str) or not text.startswith("@"):
        raise InternalError(f"nft cannot read {text!r} as a reference")
    return f"@{_identifier(text[1:])}"


def _constant(text: Any) -> str:  # noqa: ANN401 - JSON
    return text if isinstance(text, str) and (text in _CONSTANTS or _NUMBER.fullmatch(text)) else _address(text)


def _address(text: Any) -> str:  # noqa: ANN401 - JSON
    if not isinstance(text, str) or not _is_address(text):
        raise InternalError(f"nft cannot read {text!r} as an address")
    return text


@lru_cache(maxsize=10_000)
def _is_address(text: str) -> bool:
    if _MAC.fullmatch(text):
        return True
    if not _ADDRESS.fullmatch(text) or (":" in text and "." in text and not _DOTTED.fullmatch(text)):
        return False
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _quoted(text: Any) -> str:  # noqa: ANN401 - JSON
    if not isinstance(text, str) or not _QUOTABLE.fullmatch(text):
        raise InternalError(f"nft cannot read {text!r} between quotes")
    return f'"{text}"'


def _interface(text: Any) -> str:  # noqa: ANN401 - JSON
    if not isinstance(text, str) or not _INTERFACE.fullmatch(text):
        raise InternalError(f"nft cannot read {text!r} between quotes, as an interface")
    return f'"{text}"'


def _quoted_identifier(text: Any) -> str:  # noqa: ANN401 - JSON
    if not isinstance(text, str) or not _IDENTIFIER.fullmatch(text):
        raise InternalError(f"nft cannot read {text!r} between quotes, as a name")
    return f'"{text}"'
