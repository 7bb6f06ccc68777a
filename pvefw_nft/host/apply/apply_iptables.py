"""Execute plans for iptables, ipset and ebtables, and read the result back.

The rules before are kept until the result has been read back, and restored if anything fails. They are not restored if
another program had changed them: a ruleset with gaps would open the host.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pvefw_nft.errors import HostError

from .. import tools
from ..netfilter import nf_tables
from ..netfilter.stamp import are_counted, take_stamp_for_tools
from ..records.changes import AppliedChain
from .iptables_plan import LOCK_WAIT, NOTHING, SETS, Part, Plan, memory_key
from .iptables_plan import plan as plan
from .xtables import (
    IP_TABLES,
    IP_TOOLS,
    RULE_TOOLS,
    SAVE_TOOLS,
    State,
    Table,
    parse_sets,
    parse_table,
    read_state,
    save,
    save_sets,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from ..netfilter.stamp import RulesetStamp
    from .xtables import Chain, OnRecord

_IN_USE = "in use by a kernel component"  # ipset's words for a set that a rule or another set uses
FEW = 20
"""So many chains are read back one by one; more with the whole."""
PARTLY_FILTERED = "the host may be partly filtered: mend the cause, then run `pvefw start`"
NOT_RESTORED = (
    "the rules before it were not the complete ruleset on record, so they were not restored: "
    "the rules that were loaded by then are in place"
)
TRIES = 3  # attempts of an apply while other programs keep changing rules


@dataclass(frozen=True, slots=True)
class Seen:
    """The rules of pvefw that were read from the kernel, with their stamp (None: there is none).

    ``notes`` name the chains and sets that an apply had to leave, with the reason.
    """

    state: State
    stamp: RulesetStamp | None
    notes: tuple[str, ...] = ()

    def still_holds(self) -> bool:
        """Tell whether that provably is still so."""
        return self.stamp is not None and self.stamp == take_stamp()


def look(*, ebtables: bool, on_record: OnRecord = tuple) -> Seen:
    """Read the present rules. Raises :class:`HostError`; a missing ebtables counts only if ``ebtables`` says so.

    ``on_record`` returns the keys of the chains that were loaded last.
    """
    stamp = take_stamp()
    saved = save(ebtables=ebtables)
    holds = saved.ebtables is not None and stamp == stamp_with_sets(saved.sets)
    return Seen(saved.state(on_record), stamp if holds else None)


def take_stamp() -> RulesetStamp | None:
    """Return the stamp of this moment, or None if there is none. Raises :class:`HostError`."""
    return stamp_with_sets(save_sets())


def stamp_with_sets(sets: str) -> RulesetStamp | None:
    """Return the stamp of this moment, for sets that were just listed."""
    return take_stamp_for_tools(SAVE_TOOLS + RULE_TOOLS, sets)


def execute(planned: Plan, before_part: Callable[[Part], None] | None = None) -> list[str]:
    """Feed each part to its tool. Raises :class:`HostError` at the first that fails.

    Returns the sets that stay although they should go, since the kernel says that they are in use.
    """
    left = []
    for part in planned.parts:
        if before_part is not None:
            before_part(part)
        try:
            tools.run(part.command, _without_needless_flushes(part.text))
        except HostError as error:
            if not part.may_fail or _IN_USE not in error.message:
                raise
            left += _line_by_line(part)
    return left


def _line_by_line(part: Part) -> list[str]:
    """Run each line of a part that destroys sets for itself, and return the sets that are in use."""
    left = []
    for line in part.text.splitlines(keepends=True):
        try:
            tools.run(part.command, line)
        except HostError as error:
            if _IN_USE in error.message:
                left.append(line.split()[1])
            elif "does not exist" not in error.message:  # gone before the part failed as a whole
                raise
    return left


def _without_needless_flushes(text: str) -> str:
    """Leave out ``-F CHAIN`` where the same input makes the chain.

    A ruleset's text has these lines so that it can be loaded over another one. iptables-nft-restore 1.8.9 takes a
    time for each that grows with the number of rules: 10 s instead of 0.5 s for 1,000 guests of 20 rules.
    """
    lines = text.splitlines(keepends=True)
    needless = {f"-F {line[1:].split(' ', 1)[0]}\n" for line in lines if line.startswith(":")}
    return "".join(line for line in lines if line not in needless)


def differences(current: State, target: State) -> list[str]:
    """Return the differences from the wanted state after an apply, one line each; none if all is well."""
    wrong = []
    for tool in IP_TOOLS:
        for name in IP_TABLES:
            wrong += _table_differences(f"{tool} {name}", current.table(tool, name), target.table(tool, name))
    # ebtables spells rules differently from how it takes them: their number must do
    wrong += _table_differences("ebtables filter", current.ebtables, target.ebtables, signed=False)
    for name, wanted in target.sets.items():
        there = current.sets.get(name)
        if there is None:
            wrong.append(f"ipset {name} is missing")
        elif not there.same_as(wanted):
            wrong.append(f"ipset {name} holds other entries")
    wrong += [f"ipset {name} is still there" for name in current.sets if name not in target.sets]
    return wrong


def memory_of(current: State, planned: Plan, before: Mapping[str, AppliedChain] = NOTHING) -> dict[str, AppliedChain]:
    """Return the facts to record about a state that was just applied and read back.

    ``before`` is the record until then. It is kept for parts that the plan did not touch, so that foreign changes
    meanwhile do not count as applied.
    """
    touched = {memory_key(change.where, change.name) for change in planned.changes}
    found = {}
    for where, there, wanted in _tables(current, planned.after):
        for name, chain in wanted.chains.items():
            if name in there.chains:
                key = memory_key(where, name)
                fresh = AppliedChain(chain.signature or chain.listing, there.chains[name].listing)
                old = before.get(key)
                if old is None or key in touched or old.signature != fresh.signature:
                    found[key] = fresh
                else:
                    found[key] = old
    return found


def drifted(current: State, memory: Mapping[str, AppliedChain]) -> list[str]:
    """Return the chains changed by hand since they were applied, as ``iptables filter tap100i0-IN``."""
    found = []
    for where, there, _ in _tables(current, current):
        for key, remembered in memory.items():
            place, _, name = key.rpartition(" ")
            if place == where and (name not in there.chains or there.chains[name].listing != remembered.listing):
                found.append(key)
    return found


def is_exact(current: State, target: State) -> bool:
    """Tell whether the kernel holds the chains, jumps and sets of a ruleset, none beside them, and no foreign rule uses
    them; their content is compared elsewhere.
    """
    return (
        current.sets.keys() == target.sets.keys()
        and not current.set_users
        and all(
            there.chains.keys() == wanted.chains.keys()
            and there.hooked == wanted.hooked
            and not there.users
            and not there.repeated
            for _, there, wanted in _tables(current, target)
        )
    )


_NF_TABLES = frozenset({("ip", "filter"), ("ip", "raw"), ("ip6", "filter"), ("ip6", "raw"), ("bridge", "filter")})
"""Where iptables-nft, ip6tables-nft and ebtables-nft keep the tables that we use."""


def refuse_dormant() -> None:
    """Raise :class:`HostError` if a table with our chains is dormant: the kernel uses none of them."""
    try:
        asleep = sorted(_NF_TABLES & nf_tables.dormant())
    except HostError as error:
        if error.hint == nf_tables.NO_NFTABLES:
            return  # there are legacy tools only
        raise
    for family, name in asleep:
        raise HostError(
            f"the table {family} {name} has the flag `dormant`: none of its rules is used",
            f"wake it: nft add table {family} {name}",
        )


def apply(planned: Plan, is_whole: Callable[[State], bool] = lambda _: True) -> Seen:
    """Execute a plan that was just made, and return the state after it; if it fails, restore the rules before.

    If another program changes rules meanwhile, the apply is planned again from the present rules. ``is_whole`` tells
    whether the rules before were a complete ruleset. An incomplete one is not restored: the loaded rules stay. Raises
    :class:`HostError` that names the failure and the rules that are in place.
    """
    if not planned.parts:
        return Seen(planned.before, planned.stamp, planned.notes)
    try:
        after, left = _execute_and_read_back(planned)
    except HostError as err:
        if not is_whole(planned.before):
            raise HostError(f"{err.message}\n{NOT_RESTORED}", err.hint or PARTLY_FILTERED) from err
        _put_back(planned.before, err)
        raise HostError(f"{err.message}\nthe ruleset that ran before is in place", err.hint) from err
    in_use = (f"the set {name} stays: the kernel says that a rule or set uses it" for name in left)
    return replace(after, notes=(*planned.notes, *in_use))


def _execute_and_read_back(planned: Plan) -> tuple[Seen, list[str]]:
    """Return the state after a plan, as read back, and the sets that stay because they are in use.

    Raises :class:`HostError` if that is not the planned state, also after the last try.
    """
    left: list[str] = []
    for further_tries in reversed(range(TRIES)):
        after: Seen | None
        try:
            left += execute(planned)
            after = _read_changed(planned) or _look_again(planned)
            stay = {name: there for name, there in after.state.sets.items() if name in left}
            wrong = differences(after.state, replace(planned.after, sets={**stay, **planned.after.sets}))
            if not wrong:
                return after, left
            error = HostError("the kernel does not hold the ruleset that was loaded: " + "; ".join(wrong[:5]))
        except HostError as failure:
            error, after = failure, _if_others_changed_rules(planned)
        if after is None or not further_tries:
            raise error
        planned = plan(after.state, planned.target, removing=planned.removing, stamp=after.stamp)
    raise AssertionError  # the last try returns or raises


def _look_again(planned: Plan) -> Seen:
    """Read all rules. The plan's chains count as pvefw's, even if another program changed them meanwhile."""
    tables = _tables(planned.before, planned.after)
    known = {memory_key(where, name) for where, *both in tables for table in both for name in table.chains}
    return look(ebtables=bool(planned.after.ebtables.chains), on_record=lambda: known)


def _if_others_changed_rules(planned: Plan) -> Seen | None:
    """Return the present rules if a tool may have failed because another program changed rules after the plan.

    Each table is changed in one transaction: without a foreign change it holds the rules before or the planned ones.
    None: every table does.
    """
    try:
        now = _look_again(planned)
    except HostError:
        return None  # the tool's own error tells more
    tables = zip(_tables(now.state, planned.after), _tables(planned.before, planned.after), strict=True)
    for (where, there, wanted), (_, before, _) in tables:
        as_before = there.chains == before.chains and there.hooked == before.hooked
        if not as_before and _table_differences(where, there, wanted, signed=not where.startswith("ebtables")):
            return now
    return None


def _read_changed(planned: Plan) -> Seen | None:
    """Read back only the chains that changed, if the rest is provably unchanged; None: it is not.

    Each part for iptables is one transaction. If there was no other since the plan's state was read, chains outside of
    the parts cannot have changed. New and removed chains, and ebtables, are always read back as a whole.
    """
    chains = [change for change in planned.changes if change.where != SETS]
    parts = [part for part in planned.parts if part.command[0] != "ipset"]
    # a jump from one of the kernel's chains is a change too: `INPUT -j PVEFW-INPUT`
    few = len(chains) <= FEW and all(change.what == "change" and " " not in change.name for change in chains)
    only_ip = not any(part.command[0] == "ebtables-restore" for part in parts)
    before, after = planned.before, planned.after
    hooked = all(after.table(*key).hooked <= before.table(*key).hooked for key in after.tables)
    if planned.stamp is None or not (few and only_ip and hooked and are_counted(SAVE_TOOLS + RULE_TOOLS)):
        return None
    places = [(tool, table, change.name) for change in chains for tool, table in [change.where.split(" ")]]
    read = read_chains(places)
    sets = save_sets()
    expected, now = planned.stamp.after(len(parts)), stamp_with_sets(sets)
    if now is None or now != replace(expected, rest=now.rest):
        return None
    tables = dict(before.tables)
    for place, table in read.items():
        there = tables[place]
        wanted = {name for *its_place, name in places if tuple(its_place) == place}
        others = {name: chain for name, chain in there.chains.items() if name not in wanted}
        tables[place] = replace(there, chains={**others, **table.chains})
    return Seen(replace(before, tables=tables, sets=parse_sets(sets)), now)


def read_chains(places: Iterable[tuple[str, str, str]]) -> dict[tuple[str, str], Table]:
    """Return single chains of iptables, given by tool, table and name, by tool and table. Raises HostError."""
    found: dict[tuple[str, str], dict[str, Chain]] = {}
    asked = [*places]
    texts = tools.run_all([(tool, "-w", LOCK_WAIT, "-t", table, "-S", name) for tool, table, name in asked])
    for (tool, table, name), text in zip(asked, texts, strict=True):
        lines = [f":{name} - [0:0]", *(line for line in text.splitlines() if line.startswith("-A "))]
        found.setdefault((tool, table), {}).update(parse_table(lines, {}).chains)
    return {place: Table(chains) for place, chains in found.items()}


def _put_back(before: State, cause: HostError) -> None:
    try:
        now = read_state(ebtables=False)
        # as listed, and not as compiled: the signature lines go back with the rules they belong to
        execute(plan(now, before, removing=True))
    except HostError as err:
        raise HostError(
            f"{cause.message}\nand putting back the ruleset that ran before failed too: {err.message}",
            PARTLY_FILTERED,
        ) from cause


def _tables(current: State, target: State) -> list[tuple[str, Table, Table]]:
    pairs = [
        (f"{tool} {name}", current.table(tool, name), target.table(tool, name))
        for tool in IP_TOOLS
        for name in IP_TABLES
    ]
    return [*pairs, ("ebtables filter", current.ebtables, target.ebtables)]


def _table_differences(where: str, current: Table, target: Table, *, signed: bool = True) -> list[str]:
    wrong = []
    for name, wanted in target.chains.items():
        there = current.chains.get(name)
        if there is None:
            wrong.append(f"{where} {name} is missing")
        elif signed and wanted.signature is not None and there.signature != wanted.signature:
            wrong.append(f"{where} {name} has another signature")
        elif there.size != wanted.size:
            wrong.append(f"{where} {name} has {there.size} rules, not {wanted.size}")
    wrong += [f"{where} {name} is still there" for name in current.chains if name not in target.chains]
    wrong += [f"{where} {hook} does not jump to our chain" for hook in sorted(target.hooked - current.hooked)]
    wrong += [f"{where} {hook} jumps to our chain more than once" for hook in sorted(current.repeated)]
    return wrong
