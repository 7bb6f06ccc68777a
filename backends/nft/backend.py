"""The backend itself: the rules that it does not apply, and its artefact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.backends.nft.lower import hardening_table, tables
from pvefw_nft.backends.nft.syntax.objects import transaction
from pvefw_nft.cache import NO_CACHE
from pvefw_nft.errors import Diagnostic, Severity, Span
from pvefw_nft.ir.nodes import Goto, Jump, Layer, Provenance, Reject

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pvefw_nft.backends.nft.syntax.objects import Table
    from pvefw_nft.cache import Cache
    from pvefw_nft.ir.nodes import Origin, Rule, Ruleset


_HEAD = "#!/usr/sbin/nft -f\n# Made by pvefw. Loading it replaces both tables in one transaction.\n"


class NftArtefact:
    """The two tables of a node."""

    def __init__(self, ruleset: Ruleset, cache: Cache = NO_CACHE) -> None:
        """Lower nothing yet: chains are lowered one at a time, while they are written."""
        self._ruleset = ruleset
        self._cache = cache

    def tables(self) -> tuple[Table, Table]:
        """Return the tables ``bridge pvefw`` and ``inet pvefw``."""
        return tables(self._ruleset, self._cache)

    def origins(self) -> Iterator[tuple[tuple[str, str, str, int], Origin]]:
        """Yield nothing: rules of nft name their origins in their comments."""
        return iter(())

    def loadable(self) -> Iterator[str]:
        """Yield the commands that replace both tables, in blocks as :meth:`.Table.commands` makes them."""
        for table in self.tables():
            yield from table.commands()

    def json(self) -> Iterator[str]:
        """Yield the transaction that replaces both tables, as ``nft -j -f -`` takes it: one command on a line."""
        return transaction(self.loadable())

    def text(self) -> Iterator[str]:
        """Yield the same transaction in nft's own syntax, as ``nft -f -`` takes it; no kernel is asked."""
        yield _HEAD
        for table in self.tables():
            yield "\n"
            yield from table.text()


class NftBackend:
    """nftables, by libnftables' JSON."""

    name = "nft"
    default_format = "json"

    def limits(self, ruleset: Ruleset) -> Iterator[Diagnostic]:
        """Yield a warning for each rule of a VNet that rejects: the kernel can only drop there."""
        chains = ruleset.chains.get(Layer.FORWARD, {})
        due = [vnet.chain for vnet in ruleset.vnets]
        seen: set[str] = set()
        while due:
            name = due.pop()
            if name in seen:
                continue
            seen.add(name)
            for rule in chains[name].rules:
                if not isinstance(rule.action, Jump | Goto):
                    continue
                if _rejects(chains[rule.action.chain].rules):
                    if rule.origin.provenance is Provenance.USER and rule.origin.file is not None:
                        yield _drops(Span(rule.origin.file, rule.origin.line))
                else:
                    due.append(rule.action.chain)

    def lower(self, ruleset: Ruleset, cache: Cache = NO_CACHE) -> NftArtefact:
        """Return the ruleset as tables of nft."""
        return NftArtefact(ruleset, cache)


def hardening(ruleset: Ruleset) -> str:
    """Return the transaction that loads the hardening of another backend's ruleset; empty if there is none."""
    table = hardening_table(ruleset)
    return "" if table is None else "".join(transaction(table.commands()))


def _rejects(rules: tuple[Rule, ...]) -> bool:
    return any(isinstance(rule.action, Reject) for rule in rules)


def _drops(span: Span) -> Diagnostic:
    return Diagnostic(
        Severity.WARNING,
        "drops-instead",
        span,
        "REJECT in a VNet drops: the kernel cannot reject bridged packets in its forward hook",
        "write DROP if the sender need not be told, or filter at the guests' NICs, where REJECT works",
    )
