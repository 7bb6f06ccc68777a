"""The part of a ruleset that an unchanged guest adds, noted as JSON by one process and taken up by a later one.

Its chains come back without their rules (:class:`NotedChain`): a backend that has noted their lowered form needs none.
If anything asks for the rules after all, the guest's file is read and its chains are built as without notes.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pvefw_nft.cache import Once
from pvefw_nft.config.values import Prefix
from pvefw_nft.ir.guest import GuestPart
from pvefw_nft.ir.nodes import (
    AddressSet,
    Chain,
    Direction,
    Family,
    Layer,
    Nic,
    Origin,
    Provenance,
    SetEntry,
    SetKey,
)
from pvefw_nft.ir.validate import References

if TYPE_CHECKING:
    from collections.abc import Callable

    from pvefw_nft.ir.nodes import Rule

_T = TypeVar("_T")

_MAX_NIC = 31
_OWN_NAME = re.compile(r"(?:tap|veth)([1-9][0-9]{0,8})i([0-9]{1,2})(-(?:IN|OUT)(?:-ARP|-PROTO)?)?")


class NotedChain(Chain):
    """A chain whose rules are built when they are asked for. It equals no other chain."""

    __slots__ = ("_build",)
    _build: Callable[[], tuple[Rule, ...]]

    def __init__(self, name: str, families: Family, build: Callable[[], tuple[Rule, ...]]) -> None:
        """Build nothing yet."""
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "families", families)
        object.__setattr__(self, "_build", build)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules, built now."""
        return self._build()

    def __eq__(self, other: object) -> bool:
        """Compare by identity: comparing rules would build them."""
        return self is other

    def __hash__(self) -> int:
        """Return a hash of the identity."""
        return id(self)


def typed(value: Any, kind: type[_T]) -> _T:  # noqa: ANN401 - JSON
    """Return a JSON value that must be of this type. Raises TypeError."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{str(value)[:40]!r} is not {kind.__name__}")
    return value


# --- a guest ------------------------------------------------------------------------------------------------


def part_as_json(part: GuestPart) -> dict[str, Any] | None:
    """Return what a guest adds as JSON, without rules; None if that needs more than this form has."""
    if part.failure is not None or part.ips:
        return None
    return {
        "chains": [[layer.value, chain.name, chain.families.value] for layer, chain in part.chains],
        "groups": [[group, direction.value] for group, direction in part.groups],
        "nics": [[n.interface, n.link, n.index, n.in_chain, n.out_chain, *_other_chains(n), n.qinq] for n in part.nics],
        "sets": [_set_as_json(made) for made in part.sets],
    }


def _other_chains(nic: Nic) -> tuple[str | None, ...]:
    return nic.link_chain, nic.stateless_chain, nic.limit_chain


def part_of_json(value: Any, vmid: int, build: Callable[[], GuestPart]) -> GuestPart:  # noqa: ANN401 - JSON
    """Return what the guest ``vmid`` adds; ``build`` makes it afresh where the rules of its chains are asked for.

    Raises TypeError, ValueError, KeyError or IndexError for JSON that is not the part of this guest.
    """
    real = Once(build)

    def rules(place: int, name: str) -> tuple[Rule, ...]:
        chain = real().chains[place][1]
        if chain.name != name:
            raise ValueError(f"a chain {name} that the guest does not have")
        return chain.rules

    chains = []
    for place, (layer, name, families) in enumerate(value["chains"]):
        build_rules = partial(rules, place, _own(name, vmid, suffix=True))
        chains.append((Layer(layer), NotedChain(name, Family(families), build_rules)))
    groups = tuple([(typed(group, str), Direction(direction)) for group, direction in value["groups"]])
    nics = tuple([_nic(nic, vmid) for nic in value["nics"]])
    return GuestPart(tuple(chains), groups, nics, tuple([_set_of_json(made, vmid) for made in value["sets"]]))


def _nic(value: list[Any], vmid: int) -> Nic:
    interface, link, index, in_chain, out_chain, *others, qinq = value
    if typed(index, int) > _MAX_NIC or link != f"fwln{vmid}i{index}" or not _own(interface, vmid).endswith(f"i{index}"):
        raise ValueError(f"a NIC {interface[:40]!r} of guest {vmid}")
    link_chain, stateless, limit = (None if name is None else _own(name, vmid, suffix=True) for name in others)
    names = _own(in_chain, vmid, suffix=True), _own(out_chain, vmid, suffix=True)
    return Nic(interface, link, vmid, index, *names, link_chain, stateless, limit, typed(qinq, bool))


def _own(name: Any, vmid: int, *, suffix: bool = False) -> str:  # noqa: ANN401 - JSON
    """Return a name that must be of an interface of this guest, or with ``suffix`` of a chain. Raises ValueError."""
    found = _OWN_NAME.fullmatch(typed(name, str))
    if found is None or int(found[1]) != vmid or (found[3] is not None) is not suffix:
        raise ValueError(f"the name {name[:40]!r} of guest {vmid}")
    return found[0]


def _set_as_json(made: AddressSet) -> list[Any]:
    entries = [
        [entry.prefix.version, entry.prefix.address, entry.prefix.length, entry.prefix.spelling, entry.nomatch]
        for entry in made.entries
    ]
    origin = made.origin
    return [made.key.name, entries, made.counted, None if origin is None else [origin.file, origin.line]]


def _set_of_json(value: list[Any], vmid: int) -> AddressSet:
    name, entries, counted, origin = value
    found = tuple([SetEntry(_prefix(*prefix), typed(nomatch, bool)) for *prefix, nomatch in entries])
    place = None if origin is None else Origin(Provenance.USER, typed(origin[0], str), typed(origin[1], int))
    return AddressSet(SetKey(vmid, typed(name, str)), found, typed(counted, int), place)


def _prefix(version: Any, address: Any, length: Any, spelling: Any) -> Prefix:  # noqa: ANN401 - JSON
    bits = {4: 32, 6: 128}[version]
    if not (0 <= typed(address, int) < 1 << bits and 0 <= typed(length, int) <= bits):
        raise ValueError(f"the prefix {address}/{length}")
    return Prefix(version, address, length, typed(spelling, str))


# --- the chain's validity -----------------------------------------------------------------------------------


def references_as_json(found: References) -> list[Any]:
    """Return the references of a valid chain as JSON."""
    return [[list(one) for one in found.chains], [[key.scope, key.name] for key in found.sets]]


def references_of_json(value: Any) -> References:  # noqa: ANN401 - JSON
    """Return the references of a valid chain. Raises TypeError and ValueError."""
    chains, sets = value
    return References(
        tuple([(typed(name, str), typed(families, int)) for name, families in chains]),
        tuple([SetKey(typed(scope, int), typed(name, str)) for scope, name in sets]),
    )
