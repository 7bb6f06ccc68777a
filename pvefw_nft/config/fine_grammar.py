"""The grammars of pyparsing: the fine one of rules, and that of corosync.conf.

Most runs need neither, and importing pyparsing takes a tenth of the time of a short command. So nothing imports this
module before it needs one (see :mod:`.grammar`).
"""

from __future__ import annotations

import re
from functools import cache

import pyparsing as pp

from pvefw_nft.config.rule_fields import OPTION_WORDS

pp.ParserElement.set_default_whitespace_chars(" \t")

Rejected = pp.ParseBaseException
"""Raised for a text that a grammar rejects; ``loc`` is the place, ``msg`` the expectation there."""

VALUE = "a value for the option"
"""The end of the message about a missing value."""


@cache
def rule() -> pp.ParserElement:
    """Return the fine grammar of the named form. It accepts exactly the lines that the coarse grammar accepts."""
    type_word = pp.Regex(r"[^\s#|]+(?=[ \t])").set_name("a rule type (IN, OUT, FORWARD or GROUP)")
    action = pp.Regex(r"[^\s#]+").set_name("an action, a macro or a group name")
    options = "|".join(sorted(map(re.escape, OPTION_WORDS), key=len, reverse=True))
    option = pp.Regex(rf"(?:{options})(?!\S)").set_name("an option such as -source or -dport")
    value = pp.Regex(r"[^\s#-][^\s#]*").set_name(VALUE)
    comment = pp.Regex(r"#.*").set_name("a comment")
    end = pp.StringEnd().set_name("the end of the line or an option such as -source")
    whole = pp.Optional("|") + type_word + action + pp.ZeroOrMore(option - value) + pp.Optional(comment) + end
    return whole.parse_with_tabs()


# --- corosync.conf ------------------------------------------------------------------------------------------


def _line(pattern: str) -> pp.Regex:
    """Return a token that is kept as the match of its expression."""
    token = pp.Regex(pattern, as_match=True)
    token.leave_whitespace().parse_with_tabs()
    return token


# Possessive: a comment, once read, is never split again; a line of `####` could be split in 2^n ways.
_GAP = r"(?:\s|#[^\n]*)*+"
_COROSYNC_SETTING = _line(_GAP + r"([A-Za-z0-9_.]+)[ \t]*:[ \t]*([^\n]*)")
_COROSYNC_OPEN = _line(_GAP + r"([A-Za-z0-9_.]+)\s*\{")
_COROSYNC_CLOSE = _line(_GAP + r"\}").suppress()
_COROSYNC_BLOCK = pp.Forward()
_COROSYNC_BLOCK.leave_whitespace()
_COROSYNC_BODY = pp.ZeroOrMore(_COROSYNC_BLOCK | _COROSYNC_SETTING).leave_whitespace()
_COROSYNC_BLOCK <<= pp.Group(_COROSYNC_OPEN + pp.Group(_COROSYNC_BODY) + _COROSYNC_CLOSE).leave_whitespace()
COROSYNC = (_COROSYNC_BODY + _line(_GAP + r"\Z").suppress()).parse_with_tabs()
"""The grammar of corosync.conf: settings, and blocks of them."""
