"""The backend itself: which chains go to which tool, and the text and JSON of the whole.

The text is restore input for each tool, in the order in which an apply needs it: sets before the rules that use
them. A comment line ``### TOOL`` heads each part. The last rule of each chain is a comment with the chain's
signature, by which a later run sees whether the chain changed.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

from pvefw_nft.backends.iptables.link import link_lines
from pvefw_nft.backends.iptables.lower import ChainLowering
from pvefw_nft.backends.iptables.noted import NotedLines
from pvefw_nft.backends.iptables.sets import SetNames, set_lines
from pvefw_nft.backends.signature import signature
from pvefw_nft.cache import NO_CACHE
from pvefw_nft.errors import Diagnostic, Severity, Span
from pvefw_nft.ir.nodes import Dispatch, Drop, Family, Layer, Provenance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pvefw_nft.cache import Cache
    from pvefw_nft.ir.nodes import Chain, Hook, Origin, Ruleset

_TABLES = {Layer.FILTER: "filter", Layer.RAW: "raw"}
_TOOLS = {Family.V4: "iptables", Family.V6: "ip6tables"}


class IptablesArtefact:
    """The reference ruleset of a node."""

    def __init__(self, ruleset: Ruleset, cache: Cache = NO_CACHE) -> None:
        """Lower nothing yet: chains are lowered one at a time, while they are written."""
        self._ruleset = ruleset
        self._cache = cache
        self._names = SetNames(ruleset.sets)

    def chains(
        self, family: Family, layer: Layer, *, loadable: bool = True
    ) -> Iterator[tuple[str, Sequence[tuple[str, Origin]]]]:
        """Yield the chains of a table by name, each with its lines and their origins.

        Not ``loadable``: in the reference's spelling, even if iptables refuses it.
        """
        stage = f"iptables {family.value} {layer.value} {loadable}"
        lowering = ChainLowering(family, self._ruleset.nics, self._names, loadable=loadable)
        for chain in self._sorted(layer):
            if chain.families & family:
                yield chain.name, self._cached(stage, chain, lowering.lines, self._names.identity)

    def origins(self) -> Iterator[tuple[tuple[str, str, str, int], Origin]]:
        """Yield tool, table, chain and number of each rule, with its origin."""
        for (family, tool), (layer, table) in itertools.product(_TOOLS.items(), _TABLES.items()):
            for name, lines in self.chains(family, layer):
                for number, (_, origin) in enumerate(lines, 1):
                    yield (tool, table, name, number), origin
        for name, lines in self.link_chains():
            for number, (_, origin) in enumerate(lines, 1):
                yield ("ebtables", "filter", name, number), origin

    def link_chains(self) -> Iterator[tuple[str, Sequence[tuple[str, Origin]]]]:
        """Yield the chains of ebtables by name, each with its lines and their origins."""
        for chain in self._sorted(Layer.LINK):
            yield chain.name, self._cached("ebtables", chain, lambda chain: link_lines(chain, self._ruleset.nics))

    def _cached(
        self,
        stage: str,
        chain: Chain,
        lower: Callable[[Chain], Iterator[tuple[str, Origin]]],
        names: object = (),
    ) -> Sequence[tuple[str, Origin]]:
        """Return the lines of a chain. They depend on its rules, ``names`` of sets and, for a dispatch, the NICs."""

        def dependencies() -> object:
            dispatches = self._cache.get(f"dispatches {stage}", chain.name, lambda: chain, lambda: _dispatches(chain))
            return chain, names, self._ruleset.nics if dispatches else ()

        return self._cache.get(stage, chain.name, dependencies, lambda: list(lower(chain)))

    def sets(self) -> Iterator[tuple[str, list[str]]]:
        """Yield the ipsets by name, each with the lines that create and fill it."""
        for made in self._ruleset.sets:
            yield from set_lines(made, self._names)

    def _sorted(self, layer: Layer) -> list[Chain]:
        chains = self._ruleset.chains.get(layer, {})
        return [chains[name] for name in sorted(chains)]

    # --- text ---

    def text(self) -> Iterator[str]:
        """Yield the input of ipset, iptables-restore, ip6tables-restore and ebtables-restore."""
        yield "### ipset restore\n"
        for _, lines in self.sets():
            yield "\n".join(lines) + "\n"
        for family, tool in _TOOLS.items():
            for layer, table in _TABLES.items():
                # -n (--noflush) leaves the chains of other programs
                yield f"### {tool}-restore -T {table} -n\n"
                yield from self._table_text(family, layer, table)
        yield "### ebtables-restore\n*filter\n"
        # chains of users have a policy in ebtables (ebtables(8))
        yield from (f":{chain.name} ACCEPT\n" for chain in self._sorted(Layer.LINK))
        for _, chain_lines in self.link_chains():
            yield "".join(f"{line}\n" for line, _ in chain_lines)
        yield from (f"{_hook_line(hook)}\n" for hook in self._hooks(Layer.LINK))

    def _table_text(self, family: Family, layer: Layer, table: str) -> Iterator[str]:
        yield f"*{table}\n"
        for chain in self._sorted(layer):
            if chain.families & family:
                yield f":{chain.name} - [0:0]\n"
        yield from (f"{_hook_line(hook)}\n" for hook in self._hooks(layer))
        for name, chain_lines in self.chains(family, layer):
            lines = [line for line, _ in chain_lines]
            comment = f'-A {name} -m comment --comment "PVESIG:{signature(lines)}"'
            # the chain may exist with older rules
            yield "\n".join([f"-F {name}", *lines, comment, ""])
        yield "COMMIT\n"

    def _hooks(self, layer: Layer) -> list[Hook]:
        return [hook for hook in self._ruleset.hooks if hook.layer is layer]

    # --- JSON ---

    def json(self) -> Iterator[str]:
        """Yield one object: ``enabled``, and for each tool its chains or sets as lists of lines of the reference."""
        return self._json(loadable=False)

    def loadable(self) -> Iterator[str]:
        """Yield the same object with lines that the tools accept, as :meth:`text` has them; each chain is a piece."""
        return self._json(loadable=True)

    def _json(self, *, loadable: bool) -> Iterator[str]:
        yield f'{{"enabled": {json.dumps(self._ruleset.enabled)}'
        for family, tool in _TOOLS.items():
            yield f',\n"{tool}": {{'
            for index, (layer, table) in enumerate(_TABLES.items()):
                yield f'{"," if index else ""}\n "{table}": {{'
                yield from _members(
                    (name, _as_json(lines)) for name, lines in self.chains(family, layer, loadable=loadable)
                )
                yield "}"
            yield "}"
        yield ',\n"ipset": {'
        yield from _members((name, json.dumps(lines)) for name, lines in self.sets())
        yield '},\n"ebtables": {'
        yield from _members((name, _as_json(lines)) for name, lines in self.link_chains())
        yield "}}\n"


def _dispatches(chain: Chain) -> bool:
    return any(isinstance(rule.action, Dispatch) for rule in chain.rules)


def _hook_line(hook: Hook) -> str:
    return f"-A {hook.point.value} -j {hook.chain}"


def _members(items: Iterator[tuple[str, str]]) -> Iterator[str]:
    for index, (name, text) in enumerate(items):
        yield f"{',' if index else ''}\n  {json.dumps(name)}: {text}"


def _as_json(lines: Sequence[tuple[str, Origin]]) -> str:
    return lines.text if isinstance(lines, NotedLines) else json.dumps([line for line, _ in lines])


class IptablesBackend:
    """The reference's own language."""

    name = "iptables"
    default_format = "text"

    def limits(self, ruleset: Ruleset) -> Iterator[Diagnostic]:
        """Yield warnings: each rule and policy of the layer ``forward``, which this ruleset cannot have, and sets whose
        names collide, which get other names than in the reference's ruleset."""
        yield from _collisions(ruleset)
        seen: set[tuple[str, int]] = set()
        for chain in ruleset.chains.get(Layer.FORWARD, {}).values():
            for rule in chain.rules:
                file, line = rule.origin.file, rule.origin.line
                if file is None or (file, line) in seen:
                    continue
                if rule.origin.provenance is Provenance.USER:
                    seen.add((file, line))
                    yield _not_carried_out(Span(file, line), "FORWARD rules are")
                elif rule.origin.provenance is Provenance.POLICY and rule.action == Drop():
                    seen.add((file, line))
                    yield _not_carried_out(Span(file, line), "policy_forward is")

    def lower(self, ruleset: Ruleset, cache: Cache = NO_CACHE) -> IptablesArtefact:
        """Return the ruleset as lines of iptables, ip6tables, ipset and ebtables."""
        return IptablesArtefact(ruleset, cache)


def _collisions(ruleset: Ruleset) -> Iterator[Diagnostic]:
    names = SetNames(ruleset.sets)
    for made in ruleset.sets:
        others = names.collisions.get(made.key)
        if others and made.origin is not None and made.origin.file is not None:
            owners = (f"guest {other.scope}" if other.scope else "the cluster" for other in others)
            listed = ", ".join(f"`{other.name}` of {owner}" for other, owner in zip(others, owners, strict=True))
            yield Diagnostic(
                Severity.WARNING,
                "set-name-collision",
                Span(made.origin.file, made.origin.line),
                f"the ipset would have the same hashed name as {listed}; pvefw gives both another one",
                "rename it: Proxmox's own firewall would mix the sets up",
            )


def _not_carried_out(span: Span, what: str) -> Diagnostic:
    return Diagnostic(
        Severity.WARNING,
        "not-carried-out",
        span,
        f"{what} not carried out by the iptables backend",
        "use the nft backend (`nftables: 1` in host.fw) if they matter",
    )
