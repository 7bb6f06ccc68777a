"""State of the readers of iptables' matches and targets: the words of one rule, and the parts read so far."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from pvefw_nft.verify.model import Condition
    from pvefw_nft.verify.readers.ipset import IpSets

FULL = 0xFFFFFFFF
"""All bits of a mark."""

_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')


def split_words(line: str) -> list[str]:
    """Return the words of a restore line; double quotes hold words together, backslashes escape within."""
    if '"' not in line:
        return line.split()
    return [plain or re.sub(r"\\(.)", r"\1", quoted) for quoted, plain in _WORD.findall(line)]


class UnknownOptionError(Exception):
    """A match or target, or an option of one, that is not modelled; its argument is the text."""


@dataclass(slots=True)
class State:
    """A rule being read: its words, the position, and the parts read so far."""

    words: list[str]
    position: int = 0
    conditions: list[Condition] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    protocol: str = ""
    target: str = ""
    is_goto: bool = False
    options: dict[str, list[str]] = field(default_factory=dict)
    held: dict[str, list[str]] = field(default_factory=dict)

    def take(self) -> str:
        """Return the next word, an option's value; raises ValueError if there is none."""
        if self.position >= len(self.words):
            raise ValueError("a value is missing at the end")
        self.position += 1
        return self.words[self.position - 1]


@dataclass(slots=True)
class Context:
    """Context of reading rules: the IP version, the ipsets, and conditions made before, by option and value."""

    version: int
    sets: IpSets
    tests: dict[tuple[str, str, bool], Condition] = field(default_factory=dict)


Handler: TypeAlias = "Callable[[Context, State, bool], None]"
"""Reads one option; the last argument says whether ``!`` came before it."""


def masked(value: str) -> tuple[int, int]:
    """Return value and mask of ``VALUE[/MASK]``; without a mask, all bits count."""
    number, slash, mask = value.partition("/")
    return int(number, 0), int(mask, 0) if slash else FULL
