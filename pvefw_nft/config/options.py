"""The options of each kind of file: their names, and how their values are read.

A reader takes the text of a value and returns it typed, or raises :class:`~.values.BadValue`.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from pvefw_nft.config import netdb
from pvefw_nft.config.model import LOG_LEVELS, EtherType, LogRatelimit, Policy, Queues
from pvefw_nft.config.values import BadValue, nearest, read_rate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ENABLE_GRACE = 60
"""Seconds for which an epoch time as the cluster's ``enable`` counts as 1, so that a lock-out ends by itself."""

DEFAULT_BURST = 5
"""Burst of the log rate limit, in packets."""

HELPERS = ("amanda", "ftp", "irc", "netbios-ns", "pptp", "sane", "sip", "snmp", "tftp")
"""The conntrack helpers that host.fw may name."""


_T = TypeVar("_T")


class FileKind(Enum):
    """The kinds of firewall files; the value names the file for people."""

    CLUSTER = "cluster.fw"
    HOST = "host.fw"
    GUEST = "a guest's .fw file"
    VNET = "a VNet's .fw file"


def _bad(text: str, hint: str) -> BadValue:
    return BadValue(f"`{text[:60]}` is not allowed here", start=0, end=len(text), hint=hint, code="bad-option-value")


def _bool(text: str) -> bool:
    if text not in ("0", "1"):
        raise _bad(text, "write 1 for yes, 0 for no")
    return text == "1"


def _enable(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise _bad(text, "write 1 for yes, 0 for no")
    return int(text)


def is_enabled(value: int, now: Callable[[], float]) -> bool:
    """Tell whether the cluster's ``enable`` counts as 1; ``now`` is asked for the epoch time where that matters."""
    return value == 1 or (value > 1 and 0 <= now() - value < ENABLE_GRACE)


def _policy(*allowed: Policy) -> Callable[[str], Policy]:
    names = {policy.value: policy for policy in allowed}

    def read(text: str) -> Policy:
        if text not in names:
            hint = f"write {text.upper()}" if text.upper() in names else "write one of " + ", ".join(names)
            raise _bad(text, hint)
        return names[text]

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


def _number(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 12) or not low <= int(text) <= high:
            raise _bad(text, f"write a number from {low} to {high}")
        return int(text)

    return read


_LIMIT_PART = re.compile(r"[ \t]*(?:(enable|rate|burst)=)?([^,= \t]+)[ \t]*")


def _log_ratelimit(text: str) -> LogRatelimit:
    values = {"enable": ("1", 0), "rate": ("1/second", 0), "burst": (str(DEFAULT_BURST), 0)}
    end = -1
    for index, part in enumerate(text.split(",")):
        start, end = end + 1, end + 1 + len(part)
        found = _LIMIT_PART.fullmatch(text, start, end)
        if found is None or (found[1] is None and index > 0):
            raise _bad(text, "it is written like `enable=1,rate=1/second,burst=5`")
        values[found[1] or "enable"] = (found[2], found.start(2))

    def read(name: str, reader: Callable[[str], _T]) -> _T:
        value, start = values[name]
        try:
            return reader(value)
        except BadValue as bad:
            raise bad.moved(start) from None

    if not read("enable", _bool):
        return LogRatelimit(None)
    burst = read("burst", _number(1, 10_000))
    return LogRatelimit(read("rate", lambda value: read_rate(value, burst)))


_LIST_WORD = re.compile(r"[^,; \t]+")


def _words(text: str) -> list[re.Match[str]]:
    """Return the words of a list; raises BadValue where there is none, which would read as no list at all."""
    words = list(_LIST_WORD.finditer(text))
    if not words:
        raise _bad(text, "write at least one name, or remove the line")
    return words


def _helpers(text: str) -> tuple[str, ...]:
    names = []
    for word in _words(text):
        name = word[0]
        if name not in HELPERS:
            raise BadValue(
                f"unknown conntrack helper `{name[:60]}`",
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


_ANY_POLICY = _policy(Policy.ACCEPT, Policy.DROP, Policy.REJECT)
_FORWARD_POLICY = _policy(Policy.ACCEPT, Policy.DROP)
_UINT = 2**31 - 1

Readers: TypeAlias = "Mapping[str, Callable[[str], object]]"

OPTIONS: Mapping[FileKind, Readers] = {
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
        "log_level_in": read_log_level,
        "log_level_out": read_log_level,
        "log_level_forward": read_log_level,
        "tcp_flags_log_level": read_log_level,
        "smurf_log_level": read_log_level,
        "nosmurfs": _bool,
        "tcpflags": _bool,
        "ndp": _bool,
        "nf_conntrack_max": _number(32768, _UINT),
        "nf_conntrack_tcp_timeout_established": _number(7875, _UINT),
        "nf_conntrack_tcp_timeout_syn_recv": _number(30, 60),
        "nf_conntrack_allow_invalid": _bool,
        "nf_conntrack_helpers": _helpers,
        "protection_synflood": _bool,
        "protection_synflood_rate": _number(1, 1_000_000),
        "protection_synflood_burst": _number(1, 1_000_000),
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
        "log_level_in": read_log_level,
        "log_level_out": read_log_level,
        "ips": _bool,
        "ips_queues": _queues,
        "layer2_protocols": _layer2_protocols,
    },
    FileKind.VNET: {
        "enable": _bool,
        "policy_forward": _FORWARD_POLICY,
        "log_level_forward": read_log_level,
    },
}

OLD_OPTIONS = ("optimize", "allow_bridge_route")
"""Names still found in older files; they have no effect."""


def option_hint(kind: FileKind, name: str) -> str | None:
    """Say what to do about an option that this kind of file does not have."""
    homes = [other.value for other, readers in OPTIONS.items() if name in readers and other is not kind]
    if homes:
        return f"`{name}` belongs in " + " or in ".join(homes)
    return nearest(name, tuple(OPTIONS[kind])) or "options here are " + ", ".join(OPTIONS[kind])
