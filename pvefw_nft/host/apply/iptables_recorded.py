"""Change a few chains of iptables by the record of the last apply, without a listing of all rules.

Listing the rules of a large node takes most of the time of a small change. It is not needed while the stamp of the
last apply holds and the kernel held exactly the ruleset on record then (:attr:`.AppliedState.exact`): then the present
rules are known. Pieces of the artefact that are equal to those on record stand for chains that are as wanted.

Anything unexpected makes the caller list all rules and plan again.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pvefw_nft.errors import HostError, InternalError

from ..netfilter.stamp import are_counted
from ..records.changes import AppliedChain
from . import iptables_plan, xtables
from .apply_iptables import FEW, differences, execute, read_chains, take_stamp
from .iptables_plan import memory_key
from .xtables import Chain, State, Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ..netfilter.stamp import RulesetStamp
    from ..records.changes import Change
    from ..records.record import AppliedState, Desired
    from .iptables_plan import Plan

_ENABLED = '{"enabled": true'
_TOOL = re.compile(r',?\n"(iptables|ip6tables|ipset)": \{')
_BRIDGE = '},\n"ebtables": {'
_TABLE = re.compile(r',?\n "([a-z]+)": \{')
_ENDS = ("}", "}}\n")
_MEMBER = re.compile(r'(,?\n  "[^"\\]+"): (\[.*\])')


@dataclass(frozen=True, slots=True)
class ListedChain(Chain):
    """A chain on record: its rules as compiled, and the digest of the kernel's listing."""

    recorded: str

    @property
    def listing(self) -> str:
        """The digest on record."""
        return self.recorded


@dataclass(frozen=True, slots=True)
class RecordedPlan:
    """A plan of a few chains: ``few`` has only these, before and after. ``memory`` is the record that it follows."""

    few: Plan
    desired: Desired
    memory: AppliedState

    @property
    def changes(self) -> tuple[Change, ...]:
        """The changes."""
        return self.few.changes

    @property
    def notes(self) -> tuple[str, ...]:
        """Nothing: no part of another program was in the way at the last apply."""
        return ()

    @property
    def stamp(self) -> RulesetStamp | None:
        """The stamp of the record."""
        return self.few.stamp

    def __str__(self) -> str:
        return str(self.few)

    def before(self, now: State) -> State:
        """Return the rules before the plan: of ``now``, the present ones, with the chains of the plan as they were."""
        tables = dict(now.tables)
        for place, table in self.few.before.tables.items():
            there = now.table(*place)
            changed = {
                name: chain
                for name, chain in table.chains.items()
                if name not in there.chains or there.chains[name].listing != chain.listing
            }
            tables[place] = replace(there, chains={**there.chains, **changed})
        return replace(now, tables=tables)


def plan(desired: Desired, memory: AppliedState | None, previous: Desired | None) -> RecordedPlan | None:
    """Return the plan from ``previous``, which the kernel provably holds; None: all rules have to be listed for it.

    ``memory`` is the record of its listing, whose stamp holds now.
    """
    if memory is None or previous is None or not memory.exact:
        return None
    if not are_counted(xtables.SAVE_TOOLS + xtables.RULE_TOOLS):
        return None
    try:
        pairs = [*_changed(previous.pieces, desired.pieces, memory)]
    except (InternalError, ValueError, TypeError, RecursionError):
        return None
    if not 0 < len(pairs) <= FEW:
        return None
    before: dict[tuple[str, str], dict[str, Chain]] = {}
    after: dict[tuple[str, str], dict[str, Chain]] = {}
    for place, name, old, new in pairs:
        before.setdefault(place, {})[name] = old
        after.setdefault(place, {})[name] = new
    few = iptables_plan.plan(_state(before), _state(after), memory.chains, stamp=memory.stamp)
    return RecordedPlan(few, desired, memory) if few.changes else None


def _state(chains: Mapping[tuple[str, str], Mapping[str, Chain]]) -> State:
    return State({place: Table(table) for place, table in chains.items()})


def _changed(
    before: Sequence[str], after: Sequence[str], memory: AppliedState
) -> Iterator[tuple[tuple[str, str], str, ListedChain, Chain]]:
    """Yield tool and table, name, and the chain before and after of each piece that differs.

    Raises ValueError where something else differs than the rules of a chain of iptables, or the record does not know
    it; InternalError for rules that are none.
    """
    if len(before) != len(after):
        raise ValueError("other parts than before")
    numbers = [number for number, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
    if len(numbers) > FEW:
        return
    for number, place in _places(before, numbers):
        old, new = _MEMBER.fullmatch(before[number]), _MEMBER.fullmatch(after[number])
        if old is None or new is None or old[1] != new[1]:
            raise ValueError("another part than a chain")
        name = json.loads(old[1].lstrip(",\n "))
        was, wanted = (xtables.wanted_chain(name, json.loads(found[2])) for found in (old, new))
        known = memory.chains.get(memory_key(" ".join(place), name))
        if known is None or known.signature != was.signature:
            raise ValueError("a chain that is not on record")
        yield place, name, ListedChain(was.rules, was.signature, known.listing), wanted


def _places(pieces: Sequence[str], numbers: Sequence[int]) -> Iterator[tuple[int, tuple[str, str]]]:
    """Yield the tool and table of the chain in each of these pieces.

    Raises ValueError if the pieces are cut elsewhere than :meth:`.IptablesArtefact.loadable` cuts them, or one of these
    is of no table of iptables. A line break is never within a word of JSON, so it begins a part.
    """
    wanted = set(numbers)
    tool = table = ""
    for number, piece in enumerate(pieces):
        if piece.startswith((',\n  "', '\n  "')) and piece.endswith("]") and piece.count("\n") == 1:
            if number in wanted:
                if tool not in xtables.IP_TOOLS or table not in xtables.IP_TABLES:
                    raise ValueError("a part of no table")
                yield number, (tool, table)
                wanted.remove(number)
        elif (found := _TABLE.fullmatch(piece)) is not None:
            table = found[1]
        elif (found := _TOOL.fullmatch(piece)) is not None:
            tool, table = found[1], ""
        elif piece == _BRIDGE:
            tool = table = ""
        elif piece in _ENDS:
            table = ""
        elif number or piece != _ENABLED:
            raise ValueError("a part that is not known")
    if wanted:
        raise ValueError("another part than a chain")


def apply(planned: RecordedPlan) -> AppliedState | None:
    """Execute a plan that was just made; return the state to remember, of no ruleset's identity yet.

    None: a tool failed, or the kernel does not hold the planned rules, or others changed rules meanwhile.
    """
    few = planned.few
    assert few.stamp is not None
    try:
        execute(few)
        found = read_chains((*place, name) for place, table in few.after.tables.items() for name in table.chains)
        now = take_stamp()
    except HostError:
        return None
    if now is None or now != few.stamp.after(len(few.parts)) or differences(State(found), few.after):
        return None
    touched = {
        memory_key(" ".join(place), name): AppliedChain(chain.signature or "", chain.listing)
        for place, table in found.items()
        for name, chain in table.chains.items()
    }
    return replace(planned.memory, chains={**planned.memory.chains, **touched}, stamp=now)
