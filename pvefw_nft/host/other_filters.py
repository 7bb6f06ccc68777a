"""Who else filters on this host: programs and tables with rules of their own, which a packet must pass, too."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pvefw_nft.errors import HostError

from . import tools
from .apply.nftables_state import TABLE, Nftables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

_PROGRAMS = {
    "Docker": r"DOCKER",
    "fail2ban": r"f2b-|f2b_",
    "libvirt": r"LIBVIRT_|libvirt_",
    "ufw": r"ufw6?-",
    "firewalld": r"firewalld|filter_(INPUT|FORWARD)_(POLICIES|ZONES)",
    "Kubernetes": r"KUBE-",
    "Calico": r"cali-",
    "CrowdSec": r"crowdsec|CROWDSEC",
    "LXC": r"lxc(-|$)",
    "Proxmox VE's nft firewall": r"proxmox-firewall",
}
"""Programs by how the names of their tables or chains begin."""
_OWN_RULES = "*"
"""In place of a chain's name: foreign rules are in a built-in chain."""
_OF_IPTABLES = ("filter", "nat", "mangle", "raw", "security")


def other_filters(library: Callable[[], Nftables] = Nftables) -> list[str]:
    """Return who else has rules here, a line each: a program with its tables, or a table that no known program has.

    Raises HostError if neither nft nor iptables lists rules.
    """
    return [*_summary(_foreign_chains(library))]


def _summary(chains: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield the lines for chains, each with its table."""
    tables: dict[str, set[str]] = {}
    for table, chain in chains:
        name = next((p for p, begins in _PROGRAMS.items() if _is_of(begins, table, chain)), None)
        if name is None and chain == _OWN_RULES:
            name = "rules without a chain of their own"
        elif name is None and table.split()[1] not in _OF_IPTABLES:
            name = "another program"  # chains that iptables always has say nothing
        if name is not None:
            tables.setdefault(name, set()).add(table)
    for name in sorted(tables):
        yield f"{name} ({', '.join(sorted(tables[name]))})"


def _is_of(begins: str, table: str, chain: str) -> bool:
    return re.match(begins, chain) is not None or re.match(begins, table.split()[1]) is not None


def _foreign_chains(library: Callable[[], Nftables]) -> set[tuple[str, str]]:
    """Return foreign chains, each with its table: ``ip filter``."""
    found: set[tuple[str, str]] = set()
    failures: list[HostError] = []
    try:
        listed = [entry["chain"] for entry in library().run([{"list": {"chains": None}}]) if "chain" in entry]
        found |= {(f"{one['family']} {one['table']}", one["name"]) for one in listed if not _is_ours(one["table"])}
    except HostError as error:
        failures.append(error)
    for tool, family in (("iptables", "ip"), ("ip6tables", "ip6")):
        try:
            found |= {*_saved_chains(tools.run([f"{tool}-save"], timeout=30), family)}
        except HostError as error:
            failures.append(error)
    if len(failures) == 3:
        raise failures[0]
    return {(table, chain) for table, chain in found if not chain.startswith("PVEFW-")}


def _saved_chains(text: str, family: str) -> Iterator[tuple[str, str]]:
    table = ""
    chains: dict[str, bool] = {}  # by name, whether it is one of iptables itself, which has a policy
    for line in text.splitlines():
        if line.startswith("*"):
            table, chains = f"{family} {line[1:]}", {}
        elif line.startswith(":"):
            name, policy, *_ = line[1:].split()
            chains[name] = policy != "-"
            yield table, name
        elif line.startswith("-A ") and chains.get(line.split()[1]) and _ends_here(line, chains):
            yield f"{table} {line.split()[1]}", _OWN_RULES


def _ends_here(rule: str, chains: Mapping[str, bool]) -> bool:
    """Tell whether a rule is foreign and has no target chain, whose name would show the program behind it."""
    target = re.search(r" -[jg] (\S+)", rule)
    return "pvefw" not in rule.lower() and (target is None or target[1] not in chains)


def _is_ours(table: str) -> bool:
    return table == TABLE or table.startswith(f"{TABLE}-")
