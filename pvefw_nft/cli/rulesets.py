"""Rulesets as the command line names them: ``iptables:DIR``, ``nft:DIR``, ``save:FILE``, ``nft-json:FILE``, ``live`` …

``simulate`` and ``compare`` take the same names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import click

from pvefw_nft.app.inputs import read_input
from pvefw_nft.cli.render import printable
from pvefw_nft.errors import UsageError
from pvefw_nft.pipeline import BACKENDS, Source, compile_root, default_backend
from pvefw_nft.pipeline.borrowed import BORROWED_CODES
from pvefw_nft.pipeline.inventory import read_node
from pvefw_nft.pipeline.read_back import read_back
from pvefw_nft.pipeline.topology import topology
from pvefw_nft.verify.readers.files import Text, read_ruleset
from pvefw_nft.verify.readers.shared import Assume

if TYPE_CHECKING:
    from collections.abc import Callable

    from pvefw_nft.errors import Diagnostic
    from pvefw_nft.pipeline import Files
    from pvefw_nft.verify.model import RulesetModel
    from pvefw_nft.verify.network.path import Topology

Tell: TypeAlias = "Callable[[tuple[Diagnostic, ...]], None]"

SPEC_HELP = (
    "iptables:DIR or nft:DIR (the configuration below DIR through that backend), save:FILE[,FILE…] (the output of "
    "iptables-save, ip6tables-save, ipset save and ebtables-save), nft-json:FILE (nft -j list ruleset), live, "
    "live:iptables or live:nft (the rules of this host)"
)


@dataclass(frozen=True, slots=True)
class Named:
    """A ruleset, its name, and the host that it runs on. ``arguments`` have ``pvefw simulate`` look at it.

    ``host`` names the configuration whose guests and bridges that host has. ``listed``: the ruleset was listed on a
    host, not compiled from that configuration.
    """

    name: str
    model: RulesetModel
    topology: Topology
    arguments: tuple[str, ...] = ()
    host: str = ""
    listed: bool = False


def assume_option(command: Callable[..., object]) -> Callable[..., object]:
    """Add ``--assume-unknown``."""
    return click.option(
        "--assume-unknown",
        "assume",
        type=click.Choice([choice.value for choice in Assume]),
        help="Assume that unknown matches always match, or never match, or try both.",
    )(command)


def load_ruleset(
    spec: str,
    source_of: Callable[[Path], Source],
    assume: str | None,
    *,
    default_root: Path,
    on_demand: bool = False,
    digests: bool = False,
    files: Callable[[str, str], list[Text]] | None = None,
) -> Named:
    """Return the ruleset a name means. ``on_demand``: it is read chain by chain when rules are asked for. ``digests``:
    so, if it is in files, and its chains have digests. ``files`` reads files instead of :func:`files_of`.

    ``source_of`` gives the configuration below a folder; that below ``default_root`` says which NICs and bridges the
    host of a saved or running ruleset has. Raises UsageError for a name that is none, and what reading and
    compiling raise.
    """
    kind, colon, rest = spec.partition(":")
    if colon and kind in BACKENDS:
        return compiled_ruleset(source_of(Path(rest)), kind, spec, on_demand=on_demand)
    if colon and kind in ("save", "nft-json"):
        texts = (files or files_of)(kind, rest)
        return _read(spec, texts, source_of(default_root), assume, on_demand=on_demand, digests=digests)
    if kind == "live" and rest in ("", *BACKENDS):
        from pvefw_nft.host.saved import saved_rulesets  # deferred: few commands read this host's rules

        texts = [Text(*text) for text in saved_rulesets(rest or None)]
        source = source_of(default_root)
        return _read(spec, texts, source, assume, only_nft=rest == "nft", on_demand=on_demand)
    if not colon and Path(spec).is_dir():
        return compiled_ruleset(source_of(Path(spec)), None, spec, on_demand=on_demand)
    raise UsageError(f"no ruleset: {spec}", f"name one as {SPEC_HELP}")


def files_of(kind: str, names: str) -> list[Text]:
    """Return the files of ``save:`` or ``nft-json:``; of the latter the first is nft's listing."""
    files = [name for name in names.split(",") if name]
    if not files:
        raise UsageError(f"{kind}: names no file", f"name one as {SPEC_HELP}")
    return [
        Text(name, read_input(Path(name)), saved=True, json=kind == "nft-json" and number == 0)
        for number, name in enumerate(files)
    ]


def _read(
    spec: str,
    texts: list[Text],
    source: Source,
    assume: str | None,
    *,
    only_nft: bool = False,
    on_demand: bool = False,
    digests: bool = False,
) -> Named:
    chosen = Assume(assume) if assume else None
    model = read_ruleset(texts, assume=chosen, without_xtables=only_nft, on_demand=on_demand, digests=digests)
    named = _named(spec, model, source, on_demand=on_demand)
    return replace(named, arguments=("--ruleset", spec, *named.arguments), listed=True)


def show_borrowed(diagnostics: tuple[Diagnostic, ...]) -> None:
    """Print once which facts a ruleset takes from this machine; `check` reports all other findings."""
    for diagnostic in diagnostics:
        click.echo(f"{diagnostic.severity.value}: {printable(diagnostic.message)}", err=True)
        click.echo(f"  help: {printable(diagnostic.hint or '')}", err=True)


_show_borrowed_once = cache(show_borrowed)


def compiled_ruleset(
    source: Source, backend: str | None, name: str, tell: Tell = _show_borrowed_once, *, on_demand: bool = False
) -> Named:
    """Return the ruleset of a configuration; ``backend`` None: the one that host.fw asks for.

    ``tell`` is called with facts that the ruleset takes from this machine. ``on_demand`` as for :func:`load_ruleset`.
    """
    compiled = compile_root(source, backend)
    tell(tuple(one for one in compiled.checked.diagnostics if one.code in BORROWED_CODES))
    named = _named(name, read_back(compiled, on_demand=on_demand), source, on_demand=on_demand)
    return named if backend is None else replace(named, arguments=(*named.arguments, "--backend", backend))


def _named(name: str, model: RulesetModel, source: Source, *, on_demand: bool) -> Named:
    """Name a ruleset. Its host shows bridged packets to IP hooks (br_netfilter) if iptables needs it."""
    needs_call = not model.tables or any(table.key.tool != "nft" for table in model.tables)
    host = replace(_topology(source.root, source.node, source.files, on_demand=on_demand), call_iptables=needs_call)
    node = () if source.node is None else ("--node", source.node)
    where = str(source.root) if source.node is None else f"{source.root}, node {source.node}"
    return Named(name, model, host, ("--root", str(source.root), *node), where)


@cache
def _topology(root: Path, node: str | None, files: Files, *, on_demand: bool) -> Topology:
    """Return a node's topology, which both sides of a comparison often share."""
    return topology(Source(root, node, lambda: None, observed_files=files), on_demand=on_demand)


def configuration_rulesets(
    source: Source, backend: str | None, tell: Tell = _show_borrowed_once, *, on_demand: bool = False
) -> list[Named]:
    """Return the rulesets of a configuration through a backend, through ``both``, or the one of host.fw (None)."""
    names = BACKENDS if backend == "both" else (backend or default_backend(read_node(source)),)
    return [compiled_ruleset(source, name, name, tell, on_demand=on_demand) for name in names]
