"""The present rules of this host's kernel, as its tools print them: input for ``pvefw simulate`` and ``compare``."""

from __future__ import annotations

from pvefw_nft.errors import HostError
from pvefw_nft.host import tools

_TIMEOUT = 60


def saved_rulesets(backend: str | None) -> list[tuple[str, str]]:
    """Return the loaded rulesets, as (command, its output): by iptables and its kin, by nft, or (None) by both.

    A tool that is not installed can have loaded nothing; it is left out. Raises HostError if a tool fails, or
    where none is there.
    """
    commands: list[tuple[str, ...]] = []
    if backend != "nft":
        commands += [("ipset", "save"), *_save_commands("iptables"), *_save_commands("ip6tables"), ("ebtables-save",)]
    if backend != "iptables":
        commands.append(("nft", "-j", "list", "ruleset"))
    found = [
        (" ".join(command), tools.run(command, timeout=_TIMEOUT))
        for command in commands
        if tools.is_installed(command[0])
    ]
    if not found:
        raise HostError("none of the tools that list rulesets is installed", "install iptables, ipset or nftables")
    return found


def _save_commands(tool: str) -> list[tuple[str, ...]]:
    """Return the commands that save a tool's rules: rules of its nft and its legacy variant hold side by side."""
    variants = [f"{tool}-{variant}-save" for variant in ("nft", "legacy")]
    return [(name,) for name in variants if tools.is_installed(name)] or [(f"{tool}-save",)]
