"""The way from files to a ruleset, one stage after the other. Start reading at :func:`compile_root`.

    files ─ config.load ─▶ lines ─ config.resolve ─▶ model ─ ir.build ─▶ IR ─ ir.validate ─▶ IR ─ backend ─▶ artefact

The front end collects diagnostics and goes on; a file that cannot be used at all raises. Guests pass through the
first stages one by one, so that only the IR of a large node is ever in memory as a whole.

The stages are imported where they are used: a command on a host that finds nothing changed needs none of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar, cast

from pvefw_nft.backends import REGISTRY
from pvefw_nft.config.findings import Findings
from pvefw_nft.config.model import Layer2
from pvefw_nft.config.source import Observations as Observations
from pvefw_nft.config.source import Source as Source  # noqa: TC001 - for those who compile
from pvefw_nft.config.steady import SETTLE_SECONDS as SETTLE_SECONDS
from pvefw_nft.errors import (
    ConfigurationError,
    Diagnostic,
    InternalError,
    PvefwError,
    Severity,
    Span,
    UsageError,
    has_errors,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

    from pvefw_nft.backends.base import Artefact, Backend
    from pvefw_nft.config.codes import Code as Code
    from pvefw_nft.config.files import Files as Files
    from pvefw_nft.config.load import Configuration, GuestStore, Root
    from pvefw_nft.config.model import ClusterHardening, Guest, NodeConfig
    from pvefw_nft.config.values import Prefix
    from pvefw_nft.ir.nodes import Origin, Ruleset
    from pvefw_nft.verify.model import RulesetModel
    from pvefw_nft.verify.network.path import Topology
    from pvefw_nft.verify.prove.flows import Side

BACKENDS = tuple(backend.name for backend in REGISTRY if backend.is_loadable)
"""The names of the backends whose rulesets a host can load."""

PRINTABLE = tuple(backend.name for backend in REGISTRY)
"""The names of all backends."""

BORROWED_CODES = ("borrowed-network", "borrowed-names")
"""Codes about facts that a ruleset for another host takes from this machine."""

_T = TypeVar("_T")

Closed: TypeAlias = "Mapping[int, Exception]"
"""Guests that get no rules of theirs, by VMID, each with its failure."""

CLOSED_CODES = frozenset(("guest-closed", "vnet-closed"))
"""Codes of errors that closed something, instead of leaving a line out."""

NONE_CLOSED: Closed = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Checked:
    """A configuration as IR, and everything that is wrong with it, in file order."""

    node: NodeConfig
    ruleset: Ruleset
    diagnostics: tuple[Diagnostic, ...]

    @property
    def has_errors(self) -> bool:
        """Tell whether something was skipped or refused."""
        return has_errors(self.diagnostics)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A configuration in the language of a backend; ``checked`` includes the limits of the backend."""

    checked: Checked
    backend: Backend
    artefact: Artefact


class Store:
    """Caches carried between compiles, in a service: guests as read and built, and lowered chains.

    Each part checks its own validity. Results never differ from a cold compile.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        from pvefw_nft.backends.base import LineStore
        from pvefw_nft.config.load import GuestStore
        from pvefw_nft.ir.guest import PartStore
        from pvefw_nft.ir.validate import SoundChains

        self.guests = GuestStore()
        self.parts = PartStore()
        self.sound = SoundChains()
        self.lines = LineStore()


def check_root(
    source: Source, store: Store | None = None, closed: Closed = NONE_CLOSED, only: Container[int] | None = None
) -> Checked:
    """Read a configuration and build its IR, with the help of ``store`` where there is one.

    The guests in ``closed`` get no rules of theirs: nothing passes their filtered NICs. So do guests whose files cannot
    be used. With ``only`` guests of other VMIDs are left out. Raises ConfigurationError for another file that cannot be
    used or a file system that fails, UsageError for a root or node that is not there.
    """
    from pvefw_nft.config.load import closed_guest
    from pvefw_nft.ir.build import build
    from pvefw_nft.ir.validate import validate

    findings = Findings(cautious=source.cautious)
    configuration = _configuration(source, findings, None if store is None else store.guests)
    guests: Iterable[Guest] = configuration.guests(only=only)
    if closed:
        guests = (
            closed_guest(guest, closed[guest.vmid], findings) if guest.vmid in closed else guest for guest in guests
        )

    def report_failure(guest: Guest, error: Exception) -> None:
        closed_guest(guest, error, findings)

    parts = None if store is None else store.parts
    zones = {} if source.as_reference else source.zones()
    ruleset = build(
        configuration.node, guests, parts, report_failure, as_reference=source.as_reference, zones_in_force=zones
    )
    validate(ruleset, None if store is None else store.sound)
    _report_borrowed(source, configuration.node, findings)
    return Checked(configuration.node, ruleset, in_file_order(findings.diagnostics))


def _report_borrowed(source: Source, node: NodeConfig, findings: Findings) -> None:
    """Report facts taken from this machine though the root is that of another host."""
    from pvefw_nft.config import netdb

    span = Span(node.cluster.file, 0)
    network = node.local_network
    if source.borrows_network and network is not None and "local_network" not in node.cluster.aliases:
        findings.warning(
            "borrowed-network",
            span,
            f"the local network {network.spelling} is that of this machine, since nothing in {source.root} names one",
            "name the host's network with --local-network, or as alias local_network in cluster.fw",
        )
    names = netdb.own_names() if source.borrows_names else ()
    if names:
        findings.warning(
            "borrowed-names",
            span,
            f"{', '.join(names[:8])}{' …' if len(names) > 8 else ''}: known by this machine's /etc only, or by another "
            "number than Debian's",
            "write numbers, which mean the same on every host",
        )


@dataclass(frozen=True, slots=True)
class Inventory:
    """The configuration of a host: the node, its guests, and the pairs of own and peers' addresses."""

    node: NodeConfig
    guests: tuple[Guest, ...]
    corosync_peers: tuple[tuple[Prefix, Prefix], ...]
    diagnostics: tuple[Diagnostic, ...]

    def open_layer2(self, backend: str) -> tuple[int, ...]:
        """Return the VMIDs of filtered guests whose frames without IP pass, with the ruleset of a backend."""
        node = self.node
        if backend != "nft" and not node.host.hardening.harden:
            cluster: ClusterHardening | None = None  # no ruleset applies the option
        else:
            cluster = node.cluster.hardening
        return tuple(guest.vmid for guest in self.guests if _has_open_layer2(guest, cluster))

    def divided(self) -> tuple[int, ...]:
        """Return the VMIDs of filtered guests with several NICs in one network, each in a zone of its own."""
        return tuple(guest.vmid for guest in self.guests if _is_divided(guest))


def _is_divided(guest: Guest) -> bool:
    config = guest.firewall
    if config is None or not config.options.enable or config.hardening.one_zone:
        return False
    networks = [(nic.bridge, nic.tag) for nic in guest.nics if nic.firewall and nic.bridge is not None]
    return len(set(networks)) < len(networks)


def _has_open_layer2(guest: Guest, cluster: ClusterHardening | None) -> bool:
    """Tell whether a filtered guest's frames without IP pass; ``cluster`` None: for any value of ``l2``."""
    config = guest.firewall
    if config is None or not config.options.enable or not any(nic.firewall for nic in guest.nics):
        return False
    strict = cluster is not None and config.hardening.over(cluster).l2 is Layer2.STRICT
    return not strict and not config.options.layer2_protocols


def read_inventory(source: Source) -> Inventory:
    """Read a configuration without building a ruleset. Raises what :func:`check_root` raises."""
    from pvefw_nft.ir.host import corosync_peers

    findings = Findings()
    configuration = _configuration(source, findings)
    node = configuration.node
    peers = () if node.corosync is None else tuple(corosync_peers(node.corosync, node.node))
    guests = tuple(configuration.guests())
    return Inventory(node, guests, peers, in_file_order(findings.diagnostics))


def read_node(source: Source) -> NodeConfig:
    """Return the configuration of the node as a whole, without guests and diagnostics.

    Raises what :func:`check_root` raises.
    """
    return _configuration(_offline(source), Findings()).node


def read_guests(source: Source) -> tuple[Guest, ...]:
    """Return this node's guests and their NICs, without their rules and diagnostics.

    Raises what :func:`check_root` raises.
    """
    return tuple(_configuration(_offline(source), Findings()).guests(rules=False))


def corosync_links(source: Source) -> tuple[tuple[Prefix, Prefix], ...]:
    """Return the pairs of this node's and a peer's address on the same link of corosync; no guest is read.

    Raises what :func:`check_root` raises.
    """
    from pvefw_nft.ir.host import corosync_peers

    node = read_node(source)
    return () if node.corosync is None else tuple(corosync_peers(node.corosync, node.node))


def compile_root(
    source: Source,
    backend_name: str | None,
    store: Store | None = None,
    closed: Closed = NONE_CLOSED,
    only: Container[int] | None = None,
) -> Compiled:
    """Compile a configuration; ``backend_name`` None: the one that host.fw asks for with ``nftables``.

    With ``only`` guests of other VMIDs are left out: a ruleset that explains, and is not loaded.

    Raises what :func:`check_root` raises, and UsageError for an unknown backend.
    """
    checked = check_root(source, store, closed, only)
    backend = make_backend(backend_name or default_backend(checked.node))
    limits = _with_text(list(backend.limits(checked.ruleset)), source.files)
    checked = replace(checked, diagnostics=in_file_order([*checked.diagnostics, *limits]))
    return Compiled(checked, backend, backend.lower(checked.ruleset, None if store is None else store.lines))


def closing_failures(source: Source, attempt: Callable[[Closed], _T]) -> _T:
    """Return the result of ``attempt``, with the guests closed on which it fails.

    Such a failure is a bug of pvefw, but a tenant may find the input that shows it: it must cost only the guest whose
    file it is. ``attempt`` is called with the guests to close, with none first. Raises what it raises where closing
    guests does not help, and what :func:`check_root` raises.
    """
    try:
        return attempt(NONE_CLOSED)
    except InternalError as error:
        failure: Exception = error
    except PvefwError:
        raise
    except Exception as error:
        failure = error
    vmids = [guest.vmid for guest in _configuration(source, Findings()).guests(rules=False)]
    return attempt(guests_to_close(vmids, failure, attempt))


def guests_to_close(vmids: Sequence[int], failure: Exception, attempt: Callable[[Closed], object]) -> Closed:
    """Return the guests to close, each with its failure, so that ``attempt`` succeeds; as many as possible stay open.

    ``attempt`` is called with guests to close and raises where the rest cannot be compiled, as it does with none. It is
    called about twice the logarithm of the number of guests for each guest that has to be closed. Raises the failure
    itself where it does so with all guests closed.
    """
    open_guests: set[int] = set()
    failures: dict[int, Exception] = {}

    def closed_but(tried: Iterable[int]) -> dict[int, Exception]:
        left_open = open_guests.union(tried)
        return {vmid: failures.get(vmid, failure) for vmid in vmids if vmid not in left_open}

    def open_up(tried: Sequence[int]) -> None:
        try:
            attempt(closed_but(tried))
        except Exception as error:
            if len(tried) == 1:
                failures[tried[0]] = error
                return
            middle = len(tried) // 2
            open_up(tried[:middle])
            open_up(tried[middle:])
        else:
            open_guests.update(tried)

    try:
        attempt(closed_but(()))
    except Exception:
        raise failure from None
    open_up(vmids)
    return closed_but(())


def load_stages(*, checks: bool = False, proof: bool = False) -> None:
    """Load the modules of the stages, which are imported where they are used.

    For processes that are forked from this one and must have them, or cannot read programs later. ``checks`` adds what
    looks at a configuration as a whole and reads rulesets back, ``proof`` the prover.
    """
    names = ["config.load", "ir.build", "ir.validate", *(f"backends.{name}" for name in BACKENDS)]
    if checks:
        names += [
            "config.survey",
            "config.unused",
            "config.inventory",
            "verify.readers.files",
            "verify.network.interfaces",
        ]
    if proof:
        names += ["verify.prove.dead_rules", "verify.prove.compare"]
    for name in names:
        import_module(f"pvefw_nft.{name}")


def hardening_of(compiled: Compiled, *, asked: bool) -> str:
    """Return the hardening that stands beside a compiled ruleset, as an nft transaction; empty where it is not wanted.

    ``asked``: it is wanted in any case, not only where host.pvefw says so. The nft ruleset needs none.
    """
    checked = compiled.checked
    if compiled.backend.name != "iptables" or not (asked or checked.node.host.hardening.harden):
        return ""
    from pvefw_nft.backends.nft.backend import hardening  # deferred: few ask for it

    return hardening(checked.ruleset)


def default_backend(node: NodeConfig) -> str:
    """Return the name of the backend that host.fw asks for."""
    return "nft" if node.host.options.nftables else "iptables"


def make_backend(name: str) -> Backend:
    """Return the backend of that name. Raises UsageError for a name that is none."""
    if name not in PRINTABLE:
        raise UsageError(f"unknown backend `{name}`", "backends are " + ", ".join(PRINTABLE))
    module = import_module(f"pvefw_nft.backends.{name}")  # deferred: each run needs one backend
    return cast("Backend", module.BACKEND())


def node_name(source: Source) -> str:
    """Return the name of the node whose configuration counts. Raises UsageError where there is no such folder."""
    return _root(source).node


def _configuration(source: Source, findings: Findings, store: GuestStore | None = None) -> Configuration:
    from pvefw_nft.config.load import Configuration

    return Configuration(_root(source), findings, source.local_network, source.real_interface, store, source.now)


def _offline(source: Source) -> Source:
    """Return a source that asks nothing of the host's network."""
    return replace(source, local_network=lambda: None, real_interface=lambda _: None)


def _root(source: Source) -> Root:
    from pvefw_nft.config.load import Root

    files = source.files
    if not files.is_folder(source.root):
        raise UsageError(f"{source.root}: not a folder", "name the folder that holds etc/pve")
    if source.node is not None:
        if not source.node or "/" in source.node or source.node in (".", ".."):
            raise UsageError(f"`{source.node}` cannot be the name of a node", "name a folder of etc/pve/nodes")
        _require_node(source, source.node)
        return Root(source.root, source.node, files)
    place = source.root / "etc" / "pve" / "local"
    local = files.link(place)
    if local is not None and not files.is_folder(place):
        raise ConfigurationError(
            f"{place}: the link leads to no folder below {source.root} (`{local}`)",
            "mend the link, or name the node with --node",
        )
    return Root(source.root, Path(local).name if local is not None else _own_node(source), files)


def _own_node(source: Source) -> str:
    """Return this host's short name. Raises UsageError where the root holds other nodes, and not this one."""
    name = source.files.host_name().partition(".")[0]
    if not source.files.is_folder(source.root / "etc" / "pve" / "local"):
        _require_node(source, name, ", which is this host")
    return name


def _require_node(source: Source, name: str, who: str = "") -> None:
    """Raise UsageError where the root has folders of nodes, and none of this name: it would have no guests."""
    files = source.files
    nodes = source.root / "etc" / "pve" / "nodes"
    if files.is_folder(nodes / name):
        return
    known = ", ".join(sorted(other for other in files.listed(nodes) if files.is_folder(nodes / other)))
    if known:
        raise UsageError(f"{nodes}: no node `{name[:60]}`{who}", f"name a node with --node: {known}")


def in_file_order(diagnostics: list[Diagnostic]) -> tuple[Diagnostic, ...]:
    """Sort diagnostics by place; files stay in the order in which they were read."""
    order: dict[str, int] = {}
    for diagnostic in diagnostics:
        order.setdefault(diagnostic.span.file, len(order))
    return tuple(sorted(diagnostics, key=lambda d: (order[d.span.file], d.span.line, d.span.column)))


def _with_text(diagnostics: list[Diagnostic], files: Files) -> list[Diagnostic]:
    """Return diagnostics of which only the line is known with the text of that line."""
    texts: dict[str, list[str]] = {}
    complete = []
    for diagnostic in diagnostics:
        span = diagnostic.span
        if span.line and not span.text:
            if span.file not in texts:
                texts[span.file] = _lines(span.file, files)
            text = texts[span.file][span.line - 1].rstrip("\r") if span.line <= len(texts[span.file]) else ""
            start = len(text) - len(text.lstrip()) + 1
            span = Span(span.file, span.line, start, max(len(text.rstrip()) + 1, start + 1), text)
        complete.append(replace(diagnostic, span=span))
    return complete


def _lines(file: str, files: Files) -> list[str]:
    try:
        return (files.text(file) or "").split("\n")
    except ConfigurationError:
        return []


# --- explaining ---------------------------------------------------------------------------------------------------


def diagnostic_codes() -> Mapping[str, tuple[Code, ...]]:
    """Return the declarations of all diagnostic codes by subject, in the order of the manual."""
    from pvefw_nft.config.codes import SUBJECTS  # deferred: few commands need all these texts

    return SUBJECTS


def find_code(name: str) -> Code:
    """Return the declaration of a diagnostic code. Raises UsageError for a name that is none."""
    from pvefw_nft.config.codes import declared
    from pvefw_nft.config.values import nearest

    codes = declared()
    if name not in codes:
        raise UsageError(f"unknown code `{name[:60]}`", nearest(name, codes) or "`pvefw explain` lists all codes")
    return codes[name]


# --- reading back ---------------------------------------------------------------------------------------------


def read_back(compiled: Compiled, *, on_demand: bool = False) -> RulesetModel:
    """Return the ruleset of an artefact as verify reads it from the artefact's own text, with the rules' origins.

    ``on_demand``: the rules of a chain are read when somebody asks for them.
    """
    return _read_back(compiled.backend, compiled.artefact, str, on_demand=on_demand)


def _read_back(
    backend: Backend, artefact: Artefact, spelled: Callable[[Origin], str], *, on_demand: bool = False
) -> RulesetModel:
    from pvefw_nft.verify.readers.files import Text, read_ruleset  # deferred: compiling needs nothing of verify

    form = artefact.json if backend.default_format == "json" else artefact.text
    return read_ruleset(
        [Text(backend.name, "".join(form()))],
        origins={place: spelled(origin) for place, origin in artefact.origins()},
        on_demand=on_demand,
    )


def topology(source: Source) -> Topology:
    """Return the NICs, bridges and addresses of a node, from its guest configs and /etc/network/interfaces.

    Mistakes in the configuration are not reported again. Raises what :func:`check_root` raises.
    """
    from pvefw_nft.config.inventory import guest_addresses, guests_elsewhere
    from pvefw_nft.config.model import GuestKind
    from pvefw_nft.verify.network.interfaces import read_interfaces
    from pvefw_nft.verify.network.path import Nic, Topology

    root = _root(source)
    configuration = _configuration(_offline(source), Findings())
    cluster = configuration.node.cluster

    def nics_of(guest: Guest, node: str = "") -> Iterator[Nic]:
        known = guest_addresses(root, cluster, guest)
        for nic in guest.nics:
            if nic.bridge is None:
                continue
            addresses = known[nic.index]
            yield Nic(
                zone=f"{'vm' if guest.kind is GuestKind.VM else 'ct'}{guest.vmid}",
                vmid=guest.vmid,
                index=nic.index,
                interface=guest.interface(nic),
                bridge=nic.bridge,
                filtered=nic.firewall,
                mac=nic.mac,
                addresses=tuple((prefix.version, prefix.address) for prefix in addresses.hosts),
                tag=nic.tag or 0,
                ranges=tuple((prefix.version, prefix.address, prefix.last) for prefix in addresses.networks),
                node=node,
                trunks=bool(nic.trunks),
            )

    here = list(configuration.guests(rules=False))
    nics = tuple(nic for guest in here for nic in nics_of(guest))
    vmids = {guest.vmid for guest in here}
    elsewhere = tuple(
        nic for node, guest in guests_elsewhere(root) if guest.vmid not in vmids for nic in nics_of(guest, node)
    )
    interfaces = source.files.text(source.root / "etc" / "network" / "interfaces")
    return Topology(nics, read_interfaces(interfaces or ""), elsewhere=elsewhere).with_bridges()


# --- analyses by proof --------------------------------------------------------------------------------


def survey_root(source: Source, *, only_own: bool = False) -> tuple[Diagnostic, ...]:
    """Return mistakes in firewall files that this node does not compile, and settings that defeat one another.

    ``only_own``: leave out findings of other nodes or of none, see :func:`survey_cluster`. Raises what
    :func:`check_root` raises.
    """
    from pvefw_nft.config.survey import survey  # deferred: only a check needs it

    findings = Findings()
    survey(_root(source), _configuration(_offline(source), findings), findings, only_own=only_own)
    return in_file_order(_with_text(findings.diagnostics, source.files))


def survey_cluster(source: Source, *, analysis: bool = True) -> tuple[Diagnostic, ...]:
    """Return mistakes in a cluster's files that belong to no node: files that none reads, names that none uses.

    The latter with ``analysis``, where cluster.fw is sound and the firewall on. Raises what :func:`check_root` raises.
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
    return in_file_order(_with_text(findings.diagnostics, source.files))


class Advice(NamedTuple):
    """The findings of an analysis, in file order. ``unfinished`` are reasons for which some rules were not judged."""

    diagnostics: tuple[Diagnostic, ...]
    unfinished: tuple[str, ...]


def analyse_root(
    source: Source,
    checked: Checked,
    *,
    only_own: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Advice:
    """Return advice about a sound configuration: rules that do nothing, and names that nothing uses.

    ``checked`` is what :func:`check_root` made of the source. ``only_own``: leave out the cluster's names, which
    :func:`survey_cluster` looks at. The rules are those of the iptables ruleset, so FORWARD
    rules are not judged. ``progress`` is called with the work done, and all of it, twice where rules are found.
    Raises what :func:`check_root` raises.
    """
    # deferred: this is the slow part of a check
    from pvefw_nft.config.unused import find_unused_of_cluster, find_unused_of_guests
    from pvefw_nft.verify.prove.dead_rules import analyse
    from pvefw_nft.verify.prove.flows import Side

    backend = make_backend("iptables")
    model = _read_back(backend, backend.lower(checked.ruleset), _line_of)
    side = Side("configuration", model, topology(source))
    advice = analyse(side, progress=progress)
    knows_network = checked.node.local_network is not None or source.root == Path("/")
    found = _lock_out(checked.node, side) if knows_network else []
    for finding in advice.found:
        file, _, line = finding.origin.rpartition("\0")
        if file:
            found.append(_without_effect(Span(file, int(line)), finding.kind.value, finding.by))
    findings = Findings()
    quiet = _configuration(_offline(source), Findings())
    root = _root(source)
    if not only_own:
        find_unused_of_cluster(root, quiet.node.cluster, findings)
    find_unused_of_guests(root, quiet, findings)
    return Advice(in_file_order(_with_text([*findings.diagnostics, *found], source.files)), advice.unfinished)


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
    """Check a configuration, survey its other files, and with ``analysis`` judge its rules where nothing is an error.

    ``only_own`` as in :func:`survey_root`, ``progress`` as in :func:`analyse_root`. Raises what :func:`check_root`
    raises.
    """
    checked = closing_failures(source, lambda closed: check_root(source, closed=closed))
    diagnostics = in_file_order([*checked.diagnostics, *survey_root(source, only_own=only_own)])
    if not analysis or checked.has_errors or not checked.ruleset.enabled:
        return Review(checked, diagnostics)
    advice = analyse_root(source, checked, only_own=only_own, progress=progress)
    return Review(checked, in_file_order([*diagnostics, *advice.diagnostics]), advice.unfinished)


_ADMINISTRATION = (22, 8006)
"""TCP ports of ssh and of Proxmox VE's web interface."""


def _lock_out(node: NodeConfig, side: Side) -> list[Diagnostic]:
    """Return a warning if the host accepts no login from outside."""
    from pvefw_nft.config.model import Policy
    from pvefw_nft.verify.model.intervals import IntervalSet
    from pvefw_nft.verify.prove.budget import BudgetExceededError
    from pvefw_nft.verify.prove.reach import host_is_reachable

    if not node.host.options.enable:
        return []
    try:
        if host_is_reachable(side, IntervalSet.of(*((port, port) for port in _ADMINISTRATION))):
            return []
    except BudgetExceededError:
        return []
    cluster = node.cluster
    span = Span(cluster.file, cluster.option_lines.get("policy_in", 0))
    rules = [*cluster.rules, *node.host.rules]
    if rules and cluster.options.policy_in is Policy.DROP:
        span = rules[-1].written.line.span()
    message = "no login from outside: the host accepts neither tcp port 22 nor 8006 from any address"
    hint = "accept your management network above, or define [IPSET management] in cluster.fw"
    return [Diagnostic(Severity.WARNING, "lock-out", span, message, hint)]


def _line_of(origin: Origin) -> str:
    """Spell the origin of a rule of a file by its path and line; that of others as people read it."""
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
