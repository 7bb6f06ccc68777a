"""Bringing a host's iptables, ipset and ebtables rules to what is wanted, and removing them.

A plan is data: what each tool is fed, in the order that no rule ever misses its set (sets, rules, sets no
longer used). Only chains whose rules changed are replaced, each table in one atomic restore; sets are filled
beside the old one and swapped. What was there is kept until the result has been read back, and put back if
anything fails.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from backends.signature import signature
from pvefw_nft.errors import HostError

from . import names, nf_tables, tools
from .changes import Change, Remembered
from .witness import call_for_tools
from .xtables import (
    EBTABLES_HOOKS,
    HOOK_CHAINS,
    IP_TABLES,
    IP_TOOLS,
    RULE_TOOLS,
    SAVE_TOOLS,
    SWAP_SUFFIX,
    AddressSet,
    Chain,
    State,
    Table,
    parse_sets,
    parse_table,
    read_state,
    save,
    save_sets,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .witness import Witness

_SETS = "ipset"
_FEW = 20  # so many chains are read back one by one; more with the whole
_LOCK_WAIT = "10"  # seconds that legacy iptables waits for /run/xtables.lock


@dataclass(frozen=True, slots=True)
class Seen:
    """What of ours was in the kernel, and the witness of the time in which it was read (None: there is none)."""

    state: State
    witness: Witness | None

    def still_holds(self) -> bool:
        """Tell whether that provably is still so."""
        return self.witness is not None and self.witness == call_witness()


def look(*, ebtables: bool) -> Seen:
    """Read what is there. Raises :class:`HostError`; a missing ebtables counts only if ``ebtables`` says so."""
    witness = call_witness()
    saved = save(ebtables=ebtables)
    holds = saved.ebtables is not None and witness == witness_with(saved.sets)
    return Seen(saved.state(), witness if holds else None)


def call_witness() -> Witness | None:
    """Return the witness of this moment, or None where there is none. Raises :class:`HostError`."""
    return witness_with(save_sets())


def witness_with(sets: str) -> Witness | None:
    """Return the witness of this moment, for sets that were just listed."""
    return call_for_tools(SAVE_TOOLS + RULE_TOOLS, sets)


@dataclass(frozen=True, slots=True)
class Part:
    """What one tool is fed. ``command`` is what runs, ``title`` what a listing shows."""

    title: str
    command: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"### {self.title}\n{self.text}"


@dataclass(frozen=True, slots=True)
class Plan:
    """The parts to carry out, in order, and what they change; no parts: nothing to do.

    ``before`` is what the plan was made from, with its ``witness``, ``after`` what it leads to.
    """

    parts: tuple[Part, ...]
    changes: tuple[Change, ...]
    before: State
    after: State
    witness: Witness | None = None

    def __str__(self) -> str:
        return "".join(str(part) for part in self.parts)


_NOTHING: dict[str, Remembered] = {}
_NO_RULES = signature([])


def plan(
    current: State,
    target: State,
    memory: Mapping[str, Remembered] = _NOTHING,
    *,
    removing: bool = False,
    anew: bool = False,
    renamed: Sequence[str] = (),
    witness: Witness | None = None,
) -> Plan:
    """Return what brings ``current`` to ``target``; ``witness`` is that of ``current``.

    ``memory`` (by :func:`memory_key`) tells chains that were changed by hand since they were applied, and for
    ebtables, whose rules hold no signature, those that are as wanted. With ``removing`` the chains that the
    kernel's chains jump to go too; otherwise those stay, empty, when they are no longer wanted. With ``anew``
    also the chains that are as wanted are replaced, with ``renamed`` those that hold names of these files of the host.
    Raises :class:`HostError` where a chain that is not ours has a name that is wanted.
    """

    def again(chain: Chain) -> bool:
        return anew or names.holds_any(chain.rules, renamed)

    changes: list[Change] = []
    first, last = _plan_sets(current.sets, target.sets, changes)
    parts = [first]
    for tool in IP_TOOLS:
        for name in IP_TABLES:
            here = (tool, name)
            plans = _TablePlan(tool, name, current.table(*here), target.table(*here), memory, again)
            text = plans.restore_ip(removing=removing)
            parts.append(Part(f"{tool}-restore -T {name} -n", _restore(tool, name), text))
            changes += plans.changes
    bridge = _TablePlan("ebtables", "filter", current.ebtables, target.ebtables, memory, again)
    text = bridge.restore_ebtables()
    parts += [last, Part("ebtables-restore", ("ebtables-restore", "--noflush"), text)]
    changes += bridge.changes
    return Plan(
        tuple(part for part in parts if part.text),
        tuple(changes),
        current,
        _with_kept(current, target, removing=removing),
        witness,
    )


def carry_out(planned: Plan, before_part: Callable[[Part], None] | None = None) -> None:
    """Feed each part to its tool. Raises :class:`HostError` at the first that fails."""
    for part in planned.parts:
        if before_part is not None:
            before_part(part)
        tools.run(part.command, _without_needless_flushes(part.text))


def _without_needless_flushes(text: str) -> str:
    """Leave out ``-F CHAIN`` where the same input makes the chain.

    A ruleset's text has these lines so that it can be loaded over another one. iptables-nft-restore 1.8.9 takes a
    time for each that grows with the number of rules: 10 s instead of 0.5 s for 1,000 guests of 20 rules.
    """
    lines = text.splitlines(keepends=True)
    needless = {f"-F {line[1:].split(' ', 1)[0]}\n" for line in lines if line.startswith(":")}
    return "".join(line for line in lines if line not in needless)


def differences(current: State, target: State) -> list[str]:
    """Return what is not as it should be after an apply, one line each; nothing where all is well."""
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


def memory_of(current: State, planned: Plan, before: Mapping[str, Remembered] = _NOTHING) -> dict[str, Remembered]:
    """Return what to remember of a state that was just applied and read back.

    ``before`` is what was remembered until then: that stands for what the plan did not touch, so that what somebody
    else changed meanwhile is not taken for what was applied.
    """
    touched = {memory_key(change.where, change.name) for change in planned.changes}
    found = {}
    for where, there, wanted in _tables(current, planned.after):
        for name, chain in wanted.chains.items():
            if name in there.chains:
                key = memory_key(where, name)
                fresh = Remembered(chain.signature or chain.listing, there.chains[name].listing)
                old = before.get(key)
                if old is None or key in touched or old.signature != fresh.signature:
                    found[key] = fresh
                else:
                    found[key] = old
    return found


def drifted(current: State, memory: Mapping[str, Remembered]) -> list[str]:
    """Return the chains changed by hand since they were applied, as ``iptables filter tap100i0-IN``."""
    found = []
    for where, there, _ in _tables(current, current):
        for key, remembered in memory.items():
            place, _, name = key.rpartition(" ")
            if place == where and (name not in there.chains or there.chains[name].listing != remembered.listing):
                found.append(key)
    return found


def memory_key(where: str, chain: str) -> str:
    """Return the key of a chain in the memory, for example ``iptables filter PVEFW-INPUT``."""
    return f"{where} {chain}"


_NF_TABLES = frozenset({("ip", "filter"), ("ip", "raw"), ("ip6", "filter"), ("ip6", "raw"), ("bridge", "filter")})
"""Where iptables-nft, ip6tables-nft and ebtables-nft keep the tables that we use."""


def refuse_dormant() -> None:
    """Raise :class:`HostError` where somebody switched off a table that our chains are in: none of them is used."""
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


def apply(planned: Plan) -> Seen:
    """Carry out a plan that was just made, and return what is there then; if it fails, put back what was there.

    Raises :class:`HostError` that says what failed, and whether putting back failed too.
    """
    if not planned.parts:
        return Seen(planned.before, planned.witness)
    try:
        carry_out(planned)
        after = _read_changed(planned) or look(ebtables=bool(planned.after.ebtables.chains))
        wrong = differences(after.state, planned.after)
        if wrong:
            raise HostError("the kernel does not hold what was loaded: " + "; ".join(wrong[:5]))
    except HostError as err:
        _put_back(planned.before, err)
        raise HostError(f"{err.message}\nthe ruleset that ran before is in place", err.hint) from err
    return after


def _read_changed(planned: Plan) -> Seen | None:
    """Read back only the chains that changed, where the rest provably is as it was; None: that is not so.

    Each part for iptables is one transaction. If there were no others since the plan's state was read, what is in
    none of the parts cannot have changed. Chains that come and go, and ebtables, are not worth it.
    """
    chains = [change for change in planned.changes if change.where != _SETS]
    parts = [part for part in planned.parts if part.command[0] != "ipset"]
    few = len(chains) <= _FEW and all(change.what == "change" for change in chains)
    only_ip = not any(part.command[0] == "ebtables-restore" for part in parts)
    before, after = planned.before, planned.after
    hooked = all(after.table(*key).hooked <= before.table(*key).hooked for key in after.tables)
    if planned.witness is None or not (few and only_ip and hooked):
        return None
    places = [(*change.where.split(" "), change.name) for change in chains]
    texts = tools.run_all([(tool, "-w", _LOCK_WAIT, "-t", table, "-S", name) for tool, table, name in places])
    sets = save_sets()
    expected, now = planned.witness.after(len(parts)), witness_with(sets)
    if now is None or now != replace(expected, rest=now.rest):
        return None
    tables = dict(before.tables)
    for (tool, table, name), text in zip(places, texts, strict=True):
        lines = [f":{name} - [0:0]", *(line for line in text.splitlines() if line.startswith("-A "))]
        there = tables[tool, table]
        others = {other: chain for other, chain in there.chains.items() if other != name}
        tables[tool, table] = replace(there, chains={**others, **parse_table(lines, {}).chains})
    return Seen(replace(before, tables=tables, sets=parse_sets(sets)), now)


def _put_back(before: State, cause: HostError) -> None:
    try:
        now = read_state(ebtables=False)
        # as listed, and not as compiled: the signature lines go back with the rules they belong to
        carry_out(plan(now, before, removing=True))
    except HostError as err:
        raise HostError(
            f"{cause.message}\nand putting back the ruleset that ran before failed too: {err.message}",
            "the host may be partly filtered: mend the cause, then run `pvefw start`",
        ) from cause


def _restore(tool: str, table: str) -> tuple[str, ...]:
    return (f"{tool}-restore", "-w", _LOCK_WAIT, "-T", table, "-n")


def _with_kept(before: State, target: State, *, removing: bool) -> State:
    """Return the target with the emptied chains that stay because something refers to them."""

    def with_kept(there: Table, wanted: Table, hooks: Mapping[str, str]) -> Table:
        names = set(there.referenced) | (set() if removing else set(hooks.values()))
        kept = {name: Chain((), None) for name in sorted(names & set(there.chains) - set(wanted.chains))}
        hooked = {hook for hook, chain in hooks.items() if chain in kept and not removing} & there.hooked
        return Table({**wanted.chains, **kept}, wanted.hooked | hooked)

    tables = {
        (tool, name): with_kept(before.table(tool, name), target.table(tool, name), HOOK_CHAINS[name])
        for tool in IP_TOOLS
        for name in IP_TABLES
    }
    return State(tables, with_kept(before.ebtables, target.ebtables, {}), target.sets)


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
    return wrong


class _TablePlan:
    """What changes in one table."""

    def __init__(
        self,
        tool: str,
        name: str,
        current: Table,
        target: Table,
        memory: Mapping[str, Remembered],
        again: Callable[[Chain], bool],
    ) -> None:
        self._where = f"{tool} {name}"
        self._name = name
        self._current = current
        self._target = target
        self._memory = memory
        self.changes: list[Change] = []
        taken = sorted(set(target.chains) & current.foreign)
        if taken:
            raise HostError(
                f"{self._where}: a chain {taken[0]} is there that pvefw did not make",
                f"rename or remove it: {tool} -t {name} -F {taken[0]}; {tool} -t {name} -X {taken[0]}",
            )
        self._new = sorted(set(target.chains) - set(current.chains))
        self._changed = sorted(
            name
            for name, chain in target.chains.items()
            if name in current.chains and (again(chain) or not self._as_wanted(name))
        )
        self._gone = sorted(set(current.chains) - set(target.chains))

    def restore_ip(self, *, removing: bool) -> str:
        """Return the input of iptables-restore, empty where nothing changes."""
        kept = set() if removing else set(HOOK_CHAINS[self._name].values())
        # a chain that a rule of the administrator's jumps to cannot be deleted: it stays, empty
        kept |= self._current.referenced
        emptied = [chain for chain in self._gone if not self._is_empty(chain)]
        deleted = [chain for chain in self._gone if chain not in kept]
        lines = [f":{chain} - [0:0]" for chain in self._new]
        lines += self._hook_lines(HOOK_CHAINS[self._name], removing=removing)
        for chain in sorted([*self._new, *self._changed]):
            wanted = self._target.chains[chain]
            lines.append(f"-F {chain}")
            lines += wanted.rules
            if wanted.signature is not None:
                lines.append(_signature_line(chain, wanted.signature))
        for chain in emptied:
            lines.append(f"-F {chain}")
            if chain in self._current.referenced:  # by this, a later run knows it as ours
                lines.append(_signature_line(chain, _NO_RULES))
        lines += [f"-X {chain}" for chain in deleted]
        self._note(sorted({*emptied, *deleted}))
        return _restore_text(self._name, lines, commit=True)

    def restore_ebtables(self) -> str:
        """Return the input of ebtables-restore, empty where nothing changes."""
        kept = self._current.referenced
        lines = [f":{chain} ACCEPT" for chain in self._new]
        lines += [f"-F {chain}" for chain in self._changed]
        for chain in sorted([*self._new, *self._changed]):
            lines += self._target.chains[chain].rules
        lines += self._hook_lines(EBTABLES_HOOKS, removing=True)
        lines += [f"-F {chain}" for chain in self._gone]
        lines += [f"-X {chain}" for chain in self._gone if chain not in kept]
        self._note(self._gone)
        return _restore_text("filter", lines, commit=False)

    def _hook_lines(self, hooks: Mapping[str, str], *, removing: bool) -> list[str]:
        lines = []
        for hook, chain in hooks.items():
            if hook in self._target.hooked - self._current.hooked:
                lines.append(f"-A {hook} -j {chain}")
                self.changes.append(Change("add", self._where, f"{hook} -j {chain}"))
            elif removing and hook in self._current.hooked - self._target.hooked:
                lines.append(f"-D {hook} -j {chain}")
                self.changes.append(Change("remove", self._where, f"{hook} -j {chain}"))
        return lines

    def _as_wanted(self, name: str) -> bool:
        current, target = self._current.chains[name], self._target.chains[name]
        remembered = self._memory.get(memory_key(self._where, name))
        if remembered is not None and remembered.listing != current.listing:
            return False  # changed by hand
        if target.signature is None:
            return current.rules == target.rules  # both as listed
        if current.signature is None:
            # ebtables: only what was remembered tells that these are the rules that are wanted
            return remembered is not None and remembered.signature == target.signature
        as_listed = remembered is not None
        return current.signature == target.signature and (as_listed or current.size == target.size)

    def _is_empty(self, name: str) -> bool:
        chain = self._current.chains[name]
        kept = _NO_RULES if name in self._current.referenced else None
        return not chain.rules and chain.signature in (None, kept)

    def _note(self, gone: Sequence[str]) -> None:
        self.changes += [Change("add", self._where, chain) for chain in self._new]
        self.changes += [Change("change", self._where, chain) for chain in self._changed]
        self.changes += [Change("remove", self._where, chain) for chain in gone]


def _signature_line(chain: str, text: str) -> str:
    return f'-A {chain} -m comment --comment "PVESIG:{text}"'


def _restore_text(table: str, lines: Sequence[str], *, commit: bool) -> str:
    if not lines:
        return ""
    return "\n".join([f"*{table}", *lines, *(["COMMIT"] if commit else [])]) + "\n"


def _plan_sets(
    current: Mapping[str, AddressSet], target: Mapping[str, AddressSet], changes: list[Change]
) -> tuple[Part, Part]:
    """Return what fills and swaps the sets, before the rules, and what destroys them, after the rules."""
    left = [name for name in current if name.endswith(SWAP_SUFFIX) and name not in target]
    fill = [f"destroy {name}" for name in left]  # of a run that was killed; no rule refers to them
    for name, wanted in target.items():
        there = current.get(name)
        if there is not None and there.same_as(wanted):
            continue
        if there is None:
            fill.append(f"create {name} {wanted.create}")
            fill += [f"add {name} {entry}" for entry in wanted.entries]
            changes.append(Change("add", _SETS, name))
            continue
        if there.kind[:2] != wanted.kind[:2]:
            raise HostError(f"the ipset {name} is of another kind ({there.create})", f"remove it: ipset destroy {name}")
        swap = f"{name}{SWAP_SUFFIX}"
        fill.append(f"create {swap} {wanted.create}")
        fill += [f"add {swap} {entry}" for entry in wanted.entries]
        fill += [f"swap {swap} {name}", f"destroy {swap}"]
        old, new = set(there.entries), set(wanted.entries)
        detail = [f"+ {entry}" for entry in sorted(new - old)] + [f"- {entry}" for entry in sorted(old - new)]
        changes.append(Change("change", _SETS, name, tuple(detail)))
    gone = sorted(name for name in current if name not in target and name not in left)
    changes += [Change("remove", _SETS, name) for name in gone]
    return (
        Part("ipset restore", ("ipset", "restore"), "".join(f"{line}\n" for line in fill)),
        Part("ipset restore", ("ipset", "restore"), "".join(f"destroy {name}\n" for name in gone)),
    )
