"""Compare two loaded rulesets, and tell the assumptions of the comparison and how to repeat its packets."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pvefw_nft.errors import EXIT_UNDECIDED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pvefw_nft.cli.rulesets import Named
    from pvefw_nft.verify.prove.compare import Options
    from pvefw_nft.verify.prove.report import Report


def compare_sides(
    sides: list[Named], options: Options, params: Mapping[str, Any], progress: Callable[[int, int], None] | None = None
) -> tuple[Report, int, list[list[str]]]:
    """Compare two rulesets. Return the report, the exit code, and for each side the arguments of ``simulate``.

    ``params`` are the options of this command. The arguments let a user repeat a counterexample.
    """
    from pvefw_nft.verify.prove.compare import compare
    from pvefw_nft.verify.prove.network import Side

    before, after = (Side(named.name, named.model, named.topology) for named in sides)
    report = compare(before, after, options, progress)
    report = replace(report, rests_on=tuple(_rests_on(sides, only=params["only"])))
    return report, _exit_code(report), _replay_arguments(sides, _common_arguments(params))


def _common_arguments(params: Mapping[str, Any]) -> list[str]:
    """Return the options that ``simulate`` needs, too, to load the same rulesets."""
    found = ["--as-reference"] if params["as_reference"] else []
    if params["local_network"] is not None:
        found += ["--local-network", params["local_network"]]
    if params["bridge_call"] is not None:
        found.append("--bridge-call" if params["bridge_call"] else "--no-bridge-call")
    return found + (["--assume-unknown", params["assume"]] if params["assume"] is not None else [])


def _replay_arguments(sides: list[Named], common: list[str]) -> list[list[str]]:
    """Return the arguments of ``simulate`` for each side; one list with ``both`` for one configuration's backends."""
    found = [list(side.arguments) for side in sides]
    backends = [words.pop() if words[-2:-1] == ["--backend"] else "" for words in found]
    if all(backends) and backends[0] != backends[1] and found[0] == found[1]:
        return [[*found[0], "both", *common]]
    return [[*words, *([backend] if backend else []), *common] for words, backend in zip(found, backends, strict=True)]


def _rests_on(sides: list[Named], *, only: str | None) -> Iterator[str]:
    """Yield the assumptions of a comparison, a line each. docs/compare.md explains the word before the colon."""
    hosts = dict.fromkeys(side.host for side in sides)
    yield f"host: the guests, bridges and addresses of {' and '.join(hosts)}"
    for side in sides:
        if side.listed:
            yield f"host: {side.name} runs on a host with these guests and bridges"
    calls = [side.topology.call_iptables for side in sides]
    if calls[0] == calls[1]:
        yield f"br_netfilter: bridged packets {'meet' if calls[0] else 'do not meet'} the rules of iptables"
    else:
        met = sides[calls.index(True)]
        yield f"br_netfilter: bridged packets meet the rules of iptables with {met.name} only"
        yield f"NAT: if the host translates addresses of filtered guests, it has the zone rule beside {met.name}"
    yield "rates: the same limit on both sides is reached by the same packets"
    yield "states: both sides know a connection whose way back leads through the same zone"
    if any(side.listed for side in sides):
        yield "sets: each set holds the entries of its listing"
    if only is not None:
        yield "only ours: foreign rules were left out on both sides"


def _exit_code(report: Report) -> int:
    from pvefw_nft.verify.prove.report import Answer

    match report.answer:
        case Answer.EQUAL:
            return 0
        case Answer.DIFFERENT:
            return 1
        case Answer.UNDECIDED:
            return EXIT_UNDECIDED
