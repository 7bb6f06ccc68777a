"""From the model to the IR: the meaning of a configuration. All policy is decided here and in the modules it calls.

Read the order of chains, the packets that ``dhcp: 1`` accepts and the acceptance of groups here, in the order in which
packets meet them. Backends only spell the result.

Example: a guest 100 with ``enable: 1`` and the one rule ``IN DROP -p tcp -dport 25`` gives the chains::

    tap100i0-IN   SetConnmark(100), DHCP replies accepted, NDP accepted (IPv6), tcp to 25 dropped,
                  Jump(PVEFW-Drop), Drop()
    tap100i0-OUT  SetConnmark(100), DHCP requests accepted, other MACs dropped, router advertisements dropped
                  (IPv6), SetAcceptMark(False), NDP accepted (IPv6), Goto(PVEFW-SET-ACCEPT-MARK)
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pvefw_nft.cache import NO_CACHE
from pvefw_nft.ir.forward import add_forward_chains
from pvefw_nft.ir.guest import build_guest, dependencies
from pvefw_nft.ir.host import add_blacklist, add_host_chains, add_raw_chain, cluster_sets, input_filters
from pvefw_nft.ir.nodes import (
    Bridged,
    ConnState,
    Direction,
    Dispatch,
    EtherType,
    Hook,
    HookPoint,
    Jump,
    Layer,
    Rule,
    Ruleset,
    State,
)
from pvefw_nft.ir.rules import ACCEPT, DROP, Chains, Context, builtin
from pvefw_nft.ir.standard import add_standard_chains
from pvefw_nft.ir.stateless import LIMIT, STATELESS, add_limit_chain, add_stateless_chain
from pvefw_nft.ir.zones import allocate, firewall_bridge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from pvefw_nft.cache import Cache
    from pvefw_nft.config.model import Guest, NodeConfig
    from pvefw_nft.ir.guest import GuestPart
    from pvefw_nft.ir.nodes import Chain, Nic
    from pvefw_nft.ir.zones import NicKey

PART, FILTERED_NICS = "part of a guest", "filtered NICs of a guest"
"""Stages of the cache: by VMID, what a guest adds, and its filtered NICs with whether it uses one zone."""


def build(
    node: NodeConfig,
    guests: Iterable[Guest],
    cache: Cache = NO_CACHE,
    report_failure: Callable[[Guest, Exception], None] = lambda _guest, _error: None,
    *,
    as_reference: bool = False,
    zones_in_force: Mapping[NicKey, int] | None = None,
) -> Ruleset:
    """Build the ruleset of a node. ``guests`` may be an iterator; it is read once, in order.

    ``cache`` has the chains of guests. A guest that asks for too much, or on which the build raises (a bug of
    pvefw), is closed, and ``report_failure`` is called. ``as_reference``: leave out rules that make the ruleset
    stricter than the reference's: the layers ``stateless`` and ``limit``, and the conntrack zones.
    ``zones_in_force``: the zones of the running ruleset, which NICs keep.
    """
    if not node.cluster.options.enable:
        for _ in guests:  # reading the guests reports the mistakes in their files
            pass
        return Ruleset(enabled=False)
    context, chains = Context(node, as_reference=as_reference), Chains()
    add_standard_chains(context, chains)
    add_blacklist(context, chains)
    firewalled: dict[NicKey, bool] = {}
    parts = _parts(context, _noted(guests, firewalled, cache), cache, report_failure)
    nics = tuple([nic for part in parts for nic in part.nics])
    _add_guest_chains(context, chains, parts)
    _add_host(context, chains)
    hooks = _hooks(context, chains, nics)
    host_forward, vnets = add_forward_chains(context, chains)
    sets = (*cluster_sets(context), *(made for part in parts for made in part.sets))
    return Ruleset(
        enabled=True,
        chains={layer: _unchanged(layer, of_layer, cache) for layer, of_layer in chains.layers.items()},
        hooks=hooks,
        sets=tuple([cache.same("set", made.key, made) for made in sets]),
        nics=nics,
        vnets=vnets,
        host_forward=host_forward,
        vnets_cover_host=node.host.options.enable,
        zones=None if as_reference else _zones(firewalled, zones_in_force),
    )


def _add_guest_chains(context: Context, chains: Chains, parts: Iterable[GuestPart]) -> None:
    """Add the chains of guests, and those that lead packets of firewall bridges to them."""
    dispatch_in = builtin("guests", action=Dispatch(Direction.IN))
    chains.add(Layer.FILTER, "PVEFW-FWBR-IN", [*input_filters(context), dispatch_in])
    chains.add(Layer.FILTER, "PVEFW-FWBR-OUT", [builtin("guests", action=Dispatch(Direction.OUT))])
    ips: list[Rule] = []
    for part in parts:
        chains.add_groups(context, part.groups)
        for layer, made in part.chains:
            chains.layers[layer][made.name] = made
        ips += part.ips
    if ips:
        chains.add(Layer.FILTER, "PVEFW-IPS", ips)
    chains.add(Layer.FILTER, "PVEFW-FORWARD", _forward(context, ips=bool(ips)))


def _add_host(context: Context, chains: Chains) -> None:
    """Add the chains of the host; the hooks' chains are there, but empty, if its firewall is off."""
    enabled = context.node.host.options.enable
    if enabled:
        add_host_chains(context, chains)
    for chain, target in (("PVEFW-INPUT", "PVEFW-HOST-IN"), ("PVEFW-OUTPUT", "PVEFW-HOST-OUT")):
        chains.add(Layer.FILTER, chain, [builtin("host", action=Jump(target))] if enabled else [])


def _noted(guests: Iterable[Guest], firewalled: dict[NicKey, bool], cache: Cache) -> Iterator[Guest]:
    """Yield guests, and note their filtered NICs, each with whether its guest uses one zone."""
    for guest in guests:
        firewalled.update(cache.get(FILTERED_NICS, guest.vmid, partial(_itself, guest), partial(_filtered_nics, guest)))
        yield guest


def _itself(guest: Guest) -> Guest:
    return guest


def _filtered_nics(guest: Guest) -> dict[NicKey, bool]:
    one_zone = guest.firewall is not None and guest.firewall.hardening.one_zone
    return {(guest.vmid, nic.index): one_zone for nic in guest.nics if nic.firewall}


def _parts(
    context: Context, guests: Iterable[Guest], cache: Cache, report_failure: Callable[[Guest, Exception], None]
) -> list[GuestPart]:
    """Return the parts of all guests, in order; failures are reported behind the last one."""
    parts: list[GuestPart] = []
    failed: list[tuple[Guest, Exception]] = []
    for guest in guests:
        part = cache.get(PART, guest.vmid, partial(dependencies, context, guest), partial(build_guest, context, guest))
        parts.append(part)
        if part.failure is not None:
            failed.append((guest, part.failure))
    for guest, error in failed:
        report_failure(guest, error)
    return parts


def _unchanged(layer: Layer, chains: Mapping[str, Chain], cache: Cache) -> dict[str, Chain]:
    """Return chains with the objects of the last compile for those that are equal: all but guests' are built each time.

    Later stages compare what their results depend on, which is quick for the same object.
    """
    stage = f"chain {layer.value}"
    return {name: cache.same(stage, name, chain) for name, chain in chains.items()}


def _zones(firewalled: Mapping[NicKey, bool], in_force: Mapping[NicKey, int] | None) -> dict[str, int]:
    """Return the conntrack zone of each firewall bridge. ``firewalled``: whether the NIC's guest uses one zone."""
    together = {vmid for (vmid, _), one_zone in firewalled.items() if one_zone}
    return {firewall_bridge(key): zone for key, zone in allocate(firewalled, in_force, together).items()}


_FILTER_POINTS = (HookPoint.INPUT, HookPoint.OUTPUT, HookPoint.FORWARD)


def _hooks(context: Context, chains: Chains, nics: tuple[Nic, ...]) -> tuple[Hook, ...]:
    """Return the hooks of the ruleset, and add the chains that some of them jump to."""
    hooks = [Hook(Layer.FILTER, point, f"PVEFW-{point.value}") for point in _FILTER_POINTS]
    if add_raw_chain(context, chains):
        hooks.append(Hook(Layer.RAW, HookPoint.PREROUTING, "PVEFW-PREROUTING"))
    if context.node.cluster.options.ebtables:
        chains.add(Layer.LINK, "PVEFW-FORWARD", _link_forward())
        chains.add(Layer.LINK, "PVEFW-FWBR-OUT", [builtin("guests", action=Dispatch(Direction.OUT))])
        hooks.append(Hook(Layer.LINK, HookPoint.FORWARD, "PVEFW-FORWARD"))
    if not context.as_reference and add_stateless_chain(chains, nics):
        hooks.append(Hook(Layer.STATELESS, HookPoint.PREROUTING, STATELESS))
    if not context.as_reference and add_limit_chain(chains, nics):
        hooks.append(Hook(Layer.LIMIT, HookPoint.PREROUTING, LIMIT))
    return tuple(hooks)


def _forward(context: Context, *, ips: bool) -> Iterator[Rule]:
    """Yield the rules of PVEFW-FORWARD: the state of the connection, then the direction through a firewall bridge."""
    established = ConnState((State.RELATED, State.ESTABLISHED))
    if ips:
        # before established packets are accepted, which would keep them from the queue
        yield builtin("ips", established, action=Jump("PVEFW-IPS"))
    if not context.node.host.options.nf_conntrack_allow_invalid:
        yield builtin("conntrack", ConnState((State.INVALID,)), action=DROP)
    yield builtin("conntrack", established, action=ACCEPT)
    yield builtin("guests", Bridged(Direction.IN), action=Jump("PVEFW-FWBR-IN"))
    yield builtin("guests", Bridged(Direction.OUT), action=Jump("PVEFW-FWBR-OUT"))


def _link_forward() -> Iterator[Rule]:
    """Yield the rules of layer 2: IP is filtered above it, other frames by the rules of their sender."""
    yield builtin("layer 2", EtherType(0x0800, "IPv4"), action=ACCEPT)
    yield builtin("layer 2", EtherType(0x86DD, "IPv6"), action=ACCEPT)
    yield builtin("layer 2", Bridged(Direction.OUT), action=Jump("PVEFW-FWBR-OUT"))
