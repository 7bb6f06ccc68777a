"""The stateless chains: they drop frames at the ports of firewall bridges before any other chain.

They keep the promises of ``macfilter`` and ``ipfilter`` against a guest that writes its own frames. The chains of the
reference ruleset do not: they look behind one VLAN tag at most, and they run after connection tracking and after rules
that accept packets of connections and packets that look like DHCP. A guest with the network configuration of its files
sends nothing that is dropped here. docs/security.md gives the purpose of each rule.

Example, of a guest 100 with ``ipfilter: 1``::

    stateless PVEFW-STATELESS
      ether VLAN/0x8100 filtered port -> drop
      ether 802.1ad/0x88a8 filtered port -> drop
      ether QINQ1/0x9100 filtered port -> drop
      ether QINQ2/0x9200 filtered port -> drop
      ether QINQ3/0x9300 filtered port -> drop
      -> dispatch out
    stateless tap100i0-OUT
      mac not BC:24:11:00:00:01 -> drop
      ether ARP/0x0806 arp sender mac not BC:24:11:00:00:01 -> drop
      v6 proto icmpv6 icmp neighbor-advertisement advertises outside of 100/ipfilter-net0 -> drop
      v4 proto udp sport {68} dport {67} src {0.0.0.0} -> return
      v4 proto udp sport {68} dport {67} src not in 100/ipfilter-net0 -> drop
      v6 proto udp sport {546} dport {547} src {::, fe80::/10} -> return
      v6 proto udp sport {546} dport {547} src not in 100/ipfilter-net0 -> drop
      fragment src not in 100/ipfilter-net0 -> drop
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.config.option_values import Layer2
from pvefw_nft.ir.nodes import (
    Address,
    AdvertisedOutside,
    ArpSenderMac,
    ConnectionsOver,
    ConnState,
    Direction,
    Dispatch,
    EtherType,
    Family,
    FilteredPort,
    Fragment,
    IcmpType,
    InSet,
    Layer,
    NicRateOver,
    OtherEtherType,
    PortRange,
    Ports,
    Prefix,
    Side,
    SourceMac,
    State,
    TagOfVlanZero,
    ThirdTag,
)
from pvefw_nft.ir.rules import DROP, ICMPV6, NDP_TYPES, RETURN, UDP, builtin

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pvefw_nft.config.model import Nic as ModelNic
    from pvefw_nft.config.options import GuestHardening, GuestOptions
    from pvefw_nft.ir.nodes import Match, Nic, Rule, SetKey
    from pvefw_nft.ir.rules import Chains

STATELESS = "PVEFW-STATELESS"
"""The chain that every frame enters."""

LIMIT = "PVEFW-LIMIT"
"""The chain that guests' packets outside of known connections enter, put together from their fragments."""

_OLD = ConnState((State.INVALID, State.RELATED, State.ESTABLISHED))

_TAGS = (EtherType(0x8100, "VLAN"), EtherType(0x88A8, "802.1ad"))
_OLD_TAGS = (EtherType(0x9100, "QINQ1"), EtherType(0x9200, "QINQ2"), EtherType(0x9300, "QINQ3"))
"""Tags of switches from before IEEE 802.1ad (include/uapi/linux/if_ether.h); no bridge of Linux looks behind them."""
_ARP = EtherType(0x0806, "ARP")
_ALWAYS = (0x0800, 0x0806, 0x86DD)
"""IPv4, ARP and IPv6, which no option of layer 2 closes."""

_NO_ADDRESS = {
    Family.V4: (Prefix(4, 0, 32, "0.0.0.0"),),  # noqa: S104 - no socket binds here
    Family.V6: (Prefix(6, 0, 128, "::"), Prefix(6, 0xFE80 << 112, 10, "fe80::/10")),
}
"""The addresses that a host without an address of its own asks from (RFC 2131, section 4.1; RFC 8415, section 18.2)."""


def dhcp_ports(sport: int, dport: int) -> tuple[Match, ...]:
    """Return the matches of UDP between two ports."""
    return (
        UDP,
        Ports(Side.SOURCE, (PortRange(sport, sport, str(sport)),)),
        Ports(Side.DESTINATION, (PortRange(dport, dport, str(dport)),)),
    )


_DHCP_REQUESTS = {Family.V4: dhcp_ports(68, 67), Family.V6: dhcp_ports(546, 547)}
_DHCP_WITHOUT_ADDRESS = tuple(
    builtin("dhcp", *ports, Address(Side.SOURCE, _NO_ADDRESS[family]), action=RETURN, families=family)
    for family, ports in _DHCP_REQUESTS.items()
)
_ADVERTISEMENT = IcmpType(6, NDP_TYPES["neighbor-advertisement"], None, "neighbor-advertisement")


def mac_filter(nic: ModelNic) -> Rule:
    """Return the rule that drops frames of other senders; a NIC without a valid address sends nothing."""
    if nic.mac is None:
        return builtin("macfilter", action=DROP)
    return builtin("macfilter", SourceMac(nic.mac, nic.mac_spelling, negated=True), action=DROP)


def add_stateless_chain(chains: Chains, nics: Sequence[Nic]) -> bool:
    """Add the chain that every frame enters; returns whether there is one."""
    if not nics:
        return False
    rules: list[Rule] = []
    if not all(nic.qinq for nic in nics):
        rules += _tagged("second VLAN tag", (*_TAGS, *_OLD_TAGS), FilteredPort())
    if any(nic.qinq for nic in nics):
        rules += _tagged("qinq", _OLD_TAGS, FilteredPort(qinq=True))
        # a receiver treats a tag of VLAN 0 as no VLAN (IEEE 802.1Q, priority tag), so the content would pass unfiltered
        for closed in (TagOfVlanZero(1), TagOfVlanZero(2), ThirdTag()):
            rules += _tagged("qinq", _TAGS, FilteredPort(qinq=True), closed)
    if any(nic.stateless_chain is not None for nic in nics):
        rules.append(builtin("guests", action=Dispatch(Direction.OUT)))
    chains.add(Layer.STATELESS, STATELESS, rules)
    return True


def add_limit_chain(chains: Chains, nics: Sequence[Nic]) -> bool:
    """Add the chain for packets that NICs send outside of known connections; return whether there is one."""
    if all(nic.limit_chain is None for nic in nics):
        return False
    old = builtin("conntrack", _OLD, action=RETURN)
    chains.add(Layer.LIMIT, LIMIT, [old, builtin("guests", action=Dispatch(Direction.OUT))])
    return True


def limit_rules(hardening: GuestHardening, addresses: SetKey | None) -> Iterator[Rule]:
    """Yield the rules for packets that a NIC sends outside of known connections, put together from their fragments.

    The stateless chain does not see the address in an advertisement whose first fragment ends before it.
    """
    if addresses is not None:
        yield _foreign_advertisement(addresses)
    if hardening.max_connections:
        over = ConnectionsOver(hardening.max_connections)
        yield builtin("max_connections", ConnState((State.NEW,)), over, action=DROP)


def _tagged(reason: str, tags: tuple[EtherType, ...], *matches: Match) -> list[Rule]:
    """Return the rules that drop frames with such a tag behind the first tag, which the kernel has removed."""
    return [builtin(reason, tag, *matches, action=DROP) for tag in tags]


def nic_rules(
    options: GuestOptions, hardening: GuestHardening, nic: ModelNic, addresses: SetKey | None
) -> Iterator[Rule]:
    """Yield the rules for packets that a NIC sends; ``addresses`` is the set of those it may send from, with ipfilter.

    ``hardening`` leaves nothing open: the cluster's options are in it.
    """
    if options.macfilter:
        yield mac_filter(nic)
        if nic.mac is not None:
            yield builtin("macfilter", _ARP, ArpSenderMac(nic.mac, nic.mac_spelling), action=DROP)
    if hardening.l2 is Layer2.STRICT:
        more = [protocol.number for protocol in options.layer2_protocols]
        # with qinq, the frame's type behind the first tag may be a second tag's
        tags = [tag.number for tag in _TAGS] if hardening.qinq else []
        yield builtin("l2", OtherEtherType(tuple(sorted({*_ALWAYS, *more, *tags}))), action=DROP)
    if hardening.max_fragments:  # before the exemptions of DHCP, which fragments may look like
        yield builtin("max_fragments", Fragment(), NicRateOver(hardening.max_fragments), action=DROP)
    if addresses is not None:
        yield from _address_rules(options, hardening, addresses)


def _foreign_advertisement(addresses: SetKey) -> Rule:
    outside = AdvertisedOutside(addresses)
    return builtin("ipfilter", ICMPV6, _ADVERTISEMENT, outside, action=DROP, families=Family.V6)


def _address_rules(options: GuestOptions, hardening: GuestHardening, addresses: SetKey) -> Iterator[Rule]:
    """Yield the rules for addresses that are not in the set of those the NIC may send from."""
    yield _foreign_advertisement(addresses)
    foreign = InSet(Side.SOURCE, addresses, negated=True)
    if options.dhcp:
        for (family, ports), exempt in zip(_DHCP_REQUESTS.items(), _DHCP_WITHOUT_ADDRESS, strict=True):
            yield exempt
            if not hardening.ipfilter_established:
                yield builtin("dhcp", *ports, foreign, action=DROP, families=family)
    if hardening.ipfilter_established:
        yield builtin("ipfilter_established", foreign, action=DROP)
    else:
        yield builtin("ipfilter", Fragment(), foreign, action=DROP)
