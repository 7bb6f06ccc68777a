"""Judge the effect of a ruleset on existing connections before it is loaded.

Three kinds must not break: sessions of this host's sshd and web interface, the peers of corosync, and the cluster's
migration network. Connections of guests are listed if the ruleset would no longer allow them.

An established session is judged by three packets: its next one (of a connection that the kernel does not track yet,
that is a new connection's), the host's answer, and the first packet of the same connection opened again. A rule that
only shuts out the third would lock out an operator whose connection breaks, so it counts too.

This reads the configuration, so it runs in the compiler's process (:mod:`.compile_task`).
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pvefw_nft.errors import UsageError
from pvefw_nft.host.backend_info import info
from pvefw_nft.host.tracking.connections import TCP, spelled
from pvefw_nft.pipeline import compile_root
from pvefw_nft.pipeline.closing import closing_failures
from pvefw_nft.pipeline.read_back import read_back
from pvefw_nft.pipeline.topology import topology
from pvefw_nft.verify.network.path import Link, Network, NicEnd
from pvefw_nft.verify.simulate.spec import PacketSpec

from .judgement import Cut, GuestLoss, Judgement
from .partial_model import PartialReader
from .peers import Peer, cluster_peers
from .verdicts import Verdicts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from pvefw_nft.host.live_network import LiveNetwork
    from pvefw_nft.host.records.record import Desired
    from pvefw_nft.host.tracking.connections import Address, Flow, Session
    from pvefw_nft.pipeline import Source
    from pvefw_nft.verify.network.path import Nic, Topology
    from pvefw_nft.verify.simulate.walk import Outcome

    from .judgement import Connections

MAX_GUEST_CONNECTIONS = 20_000
"""How many connections of guests are judged. Equal ones cost nothing, but a flood must not hold up an apply."""
MAX_SECONDS = 0.3
"""Processor time after which connections of further guests are not judged: an apply must not wait for a list of them.
Connections that must not break are judged in any case."""
_NICS_AT_ONCE = 50
_ANY_PORT = 50000  # of a client; no rule is likely to name it
_PORT_PROTOCOLS = {TCP: "tcp", 17: "udp", 33: "dccp", 132: "sctp", 136: "udplite"}
_FIREWALL_LINK = re.compile(r"(?:fwbr|fwln)\d+[io]\d+|fwpr\d+p\d+")
_GUEST_PORT = re.compile(r"(?:tap|veth|fwln|link)\d+[io]\d+|fwpr\d+p\d+|link\d+i\d+p")
_RULE_PLACE = re.compile(r"(\S+\.fw):(\d+)")


def judge(
    desired: Desired,
    before: Desired | None,
    source: Source,
    now: Connections,
    *,
    peers: Sequence[Peer] | None = None,
    seconds: float = MAX_SECONDS,
) -> Judgement:
    """Return the effect of loading ``desired`` on the connections that this host has now.

    ``before`` is pvefw's running ruleset (None: none, all is allowed). Only connections that ``before`` allows
    can be lost. ``peers``: the ones of the cluster, where they are known. ``seconds``: the processor time for
    connections of guests; those left over are counted in a note. Reads the configuration; raises what that raises.
    """
    if not desired.enabled:
        return Judgement()
    sessions, tracked, network = now.sessions, now.tracked, now.network
    peers = cluster_peers(source, network) if peers is None else peers
    host = _live_topology(topology(source), now, desired.backend)
    guests = _guest_flows(tracked or (), host)
    if not sessions and not guests and not peers:
        return Judgement(notes=_untracked(tracked, host))
    rulesets = PartialReader(desired), None if before is None or not before.enabled else PartialReader(before)
    nics = {address: nic for nic in reversed(host.nics) for address in nic.addresses}

    def judge_of(met: Collection[Nic]) -> _Judge:
        return _Judge(rulesets, replace(host, nics=tuple(met)), network, frozenset(tracked or ()), source)

    ends = {end for peer in peers for end in (peer.address, peer.own)}
    ends.update(end for session in sessions for end in (session.flow.source, session.flow.destination))
    cuts = judge_of({nics[end].interface: nics[end] for end in ends if end in nics}.values()).cuts(sessions, peers)
    begun, judged = time.process_time(), 0
    losses: dict[str, list[str]] = {}
    for met, flows in _batches(guests[:MAX_GUEST_CONNECTIONS], nics):
        if time.process_time() - begun > seconds:
            break
        judge_of(met).add_losses(flows, losses)
        judged += len(flows)
    notes = list(_untracked(tracked, host))
    if judged < len(guests):
        notes.append(f"{judged} of {len(guests)} connections of guests were checked: more would delay the apply")
    return Judgement(tuple(cuts), tuple(GuestLoss(place, tuple(lost)) for place, lost in losses.items()), tuple(notes))


def _batches(flows: Sequence[Flow], nics: Mapping[Address, Nic]) -> Iterator[tuple[Collection[Nic], list[Flow]]]:
    """Yield connections with the NICs that they pass, a number of NICs at a time, those with most connections first."""
    by_nics: dict[frozenset[str], list[Flow]] = defaultdict(list)
    known: dict[str, Nic] = {}
    for flow in flows:
        passed = [
            nics[end] for end in (flow.source, flow.destination, flow.answering) if end is not None and end in nics
        ]
        known.update((nic.interface, nic) for nic in passed)
        by_nics[frozenset(nic.interface for nic in passed)].append(flow)
    met: dict[str, Nic] = {}
    batch: list[Flow] = []
    for names, some in sorted(by_nics.items(), key=lambda item: -len(item[1])):
        met.update((name, known[name]) for name in names)
        batch += some
        if len(met) >= _NICS_AT_ONCE:
            yield met.values(), batch
            met, batch = {}, []
    if batch:
        yield met.values(), batch


def _untracked(tracked: Sequence[Flow] | None, host: Topology) -> tuple[str, ...]:
    if tracked is None and any(nic.filtered for nic in host.nics):
        return ("connections of guests were not checked: this kernel does not list tracked connections (nf_conntrack)",)
    return ()


# --- the host's network -------------------------------------------------------------------------------------


def _live_topology(configured: Topology, now: Connections, backend: str) -> Topology:
    """Return the topology with the links of the running host, and guests' addresses that it has met."""
    links = tuple(
        Link(
            link.name,
            link.is_bridge,
            tuple(port for port in link.ports if _GUEST_PORT.fullmatch(port) is None),
            tuple(Network(*address) for address in link.addresses),
        )
        for link in now.network.links
        if _FIREWALL_LINK.fullmatch(link.name) is None
    )
    met: dict[int, list[Address]] = {}
    for address, mac in now.network.neighbours.items():
        met.setdefault(mac, []).append(address)
    nics = tuple(
        replace(nic, addresses=tuple(dict.fromkeys((*nic.addresses, *met.get(nic.mac or -1, ())))))
        for nic in configured.nics
    )
    call = info(backend).needs_br_netfilter or now.calls_iptables
    return replace(configured, nics=nics, links=links, call_iptables=call).with_bridges()


def _guest_flows(tracked: Sequence[Flow], host: Topology) -> list[Flow]:
    known = {address for nic in host.nics if nic.filtered for address in nic.addresses}
    return [
        flow
        for flow in tracked
        if flow.protocol in _PORT_PROTOCOLS and (flow.source in known or (flow.answering or flow.destination) in known)
    ]


# --- judging ------------------------------------------------------------------------------------------------


class _Judge:
    """Judges connections by a ruleset, and by the one before it.

    ``host`` has only the NICs that these connections pass.
    """

    def __init__(
        self,
        rulesets: tuple[PartialReader, PartialReader | None],
        host: Topology,
        network: LiveNetwork,
        tracked: frozenset[Flow],
        source: Source,
    ) -> None:
        after, self._running = rulesets
        self._interfaces = frozenset(nic.interface for nic in host.nics)
        self._after = Verdicts(after.read(self._interfaces), host)
        self._before: Verdicts | None = None
        self._explaining: Verdicts | None = None
        self._source = source
        self._host = host
        self._network = network
        self._tracked = {replace(flow, answering=None) for flow in tracked}
        self._nics = {address: nic for nic in reversed(host.nics) for address in nic.addresses}
        self._zones: dict[Address, str] = {}

    def cuts(self, sessions: Sequence[Session], peers: Sequence[Peer]) -> list[Cut]:
        """Return the connections that must not break and would."""
        found = [self._session(session) for session in sessions]
        found += [self._peer(peer, inwards=inwards) for peer in peers for inwards in (True, False)]
        return [cut for cut in found if cut is not None]

    def add_losses(self, flows: Sequence[Flow], by_place: dict[str, list[str]]) -> None:
        """Add the connections of guests that would not be allowed any more, by the line that decides."""
        for flow in flows:
            there = flow.answering or flow.destination
            packet = self._packet(flow.source, flow.sport, there, flow.dport, _PORT_PROTOCOLS[flow.protocol], "new")
            outcome = self._verdict(packet)
            if outcome is not None and self._was_allowed(packet):
                text = f"{_PORT_PROTOCOLS[flow.protocol]} {_end(flow.source, flow.sport)} → {_end(there, flow.dport)}"
                by_place.setdefault(self._place(outcome, packet), []).append(text)

    def _session(self, session: Session) -> Cut | None:
        flow = session.flow
        state = "established" if flow in self._tracked else "new"
        name = f"{session.service} {_end(flow.source, flow.sport)} → {_end(flow.destination, flow.dport)}"
        name += f" ({session.told_by})"
        next_one = self._packet(flow.source, flow.sport, flow.destination, flow.dport, "tcp", state, "ack")
        answer = self._packet(flow.destination, flow.dport, flow.source, flow.sport, "tcp", "established", "ack")
        again = self._packet(flow.source, flow.sport, flow.destination, flow.dport, "tcp", "new", "syn")
        for packet in (next_one, answer):
            if (outcome := self._verdict(packet)) is not None:
                return self._cut(name, "would be cut", outcome, packet)
        if (outcome := self._verdict(again)) is not None and self._was_allowed(again):
            return self._cut(name, "could not be opened again", outcome, again)
        return None

    def _peer(self, peer: Peer, *, inwards: bool) -> Cut | None:
        ends = (peer.address, peer.own) if inwards else (peer.own, peer.address)
        sport = peer.port if peer.protocol == "udp" else _ANY_PORT
        packet = self._packet(ends[0], sport, ends[1], peer.port, peer.protocol, "new")
        outcome = self._verdict(packet)
        if outcome is None or not self._was_allowed(packet):
            return None
        name = f"{peer.service} {spelled(ends[0])} → {_end(ends[1], peer.port)}"
        return self._cut(name, "would be refused", outcome, packet)

    def _cut(self, name: str, effect: str, outcome: Outcome, packet: _Packet) -> Cut:
        place = self._place(outcome, packet)
        return Cut(name, effect, place, _remedy(outcome, packet, place))

    def _place(self, outcome: Outcome, packet: _Packet) -> str:
        """Return the line of the configuration that decides, else the rule.

        The iptables ruleset has one rule or more for each line, an nft ruleset one rule for many lines: so the line is
        looked for in the former, unless that has no such rule (FORWARD rules).
        """
        if self._explaining is None:
            met = {nic.vmid for nic in self._host.nics}
            source = replace(self._source, cautious=True)
            # a guest's file on which the compile fails must not prevent the judgement of other guests' connections
            compiled = closing_failures(
                source, lambda closed: compile_root(source, "iptables", closed=closed, only=met)
            )
            self._explaining = Verdicts(read_back(compiled), replace(self._host, call_iptables=True))
        explained = self._explaining.outcome(packet.spec, packet.source, packet.destination)
        if explained.verdict in ("DROP", "REJECT") and explained.stopped is None:
            outcome = explained
        step = outcome.decider
        if step is None:
            _, walk = outcome.deciding[-1]
            matched = [step for step in walk.steps if step.matched and step.origin]
            if not matched:
                return f"the policy of {walk.table.key} {walk.chain.name}"
            step = matched[-1]
        return step.origin or f"a rule of {step.chain.name}"

    def _packet(
        self,
        source: Address,
        sport: int,
        destination: Address,
        dport: int,
        protocol: str,
        state: str,
        flags: str | None = None,
    ) -> _Packet:
        spec = PacketSpec(
            self._zone(source),
            self._zone(destination),
            protocol=protocol,
            source_address=spelled(source),
            destination_address=spelled(destination),
            sport=sport,
            dport=dport,
            ctstate=state,
            tcp_flags=flags or ("syn" if protocol == "tcp" else None),
        )
        return _Packet(spec, source, destination)

    def _verdict(self, packet: _Packet) -> Outcome | None:
        """Return how a packet ends that does not get through, None for one that does, or that has no way at all."""
        try:
            outcome = self._after.outcome(packet.spec, packet.source, packet.destination)
        except UsageError:
            return None  # both ends behind the same port, or in different VLANs: the host does not see it
        return outcome if outcome.verdict in ("DROP", "REJECT") and outcome.stopped is None else None

    def _was_allowed(self, packet: _Packet) -> bool:
        if self._running is None:
            return True
        if self._before is None:
            self._before = Verdicts(self._running.read(self._interfaces), self._host)
        return self._before.outcome(packet.spec, packet.source, packet.destination).verdict not in ("DROP", "REJECT")

    def _zone(self, address: Address) -> str:
        """Return the end that has an address: the host, a guest's NIC, or the port by which the host reaches it."""
        known = self._zones.get(address)
        if known is None:
            known = self._zones[address] = self._find_zone(address)
        return known

    def _find_zone(self, address: Address) -> str:
        if address in self._network.own_addresses:
            return "host"
        nic = self._nics.get(address)
        if nic is not None:
            return nic.name
        name = self._network.link_to(address)
        link = self._host.link(name) if name is not None else None
        if link is None:
            return "outside"
        return f"{link.name}/{link.ports[0]}" if link.is_bridge and link.ports else link.name


@dataclass(frozen=True, slots=True)
class _Packet:
    """A packet and its addresses as numbers."""

    spec: PacketSpec
    source: Address
    destination: Address


def _end(address: Address, port: int) -> str:
    return f"[{spelled(address)}]:{port}" if address[0] == 6 else f"{spelled(address)}:{port}"


def _remedy(outcome: Outcome, packet: _Packet, place: str) -> str:
    """Return the rule that would let a packet pass, and where it belongs."""
    spec = packet.spec
    direction, file = ("OUT", "host.fw") if spec.source == "host" else ("IN", "host.fw")
    at_bridge = outcome.stages[-1].stage.hop.startswith("fwbr")
    ends = outcome.probe.path.source, outcome.probe.path.destination
    guest = next((end.nic for end in ends if isinstance(end, NicEnd) and end.nic.filtered), None)
    if at_bridge and guest is not None:
        direction = "OUT" if isinstance(ends[0], NicEnd) and ends[0].nic is guest else "IN"
        file = f"{guest.vmid}.fw"
    parts = [f"{direction} ACCEPT -source {spec.source_address} -dest {spec.destination_address} -p {spec.protocol}"]
    answers = spec.ctstate == "established" and spec.source == "host"
    parts.append(f"-sport {spec.sport}" if answers else f"-dport {spec.dport}")
    found = _RULE_PLACE.match(place)
    above = f", above line {found[2]}" if found is not None and found[1] == file and "policy" not in place else ""
    return f"`{' '.join(parts)}` in [RULES] of {file}{above}"
