"""The chains and sets of guests: IP filters, layer 2 filters, and the sets of allowed addresses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pvefw_nft.config.budget import MAX_ENTRIES, MAX_RULES
from pvefw_nft.config.own_addresses import link_local
from pvefw_nft.errors import UnusableFileError
from pvefw_nft.ir.nodes import AddressSet as Set
from pvefw_nft.ir.nodes import (
    ArpSender,
    Chain,
    Direction,
    EtherType,
    Family,
    IcmpType,
    InSet,
    Jump,
    Layer,
    Nic,
    NicPort,
    Prefix,
    Queue,
    Return,
    Rule,
    SetAcceptMark,
    SetConnmark,
    SetEntry,
    SetKey,
    Side,
)
from pvefw_nft.ir.rules import (
    ACCEPT,
    DROP,
    ICMPV6,
    NDP_TYPES,
    SET_ACCEPT_MARK,
    builtin,
    file_rules,
    groups_of,
    header_origin,
    ndp_rules,
    policy_origin,
    policy_rules,
)
from pvefw_nft.ir.stateless import dhcp_ports, limit_rules, mac_filter, nic_rules

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pvefw_nft.config.model import Guest, GuestConfig
    from pvefw_nft.config.model import Nic as ModelNic
    from pvefw_nft.ir.nodes import Action
    from pvefw_nft.ir.rules import Context

_LINK_LOCAL = 0xFE80 << 112
_ARP = EtherType(0x0806, "ARP")
# As in the reference: of all link-local addresses, a NIC has only the one of its MAC address.
_NO_GUEST_NIC = SetEntry(Prefix(6, _LINK_LOCAL, 10, "fe80::/10"), nomatch=True)


def _dhcp(server: tuple[int, int], client: tuple[int, int], action: Action) -> tuple[Rule, Rule]:
    """Return the rules that let DHCP through (RFC 2131, RFC 8415); each pair is source and destination port."""
    return (
        builtin("dhcp", *dhcp_ports(*server), action=action, families=Family.V4),
        builtin("dhcp", *dhcp_ports(*client), action=action, families=Family.V6),
    )


# Rules that are the same for all guests are made once: with thousands of guests, that is half of all rules.
_DHCP_IN = _dhcp((67, 68), (547, 546), ACCEPT)
_DHCP_OUT = _dhcp((68, 67), (546, 547), SET_ACCEPT_MARK)
_NDP_IN = tuple(ndp_rules(ACCEPT, advertise=True))
_NDP_OUT = {radv: tuple(ndp_rules(SET_ACCEPT_MARK, advertise=radv)) for radv in (False, True)}
_NO_RADV = builtin(
    "radv",
    ICMPV6,
    IcmpType(6, NDP_TYPES["router-advertisement"], None, "router-advertisement"),
    action=DROP,
    families=Family.V6,
)
_CLEAR_MARK = builtin("accept mark", action=SetAcceptMark(on=False))
_LINK_ACCEPT = builtin("layer 2", action=ACCEPT)
_CLOSED = builtin("a file of the guest cannot be used", action=DROP)


@dataclass(frozen=True, slots=True)
class GuestPart:
    """All that a guest adds to a ruleset.

    ``groups`` are the groups whose chains its chains lead to, each with a direction; ``ips`` its rules of PVEFW-IPS;
    ``failure`` the reason why it is closed, if its chains could not be built.
    """

    chains: tuple[tuple[Layer, Chain], ...] = ()
    groups: tuple[tuple[str, Direction], ...] = ()
    nics: tuple[Nic, ...] = ()
    sets: tuple[Set, ...] = ()
    ips: tuple[Rule, ...] = ()
    failure: Exception | None = None


def build_guest(context: Context, guest: Guest) -> GuestPart:
    """Return a guest's sets and, if its firewall is enabled, the chains of its filtered NICs.

    A guest that asks for too much, or on which the build raises (a bug of pvefw), is closed: an exception here must
    not cost other guests their rules.
    """
    builder = _GuestBuilder(context, guest)
    if guest.closed:
        return builder.closed()
    try:
        return builder.built()
    except Exception as error:
        return replace(_GuestBuilder(context, guest).closed(), failure=error)


def dependencies(context: Context, guest: Guest) -> object:
    """Return all that the result of :func:`build_guest` depends on."""
    cluster = context.node.cluster
    return guest, cluster.options, cluster.hardening, context.as_reference


def _check_entries(config: GuestConfig) -> None:
    """Raise UnusableFileError if a guest's sets have too many entries."""
    entries = 0
    for ipset in config.ipsets.values():
        entries += len(ipset.entries)
        if entries > MAX_ENTRIES:
            raise UnusableFileError(
                config.file,
                ipset.header.number,
                f"with this ipset the file has more than {MAX_ENTRIES:,} entries",
                "put large ipsets into cluster.fw",
            )


class _GuestBuilder:
    """Builds the part of one guest."""

    def __init__(self, context: Context, guest: Guest) -> None:
        """Start with nothing."""
        self._context = context
        self._guest = guest
        self._chains: list[tuple[Layer, Chain]] = []
        self._groups: dict[tuple[str, Direction], None] = {}
        self._nics: list[Nic] = []
        self._sets: list[Set] = []
        self._ips: list[Rule] = []
        self._rules = 0

    def built(self) -> GuestPart:
        """Return the part. Raises UnusableFileError if the guest asks for too much."""
        guest = self._guest
        config = guest.firewall
        if config is None:
            return self._part()
        _check_entries(config)
        nics = [nic for nic in guest.nics if nic.firewall]
        filters = self._address_filters(guest, config, nics)
        own = {
            name: ipset for name, ipset in config.ipsets.items() if name not in {f.key.name for f in filters.values()}
        }
        for name, ipset in own.items():
            entries = tuple(SetEntry(entry.prefix, entry.nomatch) for entry in ipset.entries)
            # the reference sizes an ipset before it removes duplicates
            counted = len(entries) + ipset.replaced
            self._sets.append(Set(SetKey(guest.vmid, name), entries, counted, header_origin(ipset)))
        # a disabled guest's sets exist, as in the reference; only its chains do not
        self._sets += filters.values()
        if config.options.enable:
            for nic in nics:
                self._add_nic(guest, config, nic, filters.get(nic.index))
        return self._part()

    def closed(self) -> GuestPart:
        """Return the part of a guest whose files cannot be used: nothing passes its filtered NICs."""
        for nic in self._guest.nics:
            if nic.firewall:
                made = self._made_nic(self._guest, nic)
                self._nics.append(made)
                self._add(Layer.FILTER, made.in_chain, (_CLOSED,))
                self._add(Layer.FILTER, made.out_chain, (_CLOSED,))
                if made.link_chain is not None:
                    self._add(Layer.LINK, made.link_chain, (_CLOSED,))
        return self._part()

    def _part(self) -> GuestPart:
        groups = tuple(self._groups)
        return GuestPart(tuple(self._chains), groups, tuple(self._nics), tuple(self._sets), tuple(self._ips))

    def _add(self, layer: Layer, name: str, rules: Iterable[Rule]) -> None:
        self._chains.append((layer, Chain(name, tuple(rules))))

    def _made_nic(self, guest: Guest, nic: ModelNic) -> Nic:
        """Return a NIC with the names of its chains."""
        interface = guest.interface(nic)
        link_chain = f"{interface}-OUT" if self._context.node.cluster.options.ebtables else None
        firewall_port = f"fwln{guest.vmid}i{nic.index}"
        return Nic(interface, firewall_port, guest.vmid, nic.index, f"{interface}-IN", f"{interface}-OUT", link_chain)

    def _address_filters(self, guest: Guest, config: GuestConfig, nics: list[ModelNic]) -> dict[int, Set]:
        """Return the set of addresses that a NIC may send from, by its number. A NIC without a filter has no entry."""
        filters: dict[int, Set] = {}
        for nic in nics:
            name = f"ipfilter-net{nic.index}"
            ipset = config.ipsets.get(name)
            if ipset is None and not config.options.ipfilter:
                continue
            entries = (
                {} if ipset is None else {_network(e.prefix): SetEntry(e.prefix, e.nomatch) for e in ipset.entries}
            )
            own = [SetEntry(address) for address in nic.addresses]
            if nic.mac is not None:
                own.append(SetEntry(link_local(nic.mac)))
            for entry in (*own, _NO_GUEST_NIC):
                entries.setdefault(_network(entry.prefix), entry)
            origin = None if ipset is None else header_origin(ipset)
            filters[nic.index] = Set(SetKey(guest.vmid, name), tuple(entries.values()), len(entries), origin)
        return filters

    def _add_nic(self, guest: Guest, config: GuestConfig, nic: ModelNic, address_filter: Set | None) -> None:
        context = self._context
        stateless, limit = self._add_hardening(config, nic, guest.interface(nic), address_filter)
        qinq = not context.as_reference and config.hardening.qinq
        made = replace(self._made_nic(guest, nic), stateless_chain=stateless, limit_chain=limit, qinq=qinq)
        interface, link_chain = made.interface, made.link_chain
        self._nics.append(made)
        for direction in Direction:
            self._groups.update({(group, direction): None for group in groups_of(config.rules, nic.index)})
        queue = _queue(config)
        # packets of known connections do not reach the NIC's chain, so PVEFW-IPS queues them
        if queue is not None:
            self._ips.append(builtin("ips", NicPort(Direction.IN, interface), action=queue))
        self._add(Layer.FILTER, made.in_chain, self._in_rules(guest.vmid, config, nic, made.in_chain, queue or ACCEPT))
        out_rules = self._out_rules(guest.vmid, config, nic, made.out_chain, address_filter)
        self._add(Layer.FILTER, made.out_chain, out_rules)
        if link_chain is not None:
            self._add(Layer.LINK, link_chain, self._link_rules(config, nic, link_chain))

    def _add_hardening(
        self, config: GuestConfig, nic: ModelNic, interface: str, address_filter: Set | None
    ) -> tuple[str | None, str | None]:
        """Add a NIC's chains of stateless checks and of limits. Return their names, None for one without rules."""
        if self._context.as_reference:
            return None, None
        hardening = config.hardening.over(self._context.node.cluster.hardening)
        addresses = None if address_filter is None else address_filter.key
        layers = {
            Layer.STATELESS: nic_rules(config.options, hardening, nic, addresses),
            Layer.LIMIT: limit_rules(hardening, addresses),
        }
        name = f"{interface}-OUT"
        made: list[str | None] = []
        for layer, rules in layers.items():
            listed = list(rules)
            if listed:
                self._add(layer, name, listed)
            made.append(name if listed else None)
        return made[0], made[1]

    def _within_budget(self, rules: Iterable[Rule], config: GuestConfig) -> Iterator[Rule]:
        """Yield the rules of a guest's file. Raises UnusableFileError if all its NICs together get too many."""
        for rule in rules:
            self._rules += 1
            if self._rules > MAX_RULES:
                raise UnusableFileError(
                    config.file,
                    rule.origin.line,
                    f"up to this line the file makes more than {MAX_RULES:,} rules, for {len(config.rules):,} lines on "
                    "each of the guest's NICs",
                    "put addresses into ipsets, and name the NIC where a rule needs only one",
                )
            yield rule

    def _in_rules(self, vmid: int, config: GuestConfig, nic: ModelNic, chain: str, accept: Action) -> Iterator[Rule]:
        options = config.options
        # by this mark Proxmox VE finds the connections of a guest that migrates
        yield builtin("connmark", action=SetConnmark(vmid))
        if options.dhcp:
            yield from _DHCP_IN
        if options.ndp:
            yield from _NDP_IN if accept is ACCEPT else ndp_rules(accept, advertise=True)
        rules = file_rules(self._context, config.rules, chain, vmid, Direction.IN, accept, nic.index)
        yield from self._within_budget(rules, config)
        policy, level = options.policy_in, options.log_level_in
        origin = policy_origin(config, "policy_in", policy)
        yield from policy_rules(self._context, policy, origin, chain, vmid, level, accept)

    def _out_rules(
        self, vmid: int, config: GuestConfig, nic: ModelNic, chain: str, address_filter: Set | None
    ) -> Iterator[Rule]:
        options = config.options
        yield builtin("connmark", action=SetConnmark(vmid))
        if options.dhcp:
            # before the MAC filter, as in the reference: a DHCP request passes from any address
            yield from _DHCP_OUT
        if options.macfilter:
            yield mac_filter(nic)
        if not options.radv:
            yield _NO_RADV
        if address_filter is not None:
            yield builtin("ipfilter", InSet(Side.SOURCE, address_filter.key, negated=True), action=DROP)
        # an accept mark from an earlier chain must not count here
        yield _CLEAR_MARK
        if options.ndp:
            yield from _NDP_OUT[options.radv]
        accept = SET_ACCEPT_MARK
        rules = file_rules(self._context, config.rules, chain, vmid, Direction.OUT, accept, nic.index)
        yield from self._within_budget(rules, config)
        policy, level = options.policy_out, options.log_level_out
        origin = policy_origin(config, "policy_out", policy)
        yield from policy_rules(self._context, policy, origin, chain, vmid, level, accept)

    def _link_rules(self, config: GuestConfig, nic: ModelNic, chain: str) -> Iterator[Rule]:
        """Yield the layer 2 rules of a NIC, and add the chains they jump to."""
        options = config.options
        if options.macfilter:
            yield mac_filter(nic)
        senders = list(_arp_senders(config, nic))
        if senders:
            self._add(Layer.LINK, f"{chain}-ARP", [*senders, builtin("ipfilter", action=DROP)])
            yield builtin("ipfilter", _ARP, action=Jump(f"{chain}-ARP"))
        if options.layer2_protocols:
            allowed = [
                builtin("layer2_protocols", EtherType(protocol.number, protocol.spelling), action=Return())
                for protocol in options.layer2_protocols
            ]
            self._add(Layer.LINK, f"{chain}-PROTO", [*allowed, builtin("layer2_protocols", action=DROP)])
            yield builtin("layer2_protocols", action=Jump(f"{chain}-PROTO"))
        yield _LINK_ACCEPT


def _network(prefix: Prefix) -> tuple[int, int, int]:
    return prefix.version, prefix.address, prefix.length


def _arp_senders(config: GuestConfig, nic: ModelNic) -> Iterator[Rule]:
    """Yield the rules for senders of ARP: the IPv4 entries of the NIC's set, and its own address with ipfilter.

    Where the set has holes, the most specific entry comes first, as it counts in the set, and a hole drops.
    """
    ipset = config.ipsets.get(f"ipfilter-net{nic.index}")
    entries = [] if ipset is None else [entry for entry in ipset.entries if entry.prefix.version == 4]
    if any(entry.nomatch for entry in entries):
        entries.sort(key=lambda entry: -entry.prefix.length)
    for entry in entries:
        yield builtin("ipfilter", _ARP, ArpSender(entry.prefix), action=DROP if entry.nomatch else Return())
    if config.options.ipfilter:
        for address in nic.addresses:
            if address.version == 4:
                yield builtin("ipfilter", _ARP, ArpSender(address), action=Return())


def _queue(config: GuestConfig) -> Queue | None:
    if not config.options.ips:
        return None
    queues = config.options.ips_queues
    return Queue(None, None) if queues is None else Queue(queues.first, queues.last)
