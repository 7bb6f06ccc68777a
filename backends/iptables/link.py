"""Lowering of layer 2: rules of the IR to lines of ebtables.

Example::

    Rule((SourceMac(bc:24:11:0a:00:01, negated),), Drop(), …)
    -A tap100i0-OUT -s ! bc:24:11:a:0:1 -j DROP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.backends.iptables import syntax
from pvefw_nft.backends.iptables.lower import LINK_PORTS
from pvefw_nft.errors import InternalError
from pvefw_nft.ir.nodes import (
    Accept,
    ArpSender,
    Bridged,
    Direction,
    Dispatch,
    Drop,
    EtherType,
    Jump,
    Return,
    SourceMac,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pvefw_nft.ir.nodes import Action, Chain, Match, Nic, Origin


def link_lines(chain: Chain, nics: tuple[Nic, ...]) -> Iterator[tuple[str, Origin]]:
    """Yield the lines of a layer 2 chain, each with the origin of its rule."""
    for rule in chain.rules:
        if isinstance(rule.action, Dispatch):
            for nic in nics:
                if nic.link_chain is not None:
                    option = syntax.in_interface(nic.interface)
                    yield syntax.rule(chain.name, option, syntax.jump(nic.link_chain)), rule.origin
        else:
            options = " ".join([_option(match) for match in rule.matches])
            yield syntax.rule(chain.name, options, _target(rule.action)), rule.origin


def _option(match: Match) -> str:
    match match:
        case SourceMac(mac, _, negated):
            return syntax.ether_source(mac, negated=negated)
        case EtherType(_, spelling):
            return syntax.ether_type(spelling)
        case ArpSender(prefix):
            return syntax.arp_source(prefix.canonical)
        case Bridged(Direction.OUT):
            return syntax.out_interface(LINK_PORTS)
        case _:
            raise InternalError(f"ebtables rules have no {type(match).__name__}")


def _target(action: Action) -> str:
    match action:
        case Accept():
            return syntax.jump("ACCEPT")
        case Drop():
            return syntax.jump("DROP")
        case Return():
            return syntax.jump("RETURN")
        case Jump(chain):
            return syntax.jump(chain)
        case _:
            raise InternalError(f"ebtables rules cannot do {type(action).__name__}")
