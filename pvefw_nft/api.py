"""The public Python API, as ``import pvefw_nft`` gives it. Every other module is private and may change at any time.

    load ─▶ Configuration ─ compile ─▶ Ruleset ─ simulate ─▶ Outcome
                  └─ check ─▶ diagnostics   └─ compare ─▶ Report

Nothing here asks or changes this host. Functions raise subclasses of :class:`PvefwError`, and print nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pvefw_nft.config.source import Source
from pvefw_nft.errors import (
    ConfigurationError,
    Diagnostic,
    HostError,
    PvefwError,
    Severity,
    Span,
    UsageError,
    has_errors,
)
from pvefw_nft.pipeline import compile_root
from pvefw_nft.pipeline.closing import closing_failures
from pvefw_nft.pipeline.read_back import read_back
from pvefw_nft.pipeline.review import review_root
from pvefw_nft.pipeline.roots import node_name
from pvefw_nft.pipeline.topology import topology as topology_of
from pvefw_nft.verify.prove import compare as proof
from pvefw_nft.verify.prove.network import Side
from pvefw_nft.verify.prove.report import Answer, Difference, Report
from pvefw_nft.verify.simulate.guesses import simulate_guessing
from pvefw_nft.verify.simulate.packet import make_probe
from pvefw_nft.verify.simulate.spec import PacketSpec as Packet
from pvefw_nft.verify.simulate.walk import Outcome

if TYPE_CHECKING:
    from os import PathLike

    from pvefw_nft.pipeline import Compiled
    from pvefw_nft.verify.model import RulesetModel
    from pvefw_nft.verify.network.path import Topology

__all__ = [
    "Answer",
    "Configuration",
    "ConfigurationError",
    "Diagnostic",
    "Difference",
    "HostError",
    "Outcome",
    "Packet",
    "PvefwError",
    "Report",
    "Ruleset",
    "Severity",
    "Span",
    "UsageError",
    "check",
    "compare",
    "compile",
    "load",
    "simulate",
]


@dataclass(frozen=True, slots=True)
class Configuration:
    """The firewall files below a folder, as one node of the cluster reads them. :func:`load` makes it.

    The files are read each time a function needs them: a change shows in the next call.
    """

    root: Path
    node: str
    source: Source


@dataclass(frozen=True)
class Ruleset:
    """A compiled ruleset. ``backend`` is ``iptables`` or ``nft``; ``diagnostics`` are in file order.

    Lines with an error are not part of it, as with ``pvefw compile``.
    """

    configuration: Configuration
    backend: str
    diagnostics: tuple[Diagnostic, ...]
    compiled: Compiled

    @property
    def has_errors(self) -> bool:
        """Whether lines of the configuration were left out."""
        return has_errors(self.diagnostics)

    def text(self) -> str:
        """Return the ruleset as the backend's tools read it: restore files for iptables, a script for ``nft -f``."""
        return "".join(self.compiled.artefact.text())

    def json(self) -> str:
        """Return the ruleset as one JSON document: for nft the input of ``nft -j -f``."""
        return "".join(self.compiled.artefact.json())

    @cached_property
    def model(self) -> RulesetModel:
        """The ruleset as the checker reads it from its own text."""
        return read_back(self.compiled)

    @cached_property
    def topology(self) -> Topology:
        """The NICs and bridges of the node. With the iptables backend br_netfilter hands it bridged packets."""
        return replace(topology_of(self.configuration.source), call_iptables=self.backend == "iptables")


def load(
    root: str | PathLike[str],
    *,
    node: str | None = None,
    local_network: str | None = None,
    as_reference: bool = False,
) -> Configuration:
    """Return the configuration below ``root``, the folder that holds ``etc/pve``.

    ``node`` None: the one that ``etc/pve/local`` links to, else this host's short name. ``local_network`` is the CIDR
    of the management network, for configurations without an alias ``local_network``; unlike the commands, None does
    not ask this host for one. ``as_reference`` leaves out rules that make the nft ruleset stricter than Proxmox VE's.

    Raises UsageError if there is no such folder or node.
    """
    folder = Path(root)
    elsewhere = folder.resolve() != Path("/")
    source = Source(folder, node, lambda: local_network, as_reference=as_reference, borrows_names=elsewhere)
    return Configuration(folder, node_name(source), source)


def check(configuration: Configuration, *, analysis: bool = True) -> tuple[Diagnostic, ...]:
    """Return all findings about a configuration, in file order, as ``pvefw check`` prints them.

    ``analysis`` looks for rules and names without effect too, where there is no error. It takes longest.
    Raises ConfigurationError for files that cannot be used at all.
    """
    return review_root(configuration.source, analysis=analysis).diagnostics


def compile(configuration: Configuration, backend: str | None = None) -> Ruleset:  # noqa: A001 - the command's name
    """Return the ruleset of a configuration; ``backend`` None: the one that host.fw asks for.

    Raises UsageError for an unknown backend, ConfigurationError for files that cannot be used at all.
    """
    source = configuration.source
    compiled = closing_failures(source, lambda closed: compile_root(source, backend, closed=closed))
    return Ruleset(configuration, compiled.backend.name, compiled.checked.diagnostics, compiled)


def simulate(ruleset: Ruleset, packet: Packet) -> Outcome:
    """Return the verdict on a packet under a ruleset, and the rules that it met.

    Raises UsageError for a packet whose ends are not there, or whose fields contradict one another.
    """
    return simulate_guessing(ruleset.model, make_probe(packet, ruleset.topology))


def compare(
    before: Ruleset,
    after: Ruleset,
    *,
    strict: bool = False,
    max_seconds: float | None = 600,
    max_memory: int | None = 512,
) -> Report:
    """Prove that two rulesets treat packets alike, or return packets that they treat differently.

    ``strict`` compares logs, marks, queue numbers and helpers too. ``max_seconds`` bounds the whole comparison,
    ``max_memory`` (MiB) each pair of rule lists; None: no bound. Comparisons that exceed a bound are in
    ``Report.undecided``.
    """
    sides = [Side(_name(ruleset), ruleset.model, ruleset.topology) for ruleset in (before, after)]
    options = proof.Options(strict=strict, max_seconds=max_seconds, max_memory=max_memory)
    return proof.compare(sides[0], sides[1], options)


def _name(ruleset: Ruleset) -> str:
    return f"{ruleset.backend}:{ruleset.configuration.root}"
