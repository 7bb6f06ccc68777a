"""``--all-nodes`` and ``--all-clusters``: a command for every node of a cluster, or of many clusters."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import click

from pvefw_nft.cli import node_work
from pvefw_nft.cli.formats import FORMATS, diagnostic_data, sarif_log, sarif_run
from pvefw_nft.cli.render import printable, show
from pvefw_nft.errors import EXIT_UNDECIDED, ConfigurationError, UsageError
from pvefw_nft.fleet.jobs import Job, failed
from pvefw_nft.pipeline.preload import load_stages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path
    from typing import BinaryIO

    from pvefw_nft.app.cluster import Cluster
    from pvefw_nft.fleet.jobs import Executor, Outcome

_BY_SEVERITY = (0, EXIT_UNDECIDED, 1, 4, 2, 3)
"""Exit codes, the worst last: a node that could not be looked at is worse than one with problems."""

_CLUSTER = "(cluster)"
"""How the share of the cluster as a whole is called in the summary."""


@dataclass(frozen=True, slots=True)
class Request:
    """The request of the command line: the command, its options as a job has them, and the nodes."""

    command: str
    options: Mapping[str, Any]
    root: Path
    all_clusters: bool
    node: str | None
    local_network: str | None
    jobs: int | None
    scheduler: str | None
    form: str
    with_cluster: bool = False


Amend: TypeAlias = "Callable[[Iterable[dict[str, Any]]], Callable[[dict[str, Any]], None]]"


class Entry(NamedTuple):
    """One node in the answer, kept in memory; its result lies in a file."""

    cluster: str
    node: str
    network: str | None
    exit: int
    words: str
    seconds: float
    offset: int
    size: int

    @property
    def name(self) -> str:
        """Its name in the summary."""
        return f"{self.cluster}/{self.node or _CLUSTER}" if self.cluster else self.node or _CLUSTER


def request(command: str, params: Mapping[str, Any], options: Mapping[str, Any], *, form: str) -> Request:
    """Return the request that a command line makes; ``options`` apply to each job."""
    return Request(
        command,
        options,
        params["root"],
        params["all_clusters"],
        params["node"],
        params["local_network"],
        params["jobs"],
        params["scheduler"],
        form,
        with_cluster=command == "check",
    )


def run(
    wanted: Request,
    keep: Callable[[str, dict[str, Any]], None] = lambda _name, _result: None,
    amend: Amend | None = None,
) -> int:
    """Run a command for all nodes, print the answer, and return the worst exit code.

    ``keep`` gets the name and the result of each finished node, and may remove parts of the result. ``amend`` gets
    the results of all nodes of a cluster, and returns a function that amends one of them.
    """
    with tempfile.TemporaryFile(prefix="pvefw-") as spool:
        entries = list(_results(wanted, spool, keep))
        entries.sort(key=lambda entry: (entry.cluster, not entry.node, entry.node))
        stored = _Stored(spool, entries)
        if amend is not None:
            stored.amend(amend)
        match wanted.form:
            case "json":
                _print_json(wanted.command, stored)
            case "sarif":
                _print_sarif(stored)
            case "text":
                _print_text(stored)
            case other:
                _print_together(stored, other)
        return worst(entry.exit for entry in stored.entries)


def worst(codes: Iterable[int]) -> int:
    """Return the worst of exit codes."""
    return max(codes, key=lambda code: _BY_SEVERITY.index(code) if code in _BY_SEVERITY else len(_BY_SEVERITY))


# --- the work -----------------------------------------------------------------------------------------------------


class _Stored:
    """The results of all nodes, in order, in a file: of thousands of nodes they would fill the memory."""

    def __init__(self, spool: BinaryIO, entries: list[Entry]) -> None:
        self._spool = spool
        self.entries = entries

    def amend(self, amend: Amend) -> None:
        """Amend each result, given all results of its cluster."""
        amended = []
        for _, group in groupby(self.entries, key=lambda entry: entry.cluster):
            entries = list(group)
            change = amend(map(self.result, entries))
            for entry in entries:
                result = self.result(entry)
                change(result)
                amended.append(_store(self._spool, entry.cluster, entry.node, entry.network, result))
        self.entries = amended

    def result(self, entry: Entry) -> dict[str, Any]:
        self._spool.seek(entry.offset)
        read: dict[str, Any] = json.loads(self._spool.read(entry.size))
        return read


def _results(wanted: Request, spool: BinaryIO, keep: Callable[[str, dict[str, Any]], None]) -> Iterator[Entry]:
    """Yield an entry for each node as it is done, and write its result to ``spool``."""
    unreadable: list[tuple[str, ConfigurationError | UsageError]] = []
    networks: dict[str, str | None] = {}

    def jobs() -> Iterator[Job]:
        for cluster in _clusters(wanted, lambda name, error: unreadable.append((name, error))):
            for job in _jobs(wanted, cluster):
                networks[job.name] = job.options["local_network"]
                yield job

    load_stages(checks=True, proof=wanted.command in ("check", "compare"))  # forked processes then have them
    with _progress() as tell, closing(_executor(wanted).run(jobs(), node_work.work)) as outcomes:
        for number, outcome in enumerate(outcomes, 1):
            result = _result_of(outcome)
            cluster, _, node = outcome.job.name.rpartition("/")
            keep(outcome.job.name, result)
            yield _store(spool, cluster, node, networks.pop(outcome.job.name), result)
            tell(number, outcome.job.name)
    for name, error in unreadable:
        yield _store(spool, name, "", None, _filled(failed(error.message, error.hint, error.exit_code)))


def _clusters(wanted: Request, report: Callable[[str, ConfigurationError | UsageError], None]) -> Iterator[Cluster]:
    """Yield each cluster; ``report`` gets the name of one that cannot be read, and why. A lone one is raised."""
    from pvefw_nft.app.cluster import find_clusters, read_cluster
    from pvefw_nft.host.localnet import detect

    if not wanted.all_clusters:
        yield read_cluster(wanted.root, local_network=wanted.local_network, detect=detect)
        return
    for folder in find_clusters(wanted.root):
        try:
            yield read_cluster(folder, folder.name, local_network=wanted.local_network)
        except (ConfigurationError, UsageError) as error:
            report(folder.name, error)


def _jobs(wanted: Request, cluster: Cluster) -> Iterator[Job]:
    prefix = f"{cluster.name}/" if cluster.name else ""
    for node in cluster.nodes:
        options = {**wanted.options, "local_network": node.network.cidr, "network_origin": node.network.origin}
        yield Job(f"{prefix}{node.name}", wanted.command, cluster.root, node.name, node.files, options)
    if wanted.with_cluster:
        options = {**wanted.options, "local_network": None, "network_origin": ""}
        yield Job(prefix, wanted.command, cluster.root, "", cluster.files, options)


def _executor(wanted: Request) -> Executor:
    if wanted.scheduler is not None:
        from pvefw_nft.fleet.scheduler import Scheduler  # deferred: it needs the extra fleet

        return Scheduler(wanted.scheduler)
    from pvefw_nft.fleet.local import Processes

    return Processes(wanted.jobs or len(os.sched_getaffinity(0)))


def _result_of(outcome: Outcome) -> dict[str, Any]:
    result = outcome.result
    if result is None:
        result = failed(outcome.failure, "the other nodes are not concerned; try this one alone with --node", 3)
    result = _filled(result)
    result["seconds"] = round(outcome.seconds, 3)
    if outcome.attempts > 1 and outcome.result is not None:
        result["notes"].append(f"its worker died; attempt {outcome.attempts} succeeded")
    return result


def _filled(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result with every part."""
    error = result.get("error")
    empty: dict[str, Any] = {"words": "", "diagnostics": [], "notes": [], "text": "", "data": None, "seconds": 0.0}
    return {**empty, "exit": error["exit"] if error else 0, "error": None, **result}


def _store(spool: BinaryIO, cluster: str, node: str, network: str | None, result: dict[str, Any]) -> Entry:
    data = json.dumps(result).encode()
    offset = spool.seek(0, os.SEEK_END)
    spool.write(data)
    words = f"error: {result['error']['message']}" if result["error"] else result["words"]
    return Entry(cluster, node, network, result["exit"], words, result["seconds"], offset, len(data))


@contextmanager
def _progress() -> Iterator[Callable[[int, str], None]]:
    """Show how many nodes are done, on a terminal; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield lambda _number, _name: None
        return
    try:
        yield lambda number, name: click.echo(f"\r\x1b[K{number} done, last {printable(name)[:40]}", nl=False, err=True)
    finally:
        click.echo("\r\x1b[K", nl=False, err=True)


# --- the answer ---------------------------------------------------------------------------------------------------


def _print_text(stored: _Stored) -> None:
    """Print a line for each node, then each finding once, with its nodes."""
    width = max(len(entry.name) for entry in stored.entries)
    for entry in stored.entries:
        colour = {0: "green", EXIT_UNDECIDED: "yellow"}.get(entry.exit, "red")
        words = printable(entry.words.partition("\n")[0])
        click.echo(f"{printable(entry.name):{width}}  {click.style(words, fg=colour)}")
    codes = [entry.exit for entry in stored.entries if entry.node]
    clean = codes.count(0)
    click.echo(f"{len(codes)} node{'s' if len(codes) != 1 else ''}: {clean} without errors, {len(codes) - clean} with")
    for _, entries in groupby(stored.entries, key=lambda entry: entry.cluster):
        _print_findings(stored, list(entries))


def _print_findings(stored: _Stored, entries: list[Entry]) -> None:
    """Print the findings about the nodes of one cluster."""
    found: dict[str, tuple[dict[str, Any], list[str]]] = {}
    notes: dict[str, list[str]] = {}
    for entry in entries:
        result = stored.result(entry)
        for diagnostic in result["diagnostics"]:
            found.setdefault(json.dumps(diagnostic), (diagnostic, []))[1].append(entry.name)
        for note in result["notes"]:
            notes.setdefault(note, []).append(entry.name)
        if result["error"]:
            click.echo(f"\n{printable(entry.name)}: {click.style('error', fg='red', bold=True)}: ", nl=False)
            click.echo(printable_lines(result["error"]["message"]))
            if result["error"]["hint"]:
                click.echo(f"  help: {printable(result['error']['hint'])}")
        if result["text"]:
            click.echo(f"\n{printable(entry.name)}:\n{printable_lines(result['text'])}", nl=False)
    for names, group in groupby(found.values(), key=lambda one: one[1]):
        click.echo(f"\n{_names(names, len(entries))}:")
        show(node_work.read_diagnostics(one[0] for one in group), err=False)
    for note, names in notes.items():
        click.echo(f"\n{_names(names, len(entries))}: note: {printable(note)}")


def _names(names: list[str], count: int) -> str:
    if len(names) > 8 or (len(names) == count > 2):
        return f"{len(names)} of {count}: {', '.join(map(printable, names[:3]))} …"
    return ", ".join(map(printable, names))


def printable_lines(text: str) -> str:
    """Return text of several lines that is safe to print."""
    return "\n".join(map(printable, text.split("\n")))


def _print_json(command: str, stored: _Stored) -> None:
    """Print an object for each node; ``diagnostics`` and ``data`` are the output of the command for one node."""
    exit_code = worst(one.exit for one in stored.entries)
    click.echo(f'{{\n"command": {json.dumps(command)},\n"exit": {exit_code},\n"nodes": [')
    for number, entry in enumerate(stored.entries):
        result = stored.result(entry)
        shown = {
            "cluster": entry.cluster or None,
            "node": entry.node or None,
            "exit": entry.exit,
            "summary": entry.words,
            "local_network": entry.network,
            "seconds": entry.seconds,
            "error": result["error"],
            "notes": result["notes"],
            "diagnostics": [diagnostic_data(one) for one in node_work.read_diagnostics(result["diagnostics"])],
        }
        if result["data"] is not None:
            shown["data"] = result["data"]
        click.echo(json.dumps(shown, indent=1) + ("," if number + 1 < len(stored.entries) else ""))
    click.echo("]}")


def _print_together(stored: _Stored, form: str) -> None:
    """Print each finding once, without nodes, in a form that knows none; failures go to standard error."""
    found: dict[str, Any] = {}
    for entry in stored.entries:
        result = stored.result(entry)
        found |= {json.dumps(one): one for one in result["diagnostics"]}
        if result["error"]:
            click.echo(f"{printable(entry.name)}: error: {printable_lines(result['error']['message'])}", err=True)
    click.echo(FORMATS[form](node_work.read_diagnostics(found.values())))


def _print_sarif(stored: _Stored) -> None:
    """Print a SARIF log with a run for each node (SARIF 2.1.0, 3.14): ``automationDetails`` names it."""
    start, end = sarif_log()
    click.echo(start)
    for number, entry in enumerate(stored.entries):
        result = stored.result(entry)
        shown = sarif_run(node_work.read_diagnostics(result["diagnostics"]))
        shown["automationDetails"] = {"id": f"pvefw/{entry.name}"}
        error = result["error"]
        invocation: dict[str, Any] = {"executionSuccessful": error is None, "exitCode": entry.exit}
        if error is not None:
            text = error["message"] if error["hint"] is None else f"{error['message']}; {error['hint']}"
            invocation["toolExecutionNotifications"] = [{"level": "error", "message": {"text": printable(text)}}]
        shown["invocations"] = [invocation]
        click.echo(json.dumps(shown, indent=1) + ("," if number + 1 < len(stored.entries) else ""))
    click.echo(end)
