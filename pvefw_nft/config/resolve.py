"""From lines to the model: names are resolved, values are read, and every problem becomes a diagnostic.

A bad line is reported and left out, the rest of the file holds; that is how the reference treats them, and
the caller decides by the diagnostics whether to apply the ruleset. Problems of disabled rules are warnings.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from pvefw_nft.config import grammar
from pvefw_nft.config.budget import comparisons
from pvefw_nft.config.grammar import Line, Section, SectionKind, SyntaxProblem, Word
from pvefw_nft.config.model import (
    Alias,
    ClusterConfig,
    Group,
    GroupRule,
    GuestConfig,
    HostConfig,
    Ipset,
    IpsetEntry,
    Rule,
    RuleItem,
    VnetConfig,
)
from pvefw_nft.config.option_lines import OptionReader
from pvefw_nft.config.option_readers import is_enabled
from pvefw_nft.config.options import (
    OPTION_CLASSES,
    ClusterHardening,
    ClusterOptions,
    FileKind,
    GuestHardening,
    GuestOptions,
    HostHardening,
    HostOptions,
    VnetOptions,
)
from pvefw_nft.config.rule_fields import COLUMNS, GROUP_COLUMNS
from pvefw_nft.config.rules import Names, Rejected, RuleReader, unknown_type
from pvefw_nft.config.values import (
    BadValue,
    Prefix,
    looks_like_address,
    nearest,
    read_network,
)
from pvefw_nft.errors import Severity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pvefw_nft.config.findings import Findings


_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]+")
_MAX_NAME = 64
_MAX_GROUP_NAME = 18
_ALIAS = re.compile(r"(?:dc/|guest/)?[A-Za-z][A-Za-z0-9_-]+")
_SEVERAL = re.compile(r"[-,]")
_ENTRY_HINT = (
    "an entry is one address, one network like 10.0.0.0/24, or the name of an alias; `!` before it excludes it"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x85\ufffd]")

_SECTIONS = {
    FileKind.CLUSTER: tuple(SectionKind),
    FileKind.HOST: (SectionKind.OPTIONS, SectionKind.RULES),
    FileKind.GUEST: (SectionKind.OPTIONS, SectionKind.RULES, SectionKind.ALIASES, SectionKind.IPSET),
    FileKind.VNET: (SectionKind.OPTIONS, SectionKind.RULES),
    FileKind.CLUSTER_HARDENING: (SectionKind.OPTIONS,),
    FileKind.HOST_HARDENING: (SectionKind.OPTIONS,),
    FileKind.GUEST_HARDENING: (SectionKind.OPTIONS,),
}

_RULE_TYPES = {
    FileKind.CLUSTER: ("IN", "OUT", "FORWARD", "GROUP"),
    FileKind.HOST: ("IN", "OUT", "FORWARD", "GROUP"),
    FileKind.GUEST: ("IN", "OUT", "GROUP"),
    FileKind.VNET: ("FORWARD", "GROUP"),
    FileKind.CLUSTER_HARDENING: (),
    FileKind.HOST_HARDENING: (),
    FileKind.GUEST_HARDENING: (),
}
_GROUP_RULE_TYPES = ("IN", "OUT", "FORWARD")
_TYPES = _RULE_TYPES[FileKind.CLUSTER]
_TYPE_WORD = re.compile(r"[ \t]*([^\s#]+)")

_T = TypeVar("_T")


def _spelled(kind: SectionKind) -> str:
    return {SectionKind.IPSET: "[IPSET name]", SectionKind.GROUP: "[group name]"}.get(kind, f"[{kind.name}]")


class _FileReader:
    """Read one firewall file, top to bottom; a line does not know definitions below it."""

    def __init__(self, kind: FileKind, findings: Findings, cluster: Names, guest: Names | None) -> None:
        self.kind = kind
        self.findings = findings
        self.own = guest or cluster
        self._rules = RuleReader(kind, findings, cluster, guest)
        self.options = OptionReader(kind, findings)
        self._is_clean = False
        self.groups: dict[str, Group] = {}
        self.rules: list[RuleItem] = []

    def read(self, file: str, text: str) -> None:
        comparisons.begin_file()
        # Most files are printable, which is tested at once. Only the rest is examined line by line.
        self._is_clean = "\ufffd" not in text and text.replace("\n", "").replace("\t", "").isprintable()
        sections, before = grammar.read_sections(file, text)
        if before:
            self.findings.error(
                "no-section",
                before[0].span(),
                "text before the first section; it is ignored",
                f"a section begins with a header such as {self._headers()}",
            )
        self._rules.defined_below = partial(_defined_below, sections)
        for section in sections:
            self.findings.section = None if section.kind is None else section.kind.value
            self._read_section(section)
        self.findings.section = None

    def _headers(self) -> str:
        return ", ".join(map(_spelled, _SECTIONS[self.kind]))

    def _read_section(self, section: Section) -> None:
        kind = section.kind
        if kind is None:
            self._unknown_section(section.header)
            return
        if kind not in _SECTIONS[self.kind]:
            self.findings.error(
                "misplaced-section",
                section.header.span(),
                f"{self.kind.value} has no section {kind.name}; its lines are ignored",
                self._home(),
            )
            return
        match kind:
            case SectionKind.OPTIONS:
                for line in self._clean(section):
                    self.options.read(line)
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

    def _home(self) -> str | None:
        """Say which file a section belongs in that this kind of file does not have."""
        if self.kind.is_companion:
            return "it belongs in the file of the same name that ends in .fw; here is only [OPTIONS]"
        return "it belongs in cluster.fw" if self.kind is not FileKind.CLUSTER else None

    def _unknown_section(self, header: Line) -> None:
        word = re.sub(r"[\[\]\s].*", "", header.text.strip().lstrip("[ \t")).upper()
        known = {kind.value.upper(): kind for kind in _SECTIONS[self.kind]}
        if word in known:
            hint: str | None = f"write {_spelled(known[word])} alone on its line"
        else:
            hint = nearest(word, list(known))
        self.findings.error(
            "unknown-section",
            header.span(),
            "unknown section; its lines are ignored",
            hint or f"sections here are {self._headers()}",
        )

    def _columns(self) -> tuple[str, ...]:
        return GROUP_COLUMNS if self.kind is FileKind.VNET else COLUMNS

    def _clean(self, section: Section) -> list[Line]:
        """Return the section's lines without those that hold control characters or are not UTF-8."""
        if self._is_clean:
            return list(section.lines)
        lines = []
        for line in section.lines:
            found = _CONTROL.search(line.text)
            if found is None:
                lines.append(line)
            elif found[0] == "\ufffd":
                if "#" in line.text[: found.start()]:
                    lines.append(line)
                    self.findings.note(
                        "comment-not-utf8",
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

    # --- aliases, sets, groups ---

    def _read_alias(self, line: Line) -> None:
        try:
            written = grammar.read_alias(line)
            if not self._valid_name(line, written.name, "alias", _MAX_NAME):
                return
            if _SEVERAL.search(written.address.text):
                raise _bad_alias(written.address.text)
            prefix = self._network(line, written.address)
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

    def _network(self, line: Line, word: Word) -> Prefix:
        """Read a network; host bits are cleared, as the kernel's tools do, and warned about. Raises BadValue."""
        prefix, host_bits = read_network(word.text)
        if host_bits and prefix.length:
            self.findings.warning(
                "host-bits-cleared",
                line.span(word.start, word.end),
                f"`{word.text}` has host bits set; it means the network {prefix.canonical}",
                f"write {prefix.canonical}, or {word.text.partition('/')[0]} for the host alone",
            )
        return prefix

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
        entries, replaced = self._entries(self._clean(section))
        self.own.ipsets[name] = Ipset(name, entries, section.header, replaced)

    def _entries(self, lines: list[Line]) -> tuple[tuple[IpsetEntry, ...], int]:
        """Read the entries of an ipset, one for each network. Returns them, and the number of replaced entries.

        As in the reference, of entries with the same text the first counts, and of different texts for one network
        (an alias and its address, two spellings) the last.
        """
        entries: dict[tuple[int, int, int], tuple[str, IpsetEntry]] = {}
        seen: dict[str, IpsetEntry] = {}
        for line in lines:
            found = self._read_entry(line)
            if found is None:
                continue
            text, entry = found
            key = (entry.prefix.version, entry.prefix.address, entry.prefix.length)
            first = seen.setdefault(text, entry)
            before = None if key not in entries else entries[key][1]
            if first is not entry:
                self._twice(line, entry, first, first)
                continue
            if before is not None:
                self._twice(line, entry, before, entry)
                del entries[key]
            entries[key] = text, entry
        return tuple(entry for _, entry in entries.values()), len(seen) - len(entries)

    def _twice(self, line: Line, entry: IpsetEntry, before: IpsetEntry, counts: IpsetEntry) -> None:
        """Warn of a network that an ipset lists twice; ``counts`` is the entry in effect."""
        what = f"`{entry.prefix.canonical}` is in the set already, from line {before.line.number}"
        if before.nomatch is not entry.nomatch:
            what = f"line {before.line.number} says the opposite about `{entry.prefix.canonical}`"
            sense = "it is not in the set" if counts.nomatch else "it is in the set"
            what += f"; line {counts.line.number} counts: {sense}"
            self.findings.warning("contradictory-entry", line.span(), what, "remove one of the two lines")
            return
        self.findings.warning("duplicate-entry", line.span(), what, "remove one of the two lines")

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

    def _read_entry(self, line: Line) -> tuple[str, IpsetEntry] | None:
        """Return the text of an entry, without its ``!``, and its prefix; None for an invalid one."""
        try:
            written = grammar.read_entry(line)
            word = written.address
            if looks_like_address(word.text) and not _SEVERAL.search(word.text):
                prefix: Prefix | None = self._network(line, word)
            elif _ALIAS.fullmatch(word.text):
                prefix = self._alias(line, word)
            else:
                raise _not_an_entry(word.text)
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
        return word.text, IpsetEntry(prefix, written.nomatch, line)

    def _read_group(self, section: Section) -> None:
        if not self._valid_name(section.header, section.name, "group", _MAX_GROUP_NAME) or section.name is None:
            return
        name = section.name.text.lower()
        if name in self.groups:
            self._redefined(section, "group", name, self.groups[name].header)
        rules = [self._read_rule(line, _GROUP_RULE_TYPES, GROUP_COLUMNS) for line in self._clean(section)]
        self.groups[name] = Group(name, tuple(rule for rule in rules if isinstance(rule, Rule)), section.header)

    # --- rules ---

    def _read_rule(self, line: Line, types: tuple[str, ...], columns: tuple[str, ...]) -> RuleItem | None:
        try:
            written = grammar.read_rule(line, columns)
        except SyntaxProblem as rejected:
            problem = rejected
            severity = Severity.WARNING if line.text.lstrip().startswith("|") else Severity.ERROR
            if severity is Severity.ERROR and (found := _TYPE_WORD.match(line.text)) and found[1].upper() not in _TYPES:
                problem = unknown_type(found[1], found.start(1), types)
            self.findings.add(
                severity, problem.code, line.span(problem.start, problem.end), problem.message, problem.hint
            )
            return None
        try:
            rule = self._rules.read(written, types, columns)
        except Rejected as rejected:
            severity = Severity.WARNING if written.disabled else Severity.ERROR
            self.findings.add(severity, rejected.code, rejected.span, rejected.message, rejected.hint)
            return None
        return None if written.disabled else rule

    def _alias(self, line: Line, word: Word) -> Prefix | None:
        try:
            return self._rules.find_alias(line, word)
        except Rejected as rejected:
            self.findings.error(rejected.code, rejected.span, rejected.message, rejected.hint)
            return None

    # --- problems ---

    def _syntax(self, line: Line, problem: SyntaxProblem) -> None:
        self.findings.error(problem.code, line.span(problem.start, problem.end), problem.message, problem.hint)

    def _bad_value(self, line: Line, word: Word, bad: BadValue) -> None:
        self.findings.error(bad.code, line.span(word.start + bad.start, word.start + bad.end), bad.message, bad.hint)


def _defined_below(sections: tuple[Section, ...], kind: SectionKind, name: str, above: int) -> int | None:
    """Return the line that defines an alias or ipset below line ``above``, or None if none does."""
    for section in sections:
        if section.kind is not kind:
            continue
        if kind is SectionKind.IPSET and section.name is not None and section.name.text.lower() == name:
            found = [section.header]
        elif kind is SectionKind.ALIASES:
            found = [line for line in section.lines if line.text.split(None, 1)[0].lower() == name]
        else:
            found = []
        for line in found:
            if line.number > above:
                return line.number
    return None


def _bad_alias(text: str) -> BadValue:
    return BadValue(
        f"an alias cannot mean `{text[:60]}`",
        start=0,
        end=len(text),
        code="bad-address",
        hint="an alias means one address or one network; define an ipset for several",
    )


def _not_an_entry(text: str) -> BadValue:
    return BadValue(
        f"`{text[:60]}` cannot be an entry of an ipset", start=0, end=len(text), code="bad-address", hint=_ENTRY_HINT
    )


# --- files ---------------------------------------------------------------------------------------------------


def read_cluster(file: str, text: str, findings: Findings, names: Names, now: Callable[[], float]) -> ClusterConfig:
    """Read cluster.fw. ``names`` takes the names that hosts and guests may refer to; ``now`` is the epoch time."""
    reader = _FileReader(FileKind.CLUSTER, findings, names, None)
    reader.read(file, text)
    for name in names.ipsets.keys() & names.sdn.ipsets.keys():
        findings.warning(
            "hidden-ipset",
            names.ipsets[name].header.span(),
            f"the SDN also has a set `{name}`; its addresses are used instead of these",
            "give this ipset another name",
        )
    enable = reader.options.values.get("enable")
    if isinstance(enable, int):
        reader.options.values["enable"] = is_enabled(enable, now)
    return ClusterConfig(
        _options(ClusterOptions, reader),
        names.aliases,
        names.ipsets,
        reader.groups,
        _known_groups(tuple(reader.rules), reader.groups, findings),
        file,
        reader.options.lines,
    )


def read_host(file: str, text: str, findings: Findings, cluster: ClusterConfig, names: Names) -> HostConfig:
    """Read host.fw."""
    reader = _FileReader(FileKind.HOST, findings, names, None)
    reader.read(file, text)
    rules = _known_groups(tuple(reader.rules), cluster.groups, findings)
    return HostConfig(_options(HostOptions, reader), rules, file, reader.options.lines)


def read_guest(
    file: str, text: str, findings: Findings, cluster: ClusterConfig, names: Names, vmid: int
) -> GuestConfig:
    """Read a guest's firewall file."""
    own = Names(vmid)
    reader = _FileReader(FileKind.GUEST, findings, names, own)
    reader.read(file, text)
    rules = _known_groups(tuple(reader.rules), cluster.groups, findings)
    return GuestConfig(_options(GuestOptions, reader), own.aliases, own.ipsets, rules, file, reader.options.lines)


def read_vnet(file: str, text: str, findings: Findings, cluster: ClusterConfig, names: Names, name: str) -> VnetConfig:
    """Read a VNet's firewall file."""
    reader = _FileReader(FileKind.VNET, findings, names, None)
    reader.read(file, text)
    return VnetConfig(
        name,
        _options(VnetOptions, reader),
        _known_groups(tuple(reader.rules), cluster.groups, findings),
        file,
        reader.options.lines,
    )


_Hardening = TypeVar("_Hardening", ClusterHardening, HostHardening, GuestHardening)
_KINDS = {options: kind for kind, options in OPTION_CLASSES.items()}


def read_companion(kind: type[_Hardening], file: str, text: str, findings: Findings) -> _Hardening:
    """Read a companion file: options of pvefw's own, beside the file of Proxmox."""
    if not text:
        return kind()
    reader = _FileReader(_KINDS[kind], findings, Names(0), None)
    reader.read(file, text)
    return _options(kind, reader)


def _options(kind: type[_T], reader: _FileReader) -> _T:
    return kind(**reader.options.values)


def _known_groups(rules: tuple[RuleItem, ...], groups: Mapping[str, Group], findings: Findings) -> tuple[RuleItem, ...]:
    """Return the rules without those that name a missing group. A group may be defined below its use."""
    known: list[RuleItem] = []
    for rule in rules:
        if not isinstance(rule, GroupRule) or rule.group in groups:
            known.append(rule)
            continue
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
    return tuple(known)
