"""Interned programs, tests and sets: the registries that make equal ones one object grow with each ruleset read."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

from pvefw_nft.verify.model import Test
from pvefw_nft.verify.model.intervals import IntervalSet
from pvefw_nft.verify.prove.program import Program

_REGISTRIES: tuple[dict[Any, Any], ...] = (Program._known, Test._known, IntervalSet._known)
"""A program keeps its tests alive, and a test its set: so this is the order to forget them."""


def forget_unused() -> None:
    """Remove programs, tests and sets that nothing else refers to, for a process that reads many rulesets in turn.

    All others stay the same objects. Weak registries would do this at once, but make each look-up slower.
    """
    for registry in _REGISTRIES:
        in_use = WeakValueDictionary(registry)
        registry.clear()
        registry.update(in_use)
