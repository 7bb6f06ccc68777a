"""Which versions of Python, the kernel, libraries and tools this pvefw runs with."""

from __future__ import annotations

import platform
import re
from importlib import metadata
from typing import TYPE_CHECKING

from pvefw_nft.errors import HostError
from pvefw_nft.host import bindings, tools

if TYPE_CHECKING:
    from collections.abc import Iterator

_LIBRARIES = ("click", "pyparsing", "pyroute2")
_TOOLS = ("iptables", "ipset", "ebtables", "nft")
# "iptables v1.8.9 (nf_tables)", "nftables v1.0.6 (Lester Gooch #5)", "ipset v7.17, protocol version: 7"
_VERSION = re.compile(r"v?\d[^\s,]*( \((?:nf_tables|legacy)\))?")


def version_lines() -> Iterator[str]:
    """Yield the lines that a bug report should contain."""
    yield f"pvefw {metadata.version('pvefw')}"
    yield f"Python {platform.python_version()}, Linux {platform.release()}"
    yield "libraries: " + ", ".join([*(f"{name} {_library(name)}" for name in _LIBRARIES), f"nftables {_nftables()}"])
    yield "tools: " + ", ".join(f"{tool} {_tool(tool)}" for tool in _TOOLS)


def _library(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _nftables() -> str:
    return "of Debian" if bindings.is_debian() else _library("pip-nftables")


def _tool(tool: str) -> str:
    """Return a tool's version and variant: ``v1.8.9 (nf_tables)``."""
    if not tools.is_installed(tool):
        return "missing"
    try:
        line = tools.version(tool)
    except HostError as error:
        return error.message
    found = _VERSION.search(line)
    return line if found is None else found.group()
