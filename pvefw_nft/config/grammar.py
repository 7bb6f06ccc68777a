"""The grammar of the configuration files: the form of lines, not their meaning.

Two grammars are used. The coarse one, here, reads a whole line with one expression, so that a node
with thousands of guests compiles in a second or two. The fine one (:mod:`.fine_grammar`) knows every word of a line;
it reads only the lines that the coarse one rejects, to name the place of the mistake and the expected word. It is
imported for the first of them, or for a corosync.conf.

Columns are offsets from 0 into the line; :class:`Line.span` turns them into places for people.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from pvefw_nft.config.rule_fields import COLUMN_HEADINGS, OPTION_FIELDS, OPTION_WORDS, listed_options
from pvefw_nft.errors import Span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyparsing import ParseResults

MAX_RULE_LENGTH = 8192
"""Longest rule in characters, its comment aside: iptables-restore reads lines of at most 10,240 bytes (xshared.h)."""


class SyntaxProblem(ValueError):  # noqa: N818 - a finding about a line, turned into a diagnostic
    """A line that the grammar rejects: columns ``start`` to ``end`` do not make sense there."""

    def __init__(self, message: str, *, start: int, end: int, hint: str | None = None, code: str = "syntax") -> None:
        super().__init__(message)
        self.message = message
        self.start = start
        self.end = end
        self.hint = hint
        self.code = code


class Line(NamedTuple):
    """One line of a file: its number from 1, and its text without the line end."""

    file: str
    number: int
    text: str

    def span(self, start: int = 0, end: int | None = None) -> Span:
        """Return the place of columns ``start`` to ``end`` (default: the text without outer blanks)."""
        if end is None:
            start = len(self.text) - len(self.text.lstrip())
            end = max(len(self.text.rstrip()), start + 1)
        return Span(self.file, self.number, start + 1, max(end, start + 1) + 1, self.text)


class Word(NamedTuple):
    """A word of a line and the column it starts at."""

    text: str
    start: int

    @property
    def end(self) -> int:
        """The column after the word's last character."""
        return self.start + len(self.text)


class SectionKind(Enum):
    """The sections of a firewall file."""

    OPTIONS = "options"
    RULES = "rules"
    ALIASES = "aliases"
    IPSET = "ipset"
    GROUP = "group"


_NAMED_SECTIONS = (SectionKind.IPSET, SectionKind.GROUP)


@dataclass(frozen=True, slots=True)
class Section:
    """A section and the lines below its header, blank and comment lines left out.

    ``kind`` is None for a header that is unknown or malformed: its lines belong to no section.
    """

    kind: SectionKind | None
    name: Word | None
    comment: str
    header: Line
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """A line ``name: value``. A ``#`` in the value begins no comment: Proxmox takes it for a part of the value."""

    name: Word
    value: Word


@dataclass(frozen=True, slots=True)
class AliasLine:
    """A line ``name address [# comment]`` of section ALIASES."""

    name: Word
    address: Word
    comment: str


@dataclass(frozen=True, slots=True)
class EntryLine:
    """A line ``[!]address [# comment]`` of an IPSET section."""

    nomatch: bool
    address: Word
    comment: str


@dataclass(frozen=True, slots=True)
class RuleLine:
    """A rule as written: ``fields`` maps the names of :data:`~.rule_fields.RULE_FIELDS` to their values.

    ``action`` is the word after the type; for type GROUP it is the group's name.
    """

    line: Line
    disabled: bool
    type: Word
    action: Word
    fields: dict[str, Word]
    comment: str
    positional: bool

    def span(self, field: str | None = None) -> Span:
        """Return the place of a field, of ``type`` or ``action``, or of the whole rule."""
        word = {"type": self.type, "action": self.action}.get(field or "") or self.fields.get(field or "")
        return self.line.span() if word is None else self.line.span(word.start, word.end)


# The coarse grammar: one expression a line.
_RULE = re.compile(r"(\|[ \t]*)?([^\s#|]+)[ \t]+([^\s#]+)([^#]*)(?:#(.*))?")
_SETTING = re.compile(r"([A-Za-z][A-Za-z0-9_-]*)[ \t]*:[ \t]*(.*)")
_ALIAS = re.compile(r"([^\s#]+)[ \t]+([^\s#]+)[ \t]*(?:#(.*))?")
_ENTRY = re.compile(r"(!?)[ \t]*([^\s#]+)[ \t]*(?:#(.*))?")
_HEADER = re.compile(r"\[[ \t]*([A-Za-z]+)(?:[ \t]+([^\s\]]+))?[ \t]*\][ \t]*(?:#(.*))?")


# The columns of a rule. The dash forms are matched as pairs; the fine grammar takes all other forms.
_NAMED_FIELDS = re.compile(r"(?:[ \t]+--?[a-z][a-z-]*[ \t]+[^-\s]\S*)*[ \t]*")
_NAMED_FIELD = re.compile(r"(--?[a-z][a-z-]*)[ \t]+(\S+)")
_WORD = re.compile(r"\S+")


def read_sections(file: str, text: str) -> tuple[tuple[Section, ...], tuple[Line, ...]]:
    """Cut the text of a firewall file into sections.

    Returns the sections in order, and the lines before the first header.
    """
    sections: list[Section] = []
    before: list[Line] = []
    header: tuple[SectionKind | None, Word | None, str, Line] | None = None
    lines = before
    for number, raw in enumerate(text.split("\n"), 1):
        stripped = raw.strip(" \t\r")
        if not stripped or stripped[0] == "#":
            continue
        line = Line(file, number, raw.rstrip("\r"))
        if stripped[0] == "[":
            if header is not None:
                sections.append(Section(*header, tuple(lines)))
            header, lines = _read_header(line, stripped), []
        else:
            lines.append(line)
    if header is not None:
        sections.append(Section(*header, tuple(lines)))
    return tuple(sections), tuple(before)


def _read_header(line: Line, stripped: str) -> tuple[SectionKind | None, Word | None, str, Line]:
    found = _HEADER.fullmatch(stripped)
    try:
        kind = SectionKind(found[1].lower()) if found else None
    except ValueError:
        kind = None
    if found is None or kind is None or (found[2] is not None and kind not in _NAMED_SECTIONS):
        return None, None, "", line
    name = None if found[2] is None else Word(found[2], line.text.index("[") + found.start(2))
    return kind, name, (found[3] or "").strip(), line


def _body(line: Line) -> tuple[str, int]:
    """Return a line's text without outer blanks, and the column it starts at."""
    text = line.text.lstrip()
    return text.rstrip(), len(line.text) - len(text)


def read_setting(line: Line) -> Setting:
    """Read a line ``name: value``; raises SyntaxProblem."""
    body, offset = _body(line)
    found = _setting(body)
    if found is None:
        raise SyntaxProblem(
            "expected an option, `name: value`",
            start=offset,
            end=offset + len(body),
            hint="options are written like `policy_in: DROP`",
        )
    return Setting(Word(found[1], offset), Word(found[2].rstrip(), offset + found.start(2)))


@lru_cache(maxsize=1024)
def _setting(body: str) -> re.Match[str] | None:
    return _SETTING.fullmatch(body)


def read_alias(line: Line) -> AliasLine:
    """Read a line of section ALIASES; raises SyntaxProblem."""
    body, offset = _body(line)
    found = _ALIAS.fullmatch(body)
    if found is None:
        raise SyntaxProblem(
            "expected an alias, `name address`",
            start=offset,
            end=offset + len(body),
            hint="aliases are written like `gateway 192.168.1.1 # comment`",
        )
    return AliasLine(Word(found[1], offset), Word(found[2], offset + found.start(2)), (found[3] or "").strip())


def read_entry(line: Line) -> EntryLine:
    """Read a line of an IPSET section; raises SyntaxProblem."""
    body, offset = _body(line)
    found = _ENTRY.fullmatch(body)
    if found is None:
        raise SyntaxProblem(
            "expected one address, network or alias",
            start=offset,
            end=offset + len(body),
            hint="one entry a line, like `10.0.0.0/24 # comment` or `!10.0.0.7`",
        )
    return EntryLine(bool(found[1]), Word(found[2], offset + found.start(2)), (found[3] or "").strip())


def read_rule(line: Line, columns: tuple[str, ...]) -> RuleLine:
    """Read a rule of either form; raises SyntaxProblem.

    ``columns`` names the columns that the positional form has in this section. A rule is positional when the
    first word after the action is a lone ``-`` or does not start with ``-``.
    """
    body, offset = _body(line)
    found = _RULE.fullmatch(body)
    if found is None:
        raise _explain(body, offset)
    off, type_word, action_word, rest, comment = found.groups()
    rest_start = offset + found.start(4)
    if found.end(4) > MAX_RULE_LENGTH:
        raise SyntaxProblem(
            f"the rule is longer than {MAX_RULE_LENGTH} characters",
            start=offset,
            end=offset + 40,
            hint="put its addresses into an ipset",
            code="too-long",
        )
    words = rest.lstrip()
    positional = bool(words) and (words[0] != "-" or words[1:2] in ("", " ", "\t"))
    if positional:
        if type_word.upper() == "GROUP":
            columns = columns[:1] if columns[0] == "iface" else ()
        fields = _positional_fields(rest_start, rest, columns)
    elif _NAMED_FIELDS.fullmatch(rest):
        fields = _named_fields(rest_start, rest)
    else:
        raise _explain(body, offset)
    return RuleLine(
        line,
        off is not None,
        Word(type_word, offset + found.start(2)),
        Word(action_word, offset + found.start(3)),
        fields,
        (comment or "").strip(),
        positional,
    )


def _named_fields(start: int, rest: str) -> dict[str, Word]:
    fields: dict[str, Word] = {}
    for found in _NAMED_FIELD.finditer(rest):
        option, value = found.groups()
        field = OPTION_FIELDS.get(option)
        if field is None:
            at = start + found.start(1)
            raise SyntaxProblem(
                f"unknown option `{option}`",
                start=at,
                end=at + len(option),
                code="unknown-rule-option",
                hint=_nearest_option(option),
            )
        fields[field] = Word(value, start + found.start(2))
    return fields


def _nearest_option(option: str) -> str:
    from pvefw_nft.config.values import nearest

    return nearest(option, OPTION_WORDS) or f"a rule's options are {listed_options()}"


def _positional_fields(start: int, rest: str, columns: tuple[str, ...]) -> dict[str, Word]:
    fields: dict[str, Word] = {}
    for index, found in enumerate(_WORD.finditer(rest)):
        at = start + found.start()
        word = found[0]
        if index >= len(columns):
            raise SyntaxProblem(
                f"`{word}` is one column too many",
                start=at,
                end=at + len(word),
                hint="the columns here are " + (" ".join(COLUMN_HEADINGS[name] for name in columns) or "none"),
            )
        if word == "-":
            continue
        if word[0] == "-":
            raise SyntaxProblem(
                f"option `{word}` in a rule of columns",
                start=at,
                end=at + len(word),
                hint="write the whole rule with options (-source, -dest, -p, …) or the whole rule in columns",
            )
        fields[columns[index]] = Word(word, at)
    return fields


def _explain(body: str, offset: int) -> SyntaxProblem:
    """Read a rejected rule with the fine grammar, to find its first wrong word."""
    from pvefw_nft.config import fine_grammar  # deferred: few files have such a line

    try:
        fine_grammar.rule().parse_string(body[:MAX_RULE_LENGTH])
    except fine_grammar.Rejected as rejected:
        at = min(rejected.loc, len(body))
        while at < len(body) and body[at] in " \t":
            at += 1
        word = _WORD.match(body, at)
        end = word.end() if word else at + 1
        if word and word[0][0] == "-" and not rejected.msg.endswith(fine_grammar.VALUE):
            option = word[0]
            if option not in OPTION_WORDS:
                return SyntaxProblem(
                    f"unknown option `{option[:40]}`",
                    start=offset + at,
                    end=offset + end,
                    code="unknown-rule-option",
                    hint=_nearest_option(option),
                )
        expected = rejected.msg.removeprefix("Expected ")
        found = f"found `{word[0][:40]}`" if word else "the line ends"
        return SyntaxProblem(f"expected {expected}, {found}", start=offset + at, end=offset + end)
    return SyntaxProblem("this is not a rule", start=offset, end=offset + len(body))


# --- guest and cluster configuration files ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NicLine:
    """A line ``netN: key=value,…`` of a guest config; ``properties`` maps each key to its value.

    The first part of a VM's NIC is ``MODEL=MAC``: its key is the model. ``problem`` names the mistake of the line
    as a whole; its properties are then those that can be told nevertheless.
    """

    line: Line
    index: int
    properties: dict[str, Word]
    problem: SyntaxProblem | None = None


_NIC = re.compile(r"net([0-9]{1,2})[ \t]*:[ \t]*([A-Za-z0-9_-]+(?:=[^,\s]*)?(?:,[A-Za-z0-9_-]+(?:=[^,\s]*)?)*)")
_NIC_START = re.compile(r"net([0-9]{1,2})(?![0-9])")
# Raw keys of LXC may be written in its own manner, with an equals sign.
_GUEST_SETTING = re.compile(r"[A-Za-z0-9_.-]+[ \t]*:|lxc\.[a-z0-9_.-]+[ \t]*=")
_NIC_PROPERTY = re.compile(r"([A-Za-z0-9_-]+)(?:=([^,\s]*))?")


def read_guest_config(file: str, text: str) -> Iterator[NicLine | tuple[Line, SyntaxProblem]]:
    """Yield the NIC lines of a guest config; those after the first ``[section]`` are of snapshots and left out.

    A line that is no setting at all is yielded with its problem, since a NIC might be hidden in it.
    """
    for number, raw in enumerate(text.split("\n"), 1):
        body = raw.strip(" \t\r")
        if body.startswith("["):
            return
        if not body or body[0] == "#":
            continue
        is_nic = body.startswith("net") and body[3:4].isdigit()
        if not is_nic and _GUEST_SETTING.match(body):
            continue
        line = Line(file, number, raw.rstrip("\r"))
        offset = len(raw) - len(raw.lstrip())
        found = _NIC.fullmatch(body)
        if found is not None:
            yield NicLine(line, int(found[1]), _nic_properties(found[2], offset + found.start(2)))
            continue
        problem = SyntaxProblem(
            "this network interface cannot be read" if is_nic else "expected `name: value`",
            start=offset,
            end=offset + len(body),
            hint="it is written like `net0: virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1`" if is_nic else None,
        )
        start = _NIC_START.match(body)
        if start is None:
            yield line, problem
        else:
            properties = _nic_properties(body[start.end() :], offset + start.end())
            yield NicLine(line, int(start[1]), properties, problem)


def _nic_properties(text: str, start: int) -> dict[str, Word]:
    return {
        found[1]: Word(found[2] or "", start + (found.end(1) if found[2] is None else found.start(2)))
        for found in _NIC_PROPERTY.finditer(text)
    }


@dataclass(frozen=True, slots=True)
class Block:
    """A block ``name { … }`` of corosync.conf: settings by name, and the blocks inside it.

    A setting's word starts at an offset into the whole text.
    """

    name: str
    settings: dict[str, Word]
    blocks: tuple[Block, ...]


def read_corosync(file: str, text: str) -> Block:
    """Read corosync.conf (corosync.conf(5)) into its blocks; raises SyntaxProblem with offsets into ``text``."""
    from pvefw_nft.config import fine_grammar  # deferred: only nodes of a cluster have this file

    try:
        return _block("", fine_grammar.COROSYNC.parse_string(text))
    except fine_grammar.Rejected as rejected:
        start = rejected.loc
    except RecursionError:
        start = 0
    raise SyntaxProblem(
        f"{file} cannot be read from here on",
        start=start,
        end=start + 1,
        hint="expected `name: value`, or `name {` … `}`",
    )


def _block(name: str, body: ParseResults) -> Block:
    settings: dict[str, Word] = {}
    blocks: list[Block] = []
    for item in body:
        if isinstance(item, re.Match):
            settings[item[1]] = Word(item[2].strip(), item.start(2))
        else:
            opening, inner = item
            blocks.append(_block(opening[1], inner))
    return Block(name, settings, tuple(blocks))
