"""A cached chain is not used if a chain that it calls, a set that it tests, or the NICs have changed."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from pvefw_nft.backends.nft import NftBackend
from pvefw_nft.cache import NO_CACHE, Cache
from pvefw_nft.ir import nodes as ir
from pvefw_nft.ir.nodes import AcceptMark, Direction, Family, InSet, Layer, Prefix, SetEntry, SetKey, Side

KEY = SetKey(0, "s")
NIC = ir.Nic("tap100i0", "fwln100i0", 100, 0, "tap100i0-IN", "tap100i0-OUT", None)
OTHER_PORT = ir.Nic("tap100i0", "fwln100i9", 100, 0, "tap100i0-IN", "tap100i0-OUT", None)


def rule(action: ir.Action, *matches: ir.Match, families: Family = Family.BOTH) -> ir.Rule:
    return ir.Rule(matches, action, ir.Origin(ir.Provenance.USER, "100.fw", 1), families)


SOURCE = ir.Address(Side.SOURCE, (Prefix(4, 0x0A000000, 8, "10.0.0.0/8"),))
CLEAR, SET = rule(ir.SetAcceptMark(on=False)), rule(ir.SetAcceptMark(on=True))
MARKED = rule(ir.Return(), AcceptMark())
SOME = rule(ir.Drop(), SOURCE, families=Family.V4)

CALLERS = {
    "jump": (rule(ir.Jump("other")),),
    "jump of some": (rule(ir.Jump("other"), SOURCE, families=Family.V4),),
    "goto": (rule(ir.Goto("other"), SOURCE, families=Family.V4), rule(ir.Accept())),
    "mark that is tested": (CLEAR, rule(ir.Jump("other")), MARKED, rule(ir.Drop())),
    "mark that is cleared late": (SOME, rule(ir.Goto("other"), SOURCE, families=Family.V4), CLEAR, MARKED),
    "mark that is cleared again": (CLEAR, rule(ir.Jump("other")), CLEAR, MARKED),
    "marks behind a jump": (rule(ir.Jump("other")), MARKED, CLEAR, MARKED),
    "bridged": (rule(ir.Jump("other"), ir.Bridged(Direction.IN)), rule(ir.Accept())),
    "sets": (rule(ir.Drop(), InSet(Side.SOURCE, KEY)), rule(ir.Drop(), InSet(Side.SOURCE, KEY, negated=True)), MARKED),
    "ports": (rule(ir.Accept(), ir.NicPort(Direction.IN, "tap100i0")), rule(ir.Dispatch(Direction.OUT))),
}
OTHERS = {
    "empty": (),
    "drops": (rule(ir.Drop()),),
    "rejects": (rule(ir.Reject(ir.RejectKind.PORT_UNREACHABLE)),),
    "accepts": (rule(ir.Accept()),),
    "drops some": (SOME,),
    "dispatches": (rule(ir.Dispatch(Direction.IN)),),
    "dispatches the other way": (rule(ir.Dispatch(Direction.OUT)),),
    "clears": (CLEAR,),
    "clears some": (rule(ir.SetAcceptMark(on=False), SOURCE, families=Family.V4),),
    "clears first": (CLEAR, SOME),
    "sets": (SET,),
    "sets some": (SOME, rule(ir.SetAcceptMark(on=True), SOURCE, families=Family.V4)),
    "leads on": (rule(ir.Jump("third")),),
}
SETS = {
    "nobody": (),
    "IPv4": (SetEntry(Prefix(4, 0x0A000000, 8, "10.0.0.0/8")),),
    "IPv6": (SetEntry(Prefix(6, 0x20010DB8 << 96, 32, "2001:db8::/32")),),
}
NICS = {"no NIC": (), "a NIC": (NIC,), "its other port": (OTHER_PORT,)}
Names = tuple[str, ...]
OF_GUESTS = (ir.Bridged, ir.NicPort)
THIRD = {"third accepts": (rule(ir.Accept()),), "third sets": (SET,)}


FORWARD = ir.Chain("PVEFW-FORWARD", (rule(ir.Jump("caller"), ir.Bridged(Direction.IN)),))


@pytest.mark.parametrize("caller", CALLERS)
def test_cached_chains_depend_on_the_present_chains(caller: str) -> None:
    """Rulesets with one difference follow each other, in both orders."""
    calling = ir.Chain("caller", CALLERS[caller])
    parts: list[dict[str, Any]] = [
        {name: ir.Chain("other", rules) for name, rules in OTHERS.items()},
        {name: ir.Chain("third", rules) for name, rules in THIRD.items()},
        {name: ir.AddressSet(KEY, entries, len(entries)) for name, entries in SETS.items()},
        {name: nics for name, nics in NICS.items() if nics or caller != "ports"},
    ]
    wholes = {
        names: ruleset(calling, *(part[name] for part, name in zip(parts, names, strict=True)))
        for names in itertools.product(*parts)
    }
    afresh = {names: lowered(made) for names, made in wholes.items()}
    assert len({tuple(pieces) for pieces in afresh.values()}) > 1
    cache = Cache()
    for one, other in itertools.permutations(wholes, 2):
        if alike(one, other):
            assert lowered(wholes[one], cache) == afresh[one], one
            assert lowered(wholes[other], cache) == afresh[other], (other, "after", one)


def alike(one: Names, other: Names) -> bool:
    """Tell whether two rulesets differ in one thing; beside the first two, one of the others is as is usual."""
    differ = [a != b for a, b in zip(one, other, strict=True)]
    usual = sum(a == b for a, b in zip(one[1:], ("third accepts", "IPv4", "a NIC"), strict=True))
    return sum(differ) == 1 and usual == (3 if differ[0] else 2)


def ruleset(
    calling: ir.Chain, other: ir.Chain, third: ir.Chain, made: ir.AddressSet, nics: tuple[ir.Nic, ...]
) -> ir.Ruleset:
    """Return a ruleset in which guests pass the chains, and a VNet if they speak of no guests."""
    own = [ir.Chain(name, (rule(ir.Drop()),)) for nic in nics for name in (nic.in_chain, nic.out_chain)]
    chains = {Layer.FILTER: {chain.name: chain for chain in (FORWARD, calling, other, third, *own)}}
    rules = (*calling.rules, *other.rules, *third.rules)
    speaks = any(isinstance(r.action, ir.Dispatch) or any(isinstance(m, OF_GUESTS) for m in r.matches) for r in rules)
    if not speaks:
        chains[Layer.FORWARD] = {chain.name: chain for chain in (calling, other, third)}
    hook = ir.Hook(Layer.FILTER, ir.HookPoint.FORWARD, FORWARD.name)
    vnets = () if speaks else (ir.Vnet("vmbr0", "caller"),)
    return ir.Ruleset(enabled=True, chains=chains, hooks=(hook,), sets=(made,), nics=nics, vnets=vnets)


def lowered(made: ir.Ruleset, cache: Cache = NO_CACHE) -> list[str]:
    return list(NftBackend().lower(made, cache).loadable())


def test_a_final_accept_is_redundant_only_at_the_end_of_a_hook() -> None:
    nic = ir.Nic("tap100i0", "fwln100i0", 100, 0, "tap100i0-IN", "tap100i0-OUT", "tap100i0-OUT")
    own = ir.Chain("tap100i0-OUT", (rule(ir.Accept()),))
    dispatch = rule(ir.Dispatch(Direction.OUT))
    last, followed = (linked(nic, own, *rules) for rules in ((dispatch,), (dispatch, rule(ir.Drop()))))
    cache = Cache()
    for made in (last, followed, last):
        assert lowered(made, cache) == lowered(made)
    assert [accepts(made) for made in (last, followed)] == [False, True]


def linked(nic: ir.Nic, own: ir.Chain, *rules: ir.Rule) -> ir.Ruleset:
    """Return a ruleset in which frames of a guest pass a chain with these rules, whatever they carry."""
    chains = {Layer.LINK: {chain.name: chain for chain in (ir.Chain("PVEFW-FORWARD", rules), own)}}
    hook = ir.Hook(Layer.LINK, ir.HookPoint.FORWARD, "PVEFW-FORWARD")
    return ir.Ruleset(enabled=True, chains=chains, hooks=(hook,), sets=(), nics=(nic,), vnets=())


def accepts(made: ir.Ruleset) -> bool:
    return any('{"accept":null}' in piece for piece in lowered(made))
