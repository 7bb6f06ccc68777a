"""From lines to the model: names are resolved, values are read, and every problem becomes a diagnostic.

A bad line is reported and left out, the rest of the file holds; that is how the reference treats them, and
whoever applies a ruleset decides by the diagnostics whether to use it. Problems of disabled rules are warnings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from pvefw_nft.config import grammar, macros, netdb
from pvefw_nft.config.grammar import Line, RuleLine, Section, SectionKind, SyntaxProblem, Word
from pvefw_nft.config.model import (
    Addresses,
    Alias,
    ClusterConfig,
    ClusterOptions,
    Group,
    GroupRule,
    GuestConfig,
    GuestOptions,
    HostConfig,
    HostOptions,
    Icmp,
    Ipset,
    IpsetEntry,
    Rule,
    RuleAction,
    RuleItem,
    RuleType,
    Service,
    VnetConfig,
    VnetOptions,
)
from pvefw_nft.config.options import OLD_OPTIONS, OPTIONS, FileKind, option_hint, read_log_level
from pvefw_nft.config.values import (
    PORT_PROTOCOLS,
    BadValue,
    Family,
    Prefix,
    Protocol,
    Range,
    SetKey,
    common,
    looks_like_address,
    nearest,
    read_addresses,
    read_ports,
    read_prefix,
    read_protocol,
)
from pvefw_nft.errors import Diagnostic, Severity, Span

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pvefw_nft.config.values import PortRange

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]+")
_MAX_NAME = 64
_MAX_GROUP_NAME = 18
_GUEST_NIC = re.compile(r"net([0-9]|[12][0-9]|3[01])")
_INTERFACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,14}\+?")
_ACTION = re.compile(r"(?:([A-Za-z0-9]+)\()?(ACCEPT|DROP|REJECT)(\))?")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x85\ufffd]")

_COLUMNS = ("iface", "source", "dest", "proto", "dport", "sport")
_GROUP_COLUMNS = _COLUMNS[1:]

_SECTIONS = {
    FileKind.CLUSTER: tuple(SectionKind),
    FileKind.HOST: (SectionKind.OPTIONS, SectionKind.RULES),
    FileKind.GUEST: (SectionKind.OPTIONS, SectionKind.RULES, SectionKind.ALIASES, SectionKind.IPSET),
    FileKind.VNET: (SectionKind.OPTIONS, SectionKind.RULES),
}

_RULE_TYPES = {
    FileKind.CLUSTER: ("IN", "OUT", "FORWARD", "GROUP"),
    FileKind.HOST: ("IN", "OUT", "FORWARD", "GROUP"),
    FileKind.GUEST: ("IN", "OUT", "GROUP"),
    FileKind.VNET: ("FORWARD", "GROUP"),
}
_GROUP_RULE_TYPES = ("IN", "OUT", "FORWARD")

_ADDRESS_HINT = "an address, a network, a range, a list, `+ipset` or the name of an alias"

_T = TypeVar("_T")


@dataclass(slots=True)
class Findings:
    """The diagnostics of a run, in the order in which they were found."""

    diagnostics: list[Diagnostic] = field(default_factory=list)

    def add(self, severity: Severity, code: str, span: Span, message: str, hint: str | None = None) -> None:
        """Add one diagnostic."""
        self.diagnostics.append(Diagnostic(severity, code, span, message, hint))

    def error(self, code: str, span: Span, message: str, hint: str | None = None) -> None:
        """Add an error."""
        self.add(Severity.ERROR, code, span, message, hint)

    def warning(self, code: str, span: Span, message: str, hint: str | None = None) -> None:
        """Add a warning."""
        self.add(Severity.WARNING, code, span, message, hint)


@dataclass(slots=True)
class Names:
    """The aliases and ipsets that a file has defined so far; ``scope`` is the VMID, 0 for the cluster."""

    scope: int
    aliases: dict[str, Alias] = field(default_factory=dict)
    ipsets: dict[str, Ipset] = field(default_factory=dict)


class _FileReader:
    """Reads one firewall file, top to bottom; what is defined below a line is not known to it."""

    def __init__(self, kind: FileKind, findings: Findings, cluster: Names, guest: Names | None) -> None:
        self.kind = kind
        self.findings = findings
        self.cluster = cluster
        self.guest = guest
        self.options: dict[str, object] = {}
        self.groups: dict[str, Group] = {}
        self.rules: list[RuleItem] = []

    @property
    def own(self) -> Names:
        """The names that this file defines."""
        return self.guest or self.cluster

    def read(self, file: str, text: str) -> None:
        sections, before = grammar.read_sections(file, text)
        if before:
            self.findings.error(
                "no-section",
                before[0].span(),
                "text before the first section",
                f"a section begins with a header such as {self._headers()}",
            )
        for section in sections:
            self._read_section(section)

    def _headers(self) -> str:
        spelled = {SectionKind.IPSET: "[IPSET name]", SectionKind.GROUP: "[group name]"}
        return ", ".join(spelled.get(kind, f"[{kind.name}]") for kind in _SECTIONS[self.kind])

    def _read_section(self, section: Section) -> None:
        kind = section.kind
        if kind is None:
            word = re.sub(r"[\[\]\s].*", "", section.header.text.strip().lstrip("[ \t"))
            meant = nearest(word, [known.value.upper() for known in _SECTIONS[self.kind]])
            self.findings.error(
                "unknown-section",
                section.header.span(),
                "unknown section; its lines are ignored",
                meant or f"sections here are {self._headers()}",
            )
            return
        if kind not in _SECTIONS[self.kind]:
            self.findings.error(
                "misplaced-section",
                section.header.span(),
                f"{self.kind.value} has no section {kind.name}; its lines are ignored",
                "it belongs in cluster.fw" if self.kind is not FileKind.CLUSTER else None,
            )
            return
        match kind:
            case SectionKind.OPTIONS:
                for line in self._clean(section):
                    self._read_option(line)
            case SectionKind.ALIASES:
                for line in self._clean(section):
                    self._read_alias(line)
            case SectionKind.IPSET:
                self._read_ipset(section)
            case SectionKind.GROUP:
                self._read_group(section)
            case SectionKind.RULES:
                for line in self._clean(section):
                    rule = self._read_rule(line, _RULE_TYPES[self.kind], self._columns())
                    if rule is not None:
                        self.rules.append(rule)

    def _columns(self) -> tuple[str, ...]:
        return _GROUP_COLUMNS if self.kind is FileKind.VNET else _COLUMNS

    def _clean(self, section: Section) -> list[Line]:
        """Return the section's lines without those that hold control characters or are not UTF-8."""
        if _CONTROL.search("\n".join([line.text for line in section.lines]).replace("\n", "")) is None:
            return list(section.lines)
        lines = []
        for line in section.lines:
            found = _CONTROL.search(line.text)
            if found is None:
                lines.append(line)
            elif found[0] == "\ufffd":
                if "#" in line.text[: found.start()]:
                    lines.append(line)
                    self.findings.warning(
                        "not-utf8",
                        line.span(found.start(), found.end()),
                        "the comment is not UTF-8",
                        "save the file as UTF-8",
                    )
                else:
                    self.findings.error(
                        "not-utf8",
                        line.span(found.start(), found.end()),
                        "the line is not UTF-8; it is ignored",
                        "save the file as UTF-8",
                    )
            else:
                self.findings.error(
                    "control-character",
                    line.span(found.start(), found.end()),
                    f"control character U+{ord(found[0]):04X}; the line is ignored",
                    "remove it",
                )
        return lines

    # --- options, aliases, sets, groups ---

    def _read_option(self, line: Line) -> None:
        try:
            setting = grammar.read_setting(line)
        except SyntaxProblem as problem:
            self._syntax(line, problem)
            return
        name = setting.name.text
        span = line.span(setting.name.start, setting.name.end)
        if name in OLD_OPTIONS:
            self.findings.warning("old-option", span, f"option `{name}` has no effect any more", "remove the line")
            return
        reader = OPTIONS[self.kind].get(name)
        if reader is None:
            self.findings.error(
                "unknown-option",
                span,
                f"{self.kind.value} has no option `{name[:60]}`",
                option_hint(self.kind, name),
            )
            return
        try:
            self.options[name] = reader(setting.value.text)
        except BadValue as bad:
            self._bad_value(line, setting.value, bad)

    def _read_alias(self, line: Line) -> None:
        try:
            written = grammar.read_alias(line)
            if not self._valid_name(line, written.name, "alias", _MAX_NAME):
                return
            prefix = read_prefix(written.address.text)
        except SyntaxProblem as problem:
            self._syntax(line, problem)
            return
        except BadValue as bad:
            self._bad_value(line, written.address, bad)
            return
        key = written.name.text.lower()
        if key in self.own.aliases:
            self.findings.warning(
                "redefined",
                line.span(written.name.start, written.name.end),
                f"alias `{key}` replaces the one of line {self.own.aliases[key].line.number}",
            )
        spelling = written.address.text
        if prefix.length == (32 if prefix.version == 4 else 128):
            spelling = spelling.partition("/")[0]
        self.own.aliases[key] = Alias(
            written.name.text, Prefix(prefix.version, prefix.address, prefix.length, spelling), line
        )

    def _valid_name(self, line: Line, word: Word | None, what: str, longest: int) -> bool:
        if word is None:
            self.findings.error("bad-name", line.span(), f"the {what} has no name", f"write [{what} name]")
            return False
        if _NAME.fullmatch(word.text) and len(word.text) <= longest:
            return True
        self.findings.error(
            "bad-name",
            line.span(word.start, word.end),
            f"`{word.text[:80]}` cannot be the name of an {what}"
            if what[0] in "ai"
            else f"`{word.text[:80]}` cannot be the name of a {what}",
            f"names have 2 to {longest} letters, digits, `-` and `_`, and begin with a letter",
        )
        return False

    def _read_ipset(self, section: Section) -> None:
        if not self._valid_name(section.header, section.name, "ipset", _MAX_NAME) or section.name is None:
            return
        name = section.name.text.lower()
        if name in self.own.ipsets:
            self._redefined(section, "ipset", name, self.own.ipsets[name].header)
        entries: dict[tuple[int, int, int], IpsetEntry] = {}
        # An entry may not name its own set, so the set is known only below; a set replaced is gone already.
        for line in self._clean(section):
            entry = self._read_entry(line)
            if entry is None:
                continue
            key = (entry.prefix.version, entry.prefix.address, entry.prefix.length)
            if key in entries:
                self.findings.error(
                    "duplicate-entry",
                    line.span(),
                    f"`{entry.prefix.canonical}` is in the set already, from line "
                    f"{entries[key].line.number}; this entry is ignored",
                    "remove one of the two lines",
                )
                continue
            entries[key] = entry
        self.own.ipsets[name] = Ipset(name, tuple(entries.values()), section.header)

    def _redefined(self, section: Section, what: str, name: str, before: Line) -> None:
        span = (
            section.header.span() if section.name is None else section.header.span(section.name.start, section.name.end)
        )
        self.findings.warning(
            "redefined",
            span,
            f"{what} `{name}` replaces the one of line {before.number}",
            "give one of them another name",
        )

    def _read_entry(self, line: Line) -> IpsetEntry | None:
        try:
            written = grammar.read_entry(line)
            word = written.address
            if looks_like_address(word.text):
                prefix: Prefix | None = read_prefix(word.text)
            else:
                prefix = self._alias(line, word)
        except SyntaxProblem as problem:
            self._syntax(line, problem)
            return None
        except BadValue as bad:
            self._bad_value(line, written.address, bad)
            return None
        if prefix is None:
            return None
        if prefix.length == 0:
            self.findings.error(
                "whole-space",
                line.span(word.start, word.end),
                "an ipset cannot hold a /0",
                "use two halves, such as "
                + ("0.0.0.0/1 and 128.0.0.0/1" if prefix.version == 4 else "::/1 and 8000::/1"),
            )
            return None
        return IpsetEntry(prefix, written.nomatch, line)

    def _read_group(self, section: Section) -> None:
        if not self._valid_name(section.header, section.name, "group", _MAX_GROUP_NAME) or section.name is None:
            return
        name = section.name.text.lower()
        if name in self.groups:
            self._redefined(section, "group", name, self.groups[name].header)
        rules = [self._read_rule(line, _GROUP_RULE_TYPES, _GROUP_COLUMNS) for line in self._clean(section)]
        self.groups[name] = Group(name, tuple(rule for rule in rules if isinstance(rule, Rule)), section.header)

    # --- rules ---

    def _read_rule(self, line: Line, types: tuple[str, ...], columns: tuple[str, ...]) -> RuleItem | None:
        try:
            written = grammar.read_rule(line, columns)
        except SyntaxProblem as problem:
            severity = Severity.WARNING if line.text.lstrip().startswith("|") else Severity.ERROR
            self.findings.add(
                severity, problem.code, line.span(problem.start, problem.end), problem.message, problem.hint
            )
            return None
        try:
            rule = self._rule(written, types, columns)
        except _Rejected as rejected:
            severity = Severity.WARNING if written.disabled else Severity.ERROR
            self.findings.add(severity, rejected.code, rejected.span, rejected.message, rejected.hint)
            return None
        return None if written.disabled else rule

    def _rule(self, written: RuleLine, types: tuple[str, ...], columns: tuple[str, ...]) -> RuleItem:
        kind = written.type.text.upper()
        if kind not in types:
            known = kind in ("IN", "OUT", "FORWARD", "GROUP")
            raise _Rejected(
                written.span("type"),
                "bad-rule-type",
                f"rules of type {kind} are not allowed here"
                if known
                else f"unknown rule type `{written.type.text[:40]}`",
                (None if known else nearest(kind, types)) or "types here are " + ", ".join(types),
            )
        iface = self._interface(written, has_interface=columns[0] == "iface")
        if kind == "GROUP":
            return self._group_rule(written, iface)
        macro, action = _read_action(written)
        fields = written.fields
        source = self._addresses(written, "source") if "source" in fields else None
        dest = self._addresses(written, "dest") if "dest" in fields else None
        families = _families_of(written, source, dest)
        services = _services(written, macro, families)
        if macro is not None and not services and not written.disabled:
            self.findings.warning(
                "no-effect",
                written.span("action"),
                f"macro {macro.name} is for IPv6 only, the addresses are IPv4; the rule matches nothing",
                "remove the rule",
            )
        log = None
        if "log" in fields:
            try:
                log = read_log_level(fields["log"].text)
            except BadValue as bad:
                raise _Rejected.value(written, "log", bad) from None
        return Rule(
            RuleType(kind),
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
            raise _Rejected(
                written.span("iface"),
                "misplaced-interface",
                "rules here have no interface",
                "name the interface in the GROUP rule that uses the group" if self.kind is not FileKind.VNET else None,
            )
        if self.kind is FileKind.GUEST:
            if not _GUEST_NIC.fullmatch(word.text):
                raise _Rejected(
                    written.span("iface"),
                    "bad-interface",
                    f"`{word.text[:40]}` is not a NIC of a guest",
                    "a guest's NICs are net0 to net31",
                )
        elif not _INTERFACE.fullmatch(word.text) or len(word.text) > 15:
            raise _Rejected(
                written.span("iface"),
                "bad-interface",
                f"`{word.text[:40]}` cannot be the name of an interface",
                "interface names have at most 15 letters, digits, `.`, `-` and `_`",
            )
        return word.text

    def _group_rule(self, written: RuleLine, iface: str | None) -> GroupRule:
        extra = next((name for name in written.fields if name != "iface"), None)
        if extra is not None:
            raise _Rejected(
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
                return self._set(written.line, word)
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
            raise _Rejected.value(written, name, bad) from None
        return (self._find_alias(written.line, word),)

    def _alias(self, line: Line, word: Word) -> Prefix | None:
        try:
            return self._find_alias(line, word)
        except _Rejected as rejected:
            self.findings.error(rejected.code, rejected.span, rejected.message, rejected.hint)
            return None

    def _find_alias(self, line: Line, word: Word) -> Prefix:
        scope, name = _scoped(word.text)
        for names in self._scopes(scope):
            alias = names.aliases.get(name.lower())
            if alias is not None:
                return alias.prefix
        known = [alias for names in self._scopes(scope) for alias in names.aliases]
        hint = nearest(name, known) or self._elsewhere(scope, name, "aliases") or f"write {_ADDRESS_HINT}"
        raise _Rejected(
            line.span(word.start, word.end),
            "unknown-alias",
            f"no alias `{word.text[:80]}` is defined above this line",
            hint,
        )

    def _set(self, line: Line, word: Word) -> SetKey:
        scope, name = _scoped(word.text[1:])
        if scope == "sdn":
            raise _Rejected(
                line.span(word.start, word.end),
                "unknown-ipset",
                "the ipsets of SDN zones are not known to pvefw",
                "define an ipset with the zone's networks in cluster.fw",
            )
        for names in self._scopes(scope):
            if name in names.ipsets:
                return SetKey(names.scope, name)
        known = [ipset for names in self._scopes(scope) for ipset in names.ipsets]
        lower = name.lower()
        hint = (
            f"ipset names are in lower case: write `{lower}`"
            if lower in known
            else nearest(name, known) or self._elsewhere(scope, name, "ipsets")
        )
        raise _Rejected(
            line.span(word.start, word.end),
            "unknown-ipset",
            f"no ipset `{word.text[:80]}` is defined above this line",
            hint,
        )

    def _scopes(self, scope: str) -> list[Names]:
        guest = [] if self.guest is None else [self.guest]
        return {"": [*guest, self.cluster], "dc": [self.cluster], "guest": guest}.get(scope, [])

    def _elsewhere(self, scope: str, name: str, kind: str) -> str | None:
        if scope == "guest" and self.guest is None:
            return "only a guest's own file knows the scope `guest/`"
        others = [names for names in self._scopes("") if names not in self._scopes(scope)]
        if any(name.lower() in getattr(names, kind) for names in others):
            return f"it is defined in the other scope: leave out `{scope}/`"
        return None

    # --- problems ---

    def _syntax(self, line: Line, problem: SyntaxProblem) -> None:
        self.findings.error(problem.code, line.span(problem.start, problem.end), problem.message, problem.hint)

    def _bad_value(self, line: Line, word: Word, bad: BadValue) -> None:
        self.findings.error(bad.code, line.span(word.start + bad.start, word.start + bad.end), bad.message, bad.hint)


class _Rejected(Exception):  # noqa: N818 - a finding about a rule, turned into a diagnostic
    """A rule that cannot be used."""

    def __init__(self, span: Span, code: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.span = span
        self.code = code
        self.message = message
        self.hint = hint

    @classmethod
    def value(cls, written: RuleLine, name: str, bad: BadValue) -> _Rejected:
        """Make one of a value that cannot be read."""
        start = written.fields[name].start
        return cls(written.line.span(start + bad.start, start + bad.end), bad.code, bad.message, bad.hint)


def _scoped(text: str) -> tuple[str, str]:
    scope, slash, name = text.partition("/")
    return (scope, name) if slash else ("", text)


def _read_action(written: RuleLine) -> tuple[macros.Macro | None, RuleAction]:
    text = written.action.text
    found = _ACTION.fullmatch(text)
    if found is None or (found[1] is None) != (found[3] is None):
        known = ("ACCEPT", "DROP", "REJECT")
        if text.upper() in known:
            hint = f"actions are in upper case: write {text.upper()}"
        elif macros.get(text) is not None:
            hint = f"a macro takes an action: write {text}(ACCEPT)"
        else:
            hint = nearest(text, known) or "write ACCEPT, DROP, REJECT or a macro with one of them, like SSH(ACCEPT)"
        raise _Rejected(written.span("action"), "bad-action", f"unknown action `{text[:60]}`", hint)
    if found[1] is None:
        return None, RuleAction(found[2])
    macro = macros.get(found[1])
    if macro is None:
        start = written.action.start
        raise _Rejected(
            written.line.span(start, start + len(found[1])),
            "unknown-macro",
            f"unknown macro `{found[1][:60]}`",
            nearest(found[1], macros.names()),
        )
    return macro, RuleAction(found[2])


def _families_of(written: RuleLine, source: Addresses | None, dest: Addresses | None) -> Family:
    """Return the families that the addresses of a rule leave; sets leave both."""
    versions: dict[str, int] = {}
    for name, addresses in (("source", source), ("dest", dest)):
        match addresses:
            case None | SetKey():
                pass
            case Range():
                versions[name] = addresses.version
            case _:
                versions[name] = addresses[0].version
    if len(set(versions.values())) > 1:
        raise _Rejected(
            written.span("dest"),
            "mixed-families",
            f"the source is IPv{versions['source']}, the destination IPv{versions['dest']}",
            "no packet has both; write one rule for each family",
        )
    if not versions:
        return Family.BOTH
    return Family.V4 if 4 in versions.values() else Family.V6


def _services(written: RuleLine, macro: macros.Macro | None, families: Family) -> tuple[Service, ...]:
    """Return what a rule matches beyond interface and addresses, for those families."""
    fields = written.fields
    given = tuple(fields[name].text if name in fields else None for name in ("proto", "dport", "sport", "icmp-type"))
    try:
        services = _plain(*given) if macro is None else _expanded(macro.name, families, *given)
    except _FieldProblem as problem:
        name = problem.field if problem.field in fields else "action"
        if problem.bad is not None and name == problem.field:
            raise _Rejected.value(written, name, problem.bad) from None
        raise _Rejected(written.span(name), problem.code, problem.message, problem.hint) from None
    if any(service.families & families for service in services) or macro is not None:
        return services
    raise _Rejected(
        written.span("proto"),
        "mixed-families",
        f"`{given[0]}` and the addresses are of different families",
        "no packet has both",
    )


class _FieldProblem(Exception):  # noqa: N818 - a finding about a field, turned into a diagnostic
    """What is wrong with one field of a rule, independent of its place."""

    def __init__(
        self, field: str, code: str, message: str, hint: str | None = None, bad: BadValue | None = None
    ) -> None:
        super().__init__(message)
        self.field = field
        self.code = code
        self.message = message
        self.hint = hint
        self.bad = bad


def _of(name: str, bad: BadValue) -> _FieldProblem:
    return _FieldProblem(name, bad.code, bad.message, bad.hint, bad)


_ICMP = {"icmp": 4, "icmpv6": 6, "ipv6-icmp": 6}
_ICMP_FAMILY = {4: Family.V4, 6: Family.V6}


@lru_cache(maxsize=16384)
def _plain(proto: str | None, dport: str | None, sport: str | None, icmp_type: str | None) -> tuple[Service, ...]:
    """Return the service of a rule without a macro."""
    if proto is None:
        for name, value in (("dport", dport), ("sport", sport)):
            if value is not None:
                raise _FieldProblem(name, "port-without-protocol", "a port needs a protocol", "add -p tcp or -p udp")
        if icmp_type is not None:
            raise _FieldProblem(
                "icmp-type", "bad-icmp-type", "an ICMP type needs a protocol", "add -p icmp or -p icmpv6"
            )
        return (Service(Family.BOTH),)
    try:
        protocol = read_protocol(proto)
    except BadValue as bad:
        raise _of("proto", bad) from None
    version = _ICMP.get(proto)
    if version is not None:
        return (Service(_ICMP_FAMILY[version], protocol, icmp=_icmp(version, dport, sport, icmp_type)),)
    if icmp_type is not None:
        raise _FieldProblem(
            "icmp-type",
            "bad-icmp-type",
            f"protocol `{proto}` has no ICMP types",
            "an ICMP type goes with -p icmp or -p icmpv6",
        )
    ports = {"sport": sport, "dport": dport}
    if protocol.number not in PORT_PROTOCOLS:
        for name, value in ports.items():
            if value is not None:
                raise _FieldProblem(
                    name,
                    "port-without-protocol",
                    f"protocol `{proto}` has no ports",
                    "ports go with " + ", ".join(PORT_PROTOCOLS.values()),
                )
        return (Service(Family.BOTH, protocol),)
    return (Service(Family.BOTH, protocol, _ports("sport", sport, protocol), _ports("dport", dport, protocol)),)


def _ports(name: str, text: str | None, protocol: Protocol) -> tuple[PortRange, ...]:
    if text is None:
        return ()
    try:
        return read_ports(text, protocol.number)
    except BadValue as bad:
        raise _of(name, bad) from None


def _icmp(version: int, dport: str | None, sport: str | None, icmp_type: str | None) -> Icmp | None:
    """Return the ICMP type of a rule: a name, or in older files a name or number in the place of the port."""
    if sport is not None:
        raise _FieldProblem("sport", "port-without-protocol", "ICMP has no source ports")
    if icmp_type is not None and dport is not None:
        raise _FieldProblem("dport", "bad-icmp-type", "the rule has an ICMP type already", "remove -dport")
    text = dport if icmp_type is None else icmp_type
    if text is None:
        return None
    name = "dport" if icmp_type is None else "icmp-type"
    if dport is not None and text.isascii() and text.isdigit():
        if len(text) > 3 or int(text) > 255 or (text[0] == "0" and text != "0"):
            raise _FieldProblem(
                name,
                "bad-icmp-type",
                f"`{text[:40]}` is not an ICMP type",
                "types go from 0 to 255, without leading zeros",
            )
        return Icmp(version, int(text), None, text)
    known = netdb.icmp_type(version, text)
    if known is None:
        other = netdb.icmp_type(10 - version, text)
        hint = (
            f"it is a type of {'ICMPv6' if version == 4 else 'ICMP'}"
            if other is not None
            else nearest(text, netdb.icmp_type_names(version))
            or ("write the type's name, such as echo-request" if text.isdigit() else None)
        )
        raise _FieldProblem(
            name, "bad-icmp-type", f"unknown type `{text[:60]}` of {'ICMP' if version == 4 else 'ICMPv6'}", hint
        )
    return Icmp(version, *known, text)


@lru_cache(maxsize=4096)
def _expanded(
    name: str,
    families: Family,
    proto: str | None,
    dport: str | None,
    sport: str | None,
    icmp_type: str | None,
) -> tuple[Service, ...]:
    """Return the services of a macro, with what it leaves open taken from the rule.

    Before: ``DNS(ACCEPT)``. After: udp to port 53, tcp to port 53, each for both families.
    """
    macro = macros.get(name)
    if macro is None:
        raise KeyError(name)
    if icmp_type is not None:
        raise _FieldProblem(
            "icmp-type", "macro-conflict", f"macro {name} says itself what it matches", "remove -icmp-type"
        )
    if families == Family.BOTH and macro.rules_v4 == macro.rules_v6:
        return tuple(_merged(macro, rule, Family.BOTH, proto, dport, sport) for rule in macro.rules_v4)
    services: list[Service] = []
    wanted = common(families, _ICMP_FAMILY[_ICMP[proto]]) if proto in _ICMP else families
    if wanted is None:
        raise _FieldProblem("proto", "mixed-families", f"`{proto}` and the addresses are of different families")
    for family, rules in ((Family.V4, macro.rules_v4), (Family.V6, macro.rules_v6)):
        if family & wanted:
            services += [_merged(macro, rule, family, proto, dport, sport) for rule in rules]
    return tuple(services)


def _merged(
    macro: macros.Macro,
    rule: macros.MacroRule,
    family: Family,
    proto: str | None,
    dport: str | None,
    sport: str | None,
) -> Service:
    settings = {"proto": (rule.proto, proto), "dport": (rule.dport, dport), "sport": (rule.sport, sport)}
    for field_name, (fixed, given) in settings.items():
        if fixed is not None and given is not None and fixed != given:
            what = {"proto": "protocol", "dport": "destination port", "sport": "source port"}[field_name]
            raise _FieldProblem(
                field_name,
                "macro-conflict",
                f"macro {macro.name} sets {what} {fixed}, the rule says {given[:40]}",
                "write a rule without the macro",
            )
    (service,) = _plain(rule.proto, rule.dport or dport, rule.sport or sport, None)
    families = common(service.families, family)
    if families is None:
        raise _FieldProblem("action", "mixed-families", f"macro {macro.name} does not speak of these addresses' family")
    return Service(families, service.protocol, service.sport, service.dport, service.icmp)


# --- files ---------------------------------------------------------------------------------------------------


def read_cluster(file: str, text: str, findings: Findings) -> tuple[ClusterConfig, Names]:
    """Read cluster.fw. Returns it and the names that hosts and guests may refer to."""
    names = Names(0)
    reader = _FileReader(FileKind.CLUSTER, findings, names, None)
    reader.read(file, text)
    config = ClusterConfig(
        _options(ClusterOptions, reader),
        names.aliases,
        names.ipsets,
        reader.groups,
        _known_groups(tuple(reader.rules), reader.groups, findings),
        file,
    )
    return config, names


def read_host(file: str, text: str, findings: Findings, cluster: ClusterConfig, names: Names) -> HostConfig:
    """Read host.fw."""
    reader = _FileReader(FileKind.HOST, findings, names, None)
    reader.read(file, text)
    return HostConfig(_options(HostOptions, reader), _known_groups(tuple(reader.rules), cluster.groups, findings), file)


def read_guest(
    file: str, text: str, findings: Findings, cluster: ClusterConfig, names: Names, vmid: int
) -> GuestConfig:
    """Read a guest's firewall file."""
    own = Names(vmid)
    reader = _FileReader(FileKind.GUEST, findings, names, own)
    reader.read(file, text)
    rules = _known_groups(tuple(reader.rules), cluster.groups, findings)
    return GuestConfig(_options(GuestOptions, reader), own.aliases, own.ipsets, rules, file)


def read_vnet(file: str, text: str, findings: Findings, cluster: ClusterConfig, names: Names, name: str) -> VnetConfig:
    """Read a VNet's firewall file."""
    reader = _FileReader(FileKind.VNET, findings, names, None)
    reader.read(file, text)
    return VnetConfig(
        name,
        _options(VnetOptions, reader),
        _known_groups(tuple(reader.rules), cluster.groups, findings),
        file,
    )


def _options(kind: type[_T], reader: _FileReader) -> _T:
    return kind(**reader.options)


def _known_groups(rules: tuple[RuleItem, ...], groups: Mapping[str, Group], findings: Findings) -> tuple[RuleItem, ...]:
    """Return the rules without those that name a group that does not exist; a group may stand below its use."""
    unknown = [rule for rule in rules if isinstance(rule, GroupRule) and rule.group not in groups]
    for rule in unknown:
        lower = rule.group.lower()
        hint = (
            f"group names are in lower case: write `{lower}`" if lower in groups else nearest(rule.group, list(groups))
        )
        findings.error(
            "unknown-group",
            rule.written.span("action"),
            f"no group `{rule.group[:60]}` in cluster.fw",
            hint or f"define it there: [group {lower[:18]}]",
        )
    return tuple(rule for rule in rules if rule not in unknown) if unknown else rules
