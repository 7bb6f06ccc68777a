"""Statements: the parts of a rule, run from left to right until one does not match.

As in :mod:`.expressions`, each is a ``TypedDict`` of the shape libnftables reads; never change one.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypeAlias, TypedDict

from pvefw_nft.backends.nft.syntax.expressions import (
    AnonymousSet,
    BitAnd,
    BitOr,
    Constant,
    Map,
    Range,
    Right,
    Selector,
    Value,
)


class _MatchBody(TypedDict):
    op: Literal["==", "!=", "in"]
    left: Selector
    right: Right


class Match(TypedDict):
    """Go on if the comparison holds."""

    match: _MatchBody


class Accept(TypedDict):
    """The packet passes this base chain."""

    accept: None


class Drop(TypedDict):
    """The packet is gone."""

    drop: None


Return = TypedDict("Return", {"return": None})
"""Back to the chain that jumped here."""


class Target(TypedDict):
    """The name of a chain."""

    target: str


class Jump(TypedDict):
    """On to a chain, and back."""

    jump: Target


class Goto(TypedDict):
    """On to a chain, and not back."""

    goto: Target


Verdict: TypeAlias = Accept | Drop | Return | Jump | Goto


class VerdictSet(TypedDict):
    """Pairs of a value and the verdict it leads to."""

    set: list[tuple[Value, Verdict]]


class _VmapBody(TypedDict):
    key: Selector
    data: str | VerdictSet


class Vmap(TypedDict):
    """The verdict that the map, named (``@name``) or anonymous, has for the key; none: go on."""

    vmap: _VmapBody


class _RejectBody(TypedDict, total=False):
    type: Literal["tcp reset", "icmpx", "icmp", "icmpv6"]
    expr: str


class Reject(TypedDict):
    """The packet is gone and its sender is told."""

    reject: _RejectBody


class _LimitBody(TypedDict):
    rate: int
    per: str
    burst: int
    inv: NotRequired[bool]


class Limit(TypedDict):
    """Go on up to a rate of packets, or beyond it."""

    limit: _LimitBody


class _CountBody(TypedDict):
    val: int
    inv: bool


ConnectionCount = TypedDict("ConnectionCount", {"ct count": _CountBody})
"""Go on up to a number of connections, or beyond it."""


class _LogBody(TypedDict):
    prefix: str
    group: int


class Log(TypedDict):
    """Log to a netlink group."""

    log: _LogBody


class Counter(TypedDict):
    """Count packets and bytes."""

    counter: None


class _QueueBody(TypedDict, total=False):
    num: int | Range
    flags: list[str]


class Queue(TypedDict):
    """Hand the packet to a program."""

    queue: _QueueBody


class _MangleBody(TypedDict):
    key: Selector
    value: Constant | BitAnd | BitOr | Map


class Mangle(TypedDict):
    """Set a property of packet or connection."""

    mangle: _MangleBody


class _TranslationBody(TypedDict):
    family: Literal["ip", "ip6"]
    addr: Selector


class DestinationNat(TypedDict):
    """Translate the destination of a connection."""

    dnat: _TranslationBody


class SourceNat(TypedDict):
    """Translate the source of a connection."""

    snat: _TranslationBody


CtHelper = TypedDict("CtHelper", {"ct helper": str})
"""Have a helper object of this table read the connection."""


class _SetUpdateBody(TypedDict):
    op: Literal["update"]
    elem: Selector
    set: str
    stmt: list[Limit]


class SetUpdate(TypedDict):
    """Add the element or renew its timeout, and go on if its own statements do."""

    set: _SetUpdateBody


Statement: TypeAlias = (
    Match
    | Verdict
    | Vmap
    | Reject
    | Limit
    | ConnectionCount
    | Log
    | Counter
    | Queue
    | Mangle
    | CtHelper
    | SetUpdate
    | DestinationNat
    | SourceNat
)

ACCEPT: Accept = {"accept": None}
DROP: Drop = {"drop": None}
RETURN: Return = {"return": None}
COUNTER: Counter = {"counter": None}


def match(left: Selector, right: Right, op: Literal["==", "!=", "in"] = "==") -> Match:
    """Return a comparison; ``in`` asks whether one of the bits named on the right is set."""
    return {"match": {"op": op, "left": left, "right": right}}


def jump(chain: str) -> Jump:
    """Return a jump."""
    return {"jump": {"target": chain}}


def goto(chain: str) -> Goto:
    """Return a goto."""
    return {"goto": {"target": chain}}


def vmap(key: Selector, data: str | list[tuple[Value, Verdict]]) -> Vmap:
    """Return a look-up in a named map (``@name``) or in the pairs given."""
    return {"vmap": {"key": key, "data": data if isinstance(data, str) else {"set": data}}}


def reject(kind: Literal["tcp reset", "icmpx", "icmp", "icmpv6"], code: str | None = None) -> Reject:
    """Return a rejection; ``code`` is the name of the ICMP code."""
    return {"reject": {"type": kind} if code is None else {"type": kind, "expr": code}}


def limit(rate: int, per: str, burst: int, *, over: bool = False) -> Limit:
    """Return a limit of ``rate`` packets ``per`` unit of time; ``over``: match the packets beyond it."""
    body: _LimitBody = {"rate": rate, "per": per, "burst": burst}
    if over:
        body["inv"] = True
    return {"limit": body}


def connections_over(number: int) -> ConnectionCount:
    """Return a test for packets of more connections than that, of those that came to this rule."""
    return {"ct count": {"val": number, "inv": True}}


def log(prefix: str, group: int) -> Log:
    """Return a log statement."""
    return {"log": {"prefix": prefix, "group": group}}


def queue(first: int, last: int | None, *, bypass: bool) -> Queue:
    """Return a queue statement, for one queue or for several, among which connections are spread."""
    body: _QueueBody = {"num": first if last is None else {"range": [first, last]}}
    if bypass:
        body["flags"] = ["bypass"]
    return {"queue": body}


def mangle(key: Selector, value: Constant | BitAnd | BitOr | Map) -> Mangle:
    """Return a statement that sets a property."""
    return {"mangle": {"key": key, "value": value}}


def ct_helper(name: str) -> CtHelper:
    """Return a statement that assigns a helper object."""
    return {"ct helper": name}


def destination_nat(family: Literal["ip", "ip6"], address: Selector) -> DestinationNat:
    """Return a statement that translates the destination to an address of the packet."""
    return {"dnat": {"family": family, "addr": address}}


def source_nat(family: Literal["ip", "ip6"], address: Selector) -> SourceNat:
    """Return a statement that translates the source to an address of the packet."""
    return {"snat": {"family": family, "addr": address}}


def update(set_name: str, element: Selector, within: Limit) -> SetUpdate:
    """Return a statement that keeps a limit for each element of a dynamic set."""
    return {"set": {"op": "update", "elem": element, "set": f"@{set_name}", "stmt": [within]}}


__all__ = [
    "ACCEPT",
    "COUNTER",
    "DROP",
    "RETURN",
    "AnonymousSet",
    "Statement",
    "Verdict",
    "ct_helper",
    "destination_nat",
    "goto",
    "jump",
    "limit",
    "log",
    "mangle",
    "match",
    "queue",
    "reject",
    "source_nat",
    "update",
    "vmap",
]
