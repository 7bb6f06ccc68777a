"""Names for numbers as iptables, ebtables and nft write them: protocols, services, ICMP types, rejections …

Services, protocols and ether types come from this machine's /etc/services, /etc/protocols and
/etc/ethertypes, as they do for the tools. The tables below are those built into the tools (iptables 1.8,
nftables 1.0 and 1.1; extensions/libxt_icmp.h, src/proto.c), numbers by RFC 792, 1122, 1812 and 4443.
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
from functools import cache, lru_cache
from pathlib import Path

from pvefw_nft.verify.model.intervals import IntervalSet

ETC = Path("/etc")
_COPIES = Path(__file__).parents[2] / "config" / "data"
ICMP_TYPES: dict[str, tuple[int, int, int]] = {
    "any": (0xFF, 0, 0xFF),
    "echo-reply": (0, 0, 0xFF),
    "pong": (0, 0, 0xFF),
    "destination-unreachable": (3, 0, 0xFF),
    "network-unreachable": (3, 0, 0),
    "host-unreachable": (3, 1, 1),
    "protocol-unreachable": (3, 2, 2),
    "port-unreachable": (3, 3, 3),
    "fragmentation-needed": (3, 4, 4),
    "source-route-failed": (3, 5, 5),
    "network-unknown": (3, 6, 6),
    "host-unknown": (3, 7, 7),
    "network-prohibited": (3, 9, 9),
    "host-prohibited": (3, 10, 10),
    "TOS-network-unreachable": (3, 11, 11),
    "TOS-host-unreachable": (3, 12, 12),
    "communication-prohibited": (3, 13, 13),
    "host-precedence-violation": (3, 14, 14),
    "precedence-cutoff": (3, 15, 15),
    "source-quench": (4, 0, 0xFF),
    "redirect": (5, 0, 0xFF),
    "network-redirect": (5, 0, 0),
    "host-redirect": (5, 1, 1),
    "TOS-network-redirect": (5, 2, 2),
    "TOS-host-redirect": (5, 3, 3),
    "echo-request": (8, 0, 0xFF),
    "ping": (8, 0, 0xFF),
    "router-advertisement": (9, 0, 0xFF),
    "router-solicitation": (10, 0, 0xFF),
    "time-exceeded": (11, 0, 0xFF),
    "ttl-exceeded": (11, 0, 0xFF),
    "ttl-zero-during-transit": (11, 0, 0),
    "ttl-zero-during-reassembly": (11, 1, 1),
    "parameter-problem": (12, 0, 0xFF),
    "ip-header-bad": (12, 0, 0),
    "required-option-missing": (12, 1, 1),
    "timestamp-request": (13, 0, 0xFF),
    "timestamp-reply": (14, 0, 0xFF),
    "info-request": (15, 0, 0xFF),
    "info-reply": (16, 0, 0xFF),
    "address-mask-request": (17, 0, 0xFF),
    "address-mask-reply": (18, 0, 0xFF),
}
"""ICMP types by iptables' and nft's names: type, first and last code. ``any``, iptables' type 255, is all."""

ICMP6_TYPES: dict[str, tuple[int, int, int]] = {
    "destination-unreachable": (1, 0, 0xFF),
    "no-route": (1, 0, 0),
    "communication-prohibited": (1, 1, 1),
    "beyond-scope": (1, 2, 2),
    "address-unreachable": (1, 3, 3),
    "port-unreachable": (1, 4, 4),
    "failed-policy": (1, 5, 5),
    "reject-route": (1, 6, 6),
    "packet-too-big": (2, 0, 0xFF),
    "time-exceeded": (3, 0, 0xFF),
    "ttl-exceeded": (3, 0, 0xFF),
    "ttl-zero-during-transit": (3, 0, 0),
    "ttl-zero-during-reassembly": (3, 1, 1),
    "parameter-problem": (4, 0, 0xFF),
    "bad-header": (4, 0, 0),
    "unknown-header-type": (4, 1, 1),
    "unknown-option": (4, 2, 2),
    "echo-request": (128, 0, 0xFF),
    "ping": (128, 0, 0xFF),
    "echo-reply": (129, 0, 0xFF),
    "pong": (129, 0, 0xFF),
    "mld-listener-query": (130, 0, 0xFF),
    "mld-listener-report": (131, 0, 0xFF),
    "mld-listener-done": (132, 0, 0xFF),
    "mld-listener-reduction": (132, 0, 0xFF),
    "nd-router-solicit": (133, 0, 0xFF),
    "router-solicitation": (133, 0, 0xFF),
    "nd-router-advert": (134, 0, 0xFF),
    "router-advertisement": (134, 0, 0xFF),
    "nd-neighbor-solicit": (135, 0, 0xFF),
    "neighbour-solicitation": (135, 0, 0xFF),
    "neighbor-solicitation": (135, 0, 0xFF),
    "nd-neighbor-advert": (136, 0, 0xFF),
    "neighbour-advertisement": (136, 0, 0xFF),
    "neighbor-advertisement": (136, 0, 0xFF),
    "nd-redirect": (137, 0, 0xFF),
    "redirect": (137, 0, 0xFF),
    "router-renumbering": (138, 0, 0xFF),
    "ind-neighbor-solicit": (141, 0, 0xFF),
    "ind-neighbor-advert": (142, 0, 0xFF),
    "mld2-listener-report": (143, 0, 0xFF),
}
"""ICMPv6 types by ip6tables' and nft's names: type, first and last code."""

REJECT_KINDS4 = {
    "icmp-net-unreachable": "net-unreachable",
    "net-unreach": "net-unreachable",
    "icmp-host-unreachable": "host-unreachable",
    "host-unreach": "host-unreachable",
    "icmp-proto-unreachable": "proto-unreachable",
    "proto-unreach": "proto-unreachable",
    "icmp-port-unreachable": "port-unreachable",
    "port-unreach": "port-unreachable",
    "icmp-net-prohibited": "net-prohibited",
    "net-prohib": "net-prohibited",
    "icmp-host-prohibited": "host-prohibited",
    "host-prohib": "host-prohibited",
    "icmp-admin-prohibited": "admin-prohibited",
    "admin-prohib": "admin-prohibited",
    "tcp-reset": "tcp-reset",
    "tcp-rst": "tcp-reset",
}
"""``iptables -j REJECT --reject-with`` to the kinds of :class:`~pvefw_nft.verify.model.Reject`."""

REJECT_KINDS6 = {
    "icmp6-no-route": "no-route",
    "no-route": "no-route",
    "icmp6-adm-prohibited": "admin-prohibited",
    "adm-prohibited": "admin-prohibited",
    "icmp6-addr-unreachable": "addr-unreachable",
    "addr-unreach": "addr-unreachable",
    "icmp6-port-unreachable": "port-unreachable",
    "port-unreach": "port-unreachable",
    "icmp6-policy-fail": "policy-fail",
    "policy-fail": "policy-fail",
    "icmp6-reject-route": "reject-route",
    "reject-route": "reject-route",
    "tcp-reset": "tcp-reset",
}
"""``ip6tables -j REJECT --reject-with`` likewise."""

LOG_LEVELS = {
    name: level
    for level, names in enumerate(
        (("emerg", "panic"), ("alert",), ("crit",), ("err", "error"), ("warn", "warning"),
         ("notice",), ("info",), ("debug",))
    )
    for name in names
}  # fmt: skip
"""Syslog levels by name (syslog(3))."""

TCP_FLAG_BITS = {
    "fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ecn": 64, "ece": 64, "cwr": 128,
}  # fmt: skip
"""TCP flags by name (RFC 9293 section 3.1); iptables' ``ALL`` is the lowest six."""


def tcp_flags(text: str) -> int:
    """Return the bits of flags listed by name: ``syn,ack``, ``none``; raises ValueError."""
    value = 0
    for name in filter(None, text.lower().split(",")):
        if name != "none" and name not in TCP_FLAG_BITS:
            raise ValueError(f"unknown TCP flag '{name}'")
        value |= TCP_FLAG_BITS.get(name, 0)
    return value


_ETHERTYPES = {
    "ip": 0x0800, "ipv4": 0x0800, "ip4": 0x0800, "arp": 0x0806, "rarp": 0x8035, "802_1q": 0x8100,
    "vlan": 0x8100, "8021q": 0x8100, "ipx": 0x8137, "ip6": 0x86DD, "ipv6": 0x86DD, "ppp_disc": 0x8863,
    "ppp_ses": 0x8864,
    "8021ad": 0x88A8, "lldp": 0x88CC,
}  # fmt: skip


def names_digest() -> str:
    """Return a digest of the files that names are looked up in; one that cannot be read counts as missing."""
    found = hashlib.sha256()
    etc = [ETC / name for name in ("services", "protocols", "ethertypes", "nsswitch.conf")]
    for file in (*etc, *(_COPIES / name for name in ("services", "protocols"))):
        try:
            content = file.read_bytes()
        except OSError:
            found.update(b"none\0")
        else:
            found.update(f"{len(content)}\0".encode() + content)
    return found.hexdigest()


@lru_cache(maxsize=1 << 15)
def protocol_number(name: str) -> int:
    """Return an IP protocol's number (0 to 255) from its name or number; raises ValueError."""
    if name.isdecimal():
        number = int(name)
    elif name.lower() in ("icmpv6", "icmp6", "ipv6-icmp"):
        number = 58
    else:
        try:
            number = socket.getprotobyname(name.lower())
        except OSError:
            known = _debian_names("protocols").get(name.lower())
            if known is None:
                raise ValueError(f"unknown protocol '{name}'") from None
            number = int(known)
    if number > 255:
        raise ValueError(f"no protocol number: {name}")
    return number


@lru_cache(maxsize=1 << 15)
def port_number(name: str, protocol: str | None = None) -> int:
    """Return a port from its number or service name, of the protocol where given; raises ValueError."""
    if name.isdecimal():
        number = int(name)
        if number > 65535:
            raise ValueError(f"no port: {name}")
        return number
    try:
        return socket.getservbyname(name, protocol) if protocol else socket.getservbyname(name)
    except OSError:
        try:
            return socket.getservbyname(name)
        except OSError:
            known = _debian_names("services").get(name)
            if known is None:
                raise ValueError(f"unknown service '{name}'") from None
            return int(known.partition("/")[0])


@cache
def _debian_names(file: str) -> dict[str, str]:
    """Return a file of /etc as Debian's netbase has it, by names and aliases; empty where the host has a file itself.

    The compiler takes the same copy on such a host, so that a ruleset has these names.
    """
    if (ETC / file).exists():
        return {}
    found: dict[str, str] = {}
    for line in (_COPIES / file).read_text("utf-8").splitlines():
        name, *rest = line.partition("#")[0].split() or [""]
        if rest:
            for known in (name, *rest[1:]):
                found.setdefault(known, rest[0])
    return found


@cache
def _ethertypes_file() -> dict[str, int]:
    found: dict[str, int] = {}
    try:
        text = Path("/etc/ethertypes").read_text(errors="replace")
    except OSError:
        return found
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        if len(words) >= 2:
            for name in (words[0], *words[2:]):
                found.setdefault(name.lower(), int(words[1], 16))
    return found


def ether_type(name: str) -> int:
    """Return an ether type from its name or its number in hexadecimal (ebtables' way); raises ValueError."""
    known = _ETHERTYPES.get(name.lower(), _ethertypes_file().get(name.lower()))
    if known is not None:
        return known
    try:
        number = int(name, 16)
    except ValueError:
        raise ValueError(f"unknown ether type '{name}'") from None
    if not 0 <= number <= 0xFFFF:
        raise ValueError(f"no ether type: {name}")
    return number


def icmp_set(text: str, types: dict[str, tuple[int, int, int]]) -> IntervalSet:
    """Return the values of field ICMP or ICMP6 for a name, ``type``, ``type/code`` or ``name/code``.

    Raises ValueError.
    """
    known = types.get(text) or next((v for k, v in types.items() if k.lower() == text.lower()), None)
    if known is None:
        kind, _, code = text.partition("/")
        named = types.get(kind)
        if named is not None and named[1:] == (0, 0xFF):
            kind = str(named[0])
        if not kind.isdecimal() or int(kind) > 255 or (code and (not code.isdecimal() or int(code) > 255)):
            raise ValueError(f"unknown ICMP type '{text}'")
        known = (int(kind), int(code), int(code)) if code else (int(kind), 0, 0xFF)
    if known[0] == 0xFF and types is ICMP_TYPES:
        return IntervalSet.of((0, 0xFFFF))
    return IntervalSet.of((known[0] << 8 | known[1], known[0] << 8 | known[2]))


def mac_number(text: str) -> int:
    """Return a MAC address as an integer; leading zeros of its parts may be missing. Raises ValueError."""
    parts = text.split(":")
    if len(parts) != 6 or not all(0 < len(part) <= 2 for part in parts):
        raise ValueError(f"not a MAC address: {text}")
    value = 0
    for part in parts:
        value = value << 8 | int(part, 16)
    return value


def mac_text(value: int) -> str:
    """Return a MAC address as text."""
    return ":".join(f"{value >> shift & 0xFF:02x}" for shift in range(40, -8, -8))


def address_number(text: str, version: int) -> int:
    """Return an address of that IP version as an integer; raises ValueError."""
    try:
        raw = socket.inet_pton(socket.AF_INET if version == 4 else socket.AF_INET6, text)
    except OSError:
        raise ValueError(f"not an IPv{version} address: {text}") from None
    return int.from_bytes(raw, "big")


def address_text(value: int, version: int) -> str:
    """Return an address as text."""
    return str(ipaddress.IPv4Address(value) if version == 4 else ipaddress.IPv6Address(value))


@lru_cache(maxsize=1 << 15)
def network_range(text: str, version: int) -> tuple[int, int]:
    """Return the first and last address of an address, ``a/len``, ``a/mask`` or ``a-b``; raises ValueError.

    Host bits are ignored, as the tools do.
    """
    bits = 32 if version == 4 else 128
    if "-" in text:
        first, last = (address_number(part, version) for part in text.split("-", 1))
        if first > last:
            raise ValueError(f"not a range: {text}")
        return first, last
    address, slash, length = text.partition("/")
    value = address_number(address, version)
    if not slash:
        return value, value
    if length.isdecimal():
        size = int(length)
        if size > bits:
            raise ValueError(f"prefix length {size} is too long")
    else:
        mask = address_number(length, version)
        size = bits - (mask ^ ((1 << bits) - 1)).bit_length()
        if mask != ((1 << bits) - 1) ^ ((1 << (bits - size)) - 1):
            raise ValueError(f"mask {length} has holes")
    low = (1 << (bits - size)) - 1
    return value & ~low, value | low


RATE_UNITS = {"second": "second", "minute": "minute", "hour": "hour", "day": "day", "week": "week"}


def rate_text(text: str) -> str:
    """Return a rate such as ``1/sec`` or ``5`` in canonical form, ``1/second``; raises ValueError."""
    number, _, unit = text.partition("/")
    full = next((name for name in RATE_UNITS if name.startswith(unit or "second")), None)
    if not number.isdecimal() or full is None:
        raise ValueError(f"not a rate: {text}")
    return f"{int(number)}/{full}"
