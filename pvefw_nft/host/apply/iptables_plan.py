"""Plan the change of a host's iptables, ipset and ebtables rules from the present to the wanted ones.

A plan is data: what each tool is fed, in the order that no rule ever misses its set (sets, rules, sets no
longer used). Only chains whose rules changed are replaced, each table in one atomic restore; sets are filled
beside the old one and swapped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pvefw_nft.backends.signature import signature
from pvefw_nft.errors import HostError

from ..records.changes import AppliedChain, Change
from . import names
from .xtables import EBTABLES_HOOKS, HOOK_CHAINS, IP_TABLES, IP_TOOLS, SWAP_SUFFIX, Chain, State, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ..netfilter.stamp import RulesetStamp

SETS = "ipset"
LOCK_WAIT = "10"
"""Seconds that legacy iptables waits for /run/xtables.lock."""


@dataclass(frozen=True, slots=True)
class Part:
    """The input of one tool. ``command`` is the command line, ``title`` the heading in a listing.

    ``may_fail``: each line runs by itself, and may fail if another program uses the removed object.
    """

    title: str
    command: tuple[str, ...]
    text: str
    may_fail: bool = False

    def __str__(self) -> str:
        return f"### {self.title}\n{self.text}"


@dataclass(frozen=True, slots=True)
class Plan:
    """The parts of a plan in order, and the changes that they make. Without parts there is nothing to do.

    ``before`` is the state that the plan starts from, with its ``stamp``; ``target`` and ``removing`` are the request,
    ``after`` is the planned state. ``notes`` name unwanted chains and sets that stay, with the reason.
    """

    parts: tuple[Part, ...]
    changes: tuple[Change, ...]
    before: State
    after: State
    target: State
    removing: bool = False
    stamp: RulesetStamp | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "".join(str(part) for part in self.parts)


NOTHING: dict[str, AppliedChain] = {}
_NO_RULES = signature([])


def plan(
    current: State,
    target: State,
    memory: Mapping[str, AppliedChain] = NOTHING,
    *,
    removing: bool = False,
    reload_all: bool = False,
    renamed: Sequence[str] = (),
    stamp: RulesetStamp | None = None,
) -> Plan:
    """Return the plan from ``current`` to ``target``; ``stamp`` belongs to ``current``.

    ``memory`` (by :func:`memory_key`) tells chains that were changed by hand since they were applied, and for
    ebtables, whose rules hold no signature, those that are as wanted. With ``removing`` the chains that the
    kernel's chains jump to go too; otherwise those stay, empty, when they are no longer wanted. With ``reload_all``
    also the chains that are as wanted are replaced, with ``renamed`` those that hold names of these files of the host.
    Raises :class:`HostError` if a foreign chain has the name of a wanted one.
    """

    def again(chain: Chain) -> bool:
        return reload_all or names.holds_any(chain.rules, renamed)

    changes: list[Change] = []
    first, last = _plan_sets(current, target, changes)
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
        with_kept(current, target, removing=removing),
        target,
        removing,
        stamp,
        tuple(_uses_of_leftovers(current, target)),
    )


def _uses_of_leftovers(current: State, target: State) -> Iterator[str]:
    """Yield a reason for each unwanted chain or set that stays: foreign rules use it."""
    tables = [(f"{tool} -t {name}", table, target.table(tool, name)) for (tool, name), table in current.tables.items()]
    for where, there, wanted in [*tables, ("ebtables", current.ebtables, target.ebtables)]:
        for chain, rule in there.users.items():
            if chain not in wanted.chains:
                yield f"the chain {chain} stays, empty, because your rule uses it: {where} {rule}"
    for name, user in current.set_users.items():
        if name not in target.sets:
            yield f"the set {name} stays, because it is used by {user}"


def memory_key(where: str, chain: str) -> str:
    """Return the key of a chain in the memory, for example ``iptables filter PVEFW-INPUT``."""
    return f"{where} {chain}"


def _restore(tool: str, table: str) -> tuple[str, ...]:
    return (f"{tool}-restore", "-w", LOCK_WAIT, "-T", table, "-n")


def with_kept(before: State, target: State, *, removing: bool = False) -> State:
    """Return the target with the emptied chains that stay because something refers to them."""

    def table_with_kept(there: Table, wanted: Table, hooks: Mapping[str, str]) -> Table:
        names = set(there.referenced) | (set() if removing else set(hooks.values()))
        kept = {name: Chain((), None) for name in sorted(names & set(there.chains) - set(wanted.chains))}
        hooked = {hook for hook, chain in hooks.items() if chain in kept and not removing} & there.hooked
        return Table({**wanted.chains, **kept}, wanted.hooked | hooked)

    tables = {
        (tool, name): table_with_kept(before.table(tool, name), target.table(tool, name), HOOK_CHAINS[name])
        for tool in IP_TOOLS
        for name in IP_TABLES
    }
    in_use = {name: there for name, there in before.sets.items() if name in before.set_users}
    return State(tables, table_with_kept(before.ebtables, target.ebtables, {}), {**in_use, **target.sets})


class _TablePlan:
    """The changes in one table."""

    def __init__(
        self,
        tool: str,
        name: str,
        current: Table,
        target: Table,
        memory: Mapping[str, AppliedChain],
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
        """Return the input of iptables-restore, empty if nothing changes."""
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
            if chain in self._current.referenced:  # a later run recognises it by this
                lines.append(_signature_line(chain, _NO_RULES))
        lines += [f"-X {chain}" for chain in deleted]
        self._note(sorted({*emptied, *deleted}))
        return _restore_text(self._name, lines, commit=True)

    def restore_ebtables(self) -> str:
        """Return the input of ebtables-restore, empty if nothing changes."""
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
            jump = f"{hook} -j {chain}"
            count, first = self._current.repeated.get(hook, (1, 0))
            if hook in self._target.hooked - self._current.hooked:
                lines.append(f"-A {jump}")
                self.changes.append(Change("add", self._where, jump))
            elif hook in self._target.hooked and count > 1:
                # -D removes the first that matches, so all go, and one comes back where the first one stood. By
                # number a rule of others could be hit that came in between.
                lines += [f"-D {jump}"] * count
                lines.append(f"-I {hook} {first} -j {chain}")
                self.changes.append(Change("change", self._where, jump))
            elif removing and hook in self._current.hooked - self._target.hooked:
                lines += [f"-D {jump}"] * count
                self.changes.append(Change("remove", self._where, jump))
        return lines

    def _as_wanted(self, name: str) -> bool:
        current, target = self._current.chains[name], self._target.chains[name]
        remembered = self._memory.get(memory_key(self._where, name))
        if remembered is not None and remembered.listing != current.listing:
            return False  # changed by hand
        if target.signature is None:
            return current.rules == target.rules  # both as listed
        if current.signature is None:
            # ebtables has no signatures: only the remembered state tells that these rules are the wanted ones
            signed = not self._where.startswith("ebtables")
            return not signed and remembered is not None and remembered.signature == target.signature
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


def _plan_sets(current: State, target: State, changes: list[Change]) -> tuple[Part, Part]:
    """Return the lines that fill and swap sets before the rules, and the lines that destroy sets after the rules."""
    left = [name for name in current.sets if name.endswith(SWAP_SUFFIX) and name not in target.sets]
    fill = [f"destroy {name}" for name in left]  # of a run that was killed; no rule refers to them
    changes += [Change("remove", SETS, name) for name in left]
    for name, wanted in target.sets.items():
        there = current.sets.get(name)
        if there is not None and there.same_as(wanted):
            continue
        if there is None:
            fill.append(f"create {name} {wanted.create}")
            fill += [f"add {name} {entry}" for entry in wanted.entries]
            changes.append(Change("add", SETS, name))
            continue
        if there.kind[:2] != wanted.kind[:2]:
            _check_unused(current, name, there.create)
            fill += [f"destroy {name}", f"create {name} {wanted.create}"]
            fill += [f"add {name} {entry}" for entry in wanted.entries]
            changes.append(Change("change", SETS, name, (f"it was of another kind ({there.create})",)))
            continue
        swap = f"{name}{SWAP_SUFFIX}"
        fill.append(f"create {swap} {wanted.create}")
        fill += [f"add {swap} {entry}" for entry in wanted.entries]
        fill += [f"swap {swap} {name}", f"destroy {swap}"]
        old, new = set(there.entries), set(wanted.entries)
        detail = [f"+ {entry}" for entry in sorted(new - old)] + [f"- {entry}" for entry in sorted(old - new)]
        changes.append(Change("change", SETS, name, tuple(detail)))
    gone = sorted(current.sets.keys() - target.sets.keys() - current.set_users.keys() - set(left))
    changes += [Change("remove", SETS, name) for name in gone]
    return (
        Part("ipset restore", ("ipset", "restore"), "".join(f"{line}\n" for line in fill)),
        Part("ipset restore", ("ipset", "restore"), "".join(f"destroy {name}\n" for name in gone), may_fail=True),
    )


def _check_unused(current: State, name: str, kind: str) -> None:
    """Raise :class:`HostError` if a set is used that must go since it is of another kind.

    The kernel swaps only sets of one type and family, and destroys none that is used.
    """
    user = current.set_users.get(name)
    if user is not None:
        raise HostError(
            f"the ipset {name} is of another kind ({kind}), and is used by {user}",
            "remove the rule or set that uses it; pvefw then creates it again",
        )
    for (tool, table), there in current.tables.items():
        for chain in there.chains.values():
            for rule in chain.rules:
                if f"-set {name} " in f"{rule} ":
                    raise HostError(
                        f"the ipset {name} is of another kind ({kind}), and one of pvefw's rules uses it: "
                        f"{tool} -t {table} {rule}",
                        "run `pvefw stop`, then `pvefw start`; in between nothing is filtered",
                    )
