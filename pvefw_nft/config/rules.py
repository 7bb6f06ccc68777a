"""One rule: from its words to the model. Names are looked up in the scopes that the rule's file knows."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from pvefw_nft.config import macros
from pvefw_nft.config.grammar import SectionKind, SyntaxProblem
from pvefw_nft.config.model import Addresses, Alias, GroupRule, Ipset, Rule, RuleAction, RuleItem, RuleType, Service
from pvefw_nft.config.option_readers import read_log_level
from pvefw_nft.config.options import FileKind
from pvefw_nft.config.sdn import SdnSets
from pvefw_nft.config.services import FieldProblem, expanded, plain
from pvefw_nft.config.values import (
    BadValue,
    Family,
    Prefix,
    Range,
    SetKey,
    common,
    looks_like_address,
    nearest,
    read_addresses,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pvefw_nft.config.findings import Findings
    from pvefw_nft.config.grammar import Line, RuleLine, Word
    from pvefw_nft.errors import Span

_GUEST_NIC = re.compile(r"net([0-9]|[12][0-9]|3[01])")
_INTERFACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,14}\+?")
_ACTION = re.compile(r"(?:([A-Za-z0-9]+)\()?(ACCEPT|DROP|REJECT)(\))?")
_MAX_INTERFACE = 15
_MAX_ALTERNATIVE_NAME = 127
"""Longest alternative name of a link (ALTIFNAMSIZ in linux/if.h, less the terminating NUL)."""
_TYPES = {kind.value: kind for kind in RuleType}

_ADDRESS_HINT = "an address, a network, a range, a list, `+ipset` or the name of an alias"


@dataclass(slots=True)
class Names:
    """The aliases and ipsets that a file has defined so far; ``scope`` is the VMID, 0 for the cluster.

    ``real_interface`` returns the name of the link that has an alternative name, or None if none has it. ``sdn``
    holds the sets of the software-defined network, which belong to the cluster. ``answers`` collects the names found
    here: each kind and name, with its value.
    """

    scope: int
    aliases: dict[str, Alias] = field(default_factory=dict)
    ipsets: dict[str, Ipset] = field(default_factory=dict)
    real_interface: Callable[[str], str | None] = field(default=lambda _: None)
    sdn: SdnSets = field(default_factory=SdnSets)
    answers: dict[tuple[str, str], object] = field(default_factory=dict, compare=False)

    def find(self, kind: str, name: str) -> object:
        """Return the value of an ``alias``; True for an ``ipset`` that exists; None if there is no such name."""
        if kind == "alias":
            alias = self.aliases.get(name)
            found: object = None if alias is None else alias.prefix
        else:
            found = name in self.ipsets or None
        if found is not None:
            self.answers[kind, name] = found
        return found


class Rejected(Exception):  # noqa: N818 - a finding about a rule, turned into a diagnostic
    """A rule that cannot be used."""

    def __init__(self, span: Span, code: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.span = span
        self.code = code
        self.message = message
        self.hint = hint

    @classmethod
    def value(cls, written: RuleLine, name: str, bad: BadValue) -> Rejected:
        """Make the finding about a value that cannot be read."""
        start = written.fields[name].start
        return cls(written.line.span(start + bad.start, start + bad.end), bad.code, bad.message, bad.hint)


class RuleReader:
    """Read the rules of one file. ``guest`` holds the names of a guest's file; None for other files."""

    def __init__(self, kind: FileKind, findings: Findings, cluster: Names, guest: Names | None) -> None:
        """Read in the scopes given; they grow while the file is read."""
        self._kind = kind
        self._findings = findings
        self.cluster = cluster
        self.guest = guest
        self.defined_below: Callable[[SectionKind, str, int], int | None] = lambda _kind, _name, _line: None

    def read(self, written: RuleLine, types: tuple[str, ...], columns: tuple[str, ...]) -> RuleItem:
        """Return a rule; its section has these ``types`` and ``columns``. Raises Rejected."""
        kind = written.type.text.upper()
        if kind not in types:
            if kind not in _TYPES and kind != "GROUP":
                unknown = unknown_type(written.type.text, written.type.start, types)
                raise Rejected(written.span("type"), unknown.code, unknown.message, unknown.hint)
            raise Rejected(
                written.span("type"),
                "bad-rule-type",
                f"rules of type {kind} are not allowed here",
                "types here are " + ", ".join(types),
            )
        has_interface = columns[0] == "iface"
        if kind == "GROUP":
            return self._group_rule(written, self._interface(written, has_interface=has_interface))
        macro, action = _read_action(written)
        iface = self._interface(written, has_interface=has_interface)
        fields = written.fields
        source = self._addresses(written, "source") if "source" in fields else None
        dest = self._addresses(written, "dest") if "dest" in fields else None
        families = _families_of(written, source, dest)
        services = _services(written, macro, families)
        if macro is not None and not services and not written.disabled:
            self._findings.warning(
                "macro-other-family",
                written.span("action"),
                f"macro {macro.name} is for IPv6 only, the addresses are IPv4; the rule matches nothing",
                "remove the rule",
            )
        log = None
        if "log" in fields:
            try:
                log = read_log_level(fields["log"].text)
            except BadValue as bad:
                raise Rejected.value(written, "log", bad) from None
        return Rule(
            _TYPES[kind],
            action,
            None if macro is None else macro.name,
            iface,
            source,
            dest,
            services,
            families,
            log,
            written,
        )

    def _interface(self, written: RuleLine, *, has_interface: bool) -> str | None:
        word = written.fields.get("iface")
        if word is None:
            return None
        if not has_interface:
            raise Rejected(
                written.span("iface"),
                "misplaced-interface",
                "rules here have no interface",
                "name the interface in the GROUP rule that uses the group" if self._kind is not FileKind.VNET else None,
            )
        if self._kind is FileKind.GUEST:
            # a guest's rules name its NICs by the keys of its config, as Proxmox VE's parser demands
            if not _GUEST_NIC.fullmatch(word.text):
                raise Rejected(
                    written.span("iface"),
                    "bad-interface",
                    f"`{word.text[:40]}` is not a NIC of a guest",
                    "a guest's NICs are net0 to net31",
                )
            return word.text
        # asking about a longer name fails in netlink itself: it does not fit into the message
        name = (len(word.text) <= _MAX_ALTERNATIVE_NAME and self.cluster.real_interface(word.text)) or word.text
        if not _INTERFACE.fullmatch(name) or len(name) > _MAX_INTERFACE:
            raise Rejected(
                written.span("iface"),
                "bad-interface",
                f"`{word.text[:40]}` cannot be the name of an interface",
                f"interface names have at most {_MAX_INTERFACE} letters, digits, `.`, `-` and `_`",
            )
        return name

    def _group_rule(self, written: RuleLine, iface: str | None) -> GroupRule:
        extra = next((name for name in written.fields if name != "iface"), None)
        if extra is not None:
            raise Rejected(
                written.span(extra),
                "group-condition",
                "a GROUP rule takes an interface and nothing else",
                "put the condition into the rules of the group",
            )
        return GroupRule(written.action.text, iface, written)

    def _addresses(self, written: RuleLine, name: str) -> Addresses:
        word = written.fields[name]
        text = word.text
        try:
            if text[0] == "+":
                return self._set(written, word)
            if looks_like_address(text):
                return read_addresses(text)
            if "," in text or "/" in text.removeprefix("dc/").removeprefix("guest/"):
                raise BadValue(
                    f"`{text[:60]}` is not an address",
                    start=0,
                    end=len(text),
                    code="bad-address",
                    hint="write " + _ADDRESS_HINT,
                )
        except BadValue as bad:
            raise Rejected.value(written, name, bad) from None
        return (self.find_alias(written.line, word),)

    def find_alias(self, line: Line, word: Word) -> Prefix:
        """Return the value of an alias. Raises Rejected for an unknown name."""
        scope, name = _scoped(word.text)
        for names in self._scopes(scope):
            if names.find("alias", name.lower()) is not None:
                return names.aliases[name.lower()].prefix
        known = [alias for names in self._scopes(scope) for alias in names.aliases]
        hint = (
            self._below(SectionKind.ALIASES, name.lower(), line)
            or self._other_kind(scope, name, "ipsets")
            or nearest(name, known)
            or self._elsewhere(scope, name, "aliases")
            or f"write {_ADDRESS_HINT}"
        )
        raise Rejected(
            line.span(word.start, word.end),
            "unknown-alias",
            f"no alias `{word.text[:80]}` is defined above this line",
            hint,
        )

    def _set(self, written: RuleLine, word: Word) -> SetKey:
        scope, name = _scoped(word.text[1:])
        for names in self._scopes(scope):
            if names.find("ipset", name):
                return SetKey(names.scope, name)
        if scope in ("", "sdn") and name in self.cluster.sdn.ipsets:
            self._warn_if_empty(written, word, self.cluster.sdn.ipsets[name])
            return SetKey(0, name)
        raise Rejected(
            written.line.span(word.start, word.end),
            "unknown-ipset",
            f"no set `{word.text[:80]}` is known"
            if scope == "sdn"
            else f"no ipset `{word.text[:80]}` is defined above this line",
            self._below(SectionKind.IPSET, name.lower(), written.line)
            or self._other_kind(scope, name.lower(), "aliases")
            or self._set_hint(scope, name),
        )

    def _warn_if_empty(self, written: RuleLine, word: Word, ipset: Ipset) -> None:
        if written.disabled or any(not entry.nomatch for entry in ipset.entries):
            return
        self._findings.warning(
            "empty-set",
            written.line.span(word.start, word.end),
            f"the set `{word.text[:80]}` is empty, so the rule matches no packet",
            f"its addresses come from {ipset.header.file.rpartition('/')[2]}",
        )

    def _set_hint(self, scope: str, name: str) -> str | None:
        sdn = self.cluster.sdn
        reason = sdn.why_missing(name) if scope in ("", "sdn") else None
        known = [ipset for names in self._scopes(scope) for ipset in names.ipsets]
        known += sdn.ipsets if scope in ("", "sdn") else ()
        lower = name.lower()
        if lower != name and lower in known:
            return f"ipset names are in lower case: write `{lower}`"
        if scope == "sdn":
            return reason or nearest(name, known) or "sets of the SDN are named like vnet-all or guest-ipam-100"
        return nearest(name, known) or self._elsewhere(scope, name, "ipsets") or reason

    def _below(self, kind: SectionKind, name: str, line: Line) -> str | None:
        number = self.defined_below(kind, name, line.number)
        return None if number is None else f"it is defined below, in line {number}: move that section above this line"

    def _other_kind(self, scope: str, name: str, kind: str) -> str | None:
        """Return a hint if an ipset is used as an alias or an alias as an ipset. ``kind``: the name's actual kind."""
        if not any(name in getattr(names, kind) for names in self._scopes(scope)):
            return None
        prefix = f"{scope}/" if scope else ""
        if kind == "ipsets":
            if self._findings.section == SectionKind.IPSET.value:
                return f"`{name}` is an ipset, and ipsets hold addresses and aliases only"
            return f"`{name}` is an ipset: write `+{prefix}{name}`"
        return f"`{name}` is an alias: write `{prefix}{name}`"

    def _scopes(self, scope: str) -> list[Names]:
        guest = [] if self.guest is None else [self.guest]
        return {"": [*guest, self.cluster], "dc": [self.cluster], "guest": guest}.get(scope, [])

    def _elsewhere(self, scope: str, name: str, kind: str) -> str | None:
        if scope == "guest" and self.guest is None:
            return "only a guest's own file knows the scope `guest/`"
        if kind == "ipsets" and name in self.cluster.sdn.ipsets:
            return f"it is a set of the SDN: write `+sdn/{name}`"
        others = [names for names in self._scopes("") if names not in self._scopes(scope)]
        if any(name.lower() in getattr(names, kind) for names in others):
            return f"it is defined in the other scope: leave out `{scope}/`"
        return None


def unknown_type(word: str, start: int, types: tuple[str, ...]) -> SyntaxProblem:
    """Return the mistake of a line whose first word, at column ``start``, is no type of rules."""
    return SyntaxProblem(
        f"unknown rule type `{word[:40]}`",
        start=start,
        end=start + len(word),
        hint=nearest(word, types) or f"lines begin with {', '.join(types[:-1])} or {types[-1]}",
        code="bad-rule-type",
    )


def _scoped(text: str) -> tuple[str, str]:
    scope, slash, name = text.partition("/")
    return (scope, name) if slash else ("", text)


def _read_action(written: RuleLine) -> tuple[macros.Macro | None, RuleAction]:
    text = written.action.text
    known = _known_action(text)
    if known is not None:
        return known
    found = _ACTION.fullmatch(text)
    if found is not None and found[1] is not None and found[3] is not None:
        start = written.action.start
        raise Rejected(
            written.line.span(start, start + len(found[1])),
            "unknown-macro",
            f"unknown macro `{found[1][:60]}`",
            _macro_hint(found[1], found[2]),
        )
    actions = [action.value for action in RuleAction]
    if text.upper() in actions:
        hint = f"actions are in upper case: write {text.upper()}"
    elif macros.get(text) is not None:
        hint = f"a macro takes an action: write {text}(ACCEPT)"
    else:
        hint = nearest(text, actions) or "write ACCEPT, DROP, REJECT or a macro with one of them, like SSH(ACCEPT)"
    raise Rejected(written.span("action"), "bad-action", f"unknown action `{text[:60]}`", hint)


def _macro_hint(name: str, action: str) -> str | None:
    only_nft = macros.OF_NFT_ONLY.get(name.lower())
    if only_nft is not None:
        return f"only Proxmox's nft firewall has this macro: write {action} {only_nft}"
    return nearest(name, macros.names())


@lru_cache(maxsize=1024)
def _known_action(text: str) -> tuple[macros.Macro | None, RuleAction] | None:
    """Return the macro, if any, and the action that a word names, or None."""
    found = _ACTION.fullmatch(text)
    if found is None or (found[1] is None) != (found[3] is None):
        return None
    macro = None if found[1] is None else macros.get(found[1])
    if found[1] is not None and macro is None:
        return None
    return macro, RuleAction(found[2])


def _families_of(written: RuleLine, source: Addresses | None, dest: Addresses | None) -> Family:
    """Return the families that the addresses of a rule leave."""
    first, second = _family_of(source), _family_of(dest)
    families = common(first, second)
    if families is None:
        raise Rejected(
            written.span("dest"),
            "mixed-families",
            f"the source is IP{first.name.lower()}, the destination IP{second.name.lower()}",
            "no packet has both; write one rule for each family",
        )
    return families


def _family_of(addresses: Addresses | None) -> Family:
    """Return the family of an address; a set holds both."""
    if addresses is None or isinstance(addresses, SetKey):
        return Family.BOTH
    version = addresses.version if isinstance(addresses, Range) else addresses[0].version
    return Family.V4 if version == 4 else Family.V6


def _services(written: RuleLine, macro: macros.Macro | None, families: Family) -> tuple[Service, ...]:
    """Return the tests of a rule beyond interface and addresses, for those families."""
    fields = written.fields
    proto, dport, sport = _text(fields, "proto"), _text(fields, "dport"), _text(fields, "sport")
    icmp_type = _text(fields, "icmp-type")
    try:
        if macro is None:
            services = plain(proto, dport, sport, icmp_type)
        else:
            services = expanded(macro.name, families, proto, dport, sport, icmp_type)
    except FieldProblem as problem:
        name = problem.field if problem.field in fields else "action"
        if problem.bad is not None and name == problem.field:
            raise Rejected.value(written, name, problem.bad) from None
        raise Rejected(written.span(name), problem.code, problem.message, problem.hint) from None
    if macro is not None or services[0].families & families:
        return services
    raise Rejected(
        written.span("proto"),
        "mixed-families",
        f"`{proto}` and the addresses are of different families",
        "no packet has both",
    )


def _text(fields: Mapping[str, Word], name: str) -> str | None:
    word = fields.get(name)
    return None if word is None else word.text
