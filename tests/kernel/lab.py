"""The lab: a network in the guest, a ruleset on its host, and probes through it.

python -m tests.kernel.lab --case guest-rules --probe 'from="outside", to="vm100", tcp=22'
"""

from __future__ import annotations

import argparse
import random
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from . import cases, configurations
from .artefact import Artefact, Part, parse
from .configurations import Configuration
from .guest.image import LabUnavailableError
from .guest.machine import Guest, GuestError
from .network.plan import HOST, Address, Plan
from .outcome import Outcome, Sighting, judge, sightings
from .packets import Encoded, Packet, Probe, Sent, describe, encode_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .wire import Seen

QUIET_SECONDS = 0.3
"""A batch is over when nothing has moved for so long. Delivery takes place while a packet is being sent."""

BATCH = 600
"""Packets sent before the wait."""


@dataclass(slots=True)
class Lab:
    """The current set-up of a guest."""

    guest: Guest
    plan: Plan | None = None
    _neighbours: set[Address] = field(default_factory=set)
    _groups: set[Address] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.guest.call("tests.kernel.artefact:prepare_kernel")

    def set_up(self, plan: Plan) -> None:
        """Build a network, unless it is there already."""
        if plan == self.plan:
            return
        self.plan = None
        self.guest.call("tests.kernel.wire:close_watch")
        self.guest.call("tests.kernel.network.build:build", plan)
        self.guest.call("tests.kernel.wire:open_watch", plan)
        self.plan = plan
        self._neighbours = {address for one in plan.endpoints for address in (one.v4, one.v6)}
        self._groups = set()

    def load(self, artefact: Artefact) -> None:
        """Load a ruleset instead of the one that is loaded.

        Raises:
            GuestError: the kernel does not take it.
        """
        self.guest.call("tests.kernel.artefact:load", artefact)

    def change(self, part: Part) -> None:
        """Feed a part to its tool, over the loaded rules.

        Raises:
            GuestError: the tool refused it.
        """
        self.guest.call("tests.kernel.artefact:load_part", part)

    def unload(self) -> None:
        """Remove the ruleset."""
        self.guest.call("tests.kernel.artefact:unload")

    def run(self, probes: Sequence[Probe]) -> list[Outcome]:
        """Send probes through the loaded ruleset and return what became of each.

        Probes whose packets belong to one flow are sent in rounds of their own, with connection tracking
        emptied in between, so that none is taken for a part of another's connection.
        """
        assert self.plan is not None, "no network is set up"
        run = random.getrandbits(16)
        encoded = encode_all(probes, self.plan, run)
        self._introduce(probes, encoded)
        seen: list[Seen] = []
        for number, chosen in enumerate(flow_rounds(encoded)):
            if number:
                self.guest.call("tests.kernel.wire:flush_connections")
            seen += self.guest.call("tests.kernel.wire:exchange", _stages(encoded, chosen), QUIET_SECONDS)
        sent = {(n, s): one for n, steps in enumerate(encoded) for s, one in enumerate(steps)}
        found: dict[int, list[Sighting]] = {}
        for sighting in sightings(seen, sent, run):
            found.setdefault(sighting.number, []).append(sighting)
        return [judge(probe, number, found.get(number, []), self.plan) for number, probe in enumerate(probes)]

    def _introduce(self, probes: Sequence[Probe], encoded: Sequence[tuple[Encoded, ...]]) -> None:
        """Tell the host of addresses on its own networks that probes use, and of groups to listen to."""
        assert self.plan is not None
        entries, groups = [], []
        for probe, steps in zip(probes, encoded, strict=True):
            for packet, step in zip(probe.packets, steps, strict=True):
                if not packet.is_ip or step.destination is None:
                    continue
                if step.destination.is_multicast:
                    if packet.receiver == HOST and step.destination not in self._groups:
                        self._groups.add(step.destination)
                        groups.append(step.destination)
                elif packet.sender == HOST and self._needs_entry(step.destination):
                    self._neighbours.add(step.destination)
                    entries.append((step.destination, *self._way_to(packet)))
        if entries:
            self.guest.call("tests.kernel.wire:add_neighbours", entries)
        if groups:
            self.guest.call("tests.kernel.wire:join_groups", groups, self.plan.bridges[0].name)

    def _needs_entry(self, address: Address) -> bool:
        assert self.plan is not None
        on_link = any(address in interface.network for interface in self.plan.host)
        return (on_link or address.is_link_local) and address not in self._neighbours

    def _way_to(self, packet: Packet) -> tuple[str, str]:
        """Return MAC address and interface by which the host reaches a packet's receiver."""
        assert self.plan is not None
        first = self.plan.bridges[0].name
        endpoint = self.plan.endpoint(packet.receiver if packet.receiver != HOST else "outside", packet.sender)
        return endpoint.mac, first


def flow_rounds(encoded: Sequence[tuple[Encoded, ...]]) -> list[list[int]]:
    """Divide probes into rounds of at most :data:`BATCH`, no flow (either way round) twice in one."""
    rounds: list[tuple[set[object], list[int]]] = []
    for number, steps in enumerate(encoded):
        flows = {key for step in steps for key in _flow_keys(step)}
        for taken, members in rounds:
            if len(members) < BATCH and not taken & flows:
                taken |= flows
                members.append(number)
                break
        else:
            rounds.append((set(flows), [number]))
    return [members for _, members in rounds]


def _flow_keys(encoded: Encoded) -> tuple[object, ...]:
    """Return the common properties of two packets of one flow, in any direction."""
    if encoded.flow is None:
        return ()
    protocol, source, destination, identity = encoded.flow
    if isinstance(identity, tuple):
        sport, dport = identity
        return ((protocol, frozenset(((source, sport), (destination, dport)))),)
    return ((protocol, frozenset((source, destination)), identity),)


def _stages(encoded: Sequence[tuple[Encoded, ...]], chosen: Sequence[int]) -> list[list[Sent]]:
    """Return the packets of each stage; the judged packets of all probes are the last stage."""
    most = max((len(encoded[number]) for number in chosen), default=0)
    stages: list[list[Sent]] = [[] for _ in range(most)]
    for number in chosen:
        steps = encoded[number]
        for step, one in enumerate(steps, start=most - len(steps)):
            stages[step] += one.sent
    return stages


# --- command line -------------------------------------------------------------------------------------------


def main() -> int:
    """Run probes through the rulesets of a configuration; return 1 if an outcome is not the expected one."""
    arguments = _parser().parse_args()
    try:
        configuration = _configuration(arguments)
        wanted = _probes(arguments, configuration)
        artefacts = _artefacts(arguments, configuration)
        with Guest() as guest:
            lab = Lab(guest)
            lab.set_up(configuration.plan)
            outcomes = {}
            for name, artefact in artefacts.items():
                lab.load(artefact)
                outcomes[name] = lab.run([probe for probe, _ in wanted])
            for command in arguments.then:
                guest.run(["ip", "netns", "exec", "pvlab-host", "sh", "-c", command], output=_show)
    except (LabUnavailableError, GuestError, cases.CaseError, configurations.CompileError, OSError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 2
    return _report(wanted, outcomes, everything=arguments.all)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.kernel.lab", description=main.__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--case", help=f"a configuration of tests/cases: {', '.join(cases.names())}")
    what.add_argument("--root", type=Path, help="any folder with etc/pve")
    parser.add_argument("--node", default="pve1", help="with --root")
    parser.add_argument("--local-network", default="10.0.0.0/24", metavar="CIDR", help="with --root")
    parser.add_argument("--backend", action="append", choices=configurations.backends(), help="default: all")
    parser.add_argument(
        "--artefact", type=Path, metavar="FILE", help="load this ruleset (of the one --backend given), do not compile"
    )
    parser.add_argument(
        "--probe", action="append", metavar="TOML", help="a packet as in packets.toml, e.g. 'from=\"outside\", …'"
    )
    parser.add_argument("--generate", action="store_true", help="use probes made from the ruleset, not the case's")
    parser.add_argument("--seed", type=int, default=0, help="with --generate")
    parser.add_argument("--all", action="store_true", help="print every probe, not only the remarkable ones")
    parser.add_argument(
        "--then", action="append", default=[], metavar="COMMAND", help="run this on the lab's host at the end"
    )
    return parser


def _configuration(arguments: argparse.Namespace) -> Configuration:
    if arguments.case is not None:
        return configurations.of_case(arguments.case)
    return Configuration(str(arguments.root), arguments.root, arguments.node, arguments.local_network)


def _probes(arguments: argparse.Namespace, configuration: Configuration) -> list[tuple[Probe, str | None]]:
    """Return probes, each with the verdict that is expected of it, if one is."""
    if arguments.probe:
        tables = [tomllib.loads(f"probe = {{ {text.strip().strip('{}')} }}")["probe"] for text in arguments.probe]
        return [(probe, table.get("verdict")) for table in tables for probe in cases.read_packets(table)]
    if arguments.generate or arguments.case is None:
        return [(probe, None) for probe in configurations.probes(configuration, arguments.seed)]
    return list(cases.load(arguments.case).expected)


def _artefacts(arguments: argparse.Namespace, configuration: Configuration) -> dict[str, Artefact]:
    names = arguments.backend or configurations.backends()
    if arguments.artefact is not None:
        if len(names) != 1:
            raise configurations.CompileError("--artefact needs one --backend, which it is of")
        return {names[0]: parse(names[0], arguments.artefact.read_text())}
    return {name: configurations.compiled(configuration, name) for name in names}


def _show(piece: bytes) -> None:
    sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def _report(wanted: Sequence[tuple[Probe, str | None]], outcomes: dict[str, list[Outcome]], *, everything: bool) -> int:
    """Print outcomes and return 1 if one is not as expected, or the backends differ."""
    bad = 0
    for number, (probe, verdict) in enumerate(wanted):
        found = {name: str(results[number]) for name, results in outcomes.items()}
        wrong = len(set(found.values())) > 1 or (verdict is not None and verdict not in found.values())
        bad += wrong
        if wrong or everything or len(wanted) <= 40:
            note = f"   expected {verdict}" if wrong and verdict is not None else ""
            print(f"{'!' if wrong else ' '} {describe(probe)}: {', '.join(f'{k} {v}' for k, v in found.items())}{note}")
    print(f"{len(wanted)} probes, {bad} not as expected or not alike")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
