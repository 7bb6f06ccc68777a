"""The fields of a rule: the conditions and the log level that may follow its action.

The grammar's options, the columns of the positional form, the hint that lists the options, and the manual's tables
follow from :data:`RULE_FIELDS`. The values are read in :mod:`.rules` and :mod:`.services`.
"""

from __future__ import annotations

from typing import NamedTuple


class RuleField(NamedTuple):
    """A field of a rule.

    ``options`` are its spellings in the named form, the one for hints and the manual first. ``placeholder`` stands for
    the value in the manual's synopsis; ``takes`` describes the value, in Markdown. ``column`` is the heading of its
    column in the positional form, None if it has none.
    """

    name: str
    options: tuple[str, ...]
    placeholder: str
    takes: str
    column: str | None = None


def _dashes(*words: str) -> tuple[str, ...]:
    """Return options that begin with one dash or two."""
    return tuple(dash + word for dash in ("-", "--") for word in words)


_ADDRESSES = (
    "an address, a network, a range `a-b`, a list of addresses and networks, `+name` for an ipset, or the name of an "
    "alias"
)
_PORTS = (
    "a port, a range `a:b`, a service's name, or a list of at most 15 ports; needs `-p` tcp, udp, udplite, dccp or sctp"
)

RULE_FIELDS = (
    RuleField("iface", ("-i",), "IFACE", "in a guest's file `net0` to `net31`; elsewhere the name of a link", "IFACE"),
    RuleField("source", _dashes("source"), "A", _ADDRESSES, "SOURCE"),
    RuleField("dest", _dashes("dest"), "A", _ADDRESSES, "DEST"),
    RuleField("proto", _dashes("p", "proto"), "PROTO", "a protocol's name or number", "PROTO"),
    RuleField("dport", _dashes("dport"), "P", _PORTS, "D-PORT"),
    RuleField("sport", _dashes("sport"), "P", _PORTS, "S-PORT"),
    RuleField(
        "icmp-type",
        _dashes("icmp-type"),
        "T",
        "the name of a type of ICMP or ICMPv6; needs `-p icmp` or `-p icmpv6`",
    ),
    RuleField(
        "log",
        _dashes("log"),
        "LEVEL",
        "emerg, alert, crit, err, warning, notice, info, debug or nolog: log the packets of the rule",
    ),
)
"""Every field, in the order of the positional columns; the fields without a column come last."""

OPTION_FIELDS = {option: field.name for field in RULE_FIELDS for option in field.options}
"""The name of the field by each spelling of its option."""

OPTION_WORDS = tuple(OPTION_FIELDS)
"""Every spelling of a rule's options."""

COLUMN_HEADINGS = {field.name: field.column for field in RULE_FIELDS if field.column is not None}
"""The headings of the positional columns by the name of their field, in order."""

COLUMNS = tuple(COLUMN_HEADINGS)
"""The fields of the positional columns."""

GROUP_COLUMNS = tuple(name for name in COLUMNS if name != "iface")
"""The columns where rules have no interface: in groups and in the files of VNets."""


def listed_options() -> str:
    """Return the options of a rule as a sentence lists them: ``-i, -source, … and -log``."""
    *options, last = (field.options[0] for field in RULE_FIELDS)
    return f"{', '.join(options)} and {last}"
