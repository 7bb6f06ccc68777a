"""The lines of section OPTIONS: their values, and the fallback for an unreadable one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.config import grammar
from pvefw_nft.config.grammar import SyntaxProblem
from pvefw_nft.config.option_readers import Doubtful
from pvefw_nft.config.option_values import Policy
from pvefw_nft.config.options import OPTIONS, FileKind, has_no_effect, option_hint
from pvefw_nft.config.values import BadValue

if TYPE_CHECKING:
    from pvefw_nft.config.findings import Findings
    from pvefw_nft.config.grammar import Line, Word

_UNREADABLE = object()
"""The value of an option that cannot be read."""


class OptionReader:
    """Reads the options of one file: ``values`` by name, typed, and ``lines``, the number of the line of each."""

    def __init__(self, kind: FileKind, findings: Findings) -> None:
        """Start with none."""
        self._kind = kind
        self._findings = findings
        self.values: dict[str, object] = {}
        self.lines: dict[str, int] = {}

    def read(self, line: Line) -> None:
        """Read one line; report its mistakes."""
        try:
            setting = grammar.read_setting(line)
        except SyntaxProblem as problem:
            self._findings.error(problem.code, line.span(problem.start, problem.end), problem.message, problem.hint)
            return
        name = setting.name.text.lower()
        span = line.span(setting.name.start, setting.name.end)
        if has_no_effect(self._kind, name):
            self._findings.warning("old-option", span, f"option `{name}` has no effect", "remove the line")
            return
        option = OPTIONS[self._kind].get(name)
        if option is None:
            self._findings.error(
                "unknown-option",
                span,
                f"{self._kind.value} has no option `{name[:60]}`",
                option_hint(self._kind, name),
            )
            return
        try:
            value = option.read(setting.value.text)
        except BadValue as bad:
            self._unreadable(line, setting, bad)
            return
        if isinstance(value, Doubtful):
            span = line.span(setting.value.start, setting.value.end)
            self._findings.warning("unusual-value", span, value.message, value.hint)
            value = value.value
        self._set(line, name, value)

    def _set(self, line: Line, name: str, value: object) -> None:
        self.values[name] = value
        self.lines[name] = line.number

    def _unreadable(self, line: Line, setting: grammar.Setting, bad: BadValue) -> None:
        """Report an option whose value cannot be read: it keeps its default, unless that could open the firewall.

        A policy counts as DROP, an option of a companion file as its strict value, and ``enable`` as 1 if a ruleset
        is to be applied. A comment behind the value is the most frequent cause; Proxmox skips the line then, so a line
        that says the default does no harm.
        """
        name, text = setting.name.text.lower(), setting.value.text
        if self._kind.is_companion:
            self._set(line, name, OPTIONS[self._kind][name].strict)
            self._bad_value(line, setting.value, bad)
            return
        default = OPTIONS[self._kind][name].default
        before = text.partition("#")[0].strip()
        meant = self._value(name, before) if before != text else _UNREADABLE
        kept = default
        if isinstance(default, Policy) and meant != default:
            kept = Policy.DROP
            self._set(line, name, kept)
        elif name == "enable" and self._findings.cautious and meant != default:
            kept = True
            self.values[name] = kept
        if meant is _UNREADABLE:
            self._bad_value(line, setting.value, bad)
            return
        start = setting.value.start + text.index("#")
        span = line.span(start, setting.value.end)
        message = f"a comment behind the value: Proxmox cannot read the line, so `{name}` {_counts_as(kept)}"
        hint = "put the comment on a line of its own"
        if meant == kept:
            self._findings.warning("option-comment-same", span, message + " anyway", hint)
        else:
            self._findings.error("option-comment", span, message, hint)

    def _value(self, name: str, text: str) -> object:
        """Return the value of an option, or the mark of one that cannot be read."""
        try:
            value = OPTIONS[self._kind][name].read(text)
        except BadValue:
            return _UNREADABLE
        return value.value if isinstance(value, Doubtful) else value

    def _bad_value(self, line: Line, word: Word, bad: BadValue) -> None:
        self._findings.error(bad.code, line.span(word.start + bad.start, word.start + bad.end), bad.message, bad.hint)


def _counts_as(value: object) -> str:
    """Name the value of an option whose line cannot be read."""
    match value:
        case bool():
            return f"counts as {int(value)}"
        case Policy():
            return f"counts as {value.value}"
        case _:
            return "keeps its default"
