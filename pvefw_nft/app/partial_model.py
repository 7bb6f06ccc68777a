"""Reading of a ruleset only what packets of some guests, the host and the outside can meet.

Reading all rules of a large node takes seconds. A chain of a guest's NIC is met by that NIC's packets alone: those of
other NICs are read as if they were empty.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from pvefw_nft.verify.read import read_compiled

if TYPE_CHECKING:
    from collections.abc import Callable

    from pvefw_nft.host.record import Desired
    from pvefw_nft.verify.model import RulesetModel

_NIC_CHAIN = re.compile(r"((?:tap|veth)\d+i\d+)-")


def read_in_part(desired: Desired, interfaces: frozenset[str]) -> RulesetModel:
    """Return the ruleset without the rules of guests' NICs that are none of these ``interfaces``."""

    def is_met(chain: str) -> bool:
        found = _NIC_CHAIN.match(chain)
        return found is None or found[1] in interfaces

    if desired.backend == "iptables":
        document = json.loads("".join(desired.pieces))
        for tool in ("iptables", "ip6tables"):
            document[tool] = {table: _emptied(chains, is_met) for table, chains in document[tool].items()}
        document["ebtables"] = _emptied(document["ebtables"], is_met)
        return read_compiled(document, desired.backend)
    commands = json.loads(f"[{','.join(desired.pieces)}]")
    met = [command for command in commands if is_met(_rule_chain(command))]
    return read_compiled({"nftables": met}, desired.backend)


def _emptied(chains: dict[str, list[str]], is_met: Callable[[str], bool]) -> dict[str, list[str]]:
    return {name: lines if is_met(name) else [] for name, lines in chains.items()}


def _rule_chain(command: dict[str, Any]) -> str:
    """Return the chain that a command adds a rule to, an empty name for any other command."""
    rule = command.get("add", {}).get("rule")
    return rule["chain"] if rule is not None else ""
