"""NAT beside the iptables ruleset: rules that translate addresses, and the zone rule that they need.

With bridge-nf-call-iptables on, as the iptables ruleset needs it, a guest's packet is tracked on its firewall bridge
before the host routes it, and NAT skips packets that are confirmed by then. Proxmox's guide has a rule for this, which
gives firewall bridges a connection tracking zone of their own::

    -t raw PREROUTING -i fwbr+ -j CT --zone 1

The ruleset of the iptables backend is the reference's and does not hold it. ``pvefw start --nat-zone`` adds it as a
rule of ours, known by its comment, and remembers that it is wanted; ``--no-nat-zone`` ends both. The nft ruleset needs
no such rule (:mod:`.zone_change`). Two effects go with it:

- A packet keeps the first template that a rule attaches (xt_ct_target, net/netfilter/xt_CT.c), so behind the zone rule
  ``nf_conntrack_helpers`` assigns nothing. Each of its rules is repeated in front, with zone and helper in one.
- The host's NAT rules meet a packet on the firewall bridge first. A port forward would translate it there, and the
  bridge, whose rp_filter is on, drops what its routing table sends elsewhere (br_nf_pre_routing_finish,
  net/bridge/br_netfilter_hooks.c). So NAT leaves out firewall bridges, and translates on the guest's bridge::

    -t nat PREROUTING  -i fwbr+ -j ACCEPT
    -t nat POSTROUTING -o fwbr+ -j ACCEPT

  Beside NAT rules of nft a table of its own does this (:mod:`.nat_shield`).
"""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pvefw_nft.errors import HostError

from .. import tools
from ..netfilter import conntrack
from ..records import state
from . import nat_shield

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NAT_ZONE: Final = 1
COMMENT: Final = "pvefw: NAT of guests"
_OURS: Final = f'-m comment --comment "{COMMENT}"'
_SHIELDS: Final = (f"PREROUTING -i fwbr+ {_OURS} -j ACCEPT", f"POSTROUTING -o fwbr+ {_OURS} -j ACCEPT")
"""Rules of table nat that keep NAT from firewall bridges."""
_TOOLS: Final = ("iptables", "ip6tables")
_VERSIONS: Final = {"iptables": "ip", "ip6tables": "ip6"}
_LEGACY_TABLES: Final = {"iptables": "ip_tables_names", "ip6tables": "ip6_tables_names"}
_TRANSLATES: Final = re.compile(r" -j (?:MASQUERADE|SNAT|DNAT|REDIRECT|NETMAP)\b")
_ZONE_RULE: Final = re.compile(r"^-A PREROUTING .*-i fwbr\S* .*-j CT .*--zone(?:-orig)? (\d+)")
_HELPER_RULE: Final = re.compile(r"^-A PVEFW-PREROUTING (-p \S+ -m \S+ --dport \d+) -j CT --helper (\S+)$")
_FORWARD: Final = re.compile(r"^-A PREROUTING (?!.*-i ).* -j (?:DNAT|REDIRECT|NETMAP)\b")
"""A rule that translates destinations wherever packets come in."""
_TRANSLATIONS: Final = ("snat", "dnat", "masquerade", "redirect", "xt")
"""Statements of rules in a chain of type nat; ``xt`` is what iptables-nft's targets are listed as."""


def nat_rules(proc: Path = Path("/proc"), listed: list[dict[str, Any]] | None = None) -> dict[str, list[str]]:
    """Return the rules of anybody that translate addresses, by iptables tool of their IP version, as text.

    ``listed`` is nft's listing of chains of type nat with their rules. Raises :class:`HostError` if rules cannot be
    listed.
    """
    found: dict[str, list[str]] = {tool: [] for tool in _TOOLS}
    for tool in _TOOLS:
        # iptables-legacy would make a table that is not there
        if "nat" in _words(proc / "net" / _LEGACY_TABLES[tool]):
            saved = tools.run([f"{tool}-legacy-save", "-t", "nat"])
            found[tool] += [line for line in saved.splitlines() if _TRANSLATES.search(line)]
    for rule in nat_shield.listed() if listed is None else listed:
        if any(kind in statement for statement in rule["expr"] for kind in _TRANSLATIONS):
            where = f"nft: {rule['family']} {rule['table']} {rule['chain']}"
            for tool in _TOOLS:
                if rule["family"] in ("inet", _VERSIONS[tool]):
                    found[tool].append(where)
    return found


def zone_of_rule(tool: str = "iptables") -> int:
    """Return the zone that a rule in raw PREROUTING, pvefw's or a foreign one, gives firewall bridges; 0: none.

    Raises :class:`HostError` if rules cannot be listed.
    """
    return _zone(_listed(tool, "raw"))


def _listed(tool: str, table: str) -> list[str]:
    return tools.run([f"{tool}-save", "-t", table]).splitlines()


def _zone(raw: list[str]) -> int:
    found = next(filter(None, map(_ZONE_RULE.match, raw)), None)
    return 0 if found is None else int(found[1])


def missing() -> list[str]:
    """Return the problem, one line for each IP version: NAT rules, firewall bridges, and no zone rule.

    Raises :class:`HostError` if rules cannot be listed.
    """
    if not any(name.startswith("fwbr") for _, name in socket.if_nameindex()):
        return []
    listed = nat_shield.listed()
    found = [line for tool, rules in nat_rules(listed=listed).items() if rules for line in _problems(tool, rules)]
    return found + list(_unshielded(listed))


def _unshielded(listed: list[dict[str, Any]]) -> Iterator[str]:
    shielded = nat_shield.shielded()
    for tool, version in _VERSIONS.items():
        rule = nat_shield.forwards(listed, version)
        if rule is not None and version not in shielded and _zone(_listed(tool, "raw")):
            yield (
                f"{tool}: a port forward (nft: {rule['family']} {rule['table']} {rule['chain']}) translates packets on "
                "firewall bridges already: it does not work for guests with firewall=1 that use it themselves"
            )


def _problems(tool: str, rules: list[str]) -> Iterator[str]:
    raw = _listed(tool, "raw")
    if not _zone(raw):
        more = ", …" if len(rules) > 1 else ""
        yield (
            f"{tool}: {len(rules)} rules translate addresses ({rules[0]}{more}), and firewall bridges have no "
            "connection tracking zone: NAT does not work for guests with firewall=1"
        )
        return
    helpers = [found[2] for found in map(_HELPER_RULE.match, raw) if found is not None]
    if helpers and not any(COMMENT in line and "--helper" in line for line in raw):
        yield f"{tool}: the zone rule for firewall bridges keeps guests' packets from helpers ({', '.join(helpers)})"
    nat = _listed(tool, "nat")
    forward = next((line for line in nat if _FORWARD.match(line)), None)
    if forward is not None and not any("-i fwbr+" in line and line.endswith("-j ACCEPT") for line in nat):
        yield (
            f"{tool}: a port forward ({forward}) translates packets on firewall bridges already: it does not work for "
            "guests with firewall=1 that use it themselves"
        )


REMEDY: Final = "pvefw start --nat-zone, or the nft backend"


def is_wanted() -> bool:
    """Tell whether ``start --nat-zone`` asked for the rule. Raises :class:`HostError`."""
    return state.read(_path()) is not None


def want(*, wanted: bool) -> None:
    """Note whether the rules are to be there, also after a reboot; else they go now. Raises :class:`HostError`."""
    if wanted:
        state.write(_path(), {"zone": NAT_ZONE})
    else:
        remove()
        state.remove(_path())


def add() -> None:
    """Add our rules where they are missing; established connections stay. Raises :class:`HostError`."""
    for tool in _TOOLS:
        raw = _listed(tool, "raw")
        others = _zone([line for line in raw if COMMENT not in line])
        if not _zone(raw):
            guests = [entry for entry in conntrack.entries() if entry.mark and entry.answered and not entry.zone]
            conntrack.copy(guests, NAT_ZONE)
        zone = others or NAT_ZONE
        wanted = [
            f"PREROUTING -i fwbr+ {found[1]} {_OURS} -j CT --helper {found[2]} --zone {zone}"
            for found in map(_HELPER_RULE.match, raw)
            if found is not None
        ]
        if not others:
            wanted.append(f"PREROUTING -i fwbr+ {_OURS} -j CT --zone {zone}")
        _replace(tool, "raw", raw, wanted)
        _replace(tool, "nat", _listed(tool, "nat"), _SHIELDS)
    nat_shield.add_where_needed()


def remove() -> None:
    """Remove our rules where they are. Raises :class:`HostError`."""
    for tool in _TOOLS if is_wanted() else ():
        for table in ("raw", "nat"):
            try:
                listed = _listed(tool, table)
            except HostError:
                continue  # without the tool none can have been added
            _replace(tool, table, listed, ())
    if is_wanted():
        nat_shield.remove()


def _replace(tool: str, table: str, listed: Sequence[str], wanted: Sequence[str]) -> None:
    """Put exactly these rules in front of each chain of a table, in one transaction."""
    present = [line.removeprefix("-A ") for line in listed if COMMENT in line]
    if present == list(wanted):
        return
    lines = [f"-D {rule}" for rule in present] + [f"-I {rule}" for rule in reversed(wanted)]
    tools.run([f"{tool}-restore", "-w", "--noflush"], "\n".join([f"*{table}", *lines, "COMMIT", ""]))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text("ascii", "replace").split()
    except OSError:
        return []


def _path() -> Path:
    return state.state_directory() / "nat-zone.json"
