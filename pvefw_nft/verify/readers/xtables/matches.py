"""The matches of iptables rules that are modelled, by module and option: iptables(8), iptables-extensions(8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.verify.model import (
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
    NO_INTERFACE,
    OIF,
    PHYSIN,
    PHYSOUT,
    PKTTYPE,
    SADDR4,
    SADDR6,
    SADDR_TYPE,
    SKGID,
    SKUID,
    SPORT,
    TCP_FLAGS,
    TTL,
    All,
    Any,
    Condition,
    Field,
    FieldKind,
    Test,
    equals,
    interface_set,
    mark_test,
    names,
    negate,
)
from pvefw_nft.verify.model.intervals import IntervalSet
from pvefw_nft.verify.readers.xtables.state import Context, Handler, State, UnknownOptionError, masked

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_CACHED = 1 << 13
"""How many conditions of an option are cached: a process that reads many rulesets must not grow."""


def hashlimit_text(held: dict[str, list[str]], version: int) -> str:
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
    def handler(_context: Context, state: State, _inverted: bool) -> None:  # noqa: FBT001
        state.held[name] = [convert(state.take())]

    return handler


def _skip_value(_context: Context, state: State, _inverted: bool) -> None:  # noqa: FBT001
    state.take()


def _test(make: Callable[[Context, str], Condition]) -> Handler:
    """Return a handler for an option whose one value makes a condition; it remembers those made."""
    cache: dict[tuple[int, str, bool], Condition] = {}

    def handler(context: Context, state: State, inverted: bool) -> None:  # noqa: FBT001
        value = state.take()
        if value == "!":
            inverted, value = True, state.take()
        key = (context.version, value, inverted)
        condition = cache.get(key)
        if condition is None:
            if len(cache) >= _MAX_CACHED:
                cache.clear()
            condition = cache[key] = _invert(make(context, value), inverted)
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
    def make(context: Context, value: str) -> Condition:
        if context.version == 4:
            return Test(v4, IntervalSet.from_ranges(names.network_range(x, 4) for x in value.split(",")))
        return Test(v6, IntervalSet.from_ranges(names.network_range(x, 6) for x in value.split(",")))

    return _test(make)


def _interface(on: Field) -> Handler:
    return _test(lambda _context, value: Test(on, interface_set(value)))


def _port(on: Field) -> Handler:
    """A bridge port: where there is none, also ``+`` does not match (xt_physdev.c)."""
    return _test(lambda _context, value: Test(on, interface_set(value) - IntervalSet.single(NO_INTERFACE)))


def _protocol(context: Context, state: State, inverted: bool) -> None:  # noqa: FBT001
    value = state.take()
    if value == "!":
        inverted, value = True, state.take()
    known = context.tests.get(("-p", value, inverted))
    if known is None:
        number = 0 if value == "all" else names.protocol_number(value)
        known = All(()) if number == 0 else _invert(equals(L4PROTO, number), inverted)
        context.tests["-p", value, inverted] = known
    if isinstance(known, Test):
        state.conditions.append(known)
    if not inverted:
        state.protocol = value


def _fragment(_context: Context, state: State, inverted: bool) -> None:  # noqa: FBT001
    state.conditions.append(Test(FRAGMENT, IntervalSet.of((0, 1) if inverted else (2, 2))))


def _module(_context: Context, state: State, _inverted: bool) -> None:  # noqa: FBT001
    name = state.take()
    if name not in MATCHES:
        raise UnknownOptionError(f"-m {name}")
    state.modules.append(name)


def _jump(_context: Context, state: State, _inverted: bool) -> None:  # noqa: FBT001
    state.target = state.take()


def _go(_context: Context, state: State, _inverted: bool) -> None:  # noqa: FBT001
    state.target, state.is_goto = state.take(), True


def _port_number(state: State, text: str) -> int:
    protocol = state.protocol if state.protocol in ("tcp", "udp", "sctp", "dccp") else None
    return names.port_number(text, protocol)


def _ports(*fields: Field, many: bool = False) -> Handler:
    """Return a handler of ``--dport 1:5`` or, ``many``, of ``--dports 1,2:5``; of two fields either may
    match.
    """

    cache: dict[tuple[str, str, bool], Condition] = {}

    def handler(_context: Context, state: State, inverted: bool) -> None:  # noqa: FBT001
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
            if len(cache) >= _MAX_CACHED:
                cache.clear()
            cache[key] = condition
        state.conditions.append(condition)

    return handler


def _tcp_flags(_context: Context, state: State, inverted: bool) -> None:  # noqa: FBT001
    mask, flags = _flag_bits(state.take()), _flag_bits(state.take())
    state.conditions.append(_invert(Test(TCP_FLAGS, IntervalSet.masked(mask, flags, 8)), inverted))


def _syn(_context: Context, state: State, inverted: bool) -> None:  # noqa: FBT001
    state.conditions.append(_invert(Test(TCP_FLAGS, IntervalSet.masked(0x17, 2, 8)), inverted))


def _flag_bits(text: str) -> int:
    bits = 0
    for name in text.split(","):
        if name == "ALL":
            bits |= 0x3F
        elif name != "NONE":
            bits |= names.TCP_FLAG_BITS[name.lower()]
    return bits


def _icmp_type(context: Context, state: State, inverted: bool) -> None:  # noqa: FBT001
    value = state.take()
    if value == "!":
        inverted, value = True, state.take()
    on, types = (ICMP, names.ICMP_TYPES) if context.version == 4 else (ICMP6, names.ICMP6_TYPES)
    known = context.tests.get(("icmp", value, inverted))
    if known is None:
        known = context.tests["icmp", value, inverted] = _invert(Test(on, names.icmp_set(value, types)), inverted)
    state.conditions.append(known)


def _match_set(context: Context, state: State, inverted: bool) -> None:  # noqa: FBT001
    name, directions = state.take(), state.take()
    if name not in context.sets.sets:
        raise ValueError(f"there is no ipset '{name}'")
    key = (name, directions, inverted)
    condition = context.tests.get(key)
    if condition is None:
        condition = context.sets.condition(name, context.version, tuple(directions.split(",")))
        condition = context.tests[key] = _invert(condition, inverted)
    state.conditions.append(condition)


def _conntrack_state(_context: Context, value: str) -> Condition:
    states = [name.lower() for name in value.split(",")]
    plain = [CT_STATES.index(name) for name in states if name in CT_STATES]
    translated = [equals(CT_STATUS[name], 1) for name in states if name in ("snat", "dnat")]
    if len(plain) + len(translated) != len(states):
        raise ValueError(f"unknown connection state in {value}")
    test = Test(CT_STATE, IntervalSet.from_ranges((number, number) for number in plain))
    return Any((test, *translated)) if translated else test


def _conntrack_status(_context: Context, value: str) -> Condition:
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


def _conntrack_direction(_context: Context, value: str) -> Condition:
    return equals(CT_DIRECTION, {"ORIGINAL": 0, "REPLY": 1}[value])


def _mark(bits: tuple[Field, ...]) -> Handler:
    def handler(_context: Context, state: State, inverted: bool) -> None:  # noqa: FBT001
        value = state.take()
        if value == "!":
            inverted, value = True, state.take()
        number, mask = masked(value)
        state.conditions.append(mark_test(bits, mask, number, inverted=inverted))

    return handler


def _limit_rate(_context: Context, state: State, inverted: bool) -> None:  # noqa: FBT001
    state.held["limit"] = [names.rate_text(state.take())]
    if inverted:
        state.held["limit-over"] = []


def _hashlimit(kept: str) -> Handler:
    def handler(_context: Context, state: State, _inverted: bool) -> None:  # noqa: FBT001
        state.held["hash-rate"] = [names.rate_text(state.take())]
        state.held["hash-kept"] = [kept]

    return handler


def _address_type(on: Field) -> Handler:
    def make(_context: Context, value: str) -> Condition:
        numbers = [ADDRESS_TYPES.index(name.lower()) for name in value.split(",")]
        return Test(on, IntervalSet.from_ranges((number, number) for number in numbers))

    return _test(make)


def _limit_interface(_context: Context, state: State, _inverted: bool) -> None:  # noqa: FBT001
    """Narrow the address type tests read so far to the routes of one interface: fields of their own."""
    for number, condition in enumerate(state.conditions):
        if isinstance(condition, Test) and condition.field in (SADDR_TYPE, DADDR_TYPE):
            name = f"{condition.field} here"
            on = Field(name, len(ADDRESS_TYPES), FieldKind.ENUM, ADDRESS_TYPES)
            state.conditions[number] = Test(on, condition.values)


def _bridged(_context: Context, state: State, inverted: bool) -> None:  # noqa: FBT001
    state.conditions.append(equals(IS_BRIDGED, 0 if inverted else 1))


def _physical(on: Field) -> Handler:
    def handler(_context: Context, state: State, inverted: bool) -> None:  # noqa: FBT001
        test = Test(on, on.everything - IntervalSet.single(NO_INTERFACE))
        state.conditions.append(negate(test) if inverted else test)

    return handler


def _numbers(on: Field, separator: str = ":") -> Handler:
    return _test(lambda _context, value: Test(on, _number_range(value, on.size, separator)))


def _packet_type(_context: Context, value: str) -> Condition:
    return equals(PKTTYPE, PKTTYPE.names.index({"unicast": "host"}.get(value, value)))


GENERAL: dict[str, Handler] = {
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
WITHOUT_VALUE = frozenset(
    (
        "--notrack", "--queue-bypass", "--queue-cpu-fanout", "--save-mark", "--restore-mark", "--random",
        "--random-fully", "--persistent", "--log-tcp-sequence", "--log-tcp-options", "--log-ip-options",
        "--log-uid", "--log-macdecode", "--clamp-mss-to-pmtu", "--checksum-fill",
    )
)  # fmt: skip
"""Options of targets without a value: the next word is not theirs."""

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
    "mac": {"--mac-source": _test(lambda _context, value: equals(ETHER_SRC, names.mac_number(value)))},
    "limit": {"--limit": _limit_rate, "--limit-burst": _hold("limit-burst")},
    "hashlimit": {
        "--hashlimit": _hashlimit("within"),
        "--hashlimit-upto": _hashlimit("within"),
        "--hashlimit-above": _hashlimit("over"),
        "--hashlimit-burst": _hold("hash-burst"),
        "--hashlimit-mode": _hold("hash-mode"),
        "--hashlimit-srcmask": _hold("hash-srcip-mask"),
        "--hashlimit-dstmask": _hold("hash-dstip-mask"),
        "--hashlimit-name": _hold("hash-name"),
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
    "iprange": {"--src-range": _addresses(SADDR4, SADDR6), "--dst-range": _addresses(DADDR4, DADDR6)},
    "physdev": {
        "--physdev-in": _port(PHYSIN),
        "--physdev-out": _port(PHYSOUT),
        "--physdev-is-in": _physical(PHYSIN),
        "--physdev-is-out": _physical(PHYSOUT),
        "--physdev-is-bridged": _bridged,
    },
    "owner": {
        "--uid-owner": _test(lambda _context, value: Test(SKUID, _number_range(value, SKUID.size, "-"))),
        "--gid-owner": _test(lambda _context, value: Test(SKGID, _number_range(value, SKGID.size, "-"))),
    },
    "pkttype": {"--pkt-type": _test(_packet_type)},
    "length": {"--length": _numbers(LENGTH)},
    "ttl": {"--ttl-eq": _numbers(TTL)},
    "hl": {"--hl-eq": _numbers(TTL)},
    "dscp": {"--dscp": _numbers(DSCP)},
    "comment": {"--comment": _skip_value},
}
"""The matches that are modelled, with their options."""

BY_PROTOCOL = {
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
