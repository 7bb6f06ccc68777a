"""The backend and its artefact: sections of sentences, as text or JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from pvefw_nft.backends.explain.words import packets, set_line
from pvefw_nft.cache import NO_CACHE
from pvefw_nft.errors import InternalError
from pvefw_nft.ir.nodes import (
    Accept,
    AcceptMark,
    AssignHelper,
    Dispatch,
    Drop,
    Goto,
    Jump,
    Layer,
    Provenance,
    Queue,
    Reject,
    Return,
    SetAcceptMark,
    SetConnmark,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pvefw_nft.cache import Cache
    from pvefw_nft.errors import Diagnostic
    from pvefw_nft.ir.nodes import Chain, Origin, Rule, Ruleset

_STANDARD = {
    "PVEFW-SET-ACCEPT-MARK": "accept",
    "PVEFW-reject": "reject",
    "PVEFW-Drop": "drop broadcasts, NetBIOS and late answers, without a log entry, and accept ICMP errors",
    "PVEFW-Reject": "reject NetBIOS, drop broadcasts and late answers, without a log entry, and accept ICMP errors",
    "PVEFW-smurfs": "drop broadcast and multicast sources",
    "PVEFW-tcpflags": "drop impossible combinations of TCP flags",
}
"""Standard chains that a rule may lead to, with the effect of each; every ruleset has the same ones."""

_ALWAYS = "On every path, packets of established connections pass and invalid packets are dropped first."


class Sentence(NamedTuple):
    """A rule in words. ``depth`` is 1 for the rules of a security group, else 0; ``source`` its place in the files."""

    text: str
    source: str
    depth: int


class Section(NamedTuple):
    """The sentences about one end and direction, in the order in which packets meet them."""

    title: str
    sentences: tuple[Sentence, ...]


class ExplainArtefact:
    """A policy in sentences."""

    def __init__(self, ruleset: Ruleset) -> None:
        self._ruleset = ruleset

    def sections(self) -> Iterator[Section]:
        """Yield the rules of the host, VNets and each guest's NIC, then the sets."""
        ruleset = self._ruleset
        if not ruleset.enabled:
            yield Section("The firewall is off: every packet passes.", ())
            return
        filtering, forward = ruleset.chains.get(Layer.FILTER, {}), ruleset.chains.get(Layer.FORWARD, {})
        for title, name in (("To the host", "PVEFW-HOST-IN"), ("From the host", "PVEFW-HOST-OUT")):
            if name in filtering:
                yield Section(title, tuple(_sentences(filtering[name], filtering)))
        if ruleset.host_forward is not None:
            yield Section("Through the host", tuple(_sentences(forward[ruleset.host_forward], forward)))
        for vnet in ruleset.vnets:
            yield Section(f"Within the VNet {vnet.bridge}", tuple(_sentences(forward[vnet.chain], forward)))
        link = ruleset.chains.get(Layer.LINK, {})
        for nic in ruleset.nics:
            where = f"guest {nic.vmid}, NIC {nic.index} ({nic.interface})"
            yield Section(f"To {where}", tuple(_sentences(filtering[nic.in_chain], filtering)))
            if nic.link_chain is not None:
                yield Section(f"Frames from {where}", tuple(_sentences(link[nic.link_chain], link)))
            yield Section(f"From {where}", tuple(_sentences(filtering[nic.out_chain], filtering)))
        if ruleset.sets:
            yield Section("Sets", tuple(Sentence(set_line(made), "", 0) for made in ruleset.sets))

    def text(self) -> Iterator[str]:
        """Yield the sections, each a title and indented lines with the places they come from."""
        yield f"{_ALWAYS}\n" if self._ruleset.enabled else ""
        for title, sentences in self.sections():
            yield f"\n{title}\n" if self._ruleset.enabled else f"{title}\n"
            for text, source, depth in sentences:
                yield f"{'    ' * (depth + 1)}{text}{f'   [{source}]' if source else ''}\n"

    def json(self) -> Iterator[str]:
        """Yield ``{"sections": [{"title": …, "sentences": [{"text", "source", "depth"}]}]}``."""
        sections = [
            {"title": section.title, "sentences": [sentence._asdict() for sentence in section.sentences]}
            for section in self.sections()
        ]
        yield json.dumps({"sections": sections}, indent=1) + "\n"

    def loadable(self) -> Iterator[str]:
        """Raise InternalError: sentences filter nothing."""
        raise InternalError("the explain backend makes nothing that a host could load")

    def origins(self) -> Iterator[tuple[tuple[str, str, str, int], Origin]]:
        """Yield nothing: there is no ruleset to read back."""
        return iter(())


class ExplainBackend:
    """English."""

    name = "explain"
    default_format = "text"

    def limits(self, ruleset: Ruleset) -> Iterator[Diagnostic]:  # noqa: ARG002 - the signature is every backend's
        """Yield nothing: words can say all of the IR."""
        return iter(())

    def lower(self, ruleset: Ruleset, cache: Cache = NO_CACHE) -> ExplainArtefact:  # noqa: ARG002 - as above
        """Return the ruleset in sentences."""
        return ExplainArtefact(ruleset)


def _sentences(chain: Chain, chains: Mapping[str, Chain], depth: int = 0) -> Iterator[Sentence]:
    """Yield the rules of a chain in words; consecutive rules of one line and verdict, as of a macro, make one."""
    pending: list[Rule] = []
    for rule in chain.rules:
        if pending and (_verdict(rule), rule.origin, rule.log) != (
            _verdict(pending[0]),
            pending[0].origin,
            pending[0].log,
        ):
            yield from _joined(pending, chains, depth)
            pending = []
        if _is_policy(rule):
            pending.append(rule)
    yield from _joined(pending, chains, depth)


def _is_policy(rule: Rule) -> bool:
    """Tell whether a rule says something about packets; marks, dispatch and connection states are machinery."""
    if isinstance(rule.action, SetAcceptMark | SetConnmark | Dispatch):
        return False
    if any(isinstance(match, AcceptMark) for match in rule.matches):
        return False  # a group's verdict, carried out
    return not (rule.origin.provenance is Provenance.BUILTIN and rule.origin.reason == "conntrack")


def _joined(rules: list[Rule], chains: Mapping[str, Chain], depth: int) -> Iterator[Sentence]:
    if not rules:
        return
    first = rules[0]
    source = str(first.origin)
    if isinstance(first.action, Jump | Goto) and first.action.chain not in _STANDARD and first.action.chain in chains:
        name = first.action.chain
        title = name if first.origin.group is None else f"the group {first.origin.group}"
        condition = f" for {packets(first)}" if first.matches else ""
        members = tuple(_sentences(chains[name], chains, depth + 1))
        empty = "" if members else " (no rules in this direction)"
        yield Sentence(f"the rules of {title}{condition}{empty}", source, depth)
        yield from members
        return
    which = list(dict.fromkeys(packets(rule) for rule in rules))
    verdict = _verdict(first)
    if which != ["everything"]:
        text = f"{verdict}{':' if ' ' in verdict else ''} {'; '.join(which)}"
    elif " " in verdict:
        text = verdict
    else:
        text = f"{verdict} everything{' else' if first.origin.provenance is Provenance.POLICY else ''}"
    yield Sentence(f"{text}{', and log it' if first.log is not None else ''}", source, depth)


def _verdict(rule: Rule) -> str:
    match rule.action:
        case Accept() | Return():
            return "accept"
        case Drop():
            return "drop"
        case Reject():
            return "reject"
        case Jump(chain) | Goto(chain):
            return _STANDARD.get(chain, chain)
        case Queue():
            return "hand to a program in user space"
        case AssignHelper(name):
            return f"track with the helper {name}:"
        case SetAcceptMark() | SetConnmark() | Dispatch():
            return "mark"
