"""Finding the rules of a long chain that a packet can match, by the interfaces that these ask for.

The iptables ruleset dispatches by one rule for each NIC. A walk of a packet tries them all; a walk that only needs the
verdict skips the rules of other interfaces:

>>> from pvefw_nft.verify.model import Chain, Jump, PHYSIN, Rule, Test, equals, interface_number
>>> numbers = [interface_number(f"tap{vmid}i0") for vmid in range(100, 200)]
>>> chain = Chain("PVEFW-FWBR-OUT", [Rule((equals(PHYSIN, number),), (), Jump("chain")) for number in numbers])
>>> list(Shortcuts().positions(chain, {PHYSIN: numbers[42]}))
[42]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pvefw_nft.verify.model import IIF, OIF, PHYSIN, PHYSOUT, Test

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pvefw_nft.verify.model import Chain, Field, Rule

_INTERFACES: Final = (PHYSIN, PHYSOUT, IIF, OIF)
_MIN_RULES: Final = 32
"""In a shorter chain the rules are tried one after the other."""


class Shortcuts:
    """Indexes of the long chains of one ruleset, made when a packet meets the chain first."""

    def __init__(self) -> None:
        """Start with no index."""
        self._indexes: dict[int, _Index] = {}

    def positions(self, chain: Chain, packet: Mapping[Field, int]) -> Sequence[int]:
        """Return the positions of rules that a packet with these interfaces may match, ascending."""
        if len(chain.rules) < _MIN_RULES:
            return range(len(chain.rules))
        index = self._indexes.get(id(chain))
        if index is None:
            index = self._indexes[id(chain)] = _Index(chain)
        return index.positions(packet)


class _Index:
    """The rules of a chain by an interface that they ask for; ``chain`` is kept, so that its id stays its own."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self._for_all: list[int] = []
        self._by: dict[Field, dict[int, list[int]]] = {}
        for position, rule in enumerate(chain.rules):
            asked = _interface(rule)
            if asked is None:
                self._for_all.append(position)
            else:
                self._by.setdefault(asked[0], {}).setdefault(asked[1], []).append(position)

    def positions(self, packet: Mapping[Field, int]) -> Sequence[int]:
        found = [*self._for_all]
        for on, by_value in self._by.items():
            found += by_value.get(packet.get(on, -1), ())
        return sorted(found)


def _interface(rule: Rule) -> tuple[Field, int] | None:
    """Return the field and value of an interface without which a rule does not match, None if there is none."""
    for condition in rule.conditions:
        if isinstance(condition, Test) and condition.field in _INTERFACES:
            bounds = condition.values.bounds
            if len(bounds) == 2 and bounds[1] == bounds[0] + 1:
                return condition.field, bounds[0]
    return None
