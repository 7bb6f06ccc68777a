"""The values of the ``.fw`` language: addresses, ports, protocols and limits, and how they are read.

Every reader takes the text of one value and returns a frozen value, or raises :class:`BadValue`, which says
the mistake, its place in the text, and the probable intention. Values keep the user's spelling beside their
meaning, since a ruleset is easier to recognise when it uses the words of its configuration.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING

from pvefw_nft.config import netdb
from pvefw_nft.config.budget import comparisons

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_PORTS = 15
"""Ports in one list; the limit of iptables' multiport match; a range takes two (iptables-extensions(8))."""

MAX_PARAMETER = 1023
"""Characters in one word of a rule; the limit of iptables-restore (xt_param_buf in its xshared.h)."""


class BadValue(ValueError):  # noqa: N818 - a finding about a value, turned into a diagnostic
    """A value that cannot be read: ``start`` and ``end`` are the offsets of the bad part within its text."""

    def __init__(self, message: str, *, start: int, end: int, hint: str | None = None, code: str) -> None:
        super().__init__(message)
        self.message = message
        self.start = start
        self.end = end
        self.hint = hint
        self.code = code

    def moved(self, offset: int) -> BadValue:
        """Return the same finding about a value whose text starts ``offset`` columns into another one."""
        return BadValue(self.message, start=self.start + offset, end=self.end + offset, hint=self.hint, code=self.code)


class Family(IntEnum):
    """The IP families a rule speaks of. As numbers, ``a & b`` is not 0 if two have something in common."""

    V4 = 1
    V6 = 2
    BOTH = 3


_BY_NUMBER = (None, Family.V4, Family.V6, Family.BOTH)


def common(first: Family, second: Family) -> Family | None:
    """Return the families that are in both, or None if there are none."""
    return _BY_NUMBER[first & second]


@dataclass(frozen=True, slots=True)
class Prefix:
    """A network: ``address`` is its first address as an integer, ``length`` its prefix length in bits."""

    version: int
    address: int
    length: int
    spelling: str

    @property
    def last(self) -> int:
        """The network's last address."""
        return self.address | ((1 << ((32 if self.version == 4 else 128) - self.length)) - 1)

    @property
    def canonical(self) -> str:
        """The network in its shortest form: lower case, compressed, without ``/32`` or ``/128``."""
        text = address_text(self.version, self.address)
        return text if self.length == (32 if self.version == 4 else 128) else f"{text}/{self.length}"


@dataclass(frozen=True, slots=True)
class Range:
    """Addresses from ``first`` to ``last``, both included, as integers of one family."""

    version: int
    first: int
    last: int
    spelling: str


@dataclass(frozen=True, slots=True)
class Protocol:
    """An IP protocol by number (1 to 255; 0 would mean any and is refused)."""

    number: int
    spelling: str


@dataclass(frozen=True, slots=True)
class PortRange:
    """Ports from ``first`` to ``last``, both included."""

    first: int
    last: int
    spelling: str


@dataclass(frozen=True, slots=True)
class SetKey:
    """The name of an address set: the VMID it belongs to (0: the cluster) and the name in the configuration."""

    scope: int
    name: str


DEFAULT_BURST = 5
"""Packets that a limit without a burst of its own lets through at once (iptables-extensions(8))."""

_LIMIT_SCALE = 10_000
"""Units of the limit match in a second (XT_LIMIT_SCALE in xt_limit.h): a packet costs a whole number of them."""

_LIMIT_CREDIT = 86400 * _LIMIT_SCALE
"""Cost of a burst that always fits the kernel's counter of 32 bits, at any HZ (CREDITS_PER_JIFFY in xt_limit.c)."""

_MAX_BURST = 10_000
"""Largest burst of the limit match (libxt_limit.c)."""

_RATE_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most ``number`` packets per ``unit`` (second, minute, hour, day), with a burst, as the configuration says.

    ``burst`` is None if the configuration does not set it; the tool then takes 5 packets (iptables-extensions(8)).
    """

    number: int
    unit: str
    burst: int | None
    spelling: str

    def loadable(self) -> RateLimit:
        """Return the nearest limit that the kernel's tools accept and count right: mostly the same.

        Before: 20000/second, burst 0. After: 10000/second, burst 1.
        """
        seconds = _RATE_UNITS[self.unit]
        number = min(self.number, _LIMIT_SCALE * seconds)
        cost = max(_LIMIT_SCALE * seconds // number, 1)
        wanted = DEFAULT_BURST if self.burst is None else self.burst
        burst = max(1, min(wanted, _MAX_BURST, _LIMIT_CREDIT // cost))
        if number == self.number and burst == wanted:
            return self
        return RateLimit(number, self.unit, burst, f"{number}/{self.unit}")


def address_text(version: int, address: int) -> str:
    """Return an address as text: dotted quad, or IPv6 in the compressed lower-case form of RFC 5952."""
    if version == 4:
        return socket.inet_ntop(socket.AF_INET, address.to_bytes(4, "big"))
    return socket.inet_ntop(socket.AF_INET6, address.to_bytes(16, "big"))


def _address(text: str) -> tuple[int, int] | None:
    """Return the IP version and the address of ``text`` as an integer, or None."""
    try:
        if ":" in text:
            return 6, int.from_bytes(socket.inet_pton(socket.AF_INET6, text), "big")
        return 4, int.from_bytes(socket.inet_pton(socket.AF_INET, text), "big")
    except (OSError, ValueError):
        return None


def looks_like_address(text: str) -> bool:
    """Tell whether a word is meant as an address rather than as the name of an alias (which starts with a letter)."""
    return ":" in text or text[:1].isdigit()


@lru_cache(maxsize=65536)
def read_prefix(text: str) -> Prefix:
    """Read one address or CIDR network without host bits.

    Raises BadValue for anything else; for host bits, the hint names the network meant.
    """
    prefix, host_bits = read_network(text)
    if host_bits:
        raise BadValue(
            f"`{text}` has host bits set",
            start=0,
            end=len(text),
            code="host-bits",
            hint=f"the network is {prefix.canonical}; the host alone is {text.partition('/')[0]}",
        )
    return prefix


def read_network(text: str) -> tuple[Prefix, bool]:
    """Read one address or CIDR network. Returns the network, and whether host bits were set in the text.

    The kernel's tools clear host bits (iptables(8), ipset(8)). Raises BadValue for anything else.
    """
    host, slash, length_text = text.partition("/")
    address = _address(host)
    if address is None:
        raise BadValue(
            f"`{host}` is not an IPv4 or IPv6 address",
            start=0,
            end=len(host),
            code="bad-address",
            hint=_address_hint(host),
        )
    version, number = address
    width = 32 if version == 4 else 128
    if not slash:
        return Prefix(version, number, width, text), False
    if not (length_text.isascii() and length_text.isdigit()) or (length_text[0] == "0" and length_text != "0"):
        raise BadValue(
            f"`{length_text}` is not a prefix length",
            start=len(host) + 1,
            end=len(text),
            code="bad-address",
            hint=f"write a number from 0 to {width} after the slash",
        )
    # int() refuses very long texts, which are out of range in any case
    length = int(length_text) if len(length_text) < 4 else 999
    if length > width:
        raise BadValue(
            f"prefix length {length_text} is longer than an IPv{version} address",
            start=len(host) + 1,
            end=len(text),
            code="bad-address",
            hint=f"IPv{version} prefixes have at most {width} bits",
        )
    network = number >> (width - length) << (width - length)
    return Prefix(version, network, length, text), network != number


def _address_hint(host: str) -> str | None:
    octets = host.split(".")
    # isdigit() alone also takes digits that int() refuses, such as ²
    if len(octets) == 4 and all(octet.isascii() and octet.isdigit() for octet in octets):
        plain = [octet.lstrip("0") or "0" for octet in octets]
        if plain != octets and all(len(octet) < 4 for octet in plain):
            return f"write it without leading zeros: {'.'.join(plain)}"
        return "each part of an IPv4 address lies between 0 and 255"
    return None


def read_addresses(text: str) -> tuple[Prefix, ...] | Range:
    """Read the address of a rule that is neither alias nor set: an address, a CIDR, a list of them, or a range.

    Raises BadValue for mixed families, for ranges inside lists, for lists that are too long for iptables-restore, and
    for a text that is no address.
    """
    if "," in text:
        if len(text) > MAX_PARAMETER:
            raise BadValue(
                f"the list is longer than {MAX_PARAMETER} characters",
                start=0,
                end=len(text),
                code="too-long",
                hint="put its addresses into an ipset",
            )
        return _read_list(text)
    first, dash, last = text.partition("-")
    if dash:
        return _read_range(text, first, last)
    return (read_prefix(text),)


def _read_list(text: str) -> tuple[Prefix, ...]:
    prefixes: list[Prefix] = []
    start = 0
    for element in text.split(","):
        end = start + len(element)
        if not element:
            raise BadValue(
                "empty element in the list",
                start=max(start - 1, 0),
                end=end + 1,
                code="bad-address",
                hint="remove the extra comma",
            )
        # iptables takes ranges by a match of their own (iprange), one for each rule
        if not looks_like_address(element) or "-" in element:
            raise BadValue(
                f"`{element}` cannot be part of a list",
                start=start,
                end=end,
                code="bad-address",
                hint="a list holds addresses and networks only; give ranges, aliases and sets a rule of their own",
            )
        try:
            prefix = read_prefix(element)
        except BadValue as bad:
            raise bad.moved(start) from None
        if prefixes and prefix.version != prefixes[0].version:
            raise BadValue(
                "the list mixes IPv4 and IPv6",
                start=start,
                end=end,
                code="mixed-families",
                hint="write one rule for each family, or use an ipset, which may hold both",
            )
        prefixes.append(prefix)
        start = end + 1
    return tuple(prefixes)


def _read_range(text: str, first: str, last: str) -> Range:
    low, high = _address(first), _address(last)
    offset = len(first) + 1
    if low is None:
        raise BadValue(f"`{first}` is not an address", start=0, end=len(first), code="bad-address")
    if high is None:
        raise BadValue(
            f"`{last}` is not an address",
            start=offset,
            end=len(text),
            code="bad-address",
            hint="a range is FIRST-LAST, two whole addresses",
        )
    if low[0] != high[0]:
        raise BadValue("the range mixes IPv4 and IPv6", start=0, end=len(text), code="mixed-families")
    if low[1] > high[1]:
        raise BadValue(
            "the range ends before it begins",
            start=0,
            end=len(text),
            code="bad-address",
            hint=f"write {last}-{first}",
        )
    return Range(low[0], low[1], high[1], text)


PORT_PROTOCOLS = {6: "tcp", 17: "udp", 33: "dccp", 132: "sctp", 136: "udplite"}
"""The protocols that have ports, by number."""


@netdb.rests_on_names
@lru_cache(maxsize=4096)
def read_protocol(text: str) -> Protocol:
    """Read a protocol: a name or alias of /etc/protocols, ``icmpv6``, or a number from 1 to 255. Raises BadValue.

    An alias is spelled by the protocol's name: iptables looks words up in lower case and finds few of the aliases.
    """
    if text.isascii() and text.isdigit():
        if len(text) > 3 or int(text) > 255 or (text[0] == "0" and text != "0"):
            raise BadValue(
                f"`{text}` is not a protocol number",
                start=0,
                end=len(text),
                code="bad-protocol",
                hint="protocol numbers go from 1 to 255",
            )
        number: int | None = int(text)
    else:
        number = netdb.protocol(text)
    if number is None:
        raise BadValue(
            f"unknown protocol `{text}`",
            start=0,
            end=len(text),
            code="bad-protocol",
            hint=nearest(text, netdb.protocol_names()),
        )
    if number == 0:
        raise BadValue(
            f"protocol `{text}` has number 0, which the kernel tools read as any protocol",
            start=0,
            end=len(text),
            code="bad-protocol",
            hint="leave the protocol out if any is meant",
        )
    return Protocol(number, text if text.isdigit() or text == "icmpv6" else netdb.protocol_name(number) or text)


@netdb.rests_on_names
@lru_cache(maxsize=65536)
def read_ports(text: str, protocol: int) -> tuple[PortRange, ...]:
    """Read the ports of a rule: numbers, ranges ``a:b``, service names, or a list of them.

    ``protocol`` is the number of a protocol that has ports. Raises BadValue.
    """
    ranges: list[PortRange] = []
    slots = 0
    start = 0
    for element in text.split(","):
        end = start + len(element)
        if not element:
            raise BadValue(
                "empty element in the list",
                start=max(start - 1, 0),
                end=min(end + 1, len(text)),
                code="bad-port",
                hint="remove the extra comma",
            )
        ports = _read_port(element, start, protocol)
        # multiport counts a range as two of its 15 ports (iptables-extensions(8))
        slots += 1 if ports.first == ports.last and ":" not in element else 2
        ranges.append(ports)
        start = end + 1
    if slots > MAX_PORTS:
        raise BadValue(
            f"the list has {slots} ports, a range counting two",
            start=0,
            end=len(text),
            code="too-many-ports",
            hint=f"at most {MAX_PORTS} fit into one rule; split it into several",
        )
    return tuple(ranges)


def _read_port(element: str, start: int, protocol: int) -> PortRange:
    end = start + len(element)
    low_text, colon, high_text = element.partition(":")
    if not colon and not element[0].isdigit():
        name = PORT_PROTOCOLS[protocol]
        port = netdb.port(element, name)
        if port is None:
            raise BadValue(
                f"unknown service `{element}` for protocol {name}",
                start=start,
                end=end,
                code="bad-port",
                hint=_service_hint(element) or nearest(element, netdb.service_names()) or "use the port's number",
            )
        return PortRange(port, port, element)
    low = _port_number(low_text, start)
    high = _port_number(high_text, start + len(low_text) + 1) if colon else low
    if low > high:
        raise BadValue(
            "the range ends before it begins",
            start=start,
            end=end,
            code="bad-port",
            hint=f"write {high}:{low}",
        )
    return PortRange(low, high, element)


def _service_hint(name: str) -> str | None:
    """Return for which protocols a service is listed, or None if it is listed for none."""
    protocols = netdb.service_protocols(name)
    if not protocols:
        return None
    number = netdb.port(name, protocols[0])
    return f"`{name}` is listed for {', '.join(protocols)} only: write the port's number, {number}"


def _port_number(text: str, start: int) -> int:
    end = start + max(len(text), 1)
    if not (text.isascii() and text.isdigit()):
        raise BadValue(
            f"`{text}` is not a port number",
            start=start,
            end=end,
            code="bad-port",
            hint="a range is FIRST:LAST, two numbers",
        )
    if text[0] == "0" and text != "0":
        raise BadValue(
            f"port `{text}` is padded with zeros",
            start=start,
            end=end,
            code="bad-port",
            hint=f"write {text.lstrip('0') or '0'}",
        )
    if len(text) > 5 or int(text) > 65535:
        raise BadValue(
            f"port {text} is out of range", start=start, end=end, code="bad-port", hint="ports go from 0 to 65535"
        )
    return int(text)


_RATE = re.compile(r"([1-9][0-9]{0,8})/(second|minute|hour|day)")


def read_rate(text: str, burst: int | None) -> RateLimit:
    """Read the rate of a log limit, such as ``5/minute``. Raises BadValue."""
    rate = _RATE.fullmatch(text)
    if rate is None:
        raise BadValue(
            f"`{text}` is not a rate",
            start=0,
            end=len(text),
            code="bad-option-value",
            hint="write a number and a unit, such as 1/second; units are second, minute, hour and day",
        )
    return RateLimit(int(rate[1]), rate[2], burst, text)


MAX_SOURCE_RATE = 1_000_000
"""Most packets per second, and largest burst, of a limit per source (iptables-extensions(8), hashlimit)."""

_MAC = re.compile(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}")


def read_mac(text: str) -> int | None:
    """Return a MAC address as an integer of 48 bits, or None if the text is none."""
    return int(text.replace(":", ""), 16) if _MAC.fullmatch(text) else None


_MOST_COMPARED = 400
"""Names that one word is compared with: each takes some microseconds, and a file may have thousands of mistakes."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return ``did you mean …?`` for the nearest known name, or None if nothing is near.

    Of more than 400 names only the first 400 count that begin with the word's first letter. None too if guesses have
    used up their budget (:data:`pvefw_nft.config.budget.comparisons`).
    """
    import difflib  # deferred: only a mistake needs it

    meant = word.lower()[:64]
    folded: dict[str, str] = {}
    for name in known:
        folded.setdefault(name.lower(), name)
    near: Iterable[str] = folded
    if len(folded) > _MOST_COMPARED:
        near = islice((name for name in folded if name[:1] == meant[:1]), _MOST_COMPARED)
    near = list(near)
    if not comparisons.take(len(near)):
        return None
    letters = sorted(meant)
    swapped = [name for name in near if sorted(name) == letters]  # SHS for SSH: too far apart for a word so short
    found = swapped or difflib.get_close_matches(meant, near, n=1, cutoff=0.7)
    return f"did you mean `{folded[found[0]]}`?" if found else None
