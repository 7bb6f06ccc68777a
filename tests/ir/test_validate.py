"""Validation refuses an invalid IR."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pvefw_nft.cache import Cache
from pvefw_nft.errors import InternalError
from pvefw_nft.ir.nodes import (
    Accept,
    Address,
    ArpSender,
    AssignHelper,
    Chain,
    Direction,
    Dispatch,
    Family,
    Goto,
    Hook,
    HookPoint,
    IcmpType,
    InSet,
    Interface,
    Jump,
    Layer,
    Log,
    Match,
    Nic,
    Origin,
    PortRange,
    Ports,
    Prefix,
    Protocol,
    ProtocolMatch,
    Provenance,
    Rule,
    Ruleset,
    SetKey,
    Side,
    Vnet,
)
from pvefw_nft.ir.validate import validate

ORIGIN = Origin(Provenance.USER, "100.fw", 1)
HOST = Prefix(4, 0x0A000001, 32, "10.0.0.1")
TCP = ProtocolMatch(Protocol(6, "tcp"))


def rule(*matches: Match, **changes: object) -> Rule:
    made = Rule(matches, Accept(), ORIGIN)
    return replace(made, **changes)  # type: ignore[arg-type]  # each test names fields of Rule


def ruleset(*rules: Rule, layer: Layer = Layer.FILTER, families: Family = Family.BOTH, name: str = "a") -> Ruleset:
    chains: dict[Layer, dict[str, Chain]] = {each: {} for each in Layer}
    chains[layer][name] = Chain(name, rules, families)
    chains[layer]["v4only"] = Chain("v4only", (), Family.V4)
    return Ruleset(enabled=True, chains=chains)


INVALID = {
    "jump to nowhere": ruleset(rule(action=Jump("b"))),
    "goto nowhere": ruleset(rule(action=Goto("b"))),
    "jump to a chain of one family": ruleset(rule(action=Jump("v4only"))),
    "loop": ruleset(rule(action=Jump("a"))),
    "chain name too long": ruleset(name="a" * 29),
    "chain name with a blank": ruleset(name="a b"),
    "rule of no family of the chain": ruleset(rule(families=Family.V6), families=Family.V4),
    "address of another family": ruleset(rule(Address(Side.SOURCE, (HOST,)), families=Family.V6)),
    "address for both families": ruleset(rule(Address(Side.SOURCE, (HOST,)))),
    "no address": ruleset(rule(Address(Side.SOURCE, ()), families=Family.V4)),
    "ports without a protocol": ruleset(rule(Ports(Side.SOURCE, (PortRange(1, 1, "1"),)))),
    "ports before the protocol": ruleset(rule(Ports(Side.SOURCE, (PortRange(1, 1, "1"),)), TCP)),
    "no ports": ruleset(rule(TCP, Ports(Side.SOURCE, ()))),
    "port out of range": ruleset(rule(TCP, Ports(Side.SOURCE, (PortRange(1, 65536, "x"),)))),
    "icmp type without icmp": ruleset(rule(IcmpType(4, 8, None, "echo-request"), families=Family.V4)),
    "icmp type for both families": ruleset(
        rule(ProtocolMatch(Protocol(1, "icmp")), IcmpType(4, 8, None, "echo-request"))
    ),
    "protocol 0": ruleset(rule(ProtocolMatch(Protocol(0, "ip")))),
    "unknown set": ruleset(rule(InSet(Side.SOURCE, SetKey(0, "x")))),
    "layer 2 match in an IP chain": ruleset(rule(ArpSender(HOST))),
    "helper after connection tracking": ruleset(rule(action=AssignHelper("ftp"))),
    "dispatch with a condition": ruleset(rule(Interface(Direction.IN, "lo"), action=Dispatch(Direction.IN))),
    "log prefix too long": ruleset(rule(log=Log(6, 0, "a" * 60, "DROP: ", None))),
    "hook without a chain": replace(ruleset(), hooks=(Hook(Layer.FILTER, HookPoint.INPUT, "b"),)),
    "nic without a chain": replace(ruleset(), nics=(Nic("tap1i0", "fwln1i0", 1, 0, "b", "b", None),)),
    "vnet without a chain": replace(ruleset(), vnets=(Vnet("v", "b"),)),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid(case: str) -> None:
    with pytest.raises(InternalError):
        validate(INVALID[case])


def test_valid() -> None:
    ports = Ports(Side.DESTINATION, (PortRange(0, 65535, "0:65535"),))
    host = rule(Address(Side.SOURCE, (HOST,)), TCP, ports, families=Family.V4)
    validate(ruleset(host, rule(TCP, ports), rule(action=Jump("v4only"), families=Family.V4)))


def joined(made: Ruleset, *chains: Chain) -> Ruleset:
    named = {chain.name: chain for chain in chains}
    return replace(made, chains={**made.chains, Layer.FILTER: {**made.chains[Layer.FILTER], **named}})


@pytest.mark.parametrize(
    ("added", "problem"),
    [
        (rule(action=Jump("b")), "no chain b"),
        (rule(InSet(Side.SOURCE, SetKey(0, "gone"))), "no set"),
        (rule(ProtocolMatch(Protocol(300, "no"))), "no such protocol"),
    ],
    ids=["chain", "set", "protocol"],
)
def test_new_chain_beside_one_that_was_found_sound(added: Rule, problem: str) -> None:
    cache = Cache()
    first = ruleset(rule(TCP))
    validate(first, cache)
    validate(first, cache)
    with pytest.raises(InternalError, match=problem):
        validate(joined(first, Chain("c", (added,), Family.BOTH)), cache)


def test_chain_found_sound_whose_target_is_of_another_family_now() -> None:
    cache = Cache()
    first = ruleset(rule(action=Jump("b")))
    validate(joined(first, Chain("b", (), Family.BOTH)), cache)
    with pytest.raises(InternalError, match="b does not exist in all families"):
        validate(joined(first, Chain("b", (), Family.V4)), cache)


def test_chain_found_sound_that_reaches_itself_now() -> None:
    cache = Cache()
    first = ruleset(rule(action=Jump("b")))
    validate(joined(first, Chain("b", (), Family.BOTH)), cache)
    with pytest.raises(InternalError, match="reaches itself"):
        validate(joined(first, Chain("b", (rule(action=Jump("a")),), Family.BOTH)), cache)


def test_chain_found_sound_whose_target_is_gone() -> None:
    cache = Cache()
    first = ruleset(rule(action=Jump("b")))
    validate(joined(first, Chain("b", (), Family.BOTH)), cache)
    with pytest.raises(InternalError, match="no chain b"):
        validate(first, cache)
