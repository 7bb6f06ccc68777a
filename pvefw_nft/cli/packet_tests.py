"""The packets of a tests file: read them, send them through rulesets, and report the results."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pvefw_nft.errors import EXIT_UNDECIDED, UsageError
from pvefw_nft.verify.simulate.connections import Connections
from pvefw_nft.verify.simulate.guesses import guess_text, simulate_guessing
from pvefw_nft.verify.simulate.packet import ElsewhereError, make_probe
from pvefw_nft.verify.simulate.report import is_doubtful, outcome_data, outcome_lines
from pvefw_nft.verify.simulate.spec import PacketSpec
from pvefw_nft.verify.simulate.walk import simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from pvefw_nft.cli.rulesets import Named
    from pvefw_nft.verify.simulate.walk import Outcome

PACKET_FIELDS = tuple(field.name for field in fields(PacketSpec))
_NUMBERS = ("vlan", "mark", "family", "uid")
_VERDICTS = ("ACCEPT", "DROP", "REJECT")
_KEYS = {
    "from": "source",
    "to": "destination",
    "proto": "protocol",
    "source": "source_address",
    "dest": "destination_address",
    "fields": "overrides",
}
"""Keys of a file of packets that differ from PacketSpec's names; the rest is the same, with ``-`` for ``_``."""


@dataclass(frozen=True, slots=True)
class PacketTest:
    """A packet of a tests file, with its expected verdict (None: any) and its name.

    ``steps`` are packets that are sent before it, in order; they decide its conntrack state.
    """

    spec: PacketSpec
    expect: str | None
    name: str
    steps: tuple[PacketSpec, ...] = ()


def read_tests(text: str, path: str) -> list[PacketTest]:
    """Return the packets of a file: tables ``[[packet]]`` with ``from``, ``to``, ``expect`` and the options' names.

    Raises UsageError for another text.
    """
    import tomllib  # deferred: most runs have one packet, and no file

    try:
        document = tomllib.loads(text)
    except ValueError as error:
        raise UsageError(f"{path}: cannot be read: {error}", "it is a TOML file with tables [[packet]]") from None
    tables = document.get("packet")
    if not isinstance(tables, list) or not tables:
        raise UsageError(f"{path}: holds no packets", "write tables [[packet]] with from, to and expect")
    return [_read_test(path, number, table) for number, table in enumerate(tables, 1)]


def _read_test(path: str, number: int, table: dict[str, Any]) -> PacketTest:
    spec = _read_packet(path, number, table, besides=("expect", "name", "steps"))
    steps = table.get("steps", [])
    if spec is None or "expect" not in table or not isinstance(steps, list):
        raise UsageError(f"{path}: packet {number}: needs from, to and expect")
    before = [_read_packet(path, number, step) for step in steps]
    if None in before:
        raise UsageError(f"{path}: packet {number}: each of its steps needs from and to")
    expect, name = expected_verdict(str(table["expect"])), str(table.get("name", f"packet {number}"))
    return PacketTest(spec, expect, name, tuple(step for step in before if step is not None))


def _read_packet(path: str, number: int, table: object, besides: tuple[str, ...] = ()) -> PacketSpec | None:
    """Return the packet that a table describes, None if it does not say from where to where it goes."""
    known = set(PACKET_FIELDS)
    if not isinstance(table, dict):
        raise UsageError(f"{path}: packet {number}: not a table")
    given: dict[str, Any] = {}
    for key, value in table.items():
        if key in besides:
            continue
        name = _KEYS.get(key, key.replace("-", "_"))
        if name not in known or (key in known and key in _KEYS.values() and key not in _KEYS):
            raise UsageError(f"{path}: packet {number}: unknown key '{key}'")
        given[name] = _checked(path, number, key, name, value)
    return PacketSpec(**given) if "source" in given and "destination" in given else None


def _checked(path: str, number: int, key: str, name: str, value: object) -> Any:  # noqa: ANN401 - TOML
    """Return a value of a tests file, of the type that the packet wants. Raises UsageError for another one."""
    if name == "overrides" and isinstance(value, dict):
        return tuple((on, str(text)) for on, text in value.items())
    wanted = int if name in _NUMBERS else str
    if isinstance(value, wanted | int) and not isinstance(value, bool) and name != "overrides":
        return value if name in _NUMBERS or name in ("sport", "dport") else str(value)
    kind = "a table" if name == "overrides" else "a number" if wanted is int else "text"
    raise UsageError(f"{path}: packet {number}: '{key}' must be {kind}, not {value!r}")


def expected_verdict(text: str | None) -> str | None:
    """Return an expected verdict as Outcome writes it: ``REJECT (tcp-reset)``."""
    if text is None:
        return None
    match = re.fullmatch(r"([A-Za-z]+)\s*(?:\(([a-z-]+)\))?", text.strip())
    if match is None or match.group(1).upper() not in _VERDICTS:
        raise UsageError(f"no verdict: {text}", f"one of {', '.join(_VERDICTS)}, or REJECT(tcp-reset) and the like")
    verdict = match.group(1).upper()
    return f"{verdict} ({match.group(2)})" if match.group(2) else verdict


class Result(NamedTuple):
    """The verdicts on a packet in each ruleset; ``passed``: as expected, and the same in all of them."""

    test: PacketTest
    passed: bool
    outcomes: list[tuple[str, Outcome]]

    @property
    def undecided(self) -> bool:
        """Whether some ruleset does not decide, for a match that is not modelled."""
        return any(outcome.verdict == "UNDECIDED" for _, outcome in self.outcomes)

    @property
    def doubtful(self) -> bool:
        """Whether the verdict depends on a made-up address."""
        return any(is_doubtful(guess) for _, outcome in self.outcomes for guess in outcome.guesses)


def _outcome(test: PacketTest, ruleset: Named) -> Outcome:
    """Send a packet through a ruleset, after those that come before it."""
    probe = make_probe(test.spec, ruleset.topology)
    if not test.steps:
        return simulate_guessing(ruleset.model, probe)
    connections = Connections()
    for step in test.steps:
        sent = simulate(ruleset.model, make_probe(step, ruleset.topology), connections=connections)
        connections = sent.connections or connections
    stated = test.spec.ctstate is not None
    return simulate(ruleset.model, probe, connections=None if stated else connections)


def run_tests(tests: Iterable[PacketTest], rulesets: list[Named]) -> list[Result]:
    """Send packets through rulesets, and return the results of those that pass this node. Raises UsageError."""
    return [result for test in tests if (result := run_test(test, rulesets, skip=True))]


def run_test(test: PacketTest, rulesets: list[Named], *, skip: bool) -> Result | None:
    """Send a packet through all rulesets. With ``skip``, None for a packet that does not pass this node."""
    try:
        outcomes = [(one.name, _outcome(test, one)) for one in rulesets]
    except ElsewhereError:
        if skip:
            return None
        raise
    except UsageError as error:
        if test.name:
            raise UsageError(f"{test.name}: {error.message}", error.hint) from None
        raise
    agree = len({outcome.text for _, outcome in outcomes}) == 1
    expected = test.expect is None or all(test.expect in (o.verdict, o.text) for _, o in outcomes)
    return Result(test, agree and expected, outcomes)


def result_lines(result: Result, *, verbose: bool) -> Iterator[str]:
    """Yield the lines about a packet: its way through each ruleset, and what is not as expected."""
    for name, outcome in result.outcomes:
        yield from outcome_lines(outcome, verbose=verbose, title=name if len(result.outcomes) > 1 else "")
    for line in _complaints(result):
        yield click.style(line, fg="red", bold=True)


def test_lines(results: list[Result], count: int, *, verbose: bool) -> Iterator[str]:
    """Yield lines about the packets that failed, those whose verdict is a guess, and how many there were."""
    for result in results:
        yield from _test_lines(result, verbose=verbose)
    failed = sum(not result.passed for result in results)
    guessed = sum(result.doubtful for result in results)
    yield _count_words(len(results) - failed, failed, guessed, count - len(results))


def _test_lines(result: Result, *, verbose: bool) -> Iterator[str]:
    if not result.passed or verbose:
        yield f"{'ok' if result.passed else 'FAILED'}: {result.test.name}"
        yield from result_lines(result, verbose=verbose)
    elif result.doubtful:
        texts = [guess_text(guess) for _, one in result.outcomes for guess in one.guesses if is_doubtful(guess)]
        for text in dict.fromkeys(texts):
            yield f"warning: {result.test.name}: {text}"


def _count_words(passed: int, failed: int, guessed: int, skipped: int) -> str:
    parts = [f"{passed} passed", f"{failed} failed"]
    if guessed:
        parts.append(f"{guessed} depend on made-up addresses")
    if skipped:
        parts.append(f"{skipped} skipped (they do not pass this node)")
    return ", ".join(parts)


def packet_results(tests: list[PacketTest], results: list[Result], *, verbose: bool) -> list[dict[str, Any]]:
    """Return as data the results of the packets that pass a node; ``number`` counts packets in the file."""
    numbers = {id(test): number for number, test in enumerate(tests)}
    return [
        {
            "number": numbers[id(result.test)],
            "passed": result.passed,
            "undecided": result.undecided,
            "doubtful": result.doubtful,
            "accepted": all(outcome.verdict == "ACCEPT" for _, outcome in result.outcomes),
            "lines": [click.unstyle(line) for line in _test_lines(result, verbose=verbose)],
        }
        for result in results
    ]


def packets_summary(packets: list[dict[str, Any]], count: int) -> dict[str, Any]:
    """Return the exit code, the words and the text for the packets that pass a node, of ``count`` in the file."""
    failed = [packet for packet in packets if not packet["passed"]]
    undecided = any(packet["undecided"] for packet in packets)
    guessed = sum(packet["doubtful"] for packet in packets)
    return {
        "exit": int(any(not packet["undecided"] for packet in failed)) or (EXIT_UNDECIDED if undecided else 0),
        "words": _count_words(len(packets) - len(failed), len(failed), guessed, count - len(packets)),
        "text": "".join(f"{line}\n" for packet in packets for line in packet["lines"]),
    }


def excuse_first_nodes(count: int, results: Iterable[dict[str, Any]]) -> Callable[[dict[str, Any]], None]:
    """Return the amendment of a node's result: another node may stop packets that this one accepts, as expected.

    ``results`` are the results of all nodes of a cluster, ``count`` is the number of packets in the file.
    """
    stopped = {
        packet["number"]
        for result in results
        for packet in result.get("packets", ())
        if packet["passed"] and not packet["accepted"]
    }

    def amend(result: dict[str, Any]) -> None:
        packets = result.get("packets", [])
        excused = [one for one in packets if one["accepted"] and not one["passed"] and one["number"] in stopped]
        for packet in excused:
            packet.update(passed=True, lines=[])
            result["data"]["packets"][packets.index(packet)].update(passed=True, stopped_elsewhere=True)
        if excused:
            result.update(packets_summary(packets, count))
            result["notes"].append(f"{len(excused)} accepted here and stopped by another node, as expected")
            result["data"]["failed"] -= len(excused)

    return amend


def _complaints(result: Result) -> Iterator[str]:
    test, outcomes = result.test, result.outcomes
    if len({outcome.text for _, outcome in outcomes}) > 1:
        yield "the rulesets disagree: " + ", ".join(f"{name} {outcome.text}" for name, outcome in outcomes)
    elif test.expect is not None and test.expect not in (outcomes[0][1].verdict, outcomes[0][1].text):
        yield f"expected {test.expect}"


def result_data(result: Result, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of a packet as data; ``verbose`` of the options adds each rule tried."""
    return {
        "name": result.test.name or None,
        "expect": result.test.expect,
        "passed": result.passed,
        "results": {name: outcome_data(outcome, verbose=options["verbose"]) for name, outcome in result.outcomes},
    }


def tests_data(results: list[Result], count: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results of a file of packets as data; ``verbose`` of the options adds each rule tried."""
    return {
        "packets": [result_data(result, options) for result in results],
        "failed": sum(not result.passed for result in results),
        "skipped": count - len(results),
    }
