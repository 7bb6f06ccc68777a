"""Find and remove the rules that Proxmox VE's firewall has loaded into this host's kernel.

proxmox-firewall has tables of its own. The chains and sets of pve-firewall have the names of pvefw's. Only the variant
of iptables that loaded them can be told, not the program.
"""

from __future__ import annotations

import re
import time

from pvefw_nft.errors import HostError

from .. import firewall, tools
from ..apply import xtables
from ..apply.apply_iptables import plan
from ..apply.nftables_state import Nftables
from ..netfilter import legacy_tables, nf_tables
from ..records import record
from .services import IPTABLES_SERVICE, NFT_SERVICE, loaded_tables, read_services

_VARIANTS = ("legacy", "nft")
_LOOK_AGAIN = 1.0  # seconds; rules that still exist then do not come from a load that was under way
# a line of `ebtables -L`, of ebtables' legacy variant: Bridge chain: FORWARD, entries: 1, policy: ACCEPT
_LEGACY_CHAIN = re.compile(r"Bridge chain: (\S+), entries: \d+, policy: (\S+)")
_HOOKED = re.compile(r"^-A INPUT -j PVEFW-INPUT$", re.MULTILINE)


def has_iptables_chains() -> bool:
    """Tell whether PVEFW chains are in use, by any variant of iptables. Raises HostError."""
    return any(_HOOKED.search(tools.run([tool])) for tool in _save_tools("iptables"))


def shares_chains() -> bool:
    """Tell whether the variant of iptables that pvefw uses holds PVEFW chains. Raises HostError."""
    return _HOOKED.search(tools.run(["iptables-save"])) is not None


def leftovers() -> list[str]:
    """Return the variants of iptables (``legacy``, ``nft``) whose PVEFW chains no firewall that runs takes care of.

    Raises HostError.
    """
    if any(service.running for service in read_services(IPTABLES_SERVICE)):
        return []
    applied = record.load_if_sound(record.running_path()) if firewall.was_started() else None
    ours = applied is not None and applied.backend == "iptables" and applied.enabled
    current = _current_variant()
    return [
        variant
        for variant in _VARIANTS
        if not (ours and variant == current)
        and tools.is_installed(f"iptables-{variant}-save")
        and _HOOKED.search(tools.run([f"iptables-{variant}-save"]))
    ]


def _save_tools(tool: str) -> list[str]:
    names = [f"{tool}-{variant}-save" for variant in _VARIANTS]
    return [name for name in names if tools.is_installed(name)] or [f"{tool}-save"]


def remove_tables() -> list[str]:
    """Remove the tables of proxmox-firewall; return their names. Raises HostError."""
    found = loaded_tables()
    if found:
        # one transaction; a table that is gone meanwhile is made first, so that it can be deleted
        commands = [
            {verb: {"table": {"family": family, "name": name}}} for family, name in found for verb in ("add", "delete")
        ]
        Nftables().run(commands)
    return [f"{family} {name}" for family, name in found]


def remove_other_variant() -> list[str]:
    """Remove PVEFW chains of the variants that ``iptables`` and ``ebtables`` do not run. Return these variants.

    pve-firewall uses the legacy ones. If pvefw uses the nft ones, chains of both are loaded. Raises HostError.
    """
    removed = []
    for tool in filter(tools.is_installed, (*xtables.IP_TOOLS, "ebtables")):
        current = _current_variant(tool)
        for variant in _VARIANTS:
            if variant == current or not tools.is_installed(f"{tool}-{variant}"):
                continue
            there = _held_by(tool, variant)
            if there.empty:
                continue
            for part in plan(there, xtables.State(), removing=True).parts:
                verb = part.command[0].removeprefix(tool)
                tools.run([f"{tool}-{variant}{verb}", *part.command[1:]], part.text)
            removed.append(f"{tool}-{variant}")
    return removed


def _held_by(tool: str, variant: str) -> xtables.State:
    """Return the PVEFW chains that one variant of a tool holds. Raises HostError."""
    if tool != "ebtables":
        return xtables.Saved({tool: tools.run([f"{tool}-{variant}-save"])}, None, "").state()
    listed = tools.run(["ebtables-nft-save"]) if variant == "nft" else _save_legacy_ebtables()
    return xtables.Saved({}, listed, "").state()


def _save_legacy_ebtables() -> str:
    """Return the rules of ebtables-legacy: ``ebtables-legacy-save`` lists the rules of the target of
    ``/usr/sbin/ebtables``.

    Raises HostError.
    """
    if not legacy_tables.has_bridge_table():
        return ""
    lines = ["*filter"]
    chain = ""
    for line in tools.run(["ebtables-legacy", "-t", "filter", "-L"]).splitlines():
        header = _LEGACY_CHAIN.match(line)
        if header is not None:
            chain, policy = header.groups()
            lines.append(f":{chain} {policy}")
        elif chain and line:
            lines.append(f"-A {chain} {line.rstrip()}")
    return "\n".join(lines) + "\n"


def _current_variant(tool: str = "iptables") -> str:
    """Return which variant a tool is. Raises HostError if it is not installed."""
    return "legacy" if "(legacy)" in tools.version(tool) else "nft"


def wait_until_loaded(service: str, seconds: float) -> None:
    """Wait until a service of Proxmox VE runs and its rules are loaded, twice in a row.

    Raises HostError if that does not come about within so many seconds.
    """
    end = time.monotonic() + seconds
    seen = 0
    while seen < 2:
        seen = seen + 1 if _is_loaded(service) else 0
        if time.monotonic() > end:
            raise HostError(
                f"{service} has not loaded its rules within {seconds:.0f} s; pvefw's rules stay",
                f"see `journalctl -u {service}`; `pvefw take-over` goes back",
            )
        time.sleep(_LOOK_AGAIN)


def _is_loaded(service: str) -> bool:
    if not any(found.active == "active" for found in read_services(service)):
        return False
    if service == IPTABLES_SERVICE:
        return has_iptables_chains()
    assert service == NFT_SERVICE
    found = loaded_tables()
    return bool(found) and all(nf_tables.rules(family, name) for family, name in found)
