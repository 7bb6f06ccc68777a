"""Reads ebtables rulesets: save and restore text, and the JSON form of ``pvefw compile``.

Source: ebtables(8) and net/bridge/netfilter/ebt_*.c. The ether type of a frame comes from its own header, so a VLAN
tagged frame is ``802_1Q``. A user chain without a policy of its own lets frames off its end be accepted (``ebtables
-N`` makes it so), unlike in iptables.

Example: ``-A tap100i0-OUT -s ! bc:24:11:0:0:1 -j DROP`` tests ``ether saddr`` for all but that address.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from pvefw_nft.verify.model import (
    ACCEPT,
    ARP_HLEN,
    ARP_HTYPE,
    ARP_OP,
    ARP_PLEN,
    ARP_PTYPE,
    ARP_SHA,
    ARP_SPA,
    ARP_THA,
    ARP_TPA,
    DADDR4,
    DADDR6,
    DPORT,
    DROP,
    ETHER_DST,
    ETHER_SRC,
    ETHER_TYPE,
    IBR,
    ICMP6,
    IIF,
    IPV4,
    L4PROTO,
    MARK,
    OBR,
    OIF,
    PKTTYPE,
    PROTOCOL,
    RETURN,
    SADDR4,
    SADDR6,
    SPORT,
    VLAN_ID,
    Accept,
    Alter,
    Chain,
    Condition,
    Drop,
    Effect,
    Family,
    Field,
    Hook,
    Jump,
    Log,
    MarkTarget,
    Nat,
    Point,
    Return,
    Rule,
    SetMark,
    Table,
    TableKey,
    Test,
    UnreadChain,
    Verdict,
    equals,
    interface_set,
    mark_condition,
    names,
    negate,
    rate_test,
)
from pvefw_nft.verify.model.intervals import IntervalSet
from pvefw_nft.verify.readers.xtables.state import split_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pvefw_nft.verify.readers.shared import Reading

BUILTIN_CHAINS: dict[str, dict[str, tuple[Point, int]]] = {
    "filter": {
        "INPUT": (Point.INPUT, -200),
        "FORWARD": (Point.FORWARD, -200),
        "OUTPUT": (Point.OUTPUT, 200),
    },
    "nat": {
        "PREROUTING": (Point.PREROUTING, -300),
        "OUTPUT": (Point.OUTPUT, 100),
        "POSTROUTING": (Point.POSTROUTING, 300),
    },
    "broute": {"BROUTING": (Point.BROUTING, -400)},
}
"""The built-in chains with hook and priority (include/uapi/linux/netfilter_bridge.h)."""

OUR_HOOKS = {"FORWARD": "PVEFW-FORWARD"}
_POLICIES: dict[str, Accept | Drop | Return] = {"ACCEPT": ACCEPT, "DROP": DROP, "RETURN": RETURN}
_COUNTERS = re.compile(r"\s*-c \d+ \d+|^\[\d+:\d+\]\s*")
FULL = 0xFFFFFFFF


@dataclass(slots=True)
class EbtablesReader:
    """Reads ebtables text; ``origins`` as in the iptables reader, the table being ``filter`` and the like.

    ``digests``: chains have a digest, with which a proof knows them again. Whether these go in a circle, or lead to no
    chain, is left to the proof.
    """

    reading: Reading
    origins: Mapping[tuple[str, str, int], str] = field(default_factory=dict)
    digests: bool = False
    tables: dict[str, Table] = field(default_factory=dict)

    def read_text(self, text: str, first_line: int = 1) -> list[Table]:
        """Return the tables of ebtables-save or -restore text. Raises RulesetError, with line and chain."""
        table: Table | None = None
        for number, raw in enumerate(text.splitlines(), first_line):
            line = raw.strip()
            if not line or line.startswith("#") or line == "COMMIT":
                continue
            if line.startswith("*"):
                table = self._table(line[1:].strip(), number)
            elif table is None:
                raise self.reading.error(f"line {number}", f"outside of any table: {line}")
            elif line.startswith(":"):
                self._declare(table, line[1:].split(), number)
            else:
                self._command(table, line, number)
        return self._finish()

    def read_json(self, chains: Mapping[str, Iterable[str]]) -> list[Table]:
        """Return the table of the JSON form: ``{CHAIN: [RULE…]}``, entered from FORWARD."""
        table = self._table("filter", 0)
        for name in chains:
            table.chains.setdefault(name, Chain(name, [], ACCEPT))
        for rules in chains.values():
            for line in rules:
                self._command(table, line, 0)
        for builtin, ours in OUR_HOOKS.items():
            if ours in chains:
                self._command(table, f"-A {builtin} -j {ours}", 0)
        return self._finish()

    def _finish(self) -> list[Table]:
        for table in self.tables.values() if self.digests else ():
            table.chains.update({name: _with_digest(table, chain) for name, chain in table.chains.items()})
        return list(self.tables.values())

    def _table(self, name: str, line: int) -> Table:
        known = self.tables.get(name)
        if known is None:
            builtin = BUILTIN_CHAINS.get(name)
            if builtin is None:
                raise self.reading.error(f"line {line}", f"there is no table '{name}' in ebtables")
            known = Table(TableKey("ebtables", Family.BRIDGE, name))
            for chain, (point, priority) in builtin.items():
                hook = Hook(Family.BRIDGE, point, priority, "nat" if name == "nat" else "filter")
                known.chains[chain] = Chain(chain, [], ACCEPT, hook)
            self.tables[name] = known
        return known

    def _declare(self, table: Table, words: list[str], number: int) -> None:
        if len(words) < 2 or words[1] not in _POLICIES:
            raise self.reading.error(f"line {number}", f"not a chain with a policy: {' '.join(words)}")
        chain = table.chains.setdefault(words[0], Chain(words[0], []))
        chain.policy = _POLICIES[words[1]]

    def _command(self, table: Table, line: str, number: int) -> None:
        where = f"line {number}: table {table.key}"
        try:
            counted = "-c " in line or line.startswith("[")
            words = split_words(_COUNTERS.sub("", line) if counted else line)
        except ValueError as error:
            raise self.reading.error(where, f"cannot read '{line}': {error}") from None
        if len(words) > 1 and words[0] in ("-A", "-I") and words[1] in table.chains:
            self._rule(table, words, line, number)
        elif words[:1] == ["-N"] and len(words) == 2:
            table.chains.setdefault(words[1], Chain(words[1], [], ACCEPT))
        elif words[:1] == ["-F"] and table.chains.keys() >= set(words[1:]):
            for name in words[1:] or list(table.chains):
                table.chains[name].rules.clear()
        elif words[:1] == ["-P"] and len(words) == 3 and words[1] in table.chains and words[2] in _POLICIES:
            table.chains[words[1]].policy = _POLICIES[words[2]]
        else:
            raise self.reading.error(where, f"cannot read '{line}': no such command or chain")

    def _rule(self, table: Table, words: list[str], line: str, number: int) -> None:
        """Add the rule of a line, of these words, to its chain. Raises RulesetError."""
        chain = table.chains[words[1]]
        index = len(chain.rules) + 1 if words[0] == "-A" else 1
        place = f"table {table.key}, chain {chain.name}, rule {index}"
        try:
            conditions, effects, verdict = _Parser(self.reading, place, words[2:]).parse()
        except (ValueError, KeyError, IndexError) as error:
            raise self.reading.error(place, f"cannot read '{line}': {error}") from None
        origin = self.origins.get((table.key.name, chain.name, index), "")
        chain.rules.insert(index - 1, Rule(conditions, effects, verdict, line, origin, number))


def _with_digest(table: Table, chain: Chain) -> UnreadChain:
    """Return a chain with a digest of its rules, which say what their texts do."""
    made = UnreadChain(chain, lambda: chain.rules, may_set_zone=False)
    text = repr((str(table.key), [rule.text for rule in chain.rules]))
    made.digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=24).hexdigest()
    return made


class _Parser:
    """One rule's words."""

    def __init__(self, reading: Reading, where: str, words: list[str]) -> None:
        self.reading = reading
        self.where = where
        self.words = words
        self.position = 0
        self.conditions: list[Condition] = []
        self.effects: list[Effect] = []
        self.target = ""
        self.options: dict[str, str] = {}
        self.ether_type = 0

    def require(self, *tests: Condition) -> None:
        """Add the conditions that a match implies."""
        self.conditions += [test for test in tests if test not in self.conditions]

    def take(self) -> str:
        """Return the next word."""
        self.position += 1
        return self.words[self.position - 1]

    def peek(self) -> str:
        """Return the next word without taking it, or an empty one at the end."""
        return self.words[self.position] if self.position < len(self.words) else ""

    def parse(self) -> tuple[tuple[Condition, ...], tuple[Effect, ...], Verdict | None]:
        while self.position < len(self.words):
            word = self.take()
            inverted = word == "!"
            if inverted:
                word = self.take()
            if word in ("-j", "--jump"):
                self.target = self.take()
            elif word in _MATCHES:
                if self.peek() == "!":
                    self.take()
                    inverted = not inverted
                condition = _MATCHES[word](self, self.take())
                self.conditions.append(negate(condition) if inverted else condition)
            elif word in _SPECIAL:
                _SPECIAL[word](self)
            else:
                self._unknown(word)
        effects, verdict = self._target()
        return tuple(self.conditions), (*self.effects, *effects), verdict

    def _unknown(self, word: str) -> None:
        text = word
        while self.peek() and not self.peek().startswith("-"):
            text += f" {self.take()}"
        self.conditions.append(self.reading.unknown(self.where, text))

    def _target(self) -> tuple[tuple[Effect, ...], Verdict | None]:
        options = self.options
        name = self.target
        rest = _POLICIES.get(options.get("--target", "CONTINUE" if name in ("", "CONTINUE") else "ACCEPT"))
        if name in _POLICIES:
            return (), _POLICIES[name]
        if name in ("", "CONTINUE"):
            return (), None
        if name == "mark":
            return (SetMark(MarkTarget.PACKET, *_mark_change(options)),), rest
        if name in ("snat", "dnat", "redirect", "arpreply"):
            return (Alter(" ".join([name, *options.values()])),), rest or Nat(name)
        return (), Jump(name)


def _mark_change(options: dict[str, str]) -> tuple[int, int]:
    for name, make in _MARK_CHANGES.items():
        if name in options:
            return make(int(options[name], 0))
    raise ValueError("the mark target lacks a value")


_MARK_CHANGES: dict[str, Callable[[int], tuple[int, int]]] = {
    "--mark-set": lambda value: (0, value),
    "--set-mark": lambda value: (0, value),
    "--mark-or": lambda value: (FULL & ~value, value),
    "--mark-and": lambda value: (value, 0),
    "--mark-xor": lambda value: (FULL, value),
}

Matcher: TypeAlias = "Callable[[_Parser, str], Condition]"


def _ether_type(parser: _Parser, value: str) -> Condition:
    if value.upper() == "LENGTH":
        return Test(ETHER_TYPE, IntervalSet.of((0, 1535)))
    parser.ether_type = names.ether_type(value)
    return equals(ETHER_TYPE, parser.ether_type)


def _mac(on: Field) -> Matcher:
    groups = {
        "Unicast": "00:00:00:00:00:00/01:00:00:00:00:00",
        "Multicast": "01:00:00:00:00:00/01:00:00:00:00:00",
        "Broadcast": "ff:ff:ff:ff:ff:ff/ff:ff:ff:ff:ff:ff",
        "BGA": "01:80:c2:00:00:00/ff:ff:ff:ff:ff:ff",
    }

    def matcher(_parser: _Parser, value: str) -> Condition:
        address, slash, mask = groups.get(value, value).partition("/")
        number = names.mac_number(address)
        return Test(on, IntervalSet.masked(names.mac_number(mask), number, 48)) if slash else equals(on, number)

    return matcher


def _address(on: Field, version: int) -> Matcher:
    return lambda _parser, value: Test(on, IntervalSet.of(names.network_range(value, version)))


def _arp_address(on: Field) -> Matcher:
    """ebt_arp.c: an address matches, inverted or not, only in a packet with IPv4 addresses."""

    def matcher(parser: _Parser, value: str) -> Condition:
        parser.require(equals(ARP_PLEN, 4), equals(ARP_PTYPE, IPV4))
        return Test(on, IntervalSet.of(names.network_range(value, 4)))

    return matcher


def _arp_mac(on: Field) -> Matcher:
    """Likewise: a hardware address only in a packet with Ethernet addresses."""
    make = _mac(on)

    def matcher(parser: _Parser, value: str) -> Condition:
        parser.require(equals(ARP_HLEN, 6), equals(ARP_HTYPE, 1))
        return make(parser, value)

    return matcher


def _ports(on: Field) -> Matcher:
    def matcher(_parser: _Parser, value: str) -> Condition:
        first, colon, last = value.partition(":")
        low = names.port_number(first) if first else 0
        return Test(on, IntervalSet.of((low, (names.port_number(last) if last else 65535) if colon else low)))

    return matcher


def _arp_op(_parser: _Parser, value: str) -> Condition:
    known = {"request": 1, "reply": 2, "request_reverse": 3, "reply_reverse": 4}
    return equals(ARP_OP, known[value.lower()] if value.lower() in known else int(value))


def _packet_type(_parser: _Parser, value: str) -> Condition:
    return equals(PKTTYPE, PKTTYPE.names.index(value))


def _mark(_parser: _Parser, value: str) -> Condition:
    number, slash, mask = value.partition("/")
    if slash and not number:
        return negate(mark_condition(MARK, int(mask, 0), 0))
    return mark_condition(MARK, int(mask, 0) if slash else FULL, int(number, 0))


def _icmp6_type(_parser: _Parser, value: str) -> Condition:
    kinds, _, codes = value.partition("/")
    known = names.ICMP6_TYPES.get(kinds)
    low, _, high = (str(known[0]) if known else kinds).partition(":")
    first, _, last = (codes or "0:255").partition(":")
    ranges = [(k << 8 | int(first), k << 8 | int(last or first)) for k in range(int(low), int(high or low) + 1)]
    return Test(ICMP6, IntervalSet.from_ranges(ranges))


_MATCHES: dict[str, Matcher] = {
    **dict.fromkeys(("-p", "--protocol"), _ether_type),
    **dict.fromkeys(("-s", "--src", "--source"), _mac(ETHER_SRC)),
    **dict.fromkeys(("-d", "--dst", "--destination"), _mac(ETHER_DST)),
    **dict.fromkeys(("-i", "--in-interface"), lambda _parser, value: Test(IIF, interface_set(value))),
    **dict.fromkeys(("-o", "--out-interface"), lambda _parser, value: Test(OIF, interface_set(value))),
    "--logical-in": lambda _parser, value: Test(IBR, interface_set(value)),
    "--logical-out": lambda _parser, value: Test(OBR, interface_set(value)),
    **dict.fromkeys(("--arp-opcode", "--arp-op"), _arp_op),
    "--arp-htype": lambda _parser, value: equals(ARP_HTYPE, 1 if value == "Ethernet" else int(value, 0)),
    "--arp-ptype": lambda _parser, value: equals(ARP_PTYPE, names.ether_type(value)),
    "--arp-ip-src": _arp_address(ARP_SPA),
    "--arp-ip-dst": _arp_address(ARP_TPA),
    "--arp-mac-src": _arp_mac(ARP_SHA),
    "--arp-mac-dst": _arp_mac(ARP_THA),
    **dict.fromkeys(("--ip-source", "--ip-src"), _address(SADDR4, 4)),
    **dict.fromkeys(("--ip-destination", "--ip-dst"), _address(DADDR4, 4)),
    **dict.fromkeys(("--ip6-source", "--ip6-src"), _address(SADDR6, 6)),
    **dict.fromkeys(("--ip6-destination", "--ip6-dst"), _address(DADDR6, 6)),
    **dict.fromkeys(
        ("--ip-protocol", "--ip-proto", "--ip6-protocol", "--ip6-proto"),
        lambda _parser, value: equals(L4PROTO, names.protocol_number(value)),
    ),
    **dict.fromkeys(("--ip-source-port", "--ip-sport", "--ip6-source-port", "--ip6-sport"), _ports(SPORT)),
    **dict.fromkeys(("--ip-destination-port", "--ip-dport", "--ip6-destination-port", "--ip6-dport"), _ports(DPORT)),
    "--ip6-icmp-type": _icmp6_type,
    "--vlan-id": lambda _parser, value: equals(VLAN_ID, int(value, 0)),
    "--vlan-encap": lambda _parser, value: equals(PROTOCOL, names.ether_type(value)),
    "--pkttype-type": _packet_type,
    "--mark": _mark,
}
"""Matches of one value, which ``!`` may precede."""


def _limit(parser: _Parser) -> None:
    rate = names.rate_text(parser.take())
    burst = "5"
    if parser.peek() == "--limit-burst":
        parser.take()
        burst = parser.take()
    parser.conditions.append(rate_test(f"{rate} burst {int(burst)}", over=False))


def _log(parser: _Parser) -> None:
    level, prefix = 6, ""
    while parser.peek().startswith("--log-"):
        option = parser.take()
        if option == "--log-level":
            value = parser.take()
            level = int(value) if value.isdecimal() else names.LOG_LEVELS[value]
        elif option == "--log-prefix":
            prefix = parser.take()
    parser.effects.append(Log(prefix, level))


def _nflog(parser: _Parser) -> None:
    group, prefix = 1, ""
    while parser.peek().startswith("--nflog-"):
        option = parser.take()
        value = parser.take()
        if option == "--nflog-group":
            group = int(value)
        elif option == "--nflog-prefix":
            prefix = value
    parser.effects.append(Log(prefix, None, group))


def _log_option(parser: _Parser) -> None:
    """``--log-level`` and the like without ``--log`` before."""
    parser.position -= 1
    _log(parser)


def _nflog_option(parser: _Parser) -> None:
    parser.position -= 1
    _nflog(parser)


def _target_option(parser: _Parser) -> None:
    name = parser.words[parser.position - 1]
    known = {"--mark-target": "--target", "--snat-target": "--target", "--dnat-target": "--target"}
    known |= {"--redirect-target": "--target", "--arpreply-target": "--target"}
    parser.options[known.get(name, name)] = parser.take()


_SPECIAL: dict[str, Callable[[_Parser], None]] = {
    "--limit": _limit,
    "--log": _log,
    **dict.fromkeys(("--log-level", "--log-prefix", "--log-ip", "--log-arp", "--log-ip6"), _log_option),
    "--nflog": _nflog,
    **dict.fromkeys(("--nflog-group", "--nflog-prefix"), _nflog_option),
    **dict.fromkeys(
        (
            *_MARK_CHANGES,
            "--mark-target",
            "--to-source",
            "--to-src",
            "--snat-target",
            "--to-destination",
            "--to-dst",
            "--dnat-target",
            "--redirect-target",
            "--arpreply-mac",
            "--arpreply-target",
        ),
        _target_option,
    ),
}
"""Watchers, limits and options of targets."""
