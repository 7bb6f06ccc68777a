"""The stages from files to a ruleset. Start reading at :func:`compile_root`.

    files ─ config.load ─▶ lines ─ config.resolve ─▶ model ─ ir.build ─▶ IR ─ ir.validate ─▶ IR ─ backend ─▶ artefact

The front end collects diagnostics and goes on; a file that cannot be used at all raises. Guests pass through the
first stages one by one, so that only the IR of a large node is ever in memory as a whole.

The stages are imported where they are used: a command on a host that finds nothing changed needs none of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, cast

from pvefw_nft.backends import REGISTRY
from pvefw_nft.cache import NO_CACHE
from pvefw_nft.cache import Cache as Cache
from pvefw_nft.config.findings import Findings
from pvefw_nft.config.source import Observations as Observations
from pvefw_nft.config.source import Source as Source  # noqa: TC001 - for those who compile
from pvefw_nft.config.steady import SETTLE_SECONDS as SETTLE_SECONDS
from pvefw_nft.errors import Diagnostic, UsageError, has_errors
from pvefw_nft.pipeline.borrowed import report_borrowed
from pvefw_nft.pipeline.closing import NONE_CLOSED
from pvefw_nft.pipeline.diagnostics import in_file_order, with_text
from pvefw_nft.pipeline.roots import open_configuration

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from pvefw_nft.backends.base import Artefact, Backend
    from pvefw_nft.config.files import Files as Files
    from pvefw_nft.config.model import Guest, NodeConfig
    from pvefw_nft.ir.nodes import Ruleset
    from pvefw_nft.pipeline.closing import Closed

BACKENDS = tuple(backend.name for backend in REGISTRY if backend.is_loadable)
"""The names of the backends whose rulesets a host can load."""

PRINTABLE = tuple(backend.name for backend in REGISTRY)
"""The names of all backends."""

MAX_NOTE = 1 << 16
"""Most characters of a note about one guest (:mod:`.noted_guests`); a guest with a longer one is compiled each time."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A configuration as IR, with its diagnostics in file order."""

    node: NodeConfig
    ruleset: Ruleset
    diagnostics: tuple[Diagnostic, ...]

    @property
    def has_errors(self) -> bool:
        """Tell whether a line, file or guest was left out."""
        return has_errors(self.diagnostics)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A configuration lowered by a backend. The diagnostics of ``checked`` include the limits of the backend."""

    checked: Checked
    backend: Backend
    artefact: Artefact


def compile_root(
    source: Source,
    backend_name: str | None,
    cache: Cache = NO_CACHE,
    closed: Closed = NONE_CLOSED,
    only: Container[int] | None = None,
) -> Compiled:
    """Compile a configuration: :func:`check_root`, then limits and lowering of a backend.

    ``backend_name`` None: the backend that ``nftables`` in host.fw selects. ``cache`` carries results from one compile
    to the next. ``only`` leaves out the guests of other VMIDs; such a ruleset is for explanations, never for loading.
    Raises as :func:`check_root`, and UsageError for an unknown backend.
    """
    checked = check_root(source, cache, closed, only)
    backend = make_backend(backend_name or default_backend(checked.node))
    limits = with_text(list(backend.limits(checked.ruleset)), source.files)
    checked = replace(checked, diagnostics=in_file_order([*checked.diagnostics, *limits]))
    cache.begin()  # here, so that a configuration that cannot be read costs no entries
    return Compiled(checked, backend, backend.lower(checked.ruleset, cache))


def check_root(
    source: Source, cache: Cache = NO_CACHE, closed: Closed = NONE_CLOSED, only: Container[int] | None = None
) -> Checked:
    """Read a configuration, build its IR and validate it. ``cache`` has results of earlier compiles.

    No packet passes the filtered NICs of the guests in ``closed``, nor of guests whose files cannot be used. ``only``
    leaves out the guests of other VMIDs. Raises ConfigurationError for a file of the cluster or node that cannot be
    used and for a file system that fails, UsageError for a root or node that does not exist.
    """
    from pvefw_nft.config.load import closed_guest
    from pvefw_nft.ir.build import build
    from pvefw_nft.ir.validate import validate

    findings = Findings(cautious=source.cautious)
    configuration = open_configuration(source, findings, cache)
    guests: Iterable[Guest] = configuration.guests(only=only)
    if closed:
        guests = (
            closed_guest(guest, closed[guest.vmid], findings) if guest.vmid in closed else guest for guest in guests
        )

    def report_failure(guest: Guest, error: Exception) -> None:
        closed_guest(guest, error, findings)

    zones = {} if source.as_reference else source.zones()
    ruleset = build(
        configuration.node, guests, cache, report_failure, as_reference=source.as_reference, zones_in_force=zones
    )
    validate(ruleset, cache)
    report_borrowed(source, configuration.node, findings)
    return Checked(configuration.node, ruleset, in_file_order(findings.diagnostics))


def hardening_of(compiled: Compiled, *, asked: bool) -> str:
    """Return the nft transaction of the hardening beside an iptables ruleset; empty if none is wanted.

    ``asked``: the caller wants it even if host.pvefw does not. The nft ruleset contains its own stateless chains.
    """
    checked = compiled.checked
    if compiled.backend.name != "iptables" or not (asked or checked.node.host.hardening.harden):
        return ""
    from pvefw_nft.backends.nft.backend import hardening  # deferred: most hosts do not use it

    return hardening(checked.ruleset)


def default_backend(node: NodeConfig) -> str:
    """Return the name of the backend that host.fw asks for."""
    return "nft" if node.host.options.nftables else "iptables"


def make_backend(name: str) -> Backend:
    """Return the backend of that name. Raises UsageError for an unknown name."""
    if name not in PRINTABLE:
        raise UsageError(f"unknown backend `{name}`", "backends are " + ", ".join(PRINTABLE))
    module = import_module(f"pvefw_nft.backends.{name}")  # deferred: each run needs one backend
    return cast("Backend", module.BACKEND())
