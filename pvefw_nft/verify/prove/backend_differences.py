"""Unavoidable differences of iptables and nft: packets that a comparison across the two excludes, and why.

Each is a statement about packets for which the two are not compared, or may differ in one way only. The manual
lists them, too. Between rulesets of one tool nothing is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from pvefw_nft.verify import model as m
from pvefw_nft.verify.model.intervals import IntervalSet
from pvefw_nft.verify.prove.program import CAST, Case, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sized

    from pvefw_nft.verify.prove.network import Side

BROADCASTS4 = IntervalSet.of((0, 0), (0xFFFFFFFF, 0xFFFFFFFF))
"""The addresses that every host takes for broadcast (inet_addr_type of net/ipv4/fib_frontend.c, since Linux 5.3)."""
MULTICASTS4 = IntervalSet.of((0xE0000000, 0xEFFFFFFF))
MULTICASTS6 = IntervalSet.of((0xFF << 120, (1 << 128) - 1))

_TELLING = frozenset((m.DADDR_TYPE, m.SADDR_TYPE, m.ARP_HLEN, m.VLAN_ID))
"""Fields of which rules decide whether packets that are excluded can occur."""
KIND = {name: number for number, name in enumerate(m.ADDRESS_TYPES)}

BROADCAST = "broadcast: iptables decides by the IPv4 destination address, nft by the frame's destination MAC address"
SOURCE = "broadcast senders: packets from the broadcast address of a network of the host; only iptables knows these"
ANYCAST = "anycast: packets to anycast addresses of the host; only iptables knows these"
TAGGED = (
    "VLAN tags: iptables does not see tagged IP packets on a bridge (bridge-nf-filter-vlan-tagged is 0) and lets them"
    " pass; nft treats them like untagged ones"
)
TAGGED_ARP = "VLAN tags, ARP: ebtables takes tagged ARP for VLAN and lets it pass; nft looks behind the tag"
ARP = "ARP lengths: nft does not know the sender of ARP packets whose hardware addresses are not 6 bytes long"


@dataclass(frozen=True, slots=True)
class Exceptions:
    """Packets excluded from a comparison ``across`` tools: ``texts`` describe the ones that can occur. ``lenient`` is
    the side (0 or 1) that may accept tagged packets (tagged IP packets only if ``unseen``). ``untagged_only``: tagged
    packets cannot occur in the configuration, and no text mentions them.
    """

    texts: tuple[str, ...] = ()
    lenient: int | None = None
    unseen: bool = False
    across: bool = False
    untagged_only: bool = False

    def compared(self, fields: Iterable[m.Field], case: Case) -> Iterator[m.Condition]:
        """Yield the facts that hold for the compared packets, as far as these fields go."""
        present = set(fields)
        if self.across and case.protocol == m.ARP and m.ARP_HLEN in present:
            yield m.equals(m.ARP_HLEN, 6)
        if not self.across or not case.is_ip:
            return
        if m.DADDR_TYPE in present:
            yield m.Not(m.equals(m.DADDR_TYPE, KIND["anycast"]))
        if case.protocol != m.IPV4:
            return
        if present & {m.DADDR_TYPE, CAST}:
            broadcast = m.equals(m.DADDR_TYPE, KIND["broadcast"])
            everybody = m.equals(CAST, 1)
            always = m.Test(m.DADDR4, BROADCASTS4)
            yield m.Any((m.All((broadcast, m.Any((everybody, always)))), m.Not(m.Any((broadcast, everybody)))))
        if m.SADDR_TYPE in present:
            broadcast = m.equals(m.SADDR_TYPE, KIND["broadcast"])
            yield m.Any((m.Not(broadcast), m.Test(m.SADDR4, BROADCASTS4)))

    def lets_through(self, case: Case, flows: tuple[Sized, Sized]) -> bool:
        """Whether the lenient side lets all frames of a kind by, as it may: its flow is empty."""
        return self.may(case) and self.lenient is not None and not len(flows[self.lenient])

    def may(self, case: Case) -> bool:
        """Whether the lenient side may let frames of a kind by."""
        return case.tagged and (case.protocol == m.ARP or (self.unseen and case.is_ip))

    def excused(self, before: Outcome, after: Outcome, case: Case) -> bool:
        """Whether two outcomes count as equal.

        A frame that the lenient side does not see on a bridge may still be stopped where the host routes it, without
        the tag.
        """
        if self.lenient is None or not self.may(case):
            return False
        stopped = all(one.verdict == "drop" or one.verdict.startswith("reject") for one in (before, after))
        return (before, after)[self.lenient].verdict == "accept" or (stopped and case.is_ip)


@cache
def kind_condition(test: m.Test, protocol: int) -> m.Condition:
    """Return the meaning of a test of an address's kind for packets compared across tools.

    There a broadcast is a packet sent to all hosts, or to an address that every host takes for broadcast, and
    nothing is anycast. A test that also asks for other kinds is returned unchanged.
    """
    special = IntervalSet.from_ranges((KIND[name],) * 2 for name in ("broadcast", "multicast", "anycast"))
    if test.values - special:
        outside = m.Test(test.field, test.values.complement(test.field.size))
        if outside.values - special:
            return test
        return m.Not(kind_condition(outside, protocol))
    to = test.field is m.DADDR_TYPE
    parts: list[m.Condition] = []
    v4, v6 = (m.DADDR4, m.DADDR6) if to else (m.SADDR4, m.SADDR6)
    if KIND["broadcast"] in test.values and protocol == m.IPV4:
        parts.append(m.Test(v4, BROADCASTS4))
        parts += [m.Test(m.PKTTYPE, IntervalSet.single(1))] if to else []
    if KIND["multicast"] in test.values:
        parts.append(m.Test(v4, MULTICASTS4) if protocol == m.IPV4 else m.Test(v6, MULTICASTS6))
    return parts[0] if len(parts) == 1 else m.Any(tuple(parts))


def exceptions(before: Side, after: Side) -> Exceptions:
    """Return the packets that a comparison of two sides excludes."""
    tools = [{table.key.tool for table in side.model.tables} for side in (before, after)]
    xtables = [bool(tool & {"iptables", "ip6tables", "ebtables"}) for tool in tools]
    if xtables[0] == xtables[1] or not all(tools):
        return Exceptions()
    number = xtables.index(True)
    topologies = [side.topology for side in (before, after)]
    unseen = topologies[number].call_iptables and not topologies[number].filter_vlan_tagged
    tested: dict[m.Field, list[IntervalSet]] = {}
    for model in (before.model, after.model):
        for test in tests_in_use(model, _TELLING):
            tested.setdefault(test.field, []).append(test.values)

    def asks(on: m.Field, kind: str) -> bool:
        return any(KIND[kind] in values for values in tested.get(on, ()))

    vlans = any(topology.has_vlans for topology in topologies) or m.VLAN_ID in tested
    occurring = (
        (BROADCAST, asks(m.DADDR_TYPE, "broadcast")),
        (SOURCE, asks(m.SADDR_TYPE, "broadcast")),
        (ANYCAST, asks(m.DADDR_TYPE, "anycast")),
        (ARP, m.ARP_HLEN in tested),
        (TAGGED_ARP, vlans),
        (TAGGED, vlans and unseen),
    )
    texts = tuple(text for text, occurs in occurring if occurs)
    return Exceptions(texts, number, unseen, across=True, untagged_only=not vlans)


def tests_in_use(model: m.RulesetModel, fields: frozenset[m.Field]) -> Iterator[m.Test]:
    """Yield the tests of these fields, of all rules that a hook leads to; of chains with a summary each test once."""
    for table in model.tables:
        if not any(test.field in fields for chain in m.telling_chains(table) for test in chain.tests):
            continue
        told: set[str] = set()
        todo = [name for name, chain in table.chains.items() if chain.hook is not None]
        seen = set(todo)
        while todo:
            chain = table.chains[todo.pop()]
            summary = chain.summary
            if summary is None or not summary.items <= told:
                told.update(() if summary is None else summary.items)
                if any(test.field in fields for test in chain.tests):
                    conditions = (condition for rule in chain.rules for condition in rule.conditions)
                    yield from (test for one in conditions for test in m.tests_of(one) if test.field in fields)
            new = {name for name in m.targets_of(chain) if name in table.chains and name not in seen}
            seen |= new
            todo += new
