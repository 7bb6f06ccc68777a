"""Reads one iptables rule: its matches and target, meaning what iptables-extensions(8) says."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from pvefw_nft.verify import names
from pvefw_nft.verify.intervals import IntervalSet
from pvefw_nft.verify.model import (
    ACCEPT,
    ADDRESS_TYPES,
    CT_DIRECTION,
    CT_MARK,
    CT_STATE,
    CT_STATES,
    CT_STATUS,
    DADDR4,
    DADDR6,
    DADDR_TYPE,
    DPORT,
    DROP,
    DSCP,
    ETHER_SRC,
    FRAGMENT,
    ICMP,
    ICMP6,
    IIF,
    IS_BRIDGED,
    L4PROTO,
    LENGTH,
    MARK,
    OIF,
    PHYSIN,
    PHYSOUT,
    PKTTYPE,
    RETURN,
    SADDR4,
    SADDR6,
    SADDR_TYPE,
    SKGID,
    SKUID,
    SPORT,
    TCP_FLAGS,
    TTL,
    All,
    Alter,
    Any,
    Condition,
    CopyMark,
    Effect,
    Field,
    FieldKind,
    Goto,
    Jump,
    Log,
    MarkTarget,
    Nat,
    Not,
    NoTrack,
    Queue,
    Reject,
    SetHelper,
    SetMark,
    Test,
    UnknownVerdict,
    Verdict,
    equals,
    interface_set,
    mark_condition,
    negate,
    rate_test,
)
from pvefw_nft.verify.reading import Assume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pvefw_nft.verify.ipset import IpSets
    from pvefw_nft.verify.model import Table
    from pvefw_nft.verify.reading import Reading

Parsed: TypeAlias = tuple[tuple[Condition, ...], tuple[Effect, ...], Verdict | None]
FULL = 0xFFFFFFFF


_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')


def split_words(line: str) -> list[str]:
    """Return the words of a restore line; double quotes hold words together, backslashes escape within."""
    if '"' not in line:
        return line.split()
    return [plain or re.sub(r"\\(.)", r"\1", quoted) for quoted, plain in _WORD.findall(line)]


class UnknownOptionError(Exception):
    """A match or target, or an option of one, that is not modelled; its argument is the text."""


@dataclass(slots=True)
class _State:
    """A rule being read: its words and where we are; what was found so far."""

    words: list[str]
    position: int = 0
    conditions: list[Condition] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    protocol: str = ""
    target: str = ""
    is_goto: bool = False
    options: dict[str, list[str]] = field(default_factory=dict)
    held: dict[str, list[str]] = field(default_factory=dict)

    def take(self) -> str:
        """Return the next word, an option's value; raises ValueError where there is none."""
        if self.position >= len(self.words):
            raise ValueError("a value is missing at the end")
        self.position += 1
        return self.words[self.position - 1]


class RuleParser:
    """Reads the rules of one IP version. Bodies met before are not read again."""

    def __init__(self, version: int, reading: Reading, sets: IpSets) -> None:
        self.version = version
        self.reading = reading
        self.sets = sets
        self._known: dict[str, Parsed] = {}
        self._targets: dict[tuple[str, str], tuple[str, str]] = {}
        self._tests: dict[tuple[str, str, bool], Condition] = {}

    def parse(self, table: Table, chain: str, index: int, body: str) -> Parsed:
        """Return the conditions, effects and verdict of a rule's text, without ``-A CHAIN``."""
        known = self._known.get(body)
        if known is None:
            where = f"table {table.key}, chain {chain}, rule {index}"
            try:
                known = self._parse(where, body)
            except (ValueError, KeyError, IndexError) as error:
                raise self.reading.error(where, f"cannot read '{body}': {error}") from None
            if self.reading.assume is None:
                self._known[body] = known
        target = known[2]
        if isinstance(target, (Jump, Goto)):
            self._targets.setdefault((table.key.name, target.chain), (f"chain {chain}, rule {index}", body))
        return known

    def check_targets(self, tables: Iterable[Table]) -> None:
        """Raise RulesetError for a rule whose target is neither a chain of its table nor an extension we
        know.

        With an assumption, such rules stay as they were read, as an unknown verdict.
        """
        for table in tables:
            for (name, target), (where, body) in self._targets.items():
                if name == table.key.name and target not in table.chains:
                    self._unknown_target(table, where, target, body)

    def _unknown_target(self, table: Table, where: str, target: str, body: str) -> None:
        self.reading.unknown(f"table {table.key}, {where}", body)
        nomatch = self.reading.assume is Assume.NOMATCH
        for chain in table.chains.values():
            for number, rule in enumerate(chain.rules):
                if isinstance(rule.verdict, (Jump, Goto)) and rule.verdict.chain == target:
                    verdict = None if nomatch else UnknownVerdict(f"-j {target}")
                    chain.rules[number] = rule._replace(verdict=verdict)

    def _parse(self, where: str, body: str) -> Parsed:
        state = _State(split_words(body))
        words = state.words
        inverted = False
        while state.position < len(words):
            word = words[state.position]
            state.position += 1
            if word == "!":
                inverted = True
                continue
            try:
                self._option(state, word, inverted)
            except UnknownOptionError as error:
                text = self._skip_unknown(state, str(error), inverted)
                state.conditions.append(self.reading.unknown(where, text))
            inverted = False
        self._finish_held(state)
        effects, verdict = self._target(state, where)
        return tuple(state.conditions), effects, verdict

    def _skip_unknown(self, state: _State, start: str, inverted: bool) -> str:  # noqa: FBT001
        """Return the text of an unknown match, up to the next match or target."""
        words = [start]
        while state.position < len(state.words) and state.words[state.position] not in _GENERAL:
            following = state.words[state.position + 1 : state.position + 2]
            if state.words[state.position] == "!" and following and following[0] in _GENERAL:
                break
            words.append(state.words[state.position])
            state.position += 1
        return ("! " if inverted else "") + " ".join(words)

    def _option(self, state: _State, word: str, inverted: bool) -> None:  # noqa: FBT001
        general = _GENERAL.get(word)
        if general is not None:
            general(self, state, inverted)
            return
        for module in reversed(state.modules):
            handler = MATCHES[module].get(word)
            if handler is not None:
                handler(self, state, inverted)
                return
        implicit = _BY_PROTOCOL.get(state.protocol)
        handler = MATCHES[implicit].get(word) if implicit else None
        if handler is not None:
            handler(self, state, inverted)
        elif state.target and word.startswith("--"):
            values = state.options.setdefault(word, [])
            if word not in _WITHOUT_VALUE and state.position < len(state.words):
                values.append(state.take())
            while state.position < len(state.words) and not state.words[state.position].startswith("-"):
                values.append(state.take())
        else:
            raise UnknownOptionError(f"-m {state.modules[-1]} {word}" if state.modules else word)

    # --- matches that belong together --------------------------------------------------------------------

    def _finish_held(self, state: _State) -> None:
        """Make the conditions of matches whose options only mean something together."""
        held = state.held
        if "limit" in held:
            rate = held["limit"][0]
            burst = held.get("limit-burst", ["5"])[0]
            state.conditions.append(rate_test(f"{rate} burst {int(burst)}", over="limit-over" in held))
        if "hash-rate" in held:
            over = held["hash-kept"] == ["over"]
            state.conditions.append(rate_test(_hashlimit_text(held, self.version), over=over))

    # --- targets -------------------------------------------------------------------------------------------

    def _target(self, state: _State, where: str) -> tuple[tuple[Effect, ...], Verdict | None]:
        target = state.target
        if not target:
            return (), None
        if state.is_goto:
            return (), Goto(sys.intern(target))
        plain = _PLAIN_TARGETS.get(target)
        if plain is not None:
            return (), plain
        maker = _TARGETS.get(target)
        if maker is None:
            if state.options:
                self.reading.unknown(where, " ".join([f"-j {target}", *state.options]))
                return (), None if self.reading.assume is Assume.NOMATCH else UnknownVerdict(f"-j {target}")
            return (), Jump(sys.intern(target))
        options = dict(state.options)
        effects, verdict = maker(self, options)
        if options:
            self.reading.unknown(where, f"-j {target} {' '.join(options)}")
        return effects, verdict


Handler: TypeAlias = "Callable[[RuleParser, _State, bool], None]"


# --- helpers ------------------------------------------------------------------------------------------------


def _hashlimit_text(held: dict[str, list[str]], version: int) -> str:
    """Return the canonical text of a hashlimit match's rate: ``200/second burst 1000 per ip saddr/32``."""
    bits = 32 if version == 4 else 128
    family = "ip" if version == 4 else "ip6"
    keys = []
    modes = [mode for mode in held.get("hash-mode", [""])[0].split(",") if mode]
    for mode in sorted(modes):
        if mode in ("srcip", "dstip"):
            mask = held.get(f"hash-{mode}-mask", [str(bits)])[0]
            keys.append(f"{family} {'saddr' if mode == 'srcip' else 'daddr'}/{int(mask)}")
        elif mode in ("srcport", "dstport"):
            keys.append("sport" if mode == "srcport" else "dport")
        else:
            raise ValueError(f"unknown hashlimit mode {mode}")
    per = f" per {', '.join(keys)}" if keys else ""
    return f"{held['hash-rate'][0]} burst {int(held.get('hash-burst', ['5'])[0])}{per}"


def _invert(condition: Condition, inverted: bool) -> Condition:  # noqa: FBT001
    return negate(condition) if inverted else condition


def _hold(name: str, convert: Callable[[str], str] = str) -> Handler:
    def handler(_parser: RuleParser, state: _State, _inverted: bool) -> None:  # noqa: FBT001
        state.held[name] = [convert(state.take())]

    return handler


def _skip_value(_parser: RuleParser, state: _State, _inverted: bool) -> None:  # noqa: FBT001
    state.take()


def _nothing(_parser: RuleParser, _state: _State, _inverted: bool) -> None:  # noqa: FBT001
    return


def _test(make: Callable[[RuleParser, str], Condition]) -> Handler:
    """Return a handler for an option whose one value makes a condition; it remembers those made."""
    cache: dict[tuple[int, str, bool], Condition] = {}

    def handler(parser: RuleParser, state: _State, inverted: bool) -> None:  # noqa: FBT001
        value = state.take()
        if value == "!":
            inverted, value = True, state.take()
        key = (parser.version, value, inverted)
        condition = cache.get(key)
        if condition is None:
            condition = cache[key] = _invert(make(parser, value), inverted)
        state.conditions.append(condition)

    return handler


def _number_range(text: str, size: int, separator: str = ":") -> IntervalSet:
    first, colon, last = text.partition(separator)
    low = int(first, 0) if first else 0
    high = (int(last, 0) if last else size - 1) if colon else low
    if high >= size:
        raise ValueError(f"{text} is too large")
    return IntervalSet.of((low, high))


def _addresses(v4: Field, v6: Field) -> Handler:
    def make(parser: RuleParser, value: str) -> Condition:
        if parser.version == 4:
            return Test(v4, IntervalSet.from_ranges(names.network_range(x, 4) for x in value.split(",")))
        return Test(v6, IntervalSet.from_ranges(names.network_range(x, 6) for x in value.split(",")))

    return _test(make)


def _interface(on: Field) -> Handler:
    return _test(lambda _parser, value: Test(on, interface_set(value)))


def _protocol(parser: RuleParser, state: _State, inverted: bool) -> None:  # noqa: FBT001
    value = state.take()
    if value == "!":
        inverted, value = True, state.take()
    known = parser._tests.get(("-p", value, inverted))
    if known is None:
        number = 0 if value == "all" else names.protocol_number(value)
        known = All(()) if number == 0 else _invert(equals(L4PROTO, number), inverted)
        parser._tests["-p", value, inverted] = known
    if isinstance(known, Test):
        state.conditions.append(known)
    if not inverted:
        state.protocol = value


def _fragment(_parser: RuleParser, state: _State, inverted: bool) -> None:  # noqa: FBT001
    state.conditions.append(Test(FRAGMENT, IntervalSet.of((0, 1) if inverted else (2, 2))))


def _module(_parser: RuleParser, state: _State, _inverted: bool) -> None:  # noqa: FBT001
    name = state.take()
    if name not in MATCHES:
        raise UnknownOptionError(f"-m {name}")
    state.modules.append(name)


def _jump(_parser: RuleParser, state: _State, _inverted: bool) -> None:  # noqa: FBT001
    state.target = state.take()


def _go(_parser: RuleParser, state: _State, _inverted: bool) -> None:  # noqa: FBT001
    state.target, state.is_goto = state.take(), True


def _port_number(state: _State, text: str) -> int:
    protocol = state.protocol if state.protocol in ("tcp", "udp", "sctp", "dccp") else None
    return names.port_number(text, protocol)


def _ports(*fields: Field, many: bool = False) -> Handler:
    """Return a handler of ``--dport 1:5`` or, ``many``, of ``--dports 1,2:5``; of two fields either may
    match.
    """

    cache: dict[tuple[str, str, bool], Condition] = {}

    def handler(_parser: RuleParser, state: _State, inverted: bool) -> None:  # noqa: FBT001
        value = state.take()
        if value == "!":
            inverted, value = True, state.take()
        key = (state.protocol, value, inverted)
        condition = cache.get(key)
        if condition is None:
            ranges = []
            for part in value.split(",") if many else [value]:
                first, colon, last = part.partition(":")
                low = _port_number(state, first) if first else 0
                ranges.append((low, (_port_number(state, last) if last else 65535) if colon else low))
            values = IntervalSet.from_ranges(ranges)
            tests = tuple(Test(on, values) for on in fields)
            condition = _invert(tests[0] if len(tests) == 1 else Any(tests), inverted)
            cache[key] = condition
        state.conditions.append(condition)

    return handler


def _tcp_flags(_parser: RuleParser, state: _State, inverted: bool) -> None:  # noqa: FBT001
    mask, flags = _flag_bits(state.take()), _flag_bits(state.take())
    state.conditions.append(_invert(Test(TCP_FLAGS, IntervalSet.masked(mask, flags, 8)), inverted))


def _syn(_parser: RuleParser, state: _State, inverted: bool) -> None:  # noqa: FBT001
    state.conditions.append(_invert(Test(TCP_FLAGS, IntervalSet.masked(0x17, 2, 8)), inverted))


def _flag_bits(text: str) -> int:
    bits = 0
    for name in text.split(","):
        if name == "ALL":
            bits |= 0x3F
        elif name != "NONE":
            bits |= names.TCP_FLAG_BITS[name.lower()]
    return bits


def _icmp_type(parser: RuleParser, state: _State, inverted: bool) -> None:  # noqa: FBT001
    value = state.take()
    if value == "!":
        inverted, value = True, state.take()
    on, types = (ICMP, names.ICMP_TYPES) if parser.version == 4 else (ICMP6, names.ICMP6_TYPES)
    known = parser._tests.get(("icmp", value, inverted))
    if known is None:
        known = parser._tests["icmp", value, inverted] = _invert(Test(on, names.icmp_set(value, types)), inverted)
    state.conditions.append(known)


def _match_set(parser: RuleParser, state: _State, inverted: bool) -> None:  # noqa: FBT001
    name, directions = state.take(), state.take()
    if name not in parser.sets.sets:
        raise ValueError(f"there is no ipset '{name}'")
    key = (name, directions, inverted)
    condition = parser._tests.get(key)
    if condition is None:
        condition = parser.sets.condition(name, parser.version, tuple(directions.split(",")))
        condition = parser._tests[key] = _invert(condition, inverted)
    state.conditions.append(condition)


def _conntrack_state(_parser: RuleParser, value: str) -> Condition:
    states = [name.lower() for name in value.split(",")]
    plain = [CT_STATES.index(name) for name in states if name in CT_STATES]
    translated = [equals(CT_STATUS[name], 1) for name in states if name in ("snat", "dnat")]
    if len(plain) + len(translated) != len(states):
        raise ValueError(f"unknown connection state in {value}")
    test = Test(CT_STATE, IntervalSet.from_ranges((number, number) for number in plain))
    return Any((test, *translated)) if translated else test


def _conntrack_status(_parser: RuleParser, value: str) -> Condition:
    named = {
        "EXPECTED": "expected",
        "SEEN_REPLY": "seen-reply",
        "ASSURED": "assured",
        "CONFIRMED": "confirmed",
    }
    bits = []
    for name in value.split(","):
        if name == "NONE":
            return All(tuple(equals(bit, 0) for bit in CT_STATUS.values()))
        bits.append(equals(CT_STATUS[named[name]], 1))
    return bits[0] if len(bits) == 1 else Any(tuple(bits))


def _conntrack_direction(_parser: RuleParser, value: str) -> Condition:
    return equals(CT_DIRECTION, {"ORIGINAL": 0, "REPLY": 1}[value])


def _mark(bits: tuple[Field, ...]) -> Handler:
    def make(_parser: RuleParser, value: str) -> Condition:
        number, mask = _masked(value)
        return mark_condition(bits, mask, number)

    return _test(make)


def _masked(value: str) -> tuple[int, int]:
    number, slash, mask = value.partition("/")
    return int(number, 0), int(mask, 0) if slash else FULL


def _limit_rate(_parser: RuleParser, state: _State, inverted: bool) -> None:  # noqa: FBT001
    state.held["limit"] = [names.rate_text(state.take())]
    if inverted:
        state.held["limit-over"] = []


def _hashlimit(kept: str) -> Handler:
    def handler(_parser: RuleParser, state: _State, _inverted: bool) -> None:  # noqa: FBT001
        state.held["hash-rate"] = [names.rate_text(state.take())]
        state.held["hash-kept"] = [kept]

    return handler


def _address_type(on: Field) -> Handler:
    def make(_parser: RuleParser, value: str) -> Condition:
        numbers = [ADDRESS_TYPES.index(name.lower()) for name in value.split(",")]
        return Test(on, IntervalSet.from_ranges((number, number) for number in numbers))

    return _test(make)


def _limit_interface(_parser: RuleParser, state: _State, _inverted: bool) -> None:  # noqa: FBT001
    """Narrow the address type tests read so far to the routes of one interface: fields of their own."""
    for number, condition in enumerate(state.conditions):
        if isinstance(condition, Test) and condition.field in (SADDR_TYPE, DADDR_TYPE):
            name = f"{condition.field} here"
            on = Field(name, len(ADDRESS_TYPES), FieldKind.ENUM, ADDRESS_TYPES)
            state.conditions[number] = Test(on, condition.values)


def _range(v4: Field, v6: Field) -> Handler:
    return _addresses(v4, v6)


def _bridged(_parser: RuleParser, state: _State, inverted: bool) -> None:  # noqa: FBT001
    state.conditions.append(equals(IS_BRIDGED, 0 if inverted else 1))


def _physical(on: Field) -> Handler:
    def handler(_parser: RuleParser, state: _State, inverted: bool) -> None:  # noqa: FBT001
        test = Test(on, on.everything)
        state.conditions.append(Not(test) if inverted else test)

    return handler


def _numbers(on: Field, separator: str = ":") -> Handler:
    return _test(lambda _parser, value: Test(on, _number_range(value, on.size, separator)))


def _packet_type(_parser: RuleParser, value: str) -> Condition:
    return equals(PKTTYPE, PKTTYPE.names.index({"unicast": "host"}.get(value, value)))


_GENERAL: dict[str, Handler] = {
    "-p": _protocol,
    "--protocol": _protocol,
    "--proto": _protocol,
    "-s": _addresses(SADDR4, SADDR6),
    "--source": _addresses(SADDR4, SADDR6),
    "--src": _addresses(SADDR4, SADDR6),
    "-d": _addresses(DADDR4, DADDR6),
    "--destination": _addresses(DADDR4, DADDR6),
    "--dst": _addresses(DADDR4, DADDR6),
    "-i": _interface(IIF),
    "--in-interface": _interface(IIF),
    "-o": _interface(OIF),
    "--out-interface": _interface(OIF),
    "-f": _fragment,
    "--fragment": _fragment,
    "-m": _module,
    "--match": _module,
    "-j": _jump,
    "--jump": _jump,
    "-g": _go,
    "--goto": _go,
}
_WITHOUT_VALUE = frozenset(
    (
        "--notrack", "--queue-bypass", "--queue-cpu-fanout", "--save-mark", "--restore-mark", "--random",
        "--random-fully", "--persistent", "--log-tcp-sequence", "--log-tcp-options", "--log-ip-options",
        "--log-uid", "--log-macdecode", "--clamp-mss-to-pmtu", "--checksum-fill",
    )
)  # fmt: skip
"""Options of targets that stand alone: what follows is not their value."""

_SPORT: dict[str, Handler] = {"--sport": _ports(SPORT), "--source-port": _ports(SPORT)}
_DPORT: dict[str, Handler] = {"--dport": _ports(DPORT), "--destination-port": _ports(DPORT)}
_PORTS = {**_SPORT, **_DPORT}

MATCHES: dict[str, dict[str, Handler]] = {
    "tcp": {**_PORTS, "--tcp-flags": _tcp_flags, "--syn": _syn},
    "udp": _PORTS,
    "udplite": _PORTS,
    "sctp": _PORTS,
    "dccp": _PORTS,
    "multiport": {
        "--sports": _ports(SPORT, many=True),
        "--source-ports": _ports(SPORT, many=True),
        "--dports": _ports(DPORT, many=True),
        "--destination-ports": _ports(DPORT, many=True),
        "--ports": _ports(SPORT, DPORT, many=True),
    },
    "icmp": {"--icmp-type": _icmp_type},
    "icmp6": {"--icmpv6-type": _icmp_type},
    "icmpv6": {"--icmpv6-type": _icmp_type},
    "ipv6-icmp": {"--icmpv6-type": _icmp_type},
    "set": {"--match-set": _match_set, "--set": _match_set},
    "conntrack": {
        "--ctstate": _test(_conntrack_state),
        "--ctstatus": _test(_conntrack_status),
        "--ctdir": _test(_conntrack_direction),
    },
    "state": {"--state": _test(_conntrack_state)},
    "mark": {"--mark": _mark(MARK)},
    "connmark": {"--mark": _mark(CT_MARK)},
    "mac": {"--mac-source": _test(lambda _parser, value: equals(ETHER_SRC, names.mac_number(value)))},
    "limit": {"--limit": _limit_rate, "--limit-burst": _hold("limit-burst")},
    "hashlimit": {
        "--hashlimit": _hashlimit("within"),
        "--hashlimit-upto": _hashlimit("within"),
        "--hashlimit-above": _hashlimit("over"),
        "--hashlimit-burst": _hold("hash-burst"),
        "--hashlimit-mode": _hold("hash-mode"),
        "--hashlimit-srcmask": _hold("hash-srcip-mask"),
        "--hashlimit-dstmask": _hold("hash-dstip-mask"),
        "--hashlimit-name": _skip_value,
        "--hashlimit-htable-size": _skip_value,
        "--hashlimit-htable-max": _skip_value,
        "--hashlimit-htable-expire": _skip_value,
        "--hashlimit-htable-gcinterval": _skip_value,
    },
    "addrtype": {
        "--src-type": _address_type(SADDR_TYPE),
        "--dst-type": _address_type(DADDR_TYPE),
        "--limit-iface-in": _limit_interface,
        "--limit-iface-out": _limit_interface,
    },
    "iprange": {"--src-range": _range(SADDR4, SADDR6), "--dst-range": _range(DADDR4, DADDR6)},
    "physdev": {
        "--physdev-in": _interface(PHYSIN),
        "--physdev-out": _interface(PHYSOUT),
        "--physdev-is-in": _physical(PHYSIN),
        "--physdev-is-out": _physical(PHYSOUT),
        "--physdev-is-bridged": _bridged,
    },
    "owner": {
        "--uid-owner": _test(lambda _parser, value: Test(SKUID, _number_range(value, SKUID.size, "-"))),
        "--gid-owner": _test(lambda _parser, value: Test(SKGID, _number_range(value, SKGID.size, "-"))),
    },
    "pkttype": {"--pkt-type": _test(_packet_type)},
    "length": {"--length": _numbers(LENGTH)},
    "ttl": {"--ttl-eq": _numbers(TTL)},
    "hl": {"--hl-eq": _numbers(TTL)},
    "dscp": {"--dscp": _numbers(DSCP)},
    "comment": {"--comment": _skip_value},
}
"""The matches that are modelled, with their options."""

_BY_PROTOCOL = {
    "tcp": "tcp",
    "udp": "udp",
    "udplite": "udplite",
    "sctp": "sctp",
    "dccp": "dccp",
    "icmp": "icmp",
    "icmpv6": "icmpv6",
    "ipv6-icmp": "icmpv6",
    "6": "tcp",
    "17": "udp",
    "136": "udplite",
    "132": "sctp",
    "33": "dccp",
    "1": "icmp",
    "58": "icmpv6",
}


# --- targets ------------------------------------------------------------------------------------------------

Options: TypeAlias = dict[str, list[str]]
Made: TypeAlias = tuple[tuple[Effect, ...], Verdict | None]


def _one(options: Options, name: str) -> str | None:
    values = options.pop(name, None)
    return values[0] if values else None


def _reject(parser: RuleParser, options: Options) -> Made:
    name = _one(options, "--reject-with")
    if parser.version == 4:
        return (), Reject(names.REJECT_KINDS4[name or "icmp-port-unreachable"], None)
    return (), Reject(None, names.REJECT_KINDS6[name or "icmp6-port-unreachable"])


def _log(_parser: RuleParser, options: Options) -> Made:
    level = _one(options, "--log-level") or "warning"
    prefix = _one(options, "--log-prefix") or ""
    for name in (
        "--log-tcp-sequence",
        "--log-tcp-options",
        "--log-ip-options",
        "--log-uid",
        "--log-macdecode",
    ):
        options.pop(name, None)
    return (Log(prefix, int(level) if level.isdecimal() else names.LOG_LEVELS[level]),), None


def _nflog(_parser: RuleParser, options: Options) -> Made:
    group = _one(options, "--nflog-group") or "0"
    prefix = _one(options, "--nflog-prefix") or ""
    for name in ("--nflog-range", "--nflog-size", "--nflog-threshold"):
        options.pop(name, None)
    return (Log(prefix, None, int(group)),), None


def _set_mark(target: MarkTarget, options: Options) -> Made:
    """MARK and CONNMARK; each of their forms as ``(mark & keep) ^ flip``."""
    if (value := _one(options, "--set-mark")) is not None:
        number, mask = _masked(value)
        return (SetMark(target, FULL & ~(mask | number), number),), None
    if (value := _one(options, "--set-xmark")) is not None:
        number, mask = _masked(value)
        return (SetMark(target, FULL & ~mask, number),), None
    if (value := _one(options, "--and-mark")) is not None:
        return (SetMark(target, int(value, 0), 0),), None
    if (value := _one(options, "--or-mark")) is not None:
        return (SetMark(target, FULL & ~int(value, 0), int(value, 0)),), None
    if (value := _one(options, "--xor-mark")) is not None:
        return (SetMark(target, FULL, int(value, 0)),), None
    raise ValueError("a mark target without a value")


def _mark_target(_parser: RuleParser, options: Options) -> Made:
    return _set_mark(MarkTarget.PACKET, options)


def _connmark_target(_parser: RuleParser, options: Options) -> Made:
    for name, target in (("--save-mark", MarkTarget.CONNECTION), ("--restore-mark", MarkTarget.PACKET)):
        if options.pop(name, None) is not None:
            mask = _one(options, "--mask")
            packet = int(_one(options, "--nfmask") or mask or hex(FULL), 0)
            connection = int(_one(options, "--ctmask") or mask or hex(FULL), 0)
            written, read = (connection, packet) if target is MarkTarget.CONNECTION else (packet, connection)
            return (CopyMark(target, FULL & ~written, read),), None
    return _set_mark(MarkTarget.CONNECTION, options)


def _conntrack_target(_parser: RuleParser, options: Options) -> Made:
    if options.pop("--notrack", None) is not None:
        return (NoTrack(),), None
    helper = _one(options, "--helper")
    if helper is None:
        return (), None
    return (SetHelper(helper),), None


def _queue(_parser: RuleParser, options: Options) -> Made:
    bypass = options.pop("--queue-bypass", None) is not None
    options.pop("--queue-cpu-fanout", None)
    balance = _one(options, "--queue-balance")
    number = _one(options, "--queue-num")
    first, _, last = (balance or number or "0").partition(":")
    return (), Queue(int(first), int(last or first), bypass)


def _nat(kind: str, option: str) -> Callable[[RuleParser, Options], Made]:
    def maker(parser: RuleParser, options: Options) -> Made:
        for name in ("--random", "--random-fully", "--persistent"):
            options.pop(name, None)
        to = _one(options, option)
        return (), _nat_to(kind, to, parser.version) if to else Nat(kind)

    return maker


def _nat_to(kind: str, to: str, version: int) -> Nat:
    """Return the translation to ``ADDRESS[-ADDRESS][:PORT[-PORT]]``, or to ``PORT[-PORT]`` alone."""
    if kind in ("redirect", "masquerade"):
        address, ports = "", to
    elif version == 6 and to.startswith("["):
        address, _, ports = to[1:].partition("]")
        ports = ports.removeprefix(":")
    elif version == 6:
        address, ports = to, ""
    else:
        address, _, ports = to.partition(":")
    first, _, last = ports.partition("/")[0].partition("-")
    return Nat(
        kind,
        addresses=names.network_range(address, version) if address else None,
        ports=(int(first), int(last or first)) if first else None,
    )


def _altering(target: str) -> Callable[[RuleParser, Options], Made]:
    def maker(_parser: RuleParser, options: Options) -> Made:
        text = " ".join([target, *(" ".join((name, *values)) for name, values in options.items())])
        options.clear()
        return (Alter(text),), None

    return maker


_PLAIN_TARGETS: dict[str, Verdict] = {"ACCEPT": ACCEPT, "DROP": DROP, "RETURN": RETURN}
_TARGETS: dict[str, Callable[[RuleParser, Options], Made]] = {
    "REJECT": _reject,
    "LOG": _log,
    "NFLOG": _nflog,
    "MARK": _mark_target,
    "CONNMARK": _connmark_target,
    "CT": _conntrack_target,
    "NOTRACK": lambda _parser, _options: ((NoTrack(),), None),
    "NFQUEUE": _queue,
    "QUEUE": _queue,
    "DNAT": _nat("dnat", "--to-destination"),
    "SNAT": _nat("snat", "--to-source"),
    "MASQUERADE": _nat("masquerade", "--to-ports"),
    "REDIRECT": _nat("redirect", "--to-ports"),
    **{
        name: _altering(name)
        for name in ("TCPMSS", "TTL", "HL", "TOS", "DSCP", "CHECKSUM", "CLASSIFY", "TRACE", "SET", "AUDIT")
    },
}
