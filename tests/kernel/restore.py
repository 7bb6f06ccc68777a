"""Read the conditions of an iptables artefact's rules, to make probes from them.

This reader is the lab's own: it shares nothing with the compiler or the verifier. It raises on a match it
does not know, since a condition without probes is a condition without a test.
"""

from __future__ import annotations

import re
import shlex
import socket
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .artefact import Artefact
    from .network.plan import Address

Network: TypeAlias = IPv4Network | IPv6Network
Span: TypeAlias = tuple[int, int]


class RestoreError(Exception):
    """A line of the artefact says something this reader does not know."""


@dataclass(frozen=True, slots=True)
class AddressSet:
    """An ipset of networks: of all entries that hold an address the longest counts."""

    entries: tuple[tuple[Network, bool], ...]
    """Networks, and whether they are holes (``nomatch``)."""

    def holds(self, address: Address) -> bool:
        """Whether the address is in the set."""
        holding = [(net.prefixlen, not hole) for net, hole in self.entries if address in net]
        return bool(holding) and max(holding)[1]

    def edges(self) -> Iterator[int]:
        """Yield the first and last address of each entry and their neighbours."""
        for net, _ in self.entries:
            yield from _edges((int(net.network_address), int(net.broadcast_address)))


@dataclass(frozen=True, slots=True)
class Addresses:
    """A condition on an address: in one of the spans, or in a set; or, negated, not so."""

    spans: tuple[Span, ...] = ()
    named: AddressSet | None = None
    negated: bool = False

    def holds(self, address: Address) -> bool:
        """Whether the address meets the condition."""
        value = int(address)
        inside = any(first <= value <= last for first, last in self.spans)
        if self.named is not None:
            inside = self.named.holds(address)
        return inside != self.negated

    def edges(self) -> Iterator[int]:
        """Yield values just inside and just outside."""
        for span in self.spans:
            yield from _edges(span)
        if self.named is not None:
            yield from self.named.edges()


@dataclass(frozen=True, slots=True)
class Flags:
    """A condition on TCP flags: of those in ``mask`` just ``wanted`` are set; or, negated, not so."""

    mask: int
    wanted: int
    negated: bool

    def holds(self, flags: int) -> bool:
        """Whether the flags meet the condition."""
        return (flags & self.mask == self.wanted) != self.negated


@dataclass(frozen=True, slots=True)
class Rule:
    """The conditions of one rule, and its target; absent conditions are None or empty.

    ``text`` is the line. ``kinds`` are address types by side (``src``, ``dst``). ``mac`` is the address the
    rule tests, whichever way.
    """

    text: str
    chain: str
    target: str | None = None
    source: tuple[Addresses, ...] = ()
    destination: tuple[Addresses, ...] = ()
    protocol: int | None = None
    sports: tuple[Span, ...] = ()
    dports: tuple[Span, ...] = ()
    icmp: tuple[int, int | None] | None = None
    flags: Flags | None = None
    mac: str | None = None
    incoming: str | None = None
    outgoing: str | None = None
    kinds: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Ruleset:
    """The filter chains of one family."""

    family: int
    chains: dict[str, tuple[Rule, ...]]


def read(artefact: Artefact) -> dict[int, Ruleset]:
    """Return the filter rules of an iptables artefact by family.

    Raises:
        RestoreError: a line is not understood.
    """
    sets = _read_sets(artefact.part("ipset"))
    rulesets = {}
    for family, tool in ((4, "iptables-restore"), (6, "ip6tables-restore")):
        text = artefact.part(tool, "-T", "filter")
        chains: dict[str, list[Rule]] = {}
        for line in text.splitlines():
            if line.startswith("-A "):
                rule = _read_rule(line, family, sets)
                chains.setdefault(rule.chain, []).append(rule)
            elif not re.match(r"$|#|\*|:|COMMIT|-F ", line):
                raise RestoreError(f"not a restore line: {line!r}")
        rulesets[family] = Ruleset(family, {name: tuple(rules) for name, rules in chains.items()})
    return rulesets


def _read_sets(text: str) -> dict[str, AddressSet]:
    entries: dict[str, list[tuple[Network, bool]]] = {}
    for line in text.splitlines():
        match line.split():
            case ["create", name, "hash:net", *_]:
                entries[name] = []
            case ["add", name, network]:
                entries[name].append((ip_network(network), False))
            case ["add", name, network, "nomatch"]:
                entries[name].append((ip_network(network), True))
            case []:
                pass
            case _:
                raise RestoreError(f"not an ipset line: {line!r}")
    return {name: AddressSet(tuple(members)) for name, members in entries.items()}


@dataclass(slots=True)
class _Words:
    """The words of a rule, and the conditions read so far."""

    family: int
    sets: dict[str, AddressSet]
    left: list[str]
    negated: bool = False
    read: dict[str, object] = field(default_factory=dict)

    def next(self) -> str:
        return self.left.pop(0)

    def add(self, name: str, value: object) -> None:
        have = self.read.get(name, ())
        assert isinstance(have, tuple)
        self.read[name] = (*have, value)


_WITHOUT_MEANING = {
    "-m": 1,
    "--match": 1,
    "--limit": 1,
    "--limit-burst": 1,
    "--nflog-prefix": 1,
    "--nflog-group": 1,
    "--set-mark": 1,
    "--mark": 1,
    "--comment": 1,
    "--reject-with": 1,
    "--queue-num": 1,
    "--queue-balance": 1,
    "--queue-bypass": 0,
    "--ctstate": 1,
    "--physdev-is-bridged": 0,
}
"""Words that say nothing about which packets to send, and how many words follow them.

Connection states and the accept mark are met by sequences of packets that go with every ruleset.
"""

TCP_FLAGS = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32, "NONE": 0, "ALL": 63}


def _read_rule(line: str, family: int, sets: dict[str, AddressSet]) -> Rule:
    _, chain, *rest = shlex.split(line)
    words = _Words(family, sets, rest)
    while words.left:
        word = words.next()
        if word == "!":
            words.negated = True
            continue
        if word in _WITHOUT_MEANING:
            for _ in range(_WITHOUT_MEANING[word]):
                words.next()
        else:
            _read_word(word, words, line)
        words.negated = False
    return Rule(text=line, chain=chain, **words.read)  # type: ignore[arg-type]  # filled by name in _read_word


def _protocol(text: str) -> int:
    if text.isdigit():
        return int(text)
    return 58 if text in ("icmpv6", "ipv6-icmp") else socket.getprotobyname(text)


def _ports(text: str) -> tuple[Span, ...]:
    spans = []
    for piece in text.split(","):
        first, _, last = piece.partition(":")
        low = int(first) if first.isdigit() else socket.getservbyname(first)
        spans.append((low, int(last) if last else low))
    return tuple(spans)


_SIDES = {"-s": "source", "-d": "destination", "src": "source", "dst": "destination"}

_PLAIN: dict[str, tuple[str, Callable[[str], object]]] = {
    "-p": ("protocol", _protocol),
    "--sport": ("sports", _ports),
    "--sports": ("sports", _ports),
    "--dport": ("dports", _ports),
    "--dports": ("dports", _ports),
    "--mac-source": ("mac", str.lower),
    "-i": ("incoming", str),
    "--physdev-in": ("incoming", str),
    "-o": ("outgoing", str),
    "--physdev-out": ("outgoing", str),
    "-j": ("target", str),
    "-g": ("target", str),
}
"""Words followed by one value: the field of a rule it is for, and how it is read."""


def _read_word(word: str, words: _Words, line: str) -> None:
    if word in _PLAIN:
        name, reader = _PLAIN[word]
        words.read[name] = reader(words.next())
        return
    match word:
        case "-s" | "-d":
            nets = [ip_network(text) for text in words.next().split(",")]
            spans = tuple((int(net.network_address), int(net.broadcast_address)) for net in nets)
            words.add(_SIDES[word], Addresses(spans, negated=words.negated))
        case "--src-range" | "--dst-range":
            first, last = (int(ip_address(text)) for text in words.next().split("-"))
            words.add(_SIDES[word[2:5]], Addresses(((first, last),), negated=words.negated))
        case "--match-set":
            name = words.next()
            words.add(_SIDES[words.next()], Addresses(named=words.sets[name], negated=words.negated))
        case "--icmp-type" | "--icmpv6-type":
            words.read["icmp"] = _icmp(words.next(), words.family)
        case "--tcp-flags":
            mask, wanted = (sum(TCP_FLAGS[name] for name in set(words.next().split(","))) for _ in range(2))
            words.read["flags"] = Flags(mask, wanted, words.negated)
        case "--src-type" | "--dst-type":
            words.add("kinds", (word[2:5], words.next()))
        case _:
            raise RestoreError(f"{word!r} is not known here, in {line!r}")


def _icmp(text: str, family: int) -> tuple[int, int | None] | None:
    if text == "any":
        return None
    if re.fullmatch(r"\d+(/\d+)?", text):
        kind, _, code = text.partition("/")
        return int(kind), int(code) if code else None
    try:
        return ICMP_TYPES[family][text]
    except KeyError:
        raise RestoreError(f"unknown ICMP type {text!r}") from None


def _edges(span: Span) -> Iterator[int]:
    first, last = span
    yield from (first, last)
    if first > 0:
        yield first - 1
    yield last + 1


def address_of(family: int, value: int) -> Address | None:
    """Return the address with this value, or None if the family has none."""
    if not 0 < value < 1 << (32 if family == 4 else 128):
        return None
    return IPv4Address(value) if family == 4 else IPv6Address(value)


ICMP_TYPES: dict[int, dict[str, tuple[int, int | None]]] = {
    4: {
        "echo-reply": (0, None),
        "pong": (0, None),
        "destination-unreachable": (3, None),
        "network-unreachable": (3, 0),
        "host-unreachable": (3, 1),
        "protocol-unreachable": (3, 2),
        "port-unreachable": (3, 3),
        "fragmentation-needed": (3, 4),
        "source-route-failed": (3, 5),
        "network-unknown": (3, 6),
        "host-unknown": (3, 7),
        "network-prohibited": (3, 9),
        "host-prohibited": (3, 10),
        "TOS-network-unreachable": (3, 11),
        "TOS-host-unreachable": (3, 12),
        "communication-prohibited": (3, 13),
        "host-precedence-violation": (3, 14),
        "precedence-cutoff": (3, 15),
        "source-quench": (4, None),
        "redirect": (5, None),
        "network-redirect": (5, 0),
        "host-redirect": (5, 1),
        "TOS-network-redirect": (5, 2),
        "TOS-host-redirect": (5, 3),
        "echo-request": (8, None),
        "ping": (8, None),
        "router-advertisement": (9, None),
        "router-solicitation": (10, None),
        "time-exceeded": (11, None),
        "ttl-exceeded": (11, None),
        "ttl-zero-during-transit": (11, 0),
        "ttl-zero-during-reassembly": (11, 1),
        "parameter-problem": (12, None),
        "ip-header-bad": (12, 0),
        "required-option-missing": (12, 1),
        "timestamp-request": (13, None),
        "timestamp-reply": (14, None),
        "address-mask-request": (17, None),
        "address-mask-reply": (18, None),
    },
    6: {
        "destination-unreachable": (1, None),
        "no-route": (1, 0),
        "communication-prohibited": (1, 1),
        "beyond-scope": (1, 2),
        "address-unreachable": (1, 3),
        "port-unreachable": (1, 4),
        "failed-policy": (1, 5),
        "reject-route": (1, 6),
        "packet-too-big": (2, None),
        "time-exceeded": (3, None),
        "ttl-exceeded": (3, None),
        "ttl-zero-during-transit": (3, 0),
        "ttl-zero-during-reassembly": (3, 1),
        "parameter-problem": (4, None),
        "bad-header": (4, 0),
        "unknown-header-type": (4, 1),
        "unknown-option": (4, 2),
        "echo-request": (128, None),
        "ping": (128, None),
        "echo-reply": (129, None),
        "pong": (129, None),
        "router-solicitation": (133, None),
        "router-advertisement": (134, None),
        "neighbor-solicitation": (135, None),
        "neighbour-solicitation": (135, None),
        "neighbor-advertisement": (136, None),
        "neighbour-advertisement": (136, None),
        "redirect": (137, None),
    },
}
"""ICMP types and codes by the names iptables knows (``iptables -p icmp -h``, ``ip6tables -p icmpv6 -h``)."""
