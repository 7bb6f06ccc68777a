"""Digests of the chains of an nft table: of the text of their rules, and of all else that its meaning depends on."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pvefw_nft.verify.readers.nft.draft import NftTable
    from pvefw_nft.verify.readers.shared import Reading

_REFERENCE = re.compile(r'"@([^"]*)"')
_UPDATE = re.compile(r'"set"\s*:\s*\{')
_LOOKUPS = ('"vmap"', '"map"', '"concat"')
"""Expressions that look packets up in sets that rules fill, too; a match of another kind does not."""


class TableDigests:
    """Gives digests to chains of one table. All of its sets are known, and which of them rules look packets up in."""

    def __init__(self, table: NftTable, reading: Reading) -> None:
        self._table = table
        self._reading = reading
        self._counting = {reference[1:] for reference in table.counting}
        objects = (table.family.value, table.name, table.helpers, table.timeouts, sorted(table.counting))
        self._common = hashlib.blake2b(repr(objects).encode(errors="surrogatepass"), digest_size=24)
        self._lookups = repr(sorted(table.lookups)).encode(errors="surrogatepass")
        self._elements: dict[str, bytes] = {}

    def of(self, text: str) -> str:
        """Return the digest of a chain by the text of its rules.

        Raises RulesetError where the sets in use depend on the order in which chains are read.
        """
        found = self._common.copy()
        found.update(f"{len(text)} {text}".encode(errors="surrogatepass"))
        escaped = "\\" in text  # any character may be spelled otherwise
        names = {*self._table.elements} if escaped else {*_REFERENCE.findall(text)}
        if self._counting & names and (escaped or any(word in text for word in _LOOKUPS)):
            raise self._reading.error(f"table {self._table.name}", "looks packets up in sets that rules fill")
        for name in sorted(names):
            found.update(b"\0" + self._members(name))
        # an update counts if packets are looked up in the set
        if escaped or ('"set"' in text and _UPDATE.search(text)):
            found.update(b"\0" + self._lookups)
        return found.hexdigest()

    def _members(self, name: str) -> bytes:
        """Return a digest of a set's or map's name and elements."""
        known = self._elements.get(name)
        if known is None:
            text = repr((name, self._table.elements.get(name)))
            known = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=32).digest()
            self._elements[name] = known
        return known
