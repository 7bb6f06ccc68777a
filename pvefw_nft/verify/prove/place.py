"""Where a rule stands in its ruleset, and where it comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pvefw_nft.verify.model.text import rule_text

if TYPE_CHECKING:
    from pvefw_nft.verify.simulate.walk import Step


class Place(NamedTuple):
    """A rule: its ``table``, ``chain`` and number there (from 1; 0: the chain's policy).

    ``origin`` is the place in the configuration it comes from, ``line`` its line in the file read, where known;
    ``text`` the rule in words.
    """

    table: str
    chain: str
    number: int
    text: str
    origin: str = ""
    line: int = 0


def place_of(step: Step) -> Place:
    """Return the rule that was met, with its place."""
    rule = step.rule
    return Place(str(step.table.key), step.chain.name, step.number, rule_text(rule), step.origin, rule.line)
