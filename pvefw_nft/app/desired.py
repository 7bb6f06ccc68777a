"""The desired ruleset of this host: compiled, or from its record if no input of the compile changed."""

from __future__ import annotations

import contextlib
import gc
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvefw_nft.cache import NO_CACHE
from pvefw_nft.config.steady import SettledFiles
from pvefw_nft.errors import Diagnostic, HostError, InternalError, PvefwError, Severity, Span, has_errors
from pvefw_nft.host.records import deltas, record, state
from pvefw_nft.host.settings import Conntrack
from pvefw_nft.host.tracking import zone_change
from pvefw_nft.pipeline import MAX_NOTE, Observations, compile_root, hardening_of
from pvefw_nft.pipeline.closing import CLOSED_CODES, closing_failures
from pvefw_nft.pipeline.notes import LastCompile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pvefw_nft.cache import Cache
    from pvefw_nft.config.model import Guest
    from pvefw_nft.host.records.record import Desired
    from pvefw_nft.pipeline import Compiled, Source
    from pvefw_nft.pipeline.closing import Closed


@dataclass(frozen=True, slots=True)
class Result:
    """A ruleset, the diagnostics of its configuration, and the questions that its compile had asked."""

    desired: Desired
    diagnostics: tuple[Diagnostic, ...]
    observations: Observations
    from_record: bool = False
    notes: Mapping[str, str] = field(default_factory=dict)
    """Notes of this compile about guests by VMID, for :class:`.LastCompile`."""
    guests: Mapping[int, Guest] = field(default_factory=dict)
    """Guests by VMID, with the NICs that this compile read."""

    @property
    def has_errors(self) -> bool:
        """Tell whether something was skipped or refused."""
        return has_errors(self.diagnostics)

    @property
    def may_open(self) -> bool:
        """Tell whether lines were left out that may have denied something. Guests closed instead open nothing."""
        return has_errors(diagnostic for diagnostic in self.diagnostics if diagnostic.code not in CLOSED_CODES)


@contextlib.contextmanager
def no_garbage() -> Iterator[None]:
    """Disable the garbage collector meanwhile: rulesets have no cycles, and the search takes a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def compiled(source: Source, backend: str | None, cache: Cache = NO_CACHE, past: LastCompile | None = None) -> Result:
    """Compile the configuration; ``cache`` has results of earlier compiles. Raises the errors of :func:`compile_root`.

    ``past`` are the notes of the compile on record, for a compile with an empty cache. In doubt a firewall is enabled:
    a mistake in a file must not switch it off.
    """
    from pvefw_nft.pipeline.noted_guests import NotesCache, guests_read, notes_of  # deferred, like all stages

    observations = Observations()

    zones = zone_change.zones_in_force if source.zones is dict else source.zones
    observed = observations.observed(replace(source, cautious=True, zones=zones))

    def attempt(closed: Closed) -> Result:
        if past is not None and not closed:
            with_notes = NotesCache(past, observations, observed)
            try:
                found = made_with(with_notes, closed)
                guests = {**with_notes.guests, **found.guests}
                return replace(found, notes={**with_notes.notes, **found.notes}, guests=guests)
            except Exception as error:  # a note that fails a compile must not close a guest: compile without notes
                if isinstance(error, PvefwError) and not isinstance(error, InternalError):
                    raise
        return made_with(NO_CACHE if closed else cache, closed)

    def made_with(cache: Cache, closed: Closed) -> Result:
        made = compile_root(observed, backend, cache, closed)
        desired = desired_of(made, harden=source.harden)
        if cache is NO_CACHE:
            return Result(desired, made.checked.diagnostics, observations)
        notes = notes_of(cache, made.backend.name)
        return Result(desired, made.checked.diagnostics, observations, notes=notes, guests=guests_read(cache))

    found = closing_failures(observed, attempt)
    observations.finish()
    return found


def desired_of(compiled: Compiled, *, harden: bool = False) -> Desired:
    """Return the desired ruleset of a compiled configuration; ``harden``: hardened, overriding host.pvefw."""
    options = compiled.checked.node.host.options
    conntrack = Conntrack(
        options.nf_conntrack_max,
        options.nf_conntrack_tcp_timeout_established,
        options.nf_conntrack_tcp_timeout_syn_recv,
    )
    return record.desired(
        compiled.backend.name,
        compiled.artefact.loadable(),
        enabled=compiled.checked.ruleset.enabled,
        conntrack=conntrack,
        hardening=hardening_of(compiled, asked=harden),
    )


def note(result: Result, source: Source, backend: str | None) -> None:
    """Record the inputs of the ruleset that was just applied. Without the record, the next run compiles it again."""
    if result.from_record:
        return
    with contextlib.suppress(HostError):
        deltas.write(
            record.inputs_path(),
            {
                "question": _question(source, backend),
                "identity": result.desired.identity,
                "diagnostics": [diagnostic_as_json(diagnostic) for diagnostic in result.diagnostics],
                # by kind and name, in two lines
                "answers": {"\n".join(question): answer for question, answer in result.observations.answers.items()},
                "guests": result.notes,
            },
        )


@dataclass(frozen=True, slots=True)
class Before:
    """The configuration that was applied last; ``observations`` None: only whether it was on is known."""

    observations: Observations | None = None
    was_on: bool = False

    def knew(self, path: str, text: str | None) -> bool:
        """Tell whether a file is known to have had a text, and another one than this."""
        if self.observations is None:
            return self.was_on and Path(path).name == "cluster.fw" and not (text or "").strip()
        return self.observations.had_other_text(path, text)


def known_before(noted: Notes | None) -> Before:
    """Return the facts known of the last apply: for one before the last boot, only its record."""
    if noted is not None:
        return Before(noted.observations)
    confirmed = record.load_if_sound(record.confirmed_path())
    return Before(was_on=confirmed is not None and confirmed.enabled)


def waiting_source(source: Source, before: Before, seconds: float, waiting: Callable[[str], None]) -> Source:
    """Return a source that waits for a file that is missing, empty or cut off now, but was not at the last apply.

    ``waiting`` is called with the path of each such file. The wait ends after ``seconds`` without a change of the file.
    """
    paths = before.observations.paths_with_text() if before.observations is not None else ()
    return replace(source, observed_files=SettledFiles(source.files, before.knew, paths, seconds, waiting))


@dataclass(frozen=True, slots=True)
class Notes:
    """The inputs that the ruleset of an ``identity`` was compiled from, and the diagnostics of that compile."""

    identity: str
    observations: Observations
    diagnostics: tuple[Diagnostic, ...]
    guests: Mapping[str, str]


def read_notes(source: Source, backend: str | None) -> Notes | None:
    """Return the notes about the ruleset that was applied last since boot, if they are sound and of this source."""

    def check(noted: Any) -> Notes | None:  # noqa: ANN401 - JSON
        if isinstance(noted["answers"], list):
            return None  # of a version before this one
        answers = {}
        for question, answer in noted["answers"].items():
            kind, _, name = question.partition("\n")
            answers[kind, name] = state.typed(answer, str)
        diagnostics = tuple(map(diagnostic_of_json, noted["diagnostics"]))
        if noted["question"] != _question(source, backend):
            return None
        guests = texts_by_guest(noted.get("guests", {}))  # versions before this one made no notes about guests
        return Notes(state.typed(noted["identity"], str), Observations(answers), diagnostics, guests)

    return deltas.read(record.inputs_path(), check)


def on_record(noted: Notes | None, still_hold: Callable[[Observations], bool]) -> Result | None:
    """Return the ruleset that was applied last, if a compile would certainly give the same one.

    ``still_hold`` tells whether the recorded inputs of its compile are unchanged.
    """
    try:
        if noted is None or not still_hold(noted.observations):
            return None
    except InternalError:  # a kind of question that this version does not ask
        return None
    applied = record.load_if_sound(record.running_path())
    if applied is None or applied.identity != noted.identity:
        return None
    return Result(applied, noted.diagnostics, noted.observations, from_record=True)


def last_compile(noted: Notes | None) -> tuple[Desired, LastCompile] | None:
    """Return the ruleset that was applied last, and what its compile noted; None if there is nothing about guests."""
    if noted is None or not noted.guests:
        return None
    applied = record.load_if_sound(record.running_path())
    if applied is None or applied.identity != noted.identity:
        return None
    return applied, LastCompile(applied.backend, noted.observations, noted.guests, applied.pieces, noted.diagnostics)


def texts_by_guest(value: dict[str, str]) -> dict[str, str]:
    """Return the notes about guests of a record or message. Raises TypeError and ValueError if they are none."""
    if any(len(state.typed(text, str)) > MAX_NOTE for text in state.typed(value, dict).values()):
        raise ValueError("a note about a guest that is too long")
    return value


def _question(source: Source, backend: str | None) -> list[str | None]:
    return [str(source.root.absolute()), source.node, backend, *(["harden"] if source.harden else [])]


def diagnostic_as_json(diagnostic: Diagnostic) -> list[Any]:
    """Return a diagnostic as JSON."""
    return [diagnostic.severity.value, *astuple(diagnostic)[1:]]


def diagnostic_of_json(value: list[Any]) -> Diagnostic:
    """Return a diagnostic from JSON. Raises TypeError and ValueError if it is none."""
    severity, code, (file, line, column, end_column, text), message, hint = value
    line, column, end_column = (state.typed(number, int) for number in (line, column, end_column))
    span = Span(state.typed(file, str), line, column, end_column, state.typed(text, str))
    hint = None if hint is None else state.typed(hint, str)
    return Diagnostic(Severity(severity), state.typed(code, str), span, state.typed(message, str), hint)
