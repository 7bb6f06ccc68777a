"""Reads the statements of nft rules: verdicts, and what changes a packet, its connection or a set."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeAlias

from pvefw_nft.verify.model import (
    ACCEPT,
    DROP,
    DSCP,
    HAS_CONNECTION,
    IPV4,
    IPV6,
    L4PROTO,
    MARK,
    PROTOCOL,
    RETURN,
    TRUE,
    TTL,
    Alter,
    Any,
    Condition,
    CopyMark,
    Family,
    Goto,
    Jump,
    Log,
    MarkTarget,
    Nat,
    Not,
    NoTrack,
    PlainVerdict,
    Queue,
    Reject,
    SetField,
    SetHelper,
    SetZone,
    UnknownVerdict,
    UpdateSet,
    VerdictMap,
    equals,
    label_field,
    names,
    rate_test,
)
from pvefw_nft.verify.readers.nft.matches import map_entries, of_member
from pvefw_nft.verify.readers.nft.parts import (
    REJECTIONS,
    any_of,
    as_integer,
    harmless,
    is_expression,
    is_over,
    label_number,
    limit_text,
    mark_bits,
    mark_change,
    mark_match,
    nat_range,
)
from pvefw_nft.verify.readers.nft.values import (
    PORTED,
    Json,
    UnknownExpressionError,
    as_list,
    as_object,
    as_pair,
    ranges_of,
    text_of,
)
from pvefw_nft.verify.readers.shared import Assume

if TYPE_CHECKING:
    from collections.abc import Callable

    from pvefw_nft.verify.readers.nft.draft import RuleDraft

Statement: TypeAlias = "Callable[[RuleDraft, Json], None]"
_SETTABLE = (DSCP, TTL)
"""Fields that a rule may set: what decides about a packet's way, or about its connection, is not among them."""
_VERDICTS: dict[str, PlainVerdict] = {"accept": ACCEPT, "drop": DROP, "return": RETURN}


def _vmap(rule: RuleDraft, body: Json) -> None:
    body = as_object(body)
    key, data = body.get("key"), body.get("data")
    members: Json = data
    if isinstance(data, str) and data.startswith("@"):
        members = rule.table.members(data)
    elif isinstance(data, dict):
        members = data.get("set")
    concat = key.get("concat") if isinstance(key, dict) else None
    parts = concat if isinstance(concat, list) else [key]
    bits = mark_bits(key)
    selectors = [] if bits is not None else [rule.selector(part) for part in parts]
    entries: list[tuple[Condition, PlainVerdict]] = []
    default: PlainVerdict | None = None
    for member in as_list(members):
        element, target = as_pair(member)
        verdict = _plain(target)
        if element == "*":
            default = verdict
        elif bits is not None:
            entries.append((mark_match(bits, None, "==", element), verdict))
        else:
            entries.append((of_member(rule, selectors, element), verdict))
    if default is not None:
        entries.append((Not(Any(tuple(condition for condition, _ in entries))), default))
    rule.verdict = VerdictMap(tuple(entries))


def _plain(body: Json) -> PlainVerdict:
    if isinstance(body, dict) and len(body) == 1:
        (kind, target), = body.items()  # fmt: skip
        if kind in _VERDICTS:
            return _VERDICTS[kind]
        if kind in ("jump", "goto") and isinstance(target, dict):
            name = sys.intern(str(target["target"]))
            return Jump(name) if kind == "jump" else Goto(name)
    raise UnknownExpressionError(text_of(body))


def _go(rule: RuleDraft, kind: str, body: Json) -> None:
    rule.verdict = _plain({kind: body})


def _count(rule: RuleDraft, body: Json) -> None:
    """``ct count over N``: more connections than that came to this rule."""
    body = as_object(body)
    rule.require(rate_test(f"{body['val']} connections", over=bool(body.get("inv"))))


def _set(rule: RuleDraft, body: Json) -> None:
    """``update @set { key limit rate over … }``: a rate of its own for each key."""
    body = as_object(body)
    statements = body.get("stmt")
    if not statements or rule.table.set_name(str(body.get("set"))) in rule.table.lookups:
        rule.effects.append(_update(rule, body))
    if not statements:
        return
    element = body.get("elem")
    if isinstance(element, dict) and "elem" in element:
        element = as_object(element["elem"])["val"]
    key = _rate_key(rule, element)
    for statement in as_list(statements):
        if not isinstance(statement, dict) or len(statement) != 1:
            raise UnknownExpressionError(text_of(statement))
        if "limit" in statement:
            limit = statement["limit"]
            counter = rule.table.set_name(str(body.get("set")))
            rule.require(rate_test(f"{limit_text(limit)} per {key}", over=is_over(limit), counter=counter))
        elif "counter" not in statement:
            raise UnknownExpressionError(text_of(statement))


def _update(rule: RuleDraft, body: dict[str, Json]) -> UpdateSet:
    """Return that a set gets or loses an element, for how long; without one said, for the set's timeout."""
    name = str(body.get("set"))
    timeout = rule.table.timeouts.get(name[1:])
    text = f"{body.get('op')} {text_of(body.get('elem'))}" + (f" timeout {timeout}" if timeout else "")
    return UpdateSet(rule.table.set_name(name), text)


def _rate_key(rule: RuleDraft, element: Json) -> str:
    mask: Json = None
    inner = element
    if isinstance(element, dict) and "&" in element:
        inner, mask = as_pair(element["&"])
    on = rule.selector(inner)
    if on.of_any_protocol and not rule.has(PORTED):
        raise UnknownExpressionError(text_of(inner))
    bits = (on.domain - 1).bit_length()
    length = bits
    if mask is not None:
        number = ranges_of(on, mask)[0][0]
        length = bits - ((number ^ ((1 << bits) - 1)).bit_length())
    return f"{on.field}/{length}"


def _reject(rule: RuleDraft, body: Json) -> None:
    kind = str(body["type"]) if isinstance(body, dict) and "type" in body else ""
    code = body.get("expr") if isinstance(body, dict) else None
    family = rule.table.family
    if not kind:
        kind = {Family.IP: "icmp", Family.IP6: "icmpv6"}.get(family, "icmpx")
    code = "port-unreachable" if code is None else code
    if kind == "tcp reset":
        if not rule.has(equals(L4PROTO, 6)):
            rule.require(equals(L4PROTO, 6))
        rule.verdict = Reject("tcp-reset", "tcp-reset")
        return
    pairs = REJECTIONS[kind]
    v4, v6 = pairs[str(code)]
    protocol = {"icmp": IPV4, "icmpv6": IPV6}.get(kind)
    if protocol is not None and family not in (Family.IP, Family.IP6):
        test = equals(PROTOCOL, protocol)
        if not rule.has(test):
            rule.require(test)
    rule.verdict = Reject(v4, v6)


def _log(rule: RuleDraft, body: Json) -> None:
    options = body if isinstance(body, dict) else {}
    group = options.get("group")
    level = options.get("level", "warn")
    if level == "audit":
        raise UnknownExpressionError("log level audit")
    rule.effects.append(
        Log(
            str(options.get("prefix", "")),
            None if group is not None else names.LOG_LEVELS[str(level)],
            int(str(group)) if group is not None else None,
        )
    )


def _mangle(rule: RuleDraft, body: Json) -> None:
    body = as_object(body)
    key, value = body.get("key"), body.get("value")
    bits = mark_bits(key)
    if bits is not None:
        target = MarkTarget.PACKET if bits is MARK else MarkTarget.CONNECTION
        change = mark_change(target, value)
        if target is MarkTarget.PACKET and isinstance(change, CopyMark):
            rule.require(HAS_CONNECTION)  # the mark of no connection cannot be read, which ends the rule
        if target is MarkTarget.CONNECTION and change.keep:
            rule.require(HAS_CONNECTION)
        rule.effects.append(change)
    elif is_expression(key, "ct", None, "zone"):
        _zone(rule, as_object(as_object(key)["ct"]).get("dir"), value)
    elif is_expression(key, "ct", None, "label") and (number := label_number(value)) is not None:
        rule.effects.append(SetField(label_field(number), 1))
    elif isinstance(key, dict) and key.keys() & {"payload"}:
        rule.effects.append(_set_field(rule, key, value))
    elif isinstance(key, dict) and harmless(key):
        rule.effects.append(Alter(f"{text_of(key)} set {text_of(value)}"))
    else:
        raise UnknownExpressionError(text_of(key))


def _set_field(rule: RuleDraft, key: dict[str, Json], value: Json) -> SetField:
    """``ip dscp set cs1``: of fields that a packet has all the way, to a constant."""
    on = rule.selector(key)
    if on.field not in _SETTABLE or on.widen is not None:
        raise UnknownExpressionError(text_of(key))
    ranges = ranges_of(on, value)
    if len(ranges) != 1 or ranges[0][0] != ranges[0][1]:
        raise UnknownExpressionError(text_of(value))
    return SetField(on.field, ranges[0][0])


def _zone(rule: RuleDraft, direction: Json, value: Json) -> None:
    """``ct zone set 5``, or by a map, anonymous or named; where the map has no entry, the rule ends."""
    entries: list[tuple[Condition, int]]
    if isinstance(value, dict) and "map" in value:
        entries = [(condition, as_integer(zone)) for condition, zone in map_entries(rule, as_object(value["map"]))]
        rule.require(any_of([condition for condition, _ in entries]))
    else:
        entries = [(TRUE, as_integer(value))]
    if any(not 0 <= zone < 1 << 16 for _, zone in entries):
        raise ValueError("a zone is a number from 0 to 65535")
    rule.effects.append(SetZone(tuple(entries), direction != "reply", direction != "original"))


def _helper(rule: RuleDraft, body: Json) -> None:
    name = str(body)
    if name not in rule.table.helpers:
        raise ValueError(f"there is no ct helper '{name}'")
    rule.effects.append(SetHelper(rule.table.helpers[name]))


def _queue(rule: RuleDraft, body: Json) -> None:
    options = body if isinstance(body, dict) else {}
    flags = options.get("flags", [])
    number = options.get("num", 0)
    first = last = 0
    if isinstance(number, int):
        first = last = number
    else:
        ends = as_pair(as_object(number).get("range"))
        first, last = as_integer(ends[0]), as_integer(ends[1])
    rule.verdict = Queue(first, last, flags == "bypass" or (isinstance(flags, list) and "bypass" in flags))


def _nat(rule: RuleDraft, kind: str, body: Json) -> None:
    options = body if isinstance(body, dict) else {}
    version = 6 if options.get("family") == "ip6" or rule.table.family is Family.IP6 else 4
    if options.get("port") is None and options.get("addr") == _own_address(kind, version):
        # nothing changes, and no rule behind this one translates the packet
        rule.require(equals(PROTOCOL, IPV6 if version == 6 else IPV4))
        rule.verdict = ACCEPT
        return
    addresses = nat_range(options.get("addr"), lambda text: names.network_range(text, version))
    ports = nat_range(options.get("port"), lambda text: (int(text), int(text)))
    rule.verdict = Nat(kind, None, addresses, ports)


def _own_address(kind: str, version: int) -> Json:
    """Return the expression for the address that a translation of this kind would replace."""
    field = "daddr" if kind == "dnat" else "saddr"
    return {"payload": {"protocol": "ip6" if version == 6 else "ip", "field": field}}


def _verdict(verdict: PlainVerdict) -> Statement:
    def handler(rule: RuleDraft, _body: Json) -> None:
        rule.verdict = verdict

    return handler


def _nothing(_rule: RuleDraft, _body: Json) -> None:
    """A statement that decides nothing and changes nothing a rule could look at."""


def _notrack(rule: RuleDraft, _body: Json) -> None:
    rule.effects.append(NoTrack())


def _translating(kind: str) -> Statement:
    return lambda rule, body: _nat(rule, kind, body)


def _xt(rule: RuleDraft, body: Json) -> None:
    """An iptables extension that nft has no words for. Its arguments are not listed: no two are known to be alike."""
    text = text_of(body)
    if isinstance(body, dict) and body.get("name") == "comment":
        return
    condition = rule.reading.unknown(rule.where, f"xt {text}", whole=False)
    rule.require(condition)
    if isinstance(body, dict) and body.get("type") == "target" and rule.reading.assume is not Assume.NOMATCH:
        rule.verdict = UnknownVerdict(f"xt {text}")


VERDICTS = {*_VERDICTS, "jump", "goto"}
"""Statements that only set the rule's verdict."""
STATEMENTS: dict[str, Statement] = {
    **{kind: _verdict(verdict) for kind, verdict in _VERDICTS.items()},
    "jump": lambda rule, body: _go(rule, "jump", body),
    "goto": lambda rule, body: _go(rule, "goto", body),
    "continue": _nothing,
    "vmap": _vmap,
    "counter": _nothing,
    "last": _nothing,
    "ct count": _count,
    "set": _set,
    "reject": _reject,
    "log": _log,
    "mangle": _mangle,
    "ct helper": _helper,
    "notrack": _notrack,
    "queue": _queue,
    "xt": _xt,
    "comment": _nothing,
    **{name: _translating(name) for name in ("dnat", "snat", "masquerade", "redirect")},
}
