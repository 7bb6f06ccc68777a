"""The backends: each spells the IR of :mod:`pvefw_nft.ir` in the language of one tool.

A backend is a folder here whose ``__init__`` has ``BACKEND``, its class, and a line in :data:`REGISTRY`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """A backend: its name on the command line and of its folder, and whether a host can load its artefact."""

    name: str
    is_loadable: bool


REGISTRY = (
    BackendInfo("iptables", is_loadable=True),
    BackendInfo("nft", is_loadable=True),
    BackendInfo("explain", is_loadable=False),
)
