"""Interned tests and sets: the registries that make equal ones the same object grow with each ruleset that is read."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

from pvefw_nft.verify.model.conditions import Test
from pvefw_nft.verify.model.intervals import IntervalSet

_REGISTRIES: tuple[dict[Any, Any], ...] = (Test._known, IntervalSet._known)
"""A test keeps its set alive, so tests come first."""


def forget_unused() -> None:
    """Remove tests and sets that nothing else refers to, for a process that works on many rulesets in turn.

    All others stay the same objects. Weak registries would do this at once, but make each look-up slower.
    """
    for registry in _REGISTRIES:
        in_use = WeakValueDictionary(registry)
        registry.clear()
        registry.update(in_use)
