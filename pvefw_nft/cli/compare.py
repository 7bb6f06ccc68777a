"""``pvefw compare``: prove two rulesets equal, or show packets that they treat differently."""

from __future__ import annotations

import gc
import json
import os
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import click

from pvefw_nft.app.inputs import MAX_TOML, read_input
from pvefw_nft.cli import console
from pvefw_nft.cli.command import command
from pvefw_nft.cli.comparison import compare_sides
from pvefw_nft.cli.options import (
    all_nodes_options,
    as_reference_option,
    is_for_all_nodes,
    make_offline_source,
    source_options,
)
from pvefw_nft.cli.progress import progress
from pvefw_nft.cli.rulesets import Named, assume_option, configuration_rulesets, files_of, load_ruleset
from pvefw_nft.errors import HostError, UsageError
from pvefw_nft.verify.model.ours import only_ours
from pvefw_nft.verify.readers.shared import RulesetError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pvefw_nft.pipeline import Source
    from pvefw_nft.verify.prove.compare import Options
    from pvefw_nft.verify.prove.expected_differences import Known
    from pvefw_nft.verify.prove.report import Report
    from pvefw_nft.verify.readers.files import Text


_JOBS_HELP = "Number of processes that compare guests (with --all-nodes: nodes). Default: one for each core."


@command("compare")
@click.argument("before", metavar="[A]", required=False)
@click.argument("after", metavar="[B]", required=False)
@click.option("--strict", is_flag=True, help="Also compare log lines, marks and queues.")
@click.option(
    "--known",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A file of expected differences, with reasons (format: docs/compare.md).",
)
@click.option(
    "--only",
    type=click.Choice(("ours",)),
    help="Leave out rules of other programs, such as Docker and fail2ban.",
)
@click.option("--bridge-call/--no-bridge-call", default=None, help="The setting bridge-nf-call-iptables of both sides.")
@click.option("--max-time", type=click.IntRange(min=1), metavar="SECONDS", help="Stop after this time. Default: 600.")
@click.option(
    "--max-memory",
    type=click.IntRange(min=1),
    metavar="MIB",
    help="Do not compare two rule lists that need more memory. Default: 512.",
)
@click.option("--no-cache", is_flag=True, help="Prove everything, also guests that an earlier compare proved.")
@click.option("--format", "form", type=click.Choice(("text", "json")), default="text", help="Default: text.")
@click.option("-v", "--verbose", is_flag=True, help="List every kind of packets that differs.")
@as_reference_option
@assume_option
@partial(all_nodes_options, jobs_help=_JOBS_HELP)
@source_options
@click.pass_context
def compare_command(
    ctx: click.Context,
    /,
    before: str | None,
    after: str | None,
    strict: bool,
    known: Path | None,
    only: str | None,
    bridge_call: bool | None,
    form: str,
    verbose: bool,
    as_reference: bool,
    assume: str | None,
    root: Path,
    node: str | None,
    local_network: str | None,
    jobs: int | None,
    **_: Any,  # noqa: ANN401 - all_nodes_options and limits, read from ctx.params
) -> None:
    """Prove that two rulesets treat packets alike, or show packets that they treat differently.

    Without A and B, both backends' rulesets of the configuration below --root are compared; with A alone, A and that
    configuration.

    A and B are a folder with a configuration, iptables:DIR, nft:DIR, save:FILE[,FILE…] (the output of iptables-save and
    similar tools), nft-json:FILE (nft -j list ruleset), live, live:iptables or live:nft (the rules of this host).

    Exit code 0: equal; 1: they differ; 5: not decided. Then no difference was found, but something was not compared,
    for example because a limit of time or memory was reached.
    """
    if is_for_all_nodes(ctx.params, jobs_alone=True):
        ctx.exit(_compare_all_nodes(ctx.params))
    gc.disable()  # reading rulesets makes no garbage, and looking for it takes a third of the time
    source_of = partial(_source_of, node=node, local_network=local_network, as_reference=as_reference)
    files = cache(files_of)  # that may be pipes

    def load(*, digests: bool) -> list[Named]:
        reading = Loading(root, source_of, assume, files, digests=digests)
        sides = _load_sides(before, after, reading)
        if bridge_call is not None:
            sides = [replace(side, topology=replace(side.topology, call_iptables=bridge_call)) for side in sides]
        return sides if only is None else [replace(side, model=only_ours(side.model)) for side in sides]

    options = _options(ctx.params, strict=strict, known=_known(known), jobs=jobs or len(os.sched_getaffinity(0)))
    by_digest = not ctx.params["no_cache"] and only is None and assume is None
    report, exit_code, replay = _compared(load, options, ctx.params, by_digest=by_digest)
    _print(report, form, replay, verbose=verbose)
    ctx.exit(exit_code)


class Loading(NamedTuple):
    """How to load the rulesets that arguments name; see :func:`load_ruleset`."""

    root: Path
    source_of: Callable[[Path], Source]
    assume: str | None
    files: Callable[[str, str], list[Text]]
    digests: bool


class _Load(Protocol):
    """Loads both rulesets, by chains with ``digests`` or as a whole."""

    def __call__(self, *, digests: bool) -> list[Named]: ...


def _compared(
    load: _Load, options: Options, params: Mapping[str, Any], *, by_digest: bool
) -> tuple[Report, int, list[list[str]]]:
    """Compare two rulesets: read chain by chain with ``by_digest``, if they can be, else as a whole."""
    found = _compared_by_digest(load, options, params) if by_digest else None
    if found is not None:
        return found
    sides = load(digests=False)
    with progress("proving") as show:
        return compare_sides(sides, options, params, show)


def _compared_by_digest(
    load: _Load, options: Options, params: Mapping[str, Any]
) -> tuple[Report, int, list[list[str]]] | None:
    """Compare rulesets of which only those chains are read that no earlier comparison has read.

    Return what :func:`compare_sides` returns; None where a ruleset cannot be read so, or has no digests.
    """
    if not all(spec and spec.startswith(("save:", "nft-json:")) for spec in (params["before"], params["after"])):
        return None
    from pvefw_nft.app.chain_cache import kept_chains
    from pvefw_nft.verify.prove.chain_memo import ChainMemo, digest_of

    kept = kept_chains()
    if kept is None:
        return None
    try:
        sides = load(digests=True)
        chains = (chain for side in sides for table in side.model.tables for chain in table.chains.values())
        if not any(digest_of(chain) is not None for chain in chains):
            return None
        memo = ChainMemo(kept.load())
        with progress("proving") as show:
            found = compare_sides(sides, replace(options, memo=memo), params, show)
        if found[0].differences:
            name_sets(sides, load(digests=False))
    except (RulesetError, HostError):
        return None  # reading everything in order tells what is wrong
    kept.save(memo.known, memo.used)
    return found


def name_sets(sides: list[Named], whole: list[Named]) -> None:
    """Give the tables of rulesets the named sets that the same ones have where they were read as a whole."""
    for side, other in zip(sides, whole, strict=True):
        for table, of_whole in zip(side.model.tables, other.model.tables, strict=True):
            table.sets.clear()
            table.sets.update(of_whole.sets)


def _options(params: Mapping[str, Any], *, strict: bool, known: tuple[Known, ...], jobs: int) -> Options:
    """Return the options of the proof: with the limits of the command line, and proofs of earlier comparisons."""
    from pvefw_nft.app.proof_cache import kept_proofs
    from pvefw_nft.verify.prove.compare import Options

    options = Options(strict=strict, known=known, jobs=jobs)
    options = replace(
        options,
        max_seconds=params["max_time"] or options.max_seconds,
        max_memory=params["max_memory"] or options.max_memory,
    )
    return options if params["no_cache"] else replace(options, proofs=kept_proofs())


def _source_of(folder: Path, *, node: str | None, local_network: str | None, as_reference: bool) -> Source:
    return make_offline_source(folder, node, local_network, as_reference=as_reference)


def _load_sides(before: str | None, after: str | None, loading: Loading) -> list[Named]:
    """Load the two rulesets that the arguments A and B name. Raises UsageError, RulesetError, ConfigurationError."""

    def load(spec: str) -> Named:
        return load_ruleset(
            spec, loading.source_of, loading.assume, default_root=loading.root, digests=loading.digests,
            files=loading.files,
        )  # fmt: skip

    if before is None:
        return configuration_rulesets(loading.source_of(loading.root), "both")
    if after is None:
        return [load(before), *configuration_rulesets(loading.source_of(loading.root), None)]
    return [load(before), load(after)]


def _compare_all_nodes(params: dict[str, Any]) -> int:
    """Compare both backends' rulesets of each node. Return the exit code."""
    from pvefw_nft.cli import all_nodes  # deferred: most comparisons are of one node

    if params["before"] is not None:
        raise UsageError("--all-nodes compares both backends: leave A and B out", "compare other rulesets with --node")
    names = ("strict", "only", "bridge_call", "max_time", "max_memory", "no_cache", "verbose", "as_reference", "assume")
    path = params["known"]
    known = None if path is None else (read_input(path, MAX_TOML), str(path))
    options = {**{name: params[name] for name in names}, "known": known, "local_network": params["local_network"]}
    return all_nodes.run(all_nodes.request("compare", params, options, form=params["form"]))


def _known(path: Path | None) -> tuple[Known, ...]:
    if path is None:
        return ()
    from pvefw_nft.verify.prove.expected_differences import read_known

    return read_known(read_input(path, MAX_TOML), str(path))


def _print(report: Report, form: str, rulesets: list[list[str]], *, verbose: bool) -> None:
    from pvefw_nft.verify.prove.render import report_data, report_text
    from pvefw_nft.verify.prove.report import Answer

    if form == "json":
        click.echo(json.dumps(report_data(report, rulesets), indent=1))
    else:
        first, *more = report_text(report, verbose=verbose, rulesets=rulesets).splitlines()
        colour = {Answer.EQUAL: "green", Answer.DIFFERENT: "red", Answer.UNDECIDED: "yellow"}[report.answer]
        click.echo(click.style(console.wrapped(first, sys.stdout), fg=colour, bold=True))
        for line in more:
            console.say(line)
