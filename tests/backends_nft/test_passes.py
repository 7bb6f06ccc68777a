"""Each pass on one chain, before and after, and each beside a chain that it must leave alone."""

from __future__ import annotations

import pytest

from pvefw_nft.backends.nft.address_sets import AddressSets
from pvefw_nft.backends.nft.passes import PASSES
from pvefw_nft.backends.nft.passes.early_clear import clear_early
from pvefw_nft.backends.nft.passes.final_accept import leave_out_final_accept
from pvefw_nft.backends.nft.passes.idle_marks import leave_out_idle_marks
from pvefw_nft.backends.nft.passes.simplify import simplify_rules
from pvefw_nft.backends.nft.place import Place
from pvefw_nft.backends.nft.scope import ChainPass, Scope
from pvefw_nft.ir import nodes as ir
from pvefw_nft.ir.nodes import Direction, Family, Layer, Side

NIC = ir.Nic("tap100i0", "fwln100i0", 100, 0, "tap100i0-IN", "tap100i0-OUT", None)
EMPTY, FILLED = ir.SetKey(0, "empty"), ir.SetKey(0, "filled")
SETS = (
    ir.AddressSet(EMPTY, (), counted=0),
    ir.AddressSet(FILLED, (ir.SetEntry(ir.Prefix(4, 0x0A000000, 8, "10.0.0.0/8")),), counted=1),
)


def rule(action: ir.Action, *matches: ir.Match, log: ir.Log | None = None) -> ir.Rule:
    return ir.Rule(matches, action, ir.Origin(ir.Provenance.USER, "100.fw", 1), Family.BOTH, log)


TCP = ir.ProtocolMatch(ir.Protocol(6, "tcp"))
DROP, ACCEPT, DROP_TCP = rule(ir.Drop()), rule(ir.Accept()), rule(ir.Drop(), TCP)
SET, CLEAR = rule(ir.SetAcceptMark(on=True)), rule(ir.SetAcceptMark(on=False))
RETURN_MARKED = rule(ir.Return(), ir.AcceptMark())
LOG = ir.Log(6, 100, "tap100i0-IN", "DROP: ", None)
DISPATCH_IN = rule(ir.Dispatch(Direction.IN))

CHAINS = {
    "empty": (),
    "drops": (DROP,),
    "sets": (SET,),
    "sets some": (rule(ir.SetAcceptMark(on=True), TCP),),
    "dispatches": (DISPATCH_IN,),
    "tap100i0-IN": (DROP_TCP, ACCEPT),
}


def scope(place: Place, **chains: tuple[ir.Rule, ...]) -> Scope:
    made = {name: ir.Chain(name, rules) for name, rules in {**CHAINS, **chains}.items()}
    return Scope(place, Layer.FILTER, made, (NIC,), AddressSets(SETS), PASSES)


def test_the_fixtures_have_every_pass() -> None:
    assert {on for on, *_ in CASES.values()} == set(PASSES)


CASES: dict[str, tuple[ChainPass, Place, list[ir.Rule], list[ir.Rule]]] = {
    "a match of an empty set": (
        simplify_rules,
        Place.GUEST,
        [rule(ir.Drop(), ir.InSet(Side.SOURCE, EMPTY)), rule(ir.Drop(), ir.InSet(Side.SOURCE, FILLED))],
        [rule(ir.Drop(), ir.InSet(Side.SOURCE, FILLED))],
    ),
    "a jump to an empty chain": (simplify_rules, Place.GUEST, [rule(ir.Jump("empty"), TCP), DROP], [DROP]),
    "a jump to a chain that drops, in the bridge's forward hook": (
        simplify_rules,
        Place.BRIDGE,
        [rule(ir.Jump("drops"), TCP)],
        [DROP_TCP],
    ),
    "a jump to a chain that drops, where a rejection would be told from it": (
        simplify_rules,
        Place.GUEST,
        [rule(ir.Jump("drops"), TCP)],
        [rule(ir.Jump("drops"), TCP)],
    ),
    "a jump of bridged packets to a dispatch": (
        simplify_rules,
        Place.GUEST,
        [rule(ir.Jump("dispatches"), ir.Bridged(Direction.IN))],
        [DISPATCH_IN],
    ),
    "bridged packets where no NIC is known": (
        simplify_rules,
        Place.HOST,
        [rule(ir.Drop(), ir.Bridged(Direction.IN)), ACCEPT],
        [ACCEPT],
    ),
    "an accept that is not the end of a hook": (leave_out_final_accept, Place.GUEST, [DROP, ACCEPT], [DROP, ACCEPT]),
    "a clearing behind drops": (clear_early, Place.GUEST, [DROP_TCP, CLEAR, ACCEPT], [CLEAR, DROP_TCP, ACCEPT]),
    "a clearing behind a rule that sets the mark and leaves": (
        clear_early,
        Place.GUEST,
        [rule(ir.Goto("sets"), TCP), CLEAR],
        [CLEAR, rule(ir.Goto("sets"), TCP)],
    ),
    "a clearing behind a test of the mark": (
        clear_early,
        Place.GUEST,
        [RETURN_MARKED, CLEAR],
        [RETURN_MARKED, CLEAR],
    ),
    "a clearing behind a rule that logs the mark": (
        clear_early,
        Place.GUEST,
        [rule(ir.Drop(), TCP, log=LOG), CLEAR],
        [rule(ir.Drop(), TCP, log=LOG), CLEAR],
    ),
    "a test of a clear mark": (leave_out_idle_marks, Place.GUEST, [CLEAR, RETURN_MARKED, DROP], [CLEAR, DROP]),
    "a second clearing": (leave_out_idle_marks, Place.GUEST, [CLEAR, DROP_TCP, CLEAR], [CLEAR, DROP_TCP]),
    "a test behind a chain that may set the mark": (
        leave_out_idle_marks,
        Place.GUEST,
        [CLEAR, rule(ir.Jump("sets some")), RETURN_MARKED],
        [CLEAR, rule(ir.Jump("sets some")), RETURN_MARKED],
    ),
    "a test behind one that ends the way of marked packets": (
        leave_out_idle_marks,
        Place.GUEST,
        [RETURN_MARKED, RETURN_MARKED, DROP],
        [RETURN_MARKED, DROP],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_pass(name: str) -> None:
    run, place, before, after = CASES[name]
    assert run(before, "any", scope(place)) == after


def test_a_final_accept_of_a_chain_that_ends_a_hook_is_left_out() -> None:
    context = scope(Place.GUEST, start=(DISPATCH_IN,))
    context.end_with("start")
    assert leave_out_final_accept([DROP_TCP, ACCEPT], "tap100i0-IN", context) == [DROP_TCP]


def test_a_chain_goes_through_all_passes() -> None:
    context = scope(Place.GUEST, start=(DISPATCH_IN,), group=(DROP_TCP, CLEAR, rule(ir.Jump("empty")), RETURN_MARKED))
    assert context.rules("group") == (CLEAR, DROP_TCP)
