"""Read only the part of a ruleset that packets of some guests, the host and the outside can meet.

Reading all rules of a large node takes seconds. Only the NIC's own packets meet a chain of a guest's NIC. So chains of
other NICs are read as empty chains.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from pvefw_nft.verify.readers.files import read_compiled

if TYPE_CHECKING:
    from collections.abc import Callable

    from pvefw_nft.host.records.record import Desired
    from pvefw_nft.verify.model import RulesetModel

_NIC_CHAIN = re.compile(r"((?:tap|veth)\d+i\d+)-")
_JUMP = re.compile(r" -[jg] (\S+)$")
_RULE_PIECE = re.compile(r'\{"add":\{"rule":\{"family":"\w+","table":"\w+","chain":"([^"]+)"')
"""The rules of one chain, which are a piece of their own in an nft ruleset."""


class PartialReader:
    """Reads parts of one ruleset, which is parsed once."""

    def __init__(self, desired: Desired) -> None:
        """Parse nothing yet."""
        self._desired = desired
        self._document: Any = None

    def read(self, interfaces: frozenset[str]) -> RulesetModel:
        """Return the ruleset without the rules of guests' NICs that are none of these ``interfaces``."""
        desired = self._desired

        def is_met(chain: str) -> bool:
            found = _NIC_CHAIN.match(chain)
            return found is None or found[1] in interfaces

        if desired.backend == "iptables":
            if self._document is None:
                self._document = json.loads("".join(desired.pieces))
            document = dict(self._document)
            for tool in ("iptables", "ip6tables"):
                document[tool] = {table: _emptied(chains, is_met) for table, chains in document[tool].items()}
            document["ebtables"] = _emptied(document["ebtables"], is_met)
            return read_compiled(document, desired.backend)
        met = [piece for piece in desired.pieces if (found := _RULE_PIECE.match(piece)) is None or is_met(found[1])]
        commands = json.loads(f"[{','.join(met)}]")
        return read_compiled({"nftables": commands}, desired.backend)


def _emptied(chains: dict[str, list[str]], is_met: Callable[[str], bool]) -> dict[str, list[str]]:
    """Return the chains without the rules of those that are not met, and without the jumps to these."""

    def stays(line: str) -> bool:
        found = _JUMP.search(line)
        return found is None or is_met(found[1])

    return {name: [line for line in lines if stays(line)] if is_met(name) else [] for name, lines in chains.items()}
