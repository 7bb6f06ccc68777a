"""Probes made from a ruleset: for every rule, packets just inside and just outside of each of its conditions.

They are made from the iptables artefact of a configuration and hold for every backend's: what a rule of one
is particular about, the other must be particular about too. A rule of a chain that many NICs share is
probed on a few of them. Random packets come on top, from the same addresses and ports.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from .network.plan import HOST, OUTSIDE, ROUTER, Address, Endpoint, Plan
from .packets import ACK, SYN, WITH_PORTS, Packet, Probe, Proto
from .restore import Addresses, Rule, Ruleset, address_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from .restore import Span

PLACES_PER_RULE = 3
"""On so many NICs a shared chain's rule is probed; which ones is drawn by the seed."""

VALUES_PER_CONDITION = 6
"""So many values on each side of a condition's edges are tried; of longer lists a sample."""

SPOOFED_MAC = "02:66:66:66:66:66"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chain sees packets: on the way in to or out of an endpoint, or the host (``endpoint`` None)."""

    direction: str
    endpoint: Endpoint | None


@dataclass(frozen=True, slots=True)
class _Draft:
    """The fields of a packet that conditions speak of."""

    protocol: int
    source: Address | None = None
    destination: Address | None = None
    sport: int | None = None
    dport: int | None = None
    icmp: tuple[int, int | None] | None = None
    flags: int = SYN
    mac: str | None = None
    interface: str | None = None


def generate(rulesets: dict[int, Ruleset], plan: Plan, seed: int = 0, extra: int = 100) -> list[Probe]:
    """Return probes for the rulesets of both families, and ``extra`` random ones."""
    draw = random.Random(seed)
    probes: dict[Packet, Probe] = {}
    for ruleset in rulesets.values():
        places = _places(ruleset, plan)
        for chain, rules in ruleset.chains.items():
            found = places.get(chain, ())
            for rule in rules:
                for place in draw.sample(found, min(PLACES_PER_RULE, len(found))):
                    for packet in _for_rule(rule, ruleset.family, place, plan, draw):
                        probes.setdefault(packet, Probe((packet,), rule.text))
    for packet in _random(rulesets, plan, draw, extra):
        probes.setdefault(packet, Probe((packet,), f"random, seed {seed}"))
    return list(probes.values())


# --- where chains are ---------------------------------------------------------------------------------------


def _places(ruleset: Ruleset, plan: Plan) -> dict[str, list[Place]]:
    """Return for each chain the places whose packets it sees: its own, or the places of the chains leading to it."""
    filtered = [one for one in plan.endpoints if one.filtered]
    roots = {"PVEFW-HOST-IN": [Place("in", None)], "PVEFW-HOST-OUT": [Place("out", None)]}
    roots["PVEFW-FWBR-IN"] = [Place("in", one) for one in filtered]
    roots["PVEFW-FWBR-OUT"] = [Place("out", one) for one in filtered]
    for one in filtered:
        roots[f"{one.port}-IN"] = [Place("in", one)]
        roots[f"{one.port}-OUT"] = [Place("out", one)]
    places: dict[str, dict[Place, None]] = {}

    def visit(chain: str, found: list[Place]) -> None:
        known = places.setdefault(chain, {})
        fresh = [place for place in found if place not in known]
        known.update(dict.fromkeys(fresh))
        for rule in ruleset.chains.get(chain, ()):
            if fresh and rule.target in ruleset.chains and rule.target not in roots:
                visit(rule.target, fresh)

    for chain, found in roots.items():
        visit(chain, found)
    return {chain: list(found) for chain, found in places.items()}


# --- one rule -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Values:
    """By field of a draft, the values that meet a rule's conditions, and near ones that do not."""

    inside: dict[str, list[Any]]
    outside: dict[str, list[Any]]

    def split(self, name: str, values: Iterable[Any], meets: Callable[[Any], bool]) -> None:
        """Sort values of a field into those inside and those outside."""
        for value in dict.fromkeys(values):
            (self.inside if meets(value) else self.outside).setdefault(name, []).append(value)
        self.inside.setdefault(name, [])


def _for_rule(rule: Rule, family: int, place: Place, plan: Plan, draw: random.Random) -> Iterator[Packet]:
    """Yield packets inside of all conditions, and for each condition packets just outside of it alone."""
    values = _Values({}, {})
    _address_values(rule, family, place, plan, values)
    _transport_values(rule, family, values, draw)
    _link_values(rule, place, plan, values)
    if not all(values.inside.values()):
        return
    bases = [_Draft(**{name: draw.choice(known) for name, known in values.inside.items()}) for _ in range(2)]
    drafts = list(bases)
    for name in values.inside:
        near = [*_some(values.inside[name], draw), *_some(values.outside.get(name, []), draw)]
        drafts += [replace(draw.choice(bases), **{name: value}) for value in near]
    for draft in dict.fromkeys(drafts):
        packet = _packet(draft, family, place, plan, draw)
        if packet is not None:
            yield packet


def _some(values: list[Any], draw: random.Random) -> list[Any]:
    return values if len(values) <= VALUES_PER_CONDITION else draw.sample(values, VALUES_PER_CONDITION)


def _address_values(rule: Rule, family: int, place: Place, plan: Plan, values: _Values) -> None:
    """Add addresses at the edges of the rule's; None, an endpoint's own, where any will do."""
    for name, side, conditions in (("source", "src", rule.source), ("destination", "dst", rule.destination)):
        kinds = [kind for of, kind in rule.kinds if of == side]
        if not conditions and not kinds:
            values.inside[name] = [None]
            continue
        values.split(name, _addresses(conditions, kinds, family), partial(_meets, conditions=conditions, kinds=kinds))
        if not values.inside[name] and _meets(_own(name, family, place, plan), conditions, kinds):
            values.inside[name] = [None]


def _transport_values(rule: Rule, family: int, values: _Values, draw: random.Random) -> None:
    """Add protocols, ports, ICMP types and TCP flags."""
    common = (Proto.TCP, Proto.UDP, Proto.ICMP if family == 4 else Proto.ICMPV6)
    if rule.protocol is None:
        values.inside["protocol"] = list(common)
    else:
        values.split("protocol", (rule.protocol, *common), lambda number: number == rule.protocol)
    values.inside["dport"] = [draw.randrange(1024, 32768)]
    for name, spans in (("sport", rule.sports), ("dport", rule.dports)):
        if spans:
            values.inside.pop(name, None)
            edges = {port for first, last in spans for port in (first - 1, first, last, last + 1)}
            values.split(name, sorted(edges & set(range(1, 65536))), partial(_within, spans=spans))
    if rule.icmp is not None:
        kind, code = rule.icmp
        low = code or 0
        near = ((kind, low), (kind, low + 1), (kind + 1, low), ((kind - 1) % 256, low))
        values.split("icmp", near, lambda value: value[0] == kind and code in (None, value[1]))
    if rule.flags is not None:
        wanted = rule.flags.wanted
        values.split("flags", (wanted, *(wanted ^ (1 << bit) for bit in range(6)), ACK), rule.flags.holds)


def _within(value: int, spans: Sequence[Span]) -> bool:
    return any(first <= value <= last for first, last in spans)


def _link_values(rule: Rule, place: Place, plan: Plan, values: _Values) -> None:
    """Add MAC addresses, and the host's interfaces for rules of the host."""
    if rule.mac is not None:
        values.inside["mac"], values.outside["mac"] = [None], [SPOOFED_MAC]
    if rule.incoming is not None and place.endpoint is None:
        names = (rule.incoming, *(bridge.name for bridge in plan.bridges))
        values.split("interface", names, lambda name: name == rule.incoming)


_OF_KIND = {
    "BROADCAST": ("255.255.255.255",),
    "MULTICAST": ("224.0.0.251", "239.1.2.3", "ff02::fb", "ff05::2"),
    "ANYCAST": (),
}


def _addresses(conditions: Sequence[Addresses], kinds: Sequence[str], family: int) -> list[Address]:
    """Return the addresses at the edges of the conditions, and addresses of the requested kinds."""
    values = {value: None for condition in conditions for value in condition.edges()}
    made = [address for value in values if (address := address_of(family, value)) is not None]
    for kind in kinds:
        made += [address for text in _OF_KIND[kind] if (address := ip_address(text)).version == family]
    return made


def _meets(address: Address, conditions: Sequence[Addresses], kinds: Sequence[str]) -> bool:
    of_kinds = all(str(address) in _OF_KIND[kind] for kind in kinds)
    return of_kinds and all(condition.holds(address) for condition in conditions)


def _own(name: str, family: int, place: Place, plan: Plan) -> Address:
    """Return the address a packet has on that side when none is given."""
    if (name == "source") == (place.direction == "out") and place.endpoint is not None:
        return place.endpoint.v4 if family == 4 else place.endpoint.v6
    if (name == "source") == (place.direction == "out"):
        return plan.host_address(family)
    other = plan.endpoint(OUTSIDE, place.endpoint.name if place.endpoint else None)
    return other.v4 if family == 4 else other.v6


def _packet(draft: _Draft, family: int, place: Place, plan: Plan, draw: random.Random) -> Packet | None:
    """Return the packet of a draft at a place; None if no endpoint could send it there."""
    sender, receiver, source, destination = _ends(draft, family, place, plan, draw)
    if sender is None or receiver is None:
        return None
    if draft.protocol in (Proto.ICMP, Proto.ICMPV6) and (draft.protocol == Proto.ICMP) != (family == 4):
        return None
    if any(a is not None and (a.is_unspecified or a.is_loopback) for a in (source, destination)):
        return None
    with_ports = draft.protocol in WITH_PORTS
    icmp = draft.icmp if draft.protocol in (Proto.ICMP, Proto.ICMPV6) else None
    return Packet(
        sender,
        receiver,
        family,
        draft.protocol,
        source,
        destination,
        draft.sport if with_ports else None,
        draft.dport if with_ports else None,
        draft.flags if draft.protocol == Proto.TCP else SYN,
        icmp_type=icmp[0] if icmp else None,
        icmp_code=(icmp[1] or 0) if icmp else 0,
        source_mac=draft.mac if place.direction == "out" and place.endpoint else None,
    )


def _ends(
    draft: _Draft, family: int, place: Place, plan: Plan, draw: random.Random
) -> tuple[str | None, str | None, Address | None, Address | None]:
    """Return sender, receiver and the addresses to be given."""
    source, destination = draft.source, draft.destination
    if place.endpoint is not None:
        # Any address can come in by the outside's wire, and go out by it.
        if place.direction == "in":
            return OUTSIDE, place.endpoint.name, source, destination
        return place.endpoint.name, OUTSIDE, source, destination
    if place.direction == "in":
        special = destination is None or destination.is_multicast or str(destination) == "255.255.255.255"
        if not special and destination not in [interface.ip for interface in plan.host]:
            return None, None, None, None
        return _sender_by(draft.interface, plan, draw), HOST, source, destination
    if draft.interface is not None:
        return None, None, None, None
    if source is not None and source.is_multicast:
        return None, None, None, None
    return HOST, _receiver_for(destination, plan), source, destination


def _sender_by(interface: str | None, plan: Plan, draw: random.Random) -> str | None:
    """Return an endpoint whose packets come in by an interface of the host; any if it does not matter."""
    if interface is None:
        unfiltered = [one.name for one in plan.endpoints if one.bridge == plan.bridges[0].name and not one.filtered]
        return draw.choice([f"{OUTSIDE}@{plan.bridges[0].name}", *unfiltered])
    if interface == "lo":
        return HOST
    if interface in [bridge.name for bridge in plan.bridges]:
        return f"{OUTSIDE}@{interface}"
    return None


def _receiver_for(destination: Address | None, plan: Plan) -> str:
    """Return the receivers of the host's packets to an address."""
    if destination is None or destination.is_multicast or destination.is_link_local:
        return f"{OUTSIDE}@{plan.bridges[0].name}"
    if destination in [interface.ip for interface in plan.host]:
        return HOST
    for one in plan.endpoints:
        if destination in (one.v4, one.v6):
            return one.name
    if any(destination in interface.network for interface in plan.host):
        return f"{OUTSIDE}@{plan.bridges[0].name}"
    return ROUTER


# --- random packets -----------------------------------------------------------------------------------------


def _random(rulesets: dict[int, Ruleset], plan: Plan, draw: random.Random, count: int) -> Iterator[Packet]:
    """Yield packets between random endpoints whose addresses and ports are met somewhere in the rules."""
    names = [one.name for one in plan.endpoints]
    for _ in range(count):
        family = draw.choice((4, 6))
        rules = [rule for chain in rulesets[family].chains.values() for rule in chain] if family in rulesets else []
        sender, receiver = draw.sample([HOST, *names], 2)
        if OUTSIDE in sender and OUTSIDE in receiver:
            continue
        protocol = draw.choice((Proto.TCP, Proto.TCP, Proto.UDP, Proto.ICMP if family == 4 else Proto.ICMPV6))
        ports = [port for rule in rules for span in (*rule.dports, *rule.sports) for port in span] or [9]
        addresses = [
            address
            for rule in draw.sample(rules, min(20, len(rules)))
            for address in _addresses(rule.source, (), family)
            if not address.is_multicast
        ]
        with_ports = protocol in WITH_PORTS
        yield Packet(
            sender,
            receiver,
            family,
            protocol,
            source=draw.choice(addresses) if addresses and sender != HOST and draw.random() < 0.5 else None,
            sport=draw.choice(ports) if with_ports and draw.random() < 0.2 else None,
            dport=min(65535, draw.choice(ports) + draw.choice((0, 0, 1))) if with_ports else None,
            icmp_type=None if with_ports else draw.choice((8, 13, 0, 17) if family == 4 else (128, 129, 133, 135)),
        )
