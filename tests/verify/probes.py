"""Small helpers for tests of the readers: fields by name, and whether one rule's conditions hold for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvefw_nft.verify.model import (
    CT_MARK,
    MARK,
    Field,
    Rule,
    RulesetModel,
    field_named,
    holds,
)
from pvefw_nft.verify.model.text import parse_value
from pvefw_nft.verify.readers.files import Text, read_ruleset

if TYPE_CHECKING:
    from pvefw_nft.verify.readers.shared import Assume


def packet(**fields: int | str) -> dict[Field, int]:
    """Return a packet's fields by name (``_`` for a blank), values as people write them; ``mark``: all its bits."""
    found: dict[Field, int] = {}
    for name, value in fields.items():
        if name in ("mark", "ct_mark"):
            bits = MARK if name == "mark" else CT_MARK
            found |= {bit: int(value) >> number & 1 for number, bit in enumerate(bits)}
        else:
            on = field_named(name.replace("_", " "))
            found[on] = value if isinstance(value, int) else parse_value(on, value)
    return found


def matches(rule: Rule, probe: dict[Field, int]) -> bool:
    return all(holds(condition, probe) for condition in rule.conditions)


def rule_of(model: RulesetModel, chain: str, number: int = 1) -> Rule:
    """Return a rule by its chain's name, which only one table has with that many rules."""
    for table in model.tables:
        if chain in table.chains and len(table.chains[chain].rules) >= number:
            return table.chains[chain].rules[number - 1]
    raise LookupError(chain)


def xtables_rule(body: str, *, version: int = 4, sets: str = "", assume: Assume | None = None) -> Rule:
    """Return one rule of an (ip6)tables filter chain, read from its text without ``-A CHAIN``."""
    tool = "iptables" if version == 4 else "ip6tables"
    texts = [Text("sets", f"### ipset restore\n{sets}")] if sets else []
    lines = f"### {tool}-restore\n*filter\n:x - [0:0]\n:y - [0:0]\n-A x {body}\nCOMMIT\n"
    return rule_of(read_ruleset([*texts, Text("rules", lines)], assume=assume), "x")
