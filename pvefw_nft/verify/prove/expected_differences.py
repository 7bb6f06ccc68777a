"""Differences that are expected, each with its reason.

A file of the user's is TOML, a table ``[[difference]]`` for each::

    [[difference]]
    reason = "the old ruleset let SSH in from the office"
    from = "outside"                 # zones, with * and ?; default: any
    to = ["vm100", "vm101*"]
    protocol = "tcp"                 # tcp, udp, icmp, icmpv6 or a number
    dport = "22"                     # ports and ranges: "22", "5900-5999", [22, "80-90"]
    sport = 1024
    source = "10.0.0.0/8"            # addresses, networks or ranges, also lists
    dest = ["10.0.0.1-10.0.0.9"]
    family = 4                       # 4, 6; default: both
    tagged = false                   # VLAN-tagged frames or untagged ones; default: both

All that is given must hold for a packet to be expected to differ.
"""

from __future__ import annotations

import ipaddress
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from pvefw_nft.errors import UsageError
from pvefw_nft.verify import model as m
from pvefw_nft.verify.model.intervals import IntervalSet
from pvefw_nft.verify.network.path import End, NicEnd, PortEnd, RoutedEnd

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pvefw_nft.verify.prove.flows import PathPair
    from pvefw_nft.verify.prove.program import Case

_PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58, "sctp": 132, "gre": 47, "esp": 50}
_KEYS = ("reason", "from", "to", "protocol", "dport", "sport", "source", "dest", "family", "tagged")


@dataclass(frozen=True, slots=True)
class Known:
    """Packets that may differ, and why. ``sources`` and ``destinations`` are patterns of zones; empty: any.

    ``tests`` hold for IPv4, ``tests6`` for IPv6 packets; None: no packet of that version.
    """

    reason: str
    sources: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()
    tests: tuple[m.Condition, ...] | None = ()
    tests6: tuple[m.Condition, ...] | None = ()
    tagged: bool | None = None

    def concerns(self, way: PathPair, case: Case) -> bool:
        """Whether a way and kind of frame may hold such packets."""
        if self.tagged is not None and self.tagged != case.tagged:
            return False
        return _named(way.source, self.sources) and _named(way.destination, self.destinations)

    def condition(self, case: Case) -> m.Condition:
        """Return the condition on packets of a case."""
        tests = self.tests6 if case.protocol == m.IPV6 else self.tests
        if tests is None or (tests and not case.is_ip):
            return m.FALSE
        return m.All(tests)


def _named(end: End, patterns: tuple[str, ...]) -> bool:
    names = [str(end)]
    if isinstance(end, NicEnd):
        names += [end.nic.zone, end.nic.interface]
    elif isinstance(end, (PortEnd, RoutedEnd)):
        names.append("outside")
    return not patterns or any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def read_known(text: str, source: str) -> tuple[Known, ...]:
    """Return the differences that a TOML text lists; ``source`` names it in errors.

    Raises UsageError if it is no such file, naming the entry.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{source}: {error}", hint="see 'known differences' in the manual") from None
    entries = document.get("difference", [])
    if set(document) - {"difference"} or not isinstance(entries, list):
        raise UsageError(f"{source}: only [[difference]] tables are known")
    found = []
    for number, entry in enumerate(entries, 1):
        try:
            found.append(_entry(entry))
        except ValueError as error:
            raise UsageError(f"{source}: difference {number}: {error}") from None
    return tuple(found)


def _entry(entry: object) -> Known:
    if not isinstance(entry, dict):
        raise ValueError("not a table")
    for key in entry:
        if key not in _KEYS:
            raise ValueError(f"there is no '{key}'; known are {', '.join(_KEYS)}")
    if not isinstance(entry.get("reason"), str) or not entry["reason"].strip():
        raise ValueError("a 'reason' is missing")
    tagged = entry.get("tagged")
    if not isinstance(tagged, bool | None):
        raise ValueError("'tagged' is true or false")
    family = entry.get("family")
    if family not in (None, 4, 6):
        raise ValueError("'family' is 4 or 6")
    tests = _tests(entry)
    by_version = [_addresses(entry, version) if family in (None, version) else None for version in (4, 6)]
    return Known(
        entry["reason"].strip(),
        tuple(_words(entry.get("from", []))),
        tuple(_words(entry.get("to", []))),
        None if by_version[0] is None else (*tests, *by_version[0]),
        None if by_version[1] is None else (*tests, *by_version[1]),
        tagged,
    )


def _words(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    for one in values:
        if isinstance(one, bool) or not isinstance(one, (str, int)):
            raise ValueError(f"not a name or number: {one!r}")
    return [str(one) for one in values]


def _tests(entry: Mapping[str, object]) -> tuple[m.Condition, ...]:
    tests: list[m.Condition] = []
    if "protocol" in entry:
        numbers = [_PROTOCOLS.get(word) or _number(word, 255) for word in _words(entry["protocol"])]
        tests.append(m.Test(m.L4PROTO, IntervalSet.from_ranges((n, n) for n in numbers)))
    for key, on in (("dport", m.DPORT), ("sport", m.SPORT)):
        if key in entry:
            ranges = [_port_range(word) for word in _words(entry[key])]
            tests.append(m.Test(on, IntervalSet.from_ranges(ranges)))
    return tuple(tests)


def _number(word: str, most: int) -> int:
    if not word.isascii() or not word.isdigit() or int(word) > most:
        raise ValueError(f"not a number up to {most}: '{word}'")
    return int(word)


def _port_range(word: str) -> tuple[int, int]:
    first, dash, last = word.partition("-")
    start = _number(first, 65535)
    return start, _number(last, 65535) if dash else start


def _addresses(entry: Mapping[str, object], version: int) -> tuple[m.Condition, ...] | None:
    """The tests of addresses of one version; None if the entry only lists the other's."""
    tests: list[m.Condition] = []
    fields = {"source": (m.SADDR4, m.SADDR6), "dest": (m.DADDR4, m.DADDR6)}
    for key, both in fields.items():
        if key not in entry:
            continue
        ranges = [(first, last) for v, first, last in map(_address_range, _words(entry[key])) if v == version]
        if not ranges:
            return None
        tests.append(m.Test(both[version == 6], IntervalSet.from_ranges(ranges)))
    return tuple(tests)


def _address_range(word: str) -> tuple[int, int, int]:
    first, dash, last = word.partition("-")
    if dash:
        low, high = ipaddress.ip_address(first), ipaddress.ip_address(last)
        if low.version != high.version or int(low) > int(high):
            raise ValueError(f"not a range: '{word}'")
        return low.version, int(low), int(high)
    network = ipaddress.ip_network(word, strict=False)
    return network.version, int(network.network_address), int(network.broadcast_address)
