"""Names of services, protocols, Ethernet protocols and ICMP types.

The first three come from the host's files: services(5), protocols(5) and ``/etc/ethertypes``. If the host lacks such a
file (Debian's package netbase contains them), a copy of Debian's names in ``data/`` is used. Each file is read once,
when it is first needed, in the same way as by the C library: a malformed line is no entry, and the first entry with a
name counts.

The ICMP types are the types that ``iptables -p icmp -h`` and ``ip6tables -p icmpv6 -h`` list; IANA assigns their
numbers (ICMP: RFC 792 and successors, ICMPv6: RFC 4443, RFC 4861).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ETC = Path("/etc")
FILES = ("services", "protocols", "ethertypes")
"""The host's files that hold names, below :data:`ETC`."""
PACKAGED = Path(__file__).with_name("data")

ICMPV6 = 58
"""The protocol number of ICMPv6 (RFC 4443), known by two names on any host."""


def port(name: str, protocol: str | None) -> int | None:
    """Return the port of a service by its name or an alias, in the file's letter case, or None.

    ``protocol`` is a transport protocol's name as in the file, for example ``tcp``. A service is known only
    for the protocols it is listed with: the kernel tools refuse ``ssh`` with ``udp``. With None, the
    service's first entry counts.
    """
    _asked_services.add((name, protocol))
    return _services().get((name, protocol))


def service_protocols(name: str) -> tuple[str, ...]:
    """Return the protocols a service is listed with, in file order; empty when the name is unknown."""
    return tuple(protocol for known, protocol in _services() if known == name and protocol is not None)


def protocol(name: str) -> int | None:
    """Return the number (0 to 255) of an IP protocol by its name or an alias, or None.

    ``ip`` and ``hopopt`` are 0, which the kernel tools read as any protocol.
    """
    _asked_protocols.add(name)
    return _protocols().by_name.get(name)


def protocol_name(number: int) -> str | None:
    """Return the official name of an IP protocol number, or None."""
    return _protocols().by_number.get(number)


def ethertype(name: str) -> int | None:
    """Return the number of an Ethernet protocol by its name or an alias, letter case aside, or None.

    Letter case does not matter because it does not to ebtables(8).
    """
    _asked_ethertypes.add(name.lower())
    return _ethertypes().get(name.lower())


def service_names() -> tuple[str, ...]:
    """Return the names and aliases of all services."""
    return tuple(name for name, protocol in _services() if protocol is None)


def protocol_names() -> tuple[str, ...]:
    """Return the names and aliases of all IP protocols."""
    return tuple(_protocols().by_name)


def ethertype_names() -> tuple[str, ...]:
    """Return the names and aliases of all Ethernet protocols, as the file spells them."""
    return tuple(name for line in _entries(_text("ethertypes")) for name in _names(line))


def icmp_type(version: int, name: str) -> tuple[int | None, int | None] | None:
    """Return type and code of an ICMP type by its name, or None when the name is unknown.

    ``version`` is 4 for ICMP, 6 for ICMPv6. The code is None if the name means every code of the
    type; for ``any``, which only ICMP has, the type is None too.
    """
    return _ICMP[version].get(name)


def nft_icmp_name(version: int, name: str) -> str | None:
    """Return the name of an ICMP type for a name that nft (``nft describe icmp type``) alone has, or None."""
    return _NFT_NAMES[version].get(name)


def icmp_type_names(version: int) -> tuple[str, ...]:
    """Return the names of the ICMP types of that IP version."""
    return tuple(_ICMP[version])


# --- the files ----------------------------------------------------------------------------------------------


class _Protocols(NamedTuple):
    by_name: dict[str, int]
    by_number: dict[int, str]


class _Remembering(Protocol):
    def cache_clear(self) -> None: ...


_T = TypeVar("_T", bound=_Remembering)

_ask: Callable[[str], str | None] | None = None
_texts: dict[str, str | None] = {}
_asked_services: set[tuple[str, str | None]] = set()
_asked_protocols: set[str] = set()
_asked_ethertypes: set[str] = set()
_remembering: list[_Remembering] = []
_forgotten = 0


def rests_on_names(function: _T) -> _T:
    """Mark a function whose remembered results follow from the host's names."""
    _remembering.append(function)
    return function


def times_forgotten() -> int:
    """Return the generation of cached names: it grows when they are forgotten, which ends the use of cached results."""
    return _forgotten


def forget_if_changed() -> None:
    """Forget all that was read if one of the host's files has changed since: a service runs for long."""
    if any(host_text(file) != text for file, text in _texts.items()):
        forget()


def forget() -> None:
    """Forget all that was read."""
    global _forgotten
    _forgotten += 1
    _texts.clear()
    for asked in (_asked_services, _asked_protocols, _asked_ethertypes):
        asked.clear()
    for function in _remembering:
        function.cache_clear()


@rests_on_names
@cache
def _services() -> dict[tuple[str, str | None], int]:
    return _read_services(_text("services"))


def _read_services(text: str) -> dict[tuple[str, str | None], int]:
    """Return the port by name and protocol, and by name and None for the first entry of the name."""
    services: dict[tuple[str, str | None], int] = {}
    for line in _entries(text):
        number, _, protocol = line[1].partition("/")
        value = _number(number, 10, 0xFFFF)
        if value is None or not protocol:
            continue
        for name in _names(line):
            services.setdefault((name, protocol), value)
            services.setdefault((name, None), value)
    return services


@rests_on_names
@cache
def _protocols() -> _Protocols:
    return _read_protocols(_text("protocols"))


def _read_protocols(text: str) -> _Protocols:
    by_name: dict[str, int] = {}
    by_number: dict[int, str] = {}
    for line in _entries(text):
        value = _number(line[1], 10, 0xFF)
        if value is None:
            continue
        by_number.setdefault(value, line[0])
        for name in _names(line):
            by_name.setdefault(name, value)
    by_name.setdefault("ipv6-icmp", ICMPV6)
    by_name.setdefault("icmpv6", ICMPV6)
    by_number.setdefault(ICMPV6, "ipv6-icmp")
    return _Protocols(by_name, by_number)


@rests_on_names
@cache
def _ethertypes() -> dict[str, int]:
    return _read_ethertypes(_text("ethertypes"))


def _read_ethertypes(text: str) -> dict[str, int]:
    ethertypes: dict[str, int] = {}
    for line in _entries(text):
        value = _number(line[1], 16, 0xFFFF)
        if value is not None:
            for name in _names(line):
                ethertypes.setdefault(name.lower(), value)
    return ethertypes


def _entries(text: str) -> Iterator[list[str]]:
    """Yield the words of each line that has a name and a number; comments start at ``#``."""
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if len(words) >= 2:
            yield words


def texts_read() -> dict[str, str | None]:
    """Return the host's files that were read so far, by name, with their texts; None: the packaged copy was used."""
    return dict(_texts)


def own_names() -> tuple[str, ...]:
    """Return the names asked for so far that this machine's files know otherwise than Debian's do, or alone know."""
    found: set[str] = set()
    if _differs("services"):
        ports = _read_services(_packaged("services"))
        found |= {key[0] for key in _asked_services if _services().get(key, ports.get(key)) != ports.get(key)}
    if _differs("protocols"):
        known, numbers = _protocols().by_name, _read_protocols(_packaged("protocols")).by_name
        found |= {name for name in _asked_protocols if known.get(name, numbers.get(name)) != numbers.get(name)}
    if _differs("ethertypes"):
        types = _read_ethertypes(_packaged("ethertypes"))
        found |= {name for name in _asked_ethertypes if _ethertypes().get(name, types.get(name)) != types.get(name)}
    return tuple(sorted(found))


def _differs(file: str) -> bool:
    """Return whether this machine's file was read and is not the packaged copy."""
    return _texts.get(file) not in (None, _packaged(file))


def _packaged(file: str) -> str:
    return (PACKAGED / file).read_text("utf-8")


def read_with(ask: Callable[[str], str | None]) -> None:
    """Let another process read the host's files; ``ask`` returns their texts by name."""
    global _ask
    _ask = ask


def host_text(file: str) -> str | None:
    """Return the text of one of the host's files, or None if it cannot be read."""
    if _ask is not None:
        return _ask(file)
    try:
        return (ETC / file).read_text("utf-8", "replace")
    except OSError:
        return None


def _text(file: str) -> str:
    """Return the host's file, or the packaged copy if the host has none that can be read."""
    text = _texts[file] = host_text(file)
    return _packaged(file) if text is None else text


def _names(words: list[str]) -> list[str]:
    """Return the name and the aliases of a line: all words but the second, the number."""
    return [words[0], *words[2:]]


def _number(text: str, base: int, limit: int) -> int | None:
    """Return the number written in that base, or None if there is none from 0 to ``limit``."""
    try:
        value = int(text, base)
    except ValueError:
        return None
    return value if 0 <= value <= limit else None


# --- ICMP ---------------------------------------------------------------------------------------------------

_ICMP_V4: Mapping[str, tuple[int | None, int | None]] = MappingProxyType(
    {
        "any": (None, None),
        "echo-reply": (0, None),
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
        "router-advertisement": (9, None),
        "router-solicitation": (10, None),
        "time-exceeded": (11, None),
        "ttl-zero-during-transit": (11, 0),
        "ttl-zero-during-reassembly": (11, 1),
        "parameter-problem": (12, None),
        "ip-header-bad": (12, 0),
        "required-option-missing": (12, 1),
        "timestamp-request": (13, None),
        "timestamp-reply": (14, None),
        "address-mask-request": (17, None),
        "address-mask-reply": (18, None),
    }
)

_ICMP_V6: Mapping[str, tuple[int | None, int | None]] = MappingProxyType(
    {
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
        "ttl-zero-during-transit": (3, 0),
        "ttl-zero-during-reassembly": (3, 1),
        "parameter-problem": (4, None),
        "bad-header": (4, 0),
        "unknown-header-type": (4, 1),
        "unknown-option": (4, 2),
        "echo-request": (128, None),
        "echo-reply": (129, None),
        "router-solicitation": (133, None),
        "router-advertisement": (134, None),
        "neighbor-solicitation": (135, None),
        "neighbour-solicitation": (135, None),
        "neighbor-advertisement": (136, None),
        "neighbour-advertisement": (136, None),
        "redirect": (137, None),
    }
)

_ICMP = {4: _ICMP_V4, 6: _ICMP_V6}

_NFT_NAMES = {
    4: {
        "net-unreachable": "network-unreachable",
        "prot-unreachable": "protocol-unreachable",
        "frag-needed": "fragmentation-needed",
        "net-prohibited": "network-prohibited",
        "admin-prohibited": "communication-prohibited",
    },
    6: {
        "nd-router-solicit": "router-solicitation",
        "nd-router-advert": "router-advertisement",
        "nd-neighbor-solicit": "neighbor-solicitation",
        "nd-neighbor-advert": "neighbor-advertisement",
        "nd-redirect": "redirect",
        "admin-prohibited": "communication-prohibited",
        "addr-unreachable": "address-unreachable",
        "policy-fail": "failed-policy",
    },
}
