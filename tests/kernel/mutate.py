"""Small changes of a ruleset, such as a compiler's bug would make: the lab must notice them.

A mutation drops a rule, swaps two neighbours, widens a prefix or a range of ports by one step, or changes a
verdict. It need not change what happens to any packet: a rule may be repeated by the policy below it.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

from .artefact import NFT, Artefact, Part

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Mutation:
    """A change of an artefact, with the tools' input that makes the same change to the loaded ruleset and undoes it.

    ``change`` and ``undo`` are for one and the same tool. ``artefact`` is the whole artefact as changed.
    """

    what: str
    change: Part
    undo: Part
    artefact: Artefact


def mutations(artefact: Artefact, seed: int) -> Iterator[Mutation]:
    """Yield random mutations without end; the same ones for the same seed."""
    draw = random.Random(seed)
    change = _change_nft if artefact.backend == NFT else _change_iptables
    while True:
        mutation = change(artefact, draw)
        if mutation is not None:
            yield mutation


def _wider_port(text: str) -> str:
    """Return a port or range one longer at its end."""
    first, _, last = text.partition(":")
    return f"{first}:{min(65535, int(last or first) + 1)}"


# --- iptables -----------------------------------------------------------------------------------------------

_VERDICTS = (
    (" -j ACCEPT", " -j DROP"),
    (" -j DROP", " -j ACCEPT"),
    (" -g PVEFW-SET-ACCEPT-MARK", " -j DROP"),
    (" -j RETURN", " -j DROP"),
    (" -g PVEFW-reject", " -j DROP"),
    (" -j PVEFW-reject", " -j ACCEPT"),
    (" --reject-with tcp-reset", " --reject-with icmp-port-unreachable"),
)


def _change_iptables(artefact: Artefact, draw: random.Random) -> Mutation | None:
    """Change one line of the filter rules or of the sets; None if the change drawn does not fit the line drawn."""
    parts = [part for part in artefact.parts if "filter" in part.command or "ipset" in part.command]
    number, index = draw.choice(
        [
            (number, index)
            for number, part in enumerate(parts)
            for index, line in enumerate(part.text.splitlines())
            if line.startswith(("-A ", "add ")) and "PVESIG" not in line and not _STANDARD.match(line)
        ]
    )
    lines = parts[number].text.splitlines()
    line = lines[index]
    kind = draw.choice(("drop", "swap", "widen", "verdict"))
    match kind:
        case "drop":
            del lines[index]
        case "swap":
            below = lines[index + 1] if index + 1 < len(lines) else ""
            if below.split()[:2] != line.split()[:2] or below == line or "PVESIG" in below:
                return None
            lines[index], lines[index + 1] = below, line
        case "widen":
            wider = _widened(line)
            if wider is None:
                return None
            lines[index] = wider
        case _:
            fitting = [pair for pair in _VERDICTS if pair[0] in line]
            if not fitting:
                return None
            lines[index] = line.replace(*fitting[0])
    command, chain = parts[number].command, line.split()[1]
    changed = Part(command, "\n".join(lines) + "\n")
    return Mutation(
        f"{command[0]}: {kind} {line}",
        Part(command, _refill(command, chain, lines)),
        Part(command, _refill(command, chain, parts[number].text.splitlines())),
        Artefact(artefact.backend, tuple(changed if part is parts[number] else part for part in artefact.parts)),
    )


_STANDARD = re.compile(r"-A (PVEFW-(?!HOST-)\S+|INPUT|OUTPUT|FORWARD) ")
_STANDARD_CHAIN = re.compile(r"PVEFW-(?!HOST-)")
"""Lines of standard chains are not changed: the policy behind them mostly has the same effect."""


def _refill(command: tuple[str, ...], chain: str, lines: list[str]) -> str:
    """Return input that empties a chain or set and fills it with its lines of ``lines``."""
    if command[0] == "ipset":
        return "\n".join([f"flush {chain}", *(line for line in lines if line.startswith(f"add {chain} "))]) + "\n"
    rules = [line for line in lines if line.startswith(f"-A {chain} ")]
    return "\n".join(["*filter", f"-F {chain}", *rules, "COMMIT"]) + "\n"


def _widened(line: str) -> str | None:
    """Return the line with its first network or port one step wider; None if it has none."""
    if found := re.search(r"(?<=-[sd] )\S+|(?<=^add )(\S+ )\S+", line):
        before, text = (found[1] or "", found[0].removeprefix(found[1] or ""))
        try:
            network = ip_network(text)
        except ValueError:
            return None
        if network.prefixlen <= 1:
            return None
        return line[: found.start()] + before + str(network.supernet()) + line[found.end() :]
    if found := re.search(r"(?<=--[sd]port )\d+(:\d+)?", line):
        return line[: found.start()] + _wider_port(found[0]) + line[found.end() :]
    return None


# --- nft ----------------------------------------------------------------------------------------------------


def _change_nft(artefact: Artefact, draw: random.Random) -> Mutation | None:
    """Change one rule, element or set; None if the drawn change does not fit the drawn object."""
    document = json.loads(artefact.parts[0].text)
    commands = document["nftables"]
    wanted = [
        index
        for index, command in enumerate(commands)
        if (added := _added(command, "rule", "element", "set", "map"))
        and not _STANDARD_CHAIN.match(added.get("chain", ""))
    ]
    index = draw.choice(wanted)
    before = json.dumps(commands[index])
    kind = draw.choice(("drop", "swap", "widen", "verdict"))
    match kind:
        case "drop" if _added(commands[index], "rule"):
            del commands[index]
        case "swap":
            below = commands[index + 1] if index + 1 < len(commands) else {}
            one, other = _added(commands[index], "rule"), _added(below, "rule")
            if one is None or other is None or _chain(one) != _chain(other) or one["expr"] == other["expr"]:
                return None
            commands[index], commands[index + 1] = below, commands[index]
        case "widen":
            sites = [site for site in _sites(commands[index]) if _wider(*site) is not None]
            if not sites:
                return None
            holder, key = draw.choice(sites)
            holder[key] = _wider(holder, key)
        case "verdict":
            sites = [site for site in _sites(commands[index]) if _other_verdict(*site) is not None]
            if not sites:
                return None
            holder, key = draw.choice(sites)
            holder[key] = _other_verdict(holder, key)
        case _:
            return None
    (part,) = artefact.parts
    changed = Part(part.command, json.dumps(document))
    return Mutation(f"nft: {kind} {before[:400]}", changed, part, Artefact(artefact.backend, (changed,)))


def _added(command: dict[str, Any], *kinds: str) -> dict[str, Any] | None:
    """Return the object that a command adds, if it is of one of these kinds."""
    added = command.get("add", command.get("create", {}))
    return next((added[kind] for kind in kinds if kind in added), None)


def _chain(rule: dict[str, Any]) -> tuple[str, str, str]:
    return rule["family"], rule["table"], rule["chain"]


def _sites(node: Any) -> Iterator[tuple[Any, Any]]:  # noqa: ANN401 - any JSON
    """Yield every place in a JSON value, as the object or array it is in and its key."""
    keys = node.keys() if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in list(keys):
        yield node, key
        yield from _sites(node[key])


def _wider(holder: Any, key: Any) -> Any:  # noqa: ANN401 - any JSON
    """Return a prefix or a range of numbers one step wider; None if the place holds neither."""
    match holder[key]:
        case {"prefix": {"addr": str(address), "len": int(length)}} if length > 1:
            network = ip_network(f"{address}/{length}").supernet()
            return {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}
        case {"range": [int(first), int(last)]} if last < 65535:
            return {"range": [first, last + 1]}
        case _:
            return None


def _other_verdict(holder: Any, key: Any) -> Any:  # noqa: ANN401 - any JSON
    """Return another verdict; None if the place holds none."""
    match holder[key]:
        case {"drop": None}:
            return {"accept": None}
        case {"reject": _} | {"accept": None} | {"return": None} | {"goto": _}:
            return {"drop": None}
        case _:
            return None
