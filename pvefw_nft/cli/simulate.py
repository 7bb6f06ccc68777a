"""``pvefw simulate``: the way of a packet, hop by hop, and the line that decides."""

from __future__ import annotations

import gc
import json
import re
import tomllib
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pvefw_nft.app.address_filters import hit_by_ipfilter_established
from pvefw_nft.app.inputs import MAX_TOML, read_input
from pvefw_nft.cli import completion, console
from pvefw_nft.cli.command import command
from pvefw_nft.cli.options import (
    all_nodes_options,
    as_reference_option,
    is_for_all_nodes,
    make_offline_source,
    source_options,
)
from pvefw_nft.cli.rulesets import SPEC_HELP, Named, assume_option, configuration_rulesets, load_ruleset
from pvefw_nft.errors import EXIT_UNDECIDED, UsageError
from pvefw_nft.verify.simulate.connections import Connections
from pvefw_nft.verify.simulate.guesses import guess_text, simulate_guessing
from pvefw_nft.verify.simulate.packet import ElsewhereError, PacketSpec, make_probe
from pvefw_nft.verify.simulate.report import answer_line, is_doubtful, outcome_data, outcome_lines
from pvefw_nft.verify.simulate.walk import simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from pvefw_nft.verify.simulate.walk import Outcome

_PACKET_FIELDS = tuple(field.name for field in fields(PacketSpec))
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
class _Test:
    """A packet of a tests file, with its expected verdict (None: any) and its name.

    ``steps`` are packets that are sent before it, in order; they decide its conntrack state.
    """

    spec: PacketSpec
    expect: str | None
    name: str
    steps: tuple[PacketSpec, ...] = ()


@command("simulate")
@click.option(
    "--from",
    "source_zone",
    metavar="ZONE|ADDRESS",
    shell_complete=completion.zones,
    help="host, outside, vm100, vm100i1, ct200, vmbr0/eth0 …",
)
@click.option(
    "--to", "destination", metavar="ZONE|ADDRESS[:PORT]", shell_complete=completion.zones, help="As for --from."
)
@click.option(
    "-p", "--proto", "protocol", metavar="PROTO", help="tcp, udp, icmp, arp, a number … Default: tcp with a port."
)
@click.option("--sport", metavar="PORT", help="The source port. Default: 40000.")
@click.option("--dport", metavar="PORT", help="The destination port, also behind --to.")
@click.option("--source", "source_address", metavar="ADDRESS", help="The source address. Default: the sender's own.")
@click.option(
    "--dest", "destination_address", metavar="ADDRESS", help="The destination address. Default: the receiver's own."
)
@click.option("--icmp-type", metavar="TYPE", help="A name, or type or type/code. Default: echo-request.")
@click.option("--tcp-flags", metavar="FLAGS", help="A list such as syn,ack. Default: syn.")
@click.option(
    "--ctstate", metavar="STATE", help="new, established, related, invalid, untracked. Default: as for a first packet."
)
@click.option("--mac", metavar="MAC", help="The sender's MAC address.")
@click.option("--dest-mac", "destination_mac", metavar="MAC", help="The frame's destination.")
@click.option("--vlan", type=int, metavar="ID", help="The frame carries this VLAN tag.")
@click.option(
    "--fragment",
    type=click.Choice(("whole", "first", "later")),
    help="Which part of a fragmented packet. Default: whole.",
)
@click.option("--mark", metavar="MARK", default="0", help="The packet mark.")
@click.option("--family", type=click.Choice(("4", "6")), help="The IP version, if no address or protocol tells it.")
@click.option("--ether-type", metavar="TYPE", help="A frame that is not IP, by its ether type's name or hex number.")
@click.option("--arp-sender", metavar="ADDRESS", help="An ARP request with this sender address.")
@click.option(
    "--field",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any field by its name in reports, such as 'daddr type=broadcast'. May be given many times.",
)
@click.option("--backend", type=click.Choice(("iptables", "nft", "both")), help="Default: the backend of host.fw.")
@click.option("--ruleset", metavar="RULESET", help=f"Instead of the configuration's own ruleset: {SPEC_HELP}.")
@click.option(
    "--bridge-call/--no-bridge-call",
    default=None,
    help="bridge-nf-call-iptables. Default: on if the ruleset is for iptables.",
)
@click.option(
    "--expect", metavar="VERDICT", help="Exit 1 unless this is the verdict: ACCEPT, DROP, REJECT, REJECT(KIND)."
)
@click.option(
    "--tests", "tests_file", type=click.Path(path_type=Path), metavar="FILE", help="A file of packets with verdicts."
)
@click.option("--format", "form", type=click.Choice(("text", "json")), default="text", help="Default: text.")
@click.option("-v", "--verbose", is_flag=True, help="Show each rule tried.")
@as_reference_option
@assume_option
@all_nodes_options
@source_options
@click.pass_context
def simulate_command(ctx: click.Context, /, **options: Any) -> None:  # noqa: ANN401 - click's options, by name
    """Show the way of a packet, hop by hop, and the line of the file that decides.

    Zones: the host, a guest (vm100, ct200; one of its NICs: vm100i1), the outside, or one port of a bridge
    (vmbr0/eth0). An address means the guest or host that has it.

    Exit code 0: done; 1: the verdict differs from --expect or --tests, or the rulesets disagree; 5: not decided,
    because the verdict depends on a match that pvefw does not know.
    """
    if options["tests_file"] and (given := _packet_options(options)):
        raise UsageError(f"--tests does not go with options of a packet ({', '.join(given)})", "put them into the file")
    if is_for_all_nodes(options):
        ctx.exit(_simulate_all_nodes(options))
    gc.disable()  # reading rulesets makes no garbage, and looking for it takes a third of the time
    rulesets = _rulesets(options)
    if (call := options["bridge_call"]) is not None:
        rulesets = [replace(named, topology=replace(named.topology, call_iptables=call)) for named in rulesets]
    if options["tests_file"]:
        tests = read_tests(read_input(options["tests_file"], MAX_TOML), str(options["tests_file"]))
        results = run_tests(tests, rulesets)
    else:
        tests = [_from_options(options)]
        results = [result for test in tests if (result := _run(test, rulesets, skip=False))]
    if not options["ruleset"]:
        _tell_whom_an_option_hits(results, options)
    if options["form"] == "json":
        data = tests_data(results, len(tests), options) if options["tests_file"] else _data(results[0], options)
        click.echo(json.dumps(data, indent=1))
    elif options["tests_file"]:
        *lines, counts = test_lines(results, len(tests), verbose=options["verbose"])
        for line in lines:
            console.say(line)
        click.echo(counts)
    else:
        for line in _shown(results[0], verbose=options["verbose"]):
            console.say(line)
        _print_answer(results[0])
    ctx.exit(exit_code_of(results))


def _tell_whom_an_option_hits(results: list[Result], options: dict[str, Any]) -> None:
    """Note of packets that pass within connections where the option ``ipfilter_established`` would drop them."""
    judge = hit_by_ipfilter_established(make_offline_source(options["root"], options["node"], options["local_network"]))
    for result in results:
        for _, outcome in result.outcomes:
            if (note := judge(outcome)) is not None:
                outcome.notes.append(note)


def _simulate_all_nodes(options: dict[str, Any]) -> int:
    """Send the packets of a file through each node's rulesets. Return the exit code."""
    from pvefw_nft.cli import all_nodes  # deferred: most packets are of one node

    path = options["tests_file"]
    if path is None or options["ruleset"]:
        raise UsageError("--all-nodes goes with --tests, and not with --ruleset", "put the packets into a file")
    text = read_input(path, MAX_TOML)
    count = len(read_tests(text, str(path)))  # a mistake in the file is one for all nodes
    names = ("backend", "bridge_call", "verbose", "as_reference", "assume")
    given = {**{name: options[name] for name in names}, "tests": (text, str(path))}
    request = all_nodes.request("simulate", options, given, form=options["form"])
    return all_nodes.run(request, amend=partial(excuse_first_nodes, count))


def exit_code_of(results: list[Result]) -> int:
    """Return 1 if a packet got an unexpected verdict, 5 if a verdict is not decided."""
    failed = [result for result in results if not result.passed]
    if any(not result.undecided for result in failed):
        return 1
    return EXIT_UNDECIDED if any(result.undecided for result in results) else 0


def _rulesets(options: dict[str, Any]) -> list[Named]:
    def source_of(root: Path) -> Any:  # noqa: ANN401
        return make_offline_source(
            root, options["node"], options["local_network"], as_reference=options["as_reference"]
        )

    if options["ruleset"]:
        if options["backend"]:
            raise UsageError("--backend and --ruleset do not go together", "leave one out")
        ruleset, assume = options["ruleset"], options["assume"]
        return [load_ruleset(ruleset, source_of, assume, default_root=options["root"], on_demand=True)]
    return configuration_rulesets(source_of(options["root"]), options["backend"], on_demand=True)


def _packet_options(options: dict[str, Any]) -> list[str]:
    """Return the options given that describe a packet, which a file of packets does itself."""
    names = [name for name in ("source_zone", "expect", *_PACKET_FIELDS) if options.get(name)]
    return [name for name in names if name != "mark" or options["mark"] != "0"]


def _from_options(options: dict[str, Any]) -> _Test:
    if not options["source_zone"] or not options["destination"]:
        raise UsageError("say where the packet goes: --from ZONE --to ZONE", "or name a file of packets with --tests")
    names = set(_PACKET_FIELDS) - {"source", "destination", "mark", "family"}
    given = {name: value for name, value in options.items() if name in names and value is not None}
    try:
        mark = int(options["mark"], 0)
    except ValueError:
        raise UsageError(f"no mark: {options['mark']}", "a number such as 0x80000000") from None
    family = int(options["family"]) if options["family"] else None
    given["overrides"] = tuple(_override(text) for text in options["overrides"])
    spec = PacketSpec(options["source_zone"], options["destination"], mark=mark, family=family, **given)
    return _Test(spec, _verdict(options["expect"]), "")


def _override(text: str) -> tuple[str, str]:
    name, equals, value = text.rpartition("=")
    if not equals:
        raise UsageError(f"no field with a value: {text}", "write --field 'NAME=VALUE'")
    return name.strip(), value.strip()


def read_tests(text: str, path: str) -> list[_Test]:
    """Return the packets of a file: tables ``[[packet]]`` with ``from``, ``to``, ``expect`` and the options' names.

    Raises UsageError for another text.
    """
    try:
        document = tomllib.loads(text)
    except ValueError as error:
        raise UsageError(f"{path}: cannot be read: {error}", "it is a TOML file with tables [[packet]]") from None
    tables = document.get("packet")
    if not isinstance(tables, list) or not tables:
        raise UsageError(f"{path}: holds no packets", "write tables [[packet]] with from, to and expect")
    return [_read_test(path, number, table) for number, table in enumerate(tables, 1)]


def _read_test(path: str, number: int, table: dict[str, Any]) -> _Test:
    spec = _read_packet(path, number, table, besides=("expect", "name", "steps"))
    steps = table.get("steps", [])
    if spec is None or "expect" not in table or not isinstance(steps, list):
        raise UsageError(f"{path}: packet {number}: needs from, to and expect")
    before = [_read_packet(path, number, step) for step in steps]
    if None in before:
        raise UsageError(f"{path}: packet {number}: each of its steps needs from and to")
    expect, name = _verdict(str(table["expect"])), str(table.get("name", f"packet {number}"))
    return _Test(spec, expect, name, tuple(step for step in before if step is not None))


def _read_packet(path: str, number: int, table: object, besides: tuple[str, ...] = ()) -> PacketSpec | None:
    """Return the packet that a table describes, None if it does not say from where to where it goes."""
    known = set(_PACKET_FIELDS)
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


def _verdict(text: str | None) -> str | None:
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

    test: _Test
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


def _outcome(test: _Test, ruleset: Named) -> Outcome:
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


def run_tests(tests: Iterable[_Test], rulesets: list[Named]) -> list[Result]:
    """Send packets through rulesets, and return the results of those that pass this node. Raises UsageError."""
    return [result for test in tests if (result := _run(test, rulesets, skip=True))]


def _run(test: _Test, rulesets: list[Named], *, skip: bool) -> Result | None:
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


def _shown(result: Result, *, verbose: bool) -> Iterator[str]:
    """Yield the lines about a packet, with the verdicts at their heads coloured."""
    for line in _result_lines(result, verbose=verbose):
        yield console.verdict_styled(line)


def _print_answer(result: Result) -> None:
    """Print the final line: the verdict of each ruleset. With -q it is the only output."""
    for name, outcome in result.outcomes:
        line = console.verdict_styled(answer_line(outcome))
        click.echo(f"{name}: {line}" if len(result.outcomes) > 1 else line)


def _result_lines(result: Result, *, verbose: bool) -> Iterator[str]:
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
        yield from _result_lines(result, verbose=verbose)
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


def packet_results(tests: list[_Test], results: list[Result], *, verbose: bool) -> list[dict[str, Any]]:
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


def _data(result: Result, options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": result.test.name or None,
        "expect": result.test.expect,
        "passed": result.passed,
        "results": {name: outcome_data(outcome, verbose=options["verbose"]) for name, outcome in result.outcomes},
    }


def tests_data(results: list[Result], count: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results of a file of packets as data; ``verbose`` of the options adds each rule tried."""
    return {
        "packets": [_data(result, options) for result in results],
        "failed": sum(not result.passed for result in results),
        "skipped": count - len(results),
    }
