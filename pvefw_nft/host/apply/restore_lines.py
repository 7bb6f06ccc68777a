"""The permitted content of a line for iptables-restore, ebtables-restore or ipset restore.

Artefacts come from the compiler, which reads files of tenants in a process without privileges. The restore tools take
more than rules: ``--modprobe COMMAND`` (iptables(8)) runs a program, ``--atomic-file`` (ebtables(8)) and ``-file``
(ipset(8)) write files. So a line may hold only the options that pvefw's own rules use.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

from pvefw_nft.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_OPTIONS = (
    "A i o s d p m j g -match -src-range -dst-range -match-set -src-type -dst-type -icmp-type -icmpv6-type "
    "-sport -dport -sports -dports -tcp-flags -ctstate -mark -mac-source -physdev-in -physdev-out "
    "-physdev-is-bridged -limit -limit-burst -hashlimit-above -hashlimit-burst -hashlimit-mode -hashlimit-name "
    "-hashlimit-htable-size -hashlimit-srcmask -hashlimit-htable-expire -reject-with -queue-num -queue-balance "
    "-queue-bypass -set-mark -helper -nflog-prefix -arp-ip-src "
)
_RULE_OPTIONS = frozenset(_OPTIONS.split())
"""Options of rules, without their first dash. getopt takes no other spelling of these for another option."""

_OPTION = re.compile(r'[\s"]-([^\s"]*)')
_UNSOUND = re.compile(r"[^ -~]|[\\']")  # blanks but the space, controls, and what escapes or quotes for some tool
_MAX_LINE = 10_000  # iptables-restore reads lines of at most 10,240 bytes (char buffer[10240] in iptables-restore.c)
_SET = re.compile(r"hash:net family inet6?(?: (?:hashsize|maxelem|bucketsize) \d{1,10})*")
_ENTRY = re.compile(r"[0-9A-Fa-f.:]{2,45}(?:/\d{1,3})?(?: nomatch)?")


def check_rules(chain: str, lines: Sequence[object]) -> None:
    """Raise InternalError unless each line appends one rule to the chain, with options that pvefw's rules use."""
    start = f"-A {chain} "
    if _are_sound(start, lines):
        return
    for line in lines:
        if (
            not isinstance(line, str)
            or not line.startswith(start)
            or len(line) > _MAX_LINE
            or _UNSOUND.search(line) is not None
            or not _RULE_OPTIONS.issuperset(_OPTION.findall(line, len(start) - 1))
        ):
            raise InternalError(f"an artefact with the line {str(line)[:200]!r} in chain {chain}")


def _are_sound(start: str, lines: Sequence[object]) -> bool:
    """Tell whether all lines are certainly sound, by a look at all of them at once: one at a time is slow.

    Between two lines is a line feed, which no sound line has. Behind it is ``-A``, which is among the options.
    """
    try:
        text = "\n".join(cast("Sequence[str]", lines))
    except TypeError:  # one is no text
        return False
    ends = text.count("\n")
    return (
        max(map(len, cast("Sequence[str]", lines)), default=0) <= _MAX_LINE
        and ends == len(lines) - 1 == text.count(f"\n{start}")
        and text.startswith(start)
        and text.isascii()
        and text.replace("\n", " ").isprintable()  # of ASCII: the space to the tilde
        and not any(unsound in text for unsound in ("'", "\\", '"-'))
        and all(word[1:].partition('"')[0] in _RULE_OPTIONS for word in set(text.split()) if word.startswith("-"))
    )


def check_set(name: str, lines: Iterable[object]) -> None:
    """Raise InternalError unless the first line creates the set, and each other adds one entry."""
    expected = (f"create {name} ", _SET)
    for line in lines:
        start, form = expected
        if not isinstance(line, str) or not line.startswith(start) or form.fullmatch(line, len(start)) is None:
            raise InternalError(f"an artefact with the line {str(line)[:200]!r} in set {name}")
        expected = (f"add {name} ", _ENTRY)
