"""What this host is to be brought to: compiled, or taken from its record where nothing that a compile asks changed."""

from __future__ import annotations

import contextlib
import gc
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Any

from pvefw_nft.errors import Diagnostic, HostError, Severity, Span
from pvefw_nft.host import record, state, zone_change
from pvefw_nft.host.settings import Conntrack
from pvefw_nft.pipeline import CLOSED_CODES, Observations, closing_failures, compile_root, hardening_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pvefw_nft.host.record import Desired
    from pvefw_nft.pipeline import Closed, Compiled, Source, Store


@dataclass(frozen=True, slots=True)
class Result:
    """A ruleset, what is wrong with its configuration, and what its compile had asked."""

    desired: Desired
    diagnostics: tuple[Diagnostic, ...]
    observations: Observations
    from_record: bool = False

    @property
    def has_errors(self) -> bool:
        """Tell whether something was skipped or refused."""
        return any(diagnostic.severity is Severity.ERROR for diagnostic in self.diagnostics)

    @property
    def may_open(self) -> bool:
        """Tell whether lines were left out that may have denied something. What was closed instead opens nothing."""
        return any(
            diagnostic.severity is Severity.ERROR and diagnostic.code not in CLOSED_CODES
            for diagnostic in self.diagnostics
        )


@contextlib.contextmanager
def no_garbage() -> Iterator[None]:
    """Look for no garbage meanwhile: rulesets have no cycles, and looking for them takes a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def find(source: Source, backend: str | None) -> Result:
    """Return what the configuration asks for. Raises what :func:`compile_root` raises."""
    return _on_record(source, backend) or compiled(source, backend)


def compiled(source: Source, backend: str | None, store: Store | None = None) -> Result:
    """Compile the configuration, with the help of ``store`` if given. Raises what :func:`compile_root` raises.

    In doubt a firewall is enabled: a mistake in a file must not switch it off.
    """
    observations = Observations()

    observed = observations.observed(replace(source, cautious=True, zones=zone_change.zones_in_force))

    def attempt(closed: Closed) -> Result:
        made = compile_root(observed, backend, None if closed else store, closed)
        return Result(desired_of(made, harden=source.harden), made.checked.diagnostics, observations)

    found = closing_failures(observed, attempt)
    observations.finish()
    return found


def desired_of(compiled: Compiled, *, harden: bool = False) -> Desired:
    """Return a compiled configuration as what a host is brought to; ``harden``: hardened, whatever host.pvefw says."""
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
    """Note what the ruleset that was just applied rests on. Without the note, the next run compiles it again."""
    if result.from_record:
        return
    with contextlib.suppress(HostError):
        state.write(
            record.inputs_path(),
            {
                "question": _question(source, backend),
                "identity": result.desired.identity,
                "diagnostics": [_as_json(diagnostic) for diagnostic in result.diagnostics],
                "answers": [[*question, answer] for question, answer in result.observations.answers.items()],
            },
        )


def _on_record(source: Source, backend: str | None) -> Result | None:
    """Return the ruleset that was applied last, if a compile would be certain to make the same again."""
    try:
        noted = state.read(record.inputs_path())
        if noted is None or noted["question"] != _question(source, backend):
            return None
        observations = Observations({(kind, name): answer for kind, name, answer in noted["answers"]})
        diagnostics = tuple(map(_of_json, noted["diagnostics"]))
        identity = noted["identity"]
    except (HostError, KeyError, TypeError, ValueError):
        return None
    if not observations.still_hold(source):
        return None
    applied = record.load_if_sound(record.running_path())
    if applied is None or applied.identity != identity:
        return None
    return Result(applied, diagnostics, observations, from_record=True)


def _question(source: Source, backend: str | None) -> list[str | None]:
    return [str(source.root.absolute()), source.node, backend, *(["harden"] if source.harden else [])]


def _as_json(diagnostic: Diagnostic) -> list[Any]:
    return [diagnostic.severity.value, *astuple(diagnostic)[1:]]


def _of_json(value: list[Any]) -> Diagnostic:
    severity, code, span, message, hint = value
    return Diagnostic(Severity(severity), code, Span(*span), message, hint)
