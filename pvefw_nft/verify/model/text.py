"""Writes the model for people: values, conditions, verdicts, rules and packets, much like nft and iptables
do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from pvefw_nft.verify.model import (
    CT_MARK,
    CT_STATE,
    DADDR4,
    DADDR6,
    DPORT,
    ICMP,
    ICMP6,
    L4PROTO,
    MARK,
    PROTOCOL,
    SADDR4,
    SADDR6,
    SPORT,
    TCP_FLAGS,
    Accept,
    All,
    Alter,
    Condition,
    CopyMark,
    Drop,
    Effect,
    Field,
    FieldKind,
    Goto,
    Guard,
    Jump,
    Log,
    Nat,
    Not,
    NoTrack,
    Queue,
    Reject,
    Return,
    Rule,
    SetField,
    SetHelper,
    SetMark,
    SetZone,
    Test,
    UnknownVerdict,
    UpdateSet,
    Verdict,
    VerdictMap,
    interface_name,
    interface_number,
    names,
    rate_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pvefw_nft.verify.model.intervals import IntervalSet

_MAX_ENTRIES = 4
"""Up to how many entries a verdict map is written out."""
_PROTOCOLS = {1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 33: "dccp", 47: "gre", 50: "esp", 51: "ah"}
_PROTOCOLS |= {58: "icmpv6", 89: "ospf", 103: "pim", 112: "vrrp", 132: "sctp", 136: "udplite"}
_ETHERTYPES = {0x0800: "ip", 0x86DD: "ip6", 0x0806: "arp", 0x8100: "vlan", 0x8035: "rarp", 0x88A8: "8021ad"}


def value_text(on: Field, value: int) -> str:
    """Return one value of a field as people write it."""
    match on.kind:
        case FieldKind.IPV4:
            return names.address_text(value, 4)
        case FieldKind.IPV6:
            return names.address_text(value, 6)
        case FieldKind.MAC:
            return names.mac_text(value)
        case FieldKind.INTERFACE:
            return interface_name(value)
        case FieldKind.PROTOCOL:
            return _PROTOCOLS.get(value, str(value))
        case FieldKind.ETHERTYPE:
            return _ETHERTYPES.get(value, f"{value:#06x}")
        case FieldKind.ICMP:
            return _icmp_text(on, value, value)
        case FieldKind.TCP_FLAGS:
            return _flags_text(value)
        case FieldKind.ENUM:
            return on.names[value]
        case FieldKind.NUMBER | FieldKind.BIT:
            return str(value)


def parse_value(on: Field, text: str) -> int:
    """Return the value of a field that :func:`value_text` writes so; raises ValueError."""
    value = _PARSERS[on.kind](on, text)
    if not 0 <= value < on.size:
        raise ValueError(f"{on} is below {on.size}, not {text}")
    return value


def _parse_enum(on: Field, text: str) -> int:
    if text not in on.names:
        raise ValueError(f"{on} is one of {', '.join(on.names)}, not {text}")
    return on.names.index(text)


def _parse_icmp(on: Field, text: str) -> int:
    return names.icmp_set(text, names.ICMP_TYPES if on is ICMP else names.ICMP6_TYPES).smallest()


_PARSERS: dict[FieldKind, Callable[[Field, str], int]] = {
    FieldKind.IPV4: lambda _on, text: names.address_number(text, 4),
    FieldKind.IPV6: lambda _on, text: names.address_number(text, 6),
    FieldKind.MAC: lambda _on, text: names.mac_number(text),
    FieldKind.INTERFACE: lambda _on, text: interface_number(text),
    FieldKind.PROTOCOL: lambda _on, text: names.protocol_number(text),
    FieldKind.ETHERTYPE: lambda _on, text: names.ether_type(text),
    FieldKind.ICMP: _parse_icmp,
    FieldKind.TCP_FLAGS: lambda _on, text: names.tcp_flags(text),
    FieldKind.ENUM: _parse_enum,
    FieldKind.NUMBER: lambda _on, text: int(text, 0),
    FieldKind.BIT: lambda _on, text: int(text, 0),
}


def _flags_text(value: int) -> str:
    found = [name for name, bit in names.TCP_FLAG_BITS.items() if value & bit and name != "ecn"]
    return ",".join(found) or "none"


def _masked_flags(values: IntervalSet) -> str:
    """Return a set of flags as ``syn/fin,syn,rst,ack``, the values of the named bits; empty if it is none."""
    members = [value for first, last in values for value in range(first, last + 1)]
    mask, value = 0xFF, members[0]
    for member in members:
        mask &= ~(member ^ value)
    if len(members) != 1 << (8 - mask.bit_count()):
        return ""
    return f"{_flags_text(value & mask)}/{_flags_text(mask)}"


def _icmp_text(on: Field, first: int, last: int) -> str:
    types = names.ICMP_TYPES if on is ICMP else names.ICMP6_TYPES
    if first >> 8 != last >> 8:
        return f"{first >> 8}-{last >> 8}"
    for name, (kind, low, high) in types.items():
        if (kind << 8 | low, kind << 8 | high) == (first, last) and name != "any":
            return name
    if first == last:
        known = next((n for n, (k, low, high) in types.items() if k == first >> 8 and high == 0xFF), None)
        return f"{known or first >> 8}/{first & 0xFF}"
    return str(first >> 8)


def range_text(on: Field, first: int, last: int) -> str:
    """Return a range of a field's values: a prefix where it is one, a wildcard for interfaces."""
    if first == last:
        return value_text(on, first)
    if on.kind is FieldKind.ICMP:
        return _icmp_text(on, first, last)
    if on.kind in (FieldKind.IPV4, FieldKind.IPV6):
        size = last - first + 1
        if size & (size - 1) == 0 and first % size == 0:
            bits = 32 if on.kind is FieldKind.IPV4 else 128
            return f"{value_text(on, first)}/{bits - size.bit_length() + 1}"
    if on.kind is FieldKind.INTERFACE:
        return interface_name(first) + "*"
    return f"{value_text(on, first)}-{value_text(on, last)}"


def set_text(on: Field, values: IntervalSet, limit: int = 6) -> str:
    """Return a set of a field's values: ``22``, ``{ 22, 80-90 }`` or, where shorter, ``not 22``."""
    if values is on.everything:
        return "any"
    if not values:
        return "nothing"
    outside = values.complement(on.size)
    if on.kind is FieldKind.TCP_FLAGS and not _masked_flags(values) and outside and _masked_flags(outside):
        return f"not {_masked_flags(outside)}"
    if len(outside) < len(values) or (len(values) == len(outside) and outside.count() == 1 < values.count()):
        return f"not {set_text(on, outside, limit)}"
    if on.kind is FieldKind.TCP_FLAGS and (masked := _masked_flags(values)):
        return masked
    if on.kind in (FieldKind.ENUM, FieldKind.TCP_FLAGS):
        parts = [value_text(on, value) for first, last in values for value in range(first, last + 1)]
    else:
        parts = [range_text(on, first, last) for first, last in values]
    if len(parts) == 1:
        return parts[0]
    shown = ", ".join(parts[:limit])
    return f"{{ {shown}, … ({len(parts)} in all) }}" if len(parts) > limit else f"{{ {shown} }}"


def condition_text(condition: Condition) -> str:
    """Return a condition in words: ``dport 22``, ``mark 0x80000000/0x80000000``, ``not (…)``."""
    if isinstance(condition, Test):
        if (rate := rate_of(condition.field)) is not None:
            words = [word for value, word in ((0, "within"), (1, "over")) if value in condition.values]
            return f"{' or '.join(words)} {rate}"
        mark = _mark_text((condition,))
        return mark or f"{condition.field} {set_text(condition.field, condition.values)}"
    if isinstance(condition, Not):
        return f"not ({condition_text(condition.of)})"
    if isinstance(condition, All):
        tests = tuple(part for part in condition.of if isinstance(part, Test))
        mark = _mark_text(tests) if len(tests) == len(condition.of) else ""
        return mark or " and ".join(condition_text(part) for part in condition.of) or "always"
    shown = [condition_text(part) for part in condition.of[:4]]
    more = [f"… ({len(condition.of)} in all)"] if len(condition.of) > 4 else []
    return "(" + " or ".join(shown + more) + ")" if condition.of else "never"


def _mark_text(tests: tuple[Test, ...]) -> str:
    """Return tests of the bits of one mark as ``mark VALUE/MASK``; empty if they are something else."""
    for name, bits in (("mark", MARK), ("ct mark", CT_MARK)):
        if tests and all(test.field in bits and len(test.values) == 1 for test in tests):
            mask = value = 0
            for test in tests:
                bit = 1 << bits.index(test.field)
                mask |= bit
                value |= bit if 1 in test.values else 0
            return f"{name} {value:#x}" + ("" if mask == 0xFFFFFFFF else f"/{mask:#x}")
    return ""


def verdict_text(verdict: Verdict | None) -> str:
    """Return the text of a rule's verdict."""
    match verdict:
        case None:
            return "continue"
        case Accept():
            return "accept"
        case Drop():
            return "drop"
        case Return():
            return "return"
        case Jump(chain):
            return f"jump {chain}"
        case Goto(chain):
            return f"goto {chain}"
        case Reject(v4, v6):
            return f"reject ({v4 or v6})" if v4 == v6 or None in (v4, v6) else f"reject ({v4}, {v6})"
        case Queue(first, last, bypass):
            return f"queue {first if first == last else f'{first}-{last}'}" + (" bypass" if bypass else "")
        case Nat():
            return nat_text(verdict)
        case UnknownVerdict(text):
            return f"unknown: {text}"
        case VerdictMap():
            return _map_text(verdict)
        case _:
            assert_never(verdict)


def _map_text(verdict: VerdictMap) -> str:
    """Return a verdict map, a short one with its entries: ``map { ct state new: accept, ct state invalid: drop }``."""
    if len(verdict.entries) > _MAX_ENTRIES:
        return f"verdict map of {len(verdict.entries)}"
    listed = (f"{condition_text(condition)}: {verdict_text(entry)}" for condition, entry in verdict.entries)
    return f"map {{ {', '.join(listed)} }}"


def nat_text(nat: Nat, on: Field | None = None) -> str:
    """Return a translation: ``dnat to 10.0.0.5 port 80``, ``masquerade``. ``on`` says how addresses are written."""
    words = [nat.kind]
    if nat.addresses is not None:
        on = on or (SADDR6 if nat.addresses[1] >> 32 else SADDR4)
        words.append(f"to {range_text(on, *nat.addresses)}")
    if nat.ports is not None:
        words.append(f"{'' if nat.addresses else 'to '}port {range_text(DPORT, *nat.ports)}")
    return " ".join(words)


def effect_text(effect: Effect) -> str:
    """Return the text of a rule's other effects."""
    match effect:
        case Log(prefix, level, group):
            return f'log "{prefix}"' + (f" group {group}" if group is not None else f" level {level}")
        case SetMark(target, keep, flip):
            if keep == 0:
                return f"{target.value} set {flip:#x}"
            return f"{target.value} set & {keep:#x} ^ {flip:#x}"
        case CopyMark(target):
            return f"{target.value} set from the other mark"
        case SetHelper(name):
            return f"ct helper {name}"
        case NoTrack():
            return "notrack"
        case SetZone(entries):
            return f"ct zone {entries[0][1]}" if len(entries) == 1 else f"ct zone map of {len(entries)}"
        case SetField(on, value):
            return f"{on} set {value_text(on, value)}" if isinstance(value, int) else f"{on} changed"
        case UpdateSet(_, text) | Alter(text):
            return text
        case Guard(condition):
            return f"only if {condition_text(condition)}"
        case _:
            assert_never(effect)


def rule_text(rule: Rule) -> str:
    """Return a rule as it was read, or, from JSON, in words of the model."""
    if rule.text:
        return rule.text
    parts = [condition_text(condition) for condition in rule.conditions]
    parts += [effect_text(effect) for effect in rule.effects]
    return ", ".join([*parts, verdict_text(rule.verdict)])


def packet_text(packet: Mapping[Field, int]) -> str:
    """Return a packet in short: ``tcp 10.0.0.1:40000 → 10.0.0.2:22``."""
    protocol = packet.get(PROTOCOL, 0)
    if L4PROTO not in packet:
        return value_text(PROTOCOL, protocol)
    source, destination = (SADDR4, DADDR4) if SADDR4 in packet else (SADDR6, DADDR6)
    ends = []
    for address, port in ((source, SPORT), (destination, DPORT)):
        text = value_text(address, packet[address]) if address in packet else "?"
        if port in packet:
            text = f"[{text}]:{packet[port]}" if ":" in text else f"{text}:{packet[port]}"
        ends.append(text)
    extra = [value_text(L4PROTO, packet[L4PROTO])]
    extra += [value_text(on, packet[on]) for on in (ICMP, ICMP6) if on in packet]
    if TCP_FLAGS in packet and packet[TCP_FLAGS] != 2:
        extra.append(f"flags {_flags_text(packet[TCP_FLAGS])}")
    state = value_text(CT_STATE, packet[CT_STATE]) if CT_STATE in packet else "new"
    return f"{' '.join(extra)} {' → '.join(ends)}" + ("" if state == "new" else f", {state}")
