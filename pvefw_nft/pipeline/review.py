"""Review a configuration as a whole: stray files, unused names, rules without effect, a host that locks you out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pvefw_nft.cache import NO_CACHE, Cache
from pvefw_nft.config.files import FilesOnce
from pvefw_nft.config.findings import Findings
from pvefw_nft.errors import Diagnostic, Severity, Span, has_errors
from pvefw_nft.pipeline import check_root, make_backend
from pvefw_nft.pipeline.closing import closing_failures
from pvefw_nft.pipeline.diagnostics import in_file_order, with_text
from pvefw_nft.pipeline.read_back import read_back_origins
from pvefw_nft.pipeline.roots import offline, open_configuration, root_of
from pvefw_nft.pipeline.topology import topology

if TYPE_CHECKING:
    from collections.abc import Callable

    from pvefw_nft.config.model import NodeConfig
    from pvefw_nft.config.source import Source
    from pvefw_nft.ir.nodes import Origin
    from pvefw_nft.pipeline import Checked
    from pvefw_nft.verify.prove.exploration import Facts
    from pvefw_nft.verify.prove.network import Side


class Advice(NamedTuple):
    """The findings of an analysis, in file order. ``unfinished`` are reasons for which some rules were not judged."""

    diagnostics: tuple[Diagnostic, ...]
    unfinished: tuple[str, ...]


class Review(NamedTuple):
    """A configuration as IR, all that is wrong with it in file order, and why some rules were not judged."""

    checked: Checked
    diagnostics: tuple[Diagnostic, ...]
    unfinished: tuple[str, ...] = ()


def review_root(
    source: Source,
    *,
    analysis: bool,
    only_own: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Review:
    """Check a configuration, survey its other files, and with ``analysis`` judge its rules if nothing is an error.

    ``only_own`` as in :func:`survey_root`, ``progress`` as in :func:`analyse_root`. Raises as :func:`.check_root`.
    """
    source = replace(source, observed_files=FilesOnce(source.files))
    checked, diagnostics = _check_and_survey(source, only_own=only_own)
    if not analysis or checked.has_errors or not checked.ruleset.enabled:
        return Review(checked, diagnostics)
    advice = analyse_root(source, checked, only_own=only_own, progress=progress)
    return Review(checked, in_file_order([*diagnostics, *advice.diagnostics]), advice.unfinished)


def _check_and_survey(source: Source, *, only_own: bool) -> tuple[Checked, tuple[Diagnostic, ...]]:
    """Return the configuration as IR, and all mistakes in it. Guests are read once for both questions."""
    from pvefw_nft.pipeline.guests import GuestCache  # deferred: it imports the readers

    guests = GuestCache()
    checked = closing_failures(source, lambda closed: check_root(source, guests, closed=closed))
    return checked, in_file_order([*checked.diagnostics, *survey_root(source, only_own=only_own, cache=guests)])


def survey_root(source: Source, *, only_own: bool = False, cache: Cache = NO_CACHE) -> tuple[Diagnostic, ...]:
    """Return mistakes in firewall files that this node does not compile, and settings that defeat one another.

    ``only_own``: leave out findings that belong to other nodes or to the cluster, see :func:`survey_cluster`.
    ``cache``: of a check of the same source. Raises as :func:`.check_root`.
    """
    from pvefw_nft.config.survey import survey  # deferred: only a check needs it

    findings = Findings()
    survey(root_of(source), open_configuration(offline(source), findings, cache), findings, only_own=only_own)
    return in_file_order(with_text(findings.diagnostics, source.files))


def survey_cluster(source: Source, *, analysis: bool = True) -> tuple[Diagnostic, ...]:
    """Return mistakes in a cluster's files that belong to no node: files that no node reads, names that none uses.

    Names are judged only with ``analysis``, a cluster.fw without errors and the firewall on. Raises as
    :func:`.check_root`.
    """
    from pvefw_nft.config.load import Configuration, Root
    from pvefw_nft.config.survey import survey_strays
    from pvefw_nft.config.unused import find_unused_of_cluster

    findings = Findings()
    root = Root(source.root, "", source.files)
    configuration = Configuration(root, findings, lambda: None, now=source.now)
    sound = not has_errors(findings.diagnostics)
    findings.diagnostics.clear()  # each node reports them
    survey_strays(root, configuration, findings)
    if analysis and sound and configuration.node.cluster.options.enable:
        find_unused_of_cluster(root, configuration.node.cluster, findings)
    return in_file_order(with_text(findings.diagnostics, source.files))


def analyse_root(
    source: Source,
    checked: Checked,
    *,
    only_own: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Advice:
    """Return advice about a sound configuration: rules that do nothing, and names that nothing uses.

    ``checked`` is the result of :func:`.check_root` for the source. ``only_own``: leave out the cluster's names, which
    :func:`survey_cluster` judges. The rules of the iptables ruleset are judged, so FORWARD rules are not.
    ``progress`` gets the work done and the total; if rules are found, it counts twice. Raises as :func:`.check_root`.
    """
    # deferred: this is the slow part of a check
    from pvefw_nft.config.unused import find_unused_of_cluster, find_unused_of_guests
    from pvefw_nft.verify.prove.dead_rules import analyse
    from pvefw_nft.verify.prove.exploration import Facts
    from pvefw_nft.verify.prove.network import Side

    backend = make_backend("iptables")
    # both the text and the origins of its lines are asked for: with a cache each chain is lowered once
    model = read_back_origins(backend, backend.lower(checked.ruleset, Cache()), _Lines().line)
    quiet = open_configuration(offline(source), Findings())
    side = Side("configuration", model, topology(source, quiet))
    facts = Facts.of_one(side)
    advice = analyse(side, progress=progress, facts=facts)
    knows_network = checked.node.local_network is not None or source.root == Path("/")
    found = _lock_out(checked.node, side, facts) if knows_network else []
    for finding in advice.found:
        file, _, line = finding.origin.rpartition("\0")
        if file:
            found.append(_without_effect(Span(file, int(line)), finding.kind.value, finding.by))
    findings = Findings()
    root = root_of(source)
    if not only_own:
        find_unused_of_cluster(root, quiet.node.cluster, findings)
    find_unused_of_guests(root, quiet, findings)
    return Advice(in_file_order(with_text([*findings.diagnostics, *found], source.files)), advice.unfinished)


_ADMINISTRATION = (22, 8006)
"""TCP ports of ssh and of Proxmox VE's web interface."""


def _lock_out(node: NodeConfig, side: Side, facts: Facts) -> list[Diagnostic]:
    """Return a warning if the host accepts no login from outside. ``facts`` are those of explorations of the side."""
    from pvefw_nft.config.option_values import Policy
    from pvefw_nft.verify.model.intervals import IntervalSet
    from pvefw_nft.verify.prove.budget import BudgetExceededError
    from pvefw_nft.verify.prove.reach import host_is_reachable

    if not node.host.options.enable:
        return []  # the host itself is not filtered
    try:
        if host_is_reachable(side, IntervalSet.of(*((port, port) for port in _ADMINISTRATION)), facts):
            return []
    except BudgetExceededError:
        return []  # undecided: a warning would be a guess
    cluster = node.cluster
    span = Span(cluster.file, cluster.option_lines.get("policy_in", 0))
    rules = [*cluster.rules, *node.host.rules]
    if rules and cluster.options.policy_in is Policy.DROP:
        span = rules[-1].written.line.span()
    message = "no login from outside: the host accepts neither tcp port 22 nor 8006 from any address"
    hint = "accept your management network above, or define [IPSET management] in cluster.fw"
    return [Diagnostic(Severity.WARNING, "lock-out", span, message, hint)]


class _Lines:
    """Spells origins, each once: the rules of a line, of both IP versions, have one."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Origin, str]] = {}

    def line(self, origin: Origin) -> str:
        """Return an origin in a file as path, NUL, line; other origins (policy, standard rules) as text."""
        known = self._known.get(id(origin))
        if known is None:
            known = self._known[id(origin)] = origin, _line_of(origin)
        return known[1]


def _line_of(origin: Origin) -> str:
    from pvefw_nft.ir.nodes import Provenance

    is_rule = origin.file is not None and origin.line and origin.provenance is not Provenance.POLICY
    return f"{origin.file}\0{origin.line}" if is_rule else str(origin)


def _without_effect(span: Span, kind: str, by: tuple[str, ...]) -> Diagnostic:
    lines = [origin for origin in by if "\0" in origin]
    takers = ", ".join(origin.rpartition("/")[2].replace("\0", ":") for origin in lines or by)
    if takers and not lines:
        takers = f"standard rules or the policy ({takers})"
    if kind == "never-matches":
        hint = f"all packets of this rule are already decided by {takers}" if takers else None
        return Diagnostic(Severity.WARNING, kind, span, "the rule can never match", hint)
    message = "the rule changes nothing: without it, every packet has the same verdict and the log the same entries"
    what = f"{takers} would do the same: " if takers else ""
    return Diagnostic(Severity.NOTE, kind, span, message, f"{what}remove it, or keep it as documentation")
