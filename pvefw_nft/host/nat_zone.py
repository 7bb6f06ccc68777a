"""NAT beside the iptables ruleset: rules that translate addresses, and the zone rule that they need.

With bridge-nf-call-iptables on, as the iptables ruleset needs it, a guest's packet is tracked on its firewall bridge
before the host routes it, and NAT leaves alone what is confirmed by then. Proxmox's guide has a rule for this, which
gives firewall bridges a connection tracking zone of their own::

    -t raw PREROUTING -i fwbr+ -j CT --zone 1

The ruleset of the iptables backend is the reference's and does not hold it. ``pvefw start --nat-zone`` adds it as a
rule of ours, known by its comment, and remembers that it is wanted; ``--no-nat-zone`` ends both. The nft ruleset needs
no such rule (:mod:`.zone_change`).
"""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pvefw_nft.errors import HostError

from . import conntrack, state, tools
from .nftables_state import TABLE, Nftables

if TYPE_CHECKING:
    from collections.abc import Iterator

NAT_ZONE: Final = 1
COMMENT: Final = "pvefw: NAT of guests"
_RULE: Final = (
    "PREROUTING", "-i", "fwbr+", "-m", "comment", "--comment", COMMENT, "-j", "CT", "--zone", str(NAT_ZONE),
)  # fmt: skip
_TOOLS: Final = ("iptables", "ip6tables")
_VERSIONS: Final = {"iptables": "ip", "ip6tables": "ip6"}
_LEGACY_TABLES: Final = {"iptables": "ip_tables_names", "ip6tables": "ip6_tables_names"}
_TRANSLATES: Final = re.compile(r" -j (?:MASQUERADE|SNAT|DNAT|REDIRECT|NETMAP)\b")
_ZONE_RULE: Final = re.compile(r"^-A PREROUTING .*-i fwbr\S* .*-j CT .*--zone(?:-orig)? (\d+)", re.MULTILINE)
_TRANSLATIONS: Final = ("snat", "dnat", "masquerade", "redirect", "xt")
"""Statements of rules in a chain of type nat; ``xt`` is what iptables-nft's targets are listed as."""


def nat_rules(proc: Path = Path("/proc"), listed: list[dict[str, Any]] | None = None) -> dict[str, list[str]]:
    """Return the rules of anybody that translate addresses, by iptables tool of their IP version, as text.

    ``listed`` is nft's listing of chains of type nat with their rules. Raises :class:`HostError` where rules cannot be
    listed.
    """
    found: dict[str, list[str]] = {tool: [] for tool in _TOOLS}
    for tool in _TOOLS:
        # iptables-legacy would make a table that is not there
        if "nat" in _words(proc / "net" / _LEGACY_TABLES[tool]):
            saved = tools.run([f"{tool}-legacy-save", "-t", "nat"])
            found[tool] += [line for line in saved.splitlines() if _TRANSLATES.search(line)]
    for rule in _nft_nat_rules() if listed is None else listed:
        if any(kind in statement for statement in rule["expr"] for kind in _TRANSLATIONS):
            where = f"nft: {rule['family']} {rule['table']} {rule['chain']}"
            for tool in _TOOLS:
                if rule["family"] in ("inet", _VERSIONS[tool]):
                    found[tool].append(where)
    return found


def zone_of_rule(tool: str = "iptables") -> int:
    """Return the zone that a rule in raw PREROUTING gives firewall bridges, ours or others'; 0 where none does.

    Raises :class:`HostError` where rules cannot be listed.
    """
    found = _ZONE_RULE.search(tools.run([f"{tool}-save", "-t", "raw"]))
    return 0 if found is None else int(found[1])


def missing() -> list[str]:
    """Return what is wrong, one line for each IP version: NAT rules, firewall bridges, and no zone rule.

    Raises :class:`HostError` where rules cannot be listed.
    """
    if not any(name.startswith("fwbr") for _, name in socket.if_nameindex()):
        return []
    found = nat_rules()
    return [
        f"{tool}: {len(rules)} rules translate addresses ({rules[0]}{', …' if len(rules) > 1 else ''}), and firewall "
        "bridges have no connection tracking zone: NAT does not work for guests with firewall=1"
        for tool, rules in found.items()
        if rules and not zone_of_rule(tool)
    ]


REMEDY: Final = "pvefw start --nat-zone, or `iptables -t raw -I PREROUTING -i fwbr+ -j CT --zone 1`, or the nft backend"


def is_wanted() -> bool:
    """Tell whether ``start --nat-zone`` asked for the rule. Raises :class:`HostError`."""
    return state.read(_path()) is not None


def want(*, wanted: bool) -> None:
    """Note whether the rule is to be there, also after a reboot; else it goes now. Raises :class:`HostError`."""
    if wanted:
        state.write(_path(), {"zone": NAT_ZONE})
    else:
        remove()
        state.remove(_path())


def add() -> None:
    """Add our rule, unless a rule like it is there; established connections stay. Raises :class:`HostError`."""
    for tool in _TOOLS:
        if not zone_of_rule(tool):
            guests = [entry for entry in conntrack.entries() if entry.mark and entry.answered and not entry.zone]
            conntrack.copy(guests, NAT_ZONE)
            tools.run([tool, "-w", "-t", "raw", "-I", *_RULE])


def remove() -> None:
    """Remove our rule where it is. Raises :class:`HostError`."""
    for tool in _TOOLS if is_wanted() else ():
        if _has_ours(tool):
            tools.run([tool, "-w", "-t", "raw", "-D", *_RULE])


def _has_ours(tool: str) -> bool:
    try:
        return COMMENT in tools.run([f"{tool}-save", "-t", "raw"])
    except HostError:
        return False  # without the tool it cannot have been added


def _nft_nat_rules() -> Iterator[dict[str, Any]]:
    nft = Nftables()
    for entry in nft.run([{"list": {"chains": None}}]):
        chain = entry.get("chain", {})
        if chain.get("type") != "nat" or chain["table"] == TABLE:
            continue
        body = {key: chain[key] for key in ("family", "table", "name")}
        yield from (one["rule"] for one in nft.run([{"list": {"chain": body}}]) if "rule" in one)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text("ascii", "replace").split()
    except OSError:
        return []


def _path() -> Path:
    return state.state_directory() / "nat-zone.json"
