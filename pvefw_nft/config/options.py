"""The options of each kind of file: their names, and how their values are read.

A reader takes the text of a value and returns it typed, or raises :class:`~.values.BadValue`. A value that is taken
although the kernel will not carry it out to the letter comes as :class:`Doubtful`.

Letter case follows Proxmox's iptables firewall: it matters neither in the names of options nor in policies, log
levels and names of conntrack helpers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from pvefw_nft.config import netdb
from pvefw_nft.config.model import LOG_LEVELS, EtherType, Layer2, LogRatelimit, Policy, Queues
from pvefw_nft.config.values import MAX_SOURCE_RATE, BadValue, nearest, read_rate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ENABLE_GRACE = 60
"""Seconds for which an epoch time as the cluster's ``enable`` counts as 1, so that a lock-out ends after them."""

CLOCK_SKEW = 60
"""Seconds by which that time may lie in the future and count as 1: another node wrote it, by its own clock."""

HELPERS = ("amanda", "ftp", "irc", "netbios-ns", "pptp", "sane", "sip", "snmp", "tftp")
"""The conntrack helpers that host.fw may name."""


_T = TypeVar("_T")

MAX_SETTING = 2**31 - 1
"""The largest number that a kernel setting of type int takes."""

MAX_CONNTRACK = MAX_SETTING // 8192 * 8192
"""The largest ``nf_conntrack_max``: it is rounded up to a multiple of 8192."""

MAX_LIMIT = 10_000_000
"""The largest limit of a guest's connections, or of its fragments per second."""

MAX_SOURCES = 16_777_216
"""The most sources whose rate is counted: as many as the reference's hashlimit keeps, some 3 GB of memory."""

_MAX_DIGITS = 18


class FileKind(Enum):
    """The kinds of firewall files; the value names the file for people."""

    CLUSTER = "cluster.fw"
    HOST = "host.fw"
    GUEST = "a guest's .fw file"
    VNET = "a VNet's .fw file"
    CLUSTER_HARDENING = "cluster.pvefw"
    HOST_HARDENING = "host.pvefw"
    GUEST_HARDENING = "a guest's .pvefw file"

    @property
    def is_companion(self) -> bool:
        """Tell whether it is a companion file, which only pvefw reads and which has only options."""
        return self in (FileKind.CLUSTER_HARDENING, FileKind.HOST_HARDENING, FileKind.GUEST_HARDENING)


@dataclass(frozen=True, slots=True)
class Doubtful:
    """A value that is accepted with a warning."""

    value: object
    message: str
    hint: str


def _bad(text: str, hint: str) -> BadValue:
    return BadValue(f"`{text[:60]}` is not allowed here", start=0, end=len(text), hint=hint, code="bad-option-value")


def _bool(text: str) -> bool:
    if text not in ("0", "1"):
        raise _bad(text, "write 1 for yes, 0 for no")
    return text == "1"


def _enable(text: str) -> int:
    # also a time in seconds, see is_enabled
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise _bad(text, "write 1 for yes, 0 for no")
    return int(text)


def is_enabled(value: int, now: Callable[[], float]) -> bool:
    """Tell whether the cluster's ``enable`` counts as 1; ``now`` is asked for the epoch time if that matters."""
    return value == 1 or (value > 1 and -CLOCK_SKEW <= now() - value < ENABLE_GRACE)


def _policy(*allowed: Policy) -> Callable[[str], Policy]:
    names = {policy.value: policy for policy in allowed}

    def read(text: str) -> Policy:
        # Proxmox takes a policy in any letter case
        policy = names.get(text.upper())
        if policy is None:
            raise _bad(text, nearest(text, names) or "write one of " + ", ".join(names))
        return policy

    return read


def read_log_level(text: str) -> int | None:
    """Read a log level: its number from 0 to 7, or None for ``nolog``. Raises BadValue."""
    if text == "nolog":
        return None
    if text not in LOG_LEVELS:
        levels = [*LOG_LEVELS, "nolog"]
        raise BadValue(
            f"unknown log level `{text[:60]}`",
            start=0,
            end=len(text),
            code="bad-log-level",
            hint=nearest(text, levels) or "levels are " + ", ".join(levels),
        )
    return LOG_LEVELS.index(text)


def _log_level(text: str) -> int | None:
    """Read the log level of an option: in any letter case, and nothing at all for ``nolog``. Raises BadValue."""
    return read_log_level(text.lower()) if text else None


def _number(low: int, high: int, most: int) -> Callable[[str], int | Doubtful]:
    """Return a reader of numbers. Proxmox's API takes those from ``low`` to ``high``, its compilers take any.

    Above ``most``, and 0, the kernel would refuse: the nearest number that it takes is set instead.
    """

    def read(text: str) -> int | Doubtful:
        number = _digits(text, f"write a number from {low} to {high}")
        if low <= number <= high:
            return number
        message = f"Proxmox's API allows numbers from {low} to {high} here; the number is used unchanged"
        if not 0 < number <= most:
            message = f"the kernel takes numbers from 1 to {most} here; {max(1, min(number, most))} is set"
        return Doubtful(number, message, f"write a number from {low} to {high}")

    return read


def _rate_number(text: str) -> int | Doubtful:
    """Read a number of the SYN flood protection, which the reference's ruleset holds as written."""
    number = _digits(text, f"write a number from 1 to {MAX_SOURCE_RATE}")
    if 1 <= number <= MAX_SOURCE_RATE:
        return number
    near = min(max(number, 1), MAX_SOURCE_RATE)
    message = f"the kernel's tools take numbers from 1 to {MAX_SOURCE_RATE} here; {near} is loaded"
    return Doubtful(number, message, f"write {near}")


def _digits(text: str, hint: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise _bad(text, hint)
    return int(text)


_BOOLEANS = {"1": True, "on": True, "yes": True, "true": True, "0": False, "off": False, "no": False, "false": False}


def read_boolean(text: str) -> bool | None:
    """Read a boolean of a list of properties such as ``firewall=on`` of a NIC; None if it is none.

    The words are those that Proxmox VE takes there, in any letter case. An option of its own is 0 or 1.
    """
    return _BOOLEANS.get(text.lower())


_LIMIT_PART = re.compile(r"[ \t]*(?:(enable|rate|burst)=)?([^,= \t]+)[ \t]*")


def _log_ratelimit(text: str) -> LogRatelimit | Doubtful:
    values = {"enable": ("1", 0), "rate": ("1/second", 0)}
    end = -1
    for index, part in enumerate(text.split(",")):
        start, end = end + 1, end + 1 + len(part)
        found = _LIMIT_PART.fullmatch(text, start, end)
        if found is None or (found[1] is None and index > 0):
            raise _bad(text, "it is written like `enable=1,rate=1/second,burst=5`")
        # a first part without a key is the value of `enable`
        values[found[1] or "enable"] = (found[2], found.start(2))

    def read(name: str, reader: Callable[[str], _T]) -> _T:
        value, start = values[name]
        try:
            return reader(value)
        except BadValue as bad:
            raise bad.moved(start) from None

    enabled = read("enable", _property)
    burst = read("burst", _burst) if "burst" in values else None
    limit = read("rate", lambda value: read_rate(value, burst))
    if not enabled:
        return LogRatelimit(None)
    loaded = limit.loadable()
    if loaded == limit:
        return LogRatelimit(limit)
    what = f"rate={loaded.spelling},burst={loaded.burst}"
    message = f"the kernel cannot count this limit; {what} is loaded"
    return Doubtful(LogRatelimit(limit), message, f"write {what}")


def _property(text: str) -> bool:
    value = read_boolean(text)
    if value is None:
        raise _bad(text, "write 1 for yes, 0 for no")
    return value


def _burst(text: str) -> int:
    return _digits(text, "write a number of packets, such as 5")


_LIST_WORD = re.compile(r"[^,; \t]+")


def _words(text: str) -> list[re.Match[str]]:
    """Return the words of a list; raises BadValue for an empty list, which would read as no list at all."""
    words = list(_LIST_WORD.finditer(text))
    if not words:
        raise _bad(text, "write at least one name, or remove the line")
    return words


def _helpers(text: str) -> tuple[str, ...]:
    names = []
    for word in _words(text):
        # Proxmox takes a helper in any letter case
        name = word[0].lower()
        if name not in HELPERS:
            raise BadValue(
                f"unknown conntrack helper `{word[0][:60]}`",
                start=word.start(),
                end=word.end(),
                code="bad-option-value",
                hint=nearest(name, HELPERS) or "helpers are " + ", ".join(HELPERS),
            )
        names.append(name)
    return tuple(dict.fromkeys(names))


def _queues(text: str) -> Queues:
    found = re.fullmatch(r"([0-9]{1,5})(?::([0-9]{1,5}))?", text)
    if found is None:
        raise _bad(text, "write a queue number, or FIRST:LAST")
    first, last = int(found[1]), None if found[2] is None else int(found[2])
    if first > 65535 or (last is not None and not first <= last <= 65535):
        raise _bad(text, "queue numbers go from 0 to 65535, the first not above the last")
    if last is not None and last - first == 65535:
        raise _bad(text, "a range has at most 65535 queues, such as 0:65534")  # its size is a __u16 (xt_NFQUEUE.h)
    return Queues(first, None if last == first else last)


def _layer2_protocols(text: str) -> tuple[EtherType, ...]:
    protocols = []
    for word in _words(text):
        name = word[0]
        number = netdb.ethertype(name)
        if number is None:
            raise BadValue(
                f"unknown Ethernet protocol `{name[:60]}`",
                start=word.start(),
                end=word.end(),
                code="bad-option-value",
                hint=nearest(name, netdb.ethertype_names()) or "use a name of /etc/ethertypes",
            )
        protocols.append(EtherType(number, name))
    return tuple(protocols)


def _limit(text: str) -> int:
    return _whole(text, 0, MAX_LIMIT)


def _sources(text: str) -> int:
    return _whole(text, 1024, MAX_SOURCES)


def _whole(text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 12 and low <= int(text) <= high):
        raise _bad(text, f"write a number from {low} to {high}")
    return int(text)


def _layer2(text: str) -> Layer2:
    known = {value.value: value for value in Layer2}
    if text.lower() not in known:
        raise _bad(text, "write one of " + ", ".join(known))
    return known[text.lower()]


_ANY_POLICY = _policy(Policy.ACCEPT, Policy.DROP, Policy.REJECT)
_FORWARD_POLICY = _policy(Policy.ACCEPT, Policy.DROP)

Readers: TypeAlias = "Mapping[str, Callable[[str], object]]"

OPTIONS: dict[FileKind, Readers] = {
    FileKind.CLUSTER: {
        "enable": _enable,
        "ebtables": _bool,
        "policy_in": _ANY_POLICY,
        "policy_out": _ANY_POLICY,
        "policy_forward": _FORWARD_POLICY,
        "log_ratelimit": _log_ratelimit,
    },
    FileKind.HOST: {
        "enable": _bool,
        "nftables": _bool,
        "log_level_in": _log_level,
        "log_level_out": _log_level,
        "log_level_forward": _log_level,
        "tcp_flags_log_level": _log_level,
        "smurf_log_level": _log_level,
        "nosmurfs": _bool,
        "tcpflags": _bool,
        "ndp": _bool,
        "nf_conntrack_max": _number(32768, MAX_CONNTRACK, MAX_CONNTRACK),
        "nf_conntrack_tcp_timeout_established": _number(7875, MAX_SETTING, MAX_SETTING),
        "nf_conntrack_tcp_timeout_syn_recv": _number(30, 60, MAX_SETTING),
        "nf_conntrack_allow_invalid": _bool,
        "nf_conntrack_helpers": _helpers,
        "protection_synflood": _bool,
        "protection_synflood_rate": _rate_number,
        "protection_synflood_burst": _rate_number,
        "log_nf_conntrack": _bool,
    },
    FileKind.GUEST: {
        "enable": _bool,
        "macfilter": _bool,
        "dhcp": _bool,
        "ndp": _bool,
        "radv": _bool,
        "ipfilter": _bool,
        "policy_in": _ANY_POLICY,
        "policy_out": _ANY_POLICY,
        "log_level_in": _log_level,
        "log_level_out": _log_level,
        "ips": _bool,
        "ips_queues": _queues,
        "layer2_protocols": _layer2_protocols,
    },
    FileKind.VNET: {
        "enable": _bool,
        "policy_forward": _FORWARD_POLICY,
        "log_level_forward": _log_level,
    },
}

_FOR_ALL_GUESTS: Readers = {
    "l2": _layer2,
    "ipfilter_established": _bool,
    "max_connections": _limit,
    "max_fragments": _limit,
}
OPTIONS |= {
    FileKind.CLUSTER_HARDENING: _FOR_ALL_GUESTS,
    FileKind.HOST_HARDENING: {"harden": _bool, "synflood_sources": _sources},
    FileKind.GUEST_HARDENING: {"qinq": _bool, "one_zone": _bool, **_FOR_ALL_GUESTS},
}

STRICT_VALUES: Mapping[str, object] = {
    "l2": Layer2.STRICT,
    "ipfilter_established": True,
    "max_connections": 10_000,
    "max_fragments": 1_000,
    "harden": True,
    "synflood_sources": 262_144,
    "qinq": False,
    "one_zone": False,
}
"""The value of an option of a companion file that cannot be read: the strict one."""

OLD_OPTIONS = {"optimize": None, "allow_bridge_route": None, "protection_limit": FileKind.HOST}
"""Names of options without effect that files still have, and the kind of file that has them (None: any)."""


def has_no_effect(kind: FileKind, name: str) -> bool:
    """Tell whether a file of this kind may name the option although it has no effect."""
    return name in OLD_OPTIONS and OLD_OPTIONS[name] in (None, kind)


def option_hint(kind: FileKind, name: str) -> str | None:
    """Return a hint for an option that this kind of file does not have."""
    homes = [other.value for other, readers in OPTIONS.items() if name in readers and other is not kind]
    if homes:
        return f"`{name}` belongs in " + " or in ".join(homes)
    return nearest(name, tuple(OPTIONS[kind])) or "options here are " + ", ".join(OPTIONS[kind])
