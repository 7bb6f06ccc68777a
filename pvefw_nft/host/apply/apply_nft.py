"""Bring a host's nftables tables ``bridge pvefw`` and ``inet pvefw`` to the wanted state, or remove them.

Each apply is one transaction of the kernel for both tables: a packet meets the old ruleset or the new one, and a
failure changes nothing. Only chains whose rules differ and only elements that differ are touched, so that the
counters, connections and dynamic sets of the rest stay. No other table is ever named.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pvefw_nft.errors import HostError

from ..netfilter import nf_tables
from ..netfilter.stamp import take_stamp
from ..records.changes import AppliedChain, Change
from .nftables_state import (
    DIGESTS,
    FAMILIES,
    TABLE,
    Command,
    Kernel,
    Nftables,
    Noted,
    TableObject,
    Wanted,
    listing,
    note_commands,
    read_kernel,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from ..netfilter.stamp import RulesetStamp

_FEW = 500  # so many are asked for one by one, each in less than a millisecond; more in one listing of the table


class NotAsLoadedError(HostError):
    """The transaction went through, but the kernel does not hold the loaded ruleset."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The commands of a transaction, and the changes that they make. Without commands there is nothing to do.

    ``target`` is the state after it. ``was_there``: one of our tables was loaded before. ``stamp`` is that of the state
    that was read for the plan (None: there is none). ``whole``: the transaction replaces our tables completely.
    """

    commands: tuple[Command, ...]
    changes: tuple[Change, ...]
    target: Mapping[str, Wanted]
    was_there: bool
    stamp: RulesetStamp | None = None
    whole: bool = False
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.commands:
            return ""
        lines = ",\n".join(json.dumps(command) for command in self.commands)
        return f'### nft -j -f -\n{{"nftables": [\n{lines}\n]}}\n'


def plan(
    current: Kernel,
    target: Mapping[str, Wanted],
    previous: Callable[[], Mapping[str, Wanted]] = dict,
    spoiled: Iterable[str] = (),
) -> Plan:
    """Return the plan that brings the kernel from its noted state to ``target`` (by family; none: no table).

    ``previous`` gives the ruleset applied last, if known: where a set is unchanged since then, only the
    elements that differ are touched. It is not asked where no set changes. ``spoiled`` are objects changed by hand
    since, as ``bridge chain x``.
    """
    commands: list[Command] = []
    changes: list[Change] = []
    spoiled = set(spoiled)
    whole = True
    for family in FAMILIES:
        wanted = target.get(family)
        if wanted is None:
            if family in current:
                commands.append({"delete": {"table": {"family": family, "name": TABLE}}})
                changes.append(Change("remove", "nft", f"table {family} {TABLE}"))
            continue
        table = _TablePlan(
            family,
            current.get(family),
            wanted,
            previous,
            {key.removeprefix(f"{family} ") for key in spoiled if key.startswith(f"{family} ")},
        )
        commands += table.commands()
        changes += table.changes
        whole = whole and table.whole
    return Plan(tuple(commands), tuple(changes), target, bool(current), whole=whole)


def replacing(current: Kernel, target: Mapping[str, Wanted]) -> Plan:
    """Return the plan that replaces our tables as a whole, in any state."""
    return plan({family: {} for family in current}, target)


def execute(planned: Plan, nft: Nftables) -> tuple[RulesetStamp | None, Kernel]:
    """Run the transaction; read back and return the notes.

    Returns the stamp of the moment before reading back; None if another program may have changed the state that the
    plan was made from. Raises :class:`HostError`.
    """
    if planned.commands:
        nft.run(planned.commands)
    stamp = take_stamp()
    if not planned.whole and (planned.stamp is None or stamp != planned.stamp.after(1)):
        stamp = None
    kernel = read_kernel()
    wrong = differences(kernel, planned.target)
    if wrong:
        raise NotAsLoadedError("the kernel does not hold the ruleset that was loaded: " + "; ".join(wrong[:5]))
    for family, names in _touched_chains(planned).items():
        wrong += _count_differences(family, names, planned.target[family])
    if wrong:
        raise NotAsLoadedError("the kernel does not hold the ruleset that was loaded: " + "; ".join(wrong[:5]))
    return stamp, kernel


def differences(current: Kernel, target: Mapping[str, Wanted]) -> list[str]:
    """Return the wrong or missing notes, one line each; none if all are right."""
    wrong = [f"table {family} {TABLE} is still there" for family in current if family not in target]
    for family, wanted in target.items():
        if family not in current:
            wrong.append(f"table {family} {TABLE} is missing")
            continue
        noted = {key: note.digests for key, note in current[family].items()}
        should = {key: item.digests for key, item in wanted.objects.items()}
        wrong += [
            f"{family} {key} is not as compiled"
            for key in sorted({*noted, *should})
            if noted.get(key) != should.get(key)
        ]
    return wrong


def memory_of(
    target: Mapping[str, Wanted], before: Mapping[str, AppliedChain] | None = None
) -> dict[str, AppliedChain]:
    """Return the facts to record about a state that was just applied, by ``FAMILY KIND NAME``.

    ``before``: the remembered state before it; then only differing parts are listed.
    """
    memory: dict[str, AppliedChain] = {}
    for family, wanted in target.items():
        fresh = [
            item
            for key, item in wanted.objects.items()
            if before is None or f"{family} {key}" not in before or before[f"{family} {key}"].signature != item.digests
        ]
        in_part = len(fresh) <= _FEW and all(item.kind in ("chain", "set", "map") for item in fresh)
        listed = listing(family, fresh if in_part else None)
        for key, item in wanted.objects.items():
            name = f"{family} {key}"
            if key in listed:
                memory[name] = AppliedChain(item.digests, listed[key])
            elif before is not None and name in before:
                memory[name] = before[name]
    return memory


@dataclass(frozen=True, slots=True)
class Drift:
    """The parts changed by hand since the apply, as ``bridge chain tap100i0-IN``.

    ``changed``: it has other rules or elements. ``missing``: it was deleted. ``added``: foreign, in one of our tables.
    """

    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    added: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """All of it."""
        return [*self.changed, *self.missing, *self.added]

    @property
    def in_structure(self) -> bool:
        """Whether a table differs from its notes: then it cannot be changed in part."""
        return bool(self.missing or self.added)


def drift(current: Kernel, memory: Mapping[str, AppliedChain]) -> Drift:
    """Compare each object with how the kernel listed it when it was applied. Raises :class:`HostError`."""
    changed: list[str] = []
    missing = [f"{family} table {TABLE}" for family in FAMILIES if family not in current and _remembers(memory, family)]
    added: list[str] = []
    for family in current:
        listed = {f"{family} {key}": made for key, made in listing(family).items()}
        remembered = {key: value for key, value in memory.items() if key.startswith(f"{family} ")}
        missing += [key for key in remembered if key not in listed]
        changed += [key for key, value in remembered.items() if listed.get(key, value.listing) != value.listing]
        added += [key for key in listed if key not in remembered]
    return Drift(tuple(changed), tuple(missing), tuple(added))


def _remembers(memory: Mapping[str, AppliedChain], family: str) -> bool:
    return any(key.startswith(f"{family} ") for key in memory)


def count_packets(families: Iterable[str]) -> dict[str, int]:
    """Return the packets that counted rules dropped or rejected, by ``FAMILY CHAIN``."""
    return {
        f"{family} {chain}": packets
        for family in families
        for chain, packets in nf_tables.refused(family, TABLE).items()
    }


def _touched_chains(planned: Plan) -> dict[str, list[str]]:
    touched: dict[str, dict[str, None]] = {}
    for command in planned.commands:
        rule = command.get("add", {}).get("rule")
        if rule is not None and rule["chain"] != DIGESTS:
            touched.setdefault(rule["family"], {})[rule["chain"]] = None
    return {family: list(names) for family, names in touched.items()}


def _count_differences(family: str, chains: list[str], wanted: Wanted) -> list[str]:
    few: list[str | None] = [*chains] if len(chains) <= _FEW else [None]
    counts = Counter(rule.chain for name in few for rule in nf_tables.rules(family, TABLE, name))
    wrong = []
    for name in chains:
        should = wanted.objects[TableObject("chain", name, {}).key].count
        if counts[name] != should:
            wrong.append(f"{family} chain {name} has {counts[name]} rules, not {should}")
    return wrong


class _TablePlan:
    """What changes in one table."""

    def __init__(
        self,
        family: str,
        noted: dict[str, Noted] | None,
        wanted: Wanted,
        previous: Callable[[], Mapping[str, Wanted]],
        spoiled: set[str],
    ) -> None:
        self._family = family
        self._noted = noted
        self._wanted = wanted
        self._previous = previous
        self._spoiled = spoiled
        self.changes: list[Change] = []
        self.whole = not noted or self._redefined()

    def commands(self) -> list[Command]:
        """Return the commands that bring this table to the wanted state."""
        return self._whole() if self.whole or self._noted is None else self._in_part(self._noted)

    def _redefined(self) -> bool:
        """Tell whether an object must be replaced: its references would have to go first."""
        assert self._noted is not None
        for key, note in self._noted.items():
            item = self._wanted.objects.get(key)
            if item is None and " #" in key:
                return True  # gone, and its name too long to be noted
            if item is not None and note.digests.partition(".")[0] != item.digests.partition(".")[0]:
                return True
        return False

    def _whole(self) -> list[Command]:
        table = {"table": {"family": self._family, "name": TABLE}}
        there = self._noted is not None
        if there:
            self.changes.append(Change("change", "nft", f"table {self._family} {TABLE} (as a whole)"))
        else:
            self.changes.append(Change("add", "nft", f"table {self._family} {TABLE}"))
        # adding a table that exists does nothing, so deleting it cannot fail; nft 1.0.6 has no `destroy`
        start: list[Command] = [{"add": table}, {"delete": table}] if there else []
        return [
            *start,
            {"add": table},
            {"add": {"chain": self._body(name=DIGESTS)}},
            *(command for command in self._wanted.commands() if "table" not in command["add"]),
            *note_commands(self._family, self._wanted.objects.values()),
        ]

    def _in_part(self, noted: dict[str, Noted]) -> list[Command]:
        objects = self._wanted.objects
        new = [item for key, item in objects.items() if key not in noted]
        changed = [
            item
            for key, item in objects.items()
            if key in noted and (noted[key].digests != item.digests or key in self._spoiled)
        ]
        gone = [_from_key(key) for key in noted if key not in objects]
        if not (new or changed or gone):
            return []
        commands = [{"add": {t.kind: dict(t.definition)}} for t in sorted(new, key=_making_order)]
        commands += [self._flush(t) for t in (*changed, *gone) if t.kind == "chain"]
        for item in (*new, *changed):
            if item.kind in ("set", "map"):
                commands += self._element_commands(item, noted)
        for item in (*new, *changed):
            if item.kind == "chain":
                commands += [{"add": {"rule": rule}} for rule in item.content]
        commands += [self._delete(t) for t in sorted(gone, key=_making_order, reverse=True)]
        commands += [
            {"delete": {"rule": self._body(chain=DIGESTS, handle=noted[t.key].handle)}} for t in (*changed, *gone)
        ]
        commands += note_commands(self._family, (*new, *changed))
        for what, some in (("add", new), ("change", changed), ("remove", gone)):
            self.changes += [Change(what, f"nft {self._family}", t.key, self._detail(t, noted)) for t in some]
        return commands

    def _element_commands(self, item: TableObject, noted: Mapping[str, Noted]) -> list[Command]:
        """Return the commands that give a set or map its elements: those that differ, if the old ones are known."""
        old = self._old_elements(item, noted)
        flush = []
        if item.key in noted and old is None:
            flush = [{"flush": {item.kind: self._body(name=item.name)}}]
        before = {json.dumps(element, sort_keys=True): element for element in old or ()}
        after = {json.dumps(element, sort_keys=True): element for element in item.content}
        gone = [element for key, element in before.items() if key not in after]
        come = [element for key, element in after.items() if key not in before]
        # an empty list of elements is an error to libnftables
        return [
            *flush,
            *([{"delete": {"element": self._body(name=item.name, elem=gone)}}] if gone else []),
            *([{"add": {"element": self._body(name=item.name, elem=come)}}] if come else []),
        ]

    def _old_elements(self, item: TableObject, noted: Mapping[str, Noted]) -> tuple[Any, ...] | None:
        """Return the elements in the kernel, or None where they are not known."""
        note = noted.get(item.key)
        if note is None:
            return ()
        table = self._previous().get(self._family)
        old = None if table is None else table.objects.get(item.key)
        known = old is not None and note.digests == old.digests and item.key not in self._spoiled
        return old.content if known and old is not None else None

    def _detail(self, item: TableObject, noted: Mapping[str, Noted]) -> tuple[str, ...]:
        if item.kind not in ("set", "map") or item.key not in self._wanted.objects or item.key not in noted:
            return ()
        old = self._old_elements(item, noted)
        if old is None:
            return ()
        before, after = {json.dumps(e) for e in old}, {json.dumps(e) for e in item.content}
        return tuple([f"+ {e}" for e in sorted(after - before)] + [f"- {e}" for e in sorted(before - after)])

    def _flush(self, chain: TableObject) -> Command:
        return {"flush": {"chain": self._body(name=chain.name)}}

    def _delete(self, item: TableObject) -> Command:
        return {"delete": {item.kind: self._body(name=item.name)}}

    def _body(self, **more: object) -> Command:
        return {"family": self._family, "table": TABLE, **more}


def _from_key(key: str) -> TableObject:
    kind, _, name = key.rpartition(" ")
    return TableObject(kind, name, {})


def _making_order(item: TableObject) -> int:
    """Order by references: objects, then chains, then sets and maps, whose elements name chains."""
    return {"set": 2, "map": 2, "chain": 1}.get(item.kind, 0)
