"""Dropping the traffic of NICs that are not behind their firewall bridges, in both directions, until they are.

Beside the ruleset, in places of their own: with the nft backend the table ``bridge pvefw-unplugged``, with the iptables
backend a chain ``pvefw-unplugged`` in tables raw and mangle (physdev; bridged packets) and in ebtables' filter (every
frame, also from and to the host's own address on the bridge). Each rule names the bridge that the NIC belongs in, and
so has no effect once the NIC is plugged.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from pvefw_nft.errors import HostError

from .. import tools
from ..apply import twin
from ..apply.nftables_state import Nftables
from ..netfilter import nf_tables
from ..records import state

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .unplugged import Port

NAME = "pvefw-unplugged"
"""The nft table, and the chains of iptables and ebtables."""
_IP_HOOKS = {"raw": "PREROUTING", "mangle": "FORWARD"}
_LINK_HOOKS = ("INPUT", "FORWARD", "OUTPUT")


def is_wanted() -> bool:
    """Tell whether the traffic of unplugged NICs is to be dropped, as was asked for last since boot."""
    return _record().exists()


def set_drops(backend: str, ports: Sequence[Port]) -> None:
    """Have exactly the traffic of these NICs dropped, by a backend's own means. Raises HostError.

    The rules of the other backend are removed after this backend's are loaded. Without ports no rules are left, but the
    option stays recorded.
    """
    known = _known()
    state.write(_record(), {"backends": sorted({backend, *known})})
    if not ports:
        for loaded in known:
            _remove(loaded)
        state.write(_record(), {"backends": []})
        return
    if backend == "nft":
        twin.replace(Nftables(), NAME, _nft_commands(ports))
    else:
        _set_iptables(ports)
    for other in known:
        if other != backend:
            _remove(other)
    state.write(_record(), {"backends": [backend]})


def remove_drops() -> None:
    """Remove all that :func:`set_drops` loaded. Raises HostError."""
    for backend in _known():
        _remove(backend)
    state.remove(_record())


def _record() -> Path:
    return state.run_directory() / "unplugged.json"


def _known() -> list[str]:
    """Return the backends by whose means drops may be loaded; both where the record cannot be read."""
    try:
        value = state.read(_record())
        return [] if value is None else [name for name in ("iptables", "nft") if name in value["backends"]]
    except (HostError, KeyError, TypeError):
        return ["iptables", "nft"]


def _remove(backend: str) -> None:
    if backend == "nft":
        if "bridge" in nf_tables.tables(NAME):
            library = Nftables()
            library.run([{"delete": {"table": {"family": "bridge", "name": NAME}}}])
            twin.remove(library, NAME)
    else:
        _remove_iptables()


# --- nft ------------------------------------------------------------------------------------------------------


def _nft_commands(ports: Sequence[Port]) -> list[dict[str, Any]]:
    """Return the transaction that replaces the table.

    Two sets, so that a frame of another port costs one look-up::

        iifname @ports meta ibrname != @bridges drop
        oifname @ports meta obrname != @bridges drop
    """
    table = {"family": "bridge", "table": NAME}
    whole = {"table": {"family": "bridge", "name": NAME}}
    commands: list[dict[str, Any]] = [{"add": whole}, {"delete": whole}, {"add": whole}]
    for name, values in (
        ("ports", {port.interface for port in ports}),
        ("bridges", {port.firewall_bridge for port in ports if port.firewall_bridge is not None}),
    ):
        elements = {"elem": sorted(values)} if values else {}
        commands.append({"add": {"set": {**table, "name": name, "type": "ifname", **elements}}})
    # before connection tracking (-200), and after all that may choose another port
    for chain, hook, priority, side in (("from", "prerouting", -310, "i"), ("to", "postrouting", 310, "o")):
        base = {"name": chain, "type": "filter", "hook": hook, "prio": priority, "policy": "accept"}
        commands.append({"add": {"chain": {**table, **base}}})
        matches = [
            {"match": {"op": "==", "left": {"meta": {"key": f"{side}ifname"}}, "right": "@ports"}},
            {"match": {"op": "!=", "left": {"meta": {"key": f"{side}brname"}}, "right": "@bridges"}},
        ]
        rule = {**table, "chain": chain, "expr": [*matches, {"counter": None}, {"drop": None}]}
        commands.append({"add": {"rule": rule}})
    return commands


# --- iptables and ebtables ------------------------------------------------------------------------------------


def _set_iptables(ports: Sequence[Port]) -> None:
    for tool in ("iptables", "ip6tables"):
        saved = tools.run([f"{tool}-save"])
        lines = []
        for table, hook in _IP_HOOKS.items():
            hooked = f"-A {hook} -j {NAME}" in _table(saved, table)
            lines += [f"*{table}", f":{NAME} - [0:0]"]
            for port in ports:
                side, match = ("i", "--physdev-in") if table == "raw" else ("o", "--physdev-is-bridged --physdev-out")
                but = f"! -{side} {port.firewall_bridge} " if port.firewall_bridge is not None else ""
                lines.append(f"-A {NAME} {but}-m physdev {match} {port.interface} -j DROP")
            lines += [] if hooked else [f"-I {hook} 1 -j {NAME}"]
            lines.append("COMMIT")
        tools.run([f"{tool}-restore", "--noflush"], "\n".join(lines) + "\n")
    saved = tools.run(["ebtables-save"])
    lines = ["*filter"]
    if f":{NAME} " not in saved:
        lines.append(f":{NAME} RETURN")
    lines.append(f"-F {NAME}")
    for port in ports:
        for side, option in (("i", "--logical-in"), ("o", "--logical-out")):
            but = f"{option} ! {port.firewall_bridge} " if port.firewall_bridge is not None else ""
            lines.append(f"-A {NAME} -{side} {port.interface} {but}-j DROP")
    lines += [f"-A {hook} -j {NAME}" for hook in _LINK_HOOKS if f"-A {hook} -j {NAME}" not in saved.splitlines()]
    tools.run(["ebtables-restore", "--noflush"], "\n".join(lines) + "\n")


def _remove_iptables() -> None:
    for tool in ("iptables", "ip6tables"):
        saved = tools.run([f"{tool}-save"])
        lines = []
        for table, hook in _IP_HOOKS.items():
            there = _table(saved, table)
            if not any(line.startswith(f":{NAME} ") for line in there):
                continue
            jumps = [f"-D {hook} -j {NAME}" for line in there if line == f"-A {hook} -j {NAME}"]
            lines += [f"*{table}", *jumps, f"-F {NAME}", f"-X {NAME}", "COMMIT"]
        if lines:
            tools.run([f"{tool}-restore", "--noflush"], "\n".join(lines) + "\n")
    with contextlib.suppress(HostError):  # not installed: then it loaded nothing
        tools.find("ebtables-save")
        saved = tools.run(["ebtables-save"])
        if f":{NAME} " in saved:
            jumps = [f"-D {hook} -j {NAME}" for hook in _LINK_HOOKS if f"-A {hook} -j {NAME}" in saved.splitlines()]
            text = "\n".join(["*filter", *jumps, f"-F {NAME}", f"-X {NAME}"]) + "\n"
            tools.run(["ebtables-restore", "--noflush"], text)


def _table(saved: str, name: str) -> list[str]:
    """Return the lines of one table in the output of iptables-save."""
    lines = saved.splitlines()
    if f"*{name}" not in lines:
        return []
    start = lines.index(f"*{name}")
    return lines[start : lines.index("COMMIT", start)]
