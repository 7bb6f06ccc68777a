"""The coarse and the fine grammar of rules take the same lines.

The coarse one reads each line, the fine one only lines that the coarse one rejects, to name their mistakes. If they
differed, a line would be read that the manual calls wrong, or be rejected without a reason.
"""

from __future__ import annotations

import pyparsing as pp
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pvefw_nft.config import fine_grammar
from pvefw_nft.config.grammar import Line, SyntaxProblem, read_rule
from pvefw_nft.config.rule_fields import COLUMNS, OPTION_WORDS

EXAMPLES = 1500

_BLANKS = st.sampled_from(["", " ", "\t", "  ", " \t ", "\u00a0", "\x0b"])
_SOME_BLANKS = st.sampled_from([" ", "\t", "  "]) | _BLANKS
_VALUES = st.sampled_from(
    ["tcp", "80", "10.0.0.1", "+office", "net0", "a-b", "-", "--", "-5", "x|y", "ACCEPT", "#", "é", ""]
)
_OPTIONS = st.sampled_from([*OPTION_WORDS, "-s", "-j", "--i", "-dports", "-P", "-", "--", "dport"])
_TYPES = st.sampled_from(["IN", "out", "GROUP", "FORWARD", "|IN", "| OUT", "||IN", "1N", "I|N", "#", "-p", ""])
_ACTIONS = st.sampled_from(["ACCEPT", "SSH(ACCEPT)", "Ping(", "(x)", "web-1", "a|b", "|", "%", "DROP#", "-p", ""])
_COMMENTS = st.sampled_from(["", "", "# why", "#", "#-p tcp", "# -p #"])


@st.composite
def _lines(draw: st.DrawFn) -> str:
    """Draw a line of rule-like words, mostly sound ones, in the named form."""
    parts = [draw(_BLANKS), draw(_TYPES), draw(_SOME_BLANKS), draw(_ACTIONS)]
    for _ in range(draw(st.integers(0, 4))):
        parts += [draw(_SOME_BLANKS), draw(_OPTIONS), draw(_SOME_BLANKS), draw(_VALUES)]
    return "".join([*parts, draw(_BLANKS), draw(_COMMENTS), draw(_BLANKS)])


def coarse_takes(text: str) -> bool | None:
    """Tell whether the coarse grammar takes a line; None: as a rule of columns, which the fine one does not know."""
    try:
        rule = read_rule(Line("100.fw", 1, text), COLUMNS)
    except SyntaxProblem as problem:
        return None if "column" in problem.message else False
    return None if rule.positional else True


def fine_takes(text: str) -> bool:
    try:
        fine_grammar.rule().parse_string(text.strip())
    except pp.ParseBaseException:
        return False
    return True


@given(_lines() | st.text(alphabet="IN ACEPT|-#\t()psourcedti1.:\u00a0", max_size=40))
@example("IN|ACCEPT")
@example("IN ACCEPT-p tcp")
@example("IN ACCEPT -p\u00a0tcp")
@example("IN ACCEPT -p tcp#x")
@settings(max_examples=EXAMPLES, deadline=None)
def test_both_grammars_take_the_same_rules(text: str) -> None:
    coarse = coarse_takes(text)
    if coarse is not None:
        assert fine_takes(text) is coarse


@given(_lines())
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_rejected_rule_is_rejected_for_a_reason_within_its_line(text: str) -> None:
    if coarse_takes(text) is not False:
        return
    with pytest.raises(SyntaxProblem) as raised:
        read_rule(Line("100.fw", 1, text), COLUMNS)
    problem = raised.value
    assert problem.message != "this is not a rule"
    assert 0 <= problem.start < problem.end <= max(len(text), 1) + 1


@pytest.mark.parametrize("option", OPTION_WORDS)
def test_both_grammars_know_each_option(option: str) -> None:
    line = f"IN ACCEPT {option} value"
    assert coarse_takes(line) is True
    assert fine_takes(line)
