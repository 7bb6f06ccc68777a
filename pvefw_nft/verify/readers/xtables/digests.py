"""Digests of chains of iptables: of the text of their rules, and of the sets that it names."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from pvefw_nft.verify.readers.shared import RulesetError

if TYPE_CHECKING:
    from pvefw_nft.verify.readers.ipset import IpSets

_BETWEEN_WORDS = re.compile(r'[\s"]+')
_QUOTED = re.compile(r'"[^"\\\n]*"')
_NAMES_SET = re.compile(r'-set[\s"]')
_LOOKUP = re.compile(r"(?<!\S)--match-set\s+(\S+)")
_OLD_LOOKUP = re.compile(r"--set(?![\w-])")
"""The option's former name."""


def _telling(text: str) -> str:
    """Return the lines of a chain that may name sets; of a text with escapes, which may spell any option, all."""
    if "\\" in text:
        return text
    return "\n".join([line for line in text.split("\n") if "-set" in line]) if "-set" in text else ""


class SetDigests:
    """Tells the sets that a chain's text names, and its digest."""

    def __init__(self, sets: IpSets) -> None:
        self._sets = sets
        self._known: dict[str, bytes] = {}
        self._nested = any(one.kind == "list:set" for one in sets.sets.values())
        self._plain = not self._nested and not any(_BETWEEN_WORDS.search(name) for name in sets.sets)

    def looked_up(self, text: str) -> set[str]:
        """Return the sets that rules look packets up in. Raises RulesetError where only reading them tells."""
        telling = _telling(text)
        if not self._sets.sets or not telling:
            return set()
        # a quoted word leaves a quote behind, which is the name of no set
        found = {*_LOOKUP.findall(_QUOTED.sub('"', telling))}
        told = len(_LOOKUP.findall(telling)) == telling.count("match-set") and found <= self._sets.sets.keys()
        if not told or "\\" in telling or not self._plain or _OLD_LOOKUP.search(telling):
            raise RulesetError("a rule's text does not tell its sets")
        return found

    def of(self, table: tuple[str, str], text: str) -> str:
        """Return the digest of a chain of a table (by tool and name), by the lines of its rules."""
        found = hashlib.blake2b(f"{table} {text}".encode(errors="surrogatepass"), digest_size=24)
        telling = _telling(text)
        escaped = "\\" in telling
        if escaped or _NAMES_SET.search(telling):
            known = self._sets.sets
            words = {*_BETWEEN_WORDS.split(telling)} if self._plain and not escaped else {*known}
            for name in sorted(words & known.keys()):
                found.update(self._members(name))
        return found.hexdigest()

    def _members(self, name: str) -> bytes:
        """Return a digest of a set: its kind, options and entries."""
        known = self._known.get(name)
        if known is None:
            text = repr(self._sets.sets[name])
            known = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=32).digest()
            self._known[name] = known
        return known
