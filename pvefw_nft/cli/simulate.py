"""``pvefw simulate``: the way of a packet, hop by hop, and the line that decides."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from pvefw_nft.cli.packet_tests import (
    PACKET_FIELDS,
    PacketTest,
    Result,
    excuse_first_nodes,
    expected_verdict,
    read_tests,
    result_data,
    result_lines,
    run_test,
    run_tests,
    test_lines,
    tests_data,
)
from pvefw_nft.cli.rulesets import SPEC_HELP, Named, assume_option, configuration_rulesets, load_ruleset
from pvefw_nft.errors import EXIT_UNDECIDED, UsageError
from pvefw_nft.verify.simulate.report import answer_line
from pvefw_nft.verify.simulate.spec import PacketSpec

if TYPE_CHECKING:
    from collections.abc import Iterator


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
        results = [result for test in tests if (result := run_test(test, rulesets, skip=False))]
    if not options["ruleset"]:
        _tell_whom_an_option_hits(results, options)
    if options["form"] == "json":
        data = tests_data(results, len(tests), options) if options["tests_file"] else result_data(results[0], options)
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
    names = [name for name in ("source_zone", "expect", *PACKET_FIELDS) if options.get(name)]
    return [name for name in names if name != "mark" or options["mark"] != "0"]


def _from_options(options: dict[str, Any]) -> PacketTest:
    if not options["source_zone"] or not options["destination"]:
        raise UsageError("say where the packet goes: --from ZONE --to ZONE", "or name a file of packets with --tests")
    names = set(PACKET_FIELDS) - {"source", "destination", "mark", "family"}
    given = {name: value for name, value in options.items() if name in names and value is not None}
    try:
        mark = int(options["mark"], 0)
    except ValueError:
        raise UsageError(f"no mark: {options['mark']}", "a number such as 0x80000000") from None
    family = int(options["family"]) if options["family"] else None
    given["overrides"] = tuple(_override(text) for text in options["overrides"])
    spec = PacketSpec(options["source_zone"], options["destination"], mark=mark, family=family, **given)
    return PacketTest(spec, expected_verdict(options["expect"]), "")


def _override(text: str) -> tuple[str, str]:
    name, equals, value = text.rpartition("=")
    if not equals:
        raise UsageError(f"no field with a value: {text}", "write --field 'NAME=VALUE'")
    return name.strip(), value.strip()


def _shown(result: Result, *, verbose: bool) -> Iterator[str]:
    """Yield the lines about a packet, with the verdicts at their heads coloured."""
    for line in result_lines(result, verbose=verbose):
        yield console.verdict_styled(line)


def _print_answer(result: Result) -> None:
    """Print the final line: the verdict of each ruleset. With -q it is the only output."""
    for name, outcome in result.outcomes:
        line = console.verdict_styled(answer_line(outcome))
        click.echo(f"{name}: {line}" if len(result.outcomes) > 1 else line)
