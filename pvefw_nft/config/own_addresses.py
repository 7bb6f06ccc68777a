"""Guests that ``ipfilter_established`` would cut off: their rules accept packets to addresses not in their set."""

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

    With each the NIC and the address. The NIC answers from there, which the reference lets through as part of a
    connection.
    """
    for nic in guest.nics:
        entries = _filter_entries(config, nic)
        if entries is None:
            continue
        held = _Held(entries, nic.addresses)
        of_groups: dict[str, tuple[Prefix, ...]] = {}
        for written in config.rules:
            if written.iface not in (None, f"net{nic.index}"):
                continue
            if not isinstance(written, GroupRule):
                missing = _missing([written], held)
            elif (known := of_groups.get(written.group)) is not None:  # a file may name a large group in each line
                missing = known
            else:
                missing = of_groups[written.group] = _missing(groups[written.group].rules, held)
            yield from ((written, nic, prefix) for prefix in missing)


def _missing(rules: Iterable[Rule], held: _Held) -> tuple[Prefix, ...]:
    """Return the addresses to which rules accept packets and from which the IP filter lets none answer."""
    return tuple(
        prefix
        for rule in rules
        if rule.type is RuleType.IN and rule.action is RuleAction.ACCEPT and isinstance(rule.dest, tuple)
        for prefix in rule.dest
        if prefix not in held
    )


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
    return prefix in _Held(entries, own)


def _filter_entries(config: GuestConfig, nic: Nic) -> tuple[IpsetEntry, ...] | None:
    """Return the written addresses that a NIC may send from, None if it has no IP filter."""
    ipset = config.ipsets.get(f"ipfilter-net{nic.index}")
    if not nic.firewall or (ipset is None and not config.options.ipfilter):
        return None
    return () if ipset is None else ipset.entries


class _Held:
    """The addresses that a set holds, and a NIC's own: of the entries around an address the longest counts."""

    def __init__(self, entries: Iterable[IpsetEntry], own: Iterable[Prefix]) -> None:
        """Look them up by their length, so that a large set costs no more than a small one."""
        self._own = tuple(own)
        self._by_length: dict[tuple[int, int], dict[int, bool]] = {}
        for entry in entries:
            prefix = entry.prefix
            networks = self._by_length.setdefault((prefix.version, prefix.length), {})
            networks.setdefault(_network(prefix, prefix.length), not entry.nomatch)
        self._lengths = sorted((length for _, length in self._by_length), reverse=True)

    def __contains__(self, prefix: Prefix) -> bool:
        """Tell whether it holds an address or a whole network."""
        for length in self._lengths:
            networks = self._by_length.get((prefix.version, length), {})
            if length <= prefix.length and (found := networks.get(_network(prefix, length))) is not None:
                return found
        return any(_contains(address, prefix) for address in self._own)


def _network(prefix: Prefix, length: int) -> int:
    """Return the bits of an address that a shorter network around it has."""
    return prefix.address >> ((32 if prefix.version == 4 else 128) - length)


def _contains(outer: Prefix, inner: Prefix) -> bool:
    same = outer.version == inner.version and outer.length <= inner.length
    return same and outer.address <= inner.address and inner.last <= outer.last
