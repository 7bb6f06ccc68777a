"""The words of nft's own syntax, and reading them from left to right (nft's scanner.l)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pvefw_nft.verify.readers.shared import RulesetError

if TYPE_CHECKING:
    from collections.abc import Callable

_TOKEN = re.compile(
    r"""(?P<blank>[ \t]+|\\\n|\#[^\n]*)
      | (?P<raw>@(?:ll|nh|th|ih),[0-9]+,[0-9]+)
      | "(?P<quoted>[^"\n]*)"
      | (?P<mark>\n|==|!=|<=|>=|[{};,=()&|!<>])
      | (?P<word>[^\s{};,=()&|!<>"\#]+)""",
    re.VERBOSE,
)
NUMBER = re.compile(r"[0-9]{1,40}|0x[0-9a-fA-F]{1,32}")


def integer(word: str) -> int:
    """Return the number that a word is, which :data:`NUMBER` matches."""
    return int(word, 16 if word.startswith("0x") else 10)


@dataclass(frozen=True, slots=True)
class Token:
    """A word, a mark or a text in quotes (without them), and its line. The last of a text is empty.

    ``raw``: it is the place of bits of a packet, ``@nh,48,16``.
    """

    text: str
    line: int
    quoted: bool = False
    raw: bool = False


def tokens(text: str, source: str) -> list[Token]:
    """Cut a text into its words. Raises RulesetError at a character that begins none."""
    found = []
    line, at = 1, 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            raise RulesetError(f"{source}:{line}: nft's text cannot be read from here on: {text[at : at + 20]!r}")
        at = token.end()
        if token["quoted"] is not None:
            found.append(Token(token["quoted"], line, quoted=True))
        elif token["blank"] is None:
            found.append(Token(token[0], line, raw=token["raw"] is not None))
        line += token[0].count("\n")
    found.append(Token("", line))
    return found


class Tokens:
    """Read words from left to right; each method reads the part that it is named after, or raises RulesetError."""

    def __init__(self, source: str, tokens: list[Token]) -> None:
        self._source = source
        self._tokens = tokens
        self._at = 0

    @property
    def _next(self) -> Token:
        return self._tokens[self._at]

    def _is(self, *texts: str) -> bool:
        return not self._next.quoted and self._next.text in texts

    def _take(self) -> Token:
        token = self._next
        self._at += 1
        return token

    def _skip(self, *texts: str) -> bool:
        """Take the next token if it is one of these."""
        if self._is(*texts):
            self._at += 1
            return True
        return False

    def _expect(self, text: str) -> None:
        if not self._skip(text):
            raise self._error(f"expected `{text}`")

    def _word(self) -> str:
        token = self._take()
        if token.quoted or not token.text or token.text in "\n{};,=()&|!<>":
            self._at -= 1
            raise self._error("expected a word")
        return token.text

    def _name(self) -> str:
        """Take a word or a text in quotes."""
        return self._take().text if self._next.quoted else self._word()

    def _number(self) -> int:
        word = self._word()
        if not NUMBER.fullmatch(word):
            self._at -= 1
            raise self._error("expected a number")
        return integer(word)

    def _error(self, message: str) -> RulesetError:
        token = self._next
        found = {"": "the end of the text", "\n": "the end of the line"}.get(token.text, f"`{token.text[:40]}`")
        return RulesetError(
            f"{self._source}:{token.line}: {message}, found {found}",
            "`nft -j list ruleset` gives a form that is read as a whole",
        )

    def _ends(self) -> None:
        """Go to the next line, over blank ones."""
        if not self._is("\n", ";", "}", ""):
            raise self._error("expected the end of the line")
        while self._skip("\n", ";"):
            pass

    def _braces(self, item: Callable[[], None]) -> None:
        """Read items between braces, each with its own end of line."""
        self._expect("{")
        self._ends()
        while not self._skip("}"):
            if not self._next.text:
                raise self._error("expected `}`")
            item()
            self._ends()

    def _list(self) -> list[str]:
        found = [self._word()]
        while self._skip(","):
            found.append(self._word())
        return found
