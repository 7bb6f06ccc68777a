"""``pvefw simulate``: what happens to a packet, hop by hop, and which line decided."""

from __future__ import annotations

import gc
import json
import re
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pvefw_nft.app.inputs import MAX_TOML, read_input
from pvefw_nft.cli.options import as_reference_option, make_source, source_options
from pvefw_nft.cli.rulesets import SPEC_HELP, Named, assume_option, configuration_rulesets, load_ruleset
from pvefw_nft.errors import UsageError
from pvefw_nft.verify.packet import PacketSpec, make_probe
from pvefw_nft.verify.report import outcome_data, outcome_lines
from pvefw_nft.verify.simulate import simulate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pvefw_nft.verify.simulate import Outcome

_VERDICTS = ("ACCEPT", "DROP", "REJECT")
_KEYS = {
    "from": "source",
    "to": "destination",
    "proto": "protocol",
    "source": "source_address",
    "dest": "destination_address",
    "fields": "overrides",
}
"""How a file of packets calls what PacketSpec calls otherwise; the rest is the same, with ``-`` for ``_``."""


@dataclass(frozen=True, slots=True)
class _Test:
    """A packet of a tests file, with the verdict it shall get (None: any) and what to call it."""

    spec: PacketSpec
    expect: str | None
    name: str


@click.command("simulate")
@click.option(
    "--from", "source_zone", metavar="ZONE|ADDRESS", help="host, outside, vm100, vm100i1, ct200, vmbr0/eth0 …"
)
@click.option("--to", "destination", metavar="ZONE|ADDRESS[:PORT]", help="The same.")
@click.option(
    "-p", "--proto", "protocol", metavar="PROTO", help="tcp, udp, icmp, arp, a number … Default: tcp with a port."
)
@click.option("--sport", metavar="PORT")
@click.option("--dport", metavar="PORT")
@click.option(
    "--source", "source_address", metavar="ADDRESS", help="The source address, where the zone's own is not meant."
)
@click.option("--dest", "destination_address", metavar="ADDRESS", help="The destination address likewise.")
@click.option("--icmp-type", metavar="TYPE", help="A name, or type or type/code. Default: echo-request.")
@click.option("--tcp-flags", metavar="FLAGS", help="A list such as syn,ack. Default: syn.")
@click.option(
    "--ctstate", metavar="STATE", help="new, established, related, invalid, untracked. Default: that of a first packet."
)
@click.option("--mac", metavar="MAC", help="The sender's MAC address.")
@click.option("--dest-mac", "destination_mac", metavar="MAC", help="The frame's destination.")
@click.option("--vlan", type=int, metavar="ID", help="The frame carries this VLAN tag.")
@click.option("--fragment", type=click.Choice(("whole", "first", "later")))
@click.option("--mark", metavar="MARK", default="0", help="The packet mark.")
@click.option("--family", type=click.Choice(("4", "6")), help="Where neither an address nor the protocol tells.")
@click.option("--ether-type", metavar="TYPE", help="A frame that is not IP, by its ether type's name or hex number.")
@click.option("--arp-sender", metavar="ADDRESS", help="An ARP request with this sender address.")
@click.option(
    "--field",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any field by its name in reports, such as 'daddr type=broadcast'. May be given many times.",
)
@click.option("--backend", type=click.Choice(("iptables", "nft", "both")), help="Default: what host.fw asks for.")
@click.option("--ruleset", metavar="RULESET", help=f"Instead of the configuration's own ruleset: {SPEC_HELP}.")
@click.option(
    "--bridge-call/--no-bridge-call", default=None, help="bridge-nf-call-iptables. Default: on where iptables is used."
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
@source_options
@click.pass_context
def simulate_command(ctx: click.Context, /, **options: Any) -> None:  # noqa: ANN401 - click's options, by name
    """Say what happens to a packet, hop by hop, and which line of which file decides.

    Zones: the host, a guest (vm100, ct200; one of its NICs: vm100i1), the outside, or one port of a bridge
    (vmbr0/eth0). An address means whoever has it.
    """
    gc.disable()  # reading rulesets makes no garbage, and looking for it takes a third of the time
    rulesets = _rulesets(options)
    if (call := options["bridge_call"]) is not None:
        rulesets = [replace(named, topology=replace(named.topology, call_iptables=call)) for named in rulesets]
    tests = _read_tests(options["tests_file"]) if options["tests_file"] else [_from_options(options)]
    results = [(test, *_run(test, rulesets)) for test in tests]
    if options["form"] == "json":
        click.echo(json.dumps(_data(results, tests_file=options["tests_file"], verbose=options["verbose"]), indent=1))
    else:
        _show(results, tests_file=options["tests_file"], verbose=options["verbose"])
    ctx.exit(0 if all(passed for _, passed, _ in results) else 1)


def _rulesets(options: dict[str, Any]) -> list[Named]:
    def source_of(root: Path) -> Any:  # noqa: ANN401
        return make_source(root, options["node"], options["local_network"], as_reference=options["as_reference"])

    if options["ruleset"]:
        if options["backend"]:
            raise UsageError("--backend and --ruleset do not go together", "leave one out")
        return [load_ruleset(options["ruleset"], source_of, options["assume"], default_root=options["root"])]
    return configuration_rulesets(source_of(options["root"]), options["backend"])


def _from_options(options: dict[str, Any]) -> _Test:
    if not options["source_zone"] or not options["destination"]:
        raise UsageError("say where the packet goes: --from ZONE --to ZONE", "or name a file of packets with --tests")
    names = {field.name for field in fields(PacketSpec)} - {"source", "destination", "mark", "family"}
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


def _read_tests(path: Path) -> list[_Test]:
    """Return the packets of a file: tables ``[[packet]]`` with ``from``, ``to``, ``expect`` and the options' names."""
    try:
        document = tomllib.loads(read_input(path, MAX_TOML))
    except ValueError as error:
        raise UsageError(f"{path}: cannot be read: {error}", "it is a TOML file with tables [[packet]]") from None
    tables = document.get("packet")
    if not isinstance(tables, list) or not tables:
        raise UsageError(f"{path}: holds no packets", "write tables [[packet]] with from, to and expect")
    return [_read_test(path, number, table) for number, table in enumerate(tables, 1)]


def _read_test(path: Path, number: int, table: dict[str, Any]) -> _Test:
    known = {field.name for field in fields(PacketSpec)}
    given: dict[str, Any] = {}
    for key, value in table.items():
        if key in ("expect", "name"):
            continue
        name = _KEYS.get(key, key.replace("-", "_"))
        if name not in known or (key in known and key in _KEYS.values() and key not in _KEYS):
            raise UsageError(f"{path}: packet {number}: unknown key '{key}'")
        given[name] = tuple((on, str(text)) for on, text in value.items()) if name == "overrides" else value
    if "source" not in given or "destination" not in given or "expect" not in table:
        raise UsageError(f"{path}: packet {number}: needs from, to and expect")
    return _Test(PacketSpec(**given), _verdict(str(table["expect"])), str(table.get("name", f"packet {number}")))


def _verdict(text: str | None) -> str | None:
    """Return an expected verdict as Outcome writes it: ``REJECT (tcp-reset)``."""
    if text is None:
        return None
    match = re.fullmatch(r"([A-Za-z]+)\s*(?:\(([a-z-]+)\))?", text.strip())
    if match is None or match.group(1).upper() not in _VERDICTS:
        raise UsageError(f"no verdict: {text}", f"one of {', '.join(_VERDICTS)}, or REJECT(tcp-reset) and the like")
    verdict = match.group(1).upper()
    return f"{verdict} ({match.group(2)})" if match.group(2) else verdict


def _run(test: _Test, rulesets: list[Named]) -> tuple[bool, list[tuple[str, Outcome]]]:
    """Return whether a packet gets the verdict expected from all rulesets, and the same from each; and how."""
    outcomes = [(named.name, simulate(named.model, make_probe(test.spec, named.topology))) for named in rulesets]
    agree = len({outcome.text for _, outcome in outcomes}) == 1
    expected = test.expect is None or all(test.expect in (o.verdict, o.text) for _, o in outcomes)
    return agree and expected, outcomes


Result = tuple[_Test, bool, list[tuple[str, "Outcome"]]]


def _show(results: list[Result], *, tests_file: Path | None, verbose: bool) -> None:
    for test, passed, outcomes in results:
        if tests_file is not None and passed and not verbose:
            continue
        if tests_file is not None:
            click.echo(f"{'ok' if passed else 'FAILED'}: {test.name}")
        for name, outcome in outcomes:
            for line in outcome_lines(outcome, verbose=verbose, title=name if len(outcomes) > 1 else ""):
                click.echo(line)
        for line in _complaints(test, outcomes):
            click.secho(line, fg="red", bold=True)
    if tests_file is not None:
        failed = sum(not passed for _, passed, _ in results)
        click.echo(f"{len(results) - failed} passed, {failed} failed")


def _complaints(test: _Test, outcomes: list[tuple[str, Outcome]]) -> Iterator[str]:
    if len({outcome.text for _, outcome in outcomes}) > 1:
        yield "the rulesets disagree: " + ", ".join(f"{name} {outcome.text}" for name, outcome in outcomes)
    elif test.expect is not None and test.expect not in (outcomes[0][1].verdict, outcomes[0][1].text):
        yield f"expected {test.expect}"


def _data(results: list[Result], *, tests_file: Path | None, verbose: bool) -> Any:  # noqa: ANN401 - JSON
    packets = [
        {
            "name": test.name or None,
            "expect": test.expect,
            "passed": passed,
            "results": {name: outcome_data(outcome, verbose=verbose) for name, outcome in outcomes},
        }
        for test, passed, outcomes in results
    ]
    if tests_file is None:
        return packets[0]
    return {"packets": packets, "failed": sum(not passed for _, passed, _ in results)}
