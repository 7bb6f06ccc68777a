"""``pvefw compare``: prove two rulesets equal, or show packets that they treat differently."""

from __future__ import annotations

import gc
import json
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pvefw_nft.app.inputs import MAX_TOML, read_input
from pvefw_nft.cli.options import as_reference_option, make_source, source_options
from pvefw_nft.cli.rulesets import Named, assume_option, configuration_rulesets, load_ruleset
from pvefw_nft.errors import EXIT_UNDECIDED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pvefw_nft.pipeline import Source
    from pvefw_nft.verify.prove.compare import Options
    from pvefw_nft.verify.prove.known import Known
    from pvefw_nft.verify.prove.report import Report


@click.command("compare")
@click.argument("before", metavar="[A]", required=False)
@click.argument("after", metavar="[B]", required=False)
@click.option("--strict", is_flag=True, help="Compare what is logged, marked and queued, too.")
@click.option("--known", type=click.Path(path_type=Path), metavar="FILE", help="Differences to expect, with reasons.")
@click.option("--bridge-call/--no-bridge-call", default=None, help="bridge-nf-call-iptables on both sides.")
@click.option("--max-time", type=click.IntRange(min=1), metavar="SECONDS", help="Stop comparing then. Default: 600.")
@click.option(
    "--max-memory", type=click.IntRange(min=1), metavar="MIB", help="Give up a pair of chains then. Default: 512."
)
@click.option("--format", "form", type=click.Choice(("text", "json")), default="text", help="Default: text.")
@click.option("-v", "--verbose", is_flag=True, help="List all known differences.")
@as_reference_option
@assume_option
@source_options
@click.pass_context
def compare_command(
    ctx: click.Context,
    before: str | None,
    after: str | None,
    strict: bool,
    known: Path | None,
    bridge_call: bool | None,
    max_time: int | None,
    max_memory: int | None,
    form: str,
    verbose: bool,
    as_reference: bool,
    assume: str | None,
    root: Path,
    node: str | None,
    local_network: str | None,
) -> None:
    """Prove that two rulesets treat every packet alike, or show packets that they treat differently.

    A and B are a folder with a configuration (by the backend of its host.fw), iptables:DIR, nft:DIR,
    save:FILE[,FILE…], nft-json:FILE, live, live:iptables or live:nft. Without them, the configuration below --root is
    compared through both backends; with A alone, A with that configuration.

    Exit code 0: equal; 1: they differ; 5: not decided (no difference was found, but something was not compared).
    """
    gc.disable()  # reading rulesets makes no garbage, and looking for it takes a third of the time

    def source_of(folder: Path) -> Source:
        return make_source(folder, node, local_network, as_reference=as_reference)

    def load(spec: str) -> Named:
        return load_ruleset(spec, source_of, assume, default_root=root)

    if before is None:
        sides = configuration_rulesets(source_of(root), "both")
    elif after is None:
        sides = [load(before), *configuration_rulesets(source_of(root), None)]
    else:
        sides = [load(before), load(after)]
    if bridge_call is not None:
        sides = [replace(side, topology=replace(side.topology, call_iptables=bridge_call)) for side in sides]
    from pvefw_nft.verify.prove.compare import Options

    options = Options(strict=strict, known=_known(known))
    options = replace(options, max_seconds=max_time or options.max_seconds, max_memory=max_memory or options.max_memory)
    report = _prove(sides[0], sides[1], options)
    _print(report, form, verbose=verbose)
    ctx.exit(_exit_code(report))


def _exit_code(report: Report) -> int:
    from pvefw_nft.verify.prove.report import Answer

    match report.answer:
        case Answer.EQUAL:
            return 0
        case Answer.DIFFERENT:
            return 1
        case Answer.UNDECIDED:
            return EXIT_UNDECIDED


def _known(path: Path | None) -> tuple[Known, ...]:
    if path is None:
        return ()
    from pvefw_nft.verify.prove.known import read_known

    return read_known(read_input(path, MAX_TOML), str(path))


def _prove(before: Named, after: Named, options: Options) -> Report:
    from pvefw_nft.verify.prove.compare import compare
    from pvefw_nft.verify.prove.flows import Side

    sides = [Side(named.name, named.model, named.topology) for named in (before, after)]
    with _progress() as show:
        return compare(sides[0], sides[1], options, show)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """Show how far a proof is, on a terminal; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield None
        return
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // max(total, 1)
        if percent != shown:
            shown = percent
            click.echo(f"\rproving: {done} of {total} ({percent} %)", nl=False, err=True)

    try:
        yield show
    finally:
        click.echo("\r\x1b[K", nl=False, err=True)


def _print(report: Report, form: str, *, verbose: bool) -> None:
    from pvefw_nft.verify.prove.render import report_data, report_text

    if form == "json":
        click.echo(json.dumps(report_data(report), indent=1))
    else:
        click.echo(report_text(report, verbose=verbose), nl=False)
