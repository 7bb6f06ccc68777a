"""Read ``ipset save`` and restore text: the members of each set, as conditions on packets.

Sources: ipset(8) and net/netfilter/ipset of Linux. Of a net set's entries the most specific one that has the
address decides, and a ``nomatch`` entry says no. In a set of several dimensions networks are tried from the
longest prefix of the first dimension down, and for each so the second.

Example: with ``add x 10.0.0.0/8`` and ``add x 10.1.0.0/16 nomatch``, ``--match-set x src`` is
``ip saddr in [10.0.0.0-10.0.255.255, 10.2.0.0-10.255.255.255]``.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from pvefw_nft.verify.model import (
    DADDR4,
    DADDR6,
    DPORT,
    ETHER_DST,
    ETHER_SRC,
    FALSE,
    ICMP,
    ICMP6,
    IIF,
    L4PROTO,
    MARK,
    OIF,
    PHYSIN,
    PHYSOUT,
    SADDR4,
    SADDR6,
    SPORT,
    All,
    Any,
    Condition,
    Field,
    Not,
    Test,
    equals,
    expiry_field,
    interface_set,
    mark_condition,
    names,
)
from pvefw_nft.verify.model.intervals import IntervalSet

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pvefw_nft.verify.readers.shared import Reading

_DIMENSIONS = {
    "bitmap:ip": ("ip",),
    "bitmap:ip,mac": ("ip", "mac"),
    "bitmap:port": ("port",),
    "hash:ip": ("ip",),
    "hash:mac": ("mac",),
    "hash:ip,mac": ("ip", "mac"),
    "hash:net": ("net",),
    "hash:net,net": ("net", "net"),
    "hash:ip,port": ("ip", "port"),
    "hash:net,port": ("net", "port"),
    "hash:ip,port,ip": ("ip", "port", "ip"),
    "hash:ip,port,net": ("ip", "port", "net"),
    "hash:net,port,net": ("net", "port", "net"),
    "hash:ip,mark": ("ip", "mark"),
    "hash:net,iface": ("net", "iface"),
    "list:set": ("set",),
}


@dataclass(slots=True)
class Entry:
    """A member: its parts as written, one a dimension, whether it is a hole (``nomatch``), and whether it expires."""

    parts: tuple[str, ...]
    nomatch: bool = False
    expires: bool = False


@dataclass(slots=True)
class IpSet:
    """A set as created, with its members; ``version`` is 4 or 6, ``options`` come from its create line."""

    name: str
    kind: str
    version: int
    options: dict[str, str] = field(default_factory=dict)
    entries: dict[tuple[str, ...], Entry] = field(default_factory=dict)

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The parts of a member: ``ip``, ``net``, ``port`` …"""
        return _DIMENSIONS[self.kind]


class IpSets:
    """All sets read, and the conditions they mean."""

    def __init__(self, sets: dict[str, IpSet] | None = None) -> None:
        self.sets = sets if sets is not None else {}
        self.lookups: set[str] = set()
        self._addresses: dict[str, IntervalSet] = {}

    def addresses(self, name: str) -> IntervalSet:
        """Return the addresses in a set of the one dimension ``ip`` or ``net``."""
        known = self._addresses.get(name)
        if known is None:
            ipset = self.sets[name]
            known = self._addresses[name] = _address_set(ipset)
        return known

    def condition(self, name: str, version: int, directions: tuple[str, ...]) -> Condition:
        """Return the condition of ``--match-set NAME DIRECTIONS`` in the rules of an IP version.

        Raises KeyError if there is no such set, ValueError if the directions are too few for it.
        """
        ipset = self.sets[name]
        self.lookups.add(name)
        if any(entry.expires for entry in ipset.entries.values()):
            return self._expiring(ipset, version, directions)
        if ipset.kind == "list:set":
            members = [self.sets[entry.parts[0]] for entry in ipset.entries.values()]
            fitting = [member.name for member in members if len(member.dimensions) <= len(directions)]
            return Any(tuple(self.condition(member, version, directions) for member in fitting))
        if len(directions) < len(ipset.dimensions):
            raise ValueError(f"set {name} has {len(ipset.dimensions)} dimensions, the rule names {directions}")
        if ipset.version != version and ipset.kind not in ("bitmap:port", "hash:mac"):
            return FALSE
        if len(ipset.dimensions) == 1 and ipset.dimensions[0] in ("ip", "net"):
            return Test(_address_field(version, directions[0]), self.addresses(name))
        return _several(ipset, version, directions)

    def _expiring(self, ipset: IpSet, version: int, directions: tuple[str, ...]) -> Condition:
        """Return the condition of a set with members that expire. The time is not compared: only its rest is saved."""
        lasting = replace(ipset, entries={k: entry for k, entry in ipset.entries.items() if not entry.expires})
        whole = replace(ipset, entries={k: replace(entry, expires=False) for k, entry in ipset.entries.items()})
        parts = [
            IpSets({**self.sets, ipset.name: one}).condition(ipset.name, version, directions)
            for one in (whole, lasting)
        ]
        return Any((All((parts[0], equals(expiry_field("a timeout"), 0))), parts[1]))


def read_ipsets(text: str, reading: Reading, first_line: int = 1) -> IpSets:
    """Return the sets of ``ipset save`` (or restore) text. Raises RulesetError, with the line."""
    sets: dict[str, IpSet] = {}
    for number, line in enumerate(text.splitlines(), first_line):
        try:
            words = line.split() if '"' not in line else shlex.split(line)
            if words and not words[0].startswith("#") and words[0] != "COMMIT":
                _command(sets, words)
        except (ValueError, KeyError, IndexError) as error:
            raise reading.error(f"line {number}", f"cannot read '{line}': {error}") from None
    for ipset in sets.values():
        for entry in ipset.entries.values():
            if ipset.kind == "list:set" and entry.parts[0] not in sets:
                raise reading.error(f"set {ipset.name}", f"its member {entry.parts[0]} is not there")
    return IpSets(sets)


def _command(sets: dict[str, IpSet], words: list[str]) -> None:
    command = words[0].lstrip("-")
    if command in ("create", "N"):
        _create(sets, words)
    elif command in ("add", "A"):
        ipset = sets[words[1]]
        parts = tuple(words[2].split(","))
        left = words[words.index("timeout", 3) + 1] if "timeout" in words[3:] else ipset.options.get("timeout", "0")
        ipset.entries[parts] = Entry(parts, "nomatch" in words[3:], left != "0")
    elif command in ("del", "D"):
        sets[words[1]].entries.pop(tuple(words[2].split(",")), None)
    elif command in ("flush", "F"):
        for name in words[1:2] or list(sets):
            sets[name].entries.clear()
    elif command in ("destroy", "X"):
        for name in words[1:2] or list(sets):
            del sets[name]
    elif command in ("swap", "W"):
        first, second = sets[words[1]], sets[words[2]]
        first.entries, second.entries = second.entries, first.entries
        first.kind, second.kind = second.kind, first.kind
    elif command in ("rename", "E"):
        ipset = sets.pop(words[1])
        ipset.name = words[2]
        sets[words[2]] = ipset
    else:
        raise ValueError(f"unknown command {words[0]}")


def _create(sets: dict[str, IpSet], words: list[str]) -> None:
    name, kind = words[1], words[2]
    if kind not in _DIMENSIONS:
        raise ValueError(f"unknown set type {kind}")
    known = sets.get(name)
    if known is not None and known.kind == kind and "-exist" in words:
        return
    options = dict(pairwise(words[3:]))
    version = 6 if options.get("family") == "inet6" else 4
    sets[name] = IpSet(name, kind, version, options)


# --- sets of addresses --------------------------------------------------------------------------------------


def _address_set(ipset: IpSet) -> IntervalSet:
    ranges = []
    holes = False
    for entry in ipset.entries.values():
        first, last = names.network_range(entry.parts[0], ipset.version)
        ranges.append((first, last, entry.nomatch))
        holes = holes or entry.nomatch
    if not holes:
        return IntervalSet.from_ranges((first, last) for first, last, _ in ranges)
    return _most_specific(ranges)


def _most_specific(ranges: Iterable[tuple[int, int, bool]]) -> IntervalSet:
    """Return the addresses whose smallest range is no hole; ranges are networks, so they nest or are apart.

    A sweep: ``open_ranges`` are those around the current position, outermost first.
    """
    inside: list[tuple[int, int]] = []
    open_ranges: list[tuple[int, bool]] = []
    position = 0

    def advance(until: int) -> None:
        nonlocal position
        while open_ranges and position < until:
            last, hole = open_ranges[-1]
            stop = min(last, until - 1)
            if not hole and position <= stop:
                inside.append((position, stop))
            position = max(position, stop + 1)
            if stop == last:
                open_ranges.pop()
        position = max(position, until)

    for first, last, hole in sorted(ranges, key=lambda r: (r[0], -r[1])):
        advance(first)
        while open_ranges and open_ranges[-1][0] < first:
            open_ranges.pop()
        open_ranges.append((last, hole))
    if open_ranges:
        advance(max(last for last, _ in open_ranges) + 1)
    return IntervalSet.from_ranges(inside)


# --- sets of several dimensions -----------------------------------------------------------------------------


def _several(ipset: IpSet, version: int, directions: tuple[str, ...]) -> Condition:
    """Return the condition of a set whose members have several parts, the most specific of them last."""
    rows = [
        (_specificity(ipset, entry), _entry_condition(ipset, entry, version, directions), entry.nomatch)
        for entry in ipset.entries.values()
    ]
    rows.sort(key=lambda row: row[0])
    if not any(nomatch for _, _, nomatch in rows):
        return Any(tuple(condition for _, condition, _ in rows))
    result: Condition = FALSE
    for _, condition, nomatch in rows:
        result = All((result, Not(condition))) if nomatch else Any((condition, result))
    return result


def _specificity(ipset: IpSet, entry: Entry) -> tuple[int, ...]:
    """Return the prefix lengths of an entry's networks, in the order of the dimensions."""
    lengths = []
    for dimension, part in zip(ipset.dimensions, entry.parts, strict=True):
        if dimension == "net":
            first, last = names.network_range(part, ipset.version)
            lengths.append(-(last - first))
    return tuple(lengths)


def _entry_condition(ipset: IpSet, entry: Entry, version: int, directions: tuple[str, ...]) -> Condition:
    parts: list[Condition] = []
    for dimension, part, direction in zip(ipset.dimensions, entry.parts, directions, strict=False):
        if dimension in ("ip", "net"):
            ends = names.network_range(part, ipset.version)
            parts.append(Test(_address_field(version, direction), IntervalSet.of(ends)))
        elif dimension == "port":
            parts.append(_port_condition(ipset.kind, part, direction))
        elif dimension == "mac":
            field_ = ETHER_SRC if direction == "src" else ETHER_DST
            parts.append(equals(field_, names.mac_number(part)))
        elif dimension == "mark":
            parts.append(mark_condition(MARK, int(ipset.options.get("markmask", "0xffffffff"), 0), int(part, 0)))
        else:
            parts.append(_interface_condition(part, direction))
    return parts[0] if len(parts) == 1 else All(tuple(parts))


def _port_condition(kind: str, part: str, direction: str) -> Condition:
    """Return the condition for ``tcp:80``, ``80``, ``udp:1-5`` or ``icmp:echo-request``."""
    protocol, colon, ports = part.rpartition(":")
    number = names.protocol_number(protocol) if colon else 6
    if number in (1, 58):
        types = names.ICMP_TYPES if number == 1 else names.ICMP6_TYPES
        return All((equals(L4PROTO, number), Test(ICMP if number == 1 else ICMP6, names.icmp_set(ports, types))))
    first, _, last = ports.partition("-")
    low = names.port_number(first)
    high = names.port_number(last) if last else low
    on = SPORT if direction == "src" else DPORT
    test = Test(on, IntervalSet.of((low, high)))
    if kind == "bitmap:port":
        return test
    return equals(L4PROTO, number) if number not in (6, 17, 33, 132, 136) else All((equals(L4PROTO, number), test))


def _interface_condition(part: str, direction: str) -> Condition:
    physical = part.startswith("physdev:")
    name = part.removeprefix("physdev:")
    if direction == "src":
        return Test(PHYSIN if physical else IIF, interface_set(name))
    return Test(PHYSOUT if physical else OIF, interface_set(name))


def _address_field(version: int, direction: str) -> Field:
    if version == 4:
        return SADDR4 if direction == "src" else DADDR4
    return SADDR6 if direction == "src" else DADDR6
