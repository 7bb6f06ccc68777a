"""Shared by the readers: errors that name the rule, and assumptions about matches that are not modelled."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from pvefw_nft.errors import PvefwError
from pvefw_nft.verify.model import FALSE, TRUE, Condition, Table, UnreadChain, equals, targets, unknown_field

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pvefw_nft.verify.model import Rule


class RulesetError(PvefwError):
    """A ruleset cannot be read, or the model cannot express it."""

    exit_code: ClassVar[int] = 3


class Assume(Enum):
    """The assumption about an unknown match."""

    MATCH = "match"
    NOMATCH = "nomatch"
    BOTH = "both"


_OTHER_ENDS = "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
"""What ends a line for :meth:`str.splitlines`, besides a line feed."""


def with_plain_ends(text: str) -> str:
    """Return a text with a line feed at the end of each line, as :meth:`str.splitlines` finds them."""
    if any(end in text for end in _OTHER_ENDS):
        return "".join([f"{line}\n" for line in text.splitlines()])
    return text


def next_place(text: str, what: str, place: int) -> int:
    """Return where something next is in a text, from a place on; the text's length if it is nowhere."""
    found = text.find(what, place)
    return len(text) if found < 0 else found


@dataclass(slots=True)
class Reading:
    """The state of one reading: the assumption about unknown matches, and the assumptions made so far.

    ``source`` is the file's name for error messages. ``assume`` None: an unknown match is an error.
    """

    source: str
    assume: Assume | None = None
    assumptions: list[str] = field(default_factory=list)

    def unknown(self, where: str, text: str, *, whole: bool = True) -> Condition:
        """Return the condition for an unknown match; raises RulesetError without an assumption.

        Equal texts are taken for one match, but where they are not the ``whole`` of it.
        """
        if self.assume is None:
            hint = "--assume-unknown match, nomatch or both goes on with an assumption about it"
            if not whole:
                hint = f"name the files that iptables-save, ip6tables-save and ebtables-save print, too, or {hint}"
            raise RulesetError(f"{self.source}: {where}: '{text}' is not modelled", hint=hint)
        self.assumptions.append(f"{where}: '{text}' is taken to {self.meaning}")
        if self.assume is Assume.BOTH:
            return equals(unknown_field(text if whole else f"{text} of {where}"), 1)
        return TRUE if self.assume is Assume.MATCH else FALSE

    @property
    def meaning(self) -> str:
        """The assumption, in words."""
        if self.assume is Assume.BOTH:
            return "match or not, both possible"
        return "match" if self.assume is Assume.MATCH else "match nothing"

    def error(self, where: str, message: object) -> RulesetError:
        """Return the error for a rule that cannot be read."""
        return RulesetError(f"{self.source}: {where}: {message}")


def check_jumps(reading: Reading, tables: Iterable[Table]) -> None:
    """Raise RulesetError if a rule goes to a chain that is not there, or chains go in circles.

    The kernel refuses both (a loop with "Too many links").
    """
    for table in tables:
        if any(isinstance(chain, UnreadChain) for chain in table.chains.values()):
            continue  # each chain is checked when it is read
        next_chains: dict[str, list[str]] = {}
        for chain in table.chains.values():
            found: dict[str, None] = {}
            for number, rule in enumerate(chain.rules, 1):
                if rule.verdict is None:
                    continue
                for target in targets(rule.verdict):
                    if target not in table.chains:
                        where = f"table {table.key}, chain {chain.name}, rule {number}"
                        raise reading.error(where, f"goes to chain '{target}', which is not there")
                    found[target] = None
            next_chains[chain.name] = list(found)
        _check_loops(reading, table, next_chains)


def check_jumps_of(reading: Reading, table: Table, name: str, rules: Sequence[Rule]) -> None:
    """Check a chain that is being read, as :func:`check_jumps` does: a circle is found with the last of its chains.

    Raises RulesetError if one of its rules goes to a chain that is not there, or back to it by way of chains that
    have been read.
    """
    due: list[str] = []
    for number, rule in enumerate(rules, 1):
        for target in targets(rule.verdict):
            if target not in table.chains:
                where = f"table {table.key}, chain {name}, rule {number}"
                raise reading.error(where, f"goes to chain '{target}', which is not there")
            due.append(target)
    seen: set[str] = set()
    while due:
        target = due.pop()
        if target == name:
            raise reading.error(f"table {table.key}", f"chains go in a circle, by way of {name}")
        chain = table.chains[target]
        if target not in seen and not (isinstance(chain, UnreadChain) and not chain.is_read):
            seen.add(target)
            due += [other for rule in chain.rules for other in targets(rule.verdict)]


def _check_loops(reading: Reading, table: Table, next_chains: dict[str, list[str]]) -> None:
    done: set[str] = set()
    for start in next_chains:
        on_way: list[str] = [start]
        todo = [iter(next_chains[start])]
        while todo:
            target = next(todo[-1], None)
            if target is None:
                todo.pop()
                done.add(on_way.pop())
            elif target in on_way:
                raise reading.error(f"table {table.key}", f"chains go in a circle: {' → '.join([*on_way, target])}")
            elif target not in done:
                on_way.append(target)
                todo.append(iter(next_chains[target]))
