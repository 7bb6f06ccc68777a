"""pvefw: compiles Proxmox VE firewall files to iptables or nftables rulesets, applies and proves them.

``import pvefw_nft`` gives the public API of :mod:`pvefw_nft.api`. Each name is loaded at its first use: commands do not
wait for modules that they do not need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pvefw_nft.api import (
        Answer,
        Configuration,
        ConfigurationError,
        Diagnostic,
        Difference,
        HostError,
        Outcome,
        Packet,
        PvefwError,
        Report,
        Ruleset,
        Severity,
        Span,
        UsageError,
        check,
        compare,
        compile,  # noqa: A004 - the command's name
        load,
        simulate,
    )

__all__ = [
    "Answer",
    "Configuration",
    "ConfigurationError",
    "Diagnostic",
    "Difference",
    "HostError",
    "Outcome",
    "Packet",
    "PvefwError",
    "Report",
    "Ruleset",
    "Severity",
    "Span",
    "UsageError",
    "check",
    "compare",
    "compile",
    "load",
    "simulate",
]


def __getattr__(name: str) -> object:
    """Load a name of the API at its first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("pvefw_nft.api"), name)


def __dir__() -> list[str]:
    return __all__
