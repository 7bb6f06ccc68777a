"""Bringing a host to a ruleset and removing it, with records on disk and switching between backends.

Each function takes the compiled ruleset as data and returns its changes; it prints nothing. All of them may be
repeated, and a start after a run that was killed anywhere leads to the same end as an undisturbed one: the steps follow
from the rules in the kernel, never from a record of earlier steps.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from pvefw_nft.errors import HostError, InternalError

from . import hardening, settings, sysctl
from .backend_info import info
from .bridges import drop
from .proxmox.flag import keep_flag
from .records import deltas, record, state
from .settings import PutBack
from .tracking import nat_zone, zone_change
from .tracking.moved import adopt, arrived

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from .apply.engines import Engine, Planned
    from .records.changes import Change
    from .records.record import AppliedState, Desired

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a command. ``text``: the input of the tools, of a preview. ``problems``: failures of parts that do
    not fail the command, such as a conntrack limit that could not be set.
    """

    running: bool
    changes: tuple[Change, ...] = ()
    text: str = ""
    switched_from: str | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Remarks about unexpected facts."""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Why a part could not be examined, and a remedy."""

    message: str
    hint: str | None


@dataclass(frozen=True, slots=True)
class Status:
    """The firewall as it is: ``changes`` are pending, ``drifted`` was changed by hand; None: unknown.

    Parts that could not be examined are in ``unseen``; the rest is then incomplete.
    """

    running: bool
    backends: tuple[str, ...]
    enabled: bool
    changes: tuple[Change, ...] | None
    drifted: tuple[str, ...] | None
    dropped: dict[str, int]
    unseen: tuple[Unavailable, ...] = ()
    hardened: bool = False


class Firewall:
    """pvefw's rules on this host, through one engine a backend."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        """Caches of ``engines`` are used across calls, so keep one object a process."""
        self.engines = tuple(engines)

    def engine(self, backend: str) -> Engine:
        """Return the engine of a backend."""
        for candidate in self.engines:
            if candidate.name == backend:
                return candidate
        raise InternalError(f"no engine for the backend {backend}")

    def others(self, backend: str) -> list[Engine]:
        """Return the engines of all other backends."""
        return [candidate for candidate in self.engines if candidate.name != backend]

    def is_running(self) -> bool:
        """Tell whether `start` ran since boot, or the kernel holds rules of pvefw."""
        return record.marker_path().exists() or any(candidate.present() for candidate in self.engines)

    def warm_up(self, desired: Desired) -> None:
        """Warm the caches for the next change, in a service: this is the ruleset that runs. Raises HostError."""
        _known(desired.backend)
        self.engine(desired.backend).warm_up(desired)

    def preview(self, desired: Desired, *, reload_all: bool = False) -> Outcome:
        """Return the changes that a start would make, without making them."""
        chosen = self.engine(desired.backend)
        memory, previous = _known(desired.backend)
        planned = chosen.plan(desired, memory, previous, reload_all=reload_all)
        hardening_change = hardening.change(desired.hardening)
        switched = next((other.name for other in self.others(desired.backend) if is_present(other)), None)
        text, changes = str(planned), planned.changes
        if hardening_change is not None:
            text += f"### nft: {hardening_change}\n{desired.hardening}"
            changes = (*changes, hardening_change)
        return Outcome(self.is_running(), changes, text, switched)

    def reconcile(
        self, desired: Desired, *, reload_all: bool = False, record_of: Path | None = None, beside: bool = False
    ) -> Outcome:
        """Bring the host to the ruleset, from any state. With ``reload_all`` unchanged parts are loaded again, too.

        With ``beside`` rules of other backends stay: they may belong to another running firewall. The caller holds the
        lock. ``record_of``: the record that the ruleset was read from; without one it is written. Raises
        :class:`HostError`: the ruleset that ran before is then in place, or the message names the one that is.
        """
        leftover = [] if beside else [other for other in self.others(desired.backend) if is_present(other)]
        _check_removable(leftover)
        flag_problems = [] if beside else list(filter(None, [keep_flag()]))
        # a damaged record is written again
        if not (reload_all or leftover) and self.is_in_force(desired) and _applied() is not None:
            return _keep(desired, flag_problems)
        plan = self._plan(desired, reload_all=reload_all)
        loaded = self._load(plan, record_of) if plan.is_needed or leftover else _refresh_stamp(plan)
        problems = [*_mark_started(desired.backend), *flag_problems]
        listing = loaded.list()
        loaded.zones.after_load()  # it loads rules of its own: only after the listing of this ruleset is recorded
        # the new ruleset is loaded and read back: a packet had to pass both until here, so nothing was open
        notes = [*plan.planned.notes, *_remove_replaced(leftover, desired)]
        if not desired.hardening:
            hardening.remove()
        loaded.zones.after_removal()
        back = _put_back_what_others_needed(desired)
        problems += [*loaded.zones.problems, *back.problems, *_keep_settings(desired), *_conntrack(desired)]
        problems += [*_zone_rules(desired), *_adopt(loaded.moved, desired)]
        if listing is not None:
            problems += _note(replace(listing, names=plan.names))
        return Outcome(
            running=True,
            changes=(*plan.planned.changes, *filter(None, [plan.hardening_change])),
            switched_from=leftover[0].name if leftover else None,
            problems=tuple(problems),
            notes=(*notes, *back.notes),
        )

    def _plan(self, desired: Desired, *, reload_all: bool) -> _Plan:
        """Plan the change from the rules in the kernel. Raises HostError."""
        hardening_change = hardening.change(desired.hardening)
        hardening.load(desired.hardening)  # it only drops: it may be there before the rules are
        chosen = self.engine(desired.backend)
        memory, previous = _known(desired.backend)
        names = chosen.names()  # before anything is loaded: where they change meanwhile, it is loaded again
        planned = chosen.plan(desired, memory, previous, reload_all=reload_all)
        return _Plan(desired, planned, previous, memory, names, hardening_change, reload_all)

    def _load(self, plan: _Plan, record_of: Path | None) -> _Loaded:
        """Prepare, load and verify, then commit the record.

        Raises HostError; the rules and the record before are then in place.
        """
        with _hardened_as_before(plan):
            # written and synced before the kernel is touched: a full disk changes nothing
            prepared = record.prepare(record.running_path(), plan.desired) if record_of is None else None
            zones = zone_change.begin(plan.desired)
            moved = arrived(plan.previous, plan.desired)
            try:
                _prepare_kernel(plan.desired)
                zones.before_load()
                remember = self.engine(plan.desired.backend).apply(plan.planned, plan.previous)
            except BaseException:
                if prepared is not None:
                    prepared.discard()
                raise
            if prepared is not None:
                prepared.commit()
            elif record_of is not None:
                record.copy(record_of, record.running_path())
        before = None if plan.reload_all else plan.memory
        return _Loaded(partial(remember, plan.desired.identity, before), zones, moved)

    def remove_all(self) -> Outcome:
        """Remove pvefw's rules and nothing else, and restore the kernel's settings; the caller holds the lock.

        Raises :class:`HostError`, also where a tool is missing that some of it would need: then nothing was changed.
        """
        present = [candidate for candidate in self.engines if is_present(candidate)]
        _check_removable(present)
        notes = [note for candidate in present for note in candidate.remove()]
        was_hardened = hardening.is_loaded()
        hardening.remove()
        drop.remove_drops()
        problems = list(_zone_rules(None))
        was_running = bool(present) or was_hardened or record.marker_path().exists()
        back = _put_back_what_was_set()
        problems += [*back.problems, *_forget(*record.paths_since_boot())]
        return Outcome(running=was_running, problems=tuple(problems), notes=(*notes, *back.notes))

    def withdraw(self, *, remove: bool) -> None:
        """Remove the ruleset that was applied beside another firewall, whose rules stay; the caller holds the lock.

        ``remove``: the rules on record go; without it they stay too, since the other firewall has rules of the same
        names and goes on with them. Kernel settings stay as they are: the other firewall may need them. Raises
        HostError.
        """
        applied = _applied()
        if remove and applied is not None:
            for _ in self.engine(applied.backend).remove():
                pass  # foreign rules refer to the parts that had to stay
        if remove:
            hardening.remove()
        drop.remove_drops()
        _zone_rules(None)
        settings.forget()
        for path in record.paths_since_boot():
            state.remove(path)
        state.remove_unfinished()

    def status(self, desired: Desired | None) -> Status:
        """Return how the kernel differs from the ruleset (None: it could not be compiled)."""
        applied = _applied()
        memory = record.read_memory()
        looking = _Looking()

        def holds(candidate: Engine) -> bool:
            return applied is not None and applied.backend == candidate.name and candidate.unchanged(memory)

        def is_there(candidate: Engine) -> bool:
            # chains that were there then are there now
            noted = candidate in standing and memory is not None and bool(memory.chains)
            found = noted or looking.seen(partial(is_present, candidate), None)
            return _was_started(candidate.name) if found is None else found

        standing = [candidate for candidate in self.engines if looking.seen(partial(holds, candidate), otherwise=False)]
        present = [candidate for candidate in self.engines if is_there(candidate)]
        running = bool(present) or record.marker_path().exists()
        changes = looking.seen(partial(self._pending, desired), None) if running and desired is not None else ()
        ours = [candidate for candidate in present if applied is not None and applied.backend == candidate.name]
        drifted = looking.seen(lambda: [name for candidate in ours for name in candidate.drifted(memory)], None)
        if drifted is not None and ours and applied is not None:
            drifted += [f"setting {key}" for key in _wrong_settings(applied)]
        dropped: dict[str, int] = {}
        for candidate in present:
            dropped.update(looking.seen(candidate.dropped, dict[str, int]()))
        hardened = looking.seen(hardening.is_loaded, otherwise=False)
        if hardened:
            dropped.update(looking.seen(hardening.dropped, dict[str, int]()))
        for candidate in self.engines:
            concerned = candidate in present or (desired is not None and desired.backend == candidate.name)
            if concerned and candidate not in standing:
                looking.note(*missing_for(candidate))
        return Status(
            running=running,
            backends=tuple(candidate.name for candidate in present),
            enabled=applied.enabled if applied is not None and running else bool(present),
            changes=changes,
            drifted=None if drifted is None else tuple(drifted),
            dropped=dropped,
            unseen=tuple(looking.unseen),
            hardened=hardened,
        )

    def _pending(self, desired: Desired) -> tuple[Change, ...] | None:
        if self.is_in_force(desired):
            return ()
        memory, previous = _known(desired.backend)
        changes = self.engine(desired.backend).plan(desired, memory, previous).changes
        return (*changes, *filter(None, [hardening.change(desired.hardening)]))

    def is_in_force(self, desired: Desired) -> bool:
        """Tell whether this ruleset was applied last, and the kernel provably still holds it."""
        if not record.marker_path().exists():
            return False
        memory = record.read_memory()
        if memory is None or memory.identity != desired.identity or not self.engine(desired.backend).unchanged(memory):
            return False
        return hardening.change(desired.hardening) is None


def was_started() -> bool:
    """Tell whether a start was done since boot."""
    return record.marker_path().exists()


def _keep(desired: Desired, problems: list[str]) -> Outcome:
    """Leave the loaded ruleset, which is the desired one; put right what belongs to it."""
    back = _put_back_what_others_needed(desired)
    problems = [*problems, *back.problems, *_keep_settings(desired), *_conntrack(desired)]
    zone_change.remove_if_over()
    return Outcome(running=True, problems=tuple(problems), notes=back.notes)


@dataclass(frozen=True, slots=True)
class _Plan:
    """A planned change, and the facts that it follows from.

    ``previous`` and ``memory`` are the ruleset applied last and its listing, if known and of this backend. ``names``:
    see :meth:`.Engine.names`.
    """

    desired: Desired
    planned: Planned
    previous: Desired | None
    memory: AppliedState | None
    names: Mapping[str, str]
    hardening_change: Change | None
    reload_all: bool

    @property
    def is_needed(self) -> bool:
        """Whether the kernel, the record, or its listing differ from the wanted ruleset."""
        return bool(self.planned.changes) or _differs(self.desired, self.previous) or self.memory is None


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A loaded ruleset: ``list`` gives its listing by the kernel, to be recorded; None: the record of it stays.

    ``zones`` is the change of zones, whose next steps follow; ``moved`` are the guests that moved here.
    """

    list: Callable[[], AppliedState | None] = lambda: None
    zones: zone_change.ZoneChange = field(default_factory=zone_change.ZoneChange)
    moved: frozenset[int] = frozenset()


def _refresh_stamp(plan: _Plan) -> _Loaded:
    """Load nothing: foreign rules changed, ours did not, so only the recorded stamp is refreshed."""
    if plan.memory is not None and plan.planned.stamp is not None:
        # foreign rules may use these chains now
        _note(replace(plan.memory, stamp=plan.planned.stamp, names=plan.names, exact=False))
    return _Loaded()


def _adopt(moved: frozenset[int], desired: Desired) -> list[str]:
    """Have connections of guests that moved here go on; return problems."""
    try:
        adopt(moved, desired)
    except HostError as error:
        return [f"established connections of guests that moved here may break: {error.message}"]
    return []


@contextlib.contextmanager
def _hardened_as_before(plan: _Plan) -> Iterator[None]:
    """Undo the hardening of a ruleset that cannot be loaded; a rest of it only drops."""
    try:
        yield
    except BaseException:
        if plan.hardening_change is None:
            raise
        with contextlib.suppress(HostError):
            if plan.previous is not None and plan.previous.hardening:
                hardening.load(plan.previous.hardening)
            else:
                hardening.remove()
        raise


def _zone_rules(desired: Desired | None) -> list[str]:
    """Have the zone rule for NAT where it is wanted, and nothing of a change of zones that is over; return problems.

    ``desired`` None: remove all rules of pvefw.
    """
    backend = desired.backend if desired is not None and desired.enabled else None
    try:
        zones = backend is not None and info(backend).sets_zones
        if backend is not None and not zones and nat_zone.is_wanted():
            nat_zone.add()
        else:
            nat_zone.remove()
        if zones:
            zone_change.remove_if_over()
        else:
            zone_change.remove_transition()
    except HostError as error:
        return [error.message]
    return []


def _remove_replaced(engines: list[Engine], desired: Desired) -> Iterator[str]:
    """Remove the rules of other backends than the one of the ruleset that was just loaded; yield the parts that had to
    stay.

    Raises :class:`HostError` that names the rules loaded then.
    """
    for candidate in engines:
        try:
            yield from candidate.remove()
        except HostError as error:
            raise HostError(
                f"the ruleset of {desired.backend} is loaded and on record, but the one of {candidate.name} could not "
                f"be removed, so that packets must pass both: {error.message}",
                error.hint or "mend the cause, then run `pvefw start` again",
            ) from error


def _put_back_what_was_set() -> PutBack:
    """Restore all kernel settings; failing to record that is no error, since no rule is left."""
    try:
        return settings.put_back()
    except HostError as error:
        return PutBack(problems=(error.message,))


def _forget(*paths: Path) -> list[str]:
    """Remove records of a ruleset that is gone; return why one stays, as on a disk that cannot be written to."""
    problems = []
    steps: list[Callable[[], None]] = [*(partial(state.remove, path) for path in paths), state.remove_unfinished]
    for remove in steps:
        try:
            remove()
        except HostError as error:
            problems.append(error.message)
    return problems


class _Looking:
    """Looks that may fail, and why they did."""

    def __init__(self) -> None:
        self.unseen: dict[Unavailable, None] = {}

    def seen(self, look: Callable[[], _T], otherwise: _T) -> _T:
        try:
            return look()
        except HostError as error:
            self.note(error)
            return otherwise

    def note(self, *errors: HostError) -> None:
        self.unseen.update(dict.fromkeys(Unavailable(error.message, error.hint) for error in errors))


def is_present(candidate: Engine) -> bool:
    """Tell whether rules of a backend are in the kernel; where not all can be seen, whether they were started."""
    return candidate.present() or (candidate.has_missing_tools() and _was_started(candidate.name))


def missing_for(candidate: Engine) -> list[HostError]:
    """Return the errors of tools that are missing to see and to remove all rules of a backend that was applied."""
    return candidate.missing(_applied())


def running_ruleset() -> Desired | None:
    """Return pvefw's running ruleset according to the records; None if none runs."""
    return _applied() if was_started() else None


def applied_backend() -> str | None:
    """Return the backend of the ruleset that was applied last; None: nothing is on record."""
    applied = _applied()
    return None if applied is None else applied.backend


def _applied() -> Desired | None:
    return record.load_if_sound(record.running_path())


def _was_started(backend: str) -> bool:
    """Tell whether rules of this backend were put in place since boot, and not removed since."""
    applied = _applied() if record.marker_path().exists() else None
    return applied is not None and applied.backend == backend and applied.enabled


def _check_removable(engines: list[Engine]) -> None:
    """Raise :class:`HostError` if a tool is missing that removing these backends' rules needs."""
    for candidate in engines:
        for error in missing_for(candidate):
            raise HostError(
                f"{error.message}, and rules of the {candidate.name} backend could not be removed without it: "
                "nothing was changed",
                error.hint,
            )


def _prepare_kernel(desired: Desired) -> None:
    if desired.enabled:
        settings.load_modules(desired.backend)
        settings.set_all(settings.needed_first(desired.backend), required=True)


def _put_back_what_others_needed(desired: Desired) -> PutBack:
    """Restore the settings of a backend whose rules are gone. A setting that cannot be restored is no error."""
    try:
        return settings.put_back(running=desired.backend)
    except HostError as error:
        return PutBack(problems=(error.message,))


def _keep_settings(desired: Desired) -> list[str]:
    """Restore changed kernel settings without which nothing is filtered; return a note for each."""
    wrong = _wrong_settings(desired)
    if wrong:
        _prepare_kernel(desired)
    return [f"the kernel setting {key} had been changed, and is set again" for key in wrong]


def _wrong_settings(desired: Desired) -> list[str]:
    needed = settings.needed_first(desired.backend) if desired.enabled else {}
    return [key for key, value in needed.items() if sysctl.read(key) != value]


def _conntrack(desired: Desired) -> list[str]:
    if desired.conntrack is None or not desired.enabled:
        return []
    return settings.set_all(desired.conntrack.settings(), required=False)


def _mark_started(backend: str) -> list[str]:
    """Note that the firewall was started since boot. The rules are loaded by then: not worth failing for."""
    if not record.marker_path().exists():
        try:
            state.write(record.marker_path(), {"backend": backend})
        except HostError as error:
            return [error.message]
    return []


def _note(memory: AppliedState) -> list[str]:
    """Note how the kernel lists the ruleset. Without the notes it is loaded again next time: not worth failing for."""
    try:
        record.write_memory(memory)
    except HostError as error:
        with contextlib.suppress(HostError):  # notes of another ruleset are known by its identity
            deltas.remove(record.memory_path())
        return [error.message]
    return []


def _known(backend: str) -> tuple[AppliedState | None, Desired | None]:
    """Return the ruleset applied last and its listing, if known and of this backend."""
    previous = record.load_if_sound(record.running_path())
    if previous is None or previous.backend != backend:
        return None, None
    memory = record.read_memory()
    if memory is not None and memory.identity != previous.identity:
        memory = None
    return memory, previous


def _differs(desired: Desired, previous: Desired | None) -> bool:
    return previous is None or previous.fingerprint != desired.fingerprint or previous.conntrack != desired.conntrack
