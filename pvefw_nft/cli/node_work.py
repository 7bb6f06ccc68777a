"""One node's share of ``check``, ``compile``, ``compare`` and ``simulate``, as data.

These functions run in other processes, and on other machines. They print nothing. A result has ``exit``, the exit code
of the command for this node alone; ``words``, a few for the summary's line; ``diagnostics`` and ``notes``; ``data``,
which the command prints with ``--format json``; ``text``, which it prints otherwise.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvefw_nft.errors import Diagnostic, Severity, Span, has_errors
from pvefw_nft.pipeline import Source
from pvefw_nft.verify.prove.budget import without_gc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pvefw_nft.cli.rulesets import Named
    from pvefw_nft.fleet.jobs import Job
    from pvefw_nft.pipeline import Checked


def work(job: Job) -> dict[str, Any]:
    """Do a job. Passes on the errors of its command."""
    with without_gc():  # the IR has no cycles; a proof makes none either
        try:
            return _WORK[job.command](job)
        finally:
            if job.command != "compile":  # it reads no ruleset, and loads no prover
                from pvefw_nft.verify.prove.interned import forget_unused

                forget_unused()  # a worker of many machines does thousands of jobs


def source_of(job: Job) -> Source:
    """Return the source of a job. It asks this machine for nothing but names of services."""
    network = job.options["local_network"]
    return Source(
        job.root,
        job.node,
        lambda: network,
        observed_files=job.files,
        as_reference=job.options.get("as_reference", False),
        borrows_names=job.root.resolve() != Path("/"),
    )


# --- diagnostics --------------------------------------------------------------------------------------------------


def diagnostics_data(diagnostics: Iterable[Diagnostic]) -> list[dict[str, Any]]:
    """Return diagnostics as data; :func:`read_diagnostics` reads them."""
    return [{**asdict(one), "severity": one.severity.value} for one in diagnostics]


def read_diagnostics(data: Iterable[dict[str, Any]]) -> list[Diagnostic]:
    """Return the diagnostics that :func:`diagnostics_data` wrote."""
    return [
        Diagnostic(Severity(one["severity"]), one["code"], Span(**one["span"]), one["message"], one["hint"])
        for one in data
    ]


def count_words(diagnostics: Sequence[Diagnostic]) -> str:
    """Return how many diagnostics there are of each severity."""
    counts = [(severity, sum(one.severity is severity for one in diagnostics)) for severity in Severity]
    return ", ".join(f"{count} {one.value}{'s' if count > 1 else ''}" for one, count in counts if count)


def _network_notes(job: Job, checked: Checked) -> list[str]:
    if checked.node.local_network is not None or not checked.ruleset.enabled:
        return []
    reason = job.options["network_origin"]
    what = "the management set holds only the addresses of cluster.fw"
    hint = "add the alias local_network there, or give --local-network"
    return [f"the local network is not known, since {reason}: {what}; {hint}"]


# --- the commands -------------------------------------------------------------------------------------------------


def check_node(job: Job) -> dict[str, Any]:
    """Check a node; without a node, the files of the cluster as a whole."""
    from pvefw_nft.pipeline.review import review_root, survey_cluster

    source, analysis = source_of(job), job.options["analysis"]
    notes: list[str] = []
    if not job.node:
        diagnostics = survey_cluster(source, analysis=analysis)
    else:
        checked, diagnostics, unfinished = review_root(source, analysis=analysis, only_own=True)
        notes += _network_notes(job, checked)
        notes += [f"some rules were not analysed: {reason}" for reason in unfinished]
    return {
        "exit": int(has_errors(diagnostics)),
        "words": count_words(diagnostics) or "ok",
        "diagnostics": diagnostics_data(diagnostics),
        "notes": notes,
    }


def compile_node(job: Job) -> dict[str, Any]:
    """Compile a node; ``text`` is the ruleset."""
    from pvefw_nft.pipeline import compile_root
    from pvefw_nft.pipeline.closing import closing_failures

    source, form = source_of(job), job.options["form"]
    compiled = closing_failures(source, lambda closed: compile_root(source, job.options["backend"], closed=closed))
    form = form or compiled.backend.default_format
    text = "".join(compiled.artefact.text() if form == "text" else compiled.artefact.json())
    diagnostics = compiled.checked.diagnostics
    data = {
        "backend": compiled.backend.name,
        "format": form,
        "bytes": len(text.encode()),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    return {
        "exit": int(compiled.checked.has_errors),
        "words": ", ".join(filter(None, (compiled.backend.name, count_words(diagnostics)))),
        "diagnostics": diagnostics_data(diagnostics),
        "notes": _network_notes(job, compiled.checked),
        "data": data,
        "text": text if job.options["keep"] else "",
    }


def compare_node(job: Job) -> dict[str, Any]:
    """Compare a node's rulesets of both backends."""
    from pvefw_nft.app.proof_cache import kept_proofs
    from pvefw_nft.cli.comparison import compare_sides
    from pvefw_nft.verify.prove.compare import Options
    from pvefw_nft.verify.prove.expected_differences import read_known
    from pvefw_nft.verify.prove.render import report_data, report_text

    given = job.options
    known = () if given["known"] is None else read_known(*given["known"])
    options = Options(strict=given["strict"], known=known)
    options = replace(
        options,
        max_seconds=given["max_time"] or options.max_seconds,
        max_memory=given["max_memory"] or options.max_memory,
        proofs=options.proofs if given["no_cache"] else kept_proofs(),
    )
    sides, notes = _rulesets(job, "both")
    report, exit_code, replay = compare_sides(sides, options, given)
    words = {0: "alike", 1: "they differ"}.get(exit_code, "not decided")
    return {
        "exit": exit_code,
        "words": words,
        "notes": notes,
        "data": report_data(report, replay),
        "text": report_text(report, verbose=given["verbose"], rulesets=replay) if exit_code else "",
    }


def simulate_node(job: Job) -> dict[str, Any]:
    """Send the packets of a file of tests through a node's rulesets."""
    from pvefw_nft.cli.packet_tests import packet_results, packets_summary, read_tests, run_tests, tests_data

    given = job.options
    tests = read_tests(*given["tests"])
    rulesets, notes = _rulesets(job, given["backend"])
    results = run_tests(tests, rulesets)
    node = {"packets": packet_results(tests, results, verbose=given["verbose"])}
    return {
        **packets_summary(node["packets"], len(tests)),
        **node,
        "notes": notes,
        "data": tests_data(results, len(tests), given),
    }


def _rulesets(job: Job, backend: str | None) -> tuple[list[Named], list[str]]:
    """Return a node's rulesets, and the facts that they take from this machine."""
    from pvefw_nft.cli.rulesets import configuration_rulesets

    owed: dict[str, None] = {}
    sides = configuration_rulesets(
        source_of(job), backend, lambda found: owed.update(dict.fromkeys(one.message for one in found))
    )
    call = job.options["bridge_call"]
    if call is not None:
        sides = [replace(side, topology=replace(side.topology, call_iptables=call)) for side in sides]
    return sides, list(owed)


_WORK: dict[str, Callable[[Job], dict[str, Any]]] = {
    "check": check_node,
    "compile": compile_node,
    "compare": compare_node,
    "simulate": simulate_node,
}
