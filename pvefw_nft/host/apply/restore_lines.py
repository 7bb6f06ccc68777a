"""The permitted content of a line for iptables-restore, ebtables-restore or ipset restore.

Artefacts come from the compiler, which reads files of tenants in a process without privileges. The restore tools take
more than rules: ``--modprobe COMMAND`` (iptables(8)) runs a program, ``--atomic-file`` (ebtables(8)) and ``-file``
(ipset(8)) write files. So a line may hold only the options that pvefw's own rules use.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pvefw_nft.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Iterable

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


def check_rules(chain: str, lines: Iterable[object]) -> None:
    """Raise InternalError unless each line appends one rule to the chain, with options that pvefw's rules use."""
    start = f"-A {chain} "
    for line in lines:
        if (
            not isinstance(line, str)
            or not line.startswith(start)
            or len(line) > _MAX_LINE
            or _UNSOUND.search(line) is not None
            or not _RULE_OPTIONS.issuperset(_OPTION.findall(line, len(start) - 1))
        ):
            raise InternalError(f"an artefact with the line {str(line)[:200]!r} in chain {chain}")


def check_set(name: str, lines: Iterable[object]) -> None:
    """Raise InternalError unless the first line creates the set, and each other adds one entry."""
    expected = (f"create {name} ", _SET)
    for line in lines:
        start, form = expected
        if not isinstance(line, str) or not line.startswith(start) or form.fullmatch(line, len(start)) is None:
            raise InternalError(f"an artefact with the line {str(line)[:200]!r} in set {name}")
        expected = (f"add {name} ", _ENTRY)
