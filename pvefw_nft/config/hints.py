"""Hints for words that users write where the ``.fw`` language has another one: other firewalls' rules, guessed names.

The table is data (``data/hints.toml``) and read when the first mistake is found.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pvefw_nft.errors import Span

TABLE = Path(__file__).with_name("data") / "hints.toml"
MAX_LINE = 300
"""Characters of a line that patterns are tried on."""

_ABOUT_LINES = frozenset(
    (
        *("syntax", "bad-rule-type", "bad-action", "unknown-rule-option", "bad-name", "bad-address", "unknown-alias"),
        *("unknown-option", "bad-option-value", "no-section"),
    )
)
"""Codes of lines that may be of another language, or of another section."""

_PORTS = re.compile(r"[0-9]+(?:[:,-][0-9]+)*")
_BRACKET = re.compile(r"\((ACCEPT|DROP|REJECT)\)")


@dataclass(frozen=True, slots=True)
class _LineHint:
    sections: tuple[str, ...]
    pattern: re.Pattern[str]
    hint: str


@cache
def _tables() -> tuple[tuple[_LineHint, ...], Mapping[tuple[str, str], str]]:
    """Return the hints about lines, and those about words by code and word in lower case."""
    import tomllib  # deferred: most configurations have no mistake

    data = tomllib.loads(TABLE.read_text("utf-8"))
    lines = tuple(
        _LineHint(tuple(entry.get("sections", ())), re.compile(entry["pattern"], re.IGNORECASE), entry["hint"])
        for entry in data["line"]
    )
    return lines, {(entry["code"], word): entry["hint"] for entry in data["word"] for word in entry["words"]}


def hint_for(code: str, span: Span, section: str | None) -> str | None:
    """Return the probable intention, or None if the table has none.

    ``span`` marks the word that the diagnostic is about, ``section`` is the kind of section that contains it, if any.
    """
    lines, words = _tables()
    body = span.text.strip()[:MAX_LINE]
    for line in lines if code in _ABOUT_LINES else ():
        if line.sections and section not in line.sections:
            continue
        found = line.pattern.match(body)
        if found is not None:
            return line.hint.format(*found.groups(), iptables=_translated(body))
    word = span.text[span.column - 1 : span.end_column - 1]
    bracket = _BRACKET.search(span.text)
    action = bracket[1] if bracket else "ACCEPT"
    if code in ("unknown-macro", "bad-action") and (ports := _PORTS.fullmatch(word.partition("(")[0])):
        return f"a macro has a name: write {action} -p tcp -dport {ports[0].replace('-', ':')}"
    name = word.partition("(")[0] if code == "bad-action" else word
    hint = words.get((code, name.lower()))
    if hint is None and bracket and code == "bad-action":
        hint = words.get(("unknown-macro", name.lower()))
    return None if hint is None else hint.format(action=action, word=word.lower())


_CHAINS = {"INPUT": "IN", "OUTPUT": "OUT", "FORWARD": "FORWARD"}
_OPTIONS = {
    "-s": "-source", "--source": "-source", "--src": "-source",
    "-d": "-dest", "--destination": "-dest", "--dst": "-dest",
    "-p": "-p", "--protocol": "-p", "--dport": "-dport", "--dports": "-dport", "--destination-port": "-dport",
    "--sport": "-sport", "--sports": "-sport", "--source-port": "-sport", "--icmp-type": "-icmp-type",
}  # fmt: skip


def _translated(body: str) -> str:
    """Return a rule of iptables as one of this language, as far as its options are known.

    Example: ``iptables -A INPUT -s 192.0.2.1 -p tcp --dport 22 -j ACCEPT`` becomes
    ``IN ACCEPT -source 192.0.2.1 -p tcp -dport 22``.
    """
    words = body.split()
    given = dict(pairwise(words))
    kind = next((_CHAINS[given[name]] for name in ("-A", "-I") if given.get(name) in _CHAINS), "IN")
    action = given.get("-j", given.get("--jump", "ACCEPT"))
    if action not in ("ACCEPT", "DROP", "REJECT"):
        action = "ACCEPT"
    options = [f"{_OPTIONS[word]} {value}" for word, value in pairwise(words) if word in _OPTIONS]
    return " ".join([kind, action, *options])
