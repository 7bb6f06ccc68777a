"""Whom the option ``ipfilter_established`` would cut off: guests let in at addresses they may not answer from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.config.model import GroupRule, Rule, RuleAction, RuleType
from pvefw_nft.config.values import Prefix

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pvefw_nft.config.model import Group, Guest, GuestConfig, IpsetEntry, Nic, RuleItem

_LINK_LOCAL = 0xFE80 << 112


def cut_off(guest: Guest, config: GuestConfig, groups: Mapping[str, Group]) -> Iterator[tuple[RuleItem, Nic, Prefix]]:
    """Yield the guest's rules that accept packets to an address which a NIC's IP filter does not hold.

    With each the NIC and the address. The NIC answers from there, which the reference lets by as part of a connection.
    """
    for nic in guest.nics:
        entries = _filter_entries(config, nic)
        if entries is None:
            continue
        for written, rule in _rules(config.rules, groups):
            if rule.type is not RuleType.IN or rule.action is not RuleAction.ACCEPT or not isinstance(rule.dest, tuple):
                continue
            if written.iface in (None, f"net{nic.index}"):
                for prefix in rule.dest:
                    if not _holds(entries, nic.addresses, prefix):
                        yield written, nic, prefix


def link_local(mac: int) -> Prefix:
    """Return the link-local address that a MAC address gives (RFC 4291, appendix A)."""
    interface_id = ((mac ^ 0x020000000000) >> 24 << 40) | 0xFFFE << 24 | (mac & 0xFFFFFF)
    prefix = Prefix(6, _LINK_LOCAL | interface_id, 128, "")
    return Prefix(6, prefix.address, 128, prefix.canonical)


def may_send_from(guest: Guest, index: int, version: int, address: int) -> bool:
    """Whether a NIC's IP filter holds an address, or it has none. IPv6's own link-local address is in each."""
    config = guest.firewall
    nics = [nic for nic in guest.nics if nic.index == index]
    if config is None or not config.options.enable or not nics:
        return True
    entries = _filter_entries(config, nics[0])
    if entries is None:
        return True
    prefix = Prefix(version, address, 32 if version == 4 else 128, "")
    own = nics[0].addresses if nics[0].mac is None else (*nics[0].addresses, link_local(nics[0].mac))
    return _holds(entries, own, prefix)


def _filter_entries(config: GuestConfig, nic: Nic) -> tuple[IpsetEntry, ...] | None:
    """Return the written addresses that a NIC may send from, None where it has no IP filter."""
    ipset = config.ipsets.get(f"ipfilter-net{nic.index}")
    if not nic.firewall or (ipset is None and not config.options.ipfilter):
        return None
    return () if ipset is None else ipset.entries


def _rules(rules: Iterable[RuleItem], groups: Mapping[str, Group]) -> Iterator[tuple[RuleItem, Rule]]:
    """Yield the rules, those of groups too, each with the line of the guest's file that brings it in."""
    for written in rules:
        if isinstance(written, GroupRule):
            yield from ((written, rule) for rule in groups[written.group].rules)
        else:
            yield written, written


def _holds(entries: Iterable[IpsetEntry], own: Iterable[Prefix], prefix: Prefix) -> bool:
    """Whether a set with these entries holds an address or a whole network: of those around it the longest counts."""
    around = [entry for entry in entries if _contains(entry.prefix, prefix)]
    if around:
        return not max(around, key=lambda entry: entry.prefix.length).nomatch
    return any(_contains(address, prefix) for address in own)


def _contains(outer: Prefix, inner: Prefix) -> bool:
    same = outer.version == inner.version and outer.length <= inner.length
    return same and outer.address <= inner.address and inner.last <= outer.last
