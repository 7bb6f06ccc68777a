"""``pvefw compare``: prove two rulesets equal, or show packets that they treat differently."""

from __future__ import annotations

import gc
import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from pvefw_nft.cli.rulesets import Named, assume_option, configuration_rulesets, load_ruleset
from pvefw_nft.errors import UsageError
from pvefw_nft.verify.model.ours import only_ours

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pvefw_nft.pipeline import Source
    from pvefw_nft.verify.prove.compare import Options
    from pvefw_nft.verify.prove.expected_differences import Known
    from pvefw_nft.verify.prove.report import Report


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
    sides = _load_sides(before, after, root, source_of, assume)
    if bridge_call is not None:
        sides = [replace(side, topology=replace(side.topology, call_iptables=bridge_call)) for side in sides]
    if only is not None:
        sides = [replace(side, model=only_ours(side.model)) for side in sides]
    options = _options(ctx.params, strict=strict, known=_known(known), jobs=jobs or len(os.sched_getaffinity(0)))
    with progress("proving") as show:
        report, exit_code, replay = compare_sides(sides, options, ctx.params, show)
    _print(report, form, replay, verbose=verbose)
    ctx.exit(exit_code)


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


def _load_sides(
    before: str | None, after: str | None, root: Path, source_of: Callable[[Path], Source], assume: str | None
) -> list[Named]:
    """Load the two rulesets that the arguments A and B name. Raises UsageError, RulesetError, ConfigurationError."""

    def load(spec: str) -> Named:
        return load_ruleset(spec, source_of, assume, default_root=root)

    if before is None:
        return configuration_rulesets(source_of(root), "both")
    if after is None:
        return [load(before), *configuration_rulesets(source_of(root), None)]
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
