"""Lowering: a ruleset of the IR becomes two tables of nft.

``bridge pvefw``
    ``stateless`` (prerouting, -350) drops frames that no guest may send, before tracking
    ``zones`` (prerouting, -300)     a connection tracking zone for each firewall bridge
    ``raw`` (prerouting, -300)       rates of new connections, before connection tracking
    ``link`` (prerouting, -250)      frames of guests below IP: MAC addresses, ARP senders, Ethernet types
    ``helpers`` (prerouting, -160)   conntrack helpers, after connection tracking made the connection (-200)
    ``answers`` (prerouting, -158)   answers in a connection from the side that opened it
    ``limits`` (prerouting, -155)    neighbour advertisements of guests, and how many connections they may open
    ``guests`` (prerouting, -150)    IP of guests, in both directions, at the ports of firewall bridges
    ``forward`` (forward, -150)      invalid packets between all other ports; VNets
    ``sides`` (forward, -140)        which side opened a connection
    ``to-no-host`` (input, -350)     packets that a firewall bridge would hand to the host's own stack
    ``vnets-to-host`` (input, -150),
    ``vnets-from-host`` (output, -150)   VNets, between their guests and the host

``inet pvefw``
    ``raw``, ``helpers``             the same for packets that do not come by a bridge
    ``nat-prerouting`` (-110),
    ``nat-postrouting`` (90)         no address translation on firewall bridges
    ``to-no-host`` (input, -350)     packets that a firewall bridge would hand to the host's own stack
    ``answers`` (input, -158)        answers to the host in connections that others opened in its name
    ``sides`` (output, -140)         which connections the host opened
    ``input``, ``output`` (0)        the host
    ``forward`` (0)                  packets that the host routes
    ``routed`` (forward, -140)       which side opened a connection that the host routes

Guests are filtered before br_netfilter (priority 0): behind it, packets got past a filter in the forward hook (6.1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from pvefw_nft.backends.nft.address_sets import VERSIONS, AddressSets
from pvefw_nft.backends.nft.comments import comment
from pvefw_nft.backends.nft.keys import ADDRESS_FIELDS
from pvefw_nft.backends.nft.lower_matches import GUESTS, LINK_PORTS, PORTS, QINQ_PORTS, family_guard
from pvefw_nft.backends.nft.lower_rules import MAPS, RuleLowering
from pvefw_nft.backends.nft.passes import PASSES
from pvefw_nft.backends.nft.place import Place, chain_name
from pvefw_nft.backends.nft.scope import Scope
from pvefw_nft.backends.nft.shared_sets import with_shared_sets
from pvefw_nft.backends.nft.sides import (
    ANSWERED,
    ANSWERS,
    ANSWERS_HOOKS,
    OPENED,
    ROUTED,
    ROUTED_HOOK,
    ROUTED_OPENED,
    SIDES,
    SIDES_HOOKS,
    answer_rules,
    answered_rules,
    opened_rules,
    routed_opened_rules,
    routed_rules,
    side_rules,
)
from pvefw_nft.backends.nft.syntax import statements as nft
from pvefw_nft.backends.nft.syntax.expressions import anonymous_set, bits, meta, named_set
from pvefw_nft.backends.nft.syntax.objects import Chain, DynamicSet, Helper, Hook, Rule, Set, Table, VerdictMap
from pvefw_nft.backends.nft.zones import NO_NAT, ZONES, ZONES_HOOK, no_nat_rules, zone_rules
from pvefw_nft.cache import NO_CACHE
from pvefw_nft.errors import InternalError
from pvefw_nft.ir import nodes as ir
from pvefw_nft.ir.nodes import HookPoint, Layer, RateOver, Side

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from pvefw_nft.backends.nft.syntax.expressions import MetaKey, Selector, Value
    from pvefw_nft.backends.nft.syntax.objects import Block, SetType
    from pvefw_nft.backends.nft.syntax.objects import Family as TableFamily
    from pvefw_nft.backends.nft.syntax.statements import Limit, Verdict
    from pvefw_nft.cache import Cache
    from pvefw_nft.ir.nodes import Ruleset, SetKey

TABLE: Final = "pvefw"
"""The name of both tables."""

HARDENING: Final = "pvefw-hardening"
"""The name of a table with nothing but the chain ``stateless``, beside the ruleset of another backend."""

_STATELESS = Hook("prerouting", -350)  # before the kernel stores fragments and tracks connections
_RAW = Hook("prerouting", -300)  # before connection tracking (-200): a dropped packet takes no entry
_LINK = Hook("prerouting", -250)
_HELPERS = Hook("prerouting", -160)  # after connection tracking (-200) has made the connection
_LIMITS = Hook("prerouting", -155)
_GUESTS = Hook("prerouting", -150)
_BRIDGE_FORWARD = Hook("forward", -150)
_BRIDGE_INPUT = Hook("input", -150)
_BRIDGE_OUTPUT = Hook("output", -150)
_TO_NO_HOST = Hook("input", -350)
_INPUT = Hook("input", 0)
_OUTPUT = Hook("output", 0)
_FORWARD = Hook("forward", 0)

# iptables' FORWARD hook sees only IP of bridges, so other frames pass here, too.
_IP_ONLY = Rule((nft.match(meta("protocol"), anonymous_set(["ip", "ip6"]), "!="), nft.ACCEPT), "not IP")

_TO_STACK = ("ip", "arp", "ip6", "vlan", "8021ad")
"""Types that the host's stack takes or looks behind; a daemon may listen to other ones (LLDP) at a guest's port."""

_MAX_PORTS = 65_536
"""Ports of the host that are told apart."""

_BRIDGE_KEYS: tuple[MetaKey, ...] = ("ibrname", "obrname")
"""The selectors of a bridge: by the input port and by the output port of a packet."""

_MAX_SOURCES = 16_777_216
"""Sources whose rates are counted, as many as in the reference's hashlimit: 8 for each of 2,097,152 buckets.

A set takes memory for the sources it holds, not for this number. If it is full, a source not yet in it is over
the rate, as in hashlimit: a flood of forged sources must not open the firewall.
"""

_SOURCE_NETWORKS: dict[int, Selector] = {
    4: ADDRESS_FIELDS[4, Side.SOURCE],
    # a host chooses the lower 64 bits of its IPv6 address itself (RFC 4291, section 2.5.1)
    6: bits(ADDRESS_FIELDS[6, Side.SOURCE], "ffff:ffff:ffff:ffff::"),
}
"""The size of a source, by IP version: an address, in IPv6 a network of 64 bits."""


@dataclass(frozen=True, slots=True)
class _Planned:
    """A chain to be lowered: its name in the table, the maker of its rules' block, and its hook if it has one."""

    name: str
    block: Callable[[], Block]
    hook: Hook | None = None


class _Blocks:
    """The blocks of planned chains in order, each lowered while it is read."""

    def __init__(self, planned: tuple[_Planned, ...]) -> None:
        self._planned = planned

    def __iter__(self) -> Iterator[Block]:
        return (planned.block() for planned in self._planned)


@dataclass(frozen=True, slots=True)
class _CachedBlock:
    """The maker of the block of a chain of a scope: a closure would take three times the memory, for each chain."""

    table: TableLowering
    lowering: RuleLowering
    name: str
    own_name: str

    def __call__(self) -> Block:
        """Return the block, from the cache while its entry is valid."""
        return self.lowering.scope.cached(
            "block", self.name, lambda: self.table.block(self.own_name, self.lowering.chain_rules(self.name))
        )


class TableLowering:
    """Plans one table: which chains it has, and the sets, maps and helpers that their rules name."""

    def __init__(
        self,
        ruleset: Ruleset,
        family: TableFamily,
        sets: AddressSets,
        cache: Cache = NO_CACHE,
        name: str = TABLE,
    ) -> None:
        """Start with an empty table."""
        self._name = name
        self._ruleset = ruleset
        self._cache = cache
        self._family = family
        self._address_sets = sets
        self._planned: dict[str, _Planned] = {}
        self._places: dict[str, Place] = {}
        self._lowerings: dict[tuple[Place, Layer], RuleLowering] = {}
        self._used_sets: dict[tuple[SetKey, int], None] = {}
        self._sets: list[Set | DynamicSet] = []
        self._maps: dict[str, VerdictMap] = {}
        self._helpers: dict[str, Helper] = {}

    def table(self) -> Table:
        """Return the table with all that was planned."""
        planned = tuple(self._planned.values())
        return Table(
            family=self._family,
            name=self._name,
            sets=(*self._sets, *self._address_sets.named(self._used_sets)),
            helpers=tuple(self._helpers.values()),
            declared=tuple(Chain(chain.name, (), chain.hook) for chain in planned),
            maps=tuple(self._maps.values()),
            blocks=_Blocks(planned),
        )

    def lowering(self, place: Place, layer: Layer) -> RuleLowering:
        """Return the scope that lowers a layer's chains at a place of this table."""
        known = self._lowerings.get((place, layer))
        if known is None:
            ruleset = self._ruleset
            chains = ruleset.chains.get(layer, {})
            scope = Scope(place, layer, chains, ruleset.nics, self._address_sets, PASSES, self._cache)
            known = self._lowerings[place, layer] = RuleLowering(scope)
        return known

    def plan(self, name: str, make: Callable[[], Iterable[Rule]], hook: Hook | None = None) -> None:
        """Plan a chain with its rules. Raises InternalError if the table has one of that name."""
        self._plan(name, lambda: self.block(name, make()), hook)

    def _plan(self, name: str, block: Callable[[], Block], hook: Hook | None = None) -> None:
        if name in self._planned:
            raise InternalError(f"two chains of table {self._family} {self._name} are named {name}")
        self._planned[name] = _Planned(name, block, hook)

    def block(self, name: str, rules: Iterable[Rule]) -> Block:
        """Return the block of a chain of this table with these rules."""
        return Chain(name, tuple(rules)).block(self._family, self._name)

    def plan_base(
        self,
        name: str,
        hook: Hook,
        lowering: RuleLowering,
        chain: str,
        before: tuple[Rule, ...] = (),
        after: tuple[Rule, ...] = (),
    ) -> None:
        """Plan a base chain with the rules of a hook's chain, and all chains that these lead to.

        A return from the hook's chain ends the base chain, so the packet passes, as the IR wants it. A base chain that
        would only accept is left out: packets in none pass too.
        """
        rules = lowering.scope.rules(chain)
        if after or any(rule.action != ir.Accept() or rule.log is not None for rule in rules):
            self.plan(name, lambda: (*before, *lowering.rules(rules), *after), hook)
            self._note(lowering.scope, chain)
            self.plan_reached(lowering, [name for name in lowering.scope.reachable(chain) if name != chain])

    def plan_reached(self, lowering: RuleLowering, names: Iterable[str]) -> None:
        """Plan the chains that are not planned yet; several callers may lead to the same chain.

        Raises InternalError if a chain is needed at two places of the table, because it would differ between them.
        """
        scope = lowering.scope
        for name in names:
            own_name = chain_name(scope.layer, name)
            place = self._places.setdefault(own_name, scope.place)
            if place is not scope.place:
                raise InternalError(f"chain {own_name} runs in {place.value} and in {scope.place.value}")
            if own_name not in self._planned:
                self._plan(own_name, _CachedBlock(self, lowering, name, own_name))
                self._note(scope, name)

    def _note(self, scope: Scope, name: str) -> None:
        """Note the sets and maps that the rules of a chain name."""
        simple = scope.simple(name)
        self._used_sets.update(dict.fromkeys(simple.sets))
        for call in simple.calls:
            if isinstance(call, ir.Dispatch):
                map_name = MAPS[scope.layer, call.direction]
                jumps = [(port, chain_name(scope.layer, chain)) for port, chain in scope.dispatched(call.direction)]
                self._maps[map_name] = VerdictMap(map_name, tuple(jumps))

    # --- shared by both tables ---

    def plan_raw(self, place: Place, chain: str) -> None:
        """Plan the chains before connection tracking, and, after it, the helpers.

        nft can assign a helper only to a connection that exists and is new; iptables does it beforehand.
        """
        lowering = self.lowering(place, Layer.RAW)
        rules = lowering.scope.rules(chain)
        rates = [rule for rule in rules if any(isinstance(match, RateOver) for match in rule.matches)]
        early = [rule for rule in rules if not isinstance(rule.action, ir.AssignHelper)]
        late = [rule for rule in rules if isinstance(rule.action, ir.AssignHelper)]
        if early:
            # counting a source takes several nft rules, so a rule with a rate becomes a jump to a chain of its own
            jumps = [_to_rate_chain(rule, rates.index(rule)) if rule in rates else rule for rule in early]
            self.plan("raw", lambda: lowering.rules(jumps), _RAW)
        for index, rule in enumerate(rates):
            self._plan_rate(place, lowering, rule, index)
        if late:
            self.plan("helpers", lambda: lowering.rules(late), _HELPERS)
        for rule in late:
            self._add_helper(rule)

    def _plan_rate(self, place: Place, lowering: RuleLowering, rule: ir.Rule, index: int) -> None:
        """Plan the chain that asks whether a source is over a rate: return if not, else do as the rule says.

        Before that, unknown sources count as over it if too many of them come by one port of the host, so that a flood
        of forged sources from that port leaves place for other sources. Known sources are not affected::

            ip saddr != @sources-0-v4 update @newcomers-0 { iifname limit rate over 1092/second … } drop
            update @sources-0-v4 { ip saddr limit rate 200/second … } return
            drop
        """
        over = next(match for match in rule.matches if isinstance(match, RateOver)).loadable()
        rate = nft.limit(over.rate, "second", over.burst)
        seconds = over.expire // 1000
        note = comment([rule.origin])
        newcomers, updates = [], []
        for version, family in VERSIONS:
            name, source = f"sources-{index}-v{version}", _SOURCE_NETWORKS[version]
            # a set has one type of key, so each IP version has its own
            kind: SetType = "ipv4_addr" if version == 4 else "ipv6_addr"
            self._sets.append(DynamicSet(name, kind, seconds, over.sources or _MAX_SOURCES))
            guard = family_guard(family, place)
            if over.sources is not None:
                unknown = nft.match(source, named_set(name), "!=")
                of_port = nft.update(f"newcomers-{index}", meta("iifname"), _newcomers(over.sources, seconds))
                newcomers.append(Rule((*guard, unknown, of_port, nft.COUNTER, nft.DROP), note))
            updates.append(Rule((*guard, nft.update(name, source, rate), nft.RETURN), note))
        if over.sources is not None:
            self._sets.append(DynamicSet(f"newcomers-{index}", "ifname", seconds, _MAX_PORTS))
        last = ir.Rule((), rule.action, rule.origin, rule.families, rule.log)
        chain = chain_name(Layer.RAW, _rate_chain(index))
        self.plan(chain, lambda: (*newcomers, *updates, *lowering.rules([last])))

    def _add_helper(self, rule: ir.Rule) -> None:
        match rule.action, next((m for m in rule.matches if isinstance(m, ir.ProtocolMatch)), None):
            case ir.AssignHelper(name), ir.ProtocolMatch(protocol) if protocol.number == 6:
                self._helpers[name] = Helper(name, name, "tcp")
            case ir.AssignHelper(name), ir.ProtocolMatch(protocol) if protocol.number == 17:
                self._helpers[name] = Helper(name, name, "udp")
            case _:
                raise InternalError("a helper without the protocol it reads")

    def plan_zones(self, zones: Mapping[str, int]) -> None:
        """Plan the chain that gives each firewall bridge its connection tracking zone."""
        self.plan(ZONES, lambda: zone_rules(zones), ZONES_HOOK)

    def plan_sides(self) -> None:
        """Plan the chains that let only the other side answer a connection."""
        family = self._family
        self.plan(ANSWERS, partial(answer_rules, family), ANSWERS_HOOKS[family])
        self.plan(ANSWERED, partial(answered_rules, family))
        self.plan(SIDES, side_rules, SIDES_HOOKS[family])
        self.plan(OPENED, partial(opened_rules, family))
        if family == "inet":
            self.plan(ROUTED, routed_rules, ROUTED_HOOK)
            self.plan(ROUTED_OPENED, routed_opened_rules)

    def plan_no_nat(self) -> None:
        """Plan the chains that keep bridged packets on firewall bridges from being translated."""
        for name, hook in NO_NAT.items():
            self.plan(name, partial(no_nat_rules, name), hook)

    # --- guests ---

    def plan_guests(self, chain: str) -> None:
        """Plan the filter of guests: the whole of the forward hook's chain, at the ports of firewall bridges."""
        lowering = self.lowering(Place.GUEST, Layer.FILTER)
        name = chain_name(Layer.FILTER, chain)
        entries = [Rule((nft.match(meta("iifname"), LINK_PORTS), nft.jump(name)), "to guests")]
        if self._ruleset.nics:
            # not `tap*` and `veth*`: NICs without firewall=1 have such names, too
            self._sets.append(Set(GUESTS, "ifname", tuple(nic.interface for nic in self._ruleset.nics)))
            entries.append(Rule((nft.match(meta("iifname"), named_set(GUESTS)), nft.jump(name)), "from guests"))
        self.plan("guests", lambda: (_IP_ONLY, *entries), _GUESTS)
        self.plan_reached(lowering, lowering.scope.reachable(chain))

    def plan_stateless(self, chain: str) -> None:
        """Plan the stateless chains, which drop frames before any other chain."""
        self.plan_to_no_host()
        self.plan_base("stateless", _STATELESS, self.lowering(Place.LINK, Layer.STATELESS), chain)

    def plan_to_no_host(self) -> None:
        """Plan the chains that keep packets of firewall bridges from the host's stack: they come by the guest's bridge.

        Bridges hand frames to some groups (01:80:c2:00:00:0e) to the stack as coming from the port, past prerouting.
        The bridge's hook input sees most of them, the host's hook input all (br_handle_frame of net/bridge/br_input.c).
        """
        here = []
        for name, qinq in ((PORTS, False), (QINQ_PORTS, True)):
            nics = [nic for nic in self._ruleset.nics if nic.qinq is qinq]
            if nics:
                self._sets.append(Set(name, "ifname", tuple(p for nic in nics for p in (nic.interface, nic.link))))
                here.append(nft.match(meta("iifname"), named_set(name)))
        kinds = (nft.match(meta("protocol"), anonymous_set(list(_TO_STACK))),) if self._family == "bridge" else ()
        if not kinds:
            # in the host's hook, a packet to the bridge's own address comes from the bridge, not from its port
            here.append(nft.match(meta("iifname"), "fwbr*"))
        rules = tuple(Rule((*kinds, ports, nft.COUNTER, nft.DROP), "firewall bridges") for ports in here)
        self.plan("to-no-host", lambda: rules, _TO_NO_HOST)

    def plan_bridge_forward(self, chain: str) -> None:
        """Plan the chain for packets bridged elsewhere: without rules about guests, then the VNets.

        If the host firewall is on, a VNet's rules also hold between the host's own interface on that bridge and its
        guests. Packets of firewall bridges come here too, but they have passed these rules in prerouting already.
        """
        vnets = self.lowering(Place.BRIDGE, Layer.FORWARD)
        jumps: list[tuple[Value, Verdict]] = [
            (vnet.bridge, nft.jump(chain_name(Layer.FORWARD, vnet.chain))) for vnet in self._ruleset.vnets
        ]
        filtering = self.lowering(Place.BRIDGE, Layer.FILTER)
        into, out_of = (_vnet_rules(key, jumps) for key in _BRIDGE_KEYS)
        self.plan_base("forward", _BRIDGE_FORWARD, filtering, chain, before=(_IP_ONLY,), after=into if jumps else ())
        if jumps and self._ruleset.vnets_cover_host:
            self.plan_base("vnets-to-host", _BRIDGE_INPUT, filtering, chain, before=(_IP_ONLY,), after=into)
            self.plan_base("vnets-from-host", _BRIDGE_OUTPUT, filtering, chain, before=(_IP_ONLY,), after=out_of)
        for vnet in self._ruleset.vnets:
            self.plan_reached(vnets, vnets.scope.reachable(vnet.chain))

    # --- the host ---

    def plan_inet_forward(self, chain: str) -> None:
        """Plan the chain for routed packets: without rules about guests, then the host's FORWARD rules."""
        after: tuple[Rule, ...] = ()
        host = self._ruleset.host_forward
        if host is not None:
            after = (Rule((nft.jump(chain_name(Layer.FORWARD, host)),), "FORWARD rules"),)
        self.plan_base("forward", _FORWARD, self.lowering(Place.HOST, Layer.FILTER), chain, after=after)
        if host is not None:
            forward = self.lowering(Place.HOST, Layer.FORWARD)
            self.plan_reached(forward, forward.scope.reachable(host))


def _vnet_rules(key: MetaKey, jumps: list[tuple[Value, Verdict]]) -> tuple[Rule, ...]:
    """Return the rule that leads packets of each VNet's bridge to its rules."""
    statements, maps = with_shared_sets((nft.vmap(meta(key), jumps),))
    return (Rule(statements, "VNets", maps),)


def _newcomers(sources: int, seconds: int) -> Limit:
    """Return the limit of a port's sources that are not known: with it one port has at most 3/8 of the places."""
    return nft.limit(max(sources // (4 * seconds), 1), "second", max(sources // 8, 1), over=True)


def _rate_chain(index: int) -> str:
    return f"over-rate-{index}"


def _to_rate_chain(rule: ir.Rule, index: int) -> ir.Rule:
    matches = tuple(match for match in rule.matches if not isinstance(match, RateOver))
    return replace(rule, matches=matches, action=ir.Jump(_rate_chain(index)), log=None)


def tables(ruleset: Ruleset, cache: Cache = NO_CACHE) -> tuple[Table, Table]:
    """Return the tables of a ruleset; both are empty if the firewall is disabled."""
    sets = AddressSets(ruleset.sets, cache)
    bridge, host = TableLowering(ruleset, "bridge", sets, cache), TableLowering(ruleset, "inet", sets, cache)
    if ruleset.zones is not None:
        bridge.plan_zones(ruleset.zones)
        bridge.plan_sides()
        host.plan_sides()
        host.plan_no_nat()
    for hook in ruleset.hooks:
        match hook.layer, hook.point:
            case Layer.RAW, HookPoint.PREROUTING:
                bridge.plan_raw(Place.GUEST, hook.chain)
                host.plan_raw(Place.HOST, hook.chain)
            case Layer.STATELESS, HookPoint.PREROUTING:
                bridge.plan_stateless(hook.chain)
                host.plan_to_no_host()
            case Layer.LIMIT, HookPoint.PREROUTING:
                bridge.plan_base("limits", _LIMITS, bridge.lowering(Place.GUEST, Layer.LIMIT), hook.chain)
            case Layer.LINK, HookPoint.FORWARD:
                link = bridge.lowering(Place.LINK, Layer.LINK)
                # no rule follows this chain at its hook, so an accept at its end changes nothing
                link.scope.end_with(hook.chain)
                bridge.plan_base("link", _LINK, link, hook.chain)
            case Layer.FILTER, HookPoint.FORWARD:
                # iptables' one FORWARD hook sees bridged and routed packets; nft has a hook for each
                bridge.plan_guests(hook.chain)
                bridge.plan_bridge_forward(hook.chain)
                host.plan_inet_forward(hook.chain)
            case Layer.FILTER, HookPoint.INPUT:
                host.plan_base("input", _INPUT, host.lowering(Place.HOST, Layer.FILTER), hook.chain)
            case Layer.FILTER, HookPoint.OUTPUT:
                host.plan_base("output", _OUTPUT, host.lowering(Place.HOST, Layer.FILTER), hook.chain)
            case _:
                raise InternalError(f"nft has no hook for {hook.layer.value} {hook.point.value}")
    return bridge.table(), host.table()


def hardening_table(ruleset: Ruleset) -> Table | None:
    """Return a table with the stateless chains alone, for use beside another backend's ruleset.

    None if there is nothing of the kind.
    """
    bridge = TableLowering(ruleset, "bridge", AddressSets(ruleset.sets), name=HARDENING)
    for hook in ruleset.hooks:
        if hook.layer is Layer.STATELESS:
            bridge.plan_stateless(hook.chain)
            return bridge.table()
    return None
