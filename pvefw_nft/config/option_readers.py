"""The readers of options' values.

A reader takes the text of a value and returns it typed, or raises :class:`~.values.BadValue`. A value that is taken
although the kernel will not carry it out to the letter comes as :class:`Doubtful`.

Letter case follows Proxmox's iptables firewall: it matters neither in the names of options nor in policies, log
levels and names of conntrack helpers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pvefw_nft.config import netdb
from pvefw_nft.config.option_values import LOG_LEVELS, EtherType, Layer2, LogRatelimit, Policy, Queues
from pvefw_nft.config.values import MAX_SOURCE_RATE, BadValue, nearest, read_rate

if TYPE_CHECKING:
    from collections.abc import Callable

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


@dataclass(frozen=True, slots=True)
class Doubtful:
    """A value that is accepted with a warning."""

    value: object
    message: str
    hint: str


def _bad(text: str, hint: str) -> BadValue:
    return BadValue(f"`{text[:60]}` is not allowed here", start=0, end=len(text), hint=hint, code="bad-option-value")


def read_flag(text: str) -> bool:
    """Read 1 (yes) or 0 (no)."""
    if text not in ("0", "1"):
        raise _bad(text, "write 1 for yes, 0 for no")
    return text == "1"


def read_enable(text: str) -> int:
    """Read 0, 1 or a time in seconds since 1970; see :func:`is_enabled`."""
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise _bad(text, "write 1 for yes, 0 for no")
    return int(text)


def is_enabled(value: int, now: Callable[[], float]) -> bool:
    """Tell whether the cluster's ``enable`` counts as 1; ``now`` is asked for the epoch time if that matters."""
    return value == 1 or (value > 1 and -CLOCK_SKEW <= now() - value < ENABLE_GRACE)


def _policy_reader(*allowed: Policy) -> Callable[[str], Policy]:
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


def read_level(text: str) -> int | None:
    """Read the log level of an option: in any letter case, and nothing at all for ``nolog``. Raises BadValue."""
    return read_log_level(text.lower()) if text else None


def number_reader(low: int, high: int, most: int) -> Callable[[str], int | Doubtful]:
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


def read_synflood_number(text: str) -> int | Doubtful:
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


def read_log_ratelimit(text: str) -> LogRatelimit | Doubtful:
    """Read a limit of logged packets, such as ``enable=1,rate=1/second,burst=5``."""
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


def read_helpers(text: str) -> tuple[str, ...]:
    """Read a list of conntrack helpers, in any letter case."""
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


def read_queues(text: str) -> Queues:
    """Read a queue number, or ``FIRST:LAST``."""
    found = re.fullmatch(r"([0-9]{1,5})(?::([0-9]{1,5}))?", text)
    if found is None:
        raise _bad(text, "write a queue number, or FIRST:LAST")
    first, last = int(found[1]), None if found[2] is None else int(found[2])
    if first > 65535 or (last is not None and not first <= last <= 65535):
        raise _bad(text, "queue numbers go from 0 to 65535, the first not above the last")
    if last is not None and last - first == 65535:
        raise _bad(text, "a range has at most 65535 queues, such as 0:65534")  # its size is a __u16 (xt_NFQUEUE.h)
    return Queues(first, None if last == first else last)


def read_layer2_protocols(text: str) -> tuple[EtherType, ...]:
    """Read a list of names of /etc/ethertypes."""
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


def read_limit(text: str) -> int:
    """Read a limit of a guest: 0 (none) to :data:`MAX_LIMIT`."""
    return _whole(text, 0, MAX_LIMIT)


def read_sources(text: str) -> int:
    """Read how many sources are counted: 1024 to :data:`MAX_SOURCES`."""
    return _whole(text, 1024, MAX_SOURCES)


def _whole(text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 12 and low <= int(text) <= high):
        raise _bad(text, f"write a number from {low} to {high}")
    return int(text)


def read_layer2(text: str) -> Layer2:
    """Read ``open`` or ``strict``, in any letter case."""
    known = {value.value: value for value in Layer2}
    if text.lower() not in known:
        raise _bad(text, "write one of " + ", ".join(known))
    return known[text.lower()]


read_policy = _policy_reader(Policy.ACCEPT, Policy.DROP, Policy.REJECT)
"""Reads a policy in any letter case."""

read_forward_policy = _policy_reader(Policy.ACCEPT, Policy.DROP)
"""Reads a policy on forwarded packets, which cannot be REJECT."""
