"""The invariants of the IR. They are checked after every build: a backend may rely on them.

A failure here is a bug of the compiler: the front end reports all problems of configurations.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

from pvefw_nft.cache import NO_CACHE
from pvefw_nft.errors import InternalError
from pvefw_nft.ir.nodes import (
    Accept,
    AcceptMark,
    Address,
    AddressRange,
    AddressType,
    AdvertisedOutside,
    ArpSender,
    ArpSenderMac,
    AssignHelper,
    Bridged,
    ConnectionsOver,
    ConnState,
    Dispatch,
    Drop,
    EtherType,
    Family,
    FilteredPort,
    Fragment,
    Goto,
    IcmpType,
    InSet,
    Jump,
    Layer,
    NicPort,
    NicRateOver,
    OtherEtherType,
    Ports,
    Prefix,
    ProtocolMatch,
    RateOver,
    Return,
    SetKey,
    SourceMac,
    TagOfVlanZero,
    ThirdTag,
)
from pvefw_nft.ir.zones import SHARED_ZONE, nic_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pvefw_nft.cache import Cache
    from pvefw_nft.ir.nodes import Chain, Rule, Ruleset

MAX_CHAIN_NAME = 28
"""Longest name of a chain (XT_EXTENSION_MAXNAMELEN in linux/netfilter/x_tables.h, less the terminating NUL)."""

MAX_LOG_PREFIX = 63
"""Longest log prefix of NFLOG, in bytes (struct xt_nflog_info in linux/netfilter/xt_NFLOG.h)."""

_CHAIN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_CALLS = (Jump, Goto)
_WITH_SET = (InSet, AdvertisedOutside)
_STATELESS_ACTIONS = (Drop, Return, Dispatch)
_STATELESS_MATCHES = (
    ArpSenderMac,
    AdvertisedOutside,
    Fragment,
    FilteredPort,
    TagOfVlanZero,
    ThirdTag,
    OtherEtherType,
    NicRateOver,
)
_PORT_PROTOCOLS = frozenset((6, 17, 33, 132, 136))


@dataclass(frozen=True, slots=True)
class References:
    """The references of a chain's rules: chains, each with the families in which it is called, and sets."""

    chains: tuple[tuple[str, int], ...]
    sets: tuple[SetKey, ...]

    def hold(self, chains: Mapping[str, Chain], keys: set[SetKey]) -> bool:
        """Tell whether all of them are there."""
        for name, families in self.chains:
            found = chains.get(name)
            if found is None or families & ~found.families:
                return False
        return all(key in keys for key in self.sets)


def _references(chain: Chain) -> References:
    called: dict[str, int] = {}
    sets: dict[SetKey, None] = {}
    for rule in chain.rules:
        if isinstance(rule.action, _CALLS):
            called[rule.action.chain] = called.get(rule.action.chain, 0) | (rule.families & chain.families)
        for match in rule.matches:
            if isinstance(match, _WITH_SET):
                sets[match.key] = None
    return References(tuple(called.items()), tuple(sets))


@dataclass(frozen=True, slots=True)
class _Checks:
    """Checks the chains of one layer. Many chains share rules, so ``_sound`` has those found valid, by identity.

    The rules' identities are grouped by the families of the chain.
    """

    layer: Layer
    chains: Mapping[str, Chain]
    keys: set[SetKey]
    cache: Cache
    _sound: dict[Family, set[int]] = field(default_factory=lambda: {family: set() for family in Family})

    def called(self) -> dict[str, list[str]]:
        """Check the rules of all chains. Return the chains that each one leads to. Raises InternalError."""
        stage = f"valid chain {self.layer.value}"
        called = {}
        for name, chain in self.chains.items():
            references = self.cache.get(stage, name, partial(_itself, chain), partial(self._check, chain), self._hold)
            called[name] = [other for other, _ in references.chains]
        return called

    def _check(self, chain: Chain) -> References:
        """Check the rules of a chain. Return the references on which the result depends. Raises InternalError."""
        _check_chain(self.layer, chain, self.chains, self.keys, self._sound[chain.families])
        return _references(chain)

    def _hold(self, references: References) -> bool:
        return references.hold(self.chains, self.keys)


def _itself(chain: Chain) -> Chain:
    return chain


def validate(ruleset: Ruleset, cache: Cache = NO_CACHE) -> None:
    """Check a ruleset. Raises InternalError that names the chain and its mistake."""
    keys = {made.key for made in ruleset.sets}
    for layer, chains in ruleset.chains.items():
        _check_loops(layer, _Checks(layer, chains, keys, cache).called())
    for hook in ruleset.hooks:
        _require(hook.chain in ruleset.chains[hook.layer], f"hook {hook.point.value} has no chain {hook.chain}")
    for nic in ruleset.nics:
        for chain_name in (nic.in_chain, nic.out_chain):
            _require(chain_name in ruleset.chains[Layer.FILTER], f"{nic.interface} has no chain {chain_name}")
        _require(
            nic.link_chain is None or nic.link_chain in ruleset.chains[Layer.LINK],
            f"{nic.interface} has no layer 2 chain {nic.link_chain}",
        )
        _require(
            nic.stateless_chain is None or nic.stateless_chain in ruleset.chains[Layer.STATELESS],
            f"{nic.interface} has no stateless chain {nic.stateless_chain}",
        )
        _require(
            nic.limit_chain is None or nic.limit_chain in ruleset.chains[Layer.LIMIT],
            f"{nic.interface} has no chain of limits {nic.limit_chain}",
        )
    guests: dict[int, int] = {}
    for bridge, zone in (ruleset.zones or {}).items():
        key = nic_of(bridge)
        if key is not None and zone != SHARED_ZONE:
            # an answer forged on one guest's bridge must not find another guest's connection
            alone = guests.setdefault(zone, key[0]) == key[0]
            _require(alone, "firewall bridges of two guests are in one connection tracking zone")
    for vnet in ruleset.vnets:
        _require(vnet.chain in ruleset.chains[Layer.FORWARD], f"VNet {vnet.bridge} has no chain {vnet.chain}")


def _require(holds: bool, message: str) -> None:  # noqa: FBT001 - an assertion with a message
    if not holds:
        raise InternalError(f"invalid ruleset: {message}", "this is a bug of pvefw; please report it")


def _check_chain(
    layer: Layer,
    chain: Chain,
    chains: Mapping[str, Chain],
    keys: set[SetKey],
    sound: set[int],
) -> None:
    """Check the rules of a chain. ``sound`` holds those, by identity, found in order in a chain of these families.

    Many chains share some.
    """
    name = chain.name
    if len(name) > MAX_CHAIN_NAME or not _CHAIN_NAME.fullmatch(name):
        _require(holds=False, message=f"{name!r} cannot name a chain")
    for rule in chain.rules:
        if id(rule) in sound:
            continue
        sound.add(id(rule))
        problem = _rule_problem(layer, rule, chain, chains, keys)
        if problem is not None:
            _require(holds=False, message=f"{layer.value} {name}, {rule.origin}: {problem}")


def _rule_problem(layer: Layer, rule: Rule, chain: Chain, chains: Mapping[str, Chain], keys: set[SetKey]) -> str | None:
    if not rule.families & chain.families:
        return "the rule can never match: its families are not the chain's"
    match rule.action:
        case Accept() | Drop() if layer is Layer.FILTER:
            pass  # nearly all rules
        case Jump(target) | Goto(target):
            found = chains.get(target)
            if found is None:
                return f"no chain {target}"
            # iptables-restore would refuse the jump in the family that lacks its target
            if rule.families & chain.families & ~found.families:
                return f"{target} does not exist in all families of the rule"
        case AssignHelper() if layer is not Layer.RAW:
            return "helpers are assigned before connection tracking"
        case Dispatch() if rule.matches:
            return "a dispatch has no conditions"
        case action if layer in (Layer.STATELESS, Layer.LIMIT) and not isinstance(action, _STATELESS_ACTIONS):
            return "a stateless chain only drops"
        case _:
            pass
    if rule.log is not None and len(rule.log.prefix.encode()) > MAX_LOG_PREFIX:
        return f"log prefix {rule.log.prefix!r} is too long"
    return _matches_problem(layer, rule, keys)


def _matches_problem(layer: Layer, rule: Rule, keys: set[SetKey]) -> str | None:
    protocol: int | None = None
    for match in rule.matches:
        if isinstance(match, ProtocolMatch):
            protocol = match.protocol.number
            if not 0 < protocol < 256:
                return "no such protocol"
            continue
        problem = _match_problem(match, layer, rule, protocol, keys)
        if problem is not None:
            return problem
    return None


def _match_problem(match: object, layer: Layer, rule: Rule, protocol: int | None, keys: set[SetKey]) -> str | None:
    match match:
        case Address(_, prefixes):
            if not prefixes:
                return "an address without prefixes"
            return None if all(_fits(prefix, rule.families) for prefix in prefixes) else "a prefix of another family"
        case AddressRange(_, version, first, last, _):
            fits = rule.families == (Family.V4 if version == 4 else Family.V6) and first <= last
            return None if fits else "a range that is empty or of another family"
        case InSet(_, key, _) | AdvertisedOutside(key) if key not in keys:
            return f"no set {key}"
        case Ports(_, ranges):
            valid = ranges and all(0 <= ports.first <= ports.last <= 65535 for ports in ranges)
            return None if valid and protocol in _PORT_PROTOCOLS else "ports without a protocol that has them"
        case IcmpType(version):
            of_family = rule.families == (Family.V4 if version == 4 else Family.V6)
            return None if of_family and protocol in (1, 58) else "an ICMP type without its protocol"
        case _:
            return _layer_problem(match, layer)


def _layer_problem(match: object, layer: Layer) -> str | None:
    """Return the mistake of a match that its layer does not have."""
    match match:
        case EtherType() if layer not in (Layer.LINK, Layer.STATELESS):
            return "a layer 2 match in an IP chain"
        case ArpSender() if layer is not Layer.LINK:
            return "a layer 2 match in an IP chain"
        case AdvertisedOutside() if layer is Layer.LIMIT:
            return None  # once more, after an advertisement is put together from its fragments
        case _ if isinstance(match, _STATELESS_MATCHES) and layer is not Layer.STATELESS:
            return "a match that only stateless chains have"
        case ConnectionsOver() if layer is not Layer.LIMIT:
            return "a limit of connections outside of the chains of limits"
        case ConnState() | AcceptMark() | RateOver() if layer is Layer.STATELESS:
            return "a match of connection tracking in a stateless chain"
        case AddressType() | RateOver() | NicPort() if layer is Layer.LINK:
            return "an IP match in a layer 2 chain"
        case Bridged() | SourceMac() if layer is Layer.RAW:
            return "a bridge match before connection tracking"
        case _:
            return None


def _fits(prefix: Prefix, families: Family) -> bool:
    version = 4 if families == Family.V4 else 6 if families == Family.V6 else 0
    width = 32 if prefix.version == 4 else 128
    return prefix.version == version and 0 <= prefix.length <= width and 0 <= prefix.address <= prefix.last < 1 << width


def _check_loops(layer: Layer, called: Mapping[str, list[str]]) -> None:
    """Check that no chain reaches itself: netfilter refuses loops. ``called`` are the chains that each one leads to."""
    try:
        TopologicalSorter(called).prepare()
    except CycleError as error:
        _require(holds=False, message=f"{layer.value} {error.args[1][0]} reaches itself")
