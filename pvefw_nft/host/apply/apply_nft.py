"""Bring a host's nftables tables ``bridge pvefw`` and ``inet pvefw`` to the wanted state, or remove them.

One transaction of the kernel changes both tables, and if it fails nothing has changed. Only chains whose rules differ
and only elements that differ are touched, so that the counters, connections and dynamic sets of the rest stay.

For a packet that is on its way through the hooks a transaction is not one moment (:mod:`.twin` says why). So it takes
nothing away that the old rules use: chains, sets and maps that are no longer wanted go in a second transaction, when no
packet is in the old rules any more. New chains come in one before it if an element of a map is to lead to another chain
than before, or if a base chain is new. A table that has to be replaced as a whole has a twin meanwhile.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from pvefw_nft.errors import HostError

from ..netfilter import nf_tables
from ..netfilter.stamp import take_stamp
from ..records.changes import AppliedChain, Change
from . import nft_text, twin
from .nftables_state import (
    DIGESTS,
    FAMILIES,
    SETS,
    TABLE,
    Command,
    Commands,
    Kernel,
    Nftables,
    Noted,
    TableListing,
    TableObject,
    Wanted,
    listing,
    note_commands,
    read_kernel,
    removing,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from ..netfilter.stamp import RulesetStamp

_FEW = 500  # so many are asked for one by one, each in less than a millisecond; more in one listing of the table


class NotAsLoadedError(HostError):
    """The transaction went through, but the kernel does not hold the loaded ruleset."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The transactions, in order, and their changes; none: nothing to do.

    ``before`` adds the objects that the transaction ``commands`` needs, ``after`` removes the objects that it leaves.
    The commands of whole tables are read from the artefact each time. ``target`` is the state after all of them.
    ``was_there``: one of our tables was loaded before. ``stamp`` belongs to the state that was read for the plan (None:
    there is none). ``whole``: they replace our tables completely.
    """

    commands: tuple[Command, ...] | Commands
    changes: tuple[Change, ...]
    target: Mapping[str, Wanted]
    was_there: bool
    stamp: RulesetStamp | None = None
    whole: bool = False
    notes: tuple[str, ...] = ()
    before: tuple[Command, ...] | Commands = ()
    after: tuple[Command, ...] | Commands = ()

    @property
    def transactions(self) -> list[tuple[Command, ...] | Commands]:
        """Those that hold a command."""
        return [commands for commands in (self.before, self.commands, self.after) if commands]

    def __str__(self) -> str:
        return "".join(
            f'### nft -j -f -\n{{"nftables": [\n{lines}\n]}}\n'
            for lines in (",\n".join(map(json.dumps, commands)) for commands in self.transactions)
        )


def plan(
    current: Kernel,
    target: Mapping[str, Wanted],
    previous: Callable[[], Mapping[str, Wanted]] = dict,
    spoiled: Iterable[str] = (),
    *,
    twins: Collection[str] = (),
) -> Plan:
    """Return the plan that brings the kernel from its noted state to ``target`` (by family; none: no table).

    ``previous`` gives the ruleset applied last, if known: where a set is unchanged since then, only the
    elements that differ are touched. It is not asked where no set changes. ``spoiled`` are objects changed by hand
    since, as ``bridge chain x``. ``twins`` are the families in which a run that was killed left a twin of our table.
    """
    changes = [Change("remove", "nft", f"table {family} {twin.name_of(TABLE)}") for family in twins]
    steps = _Steps()
    spoiled = set(spoiled)
    whole = True
    replaced: list[str] = []
    for family in FAMILIES:
        wanted = target.get(family)
        if wanted is None:
            if family in current:
                steps.commands.add([{"delete": {"table": {"family": family, "name": TABLE}}}])
                changes.append(Change("remove", "nft", f"table {family} {TABLE}"))
            continue
        table = _TablePlan(family, current.get(family), wanted, previous, _of_family(spoiled, family))
        table.add_to(steps)
        changes += table.changes
        whole = whole and table.whole
        if table.whole and family in current:
            replaced.append(family)
            twins = {*twins, family}
    if replaced:
        steps.before = _twins([target[family] for family in replaced], steps.before)
    steps.after.add(twin.removing(TABLE, sorted(twins)))
    if not steps.commands.parts:
        steps.commands, steps.after = steps.after, _Commands()
    return Plan(
        steps.commands.made(),
        tuple(changes),
        target,
        bool(current),
        whole=whole,
        before=steps.before.made(),
        after=steps.after.made(),
    )


def _twins(tables: Iterable[Wanted], rest: _Commands) -> _Commands:
    """Return the commands that load the twins of these tables, and the rest."""
    commands = _Commands()
    commands.add(twin.removing(TABLE, [table.family for table in tables]))
    for table in tables:
        commands.add(list(twin.adding(TABLE, [{"add": {"table": {"family": table.family, "name": TABLE}}}])))
        commands.add_later(partial(_twin, table))
    commands.parts += rest.parts
    return commands


def _twin(table: Wanted) -> Iterator[Command]:
    return twin.adding(TABLE, table.commands())


def _of_family(objects: Collection[str], family: str) -> set[str]:
    """Return the objects of one family, without its name: ``chain x`` for ``bridge chain x``."""
    return {name.removeprefix(f"{family} ") for name in objects if name.startswith(f"{family} ")}


def replacing(current: Kernel, target: Mapping[str, Wanted], twins: Collection[str] = ()) -> Plan:
    """Return the plan that replaces our tables as a whole, in any state."""
    return plan({family: {} for family in current}, target, twins=twins)


class ReadBack(NamedTuple):
    """The state that was read back after the transactions of a plan.

    ``stamp`` is of the moment before; None if another program may have changed the state that the plan was made from.
    ``kernel`` are the notes, ``listings`` of the tables that were listed as a whole, by family.
    """

    stamp: RulesetStamp | None
    kernel: Kernel
    listings: Mapping[str, TableListing]


def execute(planned: Plan, nft: Nftables) -> ReadBack:
    """Run the transactions; read back notes and numbers of rules, and compare them.

    Raises :class:`HostError`: nothing has changed, unless it is a :class:`NotAsLoadedError`.
    """
    _run(planned, nft)
    stamp = take_stamp()
    if not planned.whole and (planned.stamp is None or stamp != planned.stamp.after(len(planned.transactions))):
        stamp = None
    kernel = read_kernel()
    wrong = differences(kernel, planned.target)
    if wrong:
        raise NotAsLoadedError("the kernel does not hold the ruleset that was loaded: " + "; ".join(wrong[:5]))
    listings: dict[str, TableListing] = {}
    for family, names in _touched_chains(planned).items():
        counts: Mapping[str, int]
        if len(names) <= _FEW:
            counts = {name: len(nf_tables.rules(family, TABLE, name)) for name in names}
        else:
            listings[family] = listing(family)
            counts = listings[family].rule_counts
        wrong += _count_differences(family, names, counts, planned.target[family])
    if wrong:
        raise NotAsLoadedError("the kernel does not hold the ruleset that was loaded: " + "; ".join(wrong[:5]))
    return ReadBack(stamp, kernel, listings)


def _run(planned: Plan, nft: Nftables) -> None:
    """Run the transactions. Raises :class:`NotAsLoadedError` if one fails and those before it are not undone."""
    for number, commands in enumerate(planned.transactions):
        if number:
            twin.wait_for_packets()
        try:
            nft.run(commands)
        except nft_text.EndedError as error:
            raise NotAsLoadedError(error.message, error.hint) from error
        except HostError as error:
            if not number:
                raise
            if commands is not planned.commands or not planned.whole:
                raise NotAsLoadedError(error.message, error.hint) from error
            twin.remove(nft, TABLE)  # the tables are as before
            raise


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


def as_loaded(there: Kernel, memory: Mapping[str, AppliedChain]) -> dict[str, str]:
    """Return the digests of objects on which the kernel and the remembered state agree, by the keys of the latter."""
    noted = {f"{family} {key}": note.digests for family, notes in there.items() for key, note in notes.items()}
    return {key: known.signature for key, known in memory.items() if noted.get(key) == known.signature}


def memory_of(
    target: Mapping[str, Wanted],
    before: Mapping[str, AppliedChain] | None = None,
    listings: Mapping[str, TableListing] | None = None,
) -> dict[str, AppliedChain]:
    """Return the facts to record about a state that was just applied, by ``FAMILY KIND NAME``.

    ``before``: the remembered state before it; then only differing parts are listed. ``listings`` are those read
    since, of whole tables by family, which are not listed again.
    """
    listings = listings or {}
    memory: dict[str, AppliedChain] = {}
    for family, wanted in target.items():
        fresh = [
            item
            for key, item in wanted.objects.items()
            if before is None or f"{family} {key}" not in before or before[f"{family} {key}"].signature != item.digests
        ]
        in_part = len(fresh) <= _FEW and all(item.kind in ("chain", "set", "map") for item in fresh)
        listed = (listings.get(family) or listing(family, fresh if in_part else None)).digests
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
        listed = {f"{family} {key}": made for key, made in listing(family).digests.items()}
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
    if planned.whole:
        return {
            family: [item.name for item in wanted.objects.values() if item.kind == "chain" and item.count]
            for family, wanted in planned.target.items()
        }
    touched: dict[str, dict[str, None]] = {}
    for command in chain(planned.before, planned.commands):
        rule = command.get("add", {}).get("rule")
        if rule is not None and rule["table"] == TABLE and rule["chain"] != DIGESTS:
            touched.setdefault(rule["family"], {})[rule["chain"]] = None
    return {family: list(names) for family, names in touched.items()}


def _count_differences(family: str, chains: list[str], counts: Mapping[str, int], wanted: Wanted) -> list[str]:
    wrong = []
    for name in chains:
        should, count = wanted.objects[TableObject("chain", name, {}).key].count, counts.get(name, 0)
        if count != should:
            wrong.append(f"{family} chain {name} has {count} rules, not {should}")
    return wrong


@dataclass(slots=True)
class _Commands:
    """The commands of one transaction of a plan, in parts: lists, and what yields commands at each call."""

    parts: list[list[Command] | Callable[[], Iterable[Command]]] = field(default_factory=list)

    def add(self, commands: Iterable[Command]) -> None:
        """Add these commands."""
        some = list(commands)
        if some:
            self.parts.append(some)

    def add_later(self, make: Callable[[], Iterable[Command]]) -> None:
        """Add the commands that a function yields, which is called whenever they are read."""
        self.parts.append(make)

    def made(self) -> tuple[Command, ...] | Commands:
        """Return all of them: at once, if none are to be made later."""
        lists = [part for part in self.parts if isinstance(part, list)]
        if len(lists) == len(self.parts):
            return tuple(chain.from_iterable(lists))
        return Commands(tuple(partial(iter, part) if isinstance(part, list) else part for part in self.parts))


@dataclass(slots=True)
class _Steps:
    """The commands of each transaction of a plan."""

    before: _Commands = field(default_factory=_Commands)
    commands: _Commands = field(default_factory=_Commands)
    after: _Commands = field(default_factory=_Commands)


@dataclass(frozen=True, slots=True)
class _ElementChanges:
    """The elements that a set or map loses and gets."""

    gone: list[Any]
    come: list[Any]

    @property
    def other_verdicts(self) -> bool:
        """Whether a key of a map stays and leads to another chain, which also packets in the old rules then enter."""
        lost, got = (
            {json.dumps(element[0], sort_keys=True) for element in elements if isinstance(element, list)}
            for elements in (self.gone, self.come)
        )
        return not lost.isdisjoint(got)


class _TablePlan:
    """The changes in one table."""

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
        self.whole = not noted or self._redefined() or self._has_unknown_elements(noted)

    def add_to(self, steps: _Steps) -> None:
        """Add the commands that bring this table to the wanted state."""
        if self.whole or self._noted is None:
            self._add_whole(steps.commands)
        else:
            self._in_part(self._noted, steps)

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

    def _has_unknown_elements(self, noted: Mapping[str, Noted]) -> bool:
        """Tell whether a set or map changes whose elements in the kernel are not known.

        Flushing it would leave it empty for packets in the old rules.
        """
        return any(
            item.kind in SETS
            and key in noted
            and self._differs(key, item, noted)
            and self._old_elements(item, noted) is None
            for key, item in self._wanted.objects.items()
        )

    def _differs(self, key: str, item: TableObject, noted: Mapping[str, Noted]) -> bool:
        return noted[key].digests != item.digests or key in self._spoiled

    def _add_whole(self, commands: _Commands) -> None:
        table = {"table": {"family": self._family, "name": TABLE}}
        there = self._noted is not None
        if there:
            self.changes.append(Change("change", "nft", f"table {self._family} {TABLE} (as a whole)"))
        else:
            self.changes.append(Change("add", "nft", f"table {self._family} {TABLE}"))
        commands.add(removing(self._family, TABLE) if there else [])
        commands.add([{"add": table}, {"add": {"chain": self._body(name=DIGESTS)}}])
        commands.add_later(partial(_within, self._wanted))
        commands.add_later(partial(note_commands, self._family, self._wanted.objects.values()))

    def _in_part(self, noted: dict[str, Noted], steps: _Steps) -> None:
        objects = self._wanted.objects
        new = [item for key, item in objects.items() if key not in noted]
        changed = [item for key, item in objects.items() if key in noted and self._differs(key, item, noted)]
        gone = [_from_key(key) for key in noted if key not in objects]
        if not (new or changed or gone):
            return
        elements = {item.key: self._element_changes(item, noted) for item in (*new, *changed) if item.kind in SETS}
        made: list[Command] = [{"add": {t.kind: dict(t.definition)}} for t in sorted(new, key=_making_order)]
        made += self._element_commands(new, elements)
        made += [{"add": {"rule": rule}} for item in new if item.kind == "chain" for rule in item.content]
        made += note_commands(self._family, new)
        # in one transaction with the rest, new chains would be empty for packets in the old rules
        precede = any("hook" in item.definition for item in new) or any(c.other_verdicts for c in elements.values())
        (steps.before if precede else steps.commands).add(made)
        chains = [item for item in changed if item.kind == "chain"]
        steps.commands.add({"flush": {"chain": self._body(name=item.name)}} for item in chains)
        steps.commands.add(self._element_commands(changed, elements))
        steps.commands.add({"add": {"rule": rule}} for item in chains for rule in item.content)
        steps.commands.add([*self._forget(changed, noted), *note_commands(self._family, changed)])
        steps.after.add({"flush": {"chain": self._body(name=t.name)}} for t in gone if t.kind == "chain")
        steps.after.add(
            {"delete": {t.kind: self._body(name=t.name)}} for t in sorted(gone, key=_making_order, reverse=True)
        )
        steps.after.add(self._forget(gone, noted))
        for what, some in (("add", new), ("change", changed), ("remove", gone)):
            self.changes += [Change(what, f"nft {self._family}", t.key, self._detail(t, noted)) for t in some]

    def _forget(self, objects: Iterable[TableObject], noted: Mapping[str, Noted]) -> list[Command]:
        return [{"delete": {"rule": self._body(chain=DIGESTS, handle=noted[t.key].handle)}} for t in objects]

    def _element_commands(
        self, objects: Iterable[TableObject], changes: Mapping[str, _ElementChanges]
    ) -> Iterator[Command]:
        for item in objects:
            if item.key in changes:
                # an empty list of elements is an error to libnftables
                for verb, elements in (("delete", changes[item.key].gone), ("add", changes[item.key].come)):
                    if elements:
                        yield {verb: {"element": self._body(name=item.name, elem=elements)}}

    def _element_changes(self, item: TableObject, noted: Mapping[str, Noted]) -> _ElementChanges:
        before = {json.dumps(element, sort_keys=True): element for element in self._old_elements(item, noted) or ()}
        after = {json.dumps(element, sort_keys=True): element for element in item.content}
        return _ElementChanges(
            [element for key, element in before.items() if key not in after],
            [element for key, element in after.items() if key not in before],
        )

    def _old_elements(self, item: TableObject, noted: Mapping[str, Noted]) -> tuple[Any, ...] | None:
        """Return the elements in the kernel, or None if they are not known."""
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

    def _body(self, **more: object) -> Command:
        return {"family": self._family, "table": TABLE, **more}


def _within(table: Wanted) -> Iterator[Command]:
    """Yield the commands that make what is in a table."""
    return (command for command in table.commands() if "table" not in command["add"])


def _from_key(key: str) -> TableObject:
    kind, _, name = key.rpartition(" ")
    return TableObject(kind, name, {})


def _making_order(item: TableObject) -> int:
    """Order by references: objects, then chains, then sets and maps, whose elements name chains."""
    return {"set": 2, "map": 2, "chain": 1}.get(item.kind, 0)
