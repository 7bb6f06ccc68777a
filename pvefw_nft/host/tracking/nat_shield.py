"""Keep NAT rules of nft from firewall bridges, beside the iptables ruleset.

The rules of :mod:`.nat_zone` in iptables' table nat end its own chains only: a chain of type nat that leaves a packet
alone is followed by the next one, be it iptables' or nft's (nf_nat_inet_fn, net/netfilter/nf_nat_core.c). A chain that
translates the packet is not. So a table of nft's own translates each packet on a firewall bridge to its own address,
ahead of all::

    table ip pvefw-nat {
      chain prerouting { type nat hook prerouting priority -110; iifname "fwbr*" dnat to ip daddr }
      chain postrouting { type nat hook postrouting priority 90; oifname "fwbr*" snat to ip saddr } }
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from pvefw_nft.errors import HostError

from ..apply import twin
from ..apply.nftables_state import TABLE, Nftables

if TYPE_CHECKING:
    from collections.abc import Iterable

NAME: Final = "pvefw-nat"
_FAMILIES: Final = ("ip", "ip6")
_CHAINS: Final = (
    ("prerouting", -110, "iifname", "dnat", "daddr"),
    ("postrouting", 90, "oifname", "snat", "saddr"),
)
"""Chain and hook, priority, match, and translation of a field, as in the nft backend."""
_FORWARDS: Final = {"dnat", "redirect"}
_INTERFACES: Final = ("iif", "iifname")


def listed() -> list[dict[str, Any]]:
    """Return nft's listing of foreign rules in chains of type nat. Raises :class:`HostError`."""
    nft = Nftables()
    found = []
    for entry in nft.run([{"list": {"chains": None}}]):
        chain = entry.get("chain", {})
        if chain.get("type") != "nat" or chain["table"] in (TABLE, twin.name_of(TABLE), NAME):
            continue
        body = {key: chain[key] for key in ("family", "table", "name")}
        found += [one["rule"] for one in nft.run([{"list": {"chain": body}}]) if "rule" in one]
    return found


def forwards(rules: Iterable[dict[str, Any]], family: str) -> dict[str, Any] | None:
    """Return a rule of nft's own that translates destinations of an IP family wherever packets come in, if any."""
    for rule in rules:
        kinds = {kind for statement in rule["expr"] for kind in statement}
        if rule["family"] in (family, "inet") and kinds & _FORWARDS and not any(map(_is_of_interface, rule["expr"])):
            return rule
    return None


def _is_of_interface(statement: dict[str, Any]) -> bool:
    left = statement.get("match", {}).get("left", {})
    return isinstance(left, dict) and left.get("meta", {}).get("key") in _INTERFACES


def add_where_needed() -> None:
    """Have the table where rules of nft translate destinations, and not elsewhere. Raises :class:`HostError`."""
    try:
        rules = listed()
    except HostError:
        return  # without libnftables there is nothing to list them by
    wanted = {family for family in _FAMILIES if forwards(rules, family) is not None}
    present = shielded()
    nft = Nftables()
    if wanted - present:
        nft.run([command for family in sorted(wanted - present) for command in _commands(family)])
    if present - wanted:
        _delete(present - wanted)


def shielded() -> set[str]:
    """Return the IP families that have the table. Raises :class:`HostError`."""
    tables = [entry["table"] for entry in Nftables().run([{"list": {"tables": None}}]) if "table" in entry]
    return {table["family"] for table in tables if table["name"] == NAME}


def remove() -> None:
    """Remove the tables where they are; a failure is no error, since they change no packet."""
    with contextlib.suppress(HostError):
        if present := shielded():
            _delete(present)


def _delete(families: Iterable[str]) -> None:
    Nftables().run([{"delete": {"table": {"family": family, "name": NAME}}} for family in sorted(families)])


def _commands(family: str) -> list[dict[str, Any]]:
    table = {"family": family, "table": NAME}
    commands: list[dict[str, Any]] = [{"add": {"table": {"family": family, "name": NAME}}}]
    for name, priority, key, kind, field in _CHAINS:
        chain = {**table, "name": name, "type": "nat", "hook": name, "prio": priority, "policy": "accept"}
        match = {"match": {"op": "==", "left": {"meta": {"key": key}}, "right": "fwbr*"}}
        same = {kind: {"addr": {"payload": {"protocol": family, "field": field}}}}
        rule = {**table, "chain": name, "expr": [match, same], "comment": "firewall bridges: no NAT"}
        commands += [{"add": {"chain": chain}}, {"add": {"rule": rule}}]
    return commands
