"""Where iptables and nft cannot say the same: what a comparison across the two leaves out, and why.

Each is a statement about packets for which the two are not compared, or may differ in one way only. The manual
lists them, too. Between rulesets of one tool nothing is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from pvefw_nft.verify import model as m
from pvefw_nft.verify.intervals import IntervalSet
from pvefw_nft.verify.prove.program import CAST, Case, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sized

    from pvefw_nft.verify.prove.flows import Side

BROADCASTS4 = IntervalSet.of((0, 0), (0xFFFFFFFF, 0xFFFFFFFF))
"""What every host takes for broadcast addresses (inet_addr_type of net/ipv4/fib_frontend.c, since Linux 5.3)."""
MULTICASTS4 = IntervalSet.of((0xE0000000, 0xEFFFFFFF))
MULTICASTS6 = IntervalSet.of((0xFF << 120, (1 << 128) - 1))

KIND = {name: number for number, name in enumerate(m.ADDRESS_TYPES)}

BROADCAST = (
    "IPv4 frames sent to everybody whose address the host does not take for a broadcast address, and the other"
    " way round: iptables asks the host's routes, nft looks at the frame, since bridges have no routes"
)
SOURCE = "IPv4 packets from the broadcast address of one of the host's networks: nft cannot ask the host's routes"
ANYCAST = "packets to anycast addresses: nft cannot ask the host's routes on a bridge"
TAGGED = (
    "VLAN-tagged IP packets that iptables lets by, since it does not see them"
    " (bridge-nf-filter-vlan-tagged is 0); nft treats them like untagged ones"
)
TAGGED_ARP = "VLAN-tagged ARP packets that ebtables lets by, since it takes them for VLAN; nft looks behind the tag"
ARP = "ARP packets with hardware addresses of other than 6 bytes, whose senders nft does not take for known"


@dataclass(frozen=True, slots=True)
class Exceptions:
    """What is left out: ``texts`` say it. ``lenient`` is the side (0 or 1) that may let tagged packets by, those
    of IP only where ``unseen``.
    """

    texts: tuple[str, ...] = ()
    lenient: int | None = None
    unseen: bool = False

    def compared(self, fields: Iterable[m.Field], case: Case) -> Iterator[m.Condition]:
        """Yield what holds of the packets that are compared, as far as these fields go."""
        present = set(fields)
        if self.texts and case.protocol == m.ARP and m.ARP_HLEN in present:
            yield m.equals(m.ARP_HLEN, 6)
        if not self.texts or not case.is_ip:
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

    def lets_by(self, case: Case, flows: tuple[Sized, Sized]) -> bool:
        """Whether the lenient side lets all frames of a kind by, as it may: its flow is empty."""
        return self.may(case) and self.lenient is not None and not len(flows[self.lenient])

    def may(self, case: Case) -> bool:
        """Whether the lenient side may let frames of a kind by."""
        return case.tagged and (case.protocol == m.ARP or (self.unseen and case.is_ip))

    def excused(self, before: Outcome, after: Outcome, case: Case) -> bool:
        """Whether two outcomes may stand beside each other."""
        if self.lenient is None or not self.may(case):
            return False
        return (before, after)[self.lenient].verdict == "accept"


@cache
def kind_condition(test: m.Test, protocol: int) -> m.Condition:
    """Return what a test of the kind of an address means for the packets that are compared across tools.

    There a broadcast is what is sent to everybody, or to an address that every host takes for broadcast, and
    nothing is anycast. A test that also asks for other kinds is returned as it is.
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
    """Return what a comparison of two sides leaves out."""
    tools = [{table.key.tool for table in side.model.tables} for side in (before, after)]
    xtables = [bool(tool & {"iptables", "ip6tables", "ebtables"}) for tool in tools]
    if xtables[0] == xtables[1] or not all(tools):
        return Exceptions()
    number = xtables.index(True)
    topology = (before, after)[number].topology
    unseen = topology.call_iptables and not topology.filter_vlan_tagged
    texts = (BROADCAST, SOURCE, ANYCAST, ARP, TAGGED_ARP)
    return Exceptions((*texts, TAGGED) if unseen else texts, number, unseen)
