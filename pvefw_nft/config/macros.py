"""The macros of the ``.fw`` language, such as ``SSH`` or ``Ping``: a name for the rules of a service.

The table is data (``data/macros.txt``) and read on first use.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("data") / "macros.txt"


@dataclass(frozen=True, slots=True)
class MacroRule:
    """The part of a rule that a macro fixes; the rest is the user's.

    ``proto`` is a protocol's name or number. ``dport`` and ``sport`` are ports as the ``.fw`` language writes
    them (a number, a range ``a:b`` or a list), None if the macro leaves them open. With ``icmp`` and
    ``icmpv6``, ``dport`` is the name of an ICMP type.
    """

    proto: str
    dport: str | None = None
    sport: str | None = None


@dataclass(frozen=True, slots=True)
class Macro:
    """A macro by its own spelling; its rules are in the order they are emitted in each family's ruleset."""

    name: str
    rules_v4: tuple[MacroRule, ...]
    rules_v6: tuple[MacroRule, ...]


def get(name: str) -> Macro | None:
    """Return the macro of that name, letter case aside, or None."""
    return _table().get(name.lower())


OF_NFT_ONLY = {"pbs": "-p tcp -dport 8007"}
"""Macros that Proxmox's nft firewall has and its iptables firewall has not, in lower case, with the rule's options."""


def names() -> tuple[str, ...]:
    """Return the names of all macros in their own spelling, in alphabetical order."""
    return tuple(macro.name for macro in _table().values())


@cache
def _table() -> dict[str, Macro]:
    lines = (line for line in TABLE.read_text("utf-8").splitlines() if line and not line.startswith("#"))
    macros = map(_macro, lines)
    return {macro.name.lower(): macro for macro in macros}


def _macro(line: str) -> Macro:
    """Read one line of the table.

    Example: ``DHCPv6  - | udp/546:547<546:547`` has no rule for IPv4 and one for IPv6.
    """
    both, bar, only_v6 = line.partition("|")
    name, *words = both.split()
    rules = tuple(_rule(word) for word in words if word != "-")
    return Macro(name, rules, tuple(map(_rule, only_v6.split())) if bar else rules)


def _rule(word: str) -> MacroRule:
    """Read ``PROTOCOL[/DPORT][<SPORT]``."""
    rest, _, sport = word.partition("<")
    proto, _, dport = rest.partition("/")
    return MacroRule(proto, dport or None, sport or None)
